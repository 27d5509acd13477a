//! What a relay tells of inboxes and is asked to do with them: the JSON of its API for tokens, below [`PATH`] on its own host.
//! Times are RFC 3339 in UTC, sizes bytes. Fields may be added: a reader leaves alone those that it does not know, and takes those
//! that are not there for empty.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::message::HeaderList;
use crate::webhook::{Provider, Request, mask};

/// The API's path. All requests bear the token, as those of the connect endpoint do.
///
/// ```text
/// GET    PATH                    Inboxes
/// GET    PATH/NAME               Page; ?state=waiting|delivered|dead&limit=NUMBER&before=NEXT
/// GET    PATH/NAME/ID            Whole
/// GET    PATH/NAME/ID/body       its body, as application/octet-stream
/// POST   PATH/NAME/retry|drop    Which → Done
/// POST   PATH/NAME/pause|resume  → Inbox
/// DELETE PATH/NAME               → Done: the inbox and all that is in it
/// ```
pub const PATH: &str = "/_relay/inbox";

/// Most ids in one [`Which`].
pub const MAX_IDS: usize = 1000;

/// Most webhooks on one [`Page`].
pub const MAX_PAGE: usize = 1000;

/// The inboxes of a token, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inboxes {
    /// Them.
    pub inboxes: Vec<Inbox>,
}

/// An inbox, and what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inbox {
    /// The tunnel's name.
    pub name: String,
    /// Whose it is: the token's name, which only the operator is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// How it deals with its webhooks, in the words of [`Inbox`](super::Inbox).
    pub how: String,
    /// Nothing is delivered.
    pub paused: bool,
    /// Webhooks that wait.
    pub waiting: u64,
    /// Webhooks that were delivered, and are remembered.
    pub delivered: u64,
    /// Dead letters.
    pub dead: u64,
    /// Of what waits and of dead letters, with their heads.
    pub bytes: u64,
    /// When the oldest came of those that wait.
    pub oldest_at: Option<String>,
}

/// Some webhooks of an inbox, those that came last first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Page {
    /// The inbox.
    pub inbox: Inbox,
    /// Its webhooks.
    pub webhooks: Vec<Webhook>,
    /// What the page after this one is asked for by. None: this is the last.
    pub next: Option<String>,
}

/// A webhook.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Webhook {
    /// Its id, which every attempt bears.
    pub id: String,
    /// `waiting`, `delivered` or `dead`.
    pub state: String,
    /// The request's method.
    pub method: String,
    /// Its path and query, as they came.
    pub path: String,
    /// The URL that its sender called.
    pub url: String,
    /// The sender's address.
    pub remote: String,
    /// When the latest copy of it came: the one that is sent.
    pub received_at: String,
    /// When the first one did.
    pub first_at: String,
    /// When it is tried next; of one that is tried now, until when nobody else does.
    pub due_at: Option<String>,
    /// It is being tried.
    pub under_way: bool,
    /// Attempts so far.
    pub attempts: u32,
    /// Copies that came after the first.
    pub copies: u32,
    /// What the app has answered last.
    pub status: Option<u16>,
    /// When it was delivered or given up.
    pub ended_at: Option<String>,
    /// Why it was given up.
    pub reason: Option<String>,
    /// Whose it is, as the provider's id.
    pub provider: Option<String>,
    /// The provider's id of the event.
    pub event_id: Option<String>,
    /// Its type.
    pub event_type: Option<String>,
    /// What its signature was found to be worth.
    pub verdict: Option<String>,
    /// Another one of the same event, with another body.
    pub differs_from: Option<String>,
    /// Bytes of its body.
    pub size: u64,
}

/// A webhook with all that is kept of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Whole {
    /// It.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// Its header lines, in order; what is not text has its bytes as those of Latin-1.
    pub headers: Vec<(String, String)>,
    /// Those of its first copy, where a later one took its place.
    pub headers_first: Option<Vec<(String, String)>>,
    /// Its body in base64. None: it was delivered, or the body is longer than what is told so, and is asked for by itself.
    pub body_base64: Option<String>,
    /// The attempts, the latest last. Of many the first ones are forgotten.
    pub tried: Vec<Tried>,
}

impl Whole {
    /// Its header lines as they came, with the Host that its sender called.
    #[must_use]
    pub fn header_list(&self) -> HeaderList {
        let host = self.webhook.url.split_once("://").map_or("", |(_, rest)| rest).split('/').next();
        let host = host.and_then(|host| Some((HOST, HeaderValue::try_from(host).ok()?)));
        host.into_iter().chain(header_lines(&self.headers)).collect()
    }

    /// Its body, byte for byte; none where it is not kept any more.
    #[must_use]
    pub fn body(&self) -> Option<Vec<u8>> {
        // Whatever else it is, it is no body.
        STANDARD.decode(self.body_base64.as_deref()?).ok()
    }

    /// Takes out what lets in whoever knows it, as [`mask::request`] does of a request of that provider.
    pub fn mask(&mut self, provider: Option<&Provider>) {
        let (method, body) = (self.webhook.method.parse().unwrap_or(Method::POST), self.body());
        let masked = |told: &[(String, String)]| {
            let headers = header_lines(told);
            let request = Request::new(&method, &self.webhook.url, &headers, body.as_deref().unwrap_or_default());
            let draft = mask::request(&request, provider);
            let latin = |value: &[u8]| value.iter().copied().map(char::from).collect::<String>();
            let told = draft.headers.iter().map(|(name, value)| (name.to_string(), latin(value.as_bytes())));
            (told.collect::<Vec<_>>(), draft.url, draft.body)
        };
        let first = self.headers_first.as_deref().map(|told| masked(told).0);
        let (headers, url, shown) = masked(&self.headers);
        (self.headers, self.headers_first) = (headers, first);
        self.body_base64 = body.map(|_| STANDARD.encode(shown));
        let path = url.split_once("://").and_then(|(_, rest)| Some(rest.get(rest.find(['/', '?'])?..)?.to_owned()));
        self.webhook.path = path.unwrap_or_else(|| std::mem::take(&mut self.webhook.path));
        self.webhook.url = url;
    }
}

/// Header lines as they came, whose values are told as those of Latin-1. What is none is left out.
#[must_use]
pub fn header_lines(told: &[(String, String)]) -> HeaderList {
    let latin = |value: &str| value.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect::<Vec<u8>>();
    let line = |(name, value): &(String, String)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(&latin(value)).ok()?))
    };
    told.iter().filter_map(line).collect()
}

/// An attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tried {
    /// Which one, from 1 on.
    pub number: u32,
    /// When it began.
    pub at: String,
    /// How long it took.
    pub duration_ms: u64,
    /// What the app has answered.
    pub status: Option<u16>,
    /// Why it has not: one of the relay's error codes.
    pub error: Option<String>,
}

/// Which webhooks something is done with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Those of these ids, [`MAX_IDS`] at most.
    Ids(Vec<String>),
    /// All that are `waiting`, `delivered` or `dead`.
    All(String),
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// With how many webhooks; 1 for an inbox.
    pub count: u64,
}
