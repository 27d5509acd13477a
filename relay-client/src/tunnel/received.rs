//! The requests that a capturing tunnel keeps for its owner: those of its client's [capture](crate::capture), in whole.
//!
//! ```text
//!   session ──▶ upstream ──▶ service or handler
//!                  └──▶ capture ──▶ Received ──▶ Tunnel::next_request
//! ```

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use relay_protocol::exchange::append_framed;
use relay_protocol::message::RequestHead;

use crate::capture::replay::{Replay, ReplayError};
use crate::capture::{Bounds, Capture, Entry, News, Reader, Since, text};
use crate::upstream::service::{Body, BoxError, Service};
use crate::upstream::{RELAY_REQUEST_ID, X_REAL_IP, forwarded};

/// What is kept; a test that takes its requests has no use for more.
pub(crate) const BOUNDS: Bounds = Bounds { count: 1024, together: 64 << 20, body: 16 << 20 };

/// A request that a capturing tunnel has received, once it was answered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReceivedRequest {
    /// Its method.
    pub method: Method,
    /// The raw target: path and query, byte for byte as they were sent.
    pub path: String,
    /// Its headers: the sender's, and those that the relay adds (`Forwarded`, `Relay-Request-Id` …).
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Whether `body` is not all of it: it broke off, has more than 16 MiB, or whoever answered did not read it.
    pub truncated: bool,
    /// What its sender was answered; `None` where that did not wait for it.
    pub status: Option<StatusCode>,
    /// How many requests before this one are not kept any more, because as many came behind them as are kept.
    pub missed: u64,
}

impl ReceivedRequest {
    /// As it is sent once more.
    pub(crate) fn again(&self) -> Result<Replay, ReplayError> {
        let text = |name: HeaderName| self.headers.get(name).map(|value| text(value.as_bytes())).unwrap_or_default();
        let id = text(RELAY_REQUEST_ID);
        if self.truncated {
            let kept = self.body.len() as u64;
            return Err(ReplayError::Cut { id, kept, size: kept + 1 });
        }
        // The new request has an id of its own, and the relay has said nothing of it.
        let is_theirs = |(name, value): &(&HeaderName, &HeaderValue)| {
            *name != HOST
                && !name.as_str().starts_with("relay-")
                && (id.is_empty() || value.as_bytes() != id.as_bytes())
        };
        let headers = self.headers.iter().filter(is_theirs);
        let headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
        let url = format!("https://{}{}", text(HOST), self.path);
        let request = Replay::new(self.method.clone(), url, headers, self.body.to_vec());
        Ok(Replay { remote: text(X_REAL_IP), of: Some(id), ..request })
    }
}

/// Takes what a tunnel's client has kept, until that ends.
#[derive(Debug)]
pub(crate) struct Received {
    reader: Reader,
    missed: u64,
}

impl Received {
    pub(crate) fn of(capture: &Capture) -> Self {
        Self { reader: capture.read(Since::Start).when_answered(), missed: 0 }
    }

    /// The next request; `None` once nothing will come any more.
    pub(crate) async fn next(&mut self) -> Option<ReceivedRequest> {
        loop {
            match self.reader.next_as(received).await? {
                News::Request(mut request) => {
                    request.missed = std::mem::take(&mut self.missed);
                    return Some(request);
                }
                News::Missed(missed) => self.missed += missed,
                News::Answered { .. } | News::Cleared => {}
            }
        }
    }
}

/// A kept request as a service gets it.
fn received(_: u64, entry: &Entry, head: RequestHead) -> ReceivedRequest {
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::from_str(&head.authority).map(|host| (HOST, host)).ok());
    let theirs = head.headers.iter().filter(|(name, _)| *name != HOST).cloned();
    // What cannot be framed was answered with 400.
    let _ = append_framed(&mut headers, theirs);
    forwarded(&head, &mut headers);
    ReceivedRequest {
        path: head.target.as_str().to_owned(),
        method: head.method,
        headers,
        body: Bytes::copy_from_slice(entry.body()),
        truncated: entry.is_truncated(),
        status: entry.status(),
        missed: 0,
    }
}

/// A service that does as `inner`, and reads what that leaves of a request before it answers, because only what is read
/// is kept.
pub(crate) fn reading_all(inner: Service) -> Service {
    Service::new(inner.name(), move |request: Request<Body>| {
        let inner = inner.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = Arc::new(Mutex::new(body));
            let response = inner.answer(Request::from_parts(head, Body::new(Lent(body.clone())))).await;
            // Where it is still lent it is being read, perhaps as the answer's own body.
            if let Some(body) = Arc::into_inner(body) {
                let mut body = body.into_inner().unwrap_or_else(PoisonError::into_inner);
                while let Some(Ok(_)) = body.frame().await {}
            }
            response
        }
    })
}

/// A body of which its owner sees when nobody reads it any more.
struct Lent(Arc<Mutex<Body>>);

impl Lent {
    fn lock(&self) -> MutexGuard<'_, Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut *self.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.lock().size_hint()
    }
}
