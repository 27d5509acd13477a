//! A stream as a pipe of bytes: what both ends do with an exchange after a 101.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until};

use crate::frame::{MAX_DATA, Reset};
use crate::link::Stream;
use crate::mux::{Item, StreamError};

/// How many bytes a splice has carried so far. Whoever gives one up in the middle still has them.
#[derive(Debug, Default)]
pub struct Carried {
    /// Taken from the connection for the stream.
    pub to_stream: AtomicU64,
    /// Taken from the stream for the connection.
    pub from_stream: AtomicU64,
}

/// Carries bytes between `io` and `stream` until both directions have ended, one of them breaks, or nothing has moved
/// for `idle`. An end in one direction is passed on as an end; anything else that stops it resets the stream.
///
/// # Errors
/// What broke, or [`io::ErrorKind::TimedOut`].
pub async fn splice<T>(io: T, stream: Stream, idle: Duration) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    splice_counted(io, stream, idle, &Carried::default()).await
}

/// As [`splice`], for whoever wants to know how much it was.
///
/// # Errors
/// As there.
pub async fn splice_counted<T>(mut io: T, stream: Stream, idle: Duration, carried: &Carried) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Moved { start: Instant::now(), last: AtomicU64::new(0) };
    let mut pipe = Pipe { stream: &stream, unread: Bytes::new(), unsent: Bytes::new(), moved: &moved, carried };
    let result = tokio::select! {
        result = copy_bidirectional_with_sizes(&mut io, &mut pipe, MAX_DATA, MAX_DATA) => result.map(|_| ()),
        () = stillness(&moved, idle) => Err(io::ErrorKind::TimedOut.into()),
    };
    match &result {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => stream.reset(Reset::Idle),
        Err(_) => stream.reset(Reset::Cancelled),
    }
    result
}

/// When something moved last.
struct Moved {
    start: Instant,
    /// Milliseconds since `start`.
    last: AtomicU64,
}

impl Moved {
    fn note(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Relaxed);
    }

    fn at(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// Ends once nothing has moved for `idle`.
async fn stillness(moved: &Moved, idle: Duration) {
    while moved.at().elapsed() < idle {
        sleep_until(moved.at() + idle).await;
    }
}

struct Pipe<'a> {
    stream: &'a Stream,
    unread: Bytes,
    /// Not yet covered by the peer's credit. Bounded by one write.
    unsent: Bytes,
    moved: &'a Moved,
    carried: &'a Carried,
}

impl Pipe<'_> {
    fn poll_unsent(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.stream.poll_send(&mut self.unsent, cx).map_err(broken)
    }
}

impl AsyncRead for Pipe<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.stream.poll_recv(cx)).map_err(broken)? {
                Some(Item::Data(bytes)) => self.unread = bytes,
                Some(Item::Head { .. }) => {}
                Some(Item::End(_)) | None => return Poll::Ready(Ok(())),
            }
        }
        let len = self.unread.len().min(out.remaining());
        out.put_slice(self.unread.get(..len).unwrap_or_default());
        self.unread.advance(len);
        self.carried.from_stream.fetch_add(len as u64, Relaxed);
        self.moved.note();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_unsent(cx))?;
        self.unsent = Bytes::copy_from_slice(bytes);
        self.carried.to_stream.fetch_add(bytes.len() as u64, Relaxed);
        self.moved.note();
        // Whatever is left is sent before the next write; this one has been taken.
        match self.poll_unsent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_unsent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_unsent(cx))?;
        match self.stream.finish(Bytes::new()) {
            Ok(()) | Err(StreamError::Closed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

fn broken(error: StreamError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
