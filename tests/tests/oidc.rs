//! Tunnels that people log in at, as those notice it who do, their service, and those who may not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use http::request::Builder;
use http::{HeaderMap, Request, Uri};
use hyper::ext::Protocol;
use relay_client::Tunnel;
use relay_server::config::{Config, OidcConfig};
use relay_tests::body::{empty, full};
use relay_tests::issuer::{Manner, Signed};
use relay_tests::process::{arguments, run};
use relay_tests::{Answer, App, Issuer, Process, RelayClient, RelayServer, World, within};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What a browser says that wants a page.
const PAGE: &[(&str, &str)] = &[
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-site", "none"),
    ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
];

const CALLBACK: &str = "/_relay/oidc/callback";
const SESSION: &str = "__Host-relay-session";

/// A relay that asks one issuer, and a tunnel `app` at which people log in.
struct Scene {
    world: World,
    token: String,
    issuer: Issuer,
    app: App,
    client: RelayClient,
}

impl Scene {
    async fn start(flags: &[&str]) -> Self {
        let issuer = Issuer::start().await;
        let world = World::with(|config| asking(config, &issuer)).await;
        let (token, app) = (world.token().await, App::recording().await);
        let client = client(&world, &token, &app, &issuer, "app", flags).await;
        Self { world, token, issuer, app, client }
    }

    fn url(&self, path: &str) -> String {
        self.world.url("app", path)
    }

    async fn ask(&self, browser: &Browser, request: Builder) -> Answer {
        let host = request.uri_ref().unwrap().host().unwrap().to_owned();
        let request = browser.cookies(&host).iter().fold(request, |request, line| request.header("cookie", line));
        self.world.send(request.body(empty()).unwrap()).await
    }

    /// Opens a page as a person does, and goes wherever that leads.
    async fn open(&self, browser: &mut Browser, path: &str) -> Answer {
        self.go(browser, &self.url(path), None).await
    }

    /// As [`Scene::open`]; stops before the first URL that has this in it, which it gives.
    async fn open_until(&self, browser: &mut Browser, path: &str, end: &str) -> String {
        let answer = self.go(browser, &self.url(path), Some(end)).await;
        answer.header("location").to_owned()
    }

    async fn go(&self, browser: &mut Browser, url: &str, end: Option<&str>) -> Answer {
        let mut url = url.to_owned();
        for _ in 0..8 {
            let host = url.parse::<Uri>().unwrap().host().unwrap().to_owned();
            let answer = if host == "localhost" {
                self.issuer.visit(&url).await
            } else {
                let page = PAGE.iter().fold(Request::get(&url), |request, (name, value)| request.header(*name, *value));
                self.ask(browser, page).await
            };
            browser.take(&host, &answer.headers);
            browser.seen.push(url);
            let leads = answer.headers.get("location").map(|location| location.to_str().unwrap().to_owned());
            match leads.filter(|url| end.is_none_or(|end| !url.contains(end))) {
                Some(next) => url = next,
                None => return answer,
            }
        }
        panic!("it goes round and round: {:?}", browser.seen)
    }
}

fn asking(config: &mut Config, issuer: &Issuer) {
    config.oidc = OidcConfig { issuers: vec![issuer.url().to_owned()], ca: Some(issuer.ca_file().to_owned()) };
    config.limits.logins_per_minute = 600;
}

/// `relay http … --subdomain NAME`, where people log in, with these flags.
async fn client(world: &World, token: &str, app: &App, issuer: &Issuer, name: &str, flags: &[&str]) -> RelayClient {
    let target = app.addr().to_string();
    let own = ["http", &target, "--subdomain", name, "--output", "json"];
    let words = [&own, &login(issuer)[..], flags].concat();
    RelayClient::spawn(world.arguments(token, &words)).await
}

fn login(issuer: &Issuer) -> [&str; 6] {
    ["--oidc", issuer.url(), "--oidc-client-id", Issuer::CLIENT, "--oidc-client-secret", Issuer::SECRET]
}

/// What an issuer does otherwise than it should.
type Change = Box<dyn FnOnce(&mut Manner)>;

/// What a browser keeps.
#[derive(Clone, Debug, Default)]
struct Browser {
    jar: HashMap<String, BTreeMap<String, String>>,
    seen: Vec<String>,
}

impl Browser {
    fn take(&mut self, host: &str, headers: &HeaderMap) {
        for line in headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (pair, attributes) = line.split_once("; ").unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            let attributes: Vec<_> = attributes.split("; ").collect();
            assert!(name.starts_with("__Host-"), "{line}");
            for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
                assert!(attributes.contains(&attribute), "{line}");
            }
            // Where there is a domain, no browser takes such a cookie.
            assert!(!line.to_ascii_lowercase().contains("domain"), "{line}");
            let jar = self.jar.entry(host.to_owned()).or_default();
            match attributes.contains(&"Max-Age=0") {
                true => drop(jar.remove(name)),
                false => drop(jar.insert(name.to_owned(), value.to_owned())),
            }
        }
    }

    /// As the lines of a request.
    fn cookies(&self, host: &str) -> Vec<String> {
        let all: Vec<_> =
            self.jar.get(host).into_iter().flatten().map(|(name, value)| format!("{name}={value}")).collect();
        if all.is_empty() { Vec::new() } else { vec![all.join("; ")] }
    }

    fn of(&mut self, name: &str) -> &mut BTreeMap<String, String> {
        self.jar.entry(format!("{name}.relay.test")).or_default()
    }
}

fn is_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.code(), answer.error()), (status, Some(code)), "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store");
}

#[tokio::test]
async fn a_person_logs_in_once_and_comes_to_the_page_first_asked_for() {
    let scene = Scene::start(&[]).await;
    for signed in [Signed::Es256, Signed::Rs256] {
        scene.issuer.behave(|manner| manner.signed = signed);
        let mut browser = Browser::default();
        browser.of("app").insert("theirs".to_owned(), "1".to_owned());
        let before = scene.app.requests();
        let page = scene.open(&mut browser, "/deep//page?a=%2F&b=c").await;
        assert_eq!((page.code(), page.error()), (200, None), "{page:?}");
        assert_eq!(scene.app.requests(), before + 1, "of the way there the service hears nothing");
        let seen = scene.app.last();
        assert_eq!(seen.target, "/deep//page?a=%2F&b=c");
        assert_eq!(seen.header("relay-user-sub"), "248289761001");
        assert_eq!(seen.header("relay-user-email"), "alice@example.com");
        assert_eq!(seen.header("cookie"), "theirs=1");
        // Nobody is asked again, and nobody can say who somebody is.
        scene.issuer.asked();
        let forged = Request::post(scene.url("/again")).header("relay-user-email", "root@example.com");
        let answer = scene.ask(&browser, forged.header("relay-user-sub", "0")).await;
        assert_eq!(answer.code(), 200, "{answer:?}");
        let seen = scene.app.last();
        assert_eq!(
            (seen.header("relay-user-email"), seen.header("relay-user-sub")),
            ("alice@example.com", "248289761001")
        );
        for alike in ["Relay_User_Email", "relay.user.email"] {
            let answer = scene.ask(&browser, Request::get(scene.url("/")).header(alike, "root@example.com")).await;
            is_bad(&answer);
        }
        assert_eq!(scene.issuer.asked(), Vec::<String>::new());
        // Several pages that were opened at once are several logins, each of which comes to its own page.
        let mut browser = Browser::default();
        let first = scene.open_until(&mut browser, "/1", CALLBACK).await;
        let second = scene.open_until(&mut browser, "/2", CALLBACK).await;
        for (callback, path) in [(first, "/1"), (second, "/2")] {
            assert_eq!(scene.go(&mut browser, &callback, None).await.code(), 200);
            assert_eq!(scene.app.last().target, path);
        }
    }
    scene.world.shutdown().await;
}

fn is_bad(answer: &Answer) {
    assert_eq!((answer.code(), answer.error()), (400, Some("bad-request")), "{answer:?}");
}

/// A real browser takes the cookies, and gives them to nobody else; a sibling on the same site gets nothing done in the name of who
/// is logged in.
#[tokio::test]
async fn in_a_browser_a_login_is_the_tunnels_own() {
    let issuer = Issuer::start().await;
    let change = |config: &mut Config| {
        asking(config, &issuer);
        // Browsers resolve what is below it.
        config.domain = "relay.localhost".to_owned();
    };
    let world = World::with(change).await;
    let page = async |request: Request<_>| -> http::Response<relay_tests::Body> {
        let email = request.headers().get("relay-user-email").map_or("nobody", |email| email.to_str().unwrap());
        let html = format!("<title>app</title><p id=who>{email} at {}</p>", request.uri());
        http::Response::builder().header("content-type", "text/html").body(full(html)).unwrap()
    };
    let (app, other) = (App::serve(page).await, App::serve(page).await);
    let port = world.https().port();
    let (relay, at) =
        (format!("https://relay.localhost:{port}"), |name| format!("https://{name}.relay.localhost:{port}"));
    let token = world.token().await;
    let client = async |name: &str, app: &App, flags: &[&str]| {
        let target = app.addr().to_string();
        let words = [&["http", &target, "--subdomain", name, "--output", "json"], flags].concat();
        RelayClient::spawn(arguments(&relay, world.https(), world.ca_file(), &token, &words)).await
    };
    let clients = (client("app", &app, &login(&issuer)).await, client("evil", &other, &[]).await);

    let mut browser = relay_tests::Browser::trusting().await;
    browser.goto(&format!("{}/deep?a=1", at("app"))).await;
    browser.shows("#who", "alice@example.com at /deep?a=1").await;
    assert_eq!(browser.eval("document.cookie").await, "", "scripts do not see it");
    let post = "fetch('/own', { method: 'POST' }).then((answer) => answer.status)";
    assert_eq!(browser.eval(post).await, 200);
    let before = app.requests();
    browser.goto(&at("evil")).await;
    browser.shows("#who", "nobody at /").await;
    let own = at("app");
    let fetched = format!(
        "fetch('{own}/steal', {{ method: 'POST', credentials: 'include', mode: 'no-cors' }}).then(() => 'sent')"
    );
    assert_eq!(browser.eval(&fetched).await, "sent");
    let framed = format!(
        "new Promise((loaded) => {{ const frame = document.createElement('iframe'); frame.onload = () => loaded('shown'); \
         frame.src = '{own}/framed'; document.body.append(frame) }})"
    );
    assert_eq!(browser.eval(&framed).await, "shown");
    let socket = format!(
        "new Promise((over) => {{ const socket = new WebSocket('{}/socket'); socket.onerror = () => over('refused'); \
         socket.onopen = () => over('open') }})",
        own.replace("https", "wss")
    );
    assert_eq!(browser.eval(&socket).await, "refused");
    let tossed = "document.cookie = '__Host-relay-session=x; Path=/; Secure; Domain=relay.localhost'; document.cookie";
    assert_eq!(browser.eval(tossed).await, "");
    let form = format!(
        "document.body.innerHTML = `<form id=f method=post action='{own}/form'></form><a id=l href='{own}/link'>l</a>`; 1"
    );
    assert_eq!(browser.eval(&form).await, 1);
    browser.eval("void document.querySelector('#f').submit()").await;
    browser.shows("code", "login-required").await;
    assert_eq!(app.requests(), before, "nothing of that has come to the service");
    browser.goto(&at("evil")).await;
    browser.eval(&form).await;
    browser.click("#l").await;
    browser.shows("#who", "alice@example.com at /link").await;

    browser.goto(&format!("{own}/_relay/oidc/logout")).await;
    browser.shows("h1", "You are logged out of this tunnel.").await;
    assert_eq!(browser.barriers().await, json!([]));
    issuer.behave(|manner| manner.denies = Some("error=access_denied".to_owned()));
    browser.click("a").await;
    browser.shows("code", "login-denied").await;
    assert_eq!(browser.barriers().await, json!([]));
    issuer.behave(|_| {});
    browser.click("a").await;
    browser.shows("#who", "alice@example.com at /").await;
    drop(clients);
    world.shutdown().await;
}

#[tokio::test]
async fn a_program_says_the_same_of_the_tunnel_that_it_opens() {
    let scene = Scene::start(&[]).await;
    let builder = Tunnel::builder().relay(scene.world.relay_url()).relay_addr(scene.world.https());
    let builder =
        builder.ca_file(scene.world.ca_file()).token(&scene.token).subdomain("own").upstream(scene.app.addr());
    let login = builder.oidc(scene.issuer.url(), Issuer::CLIENT, Issuer::SECRET);
    let tunnel = within("a tunnel", login.oidc_allow("@example.com").oidc_skip("/up").open()).await.unwrap();
    let mut browser = Browser::default();
    is_refused(&scene.ask(&browser, Request::get(scene.world.url("own", "/"))).await, 401, "login-required");
    assert_eq!(scene.ask(&browser, Request::get(scene.world.url("own", "/up"))).await.code(), 200);
    assert_eq!(scene.go(&mut browser, &scene.world.url("own", "/"), None).await.code(), 200);
    assert_eq!(scene.app.last().header("relay-user-email"), "alice@example.com");
    tunnel.close().await.unwrap();
    scene.world.shutdown().await;
}

/// HTTP/2 gives each cookie a line of its own, and has no upgrade.
#[tokio::test]
async fn over_http2_and_for_websockets_a_login_is_as_good() {
    let scene = Scene::start(&[]).await;
    let mut browser = Browser::default();
    scene.open(&mut browser, "/").await;
    let session = browser.of("app")[SESSION].clone();
    let mut http = scene.world.http2(&scene.world.host("app")).await;
    let crumbs = Request::get(scene.url("/")).header("cookie", "a=1");
    let crumbs = crumbs.header("cookie", format!("{SESSION}={session}")).header("cookie", "b=2");
    assert_eq!(http.answer(crumbs.body(empty()).unwrap()).await.code(), 200);
    // The client writes them on one line (RFC 9113, section 8.2.3), or as they came.
    let seen = scene.app.last();
    let lines: Vec<_> = seen.headers.get_all("cookie").iter().map(|line| line.to_str().unwrap()).collect();
    assert_eq!(lines.join("; "), "a=1; b=2");
    let before = scene.app.requests();
    let socket = |with: Option<&str>| {
        let request = Request::connect(scene.url("/socket")).extension(Protocol::from_static("websocket"));
        let request = with.iter().fold(request, |request, with| request.header("cookie", format!("{SESSION}={with}")));
        request.header("sec-websocket-version", "13").body(empty()).unwrap()
    };
    is_refused(&http.answer(socket(None)).await, 401, "login-required");
    assert_eq!(scene.app.requests(), before);
    // The service has been asked, which is no WebSocket.
    assert_eq!(http.answer(socket(Some(&session))).await.error(), Some("upstream-invalid"));
    assert_eq!((scene.app.requests(), scene.app.last().target.as_str()), (before + 1, "/socket"));
    let host = scene.world.host("app");
    for (origin, is_let_in) in [(format!("https://{host}"), true), (scene.world.relay_url(), false)] {
        let before = scene.app.requests();
        let mut wire = scene.world.raw(&host).await;
        wire.send(format!(
            "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nOrigin: {origin}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nCookie: {SESSION}={session}\r\n\r\n"
        ))
        .await;
        let status = wire.message().await.unwrap().status();
        assert_eq!((status == 401, scene.app.requests() > before), (!is_let_in, is_let_in), "{origin}: {status}");
    }
    scene.world.shutdown().await;
}

#[tokio::test]
async fn who_is_no_browser_is_told_and_skipped_paths_need_no_login() {
    let mut scene = Scene::start(&["--oidc-skip", "/hooks/*", "--oidc-skip", "/up"]).await;
    let nobody = Browser::default();
    let before = scene.app.requests();
    for request in [
        Request::get(scene.url("/")),
        Request::post(scene.url("/")).header("accept", "text/html"),
        Request::get(scene.url("/")).header("sec-fetch-mode", "cors").header("accept", "text/html"),
        Request::get(scene.url("/hooks")),
        Request::get(scene.url("/hooks/../admin")),
        Request::get(scene.url("/hooks/%2e%2e/admin")),
        Request::get(scene.url("/hooks/..%2fadmin")),
        Request::get(scene.url("/up/")),
        Request::get(scene.url("/_relay/oidc/other")),
    ] {
        let answer = scene.ask(&nobody, request).await;
        is_refused(&answer, 401, "login-required");
        assert_eq!(answer.header("www-authenticate"), format!("Cookie realm=\"{}\"", scene.url("")));
        assert!(answer.text().contains("--oidc-skip"), "{answer:?}");
    }
    assert_eq!(scene.app.requests(), before);
    let told = scene.client.process.event("requests.withheld").await;
    assert_eq!((&told["error"], &told["reason"]), (&"login-required".into(), &"nobody has logged in".into()));
    for path in ["/hooks/stripe?a=1", "/up"] {
        let answer = scene.ask(&nobody, Request::post(scene.url(path)).header("relay-user-sub", "0")).await;
        assert_eq!(answer.code(), 200, "{answer:?}");
        let seen = scene.app.last();
        assert_eq!((seen.target.as_str(), seen.headers.contains_key("relay-user-sub")), (path, false));
    }
    // Who is logged in is so there, too, and what is none is no harm.
    let mut browser = Browser::default();
    scene.open(&mut browser, "/").await;
    scene.ask(&browser, Request::get(scene.url("/up"))).await;
    assert_eq!(scene.app.last().header("relay-user-email"), "alice@example.com");
    assert!(!scene.app.last().headers.contains_key("cookie"));
    browser.of("app").insert(SESSION.to_owned(), "x".to_owned());
    scene.ask(&browser, Request::get(scene.url("/up"))).await;
    let seen = scene.app.last();
    assert!(!seen.headers.contains_key("relay-user-email") && !seen.headers.contains_key("cookie"), "{seen:?}");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn other_rules_hold_beside_a_login() {
    let scene = Scene::start(&["--api-key", "X-Api-Key=k3y", "--allow-path", "/ok/*", "--allow-method", "GET"]).await;
    let mut browser = Browser::default();
    let nobody = browser.clone();
    let page =
        |path: &str| PAGE.iter().fold(Request::get(scene.url(path)), |all, (name, value)| all.header(*name, *value));
    is_refused(&scene.ask(&nobody, page("/ok/1")).await, 401, "credentials-required");
    let sent = scene.ask(&nobody, page("/ok/1").header("x-api-key", "k3y")).await;
    assert_eq!(sent.code(), 302, "{sent:?}");
    browser.take("app.relay.test", &sent.headers);
    let callback = scene.issuer.visit(sent.header("location")).await.header("location").to_owned();
    // The way back is the relay's, and no path of the service; whoever has no key may not go it either.
    is_refused(&scene.ask(&browser, Request::get(&callback)).await, 401, "credentials-required");
    let back = scene.ask(&browser, Request::get(&callback).header("x-api-key", "k3y")).await;
    assert_eq!((back.code(), back.header("location")), (302, scene.url("/ok/1").as_str()), "{back:?}");
    browser.take("app.relay.test", &back.headers);
    let with = |request: Builder| request.header("x-api-key", "k3y");
    assert_eq!(scene.ask(&browser, with(Request::get(scene.url("/ok/1")))).await.code(), 200);
    assert!(!scene.app.last().headers.contains_key("x-api-key"));
    is_refused(&scene.ask(&browser, Request::get(scene.url("/ok/1"))).await, 401, "credentials-required");
    is_refused(&scene.ask(&browser, with(Request::get(scene.url("/no")))).await, 403, "path-not-allowed");
    is_refused(&scene.ask(&browser, with(Request::post(scene.url("/ok/1")))).await, 405, "method-not-allowed");
    assert_eq!(scene.app.requests(), 1);
    scene.world.shutdown().await;
}

/// Neither what was changed, nor what another tunnel or another page has made of it.
#[tokio::test]
async fn a_login_is_for_its_tunnel_and_for_that_ones_own_pages() {
    let scene = Scene::start(&[]).await;
    let twin = client(&scene.world, &scene.token, &scene.app, &scene.issuer, "twin", &[]).await;
    let mut browser = Browser::default();
    scene.open(&mut browser, "/").await;
    let session = browser.of("app")[SESSION].clone();
    let get = |name: &str| Request::get(scene.world.url(name, "/"));
    assert_eq!(scene.ask(&browser, get("app")).await.code(), 200);
    let mut elsewhere = Browser::default();
    elsewhere.of("twin").insert(SESSION.to_owned(), session.clone());
    is_refused(&scene.ask(&elsewhere, get("twin")).await, 401, "login-required");
    for at in [0, 20, session.len() - 1] {
        let mut changed = session.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        elsewhere.of("app").insert(SESSION.to_owned(), String::from_utf8(changed).unwrap());
        is_refused(&scene.ask(&elsewhere, get("app")).await, 401, "login-required");
    }
    for wrong in ["", "AAAA", "%00", &"A".repeat(4000)] {
        elsewhere.of("app").insert(SESSION.to_owned(), wrong.to_owned());
        is_refused(&scene.ask(&elsewhere, get("app")).await, 401, "login-required");
    }
    // What a login has begun with is no login.
    let state = scene.open_until(&mut Browser::default(), "/", "/authorize").await;
    let state = state.split_once("state=").unwrap().1.split('&').next().unwrap().to_owned();
    elsewhere.of("app").insert(SESSION.to_owned(), state);
    is_refused(&scene.ask(&elsewhere, get("app")).await, 401, "login-required");

    let before = scene.app.requests();
    let post = || Request::post(scene.url("/transfer"));
    for foreign in [
        post().header("sec-fetch-site", "same-site").header("sec-fetch-mode", "navigate"),
        post().header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "no-cors"),
        post().header("origin", scene.world.url("twin", "")),
        post().header("origin", "null"),
        get("app")
            .header("sec-fetch-site", "same-site")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-dest", "iframe"),
        Request::post(scene.url("/_relay/oidc/logout")).header("origin", scene.world.url("twin", "")),
    ] {
        is_refused(&scene.ask(&browser, foreign).await, 401, "login-required");
    }
    assert_eq!(scene.app.requests(), before);
    let link = PAGE
        .iter()
        .filter(|(name, _)| *name != "sec-fetch-site")
        .fold(get("app"), |all, (name, value)| all.header(*name, *value));
    assert_eq!(
        scene.ask(&browser, link.header("sec-fetch-site", "cross-site")).await.code(),
        200,
        "a link is followed"
    );
    let own =
        post().header("sec-fetch-site", "same-origin").header("origin", format!("https://{}", scene.world.host("app")));
    assert_eq!(scene.ask(&browser, own).await.code(), 200);

    let out = scene.open(&mut browser, "/_relay/oidc/logout").await;
    assert_eq!(out.code(), 200);
    assert!(out.text().contains("You are logged out") && out.text().contains(&scene.url("/")), "{out:?}");
    assert!(!browser.of("app").contains_key(SESSION));
    is_refused(&scene.ask(&browser, get("app")).await, 401, "login-required");
    drop(twin);
    scene.world.shutdown().await;
}

#[tokio::test]
async fn only_those_are_let_in_whom_the_owner_has_named_and_the_issuer_has_verified() {
    let mut scene = Scene::start(&["--oidc-allow", "Bob@example.org", "--oidc-allow", "@example.com"]).await;
    for (claims, is_let_in) in [
        (json!({}), true),
        (json!({ "email": "bob@EXAMPLE.org" }), true),
        (json!({ "email": "eve@example.org" }), false),
        (json!({ "email": "eve@sub.example.com" }), false),
        (json!({ "email": "alice@example.com@evil.example" }), false),
        (json!({ "email_verified": false }), false),
        (json!({ "email_verified": null }), false),
        (json!({ "email": null }), false),
    ] {
        scene.issuer.behave(|manner| manner.claims = claims.clone());
        let (mut browser, before) = (Browser::default(), scene.app.requests());
        let page = scene.open(&mut browser, "/").await;
        assert_eq!(scene.app.requests() - before, usize::from(is_let_in), "{claims}");
        if is_let_in {
            assert_eq!(page.code(), 200, "{claims}: {page:?}");
            continue;
        }
        is_refused(&page, 403, "login-denied");
        // Whoever has the wrong account can take another, also where the issuer knows only too well who is there.
        let leads = page.text();
        let (_, leads) = leads.split_once("href=\"").unwrap();
        let path = leads.split('"').next().unwrap().strip_prefix(&scene.url("")).unwrap().to_owned();
        let asked = scene.open_until(&mut browser, &path, scene.issuer.url()).await;
        assert!(asked.contains("prompt=select_account"), "{asked}");
        let told = scene.client.process.event("requests.withheld").await;
        assert_eq!(told["error"], "login-denied", "{told}");
        // A program of theirs is not let in either.
        is_refused(&scene.ask(&browser, Request::post(scene.url("/"))).await, 403, "login-denied");
    }
    // Some have the address elsewhere, of the same person.
    for (sub, is_let_in) in [("248289761001", true), ("1", false)] {
        scene.issuer.behave(|manner| {
            manner.claims = json!({ "email": null, "email_verified": null });
            manner.userinfo = json!({ "sub": sub, "email": "bob@example.org", "email_verified": true });
        });
        let page = scene.open(&mut Browser::default(), "/").await;
        assert_eq!(page.code(), if is_let_in { 200 } else { 403 }, "{page:?}");
    }
    scene.world.shutdown().await;
}

/// The rules of the next client count for those who are logged in.
#[tokio::test]
async fn a_login_is_held_against_the_rules_as_they_are() {
    let mut scene = Scene::start(&[]).await;
    let mut browser = Browser::default();
    scene.issuer.behave(|manner| manner.claims = json!({ "email_verified": false }));
    scene.open(&mut browser, "/").await;
    assert!(!scene.app.last().headers.contains_key("relay-user-email"), "an address that is not verified is none");
    assert_eq!(scene.app.last().header("relay-user-sub"), "248289761001");
    scene.client.process.terminate().await;
    let flags = ["--oidc-allow", "@example.com"];
    let mut next = client(&scene.world, &scene.token, &scene.app, &scene.issuer, "app", &flags).await;
    is_refused(&scene.ask(&browser, Request::get(scene.url("/"))).await, 403, "login-denied");
    next.process.terminate().await;
    // Without rules nobody says who it is, and nobody gets what lets somebody in at the tunnel of before.
    let target = scene.app.addr().to_string();
    let words = ["http", &target, "--subdomain", "app", "--output", "json"];
    let open = RelayClient::spawn(scene.world.arguments(&scene.token, &words)).await;
    let request = Request::get(scene.url("/")).header("relay-user-sub", "root").header("cookie", "a=b");
    assert_eq!(scene.ask(&browser, request).await.code(), 200);
    let seen = scene.app.last();
    assert!(!seen.headers.contains_key("relay-user-sub"), "{seen:?}");
    let cookies: Vec<_> = seen.headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=b"], "{seen:?}");
    drop(open);
    scene.world.shutdown().await;
}

#[tokio::test]
async fn tokens_that_are_wrong_let_nobody_in() {
    let mut scene = Scene::start(&[]).await;
    let claims = |claims: Value| move |manner: &mut Manner| manner.claims = claims;
    let signed = |by: Signed| move |manner: &mut Manner| manner.signed = by;
    let wrong: Vec<(Change, &str)> = vec![
        (Box::new(claims(json!({ "nonce": "another" }))), "the token is for another login"),
        (Box::new(claims(json!({ "nonce": null }))), "the token is for another login"),
        (Box::new(claims(json!({ "aud": "another" }))), "the token is for another client"),
        (Box::new(claims(json!({ "aud": [Issuer::CLIENT, "another"] }))), "the token is for another client"),
        (Box::new(claims(json!({ "iss": "https://issuer.example" }))), "the token is from another issuer"),
        (Box::new(claims(json!({ "exp": 1_700_000_000 }))), "the token has expired"),
        (Box::new(claims(json!({ "iat": 1_700_000_000 }))), "the token is from another time"),
        (Box::new(claims(json!({ "sub": null }))), "does not say who it is about"),
        (Box::new(signed(Signed::None)), "it is signed by &quot;none&quot;"),
        (Box::new(signed(Signed::Hs256)), "it is signed by &quot;HS256&quot;"),
        (Box::new(signed(Signed::Forged)), "its signature is wrong"),
        (Box::new(signed(Signed::Elsewhere)), "none of the keys is the one"),
        (Box::new(|manner| manner.huge = Some("/token")), "gave no answer: length limit exceeded"),
    ];
    for (change, said) in wrong {
        scene.issuer.behave(change);
        let mut browser = Browser::default();
        let page = scene.open(&mut browser, "/page").await;
        is_refused(&page, 502, "login-failed");
        assert!(page.text().contains(said) && page.text().contains(&scene.url("/page")), "{said}: {page:?}");
        assert!(!browser.of("app").contains_key(SESSION));
        let told = scene.client.process.event("requests.withheld").await;
        assert_eq!((&told["error"], &told["path"]), (&"login-failed".into(), &CALLBACK.into()), "{told}");
    }
    let keys = scene.issuer.asked().iter().filter(|path| *path == "/keys").count();
    assert_eq!(keys, 1, "nobody has it ask for keys again and again");
    assert_eq!(scene.app.requests(), 0);
    // What was denied is said, as text.
    let denied = "error=access_denied&error_description=%3Cscript%3Ealert(1)%3C%2Fscript%3E".to_owned();
    scene.issuer.behave(|manner| manner.denies = Some(denied));
    let page = scene.open(&mut Browser::default(), "/").await;
    is_refused(&page, 403, "login-denied");
    assert!(page.text().contains("access_denied: &lt;script&gt;alert(1)"), "{page:?}");
    // Not all of them write UTF-8.
    scene.issuer.behave(|manner| manner.denies = Some("error=access_denied&error_description=refus%E9".to_owned()));
    let page = scene.open(&mut Browser::default(), "/").await;
    is_refused(&page, 403, "login-denied");
    assert!(page.text().contains("access_denied: refus"), "{page:?}");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn issuers_that_do_not_say_what_they_should_are_not_believed() {
    let other = json!({ "issuer": "https://issuer.example" });
    let insecure = json!({ "token_endpoint": "http://localhost/token" });
    let none = json!({ "jwks_uri": null });
    let wrong: Vec<(Change, &str)> = vec![
        (Box::new(|manner| manner.document = other), "its discovery document is that of https://issuer.example"),
        (Box::new(|manner| manner.document = insecure), "names http://localhost/token, which is no https URL"),
        (Box::new(|manner| manner.document = none), "missing field `jwks_uri`"),
        (Box::new(|manner| manner.huge = Some("/.well-known/openid-configuration")), "length limit exceeded"),
        (Box::new(|manner| manner.hangs = Some("/.well-known/openid-configuration")), "gave no answer within 10 s"),
    ];
    for (change, said) in wrong {
        let scene = Scene::start(&[]).await;
        scene.issuer.behave(change);
        let page = scene.open(&mut Browser::default(), "/page").await;
        is_refused(&page, 502, "login-failed");
        assert!(page.text().contains(said), "{said}: {page:?}");
        assert!(page.text().contains(&scene.url("/page")), "the way to try again: {page:?}");
        // It is left alone for a while, however many come.
        scene.issuer.asked();
        is_refused(&scene.open(&mut Browser::default(), "/").await, 502, "login-failed");
        assert_eq!(scene.issuer.asked(), Vec::<String>::new());
        scene.world.shutdown().await;
    }
}

/// Somebody who has begun a login, and has another finish it, would have that one logged in as himself.
#[tokio::test]
async fn a_login_is_finished_where_it_was_begun_and_once() {
    let scene = Scene::start(&[]).await;
    let mut attacker = Browser::default();
    let callback = scene.open_until(&mut attacker, "/page", CALLBACK).await;
    for mut victim in [Browser::default(), {
        let mut other = Browser::default();
        scene.open_until(&mut other, "/", CALLBACK).await;
        other
    }] {
        let page = scene.go(&mut victim, &callback, None).await;
        is_refused(&page, 400, "login-lost");
        assert!(page.text().contains(&scene.url("/page")), "the way to begin again: {page:?}");
        assert!(!victim.of("app").contains_key(SESSION));
    }
    // Nor at another tunnel, or as another login.
    let twin = client(&scene.world, &scene.token, &scene.app, &scene.issuer, "twin", &[]).await;
    let mut moved = attacker.clone();
    *moved.of("twin") = moved.of("app").clone();
    let at_twin = callback.replace("https://app.", "https://twin.");
    is_refused(&scene.go(&mut moved, &at_twin, None).await, 400, "login-lost");
    for odd in ["", "?", "?code=1", "?state=AAAA&code=1", "?error=%0d%0aset-cookie:%20a=b"] {
        is_refused(&scene.open(&mut attacker.clone(), &format!("{CALLBACK}{odd}")).await, 400, "login-lost");
    }
    let mixed_up = format!("{callback}&iss=https%3A%2F%2Fissuer.example");
    is_refused(&scene.go(&mut attacker.clone(), &mixed_up, None).await, 400, "login-lost");
    assert_eq!(scene.go(&mut attacker, &callback, None).await.code(), 200);
    let page = scene.go(&mut attacker, &callback, None).await;
    is_refused(&page, 502, "login-failed");
    assert!(page.text().contains("invalid_grant"), "{page:?}");
    drop(twin);
    scene.world.shutdown().await;
}

/// Whatever the page is, it is one of this host.
#[tokio::test]
async fn nobody_is_led_elsewhere_by_a_path() {
    let scene = Scene::start(&[]).await;
    let long = format!("/{}", "a".repeat(2000));
    for (path, leads) in [
        ("//evil.example/", "//evil.example/"),
        ("/.evil.example", "/.evil.example"),
        ("/@evil.example", "/@evil.example"),
        ("/%2f%5cevil.example?next=https://evil.example", "/%2f%5cevil.example?next=https://evil.example"),
        // It does not fit.
        (&long, "/"),
    ] {
        let mut browser = Browser::default();
        let callback = scene.open_until(&mut browser, path, CALLBACK).await;
        let back = scene.ask(&browser, Request::get(&callback)).await;
        assert_eq!((back.code(), back.header("location")), (302, scene.url(leads).as_str()), "{path}");
        assert_eq!(back.header("referrer-policy"), "no-referrer");
    }
    scene.world.shutdown().await;
}

#[tokio::test]
async fn logins_outlive_the_relay_and_nobody_begins_one_while_the_client_is_away() {
    let mut scene = Scene::start(&["--inbox", "--oidc-skip", "/hooks/*"]).await;
    let mut browser = Browser::default();
    scene.open(&mut browser, "/").await;
    scene.world.stop().await;
    scene.world.start_again().await;
    let url = scene.url("/1");
    let post = || Request::post(&url);
    within("the client's return", async {
        while scene.ask(&browser, Request::get(scene.url("/"))).await.code() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scene.client.process.terminate().await;
    for restarted in [false, true] {
        if restarted {
            scene.world.stop().await;
            scene.world.start_again().await;
        }
        let page = scene.open(&mut Browser::default(), "/page").await;
        is_refused(&page, 503, "client-offline");
        assert!(page.text().contains("nobody can log in without it"), "restarted {restarted}: {page:?}");
        assert!(page.text().contains(&scene.url("/page")), "the way to try again: {page:?}");
        is_refused(&scene.ask(&Browser::default(), post()).await, 401, "login-required");
        let kept = scene.ask(&browser, post()).await;
        assert_eq!(
            (kept.code(), kept.headers.contains_key("relay-inbox")),
            (202, true),
            "restarted {restarted}: {kept:?}"
        );
    }
    // The secret is on no disk, nor is a login.
    let session = browser.of("app")[SESSION].clone();
    for needle in [Issuer::SECRET, &session] {
        assert!(!is_below(scene.world.data_dir(), needle.as_bytes()));
    }
    let app = App::recording().await;
    let back = client(&scene.world, &scene.token, &app, &scene.issuer, "app", &["--inbox"]).await;
    within("both webhooks", app.reached(2)).await;
    assert!(app.seen().iter().all(|seen| seen.header("relay-user-email") == "alice@example.com"));
    drop(back);
    scene.world.shutdown().await;
}

fn is_below(directory: &Path, needle: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).any(|path| match path.is_dir() {
        true => is_below(&path, needle),
        false => std::fs::read(&path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle)),
    })
}

#[tokio::test]
async fn a_login_ends_after_its_time() {
    let issuer = Issuer::start().await;
    let change = |config: &mut Config| {
        asking(config, &issuer);
        config.limits.login = std::time::Duration::from_secs(1);
    };
    let world = World::with(change).await;
    let (token, app) = (world.token().await, App::recording().await);
    let client = client(&world, &token, &app, &issuer, "app", &[]).await;
    let scene = Scene { world, token, issuer, app, client };
    let mut browser = Browser::default();
    assert_eq!(scene.open(&mut browser, "/").await.code(), 200);
    within("the end of a login", async {
        while scene.ask(&browser, Request::get(scene.url("/"))).await.code() == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    is_refused(&scene.ask(&browser, Request::get(scene.url("/"))).await, 401, "login-required");
    assert_eq!(scene.open(&mut browser, "/").await.code(), 200, "the next one is as good");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn many_who_fail_wait_and_others_do_not() {
    let issuer = Issuer::start().await;
    let change = |config: &mut Config| {
        asking(config, &issuer);
        config.limits.logins_per_minute = 12;
        config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    };
    let world = World::with(change).await;
    let (token, app) = (world.token().await, App::recording().await);
    let client = client(&world, &token, &app, &issuer, "app", &[]).await;
    let scene = Scene { world, token, issuer, app, client };
    let attempt = async |address: &str| {
        let mut browser = Browser::default();
        let callback = scene.open_until(&mut browser, "/", CALLBACK).await;
        let request = Request::get(&callback).header("x-forwarded-for", address);
        scene.ask(&browser, request).await
    };
    scene.issuer.behave(|manner| manner.signed = Signed::None);
    for _ in 0..2 {
        assert_eq!(attempt("203.0.113.1").await.error(), Some("login-failed"));
    }
    assert_eq!(attempt("203.0.113.1").await.error(), Some("too-many-requests"));
    // Who does not wait for the answer has tried it all the same.
    scene.issuer.behave(|manner| manner.hangs = Some("/token"));
    for _ in 0..2 {
        scene.issuer.asked();
        let gone = attempt("203.0.113.3");
        tokio::pin!(gone);
        let reaches = async {
            while !scene.issuer.asked().iter().any(|path| path == "/token") {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = &mut gone => panic!("{answer:?}"),
            () = within("the question", reaches) => {}
        }
    }
    assert_eq!(attempt("203.0.113.3").await.error(), Some("too-many-requests"));
    // What the issuer has done wrong is nobody's fault.
    scene.issuer.behave(|manner| manner.huge = Some("/token"));
    for _ in 0..3 {
        assert_eq!(attempt("203.0.113.4").await.error(), Some("login-failed"));
    }
    scene.issuer.behave(|_| {});
    assert_eq!(attempt("203.0.113.1").await.error(), Some("too-many-requests"));
    assert_eq!(attempt("203.0.113.2").await.code(), 302);
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(attempt("203.0.113.2").await.code());
    }
    assert!(codes.contains(&429) && codes[0] == 302, "{codes:?}");
    scene.world.shutdown().await;
}

#[tokio::test]
async fn a_tunnel_whose_logins_the_relay_does_not_allow_is_refused_and_says_what_to_do() {
    let issuer = Issuer::start().await;
    let app = App::recording().await;
    let target = app.addr().to_string();
    let words = [&["http", &target, "--output", "json"][..], &login(&issuer)].concat();
    let other = OidcConfig { issuers: vec!["https://issuer.example".to_owned()], ca: None };
    let set = format!("issuers = [\"{}\"] below [oidc] in relay-server.toml", issuer.url());
    for (issuers, path_mode, said) in [
        (OidcConfig::default(), false, set.as_str()),
        (other, false, &set),
        (OidcConfig { issuers: vec![issuer.url().to_owned()], ca: None }, true, "its tunnels share one host"),
    ] {
        let world = World::with(|config| (config.oidc, config.path_mode) = (issuers, path_mode)).await;
        let ended = run("relay", world.arguments(&world.token().await, &words)).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains(said) && !ended.stderr.contains(Issuer::SECRET), "{ended:?}");
        world.shutdown().await;
    }
}

/// The issuers change with the operator's file, and whoever was logged in by one that is gone is not any more.
#[tokio::test]
async fn what_the_operator_allows_changes_while_the_relay_runs() {
    let issuer = Issuer::start().await;
    let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let file = home.path().join("relay-server.toml");
    let allow = |issuers: &str| {
        let text = format!("[oidc]\nissuers = [{issuers}]\nca = '{}'\n", issuer.ca_file().display());
        std::fs::write(&file, text).unwrap();
    };
    allow("");
    let mut relay = RelayServer::spawn_in(home.clone(), ["--config", file.to_str().unwrap()]).await;
    let (token, app) = (relay.token("ann").await, App::recording().await);
    let target = app.addr().to_string();
    let words = [&["http", &target, "--subdomain", "app", "--output", "json"][..], &login(&issuer)].concat();
    assert_eq!(run("relay", relay.arguments(&token, &words)).await.code(), 1);
    allow(&format!("'{}'", issuer.url()));
    relay.process.signal(Signal::HUP);
    let said = relay.process.error_line("the configuration was read anew").await;
    assert!(said.contains("oidc"), "{said}");
    let client = RelayClient::of(Process::spawn("relay", relay.arguments(&token, &words)).await).await;
    let (https, ca) = (relay.https, relay.ca_file());
    let ask = async |path: &str, cookies: &[String]| {
        let request = PAGE
            .iter()
            .fold(Request::get(format!("{}{path}", client.url())), |all, (name, value)| all.header(*name, *value));
        let request = cookies.iter().fold(request, |request, line| request.header("cookie", line));
        let tls = relay_tests::world::connect_tls(https, &client.host(), &ca, &[b"http/1.1"]).await;
        relay_tests::Http::one(tls).await.answer(request.body(empty()).unwrap()).await
    };
    let mut browser = Browser::default();
    let sent = ask("/", &[]).await;
    assert_eq!(sent.code(), 302, "{sent:?}");
    browser.take("app.relay.test", &sent.headers);
    let callback = issuer.visit(sent.header("location")).await.header("location").to_owned();
    let back = ask(callback.strip_prefix(client.url()).unwrap(), &browser.cookies("app.relay.test")).await;
    browser.take("app.relay.test", &back.headers);
    assert_eq!(ask("/", &browser.cookies("app.relay.test")).await.code(), 200);
    // What opens a door is in no log.
    let code = callback.split_once("code=").unwrap().1.split('&').next().unwrap();
    let line = relay.process.error_line("callback").await;
    assert!(!line.contains(code) && !line.contains("state="), "{line}");
    // Another process that takes over has the same logins.
    let mut next = relay.successor(&["--config", file.to_str().unwrap()]).await;
    next.process.error_line("a client connected").await;
    assert_eq!(ask("/", &browser.cookies("app.relay.test")).await.code(), 200);
    // Whoever takes the key away has ended them.
    std::fs::remove_file(next.data_dir().join("login.key")).unwrap();
    next.process.signal(Signal::HUP);
    next.process.error_line("the configuration was read anew").await;
    assert_eq!(ask("/", &browser.cookies("app.relay.test")).await.code(), 302);
    allow("");
    next.process.signal(Signal::HUP);
    next.process.error_line("the configuration was read anew").await;
    let page = ask("/", &browser.cookies("app.relay.test")).await;
    is_refused(&page, 502, "login-failed");
    assert!(page.text().contains("does not let it ask"), "{page:?}");
}
