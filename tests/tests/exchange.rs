//! What a sender and a local service notice of one exchange.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use relay_client::{TunnelOptions, UpstreamProtocol};
use relay_tests::body::{empty, full, noise, pipe};
use relay_tests::{App, Body, Wire, World, within};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

mod bodies {
    use super::*;

    #[tokio::test]
    async fn a_post_arrives_and_its_answer_comes_back() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.post(&format!("{}/hooks?a=1", tunnel.url()), r#"{"id":"evt_1"}"#).await;
        assert_eq!((answer.code(), answer.text()), (200, "ok"));
        let seen = app.only();
        assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hooks?a=1"));
        assert_eq!(seen.body, r#"{"id":"evt_1"}"#);
        assert_eq!(seen.header("content-length"), "14");
        world.shutdown().await;
    }

    /// Signatures are made over these bytes.
    #[tokio::test]
    async fn are_byte_exact_in_both_directions_whatever_their_framing() {
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/echo", tunnel.url());
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let mut http = match version {
                Version::HTTP_2 => world.http2(&world.host(tunnel.name())).await,
                _ => world.http1(&world.host(tunnel.name())).await,
            };
            for size in [0, 1, 16 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 5 << 20] {
                let sent = noise(size);
                let known = Request::post(&url).body(full(sent.clone())).unwrap();
                let answer = http.answer(known).await;
                assert_eq!((answer.code(), answer.version), (200, version));
                assert!(answer.body == sent, "{version:?}: {size} bytes of known length");

                let (feed, body) = pipe();
                let pieces = sent.clone();
                let feeding = tokio::spawn(async move {
                    for at in (0..pieces.len()).step_by(100_000) {
                        assert!(feed.send(pieces.slice(at..pieces.len().min(at + 100_000))).await);
                    }
                });
                let answer = http.answer(Request::post(&url).body(body).unwrap()).await;
                feeding.await.unwrap();
                assert_eq!(answer.code(), 200);
                assert!(answer.body == sent, "{version:?}: {size} bytes in pieces");
            }
        }
    }

    #[tokio::test]
    async fn of_known_length_are_told_as_such_to_the_service_and_the_sender() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(request) = wire.message().await {
                assert_eq!(request.values("transfer-encoding"), [""; 0], "{}", request.head);
                assert_eq!(request.values("content-length"), [request.body.len().to_string()]);
                wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour").await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        for size in [1, 100_000] {
            let answer = world.post(&format!("{}/", tunnel.url()), noise(size)).await;
            assert_eq!((answer.header("content-length"), answer.text()), ("4", "four"));
        }
    }

    /// A GET that grows a body or a length is refused by some services.
    #[tokio::test]
    async fn are_not_invented() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(request) = wire.message().await {
                assert_eq!(request.values("transfer-encoding"), [""; 0], "{}", request.head);
                let length = request.values("content-length").join(",");
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{length}", length.len())).await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/", tunnel.url());
        assert_eq!(world.get(&url).await.text(), "");
        let mut wire = world.raw(&world.host(tunnel.name())).await;
        let host = world.host(tunnel.name());
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")).await;
        assert_eq!(wire.message().await.unwrap().body, b"0", "an empty POST that says so still does");
        let mut two = world.http2(&world.host(tunnel.name())).await;
        assert_eq!(two.answer(Request::get(&url).body(empty()).unwrap()).await.text(), "");
        let delete = Request::delete(&url).body(empty()).unwrap();
        assert_eq!(two.answer(delete).await.text(), "");
    }

    #[tokio::test]
    async fn that_end_with_the_connection_arrive_whole() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            wire.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end").await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        assert_eq!(world.get(&format!("{}/", tunnel.url())).await.text(), "until the end");
    }

    /// The framing that overrides (RFC 9112, section 6.3) is what the answer was read by, and the length is none of it.
    #[tokio::test]
    async fn that_are_chunked_have_no_other_length() {
        let world = World::start().await;
        for framing in
            ["Content-Length: 1\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 12"]
        {
            let app = App::raw(move |mut wire: Wire, _| async move {
                while wire.message().await.is_some() {
                    wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n2\r\nok\r\n0\r\n\r\n")).await;
                }
            })
            .await;
            let tunnel = world.tunnel(&app).await;
            let (url, host) = (format!("{}/", tunnel.url()), world.host(tunnel.name()));
            for mut http in [world.http1(&host).await, world.http2(&host).await] {
                let answer = http.answer(Request::get(&url).body(empty()).unwrap()).await;
                assert_eq!((answer.code(), answer.text()), (200, "ok"), "{framing}");
            }
        }
    }

    /// A sender must never take half an answer for a whole one.
    #[tokio::test]
    async fn that_the_service_breaks_off_end_in_an_error() {
        let world = World::start().await;
        let answered = std::sync::Arc::new(tokio::sync::Notify::new());
        let head_is_out = answered.clone();
        let app = App::raw(move |mut wire: Wire, number| {
            let head_is_out = head_is_out.clone();
            async move {
                wire.message().await;
                let framing = if number % 2 == 0 { "Content-Length: 10" } else { "Transfer-Encoding: chunked" };
                let part = if number % 2 == 0 { "half" } else { "4\r\nhalf\r\n" };
                wire.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{part}")).await;
                head_is_out.notified().await;
            }
        })
        .await;
        let mut tunnel = world.tunnel(&app).await;
        for version in [1, 1, 2, 2] {
            let mut http = match version {
                1 => world.http1(&world.host(tunnel.name())).await,
                _ => world.http2(&world.host(tunnel.name())).await,
            };
            let request = Request::get(format!("{}/", tunnel.url())).body(empty()).unwrap();
            let response = within("a head", http.request(request)).await.unwrap();
            assert_eq!(response.status(), 200);
            answered.notify_one();
            within("the end", response.into_body().collect()).await.expect_err("half a body is no body");
            let exchange = tunnel.exchange().await.unwrap();
            assert_eq!((exchange.status, exchange.error.as_deref()), (Some(200), Some("upstream-invalid")));
        }
    }

    /// A request that the sender breaks off must not look whole to the service.
    #[tokio::test]
    async fn that_the_sender_breaks_off_break_off_at_the_service() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        for chunked in [false, true] {
            let mut wire = world.raw(&world.host(tunnel.name())).await;
            let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 10" };
            let part = if chunked { "4\r\nhalf\r\n" } else { "half" };
            let host = world.host(tunnel.name());
            wire.send(format!("POST /{chunked} HTTP/1.1\r\nHost: {host}\r\n{framing}\r\n\r\n{part}")).await;
            app.reached(1 + usize::from(chunked)).await;
            drop(wire);
        }
        assert_eq!(world.get(&format!("{}/after", tunnel.url())).await.text(), "ok");
        assert_eq!(app.only().target, "/after", "the broken ones were not taken for whole");
    }
}

mod heads {
    use super::*;

    /// What the service reads and what the sender reads, line by line.
    #[tokio::test]
    async fn keep_order_repeats_and_bytes() {
        let world = World::start().await;
        let (heard, mut hears) = tokio::sync::mpsc::channel(1);
        let app = App::raw(move |mut wire: Wire, _| {
            let heard = heard.clone();
            async move {
                heard.send(wire.message().await.unwrap()).await.unwrap();
                wire.send(
                    b"HTTP/1.1 299 Odd\r\nRelay-Error: mine\r\nZ-Last: 1\r\nSet-Cookie: a=1\r\nA-First: caf\xe9\r\n",
                )
                .await;
                wire.send(b"Set-Cookie: b=2; Path=/\r\nX-Empty:\r\nContent-Length: 0\r\n\r\n").await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut wire = world.raw(&world.host(tunnel.name())).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n", world.host(tunnel.name()))).await;
        wire.send(b"Z-One: 1\r\nStripe-Signature: t=1,v1=abc\r\nA-Two: \xff\xfe\r\nz-ONE: 2, 3\r\n").await;
        wire.send(b"X-Empty:\r\nCookie: a=1; b=\"2\"\r\nAuthorization: Basic Zm9v\r\n\r\n").await;
        let answer = wire.message().await.unwrap();
        let request = hears.recv().await.unwrap();

        let of_sender: Vec<&str> = request.head.split("\r\n").skip(2).take(7).collect();
        let expected = [
            "z-one: 1",
            "z-one: 2, 3",
            "stripe-signature: t=1,v1=abc",
            "a-two: \u{ff}\u{fe}",
            "x-empty: ",
            "cookie: a=1; b=\"2\"",
            "authorization: Basic Zm9v",
        ];
        assert_eq!(of_sender, expected);
        assert!(request.head.split("\r\n").nth(1).unwrap().starts_with("host: "), "Host comes first: {}", request.head);

        assert_eq!(answer.status(), 299);
        let of_service: Vec<&str> = answer.head.split("\r\n").skip(1).take(6).collect();
        let expected = [
            "z-last: 1",
            "set-cookie: a=1",
            "set-cookie: b=2; Path=/",
            "a-first: caf\u{e9}",
            "x-empty: ",
            "content-length: 0",
        ];
        assert_eq!(of_service, expected);
    }

    #[tokio::test]
    async fn carry_the_target_untouched() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(request) = wire.message().await {
                let target = request.first_line().split(' ').nth(1).unwrap().to_owned();
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len())).await;
            }
        })
        .await;
        let mut tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let targets = [
            "//a/../b?x=%2F&y=%00",
            "/?",
            "/a?b=c?d=e&&=",
            "/%2e%2e/%2E%2E/etc/passwd",
            "/../../etc",
            "/;v=1/a;b=c",
            "/a//b///",
            "//evil.example/x",
            "/@evil.example/",
            "/http://evil.example/",
            "/%zz%",
            "/a+b%20c",
            "/~!$&'()*,=:@[]",
            "/?q={a:[1]}|\\^`",
        ];
        let mut wire = world.raw(&host).await;
        for target in targets {
            wire.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let answer = wire.message().await.unwrap_or_else(|| panic!("{target}: no answer"));
            assert_eq!((answer.status(), String::from_utf8(answer.body).unwrap().as_str()), (200, target));
            assert_eq!(tunnel.exchange().await.unwrap().path, target, "as it is reported");
        }
        let absolute = format!("GET https://{host}/a?b HTTP/1.1\r\nHost: {host}\r\n\r\n");
        wire.send(absolute).await;
        assert_eq!(wire.message().await.unwrap().body, b"/a?b", "the absolute form means the same");
    }

    /// What cannot be carried as it is must not arrive as something else.
    #[tokio::test]
    async fn with_a_target_that_is_none_are_refused() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for target in ["/a b", "/?q=\"a\"", "/?<>", "/\u{7f}", "a", "*", ""] {
            let mut wire = world.raw(&host).await;
            wire.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(wire.message().await.unwrap().status(), 400, "{target}");
        }
        assert_eq!(app.requests(), 0);
    }

    #[tokio::test]
    async fn reach_the_service_with_any_method() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        for method in ["PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "M-SEARCH"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let request = Request::builder().method(method.clone()).uri(format!("{}/", tunnel.url()));
            assert_eq!(world.send(request.body(empty()).unwrap()).await.code(), 200);
            assert_eq!(app.last().method, method);
        }
    }

    /// Whoever wants no answer does not wait for one.
    #[tokio::test]
    async fn reach_the_service_whose_sender_hangs_up_at_once() {
        let world = World::start().await;
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let app = App::serve(move |request| {
            let told = told.clone();
            async move {
                let body = request.into_body().collect().await;
                told.send(body.ok().map(|body| body.to_bytes().len())).await.unwrap();
                relay_tests::app::ok("nobody reads this")
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let body = "x".repeat(50_000);
        for _ in 0..20 {
            let mut wire = world.raw(&host).await;
            wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len())).await;
            wire.send(&body).await;
            drop(wire);
            assert_eq!(within("the request", heard.recv()).await, Some(Some(body.len())));
        }
    }

    /// Somebody has typed http:// in front of a port for HTTPS.
    #[tokio::test]
    async fn without_tls_are_told_that_there_is_to_be_some() {
        let world = World::start().await;
        let mut wire = Wire::new(tokio::net::TcpStream::connect(world.https()).await.unwrap());
        wire.send("POST / HTTP/1.1\r\nHost: hooks.relay.test\r\nContent-Length: 2\r\n\r\n{}").await;
        let answer = String::from_utf8(wire.rest().await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https:// instead of http://"), "{answer}");
    }

    /// Laravel's own, for one. What it is called is no matter, and a name that says nothing would be shown.
    #[tokio::test]
    async fn pass_on_a_status_that_has_no_name() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            wire.send("HTTP/1.1 419 Page Expired\r\nContent-Length: 0\r\n\r\n").await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(wire.message().await.unwrap().first_line(), "HTTP/1.1 419 ");
    }

    #[tokio::test]
    async fn alone_answer_head_204_and_304() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(request) = wire.message().await {
                wire.send(match request.first_line().split(' ').nth(1).unwrap() {
                    "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: \"a\"\r\n\r\n",
                    "/204" => "HTTP/1.1 204 No Content\r\nETag: \"b\"\r\n\r\n",
                    "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"c\"\r\n\r\n",
                    _ => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
                })
                .await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        // All on one connection: a body that is there or not there against the rules shows in the next answer.
        for (method, path, status) in
            [("HEAD", "/head", 200), ("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/any", 200)]
        {
            wire.send(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            let head = wire.head().await.unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            assert_eq!(head.contains("content-length: 1234"), path == "/head", "{head}");
        }
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(wire.message().await.unwrap().body, b"body");

        let mut two = world.http2(&host).await;
        let head = Request::head(format!("{}/head", tunnel.url())).body(empty()).unwrap();
        let answer = two.answer(head).await;
        assert_eq!((answer.code(), answer.header("content-length"), answer.body.len()), (200, "1234", 0));
    }

    #[tokio::test]
    async fn ask_for_ranges_and_get_them() {
        let world = World::start().await;
        let app = App::serve(|request| async move {
            assert_eq!(request.headers()["range"], "bytes=2-4");
            let mut response = Response::new(full("cde"));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert("content-range", "bytes 2-4/10".parse().unwrap());
            response
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let request = Request::get(format!("{}/", tunnel.url())).header("Range", "bytes=2-4").body(empty()).unwrap();
        let answer = world.send(request).await;
        assert_eq!((answer.code(), answer.text(), answer.header("content-range")), (206, "cde", "bytes 2-4/10"));
    }

    /// Bodies are not decoded or encoded on the way, whatever the sender accepts.
    #[tokio::test]
    async fn leave_content_encoding_alone() {
        let world = World::start().await;
        let app = App::serve(|_| async {
            let mut response = Response::new(full(&b"\x1f\x8bnot really gzip"[..]));
            response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
            response
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.header("content-encoding"), &answer.body[..2]), ("gzip", &b"\x1f\x8b"[..]));
    }
}

mod trailers {
    use super::*;

    fn trailers() -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-sum-bin", "AAEC".parse().unwrap());
        trailers
    }

    /// As gRPC calls are: HTTP/2 on both sides, trailers both ways.
    #[tokio::test]
    async fn pass_between_http2_and_an_h2c_service() {
        let world = World::start().await;
        let app = App::h2c(|request| async move {
            assert_eq!(request.version(), Version::HTTP_2);
            assert_eq!(request.headers()["te"], "trailers");
            let collected = request.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers(), Some(&trailers()));
            let (feed, body) = pipe();
            tokio::spawn(async move {
                feed.send(collected.to_bytes()).await;
                feed.trailers(trailers()).await;
            });
            Response::new(body)
        })
        .await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let (feed, body) = pipe();
        let request = Request::post(format!("{}/svc/Call", tunnel.url())).header("te", "trailers").body(body).unwrap();
        let answer = http.begin(request);
        feed.send("message").await;
        feed.trailers(trailers()).await;
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!((answer.text(), &answer.trailers), ("message", &Some(trailers())));
    }

    /// A stream that was opened and closed without a message: trailers follow the head at once.
    #[tokio::test]
    async fn pass_behind_an_empty_body() {
        let world = World::start().await;
        let app = App::h2c(|request| async move {
            let collected = request.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers(), Some(&trailers()));
            relay_tests::app::ok(collected.to_bytes())
        })
        .await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        for early in [true, false] {
            let (feed, body) = pipe();
            // A body is polled with its head: what is in it by then travels with it.
            let feeding = tokio::spawn(async move {
                if !early {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                feed.trailers(trailers()).await;
            });
            let request = Request::post(format!("{}/svc/Call", tunnel.url())).header("te", "trailers");
            let answer = http.answer(request.body(body).unwrap()).await;
            assert_eq!((answer.code(), answer.text()), (200, ""), "with the head: {early}");
            feeding.await.unwrap();
        }

        let app = App::raw(|mut wire: Wire, _| async move {
            let request = wire.message().await.unwrap();
            let back = format!("{}{:?}", request.trailers.trim(), request.body);
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{back}", back.len())).await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        assert_eq!(with_a_sum(&world, &tunnel, "").await.body, b"x-sum: 42[]");
    }

    /// The answer to a POST over HTTP/1.1 of these chunks, with a trailer behind them.
    async fn with_a_sum(world: &World, tunnel: &relay_client::Tunnel, chunks: &str) -> relay_tests::wire::Message {
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nTE: trailers\r\nTrailer: X-Sum\r\n")).await;
        wire.send(format!("Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\nX-Sum: 42\r\n\r\n")).await;
        wire.message().await.expect("an answer")
    }

    #[tokio::test]
    async fn pass_over_http1_in_both_directions() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            let request = wire.message().await.unwrap();
            assert_eq!(request.values("trailer"), ["X-Sum"], "{}", request.head);
            let trailers = request.trailers;
            wire.send("HTTP/1.1 200 OK\r\nTrailer: X-Back\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            wire.send(format!("3\r\nabc\r\n0\r\nX-Back: {}\r\n\r\n", trailers.trim())).await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let answer = with_a_sum(&world, &tunnel, "2\r\nhi\r\n").await;
        assert_eq!((answer.status(), &answer.body[..]), (200, &b"abc"[..]));
        assert_eq!(answer.trailers, "x-back: x-sum: 42\r\n");
    }

    /// A gRPC error without any message: the status stands in the only head.
    #[tokio::test]
    async fn are_not_needed_where_an_answer_has_no_body() {
        let world = World::start().await;
        let app = App::h2c(|_| async {
            let mut response = Response::new(empty());
            response.headers_mut().insert("grpc-status", "5".parse().unwrap());
            response
        })
        .await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let answer = http.answer(Request::post(format!("{}/", tunnel.url())).body(full("x")).unwrap()).await;
        assert_eq!((answer.header("grpc-status"), answer.body.len(), &answer.trailers), ("5", 0, &None));
    }
}

mod expect_continue {
    use super::*;

    fn post(host: &str, path: &str, length: usize) -> String {
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    }

    #[tokio::test]
    async fn waits_for_the_service_to_ask() {
        let world = World::start().await;
        let (told, mut tells) = tokio::sync::mpsc::channel(1);
        let app = App::raw(move |mut wire: Wire, _| {
            let told = told.clone();
            async move {
                let head = wire.head().await.unwrap();
                told.send(head).await.unwrap();
                wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                let body = wire.exactly(5).await;
                wire.send([&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"[..], &body].concat()).await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(post(&host, "/", 5)).await;
        let head = within("the head alone", tells.recv()).await.unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        assert_eq!(wire.head().await.as_deref(), Some("HTTP/1.1 100 Continue"));
        wire.send("hello").await;
        assert_eq!(wire.message().await.unwrap().body, b"hello");
    }

    /// The body that was not asked for must not be taken for a request.
    #[tokio::test]
    async fn passes_an_early_refusal_on_and_keeps_requests_apart() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(head) = wire.head().await {
                let target = head.split(' ').nth(1).unwrap().to_owned();
                match target.as_str() {
                    "/417" => wire.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await,
                    "/413" => {
                        wire.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
                        return;
                    }
                    other => {
                        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{other}", other.len());
                        wire.send(answer).await;
                    }
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n");
        for (path, status, sends_the_body) in
            [("/417", 417, true), ("/417", 417, false), ("/413", 413, true), ("/413", 413, false)]
        {
            let mut wire = world.raw(&host).await;
            wire.send(post(&host, path, smuggled.len())).await;
            assert_eq!(wire.message().await.unwrap().status(), status, "without a 100 before it");
            // Both are allowed after a final status (RFC 9110, section 10.1.1).
            let body = if sends_the_body { smuggled.as_str() } else { "" };
            let next = format!("{body}GET /next HTTP/1.1\r\nHost: {host}\r\n\r\n");
            let sent = wire.try_send(next).await;
            let answer = if sent.is_ok() { wire.message().await } else { None };
            // The relay may close the connection instead; it may not answer another request than was sent.
            if let Some(answer) = answer {
                assert_eq!((answer.status(), answer.body), (200, b"/next".to_vec()), "after {path}");
            }
            assert_eq!(world.get(&format!("{}/other", tunnel.url())).await.text(), "/other");
        }
    }

    /// A sender that got its answer instead of a 100 may send its next request where the body would be, which is then no
    /// part of the body, and must not wait for nothing.
    #[tokio::test]
    async fn ends_the_connection_where_nobody_asked_for_the_body() {
        let world = World::start().await;
        let (told, mut tells) = tokio::sync::mpsc::channel(4);
        let app = App::raw(move |mut wire: Wire, _| {
            let told = told.clone();
            async move {
                wire.head().await.unwrap();
                wire.send("HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno").await;
                told.send(wire.some().await).await.unwrap();
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        for (name, status) in [(tunnel.name(), 401), ("nobody", 404)] {
            let host = world.host(name);
            let mut wire = world.raw(&host).await;
            wire.send(post(&host, "/", 100_000)).await;
            let answer = wire.message().await.unwrap();
            assert_eq!((answer.status(), answer.values("connection")), (status, vec!["close"]));
            assert!(wire.rest().await.is_ok_and(|rest| rest.is_empty()), "{name}");
        }
        assert_eq!(within("the end at the service", tells.recv()).await.unwrap(), b"", "a body that nobody asked for");
    }

    #[tokio::test]
    async fn gives_up_on_a_service_that_never_asks() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            let request = wire.message().await.unwrap();
            assert_eq!(request.body, b"hello");
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(post(&host, "/", 5)).await;
        assert_eq!(wire.head().await.as_deref(), Some("HTTP/1.1 100 Continue"));
        wire.send("hello").await;
        assert_eq!(wire.message().await.unwrap().status(), 200);
    }

    /// Many senders do not wait at all, or send the body after a while.
    #[tokio::test]
    async fn does_not_need_a_sender_that_waits() {
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        for size in [5, 300_000] {
            let body = noise(size);
            wire.send([post(&host, "/", size).as_bytes(), &body].concat()).await;
            let mut answer = wire.message().await.unwrap();
            if answer.status() == 100 {
                answer = wire.message().await.unwrap();
            }
            assert!(answer.status() == 200 && answer.body == body, "{size}: {}", answer.head);
        }
    }

    /// `curl` asks before each body above 1 MiB.
    #[tokio::test]
    async fn works_with_curl() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("body");
        std::fs::write(&file, noise(3 << 20)).unwrap();
        let host = world.host(tunnel.name());
        let connect = format!("{host}:{}", world.https());
        for version in ["--http1.1", "--http2"] {
            let mut curl = tokio::process::Command::new(relay_tests::tools::program("curl"));
            curl.args(["--silent", "--show-error", version, "--cacert"]).arg(world.ca_file());
            curl.args(["--noproxy", "*", "--connect-to", &connect, "--header", "Expect: 100-continue"]);
            curl.arg("--data-binary").arg(format!("@{}", file.display())).arg(tunnel.url());
            assert_eq!(relay_tests::tools::output(&mut curl).await, "ok");
            assert!(app.last().body == noise(3 << 20));
        }
    }
}

mod streaming {
    use super::*;

    /// Each piece is answered before the next is sent, so nothing can be waiting for more.
    #[tokio::test]
    async fn goes_both_ways_at_once() {
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for version in [1, 2] {
            let mut http = if version == 1 { world.http1(&host).await } else { world.http2(&host).await };
            let (feed, body) = pipe();
            let response = http.request(Request::post(format!("{}/", tunnel.url())).body(body).unwrap());
            let response = tokio::spawn(response);
            feed.send("0").await;
            let mut back = within("a head before the body ends", response).await.unwrap().unwrap().into_body();
            for n in 0..50 {
                let piece = within("a piece", back.frame()).await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(piece, n.to_string());
                feed.send((n + 1).to_string()).await;
            }
            drop(feed);
            let rest = within("the end", back.collect()).await.unwrap().to_bytes();
            assert_eq!(rest, "50");
        }
    }

    #[tokio::test]
    async fn passes_each_server_sent_event_on_at_once() {
        let world = World::start().await;
        let (feed, body) = pipe();
        let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
        let app = App::serve(move |_| {
            let mut response = Response::new(body.lock().unwrap().take().unwrap());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            async { response }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let request = Request::get(format!("{}/", tunnel.url())).body(empty()).unwrap();
        let response = within("a head without any event", http.request(request)).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut events = response.into_body();
        for n in 0..20 {
            let event = format!("id: {n}\ndata: x\n\n");
            feed.send(event.clone()).await;
            let got = within("an event", events.frame()).await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(got, event);
        }
        drop(events);
        drop(http);
        within("the service to notice that nobody listens", feed.closed()).await;
    }

    /// A large upload that is refused early, as with 413: the answer is not held back, and not lost.
    #[tokio::test]
    async fn gives_an_early_answer_while_the_upload_goes_on() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large").await;
            // Reading on, as a polite service does.
            while !wire.some().await.is_empty() {}
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for version in [1, 2] {
            let mut http = if version == 1 { world.http1(&host).await } else { world.http2(&host).await };
            let (feed, body) = pipe();
            let response = http.request(Request::post(format!("{}/", tunnel.url())).body(body).unwrap());
            let response = tokio::spawn(response);
            feed.send(noise(100_000)).await;
            let response =
                within(format!("an answer before the upload ends: {version}"), response).await.unwrap().unwrap();
            assert_eq!(response.status(), 413, "{version}");
            let text = within("its body", response.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(text, "too large");
            drop(feed);
            assert_eq!(world.get(&format!("{}/", tunnel.url())).await.code(), 413, "the tunnel goes on");
        }
    }

    /// A service that is simpler: it answers, and closes with the upload unread, which resets its connection. What it
    /// has said is the answer, wherever the upload was at that moment.
    #[tokio::test]
    async fn gives_the_answer_of_a_service_that_reads_no_further() {
        let world = World::start().await;
        let app = App::raw(too_large).await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for round in 0..40 {
            let mut http = if round % 2 == 0 { world.http1(&host).await } else { world.http2(&host).await };
            let (feed, body) = pipe();
            let response = http.answer(Request::post(format!("{}/", tunnel.url())).body(body).unwrap());
            let uploading = async {
                let piece = noise(32 * 1024);
                while feed.send(piece.clone()).await {}
            };
            let answer = within(format!("an answer, round {round}"), async {
                tokio::select! {
                    answer = response => answer,
                    () = uploading => panic!("the upload ended before its answer, round {round}"),
                }
            })
            .await;
            assert_eq!((answer.code(), answer.text()), (413, "too large"), "round {round}");
        }
    }

    /// A sender that is at it may look at an answer only when it has sent what it had, and may be too late for that where
    /// the answer cuts it off.
    #[tokio::test]
    async fn lets_a_sender_go_on_for_a_moment_behind_its_answer() {
        let world = World::start().await;
        let app = App::raw(too_large).await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for version in [1, 2] {
            let mut http = if version == 1 { world.http1(&host).await } else { world.http2(&host).await };
            let (feed, body) = pipe();
            let answer = http.begin(Request::post(format!("{}/", tunnel.url())).body(body).unwrap());
            assert!(feed.send("begin").await);
            assert_eq!(within("an answer", answer).await.unwrap().text(), "too large");
            for _ in 0..64 {
                assert!(feed.send(noise(32 * 1024)).await, "HTTP/{version}");
            }
            drop(feed);
            let next = Request::post(format!("{}/", tunnel.url())).body(empty()).unwrap();
            http.ready().await;
            assert_eq!(within("the next answer", http.answer(next)).await.code(), 413, "HTTP/{version}");
        }
    }

    /// What is left of an upload behind its answer is no part of the next request on the connection: neither its time to
    /// answer nor the one for its head count from there.
    #[tokio::test]
    async fn times_the_next_request_from_its_own_first_byte() {
        let world = World::start().await;
        let app = App::recording().await;
        let timeout = Some(std::time::Duration::from_secs(2));
        let tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        let nobody = world.host("nobody");
        wire.send(format!("POST / HTTP/1.1\r\nHost: {nobody}\r\nContent-Length: 100000\r\n\r\n")).await;
        wire.send(noise(1000)).await;
        assert_eq!(wire.message().await.unwrap().status(), 404);
        wire.send(noise(99_000)).await;
        // Longer than the tunnel's time to answer: that is what would be gone.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.head);
        app.only();
    }

    /// curl 7.88 does not look at an answer whose stream is reset while it sends (`RST_STREAM`, RFC 9113, section 8.1).
    #[tokio::test]
    async fn gives_curl_an_early_answer() {
        let world = World::start().await;
        let app = App::raw(too_large).await;
        let tunnel = world.tunnel(&app).await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("body");
        std::fs::write(&file, noise(16 << 20)).unwrap();
        let (tunnel, nobody) = (world.host(tunnel.name()), world.host("nobody"));
        let (_, domain) = nobody.split_once('.').unwrap();
        for (host, says) in [(&*tunnel, "413 too large"), (&*nobody, "404 tunnel-not-found"), (domain, "404 not-found")]
        {
            let connect = format!("{host}:{}", world.https());
            for version in ["--http1.1", "--http2", "--http1.1", "--http2"] {
                let mut curl = tokio::process::Command::new(relay_tests::tools::program("curl"));
                curl.args(["--silent", "--show-error", version, "--cacert"]).arg(world.ca_file());
                curl.args(["--noproxy", "*", "--connect-to", &connect, "--header", "Expect:"]);
                curl.args(["--output", "-", "--write-out", " %{http_code} %header{relay-error}"]);
                curl.arg("--data-binary").arg(format!("@{}", file.display())).arg(format!("https://{host}/"));
                let said = relay_tests::tools::output(&mut curl).await;
                assert!(says.split(' ').all(|word| said.contains(word)), "{version} {host}: {said}");
            }
        }
    }

    /// Who looks at the answer only at the end, and takes its time, gets it too.
    #[tokio::test]
    async fn gives_a_slow_sender_an_early_answer() {
        let world = World::start().await;
        let host = world.host("nobody");
        let mut wire = world.raw(&host).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 600000\r\n\r\n")).await;
        for _ in 0..6 {
            wire.try_send(noise(100_000)).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        }
        assert_eq!(wire.message().await.unwrap().status(), 404);
    }

    /// Answers at once, and closes.
    async fn too_large(mut wire: Wire, _: usize) {
        wire.head().await.unwrap();
        wire.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large").await;
    }

    /// A reader that stops reading stops its service too, and nobody else. What lies between them is bounded.
    #[tokio::test]
    async fn stalls_with_its_reader_and_with_nobody_else() {
        const TOTAL: usize = 64 << 20;
        let world = World::start().await;
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = sent.clone();
        let app = App::serve(move |request| {
            let count = count.clone();
            async move {
                if request.uri().path() != "/large" {
                    return relay_tests::app::ok("small");
                }
                let (feed, body) = pipe();
                tokio::spawn(async move {
                    let piece = noise(64 * 1024);
                    for _ in 0..TOTAL / piece.len() {
                        if !feed.send(piece.clone()).await {
                            return;
                        }
                        count.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
                    }
                });
                Response::new(body)
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let request = Request::get(format!("{}/large", tunnel.url())).body(empty()).unwrap();
        let response = within("a head", http.request(request)).await.unwrap();
        let so_far = || sent.load(std::sync::atomic::Ordering::Relaxed);
        // Others are served meanwhile; the large answer has come to rest when it stands still beside a hundred.
        let mut others = world.http1(&world.host(tunnel.name())).await;
        let (mut before, mut still) = (0, 0);
        while still < 100 {
            let small = Request::get(format!("{}/small", tunnel.url())).body(empty()).unwrap();
            assert_eq!(others.answer(small).await.text(), "small");
            let now = so_far();
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
        assert!(before < 32 << 20, "{before} bytes taken from the service for a reader that reads nothing");
        let mut body = response.into_body();
        let (mut read, piece) = (0, noise(64 * 1024));
        while let Some(frame) = within("the rest", body.frame()).await {
            let mut bytes = frame.unwrap().into_data().unwrap();
            while !bytes.is_empty() {
                let expected = &piece[read % piece.len()..];
                let some = bytes.split_to(bytes.len().min(expected.len()));
                assert!(some == expected[..some.len()], "at {read}");
                read += some.len();
            }
        }
        assert_eq!(read, TOTAL);
    }

    /// The other direction: a service that does not read stops its sender.
    #[tokio::test]
    async fn stalls_with_a_service_that_does_not_read() {
        let world = World::start().await;
        let read_on = std::sync::Arc::new(tokio::sync::Notify::new());
        let wait = read_on.clone();
        let app = App::raw(move |mut wire: Wire, _| {
            let wait = wait.clone();
            async move {
                if wire.head().await.unwrap().starts_with("GET") {
                    wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsmall").await;
                    return;
                }
                wait.notified().await;
                let mut read = 0;
                let mut last = Vec::new();
                while !last.ends_with(b"\r\n0\r\n\r\n") {
                    let some = wire.some().await;
                    assert!(!some.is_empty());
                    read += some.len();
                    last.extend(some);
                    last.drain(..last.len().saturating_sub(8));
                }
                let text = format!("{}", read > 64 << 20);
                wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())).await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let (feed, body) = pipe();
        let answer = http.begin(Request::post(format!("{}/", tunnel.url())).body(body).unwrap());
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = sent.clone();
        let feeding = tokio::spawn(async move {
            let piece = noise(64 * 1024);
            for _ in 0..1025 {
                assert!(feed.send(piece.clone()).await);
                count.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
            }
        });
        let (mut before, mut still) = (0, 0);
        while still < 50 {
            assert_eq!(world.get(&format!("{}/", tunnel.url())).await.text(), "small");
            let now = sent.load(std::sync::atomic::Ordering::Relaxed);
            still = if now == before { still + 1 } else { 0 };
            before = now;
        }
        assert!(before < 32 << 20, "{before} bytes taken from the sender for a service that reads nothing");
        read_on.notify_one();
        within("the upload", feeding).await.unwrap();
        assert_eq!(within("an answer", answer).await.unwrap().text(), "true");
    }

    /// Who goes away takes his request with him.
    #[tokio::test]
    async fn ends_at_the_service_when_the_sender_goes() {
        let world = World::start().await;
        let (gone, mut is_gone) = tokio::sync::mpsc::channel(1);
        let app = App::raw(move |mut wire: Wire, _| {
            let gone = gone.clone();
            async move {
                wire.head().await.unwrap();
                let _ = wire.rest().await;
                gone.send(()).await.unwrap();
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        app_has(&app, 1).await;
        drop(wire);
        within("the service's connection to end", is_gone.recv()).await.unwrap();

        let mut two = world.http2(&host).await;
        let request = tokio::spawn(two.request(Request::get(format!("{}/", tunnel.url())).body(empty()).unwrap()));
        app_has(&app, 2).await;
        request.abort();
        within("the service's connection to end", is_gone.recv()).await.unwrap();
    }

    async fn app_has(app: &App, connections: usize) {
        within("a connection at the service", async {
            while app.connections() < connections {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

mod upgrades {
    use super::*;

    /// Answers a WebSocket handshake and sends every message back.
    async fn websocket_echo(mut request: Request<hyper::body::Incoming>) -> Response<Body> {
        let headers = request.headers();
        assert_eq!(
            (&headers["upgrade"], &headers["sec-websocket-version"]),
            (&"websocket".parse().unwrap(), &"13".parse().unwrap())
        );
        assert_eq!(headers["connection"].to_str().unwrap().to_lowercase(), "upgrade");
        let accept = derive_accept_key(headers["sec-websocket-key"].as_bytes());
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = TokioIo::new(upgraded.await.unwrap());
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                if message.is_text() || message.is_binary() {
                    socket.send(message).await.unwrap();
                }
            }
        });
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        response.header("sec-websocket-accept", accept).header("sec-websocket-protocol", "chat").body(empty()).unwrap()
    }

    async fn talk(mut socket: WebSocketStream<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>) {
        for message in [
            Message::text("hello"),
            Message::text(""),
            Message::binary(noise(1)),
            Message::binary(noise(1 << 20)),
            Message::text("ü".repeat(1000)),
        ] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(within("an echo", socket.next()).await.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        while let Some(message) = within("the close", socket.next()).await {
            assert!(message.is_ok_and(|message| message.is_close()), "a clean close");
        }
    }

    #[tokio::test]
    async fn carry_a_websocket_over_http1() {
        let world = World::start().await;
        let app = App::serve(websocket_echo).await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let tls = world.tls(&host, &[b"http/1.1"]).await;
        let mut request = format!("wss://{host}/socket?a=1").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
        let (socket, response) = tokio_tungstenite::client_async(request, tls).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["sec-websocket-protocol"]),
            (StatusCode::SWITCHING_PROTOCOLS, &"chat".parse().unwrap())
        );
        talk(socket).await;
    }

    /// RFC 8441, as browsers do where a page came over HTTP/2.
    #[tokio::test]
    async fn carry_a_websocket_over_http2() {
        let world = World::start().await;
        let app = App::serve(websocket_echo).await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let request = Request::connect(format!("{}/socket", tunnel.url()))
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(empty())
            .unwrap();
        let mut response = within("an answer", http.request(request)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!response.headers().contains_key(name), "{name} has no place in HTTP/2");
        }
        let io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        talk(WebSocketStream::from_raw_socket(io, Role::Client, None).await).await;
        let after = http.answer(Request::get(format!("{}/after", tunnel.url())).body(empty()).unwrap());
        // The application asserts an upgrade and breaks off; what matters is that the connection still works.
        assert_eq!(after.await.error(), Some("upstream-invalid"));
    }

    #[tokio::test]
    async fn that_the_service_refuses_are_plain_answers() {
        let world = World::start().await;
        let app = App::serve(|_| async {
            Response::builder().status(403).header("x-why", "origin").body(full("not for you")).unwrap()
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        // What follows at once is a request of its own, not a part of a WebSocket that never was.
        wire.send(format!(
            "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\
             GET /next HTTP/1.1\r\nHost: {host}\r\n\r\n"
        ))
        .await;
        let refused = wire.message().await.unwrap();
        assert_eq!((refused.status(), &refused.body[..]), (403, &b"not for you"[..]));
        assert_eq!(refused.values("x-why"), ["origin"]);
        if let Some(next) = wire.message().await {
            assert_eq!(next.status(), 403);
        }
        let mut http = world.http2(&host).await;
        let request = Request::connect(format!("{}/socket", tunnel.url()))
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .body(empty())
            .unwrap();
        let answer = http.answer(request).await;
        assert_eq!((answer.code(), answer.text()), (403, "not for you"));
    }

    fn upgrade(host: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
    }

    const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n";

    /// Either side may finish first and still hear the other out.
    #[tokio::test]
    async fn close_one_direction_at_a_time() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, number| async move {
            wire.head().await.unwrap();
            wire.send(SWITCHED).await;
            if number == 0 {
                let said = wire.rest().await.unwrap();
                wire.send([b"you said ", &said[..]].concat()).await;
            } else {
                wire.send("that is all").await;
                wire.finish().await;
                assert_eq!(wire.rest().await.unwrap(), b"still here");
                wire.finish().await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        wire.send("hello").await;
        wire.finish().await;
        assert_eq!(wire.rest().await.unwrap(), b"you said hello");

        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        assert_eq!(wire.rest().await.unwrap(), b"that is all");
        wire.send("still here").await;
        wire.finish().await;
    }

    /// Bytes that come in one packet with a head belong to the new protocol.
    #[tokio::test]
    async fn lose_no_byte_beside_the_heads() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send(format!("{SWITCHED}early")).await;
            let said = wire.exactly(9).await;
            wire.send(said).await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("{}impatient", upgrade(&host))).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        assert_eq!(wire.rest().await.unwrap(), b"earlyimpatient");
    }

    /// Nobody is left talking to nobody.
    #[tokio::test]
    async fn end_on_one_side_when_the_other_goes() {
        let world = World::start().await;
        let (gone, mut is_gone) = tokio::sync::mpsc::channel(1);
        let app = App::raw(move |mut wire: Wire, number| {
            let gone = gone.clone();
            async move {
                wire.head().await.unwrap();
                wire.send(SWITCHED).await;
                if number == 1 {
                    return;
                }
                let _ = wire.rest().await;
                gone.send(()).await.unwrap();
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        drop(wire);
        within("the service to notice", is_gone.recv()).await.unwrap();

        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        let _ = wire.rest().await;

        // And the tunnel itself.
        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
        drop(tunnel);
        let _ = wire.rest().await;
        within("the service to notice", is_gone.recv()).await.unwrap();
    }

    /// A stranger cannot open more of them than of other connections; sessions have a limit of their own.
    #[tokio::test]
    async fn count_as_connections() {
        let world = World::with(|config| config.limits.connections_per_address = 4).await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send(SWITCHED).await;
            let _ = wire.rest().await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut wire = world.raw(&host).await;
            wire.send(upgrade(&host)).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
            held.push(wire);
        }
        let mut refused = Wire::new(tokio::net::TcpStream::connect(world.https()).await.unwrap());
        assert!(refused.rest().await.unwrap_or_default().is_empty(), "closed without a word");
        held.pop();
        within("a place", async {
            loop {
                let mut wire = Wire::new(tokio::net::TcpStream::connect(world.https()).await.unwrap());
                // Whoever has a place is listened to: this is no handshake, and is answered with an alert.
                if wire.try_send("GET / HTTP/1.1\r\n\r\n").await.is_ok()
                    && matches!(wire.rest().await, Ok(alert) | Err((alert, _)) if !alert.is_empty())
                {
                    return;
                }
            }
        })
        .await;
    }

    /// They outlive every limit that is there for requests.
    #[tokio::test]
    async fn last_while_something_moves() {
        let short = std::time::Duration::from_millis(600);
        let world = World::with(|config| {
            let limits = &mut config.limits;
            (limits.head, limits.keep_alive, limits.body_idle) = (short, short, short);
            (limits.write_idle, limits.response_idle, limits.deadline) = (short, short, short);
        })
        .await;
        let app = App::serve(websocket_echo).await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let tls = world.tls(&host, &[b"http/1.1"]).await;
        let mut request = format!("wss://{host}/").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
        let (one, _) = tokio_tungstenite::client_async(request, tls).await.unwrap();
        let mut http = world.http2(&host).await;
        let request = Request::connect(format!("{}/", tunnel.url())).extension(Protocol::from_static("websocket"));
        let request = request.header("sec-websocket-version", "13").body(empty()).unwrap();
        let mut response = within("an answer", http.request(request)).await.unwrap();
        let io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let two = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        let (mut one, mut two) = (one, two);
        for pause in [0, 1, 5, 1] {
            tokio::time::sleep(short * pause).await;
            one.send(Message::text("still here")).await.unwrap();
            assert!(within("an echo", one.next()).await.unwrap().is_ok_and(|message| message.is_text()), "HTTP/1.1");
            two.send(Message::text("still here")).await.unwrap();
            assert!(within("an echo", two.next()).await.unwrap().is_ok_and(|message| message.is_text()), "HTTP/2");
        }
    }

    /// What would carry requests past every rule for them is no protocol to switch to: RFC 9110, section 7.8, lets a
    /// server ignore the wish.
    #[tokio::test]
    async fn to_http_or_tls_are_plain_requests() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            while let Some(head) = wire.head().await {
                let head = head.to_lowercase();
                let asked =
                    ["upgrade:", "connection: upgrade", "http2-settings"].iter().any(|line| head.contains(line));
                let answer = if asked {
                    format!("{SWITCHED}raw")
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain".to_owned()
                };
                wire.send(answer).await;
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for protocol in ["h2c", "H2C", "h2c-14", "HTTP/2.0", "http/1.1", "TLS/1.0", "tls", "websocket, h2c", "h2c,raw"]
        {
            let mut wire = world.raw(&host).await;
            for _ in 0..2 {
                wire.send(format!(
                    "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n\
                     HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
                ))
                .await;
                let answer = wire.message().await.unwrap_or_else(|| panic!("{protocol}: closed"));
                assert_eq!((answer.status(), &answer.body[..]), (200, &b"plain"[..]), "{protocol}: {}", answer.head);
            }
        }
        let mut wire = world.raw(&host).await;
        wire.send(upgrade(&host)).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"), "as a control");
    }

    #[tokio::test]
    async fn that_nobody_asked_for_are_an_error() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send(SWITCHED).await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
    }
}

mod names {
    use super::*;
    use relay_client::upstream::rewrite::HostHeader;

    async fn with(world: &World, app: &App, host: HostHeader) -> relay_client::Tunnel {
        world.tunnel_with(TunnelOptions { host_header: host, ..TunnelOptions::new(app.upstream()) }).await
    }

    fn from_a_page(url: &str) -> Request<Body> {
        let request =
            Request::post(format!("{url}/form")).header("origin", url).header("referer", format!("{url}/page?x"));
        request.body(full("x")).unwrap()
    }

    #[tokio::test]
    async fn are_the_services_own_unless_asked_otherwise() {
        let world = World::start().await;
        let app = App::recording().await;
        let local = app.addr().to_string();
        let tunnel = with(&world, &app, HostHeader::Rewrite).await;
        world.send(from_a_page(tunnel.url())).await;
        let seen = app.last();
        assert_eq!(seen.header("host"), local);
        assert_eq!(seen.header("origin"), format!("http://{local}"));
        assert_eq!(seen.header("referer"), format!("http://{local}/page?x"));
        let foreign = Request::post(format!("{}/", tunnel.url())).header("origin", "https://evil.example");
        world.send(foreign.body(full("x")).unwrap()).await;
        assert_eq!(app.last().header("origin"), "https://evil.example", "foreign stays foreign");

        let tunnel = with(&world, &app, HostHeader::Preserve).await;
        world.send(from_a_page(tunnel.url())).await;
        let seen = app.last();
        assert_eq!(seen.header("host"), world.host(tunnel.name()));
        assert_eq!(seen.header("origin"), tunnel.url());

        let tunnel = with(&world, &app, "app.test:8080".parse().unwrap()).await;
        world.send(from_a_page(tunnel.url())).await;
        let seen = app.last();
        assert_eq!((seen.header("host"), seen.header("origin")), ("app.test:8080", "http://app.test:8080"));
    }

    #[tokio::test]
    async fn in_redirects_are_the_public_ones() {
        let world = World::start().await;
        let app = App::serve(|request| async move {
            let host = request.headers()["host"].to_str().unwrap().to_owned();
            let location = match request.uri().path() {
                "/own" => format!("http://{host}/there?a=b"),
                "/relative" => "/there".to_owned(),
                _ => "https://elsewhere.example/".to_owned(),
            };
            Response::builder().status(302).header("location", location).body(empty()).unwrap()
        })
        .await;
        let tunnel = with(&world, &app, HostHeader::Rewrite).await;
        let url = tunnel.url();
        for (path, location) in [
            ("/own", format!("{url}/there?a=b")),
            ("/relative", "/there".to_owned()),
            ("/foreign", "https://elsewhere.example/".to_owned()),
        ] {
            assert_eq!(world.get(&format!("{url}{path}")).await.header("location"), location);
        }
    }
}

mod truth {
    use super::*;

    const SPOOFED: &[(&str, &str)] = &[
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "1"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("relay-request-id", "mine"),
        ("relay-attempt", "7"),
        ("relay-anything", "x"),
    ];

    #[tokio::test]
    async fn about_the_sender_is_told_to_the_service_whatever_the_sender_says() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        for version in [1, 2] {
            let mut http = if version == 1 { world.http1(&host).await } else { world.http2(&host).await };
            let request = SPOOFED.iter().fold(Request::get(format!("{}/", tunnel.url())), |request, (name, value)| {
                request.header(*name, *value)
            });
            assert_eq!(http.answer(request.body(empty()).unwrap()).await.code(), 200);
            let seen = app.last();
            assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
            assert_eq!(seen.header("x-real-ip"), "127.0.0.1");
            assert_eq!(seen.header("x-forwarded-host"), host);
            assert_eq!(seen.header("x-forwarded-proto"), "https");
            assert_eq!(seen.header("forwarded"), format!("for=127.0.0.1;host=\"{host}\";proto=https"));
            assert_ne!(seen.header("relay-request-id"), "mine");
            for name in ["x-forwarded-port", "relay-attempt", "relay-anything"] {
                assert!(!seen.headers.contains_key(name), "{name}: {:?}", seen.headers);
            }
        }
    }

    /// A sender's own id is the sender's; ours has a name of its own.
    #[tokio::test]
    async fn about_a_requests_id_stands_where_the_sender_gave_none() {
        let world = World::start().await;
        let app = App::recording().await;
        let mut tunnel = world.tunnel(&app).await;
        world.get(&format!("{}/", tunnel.url())).await;
        let id = tunnel.exchange().await.unwrap().id;
        let seen = app.last();
        assert_eq!((seen.header("relay-request-id"), seen.header("x-request-id")), (id.as_str(), id.as_str()));

        let own = Request::get(format!("{}/", tunnel.url())).header("x-request-id", "of-the-sender");
        world.send(own.body(empty()).unwrap()).await;
        let next = tunnel.exchange().await.unwrap().id;
        let seen = app.last();
        assert_eq!((seen.header("relay-request-id"), seen.header("x-request-id")), (next.as_str(), "of-the-sender"));
        assert_ne!(id, next);
    }

    /// Only the relay says that an error, or the answer to a handshake, is the relay's.
    #[tokio::test]
    async fn of_the_relays_own_cannot_be_forged_by_a_service() {
        let world = World::start().await;
        let app = App::serve(|_| async {
            Response::builder()
                .status(502)
                .header("relay-error", "deadline")
                .header("relay-handshake", "slack")
                .header("server", "mine")
                .body(empty())
                .unwrap()
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.error(), answer.header("server")), (502, None, "mine"));
        assert!(!answer.headers.contains_key("relay-handshake"), "{:?}", answer.headers);
    }
}

/// A service that closes a connection just when a request comes on it: Node after 5 s, gunicorn after 2.
mod pooled_connections {
    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Answers one request on its first connection and closes it when the second comes. Later connections answer
    /// all, with what they were told of the attempt, or close too.
    async fn closing(then: &'static str, second_chance: bool) -> App {
        App::raw(move |mut wire: Wire, number| async move {
            if number > 0 && !second_chance {
                wire.message().await;
                return;
            }
            while let Some(request) = wire.message().await {
                let told = request.values("relay-attempt").join(",");
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len());
                wire.send(answer).await;
                if number == 0 {
                    // All of the second request, or its head, and then the end.
                    wire.head().await;
                    let _ = wire.try_send(then).await;
                    return;
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn are_used_again() {
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        for _ in 0..5 {
            assert_eq!(world.post(&format!("{}/", tunnel.url()), "x").await.text(), "x");
        }
        assert_eq!(app.connections(), 1);
    }

    #[tokio::test]
    async fn that_close_cost_one_more_attempt_and_no_webhook() {
        let world = World::start().await;
        let app = closing("", true).await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/", tunnel.url());
        assert_eq!(world.post(&url, "first").await.text(), "", "the first attempt is not marked");
        let again = Request::post(&url).header("relay-attempt", "9").body(full("second")).unwrap();
        assert_eq!(world.send(again).await.text(), "2");
        assert_eq!(app.connections(), 2);
    }

    #[tokio::test]
    async fn are_replaced_once_and_not_for_ever() {
        let world = World::start().await;
        let app = closing("", false).await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/", tunnel.url());
        assert_eq!(world.get(&url).await.code(), 200);
        let answer = world.get(&url).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
        assert_eq!(app.connections(), 2, "one extra attempt");
    }

    /// After a byte of an answer the service has seen the request.
    #[tokio::test]
    async fn that_began_to_answer_are_not_replaced() {
        let world = World::start().await;
        let app = closing("HTTP/1.1 2", true).await;
        let tunnel = world.tunnel(&app).await;
        let url = format!("{}/", tunnel.url());
        assert_eq!(world.get(&url).await.code(), 200);
        let answer = world.post(&url, "x").await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
        assert_eq!(app.connections(), 1);
    }

    /// A body is held up to 64 KiB, and one that is not held cannot be sent again.
    #[tokio::test]
    async fn are_replaced_for_bodies_up_to_64_kib() {
        let world = World::start().await;
        for (size, attempts) in [(64 * 1024, 2), (64 * 1024 + 1, 1), (80 * 1024, 1), (1 << 20, 1)] {
            // The second request is read whole, so that it is there as a whole where it is sent again.
            let app = App::raw(move |mut wire: Wire, number| async move {
                while let Some(request) = wire.message().await {
                    if number == 0 && request.body.len() == size {
                        return;
                    }
                    assert!(request.body.len() <= 1 || request.body == noise(size), "all of it, again");
                    wire.send(OK).await;
                }
            })
            .await;
            let tunnel = world.tunnel(&app).await;
            let url = format!("{}/", tunnel.url());
            assert_eq!(world.post(&url, "x").await.code(), 200);
            let answer = world.post(&url, noise(size)).await;
            let expected = if attempts == 2 { (200, None) } else { (502, Some("upstream-invalid")) };
            assert_eq!((answer.code(), answer.error()), expected, "{size}");
            assert_eq!(app.connections(), attempts, "{size}");
        }
    }

    /// A new connection that closes at once is no old one: the service has had its chance.
    #[tokio::test]
    async fn that_are_new_get_no_second_attempt() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move { drop(wire.message().await) }).await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
        assert_eq!(app.connections(), 1);
    }

    /// What a service sends without being asked must not become the answer of the next request.
    #[tokio::test]
    async fn with_stray_bytes_are_not_used_again() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            wire.send(OK).await;
            let _ = wire.try_send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray").await;
            wire.message().await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        for _ in 0..20 {
            let answer = world.get(&format!("{}/", tunnel.url())).await;
            assert_eq!((answer.code(), answer.text()), (200, "ok"));
        }
    }
}

mod services {
    use super::*;
    use relay_client::upstream::address::UpstreamAddr;

    /// A listener on a port that nobody has in the other address family: tests beside this one take ports too.
    async fn only_listener(address: &str) -> (tokio::net::TcpListener, u16) {
        loop {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let other = if address.starts_with('[') { "127.0.0.1" } else { "[::1]" };
            if tokio::net::TcpStream::connect(format!("{other}:{port}")).await.is_err() {
                return (listener, port);
            }
        }
    }

    #[tokio::test]
    async fn on_localhost_answer_over_either_address_family() {
        let world = World::start().await;
        for address in ["[::1]:0", "127.0.0.1:0"] {
            let (listener, port) = only_listener(address).await;
            let app = App::recording_on(listener);
            let tunnel = world.tunnel(format!("localhost:{port}").parse::<UpstreamAddr>().unwrap()).await;
            assert_eq!(world.get(&format!("{}/", tunnel.url())).await.text(), "ok", "{address}");
            assert_eq!(app.only().header("host"), format!("localhost:{port}"));
        }
    }

    #[tokio::test]
    async fn on_a_unix_socket_answer() {
        let world = World::start().await;
        let dir = tempfile::tempdir().unwrap();
        let app = App::unix(&dir.path().join("app.sock"), relay_tests::app::echo);
        let tunnel = world.tunnel(&app).await;
        let answer = world.post(&format!("{}/", tunnel.url()), noise(100_000)).await;
        assert!(answer.code() == 200 && answer.body == noise(100_000));
    }

    /// A development server's own certificate is nobody's business on loopback.
    #[tokio::test]
    async fn with_a_certificate_of_their_own_answer_on_loopback() {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_no_client_auth().with_single_cert(vec![own.cert.into()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = relay_tests::app::listener().await;
        let addr = listener.local_addr().unwrap();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let mut wire = Wire::new(tls);
                let request = wire.message().await.unwrap();
                let host = request.values("host")[0].to_owned();
                let head = format!("HTTP/1.1 302 Found\r\nLocation: https://{host}/in\r\n");
                wire.send(format!("{head}Content-Length: {}\r\n\r\n{host}", host.len())).await;
                wire.finish().await;
            }
        });
        let world = World::start().await;
        let tunnel = world.tunnel(format!("https://{addr}").parse::<UpstreamAddr>().unwrap()).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.text()), (302, addr.to_string().as_str()));
        assert_eq!(answer.header("location"), format!("{}/in", tunnel.url()));
    }

    #[tokio::test]
    async fn that_speak_h2c_answer_many_at_once_on_one_connection() {
        let world = World::start().await;
        let app = App::h2c(relay_tests::app::echo).await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        let url = format!("{}/", tunnel.url());
        assert_eq!(world.post(&url, "first").await.text(), "first");
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let answers: Vec<_> =
            (0..50).map(|n| http.begin(Request::post(&url).body(full(n.to_string())).unwrap())).collect();
        for (n, answer) in answers.into_iter().enumerate() {
            assert_eq!(within("an answer", answer).await.unwrap().text(), n.to_string());
        }
        assert_eq!(app.connections(), 1);
    }

    /// The webhook's sender learns what is wrong, the developer which address, and nothing needs a restart.
    #[tokio::test]
    async fn that_are_down_are_named_and_found_again() {
        let world = World::start().await;
        let listener = relay_tests::app::listener().await;
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let mut tunnel = world.tunnel(addr.to_string().parse::<UpstreamAddr>().unwrap()).await;
        let url = format!("{}/hook", tunnel.url());
        let answer = world.post(&url, "x").await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-refused")));
        assert_eq!(answer.json()["error"]["code"], "upstream-refused");
        assert!(answer.headers.contains_key("retry-after"));
        let exchange = tunnel.exchange().await.unwrap();
        assert_eq!((exchange.status, exchange.error.as_deref()), (Some(502), Some("upstream-refused")));
        let page = Request::get(&url).header("accept", "text/html,*/*").body(empty()).unwrap();
        assert!(world.send(page).await.header("content-type").starts_with("text/html"));

        let app = App::recording_on(tokio::net::TcpListener::bind(addr).await.unwrap());
        assert_eq!(world.post(&url, "x").await.text(), "ok");
        assert_eq!(app.only().body, "x");
    }

    #[tokio::test]
    async fn that_speak_something_else_are_an_error() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.send("220 mail.example ESMTP\r\n").await;
            let _ = wire.rest().await;
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-invalid")));
    }
}

mod deadlines {
    use super::*;
    use std::time::{Duration, Instant};

    /// Never answers, and tells when its connection ends.
    async fn silent() -> (App, tokio::sync::mpsc::Receiver<()>) {
        let (gone, is_gone) = tokio::sync::mpsc::channel(10);
        let app = App::raw(move |mut wire: Wire, _| {
            let gone = gone.clone();
            async move {
                wire.message().await;
                let _ = wire.rest().await;
                gone.send(()).await.unwrap();
            }
        })
        .await;
        (app, is_gone)
    }

    #[tokio::test]
    async fn end_in_504_and_abort_the_call_to_the_service() {
        let world = World::start().await;
        let (app, mut is_gone) = silent().await;
        let timeout = Some(Duration::from_millis(300));
        let mut tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        let begun = Instant::now();
        let answer = world.post(&format!("{}/", tunnel.url()), "x").await;
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("300 ms"), "{}", answer.text());
        assert!(begun.elapsed() >= Duration::from_millis(250), "not before its time: {:?}", begun.elapsed());
        within("the call to the service to be aborted", is_gone.recv()).await.unwrap();
        let exchange = tunnel.exchange().await.unwrap();
        assert_eq!((exchange.status, exchange.error.as_deref()), (Some(504), Some("deadline")));
    }

    #[tokio::test]
    async fn are_the_relays_own_where_the_tunnel_has_none() {
        let world = World::with(|config| config.limits.deadline = Duration::from_millis(200)).await;
        let (app, _is_gone) = silent().await;
        let tunnel = world.tunnel(&app).await;
        let answer = world.get(&format!("{}/", tunnel.url())).await;
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
    }

    /// The service cannot answer what it has not seen. The body takes twice the deadline to arrive.
    #[tokio::test]
    async fn count_from_the_last_byte_of_a_slow_upload() {
        let world = World::with(|config| config.limits.deadline = Duration::from_millis(1500)).await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let (pipe, body) = pipe();
        let request = Request::post(format!("{}/", tunnel.url())).body(body).unwrap();
        let answer = http.begin(request);
        for _ in 0..10 {
            // Ten times as fast as what counts as slow, whatever else the machine has to do.
            assert!(pipe.send(noise(10_000)).await, "the upload goes on");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        drop(pipe);
        assert_eq!(answer.await.unwrap().code(), 200);
        assert_eq!(app.only().body, noise(10_000).repeat(10));
    }

    /// HTTP/2 has a way to drop the rest of a request that drops the answer too.
    #[tokio::test]
    async fn reach_an_http2_sender_that_is_still_sending() {
        let world = World::start().await;
        let (app, _is_gone) = silent().await;
        let timeout = Some(Duration::from_millis(300));
        let tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        let mut http = world.http2(&world.host(tunnel.name())).await;
        let (pipe, body) = pipe();
        let request = Request::post(format!("{}/", tunnel.url())).body(body).unwrap();
        let answer = http.begin(request);
        pipe.send(noise(100_000)).await;
        let answer = within("the answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        drop(pipe);
    }

    /// They hold for the head; a body may take its time.
    #[tokio::test]
    async fn do_not_cut_a_body() {
        let world = World::start().await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.message().await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha").await;
            tokio::time::sleep(Duration::from_millis(2500)).await;
            wire.send("lf").await;
        })
        .await;
        let timeout = Some(Duration::from_secs(2));
        let tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        assert_eq!(world.get(&format!("{}/", tunnel.url())).await.text(), "half");
    }

    /// A provider counts from its connect; later requests of a connection from their own first byte.
    #[tokio::test]
    async fn count_from_when_the_sender_does() {
        const DAWDLE: Duration = Duration::from_millis(200);
        let world = World::start().await;
        let app = App::echo().await;
        let mut tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut wire = world.raw(&host).await;
        tokio::time::sleep(DAWDLE).await;
        wire.send(&request).await;
        wire.message().await.unwrap();
        let first = tunnel.exchange().await.unwrap().duration;
        assert!(first >= DAWDLE, "from the acceptance of the connection: {first:?}");
        tokio::time::sleep(DAWDLE).await;
        let sent = Instant::now();
        wire.send(&request).await;
        wire.message().await.unwrap();
        let second = tunnel.exchange().await.unwrap().duration;
        assert!(second <= sent.elapsed(), "from its own first byte: {second:?} of {:?}", sent.elapsed());

        let mut http = world.http2(&host).await;
        http.answer(Request::get(format!("{}/", tunnel.url())).body(empty()).unwrap()).await;
        tunnel.exchange().await.unwrap();
        tokio::time::sleep(DAWDLE).await;
        let sent = Instant::now();
        http.answer(Request::get(format!("{}/", tunnel.url())).body(empty()).unwrap()).await;
        let later = tunnel.exchange().await.unwrap().duration;
        assert!(later <= sent.elapsed(), "a later stream from its own: {later:?} of {:?}", sent.elapsed());
    }

    /// An answer that comes too late must not be given to somebody else.
    #[tokio::test]
    async fn discard_late_answers() {
        let world = World::start().await;
        let late = std::sync::Arc::new(tokio::sync::Notify::new());
        let release = late.clone();
        let app = App::serve(move |request| {
            let late = late.clone();
            async move {
                let path = request.uri().path().to_owned();
                if path == "/late" {
                    late.notified().await;
                }
                relay_tests::app::ok(path)
            }
        })
        .await;
        let timeout = Some(Duration::from_millis(500));
        let tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        for n in 0..5 {
            let request = Request::get(format!("{}/late", tunnel.url())).body(empty()).unwrap();
            assert_eq!(http.answer(request).await.code(), 504);
            release.notify_waiters();
            let request = Request::get(format!("{}/{n}", tunnel.url())).body(empty()).unwrap();
            assert_eq!(http.answer(request).await.text(), format!("/{n}"));
        }
    }
}

mod connections {
    use super::*;

    #[tokio::test]
    async fn carry_pipelined_requests_in_their_order() {
        let world = World::start().await;
        let app = App::serve(|request| async move { relay_tests::app::ok(request.uri().path().to_owned()) }).await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        let all: Vec<_> = (0..10).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n")).collect();
        wire.send(all.concat()).await;
        for n in 0..10 {
            assert_eq!(wire.message().await.unwrap().body, format!("/{n}").as_bytes());
        }
    }

    /// A sender that knows no chunks gets none.
    #[tokio::test]
    async fn of_http_1_0_end_with_their_answer() {
        let world = World::start().await;
        let app = App::serve(|_| async {
            let (feed, body) = pipe();
            tokio::spawn(async move {
                feed.send("of no ").await;
                feed.send("known length").await;
            });
            Response::new(body)
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        // Some name just that in the handshake, as curl does.
        for protocol in [&b"http/1.1"[..], b"http/1.0"] {
            let mut wire = Wire::new(world.tls(&host, &[protocol]).await);
            wire.send(format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n")).await;
            let head = wire.head().await.unwrap();
            assert!(head.contains(" 200 ") && !head.contains("transfer-encoding"), "{head}");
            assert_eq!(wire.rest().await.unwrap(), b"of no known length");
        }
    }

    #[tokio::test]
    async fn close_when_the_sender_says_so() {
        let world = World::start().await;
        let app = App::echo().await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        let lines = "Connection: close, X-Secret\r\nX-Secret: 1\r\nContent-Length: 2";
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n\r\nhi")).await;
        assert_eq!(wire.message().await.unwrap().body, b"hi");
        assert_eq!(wire.rest().await.unwrap(), b"");
        assert_eq!(world.post(&format!("{}/", tunnel.url()), "x").await.text(), "x");
        assert_eq!(app.connections(), 1, "the service's connection is another matter");
    }

    /// Each answer belongs to its request, whoever gives up beside it.
    #[tokio::test]
    async fn never_mix_answers_up() {
        let world = World::start().await;
        let app = App::echo().await;
        let h2c = App::h2c(relay_tests::app::echo).await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(h2c.upstream()) };
        for tunnel in [world.tunnel(&app).await, world.tunnel_with(options).await] {
            let mut http = world.http2(&world.host(tunnel.name())).await;
            let mut random = 12345_u32;
            for round in 0..20 {
                let mut kept = Vec::new();
                for n in 0..40 {
                    let body = format!("{round}-{n}-").repeat(1 + n * 20);
                    http.ready().await;
                    let answer = http.begin(Request::post(tunnel.url()).body(full(body.clone())).unwrap());
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    if random >> 30 == 0 {
                        for _ in 0..(random >> 20) % 32 {
                            tokio::task::yield_now().await;
                        }
                        answer.abort();
                    } else {
                        kept.push((body, answer));
                    }
                }
                for (body, answer) in kept {
                    let answer = within("an answer", answer).await.unwrap();
                    assert!(answer.code() == 200 && answer.body == body.as_bytes(), "{} for {body:.20}", answer.code());
                }
            }
        }
    }

    #[tokio::test]
    async fn to_an_h2c_service_are_made_anew_when_it_restarts() {
        let world = World::start().await;
        let app = App::h2c(relay_tests::app::echo).await;
        let options = TunnelOptions { protocol: UpstreamProtocol::H2c, ..TunnelOptions::new(app.upstream()) };
        let tunnel = world.tunnel_with(options).await;
        assert_eq!(world.post(tunnel.url(), "x").await.text(), "x");
        drop(app);
        // Nobody listens until the next one does; the old connection ends meanwhile.
        let down = world.post(tunnel.url(), "x").await;
        assert_eq!(down.code(), 502, "{down:?}");
        let again = within("an answer that the service is gone", async {
            loop {
                let answer = world.post(tunnel.url(), "x").await;
                if answer.error() == Some("upstream-refused") {
                    return answer;
                }
            }
        });
        assert_eq!(again.await.code(), 502);
    }

    /// The deadline does not wait for a sender that is slow to send.
    #[tokio::test]
    async fn with_half_a_body_meet_the_deadline_too() {
        let world = World::start().await;
        let app = App::recording().await;
        let timeout = Some(std::time::Duration::from_millis(200));
        let tunnel = world.tunnel_with(TunnelOptions { timeout, ..TunnelOptions::new(app.upstream()) }).await;
        let host = world.host(tunnel.name());
        let mut wire = world.raw(&host).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\nhalf")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), answer.values("relay-error")), (504, vec!["deadline"]));
        assert_eq!(app.seen().len(), 0);
    }
}

/// What the access log says of an exchange once it is over.
mod records {
    use std::time::Duration;

    use relay_tests::{RelayServer, process::RelayClient};
    use serde_json::Value;

    use super::*;

    async fn line(server: &mut RelayServer, path: &str) -> Value {
        let line = server.process.error_line(&format!("\"target\":\"{path}\"")).await;
        serde_json::from_str(&line).unwrap()
    }

    async fn start(app: &App) -> (RelayServer, RelayClient, String) {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("records").await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.host();
        (server, client, host)
    }

    #[tokio::test]
    async fn count_what_is_received_after_the_answer_has_begun() {
        const LENGTH: usize = 3 << 20;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nearly\r\n").await;
            wire.exactly(LENGTH).await;
            wire.send("4\r\nlate\r\n0\r\n\r\n").await;
        })
        .await;
        let (mut server, _client, host) = start(&app).await;
        let mut wire = server.raw(&host).await;
        wire.send(format!("POST /up HTTP/1.1\r\nHost: {host}\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
        wire.send(noise(LENGTH)).await;
        while wire.line().await.unwrap() != "0" {}
        let line = line(&mut server, "/up").await;
        assert_eq!((&line["received"], &line["sent"]), (&LENGTH.into(), &9.into()), "{line}");
    }

    /// The usual end of a webhook that takes too long: its sender has said everything, waits, and goes away.
    #[tokio::test]
    async fn count_what_came_of_a_request_that_was_given_up() {
        const LENGTH: usize = 100_000;
        let (read, mut has_read) = tokio::sync::mpsc::channel(1);
        let app = App::raw(move |mut wire: Wire, _| {
            let read = read.clone();
            async move {
                wire.head().await.unwrap();
                wire.exactly(LENGTH).await;
                read.send(()).await.unwrap();
                let _ = wire.rest().await;
            }
        })
        .await;
        let (mut server, _client, host) = start(&app).await;
        let mut wire = server.raw(&host).await;
        wire.send(format!("POST /slow HTTP/1.1\r\nHost: {host}\r\nContent-Length: {LENGTH}\r\n\r\n")).await;
        wire.send(noise(LENGTH)).await;
        has_read.recv().await.unwrap();
        drop(wire);
        let line = line(&mut server, "/slow").await;
        assert_eq!(
            (&line["received"], &line["sent"], &line["status"]),
            (&LENGTH.into(), &0.into(), &0.into()),
            "{line}"
        );
    }

    /// The sender has seen a 200, and has only itself to blame for what follows.
    #[tokio::test]
    async fn of_bodies_that_break_after_the_answer_has_begun_blame_the_sender() {
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nearly\r\n").await;
            let _ = wire.rest().await;
        })
        .await;
        let (mut server, mut client, host) = start(&app).await;
        let mut wire = server.raw(&host).await;
        wire.send(format!("POST /up HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"))
            .await;
        assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
        wire.send("nonsense\r\n").await;
        let line = line(&mut server, "/up").await;
        assert_eq!((&line["received"], &line["error"]), (&5.into(), &"bad-request".into()), "{line}");
        let line = client.process.event("exchange").await;
        assert_eq!((&line["status"], &line["error"]), (&200.into(), &"cancelled".into()), "{line}");
    }

    /// An upgraded connection is one exchange, which lasts until both directions have ended.
    #[tokio::test]
    async fn of_upgraded_connections_are_written_at_their_end() {
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await.unwrap();
            wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n").await;
            wire.exactly(100_000).await;
            wire.send(noise(200_000)).await;
            let _ = wire.rest().await;
        })
        .await;
        let (mut server, _client, host) = start(&app).await;
        let up =
            |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
        // One sender says that it has finished, the other is gone without a word.
        let mut wires = Vec::new();
        for path in ["/first", "/second"] {
            let mut wire = server.raw(&host).await;
            wire.send(up(path)).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 101"));
            wire.send(noise(100_000)).await;
            wire.exactly(200_000).await;
            wires.push(wire);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        wires.remove(0).finish().await;
        let first = line(&mut server, "/first").await;
        drop(wires);
        let second = line(&mut server, "/second").await;
        for line in [first, second] {
            assert_eq!((&line["status"], &line["error"]), (&101.into(), &Value::Null), "{line}");
            assert_eq!((&line["received"], &line["sent"]), (&100_000.into(), &200_000.into()), "{line}");
            assert!(line["duration_ms"].as_f64().unwrap() >= 500.0, "{line}");
        }
    }
}
