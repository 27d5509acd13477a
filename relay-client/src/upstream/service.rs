//! A service in this process: a handler that answers a tunnel's requests, where others dial an address.
//!
//! ```text
//!   upstream ──▶ a pipe in memory ──▶ an HTTP/1.1 server ──▶ handler
//! ```
//!
//! To the upstream it is a service like any other, so that everything which holds for services holds for handlers:
//! streaming, trailers, deadlines, upgrades. No port is open, and nobody else on this machine can reach it.

use std::convert::Infallible;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;

use crate::upstream::address::UpstreamAddr;
use crate::upstream::rewrite::{HostHeader, PublicUrlError, Rewriter};

/// Bytes on their way to a handler, or back from it, that the other side has not taken: per request and direction.
const PIPE: usize = 64 * 1024;

/// More header lines than a relay lets through; hyper's own limit is 100 with ours among them.
const HEADERS: usize = 1024;

/// Where a tunnel's requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To a service that listens at an address.
    Address(UpstreamAddr),
    /// To a handler in this process.
    Service(Service),
}

impl Destination {
    /// What `mode` means here. A handler has no name of its own, so it is told the public one.
    pub(crate) fn rewriter(&self, mode: &HostHeader, public_url: &str) -> Result<Rewriter, PublicUrlError> {
        match (self, mode) {
            (Self::Address(addr), mode) => Rewriter::new(mode, addr, public_url),
            (Self::Service(_), HostHeader::Value(_)) => Rewriter::new(mode, &UpstreamAddr::localhost(80), public_url),
            (Self::Service(_), _) => Rewriter::new(&HostHeader::Preserve, &UpstreamAddr::localhost(80), public_url),
        }
    }
}

impl From<UpstreamAddr> for Destination {
    fn from(addr: UpstreamAddr) -> Self {
        Self::Address(addr)
    }
}

impl From<Service> for Destination {
    fn from(service: Service) -> Self {
        Self::Service(service)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Service(service) => f.write_str(service.name),
        }
    }
}

type Handler = dyn Fn(Request<Body>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync;

/// A handler with a name for people. Clones share the handler.
#[derive(Clone)]
pub struct Service {
    name: &'static str,
    handler: Arc<Handler>,
}

impl Service {
    /// A service that answers each request with what `handler` makes of it. Requests are handled side by side. One
    /// whose sender has gone, or whose deadline has passed, is dropped where it waits. A panic is answered with 500.
    pub fn new<H, F, B>(name: &'static str, handler: H) -> Self
    where
        H: Fn(Request<Body>) -> F + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Into<Body>,
    {
        let handler = move |request| -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
            let answer = handler(request);
            Box::pin(async move { answer.await.map(Into::into) })
        };
        Self { name, handler: Arc::new(handler) }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Answers one request.
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response<Body> {
        (self.handler)(request).await
    }

    /// A connection, and what serves its other end for as long as it is open.
    pub(crate) fn connect(&self) -> (DuplexStream, impl Future<Output = ()> + Send + 'static) {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let own = self.clone();
        let service = service_fn(move |request: Request<hyper::body::Incoming>| {
            let own = own.clone();
            async move { Ok::<_, Infallible>(own.answer_or_500(request.map(Body::new)).await) }
        });
        let connection =
            http1::Builder::new().max_headers(HEADERS).serve_connection(TokioIo::new(theirs), service).with_upgrades();
        let serving = async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a handler's connection broke");
            }
        };
        (ours, serving)
    }

    async fn answer_or_500(&self, request: Request<Body>) -> Response<Body> {
        // Whatever the handler shares with others is its own to keep whole.
        let answered = AssertUnwindSafe(self.answer(request)).catch_unwind().await;
        answered.unwrap_or_else(|_| {
            tracing::error!("a handler panicked; its request is answered with 500");
            let mut response = Response::new(Body::from("The handler panicked.\n"));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
    }
}

impl PartialEq for Service {
    /// Whether both are clones of one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.handler, &other.handler)
    }
}

impl Eq for Service {}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Service").field(&self.name).finish()
    }
}

/// Whatever went wrong, as with a body of anybody's making.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request or of an answer: bytes that arrive over time, and trailers.
///
/// Text and bytes become one by themselves; any other [`http_body::Body`](hyper::body::Body) by [`Body::new`].
pub struct Body(UnsyncBoxBody<Bytes, BoxError>);

impl Body {
    /// A body that arrives over time. Where it ends with an error, so does the answer: it breaks off.
    pub fn new<B>(body: B) -> Self
    where
        B: hyper::body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self(body.map_err(Into::into).boxed_unsync())
    }

    /// No bytes.
    pub fn empty() -> Self {
        Self::from(Bytes::new())
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] where there are more than `most` bytes, which are not kept, and [`BodyError::Broken`]
    /// where its sender went away.
    pub async fn bytes(self, most: usize) -> Result<Bytes, BodyError> {
        match Limited::new(self, most).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(BodyError::TooLarge { most }),
            Err(error) => Err(BodyError::Broken(error)),
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("size", &hyper::body::Body::size_hint(self)).finish_non_exhaustive()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::new(Full::new(bytes))
    }
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self::empty()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from(text).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// It is longer than the reader wants.
    #[error("the body has more than {most} bytes")]
    TooLarge {
        /// The most that were wanted.
        most: usize,
    },
    /// It ended before its time: its sender went away, or the deadline passed.
    #[error("the body broke off: {0}")]
    Broken(BoxError),
}
