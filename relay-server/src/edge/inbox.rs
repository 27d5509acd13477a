//! What becomes of a request whose tunnel has an inbox: it is on disk before anything else, then it is tried, and its sender
//! is answered by the app, or by us where that takes too long.
//!
//! ```text
//!   body ─▶ disk ─▶ client there? ─▶ sent ─▶ answered in time: the app's answer
//!                      └──────────────┴────▶ the acknowledgement
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Response, StatusCode};
use relay_protocol::exchange::public_url;
use relay_protocol::message::Payload;
use relay_protocol::webhook::{Event, Judgement, OnDeadline, Provider, Request};
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use ulid::Ulid;

use super::body::{EdgeBody, MAX_KEPT, Upload};
use super::cause::Cause;
use super::forward::{Delivered, Failure, Instead, SLOWEST_UPLOAD, first_part, respond};
use super::gate::PublicHost;
use super::record::Exchange;
use super::respond::RELAY_INBOX;
use super::webhook::{handshake, place, verify};
use crate::Shared;
use crate::inbox::delivery::{self, Source, Webhook};
use crate::inbox::records::{AcceptError, Accepted, New, Quota, Take};
use crate::inbox::spool::Body;
use crate::inbox::{Open, Settings, millis, now};
use crate::judge::sender;
use crate::session::registry::Found;

/// Keeps a request in the inbox of its tunnel and answers it, where the tunnel has one and the request is a webhook that may
/// be acknowledged for the app. None: it goes the way of all others.
pub(super) async fn keep(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    host: &PublicHost,
    upload: &mut Upload,
) -> Result<Option<Delivered>, Instead> {
    let is_webhook = matches!(exchange.head.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let name = shared.name_of(&host.host).filter(|_| is_webhook && exchange.head.upgrade.is_none());
    let Some(inbox) = name.and_then(|name| shared.inboxes.get(name)) else { return Ok(None) };
    let settings = inbox.settings();
    first_part(upload).await.map_err(|error| error.cause())?;
    if !upload.has_ended() {
        // Who has sent it, and whether it may be acknowledged, its body says as often as its head.
        let until = exchange.started + allowed(shared, &settings, None);
        let gathered = upload.gather(MAX_KEPT, until, || place(shared, exchange, inbox.token)).await;
        gathered.map_err(|error| error.cause())?;
    }
    let tunnel = match shared.registry.find(&inbox.name) {
        // The name is another token's by now.
        Found::Tunnel(tunnel) if tunnel.token != inbox.token => return Ok(None),
        Found::Tunnel(tunnel) => {
            verify(shared, exchange, &tunnel, upload).await?;
            Some(tunnel)
        }
        Found::Away(Some((token, asked))) => {
            let until = exchange.started + allowed(shared, &settings, None);
            if let Some(answer) = handshake(shared, exchange, (token, &asked), upload, until).await? {
                return Err(Instead::Answered(Box::new(answer)));
            }
            None
        }
        Found::Away(None) | Found::Nothing => None,
    };
    if settings.judged && tunnel.is_none() {
        // Nobody could judge it any more, and the client relies on us.
        return Ok(None);
    }
    let provider = sender(&shared.providers, settings.provider.as_deref(), &exchange.head, upload.held()).cloned();
    if let Some(provider) = &provider {
        let url = public_url(&exchange.head);
        let request = Request::new(&exchange.head.method, &url, &exchange.head.headers, upload.held());
        if provider.on_deadline(&request) != OnDeadline::Ack {
            Judgement::untell(&mut exchange.head.headers);
            return Ok(None);
        }
    }
    exchange.provider = provider.as_ref().map(|provider| provider.id.clone());
    let body = receive(shared, exchange, &inbox, upload).await?;
    let source = match &body {
        Body::Inline { bytes, .. } => Some(Source::Bytes(bytes.clone())),
        Body::Spooled { .. } => None,
    };
    let event = match (&provider, &body) {
        (Some(provider), Body::Inline { bytes, .. }) => {
            let url = public_url(&exchange.head);
            provider.event(&Request::new(&exchange.head.method, &url, &exchange.head.headers, bytes))
        }
        _ => Event::default(),
    };
    let acknowledged = exchange.started + allowed(shared, &settings, provider.as_deref());
    let trailers = upload.trailers().clone();
    let accepted =
        accept(shared, exchange, &inbox, &settings, tunnel.is_some(), (body, trailers.clone()), event).await?;
    let own = ulid(&exchange.head.id);
    let (due, id) = match accepted {
        Accepted::Stored { due } => (due, own),
        Accepted::Newer { due, of } => (due, of),
        Accepted::Delivered { of } => {
            return Ok(Some(acknowledge(&settings, provider.as_deref(), &format!("delivered; id={of}"))));
        }
    };
    let answer = match tunnel.zip(due) {
        None => {
            inbox.wake();
            None
        }
        Some((tunnel, due)) => {
            let (wanted, answer) = oneshot::channel();
            let owner = shared.clone();
            let head = exchange.head.clone();
            shared.spawn(async move {
                let body = match source {
                    Some(source) => Ok(source),
                    None => owner.inboxes.records().spool().open(due.id).await.map(Source::File),
                };
                let Ok(body) = body else {
                    // It is there, and the next attempt finds it.
                    drop(due);
                    return inbox.wake();
                };
                let webhook = Webhook { head, body, trailers };
                delivery::attempt(&owner, &inbox, &tunnel, due, webhook, Some(wanted)).await;
            });
            timeout_at(acknowledged, answer).await.ok().and_then(Result::ok)
        }
    };
    match answer {
        Some((head, stream)) => respond(exchange, head, stream, false).map(Some),
        None => Ok(Some(acknowledge(&settings, provider.as_deref(), &format!("stored; id={id}")))),
    }
}

/// By when the sender is answered, from when it began to count.
fn allowed(shared: &Shared, settings: &Settings, provider: Option<&Provider>) -> Duration {
    // Where the app may take longer than the sender waits, the sender is told in time all the same.
    let its = provider.and_then(Provider::answer_within).unwrap_or(shared.limits.inbox_ack);
    settings.timeout().map_or(its, |timeout| timeout.min(its))
}

/// Takes in the body, in memory while it is short.
async fn receive(
    shared: &Arc<Shared>,
    exchange: &Exchange,
    inbox: &Open,
    upload: &mut Upload,
) -> Result<Body, Instead> {
    let most = shared.limits.inbox_body;
    let too_large = || {
        let message = Some(format!("The webhook's body has more than {most} bytes, which is what an inbox takes."));
        Failure { cause: Cause::BodyTooLarge, message }
    };
    let mut share = None;
    let mut incoming = shared.inboxes.records().spool().receive(ulid(&exchange.head.id));
    while let Some(piece) = upload.next().await.map_err(|error| error.cause())? {
        exchange.received(upload.received());
        if upload.received() > most {
            return Err(too_large().into());
        }
        let waited = exchange.started.elapsed();
        let is_slow = upload.received() < SLOWEST_UPLOAD.saturating_mul(waited.as_secs());
        if !upload.has_ended() && is_slow && waited > shared.limits.deadline {
            return Err(Cause::BodyTimeout.into());
        }
        // Beyond what every request may have, there is room for so many only.
        if !upload.has_ended() && share.is_none() {
            share = Some(place(shared, exchange, inbox.token).ok_or(Cause::TooManyRequests)?);
        }
        incoming.push(&piece).await.map_err(|error| failed(&error))?;
        let held = usize::try_from(incoming.size()).unwrap_or(usize::MAX).min(crate::inbox::spool::MAX_INLINE);
        if !share.as_mut().is_none_or(|share| share.grow(held)) {
            return Err(Cause::TooManyRequests.into());
        }
    }
    exchange.received(upload.received());
    Ok(incoming.finish().await.map_err(|error| failed(&error))?)
}

fn failed(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::StorageFull || error.kind() == std::io::ErrorKind::QuotaExceeded {
        return Cause::InboxFull.into();
    }
    tracing::error!(%error, "the body of a webhook could not be written");
    Cause::InboxFailed.into()
}

/// Puts it on disk.
async fn accept(
    shared: &Shared,
    exchange: &Exchange,
    inbox: &Open,
    settings: &Settings,
    is_there: bool,
    (body, trailers): (Body, Bytes),
    event: Event,
) -> Result<Accepted, Instead> {
    let head = exchange.head.to_bytes().map_err(|error| Failure {
        cause: Cause::BadRequest,
        message: Some(format!("The request's head cannot be kept: {error}.")),
    })?;
    let take = match (is_there, settings.inbox.ordered) {
        (false, _) => Take::No,
        (true, false) => Take::Now,
        (true, true) => Take::IfFirst,
    };
    let verdict = Judgement::told(&exchange.head.headers).map(|judgement| judgement.verdict);
    let dedupe = millis(settings.inbox.dedupe());
    let new = New {
        id: ulid(&exchange.head.id),
        inbox: inbox.name.clone(),
        token: inbox.token,
        received_at: now(),
        take,
        head,
        trailers,
        body,
        provider: exchange.provider.clone(),
        event_id: event.id,
        event_type: event.kind,
        verdict,
        dedupe_since: (dedupe > 0).then(|| now().saturating_sub(dedupe)),
        quota: Quota { count: shared.limits.inbox_count, bytes: shared.limits.inbox_bytes },
    };
    shared.inboxes.records().accept(new).await.map_err(|error| match error {
        // It was closed just now, or its name changed hands.
        AcceptError::Closed { .. } => Cause::ClientOffline.into(),
        full @ AcceptError::Full { .. } => {
            Failure { cause: Cause::InboxFull, message: Some(crate::sentence(&full)) }.into()
        }
        AcceptError::Store(crate::store::StoreError::Full) => Cause::InboxFull.into(),
        AcceptError::Store(error) => {
            tracing::error!(%error, "a webhook was not accepted");
            Cause::InboxFailed.into()
        }
    })
}

/// What tells the sender that its webhook is accepted.
fn acknowledge(settings: &Settings, provider: Option<&Provider>, what: &str) -> Delivered {
    let configured = settings.inbox.ack.as_ref().and_then(|ack| Some((ack.head().ok()?, ack.body.clone())));
    let ((status, headers), body) = configured.unwrap_or_else(|| match provider.map(Provider::answer) {
        // What its provider is known to expect.
        Some(answer) => {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::ACCEPTED);
            let text = [(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))];
            ((status, text.into_iter().filter(|_| !answer.body.is_empty()).collect()), answer.body.clone())
        }
        None => ((StatusCode::ACCEPTED, Vec::new()), String::new()),
    });
    let mut response = Response::new(EdgeBody::full(Bytes::from(body)));
    *response.status_mut() = status;
    let ours = HeaderValue::try_from(what).ok().map(|what| (RELAY_INBOX, what));
    response.headers_mut().extend(headers.into_iter().chain(ours));
    Delivered { response, switched: None, uploads_to: None }
}

/// The exchange's own id, which we have given it.
fn ulid(id: &str) -> Ulid {
    Ulid::from_string(id).unwrap_or_default()
}
