//! What the edge makes of a request that is a webhook: who sends it, how long that one waits, whether it is signed, and what
//! it can be answered without the client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue, Response};
use jiff::Timestamp;
use relay_protocol::exchange::{append_all, public_url};
use relay_protocol::message::RequestHead;
use relay_protocol::webhook::{Judgement, Provider, Reply, Request, Table, Verdict, Verify, Webhooks};
use tokio::time::Instant;

use super::body::{EdgeBody, Gathered, MAX_KEPT, Upload, UploadError};
use super::forward::{Failure, Instead};
use super::record::Exchange;
use super::respond::{RELAY_HANDSHAKE, explain};
use super::room::Share;
use crate::Shared;
use crate::cause::Cause;
use crate::judge::{Judged, NOBODYS, judge, longest, sender, unjudged, withheld};
use crate::store::TokenId;
use crate::tunnels::{Asked, Tunnel};

/// The longest body of a handshake, in bytes. Challenges are short, and so much of a body is kept in any case.
const HANDSHAKE_MAX: usize = MAX_KEPT;

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
            None => Self { time: shared.limits().deadline, whose: Whose::Relay },
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
    Ok(reply.and_then(|reply| answer(shared, exchange, &provider.id, reply)))
}

/// A place for the body of a request, among those that are held for tunnels of the token.
pub(super) fn place(shared: &Shared, exchange: &Exchange, token: TokenId) -> Option<Share> {
    shared.judging.share(token, exchange.head.remote.parse().ok())
}

/// What answers a handshake without a call and without the app.
fn answer(shared: &Shared, exchange: &Exchange, provider: &str, reply: Reply) -> Option<Response<EdgeBody>> {
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
            let mut response = explain(shared, Cause::SignatureInvalid, &asked, NOT_THEIRS);
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
    let time = Allowed::of(shared, exchange, asked, upload.held()).time.min(shared.limits().deadline);
    let provider = sender(&shared.providers, asked.webhooks.provider.as_deref(), &exchange.head, upload.held());
    if provider.is_none() && asked.webhooks.verify == Verify::Warn && !upload.has_ended() {
        // Nobody is to wait for what may be no webhook at all, and may never end.
        unjudged(NOBODYS).tell(&mut exchange.head.headers);
        return Ok(());
    }
    let most = longest(&shared.limits(), provider.map(AsRef::as_ref));
    let (judgement, cause) = match unsigned(&shared.providers, &exchange.head, asked) {
        Some(judgement) => (judgement, Cause::SignatureInvalid),
        None => {
            let gathered = upload.gather(most, exchange.started + time, || place(shared, exchange, tunnel.token)).await;
            exchange.received(upload.received());
            match gathered.map_err(UploadError::cause)? {
                Gathered::Whole => match judge(shared, &exchange.head, asked, upload.held(), Timestamp::now())
                    .await
                    .ok_or(Cause::Internal)?
                {
                    Judged::Handshake(reply) => {
                        if let Reply::Refuse { reason, .. } = &reply {
                            let judgement = Judgement::of(Verdict::BadSignature, reason.clone());
                            let (code, by) = (Cause::SignatureInvalid.code(), exchange.provider.clone());
                            tunnel.withhold(shared, withheld(&exchange.head, by, code, &judgement));
                        }
                        let id = asked.webhooks.provider.as_deref().unwrap_or_default();
                        let answer = answer(shared, exchange, id, reply).ok_or(Cause::Internal)?;
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
        tunnel.withhold(shared, withheld(&exchange.head, exchange.provider.clone(), cause.code(), &judgement));
        return Err(Failure { cause, message: Some(refusal(&judgement)) }.into());
    }
    judgement.tell(&mut exchange.head.headers);
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
