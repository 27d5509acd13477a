//! Attacks on the public side. Each is sent byte for byte to a real relay, behind which a real client forwards to an
//! origin that records what it reads. What counts is what the origin, and other senders, see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Version};
use relay_client::Tunnel;
use relay_tests::body::{empty, pipe};
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

mod headers {
    use super::*;

    /// The lines that reach the origin, by `name: value` in lower case.
    async fn passed(world: &World, origin: &Origin, tunnel: &Tunnel, path: &str, lines: &str) -> Option<Message> {
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n")).await;
        wire.message().await;
        origin.requests(path).pop()
    }

    #[tokio::test]
    async fn that_connection_lists_cannot_take_ours_away() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded"];
        for (i, connection) in [
            "close, x-forwarded-for, X-Real-IP, X-Forwarded-Host, x-forwarded-proto, Forwarded, Relay-Request-Id",
            "X-FORWARDED-FOR,x-real-ip\r\nConnection: x-forwarded-host , relay-request-id",
            "keep-alive, host, x-forwarded-for",
        ]
        .iter()
        .enumerate()
        {
            let path = format!("/listed{i}");
            let lines = format!("Connection: {connection}\r\n");
            let seen = passed(&world, &origin, &tunnel, &path, &lines).await.expect("it is passed on");
            for name in ours {
                assert_eq!(seen.values(name).len(), 1, "{name}: {}", seen.head);
            }
            assert_eq!(seen.values("x-forwarded-for"), ["127.0.0.1"]);
            assert_eq!(seen.values("x-real-ip"), ["127.0.0.1"]);
            assert_eq!(seen.values("relay-request-id").len(), 1);
            assert_eq!(seen.values("host").len(), 1);
        }
        // What it lists of the sender's own goes, whatever its case.
        let lines = "Connection: X-Secret, te\r\nx-secret: a\r\nX-SECRET: b\r\nTE: trailers, gzip\r\nX-Stays: c\r\n\
                     Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
                     HTTP2-Settings: AAA\r\n";
        let seen = passed(&world, &origin, &tunnel, "/own", lines).await.unwrap();
        for gone in ["x-secret", "keep-alive", "proxy-connection", "proxy-authorization", "http2-settings"] {
            assert_eq!(seen.values(gone), [""; 0], "{}", seen.head);
        }
        assert_eq!((seen.values("x-stays"), seen.values("te")), (vec!["c"], vec!["trailers"]));
        no_panics(&world).await;
    }

    /// A WSGI server reads `X_Real_IP`, and some read `X.Real.IP`, as `X-Real-IP`.
    #[tokio::test]
    async fn of_ours_are_overwritten_whatever_their_spelling() {
        let world = World::start().await;
        let service = relay_tests::tools::environ().await;
        let tunnel =
            world.tunnel(service.addr.to_string().parse::<relay_client::address::UpstreamAddr>().unwrap()).await;
        let host = world.host(tunnel.name());
        let spoofed = "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-for: 6.6.6.7\r\nX-Real-IP: 6.6.6.6\r\n\
             X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Port: 666\r\n\
             X-Forwarded-Prefix: /evil\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Ssl: off\r\nX-Forwarded-Scheme: evil\r\n\
             Forwarded: for=6.6.6.6;host=evil.example;proto=gopher\r\nRelay-Request-Id: evil\r\nRelay-Anything: evil\r\n";
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Custom_Name: fine\r\n{spoofed}\r\n")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.status(), 200);
        let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let environ = &seen["environ"];
        let text = environ.to_string();
        assert!(!text.contains("evil") && !text.contains("6.6.6") && !text.contains("gopher"), "{text}");
        assert_eq!(environ["HTTP_X_FORWARDED_FOR"], "127.0.0.1");
        assert_eq!(environ["HTTP_X_FORWARDED_PROTO"], "https");
        assert_eq!(environ["HTTP_X_FORWARDED_HOST"], host.as_str());
        assert_eq!(environ["HTTP_X_CUSTOM_NAME"], "fine");

        for alias in [
            "X_Forwarded_For",
            "X-Forwarded_For",
            "X_Real_IP",
            "x.real.ip",
            "X-Forwarded.Host",
            "X_FORWARDED_PROTO",
            "Relay_Request_Id",
            "Forwarded_",
            "_X-Forwarded-For",
            "X__Forwarded_For",
            "Content_Length",
            "Ho_st",
        ] {
            let mut wire = world.raw(&host).await;
            wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n{alias}: 6.6.6.6\r\n\r\n")).await;
            let answer = wire.message().await.unwrap();
            let body = String::from_utf8(answer.body.clone()).unwrap();
            let reached = |name: &str| {
                let seen: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
                seen["environ"][name] == "6.6.6.6" || seen["environ"][name].as_str().unwrap_or("").contains("6.6.6.6,")
            };
            for name in [
                "HTTP_X_FORWARDED_FOR",
                "HTTP_X_REAL_IP",
                "HTTP_X_FORWARDED_HOST",
                "HTTP_X_FORWARDED_PROTO",
                "HTTP_RELAY_REQUEST_ID",
                "HTTP_FORWARDED",
                "HTTP_CONTENT_LENGTH",
                "HTTP_HOST",
            ] {
                assert!(!reached(name), "{alias} is read as {name}");
            }
        }
        no_panics(&world).await;
    }

    /// What stands behind a body must not say what only the relay may.
    #[tokio::test]
    async fn of_ours_do_not_come_in_as_trailers() {
        let world = World::start().await;
        let seen: Arc<Mutex<Vec<http::HeaderMap>>> = Arc::default();
        let record = seen.clone();
        let app = App::h2c(move |request| {
            let record = record.clone();
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap();
                record.lock().unwrap().extend(body.trailers().cloned());
                relay_tests::app::ok("ok")
            }
        })
        .await;
        let options = relay_client::TunnelOptions {
            protocol: relay_client::config::UpstreamProtocol::H2c,
            ..relay_client::TunnelOptions::new(app.upstream())
        };
        let tunnel = world.tunnel_with(options).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let (feed, body) = pipe();
        let answer = http.begin(Request::post(tunnel.url()).body(body).unwrap());
        feed.send("x").await;
        let mut trailers = http::HeaderMap::new();
        for name in [
            "x-forwarded-for",
            "x-real-ip",
            "relay-request-id",
            "forwarded",
            "x_real_ip",
            "content-length",
            "host",
            "x-fine",
        ] {
            trailers.insert(http::HeaderName::from_static(name), "6".parse().unwrap());
        }
        feed.trailers(trailers).await;
        assert_eq!(within("an answer", answer).await.unwrap().code(), 200);
        let seen = seen.lock().unwrap().clone();
        let names: Vec<&str> = seen.iter().flat_map(|map| map.keys().map(|name| name.as_str())).collect();
        assert_eq!(names, ["x-fine"]);
    }

    #[tokio::test]
    async fn are_not_made_of_what_a_path_decodes_to() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        for (i, encoded) in [
            "%0d%0aX-Injected:%20a",
            "%0aX-Injected:a",
            "%00",
            "%e5%98%8a%e5%98%8dX-Injected:a",
            "?a=%0d%0aX-Injected:%20a%0d%0a%0d%0aGET%20/",
        ]
        .iter()
        .enumerate()
        {
            let path = format!("/crlf{i}");
            let target = format!("{path}/{encoded}");
            let lines = "Referer: https://a/%0d%0aX-Injected:%20a\r\nOrigin: https://a%0d%0aX-Injected:%20a\r\n";
            passed(&world, &origin, &tunnel, &target, lines).await;
            let seen = origin.requests(&path).pop().expect("it is passed on");
            assert_eq!(seen.first_line(), format!("GET {target} HTTP/1.1"), "byte for byte");
            assert_eq!(seen.values("x-injected"), [""; 0]);
        }
        assert!(!origin.all().to_lowercase().contains("\nx-injected"));
        // The redirect to HTTPS echoes host and target into a header.
        let host = format!("{}.relay.test", tunnel.name());
        let mut wire = world.plain().await;
        wire.send(format!("GET /a%0d%0aX-Injected:%20a?b HTTP/1.1\r\nHost: {host}:80\r\n\r\n")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), answer.values("x-injected")), (308, vec![]));
        assert_eq!(
            answer.values("location"),
            [format!("https://{}/a%0d%0aX-Injected:%20a?b", world.host(tunnel.name()))]
        );
        // An open redirect needs a host of somebody else's.
        for evil in
            ["evil.example", "relay.test.evil.example", "evil.example:80", "relay.test@evil.example", "a.b.relay.test"]
        {
            let mut wire = world.plain().await;
            wire.send(format!("GET //evil.example/ HTTP/1.1\r\nHost: {evil}\r\n\r\n")).await;
            let answer = wire.message().await.unwrap();
            assert!([400, 421].contains(&answer.status()), "{evil}: {}", answer.head);
            assert_eq!(answer.values("location"), [""; 0]);
        }
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn beyond_the_limits_are_refused_with_431_or_the_connection_ends() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let host = world.host(tunnel.name());
        let many: String = (0..101).map(|i| format!("X-{i}: a\r\n")).collect();
        let large = format!("X-Large: {}\r\n", "a".repeat(40 * 1024));
        let long = "a".repeat(40 * 1024);
        for (what, head) in [
            ("many", format!("GET /big HTTP/1.1\r\nHost: {host}\r\n{many}\r\n")),
            ("large", format!("GET /big HTTP/1.1\r\nHost: {host}\r\n{large}\r\n")),
            ("a long name", format!("GET /big HTTP/1.1\r\nHost: {host}\r\n{long}: a\r\n\r\n")),
            ("a long target", format!("GET /big{long} HTTP/1.1\r\nHost: {host}\r\n\r\n")),
            ("a long method", format!("{long} /big HTTP/1.1\r\nHost: {host}\r\n\r\n")),
        ] {
            let mut wire = world.raw(&host).await;
            let _ = wire.try_send(head).await;
            let answer = wire.rest().await.unwrap_or_else(|(read, _)| read);
            let answer = String::from_utf8_lossy(&answer);
            let status = answer.split(' ').nth(1).unwrap_or("none").to_owned();
            assert!(["431", "414", "400", "none"].contains(&status.as_str()), "{what}: {answer}");
            if ["many", "large"].contains(&what) {
                assert_eq!(status, "431", "{what}: {answer}");
            }
        }
        // A head that never ends: the relay does not wait for its end.
        let mut wire = world.raw(&host).await;
        let mut sent = 0;
        while sent < 4 << 20
            && wire.try_send("X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(100)).await.is_ok()
        {
            sent += 5000;
        }
        assert!(sent < 4 << 20, "{sent} bytes of a head were taken");
        assert!(origin.requests("/big").is_empty());
        // As large as allowed is allowed.
        let lines: String = (0..80).map(|i| format!("X-{i}: {}\r\n", "a".repeat(300))).collect();
        assert!(passed(&world, &origin, &tunnel, "/fits", &lines).await.is_some());
        no_panics(&world).await;
    }
}

mod hosts {
    use super::*;

    /// Whoever asks for a host gets that host's tunnel, or nobody's: whatever SNI, `Host` and `:authority` say.
    #[tokio::test]
    async fn reach_their_own_tunnel_or_none() {
        let world = World::start().await;
        let service = |name: &'static str| App::serve(move |_| async move { relay_tests::app::ok(name) });
        let (a, b) = (service("a").await, service("b").await);
        let options = |app: &App, name: &str| relay_client::TunnelOptions::new(app.upstream()).subdomain(name);
        let _a = world.tunnel_with(options(&a, "a")).await;
        let _b = world.tunnel_with(options(&b, "b")).await;
        let port = world.https().port();
        let matrix = [
            ("a.relay.test", 200, "a"),
            ("A.Relay.TEST", 200, "a"),
            ("a.relay.test.", 200, "a"),
            ("b.relay.test", 200, "b"),
            ("a.relay.test..", 400, ""),
            (".a.relay.test", 421, ""),
            ("a.b.relay.test", 421, ""),
            ("b.a.relay.test", 421, ""),
            ("relay.test", 404, ""),
            ("nobody.relay.test", 404, ""),
            ("evil.example", 421, ""),
            ("a.relay.test.evil.example", 421, ""),
            ("arelay.test", 421, ""),
            ("xn--a.relay.test", 404, ""),
            ("a\u{ff0e}relay.test", 400, ""),
            ("127.0.0.1", 421, ""),
            ("[::1]", 421, ""),
            ("localhost", 421, ""),
            ("a", 421, ""),
            ("*.relay.test", 404, ""),
            ("a%2erelay.test", 421, ""),
            ("a_.relay.test", 404, ""),
        ];
        for sni in ["a.relay.test", "b.relay.test", "relay.test", "other.relay.test"] {
            for (host, status, owner) in matrix {
                for host in [host.to_owned(), format!("{host}:{port}"), format!("{host}:443")] {
                    let mut wire = world.raw(sni).await;
                    wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
                    let answer = wire.message().await.unwrap();
                    let served = String::from_utf8_lossy(&answer.body);
                    if answer.status() == 200 {
                        assert_eq!((status, &*served), (200, owner), "SNI {sni}, Host {host}");
                    } else {
                        let expected = [status, 400, 421];
                        assert!(
                            status != 200 && expected.contains(&answer.status()),
                            "SNI {sni}, Host {host}: {}",
                            answer.head
                        );
                    }
                }
            }
            // One HTTP/2 connection serves every host of the certificate, each by its authority.
            let mut two = world.http2(sni).await;
            for (host, status, owner) in matrix {
                let Ok(uri) = format!("https://{host}:{port}/").parse::<http::Uri>() else { continue };
                let answer = two.answer(Request::get(uri).version(Version::HTTP_2).body(empty()).unwrap()).await;
                if answer.code() == 200 {
                    assert_eq!((status, answer.text()), (200, owner), "SNI {sni}, :authority {host}");
                } else {
                    assert_ne!(status, 200, "SNI {sni}, :authority {host}");
                }
            }
            for (authority, host) in [("a.relay.test", "b.relay.test"), ("b.relay.test", "a.relay.test")] {
                let request = Request::get(format!("https://{authority}/")).header("host", host);
                assert_eq!(two.answer(request.body(empty()).unwrap()).await.code(), 400, "{authority} and {host}");
            }
        }
        no_panics(&world).await;
    }

    /// Nothing that a request says makes the client dial anything but its own service.
    #[tokio::test]
    async fn of_others_are_never_dialled() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        // Whoever is dialled here shows up.
        let victim = App::recording().await;
        let trap = victim.addr();
        let host = world.host(tunnel.name());
        let targets = [
            format!("http://{trap}/"),
            format!("//{trap}/"),
            format!("/\\{trap}/"),
            format!("@{trap}/"),
            format!("/@{trap}/"),
            format!("/http://{trap}/"),
            format!("http:/{trap}/"),
            format!("http:\\\\{trap}\\"),
            format!("/..//{trap}/"),
            format!("/%2e%2e//{trap}/"),
            format!("/..%2f..%2f{trap}"),
            format!("?@{trap}/"),
            format!("/;@{trap}/"),
            format!(":80@{trap}/"),
            format!("http://x@{trap}:80/"),
            "http://169.254.169.254/latest/meta-data/".to_owned(),
            "/../../../../etc/passwd".to_owned(),
            "file:///etc/passwd".to_owned(),
            "unix:/var/run/docker.sock".to_owned(),
        ];
        for target in &targets {
            for host in [host.clone(), trap.to_string()] {
                let mut wire = world.raw(&world.host(tunnel.name())).await;
                wire.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: {trap}\r\n\r\n")).await;
                let answer = wire.message().await.unwrap_or_else(|| panic!("{target}: no answer"));
                let body = String::from_utf8_lossy(&answer.body).into_owned();
                match answer.status() {
                    200 => assert_eq!(body, format!("GET {target} HTTP/1.1"), "as it is, to the one service"),
                    status => assert!([400, 404, 421].contains(&status), "{target}: {}", answer.head),
                }
            }
        }
        // A redirect of the service is the sender's to follow.
        let redirecting = App::serve(move |_| async move {
            let mut response = relay_tests::app::ok("");
            *response.status_mut() = http::StatusCode::FOUND;
            response.headers_mut().insert("location", format!("http://{trap}/").parse().unwrap());
            response
        })
        .await;
        let other = world.tunnel(&redirecting).await;
        assert_eq!(world.get(other.url()).await.code(), 302);
        assert_eq!((victim.connections(), victim.requests()), (0, 0));
        no_panics(&world).await;
    }
}
