//! Attacks on the wire between relay and client: a client written by hand against a real relay, and a relay written by
//! hand against a real client. WebSocket frames are made here too, because no library would send these.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use bytes::Bytes;
use relay_protocol::frame::{Frame, GoAway, Reset, SessionKind};
use relay_protocol::message::{
    Bound, Hello, Payload, PublicName, Refusal, RequestHead, ResponseHead, TunnelSpec, Welcome,
};
use relay_tests::peer::*;
use relay_tests::process::{has_own_process, own_resident};
use relay_tests::{AT_ONCE, App, Wire, World, within};

mod clients {
    use std::time::Instant;

    use futures_util::future::join_all;
    use http::Request;
    use relay_client::{Client, ClientError, Tunnel, TunnelOptions};
    use relay_server::store::TokenLimits;
    use relay_tests::body::empty;
    use relay_tests::{Http, RelayServer};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinSet;

    use super::*;

    async fn upgrade(world: &World, authorization: &str, protocol: &str) -> (Wire, String) {
        upgrade_on(world.raw("relay.test").await, authorization, protocol).await
    }

    async fn connect(world: &World) -> Socket {
        connect_on(world.raw("relay.test").await, &world.token().await).await
    }

    /// A session with the tunnel `evil`.
    async fn session(world: &World, name: &str) -> Socket {
        let mut socket = connect(world).await;
        socket.send(&[hello(vec![spec(7, name)])]).await;
        match socket.next_said().await {
            Some(Frame::Session(SessionKind::Welcome, payload)) => {
                let welcome = Welcome::from_bytes(&payload).unwrap();
                assert!(welcome.tunnels[0].result.is_ok(), "{welcome:?}");
            }
            other => panic!("{other:?} instead of a Welcome"),
        }
        socket
    }

    /// A request at the tunnel, and the stream that it opens.
    async fn opened(world: &World, socket: &mut Socket, name: &str) -> (u32, tokio::task::JoinHandle<String>) {
        let host = world.host(name);
        let mut wire = world.raw(&host).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")).await;
        let answer = tokio::spawn(async move {
            String::from_utf8_lossy(&wire.rest().await.unwrap_or_else(|(read, _)| read)).into_owned()
        });
        loop {
            if let Frame::Open { stream, .. } = socket.next_said().await.expect("the session is up") {
                return (stream.get(), answer);
            }
        }
    }

    /// Attacks on a live session with one open stream, whose number each gets, and the reason that ends the session.
    type Attack = (&'static str, GoAway, fn(u32) -> Vec<u8>);
    const ATTACKS: &[Attack] = &[
        ("an unknown frame", GoAway::Protocol, |_| odd(0x7e, 0, 0, b"")),
        ("an unknown flag", GoAway::Protocol, |s| odd(0x03, 0x40, s, b"x")),
        ("an ignorable flag on a known frame", GoAway::Protocol, |s| odd(0x03, 0x80, s, b"x")),
        ("a truncated frame", GoAway::Protocol, |s| odd(0x03, 0, s, b"hello")[..10].to_vec()),
        ("a header cut short", GoAway::Protocol, |_| vec![0x07, 0, 0]),
        ("an empty message", GoAway::Protocol, |_| Vec::new()),
        ("empty data", GoAway::Protocol, |s| odd(0x03, 0, s, b"")),
        ("data on no stream", GoAway::Protocol, |_| odd(0x03, 0, 0, b"x")),
        ("a ping on a stream", GoAway::Protocol, |s| odd(0x07, 0, s, &[0; 8])),
        ("a ping of seven bytes", GoAway::Protocol, |_| odd(0x07, 0, 0, &[0; 7])),
        ("data frames beyond the size", GoAway::Protocol, |s| odd(0x03, 0, s, &[0; 32_769])),
        ("a head on a stream never opened", GoAway::Protocol, |s| {
            encode(&[Frame::Head { stream: id(s + 100), interim: false, last: true, head: head(200, &[]) }])
        }),
        ("data on a stream never opened", GoAway::Protocol, |s| encode(&[data(s + 100, false, "x")])),
        ("credit on a stream never opened", GoAway::Protocol, |s| {
            encode(&[Frame::Credit { stream: id(s + 100), bytes: 1 }])
        }),
        ("a reset of a stream never opened", GoAway::Protocol, |s| {
            encode(&[Frame::Reset { stream: id(s + 100), reset: Reset::Internal }])
        }),
        ("data before the head", GoAway::Protocol, |s| encode(&[data(s, false, "x")])),
        ("data after the end", GoAway::FlowControl, |s| {
            let head = Frame::Head { stream: id(s), interim: false, last: false, head: head(200, &[]) };
            encode(&[head, data(s, true, "x"), data(s, false, "HTTP/1.1 200 OK\r\n\r\n")])
        }),
        ("a second head", GoAway::Protocol, |s| {
            let head = Frame::Head { stream: id(s), interim: false, last: false, head: head(200, &[]) };
            encode(&[head.clone(), head])
        }),
        ("a stream opened by a client", GoAway::Protocol, |s| {
            encode(&[Frame::Open {
                stream: id(s + 1),
                request_credit: 1,
                response_credit: 1,
                last: true,
                head: Bytes::from_static(b"x"),
            }])
        }),
        ("a second Hello", GoAway::Protocol, |_| encode(&[hello(Vec::new())])),
        ("a Welcome", GoAway::Protocol, |_| odd(0x11, 0, 0, b"")),
        ("a Bind that does not decode", GoAway::Protocol, |_| odd(0x12, 0, 0, b"\xff\xff\xff\xff")),
        ("an Unbind that does not decode", GoAway::Protocol, |_| odd(0x14, 0, 0, b"")),
        ("no credit", GoAway::Protocol, |s| odd(0x06, 0, s, &[0; 4])),
        ("credit without bounds", GoAway::FlowControl, |s| {
            encode(&vec![Frame::Credit { stream: id(s), bytes: u32::MAX }; 3])
        }),
        ("a farewell that is no text", GoAway::Protocol, |_| odd(0x09, 0, 0, b"\0\x01\xff")),
        ("a farewell without an end", GoAway::Protocol, |_| odd(0x09, 0, 0, &[b'a'; 600])),
        ("interim heads without end", GoAway::Limit, |s| {
            encode(&vec![Frame::Head { stream: id(s), interim: true, last: false, head: head(103, &[]) }; 5000])
        }),
    ];

    #[tokio::test]
    async fn that_break_the_protocol_end_their_session_and_no_other() {
        let world = World::start().await;
        let app = App::recording().await;
        let witness = world.tunnel(&app).await;
        for (i, (what, expected, attack)) in ATTACKS.iter().enumerate() {
            let name = format!("evil{i}");
            let mut socket = session(&world, &name).await;
            let (stream, answer) = opened(&world, &mut socket, &name).await;
            let message = socket.message(BINARY, &attack(stream));
            socket.raw(message).await;
            let reason = within(*what, socket.farewell()).await;
            assert_eq!(reason, Some(*expected), "{what}");
            // The request that was under way ends, and not as if it were whole.
            let answer = within(format!("an answer after {what}"), answer).await.unwrap();
            let honest = answer.starts_with("HTTP/1.1 502") || !answer.ends_with("0\r\n\r\n");
            assert!(honest, "{what}: {answer}");
            assert_eq!(world.post(witness.url(), "x").await.code(), 200, "the others after {what}");
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    #[tokio::test]
    async fn that_send_beyond_their_credit_are_disconnected() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let mut socket = session(&world, "greedy").await;
        let host = world.host("greedy");
        let mut reader = world.raw(&host).await;
        reader.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let (stream, credit) = loop {
            if let Frame::Open { stream, response_credit, .. } = socket.next_said().await.unwrap() {
                break (stream.get(), response_credit);
            }
        };
        socket.send(&[Frame::Head { stream: id(stream), interim: false, last: false, head: head(200, &[]) }]).await;
        // Nobody reads at the other end, so that the credit is never renewed for long.
        let piece = Bytes::from(vec![b'x'; 32 * 1024]);
        let before = own_resident();
        let mut sent = 0u64;
        while sent < 1 << 30 && socket.raw(socket.message(BINARY, &encode(&[data(stream, false, piece.clone())]))).await
        {
            sent += piece.len() as u64;
        }
        assert_eq!(within("a farewell", socket.farewell()).await.unwrap_or(GoAway::FlowControl), GoAway::FlowControl);
        assert!(sent < 256 << 20, "{sent} bytes were taken with {credit} of credit");
        let grown = own_resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    }

    /// Heads that no HTTP library may see: the stream fails, and the session goes on.
    #[tokio::test]
    async fn that_send_invalid_heads_get_a_502_for_their_own_stream() {
        let world = World::start().await;
        let mut socket = session(&world, "invalid").await;
        let list = |lines: &[(&[u8], &[u8])]| {
            let mut bytes = vec![200, lines.len() as u8];
            for (name, value) in lines {
                bytes.push(name.len() as u8);
                bytes.extend(*name);
                bytes.push(value.len() as u8);
                bytes.extend(*value);
            }
            bytes
        };
        let heads: Vec<(&str, Vec<u8>)> = vec![
            ("an honest one, as a control", list(&[(b"x-fine", b"a")])),
            ("CR LF in a value", list(&[(b"x-a", b"a\r\nx-injected: b")])),
            ("LF in a value", list(&[(b"x-a", b"a\nx-injected: b")])),
            ("NUL in a value", list(&[(b"x-a", b"a\0b")])),
            ("CR LF in a name", list(&[(b"x-a\r\nx-injected", b"a")])),
            ("a colon in a name", list(&[(b"x-injected:", b"a")])),
            ("a space in a name", list(&[(b"x-injected ", b"a")])),
            ("an empty name", list(&[(b"", b"a")])),
            ("capitals in a name", list(&[(b"X-Injected", b"a")])),
            ("a status of 99", [vec![99], list(&[])[1..].to_vec()].concat()),
            ("a status of 1000", vec![251, 0xe8, 3, 0]),
            ("a status of 101 that nobody asked for", vec![101, 0]),
            ("a status of 100 as the last", vec![100, 0]),
            ("a status of 103 as the last", vec![103, 0]),
            ("a length beyond the end", vec![200, 1, 200]),
            ("a giant length", vec![200, 253, 255, 255, 255, 255, 255, 255, 255, 255]),
            ("bytes behind the end", [list(&[]), vec![0]].concat()),
            ("nothing", vec![]),
        ];
        for (what, bytes) in heads {
            let (stream, answer) = opened(&world, &mut socket, "invalid").await;
            let head = Frame::Head { stream: id(stream), interim: false, last: true, head: bytes.into() };
            socket.send(&[head]).await;
            let answer = within(what, answer).await.unwrap();
            assert!(!answer.to_lowercase().contains("x-injected"), "{what}: {answer}");
            let expected = if what.contains("control") { "HTTP/1.1 200" } else { "HTTP/1.1 502" };
            assert!(answer.starts_with(expected), "{what}: {answer}");
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    /// A connection may come from a proxy that others share: a client cannot frame an answer so that its body is
    /// read as the next one.
    #[tokio::test]
    async fn cannot_desynchronise_a_public_connection() {
        let world = World::start().await;
        let mut socket = session(&world, "framing").await;
        let host = world.host("framing");
        let inner = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
        type Case = (&'static str, u16, &'static [(&'static str, &'static str)]);
        let cases: &[Case] = &[
            ("a control", 200, &[]),
            ("two lengths", 200, &[("content-length", "0"), ("content-length", "50")]),
            ("a length that is too small", 200, &[("content-length", "0")]),
            ("a length and a coding", 200, &[("content-length", "0"), ("transfer-encoding", "chunked")]),
            ("a coding", 200, &[("transfer-encoding", "identity")]),
            ("another coding", 200, &[("transfer-encoding", "gzip")]),
            ("a coding twice", 200, &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
            ("a length that is none", 200, &[("content-length", "0x0")]),
            ("a length with a sign", 200, &[("content-length", "+0")]),
            ("an upgrade", 200, &[("connection", "upgrade"), ("upgrade", "foo")]),
            ("204 with a body", 204, &[]),
            ("204 with a length", 204, &[("content-length", "50")]),
            ("304 with a body", 304, &[]),
            ("205 with a body", 205, &[]),
        ];
        for (what, status, lines) in cases {
            let mut wire = world.raw(&host).await;
            wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let answer = async |socket: &mut Socket, status, lines, body: &'static str| {
                let stream = loop {
                    if let Frame::Open { stream, .. } = socket.next_said().await.expect("the session is up") {
                        break stream;
                    }
                };
                let head = Frame::Head { stream, interim: false, last: false, head: head(status, lines) };
                socket.send(&[head, data(stream.get(), true, body)]).await;
            };
            answer(&mut socket, *status, lines, inner).await;
            let mut framings = 0;
            let first = wire.head().await;
            if let Some(head) = &first {
                let count = |name: &str| head.to_lowercase().matches(&format!("\r\n{name}:")).count();
                framings = count("content-length") + count("transfer-encoding");
                assert!(framings <= 1, "{what}: {head}");
            }
            // The next request on the same connection, if there still is one, gets its own answer.
            if wire.try_send(format!("GET /next HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await.is_ok() {
                let rest = tokio::spawn(async move { wire.rest().await.unwrap_or_else(|(read, _)| read) });
                tokio::select! {
                    () = answer(&mut socket, 200, &[("x-next", "yes")], "own") => {}
                    () = async { while !rest.is_finished() { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
                }
                let rest = String::from_utf8_lossy(&within(*what, rest).await.unwrap()).into_owned();
                // As a proxy would read on: behind the first answer's framing.
                let head = first.unwrap_or_default().to_lowercase();
                let behind = if head.contains("transfer-encoding: chunked") {
                    rest.split_once("0\r\n\r\n").map_or("", |(_, behind)| behind).to_owned()
                } else if let Some((_, length)) =
                    head.split_once("content-length: ").filter(|_| ![204, 304].contains(status))
                {
                    let length: usize = length.split("\r\n").next().unwrap().parse().expect("a length that is one");
                    rest.get(length..).unwrap_or_default().to_owned()
                } else if [204, 304].contains(status) || framings == 1 {
                    rest
                } else {
                    // Without any framing the answer goes on until the connection ends.
                    String::new()
                };
                let fine = behind.is_empty() || behind.to_lowercase().contains("x-next: yes");
                assert!(fine && !behind.starts_with(inner), "{what}: {head}\n\n{behind}");
            }
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    /// Below the frames: WebSocket itself.
    #[tokio::test]
    async fn that_break_websocket_are_disconnected() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let app = App::recording().await;
        let witness = world.tunnel(&app).await;
        type Broken = (&'static str, fn(&Socket) -> Vec<u8>);
        let attacks: &[Broken] = &[
            ("a text message", |socket| socket.message(TEXT, b"hello")),
            ("a text that is none", |socket| socket.message(TEXT, b"\xff\xff")),
            ("a frame without a mask", |_| vec![BINARY, 1, b'x']),
            ("a reserved bit", |socket| socket.message(BINARY | 0x40, b"x")),
            ("a reserved opcode", |socket| socket.message(0x83, b"x")),
            ("a continuation of nothing", |socket| socket.message(0x80, b"x")),
            ("a ping of 126 bytes", |socket| socket.message(PING, &[0; 126])),
            ("a ping in pieces", |socket| socket.message(PING & 0x7f, b"x")),
            ("a close of one byte", |socket| socket.message(CLOSE, b"x")),
            ("a length of 2^63", |_| vec![BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("a length of 2^40", |_| vec![BINARY, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("a message of 257 KiB", |socket| socket.message(BINARY, &vec![0x8f; 257 * 1024])),
            ("garbage", |_| vec![0xa5; 4096]),
            ("HTTP", |_| b"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n".to_vec()),
        ];
        for (i, (what, attack)) in attacks.iter().enumerate() {
            let before = own_resident();
            let mut socket = session(&world, &format!("broken{i}")).await;
            let bytes = attack(&socket);
            socket.raw(bytes).await;
            within(format!("the end after {what}"), socket.farewell()).await;
            assert_eq!(world.post(witness.url(), "x").await.code(), 200, "the others after {what}");
            let grown = own_resident().saturating_sub(before);
            assert!(grown < 32 << 20, "{what}: {} MiB", grown >> 20);
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    /// Floods that break no rule: they may go on, and cost the relay neither memory nor the others their service.
    #[tokio::test]
    async fn that_flood_cost_no_memory_and_delay_nobody() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let app = App::recording().await;
        let witness = world.tunnel(&app).await;
        assert_eq!(world.post(witness.url(), "x").await.code(), 200);
        let before = own_resident();
        type Flood = (&'static str, fn(&Socket) -> Vec<u8>, usize);
        let floods: &[Flood] = &[
            ("pings of the session", |s| s.message(BINARY, &encode(&vec![Frame::Ping(1); 1000])), 200),
            ("pongs that nobody asked for", |s| s.message(BINARY, &encode(&vec![Frame::Pong(1); 1000])), 200),
            ("pings of WebSocket", |s| s.message(PING, &[0; 100]).repeat(1000), 100),
            ("fragments of a byte", |s| s.message(0, b"x").repeat(1000), 400),
            ("empty fragments", |s| s.message(0, b"").repeat(1000), 400),
            ("frames to skip", |s| s.message(BINARY, &odd(0x70, 0x80, 0, b"").repeat(1000)), 200),
            (
                "tunnels bound and unbound",
                |s| {
                    let bind = Frame::Session(SessionKind::Bind, spec(9, "flood-name").to_bytes().unwrap());
                    let unbind = Frame::Session(SessionKind::Unbind, 9u32.to_bytes().unwrap());
                    s.message(BINARY, &encode(&[bind, unbind]).repeat(20))
                },
                50,
            ),
        ];
        for (i, (what, flood, times)) in floods.iter().enumerate() {
            let mut socket = session(&world, &format!("flood{i}")).await;
            if what.contains("fragment") {
                socket.raw([BINARY & 0x7f, 0x80, 0, 0, 0, 0]).await;
            }
            let burst = flood(&socket);
            let flooding = async {
                for _ in 0..*times {
                    // Nothing is read meanwhile, so that the answers, too, have to go somewhere.
                    let sent = tokio::time::timeout(Duration::from_secs(2), socket.raw(&burst)).await;
                    if !sent.unwrap_or(false) {
                        break;
                    }
                }
            };
            let others = async {
                for _ in 0..5 {
                    let since = std::time::Instant::now();
                    assert_eq!(world.post(witness.url(), "x").await.code(), 200, "the others under {what}");
                    assert!(since.elapsed() < AT_ONCE, "{what}: {:?}", since.elapsed());
                }
            };
            tokio::join!(flooding, others);
        }
        let grown = own_resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }

    #[tokio::test]
    async fn that_begin_with_anything_but_a_hello_are_sent_away() {
        let world = World::with(|config| config.limits.hello = Duration::from_millis(300)).await;
        for (what, message) in [
            ("garbage", b"\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5\xa5".to_vec()),
            ("a Bind", encode(&[Frame::Session(SessionKind::Bind, spec(1, "early").to_bytes().unwrap())])),
            ("a Hello that does not decode", odd(0x10, 0, 0, b"\xff\xff\xff")),
            ("a Hello with something behind it", {
                let Frame::Session(_, payload) = hello(Vec::new()) else { unreachable!() };
                odd(0x10, 0, 0, &[&payload[..], b"x"].concat())
            }),
            (
                "a Hello with a giant list",
                odd(0x10, 0, 0, &[1, b'a', 1, b'b', 253, 255, 255, 255, 255, 255, 255, 255, 255]),
            ),
            ("101 tunnels", {
                let Frame::Session(_, payload) = hello((0..101).map(|i| spec(i, "a")).collect()) else {
                    unreachable!()
                };
                odd(0x10, 0, 0, &payload)
            }),
            ("data", odd(0x03, 0, 1, b"x")),
            ("nothing", Vec::new()),
        ] {
            let mut socket = connect(&world).await;
            if !message.is_empty() {
                let message = socket.message(BINARY, &message);
                socket.raw(message).await;
            }
            assert_eq!(within(what, socket.farewell()).await, Some(GoAway::Protocol), "{what}");
        }
        // Names that are none are refused one by one, with a reason, and do not end anything.
        let mut socket = connect(&world).await;
        let names = ["", "a b", "a.b", "-a", "a\r\nb", "\u{1b}[31m", "www", "_relay", "xn--a", "fine"];
        let specs = names.iter().enumerate().map(|(i, name)| spec(i as u32, name)).collect();
        socket.send(&[hello(specs)]).await;
        let Some(Frame::Session(SessionKind::Welcome, payload)) = socket.next_said().await else {
            panic!("no Welcome")
        };
        let welcome = Welcome::from_bytes(&payload).unwrap();
        let given: Vec<bool> = welcome.tunnels.iter().map(|bound| bound.result.is_ok()).collect();
        assert_eq!(given.iter().filter(|given| **given).count(), 1, "{:?}", welcome.tunnels);
        assert!(given[9]);
    }

    #[tokio::test]
    async fn without_a_good_token_or_version_are_refused_in_plain_http() {
        let world = World::with(|config| config.limits.refusals_per_minute = 1000).await;
        let good = world.token().await;
        let (expired, _) = world.token_with(|new| new.expires_at = Some(relay_server::store::unix_now() - 10)).await;
        let (revoked, name) = world.token_with(|_| {}).await;
        world.store().revoke_token(&name, relay_server::store::unix_now()).await.unwrap();
        let v1 = V1;
        let last = if good.ends_with('a') { "b" } else { "a" };
        let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
        for (what, authorization) in [
            ("none", String::new()),
            ("an empty one", bearer("")),
            ("one that is no token", bearer("hello")),
            ("one letter changed", bearer(&format!("{}{last}", &good[..good.len() - 1]))),
            ("a prefix", bearer(&good[..good.len() - 1])),
            ("one longer", bearer(&format!("{good}a"))),
            ("another scheme", format!("Authorization: Basic {good}\r\n")),
            ("in the wrong header", format!("X-Token: {good}\r\nCookie: token={good}\r\n")),
            ("an expired one", bearer(&expired)),
            ("a revoked one", bearer(&revoked)),
            ("two different ones", format!("{}{}", bearer("wrong"), bearer(&good))),
        ] {
            let (_, head) = upgrade(&world, &authorization, v1).await;
            assert!(head.starts_with("HTTP/1.1 401"), "{what}: {head}");
            assert!(head.contains("relay-error: unauthorized"), "{what}: {head}");
            assert!(!head.contains(&good), "{what}");
        }
        let good = bearer(&good);
        for protocol in ["", "Sec-WebSocket-Protocol: relay.v2\r\n", "Sec-WebSocket-Protocol: RELAY.V1\r\n"] {
            let (_, head) = upgrade(&world, &good, protocol).await;
            assert!(head.starts_with("HTTP/1.1 426"), "{protocol}: {head}");
            assert!(head.contains("sec-websocket-protocol: relay.v1"), "which versions there are: {head}");
        }
        // A client that speaks a later version too is understood.
        let (_, head) = upgrade(&world, &good, "Sec-WebSocket-Protocol: relay.v2, relay.v1\r\n").await;
        assert!(
            head.starts_with("HTTP/1.1 101") && head.contains("sec-websocket-protocol: relay.v1\r\n")
                || head.ends_with("relay.v1"),
            "{head}"
        );
        for request in [
            "POST /_relay/connect HTTP/1.1\r\nHost: relay.test\r\nContent-Length: 0\r\n",
            "GET /_relay/connect HTTP/1.1\r\nHost: relay.test\r\n",
            "GET /_relay/connect HTTP/1.0\r\nHost: relay.test\r\nConnection: upgrade\r\nUpgrade: h2c\r\n",
            "GET /_relay/connect HTTP/1.1\r\nHost: relay.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 12\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        ] {
            let mut wire = world.raw("relay.test").await;
            wire.send(format!("{request}{good}\r\n")).await;
            assert_eq!(wire.message().await.unwrap().status(), 426, "{request}");
        }
        // The endpoint is the relay's own host's alone.
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET /_relay/connect HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{good}\r\n")).await;
        assert_eq!(wire.message().await.unwrap().body, b"ok", "a tunnel's path like any other");
        assert_eq!(app.requests(), 1);
        // But a client that was told a tunnel's URL for the relay's brings a token, which is no service's business.
        let mut wire = world.raw(&host).await;
        let client = format!("{good}Sec-WebSocket-Protocol: relay.v1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n");
        wire.send(format!("GET /_relay/connect HTTP/1.1\r\nHost: {host}\r\n{client}\r\n")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), answer.values("relay-error")), (421, vec!["unknown-host"]));
        assert!(
            String::from_utf8_lossy(&answer.body)
                .contains(&format!("the relay's own URL, which is {}", world.relay_url()))
        );
        assert_eq!(app.requests(), 1);
    }

    #[tokio::test]
    async fn that_guess_tokens_have_to_wait() {
        let world = World::with(|config| config.limits.refusals_per_minute = 5).await;
        for i in 0..8 {
            let (_, head) = upgrade(&world, "Authorization: Bearer rly_guess\r\n", V1).await;
            let expected = if i < 5 { "HTTP/1.1 401" } else { "HTTP/1.1 429" };
            assert!(head.starts_with(expected), "attempt {i}: {head}");
        }
    }

    /// Requests to a client that reads nothing, until nothing more fits on the way to it. Each is given up at the
    /// tunnel's deadline: by then the relay has tried to write them all.
    async fn stuff(public: &mut Http, url: &str) {
        let padding = "x".repeat(24 * 1024);
        let mut answers = Vec::new();
        for _ in 0..100 {
            public.ready().await;
            answers.push(public.begin(Request::get(url).header("x-padding", &padding).body(empty()).unwrap()));
        }
        for answer in answers {
            let answer = within("an answer", answer).await.unwrap();
            assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        }
    }

    /// What the relay has to say to them cannot be said; it ends their sessions all the same.
    #[tokio::test]
    async fn that_never_read_hold_up_neither_a_revocation_nor_a_shutdown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay-server.toml");
        std::fs::write(&file, "[limits]\ndrain = \"1s\"\nclient_wait = \"100ms\"\n").unwrap();
        let mut server = RelayServer::spawn(["--config", &file.display().to_string()]).await;
        let tls = async |host: &str, protocol: &[u8]| {
            relay_tests::world::connect_tls(server.https, host, &server.ca_file(), &[protocol]).await
        };
        let mut stuck = Vec::new();
        for name in ["revoked", "shut-down"] {
            let mut socket =
                connect_on(Wire::new(tls("relay.test", b"http/1.1").await), &server.token(name).await).await;
            let bound = socket.hello(vec![TunnelSpec { timeout_ms: Some(300), ..spec(1, name) }]).await;
            let url = bound[0].result.as_ref().unwrap().url.clone();
            let host = url.trim_start_matches("https://");
            let mut public = Http::two(tls(host, b"h2").await).await;
            stuff(&mut public, &url).await;
            stuck.push(socket);
            if name == "revoked" {
                assert!(server.token_command(&["revoke", name]).await.status.success());
                let revoked = Instant::now();
                within("the session's end", async {
                    while !server.get_admin("/metrics").await.text().contains("relay_sessions 0\n") {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                })
                .await;
                // The kernel gives a peer up that does not read after 15 s.
                assert!(revoked.elapsed() < AT_ONCE, "{:?}", revoked.elapsed());
                let away = public.answer(Request::get(&url).body(empty()).unwrap()).await;
                assert_eq!((away.code(), away.error()), (503, Some("client-offline")));
            }
        }
        let ended = server.process.terminate().await;
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        assert!(!ended.stderr.contains("do not end"), "{}", ended.stderr);
    }

    /// It gives signs of life, and yet nothing can be told to it.
    #[tokio::test]
    async fn that_ping_and_never_read_are_given_up() {
        let world = World::start().await;
        let token = world.token().await;
        let mut socket =
            session_of(&world, &token, vec![TunnelSpec { timeout_ms: Some(300), ..spec(1, "deaf") }]).await;
        stuff(&mut world.http2(&world.host("deaf")).await, &world.url("deaf", "/")).await;
        let pings = async {
            let mut second = tokio::time::interval(Duration::from_secs(1));
            loop {
                second.tick().await;
                socket.send(&[Frame::Ping(1)]).await;
            }
        };
        tokio::select! {
            () = sessions(&world, 0) => {}
            never = pings => never,
        }
    }

    /// Answers every request with `says`, until the session or the tunnel is taken away.
    async fn serve(mut socket: Socket, says: String) {
        while let Some(frame) = socket.next_said().await {
            match frame {
                Frame::Open { stream, .. } => {
                    let head = Frame::Head { stream, interim: false, last: false, head: head(200, &[]) };
                    socket.send(&[head, data(stream.get(), true, says.clone())]).await;
                }
                Frame::Session(SessionKind::Unbind, _) => return,
                _ => {}
            }
        }
    }

    /// The first thing that a client hears about the tunnel of this number: true for a request, false for its name.
    async fn hears_a_request_first(socket: &mut Socket, tunnel: u32) -> bool {
        loop {
            match socket.next_said().await.expect("the session is up") {
                Frame::Open { head, .. } if RequestHead::from_bytes(&head).unwrap().tunnel == tunnel => return true,
                Frame::Session(SessionKind::Welcome, payload) => {
                    let welcome = Welcome::from_bytes(&payload).unwrap();
                    assert!(welcome.tunnels.iter().any(|bound| bound.tunnel == tunnel && bound.result.is_ok()));
                    return false;
                }
                Frame::Session(SessionKind::Bound, payload) => {
                    let bound = Bound::from_bytes(&payload).unwrap();
                    assert_eq!((bound.tunnel, bound.result.is_ok()), (tunnel, true));
                    return false;
                }
                _ => {}
            }
        }
    }

    /// A name's requests may be waiting when its client comes.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hear_of_a_tunnel_before_its_first_request() {
        let world = World::start().await;
        let token = world.token().await;
        // The first of them is had for as long as the others take.
        let all = |round: u32| -> Vec<TunnelSpec> {
            (0..50).map(|i| TunnelSpec { takeover: true, ..spec(round * 100 + i, &format!("name{i}")) }).collect()
        };
        let later = |round: u32| TunnelSpec { takeover: true, ..spec(round * 100 + 99, "later") };
        let mut known = all(0);
        known.push(later(0));
        drop(session_of(&world, &token, known).await);
        sessions(&world, 0).await;

        let mut tasks = JoinSet::new();
        for name in ["name0", "later"].repeat(3) {
            let (url, mut public) = (world.url(name, "/"), world.http2(&world.host(name)).await);
            tasks.spawn(async move {
                loop {
                    // Whatever becomes of it: the next one comes at once.
                    public.answer(Request::get(&url).body(empty()).unwrap()).await;
                }
            });
        }
        for round in 1..20 {
            let mut socket = connect_on(world.raw("relay.test").await, &token).await;
            socket.send(&[hello(all(round))]).await;
            assert!(!hears_a_request_first(&mut socket, round * 100).await, "round {round}: a request before Welcome");
            assert!(hears_a_request_first(&mut socket, round * 100).await);
            let bind = later(round).to_bytes().unwrap();
            socket.send(&[Frame::Session(SessionKind::Bind, bind)]).await;
            assert!(
                !hears_a_request_first(&mut socket, round * 100 + 99).await,
                "round {round}: a request before Bound"
            );
            assert!(hears_a_request_first(&mut socket, round * 100 + 99).await);
            tasks.spawn(serve(socket, String::new()));
        }
    }

    /// What became of one of several that wanted a name.
    #[derive(Debug)]
    enum Fate {
        Has,
        Refused(Refusal),
        Evicted,
    }

    /// Asks for a name, and serves it for as long as it is let.
    async fn rival(mut socket: Socket, spec: TunnelSpec, fate: mpsc::Sender<Fate>) {
        let says = spec.tunnel.to_string();
        match socket.hello(vec![spec]).await.remove(0).result {
            Ok(_) => fate.send(Fate::Has).await.unwrap(),
            Err(refusal) => return fate.send(Fate::Refused(refusal)).await.unwrap(),
        }
        serve(socket, says).await;
        fate.send(Fate::Evicted).await.unwrap();
        // The session goes on without the name.
        std::future::pending().await
    }

    /// Several sessions of one token want the name of one that is silent: with `takeover` each may take it from whoever
    /// has it, and without it only from the dead.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn that_want_a_name_at_once_leave_it_to_one_of_them() {
        const RIVALS: u32 = 6;
        const MOST: u32 = RIVALS + 1;
        let world = World::start().await;
        let limits = TokenLimits { max_tunnels: MOST, max_names: 100, max_sessions: 100, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        // The token's use is forgotten with its last session.
        let mut witness = session_of(&world, &token, Vec::new()).await;
        for takeover in [false, true] {
            let name = if takeover { "taken" } else { "left" };
            let silent = session_of(&world, &token, vec![spec(0, name)]).await;
            let sockets = join_all((0..RIVALS).map(async |_| connect_on(world.raw("relay.test").await, &token).await));
            let (fate, mut fates) = mpsc::channel(16);
            let mut rivals = JoinSet::new();
            for (socket, number) in sockets.await.into_iter().zip(1..) {
                rivals.spawn(rival(socket, TunnelSpec { takeover, ..spec(number, name) }, fate.clone()));
            }
            let (mut have, mut refused, mut evicted) = (0, 0, 0);
            let expected = if takeover { (RIVALS, 0, RIVALS - 1) } else { (1, RIVALS - 1, 0) };
            while have + refused < RIVALS || evicted < expected.2 {
                match within(format!("a fate after {:?}", (have, refused, evicted)), fates.recv()).await.unwrap() {
                    Fate::Has => have += 1,
                    Fate::Evicted => evicted += 1,
                    Fate::Refused(refusal) => {
                        assert_eq!(refusal.code, "name-in-use");
                        refused += 1;
                    }
                }
            }
            assert_eq!((have, refused, evicted), expected, "takeover: {takeover}");
            let winner = world.get(&world.url(name, "/")).await;
            assert!(
                winner.text().parse().is_ok_and(|number| (1..=RIVALS).contains(&number)),
                "takeover {takeover}: {winner:?}"
            );
            for _ in 0..5 {
                assert_eq!(world.get(&world.url(name, "/")).await.text(), winner.text());
            }
            assert!(fates.try_recv().is_err(), "nobody else has lost it");
            drop((rivals, silent));
            sessions(&world, 1).await;
        }
        for number in 0..=MOST {
            let bind = TunnelSpec { name: None, ..spec(number, "") }.to_bytes().unwrap();
            witness.send(&[Frame::Session(SessionKind::Bind, bind)]).await;
            match witness.next_message::<Bound>(SessionKind::Bound).await.result {
                Ok(_) => assert!(number < MOST, "more tunnels than the token may have"),
                Err(refusal) => assert_eq!((number, refusal.code.as_str()), (MOST, "too-many-tunnels")),
            }
        }
    }

    /// What a token may have is counted before the store is asked, which takes its time.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn that_come_at_once_have_no_more_tunnels_than_their_token_may() {
        let world = World::start().await;
        let limits = TokenLimits { max_tunnels: 2, max_names: 100, max_sessions: 100, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        let sockets = join_all((0..12).map(async |_| connect_on(world.raw("relay.test").await, &token).await)).await;
        let asked = join_all(sockets.into_iter().zip(1..).map(async |(mut socket, number)| {
            let bound = socket.hello(vec![spec(number, &format!("name-{number}"))]).await.remove(0);
            (socket, bound.result)
        }));
        let asked = asked.await;
        assert_eq!(asked.iter().filter(|(_, result)| result.is_ok()).count(), 2);
        for (_, refusal) in asked.iter().filter_map(|(socket, result)| Some((socket, result.as_ref().err()?))) {
            assert_eq!(refusal.code, "too-many-tunnels");
        }
    }

    /// A laptop wakes up in another network: its old connection is as good as dead, and nobody has closed it.
    #[tokio::test]
    async fn that_fall_silent_do_not_keep_their_tokens_only_tunnel_from_it() {
        let world = World::start().await;
        let limits = TokenLimits { max_tunnels: 1, max_names: 10, max_sessions: 10, ..TokenLimits::default() };
        let (token, _) = world.token_with(|new| new.limits = limits).await;
        let app = App::recording().await;
        let start = async |name: &str| {
            let client = Client::new(world.target()).token(token.clone().into());
            Tunnel::start(client, TunnelOptions::new(app.upstream()).subdomain(name)).await
        };
        let too_many = |result: Result<Tunnel, ClientError>| match result {
            Err(ClientError::Refused(text)) => assert!(text.contains("1 tunnels"), "{text}"),
            other => panic!("{other:?}"),
        };
        let silent = session_of(&world, &token, vec![spec(0, "hooks")]).await;
        too_many(start("another").await);
        let tunnel = start("hooks").await.unwrap();
        assert_eq!(world.get(tunnel.url()).await.code(), 200);
        too_many(start("another").await);
        drop(silent);
        sessions(&world, 1).await;
        too_many(start("another").await);
        assert_eq!(world.get(tunnel.url()).await.code(), 200, "the old session takes nothing with it");
        tunnel.close().await.unwrap();
        sessions(&world, 0).await;
        start("another").await.unwrap();
    }

    /// A public HTTP/2 connection whose sender learns of nothing while the gate is shut.
    async fn gated(world: &World, host: &str, mut gate: watch::Receiver<bool>, tasks: &mut JoinSet<()>) -> Http {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (mut from_relay, mut to_relay) = tokio::io::split(world.tls(host, &[b"h2"]).await);
        let (mut from_sender, mut to_sender) = tokio::io::split(far);
        tasks.spawn(async move { drop(tokio::io::copy(&mut from_sender, &mut to_relay).await) });
        tasks.spawn(async move {
            let mut bytes = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = from_relay.read(&mut bytes).await {
                gate.wait_for(|open| *open).await.unwrap();
                to_sender.write_all(&bytes[..n]).await.unwrap();
            }
        });
        Http::two(near).await
    }

    /// A relay that drains finishes what it has; what comes meanwhile is told to come again. That is a request of a
    /// sender who has not heard yet that the relay goes.
    #[tokio::test]
    async fn of_a_relay_that_drains_finish_and_get_nothing_new() {
        let mut world = World::start().await;
        let mut socket = session(&world, "drained").await;
        let (gate, gated_by) = watch::channel(true);
        let mut tasks = JoinSet::new();
        let mut public = gated(&world, &world.host("drained"), gated_by, &mut tasks).await;
        let get = |name| Request::get(world.url(name, "/")).body(empty()).unwrap();
        assert_eq!(public.answer(get("unknown")).await.code(), 404);
        let (stream, answer) = opened(&world, &mut socket, "drained").await;
        gate.send_replace(false);
        let late = get("drained");
        world.begin_shutdown();
        assert_eq!(socket.farewell().await, Some(GoAway::Shutdown));
        let late = public.begin(late);
        within("the relay's answer", async {
            let line = "relay_exchanges_total{class=\"5xx\"} 1\n";
            while !world.get_admin("/metrics").await.text().contains(line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        gate.send_replace(true);
        let late = within("an answer", late).await.unwrap();
        assert_eq!((late.code(), late.error()), (503, Some("draining")));
        assert!(late.header("retry-after").parse::<u32>().unwrap() > 0);

        socket.send(&[Frame::Head { stream: id(stream), interim: false, last: false, head: head(200, &[]) }]).await;
        socket.send(&[data(stream, true, "finished")]).await;
        let answer = within("an answer", answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("finished"), "{answer}");
        drop(socket);
        world.stop().await;
    }
}

mod relays {
    use std::sync::Arc;

    use relay_client::session::dial::{Target, Trust};
    use relay_client::upstream::address::UpstreamAddr;
    use relay_client::{Client, Tunnel, TunnelOptions};
    use relay_server::certs::DevCa;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

    use super::*;

    /// A relay that does as the test tells it.
    struct Evil {
        listener: TcpListener,
        acceptor: TlsAcceptor,
        ca: DevCa,
        _dir: tempfile::TempDir,
    }

    impl Evil {
        async fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let ca = DevCa::load_or_create(dir.path(), "relay.test").unwrap();
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(ca.certificates()));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), ca, _dir: dir }
        }

        /// A client of it with one tunnel.
        fn client(&self, app: &App) -> tokio::task::JoinHandle<Result<Tunnel, relay_client::ClientError>> {
            let addr = self.listener.local_addr().unwrap();
            let trust = Trust::only(&self.ca.ca_file()).unwrap();
            let target = Target::new(format!("https://relay.test:{}", addr.port()).parse().unwrap(), &trust).unwrap();
            let target = target.dialling(Some(addr.to_string().parse().unwrap()));
            let client = Client::new(target).token("rly_canary".to_owned().into());
            tokio::spawn(Tunnel::start(client, TunnelOptions::new(app.upstream())))
        }

        /// The client's next connection, after the upgrade.
        async fn upgraded(&self) -> Socket {
            let (tcp, _) = within("a connection of the client", self.listener.accept()).await.unwrap();
            let mut wire = Wire::new(self.acceptor.accept(tcp).await.unwrap());
            let head = wire.head().await.unwrap();
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap().trim();
            let accept = derive_accept_key(key.as_bytes());
            wire.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Protocol: relay.v1\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            ))
            .await;
            Socket::new(wire, false)
        }

        /// The client's next session.
        async fn session(&self) -> Socket {
            let mut socket = self.upgraded().await;
            let Some(Frame::Session(SessionKind::Hello, payload)) = socket.next_said().await else {
                panic!("no Hello")
            };
            let hello = Hello::from_bytes(&payload).unwrap();
            socket.send(&[welcome(hello.tunnels[0].tunnel, "evil", "https://evil.relay.test")]).await;
            socket
        }
    }

    fn welcome(tunnel: u32, name: &str, url: &str) -> Frame {
        welcomes(vec![Bound { tunnel, result: Ok(PublicName { name: name.into(), url: url.into() }) }])
    }

    fn welcomes(tunnels: Vec<Bound>) -> Frame {
        let welcome = Welcome {
            session: "evil".into(),
            version: "0".into(),
            resume_key: [0; 32],
            resumed: false,
            heartbeat_ms: 10_000,
            max_streams: 1024,
            tunnels,
            extra: Vec::new(),
        };
        Frame::Session(SessionKind::Welcome, welcome.to_bytes().unwrap())
    }

    fn request(target: &str) -> RequestHead {
        RequestHead {
            tunnel: 0,
            id: "01".into(),
            deadline_ms: 10_000,
            elapsed_ms: 0,
            method: http::Method::GET,
            target: target.parse().unwrap(),
            authority: "evil.relay.test".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers: Vec::new(),
        }
    }

    /// The bytes of a request for a target that no honest relay could write.
    fn aimed_at(target: &str) -> Bytes {
        let bytes = request("/placeholder").to_bytes().unwrap();
        let at = bytes.windows(12).position(|window| window == b"/placeholder").unwrap();
        [&bytes[..at - 1], &[target.len() as u8], target.as_bytes(), &bytes[at + 12..]].concat().into()
    }

    fn open(stream: u32, head: impl Into<Bytes>) -> Frame {
        Frame::Open {
            stream: id(stream),
            request_credit: 65_536,
            response_credit: 65_536,
            last: true,
            head: head.into(),
        }
    }

    /// What the client makes of a stream.
    async fn outcome(socket: &mut Socket, stream: u32) -> Result<u16, Reset> {
        loop {
            match socket.next_said().await.expect("the session is up") {
                Frame::Head { stream: other, head, .. } if other.get() == stream => {
                    return Ok(ResponseHead::from_bytes(&head).unwrap().status.as_u16());
                }
                Frame::Reset { stream: other, reset } if other.get() == stream => return Err(reset),
                Frame::GoAway { reason, text, .. } => panic!("stream {stream}: {reason}: {text}"),
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn cannot_make_a_client_send_what_is_no_request() {
        let evil = Evil::start().await;
        let app = App::recording().await;
        let victim = App::recording().await;
        let trap = victim.addr();
        let starting = evil.client(&app);
        let mut socket = evil.session().await;
        let _tunnel = starting.await.unwrap().unwrap();

        let mut bodies: Vec<(String, Bytes)> = Vec::new();
        for target in [
            "GET / HTTP/1.1".to_owned(),
            "/a HTTP/1.1\r\nX-Injected: a".to_owned(),
            "/a\nX-Injected: a".to_owned(),
            "/a b".to_owned(),
            "/a\0".to_owned(),
            format!("http://{trap}/"),
            format!("@{trap}/"),
            format!("{trap}"),
            String::new(),
            "a".to_owned(),
        ] {
            bodies.push((format!("target {target:?}"), aimed_at(&target)));
        }
        for authority in ["evil\r\nX-Injected: a", "a b", "", "a/b", "a\0"] {
            let head = RequestHead { authority: authority.into(), ..request("/authority") };
            bodies.push((format!("authority {authority:?}"), head.to_bytes().unwrap()));
        }
        for remote in ["1.2.3.4\r\nX-Injected: a", "1\n2", "a\0"] {
            let head = RequestHead { remote: remote.into(), ..request("/remote") };
            bodies.push((format!("remote {remote:?}"), head.to_bytes().unwrap()));
        }
        let upgrade = RequestHead { upgrade: Some("foo\r\nX-Injected: a".into()), ..request("/upgrade") };
        bodies.push(("upgrade".into(), upgrade.to_bytes().unwrap()));
        // Below the types: the last byte is the number of header lines.
        let plain = request("/lines").to_bytes().unwrap();
        let with = |name: &[u8], value: &[u8]| {
            let mut bytes = plain[..plain.len() - 1].to_vec();
            bytes.extend([1, name.len() as u8]);
            bytes.extend(name);
            bytes.push(value.len() as u8);
            bytes.extend(value);
            Bytes::from(bytes)
        };
        for (name, value) in [
            (&b"x-a"[..], &b"a\r\nX-Injected: b"[..]),
            (b"x-a", b"a\nb"),
            (b"x-a", b"a\0b"),
            (b"x-a\r\nx-injected", b"a"),
            (b"X-Injected", b"a"),
            (b"x-injected:", b"a"),
            (b"", b"a"),
        ] {
            bodies.push((
                format!("line {:?}: {:?}", name.escape_ascii().to_string(), value.escape_ascii().to_string()),
                with(name, value),
            ));
        }
        bodies.push(("nothing".into(), Bytes::new()));
        bodies.push(("bytes behind the end".into(), [&plain[..], b"x"].concat().into()));

        let mut stream = 0;
        for (what, body) in bodies {
            stream += 1;
            socket.send(&[open(stream, body)]).await;
            assert_eq!(within(&what, outcome(&mut socket, stream)).await, Err(Reset::Malformed), "{what}");
        }
        stream += 1;
        socket.send(&[open(stream, RequestHead { tunnel: 99, ..request("/") }.to_bytes().unwrap())]).await;
        assert_eq!(outcome(&mut socket, stream).await, Err(Reset::Refused), "a tunnel that the client does not have");
        assert!(app.seen().is_empty(), "{:?}", app.seen());

        // And an honest one still works.
        stream += 1;
        socket.send(&[open(stream, request("/honest").to_bytes().unwrap())]).await;
        assert_eq!(outcome(&mut socket, stream).await, Ok(200));
        assert_eq!(victim.connections(), 0);
    }

    /// What a relay says of framing and of the connection is not passed on as it is.
    #[tokio::test]
    async fn cannot_frame_a_request_twice() {
        let evil = Evil::start().await;
        let (heads, mut heard) = tokio::sync::mpsc::channel(16);
        let app = App::raw(move |mut wire: Wire, _| {
            let heads = heads.clone();
            async move {
                // Answers before the body, so that one that never comes is no reason to wait.
                let Some(head) = wire.head().await else { return };
                heads.send(head).await.unwrap();
                wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
                let _ = wire.rest().await;
            }
        })
        .await;
        let starting = evil.client(&app);
        let mut socket = evil.session().await;
        let _tunnel = starting.await.unwrap().unwrap();
        let cases: &[&[(&str, &str)]] = &[
            &[],
            &[("transfer-encoding", "chunked"), ("content-length", "5")],
            &[("content-length", "5"), ("content-length", "0")],
            &[("content-length", "5"), ("content-length", "5")],
            &[("connection", "x-forwarded-for"), ("x-forwarded-host", "evil.example")],
            &[("host", "a"), ("host", "b")],
            &[("transfer-encoding", "identity")],
            &[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")],
        ];
        for (lines, stream) in cases.iter().zip(1..) {
            let headers = lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let head = RequestHead { headers, ..request("/framed") };
            socket.send(&[open(stream, head.to_bytes().unwrap())]).await;
            let _ = within(format!("an outcome of {lines:?}"), outcome(&mut socket, stream)).await;
            let Ok(head) = heard.try_recv() else { continue };
            let count = |name: &str| head.to_lowercase().matches(&format!("\r\n{name}:")).count();
            assert!(count("content-length") + count("transfer-encoding") <= 1, "{lines:?}: {head}");
            assert_eq!((count("host"), count("x-forwarded-for")), (1, 1), "{lines:?}: {head}");
            assert_eq!(count("connection"), 0, "{lines:?}: {head}");
        }
    }

    #[tokio::test]
    async fn that_break_the_protocol_lose_the_client_for_a_moment() {
        let evil = Evil::start().await;
        let app = App::recording().await;
        let starting = evil.client(&app);
        let mut socket = evil.session().await;
        let _tunnel = starting.await.unwrap().unwrap();
        let honest = request("/").to_bytes().unwrap();
        let attacks: Vec<(&str, Option<GoAway>, Vec<u8>)> = vec![
            (
                "a stream number used twice",
                Some(GoAway::Protocol),
                encode(&[open(5, honest.clone()), open(5, honest.clone())]),
            ),
            (
                "a stream number that goes back",
                Some(GoAway::Protocol),
                encode(&[open(5, honest.clone()), open(3, honest.clone())]),
            ),
            ("stream zero", Some(GoAway::Protocol), odd(0x01, 0, 0, &[0; 16])),
            ("a response head", Some(GoAway::Protocol), {
                let head = Frame::Head { stream: id(1), interim: false, last: true, head: head(200, &[]) };
                encode(&[open(1, honest.clone()), head])
            }),
            ("data on no stream", Some(GoAway::Protocol), encode(&[data(9, false, "x")])),
            ("data behind the end", Some(GoAway::FlowControl), encode(&[open(1, honest.clone()), data(1, false, "x")])),
            ("data beyond the credit", Some(GoAway::FlowControl), {
                let open = Frame::Open {
                    stream: id(1),
                    request_credit: 10,
                    response_credit: 0,
                    last: false,
                    head: honest.clone(),
                };
                encode(&[open, data(1, false, "hello hello hello")])
            }),
            ("initial credit without bounds", Some(GoAway::FlowControl), {
                let open = Frame::Open {
                    stream: id(1),
                    request_credit: u32::MAX,
                    response_credit: u32::MAX,
                    last: false,
                    head: honest.clone(),
                };
                encode(&[open])
            }),
            ("credit without bounds", Some(GoAway::FlowControl), {
                let credit = Frame::Credit { stream: id(1), bytes: u32::MAX };
                let open = Frame::Open {
                    stream: id(1),
                    request_credit: 16 * 1024,
                    response_credit: 1,
                    last: false,
                    head: honest.clone(),
                };
                encode(&[open, credit.clone(), credit])
            }),
            ("an unknown frame", Some(GoAway::Protocol), odd(0x7e, 0, 0, b"")),
            ("a message that is cut short", Some(GoAway::Protocol), vec![1, 2, 3]),
            ("an empty message", Some(GoAway::Protocol), Vec::new()),
        ];
        for (what, expected, bytes) in attacks {
            let message = socket.message(BINARY, &bytes);
            socket.raw(message).await;
            let reason = within(what, socket.farewell()).await;
            assert_eq!(reason, expected, "{what}");
            // The client comes back, and serves.
            socket = within(format!("the client is back after {what}"), evil.session()).await;
            socket.send(&[Frame::Skipped, open(1, honest.clone())]).await;
            assert_eq!(within(what, outcome(&mut socket, 1)).await, Ok(200), "after {what}");
            drop(socket);
            socket = within(format!("the client is back after {what}"), evil.session()).await;
        }
        // Below the frames.
        let broken: Vec<(&str, Vec<u8>)> = vec![
            ("a text message", socket.message(TEXT, b"hello")),
            ("a masked frame", vec![BINARY, 0x81, 0, 0, 0, 0, b'x']),
            ("a length of 2^63", vec![BINARY, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            ("a message of 257 KiB", socket.message(BINARY, &vec![0; 257 * 1024])),
            ("garbage", vec![0xa5; 100]),
        ];
        for (what, bytes) in broken {
            socket.raw(bytes).await;
            within(format!("the end after {what}"), socket.farewell()).await;
            socket = within(format!("the client is back after {what}"), evil.session()).await;
        }
        socket.send(&[open(1, honest)]).await;
        assert_eq!(outcome(&mut socket, 1).await, Ok(200));
    }

    /// The relay may still believe in a session of ours that is dead, and count it.
    #[tokio::test]
    async fn that_have_no_place_for_a_client_that_comes_back_are_asked_again() {
        let evil = Evil::start().await;
        let app = App::recording().await;
        let starting = evil.client(&app);
        let first = evil.session().await;
        let tunnel = starting.await.unwrap().unwrap();
        drop(first);
        for code in ["too-many-tunnels", "name-in-use", "internal"] {
            let mut socket = evil.upgraded().await;
            socket.next_said().await;
            let refusal = Refusal { code: code.into(), message: "Not now.".into(), hint: String::new() };
            socket.send(&[welcomes(vec![Bound { tunnel: 0, result: Err(refusal) }])]).await;
            within(code, socket.farewell()).await;
        }
        let mut socket = evil.session().await;
        socket.send(&[open(1, request("/").to_bytes().unwrap())]).await;
        assert_eq!(outcome(&mut socket, 1).await, Ok(200));
        drop(tunnel);
    }

    #[tokio::test]
    async fn that_are_none_get_no_tunnel_and_say_so() {
        for (what, answer) in [
            ("a page", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
            (
                "a redirect",
                "HTTP/1.1 302 Found\r\nLocation: https://evil.example/_relay/connect\r\nContent-Length: 0\r\n\r\n"
                    .to_owned(),
            ),
            ("something else", "SSH-2.0-OpenSSH_9.2\r\n".to_owned()),
            (
                "a page without end",
                format!(
                    "HTTP/1.1 401 No\r\nRelay-Error: unauthorized\r\nContent-Length: 99999999\r\n\r\n{}",
                    "x".repeat(100_000)
                ),
            ),
            ("nothing", String::new()),
        ] {
            let evil = Evil::start().await;
            let app = App::recording().await;
            let starting = evil.client(&app);
            let (tcp, _) = evil.listener.accept().await.unwrap();
            let mut wire = Wire::new(evil.acceptor.accept(tcp).await.unwrap());
            wire.head().await;
            let _ = wire.try_send(answer).await;
            wire.finish().await;
            let error = within(what, starting).await.unwrap().expect_err(what);
            let text = error.to_string();
            assert!(!text.contains("canary") && text.len() < 1000, "{what}: {text}");
        }
        // After the upgrade.
        for (what, frame) in [
            ("no Welcome", open(1, "")),
            ("a Welcome that does not decode", Frame::Session(SessionKind::Welcome, Bytes::from_static(b"\xff"))),
            ("a Welcome without our tunnel", welcome(1234, "a", "https://a.relay.test")),
            ("a public URL that is none", welcome(0, "a", "javascript:alert(1)")),
        ] {
            let evil = Evil::start().await;
            let app = App::recording().await;
            let starting = evil.client(&app);
            let mut socket = evil.upgraded().await;
            socket.next_said().await;
            socket.send(&[frame]).await;
            // It gives up, or tries again; it never serves.
            tokio::select! {
                ended = within(what, starting) => drop(ended.unwrap().expect_err(what)),
                again = within(what, evil.listener.accept()) => drop(again),
            }
        }
    }

    /// A certificate of a CA that is trusted, for another name; and the right name by a CA that is not.
    #[tokio::test]
    async fn with_the_wrong_certificate_get_no_token() {
        let evil = Evil::start().await;
        let addr = evil.listener.local_addr().unwrap();
        let other = Evil::start().await;
        for (url, ca) in [("https://other.example", evil.ca.ca_file()), ("https://relay.test", other.ca.ca_file())] {
            let target = Target::new(url.parse().unwrap(), &Trust::only(&ca).unwrap()).unwrap();
            let target = target.dialling(Some(addr.to_string().parse().unwrap()));
            let client = Client::new(target).token("rly_canary".to_owned().into());
            let starting = tokio::spawn(Tunnel::start(client, TunnelOptions::new(UpstreamAddr::localhost(3000))));
            let (tcp, _) = evil.listener.accept().await.unwrap();
            assert!(evil.acceptor.accept(tcp).await.is_err(), "{url}: the client goes on");
            assert!(within(url, starting).await.unwrap().is_err());
        }
    }
}
