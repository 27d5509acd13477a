//! A request's body, which can be sent once more where a pooled connection was about to close.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use relay_protocol::exchange::{append_all, content_length};
use relay_protocol::link::Stream;
use relay_protocol::message::{HeaderList, Payload, RequestHead};
use relay_protocol::mux::{Item, StreamError};
use tokio::sync::OwnedSemaphorePermit;

use super::expects_continue;
use crate::capture::Recording;

/// A request body up to this many bytes is kept, so that it can be sent once more.
const REPLAY: usize = 64 * 1024;

/// What all exchanges with one service keep for that. Beyond it a body passes through and is gone.
const KEPT: usize = 8 * 1024 * 1024;

/// A request's body as the service gets it. Clones share it, so that it can be sent once more.
#[derive(Clone, Debug)]
pub(crate) struct RequestBody {
    sending: Arc<Mutex<Sending>>,
    /// Which attempt this clone is for.
    attempt: u32,
}

#[derive(Debug)]
struct Sending {
    stream: Stream,
    recording: Recording,
    /// The one attempt that may go on. HTTP/2 sends a body in a task of its own, which can outlive its attempt.
    attempt: u32,
    /// Taken off the stream and kept, while that is not too much.
    kept: Vec<Bytes>,
    /// What all exchanges keep.
    all: Arc<AtomicUsize>,
    kept_len: usize,
    /// How much may be kept, and where there is room for that if it is more than [`REPLAY`].
    most: usize,
    room: Option<OwnedSemaphorePermit>,
    /// How many of the kept pieces this attempt has sent.
    next: usize,
    replayable: bool,
    /// How long it is, where the request says that. Whoever knows does not ask for its end.
    length: Option<u64>,
    /// The body has ended, with these trailers.
    end: Option<Bytes>,
    ended: bool,
    failed: bool,
}

impl RequestBody {
    /// The body of a stream whose head was taken. What has arrived with the head is taken too, so that its length is
    /// known where it is all; `record` is told of it. An upgrade has no body: what comes belongs to the new protocol.
    pub(crate) fn of(
        stream: &Stream,
        kept: &Arc<AtomicUsize>,
        head: &RequestHead,
        record: impl FnOnce(&[Bytes], bool) -> Recording,
    ) -> Self {
        let mut sending = Sending::new(stream, kept);
        sending.length = content_length(head);
        sending.end = head.upgrade.as_ref().map(|_| Bytes::new());
        let held_back = expects_continue(head);
        let cx = Context::from_waker(Waker::noop());
        while !held_back && sending.end.is_none() && sending.may_keep(1) {
            match stream.poll_recv(&cx) {
                Poll::Ready(Ok(Some(Item::Data(bytes)))) => sending.keep(&bytes),
                Poll::Ready(Ok(Some(Item::End(trailers)))) => sending.end = Some(trailers),
                // An error comes again when the body is asked for.
                _ => break,
            }
        }
        sending.replayable = sending.kept_len <= REPLAY;
        sending.recording = record(&sending.kept, sending.end.is_some());
        if let Some(trailers) = sending.end.as_ref().filter(|trailers| !trailers.is_empty()) {
            sending.recording.whole(trailers);
        }
        Self::new(sending)
    }

    #[cfg(test)]
    pub(super) fn to_come(stream: &Stream) -> Self {
        Self::new(Sending::new(stream, &Arc::default()))
    }

    fn new(sending: Sending) -> Self {
        Self { attempt: sending.attempt, sending: Arc::new(Mutex::new(sending)) }
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn recording(&self) -> Recording {
        self.lock().recording.clone()
    }

    /// All of it, where all of it has come and is kept.
    pub(crate) fn whole(&self) -> Option<Bytes> {
        let sending = self.lock();
        let is_all = sending.end.is_some() || sending.length == Some(sending.kept_len as u64);
        if !is_all || !sending.replayable {
            return None;
        }
        Some(match &sending.kept[..] {
            [] => Bytes::new(),
            [all] => all.clone(),
            pieces => pieces.concat().into(),
        })
    }

    /// Keeps so much of it from now on, for which there is `room`. What could not be kept before is gone.
    pub(crate) fn keep_up_to(&self, most: usize, room: OwnedSemaphorePermit) {
        let mut sending = self.lock();
        // Once it has a room of its own, what is kept is not counted among the others'.
        if sending.room.is_none() {
            sending.all.fetch_sub(sending.kept_len, Relaxed);
        }
        (sending.most, sending.room) = (most, Some(room));
        sending.replayable |= sending.next == 0 && sending.kept_len <= most;
    }

    /// Waits until all of it is here, before any of it is sent; none where that is more than may be kept.
    pub(crate) async fn gather(&self) -> Result<Option<Bytes>, StreamError> {
        let fits = poll_fn(|cx| self.lock().poll_gather(cx)).await?;
        Ok(self.whole().filter(|_| fits))
    }

    /// Starts again from the beginning, in this clone and those made of it; false when that is not held any more.
    pub(super) fn rewind(&mut self) -> bool {
        let mut sending = self.lock();
        sending.next = 0;
        sending.ended = false;
        sending.attempt += 1;
        let (attempt, replayable) = (sending.attempt, sending.replayable);
        drop(sending);
        self.attempt = attempt;
        replayable
    }
}

impl Sending {
    fn new(stream: &Stream, all: &Arc<AtomicUsize>) -> Self {
        Self {
            stream: stream.clone(),
            recording: Recording::default(),
            attempt: 1,
            all: all.clone(),
            kept: Vec::new(),
            kept_len: 0,
            most: REPLAY,
            room: None,
            next: 0,
            replayable: true,
            length: None,
            end: None,
            ended: false,
            failed: false,
        }
    }

    /// The body has ended.
    fn ends(&mut self, trailers: Bytes) {
        self.recording.whole(&trailers);
        self.end = Some(trailers);
    }

    fn may_keep(&self, len: usize) -> bool {
        let has_room = self.room.is_some() || self.all.load(Relaxed) < KEPT;
        self.replayable && self.kept_len + len <= self.most && has_room
    }

    fn keep(&mut self, bytes: &Bytes) {
        self.kept_len += bytes.len();
        if self.room.is_none() {
            self.all.fetch_add(bytes.len(), Relaxed);
        }
        self.kept.push(bytes.clone());
    }

    fn forget(&mut self) {
        let kept = std::mem::take(&mut self.kept_len);
        if self.room.take().is_none() {
            self.all.fetch_sub(kept, Relaxed);
        }
        self.kept = Vec::new();
    }

    /// Takes the rest of it off the stream, if it may all be kept; whether it may.
    fn poll_gather(&mut self, cx: &Context<'_>) -> Poll<Result<bool, StreamError>> {
        while self.end.is_none() {
            match ready!(self.stream.poll_recv(cx))? {
                Some(Item::Data(bytes)) => {
                    self.recording.data(&bytes);
                    if !self.may_keep(bytes.len()) {
                        return Poll::Ready(Ok(false));
                    }
                    self.keep(&bytes);
                }
                Some(Item::End(trailers)) => self.ends(trailers),
                Some(Item::Head { .. }) | None => self.ends(Bytes::new()),
            }
        }
        Poll::Ready(Ok(true))
    }

    fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(bytes) = self.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if self.end.is_none() {
            match ready!(self.stream.poll_recv(cx)) {
                Ok(Some(Item::Data(bytes))) => {
                    self.recording.data(&bytes);
                    if self.may_keep(bytes.len()) {
                        self.keep(&bytes);
                        self.next += 1;
                    } else {
                        self.replayable = false;
                        self.forget();
                        self.next = 0;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Ok(Some(Item::End(trailers))) => self.ends(trailers),
                Ok(Some(Item::Head { .. }) | None) => self.ends(Bytes::new()),
                Err(error) => {
                    self.failed = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.ended = true;
        let trailers = self.end.as_ref().and_then(|end| HeaderList::from_bytes(end).ok()).unwrap_or_default();
        if trailers.is_empty() {
            return Poll::Ready(None);
        }
        let mut map = HeaderMap::new();
        append_all(&mut map, trailers);
        Poll::Ready(Some(Ok(Frame::trailers(map))))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.forget();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let mut sending = self.lock();
        if sending.attempt != self.attempt {
            return Poll::Ready(Some(Err(StreamError::Closed)));
        }
        sending.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let sending = self.lock();
        let all_sent = sending.next == sending.kept.len();
        all_sent && (sending.ended || sending.end.as_ref().is_some_and(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        let sending = self.lock();
        if sending.replayable && sending.end.as_ref().is_some_and(Bytes::is_empty) {
            let left = sending.kept.iter().skip(sending.next).map(|bytes| bytes.len() as u64).sum();
            SizeHint::with_exact(left)
        } else {
            SizeHint::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use http_body_util::BodyExt as _;
    use relay_protocol::link::Driver;
    use relay_protocol::mux::{Limits, Side};

    use super::*;

    #[tokio::test]
    async fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
        let (io, _peer) = tokio::io::duplex(1024);
        let socket = Driver::websocket(io, Bytes::new(), Side::Relay, 1024).await;
        let (link, _driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let stream = link.open(Bytes::from_static(b"head"), &mut Bytes::new(), false).unwrap();
        let mut sending = Sending::new(&stream, &Arc::default());
        sending.keep(&Bytes::from_static(b"body"));
        sending.end = Some(Bytes::new());
        let mut body = RequestBody::new(sending);
        let mut given_up = body.clone();
        assert!(body.rewind());
        assert!(given_up.frame().await.unwrap().is_err());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "body");
    }
}
