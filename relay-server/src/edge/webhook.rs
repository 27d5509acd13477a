//! What the edge makes of a request that is a webhook: who sends it, how long that one waits, whether it is signed, and what
//! it can be answered without the client.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use jiff::Timestamp;
use relay_protocol::exchange::{append_all, public_url};
use relay_protocol::message::{RequestHead, Withheld};
use relay_protocol::webhook::{Judgement, Provider, Reply, Request, Table, Verdict, Verify, Webhooks};
use tokio::time::Instant;

use super::body::{EdgeBody, Gathered, MAX_KEPT, Upload, UploadError};
use super::cause::Cause;
use super::forward::{Failure, Instead};
use super::record::Exchange;
use super::respond::{RELAY_HANDSHAKE, explain};
use super::room::Share;
use crate::Shared;
use crate::session::registry::{Asked, Tunnel};
use crate::store::TokenId;

/// On a request whose signature the edge has judged: the verdict, for the client and the app. It is the edge's word, because
/// a stranger's line of that name does not pass.
pub(super) const RELAY_VERDICT: HeaderName = HeaderName::from_static("relay-verdict");

/// Why, in words.
const RELAY_VERDICT_REASON: HeaderName = HeaderName::from_static("relay-verdict-reason");

/// The most of these words, in bytes.
const REASON_MAX: usize = 512;

/// The most of a refused request's target that its client is told, in bytes.
const TARGET_MAX: usize = 256;

/// The longest body of a handshake, in bytes. Challenges are short, and so much of a body is kept in any case.
const HANDSHAKE_MAX: usize = MAX_KEPT;

/// The longest body, in bytes, that is judged where the request is served: well below a millisecond of arithmetic. A longer
/// one is judged elsewhere, because all others of that thread would wait for it.
const AT_ONCE_MAX: usize = MAX_KEPT;

/// How long the head of an answer may take, and by whose word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed<'t> {
    /// From when the sender began to count.
    pub(super) time: Duration,
    whose: Whose<'t>,
}

#[derive(Clone, Copy, Debug)]
enum Whose<'t> {
    Tunnel,
    /// Who waits, and how long.
    Provider(&'t Provider, Duration),
    Relay,
}

impl<'t> Allowed<'t> {
    /// For a request of which this much of the body is there, to a tunnel of which its client has said this.
    pub(super) fn of(shared: &'t Shared, exchange: &mut Exchange, asked: &Asked, body: &[u8]) -> Self {
        if let Some(time) = asked.timeout {
            exchange.provider = exchange.provider.take().or_else(|| asked.webhooks.provider.clone());
            return Self { time, whose: Whose::Tunnel };
        }
        let provider = sender(&shared.providers, asked.webhooks.provider.as_deref(), &exchange.head, body);
        exchange.provider = provider.map(|provider| provider.id.clone());
        let its = provider.and_then(|provider| Some((provider, provider.limit()?, provider.answer_within()?)));
        match its {
            Some((provider, limit, time)) => Self { time, whose: Whose::Provider(provider, limit) },
            None => Self { time: shared.limits.deadline, whose: Whose::Relay },
        }
    }

    /// Whether it counts from the end of an upload that takes its time. A provider's clock does not: whoever knows how
    /// long that waits knows that it is no large upload, and that nobody is there any more for a later answer.
    pub(super) fn extends(&self) -> bool {
        matches!(self.whose, Whose::Relay)
    }

    /// What the sender is told when it has passed.
    pub(super) fn passed(&self) -> String {
        let time = show(self.time);
        match self.whose {
            Whose::Provider(Provider { name, .. }, limit) => {
                format!("{name} waits {}; the local service had not answered after {time}.", show(limit))
            }
            Whose::Tunnel | Whose::Relay => format!("The local service did not answer within {time}."),
        }
    }
}

/// Whose webhook a request is: that of the provider that its tunnel is for, or of whom it is recognised to be from.
pub(super) fn sender<'t>(
    table: &'t Table,
    named: Option<&str>,
    head: &RequestHead,
    body: &[u8],
) -> Option<&'t Arc<Provider>> {
    match named {
        Some(id) => table.get(id),
        // What is about to be no request any more is no webhook.
        None if head.upgrade.is_some() => None,
        None => table.recognise(&Request::new(&head.method, &public_url(head), &head.headers, body)),
    }
}

/// Answers a handshake of the provider that the tunnel is for, while its client is away: where that was asked for, no secret
/// is lacking, and nobody has to be called for it.
pub(super) async fn handshake(
    shared: &Shared,
    exchange: &Exchange,
    (token, asked): (TokenId, &Asked),
    upload: &mut Upload,
    until: Instant,
) -> Result<Option<Response<EdgeBody>>, Cause> {
    let webhooks = &asked.webhooks;
    let named = webhooks.provider.as_ref().filter(|_| webhooks.handshake);
    let Some(provider) = named.and_then(|id| shared.providers.get(id)) else { return Ok(None) };
    let gathered = upload.gather(HANDSHAKE_MAX, until, || place(shared, exchange, token)).await;
    exchange.received(upload.received());
    if gathered.map_err(UploadError::cause)? != Gathered::Whole {
        return Ok(None);
    }
    let (head, url) = (&exchange.head, public_url(&exchange.head));
    let request = Request::new(&head.method, &url, &head.headers, upload.held());
    let reply = provider.handshake(&request, &webhooks.credentials, Timestamp::now());
    Ok(reply.and_then(|reply| answer(exchange, &provider.id, reply)))
}

/// A place for the body of a request, among those that are held for tunnels of the token.
pub(super) fn place(shared: &Shared, exchange: &Exchange, token: TokenId) -> Option<Share> {
    shared.judging.share(token, exchange.head.remote.parse().ok())
}

/// What answers a handshake without a call and without the app.
fn answer(exchange: &Exchange, provider: &str, reply: Reply) -> Option<Response<EdgeBody>> {
    match reply {
        Reply::Answer { status, headers, body, confirm: None } => {
            let mut response = Response::new(EdgeBody::full(Bytes::from(body)));
            *response.status_mut() = status;
            let whose = HeaderValue::from_str(provider).ok().map(|id| (RELAY_HANDSHAKE, id));
            let others = [(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            response.headers_mut().extend(headers.into_iter().chain(whose).chain(others));
            Some(response)
        }
        Reply::Refuse { status, .. } => {
            exchange.failed(Cause::SignatureInvalid);
            let mut asked = HeaderMap::new();
            append_all(&mut asked, exchange.head.headers.clone());
            let mut response = explain(Cause::SignatureInvalid, &asked, NOT_THEIRS);
            *response.status_mut() = status;
            Some(response)
        }
        Reply::Answer { confirm: Some(_), .. } | Reply::LeaveToApp { .. } => None,
    }
}

/// Whoever it is from is told no more, because the next attempt would be a better one.
const NOT_THEIRS: &str = "The handshake is not that of the provider which this tunnel is for.";

/// Judges the signature of a request where its tunnel wants that, and lets it pass with the verdict, or not.
pub(super) async fn verify(
    shared: &Arc<Shared>,
    exchange: &mut Exchange,
    tunnel: &Arc<Tunnel>,
    upload: &mut Upload,
) -> Result<(), Instead> {
    let asked = &tunnel.asked;
    if asked.webhooks.verify == Verify::Off {
        return Ok(());
    }
    // However long its service may take, nothing is held for longer than any other request has.
    let time = Allowed::of(shared, exchange, asked, upload.held()).time.min(shared.limits.deadline);
    let provider = sender(&shared.providers, asked.webhooks.provider.as_deref(), &exchange.head, upload.held());
    if provider.is_none() && asked.webhooks.verify == Verify::Warn && !upload.has_ended() {
        // Nobody is to wait for what may be no webhook at all, and may never end.
        tell(&mut exchange.head, unjudged(NOBODYS));
        return Ok(());
    }
    let its = provider.and_then(|provider| usize::try_from(provider.max_body?).ok());
    let most = its.unwrap_or(shared.limits.verify_body);
    let (judgement, cause) = match unsigned(&shared.providers, &exchange.head, asked) {
        Some(judgement) => (judgement, Cause::SignatureInvalid),
        None => {
            let gathered = upload.gather(most, exchange.started + time, || place(shared, exchange, tunnel.token)).await;
            exchange.received(upload.received());
            match gathered.map_err(UploadError::cause)? {
                Gathered::Whole => match judge(shared, &exchange.head, asked, upload.held()).await? {
                    Judged::Handshake(reply) => {
                        if let Reply::Refuse { reason, .. } = &reply {
                            let told = withheld(exchange, Cause::SignatureInvalid, Verdict::BadSignature, reason);
                            tunnel.withhold(shared, told);
                        }
                        let id = asked.webhooks.provider.as_deref().unwrap_or_default();
                        let answer = answer(exchange, id, reply).ok_or(Cause::Internal)?;
                        return Err(Instead::Answered(Box::new(answer)));
                    }
                    Judged::Signed(provider, judgement) => {
                        exchange.provider = provider;
                        (judgement, Cause::SignatureInvalid)
                    }
                },
                Gathered::TooLong => {
                    (unjudged(format!("a body of more than {most} bytes is not judged")), Cause::BodyTooLarge)
                }
                Gathered::NoRoom => {
                    (unjudged("the relay has no room to judge its body at the moment"), Cause::TooManyRequests)
                }
                Gathered::TooSlow => (unjudged("its body took too long to arrive to be judged"), Cause::BodyTimeout),
            }
        }
    };
    if judgement.verdict != Verdict::Valid && asked.webhooks.verify == Verify::Reject {
        tunnel.withhold(shared, withheld(exchange, cause, judgement.verdict, &judgement.reason));
        return Err(Failure { cause, message: Some(refusal(&judgement)) }.into());
    }
    tell(&mut exchange.head, judgement);
    Ok(())
}

/// The judgement on a request to a tunnel for one provider that no body could make a signed one, nor a handshake: bodies of
/// such take no place from those that are signed.
fn unsigned(providers: &Table, head: &RequestHead, asked: &Asked) -> Option<Judgement> {
    let Webhooks { provider, handshake, verify, credentials } = &asked.webhooks;
    let provider = providers.get(provider.as_deref()?)?;
    let url = public_url(head);
    let request = Request::new(&head.method, &url, &head.headers, &[]);
    let may_be_handshake = *verify == Verify::Reject && *handshake && provider.may_be_handshake(&request);
    if may_be_handshake { None } else { provider.judge_head(&request, credentials) }
}

/// Why a request is not judged that is nobody's.
const NOBODYS: &str = "nobody is known who sends such requests";

fn unjudged(reason: impl Into<Cow<'static, str>>) -> Judgement {
    Judgement { verdict: Verdict::Unsupported, reason: reason.into(), secret: None, warning: None }
}

/// What is found of a request as a whole.
#[derive(Debug)]
enum Judged {
    /// What answers it, as it needs no signature.
    Handshake(Reply),
    /// Whose it is, and whether that one has signed it.
    Signed(Option<String>, Judgement),
}

async fn judge(shared: &Arc<Shared>, head: &RequestHead, asked: &Arc<Asked>, body: &Bytes) -> Result<Judged, Cause> {
    if body.len() <= AT_ONCE_MAX {
        return Ok(judge_now(&shared.providers, head, asked, body));
    }
    let (owner, head, asked, body) = (shared.clone(), head.clone(), asked.clone(), body.clone());
    let judged = shared.tasks.spawn_blocking(move || judge_now(&owner.providers, &head, &asked, &body));
    judged.await.map_err(|panic| {
        shared.metrics.panics.inc();
        tracing::error!(%panic, "a signature could not be judged; this is a bug in the relay");
        Cause::Internal
    })
}

fn judge_now(providers: &Table, head: &RequestHead, asked: &Asked, body: &[u8]) -> Judged {
    let Webhooks { provider: named, handshake, verify, credentials } = &asked.webhooks;
    let url = public_url(head);
    let request = Request::new(&head.method, &url, &head.headers, body);
    let Some(provider) = sender(providers, named.as_deref(), head, body) else {
        return Judged::Signed(None, unjudged(NOBODYS));
    };
    let now = Timestamp::now();
    // Most handshakes are not signed, so that nothing else would come of them.
    if *verify == Verify::Reject
        && *handshake
        && named.is_some()
        && let Some(reply @ (Reply::Answer { confirm: None, .. } | Reply::Refuse { .. })) =
            provider.handshake(&request, credentials, now)
    {
        return Judged::Handshake(reply);
    }
    Judged::Signed(Some(provider.id.clone()), provider.judge(&request, credentials, now))
}

/// What a stranger is told of a verdict: what he can see in his own request, and nothing of the secret.
fn refusal(judgement: &Judgement) -> String {
    match judgement.verdict {
        Verdict::Stale | Verdict::Future | Verdict::Missing | Verdict::Malformed => {
            format!("The request is not accepted: {}.", judgement.reason)
        }
        Verdict::BadSignature => "The request's signature does not fit it.".to_owned(),
        Verdict::NoSecret => "The tunnel has no secret that the request could be signed with.".to_owned(),
        Verdict::Unsupported | Verdict::Valid => {
            format!("The request's signature cannot be judged: {}.", judgement.reason)
        }
    }
}

/// What the client is told of a request that is refused.
fn withheld(exchange: &Exchange, cause: Cause, verdict: Verdict, reason: &str) -> Withheld {
    let (head, target) = (&exchange.head, exchange.head.target.as_str());
    Withheld {
        id: head.id.to_string(),
        method: head.method.as_str().chars().take(TARGET_MAX).collect(),
        target: target.get(..target.floor_char_boundary(TARGET_MAX)).unwrap_or_default().to_owned(),
        remote: head.remote.to_string(),
        code: cause.code().to_owned(),
        provider: exchange.provider.clone(),
        verdict: verdict.as_str().to_owned(),
        reason: plain(reason),
        ..Withheld::default()
    }
}

/// A reason, which may quote the request, as it can be a header's value anywhere.
fn plain(reason: &str) -> String {
    let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    reason.chars().map(plain).take(REASON_MAX).collect()
}

/// Takes back what was found for another tunnel, which the request has not reached.
pub(super) fn untell(head: &mut RequestHead) {
    head.headers.retain(|(name, _)| *name != RELAY_VERDICT && *name != RELAY_VERDICT_REASON);
}

/// Lets the client know.
fn tell(head: &mut RequestHead, judgement: Judgement) {
    head.headers.push((RELAY_VERDICT, HeaderValue::from_static(judgement.verdict.as_str())));
    let reason = judgement.warning.map_or(judgement.reason, Cow::Owned);
    head.headers.extend(HeaderValue::try_from(plain(&reason)).ok().map(|reason| (RELAY_VERDICT_REASON, reason)));
}

fn show(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    match (seconds, millis) {
        (_, 0) => format!("{seconds} s"),
        (0, _) => format!("{millis} ms"),
        _ => format!("{}.{} s", seconds, format!("{millis:03}").trim_end_matches('0')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_to_read() {
        for (millis, text) in
            [(0, "0 s"), (300, "300 ms"), (4250, "4.25 s"), (30_000, "30 s"), (1005, "1.005 s"), (8_500, "8.5 s")]
        {
            assert_eq!(show(Duration::from_millis(millis)), text);
        }
    }
}
