//! What those notice who are kept out, and everybody else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use http::{HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_tests::body::empty;
use relay_tests::process::{Ended, run};
use relay_tests::world::try_connect_tls;
use relay_tests::{Answer, App, RelayClient, World, within};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

/// `relay-server WORD …` on the world's data.
async fn done(world: &World, line: &str) -> Ended {
    let data = world.data_dir().display().to_string();
    let mut words = line.split_whitespace();
    let command = words.next().unwrap();
    let ended = run("relay-server", [command, "--data-dir", &data].into_iter().chain(words)).await;
    assert_eq!(ended.code(), 0, "{line}: {ended:?}");
    ended
}

/// A client of the real program, with a token of that name.
async fn client(world: &World, token: &str, app: &App, name: &str) -> RelayClient {
    let made = done(world, &format!("token create {token}")).await;
    let words = ["http", &app.addr().port().to_string(), "--subdomain", name, "--inspect", "off", "--output", "json"];
    RelayClient::spawn(world.arguments(made.stdout.trim(), &words)).await
}

fn get(url: &str) -> Request<relay_tests::Body> {
    Request::get(url).body(empty()).unwrap()
}

fn blocked(answer: &Answer) {
    assert_eq!((answer.code(), answer.error()), (403, Some("blocked")), "{answer:?}");
}

#[tokio::test]
async fn an_address_is_kept_out_with_what_it_has() {
    let world = World::start().await;
    let app = App::echo().await;
    let mut client = client(&world, "ours", &app, "live").await;
    let mut http = world.http1(&world.host("live")).await;
    assert_eq!(http.answer(get(&world.url("live", "/"))).await.code(), 200);
    let added = done(&world, "block add --address 127.0.0.0/8 --reason tests").await;
    assert!(added.stderr.contains("address 127.0.0.0/8"), "{added:?}");
    assert_eq!(within("the client's end", client.process.wait()).await.code(), 3, "it stops, as if it was revoked");
    assert!(http.try_answer(get(&world.url("live", "/"))).await.is_none(), "the connection is closed");
    let refused = try_connect_tls(world.https(), &world.host("live"), world.ca_file(), &[b"http/1.1"]).await;
    assert!(refused.is_err(), "it is closed before the handshake");
    let metrics = world.get_admin("/metrics").await;
    for line in [
        "relay_connections_refused_total 1\n",
        "relay_blocked_total{what=\"connection\"} 1\n",
        "relay_blocked_total{what=\"request\"} 0\n",
    ] {
        assert!(metrics.text().contains(line), "{line}{}", metrics.text());
    }

    let listed = done(&world, "block list --output json").await.lines().remove(0);
    assert_eq!((&listed["address"], &listed["reason"]), (&"127.0.0.0/8".into(), &"tests".into()));
    done(&world, &format!("block remove {}", listed["id"])).await;
    assert_eq!(world.get(&world.url("live", "/")).await.code(), 503, "there is only no client any more");
    assert_eq!(done(&world, "block list").await.stdout, "");
    world.shutdown().await;
}

#[tokio::test]
async fn behind_a_proxy_it_is_the_address_that_the_proxy_names() {
    let world = World::with(|config| config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()]).await;
    let app = App::echo().await;
    let tunnel = world.tunnel(&app).await;
    done(&world, "block add --address 192.0.2.0/24").await;
    let from = |address: &str| {
        Request::get(world.url(tunnel.name(), "/")).header("x-forwarded-for", address).body(empty()).unwrap()
    };
    blocked(&world.send(from("192.0.2.9")).await);
    assert!(world.get_admin("/metrics").await.text().contains("relay_blocked_total{what=\"request\"} 1\n"));
    assert_eq!(world.send(from("192.0.3.9")).await.code(), 200);
    // Whatever a sender says itself stands before what the proxy adds, and need not be text.
    let raw = |line: &[u8]| {
        let line = HeaderValue::from_bytes(line).unwrap();
        Request::get(world.url(tunnel.name(), "/")).header("x-forwarded-for", line).body(empty()).unwrap()
    };
    for line in [&b"\xff, 192.0.2.9"[..], b"192.0.2.9:50123", b"[::ffff:192.0.2.9]:50123"] {
        blocked(&world.send(raw(line)).await);
    }
    let passed = world.send(raw(b"\xff, [2001:db8::9]:50123")).await;
    assert_eq!(passed.code(), 200, "{passed:?}");
    // Whom nobody knows may be the one.
    blocked(&world.send(raw(b"192.0.3.9, \xff")).await);
    blocked(&world.send(from("unknown")).await);
    // Whoever is not believed is held against its own address.
    assert_eq!(world.send(from("192.0.2.9, 192.0.3.9")).await.code(), 200);
    drop(tunnel);
    world.shutdown().await;
}

#[tokio::test]
async fn a_name_is_kept_out_whoever_has_it_and_others_of_its_client_stay() {
    let mut world = World::start().await;
    let app = App::recording().await;
    let token = world.token().await;
    let client = || Client::new(world.target()).token(token.clone().into());
    let bad = TunnelOptions::new(app.upstream()).subdomain("bad");
    let first = within("a tunnel", Tunnel::start(client(), bad.clone())).await.unwrap();
    let other = within("a tunnel", Tunnel::start(client(), TunnelOptions::new(app.upstream()).subdomain("good")));
    let other = other.await.unwrap();
    done(&world, "block add --name bad").await;
    blocked(&world.get(&world.url("bad", "/")).await);
    assert_eq!(world.get(&world.url("good", "/")).await.code(), 200);
    let again = within("a refusal", Tunnel::start(client(), bad)).await.unwrap_err().to_string();
    assert!(again.contains("has blocked the name bad"), "{again}");
    // It is not claimed either.
    done(&world, "block add --name worse").await;
    let worse = Tunnel::start(client(), TunnelOptions::new(app.upstream()).subdomain("worse"));
    assert!(within("a refusal", worse).await.is_err());
    let listed = done(&world, "token list --output json").await.stdout;
    assert!(listed.contains("\"bad\"") && !listed.contains("worse"), "{listed}");
    drop((first, other));
    // It is so after a restart, and nothing is kept for it.
    done(&world, "token create holder --reserve kept").await;
    done(&world, "token reserve holder kept --inbox").await;
    done(&world, "block add --name kept").await;
    world.stop().await;
    world.start_again().await;
    blocked(&world.post(&world.url("kept", "/"), "1").await);
    blocked(&world.get(&world.url("bad", "/")).await);
    let line = done(&world, "inbox list --output json").await.lines().remove(0);
    assert_eq!(line["waiting"], 0);
    world.shutdown().await;
}

/// A download, something that was upgraded, and a request without an answer.
struct UnderWay {
    download: Incoming,
    socket: TokioIo<Upgraded>,
    waiting: JoinHandle<Answer>,
}

impl UnderWay {
    /// By the proxy of this address, if by any.
    async fn begin(world: &World, name: &str, proxied: Option<&str>) -> Self {
        let request = |path| {
            let request = Request::get(world.url(name, path));
            let request = proxied.into_iter().fold(request, |request, from| request.header("x-forwarded-for", from));
            request.body(empty()).unwrap()
        };
        let host = world.host(name);
        let mut http = world.http2(&host).await;
        let download = within("an answer", http.request(request("/"))).await.unwrap().into_body();
        let waiting = http.begin(request("/wait"));
        let socket = world.http1(&host).await.switch(request("/socket")).await;
        let mut under_way = Self { download, socket, waiting };
        under_way.goes_on().await;
        under_way
    }

    async fn goes_on(&mut self) {
        within("a piece", self.download.frame()).await.unwrap().unwrap();
        assert!(within("bytes", self.socket.read(&mut [0; 8])).await.is_ok_and(|length| length > 0));
    }

    /// The answer to the one that waits, if it has got any.
    async fn ends(mut self) -> Option<Answer> {
        while let Some(Ok(_)) = within("the end of the download", self.download.frame()).await {}
        let mut buffer = vec![0; 64 * 1024];
        while within("the end", self.socket.read(&mut buffer)).await.is_ok_and(|length| length > 0) {}
        within("an answer, or none", self.waiting).await.ok()
    }
}

#[tokio::test]
async fn what_is_under_way_for_a_name_ends_with_its_block_and_its_client_is_told_why() {
    let world = World::start().await;
    let app = App::endless("more".into()).await;
    let mut bad = client(&world, "one", &app, "bad").await;
    let good = client(&world, "two", &app, "good").await;
    let mut others = UnderWay::begin(&world, "good", None).await;
    let under_way = UnderWay::begin(&world, "bad", None).await;
    done(&world, "block add --name bad").await;
    blocked(&under_way.ends().await.unwrap());
    let ended = within("the client's end", bad.process.wait()).await;
    assert_eq!(ended.code(), 7, "{ended:?}");
    assert!(ended.stderr.contains("The relay's operator has blocked the name bad. Ask the operator why."), "{ended:?}");
    others.goes_on().await;
    drop(good);
    world.shutdown().await;
}

#[tokio::test]
async fn what_is_under_way_for_an_address_ends_with_its_block() {
    let world = World::with(|config| config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()]).await;
    let app = App::endless("more".into()).await;
    let tunnel = world.tunnel(&app).await;
    let mut others = UnderWay::begin(&world, tunnel.name(), Some("192.0.3.9")).await;
    let under_way = UnderWay::begin(&world, tunnel.name(), Some("192.0.2.9")).await;
    done(&world, "block add --address 192.0.2.0/24").await;
    blocked(&under_way.ends().await.unwrap());
    others.goes_on().await;
    drop(tunnel);
    world.shutdown().await;

    let world = World::start().await;
    let tunnel = world.tunnel(&app).await;
    let under_way = UnderWay::begin(&world, tunnel.name(), None).await;
    done(&world, "block add --address 127.0.0.1").await;
    assert!(under_way.ends().await.is_none());
    drop(tunnel);
    world.shutdown().await;
}

/// While its client is away, the relay speaks for it.
#[tokio::test]
async fn handshakes_are_not_answered_for_a_token_that_is_kept_out() {
    let world = World::start().await;
    done(&world, "token create ours").await;
    done(&world, "token reserve ours chat --provider slack").await;
    let url = world.url("chat", "/");
    let ask = || world.post(&url, r#"{"type":"url_verification","token":"t","challenge":"c-1"}"#);
    let answer = ask().await;
    assert!(answer.code() == 200 && answer.text().contains("c-1"), "{answer:?}");
    done(&world, "block add --token ours").await;
    blocked(&ask().await);
    world.shutdown().await;
}

/// Where names are in paths they are not another way in.
#[tokio::test]
async fn what_is_kept_out_and_limited_is_so_in_paths_too() {
    let world = World::with(|config| config.path_mode = true).await;
    let app = App::echo().await;
    let made = done(&world, "token create ours --max-bytes 1KiB").await;
    let client = Client::new(world.target()).token(made.stdout.trim().to_owned().into());
    let tunnel = Tunnel::start(client, TunnelOptions::new(app.upstream()).subdomain("bad"));
    let tunnel = within("a tunnel", tunnel).await.unwrap();
    let url = format!("{}/t/bad/hook", world.relay_url());
    assert_eq!(world.post(&url, vec![b'a'; 1024]).await.code(), 200);
    let over = world.post(&url, "1").await;
    assert_eq!((over.code(), over.error()), (429, Some("quota-exceeded")), "{over:?}");
    done(&world, "block add --name bad").await;
    blocked(&world.post(&url, "1").await);
    drop(tunnel);
    world.shutdown().await;
}

#[tokio::test]
async fn a_token_is_worth_nothing_until_its_block_is_removed() {
    let world = World::start().await;
    let app = App::echo().await;
    let made = done(&world, "token create trial").await;
    let words =
        ["http", &app.addr().port().to_string(), "--subdomain", "trial", "--inspect", "off", "--output", "json"];
    let arguments = world.arguments(made.stdout.trim(), &words);
    let mut client = RelayClient::spawn(&arguments).await;
    assert_eq!(world.get(&world.url("trial", "/")).await.code(), 200);
    done(&world, "block add --token trial").await;
    let ended = within("the client's end", client.process.wait()).await;
    assert_eq!(ended.code(), 3, "{ended:?}");
    assert!(ended.stderr.contains("has blocked this client"), "{ended:?}");
    let refused = run("relay", &arguments).await;
    assert!(refused.code() == 3 && refused.stderr.contains("has blocked this client"), "{refused:?}");
    let audit = done(&world, "audit --limit 1 --output json").await.lines().remove(0);
    assert_eq!((&audit["operation"], &audit["subject"]), (&"block.add".into(), &"token trial".into()));
    done(&world, "block remove 1").await;
    let client = RelayClient::spawn(&arguments).await;
    assert_eq!(world.get(&world.url("trial", "/")).await.code(), 200);
    drop(client);
    world.shutdown().await;
}

#[tokio::test]
async fn error_pages_lead_to_where_abuse_is_reported() {
    let world = World::with(|config| config.report_url = Some("https://example.com/abuse?a=1&b=2".to_owned())).await;
    let url = world.url("nobody", "/");
    let page = world.send(Request::get(&url).header("accept", "text/html").body(empty()).unwrap()).await;
    assert!(page.text().contains("href=\"https://example.com/abuse?a=1&amp;b=2\">Report abuse</a>"), "{page:?}");
    assert_eq!(world.get(&url).await.json()["error"]["report"], "https://example.com/abuse?a=1&b=2");
    world.shutdown().await;
    let world = World::start().await;
    assert!(!world.get(&world.url("nobody", "/")).await.text().contains("report"));
    world.shutdown().await;
}
