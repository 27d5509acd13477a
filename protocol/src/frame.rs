//! Frames: the unit of the wire.
//!
//! A WebSocket binary message carries one or more whole frames. A frame is a header of eight bytes and a payload:
//!
//! ```text
//!  0      1       2        4                8
//!  +------+-------+--------+----------------+--------- - -
//!  | kind | flags | length |     stream     | payload
//!  +------+-------+--------+----------------+--------- - -
//! ```
//!
//! Numbers are big-endian. Decoding is total and copies nothing: payloads are slices of the message.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 8;

/// Longest payload of any frame in bytes: what the header's 16-bit length can say.
pub const MAX_PAYLOAD: usize = u16::MAX as usize;

/// Longest payload of a [`Frame::Data`] that we send. A small request behind a large one waits for one frame of each
/// busy stream at most; 16 KiB is also one TLS record.
pub const MAX_DATA: usize = 16 * 1024;

/// Longest payload of a [`Frame::Data`] that we accept, so that a peer may choose twice our own size.
pub const MAX_DATA_ACCEPTED: usize = 32 * 1024;

/// Longest WebSocket message that we accept, in bytes.
pub const MAX_MESSAGE: usize = 256 * 1024;

/// Longest reason text of a [`Frame::GoAway`], in bytes.
pub const MAX_REASON: usize = 512;

/// Set on the last frame of a direction: no [`Frame::End`] follows.
const LAST: u8 = 0x01;
/// Set on a [`Frame::Head`] of a 1xx response other than 101: another head follows.
const INTERIM: u8 = 0x02;
/// Set on a [`Frame::GoAway`] whose sender finishes what is under way before it closes.
const DRAIN: u8 = 0x04;
/// Set on a frame that a receiver which does not know its kind skips. Without it an unknown kind ends the session.
const IGNORABLE: u8 = 0x80;

/// Names one stream of a session. The relay counts up from 1 and never uses a number twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// The first stream of a session.
    pub const FIRST: Self = Self(1);

    /// `None` for zero, which the wire uses for "the session itself".
    pub const fn new(id: u32) -> Option<Self> {
        if id == 0 { None } else { Some(Self(id)) }
    }

    /// The number as it stands in the header.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The stream after this one, or `None` when a session has used all 4,294,967,295 of them.
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Defines an enum over `u16` that keeps numbers it does not know, so that a newer peer's code survives.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
            /// A code of a newer version.
            Other(u16),
        }

        impl $name {
            /// Every code that this version knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self { $(Self::$variant => $value,)* Self::Other(code) => code }
            }

            /// The meaning of a number on the wire.
            pub const fn from_code(code: u16) -> Self {
                match code { $($value => Self::$variant,)* code => Self::Other(code) }
            }

            /// The stable name: what `Relay-Error`, logs and JSON output say.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* Self::Other(_) => "unknown" }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { Self::Other(code) => write!(f, "code {code}"), known => f.write_str(known.name()) }
            }
        }
    };
}

codes! {
    /// Why one stream ended before both of its directions did.
    Reset {
        /// Whoever wanted the answer no longer does.
        Cancelled = 0, "cancelled";
        /// The sender of the reset failed in a way that is its own fault.
        Internal = 1, "internal";
        /// Nothing accepts connections at the upstream's address.
        UpstreamRefused = 2, "upstream-refused";
        /// The upstream answered with something that is not HTTP, or closed before it had answered.
        UpstreamInvalid = 3, "upstream-invalid";
        /// The exchange's deadline passed.
        Deadline = 4, "deadline";
        /// A body was silent, or a receiver did not read, for longer than the limits allow.
        Idle = 5, "idle";
        /// A body was larger than the limits allow.
        TooLarge = 6, "body-too-large";
        /// The session to the client, or the sender of the body, went away.
        LinkLost = 7, "link-lost";
        /// The receiver cannot take another stream now; the request was not handed on.
        Refused = 8, "refused";
        /// The message is not valid HTTP.
        Malformed = 9, "malformed";
        /// The request is not signed by the provider whose webhooks alone are wanted.
        SignatureInvalid = 10, "signature-invalid";
    }
}

codes! {
    /// Why a session ends.
    GoAway {
        /// The sender shuts down.
        Shutdown = 0, "shutdown";
        /// A frame did not decode, or came where the protocol does not allow it.
        Protocol = 1, "protocol";
        /// The peer sent more than it had credit for.
        FlowControl = 2, "flow-control";
        /// The peer exceeded a limit of the session.
        Limit = 3, "limit";
        /// Nothing was heard from the peer for longer than the heartbeat allows.
        Silent = 4, "silent";
        /// The token was revoked.
        Revoked = 5, "revoked";
        /// The token expired.
        Expired = 6, "expired";
        /// Another session of the same token took this one's tunnels over.
        Replaced = 7, "replaced";
        /// The session has used up its stream numbers; connect again.
        Exhausted = 8, "exhausted";
        /// The sender failed in a way that is its own fault.
        Internal = 9, "internal";
    }
}

/// The session messages, whose payload [`message`](crate::message) gives a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SessionKind {
    /// The client's first frame.
    Hello = 0x10,
    /// The relay's answer to it.
    Welcome = 0x11,
    /// The client asks for one more tunnel.
    Bind = 0x12,
    /// The relay's answer to it.
    Bound = 0x13,
    /// The client gives a tunnel up.
    Unbind = 0x14,
    /// The relay tells of requests that it has not let through. Whoever does not know the kind skips it.
    Withheld = 0x15,
    /// The relay asks the client to come again, to the process that serves on in its place. It has no payload, and whoever
    /// does not know the kind skips it.
    Move = 0x16,
    /// The relay says why the client has lost a tunnel, in front of the `Unbind`. Whoever does not know the kind skips it.
    Lost = 0x17,
}

impl SessionKind {
    const fn from_byte(kind: u8) -> Option<Self> {
        Some(match kind {
            0x10 => Self::Hello,
            0x11 => Self::Welcome,
            0x12 => Self::Bind,
            0x13 => Self::Bound,
            0x14 => Self::Unbind,
            0x15 => Self::Withheld,
            0x16 => Self::Move,
            0x17 => Self::Lost,
            _ => return None,
        })
    }

    /// Those of its frame, all of which it has.
    const fn flags(self) -> u8 {
        match self {
            Self::Hello | Self::Welcome | Self::Bind | Self::Bound | Self::Unbind => 0,
            Self::Withheld | Self::Move | Self::Lost => IGNORABLE,
        }
    }
}

/// One frame. Payloads of heads, trailers and session messages are encoded by [`message`](crate::message).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new exchange, with the request's head.
    Open {
        /// The new stream.
        stream: StreamId,
        /// How many bytes of request body the sender allows itself before the first [`Frame::Credit`].
        request_credit: u32,
        /// How many bytes of response body the receiver may send before the first [`Frame::Credit`].
        response_credit: u32,
        /// The request has no body.
        last: bool,
        /// The request's head.
        head: Bytes,
    },
    /// A response's head.
    Head {
        /// The stream.
        stream: StreamId,
        /// A 1xx response; the final head is still to come.
        interim: bool,
        /// The response has no body.
        last: bool,
        /// The response's head.
        head: Bytes,
    },
    /// Part of a body. Never empty.
    Data {
        /// The stream.
        stream: StreamId,
        /// The body ends here.
        last: bool,
        /// The bytes.
        bytes: Bytes,
    },
    /// The end of a body that has trailers, or whose end became known late.
    End {
        /// The stream.
        stream: StreamId,
        /// The trailers; empty for none.
        trailers: Bytes,
    },
    /// Both directions end now.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        reset: Reset,
    },
    /// The receiver may send this many bytes more. Never zero.
    Credit {
        /// The stream.
        stream: StreamId,
        /// Bytes on top of all credit given before.
        bytes: u32,
    },
    /// Asks for a [`Frame::Pong`] with the same number.
    Ping(u64),
    /// The answer to a [`Frame::Ping`].
    Pong(u64),
    /// The session ends.
    GoAway {
        /// Why.
        reason: GoAway,
        /// The sender finishes the streams that are open, and opens or takes no new ones.
        drain: bool,
        /// What a person should read, at most [`MAX_REASON`] bytes.
        text: String,
    },
    /// A session message.
    Session(SessionKind, Bytes),
    /// A frame of a kind that this version does not know and may skip.
    Skipped,
}

/// Why bytes are not frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The message ends inside a frame.
    #[error("the message ends inside a frame")]
    Truncated,
    /// The kind is unknown and the frame does not say that it may be skipped.
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// A flag that this kind does not have.
    #[error("flags {flags:#04x} on a frame of kind {kind:#04x}")]
    BadFlags {
        /// The frame's kind.
        kind: u8,
        /// All of its flags.
        flags: u8,
    },
    /// A stream frame without a stream, or a session frame with one.
    #[error("stream {stream} on a frame of kind {kind:#04x}")]
    BadStream {
        /// The frame's kind.
        kind: u8,
        /// The header's stream field.
        stream: u32,
    },
    /// The payload's length or content is not one that this kind can have.
    #[error("payload of {len} bytes on a frame of kind {kind:#04x}")]
    BadPayload {
        /// The frame's kind.
        kind: u8,
        /// The payload's length.
        len: usize,
    },
}

const OPEN: u8 = 0x01;
const HEAD: u8 = 0x02;
const DATA: u8 = 0x03;
const END: u8 = 0x04;
const RESET: u8 = 0x05;
const CREDIT: u8 = 0x06;
const PING: u8 = 0x07;
const PONG: u8 = 0x08;
const GOAWAY: u8 = 0x09;

/// Bytes of an [`Frame::Open`]'s payload before the head: the two credits.
const OPEN_PREFIX: usize = 8;

/// Longest head that a frame can carry, in bytes.
pub const MAX_HEAD: usize = MAX_PAYLOAD - OPEN_PREFIX;

impl Frame {
    /// Takes the next frame off `message`; `None` at its end.
    ///
    /// # Errors
    /// [`FrameError`] says what is wrong with the bytes; `message` is then left where it was.
    pub fn decode(message: &mut Bytes) -> Result<Option<Self>, FrameError> {
        if message.is_empty() {
            return Ok(None);
        }
        let mut header = message.get(..HEADER_LEN).ok_or(FrameError::Truncated)?;
        let (kind, flags, len, stream) = (header.get_u8(), header.get_u8(), header.get_u16(), header.get_u32());
        let end = HEADER_LEN + usize::from(len);
        if message.len() < end {
            return Err(FrameError::Truncated);
        }
        let frame = Header { kind, flags, stream }.frame(message.slice(HEADER_LEN..end))?;
        message.advance(end);
        Ok(Some(frame))
    }

    /// Appends the frame to `out`. Payloads longer than a frame can carry are the caller's mistake and are cut: every
    /// constructor of payloads in this crate checks its length first.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Open { stream, request_credit, response_credit, last, head } => {
                let head = clip(head, MAX_HEAD);
                header(out, OPEN, flag(*last, LAST), OPEN_PREFIX + head.len(), stream.get());
                out.put_u32(*request_credit);
                out.put_u32(*response_credit);
                out.put_slice(head);
            }
            Self::Head { stream, interim, last, head } => {
                let flags = flag(*last, LAST) | flag(*interim, INTERIM);
                whole(out, HEAD, flags, stream.get(), clip(head, MAX_PAYLOAD));
            }
            Self::Data { stream, last, bytes } => data(out, *stream, *last, clip(bytes, MAX_DATA_ACCEPTED)),
            Self::End { stream, trailers } => whole(out, END, 0, stream.get(), clip(trailers, MAX_PAYLOAD)),
            Self::Reset { stream, reset } => whole(out, RESET, 0, stream.get(), &reset.code().to_be_bytes()),
            Self::Credit { stream, bytes } => whole(out, CREDIT, 0, stream.get(), &bytes.to_be_bytes()),
            Self::Ping(nonce) => whole(out, PING, 0, 0, &nonce.to_be_bytes()),
            Self::Pong(nonce) => whole(out, PONG, 0, 0, &nonce.to_be_bytes()),
            Self::GoAway { reason, drain, text } => {
                let text = clip_text(text, MAX_REASON);
                header(out, GOAWAY, flag(*drain, DRAIN), 2 + text.len(), 0);
                out.put_u16(reason.code());
                out.put_slice(text.as_bytes());
            }
            Self::Session(kind, payload) => whole(out, *kind as u8, kind.flags(), 0, clip(payload, MAX_PAYLOAD)),
            Self::Skipped => whole(out, 0x7f, IGNORABLE, 0, &[]),
        }
    }
}

/// Appends a [`Frame::Data`] without taking ownership of the bytes: the multiplexer's hot path.
pub(crate) fn data(out: &mut BytesMut, stream: StreamId, last: bool, bytes: &[u8]) {
    whole(out, DATA, flag(last, LAST), stream.get(), bytes);
}

struct Header {
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Header {
    fn frame(&self, mut payload: Bytes) -> Result<Frame, FrameError> {
        let len = payload.len();
        let bad_payload = FrameError::BadPayload { kind: self.kind, len };
        Ok(match self.kind {
            OPEN => {
                let (stream, last) = (self.stream()?, self.flags(LAST)? & LAST != 0);
                if len < OPEN_PREFIX {
                    return Err(bad_payload);
                }
                let (request_credit, response_credit) = (payload.get_u32(), payload.get_u32());
                Frame::Open { stream, request_credit, response_credit, last, head: payload }
            }
            HEAD => {
                let (stream, flags) = (self.stream()?, self.flags(LAST | INTERIM)?);
                let (last, interim) = (flags & LAST != 0, flags & INTERIM != 0);
                if last && interim {
                    return Err(self.bad_flags());
                }
                Frame::Head { stream, interim, last, head: payload }
            }
            DATA => {
                let (stream, last) = (self.stream()?, self.flags(LAST)? & LAST != 0);
                if len == 0 || len > MAX_DATA_ACCEPTED {
                    return Err(bad_payload);
                }
                Frame::Data { stream, last, bytes: payload }
            }
            END => {
                self.flags(0)?;
                Frame::End { stream: self.stream()?, trailers: payload }
            }
            RESET => {
                self.flags(0)?;
                let stream = self.stream()?;
                let code = exactly(&payload).ok_or(bad_payload)?;
                Frame::Reset { stream, reset: Reset::from_code(u16::from_be_bytes(code)) }
            }
            CREDIT => {
                self.flags(0)?;
                let stream = self.stream()?;
                let bytes = u32::from_be_bytes(exactly(&payload).ok_or(bad_payload)?);
                if bytes == 0 {
                    return Err(bad_payload);
                }
                Frame::Credit { stream, bytes }
            }
            PING | PONG => {
                self.flags(0)?;
                self.no_stream()?;
                let nonce = u64::from_be_bytes(exactly(&payload).ok_or(bad_payload)?);
                if self.kind == PING { Frame::Ping(nonce) } else { Frame::Pong(nonce) }
            }
            GOAWAY => {
                let drain = self.flags(DRAIN)? & DRAIN != 0;
                self.no_stream()?;
                if !(2..=2 + MAX_REASON).contains(&len) {
                    return Err(bad_payload);
                }
                let reason = GoAway::from_code(payload.get_u16());
                let text = String::from_utf8(payload.to_vec()).map_err(|_| bad_payload)?;
                Frame::GoAway { reason, drain, text }
            }
            kind => match SessionKind::from_byte(kind) {
                Some(session) => {
                    if self.flags != session.flags() {
                        return Err(self.bad_flags());
                    }
                    self.no_stream()?;
                    Frame::Session(session, payload)
                }
                None if self.flags & IGNORABLE != 0 => Frame::Skipped,
                None => return Err(FrameError::UnknownKind(kind)),
            },
        })
    }

    fn stream(&self) -> Result<StreamId, FrameError> {
        StreamId::new(self.stream).ok_or(FrameError::BadStream { kind: self.kind, stream: 0 })
    }

    fn no_stream(&self) -> Result<(), FrameError> {
        if self.stream == 0 { Ok(()) } else { Err(FrameError::BadStream { kind: self.kind, stream: self.stream }) }
    }

    fn flags(&self, allowed: u8) -> Result<u8, FrameError> {
        if self.flags & !allowed == 0 { Ok(self.flags) } else { Err(self.bad_flags()) }
    }

    fn bad_flags(&self) -> FrameError {
        FrameError::BadFlags { kind: self.kind, flags: self.flags }
    }
}

fn exactly<const N: usize>(payload: &[u8]) -> Option<[u8; N]> {
    payload.try_into().ok()
}

const fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn header(out: &mut BytesMut, kind: u8, flags: u8, len: usize, stream: u32) {
    out.reserve(HEADER_LEN + len);
    out.put_u8(kind);
    out.put_u8(flags);
    // Callers have clipped the payload; saturating keeps the header honest about what a u16 can say.
    out.put_u16(u16::try_from(len).unwrap_or(u16::MAX));
    out.put_u32(stream);
}

fn whole(out: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    header(out, kind, flags, payload.len(), stream);
    out.put_slice(payload);
}

fn clip(bytes: &[u8], max: usize) -> &[u8] {
    debug_assert!(bytes.len() <= max, "payload of {} bytes, {max} fit", bytes.len());
    bytes.get(..max).unwrap_or(bytes)
}

fn clip_text(text: &str, max: usize) -> &str {
    text.get(..text.floor_char_boundary(max)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> StreamId {
        StreamId::new(n).unwrap()
    }

    fn arbitrary_frame() -> impl Strategy<Value = Frame> {
        let stream = (1..=u32::MAX).prop_map(id);
        let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), any::<u32>(), any::<u32>(), any::<bool>(), bytes(300)).prop_map(
                |(stream, request_credit, response_credit, last, head)| Frame::Open {
                    stream,
                    request_credit,
                    response_credit,
                    last,
                    head
                }
            ),
            (stream.clone(), 0..3_u8, bytes(300)).prop_map(|(stream, f, head)| Frame::Head {
                stream,
                interim: f == 1,
                last: f == 2,
                head
            }),
            (stream.clone(), any::<bool>(), proptest::collection::vec(any::<u8>(), 1..400))
                .prop_map(|(stream, last, b)| Frame::Data { stream, last, bytes: b.into() }),
            (stream.clone(), bytes(300)).prop_map(|(stream, trailers)| Frame::End { stream, trailers }),
            (stream.clone(), any::<u16>()).prop_map(|(stream, c)| Frame::Reset { stream, reset: Reset::from_code(c) }),
            (stream, 1..=u32::MAX).prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            (any::<u16>(), any::<bool>(), ".{0,40}").prop_map(|(c, drain, text)| Frame::GoAway {
                reason: GoAway::from_code(c),
                drain,
                text
            }),
            bytes(300).prop_map(|b| Frame::Session(SessionKind::Hello, b)),
            bytes(300).prop_map(|b| Frame::Session(SessionKind::Withheld, b)),
            bytes(300).prop_map(|b| Frame::Session(SessionKind::Lost, b)),
            Just(Frame::Session(SessionKind::Move, Bytes::new())),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_what_is_decoded(frames in proptest::collection::vec(arbitrary_frame(), 0..8)) {
            let mut out = BytesMut::new();
            frames.iter().for_each(|f| f.encode(&mut out));
            let mut message = out.freeze();
            for frame in frames {
                prop_assert_eq!(Frame::decode(&mut message), Ok(Some(frame)));
            }
            prop_assert_eq!(Frame::decode(&mut message), Ok(None));
        }

        #[test]
        fn any_bytes_decode_or_are_refused_and_what_decodes_encodes_to_itself(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut message = Bytes::from(bytes);
            let before = message.clone();
            while let Ok(Some(frame)) = Frame::decode(&mut message) {
                if frame != Frame::Skipped {
                    let mut again = BytesMut::new();
                    frame.encode(&mut again);
                    let mut again = again.freeze();
                    prop_assert_eq!(Frame::decode(&mut again), Ok(Some(frame)));
                }
            }
            prop_assert!(message.len() <= before.len());
        }

        #[test]
        fn a_frame_cut_short_is_truncated(frame in arbitrary_frame(), cut in any::<prop::sample::Index>()) {
            let mut out = BytesMut::new();
            frame.encode(&mut out);
            let at = 1 + cut.index(out.len() - 1);
            let mut message = out.freeze().slice(..at);
            if at < message.len() + 1 && at > 0 {
                let whole = Frame::decode(&mut message);
                prop_assert!(whole == Err(FrameError::Truncated), "{:?}", whole);
            }
        }
    }

    #[test]
    fn codes_survive_the_round_trip_and_have_names_of_their_own() {
        for code in 0..=u16::MAX {
            assert_eq!(Reset::from_code(code).code(), code);
            assert_eq!(GoAway::from_code(code).code(), code);
        }
        let names: std::collections::HashSet<_> = Reset::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reset::ALL.len());
    }

    #[test]
    fn refuses_what_the_protocol_does_not_allow() {
        let decode = |bytes: &[u8]| Frame::decode(&mut Bytes::copy_from_slice(bytes));
        assert_eq!(decode(&[3, 0, 0, 0, 0, 0, 0, 1]), Err(FrameError::BadPayload { kind: 3, len: 0 }), "empty data");
        assert_eq!(decode(&[3, 0, 0, 1, 0, 0, 0, 0, 7]), Err(FrameError::BadStream { kind: 3, stream: 0 }));
        assert_eq!(decode(&[3, 2, 0, 1, 0, 0, 0, 1, 7]), Err(FrameError::BadFlags { kind: 3, flags: 2 }));
        assert_eq!(decode(&[6, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0]), Err(FrameError::BadPayload { kind: 6, len: 4 }));
        assert_eq!(decode(&[2, 3, 0, 0, 0, 0, 0, 1]), Err(FrameError::BadFlags { kind: 2, flags: 3 }));
        assert_eq!(decode(&[0x40, 0, 0, 0, 0, 0, 0, 0]), Err(FrameError::UnknownKind(0x40)));
        assert_eq!(decode(&[0x40, 0x80, 0, 0, 0, 0, 0, 0]), Ok(Some(Frame::Skipped)));
        assert_eq!(
            decode(&[1, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::BadPayload { kind: 1, len: 7 })
        );
    }
}
