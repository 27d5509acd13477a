//! The requests that a capturing tunnel keeps for its owner.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::service::{Body, BoxError, Service};

/// Requests that wait to be taken; those that come then are counted and not kept.
const WAITING: usize = 1024;

/// Bytes of bodies that are kept together; a body is kept up to where it meets this.
const TOGETHER: usize = 64 << 20;

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
    /// Whether `body` is not all of it: it broke off, or the bodies that wait to be taken have 64 MiB together.
    pub truncated: bool,
    /// What it was answered with; `None` where the sender or the deadline did not wait for the handler.
    pub status: Option<StatusCode>,
    /// How many requests between the one before and this one were not kept, because 1,024 waited to be taken.
    pub missed: u64,
}

/// Takes what a [`keeping`] service has received, until the service is gone.
#[derive(Debug)]
pub(crate) struct Received {
    requests: mpsc::Receiver<(ReceivedRequest, Kept)>,
}

impl Received {
    /// The next request; `None` once nothing will come any more.
    pub(crate) async fn next(&mut self) -> Option<ReceivedRequest> {
        self.requests.recv().await.map(|(request, _kept)| request)
    }
}

/// A service that does as `inner`, and keeps each request that it gets. A body is read before `inner` sees the request.
pub(crate) fn keeping(inner: Service) -> (Service, Received) {
    let (sender, requests) = mpsc::channel(WAITING);
    let shelf = Arc::new(Shelf { sender, missed: AtomicU64::new(0), taken: Arc::default() });
    let name = inner.name();
    let service = Service::new(name, move |request| {
        let (shelf, inner) = (shelf.clone(), inner.clone());
        async move {
            let (pending, request) = Pending::read(shelf, request).await;
            pending.answered(inner.answer(request).await)
        }
    });
    (service, Received { requests })
}

#[derive(Debug)]
struct Shelf {
    sender: mpsc::Sender<(ReceivedRequest, Kept)>,
    missed: AtomicU64,
    taken: Arc<AtomicUsize>,
}

impl Shelf {
    fn put(&self, mut request: ReceivedRequest, kept: Kept) {
        let Ok(place) = self.sender.try_reserve() else {
            self.missed.fetch_add(1, Relaxed);
            return;
        };
        request.missed = self.missed.swap(0, Relaxed);
        place.send((request, kept));
    }
}

/// A share of what bodies may take.
#[derive(Debug)]
struct Kept {
    taken: Arc<AtomicUsize>,
    bytes: usize,
}

impl Kept {
    /// Whether there is room for so many more.
    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.taken.fetch_add(bytes, Relaxed) + bytes <= TOGETHER;
        if fits {
            self.bytes += bytes;
        } else {
            self.taken.fetch_sub(bytes, Relaxed);
        }
        fits
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Relaxed);
    }
}

/// A request that is being answered. It is kept even where nobody waits for the answer any more.
struct Pending {
    shelf: Arc<Shelf>,
    request: Option<(ReceivedRequest, Kept)>,
}

impl Pending {
    async fn read(shelf: Arc<Shelf>, request: Request<Body>) -> (Self, Request<Body>) {
        let (head, mut body) = request.into_parts();
        let mut kept = Kept { taken: shelf.taken.clone(), bytes: 0 };
        let (mut bytes, mut read) = (Vec::new(), VecDeque::new());
        let mut truncated = false;
        while let Some(frame) = body.frame().await {
            let fits = frame.as_ref().is_ok_and(|frame| frame.data_ref().is_none_or(|data| kept.take(data.len())));
            if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref).filter(|_| fits) {
                bytes.extend_from_slice(data);
            }
            read.push_back(frame);
            if !fits {
                truncated = true;
                break;
            }
        }
        let request = ReceivedRequest {
            method: head.method.clone(),
            path: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            headers: head.headers.clone(),
            body: bytes.into(),
            truncated,
            status: None,
            missed: 0,
        };
        let rest = truncated.then_some(body);
        let body = if read.is_empty() { Body::empty() } else { Body::new(Again { read, rest }) };
        (Self { shelf, request: Some((request, kept)) }, Request::from_parts(head, body))
    }

    fn answered(mut self, response: Response<Body>) -> Response<Body> {
        if let Some((request, _)) = &mut self.request {
            request.status = Some(response.status());
        }
        response
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((request, kept)) = self.request.take() {
            self.shelf.put(request, kept);
        }
    }
}

/// A body whose beginning has been read.
struct Again {
    read: VecDeque<Result<Frame<Bytes>, BoxError>>,
    rest: Option<Body>,
}

impl hyper::body::Body for Again {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match (self.read.pop_front(), &mut self.rest) {
            (Some(frame), _) => Poll::Ready(Some(frame)),
            (None, Some(rest)) => Pin::new(rest).poll_frame(cx),
            (None, None) => Poll::Ready(None),
        }
    }
}
