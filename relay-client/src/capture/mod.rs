//! The last requests of a running client, kept so that they can be looked at and waited for.
//!
//! ```text
//!   session ── head ──▶ Arrival ─┐
//!                                ▼
//!   upstream ── body ──▶ Recording ──▶ Ring ──▶ Reader ──▶ whoever watches
//!            └─ answer ──▶ ┘
//! ```
//!
//! The ring has a bound of its count and of its bytes, and the oldest go first, whether they have ended or not. A
//! request is copied into memory of its own, so that it holds no buffer of the link: its encoded head, which is taken
//! apart only when somebody looks, and its body. That is on the way of every request, so most are kept in two steps: when
//! they have arrived, and when their exchange is over.

pub mod filter;
pub mod fixture;
pub mod mask;
pub mod saved;

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use relay_protocol::message::{Payload as _, RequestHead};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// How much a capture keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Requests.
    pub(crate) count: usize,
    /// Bytes that they have together, with what it takes to keep them.
    pub(crate) together: usize,
    /// Bytes of one body; what comes behind them is counted.
    pub(crate) body: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { count: 1000, together: 16 << 20, body: 1 << 20 }
    }
}

/// The last requests of a client; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Capture(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    ring: Mutex<Ring>,
    /// A request has arrived, or has been answered.
    news: Notify,
}

impl Capture {
    /// Keeps so much.
    pub(crate) fn within(bounds: Bounds) -> Self {
        Self(Arc::new(Shared { ring: Mutex::new(Ring { bounds, ..Ring::default() }), news: Notify::new() }))
    }

    /// A request whose encoded head has come just now.
    pub(crate) fn arrival(&self, encoded: Bytes) -> Arrival {
        Arrival(Some((self.clone(), encoded)))
    }

    /// Reads what is kept, and then what comes.
    pub(crate) fn read(&self, since: Since) -> Reader {
        let mut ring = self.ring();
        ring.readers += 1;
        let (next, after) = match since {
            Since::Start => (ring.first, None),
            Since::Now => (ring.end(), None),
            Since::Time { at_ms } => (ring.find(|entry| entry.at_ms >= at_ms).unwrap_or(ring.end()), None),
            Since::Id { id } => match ring.find(|entry| entry.has_id(&id)) {
                Some(seq) => (seq + 1, None),
                None => (ring.first, Some(id)),
            },
        };
        drop(ring);
        Reader { capture: self.clone(), next, after, open: VecDeque::new(), left: 0, missed: 0, late: false }
    }

    /// The request of this id, as long as it is kept.
    pub(crate) fn get(&self, id: &str) -> Option<Captured> {
        let ring = self.ring();
        let seq = ring.find(|entry| entry.has_id(id))?;
        let entry = ring.get(seq)?;
        Some(captured(seq, entry, entry.decode()?))
    }

    /// The client has ended. Whoever reads is told what there still is, and then that this was all.
    pub(crate) fn close(&self) {
        self.ring().closed = true;
        self.0.news.notify_waiters();
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From which request on one wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Since {
    /// All that are kept.
    #[default]
    Start,
    /// Those that come.
    Now,
    /// Those that came at this time or later.
    Time {
        /// Milliseconds since 1970.
        at_ms: u64,
    },
    /// Those that came after this one. Where it is not kept, those whose id is a later one: ids begin with their time.
    Id {
        /// An exchange's id.
        id: String,
    },
}

/// A request that may be kept, once it is known what came with its head.
#[derive(Debug, Default)]
pub(crate) struct Arrival(Option<(Capture, Bytes)>);

impl Arrival {
    /// Keeps the request, which came through this tunnel, with what of its body is there; `whole` says that this is all.
    pub(crate) fn keep(self, head: &RequestHead, tunnel: Option<Arc<str>>, body: &[Bytes], whole: bool) -> Recording {
        let Some((capture, encoded)) = self.0 else { return Recording::default() };
        let size: usize = body.iter().map(Bytes::len).sum();
        // When so many have come nobody asks for the body's end any more.
        let length = if whole { None } else { content_length(head) };
        let mut content = Vec::with_capacity(encoded.len() + size);
        content.extend_from_slice(&encoded);
        let entry = Entry {
            at_ms: unix_now(),
            tunnel,
            head: content.len(),
            content,
            size: 0,
            length,
            whole: whole || length == Some(0),
            status: None,
            ended: None,
        };
        let mut ring = capture.ring();
        let seq = ring.end();
        ring.bytes += entry.cost();
        ring.entries.push_back(entry);
        body.iter().for_each(|bytes| ring.data(seq, bytes));
        ring.make_room();
        let is_news = ring.readers > 0;
        drop(ring);
        if is_news {
            capture.0.news.notify_waiters();
        }
        Recording(Some((capture.0, seq)))
    }
}

/// A request that is being recorded, or is not. It is a handle: the ring may have dropped the request meanwhile.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording(Option<(Arc<Shared>, u64)>);

impl Recording {
    /// A part of the body has come.
    pub(crate) fn data(&self, bytes: &[u8]) {
        self.change(|ring, seq| {
            ring.data(seq, bytes);
            ring.make_room();
            ring.get(seq).is_some_and(|entry| entry.whole)
        });
    }

    /// The request is here as a whole.
    pub(crate) fn whole(&self) {
        self.change(|ring, seq| {
            ring.shrink(seq);
            ring.get_mut(seq).is_some_and(|entry| !std::mem::replace(&mut entry.whole, true))
        });
    }

    /// The head of the answer has been sent on, and the rest of it takes a while.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.change(|ring, seq| ring.get_mut(seq).map(|entry| entry.status = Some(status)).is_some());
    }

    /// The exchange is over.
    pub(crate) fn ended(&self, status: Option<StatusCode>, duration: Duration, error: Option<&'static str>) {
        self.change(|ring, seq| {
            ring.shrink(seq);
            let end = (status, Some(End { duration, error }));
            ring.get_mut(seq).map(|entry| (entry.status, entry.ended) = end).is_some()
        });
    }

    /// Changes the ring, and wakes those who read where the change says that it is news.
    fn change(&self, change: impl FnOnce(&mut Ring, u64) -> bool) {
        let Some((shared, seq)) = &self.0 else { return };
        let mut ring = shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = change(&mut ring, *seq) && ring.readers > 0;
        drop(ring);
        if is_news {
            shared.news.notify_waiters();
        }
    }
}

/// The kept requests, numbered in the order in which their heads came.
#[derive(Debug, Default)]
struct Ring {
    /// The number of the oldest one.
    first: u64,
    entries: VecDeque<Entry>,
    /// What they have together: see [`Entry::cost`].
    bytes: usize,
    bounds: Bounds,
    /// How many [`Reader`]s there are.
    readers: usize,
    /// No more will come, and nothing will become of those that there are.
    closed: bool,
}

/// A request that is kept, and what has come of it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Milliseconds since 1970.
    at_ms: u64,
    tunnel: Option<Arc<str>>,
    /// The head as it came over the wire, and behind it the body.
    content: Vec<u8>,
    /// Bytes of the head.
    head: usize,
    /// Bytes of the body that have come.
    size: u64,
    /// What `Content-Length` says, where the body was not here at once.
    length: Option<u64>,
    whole: bool,
    status: Option<StatusCode>,
    ended: Option<End>,
}

#[derive(Clone, Copy, Debug)]
struct End {
    duration: Duration,
    error: Option<&'static str>,
}

impl Entry {
    fn cost(&self) -> usize {
        size_of::<Self>() + self.content.capacity()
    }

    /// The body, as far as it was kept.
    pub(crate) fn body(&self) -> &[u8] {
        self.content.get(self.head..).unwrap_or_default()
    }

    /// Whether there is more of the body than was kept, or should have been.
    pub(crate) fn is_truncated(&self) -> bool {
        !self.whole || self.size > self.body().len() as u64
    }

    /// What it was answered with.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.status
    }

    fn decode(&self) -> Option<RequestHead> {
        // It was taken apart before it was kept, so it can be now.
        RequestHead::from_bytes(&Bytes::copy_from_slice(self.content.get(..self.head)?)).ok()
    }

    fn has_id(&self, id: &str) -> bool {
        self.decode().is_some_and(|head| *head.id == *id)
    }

    /// Nothing more of it will come.
    fn has_arrived(&self) -> bool {
        self.whole || self.ended.is_some()
    }

    fn is_answered(&self) -> bool {
        self.status.is_some() || self.ended.is_some()
    }

    fn answer(&self) -> Answer {
        Answer {
            status: self.status.map(|status| status.as_u16()),
            duration_ms: self.ended.map(|end| end.duration.as_secs_f64() * 1e3),
            error: self.ended.and_then(|end| end.error).map(str::to_owned),
        }
    }
}

impl Ring {
    /// The number of the next one.
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn get(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    fn get_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        self.entries.get_mut(usize::try_from(seq.checked_sub(self.first)?).ok()?)
    }

    /// The number of the first one that `is` it.
    fn find(&self, is: impl Fn(&Entry) -> bool) -> Option<u64> {
        self.entries.iter().position(is).map(|at| self.first + at as u64)
    }

    /// Takes in a part of a body.
    fn data(&mut self, seq: u64, bytes: &[u8]) {
        let most = self.bounds.body;
        let Some(entry) = self.get_mut(seq) else { return };
        entry.size += bytes.len() as u64;
        entry.whole |= entry.length == Some(entry.size);
        let before = entry.content.capacity();
        let wanted = bytes.get(..most.saturating_sub(entry.body().len())).unwrap_or(bytes);
        entry.content.extend_from_slice(wanted);
        let more = entry.content.capacity() - before;
        self.bytes += more;
    }

    /// Gives back what a body's growth has taken and its bytes do not need.
    fn shrink(&mut self, seq: u64) {
        let Some(entry) = self.get_mut(seq) else { return };
        let before = entry.content.capacity();
        entry.content.shrink_to_fit();
        let less = before - entry.content.capacity();
        self.bytes -= less;
    }

    fn make_room(&mut self) {
        while self.entries.len() > self.bounds.count || self.bytes > self.bounds.together {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.first += 1;
            self.bytes -= oldest.cost();
        }
    }
}

/// A request as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Captured {
    /// Its number among the requests of its client.
    pub(crate) seq: u64,
    /// The tunnel, as in `tunnel.ready`; none where it is not known.
    pub(crate) tunnel: Option<String>,
    /// When its head came: milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// The exchange's id.
    pub(crate) id: String,
    /// Its method.
    pub(crate) method: String,
    /// The raw target with its query.
    pub(crate) path: String,
    /// Name and value of each header as the sender wrote it, `host` first.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, as far as it was kept.
    #[serde(with = "base64_text")]
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that have come.
    pub(crate) body_size: u64,
    /// Whether `body` is not all of it.
    pub(crate) body_truncated: bool,
    /// None while it has none.
    pub(crate) answer: Option<Answer>,
}

/// What came of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// None where none was sent.
    pub(crate) status: Option<u16>,
    /// From the start of the deadline to the end of the body; none while that goes on.
    pub(crate) duration_ms: Option<f64>,
    /// A stable code.
    pub(crate) error: Option<String>,
}

/// What a [`Reader`] has to say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum News<T = Captured> {
    /// A request has arrived.
    Request(T),
    /// One that was told of before has been answered.
    Answered {
        /// Its number.
        seq: u64,
        /// With what.
        answer: Answer,
    },
    /// So many were dropped before they could be told of.
    Missed(u64),
}

/// Tells of each request when it has arrived, and once more when it has been answered, if that is later. It holds
/// numbers only, so one that is slow keeps nothing and holds nobody up: it misses what the ring drops.
#[derive(Debug)]
pub(crate) struct Reader {
    capture: Capture,
    /// The first request that it has not looked at.
    next: u64,
    /// Only requests with a later id are of interest.
    after: Option<String>,
    /// Those that have not ended, and whether they have been told of.
    open: VecDeque<(u64, bool)>,
    /// How many of `open` are still to be looked at before waiting again.
    left: usize,
    missed: u64,
    /// Requests are told of only when they have been answered.
    late: bool,
}

impl Reader {
    /// Tells of each request when it has been answered, and of no answer.
    pub(crate) fn when_answered(mut self) -> Self {
        self.late = true;
        self
    }

    /// The next news; `None` when the client has ended and all is told. Nothing is lost where this is given up.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.next_as(captured).await
    }

    /// As [`Reader::next`], with requests as `show` makes them: of their number, what was kept, and the head from that.
    pub(crate) async fn next_as<T>(&mut self, show: fn(u64, &Entry, RequestHead) -> T) -> Option<News<T>> {
        let shared = self.capture.0.clone();
        loop {
            if let Some(news) = self.look(show) {
                return Some(news);
            }
            let mut changed = pin!(shared.news.notified());
            // From here on, what happens is heard of; what has happened before is seen.
            changed.as_mut().enable();
            let closed = self.extend();
            if let Some(news) = self.look(show) {
                return Some(news);
            }
            if closed {
                return None;
            }
            changed.await;
        }
    }

    /// Begins another round with what has come. Whether it is the last one.
    fn extend(&mut self) -> bool {
        let ring = self.capture.ring();
        let (first, end, closed) = (ring.first, ring.end(), ring.closed);
        drop(ring);
        self.missed += first.saturating_sub(self.next);
        self.open.extend((self.next.max(first)..end).map(|seq| (seq, false)));
        self.next = end;
        self.left = self.open.len();
        closed
    }

    /// Goes on with the round.
    fn look<T>(&mut self, show: fn(u64, &Entry, RequestHead) -> T) -> Option<News<T>> {
        loop {
            if self.missed > 0 {
                return Some(News::Missed(std::mem::take(&mut self.missed)));
            }
            self.left = self.left.checked_sub(1)?;
            let (seq, told) = self.open.pop_front()?;
            let ring = self.capture.ring();
            let Some(entry) = ring.get(seq) else {
                if told {
                    // What became of it nobody will know.
                    return Some(News::Answered { seq, answer: Answer::default() });
                }
                self.missed += 1;
                continue;
            };
            let (arrived, answered) = (entry.has_arrived(), entry.is_answered());
            if told && answered {
                return Some(News::Answered { seq, answer: entry.answer() });
            }
            if told || !arrived || self.late && !answered {
                self.open.push_back((seq, told));
                continue;
            }
            let Some(head) = entry.decode() else { continue };
            if self.after.as_ref().is_some_and(|after| *head.id <= **after) {
                continue;
            }
            if !answered {
                self.open.push_back((seq, true));
            }
            return Some(News::Request(show(seq, entry, head)));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.capture.ring().readers -= 1;
    }
}

/// A kept request as it is shown.
fn captured(seq: u64, entry: &Entry, head: RequestHead) -> Captured {
    let host = ("host".to_owned(), head.authority.to_string());
    let theirs = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())));
    Captured {
        seq,
        tunnel: entry.tunnel.as_deref().map(str::to_owned),
        at_ms: entry.at_ms,
        id: head.id.to_string(),
        method: head.method.as_str().to_owned(),
        path: head.target.as_str().to_owned(),
        headers: std::iter::once(host).chain(theirs).collect(),
        body: entry.body().to_vec(),
        body_size: entry.size,
        body_truncated: entry.is_truncated(),
        answer: entry.is_answered().then(|| entry.answer()),
    }
}

fn content_length(head: &RequestHead) -> Option<u64> {
    let (_, value) = head.headers.iter().find(|(name, _)| *name == CONTENT_LENGTH)?;
    value.to_str().ok()?.parse().ok()
}

/// A header's value: UTF-8, or else ISO 8859-1, as such bytes were meant once (RFC 9110, section 5.5).
pub(crate) fn text(value: &[u8]) -> String {
    std::str::from_utf8(value).map_or_else(|_| value.iter().copied().map(char::from).collect(), str::to_owned)
}

/// Milliseconds since 1970.
pub(crate) fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::header::{HeaderName, HeaderValue};
    use http::{Method, uri::PathAndQuery};

    use super::*;

    const BODY: usize = 1 << 20;
    const COUNT: usize = 1000;

    fn head(id: &str) -> Bytes {
        let head = RequestHead {
            tunnel: 7,
            id: id.into(),
            deadline_ms: 1000,
            elapsed_ms: 0,
            method: Method::POST,
            target: PathAndQuery::from_static("/hooks?a=%2F"),
            authority: "hooks.relay.example".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers: vec![(HeaderName::from_static("x-odd"), HeaderValue::from_bytes(b"\xe9").unwrap())],
        };
        head.to_bytes().unwrap()
    }

    fn begin(capture: &Capture, id: &str) -> Recording {
        let encoded = head(id);
        let head = RequestHead::from_bytes(&encoded).unwrap();
        capture.arrival(encoded).keep(&head, Some("hooks".into()), &[], false)
    }

    fn consistent(capture: &Capture) {
        let ring = capture.ring();
        let sum: usize = ring.entries.iter().map(Entry::cost).sum();
        assert_eq!(ring.bytes, sum);
        assert!(
            ring.bytes <= ring.bounds.together && ring.entries.len() <= ring.bounds.count,
            "{} {}",
            ring.bytes,
            ring.entries.len()
        );
    }

    async fn request(reader: &mut Reader) -> Captured {
        match reader.next().await {
            Some(News::Request(captured)) => captured,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_request_is_told_of_when_it_is_whole_and_when_it_is_answered() {
        let capture = Capture::default();
        let mut reader = capture.read(Since::Start);
        let slow = begin(&capture, "1");
        slow.data(b"begin");
        let quick = begin(&capture, "2");
        quick.whole();
        let told = request(&mut reader).await;
        assert_eq!((told.id.as_str(), told.tunnel.as_deref(), told.answer), ("2", Some("hooks"), None));
        assert_eq!((told.method.as_str(), told.path.as_str()), ("POST", "/hooks?a=%2F"));
        let shown: Vec<_> = told.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(shown, [("host", "hooks.relay.example"), ("x-odd", "é")]);
        slow.data(b"ning");
        slow.whole();
        slow.answered(StatusCode::OK);
        let told = request(&mut reader).await;
        assert_eq!((told.id.as_str(), &told.body[..], told.body_size), ("1", &b"beginning"[..], 9));
        assert_eq!((told.body_truncated, told.answer.unwrap().status), (false, Some(200)));
        quick.ended(Some(StatusCode::BAD_GATEWAY), Duration::from_millis(3), Some("upstream-refused"));
        let Some(News::Answered { seq: 1, answer }) = reader.next().await else { panic!("no answer") };
        assert_eq!((answer.status, answer.duration_ms), (Some(502), Some(3.0)));
        assert_eq!(answer.error.as_deref(), Some("upstream-refused"));
        consistent(&capture);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_or_is_too_large_is_marked() {
        let capture = Capture::default();
        let broken = begin(&capture, "1");
        broken.data(b"half");
        broken.ended(None, Duration::ZERO, Some("cancelled"));
        let large = begin(&capture, "2");
        for _ in 0..3 {
            large.data(&vec![b'x'; BODY / 2 + 1]);
            consistent(&capture);
        }
        large.whole();
        let mut reader = capture.read(Since::Start);
        let told = request(&mut reader).await;
        assert_eq!((told.body_truncated, &told.body[..]), (true, &b"half"[..]));
        let told = request(&mut reader).await;
        assert_eq!((told.body_truncated, told.body.len(), told.body_size), (true, BODY, 3 * (BODY as u64 / 2 + 1)));
        assert!(capture.ring().entries[1].content.capacity() <= BODY + BODY / 8, "what it does not need is given back");
        consistent(&capture);
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_are_said_to_be_missed() {
        let capture = Capture::default();
        let mut reader = capture.read(Since::Start);
        let first = begin(&capture, "0");
        first.whole();
        assert_eq!(request(&mut reader).await.seq, 0);
        for i in 1..COUNT + 50 {
            begin(&capture, &i.to_string()).whole();
            consistent(&capture);
        }
        first.answered(StatusCode::OK);
        first.data(b"to nobody");
        // The first one was told of; 49 were not.
        assert_eq!(reader.next().await, Some(News::Missed(49)));
        assert_eq!(reader.next().await, Some(News::Answered { seq: 0, answer: Answer::default() }));
        assert_eq!(request(&mut reader).await.seq, 50);
        for _ in 0..40 {
            let large = begin(&capture, "large");
            large.data(&vec![0; BODY]);
            consistent(&capture);
        }
        assert!(capture.ring().entries.len() < 20);
    }

    #[tokio::test]
    async fn one_can_begin_anywhere() {
        let capture = Capture::default();
        for id in ["01A", "01B", "01D"] {
            begin(&capture, id).whole();
        }
        let mut now = capture.read(Since::Now);
        let mut after = capture.read(Since::Id { id: "01B".to_owned() });
        let mut between = capture.read(Since::Id { id: "01C".to_owned() });
        let mut future = capture.read(Since::Time { at_ms: unix_now() + 3_600_000 });
        let mut past = capture.read(Since::Time { at_ms: unix_now() - 3_600_000 });
        assert_eq!(request(&mut after).await.id, "01D");
        assert_eq!(request(&mut between).await.id, "01D");
        assert_eq!(request(&mut past).await.id, "01A");
        begin(&capture, "01E").whole();
        for reader in [&mut now, &mut after, &mut between, &mut future] {
            assert_eq!(request(reader).await.id, "01E");
        }
    }

    #[tokio::test]
    async fn at_the_end_all_that_has_arrived_is_told_and_then_the_end() {
        let capture = Capture::default();
        let (mut reads, mut waits) = (capture.read(Since::Start), capture.read(Since::Now));
        begin(&capture, "0").whole();
        begin(&capture, "1").data(b"half");
        begin(&capture, "2").whole();
        let waiting = tokio::spawn(async move { (waits.next().await, waits.next().await, waits.next().await) });
        assert_eq!(request(&mut reads).await.seq, 0);
        capture.close();
        assert_eq!(request(&mut reads).await.seq, 2);
        assert_eq!((reads.next().await, reads.next().await), (None, None));
        let (Some(_), Some(_), None) = waiting.await.unwrap() else { panic!("both and the end") };
        assert_eq!(request(&mut capture.read(Since::Start)).await.seq, 0, "also to whoever comes late");
    }

    /// Whatever comes while a reader is about to wait is told of.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_between_looking_and_waiting() {
        for _ in 0..50 {
            let capture = Capture::default();
            let mut reader = capture.read(Since::Start);
            let writer = tokio::spawn(async move {
                for i in 0..100 {
                    let recording = begin(&capture, &i.to_string());
                    tokio::task::yield_now().await;
                    recording.whole();
                }
            });
            for i in 0..100 {
                assert_eq!(request(&mut reader).await.seq, i);
            }
            writer.await.unwrap();
        }
    }

    #[test]
    fn odd_values_of_headers_are_text() {
        assert_eq!((text("é".as_bytes()).as_str(), text(b"\xe9\x9b").as_str()), ("é", "é\u{9b}"));
    }

    #[test]
    fn news_survive_their_way_through_a_socket() {
        let capture = Capture::default();
        let recording = begin(&capture, "1");
        recording.data(b"\xff\x00");
        recording.whole();
        let news = {
            let ring = capture.ring();
            News::Request(captured(0, &ring.entries[0], ring.entries[0].decode().unwrap()))
        };
        let text = serde_json::to_string(&news).unwrap();
        assert_eq!(serde_json::from_str::<News>(&text).unwrap(), news);
    }
}
