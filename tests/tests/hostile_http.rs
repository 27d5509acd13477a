//! Attacks on the public side. Each is sent byte for byte to a real relay, behind which a real client forwards to an
//! origin that records what it reads. What counts is what the origin, and other senders, see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Version};
use relay_client::Tunnel;
use relay_tests::body::{empty, full, pipe};
use relay_tests::wire::Message;
use relay_tests::{App, Wire, World, within};

/// Limits so short that every connection which an attack leaves open ends within the test.
async fn hasty() -> World {
    World::with(|config| {
        let limits = &mut config.limits;
        limits.handshake = Duration::from_millis(400);
        limits.head = Duration::from_millis(400);
        limits.keep_alive = Duration::from_millis(400);
        limits.body_idle = Duration::from_millis(400);
        limits.write_idle = Duration::from_millis(400);
        limits.deadline = Duration::from_secs(5);
    })
    .await
}

/// No task of the relay has panicked. Every test ends with it.
async fn no_panics(world: &World) {
    let metrics = world.get_admin("/metrics").await;
    assert!(metrics.text().contains("relay_panics_total 0"), "{}", metrics.text());
}

/// An origin that keeps every byte it reads, in connections, and answers each message with its first line.
struct Origin {
    app: App,
    seen: Arc<Mutex<Vec<Message>>>,
}

impl Origin {
    async fn start() -> Self {
        let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
        let record = seen.clone();
        let app = App::raw(move |mut wire: Wire, _| {
            let record = record.clone();
            async move {
                while let Some(message) = wire.message().await {
                    let echo = message.first_line().to_owned();
                    record.lock().unwrap().push(message);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{echo}", echo.len());
                    if wire.try_send(answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        Self { app, seen }
    }

    /// The requests whose target begins with this.
    fn requests(&self, target: &str) -> Vec<Message> {
        let is_it = |message: &&Message| message.first_line().split(' ').nth(1).unwrap_or_default().starts_with(target);
        self.seen.lock().unwrap().iter().filter(is_it).cloned().collect()
    }

    /// Everything seen, as text.
    fn all(&self) -> String {
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|m| format!("{}\n{}\n", m.head, m.body.escape_ascii())).collect()
    }
}

mod smuggling {
    use super::*;

    /// What the origin may see of an attack.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum May {
        /// Nothing: the relay refuses it.
        Not,
        /// One request with this body, framed by us.
        Once(&'static [u8]),
        /// Either, but nothing more than one request.
        AtMostOnce,
    }
    use May::{AtMostOnce, Not, Once};

    /// In each: `HOST` is the tunnel's host, `NAME` its name, `/x` the attack's own path, and `/smuggled` the request inside it.
    const CORPUS: &[(&str, May, &[u8])] = &[
        ("a control: an honest request", Once(b"abc"), b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc"),
        (
            "a control: an honest chunked request",
            Once(b"abc"),
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        (
            "CL.TE",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        ),
        (
            "CL.TE with a request inside",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE.CL",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n27\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n\r\n0\r\n\r\n",
        ),
        (
            "TE.TE: the second is no coding",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE.TE: the first is no coding",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: xchunked",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: gzip, chunked",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: chunked, identity",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: identity beside a length",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabcGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: chunked with a parameter",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: quoted",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE behind a vertical tab",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE: empty",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a space before the colon of TE",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a space before the colon of CL",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length : 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "an alias of TE by an underscore",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        (
            "an alias of CL by a dot",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent.Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "obs-fold before TE",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nX-A: a\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        ),
        (
            "obs-fold inside TE",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a header line that begins with a space",
            Not,
            b"POST /x HTTP/1.1\r\n Host: HOST\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE on HTTP/1.0",
            Not,
            b"POST /x HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "TE on HTTP/1.0 beside a length and keep-alive",
            Not,
            b"POST /x HTTP/1.0\r\nHost: HOST\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "two different lengths",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "two different lengths in one line",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 40\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "two equal lengths",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (
            "a length with a sign",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: +0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a negative length",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a length in hex",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x3\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a length that wraps around",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 18446744073709551616\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "an empty length",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: \r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a length in digits that are not ASCII",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: \xd9\xa3\r\n\r\nabc",
        ),
        (
            "a chunk size that wraps around",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk size with a sign",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk size with 0x",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk size that is no number",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk that ends with a bare LF",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk extension with a bare LF",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3;a\nxx\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "a chunk without its end",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "chunk extensions without an end",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ),
        (
            "a length in the trailers",
            Once(b"abc"),
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\r\n",
        ),
        (
            "trailers that announce a length",
            Not,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nTrailer: Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 40\r\n\r\n",
        ),
        ("a CR in a value", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nX-A: a\rX-B: b\r\n\r\n"),
        ("a NUL in a value", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nX-A: a\0b\r\n\r\n"),
        ("a NUL in a name", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nX\0A: a\r\n\r\n"),
        ("a NUL in the target", Not, b"GET /x\0 HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a CR in the target", Not, b"GET /x\rX-A: b HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a tab in the first line", Not, b"GET\t/x\tHTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a second word in the target", Not, b"GET /x HTTP/1.1 /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a line without a colon", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
        ("an empty name", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\n: a\r\n\r\n"),
        ("a name with a parenthesis", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nX(A): a\r\n\r\n"),
        ("HTTP/0.9", Not, b"GET /x\r\n\r\n"),
        ("HTTP/0.9 by its number", Not, b"GET /x HTTP/0.9\r\nHost: HOST\r\n\r\n"),
        ("HTTP/2.0 by its number", Not, b"GET /x HTTP/2.0\r\nHost: HOST\r\n\r\n"),
        ("HTTP/1.2", Not, b"GET /x HTTP/1.2\r\nHost: HOST\r\n\r\n"),
        ("the preface of HTTP/2", Not, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("a method that is no token", Not, b"G(ET /x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("no Host", Not, b"GET /x HTTP/1.1\r\n\r\n"),
        ("no Host with HTTP/1.0", Not, b"GET /x HTTP/1.0\r\n\r\n"),
        ("two equal Host lines", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n"),
        ("two Host lines", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nHost: evil.example\r\n\r\n"),
        ("two hosts in one line", Not, b"GET /x HTTP/1.1\r\nHost: HOST, evil.example\r\n\r\n"),
        ("two hosts with a space", Not, b"GET /x HTTP/1.1\r\nHost: HOST evil.example\r\n\r\n"),
        ("an alias of Host", Not, b"GET /x HTTP/1.1\r\nHost: HOST\r\nHo_st: a\r\nHost_: b\r\nH.ost: c\r\nhost\xff: d\r\n\r\n"),
        ("a user before the host", Not, b"GET /x HTTP/1.1\r\nHost: evil@HOST\r\n\r\n"),
        ("a port that is a second host", Not, b"GET /x HTTP/1.1\r\nHost: NAME.relay.test:1,evil.example\r\n\r\n"),
        ("a port that is a name", Not, b"GET /x HTTP/1.1\r\nHost: NAME.relay.test:evil.example\r\n\r\n"),
        ("a port out of range", Not, b"GET /x HTTP/1.1\r\nHost: NAME.relay.test:65536\r\n\r\n"),
        ("a path behind the host", Not, b"GET /x HTTP/1.1\r\nHost: HOST/evil\r\n\r\n"),
        ("an absolute target elsewhere", Not, b"GET http://evil.example/x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("an absolute target, and Host elsewhere", Not, b"GET https://HOST/x HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
        ("an absolute target without Host", Not, b"GET https://HOST/x HTTP/1.1\r\n\r\n"),
        ("an absolute target with a user", Not, b"GET https://evil@HOST/x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("an absolute target that agrees", Once(b""), b"GET https://HOST/x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("CONNECT elsewhere", Not, b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n"),
        ("CONNECT to the tunnel", Not, b"CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("CONNECT with a path", Not, b"CONNECT /x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("the asterisk", Not, b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("GET with the asterisk", Not, b"GET * HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a target without a slash", Not, b"GET x HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        ("a target that is a host", Not, b"GET HOST HTTP/1.1\r\nHost: HOST\r\n\r\n"),
        (
            "Content-Length listed by Connection",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: content-length\r\nContent-Length: 35\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n",
        ),
        (
            "Transfer-Encoding listed by Connection",
            AtMostOnce,
            b"POST /x HTTP/1.1\r\nHost: HOST\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n27\r\nGET /smuggled HTTP/1.1\r\nHost: HOST\r\n\r\n\r\n0\r\n\r\n",
        ),
        (
            "Host listed by Connection",
            AtMostOnce,
            b"GET /x HTTP/1.1\r\nHost: HOST\r\nConnection: host, close\r\n\r\n",
        ),
        (
            "GET with a body that is a request",
            AtMostOnce,
            b"GET /x HTTP/1.1\r\nHost: HOST\r\nContent-Length: 39\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ),
        (
            "HEAD with a chunked body that is a request",
            AtMostOnce,
            b"HEAD /x HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n29\r\nGET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n\r\n0\r\n\r\n",
        ),
    ];

    #[tokio::test]
    async fn shows_the_origin_at_most_one_request_with_one_framing() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let attacks = CORPUS
            .iter()
            .enumerate()
            .map(|(i, (what, may, bytes))| attack(&world, &origin, &tunnel, i, what, *may, bytes));
        let faults: Vec<String> = join_all(attacks).await.into_iter().flatten().collect();
        assert!(faults.is_empty(), "{} attacks:\n{}", faults.len(), faults.join("\n"));

        // The detector detects: two honest requests in one piece are two.
        let two = "GET /first HTTP/1.1\r\nHost: HOST\r\n\r\nGET /second HTTP/1.1\r\nHost: HOST\r\n\r\n";
        let mut wire = world.raw(&world.host(tunnel.name())).await;
        wire.send(two.replace("HOST", &world.host(tunnel.name()))).await;
        let _ = wire.rest().await;
        assert_eq!((origin.requests("/first").len(), origin.requests("/second").len()), (1, 1));

        // Nobody else has noticed.
        assert_eq!(world.get(&format!("{}/after", tunnel.url())).await.text(), "GET /after HTTP/1.1");
        assert_eq!(origin.requests("/evil"), []);
        no_panics(&world).await;
        world.shutdown().await;
    }

    async fn attack(
        world: &World,
        origin: &Origin,
        tunnel: &Tunnel,
        i: usize,
        what: &str,
        may: May,
        bytes: &[u8],
    ) -> Option<String> {
        let host = world.host(tunnel.name());
        let (own, inner) = (format!("/x{i:03}"), format!("/smuggled{i:03}"));
        let bytes = replace(bytes, b"NAME", tunnel.name().as_bytes());
        let bytes = replace(&replace(&bytes, b"/x", own.as_bytes()), b"/smuggled", inner.as_bytes());
        let bytes = replace(&bytes, b"HOST", host.as_bytes());
        let mut wire = world.raw(&host).await;
        let _ = wire.try_send(&bytes).await;
        let answers = wire.rest().await.unwrap_or_else(|(read, _)| read);
        let answers = String::from_utf8_lossy(&answers).into_owned();
        let status = answers.split(' ').nth(1).unwrap_or("none").to_owned();
        let (seen, smuggled) = (origin.requests(&own), origin.requests(&inner));
        let framings: Vec<usize> =
            seen.iter().map(|m| m.values("content-length").len() + m.values("transfer-encoding").len()).collect();
        let fault = match may {
            _ if !smuggled.is_empty() => "a request was smuggled".to_owned(),
            _ if framings.iter().any(|n| *n > 1) => format!("several framings: {seen:?}"),
            _ if seen.iter().any(|m| m.values("host").len() != 1) => "not one Host".to_owned(),
            Not if !seen.is_empty() => "it was passed on".to_owned(),
            Not if !["none", "400", "408", "431", "501", "505"].contains(&status.as_str()) => {
                "it was not refused".to_owned()
            }
            Once(_) if seen.len() != 1 => format!("seen {} times", seen.len()),
            Once(body) if seen[0].body != body => format!("with another body: {}", seen[0].body.escape_ascii()),
            AtMostOnce if seen.len() > 1 => format!("seen {} times", seen.len()),
            _ => return None,
        };
        Some(format!("{what}: {fault} (status {status})"))
    }

    fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = bytes;
        while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(to);
            rest = &rest[at + from.len()..];
        }
        out.extend_from_slice(rest);
        out
    }
}
