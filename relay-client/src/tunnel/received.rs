//! The requests that a capturing tunnel keeps for its owner.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::mpsc;

use crate::upstream::service::{Body, BoxError, Service};

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
        // Frames are not kept, as there may be one per byte.
        let (mut bytes, mut next) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame.as_ref().ok().and_then(Frame::data_ref).filter(|data| kept.take(data.len())) {
                Some(data) => bytes.extend_from_slice(data),
                None => {
                    next = Some(frame);
                    break;
                }
            }
        }
        let bytes = Bytes::from(bytes);
        let request = ReceivedRequest {
            method: head.method.clone(),
            path: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            headers: head.headers.clone(),
            body: bytes.clone(),
            truncated: next.as_ref().is_some_and(|next| !next.as_ref().is_ok_and(Frame::is_trailers)),
            status: None,
            missed: 0,
        };
        let body = match next {
            None => bytes.into(),
            Some(next) => Body::new(Again { read: Some(bytes), next: Some(next), rest: body }),
        };
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
    read: Option<Bytes>,
    /// What came behind that.
    next: Option<Result<Frame<Bytes>, BoxError>>,
    rest: Body,
}

impl hyper::body::Body for Again {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(read) = self.read.take().filter(|read| !read.is_empty()) {
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        match self.next.take() {
            Some(next) => Poll::Ready(Some(next)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use futures_util::stream;
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;

    /// Sends a body of these frames to a service that reads it, and returns what that got, and what was kept.
    async fn send(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> (Result<(usize, bool), String>, ReceivedRequest) {
        let (told, mut hears) = mpsc::channel(1);
        let inner = Service::new("reader", move |request: Request<Body>| {
            let told = told.clone();
            async move {
                let read = request.into_body().collect().await;
                let read = read.map(|read| (read.trailers().is_some(), read.to_bytes().len()));
                told.send(read.map(|(trailers, len)| (len, trailers)).map_err(|error| error.to_string()))
                    .await
                    .unwrap();
                Response::new(())
            }
        });
        let (service, mut received) = keeping(inner);
        service.answer(Request::new(Body::new(StreamBody::new(stream::iter(frames))))).await;
        (hears.recv().await.unwrap(), received.next().await.unwrap())
    }

    fn data(len: usize) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(vec![b'x'; len].into()))
    }

    #[tokio::test]
    async fn a_handler_gets_all_of_a_body_and_its_keeper_what_there_is_room_for() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("a"))]);
        let (got, kept) = send(vec![data(2), data(3), Ok(Frame::trailers(trailers))]).await;
        assert_eq!((got, kept.body.len(), kept.truncated), (Ok((5, true)), 5, false));
        let (got, kept) = send(Vec::new()).await;
        assert_eq!((got, kept.body.len(), kept.truncated), (Ok((0, false)), 0, false));
        let (got, kept) = send(vec![data(TOGETHER - 1), data(2), data(1)]).await;
        assert_eq!((got, kept.body.len(), kept.truncated), (Ok((TOGETHER + 2, false)), TOGETHER - 1, true));
        let (got, kept) = send(vec![data(2), Err("it broke".into())]).await;
        assert_eq!((got, kept.body.len(), kept.truncated), (Err("it broke".to_owned()), 2, true));
    }

    #[tokio::test]
    async fn room_is_there_again_for_what_was_taken() {
        let (service, mut received) = keeping(Service::new("none", |_| async { Response::new(()) }));
        for _ in 0..3 {
            service.answer(Request::new(Body::from(vec![0; TOGETHER]))).await;
            let request = received.next().await.unwrap();
            assert_eq!((request.body.len(), request.truncated), (TOGETHER, false));
        }
    }
}
