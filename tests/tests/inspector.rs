//! The inspector: who may call it, what it says, and what it changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::SocketAddr;

use http::{Method, Request};
use relay_tests::app::ok;
use relay_tests::body::full;
use relay_tests::world::connect_tls;
use relay_tests::{Answer, App, Http, Process, RelayClient, RelayServer, tools};
use serde_json::{Value, json};
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
    let inspected = Inspected::new(&relay, &App::echo().await, &[]).await;
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

/// A page that has its own name lead here (DNS rebinding), a page of another site or port, and a form.
#[tokio::test]
async fn another_sites_page_is_refused_whatever_it_asks() {
    let relay = RelayServer::spawn(DEFAULTS).await;
    let inspected = Inspected::new(&relay, &App::echo().await, &[]).await;
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
    ] {
        let answer = inspected.call(method, path, headers, body).await;
        assert_eq!(code(&answer), (expected.0, expected.1.to_owned()), "{path} {headers:?}");
    }
    assert_eq!(inspected.get("/api/v1/tunnels").await["tunnels"].as_array().unwrap().len(), 1, "nothing was added");
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
    let (addr, ca) = (relay.https.to_string(), relay.ca_file().display().to_string());
    let way = ["--relay", &relay.url, "--relay-ca", &ca, "--relay-addr", &addr, "--token", &token];
    let words = [&["http", &target, "--inspect", &taken][..], &way].concat();
    let ended = Process::spawn("relay", &words).await.wait().await;
    assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
    assert!(ended.stderr.contains(&format!("the inspector cannot listen on {taken}")), "{}", ended.stderr);

    // For people it stands once below the URL.
    let words = [&["http", &target, "--random", "--inspect", "127.0.0.1:0"][..], &way].concat();
    let mut shown = Process::spawn("relay", &words).await;
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
    assert_eq!(answer.header("www-authenticate"), "Bearer");
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
        assert_ne!(public(&relay, &url).await.text(), "other");
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
        let seen = tools::pyngrok_calls(&inspected.url, &app.upstream().to_string()).await;
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
