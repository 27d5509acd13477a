//! One exchange while it is kept in memory: what crossed the wire, byte for byte, and what was found out about it.
//!
//! It has memory of its own, so that it holds no buffer of the link: an encoded head, which is taken apart only when
//! somebody looks, and the body behind it, once for each direction.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, StatusCode};
use memchr::memmem;
use relay_protocol::exchange::content_length;
use relay_protocol::inbox::Delivery;
use relay_protocol::message::{HeaderList, Payload as _, RequestHead, ResponseHead};
use relay_protocol::webhook::{Provider, Verdict};
use tokio::time::Instant;

use super::exchange::{Exchange, Part, Summary, Timings};
use super::{Answer, unix_now};

/// On a request that a client sends once more: the id of the first one. The relay takes it off what comes from outside.
pub(crate) const REPLAY_OF: HeaderName = HeaderName::from_static("relay-replay-of");

/// What was found out about a request, by whoever looks at it on its way.
#[derive(Debug, Default)]
pub(crate) struct Annotation {
    /// Who has sent it. How long he waits for an answer counts from the start of the deadline.
    pub(crate) provider: Option<Arc<Provider>>,
    /// What the provider calls the event, the same when it is sent again.
    pub(crate) event_id: Option<String>,
    /// The event's kind.
    pub(crate) event_type: Option<String>,
    /// Whether it was signed, where that was judged.
    pub(crate) verdict: Option<Verdict>,
    /// Why the verdict is what it is, as a sentence without its full stop.
    pub(crate) reason: Option<Cow<'static, str>>,
    /// How often it was sent to the service; once if 0.
    pub(crate) attempt: u32,
}

impl Annotation {
    fn cost(&self) -> usize {
        let texts = [self.event_id.as_deref(), self.event_type.as_deref(), self.reason.as_deref()];
        texts.into_iter().flatten().map(str::len).sum()
    }
}

/// An exchange that is kept, and what has come of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Milliseconds since 1970.
    pub(super) at_ms: u64,
    arrived: Instant,
    pub(super) tunnel: Option<Arc<str>>,
    pub(super) id: Arc<str>,
    pub(super) method: Method,
    pub(super) path: Box<str>,
    pub(super) remote: Box<str>,
    pub(super) replay_of: Option<Box<str>>,
    inbox_attempt: Option<u32>,
    /// Milliseconds that had passed when the relay sent it on.
    pub(super) edge_ms: u32,
    /// Milliseconds from the start of the deadline to its end, as the relay said.
    allowed_ms: u64,
    pub(super) request: Half,
    /// What `Content-Length` says, where the body was not here at once.
    length: Option<u64>,
    /// None where the service has not answered.
    pub(super) response: Option<Half>,
    /// From its arrival here to the head of the answer.
    pub(super) upstream: Option<Duration>,
    pub(super) status: Option<StatusCode>,
    pub(super) ended: Option<End>,
    /// What was found out about it.
    pub(super) annotation: Annotation,
    /// Only the beginning of its long bodies is here.
    pub(super) is_shortened: bool,
}

/// One direction of an exchange.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// The head as it stands on the wire, and behind it the body.
    content: Vec<u8>,
    /// Bytes of the head.
    head: usize,
    /// Bytes of the body that have come.
    pub(super) size: u64,
    pub(super) whole: bool,
    /// As they stand on the wire; empty for none.
    pub(super) trailers: Bytes,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) duration: Duration,
    pub(super) error: Option<&'static str>,
}

impl Half {
    fn new(head: &[u8], room: usize) -> Self {
        let mut content = Vec::with_capacity(head.len() + room);
        content.extend_from_slice(head);
        Self { content, head: head.len(), ..Self::default() }
    }

    /// Takes in a part of the body, of which `most` bytes are kept at most. What is kept is its beginning, without a hole.
    fn data(&mut self, bytes: &[u8], most: usize) {
        let kept = self.content.len() - self.head;
        let room = if kept as u64 == self.size { most.saturating_sub(kept) } else { 0 };
        self.content.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.size += bytes.len() as u64;
    }

    /// The head as it stands on the wire.
    pub(super) fn head(&self) -> &[u8] {
        self.content.get(..self.head).unwrap_or_default()
    }

    /// The body, as far as it was kept.
    pub(super) fn body(&self) -> &[u8] {
        self.content.get(self.head..).unwrap_or_default()
    }

    /// Whether there is more of the body than was kept, or should have been.
    pub(super) fn is_truncated(&self) -> bool {
        !self.whole || self.size > self.body().len() as u64
    }

    fn part<H>(&self, head: H) -> Part<H> {
        Part {
            head,
            body: self.body().to_vec(),
            body_size: self.size,
            body_truncated: self.is_truncated(),
            trailers: list(&self.trailers),
        }
    }

    /// Lets go of what is behind the first `most` bytes of the body.
    fn shorten(&mut self, most: usize) {
        self.content.truncate(self.head.saturating_add(most));
        self.content.shrink_to_fit();
    }

    fn cost(&self) -> usize {
        self.content.capacity() + self.trailers.len()
    }
}

impl Entry {
    /// A request that has come just now, with its encoded head, through this tunnel, and with what of its body is there;
    /// `whole` says that this is all. At most `most` bytes of the body are kept.
    pub(super) fn new(
        encoded: &[u8],
        head: &RequestHead,
        tunnel: Option<Arc<str>>,
        body: &[Bytes],
        whole: bool,
        most: usize,
    ) -> Self {
        let here: usize = body.iter().map(Bytes::len).sum();
        // When so many have come nobody asks for the body's end any more.
        let length = if whole { None } else { content_length(head) };
        let mut request = Half::new(encoded, here.min(most));
        body.iter().for_each(|bytes| request.data(bytes, most));
        request.whole = whole || length == Some(0);
        let first = head.headers.iter().find(|(name, _)| *name == REPLAY_OF);
        Self {
            at_ms: unix_now(),
            arrived: Instant::now(),
            tunnel,
            id: (*head.id).into(),
            method: head.method.clone(),
            path: head.target.as_str().into(),
            remote: (*head.remote).into(),
            replay_of: first.and_then(|(_, id)| id.to_str().ok()).map(Into::into),
            inbox_attempt: Delivery::of(&head.headers).map(|delivery| delivery.attempt),
            edge_ms: head.elapsed_ms,
            allowed_ms: u64::from(head.elapsed_ms) + u64::from(head.deadline_ms),
            request,
            length,
            response: None,
            upstream: None,
            status: None,
            ended: None,
            annotation: Annotation::default(),
            is_shortened: false,
        }
    }

    /// A part of the request's body has come. Whether it is whole with it.
    pub(super) fn data(&mut self, bytes: &[u8], most: usize) -> bool {
        self.request.data(bytes, most);
        self.request.whole |= self.length == Some(self.request.size);
        self.request.whole
    }

    /// The request's body has ended. Whether that is news.
    pub(super) fn arrive(&mut self, trailers: &Bytes) -> bool {
        self.request.trailers = Bytes::copy_from_slice(trailers);
        self.request.content.shrink_to_fit();
        !std::mem::replace(&mut self.request.whole, true)
    }

    /// The service has answered with this encoded head. About `room` bytes of body will follow.
    pub(super) fn respond(&mut self, encoded: &[u8], room: usize) {
        self.upstream = Some(in_micros(self.arrived.elapsed()));
        self.response = Some(Half::new(encoded, room));
    }

    /// A part of the response's body.
    pub(super) fn response_data(&mut self, bytes: &[u8], most: usize) {
        if let Some(response) = &mut self.response {
            response.data(bytes, most);
        }
    }

    /// The response's body has ended.
    pub(super) fn responded(&mut self, trailers: &Bytes) {
        if let Some(response) = &mut self.response {
            response.trailers = Bytes::copy_from_slice(trailers);
            response.whole = true;
        }
    }

    /// The exchange is over. Whether it was not before.
    pub(super) fn end(&mut self, status: Option<StatusCode>, end: End) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.request.content.shrink_to_fit();
        self.response.iter_mut().for_each(|response| response.content.shrink_to_fit());
        let duration = in_micros(end.duration);
        (self.status, self.ended) = (status, Some(End { duration, ..end }));
        true
    }

    /// Whether there is a body of which more than `most` bytes are kept.
    pub(super) fn is_longer(&self, most: usize) -> bool {
        [Some(&self.request), self.response.as_ref()].into_iter().flatten().any(|half| half.body().len() > most)
    }

    /// Keeps the first `most` bytes of each body.
    pub(super) fn shorten(&mut self, most: usize) {
        self.is_shortened |= self.is_longer(most);
        self.request.shorten(most);
        self.response.iter_mut().for_each(|response| response.shorten(most));
    }

    /// How long it was allowed to take.
    pub(super) fn allowed_ms(&self) -> u64 {
        let known = self.annotation.provider.as_ref().and_then(|provider| provider.limit());
        known.map_or(self.allowed_ms, |allowed| u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX))
    }

    /// Bytes of memory that it takes.
    pub(super) fn cost(&self) -> usize {
        let response = self.response.as_ref().map_or(0, Half::cost);
        let texts = self.id.len() + self.path.len() + self.remote.len() + self.annotation.cost();
        size_of::<super::Kept>() + texts + self.request.cost() + response
    }

    /// The request's body, as far as it was kept.
    pub(crate) fn body(&self) -> &[u8] {
        self.request.body()
    }

    /// Whether a text stands in one of the bodies.
    pub(super) fn bodies_have(&self, text: &str) -> bool {
        let mut bodies = [Some(&self.request), self.response.as_ref()].into_iter().flatten().map(Half::body);
        bodies.any(|body| memmem::find(body, text.as_bytes()).is_some())
    }

    /// Whether there is more of the request's body than was kept, or should have been.
    pub(crate) fn is_truncated(&self) -> bool {
        self.request.is_truncated()
    }

    /// What it was answered with.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    pub(super) fn decode(&self) -> Option<RequestHead> {
        // It was taken apart before it was kept, so it can be now.
        RequestHead::from_bytes(&Bytes::copy_from_slice(self.request.head())).ok()
    }

    /// Nothing more of the request will come.
    pub(super) fn has_arrived(&self) -> bool {
        self.request.whole || self.ended.is_some()
    }

    pub(super) fn is_answered(&self) -> bool {
        self.status.is_some() || self.ended.is_some()
    }

    pub(super) fn answer(&self) -> Answer {
        Answer {
            status: self.status.map(|status| status.as_u16()),
            duration_ms: self.ended.map(|end| end.duration.as_secs_f64() * 1e3),
            error: self.ended.and_then(|end| end.error).map(str::to_owned),
        }
    }

    /// As it stands in a list.
    pub(crate) fn summary(&self) -> Summary {
        self.line().owned()
    }

    /// The same, as long as it does not change.
    pub(super) fn line(&self) -> Summary<&str> {
        let note = &self.annotation;
        Summary {
            id: &self.id,
            tunnel: self.tunnel.as_deref(),
            at_ms: self.at_ms,
            method: self.method.as_str(),
            path: &self.path,
            status: self.status.map(|status| status.as_u16()),
            error: self.ended.and_then(|end| end.error),
            duration_ms: self.ended.map(|end| end.duration.as_secs_f64() * 1e3),
            allowed_ms: Some(self.allowed_ms()),
            provider: note.provider.as_ref().map(|provider| provider.id.as_str()),
            provider_name: note.provider.as_ref().map(|provider| provider.name.as_str()),
            event_id: note.event_id.as_deref(),
            event_type: note.event_type.as_deref(),
            verdict: note.verdict,
            request_size: self.request.size,
            response_size: self.response.as_ref().map(|response| response.size),
            remote: &self.remote,
            replay_of: self.replay_of.as_deref(),
            attempt: note.attempt.max(1),
            inbox_attempt: self.inbox_attempt,
        }
    }

    /// All of it, as far as it has come and was not [let go of](Self::shorten).
    pub(crate) fn exchange(&self) -> Option<Exchange> {
        let summary = self.summary();
        let timings = Timings {
            edge_ms: self.edge_ms.into(),
            upstream_ms: self.upstream.map(|time| time.as_secs_f64() * 1e3),
            total_ms: summary.duration_ms,
        };
        let response = self.response.as_ref().and_then(|half| {
            let head = ResponseHead::from_bytes(&Bytes::copy_from_slice(half.head())).ok()?;
            Some(half.part(head))
        });
        Some(Exchange {
            reason: self.annotation.reason.as_deref().map(str::to_owned),
            timings,
            request: self.request.part(self.decode()?),
            response,
            summary,
        })
    }
}

/// Of what stands on the wire.
fn list(trailers: &Bytes) -> HeaderList {
    HeaderList::from_bytes(trailers).unwrap_or_default()
}

/// As the history keeps it, so that both say the same.
fn in_micros(time: Duration) -> Duration {
    Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
