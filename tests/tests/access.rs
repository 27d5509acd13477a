//! Who may call a tunnel, as its owner, those who may and those who may not notice it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::request::Builder;
use http::{HeaderValue, Request, Version};
use hyper::ext::Protocol;
use relay_protocol::message::TunnelSpec;
use relay_server::config::Config;
use relay_tests::body::{empty, full, noise, pipe};
use relay_tests::peer::{connect_on, sessions, spec};
use relay_tests::process::run;
use relay_tests::{Answer, App, Http, PATIENCE, Process, RelayClient, World, within};
use serde_json::Value;

/// A relay behind a proxy on loopback, so that tests can say who sends.
fn behind_a_proxy(config: &mut Config) {
    config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
}

/// `relay http … --subdomain hooks` with these flags.
async fn client(world: &World, token: &str, app: &App, flags: &[&str]) -> RelayClient {
    let target = app.addr().to_string();
    let words = [&["http", &target, "--subdomain", "hooks", "--output", "json"], flags].concat();
    RelayClient::spawn(world.arguments(token, &words)).await
}

/// A relay, an app that records, and a client of it with these flags.
struct Scene {
    world: World,
    token: String,
    app: App,
    client: RelayClient,
}

impl Scene {
    async fn start(flags: &[&str]) -> Self {
        Self::with(|_| {}, flags).await
    }

    async fn with(change: impl FnOnce(&mut Config), flags: &[&str]) -> Self {
        let world = World::with(change).await;
        let (token, app) = (world.token().await, App::recording().await);
        let client = client(&world, &token, &app, flags).await;
        Self { world, token, app, client }
    }

    fn get(&self, path: &str) -> Builder {
        Request::get(self.world.url("hooks", path))
    }

    fn post(&self, path: &str) -> Builder {
        Request::post(self.world.url("hooks", path))
    }

    async fn http(&self, version: Version) -> Http {
        let host = self.world.host("hooks");
        if version == Version::HTTP_2 { self.world.http2(&host).await } else { self.world.http1(&host).await }
    }

    /// The answers to a request without a body, over HTTP/1.1 and over HTTP/2.
    async fn both(&self, request: impl Fn() -> Builder) -> [Answer; 2] {
        let ask = async |version| self.http(version).await.answer(request().body(empty()).unwrap()).await;
        [ask(Version::HTTP_11).await, ask(Version::HTTP_2).await]
    }

    /// Both are refused so, and the app hears nothing of it.
    async fn refuses(&self, status: u16, code: &str, request: impl Fn() -> Builder) -> Answer {
        let before = self.app.requests();
        let [first, second] = self.both(request).await;
        for answer in [&first, &second] {
            assert_eq!((answer.code(), answer.error()), (status, Some(code)), "{answer:?}");
        }
        assert_eq!(self.app.requests(), before);
        first
    }

    /// Both come to the app.
    async fn passes(&self, request: impl Fn() -> Builder) {
        for answer in self.both(request).await {
            assert_eq!((answer.code(), answer.error()), (200, None), "{answer:?}");
        }
    }
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

#[tokio::test]
async fn addresses_are_those_of_senders_and_deny_comes_first() {
    let flags = ["--allow", "203.0.113.0/24", "--allow", "2001:db8::/32", "--deny", "203.0.113.9"];
    let mut scene = Scene::with(behind_a_proxy, &flags).await;
    let from = |address: &'static str| scene.get("/").header("x-forwarded-for", address);
    for address in ["203.0.113.7", "2001:db8::7", "10.0.0.1, 203.0.113.8", "203.0.113.7:50123", "[2001:db8::7]:50123"] {
        scene.passes(|| from(address)).await;
    }
    for address in ["203.0.113.9", "198.51.100.1", "203.0.113.7, 198.51.100.1", "2001:db9::1", "unknown"] {
        scene.refuses(403, "address-not-allowed", || from(address)).await;
    }
    // What a sender writes before the proxy's word hides nobody, whatever it is.
    let junk = |address: &str| HeaderValue::from_bytes(&[b"\xff, ", address.as_bytes()].concat()).unwrap();
    scene.passes(|| scene.get("/").header("x-forwarded-for", junk("203.0.113.7"))).await;
    scene.refuses(403, "address-not-allowed", || scene.get("/").header("x-forwarded-for", junk("203.0.113.9"))).await;
    // Nobody stands before it: the peer is the sender.
    scene.refuses(403, "address-not-allowed", || scene.get("/")).await;
    let html = scene.refuses(403, "address-not-allowed", || scene.get("/").header("accept", "text/html")).await;
    assert!(html.text().contains("does not take requests from your address"), "{html:?}");
    let told = scene.client.process.event("requests.withheld").await;
    assert_eq!((&told["error"], &told["verdict"]), (&"address-not-allowed".into(), &"".into()), "{told}");
    assert!(told["reason"].as_str().unwrap().contains("its address is not let in"), "{told}");
    let metrics = scene.world.get_admin("/metrics").await;
    assert!(metrics.text().contains("address-not-allowed"), "refusals are counted");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn one_of_the_credentials_lets_in_and_goes_no_further() {
    let scene = Scene::start(&[
        "--basic-auth",
        "ann:s3cret-of-ann",
        "--basic-auth",
        "bob:s3cret-of-bob",
        "--api-key",
        "X-Api-Key=s3cret-key",
        "--api-key",
        "s3cret-bearer",
    ])
    .await;
    let with = |name: &'static str, value: String| scene.get("/").header(name, value);
    for (name, value) in [
        ("authorization", basic("ann:s3cret-of-ann")),
        ("authorization", basic("bob:s3cret-of-bob")),
        ("authorization", "Bearer s3cret-bearer".to_owned()),
        ("x-api-key", "s3cret-key".to_owned()),
    ] {
        scene.passes(|| with(name, value.clone())).await;
        assert!(!scene.app.last().headers.contains_key(name), "{name} is the edge's");
    }
    for (name, value) in [
        ("authorization", basic("ann:s3cret-of-bob")),
        ("authorization", basic("ann")),
        ("authorization", "Bearer s3cret-key".to_owned()),
        ("x-api-key", "s3cret-bearer".to_owned()),
        ("x-api-key", String::new()),
        ("x-other", "s3cret-key".to_owned()),
    ] {
        scene.refuses(401, "credentials-required", || with(name, value.clone())).await;
    }
    let refused = scene.refuses(401, "credentials-required", || scene.get("/")).await;
    let challenges: Vec<_> = refused.headers.get_all("www-authenticate").iter().map(|v| v.to_str().unwrap()).collect();
    let schemes: Vec<_> = challenges.iter().map(|one| one.split(' ').next().unwrap()).collect();
    assert_eq!(schemes, ["Basic", "ApiKey", "Bearer"], "{challenges:?}");
    // What is the app's own stays.
    let own = || scene.get("/").header("x-api-key", "s3cret-key").header("authorization", "Bearer the-apps-own");
    scene.passes(own).await;
    assert_eq!(scene.app.last().header("authorization"), "Bearer the-apps-own");
    let Scene { world, mut client, .. } = scene;
    let ended = client.process.terminate().await;
    assert!(!ended.stdout.contains("s3cret") && !ended.stderr.contains("s3cret"), "{ended:?}");
    world.shutdown().await;
}

#[tokio::test]
async fn credentials_can_be_in_files_and_variables() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pair");
    std::fs::write(&file, "ann:secret\n").unwrap();
    let at_file = format!("@{}", file.display());
    let scene = Scene::start(&["--basic-auth", &at_file]).await;
    scene.passes(|| scene.get("/").header("authorization", basic("ann:secret"))).await;
    scene.refuses(401, "credentials-required", || scene.get("/")).await;
    let arguments = ["http", "1", "--relay", "https://relay.example", "--basic-auth", "env:NO_SUCH_VARIABLE"];
    let ended = run("relay", arguments).await;
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("env:NO_SUCH_VARIABLE: this variable is not set"), "{ended:?}");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn methods_and_paths_are_those_that_were_named() {
    let flags = ["--allow-method", "post", "--allow-method", "GET", "--allow-path", "/hooks/*", "--allow-path", "/up"];
    let scene = Scene::start(&flags).await;
    scene.passes(|| scene.get("/hooks/a/b?x=../y")).await;
    scene.passes(|| scene.post("/up")).await;
    for path in ["/", "/hooks", "/up/", "/hooks/../admin", "/hooks/%2e%2e/admin", "/hooks/..%2Fadmin", "/%75p"] {
        scene.refuses(403, "path-not-allowed", || scene.get(path)).await;
    }
    let delete = || Request::delete(scene.world.url("hooks", "/up"));
    let refused = scene.refuses(405, "method-not-allowed", delete).await;
    assert_eq!(refused.header("allow"), "POST, GET");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_however_it_comes() {
    let scene = Scene::start(&["--body-limit", "1KiB"]).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut http = scene.http(version).await;
        let answer = http.answer(scene.post("/").body(full(noise(1024))).unwrap()).await;
        assert_eq!(answer.code(), 200);
        assert_eq!(scene.app.last().body.len(), 1024);
        let before = scene.app.requests();
        let answer = scene.http(version).await.answer(scene.post("/").body(full(noise(1025))).unwrap()).await;
        assert_eq!((answer.code(), answer.error()), (413, Some("body-too-large")), "{answer:?}");
        assert!(answer.text().contains("1KiB"), "{answer:?}");
        assert_eq!(scene.app.requests(), before);
        // One that does not say how long it is.
        let (sender, body) = pipe();
        let mut http = scene.http(version).await;
        let answer = http.begin(scene.post("/").body(body).unwrap());
        for _ in 0..3 {
            sender.send(noise(512)).await;
        }
        let answer = within("an answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (413, Some("body-too-large")), "{answer:?}");
    }
    scene.world.shutdown().await;
}

#[tokio::test]
async fn what_comes_too_fast_is_refused_also_after_the_client_was_away() {
    let mut scene = Scene::start(&["--rate-limit", "2", "--inbox"]).await;
    let mut http = scene.http(Version::HTTP_2).await;
    let mut answers = Vec::new();
    // Two at once, two more in each second, and one in the second that has begun.
    let is_kept_to = |passed: usize, begun: Instant| {
        let most = 2.0 + 2.0 * begun.elapsed().as_secs_f64() + 1.0;
        assert!(passed >= 1 && passed as f64 <= most, "{passed} have passed, and {most} may have");
    };
    let begun = Instant::now();
    // However long it takes: so many at once that some are too many.
    while answers.iter().all(|answer: &Answer| answer.code() == 200) {
        let batch: Vec<_> = (0..20).map(|_| http.begin(scene.get("/").body(empty()).unwrap())).collect();
        for answer in batch {
            answers.push(within("an answer", answer).await.unwrap());
        }
    }
    let (passed, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code() == 200);
    is_kept_to(passed.len(), begun);
    assert_eq!((refused[0].code(), refused[0].error()), (429, Some("too-many-requests")), "{:?}", refused[0]);
    assert_eq!(refused[0].header("retry-after"), "1");
    assert!(refused[0].text().contains("2 requests in a second"), "{:?}", refused[0]);
    let told = scene.client.process.event("requests.withheld").await;
    assert_eq!(told["error"], "too-many-requests", "{told}");
    // The inbox keeps no more than that either, and the seconds go on where they were.
    scene.client.process.terminate().await;
    let mut kept = 0;
    while kept < 3 {
        let answer = http.answer(scene.post("/").body(full("x")).unwrap()).await;
        assert!(matches!(answer.code(), 202 | 429), "{answer:?}");
        kept += usize::from(answer.code() == 202);
    }
    is_kept_to(passed.len() + kept, begun);
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_websocket_is_a_request_like_any_other() {
    let scene = Scene::start(&["--api-key", "k3y"]).await;
    let host = scene.world.host("hooks");
    let mut wire = scene.world.raw(&host).await;
    wire.send(format!(
        "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.message().await.unwrap().status(), 401);
    let mut http = scene.http(Version::HTTP_2).await;
    let request = Request::connect(scene.world.url("hooks", "/socket"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(empty())
        .unwrap();
    assert_eq!(http.answer(request).await.error(), Some("credentials-required"));
    assert_eq!(scene.app.requests(), 0);
    scene.world.shutdown().await;
}

#[tokio::test]
async fn an_inbox_keeps_nothing_from_those_who_may_not_call_also_while_its_client_is_away() {
    let mut scene = Scene::start(&["--inbox", "--basic-auth", "ann:secret", "--allow-path", "/hooks/*"]).await;
    let kept = |answer: &Answer| answer.headers.contains_key("relay-inbox");
    let stranger = scene.world.send(scene.post("/hooks/1").body(full("x")).unwrap()).await;
    assert_eq!((stranger.code(), kept(&stranger)), (401, false), "{stranger:?}");
    scene.client.process.terminate().await;
    for restarted in [false, true] {
        if restarted {
            scene.world.stop().await;
            scene.world.start_again().await;
        }
        let post = |path: &str| scene.post(path);
        let ask = async |request: Builder| scene.world.send(request.body(full("x")).unwrap()).await;
        let stranger = ask(post("/hooks/2")).await;
        assert_eq!((stranger.code(), kept(&stranger)), (401, false), "restarted {restarted}: {stranger:?}");
        let elsewhere = ask(post("/admin").header("authorization", basic("ann:secret"))).await;
        assert_eq!((elsewhere.code(), kept(&elsewhere)), (403, false), "restarted {restarted}: {elsewhere:?}");
        let owner = ask(post("/hooks/3").header("authorization", basic("ann:secret"))).await;
        assert_eq!((owner.code(), kept(&owner)), (202, true), "restarted {restarted}: {owner:?}");
    }
    // The pair lets in, and is not kept with what it has let in.
    let files = std::fs::read_dir(scene.world.data_dir()).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        let pair = BASE64_STANDARD.encode("ann:secret");
        for needle in [pair.as_bytes(), b"ann:secret"] {
            let is_there = bytes.windows(needle.len()).any(|window| window == needle);
            assert!(!is_there, "{} has the pair", file.display());
        }
    }
    let app = App::recording().await;
    let back = client(&scene.world, &scene.token, &app, &["--inbox"]).await;
    within("both webhooks", app.reached(2)).await;
    assert!(app.seen().iter().all(|seen| seen.target == "/hooks/3" && !seen.headers.contains_key("authorization")));
    // It lets in everybody now, and so does its inbox.
    drop(back);
    scene.world.shutdown().await;
}

/// The name was reserved with an inbox, and its client does not ask for one: that takes all the same what the client lets in.
#[tokio::test]
async fn an_inbox_that_the_client_has_not_asked_for_takes_what_the_client_lets_in() {
    let world = World::start().await;
    let (secret, name) = world.token_with(|_| {}).await;
    let data = world.data_dir().display().to_string();
    let reserve = ["token", "--data-dir", &data, "reserve", &name, "hooks", "--inbox"];
    assert_eq!(run("relay-server", reserve).await.code(), 0);
    let post = async || world.post(&world.url("hooks", "/"), "x").await.code();
    assert_eq!(post().await, 202, "nobody has said anything yet");
    let app = App::recording().await;
    let mut guarded = client(&world, &secret, &app, &["--api-key", "k3y"]).await;
    assert_eq!(post().await, 401);
    guarded.process.terminate().await;
    assert_eq!(post().await, 401);
    let mut open = client(&world, &secret, &app, &[]).await;
    assert_eq!(post().await, 200);
    open.process.terminate().await;
    assert_eq!(post().await, 202);
    world.shutdown().await;
}

/// A proxy of the network that may call does not let in whom it cannot name.
#[tokio::test]
async fn somebody_unknown_is_never_taken_for_the_proxy() {
    let scene = Scene::with(behind_a_proxy, &["--allow", "127.0.0.0/8"]).await;
    scene.passes(|| scene.get("/")).await;
    for line in [&b"\xff"[..], b"unknown", b"", b"127.0.0.1:"] {
        let line = HeaderValue::from_bytes(line).unwrap();
        scene.refuses(403, "address-not-allowed", || scene.get("/").header("x-forwarded-for", &line)).await;
    }
    scene.world.shutdown().await;
}

/// What has let a request in counts as shown by it also where its client comes back with other rules, and it counts once.
#[tokio::test]
async fn a_request_that_waits_for_its_client_is_judged_anew_as_it_came() {
    let rules = ["--basic-auth", "ann:secret", "--rate-limit", "1"];
    let mut scene = Scene::with(|config| config.limits.client_wait = PATIENCE, &rules).await;
    scene.client.process.kill().await;
    sessions(&scene.world, 0).await;
    let mut http = scene.http(Version::HTTP_11).await;
    let request = scene.get("/").header("authorization", basic("ann:secret"));
    let answer = http.begin(request.body(empty()).unwrap());
    within("a request under way", async {
        while !scene.world.get_admin("/metrics").await.text().contains("relay_exchanges_under_way 1\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let other = [&rules[..], &["--allow-path", "/*"]].concat();
    let back = client(&scene.world, &scene.token, &scene.app, &other).await;
    let answer = within("an answer", answer).await.unwrap();
    assert_eq!((answer.code(), answer.error()), (200, None), "{answer:?}");
    assert!(!scene.app.last().headers.contains_key("authorization"));
    drop(back);
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_handshake_is_answered_for_those_who_may_call() {
    let mut scene = Scene::start(&["--provider", "slack", "--handshake", "--api-key", "X-Key=k3y"]).await;
    // Without a goodbye, so that it may come back.
    scene.client.process.kill().await;
    sessions(&scene.world, 0).await;
    let challenge = || scene.post("/slack").header("x-slack-request-timestamp", "1");
    let body = r#"{"type":"url_verification","token":"t","challenge":"c4"}"#;
    let stranger = scene.world.send(challenge().body(full(body)).unwrap()).await;
    assert_eq!((stranger.code(), stranger.error()), (401, Some("credentials-required")), "{stranger:?}");
    assert!(!stranger.headers.contains_key("relay-handshake"));
    let known = scene.world.send(challenge().header("x-key", "k3y").body(full(body)).unwrap()).await;
    assert_eq!((known.code(), known.text()), (200, "c4"), "{known:?}");
    assert_eq!(known.header("relay-handshake"), "slack");
    scene.world.shutdown().await;
}

/// What the relay does not understand would let in whom it was to keep out.
#[tokio::test]
async fn a_rule_of_a_later_version_is_refused() {
    let world = World::start().await;
    let token = world.token().await;
    let rule = |json: &str| {
        let extra = relay_protocol::message::Extra { tag: 7, value: json.into() };
        TunnelSpec { extra: vec![extra], ..spec(1, "later") }
    };
    for json in [r#"{"country":["is"]}"#, r#"{"allow":["everywhere"]}"#, "", "[]"] {
        let mut socket = connect_on(world.raw("relay.test").await, &token).await;
        let bound = socket.hello(vec![rule(json)]).await;
        let refusal = bound[0].result.as_ref().expect_err(json);
        assert_eq!(refusal.code, "bad-request", "{refusal:?}");
        assert!(refusal.hint.contains("Update"), "{refusal:?}");
    }
    world.shutdown().await;
}

#[tokio::test]
async fn a_file_says_it_for_each_tunnel_and_a_change_holds_at_once() {
    let world = World::start().await;
    let (token, app) = (world.token().await, App::recording().await);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let file = directory.path().join("relay.toml");
    let write = |path: &str| {
        let tunnel = format!("[tunnels.web]\nupstream = '{}'\nsubdomain = 'hooks'\n", app.addr());
        let access = format!("[tunnels.web.access]\nallow_path = '{path}'\nbasic_auth = '@pair'\n");
        std::fs::write(&file, tunnel + &access).unwrap();
    };
    std::fs::write(directory.path().join("pair"), "ann:secret\n").unwrap();
    write("/a");
    let words = world.arguments(&token, &["start", "--output", "json"]);
    let mut client = RelayClient::of(Process::spawn_in(directory.clone(), "relay", words, &[]).await).await;
    let ask = async |path: &str, pair: &str| {
        let request = Request::get(world.url("hooks", path)).header("authorization", basic(pair));
        world.send(request.body(empty()).unwrap()).await.code()
    };
    assert_eq!((ask("/a", "ann:secret").await, ask("/b", "ann:secret").await), (200, 403));
    assert_eq!(ask("/a", "ann:other").await, 401);
    write("/b");
    client.process.event("tunnel.ready").await;
    assert_eq!((ask("/a", "ann:secret").await, ask("/b", "ann:secret").await), (403, 200));
    let check =
        Process::spawn_in(directory.clone(), "relay", ["config", "check", "--output", "json"], &[]).await.wait().await;
    let access = check.lines().into_iter().find(|line| line["setting"] == "tunnels.web.access");
    let value = access.as_ref().map_or(&Value::Null, |line| &line["value"]);
    assert_eq!(value, "basic-auth=1 paths=/b", "{check:?}");
    world.shutdown().await;
}

/// All of it is more than a session's first message can have.
#[tokio::test]
async fn long_rules_of_many_tunnels_hold_and_their_client_comes_back_with_them() {
    let mut world = World::start().await;
    let (token, app) = (world.token().await, App::recording().await);
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let networks: Vec<String> = (0..250).map(|number| format!("'2001:db8:{number:04x}:ffff::/64'")).collect();
    let tunnel = |number| format!("[tunnels.n{number}]\nupstream = '{}'\nsubdomain = 'n{number}'\n", app.addr());
    let tunnels: String = (0..20).map(tunnel).collect();
    let text = format!("[access]\nallow = '127.0.0.1'\ndeny = [{}]\n{tunnels}", networks.join(", "));
    std::fs::write(directory.path().join("relay.toml"), text).unwrap();
    let words = world.arguments(&token, &["start", "--output", "json"]);
    let mut client = RelayClient::of(Process::spawn_in(directory, "relay", words, &[]).await).await;
    for again in [false, true] {
        if again {
            world.stop().await;
            world.start_again().await;
        }
        for number in [0, 10, 19] {
            within(format!("tunnel {number} again: {again}"), async {
                while world.get(&world.url(&format!("n{number}"), "/")).await.code() != 200 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await;
        }
    }
    client.process.terminate().await;
    world.shutdown().await;
}

/// Whatever its tunnels let in themselves, also while no client is there, and at once.
#[tokio::test]
async fn a_token_is_confined_by_the_operator() {
    let world = World::with(behind_a_proxy).await;
    let (secret, name) = world.token_with(|_| {}).await;
    let app = App::recording().await;
    let mut client = client(&world, &secret, &app, &["--inbox", "--deny", "203.0.113.9"]).await;
    let from = async |address: &str, body: usize| {
        let request = Request::post(world.url("hooks", "/")).header("x-forwarded-for", address);
        world.send(request.body(full(noise(body))).unwrap()).await
    };
    let data = world.data_dir().display().to_string();
    let limit = async |flags: &[&str]| {
        let words = [&["token", "--data-dir", &data, "limit", &name], flags].concat();
        let ended = run("relay-server", words).await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended.stdout
    };
    assert_eq!(from("198.51.100.1", 2000).await.code(), 200);
    let said = limit(&["--allow", "203.0.113.0/24,2001:db8::/32", "--max-body", "1KiB"]).await;
    assert!(said.contains("bodies of at most 1KiB, from 203.0.113.0/24, 2001:db8::/32."), "{said}");
    let is_kept_to = async |passes: u16| {
        for (address, body, code, error) in [
            ("203.0.113.7", 1024, passes, None),
            ("2001:db8::7", 10, passes, None),
            ("203.0.113.9", 10, 403, Some("address-not-allowed")),
            ("198.51.100.1", 10, 403, Some("address-not-allowed")),
            ("nobody", 10, 403, Some("address-not-allowed")),
            ("203.0.113.7", 1025, 413, Some("body-too-large")),
        ] {
            let answer = from(address, body).await;
            assert_eq!((answer.code(), answer.error()), (code, error), "{address} {body}: {answer:?}");
        }
    };
    is_kept_to(200).await;
    let told = client.process.event("requests.withheld").await;
    assert_eq!(told["error"], "address-not-allowed", "{told}");
    client.process.terminate().await;
    is_kept_to(202).await;
    let tokens = run("relay-server", ["token", "--data-dir", &data, "list", "--output", "json"]).await.lines();
    let ours = tokens.iter().find(|token| token["name"] == *name).unwrap();
    assert_eq!((&ours["max_body"], &ours["allow"][1]), (&1024.into(), &"2001:db8::/32".into()), "{ours}");
    let said = limit(&["--allow", "off", "--max-body", "off"]).await;
    assert!(said.contains("bodies of any length, from anywhere."), "{said}");
    assert_eq!(from("198.51.100.1", 2000).await.code(), 202);
    world.shutdown().await;
}

/// Below the relay's own host the rules are about what the service sees, and what opens one tunnel is not asked for by another.
#[tokio::test]
async fn in_path_mode_each_tunnel_is_a_realm_of_its_own() {
    let flags = ["--allow-path", "/hooks/*", "--basic-auth", "ann:secret"];
    let scene = Scene::with(|config| config.path_mode = true, &flags).await;
    let url = format!("{}/t/hooks", scene.world.relay_url());
    let ask = async |path: &str, pair: &str| {
        let request = Request::post(format!("{url}{path}")).header("authorization", basic(pair));
        scene.world.send(request.body(full("x")).unwrap()).await
    };
    assert_eq!(ask("/hooks/1", "ann:secret").await.code(), 200);
    assert!(!scene.app.last().headers.contains_key("authorization"));
    for path in ["/t/hooks/hooks/1", "/", "", "/hooks/../admin"] {
        assert_eq!(ask(path, "ann:secret").await.error(), Some("path-not-allowed"), "{path}");
    }
    let refused = ask("/hooks/1", "ann:wrong").await;
    assert_eq!((refused.code(), refused.error()), (401, Some("credentials-required")));
    let realm = format!("relay.test:{}/t/hooks", scene.world.https().port());
    assert_eq!(refused.header("www-authenticate"), format!("Basic realm=\"{realm}\", charset=\"UTF-8\""));
    scene.world.shutdown().await;
}
