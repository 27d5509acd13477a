//! What the payloads of heads and session messages say.
//!
//! This is the only file that knows bincode. The layout is bincode 2's `standard` configuration (little-endian variable
//! length integers, length-prefixed sequences), written down with examples in `PROTOCOL.md` and pinned by the tests
//! below, so that another encoder can take bincode's place without a change of the wire.
//!
//! Decoding is total: it bounds every length by what is there, checks that every byte was consumed, and validates
//! names and values, so that what comes out can be handed to an HTTP library as it is.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::{BorrowDecode, BorrowDecoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use bytes::Bytes;
use bytestring::ByteString;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::frame::MAX_HEAD;

/// Most header lines in one head or in trailers. A typical webhook has 10 to 25.
pub const MAX_HEADERS: usize = 128;

/// Most tunnels in one [`Hello`], and so on one session.
pub const MAX_TUNNELS: usize = 100;

/// The [feature](Hello::features) of a client that knows [`Move`](crate::frame::SessionKind::Move).
pub const MOVES: &str = "move";

/// Header lines in order: names in the order of their first appearance, the values of one name in theirs.
pub type HeaderList = Vec<(HeaderName, HeaderValue)>;

/// The client's first words on a session.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Hello {
    /// The program, for logs: `relay`.
    pub client: String,
    /// The program's version.
    pub version: String,
    /// What the client can do beyond this version of the protocol.
    pub features: Vec<String>,
    /// The tunnels it asks for.
    pub tunnels: Vec<TunnelSpec>,
    /// The session it goes on with.
    pub resume: Option<Resume>,
    /// Additions of later versions; unknown tags are ignored.
    pub extra: Vec<Extra>,
}

/// One tunnel that a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct TunnelSpec {
    /// The client's own number for it, unique in the session; [`RequestHead::tunnel`] names it again.
    pub tunnel: u32,
    /// The name asked for; `None` for a random one.
    pub name: Option<String>,
    /// A custom domain instead of a name below the base domain.
    pub domain: Option<String>,
    /// The tunnel's deadline for response heads in milliseconds; `None` for the relay's choice.
    pub timeout_ms: Option<u32>,
    /// Take the name over from a live session of the same token.
    pub takeover: bool,
    /// What [`Webhooks`](crate::webhook::Webhooks) reads, and additions of later versions; unknown tags are ignored.
    pub extra: Vec<Extra>,
}

/// Proof that a dropped session was ours.
#[derive(Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Resume {
    /// The key that the last [`Welcome`] brought.
    pub key: [u8; 32],
    /// The highest stream number seen on the dropped session.
    pub last_stream: u32,
}

impl std::fmt::Debug for Resume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resume").field("key", &"[redacted]").field("last_stream", &self.last_stream).finish()
    }
}

/// A tagged addition that an older peer ignores. Each message has tags of its own. Debug output does not show the value,
/// which may be a secret.
#[derive(Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Extra {
    /// What it is.
    pub tag: u16,
    /// Its content.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Extra {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Extra {{ tag: {}, bytes: {} }}", self.tag, self.value.len())
    }
}

/// The relay's answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Welcome {
    /// The session's id, for logs and support.
    pub session: String,
    /// The relay's version.
    pub version: String,
    /// The key that resumes this session once.
    pub resume_key: [u8; 32],
    /// Whether [`Hello::resume`] was accepted.
    pub resumed: bool,
    /// The client pings when it has heard nothing for this long, in milliseconds.
    pub heartbeat_ms: u32,
    /// Most streams that the relay opens at once.
    pub max_streams: u32,
    /// An answer for each tunnel of the [`Hello`], in its order.
    pub tunnels: Vec<Bound>,
    /// Additions of later versions; unknown tags are ignored.
    pub extra: Vec<Extra>,
}

impl std::fmt::Debug for Welcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { session, version, resumed, heartbeat_ms, max_streams, tunnels, .. } = self;
        write!(f, "Welcome {{ session: {session:?}, version: {version:?}, resumed: {resumed}, ")?;
        write!(f, "heartbeat_ms: {heartbeat_ms}, max_streams: {max_streams}, tunnels: {tunnels:?} }}")
    }
}

/// What became of one [`TunnelSpec`].
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Bound {
    /// The client's number for the tunnel.
    pub tunnel: u32,
    /// The public name, or why there is none.
    pub result: Result<PublicName, Refusal>,
}

/// Where a tunnel is reached.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct PublicName {
    /// The label below the base domain, or the custom domain.
    pub name: String,
    /// The public URL without a trailing slash.
    pub url: String,
}

/// Why a tunnel was refused.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Refusal {
    /// A stable code, such as `name-in-use`.
    pub code: String,
    /// What happened, for a person.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Requests to a tunnel that its client does not get, because the relay has refused them by the client's own wish. The
/// texts are for a person: what strangers have written is clipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Withheld {
    /// The client's number for the tunnel.
    pub tunnel: u32,
    /// How many there were since the last such message. What follows is of the last one.
    pub count: u32,
    /// The exchange's id, as in the relay's log.
    pub id: String,
    /// The request's method.
    pub method: String,
    /// The beginning of its target.
    pub target: String,
    /// The sender's address.
    pub remote: String,
    /// What the sender was answered with: the stable code that stood in `Relay-Error`.
    pub code: String,
    /// The id of the provider that it seems to be from.
    pub provider: Option<String>,
    /// What its signature is worth, as in `Relay-Verdict`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Additions of later versions; unknown tags are ignored.
    pub extra: Vec<Extra>,
}

/// Why a client has lost a tunnel that it had, in front of the `Unbind` that says that it has.
#[derive(Clone, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Lost {
    /// The client's number for the tunnel.
    pub tunnel: u32,
    /// As where a tunnel is refused; the code may be one such as `taken-over`.
    pub why: Refusal,
    /// Additions of later versions; unknown tags are ignored.
    pub extra: Vec<Extra>,
}

/// The head of a request as it crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The client's number of the tunnel that it is for.
    pub tunnel: u32,
    /// The exchange's id: what `Relay-Request-Id` says.
    pub id: ByteString,
    /// Milliseconds until the response head must have been sent.
    pub deadline_ms: u32,
    /// Milliseconds of the allowed time that had passed when the head was sent on.
    pub elapsed_ms: u32,
    /// The request's method.
    pub method: Method,
    /// Path and query, byte for byte as they came.
    pub target: PathAndQuery,
    /// The public authority that the sender called.
    pub authority: ByteString,
    /// The sender's address, as it stands in `X-Forwarded-For`.
    pub remote: ByteString,
    /// The protocol asked for by an upgrade, such as `websocket`.
    pub upgrade: Option<ByteString>,
    /// The header lines, without hop-by-hop ones and without `Host`.
    pub headers: HeaderList,
}

/// The head of a response as it crosses the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The header lines, without hop-by-hop ones.
    pub headers: HeaderList,
}

/// A message that can be the payload of a frame.
pub trait Payload: Sized {
    /// The bytes of the payload.
    ///
    /// # Errors
    /// [`MessageError::TooLong`] when they do not fit into one frame, [`MessageError::TooManyHeaders`].
    fn to_bytes(&self) -> Result<Bytes, MessageError>;

    /// The message that `payload` is.
    ///
    /// # Errors
    /// [`MessageError`] says what is wrong with it.
    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError>;
}

/// Why a message is not a payload, or a payload not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It does not fit into one frame.
    #[error("a message of {0} bytes; {MAX_HEAD} fit into a frame")]
    TooLong(usize),
    /// More than [`MAX_HEADERS`] header lines.
    #[error("more than {MAX_HEADERS} header lines")]
    TooManyHeaders,
    /// More than [`MAX_TUNNELS`] tunnels.
    #[error("more than {MAX_TUNNELS} tunnels on one session")]
    TooManyTunnels,
    /// The bytes are not the message that they should be.
    #[error("the message does not decode: {0}")]
    Malformed(String),
    /// Bytes are left over behind the message.
    #[error("{0} bytes are left over behind the message")]
    Trailing(usize),
}

/// The layout. The limit bounds what a length prefix can make the decoder allocate. It counts numbers and elements at
/// their size in memory, so it leaves room for that beside a payload of the largest size.
const LAYOUT: Configuration<LittleEndian, Varint, Limit<{ 2 * MAX_HEAD }>> =
    bincode::config::standard().with_limit::<{ 2 * MAX_HEAD }>();

fn encode(message: impl Encode, capacity: usize) -> Result<Bytes, MessageError> {
    struct Grow(Vec<u8>);
    impl bincode::enc::write::Writer for Grow {
        fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    let mut encoder = bincode::enc::EncoderImpl::new(Grow(Vec::with_capacity(capacity)), LAYOUT);
    message.encode(&mut encoder).map_err(|error| match error {
        EncodeError::Other(_) => MessageError::TooManyHeaders,
        other => MessageError::Malformed(other.to_string()),
    })?;
    let bytes = encoder.into_writer().0;
    // bincode's limit guards decoding only.
    if bytes.len() > MAX_HEAD { Err(MessageError::TooLong(bytes.len())) } else { Ok(bytes.into()) }
}

fn decode<'a, M: BorrowDecode<'a, Bytes>>(payload: &'a Bytes) -> Result<M, MessageError> {
    if payload.len() > MAX_HEAD {
        return Err(MessageError::TooLong(payload.len()));
    }
    let (message, used) =
        bincode::borrow_decode_from_slice_with_context::<Bytes, M, _>(payload, LAYOUT, payload.clone())
            .map_err(|error| MessageError::Malformed(error.to_string()))?;
    match payload.len() - used {
        0 => Ok(message),
        left => Err(MessageError::Trailing(left)),
    }
}

impl Payload for Hello {
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        encode(self, 256)
    }

    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
        let hello: Self = decode(payload)?;
        if hello.tunnels.len() > MAX_TUNNELS { Err(MessageError::TooManyTunnels) } else { Ok(hello) }
    }
}

macro_rules! plain_payload {
    ($($message:ty),*) => { $(
        impl Payload for $message {
            fn to_bytes(&self) -> Result<Bytes, MessageError> {
                encode(self, 256)
            }

            fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
                decode(payload)
            }
        }
    )* };
}
plain_payload!(Welcome, TunnelSpec, Bound, Withheld, Lost);

/// The payload of an `Unbind` frame.
impl Payload for u32 {
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        encode(self, 8)
    }

    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
        decode(payload)
    }
}

impl Payload for RequestHead {
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        encode(Wire(self), 128 + 64 * self.headers.len())
    }

    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
        decode::<Wire<Self>>(payload).map(|wire| wire.0)
    }
}

impl Payload for ResponseHead {
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        encode(Wire(self), 32 + 64 * self.headers.len())
    }

    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
        decode::<Wire<Self>>(payload).map(|wire| wire.0)
    }
}

/// Trailers; an empty payload is an empty list.
impl Payload for HeaderList {
    fn to_bytes(&self) -> Result<Bytes, MessageError> {
        if self.is_empty() { Ok(Bytes::new()) } else { encode(Wire(self), 64 * self.len()) }
    }

    fn from_bytes(payload: &Bytes) -> Result<Self, MessageError> {
        if payload.is_empty() { Ok(Self::new()) } else { decode::<Wire<Self>>(payload).map(|wire| wire.0) }
    }
}

/// A head in its wire layout, whose names and values are slices of the payload: no allocation per header line.
struct Wire<T>(T);

impl Encode for Wire<&HeaderList> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        if self.0.len() > MAX_HEADERS {
            return Err(EncodeError::Other("too many headers"));
        }
        self.0.len().encode(encoder)?;
        self.0.iter().try_for_each(|(name, value)| {
            name.as_str().encode(encoder)?;
            value.as_bytes().encode(encoder)
        })
    }
}

impl<'de> BorrowDecode<'de, Bytes> for Wire<HeaderList> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let len = usize::borrow_decode(decoder)?;
        if len > MAX_HEADERS {
            return Err(DecodeError::OtherString(format!("{len} header lines; {MAX_HEADERS} are allowed")));
        }
        let mut headers = Vec::with_capacity(len);
        for _ in 0..len {
            let name = <&[u8]>::borrow_decode(decoder)?;
            let name = HeaderName::from_lowercase(name).map_err(|_| invalid("header name", name))?;
            let value = <&[u8]>::borrow_decode(decoder)?;
            let value = HeaderValue::from_maybe_shared(decoder.context().slice_ref(value))
                .map_err(|_| invalid("header value", value))?;
            headers.push((name, value));
        }
        Ok(Self(headers))
    }
}

impl Encode for Wire<&RequestHead> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        let head = self.0;
        head.tunnel.encode(encoder)?;
        head.id.encode(encoder)?;
        head.deadline_ms.encode(encoder)?;
        head.elapsed_ms.encode(encoder)?;
        head.method.as_str().encode(encoder)?;
        head.target.as_str().encode(encoder)?;
        head.authority.encode(encoder)?;
        head.remote.encode(encoder)?;
        head.upgrade.as_deref().encode(encoder)?;
        Wire(&head.headers).encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Bytes> for Wire<RequestHead> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let tunnel = u32::borrow_decode(decoder)?;
        let id = plain(decoder, "id")?;
        let deadline_ms = u32::borrow_decode(decoder)?;
        let elapsed_ms = u32::borrow_decode(decoder)?;
        let method = <&[u8]>::borrow_decode(decoder)?;
        let method = Method::from_bytes(method).map_err(|_| invalid("method", method))?;
        let target = text(decoder)?;
        let target = Some(&target)
            .filter(|target| is_target(target))
            .and_then(|target| PathAndQuery::from_maybe_shared(target.as_bytes().clone()).ok())
            .ok_or_else(|| invalid("target", target.as_bytes()))?;
        let authority = plain(decoder, "authority")?;
        if Authority::from_maybe_shared(authority.as_bytes().clone()).is_err() {
            return Err(invalid("authority", authority.as_bytes()));
        }
        let remote = plain(decoder, "remote address")?;
        let upgrade = bool::borrow_decode(decoder)?.then(|| plain(decoder, "upgrade")).transpose()?;
        let headers = Wire::<HeaderList>::borrow_decode(decoder)?.0;
        Ok(Self(RequestHead {
            tunnel,
            id,
            deadline_ms,
            elapsed_ms,
            method,
            target,
            authority,
            remote,
            upgrade,
            headers,
        }))
    }
}

impl Encode for Wire<&ResponseHead> {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.status.as_u16().encode(encoder)?;
        Wire(&self.0.headers).encode(encoder)
    }
}

impl<'de> BorrowDecode<'de, Bytes> for Wire<ResponseHead> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let status = u16::borrow_decode(decoder)?;
        let status = StatusCode::from_u16(status).map_err(|_| invalid("status", status.to_string().as_bytes()))?;
        Ok(Self(ResponseHead { status, headers: Wire::<HeaderList>::borrow_decode(decoder)?.0 }))
    }
}

/// Text as a slice of the payload.
fn text<'de, D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D) -> Result<ByteString, DecodeError> {
    let bytes = <&[u8]>::borrow_decode(decoder)?;
    ByteString::try_from(decoder.context().slice_ref(bytes)).map_err(|_| invalid("text", bytes))
}

/// Text that can stand in any header.
fn plain<'de, D: BorrowDecoder<'de, Context = Bytes>>(decoder: &mut D, what: &str) -> Result<ByteString, DecodeError> {
    let text = text(decoder)?;
    let is_plain = text.bytes().all(|b| matches!(b, b' ' | b'\t') || b.is_ascii_graphic());
    if is_plain { Ok(text) } else { Err(invalid(what, text.as_bytes())) }
}

/// Origin-form (RFC 9112, section 3.2.1), with any byte that hyper's own parser lets through, or `*` for `OPTIONS *`.
fn is_target(target: &str) -> bool {
    (target.starts_with('/') || target == "*") && target.bytes().all(|b| b > b' ' && b != 0x7f && b != b'#')
}

fn invalid(what: &str, bytes: &[u8]) -> DecodeError {
    let shown = bytes.get(..bytes.len().min(40)).unwrap_or_default().escape_ascii();
    DecodeError::OtherString(format!("not a valid {what}: \"{shown}\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    pub(crate) fn request() -> RequestHead {
        RequestHead {
            tunnel: 1,
            id: "01K".into(),
            deadline_ms: 30_000,
            elapsed_ms: 3,
            method: Method::POST,
            target: PathAndQuery::from_static("/hook?a=%2F"),
            authority: "web.relay.example.com".into(),
            remote: "192.0.2.7".into(),
            upgrade: None,
            headers: vec![
                (HeaderName::from_static("content-type"), HeaderValue::from_static("application/json")),
                (HeaderName::from_static("x-raw"), HeaderValue::from_bytes(b"\xff\xfe").unwrap()),
            ],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn a_request_head_has_the_documented_bytes() {
        let bytes = request().to_bytes().unwrap();
        assert_eq!(
            hex(&bytes),
            "01\
             0330314b\
             fb3075\
             03\
             04504f5354\
             0b2f686f6f6b3f613d253246\
             157765622e72656c61792e6578616d706c652e636f6d\
             093139322e302e322e37\
             00\
             02\
             0c636f6e74656e742d74797065106170706c69636174696f6e2f6a736f6e\
             05782d72617702fffe"
        );
        assert_eq!(RequestHead::from_bytes(&bytes), Ok(request()));
    }

    #[test]
    fn a_response_head_has_the_documented_bytes() {
        let head = ResponseHead {
            status: StatusCode::OK,
            headers: vec![(HeaderName::from_static("content-length"), HeaderValue::from_static("2"))],
        };
        let bytes = head.to_bytes().unwrap();
        assert_eq!(hex(&bytes), "c8010e636f6e74656e742d6c656e6774680132");
        assert_eq!(ResponseHead::from_bytes(&bytes), Ok(head));
    }

    #[test]
    fn the_handshake_has_the_documented_bytes() {
        let hello = Hello {
            client: "relay".into(),
            version: "0.1.0".into(),
            features: vec![],
            tunnels: vec![TunnelSpec {
                tunnel: 1,
                name: Some("web".into()),
                timeout_ms: Some(10_000),
                ..TunnelSpec::default()
            }],
            resume: None,
            extra: vec![Extra { tag: 7, value: vec![1] }],
        };
        let bytes = hello.to_bytes().unwrap();
        assert_eq!(
            hex(&bytes),
            "0572656c617905302e312e30000101010377656200\
                                 01fb10270000000107\
                                 0101"
        );
        assert_eq!(Hello::from_bytes(&bytes), Ok(hello));

        let welcome = Welcome {
            session: "s1".into(),
            version: "0.1.0".into(),
            resume_key: [0xab; 32],
            resumed: false,
            heartbeat_ms: 10_000,
            max_streams: 1024,
            tunnels: vec![
                Bound { tunnel: 1, result: Ok(PublicName { name: "web".into(), url: "https://web.x".into() }) },
                Bound { tunnel: 2, result: Err(Refusal { code: "c".into(), message: "m".into(), hint: "h".into() }) },
            ],
            extra: vec![],
        };
        let bytes = welcome.to_bytes().unwrap();
        assert_eq!(Welcome::from_bytes(&bytes), Ok(welcome.clone()));
        assert!(!format!("{welcome:?}").contains("171"), "the resume key stays out of logs");
    }

    #[test]
    fn bytes_left_over_are_refused() {
        let mut bytes = request().to_bytes().unwrap().to_vec();
        bytes.push(0);
        assert_eq!(RequestHead::from_bytes(&bytes.into()), Err(MessageError::Trailing(1)));
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let bytes = request().to_bytes().unwrap();
        for cut in 0..bytes.len() {
            assert!(RequestHead::from_bytes(&bytes.slice(..cut)).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_peer_cannot_inject_lines() {
        let inject = |change: &dyn Fn(&mut RequestHead)| {
            let mut head = request();
            change(&mut head);
            RequestHead::from_bytes(&head.to_bytes().unwrap())
        };
        for bad in ["/a b", "/a\r\nx: y", "no-slash", "", "//x\0", "/a#b"] {
            // Its type cannot be made wrong either, so the text is changed on the wire.
            let bytes = request().to_bytes().unwrap();
            let good = b"/hook?a=%2F";
            let at = bytes.windows(good.len()).position(|w| w == good).unwrap();
            let length = [u8::try_from(bad.len()).unwrap()];
            let changed = [&bytes[..at - 1], &length, bad.as_bytes(), &bytes[at + good.len()..]].concat();
            let got = RequestHead::from_bytes(&changed.into());
            assert!(matches!(got, Err(MessageError::Malformed(_))), "{bad:?}: {got:?}");
        }
        for bad in ["a b", "a\r\nb", ""] {
            assert!(inject(&|h| h.authority = bad.into()).is_err(), "{bad:?}");
        }
        assert!(inject(&|h| h.remote = "1\r\n2".into()).is_err());
        assert!(inject(&|h| h.upgrade = Some("a\nb".into())).is_err());
        // Names and values cannot be made wrong with `http`'s types, so their bytes are changed on the wire.
        let bytes = request().to_bytes().unwrap().to_vec();
        for (good, bad) in
            [(&b"x-raw"[..], &b"X-raw"[..]), (b"x-raw", b"x\r\nrw"), (b"\xff\xfe", b"\r\n"), (b"\xff\xfe", b"a\0")]
        {
            let at = bytes.windows(good.len()).position(|w| w == good).unwrap();
            let mut changed = bytes.clone();
            changed[at..at + bad.len()].copy_from_slice(bad);
            assert!(RequestHead::from_bytes(&changed.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn too_much_is_refused_on_both_sides() {
        let mut head = request();
        head.headers = vec![head.headers[0].clone(); MAX_HEADERS + 1];
        assert_eq!(head.to_bytes(), Err(MessageError::TooManyHeaders));
        head.headers.truncate(1);
        head.target = format!("/{}", "a".repeat(60_000)).parse().unwrap();
        head.authority = "a".repeat(MAX_HEAD).into();
        assert!(matches!(head.to_bytes(), Err(MessageError::TooLong(_))));
        // A length that promises more than is there allocates nothing and fails.
        assert!(
            RequestHead::from_bytes(&Bytes::from_static(&[1, 0xfd, 255, 255, 255, 255, 255, 255, 255, 127])).is_err()
        );
    }
}
