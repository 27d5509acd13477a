//! What happens to a client's tunnels, and whoever is told of it.

use std::fmt;
use std::time::Duration;

use base64::{display::Base64Display, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use relay_protocol::inbox::Delivery;
use relay_protocol::inbox::api::Inbox;
use relay_protocol::webhook::{Confidence, Verdict};
use serde::{Deserialize, Serialize, Serializer};

/// Whoever wants to know what happens. Called in the session's task, so it must not block.
pub trait Observer: Send {
    /// Something happened.
    fn observe(&mut self, event: &Event<'_>);

    /// Nothing more happens at this moment: the time to write out what has gathered. False ends the session, because
    /// nobody is interested any more.
    fn pause(&mut self) -> bool {
        true
    }
}

/// Something that happened to a tunnel or its session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event")]
pub enum Event<'a> {
    /// A tunnel answers on its public URL.
    #[serde(rename = "tunnel.ready")]
    Ready {
        /// The name below the relay's base domain.
        name: &'a str,
        /// The public URL, without a path.
        url: &'a str,
        /// Where requests go.
        upstream: &'a str,
        /// The relay's URL.
        relay: &'a str,
        /// The CA that callers must be told to trust; only where it is no public one.
        ca_file: Option<&'a str>,
        /// Another URL of the tunnel that works on this machine only, without resolving its name.
        local_url: Option<&'a str>,
        /// The URL of the client's inspector; none where it has none.
        inspector: Option<&'a str>,
        /// What the tunnel is called on this machine: its table in `relay.toml`, or else its name.
        tunnel: &'a str,
    },
    /// A tunnel has ended, and the session goes on.
    #[serde(rename = "tunnel.closed")]
    Closed {
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// Its name below the relay's base domain.
        name: &'a str,
        /// The public URL that it had.
        url: &'a str,
        /// Why, as a sentence or a part of one.
        reason: &'a str,
    },
    /// The relay refuses a tunnel, and the session goes on. It is asked for again from time to time.
    #[serde(rename = "tunnel.refused")]
    Refused {
        /// What the tunnel is called on this machine.
        tunnel: &'a str,
        /// Why, and what to do.
        reason: &'a str,
        /// The public URL where it answers all the same, as it was before it changed.
        url: Option<&'a str>,
    },
    /// The configuration file has changed, and what it says now does not hold.
    #[serde(rename = "config.rejected")]
    Rejected {
        /// What is wrong, and where.
        reason: &'a str,
    },
    /// A request was answered, or was not.
    #[serde(rename = "exchange")]
    Exchange {
        /// The exchange's id, as in `Relay-Request-Id`.
        id: &'a str,
        /// The request's method.
        method: &'a str,
        /// The raw target with its query.
        path: &'a str,
        /// None when no answer was sent.
        status: Option<u16>,
        /// Milliseconds from the deadline's start to the end of the body.
        #[serde(serialize_with = "microseconds")]
        duration_ms: f64,
        /// The error's stable code, such as `upstream-refused`.
        error: Option<&'a str>,
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// More than the code says, for a person at this machine. Said on standard error in both forms, and not again
        /// while it stays the same.
        #[serde(skip)]
        detail: Option<&'a str>,
        /// What it is as a webhook; none where its sender is not known.
        webhook: Option<Webhook<'a>>,
        /// Where it comes out of the relay's inbox; none where its sender waits for the answer.
        delivery: Option<&'a Delivery>,
    },
    /// How a tunnel's inbox stood when the client had connected.
    #[serde(rename = "inbox")]
    Inbox {
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// How.
        #[serde(flatten)]
        state: &'a InboxState,
    },
    /// Lines about requests were left out, because nobody has read those before them in time.
    #[serde(rename = "output.unread")]
    Unread {
        /// How many.
        lines: u64,
    },
    /// A request that the client has answered itself, as `relay listen` does.
    #[serde(rename = "request")]
    Request {
        /// The exchange's id, as in `Relay-Request-Id`.
        id: &'a str,
        /// The request's method.
        method: &'a str,
        /// The raw target with its query.
        path: &'a str,
        /// What it is answered with; none where it did not arrive whole.
        status: Option<u16>,
        /// Name and value of each header.
        headers: &'a [(String, String)],
        /// The body, as far as it was kept.
        #[serde(flatten)]
        body: Body<'a>,
        /// Bytes of the body that arrived.
        body_size: u64,
        /// Whether `body` is not all of it.
        body_truncated: bool,
    },
    /// The relay has refused requests, as it was asked to with `--verify-at edge`, or by who may call the tunnel. What is said of one is of the last.
    #[serde(rename = "requests.withheld")]
    Withheld {
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// How many there were since it was said last.
        count: u32,
        /// The exchange's id, as in the relay's log.
        id: &'a str,
        /// The request's method.
        method: &'a str,
        /// The beginning of its raw target.
        path: &'a str,
        /// The sender's address.
        remote: &'a str,
        /// The stable code that it was answered with, such as `signature-invalid`.
        error: &'a str,
        /// Its provider, as options and files call it, where that is known.
        provider: Option<&'a str>,
        /// What its signature is worth; empty where that was not looked at.
        verdict: &'a str,
        /// Why, as a sentence without its full stop.
        reason: &'a str,
    },
    /// Nobody listens where a tunnel forwards to.
    #[serde(rename = "upstream.down")]
    UpstreamDown {
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// Where that is, as in `tunnel.ready`.
        upstream: &'a str,
        /// What was tried, and what came of it.
        reason: &'a str,
    },
    /// Somebody listens there again, or at last.
    #[serde(rename = "upstream.up")]
    UpstreamUp {
        /// The tunnel, as in `tunnel.ready`.
        tunnel: &'a str,
        /// Where that is.
        upstream: &'a str,
    },
    /// The client starts to connect. People are told; in JSON the first line is a tunnel's.
    #[serde(rename = "session.connecting")]
    Connecting {
        /// The relay's URL.
        relay: &'a str,
    },
    /// The session is lost.
    #[serde(rename = "session.disconnected")]
    Disconnected {
        /// What happened, as a sentence's part: `the connection was reset`.
        reason: &'a str,
        /// Milliseconds until the next attempt.
        retry_in_ms: u64,
    },
    /// The session is back, with the same tunnels.
    #[serde(rename = "session.reconnected")]
    Reconnected {
        /// The relay's URL.
        relay: &'a str,
        /// Milliseconds for which nothing was served.
        after_ms: u64,
    },
    /// The session is alive. Shown where a terminal has a line for it.
    #[serde(skip)]
    Heard {
        /// How long ago the relay was heard last.
        ago: Duration,
    },
    /// Something a person should know, such as a warning. Goes to standard error in both forms.
    #[serde(skip)]
    Notice(&'a str),
}

/// How an inbox stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxState {
    /// Webhooks that wait.
    pub waiting: u64,
    /// When the oldest of them came (RFC 3339).
    pub oldest_at: Option<String>,
    /// Dead letters.
    pub dead: u64,
    /// Nothing is delivered.
    pub paused: bool,
    /// When this was so (RFC 3339).
    pub at: String,
}

impl InboxState {
    /// As the relay tells of it now.
    pub(crate) fn of(inbox: Inbox) -> Self {
        let Inbox { waiting, oldest_at, dead, paused, .. } = inbox;
        Self { waiting, oldest_at, dead, paused, at: format!("{:.3}", Timestamp::now()) }
    }
}

/// `12 waiting, oldest 3 h 5 min, 2 dead letters, paused`.
impl fmt::Display for InboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} waiting", self.waiting)?;
        let time = |text: &String| text.parse::<Timestamp>().ok();
        if let Some((oldest, at)) = self.oldest_at.as_ref().and_then(time).zip(time(&self.at)) {
            write!(f, ", oldest {}", short(Duration::try_from(at.duration_since(oldest)).unwrap_or_default()))?;
        }
        match self.dead {
            0 => {}
            1 => f.write_str(", 1 dead letter")?,
            dead => write!(f, ", {dead} dead letters")?,
        }
        f.write_str(if self.paused { ", paused" } else { "" })
    }
}

/// What stands behind a duration: what a request is as a webhook, and where it comes out of the inbox.
pub(crate) fn beside(webhook: Option<&Webhook<'_>>, delivery: Option<&Delivery>, duration_ms: f64) -> Option<String> {
    let delivery = delivery.map(|Delivery { attempt, age_s, .. }| {
        let old = short(Duration::from_secs(*age_s));
        match attempt {
            0 | 1 => format!("from the inbox, {old} old"),
            attempt => format!("redelivered, attempt {attempt}, {old} old"),
        }
    });
    let parts = [webhook.map(|webhook| webhook.beside(duration_ms)), delivery];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// `3 s`, `5 min`, `2 h 3 min` or `4 d 1 h`.
pub(crate) fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// What a request is as a webhook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Webhook<'a> {
    /// Its provider, as options and files call it.
    pub provider: &'a str,
    /// What the provider is called on a screen.
    #[serde(skip)]
    pub name: &'a str,
    /// The same when the event is sent again.
    pub event_id: Option<&'a str>,
    /// The event's kind, as in `invoice.paid`.
    pub event_type: Option<&'a str>,
    /// What its signature is worth; none where that was not judged.
    pub verdict: Option<Verdict>,
    /// Why, as a sentence without its full stop.
    pub reason: Option<&'a str>,
    /// What became of it as a handshake, where it is one and that was asked for.
    pub handshake: Option<Handshake>,
    /// How long the provider waits for an answer, in milliseconds, where that is known.
    pub limit_ms: Option<u64>,
    /// How well that is known: `sdk`, `docs`, `second` or `memory`; none for a user's own row.
    #[serde(serialize_with = "confidence")]
    pub limit_source: Option<Confidence>,
}

/// What became of a request by which a provider checks an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Handshake {
    /// The client has answered it.
    Answered,
    /// It is not the provider's, or could not be completed.
    Refused,
    /// Only the service can answer it.
    Left,
}

/// The most of an event's kind that is shown, in bytes. Senders write it.
const KIND: usize = 48;

impl Webhook<'_> {
    /// What stands behind a duration: of how much it was, where that was half of it or more, and what this is.
    pub(crate) fn beside(&self, duration_ms: f64) -> String {
        let limit = self.limit_ms.map(|limit| limit as f64).filter(|limit| 2.0 * duration_ms >= *limit);
        let unsure = self.limit_source.filter(|source| matches!(source, Confidence::Second | Confidence::Memory));
        match (limit, unsure) {
            (Some(limit), Some(source)) => format!("of {} s ({source}), {self}", limit / 1000.0),
            (Some(limit), None) => format!("of {} s, {self}", limit / 1000.0),
            (None, _) => self.to_string(),
        }
    }
}

impl fmt::Display for Webhook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.event_type {
            Some(kind) => {
                let shown = kind.get(..kind.floor_char_boundary(KIND)).unwrap_or_default();
                let rest = if shown.len() < kind.len() { "…" } else { "" };
                write!(f, "{} {shown}{rest}", self.name)?;
            }
            None => f.write_str(self.name)?,
        }
        f.write_str(match self.handshake {
            Some(Handshake::Answered) => ", handshake answered",
            Some(Handshake::Refused) => ", handshake refused",
            Some(Handshake::Left) => ", handshake",
            None => "",
        })?;
        match self.verdict {
            Some(verdict) => write!(f, ", {}", verdict.as_str().replace('_', " ")),
            None => Ok(()),
        }
    }
}

fn confidence<S: Serializer>(confidence: &Option<Confidence>, serializer: S) -> Result<S::Ok, S::Error> {
    confidence.map(Confidence::as_str).serialize(serializer)
}

/// A body as it can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Body<'a> {
    /// It is UTF-8.
    #[serde(rename = "body")]
    Text(&'a str),
    /// It is not.
    #[serde(rename = "body_base64", serialize_with = "base64")]
    Bytes(&'a [u8]),
}

impl<'a> Body<'a> {
    /// Of these bytes. Where they are the beginning of more, half a character at the end is left out.
    pub fn new(bytes: &'a [u8], truncated: bool) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(error) if truncated && error.error_len().is_none() => {
                let whole = bytes.get(..error.valid_up_to()).unwrap_or_default();
                std::str::from_utf8(whole).map_or(Self::Bytes(bytes), Self::Text)
            }
            Err(_) => Self::Bytes(bytes),
        }
    }

    pub(crate) fn as_bytes(&self) -> &'a [u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes, &STANDARD))
}

/// Rounded to whole microseconds: more digits would be noise. JSON has no infinity.
fn microseconds<S: Serializer>(milliseconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    let rounded = (milliseconds * 1000.0).round() / 1000.0;
    serializer.serialize_f64(if rounded.is_finite() { rounded } else { 0.0 })
}

/// A tunnel of the tests.
#[cfg(test)]
pub(crate) const READY: Event<'_> = Event::Ready {
    tunnel: "hooks",
    name: "hooks",
    url: "https://hooks.relay.example",
    upstream: "http://localhost:3000",
    relay: "https://relay.example",
    ca_file: None,
    local_url: None,
    inspector: None,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7380, "2 h 3 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(short(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn people_are_told_how_an_inbox_stands_and_what_comes_out_of_it() {
        let state = InboxState {
            waiting: 12,
            oldest_at: Some("2026-01-01T00:00:00Z".into()),
            dead: 2,
            paused: true,
            at: "2026-01-01T03:05:00.5Z".into(),
        };
        assert_eq!(state.to_string(), "12 waiting, oldest 3 h 5 min, 2 dead letters, paused");
        let empty = InboxState { waiting: 0, oldest_at: None, dead: 0, paused: false, at: state.at };
        assert_eq!(empty.to_string(), "0 waiting");
        let delivery = |attempt| Delivery { id: "01M8".into(), attempt, age_s: 300 };
        let told = |attempt| beside(None, Some(&delivery(attempt)), 1.0);
        assert_eq!(told(1).as_deref(), Some("from the inbox, 5 min old"));
        assert_eq!(told(2).as_deref(), Some("redelivered, attempt 2, 5 min old"));
        assert_eq!(beside(None, None, 1.0), None);
    }
}
