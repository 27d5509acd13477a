//! What a sender and an app notice of an inbox: what was accepted is delivered, whoever is away meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_protocol::inbox::Inbox;
use relay_protocol::inbox::api::{PATH, Page, Whole};
use relay_protocol::webhook::{self, Credentials, Table};
use relay_server::config::Config;
use relay_tests::body::{empty, full, noise, pipe};
use relay_tests::process::run;
use relay_tests::{Answer, App, Body, Process, RelayClient, World, within};
use serde_json::json;
use tokio::sync::Notify;

/// Times in which a test can see what takes minutes.
fn fast(config: &mut Config) {
    config.limits.inbox_retry = Duration::from_millis(50);
}

/// A tunnel of the name `hooks` with an inbox.
async fn tunnel(world: &World, token: &str, app: &App, how: &str) -> Tunnel {
    let inbox = Some(how.parse::<Inbox>().unwrap());
    let options = TunnelOptions { inbox, ..TunnelOptions::new(app.upstream()) }.subdomain("hooks");
    let client = Client::new(world.target()).token(token.to_owned().into());
    within("a tunnel with an inbox", Tunnel::start(client, options)).await.unwrap()
}

/// A relay with the inbox `hooks`, whose client is away, and the token that lets it come back.
async fn away(how: &str, change: impl FnOnce(&mut Config)) -> (World, String) {
    let world = World::with(|config| {
        fast(config);
        change(config);
    })
    .await;
    let token = world.token().await;
    tunnel(&world, &token, &App::echo().await, how).await.close().await.unwrap();
    (world, token)
}

fn is_kept(answer: &Answer) -> bool {
    let inbox = answer.headers.get("relay-inbox").map(|line| line.to_str().unwrap());
    inbox.is_some_and(|line| line.starts_with("stored; id="))
}

#[tokio::test]
async fn what_comes_while_the_client_is_away_is_delivered_when_it_is_back() {
    let (world, token) = away("on", |_| {}).await;
    let body = noise(3000);
    let request = Request::post(world.url("hooks", "/stripe?a=%31&b"))
        .header("x-first", "1")
        .header("X-Twice", "a")
        .header("relay-delivery", "forged; attempt=9; age=9")
        .header("X-Twice", "b");
    let answer = world.send(request.body(full(body.clone())).unwrap()).await;
    assert!(answer.code() == 202 && is_kept(&answer), "{answer:?}");
    let app = App::recording().await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    within("the webhook", app.reached(1)).await;
    let seen = app.only();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/stripe?a=%31&b"));
    assert!(seen.body == body, "byte for byte");
    let twice: Vec<_> = seen.headers.get_all("x-twice").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!((seen.header("x-first"), twice), ("1", vec!["a", "b"]));
    let id = answer.headers["relay-inbox"].to_str().unwrap().strip_prefix("stored; id=").unwrap();
    let delivery = seen.header("relay-delivery");
    assert!(delivery.starts_with(&format!("{id}; attempt=1; age=")), "{delivery}");
    // It comes once.
    assert_eq!(world.post(&format!("{}/next", tunnel.url()), "x").await.code(), 200);
    assert_eq!(app.requests(), 2);
    world.shutdown().await;
}

#[tokio::test]
async fn it_survives_a_restart_of_the_relay() {
    let (mut world, token) = away("on", |_| {}).await;
    for n in 0..3 {
        assert!(is_kept(&world.post(&world.url("hooks", "/"), format!("{n}")).await));
    }
    world.stop().await;
    world.start_again().await;
    assert!(is_kept(&world.post(&world.url("hooks", "/"), "3").await), "nobody has connected since");
    let app = App::recording().await;
    let _tunnel = tunnel(&world, &token, &app, "on").await;
    within("four webhooks", app.reached(4)).await;
    world.shutdown().await;
}

#[tokio::test]
async fn the_app_answers_where_it_can_and_nothing_comes_twice() {
    let (world, token) = away("on", |_| {}).await;
    let app = App::serve(|request: Request<_>| async move {
        let code = request.uri().path().trim_start_matches('/').parse().unwrap();
        let mut response = Response::new(full("from the app"));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    })
    .await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    for code in [200, 201, 302, 404, 422] {
        let answer = world.post(&format!("{}/{code}", tunnel.url()), "x").await;
        assert_eq!((answer.code(), answer.text()), (code, "from the app"));
        assert!(!answer.headers.contains_key("relay-inbox"));
    }
    assert_eq!(app.requests(), 5);
    world.shutdown().await;
}

#[tokio::test]
async fn an_app_that_fails_is_asked_again() {
    let (world, token) = away("on", |_| {}).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let app = App::serve(move |_| {
        let nth = count.fetch_add(1, SeqCst);
        async move {
            let mut response = Response::new(empty());
            *response.status_mut() = if nth < 2 { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
            response
        }
    })
    .await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    let answer = world.post(&format!("{}/", tunnel.url()), "x").await;
    assert!(answer.code() == 202 && is_kept(&answer), "{answer:?}");
    within("three attempts", app.reached(3)).await;
    world.shutdown().await;
}

#[tokio::test]
async fn a_5xx_is_the_answer_where_it_is_to_be_passed() {
    let (world, token) = away("pass-5xx", |_| {}).await;
    let app = App::serve(|_| async {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let tunnel = tunnel(&world, &token, &app, "pass-5xx").await;
    let answer = world.post(&format!("{}/", tunnel.url()), "x").await;
    assert!(answer.code() == 503 && !answer.headers.contains_key("relay-error"), "{answer:?}");
    world.shutdown().await;
}

#[tokio::test]
async fn a_slow_app_has_its_webhook_acknowledged_and_is_not_asked_again() {
    let (world, token) = away("on", |config| config.limits.inbox_ack = Duration::from_secs(1)).await;
    let go = Arc::new(Notify::new());
    let waits = go.clone();
    let app = App::serve(move |request: Request<hyper::body::Incoming>| {
        let waits = waits.clone();
        async move {
            if request.uri().path() == "/slow" {
                request.into_body().collect().await.unwrap();
                waits.notified().await;
            }
            Response::new(empty())
        }
    })
    .await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    let answer = world.post(&format!("{}/slow", tunnel.url()), "x").await;
    assert!(answer.code() == 202 && is_kept(&answer), "{answer:?}");
    go.notify_one();
    assert_eq!(world.post(&format!("{}/fast", tunnel.url()), "x").await.code(), 200);
    assert_eq!(app.requests(), 2);
    world.shutdown().await;
}

#[tokio::test]
async fn what_is_no_webhook_goes_live() {
    let (world, _) = away("on", |config| config.limits.client_wait = Duration::from_millis(1)).await;
    let answer = world.get(&world.url("hooks", "/")).await;
    assert_eq!((answer.code(), answer.headers["relay-error"].to_str().unwrap()), (503, "client-offline"));
    // Its answer tells Twilio what to say to whoever calls.
    let call = Request::post(world.url("hooks", "/voice"))
        .header("x-twilio-signature", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=")
        .header("content-type", "application/x-www-form-urlencoded");
    let call = call.body(full("AccountSid=AC1&CallSid=CA1&From=%2B1")).unwrap();
    assert_eq!(world.send(call).await.code(), 503);
    world.shutdown().await;
}

#[tokio::test]
async fn they_come_in_order_where_that_is_asked_for() {
    let (world, token) = away("ordered", |_| {}).await;
    for n in 0..20 {
        assert!(is_kept(&world.post(&world.url("hooks", "/"), format!("{n}")).await));
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (count, bodies) = (asked.clone(), seen.clone());
    let app = App::serve(move |request: Request<hyper::body::Incoming>| {
        let (nth, bodies) = (count.fetch_add(1, SeqCst), bodies.clone());
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut response: Response<Body> = Response::new(empty());
            // One of them fails, and the others wait for it.
            if nth == 3 {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            } else {
                bodies.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap().parse::<usize>().unwrap());
            }
            response
        }
    })
    .await;
    let _tunnel = tunnel(&world, &token, &app, "ordered").await;
    within("all of them, and one again", app.reached(21)).await;
    world.shutdown().await;
    assert_eq!(*seen.lock().unwrap(), (0..20).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_providers_retry_is_known_again() {
    let (world, token) = away("on", |_| {}).await;
    let push = |body: &'static str| {
        let request = Request::post(world.url("hooks", "/github"))
            .header("x-github-event", "push")
            .header("x-github-delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
            .header("x-github-hook-id", "1")
            .header("user-agent", "GitHub-Hookshot/044aadd")
            .header("content-type", "application/json");
        world.send(request.body(full(body)).unwrap())
    };
    assert!(is_kept(&push("{}").await));
    assert!(is_kept(&push("{}").await), "it waits still");
    let app = App::recording().await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    within("the first", app.reached(1)).await;
    let again = within("what was delivered is known", async {
        loop {
            let again = push("{}").await;
            if again.headers.get("relay-inbox").is_some_and(|line| line.to_str().unwrap().starts_with("delivered; id="))
            {
                break again;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(again.code() < 300, "{again:?}");
    assert_eq!(app.requests(), 1);
    assert_eq!(push("{\"other\": 1}").await.code(), 200, "other bytes are not dropped");
    assert_eq!(app.requests(), 2);
    drop(tunnel);
    world.shutdown().await;
}

#[tokio::test]
async fn a_full_inbox_accepts_nothing() {
    let (world, token) = away("on", |config| config.limits.inbox_count = 1).await;
    assert!(is_kept(&world.post(&world.url("hooks", "/"), "1").await));
    let full = world.post(&world.url("hooks", "/"), "2").await;
    assert_eq!((full.code(), full.headers["relay-error"].to_str().unwrap()), (507, "inbox-full"));
    assert!(full.headers.contains_key("retry-after"));
    let app = App::recording().await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    within("the first", app.reached(1)).await;
    within("room for the next", async {
        while world.post(&format!("{}/", tunnel.url()), "3").await.code() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.shutdown().await;
}

#[tokio::test]
async fn long_bodies_are_exact_and_too_long_ones_are_refused() {
    let (world, token) = away("on", |config| config.limits.inbox_body = 3 << 20).await;
    let body = noise(3 << 20);
    assert!(is_kept(&world.post(&world.url("hooks", "/"), body.clone()).await));
    let answer = world.post(&world.url("hooks", "/"), noise((3 << 20) + 1)).await;
    assert_eq!((answer.code(), answer.headers["relay-error"].to_str().unwrap()), (413, "body-too-large"));
    let app = App::recording().await;
    let tunnel = tunnel(&world, &token, &app, "on").await;
    within("the long one", app.reached(1)).await;
    let answer = world.post(&format!("{}/", tunnel.url()), body.clone()).await;
    assert_eq!(answer.code(), 200, "live as well");
    for seen in app.seen() {
        assert!(seen.body == body, "byte for byte");
    }
    assert_eq!(app.requests(), 2);
    world.shutdown().await;
}

/// Neither sees anything of the other's.
#[tokio::test]
async fn a_name_that_changes_hands_leaves_its_inbox_behind() {
    let (world, _) = away("on", |_| {}).await;
    assert!(is_kept(&world.post(&world.url("hooks", "/"), "of the first owner").await));
    // As when 30 days have passed.
    let later = relay_server::store::unix_now() + 31 * 24 * 3600;
    let (second, name) = world.token_with(|_| {}).await;
    let hooks = relay_server::store::Name::parse("hooks").unwrap();
    world.store().reserve(&name, vec![hooks], None, later).await.unwrap();
    let app = App::recording().await;
    let options = TunnelOptions::new(app.upstream()).subdomain("hooks");
    let client = Client::new(world.target()).token(second.into());
    let tunnel = within("the second owner's tunnel", Tunnel::start(client, options)).await.unwrap();
    let answer = world.post(&format!("{}/", tunnel.url()), "of the second").await;
    assert!(answer.code() == 200 && !answer.headers.contains_key("relay-inbox"), "{answer:?}");
    assert_eq!(app.only().body, "of the second");
    tunnel.close().await.unwrap();
    assert_ne!(world.post(&world.url("hooks", "/"), "for nobody").await.code(), 202, "it is live now");
    world.shutdown().await;
}

/// An app may answer before it has read all of a body, and reads the rest of it then.
#[tokio::test]
async fn a_body_is_whole_however_early_the_app_answers() {
    let (world, token) = away("on", |_| {}).await;
    let body = noise(2 << 20);
    assert!(is_kept(&world.post(&world.url("hooks", "/"), body.clone()).await));
    let (read, mut sizes) = tokio::sync::mpsc::channel(1);
    let app = App::serve(move |request: Request<hyper::body::Incoming>| {
        let read = read.clone();
        async move {
            let (answer, body) = relay_tests::body::pipe();
            tokio::spawn(async move {
                answer.send("reading").await;
                let whole = request.into_body().collect().await.map(|body| body.to_bytes().len());
                read.send(whole.ok()).await.unwrap();
            });
            Response::new(body)
        }
    })
    .await;
    let _tunnel = tunnel(&world, &token, &app, "on").await;
    assert_eq!(within("the body's end", sizes.recv()).await, Some(Some(body.len())));
    world.shutdown().await;
}

#[tokio::test]
async fn nothing_is_accepted_for_a_token_that_has_ended() {
    let (mut world, _) = away("on", |config| config.limits.client_wait = Duration::from_millis(1)).await;
    assert!(is_kept(&world.post(&world.url("hooks", "/"), "x").await));
    world.store().revoke_token("t0", relay_server::store::unix_now()).await.unwrap();
    world.stop().await;
    world.start_again().await;
    assert!(!world.post(&world.url("hooks", "/"), "x").await.status.is_success(), "nobody could take it");
    world.shutdown().await;
}

/// As GitHub would send it, signed with this secret.
fn signed(world: &World, secret: &str, body: &'static str) -> Request<Body> {
    let url = world.url("hooks", "/github");
    let table = Table::built_in().unwrap();
    let headers = [("x-github-event", "push"), ("x-github-delivery", body), ("user-agent", "GitHub-Hookshot/044aadd")];
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    let request = webhook::Request::new(&Method::POST, &url, &headers, body.as_bytes());
    let signed = table.get("github").unwrap().sign(&request, &credentials, Timestamp::now()).unwrap();
    let mut request = Request::post(&url);
    request.headers_mut().unwrap().extend(signed.headers);
    request.body(full(body)).unwrap()
}

/// The relay has the secrets only while the client is there, and judges what came before when it has them.
#[tokio::test]
async fn what_the_relay_is_to_judge_it_judges_when_the_client_is_back() {
    let (world, token) = away("on", |_| {}).await;
    assert!(is_kept(&world.send(signed(&world, "another", "1")).await));
    assert!(is_kept(&world.send(signed(&world, "right", "2")).await));
    let (app, home) = (App::recording().await, Arc::new(tempfile::tempdir().unwrap()));
    let upstream = app.addr().to_string();
    let judged = ["--secret", "right", "--verify", "reject", "--verify-at", "edge", "--inspect", "off"];
    let words = [&["http", &upstream, "--subdomain", "hooks", "--output", "json"][..], &judged].concat();
    let words = world.arguments(&token, &words);
    let mut client = RelayClient::of(Process::spawn_in(home.clone(), "relay", words, &[]).await).await;
    within("the one that is signed", app.reached(1)).await;
    let seen = app.only();
    assert_eq!((seen.body.as_ref(), seen.header("relay-verdict")), (&b"2"[..], "valid"));
    let withheld = client.process.event("requests.withheld").await;
    assert_eq!((&withheld["error"], &withheld["verdict"]), (&json!("signature-invalid"), &json!("bad_signature")));
    let words = world.arguments(&token, &["inbox", "--output", "json", "list", "hooks", "--state", "dead"]);
    let dead = within("it is given up", async {
        loop {
            let dead = Process::spawn_in(home.clone(), "relay", words.clone(), &[]).await.wait().await.lines();
            if let [dead] = &dead[..] {
                break dead.clone();
            }
        }
    })
    .await;
    assert!(dead["reason"].as_str().unwrap().starts_with("It is not signed as the tunnel wants it: "), "{dead}");
    world.shutdown().await;
}

/// Slack asks once, and takes nothing for an answer but what it asks for.
#[tokio::test]
async fn nobody_acknowledges_a_handshake() {
    let (world, _) = away("on", |config| config.limits.client_wait = Duration::from_millis(1)).await;
    let asked = r#"{"type":"url_verification","challenge":"3eZb","token":"x"}"#;
    let asked = Request::post(world.url("hooks", "/")).header("x-slack-request-timestamp", "1").body(full(asked));
    let answer = world.send(asked.unwrap()).await;
    assert_eq!((answer.code(), answer.headers["relay-error"].to_str().unwrap()), (503, "client-offline"));
    world.shutdown().await;
}

#[tokio::test]
async fn its_owner_says_how_much_it_takes_and_what_it_ignores() {
    let inbox = || {
        let mut inbox: Inbox = "limit=2".parse().unwrap();
        inbox.body = Some(10);
        inbox.ignore = vec![serde_json::from_value(json!({"provider": "github", "type": "ping"})).unwrap()];
        inbox
    };
    let world = World::with(fast).await;
    let token = world.token().await;
    let options = TunnelOptions { inbox: Some(inbox()), ..TunnelOptions::new(App::echo().await.upstream()) };
    let client = Client::new(world.target()).token(token.into());
    let tunnel = within("a tunnel", Tunnel::start(client, options.subdomain("hooks"))).await.unwrap();
    tunnel.close().await.unwrap();
    let url = world.url("hooks", "/");
    let long = world.post(&url, "eleven bytes").await;
    assert_eq!((long.code(), long.headers["relay-error"].to_str().unwrap()), (413, "body-too-large"));
    let ping = Request::post(&url).header("x-github-event", "ping").header("x-github-delivery", "1");
    let ping = world.send(ping.header("user-agent", "GitHub-Hookshot/1").body(full("{}")).unwrap()).await;
    assert!(ping.status.is_success(), "{ping:?}");
    assert_eq!(ping.headers["relay-inbox"].to_str().unwrap(), "ignored");
    let refused = within("more than two in a second", async {
        loop {
            let answer = world.post(&url, "short").await;
            if !is_kept(&answer) {
                break answer;
            }
        }
    })
    .await;
    assert_eq!((refused.code(), refused.headers["relay-error"].to_str().unwrap()), (429, "too-many-requests"));
    assert!(refused.headers.contains_key("retry-after"));
    world.shutdown().await;
}

#[tokio::test]
async fn a_token_that_replaces_a_revoked_one_finds_what_was_accepted_for_that() {
    for restarts in [false, true] {
        let (mut world, _) = away("on", |_| {}).await;
        assert!(is_kept(&world.post(&world.url("hooks", "/"), "x").await));
        let token = async |words: &[&str]| {
            let data = world.data_dir().display().to_string();
            let ended = run("relay-server", ["token", "--data-dir", &data].iter().chain(words).copied()).await;
            assert!(ended.status.success(), "{ended:?}");
            ended.stdout.trim().to_owned()
        };
        token(&["revoke", "t0"]).await;
        let new = token(&["create", "t0"]).await;
        if restarts {
            world.stop().await;
            world.start_again().await;
        }
        let app = App::recording().await;
        let tunnel = tunnel(&world, &new, &app, "on").await;
        within("the webhook", app.reached(1)).await;
        tunnel.close().await.unwrap();
        assert!(is_kept(&world.post(&world.url("hooks", "/"), "y").await), "it goes on");
        world.shutdown().await;
    }
}

#[tokio::test]
async fn a_token_has_so_many_inboxes_and_empty_ones_of_random_names_make_room() {
    let (world, token) = away("on", |config| config.limits.inboxes_per_token = 2).await;
    let app = App::recording().await;
    let open = async |name: Option<&str>| {
        let options = TunnelOptions { inbox: Some(Inbox::default()), ..TunnelOptions::new(app.upstream()) };
        let options = match name {
            Some(name) => options.subdomain(name),
            None => options,
        };
        let client = Client::new(world.target()).token(token.clone().into());
        within("an answer", Tunnel::start(client, options)).await
    };
    let random = open(None).await.unwrap();
    let url = random.url().to_owned();
    let error = open(Some("third")).await.unwrap_err().to_string();
    assert!(error.contains("2 inboxes, as many as it may"), "{error}");
    random.close().await.unwrap();
    let third = open(Some("third")).await.expect("nobody chose the other one's name, and nothing is in it");
    assert!(!is_kept(&world.post(&format!("{url}/"), "x").await));
    third.close().await.unwrap();
    open(Some("fourth")).await.unwrap_err();
    assert!(is_kept(&world.post(&world.url("hooks", "/"), "x").await));
    world.shutdown().await;
}

#[tokio::test]
async fn a_long_body_that_there_is_no_room_for_is_refused_before_it_has_come() {
    let (world, _) = away("bytes=1MiB", |_| {}).await;
    let (pipe, body) = pipe();
    let request = Request::post(world.url("hooks", "/")).header("content-length", 20 << 20).body(body).unwrap();
    // The rest of it never comes.
    let (answer, _) = tokio::join!(within("an answer", world.send(request)), pipe.send(noise(300_000)));
    assert_eq!((answer.code(), answer.error()), (507, Some("inbox-full")));
    world.shutdown().await;
}

#[tokio::test]
async fn with_too_little_of_the_disk_free_nothing_is_accepted_and_the_relay_is_not_ready() {
    let (world, _) = away("on", |config| config.limits.inbox_free = 1 << 60).await;
    let answer = world.post(&world.url("hooks", "/"), "x").await;
    assert_eq!((answer.code(), answer.error()), (507, Some("inbox-full")));
    world.shutdown().await;
}

/// Asks the relay's API for tokens.
async fn ask(world: &World, token: &str, method: Method, path: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(format!("{}{PATH}{path}", world.relay_url()));
    world.send(request.header("authorization", format!("Bearer {token}")).body(body.into()).unwrap()).await
}

#[tokio::test]
async fn pages_go_on_where_they_ended_whatever_was_dropped_meanwhile() {
    let (world, token) = away("on", |_| {}).await;
    for n in 0..5 {
        assert!(is_kept(&world.post(&world.url("hooks", "/"), format!("{n}")).await));
    }
    let page = async |query: &str| -> Page {
        let answer = ask(&world, &token, Method::GET, &format!("/hooks?limit=2{query}"), empty()).await;
        assert_eq!(answer.code(), 200, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    };
    let mut seen = Vec::new();
    let mut query = String::new();
    loop {
        let Page { webhooks, next, .. } = page(&query).await;
        let last = json!({"ids": [webhooks.last().unwrap().id]}).to_string();
        assert_eq!(ask(&world, &token, Method::POST, "/hooks/drop", full(last)).await.code(), 200);
        seen.extend(webhooks.into_iter().map(|webhook| webhook.id));
        let Some(next) = next else { break };
        query = format!("&before={next}");
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 5, "each of them once: {seen:?}");
    let answer = ask(&world, &token, Method::GET, "/hooks?before=no", empty()).await;
    assert_eq!(answer.error(), Some("bad-request"));
    let other = world.token().await;
    assert_eq!(ask(&world, &other, Method::GET, "/hooks", empty()).await.code(), 404);
    world.shutdown().await;
}

#[tokio::test]
async fn bodies_come_as_they_are_and_long_ones_only_so() {
    let (world, token) = away("on", |_| {}).await;
    for body in [noise(3000), noise(3 << 20)] {
        let kept = world.post(&world.url("hooks", "/"), body.clone()).await;
        let id = kept.headers["relay-inbox"].to_str().unwrap().strip_prefix("stored; id=").unwrap();
        let answer = ask(&world, &token, Method::GET, &format!("/hooks/{id}/body"), empty()).await;
        assert_eq!(answer.headers["content-length"].to_str().unwrap(), body.len().to_string());
        assert!(answer.body == body, "byte for byte");
        let answer = ask(&world, &token, Method::GET, &format!("/hooks/{id}"), empty()).await;
        let whole: Whole = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(whole.webhook.size, body.len() as u64);
        assert_eq!(whole.body().is_some_and(|whole| whole == body), body.len() < 256 * 1024);
    }
    let id = "01M8067H447D3H3MSZ2H689PZF";
    assert_eq!(ask(&world, &token, Method::GET, &format!("/hooks/{id}/body"), empty()).await.code(), 404);
    world.shutdown().await;
}

/// The client judges, which is the default; what it refuses is nobody's to keep and must not hold the others up.
#[tokio::test]
async fn what_the_client_refuses_is_refused_and_holds_nothing_up() {
    let (world, token) = away("ordered", |_| {}).await;
    assert!(is_kept(&world.send(signed(&world, "another", "0")).await), "nobody could tell");
    let (app, home) = (App::recording().await, Arc::new(tempfile::tempdir().unwrap()));
    let upstream = app.addr().to_string();
    let judged = ["--inbox=ordered", "--secret", "right", "--verify", "reject", "--inspect", "off"];
    let words = [&["http", &upstream, "--subdomain", "hooks", "--output", "json"][..], &judged].concat();
    let words = world.arguments(&token, &words);
    let _client = RelayClient::of(Process::spawn_in(home.clone(), "relay", words, &[]).await).await;
    assert!(world.send(signed(&world, "right", "1")).await.status.is_success());
    within("the one that is signed", app.reached(1)).await;
    let forged = world.send(signed(&world, "another", "2")).await;
    assert_eq!((forged.code(), forged.headers["relay-error"].to_str().unwrap()), (401, "signature-invalid"));
    let live = world.send(signed(&world, "right", "3")).await;
    assert_eq!(live.code(), 200, "nothing is before it");
    assert_eq!(app.seen().iter().map(|seen| seen.body.clone()).collect::<Vec<_>>(), ["1", "3"]);
    world.shutdown().await;
}

/// Whoever sends slowly is not kept waiting beyond what it takes to store it, nor refused for it.
#[tokio::test]
async fn a_body_that_takes_its_time_is_acknowledged_once_it_is_there() {
    let (world, token) = away("on", |config| config.limits.inbox_ack = Duration::from_millis(50)).await;
    let (pieces, body) = relay_tests::body::pipe();
    let mut http = world.http1(&world.host("hooks")).await;
    http.ready().await;
    let request = Request::post(world.url("hooks", "/slow")).body(body).unwrap();
    let answer = http.begin(request);
    pieces.send(noise(100_000)).await;
    // The time that an upload takes is what this is about.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    pieces.send(noise(300_000)).await;
    drop(pieces);
    let answer = within("the acknowledgement", answer).await.unwrap();
    assert!(is_kept(&answer), "{answer:?}");
    let app = App::recording().await;
    let _tunnel = tunnel(&world, &token, &app, "on").await;
    within("all of the webhook", async {
        while app.seen().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(app.only().body.len(), 400_000);
    world.shutdown().await;
}
