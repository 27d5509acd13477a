//! Tunnels below the relay's own host: what their senders, their services, and browsers notice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use jiff::Timestamp;
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_protocol::inbox::Inbox;
use relay_protocol::webhook::{self, Credentials, Table};
use relay_server::config::{Config, HttpMode};
use relay_tests::body::{empty, full};
use relay_tests::{App, Browser, Process, RelayClient, RelayServer, Wire, World, within};

async fn world_with(change: impl FnOnce(&mut Config)) -> World {
    World::with(|config| {
        config.path_mode = true;
        change(config);
    })
    .await
}

/// A tunnel of the name `hooks`.
async fn hooks(world: &World, app: &App) -> Tunnel {
    world.tunnel_with(TunnelOptions::new(app.upstream()).subdomain("hooks")).await
}

#[tokio::test]
async fn a_request_comes_as_it_was_sent_without_what_led_to_the_tunnel() {
    let world = world_with(|_| {}).await;
    let app = App::recording().await;
    let tunnel = hooks(&world, &app).await;
    let url = tunnel.url();
    assert_eq!(url, format!("{}/t/hooks", world.relay_url()));
    for (path, target) in [
        ("/a%2Fb//c/../d?e=%31&f=+", "/a%2Fb//c/../d?e=%31&f=+"),
        ("/t/other/x", "/t/other/x"),
        ("//evil.example/", "//evil.example/"),
        ("/?", "/?"),
        ("/", "/"),
        ("", "/"),
        ("?a=1", "/?a=1"),
    ] {
        let request = Request::post(format!("{url}{path}")).header("x-forwarded-prefix", "/forged");
        assert_eq!(world.send(request.body(full("x")).unwrap()).await.code(), 200, "{path}");
        let seen = app.last();
        assert_eq!((seen.target.as_str(), seen.header("x-forwarded-prefix")), (target, "/t/hooks"), "{path}");
        assert_eq!(seen.header("x-forwarded-host"), format!("relay.test:{}", world.https().port()));
    }
    // A name has no case, and the public URL is the one that was called.
    assert_eq!(world.get(&format!("{}/t/Hooks/x", world.relay_url())).await.code(), 200);
    assert_eq!(app.last().header("x-forwarded-prefix"), "/t/Hooks");
    let mut http = world.http2("relay.test").await;
    assert_eq!(http.answer(Request::get(format!("{url}/two")).body(empty()).unwrap()).await.code(), 200);
    assert_eq!((app.last().target.as_str(), app.last().header("x-forwarded-prefix")), ("/two", "/t/hooks"));
    // Where DNS leads there, the name of a host is as good.
    assert_eq!(world.get(&world.url("hooks", "/host")).await.code(), 200);
    assert!(!app.last().headers.contains_key("x-forwarded-prefix"));

    for (path, code) in
        [("/t/nobody/", "tunnel-not-found"), ("/t/", "not-found"), ("/t/a_b/", "not-found"), ("/T/hooks/", "not-found")]
    {
        let answer = world.get(&format!("{}{path}", world.relay_url())).await;
        assert_eq!((answer.code(), answer.error()), (404, Some(code)), "{path}");
    }
}

#[tokio::test]
async fn there_are_no_paths_unless_they_are_asked_for() {
    let world = World::start().await;
    let app = App::recording().await;
    let tunnel = hooks(&world, &app).await;
    assert_eq!(tunnel.url(), world.url("hooks", ""));
    let answer = world.get(&format!("{}/t/hooks/", world.relay_url())).await;
    assert_eq!((answer.code(), answer.error()), (404, Some("not-found")));
    assert!(app.seen().is_empty());
}

/// What a service would say of the whole host.
const OF_THE_HOST: [&str; 27] = [
    "accept-ch",
    "accept-ch-lifetime",
    "critical-ch",
    "alt-svc",
    "attribution-reporting-register-os-source",
    "attribution-reporting-register-os-trigger",
    "attribution-reporting-register-source",
    "attribution-reporting-register-trigger",
    "clear-site-data",
    "expect-ct",
    "public-key-pins",
    "public-key-pins-report-only",
    "strict-transport-security",
    "nel",
    "report-to",
    "observe-browsing-topics",
    "origin-agent-cluster",
    "sec-session-challenge",
    "sec-session-registration",
    "secure-session-challenge",
    "secure-session-registration",
    "service-worker-allowed",
    "set-cookie",
    "set-cookie2",
    "set-login",
    "shared-storage-write",
    "use-as-dictionary",
];

#[tokio::test]
async fn no_answer_is_a_page_or_says_anything_of_the_host() {
    let world = world_with(|_| {}).await;
    let app = App::serve(|request: Request<_>| async move {
        let cookie = request.headers().get("cookie").map_or("none", |value| value.to_str().unwrap()).to_owned();
        let mut response = Response::builder()
            .header("content-security-policy", "default-src 'self'")
            .header("x-content-type-options", "anything");
        for name in OF_THE_HOST {
            response = response.header(name, "1").header(name, "2");
        }
        response.header("x-own", "1").body(full(cookie)).unwrap()
    })
    .await;
    let tunnel = hooks(&world, &app).await;
    let missing = format!("{}/t/nobody/", world.relay_url());
    for (url, code) in [(format!("{}/", tunnel.url()), 200), (missing, 404)] {
        let mut http = world.http2("relay.test").await;
        let request = Request::get(url).header("cookie", "a=1").header("cookie", "b=2");
        let answer = http.answer(request.body(empty()).unwrap()).await;
        assert_eq!(answer.code(), code);
        let policies: Vec<_> = answer.headers.get_all("content-security-policy").iter().collect();
        assert_eq!(
            (*policies.last().unwrap(), answer.header("x-content-type-options")),
            (&"sandbox".parse().unwrap(), "nosniff")
        );
        if code == 200 {
            assert_eq!((answer.text(), answer.header("x-own"), policies.len()), ("none", "1", 2));
        }
        for name in OF_THE_HOST {
            assert!(!answer.headers.contains_key(name), "{name}");
        }
    }
    // The same tunnel by a host of its own has all of it.
    let answer = world.get(&world.url("hooks", "/")).await;
    assert!(OF_THE_HOST.iter().all(|name| answer.headers.contains_key(*name)), "{answer:?}");
    assert_eq!(answer.header("content-security-policy"), "default-src 'self'");
}

#[tokio::test]
async fn what_a_browser_asks_for_on_its_own_behalf_is_refused() {
    let world = world_with(|_| {}).await;
    let app = App::recording().await;
    let tunnel = hooks(&world, &app).await;
    let ask = async |method: Method, headers: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(format!("{}/", tunnel.url()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = world.send(request.body(full("")).unwrap()).await;
        (answer.code(), answer.error().map(str::to_owned))
    };
    let refused = (403, Some("no-pages".to_owned()));
    for headers in [
        &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")][..],
        &[("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
        &[("sec-fetch-mode", "same-origin"), ("sec-fetch-dest", "serviceworker")],
        &[("service-worker", "script")],
    ] {
        for method in [Method::GET, Method::POST] {
            assert_eq!(ask(method, headers).await, refused, "{headers:?}");
        }
    }
    assert!(app.seen().is_empty(), "{:?}", app.seen());
    for headers in
        [&[("sec-fetch-mode", "cors"), ("sec-fetch-dest", "empty")][..], &[("sec-fetch-mode", "no-cors")], &[]]
    {
        assert_eq!(ask(Method::POST, headers).await, (200, None), "{headers:?}");
    }
}

#[tokio::test]
async fn another_protocol_goes_through_and_sets_no_cookie() {
    let world = world_with(|_| {}).await;
    let app = App::raw(|mut wire: Wire, _| async move {
        let head = wire.head().await.unwrap();
        assert!(head.starts_with("GET /socket HTTP/1.1") && head.contains("x-forwarded-prefix: /t/hooks"), "{head}");
        let switched =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\nSet-Cookie: a=1\r\n\r\n";
        wire.send(switched).await;
        let said = wire.exactly(4).await;
        wire.send(said).await;
        let _ = wire.rest().await;
    })
    .await;
    let _tunnel = hooks(&world, &app).await;
    let mut wire = world.raw("relay.test").await;
    let host = format!("relay.test:{}", world.https().port());
    let upgrade =
        format!("GET /t/hooks/socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n");
    wire.send(upgrade).await;
    let head = wire.head().await.unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101") && !head.contains("set-cookie"), "{head}");
    wire.send("ping").await;
    assert_eq!(wire.exactly(4).await, b"ping");
}

/// A sender that signs its URL signs the one that it was given.
#[tokio::test]
async fn signatures_that_cover_the_url_are_judged_with_the_path() {
    let relay = RelayServer::spawn(["--path-mode"]).await;
    let token = relay.token("me").await;
    let app = App::recording().await;
    for (place, name) in [("client", "one"), ("edge", "two")] {
        let upstream = app.addr().to_string();
        let judged = ["--provider", "twilio", "--secret", "sesame", "--verify", "reject", "--verify-at", place];
        let words = [&["--subdomain", name, "--inspect", "off"][..], &judged].concat();
        let client = relay.client(&token, &upstream, &words).await;
        assert_eq!(client.url(), format!("{}/t/{name}", relay.url));
        let table = Table::built_in().unwrap();
        let credentials = Credentials { secrets: vec!["sesame".into()], ..Credentials::default() };
        for (signed, expected) in [(format!("{}/sms?a=1", client.url()), 200), (format!("{}/sms?a=1", relay.url), 401)]
        {
            let headers = [(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded".parse().unwrap())];
            let body = b"From=%2B15017122661&Body=hi";
            let unsigned = webhook::Request::new(&Method::POST, &signed, &headers, body);
            let draft = table.get("twilio").unwrap().sign(&unsigned, &credentials, Timestamp::now()).unwrap();
            let lines: String =
                draft.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap())).collect();
            let mut wire = relay.raw("relay.test").await;
            let host = relay.url.strip_prefix("https://").unwrap();
            wire.send(format!(
                "POST /t/{name}/sms?a=1 HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {}\r\n\r\n",
                body.len()
            ))
            .await;
            wire.send(body).await;
            assert_eq!(wire.message().await.unwrap().status(), expected, "{signed} at {place}");
        }
    }
    assert_eq!(app.seen().len(), 2);
}

#[tokio::test]
async fn an_inbox_keeps_the_public_url() {
    let world = world_with(|_| {}).await;
    let token = world.token().await;
    let start = async |app: &App| {
        let inbox = Some("on".parse::<Inbox>().unwrap());
        let options = TunnelOptions { inbox, ..TunnelOptions::new(app.upstream()) }.subdomain("hooks");
        let client = Client::new(world.target()).token(token.clone().into());
        within("a tunnel", Tunnel::start(client, options)).await.unwrap()
    };
    start(&App::echo().await).await.close().await.unwrap();
    let answer = world.post(&format!("{}/t/hooks/stripe?a=1", world.relay_url()), "x").await;
    assert_eq!((answer.code(), answer.header("x-content-type-options")), (202, "nosniff"));
    let listed = world.arguments(&token, &["inbox", "--output", "json", "list", "hooks"]);
    let listed = Process::spawn("relay", listed).await.wait().await.lines();
    let urls: Vec<_> = listed.iter().filter_map(|line| line["url"].as_str()).collect();
    assert_eq!(urls, [format!("{}/t/hooks/stripe?a=1", world.relay_url())], "{listed:?}");
    let app = App::recording().await;
    let _tunnel = start(&app).await;
    within("the webhook", app.reached(1)).await;
    let seen = app.only();
    assert_eq!((seen.target.as_str(), seen.header("x-forwarded-prefix")), ("/stripe?a=1", "/t/hooks"));
}

/// The commands that take the public URL, or what came to it, to their ends.
#[tokio::test]
async fn the_clients_commands_know_the_path() {
    let relay = RelayServer::spawn(["--path-mode"]).await;
    let token = relay.token("me").await;
    let app = App::recording().await;
    let home = Arc::new(tempfile::tempdir().unwrap());
    let upstream = app.addr().to_string();
    let relay_in = async |words: Vec<String>| Process::spawn_in(home.clone(), "relay", words, &[]).await;
    let words = ["http", &upstream, "--subdomain", "hooks", "--output", "json"];
    let client = RelayClient::of(relay_in(relay.arguments(&token, &words)).await).await;
    assert_eq!(client.url(), format!("{}/t/hooks", relay.url));

    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let sent = relay_in(own(&["trigger", "github", "push"])).await.wait().await;
    assert_eq!(sent.code(), 0, "{sent:?}");
    let sent = relay_in(own(&["trigger", "github", "push", "--path", "/elsewhere"])).await.wait().await;
    assert_eq!(sent.code(), 0, "{sent:?}");
    let targets = || app.seen().iter().map(|seen| seen.target.clone()).collect::<Vec<_>>();
    assert_eq!(targets()[1..], ["/elsewhere"]);
    assert!(!targets()[0].contains("/t/hooks"), "{:?}", targets());

    let listed = relay_in(own(&["requests", "--output", "json", "--path", "/elsewhere"])).await.wait().await.lines();
    let id = listed[0]["id"].as_str().unwrap();
    let again = relay_in(own(&["replay", id])).await.wait().await;
    assert_eq!(again.code(), 0, "{again:?}");
    let again = relay_in(own(&["replay", id, "--to", &format!("http://{upstream}")])).await.wait().await;
    assert_eq!(again.code(), 0, "{again:?}");
    assert_eq!(targets()[2..], ["/elsewhere", "/elsewhere"]);
    let shown = relay_in(own(&["export", id, "--as", "curl"])).await.wait().await;
    assert!(shown.stdout.contains(&format!("{}/t/hooks/elsewhere", relay.url)), "{shown:?}");

    let words =
        ["run", &upstream, "--subdomain", "job", "--inspect", "off", "--", "sh", "-c", "echo $RELAY_PUBLIC_URL"];
    let ran = relay_in(relay.arguments(&token, &words)).await.wait().await;
    assert_eq!((ran.code(), ran.stdout.trim()), (0, format!("{}/t/job", relay.url).as_str()), "{ran:?}");
}

#[tokio::test]
async fn the_access_log_has_the_whole_path() {
    let mut relay = RelayServer::spawn(["--path-mode"]).await;
    let mut wire = relay.raw("relay.test").await;
    wire.send("GET /t/nobody/a?b HTTP/1.1\r\nHost: relay.test\r\n\r\n").await;
    assert_eq!(wire.message().await.unwrap().status(), 404);
    let line = relay.process.error_line("\"event\":\"exchange\"").await;
    assert!(line.contains("\"target\":\"/t/nobody/a?b\""), "{line}");
}

/// As Chromium says by itself what it wants.
#[tokio::test]
async fn a_browser_opens_no_page_and_keeps_no_cookie() {
    let world = world_with(|config| {
        // Browsers resolve it, and take it for as good as HTTPS.
        config.domain = "relay.localhost".to_owned();
        config.http_mode = HttpMode::Serve;
    })
    .await;
    let app = App::serve(|request: Request<_>| async move {
        let cookie = request.headers().get("cookie").map_or("no cookie", |_| "a cookie");
        let response = Response::builder()
            .header("content-type", "text/html")
            .header(
                "access-control-allow-origin",
                request.headers().get("origin").map_or("*", |value| value.to_str().unwrap()),
            )
            .header("access-control-allow-credentials", "true")
            .header("set-cookie", "a=1; SameSite=None; Secure");
        response.body(full(format!("<title>owned</title>{cookie}"))).unwrap()
    })
    .await;
    let page = App::serve(|_: Request<_>| async {
        Response::builder().header("content-type", "text/html").body(full("<body>")).unwrap()
    })
    .await;
    let trust = relay_client::session::dial::Trust::only(world.ca_file()).unwrap();
    let url = format!("https://relay.localhost:{}", world.https().port());
    let target = relay_client::session::dial::Target::new(url.parse().unwrap(), &trust).unwrap();
    let client = Client::new(target).token(world.token().await.into());
    let options = TunnelOptions::new(app.upstream()).subdomain("hooks");
    let _tunnel = within("a tunnel", Tunnel::start(client, options)).await.unwrap();

    let tunnel = format!("http://relay.localhost:{}/t/hooks/", world.http().port());
    let mut browser = Browser::start().await;
    browser.goto(&tunnel).await;
    browser.shows("code", "no-pages").await;
    assert_eq!(app.requests(), 0);
    // What a page elsewhere may ask for is another matter.
    browser.goto(&format!("http://{}/", page.addr())).await;
    let fetch =
        format!("fetch({tunnel:?}, {{ method: 'POST', credentials: 'include' }}).then((answer) => answer.text())");
    for _ in 0..2 {
        assert_eq!(browser.eval(&fetch).await, "<title>owned</title>no cookie");
    }
    let frame = format!(
        "new Promise((loaded) => {{ const frame = document.createElement('iframe'); frame.onload = loaded; \
         frame.src = {tunnel:?}; document.body.append(frame) }}).then(() => 'loaded')"
    );
    assert_eq!(within("the frame", browser.eval(&frame)).await, "loaded");
    assert_eq!(app.requests(), 2, "a frame is a page");
}

#[tokio::test]
async fn a_client_that_is_away_is_away_here_too() {
    let world = world_with(|config| config.limits.client_wait = Duration::from_millis(1)).await;
    let app = App::recording().await;
    hooks(&world, &app).await.close().await.unwrap();
    let answer = world.post(&format!("{}/t/hooks/", world.relay_url()), "x").await;
    assert_eq!((answer.code(), answer.error()), (503, Some("client-offline")));
}
