//! A request's body: passed on as it comes, and kept meanwhile as far as somebody needs it once more.

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

use super::expects_continue;
use crate::capture::Recording;

/// A body up to this many bytes is short: it is kept in any case, so that it can be sent once more where a pooled
/// connection was about to close.
pub(crate) const SHORT: usize = 64 << 10;

/// What all short bodies of a tunnel may take, in bytes. Beyond it one passes through and is gone.
const SHORT_ALL: usize = 8 << 20;

/// What all longer ones may take that somebody wants to look at, in bytes.
const LONG_ALL: usize = 64 << 20;

/// The room that a tunnel's requests have for bodies that are kept. Short ones have their own, so that whoever fills the
/// other with long ones is not in their way.
#[derive(Debug, Default)]
pub(crate) struct Room {
    short: AtomicUsize,
    long: AtomicUsize,
}

/// Takes so much of what has this limit; whether that was left.
fn take(taken: &AtomicUsize, len: usize, limit: usize) -> bool {
    let fits = taken.fetch_add(len, Relaxed) + len <= limit;
    if !fits {
        taken.fetch_sub(len, Relaxed);
    }
    fits
}

/// What became of waiting for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// All of it is here.
    Whole,
    /// It is longer than it may be. What has come is sent on with the rest.
    TooLong,
    /// Too much of others' is kept already.
    NoRoom,
}

/// A request body as the service gets it. Clones share it, so that it can be sent once more.
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
    /// Taken off the stream, and not given back to the room.
    kept: Vec<Bytes>,
    kept_len: usize,
    /// How many of the kept pieces this attempt has sent.
    next: usize,
    /// All that has come is kept, also what was sent.
    keeps: bool,
    /// The most that may be kept.
    most: usize,
    room: Arc<Room>,
    /// Whether what is kept counts among the long bodies.
    is_long: bool,
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
        room: &Arc<Room>,
        head: &RequestHead,
        record: impl FnOnce(&[Bytes], bool) -> Recording,
    ) -> Self {
        let mut sending = Sending::new(stream, room);
        sending.length = content_length(head);
        sending.end = head.upgrade.as_ref().map(|_| Bytes::new());
        let held_back = expects_continue(head);
        let cx = Context::from_waker(Waker::noop());
        while !held_back && sending.end.is_none() && sending.keeps {
            match stream.poll_recv(&cx) {
                Poll::Ready(Ok(Some(Item::Data(bytes)))) => sending.hold(bytes),
                Poll::Ready(Ok(Some(Item::End(trailers)))) => sending.end = Some(trailers),
                // An error comes again when the body is asked for.
                _ => break,
            }
        }
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

    /// Whether all of it has come and is kept.
    pub(crate) fn is_whole(&self) -> bool {
        self.lock().is_whole()
    }

    /// All of it, where all of it has come and is kept.
    pub(crate) fn whole(&self) -> Option<Bytes> {
        let mut sending = self.lock();
        sending.is_whole().then(|| sending.joined())
    }

    /// What stands behind it, as far as that has come.
    pub(crate) fn trailers(&self) -> HeaderList {
        self.lock().trailers()
    }

    /// Keeps so much of it from now on, where there is room. What could not be kept before is gone.
    pub(crate) fn keep_up_to(&self, most: usize) {
        let mut sending = self.lock();
        sending.most = most;
        if !sending.keeps && sending.next == 0 && sending.kept_len <= most {
            let len = sending.kept_len;
            sending.keeps = !sending.is_long && sending.becomes_long(len);
        }
    }

    /// Nobody needs to look at it any more: if it is long, it goes as it is sent.
    pub(crate) fn release(&self) {
        let mut sending = self.lock();
        sending.most = SHORT;
        if sending.is_long {
            sending.let_go();
        }
    }

    /// Waits until all of it is here, before any of it is sent.
    pub(crate) async fn gather(&self) -> Result<Gathered, StreamError> {
        poll_fn(|cx| self.lock().poll_gather(cx)).await
    }

    /// Starts again from the beginning, in this clone and those made of it; false when that is not held any more.
    pub(super) fn rewind(&mut self) -> bool {
        let mut sending = self.lock();
        sending.next = 0;
        sending.ended = false;
        sending.attempt += 1;
        let (attempt, keeps) = (sending.attempt, sending.keeps);
        drop(sending);
        self.attempt = attempt;
        keeps
    }
}

impl Sending {
    fn new(stream: &Stream, room: &Arc<Room>) -> Self {
        Self {
            stream: stream.clone(),
            recording: Recording::default(),
            attempt: 1,
            kept: Vec::new(),
            kept_len: 0,
            next: 0,
            keeps: true,
            most: SHORT,
            room: room.clone(),
            is_long: false,
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

    fn trailers(&self) -> HeaderList {
        self.end.as_ref().and_then(|end| HeaderList::from_bytes(end).ok()).unwrap_or_default()
    }

    fn is_whole(&self) -> bool {
        self.keeps && (self.end.is_some() || self.length == Some(self.kept_len as u64))
    }

    /// All that is kept, in one piece.
    fn joined(&mut self) -> Bytes {
        match &self.kept[..] {
            [] => Bytes::new(),
            [all] => all.clone(),
            pieces => {
                let all = Bytes::from(pieces.concat());
                // An attempt that is in the midst of them goes on with them.
                if self.next == 0 || self.next == pieces.len() {
                    self.next = self.next.min(1);
                    self.kept = vec![all.clone()];
                }
                all
            }
        }
    }

    fn has_room(&mut self, len: usize) -> bool {
        let all = self.kept_len + len;
        if all > self.most {
            return false;
        }
        if self.is_long {
            return take(&self.room.long, len, LONG_ALL);
        }
        if all <= SHORT && take(&self.room.short, len, SHORT_ALL) {
            return true;
        }
        self.most > SHORT && self.becomes_long(all)
    }

    /// Counts among the long bodies from now on, as one of that length; whether there is room for that.
    fn becomes_long(&mut self, len: usize) -> bool {
        self.is_long = take(&self.room.long, len, LONG_ALL);
        if self.is_long {
            self.room.short.fetch_sub(self.kept_len, Relaxed);
        }
        self.is_long
    }

    /// Holds a piece that has not been sent, be there room or not.
    fn hold(&mut self, bytes: Bytes) {
        if !self.has_room(bytes.len()) {
            self.keeps = false;
            self.taken().fetch_add(bytes.len(), Relaxed);
        }
        self.kept_len += bytes.len();
        self.kept.push(bytes);
    }

    fn taken(&self) -> &AtomicUsize {
        if self.is_long { &self.room.long } else { &self.room.short }
    }

    /// What was sent is not needed any more, and what is still to be sent is not when it was.
    fn let_go(&mut self) {
        self.keeps = false;
        let sent: usize = self.kept.drain(..self.next.min(self.kept.len())).map(|bytes| bytes.len()).sum();
        self.next = 0;
        self.kept_len -= sent;
        self.taken().fetch_sub(sent, Relaxed);
    }

    /// The next of what is kept and was not sent.
    fn next_kept(&mut self) -> Option<Bytes> {
        let bytes = self.kept.get_mut(self.next)?;
        self.next += 1;
        if self.keeps {
            return Some(bytes.clone());
        }
        let bytes = std::mem::take(bytes);
        self.kept_len -= bytes.len();
        self.taken().fetch_sub(bytes.len(), Relaxed);
        Some(bytes)
    }

    /// Takes the rest of it off the stream, as far as it may be kept.
    fn poll_gather(&mut self, cx: &Context<'_>) -> Poll<Result<Gathered, StreamError>> {
        while self.keeps && !self.is_whole() {
            match ready!(self.stream.poll_recv(cx))? {
                Some(Item::Data(bytes)) => {
                    self.recording.data(&bytes);
                    self.hold(bytes);
                }
                Some(Item::End(trailers)) => self.ends(trailers),
                Some(Item::Head { .. }) | None => self.ends(Bytes::new()),
            }
        }
        Poll::Ready(Ok(match self.keeps {
            true => Gathered::Whole,
            false if self.kept_len > self.most => Gathered::TooLong,
            false => Gathered::NoRoom,
        }))
    }

    fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if let Some(bytes) = self.next_kept() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.end.is_none() {
            match ready!(self.stream.poll_recv(cx)) {
                Ok(Some(Item::Data(bytes))) => {
                    self.recording.data(&bytes);
                    if self.keeps && self.has_room(bytes.len()) {
                        self.kept_len += bytes.len();
                        self.kept.push(bytes.clone());
                        self.next += 1;
                    } else if self.keeps {
                        self.let_go();
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
        let trailers = self.trailers();
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
        self.taken().fetch_sub(self.kept_len, Relaxed);
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
        if sending.end.as_ref().is_some_and(Bytes::is_empty) {
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
        sending.hold(Bytes::from_static(b"body"));
        sending.end = Some(Bytes::new());
        let mut body = RequestBody::new(sending);
        let mut given_up = body.clone();
        assert!(body.rewind());
        assert!(given_up.frame().await.unwrap().is_err());
        assert_eq!(body.collect().await.unwrap().to_bytes(), "body");
    }

    /// A body of these pieces, none of which was sent; its end has come.
    async fn held(room: &Arc<Room>, most: usize, pieces: &[usize]) -> RequestBody {
        let (io, _peer) = tokio::io::duplex(1024);
        let socket = Driver::websocket(io, Bytes::new(), Side::Relay, 1024).await;
        let (link, _driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let stream = link.open(Bytes::from_static(b"head"), &mut Bytes::new(), false).unwrap();
        let body = RequestBody::new(Sending::new(&stream, room));
        body.keep_up_to(most);
        for (piece, len) in pieces.iter().enumerate() {
            body.lock().hold(vec![u8::try_from(piece).unwrap(); *len].into());
        }
        body.lock().end = Some(Bytes::new());
        body
    }

    #[tokio::test]
    async fn what_is_kept_has_a_limit_and_is_given_back() {
        let room = Arc::new(Room::default());
        let taken = || [&room.short, &room.long].map(|taken| taken.load(Relaxed));
        let mib = 1 << 20;
        // Short ones and long ones have rooms of their own.
        let bodies = [held(&room, SHORT, &[10, 20]).await, held(&room, mib, &[SHORT, 1]).await];
        assert_eq!(taken(), [30, SHORT + 1]);
        assert!(bodies.iter().all(RequestBody::is_whole));
        // Of a long one that nobody needs any more so much is kept as has not been sent.
        let [short, mut long] = bodies;
        drop(short);
        assert_eq!(taken(), [0, SHORT + 1]);
        assert_eq!(long.whole().unwrap().len(), SHORT + 1);
        long.release();
        assert_eq!(long.size_hint().exact(), Some(SHORT as u64 + 1));
        assert_eq!(long.frame().await.unwrap().unwrap().into_data().unwrap().len(), SHORT + 1);
        assert_eq!((taken(), long.whole()), ([0, 0], None));
        assert!(!long.rewind(), "it is gone");
        drop(long);

        // Where the room is full, the next is not kept, and is sent all the same.
        let mut full = Vec::new();
        while room.long.load(Relaxed) + 8 * mib <= LONG_ALL {
            full.push(held(&room, 8 * mib, &[8 * mib]).await);
        }
        let mut late = held(&room, 8 * mib, &[SHORT, SHORT]).await;
        assert_eq!((late.is_whole(), late.gather().await), (false, Ok(Gathered::NoRoom)));
        assert_eq!(late.frame().await.unwrap().unwrap().into_data().unwrap().len(), SHORT);
        let short = held(&room, 8 * mib, &[SHORT]).await;
        assert!(short.is_whole(), "short ones still have room");
        // Nor is one that is too long, which is another matter.
        drop(full);
        let long = held(&room, mib, &[mib, 1]).await;
        assert_eq!(long.gather().await, Ok(Gathered::TooLong));
        assert_eq!(long.collect().await.unwrap().to_bytes().len(), mib + 1);
        drop((late, short));
        assert_eq!(taken(), [0, 0]);
    }

    #[tokio::test]
    async fn what_came_before_somebody_asked_for_it_is_kept_from_then_on() {
        let room = Arc::new(Room::default());
        let body = held(&room, SHORT, &[SHORT, SHORT]).await;
        assert!(!body.is_whole());
        body.keep_up_to(1 << 20);
        assert_eq!(body.whole().unwrap().len(), 2 * SHORT);
        drop(body);
        assert_eq!([room.short.load(Relaxed), room.long.load(Relaxed)], [0, 0]);
    }
}
