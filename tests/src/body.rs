//! Bodies, for both sides: whole ones, and such as a test feeds piece by piece.

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

/// What a body that breaks off breaks off with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Any body.
pub type Body = UnsyncBoxBody<Bytes, Error>;

/// A body that is there as a whole, of known length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body passed on as it arrives.
pub fn incoming(body: Incoming) -> Body {
    body.map_err(Error::from).boxed_unsync()
}

/// A body of unknown length whose pieces, trailers and end the test decides on.
pub fn pipe() -> (Pipe, Body) {
    let (pieces, taken) = mpsc::channel(1);
    let pieces_in_order = stream::unfold(taken, |mut taken: mpsc::Receiver<Result<Frame<Bytes>, Error>>| async {
        taken.recv().await.map(|piece| (piece, taken))
    });
    (Pipe(pieces), StreamBody::new(pieces_in_order).boxed_unsync())
}

/// The end of a body into which the test puts pieces. Dropping it ends the body.
#[derive(Debug)]
pub struct Pipe(mpsc::Sender<Result<Frame<Bytes>, Error>>);

impl Pipe {
    /// Sends a piece; false when nobody reads the body any more.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Frame::data(bytes.into()))).await.is_ok()
    }

    /// Ends the body with trailers.
    pub async fn trailers(self, trailers: HeaderMap) {
        let _ = self.0.send(Ok(Frame::trailers(trailers))).await;
    }

    /// Breaks the body off.
    pub async fn abort(self) {
        let _ = self.0.send(Err("the test broke the body off".into())).await;
    }

    /// Waits until the reader has gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// `n` bytes in which every offset can be told from its neighbours, and every byte value occurs.
pub fn noise(n: usize) -> Bytes {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into()
}
