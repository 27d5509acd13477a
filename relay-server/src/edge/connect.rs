//! The relay's own host: the endpoint where clients connect, and the [API](super::api).
//!
//! ```text
//!   GET /_relay/connect ─▶ upgrade asked? ─▶ version ─▶ token ─▶ place ─▶ 101 ─▶ session
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use relay_protocol::exchange::upgrade_of;
use relay_protocol::link::UNSENT;
use relay_protocol::mux::Limits as MuxLimits;
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};
use socket2::SockRef;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::api;
use super::body::EdgeBody;
use super::io::Watched;
use super::respond::{answer, explain};
use super::sender::Sender;
use crate::cause::Cause;
use crate::clock::unix_now;
use crate::quota::Meter;
use crate::session::{BLOCKED, Session};
use crate::store::{AuthError, Secret, Token};
use crate::tunnels::seats::Place;
use crate::{Shared, sentence};

/// Answers a request to the relay's own host.
pub(super) async fn own_host(
    shared: &Arc<Shared>,
    sender: Sender,
    request: &mut Request<Incoming>,
) -> Response<EdgeBody> {
    let peer = sender.address_or_peer(request.headers());
    if api::below(request.uri().path()).is_some() {
        return api::answer(shared, sender, request).await;
    }
    if request.uri().path() != CONNECT_PATH {
        return answer(shared, Cause::NotFound, request.headers());
    }
    match admit(shared, peer, request).await {
        Ok((token, meter, place)) => upgrade(shared, peer, request, (token, meter, place)),
        Err((cause, message)) => {
            let mut response = explain(shared, cause, request.headers(), &message);
            if cause == Cause::UpgradeRequired {
                let headers = response.headers_mut();
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            response
        }
    }
}

/// Whether a request is a client's that wants a session.
pub(super) fn is_client(request: &Request<Incoming>) -> bool {
    request.uri().path() == CONNECT_PATH && offers(request.headers(), SUBPROTOCOL)
}

/// Answers a client that was told a tunnel's URL for the relay's.
pub(super) fn elsewhere(shared: &Shared, headers: &HeaderMap) -> Response<EdgeBody> {
    let relay = shared.public_url(&shared.config.domain);
    let message = format!("This is not the relay's own URL, which is {relay}: name that with --relay.");
    explain(shared, Cause::UnknownHost, headers, &message)
}

/// Whether a client may have a session.
async fn admit(
    shared: &Arc<Shared>,
    peer: IpAddr,
    request: &Request<Incoming>,
) -> Result<(Token, Arc<Meter>, Place), (Cause, String)> {
    let refuse = |cause: Cause| (cause, cause.message().to_owned());
    let headers = request.headers();
    let websocket = upgrade_of(headers).is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket"));
    let version = headers.get("sec-websocket-version").is_some_and(|version| version == "13");
    if request.method() != Method::GET || !websocket || !version || !headers.contains_key("sec-websocket-key") {
        return Err(refuse(Cause::UpgradeRequired));
    }
    if !offers(headers, SUBPROTOCOL) {
        let offered =
            headers.get(SEC_WEBSOCKET_PROTOCOL).map_or("nothing".into(), |v| v.as_bytes().escape_ascii().to_string());
        let message = format!("This relay speaks {SUBPROTOCOL}; the client offers {offered}.");
        return Err((Cause::UpgradeRequired, message));
    }
    // Where another process serves, whoever has come here is told to go there.
    if shared.leaving.is_cancelled() {
        return Err(refuse(Cause::Draining));
    }
    let token = authenticate(shared, peer, headers).await?;
    let meter = shared.quotas.meter(&shared.store, token.id).await.map_err(|error| {
        tracing::error!(%error, "what a token may have cannot be read");
        refuse(Cause::Internal)
    })?;
    let place = Session::place(shared, &token).map_err(|full| (Cause::TooManyRequests, sentence(&full)))?;
    Ok((token, meter, place))
}

/// The token that a request bears.
pub(super) async fn authenticate(shared: &Shared, peer: IpAddr, headers: &HeaderMap) -> Result<Token, (Cause, String)> {
    if shared.refusals.has_to_wait(peer, shared.limits().refusals_per_minute) {
        return Err((Cause::TooManyRequests, "Too many refused attempts from this address; wait a minute.".into()));
    }
    let unauthorized = |message: String| {
        shared.refusals.note(peer);
        shared.metrics.unauthorized.inc();
        (Cause::Unauthorized, message)
    };
    let secret = bearer(headers).ok_or_else(|| unauthorized("The request has no token.".into()))?;
    let secret = Secret::parse(secret).map_err(|error| unauthorized(sentence(&error)))?;
    match shared.store.authenticate(&secret, unix_now()).await {
        // To its client it is as if it was revoked, so that it stops.
        Ok(token) if shared.blocks.has_token(token.id) => Err((Cause::Unauthorized, BLOCKED.to_owned())),
        Ok(token) => Ok(token),
        Err(AuthError::Store(error)) => {
            tracing::error!(%error, "the store did not answer");
            Err((Cause::Internal, Cause::Internal.message().to_owned()))
        }
        Err(error) => Err(unauthorized(sentence(&error))),
    }
}

fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    lines.iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).any(|p| p.trim() == protocol)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn upgrade(
    shared: &Arc<Shared>,
    peer: IpAddr,
    request: &mut Request<Incoming>,
    (token, meter, place): (Token, Arc<Meter>, Place),
) -> Response<EdgeBody> {
    let key = request.headers().get("sec-websocket-key").map_or(&b""[..], HeaderValue::as_bytes);
    let Ok(accept) = HeaderValue::try_from(derive_accept_key(key)) else {
        return answer(shared, Cause::Internal, request.headers());
    };
    let upgraded = hyper::upgrade::on(request);
    let owner = shared.clone();
    shared.spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<Watched>>() else {
            tracing::error!("an upgraded connection is not of the kind that the edge makes");
            return;
        };
        // hyper's buffer is dropped here; a session lives long.
        let conn = parts.io.into_inner().into_conn();
        // Failing to set it costs latency beside bulk, not correctness.
        let socket = SockRef::from(conn.tcp());
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        // A client that is gone without a word, or does not read, is given up by the kernel too.
        let _ = socket.set_tcp_user_timeout(Some(MuxLimits::default().silence));
        // Boxed, so that the spawned task is small once the handshake is over.
        Box::pin(Session::new(owner, peer, token, meter, place).run(conn, parts.read_buf)).await;
    });
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    response
}
