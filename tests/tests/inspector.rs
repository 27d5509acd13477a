//! The inspector: who may call it, what it says, and what it changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use relay_tests::app::ok;
use relay_tests::body::full;
use relay_tests::world::connect_tls;
use relay_tests::{Answer, App, Http, Process, RelayClient, RelayServer, tools, within};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

const DEFAULTS: [&str; 0] = [];

/// A client with an inspector.
struct Inspected {
    client: RelayClient,
    /// Its URL.
    url: String,
}

impl Inspected {
    async fn new(relay: &RelayServer, app: &App, flags: &[&str]) -> Self {
        let token = relay.token("me").await;
        Self::of(relay.client(&token, &app.upstream().to_string(), flags).await)
    }

    fn of(client: RelayClient) -> Self {
        let url = client.ready["inspector"].as_str().expect("it has an inspector").to_owned();
        Self { client, url }
    }

    fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// Any call, with a body where there is one.
    async fn call(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        call(self.address(), method, path, headers, body).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, &[], "").await;
        assert_eq!(answer.code(), 200, "{path}: {}", answer.text());
        answer.json()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, &[("content-type", "application/json")], &body.to_string()).await
    }
}

async fn call(address: SocketAddr, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(format!("http://{address}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut http = Http::one(TcpStream::connect(address).await.expect("it listens")).await;
    http.answer(request.body(full(body.to_owned())).unwrap()).await
}

/// A service that says this to everybody.
async fn saying(text: &'static str) -> App {
    App::serve(move |_| async move { ok(text) }).await
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.code(), answer.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

/// GET on a tunnel's public URL.
async fn public(relay: &RelayServer, url: &str) -> Answer {
    let uri: http::Uri = url.parse().unwrap();
    let tls = connect_tls(relay.https, uri.host().unwrap(), &relay.ca_file(), &[b"http/1.1"]).await;
    Http::one(tls).await.answer(Request::get(uri).body(full("")).unwrap()).await
}

#[tokio::test]
async fn a_page_is_where_the_client_says_and_nothing_else_may_use_it() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let inspected = Inspected::new(&relay, &app, &[]).await;
    let page = inspected.call(Method::GET, "/", &[], "").await;
    assert_eq!((page.code(), page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert_eq!((page.header("x-content-type-options"), page.header("x-frame-options")), ("nosniff", "DENY"));
    for file in ["/app.js", "/app.css"] {
        let answer = inspected.call(Method::GET, file, &[], "").await;
        assert_eq!(answer.code(), 200, "{file}");
        let tag = answer.header("etag").to_owned();
        let again = inspected.call(Method::GET, file, &[("if-none-match", &tag)], "").await;
        assert_eq!((again.code(), again.body.len()), (304, 0));
    }
    for path in ["/inspect/http", "/status"] {
        let answer = inspected.call(Method::GET, path, &[], "").await;
        assert_eq!((answer.code(), answer.header("location")), (303, "/"));
    }
    let head = inspected.call(Method::HEAD, "/api/v1/status", &[], "").await;
    assert_eq!((head.code(), head.body.len()), (200, 0));
    assert_eq!(head.header("cache-control"), "no-store");
    assert!(!head.headers.contains_key("access-control-allow-origin"));
    for (method, path, expected) in [
        (Method::GET, "/none", (404, "not-found")),
        (Method::GET, "/api/none", (404, "not-found")),
        (Method::GET, "/../etc/passwd", (404, "not-found")),
        (Method::GET, "/%ff", (404, "not-found")),
        (Method::GET, "/api/v1/status?x=1", (400, "bad-request")),
        (Method::OPTIONS, "/api/v1/status", (405, "method-not-allowed")),
        (Method::DELETE, "/", (405, "method-not-allowed")),
    ] {
        let answer = inspected.call(method, path, &[], "").await;
        assert_eq!(code(&answer), (expected.0, expected.1.to_owned()), "{path}");
    }
}

/// What a browser says where a link of another site is followed.
const LINK: [(&str, &str); 3] =
    [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];

/// A page that has its own name lead here (DNS rebinding), a page of another site or port, and a form.
#[tokio::test]
async fn another_sites_page_is_refused_whatever_it_asks() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let inspected = Inspected::new(&relay, &app, &[]).await;
    let (address, json) = (inspected.address(), ("content-type", "application/json"));
    let rebound = format!("rebound.example:{}", address.port());
    let own = format!("http://{address}");
    let tunnel = "{\"upstream\":\"3000\"}";
    for (method, path, headers, body, expected) in [
        (Method::GET, "/api/v1/status", &[("host", rebound.as_str())][..], "", (403, "host-not-allowed")),
        (Method::GET, "/", &[("host", &rebound)], "", (403, "host-not-allowed")),
        (Method::POST, "/api/v1/tunnels", &[("host", &rebound), json], tunnel, (403, "host-not-allowed")),
        (Method::GET, "/api/tunnels", &[("sec-fetch-site", "cross-site")], "", (403, "cross-site")),
        (Method::GET, "/api/tunnels", &[("sec-fetch-site", "same-site")], "", (403, "cross-site")),
        (Method::GET, "/api/tunnels", &[("origin", "http://localhost:3000")], "", (403, "cross-site")),
        (Method::POST, "/api/tunnels", &[("origin", "null"), json], tunnel, (403, "cross-site")),
        (Method::POST, "/api/tunnels", &[("origin", "https://evil.example"), json], tunnel, (403, "cross-site")),
        (Method::POST, "/api/tunnels", &[("content-type", "text/plain")], tunnel, (415, "unsupported-media-type")),
        (Method::POST, "/api/v1/tunnels", &[("origin", &own)], tunnel, (415, "unsupported-media-type")),
        (Method::GET, "/api/v1/status", &[("x-forwarded-for", "192.0.2.1")], "", (403, "forwarded")),
        (Method::GET, "/%61pi/v1/exchanges", &LINK, "", (403, "cross-site")),
        (Method::GET, "/api/v1/exchanges.har", &LINK, "", (403, "cross-site")),
    ] {
        let answer = inspected.call(method, path, headers, body).await;
        assert_eq!(code(&answer), (expected.0, expected.1.to_owned()), "{path} {headers:?}");
    }
    assert_eq!(inspected.get("/api/v1/tunnels").await["tunnels"].as_array().unwrap().len(), 1, "nothing was added");
    assert_eq!(inspected.call(Method::GET, "/", &LINK, "").await.code(), 200, "to the page");
    let mine = [("origin", own.as_str()), ("sec-fetch-site", "same-origin")];
    assert_eq!(inspected.call(Method::GET, "/api/v1/status", &mine, "").await.code(), 200);

    // Somebody publishes it by mistake.
    let token = relay.token("other").await;
    let published = relay.client(&token, &address.to_string(), &["--inspect", "off"]).await;
    assert_eq!(published.ready["inspector"], Value::Null);
    let answer = public(&relay, &format!("{}/api/v1/status", published.url())).await;
    assert_eq!(code(&answer), (403, "forwarded".to_owned()));
}

#[tokio::test]
async fn clients_side_by_side_have_an_inspector_each_and_a_taken_address_is_said() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let token = relay.token("me").await;
    let target = app.upstream().to_string();
    let one = Inspected::of(relay.client(&token, &target, &[]).await);
    let two = Inspected::of(relay.client(&token, &target, &["--random"]).await);
    assert_ne!(one.url, two.url);
    for inspected in [&one, &two] {
        let status = inspected.get("/api/v1/status").await;
        assert_eq!(status["pid"], inspected.client.process.pid());
        assert_eq!(status["inspector"], inspected.url.as_str());
    }
    let taken = one.address().to_string();
    let words = relay.arguments(&token, &["http", &target, "--inspect", &taken]);
    let ended = Process::spawn("relay", words).await.wait().await;
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.stderr.contains(&format!("the inspector cannot listen on {taken}")), "{}", ended.stderr);

    // For people it stands once below the URL.
    let words = relay.arguments(&token, &["http", &target, "--random", "--inspect", "127.0.0.1:0"]);
    let mut shown = Process::spawn("relay", words).await;
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| !line.is_empty()) {
        lines.push(shown.line().await.unwrap());
    }
    let url = lines.iter().find_map(|line| line.strip_prefix("  inspect at http://")).expect("it is said");
    assert_eq!(call(url.parse().unwrap(), Method::GET, "/api/status", &[], "").await.json()["status"], "online");
    assert_eq!(shown.terminate().await.code(), 143);
}

#[tokio::test]
async fn more_than_this_machine_takes_a_token() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let ended =
        Process::spawn("relay", ["http", "3000", "--relay", &relay.url, "--inspect", "0.0.0.0:0"]).await.wait().await;
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("RELAY_INSPECT_TOKEN"), "{}", ended.stderr);

    let inspected = Inspected::new(&relay, &app, &["--inspect", "0.0.0.0:0", "--inspect-token", "s3cret-t0ken"]).await;
    let answer = inspected.call(Method::GET, "/api/v1/status", &[], "").await;
    assert_eq!(code(&answer), (401, "unauthorized".to_owned()));
    assert_eq!((answer.header("www-authenticate"), answer.header("connection")), ("Bearer", "close"));
    let bearer = ("authorization", "Bearer s3cret-t0ken");
    let lan = ("host", "laptop.lan:4040");
    assert_eq!(inspected.call(Method::GET, "/api/v1/status", &[bearer, lan], "").await.code(), 200);
    let opened = inspected.call(Method::GET, "/?token=s3cret-t0ken", &[], "").await;
    assert_eq!((opened.code(), opened.header("location")), (303, "/"));
    let cookie = opened.header("set-cookie").to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict") && !cookie.contains("s3cret"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(inspected.call(Method::GET, "/api/v1/status", &[("cookie", cookie)], "").await.code(), 200);
    assert!(!inspected.client.process.said().contains("s3cret"), "{}", inspected.client.process.said());
}

#[tokio::test]
async fn tunnels_come_and_go_while_it_runs() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let (first, second) = (saying("first").await, saying("second").await);
    let mut inspected = Inspected::new(&relay, &first, &["--subdomain", "first"]).await;
    let upstream = second.upstream().to_string();
    let answer = inspected.post("/api/v1/tunnels", &json!({"upstream": upstream, "subdomain": "second"})).await;
    assert_eq!(answer.code(), 201, "{}", answer.text());
    let tunnel = answer.json();
    let (name, url) = (tunnel["name"].as_str().unwrap(), tunnel["public_url"].as_str().unwrap());
    assert!(url.starts_with("https://second.") && tunnel["upstream"] == upstream.as_str(), "{tunnel}");
    assert_eq!(public(&relay, url).await.text(), "second");
    let ready = inspected.client.process.event("tunnel.ready").await;
    assert_eq!((&ready["url"], &ready["inspector"]), (&url.into(), &inspected.url.as_str().into()));
    let all = inspected.get("/api/v1/tunnels").await;
    assert_eq!(all["tunnels"].as_array().unwrap().len(), 2, "{all}");
    assert_eq!(inspected.get(&format!("/api/v1/tunnels/{name}")).await, tunnel);

    for (body, expected) in [
        (json!({"upstream": "192.0.2.1:80"}), (403, "remote-upstream")),
        (json!({"upstream": "unix:/run/docker.sock"}), (403, "remote-upstream")),
        (json!({"upstream": inspected.url}), (403, "own-upstream")),
        (json!({"upstream": upstream, "name": name}), (409, "tunnel-exists")),
        (json!({"upstream": upstream, "subdomain": "a.b"}), (400, "bad-request")),
        (json!({"upstream": upstream, "basic_auth": "a:b"}), (400, "bad-request")),
        (json!({"upstream": upstream, "subdomain": "www"}), (409, "tunnel-refused")),
    ] {
        assert_eq!(
            code(&inspected.post("/api/v1/tunnels", &body).await),
            (expected.0, expected.1.to_owned()),
            "{body}"
        );
    }
    // What was refused is not held against the next one of that name.
    let wish = json!({"upstream": upstream, "name": "third", "subdomain": "www"});
    assert_eq!(inspected.post("/api/v1/tunnels", &wish).await.code(), 409);
    let third = json!({"upstream": upstream, "name": "third"});
    assert_eq!(inspected.post("/api/v1/tunnels", &third).await.code(), 201);
    assert_eq!(inspected.get("/api/v1/tunnels").await["refused"], json!([]));

    let delete = inspected.call(Method::DELETE, &format!("/api/v1/tunnels/{name}"), &[], "").await;
    assert_eq!(delete.code(), 204);
    assert_eq!(inspected.client.process.event("tunnel.closed").await["name"], "second");
    let gone = inspected.call(Method::DELETE, &format!("/api/v1/tunnels/{name}"), &[], "").await;
    assert_eq!(code(&gone), (404, "tunnel-not-found".to_owned()));
    assert_eq!(public(&relay, url).await.error(), Some("tunnel-not-found"));
    // Also the one that it was started with, and there can be others then.
    let delete = inspected.call(Method::DELETE, "/api/tunnels/first", &[], "").await;
    assert_eq!(delete.code(), 204);
    let again = inspected.post("/api/v1/tunnels", &json!({"upstream": upstream, "subdomain": "first"})).await;
    assert_eq!(public(&relay, again.json()["public_url"].as_str().unwrap()).await.text(), "second");
    assert_eq!(inspected.client.process.terminate().await.code(), 143);
}

/// As a script does whose patience ends before ours.
#[tokio::test]
async fn a_tunnel_that_nobody_waits_for_any_more_is_not_opened_later() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
    let upstream = app.upstream().to_string();
    let abandoned = json!({"name": "abandoned", "upstream": upstream});
    relay.process.signal(Signal::STOP);
    // Once it has been taken back, its name is free for whoever tries again.
    let tries = async {
        let mut unanswered = 0;
        while unanswered < 3 {
            let call = inspected.post("/api/v1/tunnels", &abandoned);
            match tokio::time::timeout(std::time::Duration::from_millis(300), call).await {
                Ok(answer) => assert_eq!(code(&answer), (409, "tunnel-exists".to_owned())),
                Err(_) => unanswered += 1,
            }
        }
    };
    within("the name is free again", tries).await;
    relay.process.signal(Signal::CONT);
    let last = inspected.post("/api/v1/tunnels", &json!({"name": "last", "upstream": upstream})).await;
    assert_eq!(last.code(), 201, "{}", last.text());
    let tunnels = inspected.get("/api/v1/tunnels").await;
    let names: Vec<_> = tunnels["tunnels"].as_array().unwrap().iter().map(|tunnel| &tunnel["name"]).collect();
    assert_eq!(names, ["hooks", "last"]);
}

/// What the file says changes with the file, and what a program has added stays.
#[tokio::test]
async fn a_file_that_changes_leaves_added_tunnels_alone() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let (token, upstream) = (relay.token("me").await, app.upstream().to_string());
    let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let write = |tables: &str| {
        let (url, ca) = (&relay.url, relay.ca_file().display().to_string());
        let way =
            format!("relay = \"{url}\"\nrelay_addr = \"{}\"\nrelay_ca = \"{ca}\"\ntoken = \"{token}\"\n", relay.https);
        let new = home.path().join("new");
        std::fs::write(&new, way + tables).unwrap();
        std::fs::rename(&new, home.path().join("relay.toml")).unwrap();
    };
    write(&format!("[tunnels.one]\nupstream = \"{upstream}\"\n"));
    let process = Process::spawn_in(home.clone(), "relay", ["start", "--output", "json"], &[]).await;
    let mut inspected = Inspected::of(RelayClient::of(process).await);
    let added =
        inspected.post("/api/tunnels", &json!({"name": "added (api)", "addr": upstream, "proto": "http"})).await;
    assert_eq!(added.code(), 201, "{}", added.text());
    write(&format!("[tunnels.two]\nupstream = \"{upstream}\"\n"));
    assert_eq!(inspected.client.process.event("tunnel.closed").await["tunnel"], "one");
    while inspected.client.process.event("tunnel.ready").await["tunnel"] != "two" {}
    let tunnels = inspected.get("/api/tunnels").await;
    let mut names: Vec<_> =
        tunnels["tunnels"].as_array().unwrap().iter().map(|tunnel| tunnel["name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["added (api)", "two"]);
    assert_eq!(added.json()["uri"], "/api/tunnels/added%20%28api%29");
    assert_eq!(inspected.call(Method::DELETE, "/api/tunnels/added%20%28api%29", &[], "").await.code(), 204);
}

/// The inbox of a client's tunnel is handled through its inspector, and no other one of the same token.
#[tokio::test]
async fn inboxes_are_those_of_the_clients_own_tunnels() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let (token, target) = (relay.token("me").await, app.upstream().to_string());
    let other = relay.client(&token, &target, &["--subdomain", "other", "--inbox"]).await;
    let inspected = Inspected::of(relay.client(&token, &target, &["--subdomain", "hooks", "--inbox"]).await);
    let inboxes = inspected.get("/api/v1/inboxes").await;
    assert_eq!((inboxes["inboxes"].as_array().unwrap().len(), &inboxes["inboxes"][0]["name"]), (1, &json!("hooks")));
    let paused = inspected.post("/api/v1/inboxes/hooks/pause", &json!({})).await;
    assert_eq!((paused.code(), &paused.json()["paused"]), (200, &json!(true)));
    let answer = post(&relay, &format!("{}/a", inspected.client.url()), &[], "body").await;
    assert_eq!(answer.code(), 202);
    let page = inspected.get("/api/v1/inboxes/hooks?state=waiting&limit=5").await;
    let id = page["webhooks"][0]["id"].as_str().unwrap().to_owned();
    let kept = inspected.get(&format!("/api/v1/inboxes/hooks/webhooks/{id}")).await;
    assert_eq!((&kept["path"], &kept["body_base64"]), (&json!("/a"), &json!("Ym9keQ==")));
    let body = inspected.call(Method::GET, &format!("/api/v1/inboxes/hooks/webhooks/{id}/body"), &[], "").await;
    assert_eq!((body.code(), body.text()), (200, "body"));
    let dropped = inspected.post("/api/v1/inboxes/hooks/drop", &json!({ "ids": [id] })).await;
    assert_eq!((dropped.code(), &dropped.json()["count"]), (200, &json!(1)));

    for path in ["/api/v1/inboxes/other", "/api/v1/inboxes/..", "/api/v1/inboxes/hooks%2F..%2Fother"] {
        let refused = inspected.call(Method::GET, path, &[], "").await;
        assert_eq!(code(&refused), (404, "inbox-not-found".to_owned()), "{path}");
    }
    let refused = inspected.post("/api/v1/inboxes/other/drop", &json!({ "all": "waiting" })).await;
    assert_eq!(code(&refused), (404, "inbox-not-found".to_owned()));
    let odd = inspected.call(Method::GET, "/api/v1/inboxes/hooks/webhooks/..", &[], "").await;
    assert_eq!(odd.code(), 404);
    // A page of another site cannot do it, and a form without permission neither.
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let refused = inspected.call(Method::POST, "/api/v1/inboxes/hooks/resume", &form, "").await;
    assert_eq!(code(&refused), (415, "unsupported-media-type".to_owned()));
    let foreign = [("content-type", "application/json"), ("origin", "https://evil.example")];
    let refused = inspected.call(Method::POST, "/api/v1/inboxes/hooks/resume", &foreign, "{}").await;
    assert_eq!(code(&refused), (403, "cross-site".to_owned()));
    drop(other);
}

/// Every answer of every call has the shape that the document says.
#[tokio::test]
async fn the_document_of_the_api_is_kept_to() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let app = App::echo().await;
    let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
    let url = inspected.client.url();
    post(&relay, &format!("{url}/hooks"), &[("x-github-event", b"push")], "{}").await;
    post(&relay, &format!("{url}/hooks"), &[], &b"\xff"[..]).await;
    let list = inspected.get("/api/v1/exchanges").await;
    let id = list["exchanges"][0]["id"].as_str().unwrap();
    tools::keeps_to_openapi(&format!("{}/api/v1/openapi.json", inspected.url), id).await;
}

mod agent_api {
    use super::*;

    #[tokio::test]
    async fn has_the_shapes_that_scripts_know() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::echo().await;
        let mut inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        assert_eq!(public(&relay, inspected.client.url()).await.code(), 200);
        inspected.client.exchange().await;
        let status = inspected.get("/api/status").await;
        assert_eq!((&status["status"], &status["uri"]), (&"online".into(), &"/api/status".into()));
        assert!(status["agent_version"].is_string() && status["session"]["legs"].is_array(), "{status}");
        let tunnels = inspected.get("/api/tunnels").await;
        let [tunnel] = &tunnels["tunnels"].as_array().unwrap()[..] else { panic!("{tunnels}") };
        assert_eq!(tunnel["public_url"], inspected.client.url());
        assert_eq!(tunnel["config"], json!({"addr": app.upstream().to_string(), "inspect": true}));
        assert_eq!((&tunnel["proto"], &tunnel["uri"]), (&"https".into(), &"/api/tunnels/hooks".into()));
        assert_eq!(tunnel["metrics"]["http"]["count"], 1);
        for of in ["conns", "http"] {
            for figure in ["count", "rate1", "rate5", "rate15", "p50", "p90", "p95", "p99"] {
                assert!(tunnel["metrics"][of][figure].is_number(), "{of} {figure}: {tunnel}");
            }
        }
        assert_eq!(inspected.get("/api/tunnels/hooks").await, *tunnel);
        let endpoint = inspected.get("/api/endpoints/hooks").await;
        assert_eq!(endpoint["url"], inspected.client.url());
        assert_eq!(endpoint["upstream"]["url"], app.upstream().to_string());
        let all = inspected.get("/api/endpoints").await;
        assert_eq!((all["endpoints"].as_array().unwrap().len(), &all["uri"]), (1, &"/api/endpoints".into()));

        let other = saying("other").await;
        let domain = format!("two.{}", RelayServer::DOMAIN);
        let new = json!({"name": "two", "url": format!("https://{domain}"), "upstream": {"url": other.upstream().to_string()}});
        let added = inspected.post("/api/endpoints", &new).await;
        assert_eq!(added.code(), 201, "{}", added.text());
        let url = added.json()["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with(&format!("https://{domain}")), "{url}");
        assert_eq!(public(&relay, &url).await.text(), "other");
        let back = json!({"url": format!("https://{domain}"), "upstream": {"url": app.upstream().to_string()}});
        let json = ("content-type", "application/json");
        let changed = inspected.call(Method::PUT, "/api/endpoints/two", &[json], &back.to_string()).await;
        assert_eq!((changed.code(), &changed.json()["url"]), (200, &url.as_str().into()), "{}", changed.text());
        let first = public(&relay, &url).await.text().to_owned();
        assert_ne!(first, "other");
        // Another name; one that the relay refuses changes nothing, and is not held against the next one.
        let put = async |name: &str, body: &Value| {
            inspected.call(Method::PUT, &format!("/api/endpoints/{name}"), &[json], &body.to_string()).await
        };
        let to = |app: &App, name: &str| json!({"url": format!("https://{name}.{}", RelayServer::DOMAIN), "upstream": {"url": app.upstream().to_string()}});
        let refused = put("two", &to(&other, "www")).await;
        assert_eq!(code(&refused), (409, "tunnel-refused".to_owned()), "{}", refused.text());
        assert_eq!(public(&relay, &url).await.text(), first);
        assert_eq!(inspected.get("/api/endpoints/two").await["upstream"]["url"], app.upstream().to_string());
        let moved = put("two", &to(&app, "three")).await;
        let moved_to = moved.json()["url"].as_str().unwrap_or_default().to_owned();
        assert!(moved.code() == 200 && moved_to.starts_with("https://three."), "{}", moved.text());
        assert_eq!(public(&relay, &moved_to).await.text(), first);
        assert_eq!(public(&relay, &url).await.error(), Some("tunnel-not-found"));
        let named = json!({"name": "other", "upstream": {"url": app.upstream().to_string()}});
        assert_eq!(code(&put("two", &named).await), (400, "bad-request".to_owned()));
        // One that was started without a name is called as its URL is.
        let moved = put("hooks", &to(&app, "moved")).await;
        assert_eq!((moved.code(), &moved.json()["name"]), (200, &"moved".into()), "{}", moved.text());
        let all = inspected.get("/api/endpoints").await;
        let names: Vec<_> = all["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["name"]).collect();
        assert_eq!(names, ["two", "moved"]);
        assert_eq!(inspected.call(Method::DELETE, "/api/endpoints/two", &[json], "").await.code(), 204);
        let missing = inspected.call(Method::GET, "/api/endpoints/two", &[], "").await;
        assert_eq!(missing.code(), 404);
        let missing = missing.json();
        assert_eq!((&missing["status_code"], &missing["error"]["code"]), (&404.into(), &"tunnel-not-found".into()));
        assert!(missing["msg"].is_string() && missing["details"]["err"].is_string(), "{missing}");
        for wrong in
            [json!({"addr": "3000", "proto": "tcp"}), json!({"addr": "3000", "basic_auth": ["a:b"]}), json!({})]
        {
            assert_eq!(inspected.post("/api/tunnels", &wrong).await.code(), 400, "{wrong}");
        }
    }

    #[tokio::test]
    async fn is_spoken_by_pyngrok() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = saying("from the app").await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        public(&relay, &format!("{}/seen", inspected.client.url())).await;
        let seen = tools::pyngrok_calls(&inspected.url, &app.upstream().to_string()).await;
        assert_eq!(seen["requests"], json!(["/seen"]));
        assert_eq!(seen["before"], json!([inspected.client.url()]));
        for version in ["2", "3"] {
            let seen = &seen[version];
            let url = seen["public_url"].as_str().unwrap();
            assert!(url.starts_with("https://") && url != inspected.client.url(), "{seen}");
            assert_eq!((&seen["listed"], &seen["count"]), (&true.into(), &0.into()), "{seen}");
            assert_eq!(seen["upstream"]["url"], app.upstream().to_string());
        }
        assert_eq!((&seen["after"], &seen["refused"]), (&seen["before"], &400.into()));
    }
}

/// POST on a tunnel's public URL.
async fn post(relay: &RelayServer, url: &str, headers: &[(&str, &[u8])], body: impl Into<bytes::Bytes>) -> Answer {
    let uri: http::Uri = url.parse().unwrap();
    let tls = connect_tls(relay.https, uri.host().unwrap(), &relay.ca_file(), &[b"http/1.1"]).await;
    let mut request = Request::post(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Http::one(tls).await.answer(request.body(full(body)).unwrap()).await
}

/// The events of a watcher, one by one.
struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    async fn watch(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut events = Self { reader: BufReader::new(stream) };
        while !events.line().await.starts_with(": ") {}
        events
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(within("a line", self.reader.read_line(&mut line)).await.unwrap() > 0, "the stream has ended");
        line.trim_end().to_owned()
    }

    /// The next event and its data.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some(event) = self.line().await.strip_prefix("event: ") {
                let line = self.line().await;
                let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {line}"));
                return (event.to_owned(), serde_json::from_str(data).unwrap());
            }
        }
    }
}

mod exchanges {
    use super::*;

    #[tokio::test]
    async fn are_listed_and_shown_byte_for_byte() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::echo().await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url();
        let odd: &[u8] = b"<script>alert(1)</script>\xff\0\r\n";
        let headers: [(&str, &[u8]); 3] = [("x-odd", b"\xff <b>"), ("X-Two", b"1"), ("x-two", b"2")];
        assert_eq!(post(&relay, &format!("{url}/hooks/(b)?x=%3Cb%3E"), &headers, odd).await.code(), 200);
        assert_eq!(post(&relay, &format!("{url}/other"), &[], "{\"type\":\"invoice.paid\"}").await.code(), 200);

        let list = inspected.get("/api/v1/exchanges").await;
        let exchanges = list["exchanges"].as_array().unwrap();
        assert_eq!((exchanges.len(), &list["total"]), (2, &2.into()), "{list}");
        assert_eq!((&exchanges[0]["path"], &exchanges[0]["status"]), (&"/other".into(), &200.into()));
        let first = &exchanges[1];
        let id = first["id"].as_str().unwrap();
        let detail = inspected.get(&format!("/api/v1/exchanges/{id}")).await;
        for (field, value) in first.as_object().unwrap() {
            assert_eq!(detail[field], *value, "{field}");
        }
        assert_eq!(
            (&detail["request"]["body_size"], &detail["request"]["body_truncated"]),
            (&odd.len().into(), &false.into())
        );
        assert!(detail["request"]["headers"].as_array().unwrap().contains(&json!(["x-odd", "\u{ff} <b>"])), "{detail}");
        for side in ["request", "response"] {
            let body = inspected.call(Method::GET, &format!("/api/v1/exchanges/{id}/{side}/body"), &[], "").await;
            assert_eq!((body.code(), &body.body[..]), (200, odd), "{side}");
            assert_eq!(body.header("content-type"), "application/octet-stream");
            assert_eq!(body.header("content-disposition"), format!("attachment; filename=\"{id}-{side}.bin\""));
            assert_eq!(body.header("x-content-type-options"), "nosniff");
        }

        // Filters, and pages.
        for (query, paths) in [
            ("path=/other", vec!["/other"]),
            ("method=POST&status=2xx&limit=1", vec!["/other"]),
            ("path=/hooks*&tunnel=hooks", vec!["/hooks/(b)?x=%3Cb%3E"]),
            ("status=404", vec![]),
            ("tunnel=none", vec![]),
            (&format!("after={id}"), vec!["/other"]),
            (&format!("before={id}"), vec![]),
        ] {
            let list = inspected.get(&format!("/api/v1/exchanges?{query}")).await;
            let found: Vec<_> = list["exchanges"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
            assert_eq!(found, paths, "{query}");
        }
        for wrong in ["limit=x", "status=odd", "path=hooks", "nonsense=1", "verdict=maybe"] {
            let answer = inspected.call(Method::GET, &format!("/api/v1/exchanges?{wrong}"), &[], "").await;
            assert_eq!(code(&answer), (400, "bad-request".to_owned()), "{wrong}");
        }
        let missing = inspected.call(Method::GET, "/api/v1/exchanges/none", &[], "").await;
        assert_eq!(code(&missing), (404, "exchange-not-found".to_owned()));
        let mut events = Events::watch(inspected.address()).await;
        assert_eq!(inspected.call(Method::DELETE, "/api/v1/exchanges", &[], "").await.code(), 204);
        assert_eq!(inspected.get("/api/v1/exchanges").await, json!({"exchanges": [], "total": 0}));
        // Nor is it in memory.
        for gone in [format!("/api/v1/exchanges/{id}"), format!("/api/requests/http/{id}")] {
            assert_eq!(inspected.call(Method::GET, &gone, &[], "").await.code(), 404, "{gone}");
        }
        let missed = inspected.call(Method::GET, "/api/v1/wait?path=/*&within=50ms", &[], "").await;
        assert_eq!(code(&missed).1, "not-yet");
        while events.next().await != ("cleared".to_owned(), json!({})) {}
    }

    #[tokio::test]
    async fn are_told_of_when_they_come_and_when_they_are_over() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let (held, release) = tokio::sync::watch::channel(false);
        let app = App::serve(move |request| {
            let mut release = release.clone();
            async move {
                if request.uri().path() == "/slow" {
                    let _ = release.wait_for(|open| *open).await;
                }
                ok("done")
            }
        })
        .await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url().to_owned();
        let slow_url = format!("{url}/slow");
        let mut slow = std::pin::pin!(post(&relay, &slow_url, &[], "x"));
        tokio::select! {
            _ = &mut slow => panic!("it is held"),
            () = app.reached(1) => {}
        }
        // Also of what was under way already.
        let mut events = Events::watch(inspected.address()).await;
        let (event, begun) = events.next().await;
        assert_eq!((event.as_str(), &begun["path"], &begun["status"]), ("exchange", &"/slow".into(), &Value::Null));
        let id = begun["id"].as_str().unwrap();
        let detail = inspected.get(&format!("/api/v1/exchanges/{id}")).await;
        assert_eq!((&detail["request"]["body"], &detail["response"]), (&"x".into(), &Value::Null), "{detail}");
        let open = async || inspected.get("/api/tunnels/hooks").await["metrics"]["conns"]["gauge"].clone();
        assert_eq!(open().await, 1);
        let none = inspected.call(Method::GET, &format!("/api/v1/exchanges/{id}/response/body"), &[], "").await;
        assert_eq!(code(&none), (404, "response-not-found".to_owned()));
        // A list has it, too, and so does an archive.
        for (query, total) in
            [("", 1), ("?q=SLOW", 1), ("?q=Low&limit=0", 1), ("?status=error", 0), ("?path=/other", 0)]
        {
            let list = inspected.get(&format!("/api/v1/exchanges{query}")).await;
            assert_eq!(list["total"], total, "{query}");
            let ids = list["exchanges"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap());
            assert!(ids.eq([id].into_iter().filter(|_| total == 1 && !query.contains("limit"))), "{query}: {list}");
        }
        let all = inspected.get("/api/requests/http").await;
        assert_eq!((&all["requests"][0]["id"], &all["requests"][0]["response"]), (&id.into(), &Value::Null), "{all}");
        held.send(true).unwrap();
        assert_eq!(slow.await.code(), 200);
        let (_, over) = events.next().await;
        assert_eq!((&over["id"], &over["status"]), (&id.into(), &200.into()));
        assert!(over["duration_ms"].as_f64().is_some(), "{over}");
        assert_eq!(open().await, 0);
        // A second client of this user is no business of this one's.
        let mut seen = Vec::new();
        assert_eq!(post(&relay, &format!("{url}/next"), &[], "").await.code(), 200);
        while seen.last().is_none_or(|last: &Value| last["duration_ms"].is_null()) {
            seen.push(events.next().await.1);
        }
        assert!(seen.iter().all(|one| one["path"] == "/next"), "{seen:?}");
    }

    #[tokio::test]
    async fn are_waited_for() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::echo().await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url().to_owned();
        let waits =
            inspected.get("/api/v1/wait?path=/hooks/*&json=/type%3Dinvoice.paid&header=x-kind:%20test&within=30s");
        let send = async {
            for (path, body) in [
                ("/hooks/a", "{}"),
                ("/other", "{\"type\":\"invoice.paid\"}"),
                ("/hooks/b", "{\"type\":\"invoice.paid\"}"),
            ] {
                assert_eq!(post(&relay, &format!("{url}{path}"), &[("x-kind", b"test")], body).await.code(), 200);
            }
        };
        let (found, ()) = tokio::join!(waits, send);
        assert_eq!((&found["path"], &found["status"]), (&"/hooks/b".into(), &200.into()));
        assert_eq!(found["response"]["body"], "{\"type\":\"invoice.paid\"}");
        // Looked into wherever it stands in a body, however large that is.
        let large = format!("{{\"pad\":\"{}\",\"type\":\"large\"}}", "x".repeat(3 << 20));
        assert_eq!(post(&relay, &format!("{url}/large"), &[], large).await.code(), 200);
        let found = inspected.get("/api/v1/wait?json=/type%3Dlarge").await;
        assert_eq!(found["path"], "/large");
        let agents = format!("/api/requests/http/{}", found["id"].as_str().unwrap());
        let raw = inspected.get(&agents).await["request"]["raw"].as_str().unwrap().len();
        assert!(raw > 4 << 20, "{raw} characters of base64");
        // Where the file that has the rest is gone, the beginning is there.
        let one = format!("/api/v1/exchanges/{}", found["id"].as_str().unwrap());
        assert_eq!(inspected.get(&one).await["request"]["body_truncated"], false);
        let file = inspected.client.process.home().path().join(".local/state/relay/history.db");
        std::fs::rename(&file, file.with_extension("old")).unwrap();
        let left = inspected.get(&one).await;
        assert_eq!(left["request"]["body_truncated"], true);
        assert!(left["request"]["body"].as_str().unwrap().starts_with("{\"pad\":\"xxx"));
        let found = inspected.get("/api/v1/wait?path=/hooks/a").await;
        assert_eq!(found["request"]["body"], "{}");
        let missed = inspected.call(Method::GET, "/api/v1/wait?path=/none&within=50ms", &[], "").await;
        assert_eq!(code(&missed), (404, "not-yet".to_owned()));
        let missed = inspected.call(Method::GET, "/api/v1/wait?path=/hooks/a&since=now&within=50ms", &[], "").await;
        assert_eq!(code(&missed), (404, "not-yet".to_owned()));
    }

    #[tokio::test]
    async fn are_waited_for_by_so_many_at_once() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = saying("ok").await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let mut watchers = Vec::new();
        for _ in 0..32 {
            watchers.push(Events::watch(inspected.address()).await);
        }
        let refused = inspected.call(Method::GET, "/api/v1/wait?path=/", &[], "").await;
        assert_eq!(code(&refused), (503, "too-many-watchers".to_owned()));
    }

    /// Nobody reads, and the requests go on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn do_not_wait_for_who_watches() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = saying("ok").await;
        let mut inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url().to_owned();
        let mut slow = Events::watch(inspected.address()).await;
        let uri: http::Uri = url.parse().unwrap();
        let tls = connect_tls(relay.https, uri.host().unwrap(), &relay.ca_file(), &[b"h2"]).await;
        let mut http = Http::two(tls).await;
        let long = "x".repeat(2000);
        let before = inspected.client.process.resident();
        for round in 0..60 {
            let path = |one| format!("{url}/{round}/{one}?{long}");
            let sent: Vec<_> =
                (0..50).map(|one| http.begin(Request::post(path(one)).body(full("{}")).unwrap())).collect();
            for answer in sent {
                assert_eq!(answer.await.unwrap().code(), 200);
            }
        }
        let grown = inspected.client.process.resident().saturating_sub(before);
        assert!(grown < 96 << 20, "{} MiB", grown >> 20);
        // What it was told of before it stopped reading, and then how much it has missed.
        let mut missed = 0;
        let last = format!("/59/49?{long}");
        loop {
            let (event, data) = slow.next().await;
            if event == "missed" {
                missed += data["count"].as_u64().unwrap();
            } else if data["path"] == last.as_str() && !data["duration_ms"].is_null() {
                break;
            }
        }
        println!("missed {missed}");
        assert_eq!(inspected.client.process.terminate().await.code(), 143);
    }

    #[tokio::test]
    async fn are_shown_to_scripts_as_they_know_them() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::echo().await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url();
        post(
            &relay,
            &format!("{url}/one"),
            &[("x-github-event", b"push"), ("x-github-event", b"again")],
            &b"\xff1"[..],
        )
        .await;
        post(&relay, &format!("{url}/two"), &[], "2").await;
        let all = inspected.get("/api/requests/http").await;
        assert_eq!(all["uri"], "/api/requests/http");
        let [two, one] = &all["requests"].as_array().unwrap()[..] else { panic!("{all}") };
        assert_eq!((&one["request"]["method"], &one["request"]["uri"]), (&"POST".into(), &"/one".into()));
        assert_eq!(one["request"]["headers"]["X-Github-Event"], json!(["push", "again"]));
        assert_eq!((&one["tunnel_name"], &one["request"]["proto"]), (&"hooks".into(), &"HTTP/1.1".into()));
        assert_eq!((&one["response"]["status"], &one["response"]["status_code"]), (&"200 OK".into(), &200.into()));
        assert!(one["duration"].as_u64().unwrap() > 0 && one["start"].as_str().unwrap().ends_with('Z'), "{one}");
        let raw = STANDARD.decode(one["request"]["raw"].as_str().unwrap()).unwrap();
        assert!(raw.starts_with(b"POST /one HTTP/1.1\r\nHost: hooks.") && raw.ends_with(b"\r\n\r\n\xff1"), "{raw:?}");
        let raw = STANDARD.decode(one["response"]["raw"].as_str().unwrap()).unwrap();
        assert!(raw.starts_with(b"HTTP/1.1 200 OK\r\n") && raw.ends_with(b"\r\n\r\n\xff1"), "{raw:?}");
        assert_eq!(inspected.get(one["uri"].as_str().unwrap()).await, *one);
        let limited = inspected.get("/api/requests/http?limit=1&tunnel_name=hooks").await;
        assert_eq!(limited["requests"], json!([two]));
        assert_eq!(inspected.get("/api/requests/http?tunnel_name=none").await["requests"], json!([]));
        assert_eq!(inspected.call(Method::DELETE, "/api/requests/http", &[], "").await.code(), 204);
        assert_eq!(inspected.get("/api/requests/http").await["requests"], json!([]));
        let gone = inspected.call(Method::GET, one["uri"].as_str().unwrap(), &[], "").await;
        assert_eq!(gone.code(), 404);
        // That was this client's memory. The history is its user's, of whom other clients may be.
        assert_eq!(inspected.get("/api/v1/exchanges").await["total"], 2);
    }

    #[tokio::test]
    async fn are_sent_once_more_as_they_came_or_changed() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::recording().await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = format!("{}/hooks?a=1", inspected.client.url());
        assert_eq!(post(&relay, &url, &[("x-odd", b"\xff")], &b"\xff\0"[..]).await.code(), 200);
        let list = inspected.get("/api/v1/exchanges").await;
        let id = list["exchanges"][0]["id"].as_str().unwrap().to_owned();
        let replay = format!("/api/v1/exchanges/{id}/replay");
        let done = inspected.post(&replay, &json!({})).await;
        assert_eq!(done.code(), 201, "{}", done.text());
        let done = done.json();
        assert_eq!((&done["status"], &done["error"], &done["signed"]), (&200.into(), &Value::Null, &false.into()));
        let (first, second) = (app.seen()[0].clone(), app.last());
        assert_eq!((&second.body, &second.headers["x-odd"]), (&first.body, &first.headers["x-odd"]));
        assert_eq!(second.header("relay-replay-of"), id);
        let new = inspected.get(&format!("/api/v1/exchanges/{}", done["id"].as_str().unwrap())).await;
        assert_eq!((&new["replay_of"], &new["path"]), (&id.as_str().into(), &"/hooks?a=1".into()));

        let changes = json!({"method": "PUT", "path": "/other", "headers": [["x-new", "1"], ["content-length", "2"]], "body": "changed"});
        assert_eq!(inspected.post(&replay, &changes).await.code(), 201);
        let changed = app.last();
        assert_eq!((changed.method.as_str(), changed.target.as_str()), ("PUT", "/other"));
        assert_eq!((&changed.body[..], changed.header("x-new")), (&b"changed"[..], "1"));
        for (wrong, status) in [
            (json!({"path": "http://evil.example/"}), 400),
            (json!({"headers": [["transfer-encoding", "chunked"]]}), 400),
            (json!({"body": "a", "body_base64": "YQ=="}), 400),
            (json!({"to": "http://evil.example/"}), 400),
            (json!({"resign": true}), 409),
            (json!({"tunnel": "none"}), 404),
        ] {
            assert_eq!(inspected.post(&replay, &wrong).await.code(), status, "{wrong}");
        }
        assert_eq!(inspected.post("/api/v1/exchanges/none/replay", &json!({})).await.code(), 404);
        let before = app.requests();
        assert_eq!(inspected.post("/api/requests/http", &json!({"id": id, "tunnel_name": "hooks"})).await.code(), 204);
        assert_eq!((app.requests(), &app.last().body), (before + 1, &first.body));
    }

    #[tokio::test]
    async fn are_signed_anew_where_a_change_has_broken_their_signature() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::recording().await;
        let flags = ["--subdomain", "hooks", "--secret", "s", "--verify", "reject"];
        let inspected = Inspected::new(&relay, &app, &flags).await;
        let url = format!("{}/hooks", inspected.client.url());
        let signed = |body: &str| {
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, b"s");
            let tag = aws_lc_rs::hmac::sign(&key, body.as_bytes());
            let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256={hex}")
        };
        let headers = [("x-github-event", &b"push"[..]), ("x-hub-signature-256", &signed("{}").into_bytes())];
        assert_eq!(post(&relay, &url, &headers, "{}").await.code(), 200);
        let id = inspected.get("/api/v1/exchanges").await["exchanges"][0]["id"].as_str().unwrap().to_owned();
        let replay = format!("/api/v1/exchanges/{id}/replay");
        let own = json!([["x-github-event", "push"], ["x-hub-signature-256", signed("{\"other\":1}")]]);
        let refused = json!("signature-invalid");
        for (changes, is_signed, error) in [
            (json!({}), false, &Value::Null),
            (json!({"path": "/other"}), false, &Value::Null),
            (json!({"body": "{\"a\":1}"}), true, &Value::Null),
            (json!({"body": "{\"a\":1}", "resign": false}), false, &refused),
            // Whoever writes a signature means it.
            (json!({"body": "{\"a\":1}", "headers": own}), false, &refused),
        ] {
            let done = inspected.post(&replay, &changes).await.json();
            assert_eq!((&done["signed"], &done["error"]), (&is_signed.into(), error), "{changes}: {done}");
            if is_signed {
                assert_eq!(app.last().header("x-hub-signature-256"), signed("{\"a\":1}"));
            }
        }
    }

    #[tokio::test]
    async fn are_handed_on_without_their_secrets() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let app = App::echo().await;
        let inspected = Inspected::new(&relay, &app, &["--subdomain", "hooks"]).await;
        let url = inspected.client.url();
        for body in ["one", "two"] {
            post(&relay, &format!("{url}/hooks"), &[("authorization", b"Bearer s3cret"), ("x-a", b"'; id")], body)
                .await;
        }
        let list = inspected.get("/api/v1/exchanges").await;
        let id = list["exchanges"][0]["id"].as_str().unwrap();
        let export = async |form: &str| {
            let path = format!("/api/v1/exchanges/{id}/export?as={form}");
            inspected.call(Method::GET, &path, &[], "").await
        };
        for (form, end, says) in [
            ("curl", "sh", "curl "),
            ("httpie", "sh", "http"),
            ("fetch", "js", "fetch("),
            ("python", "py", "requests"),
            ("http", "http", "POST /"),
            ("har", "har", "\"log\""),
            ("json", "json", "\"id\""),
            ("fixture", "tar", "request.http"),
        ] {
            let answer = export(form).await;
            let text = String::from_utf8_lossy(&answer.body);
            assert_eq!(
                (answer.code(), text.contains(says), text.contains("s3cret")),
                (200, true, false),
                "{form}: {text}"
            );
            assert_eq!(answer.header("content-disposition"), format!("attachment; filename=\"{id}.{end}\""));
        }
        assert!(export("curl&secrets=show").await.text().contains("s3cret"));
        assert_eq!(export("xml").await.code(), 400);

        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("a.tar");
        std::fs::write(&archive, &export("fixture").await.body).unwrap();
        tools::output(
            tokio::process::Command::new(tools::program("tar")).args(["xf", "a.tar"]).current_dir(&directory),
        )
        .await;
        let request = std::fs::read(directory.path().join(id).join("request.http")).unwrap();
        assert!(request.starts_with(b"POST /hooks ") && request.ends_with(b"\ntwo"), "{request:?}");

        let har = inspected.call(Method::GET, "/api/v1/exchanges.har", &[], "").await;
        assert_eq!(har.header("content-disposition"), "attachment; filename=\"exchanges.har\"");
        assert!(!har.text().contains("s3cret"));
        let har = har.json();
        let bodies: Vec<_> = har["log"]["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["request"]["postData"]["text"].clone())
            .collect();
        assert_eq!(bodies, ["two", "one"]);
        let none = inspected.get("/api/v1/exchanges.har?tunnel=none").await;
        assert_eq!(none["log"]["entries"], json!([]));
    }
}
