//! How the client treats the services behind it: which connections it keeps, and what it says when one breaks off.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use relay_client::UpstreamProtocol;
use relay_client::upstream::address::UpstreamAddr;
use relay_client::{Tunnel, TunnelOptions};
use relay_tests::app::{listener, ok};
use relay_tests::body::{full, noise, pipe};
use relay_tests::{App, Body, Place, RelayClient, Wire, World, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A service that speaks HTTP/2 without TLS, and closes a connection just when a request comes on it, as servers do
/// that restart or that let no connection grow old.
mod h2c_connections {
    use super::*;

    /// A frame's kind and flags (RFC 9113, section 6).
    const DATA: (u8, u8) = (0, 0);
    const HEADERS: u8 = 1;
    const ANSWER: (u8, u8) = (HEADERS, 5);
    const RST_STREAM: (u8, u8) = (3, 0);
    const SETTINGS: (u8, u8) = (4, 0);
    const GOAWAY: (u8, u8) = (7, 0);
    const WINDOW_UPDATE: (u8, u8) = (8, 0);

    /// The server's end of a connection, frame by frame.
    struct Frames(TcpStream);

    impl Frames {
        /// Lets the client send 1 GiB, so that it never has to ask.
        async fn new(mut tcp: TcpStream) -> Self {
            let mut preface = [0; 24];
            tcp.read_exact(&mut preface).await.unwrap();
            assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            let mut frames = Self(tcp);
            let window = 0x4000_0000_u32.to_be_bytes();
            frames.send(SETTINGS, 0, &[&[0, 4], &window[..]].concat()).await;
            frames.send(WINDOW_UPDATE, 0, &window).await;
            frames
        }

        async fn send(&mut self, (kind, flags): (u8, u8), stream: u32, payload: &[u8]) {
            let len = (payload.len() as u32).to_be_bytes();
            let frame = [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
            self.0.write_all(&frame).await.unwrap();
        }

        /// The next frame: its kind, its stream and its payload; `None` at the end.
        async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let [_, a, b, c, ..] = [0, head[0], head[1], head[2]];
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
        }

        /// The stream of the next request.
        async fn request(&mut self) -> u32 {
            loop {
                let (kind, stream, _) = self.next().await.expect("the connection is up");
                if kind == HEADERS {
                    return stream;
                }
            }
        }

        /// Waits until so many bytes of bodies have come.
        async fn body(&mut self, bytes: usize) {
            let mut seen = 0;
            while seen < bytes {
                let (kind, _, payload) = self.next().await.expect("the connection is up");
                seen += if kind == DATA.0 { payload.len() } else { 0 };
            }
        }

        /// Answers a request with 200 and no body.
        async fn answer(&mut self, stream: u32) {
            self.send(ANSWER, stream, &[0x88]).await;
        }
    }

    struct Service {
        addr: SocketAddr,
        connections: Arc<AtomicUsize>,
        _tasks: JoinSet<()>,
    }

    impl Service {
        /// Hands its first connections, of which there are `odd`, to `serve`. Later ones answer each request with what
        /// it was told of the attempt, and its body.
        async fn start<F, R>(odd: usize, serve: F) -> Self
        where
            F: Fn(Frames) -> R + Send + 'static,
            R: Future<Output = ()> + Send + 'static,
        {
            let listener = listener().await;
            let (addr, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
            let (mut tasks, count) = (JoinSet::new(), connections.clone());
            tasks.spawn(async move {
                let mut each = JoinSet::new();
                while let Ok((tcp, _)) = listener.accept().await {
                    if count.fetch_add(1, Relaxed) < odd {
                        let frames = Frames::new(tcp).await;
                        each.spawn(serve(frames));
                    } else {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let serving = builder.serve_connection(TokioIo::new(tcp), service_fn(attempt));
                        each.spawn(async move { drop(serving.await) });
                    }
                }
            });
            Self { addr, connections, _tasks: tasks }
        }

        async fn tunnel(&self, world: &World) -> Tunnel {
            let upstream: UpstreamAddr = self.addr.to_string().parse().unwrap();
            world.tunnel_with(TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(upstream) }).await
        }

        fn connections(&self) -> usize {
            self.connections.load(Relaxed)
        }
    }

    async fn attempt(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let attempt = request.headers().get("relay-attempt").cloned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let attempt = attempt.as_ref().map_or("1", |attempt| attempt.to_str().unwrap());
        Ok(ok([attempt.as_bytes(), b":", &body].concat()))
    }

    /// Answers one request, and says this when the next one comes. A service that has nothing to say, or only
    /// SETTINGS, then closes.
    async fn then(mut frames: Frames, said: Option<(u8, u8)>, payload: &[u8]) {
        let first = frames.request().await;
        frames.answer(first).await;
        let second = frames.request().await;
        let Some(kind) = said else { return };
        frames.send(kind, if kind == RST_STREAM { second } else { 0 }, payload).await;
        // Until the client has gone, where this does not close it.
        while kind != SETTINGS && frames.next().await.is_some() {}
    }

    #[tokio::test]
    async fn that_close_cost_one_more_attempt_and_no_webhook() {
        let world = World::start().await;
        const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
        // The last stream that the service has looked at is the first; the reason is none.
        const LAST: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 0];
        for (how, kind, payload) in [
            ("it closes", None, &[][..]),
            ("it says goodbye", Some(GOAWAY), &LAST),
            ("it refuses the stream", Some(RST_STREAM), &REFUSED_STREAM),
        ] {
            let service = Service::start(1, move |frames| then(frames, kind, payload)).await;
            let mut tunnel = service.tunnel(&world).await;
            assert_eq!(world.post(tunnel.url(), "").await.text(), "", "{how}: the first answer");
            let again = world.post(tunnel.url(), "second").await;
            assert_eq!((again.code(), again.text()), (200, "2:second"), "{how}");
            assert_eq!(service.connections(), 2, "{how}");
            for _ in 0..2 {
                let exchange = tunnel.exchange().await.unwrap();
                assert_eq!((exchange.status, exchange.error), (Some(200), None), "{how}");
            }
        }
    }

    #[tokio::test]
    async fn are_replaced_once_and_not_for_ever() {
        let world = World::start().await;
        let fresh = AtomicUsize::new(0);
        let service = Service::start(usize::MAX, move |mut frames| {
            let first = fresh.fetch_add(1, Relaxed) == 0;
            async move {
                let stream = frames.request().await;
                if first {
                    frames.answer(stream).await;
                    frames.request().await;
                }
            }
        })
        .await;
        let tunnel = service.tunnel(&world).await;
        assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
        for connections in [2, 3] {
            let answer = world.post(tunnel.url(), "").await;
            assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
            assert_eq!(service.connections(), connections, "one extra attempt, and none where it was fresh already");
        }
    }

    /// What the service does wrong it would do wrong again.
    #[tokio::test]
    async fn are_not_replaced_where_the_service_has_seen_the_request() {
        let world = World::start().await;
        const INTERNAL_ERROR: [u8; 4] = [0, 0, 0, 2];
        // One that shows a sign of life and then breaks off may have done its work.
        for (kind, payload) in [(RST_STREAM, &INTERNAL_ERROR[..]), (SETTINGS, &[])] {
            let service = Service::start(1, move |frames| then(frames, Some(kind), payload)).await;
            let tunnel = service.tunnel(&world).await;
            assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
            let answer = world.post(tunnel.url(), "x").await;
            assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")), "{kind:?}");
            assert_eq!(service.connections(), 1, "{kind:?}");
        }
    }

    /// A body is held up to 64 KiB, and one that is not held cannot be sent again.
    #[tokio::test]
    async fn are_replaced_for_bodies_up_to_64_kib() {
        let world = World::start().await;
        for (size, is_held) in [(64 << 10, true), (200 << 10, false)] {
            let service = Service::start(1, move |mut frames| async move {
                let first = frames.request().await;
                frames.answer(first).await;
                frames.request().await;
                frames.body(size).await;
            })
            .await;
            let tunnel = service.tunnel(&world).await;
            assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
            let body = noise(size);
            let answer = world.post(tunnel.url(), body.clone()).await;
            if is_held {
                assert!(answer.code() == 200 && answer.body == [b"2:", &body[..]].concat(), "{}", answer.code());
            } else {
                assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
            }
            assert_eq!(service.connections(), if is_held { 2 } else { 1 });
        }
    }

    /// The first attempt reads the body in a task of its own, which must not take what the second one is to send.
    #[tokio::test]
    async fn that_close_in_the_middle_of_a_body_cost_none_of_it() {
        let world = World::start().await;
        for _ in 0..20 {
            let service = Service::start(1, |mut frames| async move {
                let first = frames.request().await;
                frames.answer(first).await;
                frames.request().await;
                frames.body(4).await;
            })
            .await;
            let tunnel = service.tunnel(&world).await;
            assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
            let mut http = world.http1(&world.host(tunnel.name())).await;
            let (feed, body) = pipe();
            let answer = http.begin(Request::post(tunnel.url()).body(body).unwrap());
            for piece in ["half", "-and-", "half"] {
                assert!(feed.send(piece).await);
                within("the next attempt", async {
                    while service.connections() < 2 {
                        tokio::task::yield_now().await;
                    }
                })
                .await;
            }
            drop(feed);
            assert_eq!(within("an answer", answer).await.unwrap().text(), "2:half-and-half");
        }
    }

    /// All exchanges of the connection that closed get their answers, and soon share one again.
    #[tokio::test]
    async fn that_close_on_many_requests_cost_none_of_them() {
        let world = World::start().await;
        let service = Service::start(1, |mut frames| async move {
            let first = frames.request().await;
            frames.answer(first).await;
            for _ in 0..30 {
                frames.request().await;
            }
        })
        .await;
        let tunnel = service.tunnel(&world).await;
        assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let answers: Vec<_> =
            (0..30).map(|n| http.begin(Request::post(tunnel.url()).body(full(n.to_string())).unwrap())).collect();
        for (n, answer) in answers.into_iter().enumerate() {
            assert_eq!(within("an answer", answer).await.unwrap().text(), format!("2:{n}"));
        }
        let connections = service.connections();
        assert_eq!(world.post(tunnel.url(), "x").await.text(), "1:x");
        assert_eq!(service.connections(), connections);
    }

    /// The relay's clock decides, and the service hears of it. The connection is for the others too.
    #[tokio::test]
    async fn outlive_a_deadline_that_ends_a_request_on_them() {
        let world = World::start().await;
        let (reset, mut is_reset) = tokio::sync::mpsc::channel(1);
        let service = Service::start(1, move |mut frames| {
            let reset = reset.clone();
            async move {
                frames.request().await;
                while frames.next().await.expect("the connection is up").0 != RST_STREAM.0 {}
                reset.send(()).await.unwrap();
                let second = frames.request().await;
                frames.answer(second).await;
            }
        })
        .await;
        let options = TunnelOptions {
            timeout: Some(Duration::from_secs(1)),
            protocol: UpstreamProtocol::H2c,
            ..TunnelOptions::new(service.addr.to_string().parse::<UpstreamAddr>().unwrap())
        };
        let mut tunnel = world.tunnel_with(options).await;
        let answer = world.post(tunnel.url(), "x").await;
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        within("the reset at the service", is_reset.recv()).await.unwrap();
        let exchange = tunnel.exchange().await.unwrap();
        assert_eq!((exchange.status, exchange.error.as_deref()), (Some(504), Some("deadline")));
        assert!(exchange.duration >= Duration::from_millis(950), "{exchange:?}");
        assert_eq!(world.post(tunnel.url(), "x").await.code(), 200);
        assert_eq!(service.connections(), 1);
    }

    /// Before the service closes it, as with HTTP/1.1.
    #[tokio::test]
    async fn are_closed_after_a_second_without_a_request() {
        let world = World::start().await;
        let (closed, mut is_closed) = tokio::sync::mpsc::channel(1);
        let service = Service::start(1, move |mut frames| {
            let closed = closed.clone();
            async move {
                let first = frames.request().await;
                frames.answer(first).await;
                let second = frames.request().await;
                // Longer than the limit, which is not for a connection in use.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                frames.answer(second).await;
                let answered = Instant::now();
                while frames.next().await.is_some() {}
                closed.send(answered.elapsed()).await.unwrap();
            }
        })
        .await;
        let tunnel = service.tunnel(&world).await;
        for _ in 0..2 {
            assert_eq!(world.post(tunnel.url(), "").await.code(), 200);
        }
        let after = within("the client to close", is_closed.recv()).await.unwrap();
        assert!(after > Duration::from_millis(900) && after < Duration::from_secs(10), "{after:?}");
        assert_eq!(world.post(tunnel.url(), "x").await.text(), "1:x");
        assert_eq!(service.connections(), 2);
    }
}

/// A service that breaks off in the middle of an answer. What the sender saw and what the client says must agree, and
/// half an answer is never a whole one.
mod broken_answers {
    use super::*;

    /// Sends this to each request and closes, at once or after a moment.
    async fn breaking(answer: &'static str) -> App {
        let requests = Arc::new(AtomicUsize::new(0));
        App::raw(move |mut wire: Wire, _| {
            let number = requests.fetch_add(1, Relaxed);
            async move {
                wire.message().await;
                wire.send(answer).await;
                for _ in 0..number % 8 {
                    tokio::task::yield_now().await;
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn are_reported_with_the_status_that_the_sender_saw() {
        let world = World::start().await;
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
        ] {
            let app = breaking(answer).await;
            let mut tunnel = world.tunnel(&app).await;
            let host = world.host(tunnel.name());
            for _ in 0..40 {
                let mut wire = world.raw(&host).await;
                wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
                let head = wire.head().await.unwrap_or_default();
                let seen = head.split(' ').nth(1).and_then(|status| status.parse().ok());
                let exchange = within("the exchange's record", tunnel.exchange()).await.unwrap();
                assert_eq!(exchange.error.as_deref(), Some("upstream-invalid"), "{answer:?}: {head}");
                assert_eq!(exchange.status, seen, "{answer:?}: {head}");
            }
        }
    }
}

/// A service that is not what it was taken for: who looks at its client's terminal is told what it is.
mod mistaken_services {
    use super::*;

    #[tokio::test]
    async fn are_told_by_what_they_say() {
        let place = Place::new().await;
        let plain = App::serve(|_| async { ok("plain") }).await;
        let secure = App::raw(|mut wire: Wire, _| async move {
            wire.head().await;
            // What a server for TLS says to anything else.
            wire.send(b"\x15\x03\x01\x00\x02\x02\x46").await;
        })
        .await;
        let verbose = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            let lines: String = (0..150).map(|number| format!("X-{number}: 1\r\n")).collect();
            wire.send(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n")).await;
        })
        .await;
        let short = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-").await;
        })
        .await;
        for (scheme, app, said) in [
            ("https", &plain, "a service that speaks HTTP is named as http://"),
            ("http", &secure, "a service that speaks HTTPS is named as https://"),
            ("http", &verbose, "or has more than 100 lines"),
            ("http", &short, "closed the connection before its answer was complete"),
        ] {
            let upstream = format!("{scheme}://{}", app.addr());
            let words = place.with_way(&["http", &upstream, "--subdomain", "hooks", "--takeover", "--output", "json"]);
            let mut client = RelayClient::of(place.spawn(words).await).await;
            let answer = place.send("hooks", Request::get("/").body(full("")).unwrap()).await;
            assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")), "{upstream}");
            client.process.error_line(said).await;
            client.process.terminate().await;
        }
    }
}

/// More exchanges at once than a relay opens by default. Its owner may have allowed more.
mod many_exchanges {
    use super::*;

    /// The most that a client takes.
    const MOST: usize = 4096;

    #[tokio::test]
    async fn are_taken_and_those_beyond_are_refused_one_by_one() {
        let world = World::with(|config| {
            config.limits.session_streams = 8000;
            config.limits.http2_streams = 8000;
            config.limits.deadline = Duration::from_secs(120);
        })
        .await;
        let release = Arc::new(tokio::sync::Semaphore::new(0));
        let wait = release.clone();
        // One connection carries all, and a descriptor each would be too many.
        let app = App::h2c(move |request| {
            let wait = wait.clone();
            async move {
                if request.uri().path() != "/now" {
                    wait.acquire().await.unwrap().forget();
                }
                ok("done")
            }
        })
        .await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let mut tunnel = world.tunnel_with(options).await;
        let url = tunnel.url().to_owned();
        assert_eq!(world.get(&format!("{url}/now")).await.text(), "done");
        assert_eq!(tunnel.exchange().await.unwrap().status, Some(200));

        const BEYOND: usize = 50;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let mut answers = JoinSet::new();
        for _ in 0..MOST + BEYOND {
            let answer = http.begin(Request::get(&url).body(relay_tests::body::empty()).unwrap());
            answers.spawn(async move { answer.await.unwrap() });
        }
        for _ in 0..BEYOND {
            let answer = within("a refusal", answers.join_next()).await.unwrap().unwrap();
            assert_eq!((answer.code(), answer.error()), (429, Some("too-many-requests")));
            let exchange = within("its record", tunnel.exchange()).await.unwrap();
            assert_eq!((exchange.status, exchange.error.as_deref()), (Some(429), Some("too-many-requests")));
        }
        release.add_permits(MOST);
        while let Some(answer) = within("an answer", answers.join_next()).await {
            assert_eq!(answer.unwrap().text(), "done");
        }
    }
}
