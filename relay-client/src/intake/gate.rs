//! What stands before a service: who may come in, and who is answered at the gate.
//!
//! ```text
//!   request ── a handshake ──▶ answered here, where that was asked for
//!      ├── reject: held until it is whole ── not signed rightly ──▶ refused with 401
//!      └── warn: passes ──▶ its service ── and is judged behind it
//! ```
//!
//! Nothing is held that need not be, and what is held has a bound: of each body, and of all of them together.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use relay_protocol::exchange::content_length;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{Payload as _, RequestHead, ResponseHead};
use relay_protocol::mux::StreamError;
use relay_protocol::webhook::{Credentials, Judgement, Provider, Reply, Request, Verdict, Verify};
use serde::Deserialize as _;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error as ValueError, StrDeserializer};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::routes::To;
use super::{WebhookOptions, request_of};
use crate::capture::text;
use crate::event::Handshake;
use crate::keys::Keys;
use crate::upstream::{Ending, RequestBody, expects_continue, send_continue};
use crate::value::VerifyAt;

/// The longest body that is judged. Its provider may send less, and then that is the most.
const BODY_MAX: usize = 10 << 20;

/// The longest body of what may be a handshake.
const HANDSHAKE_MAX: u64 = 64 << 10;

/// What all bodies together may take that are kept to be judged, in KiB.
const ROOM: usize = 64 << 10;

/// How many bad signatures are explained in a second: each costs some thirty times what judging does.
const EXPLAINED: u32 = 5;

/// What the relay has judged.
const RELAY_VERDICT: HeaderName = HeaderName::from_static("relay-verdict");

/// Why.
const RELAY_VERDICT_REASON: HeaderName = HeaderName::from_static("relay-verdict-reason");

/// The gate of a tunnel.
#[derive(Debug)]
pub(super) struct Gate {
    verify: Verify,
    /// The relay judges, and says what came of it.
    at_edge: bool,
    handshake: bool,
    credentials: Credentials,
    /// The provider was named, so that nobody else's requests are meant.
    is_pinned: bool,
    keys: Keys,
    room: Arc<Semaphore>,
    /// Since when, and how many of that second.
    explained: Mutex<(Instant, u32)>,
}

/// What was found out about a request at the gate.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// What its signature is worth; none where nobody wanted to know, or nobody could.
    pub(crate) judgement: Option<Judgement>,
    /// What became of it as a handshake, where it is one.
    pub(crate) handshake: Option<Handshake>,
    /// What a person should know although the service has answered.
    pub(crate) note: Option<String>,
}

impl Findings {
    /// What is wrong with its signature, for a person.
    pub(super) fn complaint(&self) -> Option<String> {
        let judgement = self.judgement.as_ref().filter(|judgement| judgement.verdict != Verdict::Valid)?;
        Some(format!("{}: {}", judgement.verdict.as_str().replace('_', " "), judgement.reason))
    }
}

/// A request as it stands at the gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    pub(super) stream: &'a Stream,
    pub(super) head: &'a RequestHead,
    pub(super) body: &'a RequestBody,
    /// When it came.
    pub(super) at: Timestamp,
}

impl Gate {
    pub(super) fn new(webhooks: &WebhookOptions) -> Self {
        Self {
            verify: if webhooks.verify_at == VerifyAt::Client { webhooks.verify } else { Verify::Off },
            at_edge: webhooks.verify_at == VerifyAt::Edge,
            handshake: webhooks.handshake,
            credentials: webhooks.credentials.clone(),
            is_pinned: webhooks.provider.is_some(),
            keys: Keys::default(),
            room: Arc::new(Semaphore::new(ROOM)),
            explained: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Lets a request in, or ends it here. `sender` says who has sent it, by what is there of it.
    ///
    /// # Errors
    /// How it has ended.
    pub(super) async fn admit(
        &self,
        caller: Caller<'_>,
        sender: impl Fn() -> Option<Arc<Provider>>,
        found: &mut Findings,
    ) -> Result<(), Ending> {
        let Caller { stream, head, body, .. } = caller;
        let rejects = self.verify == Verify::Reject;
        let may_be_handshake = self.handshake && head.upgrade.is_none() && is_short(head, body);
        if !rejects && !may_be_handshake {
            if self.verify == Verify::Warn && body.whole().is_none() {
                let room = self.room_for(head, BODY_MAX);
                if let Ok(room) = self.room.clone().try_acquire_many_owned(room) {
                    body.keep_up_to(BODY_MAX, room);
                }
            }
            return Ok(());
        }
        let limit = sender().and_then(|sender| sender.max_body).and_then(|max| usize::try_from(max).ok());
        let whole = match self.hold(caller, limit.map_or(BODY_MAX, |limit| limit.min(BODY_MAX))).await {
            Ok(Some(whole)) => whole,
            Ok(None) => {
                let detail = "its body is too large to be judged before the service sees it".to_owned();
                return Err(refused(stream, Reset::TooLarge, Some(detail)));
            }
            Err(error) => return Err(refused(stream, reset_of(error), None)),
        };
        let sender = sender();
        if may_be_handshake
            && let Some(sender) = &sender
            && let Some(reply) = self.reply(caller, sender, &whole).await
        {
            match self.answer(caller, reply, found).await {
                Ok(Some(ending)) => return Err(ending),
                Ok(None) if !rejects => return Ok(()),
                // What only looks like one would come in unsigned otherwise.
                Ok(None) => {}
                Err(error) => return Err(refused(stream, reset_of(error), None)),
            }
        }
        if !rejects {
            return Ok(());
        }
        let judged = async {
            match &sender {
                Some(sender) => self.judge(caller, sender, &whole).await,
                None => unsupported("nobody who is known sends such a request".to_owned()),
            }
        };
        let judgement = match unless_gone(stream, judged).await {
            Ok(judgement) => judgement,
            Err(error) => return Err(refused(stream, reset_of(error), None)),
        };
        found.judgement = Some(judgement);
        let Some(mut why) = found.complaint() else { return Ok(()) };
        if let Some(note) = found.note.take() {
            why.push_str(&format!("; {note}"));
        } else if !self.handshake && self.is_handshake(caller, sender.as_deref(), &whole) {
            why.push_str("; it is a handshake, which --handshake answers");
        }
        Err(refused(stream, Reset::SignatureInvalid, Some(why)))
    }

    /// What a request that its service has had is worth.
    pub(super) async fn look_after(&self, caller: Caller<'_>, sender: &Provider) -> Option<Judgement> {
        if self.at_edge {
            return heard(caller.head);
        }
        if self.verify != Verify::Warn {
            return None;
        }
        let whole = caller.body.whole()?;
        Some(self.judge(caller, sender, &whole).await)
    }

    /// Waits until the body is whole; none where that is more than the limit.
    async fn hold(&self, caller: Caller<'_>, limit: usize) -> Result<Option<Bytes>, StreamError> {
        let Caller { stream, head, body, .. } = caller;
        if let Some(whole) = body.whole() {
            return Ok(Some(whole).filter(|whole| whole.len() <= limit));
        }
        if content_length(head).is_some_and(|length| length > limit as u64) {
            return Ok(None);
        }
        let room = self.room.clone().acquire_many_owned(self.room_for(head, limit));
        // The semaphore is never closed.
        let Ok(room) = unless_gone(stream, room).await? else { return Ok(None) };
        body.keep_up_to(limit, room);
        if expects_continue(head) {
            send_continue(stream);
        }
        body.gather().await
    }

    /// What a body takes of the room: all that it may have, because one that waited for more while it has some could wait
    /// for others that do so, too.
    fn room_for(&self, head: &RequestHead, limit: usize) -> u32 {
        let most =
            content_length(head).and_then(|length| usize::try_from(length).ok()).map_or(limit, |most| most.min(limit));
        u32::try_from(most.div_ceil(1 << 10)).unwrap_or(u32::MAX)
    }

    /// Waits for a body that routes ask for, unless it says that it is too long for that.
    ///
    /// # Errors
    /// How the request has ended, which is gone or too long.
    pub(super) async fn hold_for_routes(&self, caller: Caller<'_>) -> Result<(), Ending> {
        if content_length(caller.head).is_some_and(|length| length > BODY_MAX as u64) {
            return Ok(());
        }
        match self.hold(caller, BODY_MAX).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let detail =
                    "its body is too long for a route to look into, and does not say how long it is".to_owned();
                Err(refused(caller.stream, Reset::TooLarge, Some(detail)))
            }
            Err(error) => Err(refused(caller.stream, reset_of(error), None)),
        }
    }

    async fn judge(&self, caller: Caller<'_>, sender: &Provider, whole: &Bytes) -> Judgement {
        let ask = |known: &Credentials, how: How<'_>| request_of(caller.head, whole, |request| how(request, known));
        let key_url = request_of(caller.head, whole, |request| sender.key_url(request, &self.credentials));
        let is_published = matches!(key_url, Ok(Some(_)));
        if is_published && self.verify == Verify::Reject && !self.is_pinned {
            let reason = format!(
                "the key that {} publishes proves who sent it, and not for whom: let its requests in with --provider {}",
                sender.name, sender.id
            );
            return unsupported(reason);
        }
        let known = match key_url {
            Ok(url) => self.keys.complete(&self.credentials, url).await,
            Err(judgement) => return judgement,
        };
        let known = match known {
            Ok(known) => known,
            Err(judgement) => return judgement,
        };
        let judgement = ask(&known, &|request, known| sender.judge(request, known, caller.at));
        if judgement.verdict == Verdict::BadSignature && self.may_explain() {
            return ask(&known, &|request, known| sender.explain(request, known, caller.at));
        }
        judgement
    }

    fn is_handshake(&self, caller: Caller<'_>, sender: Option<&Provider>, whole: &Bytes) -> bool {
        let asks = |sender: &Provider| {
            request_of(caller.head, whole, |request| sender.handshake(request, &self.credentials, caller.at))
        };
        sender.and_then(asks).is_some()
    }

    /// Strangers can send what is signed wrongly without end.
    fn may_explain(&self) -> bool {
        let mut explained = self.explained.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.saturating_duration_since(explained.0) >= Duration::from_secs(1) {
            *explained = (now, 0);
        }
        explained.1 = explained.1.saturating_add(1);
        explained.1 <= EXPLAINED
    }

    /// What answers a handshake; none for every other request.
    async fn reply(&self, caller: Caller<'_>, sender: &Provider, whole: &Bytes) -> Option<Reply> {
        let ask =
            |known: &Credentials| request_of(caller.head, whole, |request| sender.handshake(request, known, caller.at));
        let reply = ask(&self.credentials)?;
        let key_url = request_of(caller.head, whole, |request| sender.key_url(request, &self.credentials));
        if let (Reply::LeaveToApp { .. }, Ok(url @ Some(_))) = (&reply, key_url) {
            let known = self.keys.complete(&self.credentials, url).await;
            return match known {
                Ok(known) => ask(&known),
                Err(judgement) => Some(Reply::LeaveToApp { reason: judgement.reason.into_owned() }),
            };
        }
        // A secret proves something to whoever knows that it is asked for as this provider's, and others' secrets may be
        // among ours: what is signed for them, where the request itself is not signed, may be worth something there.
        let proves = || {
            let nothing = Credentials { secrets: Vec::new(), ..self.credentials.clone() };
            let is_signed = || {
                let judged =
                    request_of(caller.head, whole, |request| sender.judge(request, &self.credentials, caller.at));
                judged.verdict == Verdict::Valid
            };
            !matches!(ask(&nothing), Some(Reply::Answer { .. })) && !is_signed()
        };
        if matches!(reply, Reply::Answer { .. }) && !self.is_pinned && proves() {
            let reason =
                format!("whoever asks is not known, and your secret would be used: name --provider {}", sender.id);
            return Some(Reply::LeaveToApp { reason });
        }
        Some(reply)
    }

    /// Answers a handshake; none where the service is to do it.
    async fn answer(
        &self,
        caller: Caller<'_>,
        reply: Reply,
        found: &mut Findings,
    ) -> Result<Option<Ending>, StreamError> {
        let (status, headers, body, detail) = match reply {
            Reply::LeaveToApp { reason } => {
                found.handshake = Some(Handshake::Left);
                found.note = Some(format!("only the service can answer this handshake: {reason}"));
                return Ok(None);
            }
            Reply::Refuse { status, reason } => {
                found.handshake = Some(Handshake::Refused);
                (status, Vec::new(), Vec::new(), Some(format!("a handshake was refused: {reason}")))
            }
            Reply::Answer { status, headers, body, confirm } => {
                let confirmed = match confirm {
                    None => Ok(()),
                    Some(url) => unless_gone(caller.stream, self.keys.visit(&url)).await?,
                };
                found.handshake = Some(if confirmed.is_ok() { Handshake::Answered } else { Handshake::Refused });
                match confirmed {
                    Ok(()) => (status, headers, body, None),
                    Err(error) => {
                        let detail = format!("a handshake could not be confirmed: {error}");
                        (StatusCode::SERVICE_UNAVAILABLE, Vec::new(), Vec::new(), Some(detail))
                    }
                }
            }
        };
        send(caller, status, headers, body).await?;
        Ok(Some(Ending { status: Some(status), error: None, detail }))
    }
}

/// What the relay has found out. It lets through no such line of anybody else's.
fn heard(head: &RequestHead) -> Option<Judgement> {
    let line = |wanted: &HeaderName| head.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let verdict: StrDeserializer<'_, ValueError> = line(&RELAY_VERDICT)?.to_str().ok()?.into_deserializer();
    let reason = line(&RELAY_VERDICT_REASON).map(|value| text(value.as_bytes())).unwrap_or_default();
    let verdict = Verdict::deserialize(verdict).ok()?;
    Some(Judgement { verdict, reason: reason.into(), secret: None, warning: None })
}

/// A way to look at a request.
type How<'h> = &'h dyn Fn(&Request<'_>, &Credentials) -> Judgement;

fn unsupported(reason: String) -> Judgement {
    Judgement { verdict: Verdict::Unsupported, reason: reason.into(), secret: None, warning: None }
}

/// Whether a body is here, or so short that waiting for it holds nothing back that was meant to stream.
fn is_short(head: &RequestHead, body: &RequestBody) -> bool {
    body.whole()
        .map_or(content_length(head), |whole| Some(whole.len() as u64))
        .is_some_and(|length| length <= HANDSHAKE_MAX)
}

/// Waits for something, unless the request goes away meanwhile, or its time has passed.
async fn unless_gone<T>(stream: &Stream, future: impl Future<Output = T>) -> Result<T, StreamError> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => stream.poll_reset(cx).map(Err),
    })
    .await
}

fn reset_of(error: StreamError) -> Reset {
    match error {
        StreamError::Reset(reset) => reset,
        StreamError::SessionEnded | StreamError::Closed => Reset::LinkLost,
    }
}

/// Answers a request that a route keeps from every service.
pub(super) async fn answer_by_route(caller: Caller<'_>, number: usize, to: &To, sender: Option<&Provider>) -> Ending {
    let (status, body, verb) = match (to, sender.map(Provider::answer)) {
        (To::Answer(status, body), _) => (*status, body.clone(), "answered"),
        (_, Some(answer)) => (StatusCode::from_u16(answer.status).unwrap_or_default(), answer.body.clone(), "dropped"),
        (_, None) => (StatusCode::OK, String::new(), "dropped"),
    };
    match send(caller, status, Vec::new(), body.into_bytes()).await {
        Ok(()) => Ending { status: Some(status), error: None, detail: Some(format!("{verb} by route {number}")) },
        Err(error) => refused(caller.stream, reset_of(error), None),
    }
}

/// Ends a request that nobody has answered. The relay says why, in no more words than the code has.
fn refused(stream: &Stream, reset: Reset, detail: Option<String>) -> Ending {
    stream.reset(reset);
    Ending::by(reset, None, detail)
}

async fn send(
    caller: Caller<'_>,
    status: StatusCode,
    mut headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
) -> Result<(), StreamError> {
    if status != StatusCode::NO_CONTENT {
        headers.push((CONTENT_LENGTH, HeaderValue::from(body.len())));
    }
    // It has a handful of headers.
    let Ok(head) = (ResponseHead { status, headers }).to_bytes() else { return Err(StreamError::Closed) };
    let (stream, recording) = (caller.stream, caller.body.recording());
    recording.response(&head, body.len() as u64);
    stream.send_head(head, false)?;
    if !body.is_empty() {
        recording.response_data(&body);
        stream.send(body.into()).await?;
    }
    recording.response_whole(&Bytes::new());
    stream.finish(Bytes::new())
}
