//! A connection byte by byte: for requests that no HTTP library would send, and origins that none would be.

use std::fmt;
use std::io;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::within;

/// Whatever can be read and written.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// A connection, and what was read from it and not yet taken.
pub struct Wire {
    io: Box<dyn Transport>,
    read: BytesMut,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("read", &self.read.len()).finish_non_exhaustive()
    }
}

/// A message's head and body, as they stood on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// From the first line to the empty one, without it.
    pub head: String,
    /// Without the framing.
    pub body: Vec<u8>,
    /// The lines after a chunked body.
    pub trailers: String,
}

impl Message {
    /// The values of a header, in their order; names are compared without case.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The first line.
    pub fn first_line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }

    /// A response's status.
    pub fn status(&self) -> u16 {
        self.first_line().split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{:?}", self.head))
    }
}

impl Wire {
    /// Around any connection.
    pub fn new(io: impl Transport + 'static) -> Self {
        Self { io: Box::new(io), read: BytesMut::new() }
    }

    /// Writes and flushes; panics where the other side has gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.expect("the other side takes what is sent");
    }

    /// Writes and flushes.
    ///
    /// # Errors
    /// Where the other side has gone.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Says that nothing more is sent.
    pub async fn finish(&mut self) {
        let _ = self.io.shutdown().await;
    }

    /// Reads a head, up to its empty line, as text in which each byte is a character; `None` at the end.
    pub async fn head(&mut self) -> Option<String> {
        let end = self.find(b"\r\n\r\n").await?;
        let head = self.read.split_to(end);
        self.read.advance(4);
        Some(head.iter().map(|byte| char::from(*byte)).collect())
    }

    /// Reads a line without its end; `None` at the end.
    pub async fn line(&mut self) -> Option<String> {
        let end = self.find(b"\r\n").await?;
        let line = self.read.split_to(end);
        self.read.advance(2);
        Some(line.iter().map(|byte| char::from(*byte)).collect())
    }

    /// Reads so many bytes; panics at an earlier end.
    pub async fn exactly(&mut self, n: usize) -> Vec<u8> {
        while self.read.len() < n {
            assert!(self.more().await, "{} of {n} bytes, then the end", self.read.len());
        }
        self.read.split_to(n).to_vec()
    }

    /// Reads a message, as its head frames it: by chunks, by length, or without a body. `None` at the end.
    pub async fn message(&mut self) -> Option<Message> {
        let head = self.head().await?;
        let mut message = Message { head, body: Vec::new(), trailers: String::new() };
        if message.values("transfer-encoding").iter().any(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.line().await.expect("a chunk's size");
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16).expect("a hex size");
                if size == 0 {
                    break;
                }
                message.body.extend(self.exactly(size).await);
                assert_eq!(self.line().await.as_deref(), Some(""), "a chunk's end");
            }
            while let Some(line) = self.line().await.filter(|line| !line.is_empty()) {
                message.trailers.push_str(&line);
                message.trailers.push_str("\r\n");
            }
        } else if let Some(length) = message.values("content-length").first() {
            let length = length.parse().expect("a length");
            message.body = self.exactly(length).await;
        }
        Some(message)
    }

    /// Reads to the end. `Err` where the connection breaks instead of ending.
    ///
    /// # Errors
    /// With what had arrived, and how it broke.
    pub async fn rest(&mut self) -> Result<Vec<u8>, (Vec<u8>, io::Error)> {
        loop {
            match within("the end of the connection", self.io.read_buf(&mut self.read)).await {
                Ok(0) => return Ok(self.read.split().to_vec()),
                Ok(_) => {}
                Err(error) => return Err((self.read.split().to_vec(), error)),
            }
        }
    }

    /// Reads once, and takes what there is; empty at the end.
    pub async fn some(&mut self) -> Vec<u8> {
        if self.read.is_empty() {
            self.more().await;
        }
        self.read.split().to_vec()
    }

    async fn find(&mut self, pattern: &[u8]) -> Option<usize> {
        loop {
            if let Some(at) = self.read.windows(pattern.len()).position(|window| window == pattern) {
                return Some(at);
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn more(&mut self) -> bool {
        matches!(within("bytes on the connection", self.io.read_buf(&mut self.read)).await, Ok(n) if n > 0)
    }
}
