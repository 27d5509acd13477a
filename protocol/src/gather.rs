//! Reads in large pieces while a peer sends much, and holds no buffer while it does not.
//!
//! It goes between TLS and TCP: rustls asks for 4 KiB at a time, which is a system call for each quarter of a record.
//! Once such a read comes back full there is more to come, and the next one fetches 64 KiB. An idle connection costs
//! nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a read fetches while the peer is busy.
const GATHER: usize = 64 * 1024;

/// A reader asking for more than this at once needs no help.
const SMALL: usize = 16 * 1024;

/// A connection whose small reads are gathered. Writes pass through.
#[derive(Debug)]
pub struct Gathered<T> {
    inner: T,
    buffer: Vec<u8>,
    /// How much of the buffer has been taken.
    at: usize,
    /// The last read was as large as it could be.
    busy: bool,
}

impl<T> Gathered<T> {
    /// Gathers the reads of `inner`.
    pub const fn new(inner: T) -> Self {
        Self::with(inner, Vec::new())
    }

    /// As [`Self::new`], where these bytes have been read already.
    pub const fn with(inner: T, read: Vec<u8>) -> Self {
        Self { inner, buffer: read, at: 0, busy: false }
    }

    /// The connection itself. What has been gathered from it is not there any more.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }

    fn is_empty(&self) -> bool {
        self.at == self.buffer.len()
    }

    fn give_up_buffer(&mut self) {
        self.buffer = Vec::new();
        self.at = 0;
        self.busy = false;
    }
}

impl<T: AsyncRead + Unpin> Gathered<T> {
    fn poll_gather(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.resize(GATHER, 0);
        self.at = GATHER;
        let mut gathered = ReadBuf::new(&mut self.buffer);
        match Pin::new(&mut self.inner).poll_read(cx, &mut gathered) {
            Poll::Ready(Ok(())) => {
                let len = gathered.filled().len();
                self.buffer.truncate(len);
                self.at = 0;
                self.busy = len > SMALL;
                Poll::Ready(Ok(()))
            }
            other => {
                self.give_up_buffer();
                other
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_empty() && !this.busy {
            let room = out.remaining();
            ready!(Pin::new(&mut this.inner).poll_read(cx, out))?;
            this.busy = room <= SMALL && out.remaining() == 0;
            return Poll::Ready(Ok(()));
        }
        if this.is_empty() {
            ready!(this.poll_gather(cx))?;
        }
        let rest = this.buffer.get(this.at..).unwrap_or_default();
        let len = rest.len().min(out.remaining());
        out.put_slice(rest.get(..len).unwrap_or_default());
        this.at += len;
        if this.is_empty() && !this.busy {
            this.give_up_buffer();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_was_written_is_what_is_read(
            before in 0_usize..2_000,
            writes in proptest::collection::vec(1_usize..100_000, 0..12),
            reads in proptest::collection::vec(1_usize..20_000, 1..12),
        ) {
            let sent: Vec<u8> = (0..before + writes.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let received = runtime.block_on(async {
                let (mut near, far) = duplex(70_000);
                let mut far = Gathered::with(far, sent[..before].to_vec());
                let writer = async {
                    let mut rest = &sent[before..];
                    for len in &writes {
                        let (piece, after) = rest.split_at(*len);
                        near.write_all(piece).await.unwrap();
                        rest = after;
                    }
                    drop(near);
                };
                let reader = async {
                    let mut received = Vec::new();
                    let mut buffer = vec![0; 20_000];
                    for size in reads.iter().cycle() {
                        let len = far.read(&mut buffer[..*size]).await.unwrap();
                        if len == 0 {
                            break;
                        }
                        received.extend_from_slice(&buffer[..len]);
                    }
                    received
                };
                tokio::join!(writer, reader).1
            });
            prop_assert_eq!(received, sent);
        }
    }

    #[tokio::test]
    async fn an_idle_connection_holds_no_buffer() {
        let (mut near, far) = duplex(1 << 20);
        let mut far = Gathered::new(far);
        near.write_all(&vec![7; 300_000]).await.unwrap();
        let mut buffer = [0; 4096];
        let mut left = 300_000;
        while left > 0 {
            left -= far.read(&mut buffer).await.unwrap();
        }
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut far).poll_read(cx, &mut ReadBuf::new(&mut buffer)).is_pending());
        assert_eq!(far.buffer.capacity(), 0);
    }
}
