//! What a token may ask of the relay over HTTPS, on its own host: its inboxes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use relay_protocol::inbox::api::{PATH, Which};
use relay_protocol::query::fields;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};
use tokio::time::timeout;

use super::body::EdgeBody;
use super::connect::authenticate;
use super::respond::explain;
use super::sender::Sender;
use crate::cause::Cause;
use crate::inbox::handle::{self, Action, HandleError, Source};
use crate::inbox::spool::MAX_INLINE;
use crate::store::TokenId;
use crate::{Shared, sentence};

/// Most bytes of a request's body: a thousand ids.
const MAX_BODY: usize = 64 * 1024;

/// How long a request's body may take.
const BODY_TIME: Duration = Duration::from_secs(10);

/// What is below [`PATH`] in a path, where it is there.
pub(super) fn below(path: &str) -> Option<&str> {
    path.strip_prefix(PATH).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Why a request is not served.
type Refusal = (Cause, String);

/// Whose turn it is. Each request may have the database go through thousands of rows, and what is accepted meanwhile must
/// not stand behind many of them.
#[derive(Debug)]
pub(crate) struct Turns {
    all: Semaphore,
    tokens: DashMap<TokenId, Arc<Semaphore>>,
}

/// Requests that are served at once, of all tokens and of one.
const AT_ONCE: (usize, usize) = (8, 2);

/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(5);

impl Default for Turns {
    fn default() -> Self {
        Self { all: Semaphore::new(AT_ONCE.0), tokens: DashMap::new() }
    }
}

impl Turns {
    /// Waits for a turn, which lasts as long as what this returns; none where it does not come in time.
    async fn take(&self, token: TokenId) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        // No more of them than there are tokens.
        let own = self.tokens.entry(token).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE.1))).clone();
        let both = async { Some((own.acquire_owned().await.ok()?, self.all.acquire().await.ok()?)) };
        timeout(TURN, both).await.ok().flatten()
    }
}

/// Answers a request to the API.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    sender: Sender,
    request: &mut Request<Incoming>,
) -> Response<EdgeBody> {
    match serve(shared, sender, request).await {
        Ok(mut response) => {
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err((cause, message)) => explain(shared, cause, request.headers(), &message),
    }
}

type Served = Result<Response<EdgeBody>, Refusal>;

async fn serve(shared: &Arc<Shared>, sender: Sender, request: &mut Request<Incoming>) -> Served {
    let token = authenticate(shared, sender.address_or_peer(request.headers()), request.headers()).await?;
    let (whose, method) = (Some(token.id), request.method().clone());
    let path = below(request.uri().path()).unwrap_or_default().trim_start_matches('/').to_owned();
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let parts = (parts.next(), parts.next(), parts.next(), parts.next());
    let action = match parts.1 {
        Some("retry") => Some(Action::Retry),
        Some("drop") => Some(Action::Drop),
        _ => None,
    };
    // Before its turn, so that nobody waits for what does not come.
    let asked = match action.filter(|_| method == Method::POST && parts.2.is_none()) {
        Some(action) => Some((action, which(request).await?)),
        None => None,
    };
    let busy = || (Cause::TooManyRequests, "Other requests to the inboxes are being served; try again.".to_owned());
    let _turn = shared.turns.take(token.id).await.ok_or_else(busy)?;
    let inboxes = &shared.inboxes;
    let (name, what, more) = match parts {
        (None, ..) if method == Method::GET => return json(&handle::inboxes(inboxes, whose).await.map_err(refused)?),
        (Some(name), what, more, None) => (name, what, more),
        _ => return Err(nothing()),
    };
    let inbox = handle::inbox(inboxes, whose, name).await.map_err(refused)?;
    if let Some((action, which)) = asked {
        // It goes on where nobody waits for it any more: files of what is dropped would stay.
        let (owner, (tell, done)) = (shared.clone(), oneshot::channel());
        shared.spawn(async move { drop(tell.send(handle::act(&owner.inboxes, &inbox, action, &which).await)) });
        let stopped = |_| (Cause::Internal, Cause::Internal.message().to_owned());
        return json(&done.await.map_err(stopped)?.map_err(refused)?);
    }
    match (method, what, more) {
        (Method::GET, None, None) => {
            let query = fields(request.uri().query().unwrap_or_default());
            let query = query.map_err(|_| (Cause::BadRequest, "A parameter is not UTF-8.".to_owned()))?;
            let get = |key: &str| query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
            let limit = get("limit").and_then(|limit| limit.parse().ok());
            json(&handle::page(inboxes, inbox, get("state"), get("before"), limit).await.map_err(refused)?)
        }
        (Method::DELETE, None, None) => json(&handle::remove(inboxes, &inbox).await.map_err(refused)?),
        (Method::POST, Some("pause"), None) => json(&handle::pause(inboxes, inbox, true).await.map_err(refused)?),
        (Method::POST, Some("resume"), None) => json(&handle::pause(inboxes, inbox, false).await.map_err(refused)?),
        (Method::GET, Some(id), None) => {
            json(&handle::whole(inboxes, &inbox, id, MAX_INLINE as u64).await.map_err(refused)?)
        }
        (Method::GET, Some(id), Some("body")) => {
            let (source, size) = handle::body(inboxes, &inbox, id).await.map_err(refused)?;
            let mut response = Response::new(match source {
                Source::Bytes(bytes) => EdgeBody::full(bytes),
                Source::File(file) => EdgeBody::file(file),
            });
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
            Ok(response)
        }
        _ => Err(nothing()),
    }
}

/// Which webhooks are meant.
async fn which(request: &mut Request<Incoming>) -> Result<Which, Refusal> {
    let bad = |message: String| (Cause::BadRequest, message);
    let body = Limited::new(request.body_mut(), MAX_BODY).collect();
    let body =
        timeout(BODY_TIME, body).await.map_err(|_| (Cause::BodyTimeout, Cause::BodyTimeout.message().to_owned()))?;
    let body = body.map_err(|error| bad(format!("The request's body cannot be read: {error}.")))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| bad(format!("The request's body is not what it should be: {error}.")))
}

fn json(value: &impl Serialize) -> Served {
    let json = serde_json::to_vec(value).map_err(|error| (Cause::Internal, error.to_string()))?;
    let mut response = Response::new(EdgeBody::full(Bytes::from(json)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn nothing() -> Refusal {
    (Cause::NotFound, Cause::NotFound.message().to_owned())
}

fn refused(error: HandleError) -> Refusal {
    let cause = match &error {
        HandleError::NoInbox(_) | HandleError::NoWebhook(_) | HandleError::NoBody(_) => Cause::NotFound,
        HandleError::Id(_) | HandleError::State(_) | HandleError::Page(_) | HandleError::TooMany => Cause::BadRequest,
        HandleError::Body(_) | HandleError::Store(_) => {
            tracing::error!(%error, "an inbox could not be handled");
            Cause::InboxFailed
        }
    };
    (cause, sentence(&error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_token_never_has_all_turns_and_nobody_waits_for_ever() {
        let turns = Turns::default();
        let (one, other) = (TokenId(1), TokenId(2));
        let _first = turns.take(one).await.unwrap();
        let second = turns.take(one).await.unwrap();
        assert!(turns.take(one).await.is_none(), "after five seconds");
        let _others = turns.take(other).await.expect("its own turn");
        let (third, ()) = tokio::join!(turns.take(one), async { drop(second) });
        assert!(third.is_some(), "it has only to wait");
    }
}
