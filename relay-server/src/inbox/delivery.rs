//! How a webhook gets from its inbox to the app: attempt after attempt, until one is answered or it is a dead letter.
//!
//! ```text
//!   due ──▶ client there? ──▶ sent ──▶ 2xx: delivered
//!    ▲                          │
//!    └── backoff ◀── no answer, or another ──▶ dead, where attempts or age are used up
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::HeaderValue;
use http::header::RETRY_AFTER;
use relay_protocol::frame::Reset;
use relay_protocol::inbox::{Delivery, RELAY_DELIVERY};
use relay_protocol::link::Stream;
use relay_protocol::message::{Payload, RequestHead, ResponseHead};
use relay_protocol::mux::{Item, StreamError};
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::records::{self, Due, Outcome, StoredBody};
use super::{Open, Settings, millis, now};
use crate::Shared;
use crate::edge::cause::Cause;
use crate::session::registry::Tunnel;
use crate::store::StoreError;

/// How often a client that is away is looked for, beside being told of it.
const LOOK: Duration = Duration::from_secs(60);
/// When what could not be sent is looked at again.
const UNSENT: Duration = Duration::from_millis(100);
/// How long to wait for records that cannot be read or written.
const BROKEN: Duration = Duration::from_secs(5);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The longest wait that an app may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How long the rest of an answer is read that nobody waits for, and how much of it.
const REST: (Duration, usize) = (Duration::from_secs(5), 1 << 20);
/// Attempts that are begun with one look at the records.
const PAGE: usize = 32;
/// Bytes of a long body that are read at once.
const PIECE: usize = 64 * 1024;

/// A webhook, whole.
#[derive(Debug)]
pub(crate) struct Webhook {
    pub(crate) head: RequestHead,
    pub(crate) body: Source,
    /// As they cross the wire.
    pub(crate) trailers: Bytes,
}

/// The body of a webhook, wherever it is.
#[derive(Debug)]
pub(crate) enum Source {
    Bytes(Bytes),
    File(tokio::fs::File),
}

/// An answer of the app: its head, and where its body comes from.
pub(crate) type Answer = (ResponseHead, Stream);

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// The client has not seen it.
    Unsent,
    /// It was sent, and nobody knows what became of it, or the client has said why nothing did.
    Failed(Cause),
}

/// Delivers what is in an inbox until it is closed or the relay stops.
pub(crate) async fn run(shared: Arc<Shared>, inbox: Arc<Open>) {
    let mut under_way = FuturesUnordered::new();
    let mut pace = Instant::now();
    loop {
        let settings = inbox.settings();
        let most = if settings.inbox.ordered { 1 } else { usize::from(settings.inbox.concurrency) };
        let room = most.saturating_sub(under_way.len()).min(PAGE);
        let next = async {
            if room == 0 {
                return std::future::pending().await;
            }
            let at = shared.inboxes.records().next_due(&inbox.name, settings.inbox.ordered).await?;
            let wait = at.map_or(LOOK, |at| Duration::from_millis(u64::try_from(at - now()).unwrap_or(0)));
            sleep(wait.min(LOOK)).await;
            sleep_until(pace).await;
            Ok::<_, StoreError>(online(&shared, &inbox).await)
        };
        let found = tokio::select! {
            biased;
            () = inbox.closed.cancelled() => return,
            () = shared.stopping.cancelled() => break,
            Some(()) = under_way.next() => continue,
            () = inbox.changed.notified() => continue,
            found = next => found,
        };
        let began = match found {
            Ok(tunnel) => {
                let due = shared.inboxes.records().due(&inbox.name, now(), settings.inbox.ordered, room).await;
                due.map(|due| (tunnel, due))
            }
            Err(error) => Err(error),
        };
        match began {
            Ok((tunnel, due)) => {
                pace =
                    pace.max(Instant::now()) + Duration::from_secs(due.len() as u64) / u32::from(settings.inbox.rate);
                under_way.extend(due.into_iter().map(|due| again(&shared, &inbox, tunnel.clone(), due)));
            }
            Err(error) => {
                tracing::error!(name = %inbox.name, %error, "an inbox cannot be read");
                let _ = shared.stopping.run_until_cancelled(sleep(BROKEN)).await;
            }
        }
    }
    // No more are begun, and these may end.
    while shared.closing.run_until_cancelled(under_way.next()).await.flatten().is_some() {}
}

/// The tunnel of that name, once its client is there.
async fn online(shared: &Shared, inbox: &Open) -> Arc<Tunnel> {
    loop {
        // Now and then, because a name that is away can be forgotten, and is another slot then.
        let later = Instant::now() + LOOK;
        match shared.registry.wait(&inbox.name, later, u64::MAX).await {
            Some(tunnel) if tunnel.token == inbox.token => return tunnel,
            // The name is another token's by now, and the inbox is about to be closed.
            Some(_) => return std::future::pending().await,
            None => shared.registry.expect(&inbox.name),
        }
    }
}

/// How long an app may take to answer what nobody waits for.
fn within(shared: &Shared, settings: &Settings) -> Duration {
    settings.timeout().map_or(shared.limits.deadline, |timeout| timeout.max(shared.limits.deadline))
}

/// Delivers what had to wait.
async fn again(shared: &Arc<Shared>, inbox: &Arc<Open>, tunnel: Arc<Tunnel>, due: Due) {
    let records = shared.inboxes.records();
    let stored = match records.load(due.seq).await {
        Ok(Some(stored)) => stored,
        Ok(None) => return,
        Err(error) => {
            tracing::error!(name = %inbox.name, id = %due.id, %error, "a webhook cannot be read now");
            return sleep(BROKEN).await;
        }
    };
    let source = match stored.body {
        StoredBody::Inline(bytes) => Ok(Source::Bytes(bytes)),
        StoredBody::Spooled => records.spool().open(due.id).await.map(Source::File),
        StoredBody::Gone => Err(std::io::ErrorKind::NotFound.into()),
    };
    let whole = RequestHead::from_bytes(&stored.row.head).map_err(|error| error.to_string());
    let (mut head, body) = match (whole, source) {
        (Ok(head), Ok(source)) => (head, source),
        (Err(error), _) => return lost(shared, due, error).await,
        (_, Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            return lost(shared, due, error.to_string()).await;
        }
        // Out of descriptors, perhaps: it is there.
        (_, Err(error)) => {
            tracing::error!(id = %due.id, %error, "the body of a webhook cannot be read now");
            return sleep(BROKEN).await;
        }
    };
    let age_s = u64::try_from(now() - stored.row.received_at).unwrap_or(0) / 1000;
    let mark = Delivery { id: due.id.to_string(), attempt: due.attempts + 1, age_s };
    head.headers.extend(HeaderValue::try_from(mark.to_string()).ok().map(|mark| (RELAY_DELIVERY, mark)));
    let webhook = Webhook { head, body, trailers: stored.trailers };
    attempt(shared, inbox, &tunnel, due, webhook, None).await;
}

/// A webhook that cannot be read any more, of which a person must hear.
async fn lost(shared: &Shared, due: Due, error: String) {
    let attempt = records::Attempt { at: now(), duration_ms: 0, status: None, error: Some(error.clone()) };
    let reason = format!("it cannot be read from the disk: {error}");
    note(shared, due, attempt, Outcome::Dead { reason }).await;
}

/// Notes an attempt. Nobody makes another one before that is done: what was delivered would come again and again while the
/// disk is full.
async fn note(shared: &Shared, due: Due, attempt: records::Attempt, outcome: Outcome) {
    while let Err(error) = shared.inboxes.records().attempted(due.seq, attempt.clone(), outcome.clone()).await {
        tracing::error!(id = %due.id, %error, "what became of a webhook could not be noted");
        if shared.closing.run_until_cancelled(sleep(BROKEN)).await.is_none() {
            break;
        }
    }
}

/// Sends a webhook once, and notes what became of it. Where `wanted` is still waiting for the answer, it gets it, and
/// whatever it is (but 5xx, where those are tried again) is what the sender is told.
pub(crate) async fn attempt(
    shared: &Arc<Shared>,
    inbox: &Arc<Open>,
    tunnel: &Tunnel,
    due: Due,
    webhook: Webhook,
    wanted: Option<oneshot::Sender<Answer>>,
) {
    let settings = inbox.settings();
    let (at, began) = (now(), Instant::now());
    let within = within(shared, &settings);
    let sent = tokio::select! {
        sent = send(shared, tunnel, webhook, within) => sent,
        // Whether the app has had it is not known; it gets it again.
        () = shared.closing.cancelled() => Err(Unanswered::Unsent),
    };
    let noted = |status, error: Option<String>| {
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        records::Attempt { at, duration_ms, status, error }
    };
    // What is left of an answer that nobody waits for.
    let mut unread = None;
    let (attempt, outcome) = match sent {
        Err(Unanswered::Unsent) => {
            sleep(UNSENT).await;
            drop(due);
            return inbox.wake();
        }
        Err(Unanswered::Failed(cause)) => {
            (noted(None, Some(cause.code().to_owned())), failed(shared, &settings, &due, cause.message(), None))
        }
        Ok((head, stream)) => {
            let (status, retry_after) = (head.status, retry_after(&head));
            let attempt = noted(Some(status.as_u16()), None);
            let is_answer = !(status.is_server_error() && settings.inbox.retry_5xx);
            unread = match wanted.filter(|_| is_answer) {
                // Unless the sender had its acknowledgement just now.
                Some(wanted) => wanted.send((head, stream)).err().map(|(_, stream)| stream),
                None => Some(stream),
            };
            if unread.is_none() || status.is_success() {
                (attempt, Outcome::Delivered)
            } else {
                (
                    attempt,
                    failed(shared, &settings, &due, &format!("The app answered {}.", status.as_u16()), retry_after),
                )
            }
        }
    };
    let is_over = matches!(outcome, Outcome::Delivered);
    note(shared, due, attempt, outcome).await;
    // The next in order may come, or there is a new time to wait for.
    if settings.inbox.ordered || !is_over {
        inbox.wake();
    }
    if let Some(stream) = unread {
        rest(&stream).await;
    }
}

/// What becomes of a webhook whose attempt has failed.
fn failed(shared: &Shared, settings: &Settings, due: &Due, why: &str, retry_after: Option<Duration>) -> Outcome {
    let tries = due.tries + 1;
    let age = now() - due.since;
    if tries >= settings.inbox.attempts {
        return Outcome::Dead { reason: format!("{tries} attempts have failed. The last one: {why}") };
    }
    if age >= millis(Duration::from_secs(settings.inbox.age_s)) {
        return Outcome::Dead { reason: format!("It is too old to be tried again. The last attempt: {why}") };
    }
    let wait = shared.limits.inbox_retry.saturating_mul(1 << (tries - 1).min(20)).min(LONGEST_WAIT);
    // A fifth more or less, so that what failed together does not come together again.
    let wait = wait.mul_f64(0.8 + 0.4 * fastrand::f64());
    let wait = retry_after.map_or(wait, |asked| wait.max(asked.min(LONGEST_RETRY_AFTER)));
    Outcome::Again { at: now() + millis(wait) }
}

/// Seconds that an app asks for (RFC 9110, section 10.2.3); dates are not read.
fn retry_after(head: &ResponseHead) -> Option<Duration> {
    let (_, value) = head.headers.iter().find(|(name, _)| *name == RETRY_AFTER)?;
    value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Sends a request, and waits for the head of its answer.
async fn send(shared: &Arc<Shared>, tunnel: &Tunnel, webhook: Webhook, within: Duration) -> Result<Answer, Unanswered> {
    let invalid = |_| Unanswered::Failed(Cause::UpstreamInvalid);
    let Webhook { mut head, body, trailers } = webhook;
    head.tunnel = tunnel.number;
    head.elapsed_ms = 0;
    head.deadline_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
    let head = head.to_bytes().map_err(invalid)?;
    let (mut first, file) = match body {
        Source::Bytes(bytes) => (bytes, None),
        Source::File(file) => (Bytes::new(), Some(file)),
    };
    let whole = file.is_none() && trailers.is_empty();
    // Nobody has seen what was not opened.
    let stream = tunnel.link.open(head, &mut first, whole).map_err(|_| Unanswered::Unsent)?;
    if !whole || !first.is_empty() {
        // It goes on beside the answer: many apps answer before they have read all.
        let (stream, closing) = (stream.clone(), shared.closing.clone());
        let upload = async move {
            if timeout(within, upload(&stream, first, file, trailers)).await.is_err() {
                stream.reset(Reset::Deadline);
            }
        };
        shared.spawn(async move { closing.run_until_cancelled(upload).await.unwrap_or_default() });
    }
    let answer = async {
        loop {
            match stream.recv().await {
                Ok(Some(Item::Head { head, interim: false })) => {
                    return ResponseHead::from_bytes(&head).map_err(invalid);
                }
                Ok(Some(Item::Head { interim: true, .. })) => {}
                Ok(_) => return Err(Unanswered::Failed(Cause::UpstreamInvalid)),
                Err(StreamError::SessionEnded) if !stream.is_seen() => return Err(Unanswered::Unsent),
                Err(error) => return Err(Unanswered::Failed(Cause::from(error))),
            }
        }
    };
    let late = async {
        sleep(within).await;
        stream.reset(Reset::Deadline);
        Err(Unanswered::Failed(Cause::Deadline))
    };
    let head = tokio::select! {
        biased;
        head = answer => head?,
        late = late => late?,
    };
    Ok((head, stream))
}

async fn upload(stream: &Stream, first: Bytes, file: Option<tokio::fs::File>, trailers: Bytes) -> std::io::Result<()> {
    // The answer says why no more of it is wanted.
    let gone = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    if !first.is_empty() {
        stream.send(first).await.map_err(gone)?;
    }
    if let Some(mut file) = file {
        loop {
            let mut piece = bytes::BytesMut::with_capacity(PIECE);
            if file.read_buf(&mut piece).await.inspect_err(|_| stream.reset(Reset::Cancelled))? == 0 {
                break;
            }
            stream.send(piece.freeze()).await.map_err(gone)?;
        }
    }
    stream.finish(trailers).map_err(gone)
}

/// Reads on what nobody waits for, so that the app is not cut off.
async fn rest(stream: &Stream) {
    let (time, most) = REST;
    let read = async {
        let mut bytes = 0;
        while let Ok(Some(Item::Data(piece))) = stream.recv().await {
            bytes += piece.len();
            if bytes > most {
                break;
            }
        }
    };
    let _ = timeout(time, read).await;
}
