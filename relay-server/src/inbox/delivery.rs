//! How a webhook gets from its inbox to the app: attempt after attempt, until one is answered or it is a dead letter.
//!
//! ```text
//!   due ──▶ client there? ──▶ signed rightly? ──▶ sent ──▶ 2xx: delivered
//!    ▲                                              │
//!    └────────────────── backoff ◀── no answer, or another ──▶ dead, where attempts or age are used up
//! ```

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::HeaderValue;
use http::header::RETRY_AFTER;
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use relay_protocol::inbox::{Delivery, RELAY_DELIVERY};
use relay_protocol::message::{Payload, RequestHead, ResponseHead};
use relay_protocol::webhook::{Judgement, Verdict, Verify};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::attempt::{Answer, Source, Unanswered, Webhook, rest, send};
use super::records::{self, Due, Outcome, Stored, StoredBody};
use super::{Open, Settings};
use crate::Shared;
use crate::cause::Cause;
use crate::clock::{millis, unix_millis};
use crate::judge::{Judged, judge, longest, sender, unjudged, withheld};
use crate::store::StoreError;
use crate::store::writer::Access;
use crate::tunnels::Tunnel;

/// How often a client that is away is looked for, beside being told of it; and what is due, whatever the clock does.
const LOOK: Duration = Duration::from_secs(60);
/// When what could not be sent is looked at again: where the client has just gone, and where it has too much to do.
const UNSENT: Duration = Duration::from_millis(100);
const BUSY: Duration = Duration::from_secs(1);
/// How long to wait for what cannot be read or written.
pub(super) const BROKEN: Duration = Duration::from_secs(5);
/// The longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The longest wait that an app may ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Attempts that are begun with one look at the records.
const PAGE: usize = 32;

/// Delivers what is in an inbox until it is closed or the relay stops.
pub(super) async fn run(shared: &Arc<Shared>, inbox: &Arc<Open>) {
    // Each attempt is a task of its own, which ends where its inbox is closed, too.
    let mut under_way = FuturesUnordered::new();
    let mut pace = Instant::now();
    loop {
        let settings = inbox.settings();
        let most = if settings.inbox.ordered { 1 } else { usize::from(settings.inbox.concurrency) };
        let most = most.min(shared.limits().inbox_live);
        let room = most.saturating_sub(under_way.len()).min(PAGE);
        // Not among what is selected from: with every change it would be begun anew.
        let next = match room {
            0 => Ok(None),
            _ => shared.inboxes.records().next_due(&inbox.name, settings.inbox.ordered).await,
        };
        let next = async {
            shared.inboxes.in_charge().await;
            let wait = next?
                .map_or(LOOK, |at| Duration::from_millis(u64::try_from(at - shared.inboxes.steady()).unwrap_or(0)));
            sleep(wait.min(LOOK)).await;
            sleep_until(pace).await;
            Ok::<_, StoreError>(online(shared, inbox).await)
        };
        let found = tokio::select! {
            biased;
            () = inbox.closed.cancelled() => return,
            () = shared.stopping.cancelled() => break,
            Some(_) = under_way.next() => continue,
            () = inbox.changed.notified() => continue,
            found = next => found,
        };
        let began = match found {
            Ok(tunnel) => {
                let due = shared
                    .inboxes
                    .records()
                    .due(&inbox.name, shared.inboxes.steady(), settings.inbox.ordered, room)
                    .await;
                due.map(|due| (tunnel, due))
            }
            Err(error) => Err(error),
        };
        match began {
            Ok((tunnel, due)) => {
                let time = Duration::from_secs(due.len() as u64) / u32::from(settings.inbox.rate);
                pace = pace.max(Instant::now()) + time;
                under_way.extend(due.into_iter().map(|due| {
                    let (shared, inbox, tunnel) = (shared.clone(), inbox.clone(), tunnel.clone());
                    let owner = shared.clone();
                    owner.spawn(async move { again(&shared, &inbox, &tunnel, due).await })
                }));
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
            Some(_) => return pending().await,
            None => shared.registry.expect(&inbox.name),
        }
    }
}

/// How long an app may take to answer what nobody waits for.
fn within(shared: &Shared, settings: &Settings) -> Duration {
    let deadline = shared.limits().deadline;
    settings.timeout().map_or(deadline, |timeout| timeout.max(deadline))
}

/// Delivers what had to wait.
async fn again(shared: &Arc<Shared>, inbox: &Arc<Open>, tunnel: &Arc<Tunnel>, due: Due) {
    match load(shared, tunnel, &due).await {
        Ok(Loaded::Whole(webhook)) => attempt(shared, inbox, tunnel, due, *webhook, None).await,
        Ok(Loaded::Later(error)) => {
            tracing::warn!(id = %due.id, %error, "a webhook cannot be read now");
            put_back(shared, inbox, due, BROKEN).await;
        }
        Ok(Loaded::Lost { code, reason }) => {
            let attempt = records::Attempt { at: unix_millis(), duration_ms: 0, status: None, error: Some(code) };
            note(shared, due, attempt, Outcome::Dead { reason }, Access::Write).await;
            inbox.wake();
        }
        Ok(Loaded::Gone) => {}
        Err(error) => {
            tracing::error!(name = %inbox.name, id = %due.id, %error, "a webhook cannot be read now");
            put_back(shared, inbox, due, BROKEN).await;
        }
    }
}

/// A webhook as the records have it.
enum Loaded {
    Whole(Box<Webhook>),
    /// It was dropped meanwhile.
    Gone,
    /// It is there, and cannot be read at the moment: out of descriptors, perhaps.
    Later(std::io::Error),
    /// It can never be delivered.
    Lost {
        code: String,
        reason: String,
    },
}

/// What is to be sent: as it came, with its mark, and with the verdict on its signature where that is the relay's to judge.
async fn load(shared: &Arc<Shared>, tunnel: &Arc<Tunnel>, due: &Due) -> Result<Loaded, StoreError> {
    let unreadable = |reason: String| {
        let reason = format!("It cannot be read from the disk: {reason}.");
        Ok(Loaded::Lost { code: "unreadable".to_owned(), reason })
    };
    let records = shared.inboxes.records();
    let Some(stored) = records.load(due.seq).await? else { return Ok(Loaded::Gone) };
    let (head, received_at) = stored.sent();
    let head = RequestHead::from_bytes(head);
    let Stored { row, trailers, body, .. } = stored;
    let mut head = match head {
        Ok(head) => head,
        Err(error) => return unreadable(error.to_string()),
    };
    let open = async || records.spool().open(due.id).await;
    let body = match body {
        StoredBody::Inline(bytes) => Ok(Source::Bytes(bytes)),
        StoredBody::Spooled => open().await.map(Source::File),
        StoredBody::Gone => Err(std::io::ErrorKind::NotFound.into()),
    };
    let mut body = match body {
        Ok(body) => body,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return unreadable(error.to_string()),
        Err(error) => return Ok(Loaded::Later(error)),
    };
    if tunnel.asked.webhooks.verify != Verify::Off && Judgement::told(&head.headers).is_none() {
        let at = Timestamp::from_millisecond(received_at).unwrap_or_else(|_| Timestamp::now());
        let judgement = match judged(shared, tunnel, &head, &mut body, row.body_size, at).await {
            Ok(judgement) => judgement,
            Err(error) => return Ok(Loaded::Later(error)),
        };
        if judgement.verdict != Verdict::Valid && tunnel.asked.webhooks.verify == Verify::Reject {
            let (code, reason) = (Cause::SignatureInvalid.code(), judgement.reason.clone());
            tunnel.withhold(shared, withheld(&head, row.provider, code, &judgement));
            let reason = format!("It is not signed as the tunnel wants it: {reason}.");
            return Ok(Loaded::Lost { code: code.to_owned(), reason });
        }
        judgement.tell(&mut head.headers);
    }
    let age_s = u64::try_from(unix_millis() - received_at).unwrap_or(0) / 1000;
    let mark = Delivery { id: due.id.to_string(), attempt: due.attempts + 1, age_s };
    head.headers.extend(HeaderValue::try_from(mark.to_string()).ok().map(|mark| (RELAY_DELIVERY, mark)));
    Ok(Loaded::Whole(Box::new(Webhook { head, body, trailers })))
}

/// What the relay finds of the signature of a webhook that came while its client was away, with that one's secrets, and as of
/// the moment at which it came.
async fn judged(
    shared: &Arc<Shared>,
    tunnel: &Arc<Tunnel>,
    head: &RequestHead,
    body: &mut Source,
    size: u64,
    at: Timestamp,
) -> std::io::Result<Judgement> {
    let asked = &tunnel.asked.webhooks;
    let provider = sender(&shared.providers, asked.provider.as_deref(), head, &[]);
    let most = longest(&shared.limits(), provider.map(AsRef::as_ref));
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > most {
        return Ok(unjudged(format!("a body of more than {most} bytes is not judged")));
    }
    let judged = match body {
        Source::Bytes(bytes) => judge(shared, head, &tunnel.asked, bytes, at).await,
        Source::File(file) => {
            let room = shared.judging.share(tunnel.token, None);
            let room = room.and_then(|mut room| room.grow(size).then_some(room));
            let room = room.ok_or_else(|| std::io::Error::other("too many are judged at the moment"))?;
            let mut bytes = Vec::with_capacity(size);
            file.read_to_end(&mut bytes).await?;
            let judged = judge(shared, head, &tunnel.asked, &bytes.into(), at).await;
            drop(room);
            // It is sent from the disk, as if nobody had looked.
            file.rewind().await?;
            judged
        }
    };
    match judged {
        Some(Judged::Signed(_, judgement)) => Ok(judgement),
        Some(Judged::Handshake(_)) => Ok(unjudged("it is a handshake, for whose answer nobody waits any more")),
        None => Err(std::io::Error::other("its signature could not be judged")),
    }
}

/// Lets a webhook that was not sent wait for a moment: that is no attempt.
pub(super) async fn put_back(shared: &Shared, inbox: &Open, due: Due, wait: Duration) {
    shared.metrics.attempt(None);
    let _ = shared.closing.run_until_cancelled(sleep(wait)).await;
    drop(due);
    inbox.wake();
}

/// Notes an attempt. Nobody makes another one before that is done: what was delivered would come again and again while the
/// disk is full.
async fn note(shared: &Shared, due: Due, attempt: records::Attempt, outcome: Outcome, access: Access) {
    shared.metrics.attempt(Some(&outcome));
    let records = shared.inboxes.records();
    while let Err(error) = records.attempted(due.seq, attempt.clone(), outcome.clone(), access).await {
        tracing::error!(id = %due.id, %error, "what became of a webhook could not be noted");
        if shared.closing.run_until_cancelled(sleep(BROKEN)).await.is_none() {
            break;
        }
    }
}

/// Sends a webhook once, and notes what became of it. Where `wanted` is still waiting for the answer, it gets it, and
/// whatever it is (but 5xx, where those are tried again) is what the sender is told.
pub(super) async fn attempt(
    shared: &Arc<Shared>,
    inbox: &Arc<Open>,
    tunnel: &Tunnel,
    due: Due,
    webhook: Webhook,
    wanted: Option<oneshot::Sender<Result<Answer, Cause>>>,
) {
    let settings = inbox.settings();
    let is_first = wanted.is_some();
    let (at, began) = (unix_millis(), Instant::now());
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
        Err(Unanswered::Unsent | Unanswered::Busy) => {
            let wait = if matches!(sent, Err(Unanswered::Busy)) { BUSY } else { UNSENT };
            drop(wanted);
            return put_back(shared, inbox, due, wait).await;
        }
        Err(Unanswered::Refused(cause)) => {
            let dead = Outcome::Dead { reason: cause.message().to_owned() };
            let is_told = wanted.is_some_and(|wanted| wanted.send(Err(cause)).is_ok());
            let outcome = if is_told { Outcome::Answered(Box::new(dead)) } else { dead };
            (noted(None, Some(cause.code().to_owned())), outcome)
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
                Some(wanted) => wanted.send(Ok((head, stream))).err().and_then(Result::ok).map(|(_, stream)| stream),
                None => Some(stream),
            };
            let failed =
                || failed(shared, &settings, &due, &format!("The app answered {}.", status.as_u16()), retry_after);
            let outcome = match unread.is_none() {
                _ if status.is_success() => Outcome::Delivered,
                true => Outcome::Answered(Box::new(failed())),
                false => failed(),
            };
            (attempt, outcome)
        }
    };
    let is_over = matches!(outcome, Outcome::Delivered);
    // Nothing comes after a first attempt that has ended it; those who come at the same time need the disk more.
    let is_last = is_first && is_over && !settings.inbox.ordered;
    let access = if is_last { Access::Deferred } else { Access::Write };
    note(shared, due, attempt, outcome, access).await;
    // The next in order may come, or there is a new time to wait for.
    if settings.inbox.ordered || !is_over {
        inbox.wake();
    }
    if let Some(stream) = unread {
        // Not here, where the next one would wait for it.
        let closing = shared.closing.clone();
        shared.spawn(async move { closing.run_until_cancelled(rest(stream)).await.unwrap_or_default() });
    }
}

/// What becomes of a webhook whose attempt has failed.
fn failed(shared: &Shared, settings: &Settings, due: &Due, why: &str, retry_after: Option<Duration>) -> Outcome {
    let tries = due.tries + 1;
    let now = shared.inboxes.steady();
    let age = now - due.since;
    if tries >= settings.inbox.attempts {
        return Outcome::Dead { reason: format!("{tries} attempts have failed. The last one: {why}") };
    }
    if age >= millis(Duration::from_secs(settings.inbox.age_s)) {
        return Outcome::Dead { reason: format!("It is too old to be tried again. The last attempt: {why}") };
    }
    let wait = shared.limits().inbox_retry.saturating_mul(1 << (tries - 1).min(20)).min(LONGEST_WAIT);
    // A fifth more or less, so that what failed together does not come together again.
    let wait = wait.mul_f64(0.8 + 0.4 * fastrand::f64());
    let wait = retry_after.map_or(wait, |asked| wait.max(asked.min(LONGEST_RETRY_AFTER)));
    Outcome::Again { at: now + millis(wait) }
}

/// The wait that an app asks for, in seconds or by a date (RFC 9110, section 10.2.3).
fn retry_after(head: &ResponseHead) -> Option<Duration> {
    let (_, value) = head.headers.iter().find(|(name, _)| *name == RETRY_AFTER)?;
    let value = value.to_str().ok()?.trim();
    let seconds = value.parse().ok().map(Duration::from_secs);
    let until = || Some(rfc2822::parse(value).ok()?.timestamp().duration_since(Timestamp::now()));
    seconds.or_else(|| Duration::try_from(until()?).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http::StatusCode;

    use super::*;

    #[test]
    fn an_app_asks_for_a_wait_in_seconds_or_by_a_date() {
        let asked = |value: &str| {
            let headers = vec![(RETRY_AFTER, HeaderValue::try_from(value).unwrap())];
            retry_after(&ResponseHead { status: StatusCode::SERVICE_UNAVAILABLE, headers })
        };
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), None, "it has passed");
        let date = asked("Fri, 31 Dec 2100 23:59:59 GMT").unwrap();
        assert!(date > LONGEST_RETRY_AFTER);
        assert_eq!(asked("soon"), None);
    }
}
