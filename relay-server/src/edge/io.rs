//! The public side's sockets: what is measured on them, and when they are given up.
//!
//! ```text
//!   hyper ── Watched ── Conn ── rustls ── Gathered ── TCP, behind the header of a proxy
//!            clock,     TLS or            reads in large
//!            watchdog   plain             pieces when busy
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;

use relay_protocol::gather::Gathered;

use super::proxy_protocol::{Header, Malformed, parse};
use crate::limits::Limits;
use crate::places::Place;

/// Why a connection does not begin with the header that a proxy sends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoHeader {
    #[error("its PROXY header cannot be read: {0}")]
    Malformed(#[from] Malformed),
    #[error("it ended before its PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header of the PROXY protocol that a connection begins with. The connection is behind it then.
pub(crate) async fn read_header(mut tcp: TcpStream) -> Result<(Header, Gathered<TcpStream>), NoHeader> {
    // Room for what proxies send; what was sent at once with it stays.
    let mut bytes = Vec::with_capacity(512);
    loop {
        if let Some((header, used)) = parse(&bytes)? {
            return Ok((header, Gathered::with(tcp, bytes.split_off(used))));
        }
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// A public connection, encrypted or not.
#[derive(Debug)]
pub(crate) enum Conn {
    Tls(Box<TlsStream<Gathered<TcpStream>>>),
    Plain(Gathered<TcpStream>),
}

/// Runs `$call` on whichever connection it is.
macro_rules! either {
    ($conn:expr, $io:ident => $call:expr) => {
        match $conn {
            Conn::Tls(tls) => {
                let $io = Pin::new(&mut **tls);
                $call
            }
            Conn::Plain(plain) => {
                let $io = Pin::new(plain);
                $call
            }
        }
    };
}

impl Conn {
    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tls(tls) => tls.get_ref().0.get_ref(),
            Self::Plain(plain) => plain.get_ref(),
        }
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, io => io.poll_read(cx, out))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(&mut *self, io => io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(&mut *self, io => io.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tls(tls) => tls.is_write_vectored(),
            Self::Plain(plain) => plain.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, io => io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, io => io.poll_shutdown(cx))
    }
}

/// Whoever asks for something so soon after the handshake has opened the connection for it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// So long a request goes on whose sender has hung up: many send a webhook and close at once, without waiting for an answer
/// (`fsockopen` and `fclose` of PHP), and it is to reach its service. Senders that are gone for good are left a little later.
const HANG_UP: Duration = Duration::from_secs(1);

/// What one connection's requests are timed by. Written by the socket and by the requests on it, which run on one task
/// or, with HTTP/2, on several.
#[derive(Debug)]
pub(crate) struct Clock {
    accepted: Instant,
    /// HTTP/2: bytes between two requests need not be a head, but pings, windows and settings.
    multiplexed: bool,
    /// The end of the TLS handshake. Instants below are nanoseconds since `accepted`.
    ready: u64,
    /// The first byte since the last request ended; 0 for none yet.
    first_byte: AtomicU64,
    /// When the last request ended.
    idle_since: AtomicU64,
    in_flight: AtomicU32,
    /// Requests in flight whose response the peer does not read.
    unread: AtomicU32,
    /// A request has been seen, so that the next one is a later one.
    used: AtomicU32,
    /// The connection whose peer has hung up, to be woken when no request is in flight any more.
    hung_up: AtomicWaker,
    /// Held for as long as anything of the connection lives: also what it was upgraded to, but not a session, which
    /// leaves all this behind and has a limit of its own.
    _place: Place,
}

impl Clock {
    pub(crate) fn new(accepted: Instant, multiplexed: bool, place: Place) -> Arc<Self> {
        let ready = since(accepted);
        Arc::new(Self {
            accepted,
            multiplexed,
            ready,
            first_byte: AtomicU64::new(0),
            idle_since: AtomicU64::new(ready),
            in_flight: AtomicU32::new(0),
            unread: AtomicU32::new(0),
            used: AtomicU32::new(0),
            hung_up: AtomicWaker::new(),
            _place: place,
        })
    }

    /// Begins a request, and returns the instant from which its sender counts: the acceptance of the connection where
    /// the first byte came within a second of the handshake, else the request's first byte, else now.
    /// `trusted` says that a proxy in front of us opened the connection, perhaps long before.
    pub(crate) fn begin(self: &Arc<Self>, trusted: bool) -> (Instant, InFlight) {
        let (first_byte, in_flight) = self.hold();
        let later = self.used.swap(1, Relaxed) == 1;
        let at_once = first_byte.saturating_sub(self.ready) <= AT_ONCE.as_nanos() as u64;
        let from = if !later && !trusted && at_once {
            self.accepted
        } else if first_byte == 0 || (later && self.multiplexed) {
            Instant::now()
        } else {
            self.accepted + Duration::from_nanos(first_byte)
        };
        (from, in_flight)
    }

    /// Counts what comes from here on as bytes of a request that is known, not as the first of another one. When the first
    /// byte since the last request came is returned with that.
    pub(crate) fn hold(self: &Arc<Self>) -> (u64, InFlight) {
        self.in_flight.fetch_add(1, Relaxed);
        (self.first_byte.swap(0, Relaxed), InFlight(self.clone()))
    }

    /// Waits for the first request, if that is still to be expected behind the handshake.
    pub(crate) async fn first_request(&self) {
        let patience = Instant::now() + AT_ONCE;
        // Rare and short: looking again is simpler than being told.
        while self.used.load(Relaxed) == 0 && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// One more response that the peer does not read, or one less.
    pub(crate) fn note_unread(&self, one_more: bool) {
        if one_more {
            self.unread.fetch_add(1, Relaxed)
        } else {
            self.unread.fetch_sub(1, Relaxed)
        };
    }

    fn note_bytes(&self) {
        // Most reads belong to a request that has begun or to a busy connection; only the first one reads the clock.
        if self.first_byte.load(Relaxed) == 0 && self.in_flight.load(Relaxed) == 0 {
            self.first_byte.store(since(self.accepted), Relaxed);
        }
    }

    fn is_busy(&self) -> bool {
        self.in_flight.load(SeqCst) > 0
    }

    /// When the connection is to be given up if nothing happens on it.
    fn give_up(&self, limits: &Limits) -> Option<Instant> {
        let in_flight = self.in_flight.load(Relaxed);
        if in_flight > 0 {
            // A peer that reads none of its responses holds them for ever, which HTTP/2 has no other end for.
            return (self.unread.load(Relaxed) >= in_flight).then_some(self.accepted);
        }
        let after = match (self.first_byte.load(Relaxed), self.used.load(Relaxed)) {
            (0, 0) => Duration::from_nanos(self.ready) + limits.head,
            (first_byte, 1) if first_byte == 0 || self.multiplexed => {
                Duration::from_nanos(self.idle_since.load(Relaxed)) + limits.keep_alive
            }
            (first_byte, _) => Duration::from_nanos(first_byte) + limits.head,
        };
        Some(self.accepted + after)
    }
}

fn since(instant: Instant) -> u64 {
    u64::try_from(instant.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A request that is under way, or what it has become: an upgraded connection has limits of its own. Dropped at its end.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Clock>);

impl InFlight {
    /// The clock of the request's connection.
    pub(crate) const fn clock(&self) -> &Arc<Clock> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.first_byte.store(0, Relaxed);
        self.0.idle_since.store(since(self.0.accepted), Relaxed);
        if self.0.in_flight.fetch_sub(1, SeqCst) == 1 {
            self.0.hung_up.wake();
        }
    }
}

/// A connection with a clock and a watchdog: it fails with [`io::ErrorKind::TimedOut`] when a request's head takes too
/// long, when nothing is asked for too long, or when the peer does not read.
///
/// The watchdog is one timer, armed once and re-armed only when it fires: a request costs it nothing.
#[derive(Debug)]
pub(crate) struct Watched {
    conn: Conn,
    clock: Arc<Clock>,
    limits: Arc<Limits>,
    timer: Pin<Box<Sleep>>,
    /// Since when a write has been waiting.
    blocked: Option<Instant>,
    /// The peer has ended its side, which is told when this is over.
    hung_up: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(crate) fn new(conn: Conn, clock: Arc<Clock>, limits: Arc<Limits>) -> Self {
        let timer = Box::pin(tokio::time::sleep(limits.head));
        Self { conn, clock, limits, timer, blocked: None, hung_up: None }
    }

    /// The connection without its watchdog, for an upgrade that has limits of its own.
    pub(crate) fn into_conn(self) -> Conn {
        self.conn
    }

    /// Fails when it is time to give up; else sees to it that this is asked again in time.
    fn watch(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let unread = self.blocked.map(|since| since + self.limits.write_idle);
            let due = match (self.clock.give_up(&self.limits), unread) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            if due.is_some_and(|due| due <= now) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Nothing due now may become due any time, but not sooner than the shortest limit.
            let pause = self.limits.head.min(self.limits.write_idle) / 2;
            self.timer.as_mut().reset(due.unwrap_or(now + pause).min(now + pause));
        }
        Ok(())
    }

    fn note_write<R>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if result.is_pending() {
            self.blocked.get_or_insert_with(Instant::now);
            self.watch(cx)?;
        } else {
            self.blocked = None;
        }
        result
    }
}

/// Whether a read that has brought nothing says that nothing comes any more, in good manners or bad.
fn is_end(result: &Poll<io::Result<()>>) -> bool {
    match result {
        Poll::Ready(Ok(())) => true,
        Poll::Ready(Err(error)) => {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        }
        Poll::Pending => false,
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.hung_up.is_none() {
            let before = out.filled().len();
            let result = Pin::new(&mut this.conn).poll_read(cx, out);
            if out.filled().len() > before {
                this.clock.note_bytes();
            }
            let is_end = out.filled().len() == before && out.remaining() > 0 && is_end(&result);
            if !is_end || !this.clock.is_busy() {
                if result.is_pending() {
                    this.watch(cx)?;
                }
                return result;
            }
        }
        let until = this.hung_up.get_or_insert_with(|| Box::pin(tokio::time::sleep(HANG_UP)));
        // Before the look at what is under way, so that its end is not missed.
        this.clock.hung_up.register(cx.waker());
        if this.clock.is_busy() { until.as_mut().poll(cx).map(Ok) } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.conn).poll_write(cx, bytes);
        self.note_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.conn).poll_write_vectored(cx, slices);
        self.note_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.conn).poll_flush(cx);
        self.note_write(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.conn).poll_shutdown(cx);
        self.note_write(cx, result)
    }
}
