//! Tells the operator of backlogs and dead letters, by a webhook of the relay's own.
//!
//! ```text
//!   every 10 s: the inboxes ──▶ what has not been told of them ──▶ POST, up to four times ──▶ told
//!                    ▲                                                    │
//!                    └─────────── a minute later ◀── nobody takes it ◀────┘
//! ```
//!
//! There is no queue: what is to be told follows from how the inboxes are by then. A receiver that is slow, or away, costs nothing
//! and holds up nothing but alerts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Uri};
use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, Draft, Provider, Request, Secret, SignError, Table, TableError};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use ulid::Ulid;

use crate::Shared;
use crate::clock::unix_now;
use crate::clock::{millis, unix_millis};
use crate::inbox::records::{Inbox, State};
use crate::outgoing::Outgoing;
use crate::store::{StoreError, TokenId};

/// The waits between the attempts to tell something. Each is a fifth longer or shorter.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(25)];

/// How long nothing is told after nobody has taken it.
const REST: Duration = Duration::from_secs(60);

/// How often more dead letters of one inbox, or more refusals, are told of.
const AGAIN: Duration = Duration::from_secs(3600);

/// The row of the table of providers by which alerts are signed.
const SIGNED_AS: &str = "standard-webhooks";

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");

/// Whom the relay tells of backlogs and dead letters in inboxes, and from when on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alert {
    /// Where it is told: an `http` or `https` URL, which can have a secret in it.
    pub url: Secret,
    /// What alerts are signed with: `whsec_` and base64, as Standard Webhooks has it.
    pub secret: Option<Secret>,
    /// Webhooks that wait in one inbox.
    pub waiting: u64,
    /// How long one of them has waited.
    pub oldest: Duration,
    /// How often is looked.
    pub every: Duration,
}

impl Alert {
    /// Alerts to this URL, unsigned: from 100 webhooks or 15 min on, looked for every 10 s.
    pub fn to(url: &str) -> Self {
        let (oldest, every) = (Duration::from_secs(15 * 60), Duration::from_secs(10));
        Self { url: url.into(), secret: None, waiting: 100, oldest, every }
    }

    /// Whether alerts can be signed with a secret.
    ///
    /// # Errors
    /// [`TableError`]: nobody knows how.
    pub(crate) fn can_sign(secret: &Secret) -> Result<bool, TableError> {
        let headers = [(WEBHOOK_ID, HeaderValue::from_static("msg_1"))];
        let table = Table::built_in()?;
        Ok(table
            .get(SIGNED_AS)
            .is_some_and(|provider| sign(provider, secret, "https://localhost/", &headers, b"{}").is_ok()))
    }
}

/// What has been told already.
#[derive(Debug, Default)]
struct Told {
    inboxes: HashMap<String, Episode>,
    refused: Again,
}

/// What has been told of an inbox.
#[derive(Debug, Default)]
struct Episode {
    backlog: bool,
    dead: Again,
}

/// What is told of a number that grows, and not too often.
#[derive(Clone, Copy, Debug, Default)]
struct Again {
    number: u64,
    at: Option<Instant>,
}

impl Again {
    /// Whether it has grown, and may be told by now.
    fn is_news(self, number: u64) -> bool {
        number > self.number && self.at.is_none_or(|at| at.elapsed() >= AGAIN)
    }
}

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Backlog,
    Recovered,
    Dead,
}

/// An alert, as its receiver reads it. These fields are documented: they are not renamed.
#[derive(Debug, Serialize)]
struct Message<'a> {
    event: &'static str,
    inbox: Option<&'a str>,
    token: Option<&'a str>,
    waiting: u64,
    dead: u64,
    oldest_s: u64,
    webhook: Option<Webhook>,
    text: String,
}

/// The dead letter that an alert is about.
#[derive(Debug, Serialize)]
struct Webhook {
    id: String,
    provider: Option<String>,
    event_type: Option<String>,
    reason: Option<String>,
}

/// Tells until the relay stops, whoever is to be told by then. The way out is made once somebody is.
pub(crate) async fn run(shared: Arc<Shared>, mut outgoing: Option<Outgoing>) {
    let mut settings = shared.live.subscribe();
    let work = async {
        // Of what lies there since before the start, an earlier relay has told.
        let mut told = Told::default();
        if let Ok(inboxes) = shared.inboxes.records().inboxes().await {
            told.inboxes.extend(inboxes.into_iter().map(|inbox| (inbox.name, Episode::of(inbox.dead))));
        }
        loop {
            let alert = settings.borrow_and_update().alert.clone();
            if outgoing.is_none() && alert.is_some() {
                outgoing =
                    Outgoing::new(None).inspect_err(|error| tracing::error!(%error, "alerts cannot be sent")).ok();
            }
            let rest = match (&alert, &outgoing) {
                (Some(alert), Some(outgoing)) => match look(&shared, alert, outgoing, &mut told).await {
                    Ok(()) => alert.every,
                    Err(error) => {
                        shared.metrics.alerts_failed.inc();
                        tracing::error!(%error, "an alert was not delivered");
                        REST
                    }
                },
                (Some(_), None) => REST,
                (None, _) => Duration::MAX,
            };
            tokio::select! {
                () = shared.stopping.cancelled() => return,
                () = sleep(rest) => {}
                // The relay holds the other end for as long.
                Ok(()) = settings.changed() => {}
            }
        }
    };
    shared.closing.run_until_cancelled(work).await.unwrap_or_default();
}

impl Episode {
    fn of(dead: u64) -> Self {
        Self { dead: Again { number: dead, at: None }, ..Self::default() }
    }

    /// What has still to be told of its inbox.
    fn news(&mut self, alert: &Alert, inbox: &Inbox, now: i64) -> [Option<News>; 2] {
        let is_old = |limit: Duration| inbox.oldest_at.is_some_and(|at| now - at >= millis(limit));
        let begins = inbox.waiting >= alert.waiting || is_old(alert.oldest);
        // Half of it, so that a backlog around the limit is one, and not many.
        let lasts = inbox.waiting > alert.waiting / 2 || is_old(alert.oldest / 2);
        let backlog = match (self.backlog, begins, lasts) {
            (false, true, _) => Some(News::Backlog),
            (true, _, false) => Some(News::Recovered),
            _ => None,
        };
        // Dead letters that were retried or dropped are no news when they come again.
        self.dead.number = self.dead.number.min(inbox.dead);
        [backlog, self.dead.is_news(inbox.dead).then_some(News::Dead)]
    }

    fn tell(&mut self, news: News, inbox: &Inbox) {
        match news {
            News::Backlog => self.backlog = true,
            News::Recovered => self.backlog = false,
            News::Dead => self.dead = Again { number: inbox.dead, at: Some(Instant::now()) },
        }
    }
}

/// Why an alert was not delivered.
#[derive(Debug, thiserror::Error)]
enum AlertError {
    /// Nobody has taken it. What there is of a URL in the reason is its host: the rest can be a secret.
    #[error("{0}")]
    Untaken(String),
    /// It cannot be made.
    #[error(transparent)]
    Request(#[from] http::Error),
    /// The secret does not fit.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The inboxes cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Tells what is to be told now. What nobody takes is to be told the next time, if it is still so.
async fn look(shared: &Shared, alert: &Alert, outgoing: &Outgoing, told: &mut Told) -> Result<(), AlertError> {
    let refused = shared.metrics.refused_by_inboxes();
    if told.refused.is_news(refused) {
        let count = refused - told.refused.number;
        let why = shared.inboxes.records().health().err().map(|error| error.to_string());
        let why = why.unwrap_or_else(|| "an inbox or the disk is full".to_owned());
        let (event, text) = ("inbox.failed", format!("The relay has refused {}: {why}.", many(count, "webhook")));
        let nothing = (None, None, 0, 0, 0, None);
        let (inbox, token, waiting, dead, oldest_s, webhook) = nothing;
        tell(shared, alert, outgoing, &Message { event, inbox, token, waiting, dead, oldest_s, webhook, text }).await?;
        told.refused = Again { number: refused, at: Some(Instant::now()) };
    }
    let inboxes = shared.inboxes.records().inboxes().await?;
    let names: HashSet<&str> = inboxes.iter().map(|inbox| inbox.name.as_str()).collect();
    told.inboxes.retain(|name, _| names.contains(name.as_str()));
    let mut owners = None;
    for inbox in &inboxes {
        let now = unix_millis();
        let episode = told.inboxes.entry(inbox.name.clone()).or_default();
        for news in episode.news(alert, inbox, now).into_iter().flatten() {
            let owners = match &mut owners {
                Some(owners) => owners,
                none => none.insert(self::owners(shared).await?),
            };
            let token = owners.get(&inbox.token).map(String::as_str);
            tell(shared, alert, outgoing, &message(shared, inbox, token, news, now).await?).await?;
            episode.tell(news, inbox);
        }
    }
    Ok(())
}

/// The names of all tokens.
async fn owners(shared: &Shared) -> Result<HashMap<TokenId, String>, StoreError> {
    let tokens = shared.store.list_tokens(unix_now()).await?;
    Ok(tokens.into_iter().map(|one| (one.token.id, one.token.name)).collect())
}

async fn message<'a>(
    shared: &Shared,
    inbox: &'a Inbox,
    token: Option<&'a str>,
    news: News,
    now: i64,
) -> Result<Message<'a>, StoreError> {
    let Inbox { name, waiting, dead, .. } = inbox;
    let oldest_s = inbox.oldest_at.map_or(0, |at| u64::try_from(now - at).unwrap_or(0) / 1000);
    let mut webhook = None;
    let (event, what) = match news {
        News::Backlog => {
            ("inbox.backlog", format!("{} to be delivered, the oldest for {}", wait(*waiting), age(oldest_s)))
        }
        News::Recovered => ("inbox.recovered", format!("the backlog is gone; {} to be delivered", wait(*waiting))),
        News::Dead => {
            let (mut rows, _) = shared.inboxes.records().list(name, inbox.token, Some(State::Dead), None, 1).await?;
            let last = rows.pop();
            let reason = last.as_ref().and_then(|row| row.reason.clone());
            webhook = last.map(|row| Webhook {
                id: row.id.to_string(),
                provider: row.provider,
                event_type: row.event_type,
                reason: row.reason,
            });
            let reason = reason.map(|reason| format!(". The latest one: {reason}")).unwrap_or_default();
            ("inbox.dead", format!("{}{reason}", many(*dead, "dead letter")))
        }
    };
    let owner = token.map(|token| format!(" of {token}")).unwrap_or_default();
    let text = format!("Inbox {name}{owner}: {what}");
    Ok(Message { event, inbox: Some(name), token, waiting: *waiting, dead: *dead, oldest_s, webhook, text })
}

fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn wait(count: u64) -> String {
    format!("{} {}", many(count, "webhook"), if count == 1 { "waits" } else { "wait" })
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Sends an alert until it is taken, or has been refused often enough.
async fn tell(shared: &Shared, alert: &Alert, outgoing: &Outgoing, message: &Message<'_>) -> Result<(), AlertError> {
    let body = Bytes::from(serde_json::to_vec(message).unwrap_or_default());
    let id = Ulid::generate();
    let mut waits = WAITS.into_iter();
    loop {
        let request = request(shared.providers.get(SIGNED_AS).map(AsRef::as_ref), alert, id, body.clone())?;
        let why = match outgoing.send(request).await {
            Ok(answer) if answer.status().is_success() => {
                shared.metrics.alerts_sent.inc();
                return Ok(());
            }
            Ok(answer) => format!("the receiver of alerts answered {}", answer.status().as_u16()),
            Err(error) => error.to_string(),
        };
        let Some(wait) = waits.next() else { return Err(AlertError::Untaken(why)) };
        tracing::warn!(%why, event = message.event, "an alert was not taken; it is sent again");
        sleep(wait.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
    }
}

/// The request that tells it, signed as of now where there is a secret.
fn request(
    provider: Option<&Provider>,
    alert: &Alert,
    id: Ulid,
    body: Bytes,
) -> Result<http::Request<Bytes>, AlertError> {
    let id = HeaderValue::try_from(format!("msg_{id}")).map_err(http::Error::from)?;
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (USER_AGENT, HeaderValue::from_static(concat!("relay-server/", env!("CARGO_PKG_VERSION")))),
        (WEBHOOK_ID, id),
    ];
    let url = alert.url.expose();
    let draft = match (provider, &alert.secret) {
        (Some(provider), Some(secret)) => sign(provider, secret, url, &headers, &body)?,
        _ => Draft { url: url.to_owned(), headers: headers.into(), body: Vec::new() },
    };
    let mut request = http::Request::post(Uri::try_from(url).map_err(http::Error::from)?);
    for (name, value) in draft.headers {
        request = request.header(name, value);
    }
    Ok(request.body(body)?)
}

fn sign(
    provider: &Provider,
    secret: &Secret,
    url: &str,
    headers: &[(HeaderName, HeaderValue)],
    body: &[u8],
) -> Result<Draft, SignError> {
    let credentials = Credentials { secrets: vec![secret.clone()], ..Credentials::default() };
    provider.sign(&Request::new(&Method::POST, url, headers, body), &credentials, Timestamp::now())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    fn inbox(waiting: u64, dead: u64, oldest_at: Option<i64>) -> Inbox {
        let (name, settings) = ("hooks".to_owned(), String::new());
        let (token, opened_at, paused, delivered, bytes) = (TokenId(1), 0, false, 0, 0);
        Inbox { name, token, settings, opened_at, paused, waiting, delivered, dead, bytes, oldest_at }
    }

    #[tokio::test(start_paused = true)]
    async fn an_episode_is_told_once_and_ends_well_below_where_it_began() {
        let alert = Alert { waiting: 10, oldest: Duration::from_secs(60), ..Alert::to("http://localhost/") };
        let mut episode = Episode::default();
        let mut look = |waiting, dead, oldest_at: Option<i64>| {
            let inbox = inbox(waiting, dead, oldest_at);
            let news: Vec<_> = episode.news(&alert, &inbox, 60_000).into_iter().flatten().collect();
            news.iter().for_each(|news| episode.tell(*news, &inbox));
            news
        };
        assert_eq!(look(9, 0, Some(1)), []);
        assert_eq!(look(10, 0, Some(1)), [News::Backlog]);
        for waiting in [11, 9, 10, 6] {
            assert_eq!(look(waiting, 0, Some(50_000)), [], "{waiting}");
        }
        assert_eq!(look(5, 0, Some(50_000)), [News::Recovered]);
        assert_eq!(look(1, 0, Some(0)), [News::Backlog], "it is old");
        assert_eq!(look(1, 0, Some(30_000)), [], "that one is half as old");
        assert_eq!(look(0, 1, None), [News::Recovered, News::Dead]);
        // More of them within the hour are told of after it.
        assert_eq!(look(0, 2, None), []);
        tokio::time::advance(AGAIN).await;
        assert_eq!(look(0, 2, None), [News::Dead]);
        assert_eq!(look(0, 0, None), [], "they were dropped");
        tokio::time::advance(AGAIN).await;
        assert_eq!(look(0, 1, None), [News::Dead]);
        assert_eq!(look(0, 1, None), []);
    }
}
