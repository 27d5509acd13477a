//! One task drives one multiplexer over one WebSocket.
//!
//! ```text
//!   Stream ──┐                      ┌── messages in ──▶ Mux::handle_message ──▶ wakes streams
//!   Stream ──┼── Mutex<Mux> ── Driver
//!   Stream ──┘                      └── Mux::poll_transmit ──▶ messages out, many frames in each
//! ```
//!
//! Streams change the multiplexer under a lock that is never held across an await, and wake the driver once. The
//! driver lets everything else that is ready run first, then takes all that was queued as one message: under load many
//! exchanges share one system call and one TLS record.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::frame::{GoAway, MAX_MESSAGE, Reset, SessionKind};
use crate::mux::{Ended, Event, Item, Limits, Mux, OpenError, Side, StreamError};

/// Bytes taken in before anybody else may run: an exchange beside bulk then waits for a fraction of a millisecond.
const READ_TURN: usize = 128 * 1024;

/// What the kernel may hold of a link's bytes before it has sent them (`TCP_NOTSENT_LOWAT`). What is handed to the
/// kernel is out of the scheduler's reach, so that a small exchange would wait behind all of it.
pub const UNSENT: u32 = 128 * 1024;

/// How long the closing handshake may take once everything is said.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// A session's multiplexer, shared by its driver and its streams.
#[derive(Clone, Debug)]
pub struct Link(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    mux: Mux,
    driver: Option<Waker>,
    /// The driver will look at the output without being woken.
    awake: bool,
    /// The driver knows that the session has ended.
    buried: bool,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `change` on the multiplexer, and wakes the driver when that left something to send.
    fn with<R>(&self, change: impl FnOnce(&mut Mux) -> R) -> R {
        let mut shared = self.lock();
        let result = change(&mut shared.mux);
        let output = !shared.awake && (shared.mux.has_output() || shared.mux.is_finished());
        // A driver whose socket is full waits for the socket, but an end it must hear of.
        let ended = !shared.buried && shared.mux.ended().is_some();
        let driver = if output || ended {
            shared.awake = true;
            shared.buried |= ended;
            shared.driver.take()
        } else {
            None
        };
        drop(shared);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    /// Opens a stream with an encoded request head and what of the body is there already; `last` says that this is all.
    /// One lock, one frame or two, and no wait. What of `body` the peer's credit does not cover yet stays in it, and
    /// then the body has not ended.
    ///
    /// # Errors
    /// [`OpenError`]: the session ends, or is full.
    pub fn open(&self, head: Bytes, body: &mut Bytes, last: bool) -> Result<Stream, OpenError> {
        self.open_for(0, head, body, last)
    }

    /// As [`Link::open`], for what can be [cut](Link::cut) by this number.
    ///
    /// # Errors
    /// As there.
    pub fn open_for(&self, of: u32, head: Bytes, body: &mut Bytes, last: bool) -> Result<Stream, OpenError> {
        let now = Instant::now().into_std();
        self.with(|mux| {
            let id = mux.open(head, now)?;
            mux.label(id, of);
            // A stream just opened takes what its credit covers; nobody needs to be woken for the rest yet.
            let sent = mux.poll_send(id, body, &Context::from_waker(Waker::noop()));
            if last && sent.is_ready() {
                // It cannot have ended between two lines under one lock.
                let _ = mux.finish(id, Bytes::new());
            }
            Ok(Stream(Arc::new(Guard { link: self.clone(), id })))
        })
    }

    /// Resets the streams that were [opened for](Link::open_for) this, all at once.
    pub fn cut(&self, of: u32, reset: Reset) {
        self.with(|mux| mux.cut(of, reset));
    }

    /// The next thing that concerns the session. Ends with [`Signal::Ended`], again and again.
    pub fn poll_signal(&self, cx: &Context<'_>) -> Poll<Signal> {
        self.with(|mux| match mux.poll_event(cx) {
            Poll::Ready(Event::Opened(id)) => {
                Poll::Ready(Signal::Opened(Stream(Arc::new(Guard { link: self.clone(), id }))))
            }
            Poll::Ready(Event::Session(kind, payload)) => Poll::Ready(Signal::Message(kind, payload)),
            Poll::Ready(Event::GoAway { reason, drain, text }) => Poll::Ready(Signal::GoAway { reason, drain, text }),
            Poll::Pending => mux.ended().map_or(Poll::Pending, |ended| Poll::Ready(Signal::Ended(ended.clone()))),
        })
    }

    /// Waits for [`Self::poll_signal`].
    pub async fn signal(&self) -> Signal {
        poll_fn(|cx| self.poll_signal(cx)).await
    }

    /// Queues a session message.
    ///
    /// # Errors
    /// [`StreamError`] when the session has ended or too many messages wait.
    pub fn send_message(&self, kind: SessionKind, payload: Bytes) -> Result<(), StreamError> {
        self.with(|mux| mux.send_message(kind, payload))
    }

    /// Ends the session: with `drain` once its streams have ended, else at once.
    pub fn go_away(&self, reason: GoAway, drain: bool, text: &str) {
        self.with(|mux| mux.go_away(reason, drain, text));
    }

    /// Asks the peer for a sign of life now. The number of this ping, for [`Self::is_answered`].
    pub fn ping(&self) -> u64 {
        self.with(|mux| mux.ping(Instant::now().into_std()))
    }

    /// Whether the peer has answered a ping, or a later one. It has then taken in every session message that was queued
    /// before it.
    pub fn is_answered(&self, ping: u64) -> bool {
        self.lock().mux.is_answered(ping)
    }

    /// Whether the peer gives a sign of life within `patience`.
    pub async fn probe(&self, patience: Duration) -> bool {
        let asked = Instant::now();
        self.ping();
        // Rare, short, and asked by somebody who waits: looking again is simpler than being told.
        while asked.elapsed() < patience {
            tokio::time::sleep((patience / 50).max(Duration::from_millis(1))).await;
            if self.last_heard() > asked {
                return true;
            }
            if self.lock().mux.ended().is_some() {
                return false;
            }
        }
        false
    }

    /// Whether both are the same session.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// When the peer was last heard.
    pub fn last_heard(&self) -> Instant {
        Instant::from_std(self.lock().mux.last_heard())
    }

    /// The shortest round trip seen, once one was.
    pub fn rtt(&self) -> Option<Duration> {
        self.lock().mux.rtt()
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> u32 {
        self.lock().mux.open_streams()
    }

    /// Why the session has ended, once it has.
    pub fn ended(&self) -> Option<Ended> {
        self.lock().mux.ended().cloned()
    }

    /// Whether streams can be opened.
    pub fn is_accepting(&self) -> bool {
        let shared = self.lock();
        shared.mux.ended().is_none() && !shared.mux.is_draining()
    }
}

/// What concerns a session and not one of its streams.
#[derive(Debug)]
pub enum Signal {
    /// The relay opened a stream.
    Opened(Stream),
    /// A session message came.
    Message(SessionKind, Bytes),
    /// The peer ends the session.
    GoAway {
        /// Why.
        reason: GoAway,
        /// Streams that are open may finish.
        drain: bool,
        /// What a person should read.
        text: String,
    },
    /// The session has ended.
    Ended(Ended),
}

/// One exchange's stream. Clones share it; dropping the last one resets what has not ended.
#[derive(Clone, Debug)]
pub struct Stream(Arc<Guard>);

#[derive(Debug)]
struct Guard {
    link: Link,
    id: crate::frame::StreamId,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.link.with(|mux| mux.release(self.id));
    }
}

/// A stream that is not kept alive by this.
#[derive(Clone, Debug)]
pub struct WeakStream(std::sync::Weak<Guard>);

impl WeakStream {
    /// The stream, while somebody else still has it.
    pub fn upgrade(&self) -> Option<Stream> {
        self.0.upgrade().map(Stream)
    }
}

impl Stream {
    /// A handle that does not keep the stream alive.
    pub fn downgrade(&self) -> WeakStream {
        WeakStream(Arc::downgrade(&self.0))
    }

    /// The stream's number on the wire.
    pub fn id(&self) -> crate::frame::StreamId {
        self.0.id
    }

    fn with<R>(&self, change: impl FnOnce(&mut Mux, crate::frame::StreamId) -> R) -> R {
        self.0.link.with(|mux| change(mux, self.0.id))
    }

    /// Queues an encoded response head.
    ///
    /// # Errors
    /// [`StreamError`]: the peer reset the stream, or the session ended.
    pub fn send_head(&self, head: Bytes, interim: bool) -> Result<(), StreamError> {
        self.with(|mux, id| mux.send_head(id, head, interim))
    }

    /// Queues `bytes`, and is ready once the peer's credit has covered them all.
    ///
    /// # Errors
    /// [`StreamError`]: the peer reset the stream, or the session ended.
    pub fn poll_send(&self, bytes: &mut Bytes, cx: &Context<'_>) -> Poll<Result<(), StreamError>> {
        self.with(|mux, id| mux.poll_send(id, bytes, cx))
    }

    /// Waits for [`Self::poll_send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_send(&mut bytes, cx)).await
    }

    /// Queues the end of our direction with encoded trailers, empty for none.
    ///
    /// # Errors
    /// [`StreamError`]: the peer reset the stream, or the session ended.
    pub fn finish(&self, trailers: Bytes) -> Result<(), StreamError> {
        self.with(|mux, id| mux.finish(id, trailers))
    }

    /// Ends both directions now and lets go of the stream, though handles to it are left somewhere.
    pub fn abandon(&self, reset: Reset) {
        self.with(|mux, id| {
            mux.reset(id, reset);
            mux.release(id);
        });
    }

    /// Ends both directions now.
    pub fn reset(&self, reset: Reset) {
        self.with(|mux, id| mux.reset(id, reset));
    }

    /// The next piece of the peer's direction; `None` after its end.
    ///
    /// # Errors
    /// [`StreamError`] when it was cut short.
    pub fn poll_recv(&self, cx: &Context<'_>) -> Poll<Result<Option<Item>, StreamError>> {
        let now = Instant::now().into_std();
        self.with(|mux, id| mux.poll_recv(id, now, cx))
    }

    /// Waits for [`Self::poll_recv`].
    ///
    /// # Errors
    /// As there.
    pub async fn recv(&self) -> Result<Option<Item>, StreamError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits for the stream's end before its time, for a sender that waits for something else.
    pub fn poll_reset(&self, cx: &Context<'_>) -> Poll<StreamError> {
        self.with(|mux, id| mux.poll_reset(id, cx))
    }

    /// Asks the peer for a sign that it has got the stream, where it has given none yet.
    pub fn ask(&self) {
        let now = Instant::now().into_std();
        self.with(|mux, id| mux.ask_for(id, now));
    }

    /// Whether the peer is known to have got the stream, also after the session's end.
    pub fn is_seen(&self) -> bool {
        self.with(|mux, id| mux.has_seen(id))
    }

    /// Whether the stream is still alive, for a sender that has nothing to send just now.
    ///
    /// # Errors
    /// [`StreamError`] when it is not.
    pub fn check(&self) -> Result<(), StreamError> {
        self.with(|mux, id| mux.check(id))
    }
}

/// Moves messages between a multiplexer and a WebSocket. Whoever owns it must poll it, as a future, or by
/// [`Driver::poll_incoming`] and [`Driver::poll_outgoing`] where streams are served in the same task.
#[derive(Debug)]
pub struct Driver<T> {
    link: Link,
    socket: WebSocketStream<T>,
    out: BytesMut,
    timer: Pin<Box<Sleep>>,
    yielded: bool,
    /// Set once everything is said: the closing handshake runs.
    closing: bool,
    /// Set once the session has ended: what is left to say has [`CLOSE_WAIT`] to be said.
    dying: bool,
}

/// The WebSocket settings of a session: no default of the library is safe for a stranger's input or small enough for
/// thousands of idle sessions. `read_buffer` is zero-filled at each read, so it should be about one read's size.
pub fn websocket_config(read_buffer: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(read_buffer)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * 1024 * 1024)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    /// Puts a multiplexer on a WebSocket whose opening handshake, [`Hello`](crate::message::Hello) and
    /// [`Welcome`](crate::message::Welcome) are done.
    pub fn new(side: Side, limits: Limits, socket: WebSocketStream<T>) -> (Link, Self) {
        let now = Instant::now();
        let mux = Mux::new(side, limits, now.into_std());
        let timer = Box::pin(tokio::time::sleep_until(mux.timeout().map_or(now, Instant::from_std)));
        let link = Link(Arc::new(Mutex::new(Shared { mux, driver: None, awake: true, buried: false })));
        let driver = Self {
            link: link.clone(),
            socket,
            out: BytesMut::new(),
            timer,
            yielded: false,
            closing: false,
            dying: false,
        };
        (link, driver)
    }

    /// Wraps an upgraded connection, with the bytes that were read beyond its head. Those are copied: whoever read them
    /// has a buffer of 8 KiB, which would live as long as the session.
    pub async fn websocket(io: T, read: Bytes, side: Side, read_buffer: usize) -> WebSocketStream<T> {
        let role = match side {
            Side::Relay => Role::Server,
            Side::Client => Role::Client,
        };
        let read = Vec::from(read.as_ref());
        WebSocketStream::from_partially_read(io, read, role, Some(websocket_config(read_buffer))).await
    }

    /// Takes in what has arrived, and looks at the clock. Until [`Self::poll_outgoing`] is called, streams do not wake
    /// the driver.
    pub fn poll_incoming(&mut self, cx: &mut Context<'_>) {
        self.link.lock().awake = true;
        self.poll_timer(cx);
        if self.closing {
            return;
        }
        let mut taken = 0;
        while taken < READ_TURN {
            let lost = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(Message::Binary(message)))) => {
                    taken += message.len().max(READ_TURN / 64);
                    let now = Instant::now().into_std();
                    if self.link.lock().mux.handle_message(message, now).is_err() {
                        return;
                    }
                    continue;
                }
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
                    // A flood of them is work too.
                    taken += READ_TURN / 32;
                    continue;
                }
                Poll::Ready(Some(Ok(Message::Text(_)))) => {
                    self.link.lock().mux.go_away(GoAway::Protocol, false, "text messages have no meaning here");
                    return;
                }
                Poll::Ready(Some(Ok(Message::Close(_))) | None) => "the other end closed the connection".to_owned(),
                Poll::Ready(Some(Err(error))) => explain(&error),
            };
            self.link.lock().mux.link_lost(lost);
            return;
        }
        cx.waker().wake_by_ref();
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        while !self.dying && self.timer.as_mut().poll(cx).is_ready() {
            let mut shared = self.link.lock();
            shared.mux.handle_timeout(Instant::now().into_std());
            let Some(next) = shared.mux.timeout() else { break };
            drop(shared);
            self.timer.as_mut().reset(Instant::from_std(next));
            // A session that has been silent for a heartbeat keeps no buffer.
            self.out = BytesMut::new();
        }
    }

    /// Sends what is queued; ready once the session has ended and has been closed.
    pub fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if !self.dying && self.link.lock().mux.ended().is_some() {
            self.dying = true;
            self.timer.as_mut().reset(Instant::now() + CLOSE_WAIT);
        }
        // A peer that does not read gets no more time than that.
        if self.dying && self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(self.epitaph());
        }
        if !self.closing {
            match self.poll_messages(cx) {
                Ok(false) => return Poll::Pending,
                Ok(true) => {}
                Err(error) => self.link.lock().mux.link_lost(error),
            }
            self.closing = true;
            self.dying = true;
            self.timer.as_mut().reset(Instant::now() + CLOSE_WAIT);
        }
        // The peer may be gone, or may not answer: closing is polite and bounded.
        if Pin::new(&mut self.socket).poll_close(cx).is_pending() && self.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(self.epitaph())
    }

    fn epitaph(&self) -> Ended {
        let ended = self.link.lock().mux.epitaph();
        ended.unwrap_or_else(|| Ended::Link("closed".to_owned()))
    }

    /// Whether everything is said for good.
    fn poll_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        loop {
            // A full socket wakes us when it has room; streams need not.
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Pending => {
                    note(&mut self.link.lock().driver, cx);
                    return Ok(false);
                }
                Poll::Ready(ready) => ready.map_err(|error| error.to_string())?,
            }
            let mut shared = self.link.lock();
            if !shared.mux.poll_transmit(&mut self.out) {
                let finished = shared.mux.is_finished();
                shared.awake = false;
                note(&mut shared.driver, cx);
                drop(shared);
                return match Pin::new(&mut self.socket).poll_flush(cx) {
                    Poll::Pending => Ok(false),
                    Poll::Ready(Ok(())) => Ok(finished),
                    Poll::Ready(Err(error)) => Err(error.to_string()),
                };
            }
            drop(shared);
            let message = Message::Binary(self.out.split().freeze());
            Pin::new(&mut self.socket).start_send(message).map_err(|error| error.to_string())?;
        }
    }

    /// The link that this drives.
    pub const fn link(&self) -> &Link {
        &self.link
    }
}

/// A driver that is given up takes its streams' hopes with it.
impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.link.lock().mux.link_lost("the session was given up".to_owned());
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Driver<T> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        this.poll_incoming(cx);
        if !this.yielded && !this.closing && this.link.lock().mux.has_output() {
            this.yielded = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.yielded = false;
        let ended = ready!(this.poll_outgoing(cx));
        Poll::Ready(ended)
    }
}

/// A link's end in few words. A peer that is killed, or whose network goes, says no goodbye: that is no error of TLS.
fn explain(error: &WsError) -> String {
    match error {
        WsError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the other end closed the connection without a goodbye".to_owned()
        }
        WsError::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

fn note(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
