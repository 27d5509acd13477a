//! After a 101: bytes both ways, until either side has enough.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::mux::StreamError;
use relay_protocol::splice::{Carried, splice_counted};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_util::sync::CancellationToken;

use super::record::Exchange;

/// A fresh `Sec-WebSocket-Key` (RFC 6455, section 4.1), for a handshake that came as RFC 8441, which has none.
pub(crate) fn websocket_key() -> HeaderValue {
    // Base64 is always a header value; the other arm is any valid key.
    generate_key().try_into().unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// Carries bytes between an upgraded connection and its stream. The exchange lasts as long.
pub(crate) async fn run(
    upgrade: OnUpgrade,
    stream: Stream,
    exchange: Box<Exchange>,
    idle: Duration,
    closing: CancellationToken,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let carried = Carried::default();
    tokio::select! {
        ended = splice_counted(TokioIo::new(upgraded), stream.clone(), idle, &carried) => {
            // The stream has been told, and there is nobody else to tell but the record.
            let broken = ended.err().and_then(|error| error.get_ref()?.downcast_ref::<StreamError>().copied());
            broken.into_iter().for_each(|error| exchange.failed(error.into()));
        }
        () = closing.cancelled() => stream.reset(Reset::LinkLost),
    }
    exchange.received(carried.to_stream.load(Relaxed));
    exchange.sent(carried.from_stream.load(Relaxed));
}
