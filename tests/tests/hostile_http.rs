//! Attacks on the public side. Each is sent byte for byte to a real relay, behind which a real client forwards to an
//! origin that records what it reads. What counts is what the origin, and other senders, see.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Version};
use relay_client::Tunnel;
use relay_tests::body::{empty, full, pipe};
use relay_tests::process::{has_own_process, own_resident};
use relay_tests::wire::Message;
use relay_tests::{AT_ONCE, App, Wire, World, within};

/// Limits so short that every connection which an attack leaves open ends within the test, and long enough for a hundred
/// honest ones at once.
async fn hasty() -> World {
    World::with(|config| {
        let limits = &mut config.limits;
        limits.handshake = HASTE;
        limits.head = HASTE;
        limits.keep_alive = HASTE;
        limits.body_idle = HASTE;
        limits.write_idle = HASTE;
        limits.deadline = 5 * HASTE;
    })
    .await
}

const HASTE: Duration = Duration::from_secs(2);

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
        let tunnel = world
            .tunnel(service.addr.to_string().parse::<relay_client::upstream::address::UpstreamAddr>().unwrap())
            .await;
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
            protocol: relay_client::UpstreamProtocol::H2c,
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

/// What is no HTTP/1.1 at all gets the bare answers that `docs/errors.md` promises, and nothing else.
mod garbage {
    use super::*;

    #[tokio::test]
    async fn gets_a_bare_status_and_ends_the_connection() {
        let world = World::start().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let host = world.host(tunnel.name());
        let many: String = (0..101).map(|i| format!("X-{i}: a\r\n")).collect();
        let long = "a".repeat(70_000);
        for (status, head) in [
            (400, "no HTTP at all\r\n\r\n".to_owned()),
            (400, format!("GET / HTTP/3.0\r\nHost: {host}\r\n\r\n")),
            (400, format!("GET / HTTP/1.1\r\nHost: {host}\r\nNo colon\r\n\r\n")),
            (400, format!("GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: a\r\n\r\n")),
            (431, format!("GET / HTTP/1.1\r\nHost: {host}\r\n{many}\r\n")),
            (431, format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-Long: {long}\r\n\r\n")),
            (431, format!("GET /{long} HTTP/1.1\r\nHost: {host}\r\n\r\n")),
        ] {
            let shown = head.get(..head.len().min(200)).unwrap().to_owned();
            let mut wire = world.raw(&host).await;
            let _ = wire.try_send(format!("{head}GET /behind HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let answer = wire.message().await.unwrap_or_else(|| panic!("no answer to {shown}"));
            assert_eq!((answer.status(), &answer.body[..]), (status, &b""[..]), "{shown}: {}", answer.head);
            assert_eq!(answer.values("relay-error"), [""; 0], "{shown}: documented as bare");
            assert_eq!(answer.values("connection"), ["close"], "{shown}: {}", answer.head);
            assert_eq!(wire.rest().await.unwrap_or_else(|(more, _)| more), b"", "{shown}");
        }
        assert_eq!(origin.requests("/").len(), 0);
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

mod answers {
    use super::*;

    /// An origin that says no to the body at once, while the sender sends it all the same.
    #[tokio::test]
    async fn match_their_requests_where_a_body_was_refused_early() {
        let world = hasty().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(head) = wire.head().await {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let status = if head.starts_with("POST") { "417 Expectation Failed" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{path}", path.len());
                if wire.try_send(answer).await.is_err() || head.starts_with("POST") {
                    return;
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for expect in ["Expect: 100-continue\r\n", ""] {
            let mut wire = world.raw(&host).await;
            let inner = format!("GET /inner HTTP/1.1\r\nHost: {host}\r\n\r\n");
            wire.send(format!(
                "POST /first HTTP/1.1\r\nHost: {host}\r\n{expect}Content-Length: {}\r\n\r\n",
                inner.len()
            ))
            .await;
            let head = wire.message().await.unwrap();
            assert_eq!((head.status(), &head.body[..]), (417, &b"/first"[..]), "{}", head.head);
            // The body comes late, then another request.
            let _ = wire.try_send(format!("{inner}GET /second HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            match wire.message().await {
                None => {}
                Some(answer) => assert_eq!(answer.body, b"/second", "the answer to the body: {}", answer.head),
            }
        }
        no_panics(&world).await;
    }

    /// Bytes behind an upgrade request are the other protocol's, and only once the service has agreed to it.
    #[tokio::test]
    async fn of_a_refused_upgrade_leave_what_follows_a_request_of_its_own() {
        let world = hasty().await;
        let (early, mut heard) = tokio::sync::mpsc::channel::<(bool, Vec<u8>)>(16);
        let app = App::raw(move |mut wire: Wire, _| {
            let early = early.clone();
            async move {
                while let Some(head) = wire.head().await {
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    if path == "/up" {
                        // Whatever comes before our answer came too early.
                        let more = tokio::time::timeout(Duration::from_millis(150), wire.some()).await;
                        early.send((head.contains("upgrade: "), more.unwrap_or_default())).await.unwrap();
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
                    if wire.try_send(answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n";
        for (protocol, passed) in [("websocket", true), ("h2c", false), ("foo/1", true), ("TLS/1.0", false)] {
            let mut wire = world.raw(&host).await;
            wire.send(format!(
                "GET /up HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{key}\r\n\
                 GET /inner HTTP/1.1\r\nHost: {host}\r\n\r\n"
            ))
            .await;
            let answer = wire.message().await.unwrap();
            assert_eq!((answer.status(), &answer.body[..]), (200, &b"/up"[..]), "{protocol}");
            let (asked, early) = within("the request at the service", heard.recv()).await.unwrap();
            assert_eq!(early, b"", "{protocol}: bytes arrived before the service had agreed");
            assert_eq!(asked, passed, "{protocol}");
            let answer = wire.message().await;
            assert!(passed || answer.is_some(), "{protocol}: a wish that is ignored ended the connection");
            if let Some(answer) = answer {
                assert_eq!((answer.status(), &answer.body[..]), (200, &b"/inner"[..]), "{protocol}");
            }
        }
        no_panics(&world).await;
    }

    /// An upgraded connection has a limit of its own: those for heads and idle connections end with the upgrade.
    #[tokio::test]
    async fn of_an_upgraded_connection_go_on_beyond_the_limits_for_heads() {
        let world = hasty().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n").await;
            loop {
                let bytes = wire.some().await;
                if bytes.is_empty() || wire.try_send(bytes).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        for _ in 0..3 {
            wire.send("ping").await;
            assert_eq!(wire.exactly(4).await, b"ping");
            tokio::time::sleep(HASTE + HASTE / 10).await;
        }
        no_panics(&world).await;
    }

    /// Requests that break off anywhere, a thousand of them between others: each answer carries its own request's id.
    #[tokio::test]
    async fn carry_their_own_request_after_a_thousand_aborts() {
        let world = World::start().await;
        let app = App::serve(|request| async move {
            let path = request.uri().path().to_owned();
            let n: u64 = path[1..].parse().unwrap();
            tokio::time::sleep(Duration::from_millis(n % 4)).await;
            // Some bodies are small, some larger than a window.
            relay_tests::app::ok(format!("{path}\n").repeat(if n.is_multiple_of(7) { 20_000 } else { 1 }))
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let (world, host) = (&world, &host);
        let round = |worker: u64| async move {
            let mut two = world.http2(host).await;
            for i in 0..125u64 {
                let n = worker * 1000 + i;
                let request = format!("GET /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n");
                // One that breaks off: within its head, behind it, within its answer, or with its body owed.
                let mut wire = world.raw(host).await;
                match n % 5 {
                    0 => wire.send(&request[..request.len() / 2]).await,
                    1 => wire.send(&request).await,
                    2 => {
                        wire.send(&request).await;
                        wire.some().await;
                    }
                    3 => {
                        let body = "Content-Length: 10\r\n\r\nabc";
                        wire.send(format!("POST /{n} HTTP/1.1\r\nHost: {host}\r\n{body}")).await;
                    }
                    _ => drop(two.request(Request::get(format!("https://{host}/{n}")).body(empty()).unwrap())),
                }
                drop(wire);
                // And one that does not.
                let n = n + 500;
                let url = format!("https://{host}/{n}");
                let answer = two.answer(Request::get(&url).body(empty()).unwrap()).await;
                assert_eq!(answer.code(), 200, "{n}: {:?}", answer.headers);
                assert!(answer.text().lines().all(|line| line == format!("/{n}")), "{n}: {:.60}", answer.text());
                assert_eq!(answer.text().lines().count(), if n.is_multiple_of(7) { 20_000 } else { 1 });
            }
        };
        join_all((0..8).map(round)).await;
        no_panics(world).await;
    }
}

mod slow {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::time::Instant;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpStream;

    use super::*;

    async fn ends_soon(what: &str, wire: &mut Wire) -> String {
        let since = Instant::now();
        let rest = wire.rest().await.unwrap_or_else(|(read, _)| read);
        // Longer than any limit of a hasty world, and shorter than the real ones.
        assert!(since.elapsed() < AT_ONCE, "{what}: given up after {:?}", since.elapsed());
        String::from_utf8_lossy(&rest).into_owned()
    }

    #[tokio::test]
    async fn handshakes_and_heads_end_on_every_listener() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let host = world.host(tunnel.name());
        let silent = |address| async move { Wire::new(TcpStream::connect(address).await.unwrap()) };

        let mut mute = silent(world.https()).await;
        let mut half = silent(world.https()).await;
        half.send([0x16, 3, 1, 2, 0, 1, 0]).await;
        let mut idle = world.raw(&host).await;
        let mut head = world.raw(&host).await;
        head.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\nX-")).await;
        let mut idle_two = Wire::new(world.tls(&host, &[b"h2"]).await);
        let mut half_preface = Wire::new(world.tls(&host, &[b"h2"]).await);
        half_preface.send("PRI * HTTP/2.0\r\n").await;
        let mut plain = world.plain().await;
        let mut plain_head = world.plain().await;
        plain_head.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\nX-")).await;
        let mut admin = silent(world.admin()).await;
        let mut admin_head = silent(world.admin()).await;
        admin_head.send("GET /healthz HTTP/1.1\r\nX-").await;
        // Between two requests a connection may be idle for its own limit.
        let mut between = world.raw(&host).await;
        between.send(format!("GET /between HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        between.message().await.unwrap();
        let mut connections = [
            ("no ClientHello", &mut mute),
            ("half a ClientHello", &mut half),
            ("no request", &mut idle),
            ("half a head", &mut head),
            ("no preface", &mut idle_two),
            ("half a preface", &mut half_preface),
            ("plain: no request", &mut plain),
            ("plain: half a head", &mut plain_head),
            ("admin: no request", &mut admin),
            ("admin: half a head", &mut admin_head),
            ("between two requests", &mut between),
        ];
        join_all(connections.iter_mut().map(|(what, wire)| ends_soon(what, wire))).await;
        assert!(origin.requests("/slow").is_empty());
        no_panics(&world).await;
    }

    /// A byte now and then does not keep a head alive.
    #[tokio::test]
    async fn heads_that_trickle_end_too() {
        let world = hasty().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let host = world.host(tunnel.name());
        let trickle = |mut wire: Wire| async move {
            let since = Instant::now();
            let mut sent = String::new();
            while wire.try_send("X").await.is_ok() {
                assert!(since.elapsed() < AT_ONCE, "still open after {:?}", since.elapsed());
                sent.push('X');
                if tokio::time::timeout(Duration::from_millis(50), wire.some()).await.is_ok() {
                    return;
                }
            }
        };
        let mut wires = [world.raw(&host).await, world.plain().await];
        for wire in &mut wires {
            wire.send(format!("GET /slow HTTP/1.1\r\nHost: {host}\r\nX-")).await;
        }
        join_all(wires.map(trickle)).await;
        assert!(origin.requests("/slow").is_empty(), "no stream is opened before the head is whole");
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn bodies_get_408_and_trickling_ones_the_tunnels_deadline() {
        let world = World::with(|config| {
            config.limits.body_idle = Duration::from_secs(1);
        })
        .await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for framing in [
            "Content-Length: 10\r\n\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "Content-Length: 10\r\n\r\n",
        ] {
            let mut wire = world.raw(&host).await;
            wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\n{framing}")).await;
            let answer = wire.message().await.unwrap();
            assert_eq!((answer.status(), answer.values("relay-error")), (408, vec!["body-timeout"]));
            assert!(wire.rest().await.unwrap_or_default().is_empty(), "the connection ends with the half-read body");
        }
        let mut two = world.http2(&host).await;
        let (feed, body) = pipe();
        let answer = two.begin(Request::post(tunnel.url()).body(body).unwrap());
        feed.send("abc").await;
        assert_eq!(answer.await.unwrap().code(), 408);

        // A byte every 100 ms is not silence; a tunnel's own deadline is for the whole.
        let timeout = Some(Duration::from_millis(2500));
        let options = relay_client::TunnelOptions { timeout, ..relay_client::TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10000\r\n\r\n")).await;
        let answer = loop {
            let _ = wire.try_send("x").await;
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(100), wire.message()).await {
                break answer.unwrap();
            }
        };
        assert_eq!((answer.status(), answer.values("relay-error")), (504, vec!["deadline"]));
        assert!(app.seen().is_empty());
        no_panics(&world).await;
    }

    /// A world in which readers that take nothing are given up after so long, and so many of them, each of whose answers goes on
    /// for ever. How many of those the service has seen the end of comes with them.
    async fn stalled(count: usize, write_idle: Duration) -> (World, Tunnel, App, Arc<AtomicUsize>, Vec<Wire>) {
        let world = World::with(|config| config.limits.write_idle = write_idle).await;
        let gone: Arc<AtomicUsize> = Arc::default();
        let ended = gone.clone();
        let app = App::serve(move |request| {
            let ended = ended.clone();
            async move {
                if request.uri().path() != "/large" {
                    return relay_tests::app::ok("small");
                }
                let (feed, body) = pipe();
                tokio::spawn(async move {
                    let piece = relay_tests::body::noise(64 * 1024);
                    while feed.send(piece.clone()).await {}
                    ended.fetch_add(1, Relaxed);
                });
                http::Response::new(body)
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut readers = Vec::new();
        for _ in 0..count {
            let mut wire = world.raw(&host).await;
            wire.send(format!("GET /large HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            readers.push(wire);
        }
        app.reached(count).await;
        (world, tunnel, app, gone, readers)
    }

    /// Readers that do not read stall themselves, and cost nobody else anything.
    #[tokio::test]
    async fn readers_delay_nobody() {
        if !has_own_process().await {
            return;
        }
        let before = own_resident();
        let (world, tunnel, _app, gone, _readers) = stalled(30, Duration::from_secs(300)).await;
        for _ in 0..20 {
            assert_eq!(world.get(&format!("{}/small", tunnel.url())).await.text(), "small");
        }
        assert_eq!(gone.load(Relaxed), 0, "none of them had to end for that");
        let grown = own_resident().saturating_sub(before);
        // Without a bound it would be gigabytes within the second.
        assert!(grown < 256 << 20, "{} MiB for readers that do not read", grown >> 20);
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn readers_are_reset() {
        let (world, _tunnel, _app, gone, readers) = stalled(10, Duration::from_millis(500)).await;
        within("every stalled exchange ends at the service", async {
            while gone.load(Relaxed) < 10 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        // What did arrive does not look whole.
        for mut wire in readers.into_iter().take(5) {
            let all = wire.rest().await.unwrap_or_else(|(read, _)| read);
            assert!(!all.ends_with(b"0\r\n\r\n"), "a body that was cut looks complete");
        }
        no_panics(&world).await;
    }

    /// A side that has closed and a side that waits: nobody may spin over it.
    #[tokio::test]
    async fn half_closed_connections_cost_no_cpu() {
        let server = relay_tests::RelayServer::spawn([""; 0]).await;
        let app = App::serve(|request| async move {
            match request.uri().path() {
                "/never" => std::future::pending().await,
                "/stall" => {
                    let (feed, body) = pipe();
                    tokio::spawn(async move {
                        feed.send("begun").await;
                        feed.closed().await;
                    });
                    http::Response::new(body)
                }
                _ => relay_tests::app::ok("ok"),
            }
        })
        .await;
        let token = server.token("half").await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.host();
        let ca = server.ca_file();
        let connect =
            |protocols: &'static [&'static [u8]]| relay_tests::world::connect_tls(server.https, &host, &ca, protocols);
        let mut held: Vec<Box<dyn relay_tests::wire::Transport>> = Vec::new();
        for phase in [
            "",
            "GET /ok HTTP/1.1\r\nHost: HOST\r\n",
            "POST /ok HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\nabc",
            "POST /ok HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "GET /ok HTTP/1.1\r\nHost: HOST\r\n\r\n",
            "GET /never HTTP/1.1\r\nHost: HOST\r\n\r\n",
            "GET /stall HTTP/1.1\r\nHost: HOST\r\n\r\n",
            "POST /never HTTP/1.1\r\nHost: HOST\r\nContent-Length: 9\r\n\r\nabc",
            "POST /never HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        ] {
            // Both by TLS's close_notify and by TCP's FIN alone.
            let mut tls = connect(&[b"http/1.1"]).await;
            tls.write_all(phase.replace("HOST", &host).as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            tls.shutdown().await.unwrap();
            held.push(Box::new(tls));
            let mut tls = connect(&[b"http/1.1"]).await;
            tls.write_all(phase.replace("HOST", &host).as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            tls.get_mut().0.shutdown().await.unwrap();
            held.push(Box::new(tls));
        }
        let mut two = connect(&[b"h2"]).await;
        two.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        two.shutdown().await.unwrap();
        held.push(Box::new(two));
        for address in [server.https, server.http.unwrap(), server.admin.unwrap()] {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            tcp.shutdown().await.unwrap();
            held.push(Box::new(tcp));
        }
        server.process.rests().await;
        client.process.rests().await;
        drop(held);
    }
}

mod http2 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;
    use tokio_rustls::client::TlsStream;

    use super::*;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    /// HTTP/2 frame by frame (RFC 9113), with what the relay says read beside it.
    struct Attacker {
        write: WriteHalf<TlsStream<TcpStream>>,
        read: JoinHandle<Vec<Frame>>,
        host: String,
    }

    #[derive(Debug)]
    struct Frame {
        kind: u8,
        stream: u32,
        payload: Vec<u8>,
    }

    impl Attacker {
        async fn connect(world: &World, tunnel: &Tunnel, settings: &[(u16, u32)]) -> Self {
            let host = world.host(tunnel.name());
            let (read, mut write) = tokio::io::split(world.tls(&host, &[b"h2"]).await);
            let mut payload = Vec::new();
            for (name, value) in settings {
                payload.extend(name.to_be_bytes());
                payload.extend(value.to_be_bytes());
            }
            write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            write.write_all(&frame(SETTINGS, 0, 0, &payload)).await.unwrap();
            write.flush().await.unwrap();
            Self { write, read: tokio::spawn(read_frames(read)), host }
        }

        /// Writes; false once the relay has had enough.
        async fn send(&mut self, bytes: &[u8]) -> bool {
            self.write.write_all(bytes).await.is_ok() && self.write.flush().await.is_ok()
        }

        fn get(&self, path: &str) -> Vec<u8> {
            request("GET", path, &self.host)
        }

        /// Everything the relay has said until it closed.
        async fn closed(self) -> Vec<Frame> {
            within("the relay ends the connection", self.read).await.unwrap()
        }
    }

    async fn read_frames(mut io: ReadHalf<TlsStream<TcpStream>>) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut header = [0; 9];
        while io.read_exact(&mut header).await.is_ok() {
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; length];
            if io.read_exact(&mut payload).await.is_err() {
                break;
            }
            let stream = u32::from_be_bytes(header[5..9].try_into().unwrap());
            frames.push(Frame { kind: header[3], stream, payload });
        }
        frames
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// A literal that is not indexed (RFC 7541, section 6.2.2); names and values below 127 bytes.
    fn literal(name: &str, value: &str) -> Vec<u8> {
        let mut bytes = vec![0, name.len() as u8];
        bytes.extend(name.as_bytes());
        bytes.push(value.len() as u8);
        bytes.extend(value.as_bytes());
        bytes
    }

    fn request(method: &str, path: &str, host: &str) -> Vec<u8> {
        [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]
            .iter()
            .flat_map(|(name, value)| literal(name, value))
            .collect()
    }

    /// A service that never answers, and says how many of its requests are still alive.
    async fn patient() -> (App, Arc<std::sync::atomic::AtomicUsize>) {
        struct Alive(Arc<std::sync::atomic::AtomicUsize>);
        impl Drop for Alive {
            fn drop(&mut self) {
                self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let alive: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let count = alive.clone();
        let app = App::serve(move |request| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let guard = Alive(count.clone());
            async move {
                if request.uri().path() != "/other" {
                    std::future::pending::<()>().await;
                }
                drop(guard);
                relay_tests::app::ok("other")
            }
        })
        .await;
        (app, alive)
    }

    async fn others_are_served(world: &World, tunnel: &Tunnel) {
        let since = std::time::Instant::now();
        assert_eq!(world.get(&format!("{}/other", tunnel.url())).await.text(), "other");
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn rapid_resets_end_the_connection_and_hardly_reach_the_service() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let (app, alive) = patient().await;
        let tunnel = world.tunnel(&app).await;
        others_are_served(&world, &tunnel).await;
        let before = own_resident();
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        let block = attacker.get("/reset");
        let mut sent = 0u32;
        'attack: while sent < 100_000 {
            let mut burst = Vec::new();
            for _ in 0..500 {
                let stream = 2 * sent + 1;
                burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
                burst.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
                sent += 1;
            }
            if !attacker.send(&burst).await {
                break 'attack;
            }
        }
        others_are_served(&world, &tunnel).await;
        let frames = attacker.closed().await;
        assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "after {sent} resets: {} frames", frames.len());
        assert!(app.requests() < 2000, "{} of {sent} reached the service", app.requests());
        let grown = own_resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
        nothing_is_left(&alive).await;

        // One that resets slowly enough to be let through frees what it took, each time.
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        for i in 0..200 {
            let already = app.requests();
            let stream = 2 * i + 1;
            assert!(attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await, "round {i}");
            app.reached(already + 1).await;
            assert!(attacker.send(&frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())).await, "round {i}");
        }
        nothing_is_left(&alive).await;
        no_panics(&world).await;
    }

    /// A cancelled request is cancelled at the service too.
    async fn nothing_is_left(alive: &std::sync::atomic::AtomicUsize) {
        within("the service's requests end with their streams", async {
            while alive.load(std::sync::atomic::Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    /// Frames that make the relay itself reset the stream, as in CVE-2025-8671.
    #[tokio::test]
    async fn made_resets_end_the_connection() {
        let world = World::start().await;
        let (app, alive) = patient().await;
        let tunnel = world.tunnel(&app).await;
        for (what, kind, payload) in [
            ("a window update of zero", WINDOW_UPDATE, &[0, 0, 0, 0][..]),
            ("a window that overflows", WINDOW_UPDATE, &[0x7f, 0xff, 0xff, 0xff][..]),
            ("data behind the end", DATA, b"x"),
        ] {
            let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
            let block = attacker.get("/reset");
            let mut sent = 0u32;
            while sent < 100_000 {
                let mut burst = Vec::new();
                for _ in 0..200 {
                    let stream = 2 * sent + 1;
                    burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
                    burst.extend(frame(kind, 0, stream, payload));
                    sent += 1;
                }
                if !attacker.send(&burst).await {
                    break;
                }
            }
            let frames = attacker.closed().await;
            assert!(frames.iter().any(|frame| frame.kind == GOAWAY), "{what}, {sent} times");
            assert!(app.requests() < 5000, "{what}: {} reached the service", app.requests());
        }
        others_are_served(&world, &tunnel).await;
        nothing_is_left(&alive).await;
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn heads_without_an_end_or_beyond_the_limit_reach_nobody() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let (app, _) = patient().await;
        let tunnel = world.tunnel(&app).await;
        let before = own_resident();

        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        let more: Vec<u8> = (0..300).flat_map(|_| literal("x-flood", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")).collect();
        let mut open = frame(HEADERS, 0, 1, &attacker.get("/flood"));
        let mut sent = 0;
        while sent < 64 << 20 && attacker.send(&open).await {
            sent += open.len();
            open = frame(CONTINUATION, 0, 1, &more);
        }
        assert!(sent < 64 << 20, "CONTINUATION without an end was taken");
        attacker.closed().await;

        // Empty ones cost the sender nine bytes each.
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        attacker.send(&frame(HEADERS, 0, 1, &attacker.get("/flood"))).await;
        let empty = frame(CONTINUATION, 0, 1, b"").repeat(1000);
        let mut sent = 0;
        while sent < 2000 && attacker.send(&empty).await {
            sent += 1;
        }
        assert!(sent < 2000, "{sent} thousand empty CONTINUATION frames were taken");
        attacker.closed().await;

        // An HPACK bomb: one entry of the table, referred to by a byte each time.
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        let mut block = attacker.get("/bomb");
        block.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
        block.extend([b'a'; 4000]);
        block.extend([0x80 | 62; 10_000]);
        attacker.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
        // Many small lines.
        let many: Vec<u8> = (0..3000).flat_map(|_| literal("a", "b")).collect();
        let block = [attacker.get("/many"), many].concat();
        attacker.send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, &block)).await;
        attacker.send(&frame(PING, 0, 0, &[7; 8])).await;
        attacker.send(&frame(GOAWAY, 0, 0, &[0; 8])).await;
        drop(attacker);
        others_are_served(&world, &tunnel).await;
        assert_eq!(app.requests(), 1, "only the honest request reached the service");
        let grown = own_resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn empty_data_frames_and_pings_cost_little() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let (app, _) = patient().await;
        let tunnel = world.tunnel(&app).await;
        others_are_served(&world, &tunnel).await;
        let before = own_resident();
        for burst in [frame(DATA, 0, 1, b""), frame(PING, 0, 0, &[1; 8]), frame(SETTINGS, 0, 0, b"")] {
            let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
            let block = request("POST", "/flood", &attacker.host);
            attacker.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
            let burst = burst.repeat(1000);
            for _ in 0..100 {
                if !attacker.send(&burst).await {
                    break;
                }
            }
            others_are_served(&world, &tunnel).await;
        }
        let grown = own_resident().saturating_sub(before);
        assert!(grown < 64 << 20, "{} MiB", grown >> 20);
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn a_thousand_answers_that_nobody_reads_fit_into_little_memory() {
        if !has_own_process().await {
            return;
        }
        // However long it takes until all of them are there.
        let world = World::with(|config| config.limits.write_idle = Duration::from_secs(300)).await;
        let app = App::serve(|request| async move {
            if request.uri().path() == "/other" {
                return relay_tests::app::ok("other");
            }
            let (feed, body) = pipe();
            tokio::spawn(async move {
                let piece = relay_tests::body::noise(64 * 1024);
                while feed.send(piece.clone()).await {}
            });
            http::Response::new(body)
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        others_are_served(&world, &tunnel).await;
        let before = own_resident();
        // SETTINGS_INITIAL_WINDOW_SIZE of zero: not a byte of a body may be sent.
        let mut attackers = Vec::new();
        for _ in 0..8 {
            let mut attacker = Attacker::connect(&world, &tunnel, &[(4, 0)]).await;
            let block = attacker.get("/large");
            for i in 0..120 {
                attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, &block)).await;
            }
            attackers.push(attacker);
            app.reached(1 + 120 * attackers.len()).await;
        }
        others_are_served(&world, &tunnel).await;
        // Relay, client and service share this process; the session's budget is 32 MiB on either side.
        let grown = own_resident().saturating_sub(before);
        // So do the tests that run beside this one.
        assert!(grown < 512 << 20, "{} MiB", grown >> 20);
        drop(attackers);
        others_are_served(&world, &tunnel).await;
        no_panics(&world).await;
    }

    /// A service that does not read its uploads stalls these, and nothing else on their connection.
    #[tokio::test]
    async fn stalled_uploads_leave_their_connection_to_others() {
        let world = World::with(|config| config.limits.deadline = Duration::from_secs(300)).await;
        let app = App::serve(|request| async move {
            if request.uri().path() == "/stalled" {
                // The body stays in the request, unread.
                std::future::pending::<()>().await;
            }
            relay_tests::app::echo(request).await
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let sent: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let mut stalled = tokio::task::JoinSet::new();
        for i in 0..100 {
            let (feed, body) = pipe();
            http.ready().await;
            stalled.spawn(http.request(Request::post(format!("{}/stalled", tunnel.url())).body(body).unwrap()));
            app.reached(i + 1).await;
            let count = sent.clone();
            tokio::spawn(async move {
                while feed.send(vec![0; 64 * 1024]).await {
                    count.fetch_add(64 * 1024, std::sync::atomic::Ordering::Relaxed);
                }
            });
        }
        // They have come to rest once nothing moves beside fifty exchanges.
        let mut others = world.http1(&world.host(tunnel.name())).await;
        let (mut before, mut still) = (0, 0);
        while still < 50 {
            let other = Request::post(format!("{}/other", tunnel.url())).body(full("other")).unwrap();
            assert_eq!(others.answer(other).await.text(), "other");
            let now = sent.load(std::sync::atomic::Ordering::Relaxed);
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
        for _ in 0..10 {
            let small = Request::post(format!("{}/small", tunnel.url())).body(full("small")).unwrap();
            assert_eq!(within("a small upload beside stalled ones", http.answer(small)).await.text(), "small");
        }
        let large = Request::post(format!("{}/large", tunnel.url())).body(full(vec![1; 4 << 20])).unwrap();
        assert_eq!(within("a large one", http.answer(large)).await.body.len(), 4 << 20);
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn streams_beyond_the_limit_are_refused() {
        let world = World::with(|config| config.limits.http2_streams = 10).await;
        let (app, alive) = patient().await;
        let tunnel = world.tunnel(&app).await;
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        let block = attacker.get("/held");
        for i in 0..15 {
            attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, &block)).await;
        }
        app.reached(10).await;
        others_are_served(&world, &tunnel).await;
        assert_eq!(app.requests(), 11);
        attacker.write.shutdown().await.unwrap();
        let frames = attacker.closed().await;
        // REFUSED_STREAM
        let refused = |frame: &&Frame| frame.kind == RST_STREAM && frame.payload == 7u32.to_be_bytes();
        let refused: Vec<u32> = frames.iter().filter(refused).map(|frame| frame.stream).collect();
        assert_eq!(refused, [21, 23, 25, 27, 29]);
        nothing_is_left(&alive).await;
        no_panics(&world).await;
    }

    /// A length that the stream does not have would leave the service, which gets it as HTTP/1.1, waiting for a body or
    /// reading one as a request.
    #[tokio::test]
    async fn lengths_that_are_not_those_of_the_body_reach_nobody() {
        let world = World::start().await;
        let origin = Origin::start().await;
        let tunnel = world.tunnel(&origin.app).await;
        let attack = async |lines: &[(&str, &str)], body: Option<&[u8]>| {
            let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
            let lines: Vec<u8> = lines.iter().flat_map(|(name, value)| literal(name, value)).collect();
            let block = [request("POST", "/framed", &attacker.host), lines].concat();
            let end = if body.is_some() { 0 } else { END_STREAM };
            attacker.send(&frame(HEADERS, END_HEADERS | end, 1, &block)).await;
            if let Some(body) = body {
                attacker.send(&frame(DATA, END_STREAM, 1, body)).await;
            }
            // What the relay passes on of it, it passes on before the next; or it ends the connection.
            let before = origin.requests("/next").len();
            let block = attacker.get("/next");
            attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &block)).await;
            within("the next request", async {
                while origin.requests("/next").len() == before && !attacker.read.is_finished() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        };
        let inner = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        attack(&[("content-length", "5")], None).await;
        attack(&[("content-length", "0")], Some(inner)).await;
        attack(&[("content-length", "500")], Some(inner)).await;
        attack(&[("content-length", "0"), ("content-length", "35")], Some(inner)).await;
        attack(&[("transfer-encoding", "chunked")], Some(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")).await;
        attack(&[("connection", "keep-alive")], Some(inner)).await;
        attack(&[("host", "evil.example")], Some(inner)).await;
        attack(&[("x-a", "a\r\nx-injected: b")], Some(inner)).await;
        attack(&[("X-Upper", "a")], Some(inner)).await;
        assert_eq!(origin.requests("/framed"), []);
        attack(&[("content-length", "35")], Some(inner)).await;
        let seen = origin.requests("/framed");
        assert_eq!((seen.len(), &seen[0].body[..]), (1, &inner[..]), "an honest one, as a control");
        assert_eq!(origin.requests("/smuggled"), []);
        no_panics(&world).await;
    }

    /// Frames that belong to no request are no half head: the connection may stay for its idle time.
    #[tokio::test]
    async fn idle_connections_outlive_a_ping() {
        let world = World::with(|config| config.limits.head = Duration::from_secs(1)).await;
        let (app, _) = patient().await;
        let tunnel = world.tunnel(&app).await;
        let mut attacker = Attacker::connect(&world, &tunnel, &[]).await;
        let block = attacker.get("/other");
        for i in 0..2 {
            assert!(attacker.send(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, &block)).await);
            app.reached(i as usize + 1).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(attacker.send(&frame(PING, 0, 0, &[1; 8])).await);
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert!(!attacker.read.is_finished(), "closed as if a head were late");
        }
        no_panics(&world).await;
    }
}

mod limits {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn of_connections_hold_for_one_address_and_for_all() {
        for (all, each) in [(1000, 20), (20, 1000)] {
            let world = World::with(|config| {
                config.limits.connections = all;
                config.limits.connections_per_address = each;
            })
            .await;
            let mut held = Vec::new();
            for _ in 0..20 {
                held.push(TcpStream::connect(world.https()).await.unwrap());
            }
            // Each of these is accepted by the kernel, and closed by the relay without a word.
            for address in [world.https(), world.http(), world.https()] {
                let mut more = Wire::new(TcpStream::connect(address).await.unwrap());
                assert_eq!(more.rest().await.unwrap_or_default(), b"");
            }
            let metrics = world.get_admin("/metrics").await;
            assert!(metrics.text().contains("relay_connections_refused_total 3"), "{}", metrics.text());
            // Places come back.
            drop(held);
            within("a place", async {
                loop {
                    let mut wire = world.plain().await;
                    let _ = wire.try_send("GET / HTTP/1.1\r\nHost: relay.test\r\nConnection: close\r\n\r\n").await;
                    if wire.rest().await.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 308")) {
                        break;
                    }
                }
            })
            .await;
            no_panics(&world).await;
        }
    }

    /// A stranger cannot make the relay keep a series, or a line of the registry, per host, path or method.
    #[tokio::test]
    async fn of_what_is_counted_do_not_grow_with_what_strangers_say() {
        if !has_own_process().await {
            return;
        }
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        let series = || async { world.get_admin("/metrics").await.text().lines().count() };
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let each = async |http: &mut relay_tests::Http, range: std::ops::Range<u32>| {
            for i in range {
                let method = http::Method::from_bytes(format!("M{i}").as_bytes()).unwrap();
                let request = Request::builder().method(method).uri(format!("https://h{i}.relay.test/p{i}"));
                assert_eq!(http.answer(request.body(empty()).unwrap()).await.code(), 404);
                let own = Request::get(format!("{}/p{i}?q={i}", tunnel.url())).header("user-agent", format!("ua{i}"));
                assert_eq!(http.answer(own.body(empty()).unwrap()).await.code(), 200);
            }
        };
        each(&mut http, 0..5).await;
        let before = series().await;
        let resident = own_resident();
        each(&mut http, 5..1000).await;
        assert_eq!(series().await, before);
        let grown = own_resident().saturating_sub(resident);
        assert!(grown < 32 << 20, "{} MiB", grown >> 20);
        assert!(!world.get_admin("/metrics").await.text().contains("h999"));
        no_panics(&world).await;
    }
}

/// What a real relay and a real client write, while strangers try to write into it.
mod logs {
    use relay_tests::RelayServer;
    use rustix::process::Signal;

    use super::*;

    #[tokio::test]
    async fn have_one_line_of_json_for_each_request_and_never_a_token() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("canary").await;
        let app = App::recording().await;
        let mut client = server.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.host();
        let ca = server.ca_file();
        let connect = async |host: &str| {
            Wire::new(relay_tests::world::connect_tls(server.https, host, &ca, &[b"http/1.1"]).await)
        };

        let targets: Vec<Vec<u8>> = [
            &b"/plain"[..],
            b"/\xe2\x80\xaegpj.exe",
            b"/\xc2\x9b31mred",
            b"/%0a%1b[31m",
            b"/quote\"back\\slash",
            b"/{\"event\":\"exchange\"}",
            b"/%22,%22level%22:%22ERROR%22",
            b"/\xe2\x80\xa8line",
            b"/\xff\xfe",
            b"/\x1b[2J",
            b"/\x7f",
        ]
        .iter()
        .map(|target| target.to_vec())
        .chain([format!("/{}", "long".repeat(5000)).into_bytes()])
        .collect();
        for target in &targets {
            let mut wire = connect(&host).await;
            let tail =
                format!(" HTTP/1.1\r\nHost: {host}\r\nUser-Agent: \u{9b}31m\u{202e}\r\nConnection: close\r\n\r\n");
            let _ = wire.try_send([b"GET ", &target[..], tail.as_bytes()].concat()).await;
            let _ = wire.rest().await;
        }
        // Hosts, methods and refused clients of strangers.
        for head in [
            "GET / HTTP/1.1\r\nHost: \u{1b}[31m.relay.test\r\n\r\n".to_owned(),
            format!("G\"ET'|~ /method HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            format!("G!#$%&'*+-.^_`|~ /method HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
            format!(
                "GET /_relay/connect HTTP/1.1\r\nHost: relay.test\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                     Sec-WebSocket-Protocol: \u{1b}[31m\r\nAuthorization: Bearer {token}\r\n\r\n"
            ),
            // The right token with a wrong letter, and in places where it does not belong.
            format!(
                "GET /_relay/connect?token={token} HTTP/1.1\r\nHost: relay.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                     Sec-WebSocket-Protocol: relay.v1\r\nAuthorization: Bearer {token}x\r\n\r\n"
            ),
        ] {
            let mut wire = connect("relay.test").await;
            let _ = wire.try_send(head).await;
            let _ = tokio::time::timeout(Duration::from_secs(1), wire.rest()).await;
        }
        let reached = app.seen().len();
        assert!(reached >= 6, "{reached} of them are honest enough to arrive");

        let mut metrics = Wire::new(tokio::net::TcpStream::connect(server.admin.unwrap()).await.unwrap());
        metrics.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let metrics = String::from_utf8(metrics.rest().await.unwrap()).unwrap();
        assert!(metrics.contains("relay_panics_total 0"));

        let told = client.process.terminate().await;
        server.process.signal(Signal::TERM);
        let wrote = server.process.wait().await;
        let secret = &token[4..token.len() - 8];
        for text in [&wrote.stderr, &wrote.stdout, &told.stderr, &told.stdout, &metrics] {
            assert!(!text.contains(secret), "the token is in {text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{9b}', '\u{2028}', '\u{7f}']), "{text:?}");
        }
        let mut exchanges = 0;
        for line in wrote.stderr.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            exchanges += usize::from(line["event"] == "exchange");
            assert_ne!(line["level"], "ERROR", "{line}");
            assert!(line.to_string().len() < 12_000, "a line of {} bytes", line.to_string().len());
        }
        assert!(exchanges >= reached, "{exchanges} lines for {reached} exchanges");
        for line in told.stdout.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert_eq!(line["event"], "exchange");
        }
        // Nor does the database have it.
        for file in std::fs::read_dir(server.data_dir()).unwrap().flatten().filter(|file| file.path().is_file()) {
            let bytes = std::fs::read(file.path()).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{:?}", file.path());
        }
    }

    #[tokio::test]
    async fn and_debug_output_never_have_a_token() {
        let world = World::start().await;
        let token = world.token().await;
        let app = App::echo().await;
        let client = relay_client::Client::new(world.target())
            .token(token.clone().into())
            .tunnel(relay_client::TunnelOptions::new(app.upstream()));
        let secret = relay_server::store::Secret::parse(&token).unwrap();
        let authenticated = world.store().authenticate(&secret, relay_server::store::unix_now()).await.unwrap();
        let texts = [format!("{client:?}"), format!("{world:?}"), format!("{secret:?}"), format!("{authenticated:?}")];
        for text in texts {
            assert!(!text.contains(&token[4..20]), "{text}");
        }
        for wrong in [format!("{token}x"), token.replace("rly_", "rlx_"), token[..20].to_owned()] {
            let error = relay_server::store::Secret::parse(&wrong).unwrap_err();
            assert!(!format!("{error:?} {error}").contains(&token[4..20]));
        }
    }
}

/// Clients that have their 101 and say no more: they count, and they end, as any other session.
mod silent_clients {
    use super::*;

    async fn connect(world: &World, token: &str) -> Wire {
        let mut wire = world.raw("relay.test").await;
        wire.send(format!(
            "GET /_relay/connect HTTP/1.1\r\nHost: relay.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: relay.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
        ))
        .await;
        wire
    }

    #[tokio::test]
    async fn end_with_their_token() {
        let world = World::with(|config| config.limits.hello = Duration::from_secs(300)).await;
        let (token, name) = world.token_with(|_| {}).await;
        let mut wire = connect(&world, &token).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        let data = world.data_dir().display().to_string();
        let revoked = relay_tests::process::run("relay-server", ["token", "--data-dir", &data, "revoke", &name]).await;
        assert!(revoked.status.success(), "{revoked:?}");
        let said = wire.rest().await.unwrap_or_else(|(said, _)| said);
        assert!(said.windows(7).any(|text| text == b"revoked"), "{}", said.escape_ascii());
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn count_among_the_sessions() {
        let world = World::with(|config| config.limits.sessions = 2).await;
        let token = world.token().await;
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut wire = connect(&world, &token).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
            held.push(wire);
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_sessions 2\n"));
        let refused = connect(&world, &token).await.message().await.unwrap();
        assert_eq!((refused.status(), refused.values("relay-error")), (429, vec!["too-many-requests"]));
        drop(held);
        within("a place", async {
            while !connect(&world, &token).await.head().await.unwrap().starts_with("HTTP/1.1 101") {}
        })
        .await;
        no_panics(&world).await;
    }

    #[tokio::test]
    async fn are_told_when_the_relay_shuts_down() {
        let mut world = World::with(|config| config.limits.drain = Duration::from_secs(300)).await;
        let mut wire = connect(&world, &world.token().await).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        world.begin_shutdown();
        let said = wire.rest().await.unwrap_or_else(|(said, _)| said);
        assert!(said.windows(5).any(|text| text == b"shuts"), "{}", said.escape_ascii());
        world.shutdown().await;
    }
}
