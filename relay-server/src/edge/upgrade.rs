//! After a 101: bytes both ways, until either side has enough.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::mux::StreamError;
use relay_protocol::splice::{Carried, splice_counted};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;

use super::record::Exchange;
use crate::Shared;
use crate::cause::Cause;

/// A fresh `Sec-WebSocket-Key` (RFC 6455, section 4.1), for a handshake that came as RFC 8441, which has none.
pub(crate) fn websocket_key() -> HeaderValue {
    // Base64 is always a header value; the other arm is any valid key.
    generate_key().try_into().unwrap_or(HeaderValue::from_static("AAAAAAAAAAAAAAAAAAAAAA=="))
}

/// How often the bytes of an upgraded connection are counted for its token.
const COUNT: Duration = Duration::from_secs(5);

/// Carries bytes between an upgraded connection and its stream. The exchange lasts as long, unless whoever is at that `address` is
/// kept out, or the token has used up what it may and much more.
pub(crate) async fn run(
    shared: Arc<Shared>,
    address: IpAddr,
    upgrade: OnUpgrade,
    stream: Stream,
    exchange: Box<Exchange>,
) {
    let Ok(upgraded) = upgrade.await else { return };
    let carried = Carried::default();
    let note = || exchange.carried(carried.from_stream.load(Relaxed), carried.to_stream.load(Relaxed));
    let used_up = async {
        loop {
            sleep(COUNT).await;
            note();
            if exchange.settle().is_err() {
                return;
            }
        }
    };
    tokio::select! {
        ended = splice_counted(TokioIo::new(upgraded), stream.clone(), shared.limits().upgrade_idle, &carried) => {
            // The stream has been told, and there is nobody else to tell but the record.
            let broken = ended.err().and_then(|error| error.get_ref()?.downcast_ref::<StreamError>().copied());
            broken.into_iter().for_each(|error| exchange.failed(error.into()));
        }
        () = shared.closing.cancelled() => stream.reset(Reset::LinkLost),
        () = shared.blocks.until_address(address) => {
            exchange.failed(Cause::Blocked);
            stream.reset(Reset::Cancelled);
        }
        () = used_up => {
            exchange.failed(Cause::QuotaExceeded);
            stream.reset(Reset::Cancelled);
        }
    }
    note();
}
