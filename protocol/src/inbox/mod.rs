//! What a client asks of its relay for the inbox of a tunnel: an extra of a [`TunnelSpec`](crate::message::TunnelSpec), as
//! `PROTOCOL.md` lists it. The relay keeps it with the inbox, so that it holds while the client is away.

pub mod api;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::message::Extra;

/// The line of a request that comes out of an inbox, as [`Delivery`] writes it. No sender can say it: the edge drops every
/// line that begins with `relay-`.
pub const RELAY_DELIVERY: HeaderName = HeaderName::from_static("relay-delivery");

/// Most bytes of what is said of one inbox.
pub const MAX_TOLD: usize = 8 * 1024;

/// Most header lines of an acknowledgement.
const MAX_HEADERS: usize = 16;

/// In a tunnel's spec: the inbox, as JSON.
const INBOX: u16 = 6;

/// In the Welcome: the relay has inboxes.
const KNOWN: u16 = 2;

/// How an inbox deals with its webhooks. As JSON, each field may be left out, and one that is not known is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inbox {
    /// One is delivered after the other, in the order in which they came.
    pub ordered: bool,
    /// An answer of 5xx counts as none: the sender gets the acknowledgement, and the webhook is delivered again.
    pub retry_5xx: bool,
    /// What the sender is answered for the app. None: what its provider expects, or 202.
    pub ack: Option<Ack>,
    /// How long a provider's event is known again, in seconds; 0 for not at all.
    pub dedupe_s: u64,
    /// Attempts before it is a dead letter.
    pub attempts: u32,
    /// How long it is tried, in seconds since it came.
    pub age_s: u64,
    /// Attempts at the same time, where they are not in order.
    pub concurrency: u16,
    /// Attempts in a second, of those that had to wait.
    pub rate: u16,
}

/// What the relay says of a request that comes out of an inbox: `<id>; attempt=<number>; age=<seconds>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The webhook's id, which stays the same from attempt to attempt.
    pub id: String,
    /// Which attempt it is, from 1 on.
    pub attempt: u32,
    /// How long ago it came, in seconds.
    pub age_s: u64,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, attempt, age_s } = self;
        write!(f, "{id}; attempt={attempt}; age={age_s}")
    }
}

impl Delivery {
    /// What the header lines of a request say of it, if they do.
    #[must_use]
    pub fn of(headers: &[(HeaderName, HeaderValue)]) -> Option<Self> {
        let (_, line) = headers.iter().find(|(name, _)| *name == RELAY_DELIVERY)?;
        let mut parts = line.to_str().ok()?.split("; ");
        let id = parts.next()?.to_owned();
        let attempt = parts.next()?.strip_prefix("attempt=")?.parse().ok()?;
        Some(Self { id, attempt, age_s: parts.next()?.strip_prefix("age=")?.parse().ok()? })
    }
}

/// An acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// Its status, 200 to 299.
    pub status: u16,
    /// Its header lines.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

impl Default for Ack {
    fn default() -> Self {
        Self { status: 202, headers: Vec::new(), body: String::new() }
    }
}

impl Default for Inbox {
    /// 3 days and 50 attempts, 24 hours for a provider's retries, 10 at once and 50 in a second.
    fn default() -> Self {
        Self {
            ordered: false,
            retry_5xx: true,
            ack: None,
            dedupe_s: 24 * 3600,
            attempts: 50,
            age_s: 3 * 24 * 3600,
            concurrency: 10,
            rate: 50,
        }
    }
}

/// What cannot be said of an inbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InboxError {
    /// It is no JSON of that form.
    #[error("what is said of the inbox cannot be read: {0}")]
    Malformed(String),
    /// More than there is room for.
    #[error(
        "what is said of the inbox has more than {MAX_TOLD} bytes, or its acknowledgement more than {MAX_HEADERS} header lines"
    )]
    TooMuch,
    /// An error would make the sender try again what was taken.
    #[error("an acknowledgement has a status of 200 to 299, which {0} is not")]
    Status(u16),
    /// It is no header line.
    #[error("{0:?} is no header line that an acknowledgement can have")]
    Header(String),
    /// It is no word that says something of an inbox.
    #[error(
        "{0:?} says nothing of an inbox; write ordered, ack=200, attempts=20, age=12h, dedupe=off, concurrency=4, rate=10 or pass-5xx"
    )]
    Word(String),
    /// Nothing would ever be delivered.
    #[error("an inbox needs at least one attempt, one at a time and one in a second, and a second to live")]
    Nothing,
}

/// In the words of options and files: `ordered,ack=200,attempts=20,age=12h,dedupe=off,concurrency=4,rate=10,pass-5xx`.
impl FromStr for Inbox {
    type Err = InboxError;

    fn from_str(text: &str) -> Result<Self, InboxError> {
        let mut this = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let unknown = || InboxError::Word(word.chars().take(64).collect());
            let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            match (name, value) {
                ("on", None) => {}
                ("ordered", None) => this.ordered = true,
                ("pass-5xx", None) => this.retry_5xx = false,
                ("ack", Some(status)) => {
                    let status = status.parse().map_err(|_| unknown())?;
                    this.ack = Some(Ack { status, ..Ack::default() });
                }
                ("dedupe", Some("off")) => this.dedupe_s = 0,
                ("dedupe", Some(time)) => this.dedupe_s = seconds(time).ok_or_else(unknown)?,
                ("age", Some(time)) => this.age_s = seconds(time).ok_or_else(unknown)?,
                ("attempts", Some(number)) => this.attempts = number.parse().map_err(|_| unknown())?,
                ("concurrency", Some(number)) => this.concurrency = number.parse().map_err(|_| unknown())?,
                ("rate", Some(number)) => this.rate = number.parse().map_err(|_| unknown())?,
                _ => return Err(unknown()),
            }
        }
        this.check().map(|()| this)
    }
}

/// `90s`, `15m`, `12h` or `3d`.
fn seconds(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// In the same words: what is not as it always is, or `on`.
impl fmt::Display for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ordered, retry_5xx, ack, dedupe_s, attempts, age_s, concurrency, rate } = self;
        let usual = Self::default();
        let differs = |is_usual: bool, word: String| (!is_usual).then_some(word);
        let words = [
            ordered.then(|| "ordered".to_owned()),
            (!retry_5xx).then(|| "pass-5xx".to_owned()),
            ack.as_ref().map(|ack| format!("ack={}", ack.status)),
            differs(
                *dedupe_s == usual.dedupe_s,
                if *dedupe_s == 0 { "dedupe=off".into() } else { format!("dedupe={dedupe_s}s") },
            ),
            differs(*attempts == usual.attempts, format!("attempts={attempts}")),
            differs(*age_s == usual.age_s, format!("age={age_s}s")),
            differs(*concurrency == usual.concurrency, format!("concurrency={concurrency}")),
            differs(*rate == usual.rate, format!("rate={rate}")),
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        f.write_str(if words.is_empty() { "on" } else { "" })?;
        f.write_str(&words.join(","))
    }
}

impl Ack {
    /// The status and the header lines.
    ///
    /// # Errors
    /// [`InboxError`] says what is wrong with them.
    pub fn head(&self) -> Result<(StatusCode, Vec<(HeaderName, HeaderValue)>), InboxError> {
        let status = StatusCode::from_u16(self.status).ok().filter(StatusCode::is_success);
        let status = status.ok_or(InboxError::Status(self.status))?;
        if self.headers.len() > MAX_HEADERS {
            return Err(InboxError::TooMuch);
        }
        let line = |(name, value): &(String, String)| {
            let header = HeaderName::try_from(name).ok().zip(HeaderValue::try_from(value).ok());
            let is_framing = |name: &str| ["content-length", "transfer-encoding", "connection"].contains(&name);
            let header = header.filter(|(name, _)| !is_framing(name.as_str()) && !name.as_str().starts_with("relay-"));
            header.ok_or_else(|| InboxError::Header(name.chars().take(64).collect()))
        };
        Ok((status, self.headers.iter().map(line).collect::<Result<_, _>>()?))
    }
}

impl Inbox {
    /// The extra that says so.
    ///
    /// # Errors
    /// [`InboxError`]: the relay would refuse it.
    pub fn extra(&self) -> Result<Extra, InboxError> {
        let value = serde_json::to_vec(self).map_err(|error| InboxError::Malformed(error.to_string()))?;
        let extra = Extra { tag: INBOX, value };
        // What can be said is what can be read.
        Self::of(std::slice::from_ref(&extra)).map(|_| extra)
    }

    /// What a tunnel's extras say of its inbox; none where it has none.
    ///
    /// # Errors
    /// [`InboxError`] says what is wrong with it.
    pub fn of(extras: &[Extra]) -> Result<Option<Self>, InboxError> {
        let Some(extra) = extras.iter().find(|extra| extra.tag == INBOX) else { return Ok(None) };
        if extra.value.len() > MAX_TOLD {
            return Err(InboxError::TooMuch);
        }
        let this: Self =
            serde_json::from_slice(&extra.value).map_err(|error| InboxError::Malformed(error.to_string()))?;
        this.check().map(|()| Some(this))
    }

    fn check(&self) -> Result<(), InboxError> {
        if let Some(ack) = &self.ack {
            ack.head()?;
        }
        let is_nothing = self.attempts == 0 || self.concurrency == 0 || self.rate == 0 || self.age_s == 0;
        if is_nothing { Err(InboxError::Nothing) } else { Ok(()) }
    }

    /// What a relay says in its Welcome that has inboxes.
    #[must_use]
    pub const fn known() -> Extra {
        Extra { tag: KNOWN, value: Vec::new() }
    }

    /// Whether a relay has inboxes, by the extras of its Welcome. One that has none would lose what comes, and not say so.
    #[must_use]
    pub fn is_known(welcome: &[Extra]) -> bool {
        welcome.iter().any(|extra| extra.tag == KNOWN)
    }

    /// How long a copy of an event is known again.
    #[must_use]
    pub const fn dedupe(&self) -> Duration {
        Duration::from_secs(self.dedupe_s)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn read(json: &str) -> Result<Option<Inbox>, InboxError> {
        Inbox::of(&[Extra { tag: INBOX, value: json.into() }])
    }

    #[test]
    fn what_is_said_is_what_is_read() {
        let ack = Ack { status: 200, headers: vec![("content-type".into(), "text/xml".into())], body: "<Ok/>".into() };
        let inbox = Inbox { ordered: true, ack: Some(ack), rate: 1, ..Inbox::default() };
        assert_eq!(Inbox::of(&[Inbox::default().extra().unwrap()]), Ok(Some(Inbox::default())));
        assert_eq!(Inbox::of(&[inbox.extra().unwrap()]), Ok(Some(inbox)));
        assert_eq!(Inbox::of(&[Inbox::known()]), Ok(None), "another tag");
        assert_eq!(read("{}"), Ok(Some(Inbox::default())), "a client that says nothing more");
        assert_eq!(read(r#"{"of_a_later_version": 1}"#), Ok(Some(Inbox::default())));
    }

    #[test]
    fn words_say_the_same_as_they_are_shown() {
        for words in ["on", "ordered,ack=200", "pass-5xx,dedupe=off,attempts=20,age=7200s,concurrency=4,rate=10"] {
            let inbox: Inbox = words.parse().unwrap();
            assert_eq!(inbox.to_string(), words);
        }
        assert_eq!("".parse(), Ok(Inbox::default()));
        assert_eq!("age=2h, dedupe=15m".parse::<Inbox>().unwrap().to_string(), "dedupe=900s,age=7200s");
        for words in ["order", "ack", "ack=x", "age=3", "age=3w", "age=", "ordered=1", "rate=-1"] {
            assert_eq!(words.parse::<Inbox>(), Err(InboxError::Word(words.into())), "{words}");
        }
        assert_eq!("rate=0".parse::<Inbox>(), Err(InboxError::Nothing));
        assert_eq!("ack=404".parse::<Inbox>(), Err(InboxError::Status(404)));
    }

    #[test]
    fn a_delivery_is_read_as_it_is_written() {
        let delivery = Delivery { id: "01M8".into(), attempt: 2, age_s: 90 };
        let line = |value: &str| vec![(RELAY_DELIVERY, HeaderValue::try_from(value).unwrap())];
        assert_eq!(delivery.to_string(), "01M8; attempt=2; age=90");
        assert_eq!(Delivery::of(&line(&delivery.to_string())), Some(delivery));
        assert_eq!(Delivery::of(&line("01M8; attempt=2")), None);
        assert_eq!(Delivery::of(&[]), None);
    }

    #[test]
    fn what_would_lose_webhooks_is_refused() {
        let ack = |ack: &str| read(&format!(r#"{{"ack": {ack}}}"#));
        assert_eq!(ack(r#"{"status": 500}"#), Err(InboxError::Status(500)));
        assert_eq!(ack(r#"{"headers": [["content-length", "3"]]}"#), Err(InboxError::Header("content-length".into())));
        assert_eq!(ack(r#"{"headers": [["a b", "3"]]}"#), Err(InboxError::Header("a b".into())));
        assert_eq!(read(r#"{"attempts": 0}"#), Err(InboxError::Nothing));
        assert!(matches!(read("no"), Err(InboxError::Malformed(_))));
        assert_eq!(read(&format!(r#"{{"x": "{}"}}"#, "x".repeat(MAX_TOLD))), Err(InboxError::TooMuch));
    }
}
