//! What a client asks of its relay for the inbox of a tunnel: an extra of a [`TunnelSpec`](crate::message::TunnelSpec), as
//! `PROTOCOL.md` lists it. The relay keeps it with the inbox, so that it holds while the client is away.

pub mod api;
pub mod lines;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::message::Extra;
use crate::webhook::{Event, Filter, Request};

/// The line of a request that comes out of an inbox, as [`Delivery`] writes it. No sender can say it: the edge drops every
/// line that begins with `relay-`.
pub const RELAY_DELIVERY: HeaderName = HeaderName::from_static("relay-delivery");

/// Most bytes of what is said of one inbox.
pub const MAX_TOLD: usize = 8 * 1024;

/// Most header lines of an acknowledgement.
const MAX_HEADERS: usize = 16;

/// Most filters of an inbox. Each may be asked of every webhook before it is on disk.
const MAX_FILTERS: usize = 16;

/// Most conditions of a filter.
const MAX_CONDITIONS: usize = 8;

/// Most bytes of a text in a filter: what is looked for in a stranger's body must not take long to look for.
const MAX_PATTERN: usize = 256;

/// In a tunnel's spec: the inbox, as JSON.
const INBOX: u16 = 6;

/// In the Welcome: the relay has inboxes, and which tunnels have one.
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
    /// Webhooks that it takes in a second; what comes beyond that is answered with 429. None: no more than the relay's limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Most bytes of a webhook's body. This and the next two can only be less than the relay allows, and None is what it allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<u64>,
    /// Most webhooks that wait, with the dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Most bytes of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long delivered webhooks are listed, in seconds. None: as long as the relay lists them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_s: Option<u64>,
    /// What is acknowledged and neither kept nor delivered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<Filter>,
}

/// What the relay says of a request that comes out of an inbox: `<id>; attempt=<number>; age=<seconds>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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
            limit: None,
            body: None,
            count: None,
            bytes: None,
            keep_s: None,
            ignore: Vec::new(),
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
        "{0:?} says nothing of an inbox; write ordered, ack=200, attempts=20, age=12h, dedupe=off, concurrency=4, rate=10, pass-5xx, limit=100, body=1MiB, count=1000, bytes=100MiB or keep=3d"
    )]
    Word(String),
    /// Nothing would ever be delivered.
    #[error(
        "an inbox needs at least one attempt, one at a time and one in a second, a second to live, and room for one webhook"
    )]
    Nothing,
    /// More than can be asked of every webhook.
    #[error(
        "what is ignored is said with at most {MAX_FILTERS} filters, each of at most {MAX_CONDITIONS} conditions and texts of at most {MAX_PATTERN} bytes"
    )]
    Filters,
    /// It would ignore everything.
    #[error("a filter without a word would ignore every webhook; give it a provider, a type or conditions in when")]
    Everything,
}

/// In the words of options and files: `ordered,ack=200,attempts=20,age=12h,dedupe=off,concurrency=4,rate=10,pass-5xx,limit=100,
/// body=1MiB,count=1000,bytes=100MiB,keep=3d`. Filters, and more of an acknowledgement than its status, have no words.
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
                ("limit", Some(number)) => this.limit = Some(number.parse().map_err(|_| unknown())?),
                ("body", Some(text)) => this.body = Some(size(text).ok_or_else(unknown)?),
                ("count", Some(number)) => this.count = Some(number.parse().map_err(|_| unknown())?),
                ("bytes", Some(text)) => this.bytes = Some(size(text).ok_or_else(unknown)?),
                ("keep", Some(time)) => this.keep_s = Some(seconds(time).ok_or_else(unknown)?),
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

/// The units of sizes, the largest first.
const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes: `4096`, `64KiB`, `16MiB` or `1GiB`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let with_unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = with_unit.unwrap_or((text, 1));
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A number of bytes as [`size`] reads it.
#[must_use]
pub fn sized(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

/// In the same words: what is not as it always is, or `on`; of filters, how many there are.
impl fmt::Display for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ordered, retry_5xx, ack, dedupe_s, attempts, age_s, concurrency, rate, .. } = self;
        let Self { limit, body, count, bytes, keep_s, ignore, .. } = self;
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
            limit.map(|number| format!("limit={number}")),
            body.map(|bytes| format!("body={}", sized(bytes))),
            count.map(|number| format!("count={number}")),
            bytes.map(|bytes| format!("bytes={}", sized(bytes))),
            keep_s.map(|seconds| format!("keep={seconds}s")),
            differs(ignore.is_empty(), format!("ignore={}", ignore.len())),
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
        let has_no_room = [self.limit.map(u64::from), self.body, self.count, self.bytes].contains(&Some(0));
        if is_nothing || has_no_room {
            return Err(InboxError::Nothing);
        }
        if self.ignore.contains(&Filter::default()) {
            return Err(InboxError::Everything);
        }
        let is_too_much = |(conditions, longest)| conditions > MAX_CONDITIONS || longest > MAX_PATTERN;
        let are_too_much = self.ignore.len() > MAX_FILTERS || self.ignore.iter().map(Filter::extent).any(is_too_much);
        if are_too_much { Err(InboxError::Filters) } else { Ok(()) }
    }

    /// Whether a webhook is acknowledged and not kept, by who has sent it and what has happened, as far as that is known. With
    /// `whole` the request has its whole body; without, it has none, and what only the body can tell is taken to be no reason.
    #[must_use]
    pub fn ignores(&self, provider: Option<&str>, request: &Request<'_>, event: &Event, whole: bool) -> bool {
        let is_told = |filter: &&Filter| whole || !filter.when.need_body();
        self.ignore.iter().filter(is_told).any(|filter| filter.matches(provider, request, event))
    }

    /// What a relay says in its Welcome that has inboxes: which tunnels, by the client's numbers, have one. A name that was
    /// reserved has its inbox before its client asks for one.
    #[must_use]
    pub fn known(tunnels: &[u32]) -> Extra {
        Extra { tag: KNOWN, value: tunnels.iter().flat_map(|number| number.to_be_bytes()).collect() }
    }

    /// The tunnels that have inboxes, by the extras of a relay's Welcome. None: it has no inboxes at all. Such a relay would
    /// lose what comes, and not say so.
    #[must_use]
    pub fn all_known(welcome: &[Extra]) -> Option<Vec<u32>> {
        let extra = welcome.iter().find(|extra| extra.tag == KNOWN)?;
        Some(
            extra
                .value
                .chunks_exact(4)
                .filter_map(|number| Some(u32::from_be_bytes(number.try_into().ok()?)))
                .collect(),
        )
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
        assert_eq!(Inbox::of(&[Inbox::known(&[1])]), Ok(None), "another tag");
        assert_eq!(Inbox::all_known(&[Inbox::known(&[1, 70_000])]), Some(vec![1, 70_000]));
        assert_eq!((Inbox::all_known(&[Inbox::known(&[])]), Inbox::all_known(&[])), (Some(vec![]), None));
        let of_a_later_version = Extra { value: vec![0, 0, 0, 1, 9], ..Inbox::known(&[]) };
        assert_eq!(Inbox::all_known(&[of_a_later_version]), Some(vec![1]));
        assert_eq!(read("{}"), Ok(Some(Inbox::default())), "a client that says nothing more");
        assert_eq!(read(r#"{"of_a_later_version": 1}"#), Ok(Some(Inbox::default())));
    }

    #[test]
    fn words_say_the_same_as_they_are_shown() {
        for words in [
            "on",
            "ordered,ack=200",
            "pass-5xx,dedupe=off,attempts=20,age=7200s,concurrency=4,rate=10",
            "limit=100,body=1025KiB,count=1000,bytes=3GiB,keep=0s",
        ] {
            let inbox: Inbox = words.parse().unwrap();
            assert_eq!(inbox.to_string(), words);
        }
        assert_eq!("".parse(), Ok(Inbox::default()));
        assert_eq!("age=2h, dedupe=15m".parse::<Inbox>().unwrap().to_string(), "dedupe=900s,age=7200s");
        assert_eq!("body=1048576,bytes=1000".parse::<Inbox>().unwrap().to_string(), "body=1MiB,bytes=1000");
        let huge = "bytes=99999999999999999999GiB";
        for words in ["order", "ack", "ack=x", "age=3", "age=3w", "age=", "ordered=1", "rate=-1", "body=1MB", huge] {
            assert_eq!(words.parse::<Inbox>(), Err(InboxError::Word(words.into())), "{words}");
        }
        for words in ["rate=0", "limit=0", "body=0KiB", "count=0", "bytes=0"] {
            assert_eq!(words.parse::<Inbox>(), Err(InboxError::Nothing), "{words}");
        }
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

    /// What another version must read: the bytes as they are sent.
    #[test]
    fn the_bytes_are_these() {
        let usual = r#"{"ordered":false,"retry_5xx":true,"ack":null,"dedupe_s":86400,"attempts":50,"age_s":259200,"concurrency":10,"rate":50"#;
        let bytes = |inbox: &Inbox| String::from_utf8(inbox.extra().unwrap().value).unwrap();
        assert_eq!(bytes(&Inbox::default()), format!("{usual}}}"));
        let when = r#"{"method":"PUT","header:x-a*":true,"form:payload#/action":"del*","json:/livemode":"false","number:/a~1b/*":false}"#;
        let ignore = format!(r#"[{{"provider":"stripe"}},{{"type":"invoice.*","when":{when}}}]"#);
        let room = r#""limit":100,"body":1024,"count":7,"bytes":4096,"keep_s":0"#;
        let said = format!("{usual},{room},\"ignore\":{ignore}}}");
        assert_eq!(bytes(&read(&said).unwrap().unwrap()), said);
    }

    #[test]
    fn a_filter_ignores_what_all_of_it_fits() {
        let inbox = read(
            r#"{"ignore": [{"provider": "github", "type": "pu*"}, {"when": {"json:/test": "true", "method": "POST"}}]}"#,
        );
        let inbox = inbox.unwrap().unwrap();
        let ignores = |provider, kind: Option<&str>, method, body: &str| {
            let event = Event { kind: kind.map(str::to_owned), ..Event::default() };
            let request = Request::new(method, "https://t.example/", &[], body.as_bytes());
            let empty = Request::new(method, "https://t.example/", &[], b"");
            (inbox.ignores(provider, &request, &event, true), inbox.ignores(provider, &empty, &event, false))
        };
        let (post, put) = (&http::Method::POST, &http::Method::PUT);
        assert_eq!(ignores(Some("github"), Some("push"), post, ""), (true, true));
        assert_eq!(ignores(Some("github"), Some("ping"), post, ""), (false, false));
        assert_eq!(ignores(Some("github"), None, post, ""), (false, false));
        assert_eq!(ignores(Some("gitlab"), Some("push"), post, ""), (false, false));
        assert_eq!(ignores(None, Some("push"), post, ""), (false, false), "it may be anybody's");
        assert_eq!(ignores(None, None, post, r#"{"test": true}"#), (true, false), "the body alone says so");
        assert_eq!(ignores(None, None, put, r#"{"test": true}"#), (false, false));
        assert_eq!(ignores(None, None, post, r#"{"test": false}"#), (false, false));
    }

    #[test]
    fn filters_that_would_ignore_too_much_or_ask_too_much_are_refused() {
        let ignore = |filters: &str| read(&format!(r#"{{"ignore": [{filters}]}}"#));
        assert_eq!(ignore("{}"), Err(InboxError::Everything));
        assert_eq!(ignore(r#"{"when": {}}"#), Err(InboxError::Everything));
        for (filter, hint) in [
            (r#"{"provider": "x", "unless": {}}"#, "unless"),
            (r#"{"when": {"body": "x"}}"#, "names no place"),
            (r#"{"when": {"path": 3}}"#, "true, false or a text"),
        ] {
            let error = ignore(filter).unwrap_err().to_string();
            assert!(error.contains(hint), "{filter}: {error}");
        }
        let pattern = |length: usize| ignore(&format!(r#"{{"type": "{}"}}"#, "x".repeat(length)));
        assert!(pattern(256).is_ok());
        assert_eq!(pattern(257), Err(InboxError::Filters));
        let filters = |count: usize| ignore(&vec![r#"{"type": "x"}"#; count].join(","));
        assert!(filters(16).is_ok());
        assert_eq!(filters(17), Err(InboxError::Filters));
        let conditions: Vec<String> = (0..9).map(|i| format!(r#""query:a{i}": "x""#)).collect();
        assert_eq!(ignore(&format!(r#"{{"when": {{{}}}}}"#, conditions.join(","))), Err(InboxError::Filters));
    }
}
