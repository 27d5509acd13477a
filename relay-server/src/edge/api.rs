//! What a token may ask of the relay over HTTPS, on its own host: its inboxes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use relay_protocol::inbox::api::{PATH, Which};
use serde::Serialize;
use tokio::time::timeout;

use super::body::EdgeBody;
use super::cause::Cause;
use super::connect::authenticate;
use super::forward::Sender;
use super::respond::explain;
use crate::inbox::handle::{self, Action, HandleError};
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

/// Answers a request to the API.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    sender: Sender,
    request: &mut Request<Incoming>,
) -> Response<EdgeBody> {
    let answered = match serve(shared, sender, request).await {
        Ok(json) => json.map_err(|error| (Cause::Internal, error.to_string())),
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(json) => {
            let mut response = Response::new(EdgeBody::full(Bytes::from(json)));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err((cause, message)) => explain(cause, request.headers(), &message),
    }
}

type Json = Result<Vec<u8>, serde_json::Error>;

async fn serve(shared: &Arc<Shared>, sender: Sender, request: &mut Request<Incoming>) -> Result<Json, Refusal> {
    let token = authenticate(shared, sender.address(request.headers()), request.headers()).await?;
    let (whose, method) = (Some(token.id), request.method().clone());
    let path = below(request.uri().path()).unwrap_or_default().trim_start_matches('/').to_owned();
    let mut parts = path.splitn(2, '/').filter(|part| !part.is_empty());
    let (name, what) = (parts.next(), parts.next());
    let Some(name) = name else {
        return match method {
            Method::GET => Ok(json(&handle::inboxes(&shared.inboxes, whose).await.map_err(refused)?)),
            _ => Err(nothing()),
        };
    };
    let inbox = handle::inbox(&shared.inboxes, whose, name).await.map_err(refused)?;
    let action = match what {
        Some("retry") => Some(Action::Retry),
        Some("drop") => Some(Action::Drop),
        _ => None,
    };
    match (method, what, action) {
        (Method::GET, None, _) => {
            let query = query(request.uri().query().unwrap_or_default());
            let get = |key: &str| query.get(key).map(String::as_str);
            let limit = get("limit").and_then(|limit| limit.parse().ok());
            let page = handle::page(&shared.inboxes, inbox, get("state"), get("before"), limit).await;
            Ok(json(&page.map_err(refused)?))
        }
        (Method::DELETE, None, _) => Ok(json(&handle::remove(&shared.inboxes, &inbox).await.map_err(refused)?)),
        (Method::POST, _, Some(action)) => {
            let which = which(request).await?;
            Ok(json(&handle::act(&shared.inboxes, &inbox, action, &which).await.map_err(refused)?))
        }
        (Method::POST, Some("pause"), _) => {
            Ok(json(&handle::pause(&shared.inboxes, inbox, true).await.map_err(refused)?))
        }
        (Method::POST, Some("resume"), _) => {
            Ok(json(&handle::pause(&shared.inboxes, inbox, false).await.map_err(refused)?))
        }
        (Method::GET, Some(id), None) => Ok(json(&handle::whole(&shared.inboxes, &inbox, id).await.map_err(refused)?)),
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

/// A query's keys, each with its last value. Names and ids need no escapes.
fn query(query: &str) -> HashMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn json(value: &impl Serialize) -> Json {
    serde_json::to_vec(value)
}

fn nothing() -> Refusal {
    (Cause::NotFound, Cause::NotFound.message().to_owned())
}

fn refused(error: HandleError) -> Refusal {
    let cause = match &error {
        HandleError::NoInbox(_) | HandleError::NoWebhook(_) => Cause::NotFound,
        HandleError::Id(_) | HandleError::State(_) | HandleError::TooMany => Cause::BadRequest,
        HandleError::Body(_) | HandleError::Store(_) => {
            tracing::error!(%error, "an inbox could not be handled");
            Cause::InboxFailed
        }
    };
    (cause, sentence(&error))
}
