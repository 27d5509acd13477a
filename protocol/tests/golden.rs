//! `PROTOCOL.md` and the code say the same: its examples decode to what they claim and encode to what they show, and
//! its tables name every kind and code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Debug;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use relay_protocol::access::{self, Access, ApiKey, Digest};
use relay_protocol::frame::{Frame, GoAway, HEADER_LEN, MAX_DATA_ACCEPTED, MAX_HEAD, MAX_MESSAGE, Reset, SessionKind};
use relay_protocol::frame::{MAX_REASON, StreamId};
use relay_protocol::message::{
    Bound, Extra, HeaderList, Hello, Lost, MAX_HEADERS, MAX_TUNNELS, MOVES, Payload, PublicName, Refusal, RequestHead,
    ResponseHead, TunnelSpec, Welcome, Withheld,
};
use relay_protocol::mux::{FLOOR, INITIAL, MAX_INTERIM};
use relay_protocol::oidc::Oidc;
use relay_protocol::webhook::{Credentials, MAX_SECRETS, MAX_SETTINGS, MAX_TOLD, Verify, Webhooks};
use relay_protocol::{CONNECT_PATH, SUBPROTOCOL};

const DOCUMENT: &str = include_str!("../PROTOCOL.md");

/// The blocks that are fenced as `hex LABEL`, by label.
fn examples() -> BTreeMap<&'static str, Bytes> {
    let mut examples = BTreeMap::new();
    let mut rest = DOCUMENT;
    while let Some((_, block)) = rest.split_once("\n```hex ") {
        let (label, block) = block.split_once('\n').unwrap();
        let (block, after) = block.split_once("\n```").unwrap();
        let digits: String = block
            .lines()
            .filter_map(|line| line.split('#').next())
            .flat_map(str::chars)
            .filter(|c| !c.is_whitespace())
            .collect();
        let bytes: Vec<u8> =
            (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
        assert!(examples.insert(label, Bytes::from(bytes)).is_none(), "{label} stands there twice");
        rest = after;
    }
    examples
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn line(name: &'static str, value: &'static [u8]) -> (HeaderName, HeaderValue) {
    (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
}

/// The payload of `message`, after checking that it decodes to it.
fn payload<M: Payload + PartialEq + Debug>(message: M) -> Bytes {
    let bytes = message.to_bytes().unwrap();
    assert_eq!(M::from_bytes(&bytes), Ok(message));
    bytes
}

/// What each example says.
fn meant() -> BTreeMap<&'static str, Frame> {
    let stream = StreamId::FIRST;
    let request = payload(RequestHead {
        tunnel: 1,
        id: "01K".into(),
        deadline_ms: 30_000,
        elapsed_ms: 3,
        method: Method::POST,
        target: "/hook?a=%2F".parse().unwrap(),
        authority: "web.relay.example.com".into(),
        remote: "192.0.2.7".into(),
        upgrade: None,
        headers: vec![line("content-type", b"application/json"), line("x-raw", b"\xff\xfe")],
    });
    let response = payload(ResponseHead { status: StatusCode::OK, headers: vec![line("content-length", b"2")] });
    let interim = payload(ResponseHead { status: StatusCode::CONTINUE, headers: HeaderList::new() });
    let trailers: HeaderList = vec![line("grpc-status", b"0")];
    let tunnel = TunnelSpec { tunnel: 1, name: Some("web".into()), timeout_ms: Some(10_000), ..TunnelSpec::default() };
    let hello = Hello {
        client: "relay".into(),
        version: "0.1.0".into(),
        features: vec![],
        tunnels: vec![tunnel],
        resume: None,
        extra: vec![Extra { tag: 7, value: vec![1] }],
    };
    let public = PublicName { name: "web".into(), url: "https://web.x".into() };
    let refusal = Refusal { code: "c".into(), message: "m".into(), hint: "h".into() };
    let refused = Bound { tunnel: 2, result: Err(refusal) };
    let welcome = Welcome {
        session: "s1".into(),
        version: "0.1.0".into(),
        resume_key: [0xab; 32],
        resumed: false,
        heartbeat_ms: 10_000,
        max_streams: 1024,
        tunnels: vec![Bound { tunnel: 1, result: Ok(public) }, refused.clone()],
        extra: vec![],
    };
    let bind = TunnelSpec { tunnel: 2, takeover: true, ..TunnelSpec::default() };
    let webhooks = Webhooks {
        provider: Some("stripe".into()),
        handshake: true,
        verify: Verify::Warn,
        credentials: Credentials {
            secrets: vec!["whsec_1".into()],
            settings: [("token".to_owned(), "a+b=c".to_owned())].into(),
            ..Credentials::default()
        },
    };
    let extra = webhooks.extras().unwrap();
    assert_eq!(Webhooks::of(&extra), Ok(webhooks));
    let webhooks = TunnelSpec { tunnel: 3, extra, ..TunnelSpec::default() };
    let access = Access {
        allow: vec!["10.0.0.0/8".parse().unwrap()],
        keys: vec![ApiKey { header: "x-key".into(), key: Digest::of(b"abc") }],
        rate: Some(5),
        ..Access::default()
    };
    let extra = access.extras().unwrap();
    assert_eq!(Access::of(&extra), Ok(Some(access)));
    let access = TunnelSpec { tunnel: 4, extra, ..TunnelSpec::default() };
    let login = Oidc {
        issuer: "https://a.example".into(),
        client_id: "i".into(),
        allow: vec!["@b.example".into()],
        skip: vec![],
        secret: Some("s".into()),
    };
    let login = Access { oidc: Some(login.into()), ..Access::default() };
    let extra = login.extras().unwrap();
    assert_eq!(Access::of(&extra), Ok(Some(login)));
    let oidc = TunnelSpec { tunnel: 5, extra, ..TunnelSpec::default() };
    let withheld = Withheld {
        tunnel: 1,
        count: 3,
        id: "01K".into(),
        method: "POST".into(),
        target: "/hook".into(),
        remote: "192.0.2.7".into(),
        code: "signature-invalid".into(),
        provider: Some("stripe".into()),
        verdict: "stale".into(),
        reason: "too old".into(),
        extra: vec![],
    };
    let why = Refusal { code: "blocked".into(), message: "Blocked.".into(), hint: ":(".into() };
    let lost = Lost { tunnel: 1, why, extra: vec![] };
    let session = Frame::Session;
    BTreeMap::from([
        ("open", Frame::Open { stream, request_credit: INITIAL, response_credit: INITIAL, last: false, head: request }),
        ("head", Frame::Head { stream, interim: false, last: false, head: response }),
        ("interim", Frame::Head { stream, interim: true, last: false, head: interim }),
        ("data", Frame::Data { stream, last: true, bytes: Bytes::from_static(b"ok") }),
        ("end", Frame::End { stream, trailers: payload(trailers) }),
        ("reset", Frame::Reset { stream, reset: Reset::Deadline }),
        ("credit", Frame::Credit { stream, bytes: 128 * 1024 }),
        ("ping", Frame::Ping(1)),
        ("pong", Frame::Pong(1)),
        ("goaway", Frame::GoAway { reason: GoAway::Shutdown, drain: true, text: "restart".into() }),
        ("hello", session(SessionKind::Hello, payload(hello))),
        ("welcome", session(SessionKind::Welcome, payload(welcome))),
        ("bind", session(SessionKind::Bind, payload(bind))),
        ("access", session(SessionKind::Bind, payload(access))),
        ("oidc", session(SessionKind::Bind, payload(oidc))),
        ("webhooks", session(SessionKind::Bind, payload(webhooks))),
        ("bound", session(SessionKind::Bound, payload(refused))),
        ("unbind", session(SessionKind::Unbind, payload(300_u32))),
        ("withheld", session(SessionKind::Withheld, payload(withheld))),
        ("move", session(SessionKind::Move, Bytes::new())),
        ("lost", session(SessionKind::Lost, payload(lost))),
        ("skipped", Frame::Skipped),
    ])
}

#[test]
fn examples_decode_to_what_they_say_and_encode_to_what_they_show() {
    let (examples, meant) = (examples(), meant());
    assert!(examples.keys().eq(meant.keys()), "{:?} and {:?}", examples.keys(), meant.keys());
    for (label, frame) in meant {
        let mut encoded = BytesMut::new();
        frame.encode(&mut encoded);
        let mut shown = examples[label].clone();
        // What a later version sends cannot be encoded by this one.
        if frame != Frame::Skipped {
            assert_eq!(hex(&encoded), hex(&shown), "{label}");
        }
        assert_eq!(Frame::decode(&mut shown), Ok(Some(frame)), "{label}");
        assert!(shown.is_empty(), "{label} is one frame");
    }
}

#[test]
fn tables_name_every_frame_kind() {
    // Kinds are known by decoding: all others are refused as unknown.
    let known = (0..=u8::MAX).filter(|&kind| {
        let mut frame = Bytes::copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        !matches!(Frame::decode(&mut frame), Err(relay_protocol::frame::FrameError::UnknownKind(_)))
    });
    let documented = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| 0x")?.get(..2));
    let documented: Vec<u8> = documented.map(|kind| u8::from_str_radix(kind, 16).unwrap()).collect();
    assert_eq!(known.collect::<Vec<_>>(), documented);
    for (label, example) in examples() {
        let name = DOCUMENT.lines().find_map(|line| line.strip_prefix(&format!("| 0x{:02x} | ", example[0])));
        let name = name.map_or("skipped", |rest| rest.split(' ').next().unwrap()).to_lowercase();
        let is_another =
            matches!((name.as_str(), label), ("head", "interim") | ("bind", "webhooks" | "access" | "oidc"));
        assert!(name == label || is_another, "{label} is a {name}");
    }
}

#[test]
fn tables_name_every_code() {
    let section = |from: &str, to: &str| -> Vec<(u16, String)> {
        let text = DOCUMENT.split_once(from).unwrap().1.split_once(to).unwrap().0;
        let rows = text.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
        rows.filter_map(|(code, rest)| Some((code.parse().ok()?, rest.split(" | ").next()?.to_owned()))).collect()
    };
    let resets: Vec<_> = Reset::ALL.iter().map(|r| (r.code(), r.name().to_owned())).collect();
    assert_eq!(section("\n### Reset codes", "\n### Go-away codes"), resets);
    let go_aways: Vec<_> = GoAway::ALL.iter().map(|r| (r.code(), r.name().to_owned())).collect();
    assert_eq!(section("\n### Go-away codes", "\n## 9"), go_aways);
}

#[test]
fn numbers_in_the_text_are_those_of_the_code() {
    let grouped = |n: usize| {
        let digits = n.to_string();
        let (head, tail) = digits.split_at(digits.len().saturating_sub(3));
        if head.is_empty() { tail.to_owned() } else { format!("{head},{tail}") }
    };
    for (what, number) in [
        ("| message | {} bytes", MAX_MESSAGE),
        ("| head | {} bytes", MAX_HEAD),
        ("| header lines of a head | {} |", MAX_HEADERS),
        ("| Data | {} bytes", MAX_DATA_ACCEPTED),
        ("| unread interim heads of a stream | {} |", MAX_INTERIM),
        ("| tunnels of a session | {} |", MAX_TUNNELS),
        ("| secrets of a tunnel | {} |", MAX_SECRETS),
        ("| settings of a tunnel | {} |", MAX_SETTINGS),
        ("| extras of a tunnel's webhooks | {} bytes", MAX_TOLD),
        ("| who may call a tunnel | {} bytes", access::MAX_TOLD),
        ("| reason text of a GoAway | {} bytes", MAX_REASON),
        ("| floor | {} bytes", FLOOR as usize),
        ("| most | {} bytes", INITIAL as usize),
    ] {
        let text = what.replace("{}", &grouped(number));
        assert!(DOCUMENT.contains(&text), "PROTOCOL.md does not say {text:?}");
    }
    assert!(DOCUMENT.contains(&format!("GET {CONNECT_PATH} HTTP/1.1")));
    assert!(DOCUMENT.contains(&format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\n")));
    assert!(DOCUMENT.contains(&format!("the feature `{MOVES}`")));
    assert_eq!(HEADER_LEN, 8);
}
