//! The two bodies of an exchange as they pass the edge.

use std::future::{Future as _, poll_fn};
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::Stream as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use relay_protocol::exchange::{append_all, end_to_end_trailers};
use relay_protocol::frame::Reset;
use relay_protocol::link::Stream;
use relay_protocol::message::{HeaderList, Payload};
use relay_protocol::mux::{Item, StreamError};
use tokio::time::{Instant, Sleep, timeout, timeout_at};
use tokio_util::io::ReaderStream;
use tokio_util::sync::DropGuard;

use super::gate::imitates_ours;
use super::io::Clock;
use super::record::{Exchange, Receiving};
use super::respond::is_edges;
use super::room::Share;
use crate::cause::Cause;
use crate::limits::Limits;

/// A response's body: the relay's own answer, or what comes back through the tunnel.
#[derive(Debug)]
pub(crate) struct EdgeBody {
    source: Source,
    /// The record of the exchange, which ends with its body.
    exchange: Option<Box<Exchange>>,
    /// Tells of its end where a sender is still sending.
    _end: Option<DropGuard>,
}

#[derive(Debug)]
enum Source {
    Whole(Option<Bytes>),
    Stream(Box<Download>),
    File(Box<ReaderStream<tokio::fs::File>>),
}

/// Bytes of a file that are read at once.
const PIECE: usize = 64 * 1024;

/// A body that is still arriving through the tunnel.
#[derive(Debug)]
pub(crate) struct Download {
    stream: Stream,
    /// Taken off the stream before hyper asked.
    early: [Option<Item>; 2],
    ended: bool,
    progress: Arc<Progress>,
}

/// How long a sender may be silent, and go on in all, behind the end of its answer.
const LINGER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Reads on behind an answer what nobody wants, so that its sender sees the answer. Many look at one only when they have
/// sent what they had: to them HTTP/1.1's closing of the connection (RFC 9112, section 9.6) or HTTP/2's reset (RFC 9113,
/// section 8.1) would be all that they see of it. Whoever goes on for too long is cut off.
pub(crate) async fn discard(mut body: Incoming) {
    let (silence, all) = LINGER;
    let rest = async {
        while let Ok(Some(Ok(_))) = timeout(silence, poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await {}
    };
    let _ = timeout(all, rest).await;
}

/// When a download last moved, for whoever ends those that do not.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    /// Milliseconds since `start`, times two, plus one while we wait for the tunnel and not for the receiver.
    last: AtomicU64,
    /// The connection that the response goes to, once it is known.
    clock: OnceLock<Weak<Clock>>,
    /// The receiver has been found not to read.
    unread: AtomicBool,
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.unread.load(Relaxed) {
            self.with_clock(|clock| clock.note_unread(false));
        }
    }
}

impl Progress {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
            clock: OnceLock::new(),
            unread: AtomicBool::new(false),
        })
    }

    fn note(&self, waiting: bool) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX / 4);
        self.last.store(millis * 2 + u64::from(waiting), Relaxed);
    }

    fn with_clock(&self, then: impl FnOnce(&Clock)) {
        if let Some(clock) = self.clock.get().and_then(Weak::upgrade) {
            then(&clock);
        }
    }

    /// Tells the connection that it does not read this response, where that is what it is stuck by.
    pub(crate) fn accuse(&self) {
        let waits_for_tunnel = self.last.load(Relaxed) % 2 == 1;
        if !waits_for_tunnel && !self.unread.swap(true, Relaxed) {
            self.with_clock(|clock| clock.note_unread(true));
        }
    }

    /// Whether nothing has moved for longer than `limits` allow.
    pub(crate) fn is_stuck(&self, limits: &Limits) -> bool {
        let last = self.last.load(Relaxed);
        let limit = if last % 2 == 1 { limits.response_idle } else { limits.write_idle };
        self.start.elapsed() > std::time::Duration::from_millis(last / 2) + limit
    }
}

impl EdgeBody {
    /// An answer of the relay's own.
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { source: Source::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())), exchange: None, _end: None }
    }

    /// Nothing.
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// What is in a file. Whoever is told its length sees where it could not be read to its end.
    pub(crate) fn file(file: tokio::fs::File) -> Self {
        let stream = ReaderStream::with_capacity(file, PIECE);
        Self { source: Source::File(Box::new(stream)), exchange: None, _end: None }
    }

    /// What `stream` brings after its head. A small body that is already there becomes one piece, which hyper writes
    /// together with the head: but only one of the length that the head `declared`, because hyper takes a whole body's
    /// word for it. It measures the others, and breaks off what is shorter.
    /// A `bodyless` response, such as that to HEAD, declares a length and has none.
    pub(crate) fn download(stream: Stream, uploading: bool, declared: Option<u64>, bodyless: bool) -> Self {
        // Nobody needs to be woken for what is not there yet: hyper asks for the body in any case.
        let cx = Context::from_waker(Waker::noop());
        let next = || match stream.poll_recv(&cx) {
            Poll::Ready(Ok(item)) => item,
            // The error comes again when the body is asked for it.
            Poll::Ready(Err(_)) | Poll::Pending => None,
        };
        let first = next();
        let second = if matches!(first, Some(Item::Data(_))) { next() } else { None };
        let is_whole = |bytes: &[u8], end: &Bytes| {
            let fits = |length| length == bytes.len() as u64 || bodyless && bytes.is_empty();
            end.is_empty() && !uploading && declared.is_none_or(fits)
        };
        let source = match (first, second) {
            (Some(Item::End(end)), None) if is_whole(&[], &end) => Source::Whole(None),
            (Some(Item::Data(bytes)), Some(Item::End(end))) if is_whole(&bytes, &end) => Source::Whole(Some(bytes)),
            (first, second) => Source::Stream(Box::new(Download {
                stream,
                early: [first, second],
                ended: false,
                progress: Progress::new(),
            })),
        };
        Self { source, exchange: None, _end: None }
    }

    /// Lets the record of the exchange end with this body.
    pub(crate) fn record(&mut self, exchange: Box<Exchange>) {
        if let Source::Whole(Some(bytes)) = &self.source {
            exchange.sent(bytes.len() as u64);
        }
        if let Source::Stream(download) = &self.source {
            // A body is recorded once.
            let _ = download.progress.clock.set(Arc::downgrade(exchange.in_flight.clock()));
        }
        self.exchange = Some(exchange);
    }

    /// Drops `end` with this body.
    pub(crate) fn ends(&mut self, end: DropGuard) {
        self._end = Some(end);
    }

    /// What to watch, where the body does not end at once.
    pub(crate) fn watch(&self) -> Option<(Arc<Progress>, Stream)> {
        match &self.source {
            Source::Whole(_) | Source::File(_) => None,
            Source::Stream(download) => Some((download.progress.clone(), download.stream.clone())),
        }
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::File(file) => Pin::new(file).poll_next(cx).map(|read| {
                let failed = |error: std::io::Error| {
                    tracing::error!(%error, "a file cannot be read to its end");
                    StreamError::Closed
                };
                read.map(|read| read.map(Frame::data).map_err(failed))
            }),
            Source::Stream(download) => {
                let frame = ready!(download.poll_frame(cx));
                if let Some(exchange) = &this.exchange {
                    match &frame {
                        Some(Ok(frame)) => {
                            exchange.sent(frame.data_ref().map_or(0, |bytes| bytes.len() as u64));
                            if exchange.settle().is_err() {
                                exchange.failed(Cause::QuotaExceeded);
                                download.end(Reset::Cancelled);
                                return Poll::Ready(Some(Err(StreamError::Reset(Reset::Cancelled))));
                            }
                        }
                        Some(Err(error)) => exchange.failed(Cause::from(*error)),
                        None => {}
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Stream(download) => download.ended,
            Source::File(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Stream(_) | Source::File(_) => SizeHint::default(),
        }
    }
}

impl Download {
    /// Nothing more comes.
    fn end(&mut self, reset: Reset) {
        self.ended = true;
        self.stream.reset(reset);
    }

    fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.early.iter_mut().find_map(Option::take) {
            Some(item) => Ok(Some(item)),
            None => match self.stream.poll_recv(cx) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    self.progress.note(true);
                    return Poll::Pending;
                }
            },
        };
        self.progress.note(false);
        Poll::Ready(match item {
            Ok(Some(Item::Data(bytes))) => Some(Ok(Frame::data(bytes))),
            Ok(Some(Item::End(trailers))) => {
                self.ended = true;
                trailers_frame(&trailers)
            }
            Ok(Some(Item::Head { .. }) | None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        })
    }
}

/// Trailers for the other side; `None` where there are none, or where they make no sense.
fn trailers_frame(trailers: &Bytes) -> Option<Result<Frame<Bytes>, StreamError>> {
    let list = HeaderList::from_bytes(trailers).ok().filter(|list| !list.is_empty())?;
    let mut map = http::HeaderMap::new();
    append_all(&mut map, list);
    let mut allowed = http::HeaderMap::new();
    let mut theirs = end_to_end_trailers(&map);
    theirs.retain(|(name, _)| !is_edges(name));
    append_all(&mut allowed, theirs);
    Some(Ok(Frame::trailers(allowed)))
}

/// A request's trailers as they cross the wire.
fn passed_trailers(frame: Frame<Bytes>) -> Bytes {
    let trailers = frame.into_trailers().unwrap_or_default();
    let mut trailers = end_to_end_trailers(&trailers);
    // Some services read trailers as if they were headers.
    trailers.retain(|(name, _)| !imitates_ours(name));
    trailers.to_bytes().unwrap_or_default()
}

/// Why a request's body did not arrive whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadError {
    /// It is larger than the limits allow.
    TooLarge,
    /// It stopped coming.
    Silent,
    /// The sender sent something that is not a body.
    Malformed,
    /// The sender went away.
    Gone,
    /// The token has used up what it may, and much more.
    Quota,
    /// The tunnel wants no more of it. The response says why, or the stream does.
    Unwanted,
}

impl UploadError {
    /// hyper calls a body that it cannot read invalid; all else means that there is no more of it.
    fn of(error: &hyper::Error) -> Self {
        let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
        match source.map(std::io::Error::kind) {
            Some(ErrorKind::InvalidInput | ErrorKind::InvalidData) => Self::Malformed,
            _ => Self::Gone,
        }
    }

    /// What the sender is answered, if it still can be.
    pub(crate) const fn cause(self) -> Cause {
        match self {
            Self::TooLarge => Cause::BodyTooLarge,
            Self::Silent => Cause::BodyTimeout,
            Self::Quota => Cause::QuotaExceeded,
            Self::Malformed | Self::Gone => Cause::BadRequest,
            Self::Unwanted => Cause::UpstreamInvalid,
        }
    }

    /// What the client is told, so that it can say how the sender was answered.
    pub(crate) const fn reset(self) -> Reset {
        match self {
            Self::TooLarge => Reset::TooLarge,
            Self::Silent => Reset::Idle,
            Self::Malformed => Reset::Malformed,
            Self::Gone | Self::Unwanted | Self::Quota => Reset::Cancelled,
        }
    }
}

/// A request's body on its way into the tunnel.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    /// The most bytes that it may have.
    most: u64,
    limits: Arc<Limits>,
    /// Read, and not yet covered by the client's credit.
    held: Bytes,
    /// All that was read, while that is little: should the link be lost, it is sent again on another.
    kept: Kept,
    received: u64,
    /// The same for the exchange's record, once the response has begun.
    counted: Option<Arc<Receiving>>,
    /// The body was asked for: with that hyper sends the 100 that a sender may wait for.
    asked: bool,
    /// The body was read to its end.
    ended: bool,
    /// What stood behind it, as it crosses the wire.
    trailers: Bytes,
    idle: Option<Pin<Box<Sleep>>>,
    /// When the last piece came, of a body that did not come with its head.
    moved: Option<Instant>,
    /// Of a body that was gathered, until the stream has it all.
    room: Option<Share>,
}

/// Whether a body could be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// It is held whole.
    Whole,
    /// It has more bytes than were to be held.
    TooLong,
    /// Others need the room.
    NoRoom,
    /// It was not there in time.
    TooSlow,
}

/// The pieces of a body, as they came: nothing is copied, and one piece needs no allocation.
#[derive(Clone, Debug, Default)]
struct Kept {
    first: Bytes,
    more: Vec<Bytes>,
    /// Of all pieces that came; none is kept once this is beyond [`MAX_KEPT`].
    size: usize,
    /// Pieces that the stream has, or that are held for it.
    taken: usize,
}

/// Bytes of a body that are kept until its request is answered.
pub(crate) const MAX_KEPT: usize = 64 * 1024;

/// What a piece counts for at least, because it may keep a buffer alive that is larger than itself.
const MIN_PIECE: usize = 1024;

impl Kept {
    /// Notes a piece that goes to the stream.
    fn push(&mut self, piece: &Bytes) {
        if piece.is_empty() || !self.is_whole() {
            return;
        }
        self.size += piece.len().max(MIN_PIECE);
        if !self.is_whole() {
            return self.forget();
        }
        if self.first.is_empty() {
            self.first = piece.clone()
        } else {
            self.more.push(piece.clone())
        }
        self.taken += 1;
    }

    /// The next piece that the stream has not had yet.
    fn next(&mut self) -> Option<Bytes> {
        let piece = match self.taken.checked_sub(1) {
            None => Some(&self.first).filter(|first| !first.is_empty()),
            Some(behind_first) => self.more.get(behind_first),
        };
        let piece = piece?.clone();
        self.taken += 1;
        Some(piece)
    }

    fn count(&self) -> usize {
        usize::from(!self.first.is_empty()) + self.more.len()
    }

    const fn is_whole(&self) -> bool {
        self.size <= MAX_KEPT
    }

    /// Keeps nothing but what the stream has still to get.
    fn forget(&mut self) {
        let more = std::iter::from_fn(|| self.next()).collect();
        *self = Self { first: Bytes::new(), more, size: usize::MAX, taken: 1 };
    }
}

impl Upload {
    pub(crate) fn new(body: Incoming, limits: Arc<Limits>) -> Self {
        let ended = body.is_end_stream();
        Self {
            body,
            most: limits.body_bytes,
            limits,
            held: Bytes::new(),
            kept: Kept::default(),
            received: 0,
            counted: None,
            asked: false,
            ended,
            trailers: Bytes::new(),
            idle: None,
            moved: None,
            room: None,
        }
    }

    /// Takes no more bytes than these, where the relay allows more.
    pub(crate) fn allow(&mut self, most: u64) {
        self.most = self.most.min(most);
    }

    /// Reads what is there before there is a stream; ready once there is something or the body has ended.
    pub(crate) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        while !self.ended && self.held.is_empty() {
            self.asked = true;
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.take(frame)?,
                Some(Err(error)) => return Poll::Ready(Err(UploadError::of(&error))),
                None => self.ended = true,
            }
            self.ended |= self.body.is_end_stream();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the body to its end, before any of it is sent, if it is there by `until`, has no more than `most` bytes and,
    /// beyond those that are kept of every body, there is `room` for it among those to tunnels of the token, and among the
    /// sender's. What was read is held in one piece.
    pub(crate) async fn gather(
        &mut self,
        most: usize,
        until: Instant,
        room: impl FnOnce() -> Option<Share>,
    ) -> Result<Gathered, UploadError> {
        let declared = self.body.size_hint().lower().saturating_add(self.held.len() as u64);
        if declared > most as u64 {
            return Ok(Gathered::TooLong);
        }
        if self.first().1 {
            return Ok(Gathered::Whole);
        }
        // One that was gathered before has its place.
        let Some(mut share) = self.room.take().or_else(room) else { return Ok(Gathered::NoRoom) };
        let mut whole = BytesMut::from(std::mem::take(&mut self.held));
        // Of a request that moves, all has come already.
        while let Some(piece) = self.kept.next() {
            whole.extend_from_slice(&piece);
        }
        let gathered = loop {
            if whole.len() > most {
                break Gathered::TooLong;
            }
            let beyond = whole.len().saturating_sub(MAX_KEPT);
            if !share.grow(beyond) {
                break Gathered::NoRoom;
            }
            if self.ended {
                break Gathered::Whole;
            }
            let silent = Instant::now() + self.limits.body_idle;
            match timeout_at(silent.min(until), poll_fn(|cx| self.poll_first(cx))).await {
                Ok(piece) => piece?,
                Err(_) if until < silent => break Gathered::TooSlow,
                Err(_) => return Err(UploadError::Silent),
            }
            self.moved = Some(Instant::now());
            whole.extend_from_slice(&std::mem::take(&mut self.held));
        };
        self.held = whole.freeze();
        self.room = Some(share);
        Ok(gathered)
    }

    /// The next piece, for somebody else than a stream; none at the end. Nothing is kept of it.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, UploadError> {
        self.kept.forget();
        if self.held.is_empty() && !self.ended {
            let piece = timeout(self.limits.body_idle, poll_fn(|cx| self.poll_first(cx))).await;
            piece.map_err(|_| UploadError::Silent)??;
        }
        let piece = std::mem::take(&mut self.held);
        self.make_room();
        Ok(Some(piece).filter(|piece| !piece.is_empty()))
    }

    /// What stood behind the body, as it crosses the wire.
    pub(crate) fn trailers(&self) -> &Bytes {
        &self.trailers
    }

    /// What has been read and not been sent.
    pub(crate) fn held(&self) -> &Bytes {
        &self.held
    }

    /// What a stream is opened with, and whether it is all.
    pub(crate) fn first(&mut self) -> (&mut Bytes, bool) {
        let is_all = self.ended && self.trailers.is_empty() && self.kept.taken == self.kept.count();
        (&mut self.held, is_all)
    }

    /// Whether everything is in the stream after it was opened with [`Self::first`].
    pub(crate) fn is_done(&mut self) -> bool {
        self.make_room();
        let (held, is_all) = self.first();
        is_all && held.is_empty()
    }

    /// Gives the room back, once the stream has all that was gathered.
    fn make_room(&mut self) {
        if self.held.is_empty() {
            self.room = None;
        }
    }

    /// The room of what was gathered, for whoever takes that over.
    pub(crate) fn take_room(&mut self) -> Option<Share> {
        self.room.take()
    }

    /// Begins again for another stream, which is to be opened with [`Self::first`]. False where what was sent is not kept
    /// any more.
    pub(crate) fn rewind(&mut self) -> bool {
        if !self.kept.is_whole() {
            return false;
        }
        self.kept.taken = 0;
        self.held = self.kept.next().unwrap_or_default();
        self.idle = None;
        true
    }

    /// Keeps nothing any more that has been sent: the request has been answered.
    pub(crate) fn forget(&mut self) {
        self.kept.forget();
    }

    /// When the last piece came, of a body that did not come with its head.
    pub(crate) fn moved(&self) -> Option<Instant> {
        self.moved
    }

    /// Bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the sender has been asked for the body, where it waits for that.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.asked
    }

    /// Whether the body was read to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What was not read.
    pub(crate) fn into_body(self) -> Incoming {
        self.body
    }

    /// What says, while the body goes on, how far it has come.
    pub(crate) fn follow(&mut self) -> Arc<Receiving> {
        self.counted.insert(Arc::new(Receiving::new(self.received))).clone()
    }

    /// Moves the body into the stream until its end.
    pub(crate) fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        loop {
            if !self.held.is_empty() {
                ready!(stream.poll_send(&mut self.held, cx)).map_err(|_| UploadError::Unwanted)?;
                self.make_room();
            }
            if let Some(piece) = self.kept.next() {
                self.held = piece;
                continue;
            }
            if self.ended {
                return Poll::Ready(stream.finish(self.trailers.clone()).map_err(|_| UploadError::Unwanted));
            }
            self.asked = true;
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.poll_idle(cx),
            };
            self.idle = None;
            match frame {
                Some(Ok(frame)) => {
                    if frame.is_data() {
                        self.moved = Some(Instant::now());
                    }
                    self.take(frame)?;
                }
                Some(Err(error)) => return Poll::Ready(Err(UploadError::of(&error))),
                None => self.ended = true,
            }
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        let limit = self.limits.body_idle;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(idle.as_mut().poll(cx));
        Poll::Ready(Err(UploadError::Silent))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<(), UploadError> {
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => {
                self.trailers = passed_trailers(frame);
                self.ended = true;
                return Ok(());
            }
        };
        self.received += bytes.len() as u64;
        if let Some(count) = &self.counted {
            count.bytes.store(self.received, Relaxed);
        }
        if self.received > self.most {
            return Err(UploadError::TooLarge);
        }
        self.kept.push(&bytes);
        self.held = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(kept: &mut Kept) -> Vec<Bytes> {
        kept.taken = 0;
        std::iter::from_fn(|| kept.next()).collect()
    }

    #[test]
    fn what_was_sent_is_kept_piece_by_piece_until_it_is_much() {
        let mut kept = Kept::default();
        assert!(all(&mut kept).is_empty() && kept.is_whole());
        let pieces = ["one", "", "two", "three"].map(|piece| Bytes::from_static(piece.as_bytes()));
        pieces.iter().for_each(|piece| kept.push(piece));
        assert_eq!(kept.next(), None, "the stream has had them all");
        assert_eq!(all(&mut kept), ["one", "two", "three"]);
        // An answer that comes while the body is sent again makes no hole in it.
        let mut answered = Kept { taken: 1, ..kept.clone() };
        answered.forget();
        answered.push(&Bytes::from_static(b"four"));
        assert_eq!(std::iter::from_fn(|| answered.next()).collect::<Vec<_>>(), ["two", "three"]);
        let at = |pieces: &[Bytes]| pieces.first().map(|piece| piece.as_ptr());
        assert_eq!(at(&all(&mut kept)), at(&pieces), "nothing was copied");
        kept.push(&Bytes::from(vec![0; MAX_KEPT - 3 * MIN_PIECE]));
        assert_eq!(all(&mut kept).len(), 4);
        kept.push(&Bytes::from_static(b"x"));
        assert!(all(&mut kept).is_empty() && !kept.is_whole());
    }

    #[test]
    fn tiny_pieces_are_bounded_by_their_number() {
        let mut kept = Kept::default();
        (0..MAX_KEPT / MIN_PIECE).for_each(|_| kept.push(&Bytes::from_static(b"x")));
        assert_eq!(all(&mut kept).len(), 64);
        kept.push(&Bytes::from_static(b"x"));
        assert!(!kept.is_whole() && kept.more.capacity() == 0);
        kept.push(&Bytes::from_static(b"x"));
        assert!(all(&mut kept).is_empty());
    }
}
