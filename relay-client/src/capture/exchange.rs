//! An exchange that is over, as it is told: a line of a list, or the whole with every byte.

use std::borrow::Cow;

use http::header::HOST;
use jiff::Timestamp;
use relay_protocol::exchange::public_url;
use relay_protocol::inbox::Delivery;
use relay_protocol::message::{HeaderList, RequestHead, ResponseHead};
use relay_protocol::webhook::{Request, Table, Verdict};
use serde::{Deserialize, Serialize};

use super::text;
use crate::event::Body;

/// An exchange in a list. Its JSON form is a contract: fields are added, never renamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary<T = String> {
    /// As in `Relay-Request-Id`; a later request has a greater one.
    pub(crate) id: T,
    /// The tunnel, as in `tunnel.ready`; none where it is not known.
    pub(crate) tunnel: Option<T>,
    /// When its head came: milliseconds since 1970, and RFC 3339 in JSON.
    #[serde(rename = "at", with = "rfc3339")]
    pub(crate) at_ms: u64,
    /// Its method.
    pub(crate) method: T,
    /// The raw target with its query.
    pub(crate) path: T,
    /// None where its sender was not answered, or not yet.
    pub(crate) status: Option<u16>,
    /// A stable code, as `upstream-refused`.
    pub(crate) error: Option<T>,
    /// From the start of the deadline to the end of the exchange; none while it goes on.
    pub(crate) duration_ms: Option<f64>,
    /// From the start of the deadline to its end.
    pub(crate) allowed_ms: Option<u64>,
    /// Who has sent it: the id of a row of the provider table.
    pub(crate) provider: Option<T>,
    /// That provider's name.
    pub(crate) provider_name: Option<T>,
    /// What the provider calls the event.
    pub(crate) event_id: Option<T>,
    /// The event's kind.
    pub(crate) event_type: Option<T>,
    /// Whether it was signed, where that was judged.
    pub(crate) verdict: Option<Verdict>,
    /// Bytes of the request's body that have come.
    pub(crate) request_size: u64,
    /// Bytes of the response's body that have come; none where the service has not answered.
    pub(crate) response_size: Option<u64>,
    /// The sender's address.
    pub(crate) remote: T,
    /// The exchange that this one repeats.
    pub(crate) replay_of: Option<T>,
    /// How often it was sent to the service.
    pub(crate) attempt: u32,
    /// Which attempt to deliver it this is, where it comes out of the relay's inbox; none where its sender waits.
    pub(crate) inbox_attempt: Option<u32>,
}

impl Summary<&str> {
    /// With texts of its own.
    pub(crate) fn owned(&self) -> Summary {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Summary {
            id: self.id.to_owned(),
            tunnel: own(self.tunnel),
            at_ms: self.at_ms,
            method: self.method.to_owned(),
            path: self.path.to_owned(),
            status: self.status,
            error: own(self.error),
            duration_ms: self.duration_ms,
            allowed_ms: self.allowed_ms,
            provider: own(self.provider),
            provider_name: own(self.provider_name),
            event_id: own(self.event_id),
            event_type: own(self.event_type),
            verdict: self.verdict,
            request_size: self.request_size,
            response_size: self.response_size,
            remote: self.remote.to_owned(),
            replay_of: own(self.replay_of),
            attempt: self.attempt,
            inbox_attempt: self.inbox_attempt,
        }
    }
}

/// An exchange with every byte that was kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exchange {
    /// As in a list.
    pub(crate) summary: Summary,
    /// Why the verdict is what it is.
    pub(crate) reason: Option<String>,
    /// Where the time has gone.
    pub(crate) timings: Timings,
    /// What its sender asked.
    pub(crate) request: Part<RequestHead>,
    /// What the service answered; none where it did not.
    pub(crate) response: Option<Part<ResponseHead>>,
}

/// Milliseconds of an exchange.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Timings {
    /// Until the relay had sent it on.
    pub(crate) edge_ms: u64,
    /// From its arrival here to the head of the answer.
    pub(crate) upstream_ms: Option<f64>,
    /// All of it.
    pub(crate) total_ms: Option<f64>,
}

/// One direction of an exchange.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part<H> {
    /// As it crossed the wire.
    pub(crate) head: H,
    /// The body, as far as it was kept.
    pub(crate) body: Vec<u8>,
    /// Bytes of the body that have come.
    pub(crate) body_size: u64,
    /// Whether `body` is not all of it.
    pub(crate) body_truncated: bool,
    /// Behind the body.
    pub(crate) trailers: HeaderList,
}

impl Exchange {
    /// The URL that its sender called.
    pub(crate) fn url(&self) -> String {
        public_url(&self.request.head)
    }

    /// Where it came out of the relay's inbox, what the relay says of that.
    pub(crate) fn delivery(&self) -> Option<Delivery> {
        Delivery::of(&self.request.head.headers)
    }

    /// Name and value of each header of the request, `host` first, as its sender wrote them.
    pub(crate) fn request_headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let head = &self.request.head;
        let theirs = head.headers.iter().filter(|(name, _)| *name != HOST);
        let host: &[u8] = head.authority.as_bytes().as_ref();
        std::iter::once(("host", host)).chain(theirs.map(|(name, value)| (name.as_str(), value.as_bytes())))
    }

    /// All of it as JSON. The links to its provider's pages are made with the table.
    pub(crate) fn detail(&self, table: Option<&Table>) -> Detail<'_> {
        let url = self.url();
        let head = &self.request.head;
        let provider = self.summary.provider.as_deref().and_then(|id| table?.get(id));
        let links = provider.map(|provider| {
            let request = Request::new(&head.method, &url, &head.headers, &self.request.body);
            provider.links(&request).into_iter().map(|(name, url)| Link { name: name.to_owned(), url }).collect()
        });
        Detail {
            summary: &self.summary,
            reason: self.reason.as_deref(),
            links: links.unwrap_or_default(),
            url,
            timings: &self.timings,
            delivery: self.delivery(),
            request: Side {
                status: None,
                headers: self.request_headers().map(|(name, value)| (name.into(), text(value))).collect(),
                ..Side::of(&self.request)
            },
            response: self.response.as_ref().map(|response| Side {
                status: Some(response.head.status.as_u16()),
                headers: lines(&response.head.headers),
                ..Side::of(response)
            }),
        }
    }
}

/// An [`Exchange`] as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Detail<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    reason: Option<&'a str>,
    url: String,
    timings: &'a Timings,
    /// Where it came out of the relay's inbox.
    delivery: Option<Delivery>,
    links: Vec<Link>,
    request: Side<'a>,
    response: Option<Side<'a>>,
}

/// A page about the exchange.
#[derive(Debug, Serialize)]
struct Link {
    name: String,
    url: String,
}

type Line<'a> = (Cow<'a, str>, String);

#[derive(Debug, Serialize)]
struct Side<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    headers: Vec<Line<'a>>,
    #[serde(flatten)]
    body: Body<'a>,
    body_size: u64,
    body_truncated: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trailers: Vec<Line<'a>>,
}

impl<'a> Side<'a> {
    fn of<H>(part: &'a Part<H>) -> Self {
        Self {
            status: None,
            headers: Vec::new(),
            body: Body::new(&part.body, part.body_truncated),
            body_size: part.body_size,
            body_truncated: part.body_truncated,
            trailers: lines(&part.trailers),
        }
    }
}

fn lines(list: &HeaderList) -> Vec<Line<'_>> {
    list.iter().map(|(name, value)| (name.as_str().into(), text(value.as_bytes()))).collect()
}

/// A time as RFC 3339 has it, in milliseconds.
pub(crate) fn timestamp(at_ms: u64) -> Timestamp {
    i64::try_from(at_ms).ok().and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or_default()
}

mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(at_ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", super::timestamp(*at_ms)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let at = String::deserialize(deserializer)?.parse::<Timestamp>().map_err(D::Error::custom)?;
        Ok(u64::try_from(at.as_millisecond()).unwrap_or_default())
    }
}
