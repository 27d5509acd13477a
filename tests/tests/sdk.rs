//! Tunnels and relays as programs embed them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use relay_client::{Body, BodyError, ClientError, OpenError, Status, Tunnel, TunnelBuilder};
use relay_server::config::Config;
use relay_server::{Relay, RunningRelay};
use relay_tests::body::{empty, full};
use relay_tests::{Answer, App, Http, Process, World, within};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// A relay inside the test, as the guide has it.
struct Embedded {
    relay: RunningRelay,
    token: String,
    _directory: TempDir,
}

impl Embedded {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let relay = Relay::start(Config::on_loopback("relay.localhost", directory.path())).await.unwrap();
        let token = relay.create_token("tests").await.unwrap();
        Self { relay, token, _directory: directory }
    }

    fn tunnel(&self) -> TunnelBuilder {
        let builder = Tunnel::builder().relay(self.relay.url()).token(&self.token);
        builder.ca_file(self.relay.ca_file().unwrap())
    }

    /// A caller's connection.
    async fn caller(&self) -> Http {
        Http::one(TcpStream::connect(self.relay.http_addr().unwrap()).await.unwrap()).await
    }

    async fn post(&self, url: &str, body: &'static str) -> Answer {
        let mut caller = self.caller().await;
        within(url, caller.answer(Request::post(url).body(full(body)).unwrap())).await
    }
}

async fn open(builder: TunnelBuilder) -> Tunnel {
    within("a tunnel", builder.open()).await.unwrap()
}

#[tokio::test]
async fn a_tunnel_leads_to_a_port() {
    let (relay, app) = (Embedded::start().await, App::recording().await);
    let mut tunnel = open(relay.tunnel().upstream(app.addr()).subdomain("hooks")).await;
    assert_eq!(tunnel.name(), "hooks");
    assert!(tunnel.url().starts_with("https://hooks.relay.localhost:"), "{}", tunnel.url());
    assert_eq!(*tunnel.status().borrow(), Status::Up);
    let answer = relay.post(&format!("{}/a?b", tunnel.url()), "hello").await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    assert_eq!((app.only().target.as_str(), &app.only().body[..]), ("/a?b", &b"hello"[..]));
    let exchange = within("an exchange", tunnel.exchange()).await.unwrap();
    assert_eq!((exchange.path.as_str(), exchange.status), ("/a?b", Some(200)));
    tunnel.close().await.unwrap();
    relay.relay.shutdown().await;
}

/// Each is told what to write, and nothing is dialled.
#[tokio::test]
async fn wrong_settings_are_named() {
    let here = || Tunnel::builder().relay("https://relay.invalid");
    for (builder, setting, hint) in [
        (Tunnel::builder().upstream(3000), "relay", "relay(URL)"),
        (Tunnel::builder().relay("http://relay.invalid").upstream(3000), "relay", "https://"),
        (here(), "upstream", "serve(handler)"),
        (here().upstream("myapp"), "upstream", "port"),
        (here().upstream(3000).relay_addr("nowhere"), "relay_addr", "port"),
        (here().upstream(3000).host_header("a b"), "host_header", "preserve"),
        (here().upstream(3000).ca_file("/nowhere/ca.pem"), "ca_file", "/nowhere/ca.pem"),
        (here().upstream(3000).oidc_allow("@example.com"), "oidc", "oidc(ISSUER"),
        (here().upstream(3000).oidc("http://issuer.example", "id", "s3cret"), "access", "an https URL"),
        (
            here().upstream(3000).oidc("https://issuer.example", "id", "s3cret").oidc_allow("ann"),
            "access",
            "@example.com",
        ),
    ] {
        let error = builder.open().await.unwrap_err();
        let OpenError::Setting { setting: named, reason } = &error else { panic!("{setting}: {error}") };
        assert_eq!(*named, setting);
        assert!(reason.contains(hint), "{error}");
    }
}

#[tokio::test]
async fn refusals_can_be_told_apart() {
    let relay = Embedded::start().await;
    let wrong = relay.tunnel().token("rly_wrong").capture().open().await.unwrap_err();
    assert!(matches!(wrong, OpenError::Client(ClientError::Unauthorized(_))), "{wrong}");
    let held = open(relay.tunnel().capture().subdomain("hooks")).await;
    let other = relay.relay.create_token("other").await.unwrap();
    let taken = relay.tunnel().token(other).capture().subdomain("hooks").open().await.unwrap_err();
    assert!(matches!(taken, OpenError::Client(ClientError::NameTaken(_))), "{taken}");
    let closed = relay_tests::app::listener().await.local_addr().unwrap();
    let away = relay.tunnel().relay_addr(closed).capture().open().await.unwrap_err();
    assert!(matches!(away, OpenError::Client(ClientError::Unreachable(_))), "{away}");
    held.close().await.unwrap();
}

mod handlers {
    use super::*;

    #[tokio::test]
    async fn get_bodies_as_they_come_and_answer_in_kind() {
        let relay = Embedded::start().await;
        let echo = |request: Request<Body>| async move { Response::new(request.into_body()) };
        let tunnel = open(relay.tunnel().serve(echo)).await;
        let (pipe, body) = relay_tests::body::pipe();
        let mut caller = relay.caller().await;
        let answer = caller.request(Request::post(tunnel.url()).body(body).unwrap());
        pipe.send("first ").await;
        let mut answer = within("a head before the body's end", answer).await.unwrap();
        let first = within("what was sent", answer.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first ");
        pipe.send("second").await;
        drop(pipe);
        assert_eq!(Answer::read(answer).await.text(), "second");
        let large = vec![7; 5 << 20];
        let mut caller = relay.caller().await;
        let answer = caller.answer(Request::post(tunnel.url()).body(full(large.clone())).unwrap()).await;
        assert!(answer.body == large, "{} bytes", answer.body.len());
    }

    #[tokio::test]
    async fn see_what_was_sent_and_who_they_are_to_the_public() {
        let relay = Embedded::start().await;
        let tunnel = open(relay.tunnel().serve(|request: Request<Body>| async move {
            let host = request.headers()[http::header::HOST].to_str().unwrap().to_owned();
            let mut response = Response::new(format!("{} {} {host}", request.method(), request.uri()));
            *response.status_mut() = StatusCode::CREATED;
            response
        }))
        .await;
        let answer = relay.post(&format!("{}//a/../b?c=%2F", tunnel.url()), "").await;
        let host = tunnel.url().strip_prefix("https://").unwrap();
        assert_eq!((answer.code(), answer.text()), (201, &*format!("POST //a/../b?c=%2F {host}")));
    }

    #[tokio::test]
    async fn that_panic_are_a_500_and_end_nothing() {
        let relay = Embedded::start().await;
        let tunnel = open(relay.tunnel().serve(|request: Request<Body>| async move {
            assert_ne!(request.uri().path(), "/panic", "this is on purpose");
            Response::new("fine")
        }))
        .await;
        for _ in 0..3 {
            assert_eq!(relay.post(&format!("{}/panic", tunnel.url()), "").await.code(), 500);
            assert_eq!(relay.post(tunnel.url(), "").await.text(), "fine");
        }
        tunnel.close().await.unwrap();
    }

    /// Whoever sent the request has its answer: what the handler still does is in vain.
    #[tokio::test]
    async fn are_dropped_at_the_deadline() {
        struct Told(Arc<Notify>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let (relay, dropped) = (Embedded::start().await, Arc::new(Notify::new()));
        let (told, ended) = (dropped.clone(), Arc::new(AtomicBool::new(false)));
        let ends = ended.clone();
        let slow = move |_: Request<Body>| {
            let (told, ends) = (Told(told.clone()), ends.clone());
            async move {
                std::future::pending::<()>().await;
                ends.store(true, Relaxed);
                drop(told);
                Response::new(())
            }
        };
        let tunnel = open(relay.tunnel().serve(slow).timeout(Duration::from_millis(200))).await;
        let answer = relay.post(tunnel.url(), "").await;
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        within("the handler's end", dropped.notified()).await;
        assert!(!ended.load(Relaxed));
    }

    #[tokio::test]
    async fn can_speak_another_protocol() {
        let relay = Embedded::start().await;
        let tunnel = open(relay.tunnel().serve(|mut request: Request<Body>| async move {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.unwrap());
                let mut word = [0; 4];
                io.read_exact(&mut word).await.unwrap();
                word.reverse();
                io.write_all(&word).await.unwrap();
                io.shutdown().await.unwrap();
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            response.header("connection", "upgrade").header("upgrade", "mirror").body(()).unwrap()
        }))
        .await;
        let mut tcp = TcpStream::connect(relay.relay.http_addr().unwrap()).await.unwrap();
        let host = tunnel.url().strip_prefix("https://").unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: mirror\r\n\r\nabcd");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("the mirror's end", tcp.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\ndcba"), "{answer}");
    }

    #[tokio::test]
    async fn read_no_more_than_they_want() {
        let relay = Embedded::start().await;
        let tunnel = open(relay.tunnel().serve(|request: Request<Body>| async move {
            match request.into_body().bytes(5).await {
                Ok(bytes) => Response::new(Body::from(bytes)),
                Err(BodyError::TooLarge { most }) => Response::new(format!("more than {most}").into()),
                Err(error) => panic!("{error}"),
            }
        }))
        .await;
        assert_eq!(relay.post(tunnel.url(), "12345").await.text(), "12345");
        assert_eq!(relay.post(tunnel.url(), "123456").await.text(), "more than 5");
    }
}

mod captured {
    use super::*;

    #[tokio::test]
    async fn requests_are_answered_at_once_and_wait_to_be_taken() {
        let relay = Embedded::start().await;
        let mut tunnel = open(relay.tunnel().capture()).await;
        let url = format!("{}/hooks?a=%2F", tunnel.url());
        let mut caller = relay.caller().await;
        let request = Request::put(&url).header("x-two", "1").header("x-two", "2").body(full("hello")).unwrap();
        let answer = caller.answer(request).await;
        assert_eq!((answer.code(), answer.text()), (200, ""));
        let request = within("a request", tunnel.next_request()).await.unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/hooks?a=%2F"));
        assert_eq!((&request.body[..], request.truncated), (&b"hello"[..], false));
        assert_eq!((request.status, request.missed), (Some(StatusCode::OK), 0));
        assert_eq!(request.headers.get_all("x-two").iter().collect::<Vec<_>>(), ["1", "2"]);
    }

    #[tokio::test]
    async fn a_handler_answers_and_still_gets_the_body() {
        let relay = Embedded::start().await;
        let echo = |request: Request<Body>| async move {
            let mut response = Response::new(request.into_body());
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        };
        let mut tunnel = open(relay.tunnel().serve(echo).capture()).await;
        let answer = relay.post(tunnel.url(), "hello").await;
        assert_eq!((answer.code(), answer.text()), (202, "hello"));
        let request = within("a request", tunnel.next_request()).await.unwrap();
        assert_eq!((&request.body[..], request.status), (&b"hello"[..], Some(StatusCode::ACCEPTED)));
    }

    /// Nothing grows without bounds where nobody takes them, and whoever does so later knows what is missing.
    #[tokio::test]
    async fn requests_beyond_the_bound_are_counted() {
        let relay = Embedded::start().await;
        let mut tunnel = open(relay.tunnel().capture()).await;
        let url = tunnel.url().to_owned();
        let mut caller = relay.caller().await;
        for i in 0..1030 {
            caller.answer(Request::get(format!("{url}/{i}")).body(empty()).unwrap()).await;
        }
        for i in 6..1030 {
            let request = within("a request", tunnel.next_request()).await.unwrap();
            assert_eq!((request.path, request.missed), (format!("/{i}"), if i == 6 { 6 } else { 0 }));
        }
        caller.answer(Request::get(format!("{url}/late")).body(empty()).unwrap()).await;
        let request = within("a request", tunnel.next_request()).await.unwrap();
        assert_eq!((request.path.as_str(), request.missed), ("/late", 0));
    }

    /// A test sends a webhook once more, and sees what comes of it.
    #[tokio::test]
    async fn a_request_is_sent_once_more_as_it_came() {
        let (relay, app) = (Embedded::start().await, App::recording().await);
        let mut tunnel = open(relay.tunnel().upstream(app.addr()).capture()).await;
        assert_eq!(relay.post(tunnel.url(), "hello").await.code(), 200);
        let first = within("a request", tunnel.next_request()).await.unwrap();
        let replayed = within("an answer", tunnel.replay(&first)).await.unwrap();
        assert_eq!((replayed.status, replayed.error.as_deref()), (Some(StatusCode::OK), None));
        let again = within("a request", tunnel.next_request()).await.unwrap();
        assert_eq!((&again.body, &again.path, &again.method), (&first.body, &first.path, &first.method));
        assert_eq!(again.headers["relay-replay-of"], first.headers["relay-request-id"]);
        assert_eq!(again.headers["relay-request-id"], replayed.id.as_str());
        assert_eq!(again.headers["x-request-id"], replayed.id.as_str());
        assert_eq!(again.headers["forwarded"], first.headers["forwarded"]);
        assert_eq!(app.requests(), 2);
        drop(app);
        let refused = within("an answer", tunnel.replay(&first)).await.unwrap();
        assert_eq!((refused.status, refused.error.as_deref()), (None, Some("upstream-refused")));
    }

    /// The application under test answers, and the test sees what it was asked.
    #[tokio::test]
    async fn requests_reach_their_service_all_the_same() {
        let (relay, app) = (Embedded::start().await, App::echo().await);
        let mut tunnel = open(relay.tunnel().upstream(app.addr()).capture()).await;
        for body in ["hello".to_owned(), "x".repeat(3 << 20)] {
            let mut caller = relay.caller().await;
            let request = Request::post(format!("{}/a?b", tunnel.url())).header("x-odd", b"\xe9".as_slice());
            let answer = caller.answer(request.body(full(body.clone())).unwrap()).await;
            assert!(answer.code() == 200 && answer.text() == body, "{} bytes", body.len());
            let request = within("a request", tunnel.next_request()).await.unwrap();
            assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/a?b"));
            assert!(request.body == body && !request.truncated, "{} of {}", request.body.len(), body.len());
            assert_eq!((request.status, request.missed), (Some(StatusCode::OK), 0));
            assert_eq!(request.headers["x-odd"], b"\xe9".as_slice());
            assert_eq!(request.headers["x-forwarded-host"], request.headers["host"]);
            assert!(request.headers.contains_key("relay-request-id"));
        }
        drop(app);
        assert_eq!(relay.post(tunnel.url(), "to nobody").await.code(), 502);
        let request = within("a request", tunnel.next_request()).await.unwrap();
        assert_eq!((&request.body[..], request.status), (&b"to nobody"[..], Some(StatusCode::BAD_GATEWAY)));
    }

    /// Whatever a handler does with a body.
    #[tokio::test]
    async fn bodies_are_whole_where_nobody_has_read_them() {
        let relay = Embedded::start().await;
        let glance = |request: Request<Body>| async move {
            let mut body = request.into_body();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            Response::new(format!("{}", first.len() < 5 << 20))
        };
        let mut tunnel = open(relay.tunnel().serve(glance).capture()).await;
        let large = vec![7; 5 << 20];
        let mut caller = relay.caller().await;
        let answer = caller.answer(Request::post(tunnel.url()).body(full(large.clone())).unwrap()).await;
        assert_eq!(answer.text(), "true");
        let request = within("a request", tunnel.next_request()).await.unwrap();
        assert!(request.body == large && !request.truncated, "{} bytes", request.body.len());
    }
}

#[tokio::test]
async fn the_status_tells_of_a_relay_that_went_and_came_back() {
    let mut world = World::start().await;
    let builder = Tunnel::builder().relay(world.relay_url()).token(world.token().await).ca_file(world.ca_file());
    let tunnel = open(builder.relay_addr(world.https()).capture()).await;
    let url = tunnel.url().to_owned();
    let mut status = tunnel.status();
    world.stop().await;
    let lost = within("the loss", status.wait_for(|status| *status != Status::Up)).await.unwrap().clone();
    assert!(matches!(&lost, Status::Lost { reason, .. } if !reason.is_empty()), "{lost:?}");
    world.start_again().await;
    within("the return", status.wait_for(|status| *status == Status::Up)).await.unwrap();
    assert_eq!((world.get(&url).await.code(), tunnel.url()), (200, url.as_str()));
    tunnel.close().await.unwrap();
    assert_eq!(*status.borrow(), Status::Ended { reason: None });
}

#[tokio::test]
async fn a_tunnel_that_is_lost_for_good_says_why() {
    let relay = Embedded::start().await;
    let builder = relay.tunnel().capture().max_reconnect_time(Duration::from_millis(100));
    let mut tunnel = open(builder).await;
    let mut status = tunnel.status();
    drop(relay);
    let over = |status: &Status| matches!(status, Status::Ended { .. });
    let ended = within("the end", status.wait_for(over)).await.unwrap().clone();
    assert!(matches!(&ended, Status::Ended { reason: Some(reason) } if reason.contains("gave up")), "{ended:?}");
    assert!(tunnel.next_request().await.is_none() && tunnel.exchange().await.is_none());
    assert!(matches!(tunnel.close().await.unwrap_err(), ClientError::GaveUp { .. }));
}

mod dropped {
    use super::*;

    #[tokio::test]
    async fn tunnels_leave_their_names_at_once() {
        let relay = Embedded::start().await;
        for _ in 0..20 {
            let tunnel = open(relay.tunnel().capture().subdomain("hooks")).await;
            assert_eq!(relay.post(tunnel.url(), "").await.code(), 200);
            drop(tunnel);
        }
    }

    /// A handler may never end; that is no reason to hold the name.
    #[tokio::test]
    async fn tunnels_do_not_wait_for_what_is_under_way() {
        let (relay, begun) = (Embedded::start().await, Arc::new(Notify::new()));
        let begins = begun.clone();
        let never = move |_: Request<Body>| {
            begins.notify_one();
            async { std::future::pending::<Response<()>>().await }
        };
        let tunnel = open(relay.tunnel().serve(never).subdomain("hooks")).await;
        let mut status = tunnel.status();
        let mut caller = relay.caller().await;
        let answer = caller.begin(Request::get(tunnel.url()).body(empty()).unwrap());
        within("the handler's begin", begun.notified()).await;
        drop(tunnel);
        let over = |status: &Status| matches!(status, Status::Ended { .. });
        within("the end", status.wait_for(over)).await.unwrap();
        assert_eq!(within("an answer", answer).await.unwrap().error(), Some("link-lost"));
        open(relay.tunnel().capture().subdomain("hooks")).await.close().await.unwrap();
    }

    #[tokio::test]
    async fn attempts_leave_no_task_behind() {
        let silent = relay_tests::app::listener().await;
        let builder = Tunnel::builder().relay("http://relay.localhost:1").relay_addr(silent.local_addr().unwrap());
        let opening = tokio::spawn(builder.capture().open());
        let (_tcp, _) = within("an attempt", silent.accept()).await.unwrap();
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(alive(), 2, "the caller's and the tunnel's");
        opening.abort();
        // Far sooner than an attempt gives up by itself: all that is needed is that each runs once.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(alive(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tunnels_know_nothing_of_each_other() {
    const TUNNELS: usize = 200;
    let relay = Embedded::start().await;
    let began = Instant::now();
    let opening = (0..TUNNELS).map(|i| {
        let mine = format!("tunnel {i}");
        open(relay.tunnel().serve(move |_| std::future::ready(Response::new(mine.clone()))))
    });
    let tunnels = join_all(opening).await;
    let opened = began.elapsed();
    let calls = tunnels.iter().map(|tunnel| relay.post(tunnel.url(), ""));
    for (i, answer) in join_all(calls).await.iter().enumerate() {
        assert_eq!(answer.text(), format!("tunnel {i}"));
    }
    let closing = Instant::now();
    for ended in join_all(tunnels.into_iter().map(Tunnel::close)).await {
        ended.unwrap();
    }
    let (opened, closed) = (opened.as_secs_f64(), closing.elapsed().as_secs_f64());
    println!("{TUNNELS} tunnels: opened in {opened:.2} s, closed in {closed:.2} s");
    assert!(opened + closed < 60.0, "{opened} s, {closed} s");
}

mod examples {
    use super::*;

    async fn start(name: &str, arguments: &[&str], relay: &Embedded) -> Process {
        let (ca, home) = (relay.relay.ca_file().unwrap().display().to_string(), Arc::new(tempfile::tempdir().unwrap()));
        let variables = [("RELAY_URL", relay.relay.url()), ("RELAY_TOKEN", &relay.token), ("RELAY_CA_FILE", &ca)];
        Process::spawn_in(home, &format!("examples/{name}"), arguments, &variables).await
    }

    #[tokio::test]
    async fn do_what_they_say() {
        let (relay, app) = (Embedded::start().await, App::echo().await);
        let port = app.addr().port().to_string();
        let mut http = start("http", &[&port], &relay).await;
        let url = http.line().await.unwrap();
        assert_eq!(relay.post(&url, "echo").await.text(), "echo");

        let mut handler = start("handler", &[], &relay).await;
        let url = handler.line().await.unwrap();
        assert_eq!(relay.post(&format!("{url}/a"), "12345").await.text(), "POST /a with 5 bytes\n");

        let mut capture = start("capture", &[], &relay).await;
        let url = capture.line().await.unwrap();
        assert_eq!(relay.post(&format!("{url}/hooks"), "the body").await.code(), 200);
        let ended = capture.wait().await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert!(ended.stdout.starts_with("POST /hooks\n") && ended.stdout.ends_with("\nthe body\n"), "{ended:?}");

        for mut process in [http, handler] {
            process.signal(rustix::process::Signal::INT);
            assert_eq!(process.wait().await.code(), 0, "{}", process.said());
        }

        let ended = start("embedded_relay", &[], &relay).await.wait().await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert!(ended.stdout.contains("hello from /hooks"), "{ended:?}");
        assert!(ended.stdout.contains("POST /hooks arrived and was answered with Some(200)"), "{ended:?}");
    }
}
