//! What stands before a service: who may come in, and who is answered at the gate.
//!
//! ```text
//!   request ── a handshake ──▶ answered here, where that was asked for
//!      ├── reject: held until it is whole ── not signed rightly ──▶ refused with 401
//!      └── warn: passes ──▶ its service ── and is judged behind it
//! ```
//!
//! Nothing is held that need not be, and what is held has a bound: of each body, and of all of them together ([`Room`]).
//!
//! [`Room`]: crate::upstream::Room

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderName, HeaderValue, StatusCode};
use relay_protocol::exchange::content_length;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{Payload as _, ResponseHead};
use relay_protocol::mux::StreamError;
use relay_protocol::webhook::{Credentials, Judgement, Provider, Reply, Verdict, Verify};
use tokio::time::Instant;

use super::caller::Caller;
use super::routes::To;
use crate::event::Handshake;
use crate::keys::Keys;
use crate::upstream::{Ending, Gathered, SHORT};
use crate::webhooks::{VerifyAt, WebhookOptions};

/// The longest body that is judged. Its provider may send less, and then that is the most.
pub(super) const BODY_MAX: usize = 10 << 20;

/// How many bad signatures are explained in a second: each costs some thirty times what judging does.
const EXPLAINED: u32 = 5;

/// The gate of a tunnel.
#[derive(Debug)]
pub(super) struct Gate {
    verify: Verify,
    /// The relay judges, and says what came of it.
    at_edge: bool,
    handshake: bool,
    credentials: Arc<Credentials>,
    /// The provider was named, so that nobody else's requests are meant.
    is_pinned: bool,
    keys: Keys,
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

impl Gate {
    pub(super) fn new(webhooks: &WebhookOptions) -> Self {
        Self {
            verify: if webhooks.verify_at == VerifyAt::Client { webhooks.verify } else { Verify::Off },
            at_edge: webhooks.verify_at == VerifyAt::Edge,
            handshake: webhooks.handshake,
            credentials: Arc::new(webhooks.credentials.clone()),
            is_pinned: webhooks.provider.is_some(),
            keys: Keys::default(),
            explained: Mutex::new((Instant::now(), 0)),
        }
    }

    /// Lets a request in, or ends it here.
    ///
    /// # Errors
    /// How it has ended.
    pub(super) async fn admit(&self, caller: &mut Caller<'_>, found: &mut Findings) -> Result<(), Ending> {
        if self.at_edge {
            found.judgement = Judgement::told(&caller.head.headers);
        }
        let rejects = self.verify == Verify::Reject;
        let may_be_handshake = self.handshake && caller.head.upgrade.is_none() && is_short(caller);
        if !rejects && !may_be_handshake {
            if self.verify == Verify::Warn {
                caller.body.keep_up_to(BODY_MAX);
            }
            return Ok(());
        }
        let limit = caller.sender().and_then(|sender| usize::try_from(sender.max_body?).ok());
        let gone = |error| refused(caller.stream, reset_of(error), None);
        match caller.hold(limit.map_or(BODY_MAX, |limit| limit.min(BODY_MAX))).await.map_err(gone)? {
            Gathered::Whole => {}
            Gathered::TooLong | Gathered::NoRoom if !rejects => return Ok(()),
            Gathered::TooLong => {
                let detail = "its body is too large to be judged before the service sees it".to_owned();
                return Err(refused(caller.stream, Reset::TooLarge, Some(detail)));
            }
            Gathered::NoRoom => return Err(crowded(caller)),
        }
        if may_be_handshake && let Some(reply) = self.reply(caller).await.map_err(gone)? {
            match self.answer(caller, reply, found).await.map_err(gone)? {
                Some(ending) => return Err(ending),
                // What only looks like one would come in unsigned otherwise.
                None if rejects => {}
                None => return Ok(()),
            }
        }
        if !rejects {
            return Ok(());
        }
        let judgement = unless_gone(caller.stream, self.judge(caller)).await.map_err(gone)?;
        found.judgement = Some(judgement);
        let Some(mut why) = found.complaint() else { return Ok(()) };
        if let Some(note) = found.note.take() {
            why.push_str(&format!("; {note}"));
        } else if !self.handshake && self.is_handshake(caller) {
            why.push_str("; it is a handshake, which --handshake answers");
        }
        Err(refused(caller.stream, Reset::SignatureInvalid, Some(why)))
    }

    /// Whether what it lets in is judged behind it.
    pub(super) fn judges_late(&self) -> bool {
        self.verify == Verify::Warn
    }

    /// What a request that it has let in is worth.
    pub(super) async fn look_after(&self, caller: &Caller<'_>) -> Option<Judgement> {
        if !self.judges_late() || caller.sender().is_none() {
            return None;
        }
        if caller.is_seen() {
            return Some(self.judge(caller).await);
        }
        let is_long = content_length(caller.head).is_none_or(|length| length > BODY_MAX as u64);
        Some(unsupported(if is_long {
            format!("a body is judged that has come as a whole, and has at most {} MiB", BODY_MAX >> 20)
        } else {
            "not all of its body has come, or too much of others' was kept".to_owned()
        }))
    }

    /// Waits for a body that routes ask for.
    ///
    /// # Errors
    /// How the request has ended, which is gone, or one of too many.
    pub(super) async fn hold_for_routes(&self, caller: &mut Caller<'_>) -> Result<(), Ending> {
        match caller.hold(BODY_MAX).await {
            Ok(Gathered::Whole | Gathered::TooLong) => Ok(()),
            Ok(Gathered::NoRoom) => Err(crowded(caller)),
            Err(error) => Err(refused(caller.stream, reset_of(error), None)),
        }
    }

    /// Judges a request that is here as a whole.
    async fn judge(&self, caller: &Caller<'_>) -> Judgement {
        let Some(sender) = caller.sender() else {
            return unsupported("nobody who is known sends such a request".to_owned());
        };
        let (by, known) = (sender.clone(), self.credentials.clone());
        let key_url = caller.look(move |request| by.key_url(request, &known)).await;
        if matches!(key_url, Ok(Some(_))) && self.verify == Verify::Reject && !self.is_pinned {
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
        let (by, with, at) = (sender.clone(), known.clone(), caller.at);
        let judgement = caller.look(move |request| by.judge(request, &with, at)).await;
        if judgement.verdict == Verdict::BadSignature && self.may_explain() {
            let by = sender.clone();
            return caller.look(move |request| by.explain(request, &known, at)).await;
        }
        judgement
    }

    fn is_handshake(&self, caller: &Caller<'_>) -> bool {
        let asks = |sender: &Arc<Provider>| sender.handshake(caller.request(), &self.credentials, caller.at);
        caller.sender().and_then(asks).is_some()
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
    async fn reply(&self, caller: &Caller<'_>) -> Result<Option<Reply>, StreamError> {
        let Some(sender) = caller.sender() else { return Ok(None) };
        let ask = |known: &Credentials| sender.handshake(caller.request(), known, caller.at);
        let Some(reply) = ask(&self.credentials) else { return Ok(None) };
        let key_url = sender.key_url(caller.request(), &self.credentials);
        if let (Reply::LeaveToApp { .. }, Ok(url @ Some(_))) = (&reply, key_url) {
            return Ok(match unless_gone(caller.stream, self.keys.complete(&self.credentials, url)).await? {
                Ok(known) => ask(&known),
                Err(judgement) => Some(Reply::LeaveToApp { reason: judgement.reason.into_owned() }),
            });
        }
        // A secret proves something to whoever knows that it is asked for as this provider's, and others' secrets may be
        // among ours: what is signed for them, where the request itself is not signed, may be worth something there.
        let proves = || {
            let nothing = Credentials { secrets: Vec::new(), ..(*self.credentials).clone() };
            let is_signed = || sender.judge(caller.request(), &self.credentials, caller.at).verdict == Verdict::Valid;
            !matches!(ask(&nothing), Some(Reply::Answer { .. })) && !is_signed()
        };
        if matches!(reply, Reply::Answer { .. }) && !self.is_pinned && proves() {
            let reason =
                format!("whoever asks is not known, and your secret would be used: name --provider {}", sender.id);
            return Ok(Some(Reply::LeaveToApp { reason }));
        }
        Ok(Some(reply))
    }

    /// Answers a handshake; none where the service is to do it.
    async fn answer(
        &self,
        caller: &Caller<'_>,
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

fn unsupported(reason: String) -> Judgement {
    Judgement::of(Verdict::Unsupported, reason)
}

/// Whether a body is here, or so short that waiting for it holds nothing back that was meant to stream.
fn is_short(caller: &Caller<'_>) -> bool {
    let whole = caller.body.whole().map(|whole| whole.len() as u64);
    whole.or(content_length(caller.head)).is_some_and(|length| length <= SHORT as u64)
}

/// Waits for something, unless the request goes away meanwhile, or its time has passed.
pub(super) async fn unless_gone<T>(stream: &Stream, future: impl Future<Output = T>) -> Result<T, StreamError> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => stream.poll_reset(cx).map(Err),
    })
    .await
}

pub(super) fn reset_of(error: StreamError) -> Reset {
    match error {
        StreamError::Reset(reset) => reset,
        StreamError::SessionEnded | StreamError::Closed => Reset::LinkLost,
    }
}

/// Answers a request that a route keeps from every service.
pub(super) async fn answer_by_route(caller: &Caller<'_>, number: usize, to: &To) -> Ending {
    let (status, body, verb) = match (to, caller.sender().map(|sender| sender.answer())) {
        (To::Answer(status, body), _) => (*status, body.clone(), "answered"),
        (_, Some(answer)) => (StatusCode::from_u16(answer.status).unwrap_or_default(), answer.body.clone(), "dropped"),
        (_, None) => (StatusCode::OK, String::new(), "dropped"),
    };
    match send(caller, status, Vec::new(), body.into_bytes()).await {
        Ok(()) => Ending { status: Some(status), error: None, detail: Some(format!("{verb} by route {number}")) },
        Err(error) => refused(caller.stream, reset_of(error), None),
    }
}

/// Refuses a request for whose body there is no room.
fn crowded(caller: &Caller<'_>) -> Ending {
    let detail = "too much of other requests is kept at the moment to keep its body, too".to_owned();
    refused(caller.stream, Reset::Refused, Some(detail))
}

/// Ends a request that nobody has answered. The relay says why, in no more words than the code has.
pub(super) fn refused(stream: &Stream, reset: Reset, detail: Option<String>) -> Ending {
    stream.reset(reset);
    Ending::by(reset, None, detail)
}

pub(super) async fn send(
    caller: &Caller<'_>,
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
