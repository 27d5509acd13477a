//! What the edge makes of a request that is a webhook: who sends it, how long that one waits, and what it can be answered
//! without the client.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, Response};
use jiff::Timestamp;
use relay_protocol::exchange::public_url;
use relay_protocol::message::RequestHead;
use relay_protocol::webhook::{Provider, Reply, Request, Table};
use tokio::time::{Instant, timeout_at};

use super::body::{EdgeBody, Upload, UploadError};
use super::cause::Cause;
use super::record::Exchange;
use super::respond::RELAY_ERROR;
use crate::Shared;
use crate::session::registry::Asked;

/// On the answer to a handshake: whose it was. No service has seen that.
const RELAY_HANDSHAKE: HeaderName = HeaderName::from_static("relay-handshake");

/// The longest body of a handshake, in bytes. Challenges are short; no more of a body is kept in any case.
const HANDSHAKE_MAX: usize = 64 * 1024;

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
            exchange.provider.clone_from(&asked.webhooks.provider);
            return Self { time, whose: Whose::Tunnel };
        }
        let provider = sender(&shared.providers, asked, &exchange.head, body);
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
fn sender<'t>(table: &'t Table, asked: &Asked, head: &RequestHead, body: &[u8]) -> Option<&'t Arc<Provider>> {
    match &asked.webhooks.provider {
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
    asked: &Asked,
    upload: &mut Upload,
    until: Instant,
) -> Result<Option<Response<EdgeBody>>, Cause> {
    let webhooks = &asked.webhooks;
    let named = webhooks.provider.as_ref().filter(|_| webhooks.handshake);
    let Some(provider) = named.and_then(|id| shared.providers.get(id)) else { return Ok(None) };
    let gathered = timeout_at(until, upload.gather(HANDSHAKE_MAX)).await;
    exchange.received(upload.received());
    if !gathered.map_err(|_| Cause::BodyTimeout)?.map_err(UploadError::cause)? {
        return Ok(None);
    }
    let (head, url) = (&exchange.head, public_url(&exchange.head));
    let request = Request::new(&head.method, &url, &head.headers, upload.held());
    let reply = provider.handshake(&request, &webhooks.credentials, Timestamp::now());
    Ok(reply.and_then(|reply| answer(exchange, provider, reply)))
}

/// What answers a handshake without a call and without the app.
fn answer(exchange: &Exchange, provider: &Provider, reply: Reply) -> Option<Response<EdgeBody>> {
    let (status, lines, body) = match reply {
        Reply::Answer { status, headers, body, confirm: None } => {
            let whose = HeaderValue::from_str(&provider.id).ok().map(|id| (RELAY_HANDSHAKE, id));
            (status, headers.into_iter().chain(whose).collect::<Vec<_>>(), body)
        }
        Reply::Refuse { status, .. } => {
            exchange.failed(Cause::SignatureInvalid);
            let code = HeaderValue::from_static(Cause::SignatureInvalid.code());
            (status, vec![(RELAY_ERROR, code)], Vec::new())
        }
        Reply::Answer { confirm: Some(_), .. } | Reply::LeaveToApp { .. } => return None,
    };
    let mut response = Response::new(EdgeBody::full(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.extend(lines);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
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
