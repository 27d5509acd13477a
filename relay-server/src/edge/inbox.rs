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
use jiff::Timestamp;
use relay_protocol::exchange::{content_length, public_url};
use relay_protocol::message::Payload;
use relay_protocol::webhook::{Credentials, Event, Judgement, OnDeadline, Provider, Request};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use ulid::Ulid;

use super::access;
use super::body::{EdgeBody, MAX_KEPT, Upload};
use super::forward::{Delivered, Failure, Instead, SLOWEST_UPLOAD, first_part, respond};
use super::gate::PublicHost;
use super::record::Exchange;
use super::respond::RELAY_INBOX;
use super::room::Share;
use super::webhook::{place, verify};
use crate::Shared;
use crate::cause::Cause;
use crate::clock::{millis, unix_millis};
use crate::inbox::arrival::{self, Arrival};
use crate::inbox::records::{AcceptError, Accepted, New, Take};
use crate::inbox::spool::{Body, MAX_INLINE};
use crate::inbox::{Open, Settings};
use crate::judge::sender;
use crate::store::StoreError;
use crate::tunnels::Found;

/// A body that is still arriving after so long is an upload.
const UPLOAD: Duration = Duration::from_secs(1);

/// Keeps a request in the inbox of its tunnel and answers it, where the tunnel has one and the request is a webhook that may
/// be acknowledged for the app. None: it goes the way of all others.
pub(super) async fn keep(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    host: &PublicHost,
    upload: &mut Upload,
) -> Result<Option<Delivered>, Instead> {
    let is_webhook = matches!(exchange.head.method, Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let name = host.tunnel(shared).filter(|_| is_webhook && exchange.head.upgrade.is_none());
    let Some(inbox) = name.and_then(|name| shared.inboxes.get(name)) else { return Ok(None) };
    let settings = inbox.settings();
    gather(shared, exchange, &inbox, &settings, upload).await?;
    // Meanwhile its client may have come, and let in others than it did.
    let meter = exchange.pass.as_ref().map(|pass| pass.meter().clone());
    access::check(shared, exchange, &inbox.name, meter.as_deref(), upload)?;
    let Some(about) = about(shared, exchange, &settings, upload) else { return Ok(None) };
    let tunnel = match shared.registry.find(&inbox.name) {
        // The name is another token's by now.
        Found::Tunnel(tunnel) if tunnel.token != inbox.token => return Ok(None),
        Found::Tunnel(tunnel) => {
            verify(shared, exchange, &tunnel, upload).await?;
            Some(tunnel)
        }
        Found::Away(_) | Found::Nothing => None,
    };
    let provider = about.provider.as_deref();
    exchange.provider = provider.map(|provider| provider.id.clone());
    if about.is_ignored {
        return Ok(Some(acknowledge(&settings, provider, "ignored")));
    }
    if !inbox.admits() {
        let message = "The tunnel's inbox takes no more webhooks at the moment: its owner has set a limit.".to_owned();
        return Err(Failure { cause: Cause::TooManyRequests, message: Some(message) }.into());
    }
    let (body, room) = receive(shared, exchange, &inbox, &settings, upload).await?;
    let new = new(shared, exchange, &inbox, &settings, (body, upload.trailers().clone()), &about)?;
    // An upload that takes its time is no webhook whose sender counts from its first byte.
    let is_long = exchange.started.elapsed() > UPLOAD;
    let began = if is_long { Instant::now() } else { exchange.started };
    let (own, acknowledged) = (new.id, began + allowed(shared, &settings, provider));
    let arrival = arrival::take(shared, inbox, new, exchange.head.clone(), tunnel, room);
    // It is given up where its sender hangs up, and where we end.
    let Arrival { stored, mut answer, abandons: _abandons } = arrival.ok_or_else(|| too_slow("is behind"))?;
    let id = match timeout_at(acknowledged, stored).await {
        Ok(Ok(Ok(Accepted::Stored { .. }))) => own,
        Ok(Ok(Ok(Accepted::Newer { of, .. }))) => of,
        Ok(Ok(Ok(Accepted::Delivered { of }))) => {
            shared.metrics.inbox_acknowledged.inc();
            return Ok(Some(acknowledge(&settings, provider, &format!("delivered; id={of}"))));
        }
        Ok(Ok(Err(error))) => return Err(refused(error)),
        Err(_) => return Err(too_slow("takes too long").into()),
        Ok(Err(_)) => return Err(Cause::InboxFailed.into()),
    };
    let answered = match timeout_at(acknowledged, &mut answer).await {
        Ok(answered) => answered.ok(),
        Err(_) => {
            // From here on nobody is told that the sender has the app's answer; it may have been just now.
            answer.close();
            answer.try_recv().ok()
        }
    };
    match answered {
        Some(Ok((head, stream))) => respond(exchange, head, stream, false).map(Some),
        Some(Err(cause)) => Err(cause.into()),
        None => {
            shared.metrics.inbox_acknowledged.inc();
            Ok(Some(acknowledge(&settings, provider, &format!("stored; id={id}"))))
        }
    }
}

/// Waits for as much of the body as is looked at: who has sent it, and whether it may be acknowledged, that says as often as
/// the head.
async fn gather(
    shared: &Shared,
    exchange: &Exchange,
    inbox: &Open,
    settings: &Settings,
    upload: &mut Upload,
) -> Result<(), Instead> {
    first_part(upload).await.map_err(|error| error.cause())?;
    if !upload.has_ended() {
        let until = exchange.started + allowed(shared, settings, None);
        let gathered = upload.gather(MAX_INLINE, until, || place(shared, exchange, inbox.token)).await;
        gathered.map_err(|error| error.cause())?;
    }
    Ok(())
}

/// What a webhook is about.
struct About {
    provider: Option<Arc<Provider>>,
    event: Event,
    /// The owner wants none such.
    is_ignored: bool,
}

/// None for what nobody but the app may answer: senders that do what the answer says, and handshakes.
fn about(shared: &Shared, exchange: &Exchange, settings: &Settings, upload: &Upload) -> Option<About> {
    let (head, url) = (&exchange.head, public_url(&exchange.head));
    let is_whole = upload.has_ended();
    let provider = sender(&shared.providers, settings.provider.as_deref(), head, upload.held()).cloned();
    // Half a body is none that could be read.
    let body: &[u8] = if is_whole { upload.held() } else { &[] };
    let request = Request::new(&head.method, &url, &head.headers, body);
    if let Some(provider) = &provider {
        let handshake = || provider.handshake(&request, &Credentials::default(), Timestamp::now());
        if provider.on_deadline(&request) != OnDeadline::Ack || handshake().is_some() {
            return None;
        }
    }
    let event = provider.as_ref().map(|provider| provider.event(&request)).unwrap_or_default();
    let id = provider.as_ref().map(|provider| provider.id.as_str());
    let is_ignored = settings.inbox.ignores(id, &request, &event, is_whole);
    Some(About { provider, event, is_ignored })
}

/// By when the sender is answered, from when it began to count.
fn allowed(shared: &Shared, settings: &Settings, provider: Option<&Provider>) -> Duration {
    // Where the app may take longer than the sender waits, the sender is told in time all the same.
    let its = provider.and_then(Provider::answer_within).unwrap_or(shared.limits().inbox_ack);
    settings.timeout().map_or(its, |timeout| timeout.min(its))
}

/// Takes in the body, in memory while it is short, and with it the room that it takes there.
async fn receive(
    shared: &Arc<Shared>,
    exchange: &Exchange,
    inbox: &Open,
    settings: &Settings,
    upload: &mut Upload,
) -> Result<(Body, Option<Share>), Instead> {
    let most = settings.body(&shared.limits());
    let too_large = || {
        let message = Some(format!("The webhook's body has more than {most} bytes, which is what this inbox takes."));
        Failure { cause: Cause::BodyTooLarge, message }
    };
    if content_length(&exchange.head).is_some_and(|declared| declared > most) {
        return Err(too_large().into());
    }
    let mut share = upload.take_room();
    let mut incoming = shared.inboxes.records().spool().receive(ulid(&exchange.head.id));
    while let Some(piece) = upload.next().await.map_err(|error| error.cause())? {
        exchange.received(upload.received());
        if upload.received() > most {
            return Err(too_large().into());
        }
        let waited = exchange.started.elapsed();
        let is_slow = upload.received() < SLOWEST_UPLOAD.saturating_mul(waited.as_secs());
        if !upload.has_ended() && is_slow && waited > shared.limits().deadline {
            return Err(Cause::BodyTimeout.into());
        }
        let after = incoming.size() + piece.len() as u64;
        if incoming.is_in_memory() {
            // Beyond what every request may have, there is room for so many only. All others go to the disk at once.
            if share.is_none() && !upload.has_ended() {
                share = place(shared, exchange, inbox.token);
            }
            let held = usize::try_from(after).ok().filter(|after| *after <= MAX_INLINE);
            let is_free = upload.has_ended() && after <= MAX_KEPT as u64;
            let fits = held.is_some_and(|held| is_free || share.as_mut().is_some_and(|share| share.grow(held)));
            if !fits {
                let size = content_length(&exchange.head).unwrap_or(after);
                let quotas = settings.quotas(&shared.limits());
                let room = shared.inboxes.records().has_room(&inbox.name, inbox.token, size, quotas);
                room.await.map_err(refused)?;
                incoming.spill().await.map_err(|error| failed(&error))?;
                share = None;
            }
        }
        incoming.push(&piece).await.map_err(|error| failed(&error))?;
    }
    exchange.received(upload.received());
    Ok((incoming.finish().await.map_err(|error| failed(&error))?, share))
}

/// The disk does not keep up with what comes.
fn too_slow(how: &str) -> Failure {
    let message = format!("The disk of the tunnel's inbox {how}, so that the webhook was not accepted.");
    Failure { cause: Cause::InboxFailed, message: Some(message) }
}

fn failed(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::StorageFull || error.kind() == std::io::ErrorKind::QuotaExceeded {
        return Cause::InboxFull.into();
    }
    tracing::error!(%error, "the body of a webhook could not be written");
    Cause::InboxFailed.into()
}

/// What is stored of it.
fn new(
    shared: &Shared,
    exchange: &Exchange,
    inbox: &Open,
    settings: &Settings,
    (body, trailers): (Body, Bytes),
    about: &About,
) -> Result<New, Failure> {
    let head = exchange.head.to_bytes().map_err(|error| Failure {
        cause: Cause::BadRequest,
        message: Some(format!("The request's head cannot be kept: {error}.")),
    })?;
    let dedupe = millis(settings.inbox.dedupe());
    let limits = &shared.limits();
    Ok(New {
        id: ulid(&exchange.head.id),
        inbox: inbox.name.clone(),
        token: inbox.token,
        received_at: unix_millis(),
        since: shared.inboxes.steady(),
        take: Take::No,
        head,
        trailers,
        body,
        provider: exchange.provider.clone(),
        event_id: about.event.id.clone(),
        event_type: about.event.kind.clone(),
        verdict: Judgement::told(&exchange.head.headers).map(|judgement| judgement.verdict),
        dedupe_since: (dedupe > 0).then(|| shared.inboxes.steady().saturating_sub(dedupe)),
        abandoned: CancellationToken::new(),
        quotas: settings.quotas(limits),
    })
}

/// Why it was not accepted.
fn refused(error: AcceptError) -> Instead {
    match error {
        // It was closed just now, or its name changed hands.
        AcceptError::Closed { .. } => Cause::ClientOffline.into(),
        // Nobody hears it.
        AcceptError::Abandoned => Cause::InboxFailed.into(),
        full @ AcceptError::Full { .. } => {
            Failure { cause: Cause::InboxFull, message: Some(crate::sentence(&full)) }.into()
        }
        AcceptError::Store(StoreError::Full) => Cause::InboxFull.into(),
        AcceptError::Store(error) => {
            tracing::error!(%error, "a webhook was not accepted");
            Cause::InboxFailed.into()
        }
    }
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
