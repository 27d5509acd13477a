//! The connections to a service: of HTTP/1.1, a pooled one for each exchange, and of HTTP/2, one for all.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::POOL_IDLE;
use super::body::RequestBody;
use super::socket::Socket;

/// One HTTP/1.1 connection, polled by whichever exchange uses it.
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) wire: Wire,
    pub(super) is_fresh: bool,
}

/// The connection's own future, which moves its bytes.
pub(super) struct Wire {
    pub(super) connection: Option<Moving>,
    /// Bytes read since the last exchange began.
    pub(super) read: Arc<AtomicU64>,
}

type Moving = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

impl Connection {
    pub(super) async fn new(socket: Socket, upgrades: bool) -> Result<Self, hyper::Error> {
        let read = Arc::new(AtomicU64::new(0));
        let io = TokioIo::new(Noted::new(socket, &read, true));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(256 * 1024);
        let (sender, connection) = builder.handshake(io).await?;
        let connection: Moving = if upgrades { Box::pin(connection.with_upgrades()) } else { Box::pin(connection) };
        Ok(Self { sender, wire: Wire { connection: Some(connection), read }, is_fresh: true })
    }

    /// Whether the service has kept it open. Nothing is asked of it now, so nobody needs to be woken.
    pub(super) fn is_open(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        self.wire.read.store(0, Relaxed);
        self.wire.poll(cx);
        self.wire.connection.is_some() && self.sender.is_ready() && !self.wire.has_read()
    }

    /// Whether it can take another request. What hyper does after a response's end takes one more poll.
    pub(super) fn is_reusable(&mut self) -> bool {
        let cx = &mut Context::from_waker(Waker::noop());
        self.wire.poll(cx);
        self.wire.connection.is_some() && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

impl Wire {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    pub(super) fn has_read(&self) -> bool {
        self.read.load(Relaxed) > 0
    }

    /// Runs `future`, and the connection beside it: first the future, which may have something to send, then the
    /// connection, and the future again, for which something may have arrived.
    pub(super) async fn drive<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// The HTTP/2 connection of all exchanges.
#[derive(Debug)]
pub(super) struct Multiplexed {
    pub(super) sender: http2::SendRequest<RequestBody>,
    /// Bytes read from it.
    pub(super) read: Arc<AtomicU64>,
    /// When the last exchange let go of it.
    pub(super) left: Mutex<Instant>,
}

/// An exchange's hold on the HTTP/2 connection.
#[derive(Debug)]
pub(super) struct Share(pub(super) Arc<Multiplexed>);

impl Multiplexed {
    /// How long it is kept; `None` while an exchange uses it, which has a share of it then.
    pub(super) fn idle_until(self: &Arc<Self>) -> Option<Instant> {
        let is_used = Arc::strong_count(self) > 1;
        (!is_used).then(|| *self.left.lock().unwrap_or_else(PoisonError::into_inner) + POOL_IDLE)
    }

    pub(super) fn is_stale(self: &Arc<Self>, now: Instant) -> bool {
        self.idle_until().is_some_and(|until| until <= now)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// A socket that counts what is read from it.
pub(super) struct Noted {
    socket: Socket,
    pub(super) read: Arc<AtomicU64>,
    /// Whether it is read on when it takes nothing more. A service that answers before it has all of a request, as with
    /// 413, and closes, has said all it will: hyper would give up at the write that fails, and not look at the answer.
    hears_out: bool,
    /// Why it takes nothing more.
    broken: Option<io::Error>,
}

impl Noted {
    pub(super) fn new(socket: Socket, read: &Arc<AtomicU64>, hears_out: bool) -> Self {
        Self { socket, read: read.clone(), hears_out, broken: None }
    }

    /// Writes, or waits for what reading brings where that is in vain: the answer, or the end.
    fn write<T>(&mut self, write: impl FnOnce(Pin<&mut Socket>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.broken.is_some() {
            return Poll::Pending;
        }
        match write(Pin::new(&mut self.socket)) {
            Poll::Ready(Err(error)) if self.hears_out => {
                self.broken = Some(error);
                Poll::Pending
            }
            written => written,
        }
    }
}

impl tokio::io::AsyncRead for Noted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, out))?;
        let len = out.filled().len() - before;
        self.read.fetch_add(len as u64, Relaxed);
        match &self.broken {
            // The kernel reports a reset once, and then an end, which must not look like the end of an answer. Where the
            // service had said its end before that, the write was told of a broken pipe.
            Some(error) if len == 0 && error.kind() != io::ErrorKind::BrokenPipe => {
                Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())))
            }
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl tokio::io::AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(|socket| socket.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(|socket| socket.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use bytes::Bytes;
    use http::{Request, StatusCode, header};
    use http_body_util::BodyExt as _;
    use relay_protocol::link::Driver;
    use relay_protocol::mux::{Limits, Side};

    use super::*;

    /// A service that takes nothing of a request but its beginning, and whose answer is seen only then.
    struct Hasty {
        answer: &'static [u8],
        written: bool,
        breaks: io::ErrorKind,
        broken: bool,
        reader: Option<Waker>,
    }

    impl tokio::io::AsyncRead for Hasty {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.broken {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            out.put_slice(std::mem::take(&mut self.answer));
            Poll::Ready(Ok(()))
        }
    }

    impl tokio::io::AsyncWrite for Hasty {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            if !std::mem::replace(&mut self.written, true) {
                return Poll::Ready(Ok(1));
            }
            self.broken = true;
            self.reader.take().into_iter().for_each(Waker::wake);
            Poll::Ready(Err(self.breaks.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_answer_is_read_also_where_the_request_is_not_taken() {
        let (io, _peer) = tokio::io::duplex(1024);
        let socket = Driver::websocket(io, Bytes::new(), Side::Relay, 1024).await;
        let (link, _driver) = Driver::new(Side::Relay, Limits::default(), socket);
        let whole: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large";
        // Without a length the answer is whole where the service had ended it before it broke the connection.
        let endless: &[u8] = b"HTTP/1.1 413 Too Large\r\n\r\ntoo large";
        let (reset, pipe) = (io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe);
        for (answer, breaks, is_whole) in [(whole, reset, true), (endless, reset, false), (endless, pipe, true)] {
            let stream = link.open(Bytes::from_static(b"head"), &mut Bytes::new(), false).unwrap();
            let body = RequestBody::to_come(&stream);
            let hasty = Hasty { answer, written: false, breaks, broken: false, reader: None };
            let mut connection = Connection::new(Box::new(hasty), false).await.unwrap();
            let request = Request::post("/").header(header::HOST, "hasty").body(body).unwrap();
            let answer = connection.sender.send_request(request);
            let response = connection.wire.drive(answer).await.unwrap();
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let body = connection.wire.drive(response.into_body().collect()).await;
            assert_eq!(body.is_ok_and(|body| body.to_bytes() == "too large"), is_whole);
        }
    }
}
