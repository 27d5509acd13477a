//! What the relay tells of a token's inboxes and does with them: its API, as the command, the inspector and a client that has
//! connected ask it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use relay_protocol::inbox::api::{Done, Inbox, Inboxes, PATH, Page, Which, Whole};
use relay_protocol::query::written;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::outgoing::{self, SendError};
use crate::session::dial::Target;
use crate::value::{Secret, is_label, is_webhook_id};

/// How long the relay may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take for what concerns a million webhooks.
const MUCH_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Most bytes of an answer: a webhook of 25 MiB in base64, and what an operator may allow beyond.
const MAX_ANSWER: usize = 256 << 20;

/// Why the relay was not asked, or has not done it.
#[derive(Debug, thiserror::Error)]
pub enum InboxesError {
    /// The relay is not reached.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The relay says no.
    #[error("the relay answered {status}: {message}")]
    Refused {
        /// How.
        status: StatusCode,
        /// Why.
        message: String,
    },
    /// The relay answered something else than it should.
    #[error("the relay's answer is not what it should be ({0}); update whichever of client and relay is older")]
    Answer(serde_json::Error),
    /// It must not stand in a path.
    #[error("{0:?} is neither the name of an inbox nor the id of a webhook")]
    Path(String),
    /// It must not stand in a header.
    #[error("the token is not one word of letters, digits and _")]
    Token,
}

/// Which webhooks of an inbox are listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed<'a> {
    /// `waiting`, `delivered` or `dead`; all if none.
    pub(crate) state: Option<&'a str>,
    /// So many at most.
    pub(crate) limit: usize,
    /// The page that the one before has named.
    pub(crate) next: Option<String>,
}

/// What is done with webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Retry,
    Drop,
}

/// The inboxes of a token.
#[derive(Debug)]
pub(crate) struct Api {
    target: Target,
    authorization: HeaderValue,
}

impl Api {
    /// Of the relay there, and the token that they belong to.
    ///
    /// # Errors
    /// [`InboxesError::Token`].
    pub(crate) fn new(target: Target, token: &Secret) -> Result<Self, InboxesError> {
        let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut authorization = bearer.map_err(|_| InboxesError::Token)?;
        authorization.set_sensitive(true);
        Ok(Self { target, authorization })
    }

    /// All of them, without what is in them.
    pub(crate) async fn list(&self) -> Result<Vec<Inbox>, InboxesError> {
        let Inboxes { inboxes } = self.send(Method::GET, String::new(), &(), PATIENCE).await?;
        Ok(inboxes)
    }

    /// One with some of its webhooks, the newest first.
    pub(crate) async fn page(&self, name: &str, listed: &Listed<'_>) -> Result<Page, InboxesError> {
        let Listed { state, limit, next } = listed;
        let limit = limit.to_string();
        let fields = [("limit", Some(limit.as_str())), ("state", *state), ("before", next.as_deref())];
        let query = written(fields.into_iter().filter_map(|(name, value)| Some((name, value?))));
        self.send(Method::GET, format!("{}?{query}", of(name)?), &(), PATIENCE).await
    }

    /// A webhook with all that is kept of it, but for a long body.
    pub(crate) async fn whole(&self, name: &str, id: &str) -> Result<Whole, InboxesError> {
        self.send(Method::GET, at(name, id)?, &(), PATIENCE).await
    }

    /// A webhook with all that is kept of it.
    pub(crate) async fn complete(&self, name: &str, id: &str) -> Result<Whole, InboxesError> {
        let mut whole = self.whole(name, id).await?;
        if whole.body_base64.is_none() && whole.webhook.state != "delivered" {
            let body = self.answer(Method::GET, format!("{}/body", at(name, id)?), Vec::new(), PATIENCE).await?;
            whole.body_base64 = Some(STANDARD.encode(body));
        }
        Ok(whole)
    }

    /// Does something with webhooks. Returns with how many.
    pub(crate) async fn act(&self, name: &str, action: Action, which: &Which) -> Result<u64, InboxesError> {
        let action = match action {
            Action::Retry => "retry",
            Action::Drop => "drop",
        };
        let path = format!("{}/{action}", of(name)?);
        let Done { count } = self.send(Method::POST, path, which, MUCH_PATIENCE).await?;
        Ok(count)
    }

    /// Lets deliveries rest, or go on.
    pub(crate) async fn pause(&self, name: &str, paused: bool) -> Result<Inbox, InboxesError> {
        let action = if paused { "pause" } else { "resume" };
        self.send(Method::POST, format!("{}/{action}", of(name)?), &(), PATIENCE).await
    }

    /// Closes one, with all that is in it. Returns how many there were.
    pub(crate) async fn close(&self, name: &str) -> Result<u64, InboxesError> {
        let Done { count } = self.send(Method::DELETE, of(name)?, &(), MUCH_PATIENCE).await?;
        Ok(count)
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: String,
        body: &(impl Serialize + Sync),
        within: Duration,
    ) -> Result<T, InboxesError> {
        let body = match method {
            Method::POST => serde_json::to_vec(body).map_err(InboxesError::Answer)?,
            _ => Vec::new(),
        };
        let answer = self.answer(method, path, body, within).await?;
        serde_json::from_slice(&answer).map_err(InboxesError::Answer)
    }

    async fn answer(
        &self,
        method: Method,
        path: String,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, InboxesError> {
        let headers =
            [(AUTHORIZATION, self.authorization.clone()), (CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let (path, most) = (format!("{PATH}{path}"), (MAX_ANSWER as u64, MAX_ANSWER));
        let answer = outgoing::send(&self.target, &method, &path, &headers, body, within, most).await?;
        if answer.status.is_success() {
            return Ok(answer.body);
        }
        let error: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
        let message = error.and_then(|error| Some(error.pointer("/error/message")?.as_str()?.to_owned()));
        let too_old = || "it is no relay, or one that is too old to have inboxes".to_owned();
        Err(InboxesError::Refused { status: answer.status, message: message.unwrap_or_else(too_old) })
    }
}

/// The path of an inbox, below [`PATH`]. A name that is none must not lead to another path: to delete that may be something else.
fn of(name: &str) -> Result<String, InboxesError> {
    if is_label(name) { Ok(format!("/{name}")) } else { Err(InboxesError::Path(name.to_owned())) }
}

/// The path of a webhook.
fn at(name: &str, id: &str) -> Result<String, InboxesError> {
    let inbox = of(name)?;
    if is_webhook_id(id) { Ok(format!("{inbox}/{id}")) } else { Err(InboxesError::Path(id.to_owned())) }
}
