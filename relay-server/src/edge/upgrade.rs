//! After a 101: bytes both ways, until either side has enough.

use std::time::Duration;

use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::splice::splice;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::sync::CancellationToken;

/// A fresh `Sec-WebSocket-Key` (RFC 6455, section 4.1), for a handshake that came as RFC 8441, which has none.
pub(crate) fn websocket_key() -> HeaderValue {
    // Base64 is always a header value; the other arm is any valid key.
    generate_key().try_into().unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// Carries bytes between an upgraded connection and its stream.
pub(crate) async fn run(upgrade: OnUpgrade, stream: Stream, idle: Duration, closing: CancellationToken) {
    let Ok(upgraded) = upgrade.await else { return };
    tokio::select! {
        // The stream has been told, and there is nobody else to tell.
        _ = splice(TokioIo::new(upgraded), stream.clone(), idle) => {}
        () = closing.cancelled() => stream.reset(Reset::LinkLost),
    }
}
