//! The wire between relay and client by hand: one end of a session whose frames a test makes and sees.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use relay_protocol::frame::{Frame, GoAway, SessionKind, StreamId};
use relay_protocol::message::{Bound, Hello, Payload, RequestHead, ResponseHead, Resume, TunnelSpec, Welcome};

use crate::{Wire, World, within};

/// The first byte of a binary message.
pub const BINARY: u8 = 0x82;
/// The first byte of a text message.
pub const TEXT: u8 = 0x81;
/// The first byte of a close frame.
pub const CLOSE: u8 = 0x88;
/// The first byte of a ping of WebSocket.
pub const PING: u8 = 0x89;

/// One end of a WebSocket, byte by byte (RFC 6455). A client masks, with a key of zeros.
#[derive(Debug)]
pub struct Socket {
    /// The connection.
    pub wire: Wire,
    /// It is the client's end.
    masks: bool,
    /// What was read and not taken yet.
    read: BytesMut,
    /// Frames of the session that came in one message and were not taken yet.
    frames: Bytes,
}

impl Socket {
    /// One end of an upgraded connection.
    pub fn new(wire: Wire, masks: bool) -> Self {
        Self { wire, masks, read: BytesMut::new(), frames: Bytes::new() }
    }

    /// Sends frames as one message.
    pub async fn send(&mut self, frames: &[Frame]) {
        // Whoever has been thrown out notices when it reads.
        let _ = self.wire.try_send(self.message(BINARY, &encode(frames))).await;
    }

    /// Sends bytes below WebSocket; false where the other end has gone.
    pub async fn raw(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.try_send(bytes).await.is_ok()
    }

    /// A frame of WebSocket that begins with `first`.
    pub fn message(&self, first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = if self.masks { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..126 => bytes.push(mask | len as u8),
            len @ 126..65_536 => {
                bytes.push(mask | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(mask | 127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        if self.masks {
            bytes.extend([0; 4]);
        }
        bytes.extend(payload);
        bytes
    }

    /// The next frame of the session; `None` once the other end has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.frames).expect("the other end sends frames") {
                return Some(frame);
            }
            let (opcode, payload) = self.read().await?;
            match opcode {
                0x2 => self.frames = payload.into(),
                0x8 => return None,
                _ => {}
            }
        }
    }

    /// The next frame that is not a sign of life.
    pub async fn next_said(&mut self) -> Option<Frame> {
        loop {
            match self.next().await? {
                Frame::Ping(nonce) => self.send(&[Frame::Pong(nonce)]).await,
                Frame::Pong(_) | Frame::Credit { .. } => {}
                frame => return Some(frame),
            }
        }
    }

    /// The next message of this kind about the session itself; what else is said is skipped.
    pub async fn next_message<M: Payload>(&mut self, kind: SessionKind) -> M {
        loop {
            match self.next_said().await.expect("the session is up") {
                Frame::Session(other, payload) if other == kind => return M::from_bytes(&payload).unwrap(),
                _ => {}
            }
        }
    }

    /// As a client: asks for tunnels, and hears which it has.
    pub async fn hello(&mut self, tunnels: Vec<TunnelSpec>) -> Vec<Bound> {
        self.welcome(None, tunnels).await.tunnels
    }

    /// As [`Socket::hello`], with a session to go on with.
    pub async fn welcome(&mut self, resume: Option<Resume>, tunnels: Vec<TunnelSpec>) -> Welcome {
        self.send(&[resuming(resume, tunnels)]).await;
        self.next_message(SessionKind::Welcome).await
    }

    /// The next stream that the relay opens.
    pub async fn opened(&mut self) -> Opened {
        loop {
            if let Frame::Open { stream, last, head, .. } = self.next_said().await.expect("the session is up") {
                let head = RequestHead::from_bytes(&head).unwrap();
                return Opened { stream: stream.get(), last, head };
            }
        }
    }

    /// The rest of a stream's body.
    pub async fn body(&mut self, opened: &Opened) -> Vec<u8> {
        let (mut body, mut ended) = (Vec::new(), opened.last);
        while !ended {
            match self.next_said().await.expect("the session is up") {
                Frame::Data { stream, last, bytes } if stream.get() == opened.stream => {
                    body.extend_from_slice(&bytes);
                    ended = last;
                }
                Frame::End { stream, .. } if stream.get() == opened.stream => ended = true,
                Frame::Reset { stream, reset } if stream.get() == opened.stream => panic!("a reset: {reset}"),
                _ => {}
            }
        }
        body
    }

    /// Answers a stream with 200 and this.
    pub async fn answer(&mut self, stream: u32, text: &'static str) {
        let head = Frame::Head { stream: id(stream), interim: false, last: false, head: head(200, &[]) };
        self.send(&[head, data(stream, true, text)]).await;
    }

    /// Why the other end ends the session; `None` where it closes without a word.
    pub async fn farewell(&mut self) -> Option<GoAway> {
        loop {
            if let Frame::GoAway { reason, .. } = self.next_said().await? {
                return Some(reason);
            }
        }
    }

    /// The next message or frame of WebSocket, as its opcode and payload.
    pub async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let header = self.take(2).await?;
        let masked = header[1] & 0x80 != 0;
        let length = match header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.take(2).await?.try_into().unwrap())),
            127 => u64::from_be_bytes(self.take(8).await?.try_into().unwrap()),
            short => u64::from(short),
        };
        let key = if masked { self.take(4).await? } else { vec![0; 4] };
        let mut payload = self.take(length as usize).await?;
        payload.iter_mut().enumerate().for_each(|(i, byte)| *byte ^= key[i % 4]);
        Some((header[0] & 0x0f, payload))
    }

    async fn take(&mut self, n: usize) -> Option<Vec<u8>> {
        while self.read.len() < n {
            let more = self.wire.some().await;
            if more.is_empty() {
                return None;
            }
            self.read.extend_from_slice(&more);
        }
        Some(self.read.split_to(n).to_vec())
    }
}

/// A stream that the relay has opened.
#[derive(Debug)]
pub struct Opened {
    /// Its number.
    pub stream: u32,
    /// The request has no body.
    pub last: bool,
    /// The request's head.
    pub head: RequestHead,
}

/// Frames as the payload of a message.
pub fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut out = BytesMut::new();
    frames.iter().for_each(|frame| frame.encode(&mut out));
    out.to_vec()
}

/// A frame as no constructor makes it.
pub fn odd(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, flags];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A stream's number.
pub fn id(stream: u32) -> StreamId {
    StreamId::new(stream).unwrap()
}

/// What a Hello or a Bind asks for.
pub fn spec(tunnel: u32, name: &str) -> TunnelSpec {
    TunnelSpec {
        tunnel,
        name: Some(name.to_owned()),
        domain: None,
        timeout_ms: None,
        takeover: false,
        extra: Vec::new(),
    }
}

/// A Hello that asks for tunnels.
pub fn hello(tunnels: Vec<TunnelSpec>) -> Frame {
    resuming(None, tunnels)
}

/// As [`hello`], with a session to go on with.
pub fn resuming(resume: Option<Resume>, tunnels: Vec<TunnelSpec>) -> Frame {
    let (client, version, features, extra) = ("by hand".into(), "0".into(), Vec::new(), Vec::new());
    let hello = Hello { client, version, features, tunnels, resume, extra };
    Frame::Session(SessionKind::Hello, hello.to_bytes().unwrap())
}

/// An encoded response head.
pub fn head(status: u16, lines: &[(&str, &str)]) -> Bytes {
    let lines = lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    ResponseHead { status: http::StatusCode::from_u16(status).unwrap(), headers: lines.collect() }.to_bytes().unwrap()
}

/// A piece of a body.
pub fn data(stream: u32, last: bool, bytes: impl Into<Bytes>) -> Frame {
    Frame::Data { stream: id(stream), last, bytes: bytes.into() }
}

/// The header line that asks for this version of the protocol.
pub const V1: &str = "Sec-WebSocket-Protocol: relay.v1\r\n";

/// Asks for a session on a connection, and reads the head of the answer.
pub async fn upgrade_on(mut wire: Wire, authorization: &str, protocol: &str) -> (Wire, String) {
    wire.send(format!(
        "GET /_relay/connect HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{protocol}{authorization}\r\n"
    ))
    .await;
    let head = wire.head().await.expect("an answer");
    (wire, head)
}

/// A session of this token that has said nothing yet.
pub async fn connect_on(wire: Wire, token: &str) -> Socket {
    let (wire, head) = upgrade_on(wire, &format!("Authorization: Bearer {token}\r\n"), V1).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    Socket::new(wire, true)
}

/// A session of this token with these tunnels.
pub async fn session_of(world: &World, token: &str, tunnels: Vec<TunnelSpec>) -> Socket {
    let mut socket = connect_on(world.raw("relay.test").await, token).await;
    let bound = socket.hello(tunnels).await;
    assert!(bound.iter().all(|bound| bound.result.is_ok()), "{bound:?}");
    socket
}

/// Waits until the relay has so many sessions.
pub async fn sessions(world: &World, count: usize) {
    within(format!("{count} sessions"), async {
        let line = format!("relay_sessions {count}\n");
        while !world.get_admin("/metrics").await.text().contains(&line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
