//! What a client keeps of its requests: `relay requests`, `relay show`, and the file behind them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Request, Response};
use relay_tests::app::ok;
use relay_tests::body::full;
use relay_tests::process::Ended;
use relay_tests::world::connect_tls;
use relay_tests::{App, Http, Process, RelayServer};
use serde_json::Value;
use tempfile::TempDir;

/// A relay, and a home in which clients run.
struct Place {
    relay: RelayServer,
    token: String,
    home: Arc<TempDir>,
}

impl Place {
    async fn new() -> Self {
        let relay = RelayServer::spawn([""; 0]).await;
        let token = relay.token("me").await;
        Self { relay, token, home: Arc::new(tempfile::tempdir().unwrap()) }
    }

    async fn run(&self, words: &[&str]) -> Ended {
        Process::spawn_in(self.home.clone(), "relay", words, &[]).await.wait().await
    }

    /// `relay http` with a tunnel of this name, ready.
    async fn client(&self, app: &App, name: &str, flags: &[&str]) -> Process {
        let (upstream, addr) = (app.upstream().to_string(), self.relay.https.to_string());
        let ca = self.relay.ca_file().display().to_string();
        let mut words = vec!["http", &upstream, "--subdomain", name, "--output", "json", "--relay", &self.relay.url];
        words.extend(["--relay-addr", &addr, "--relay-ca", &ca, "--token", &self.token]);
        words.extend(flags);
        let mut client = Process::spawn_in(self.home.clone(), "relay", &words, &[]).await;
        assert_eq!(client.json().await["event"], "tunnel.ready");
        client
    }

    async fn send(&self, name: &str, request: Request<relay_tests::Body>) -> relay_tests::Answer {
        let host = format!("{name}.{}", RelayServer::DOMAIN);
        let tls = connect_tls(self.relay.https, &host, &self.relay.ca_file(), &[b"http/1.1"]).await;
        let (mut parts, body) = request.into_parts();
        parts.uri = format!("https://{host}:{}{}", self.relay.https.port(), parts.uri).parse().unwrap();
        Http::one(tls).await.answer(Request::from_parts(parts, body)).await
    }

    /// Lines of JSON of a command that must succeed.
    async fn json(&self, words: &[&str]) -> Vec<Value> {
        let ended = self.run(&[words, &["--output", "json"]].concat()).await;
        assert!(ended.status.success(), "{words:?}: {ended:?}");
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn file(&self) -> PathBuf {
        self.home.path().join(".local/state/relay/history.db")
    }
}

fn body(of: &Value) -> Vec<u8> {
    match of["body"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(of["body_base64"].as_str().unwrap()).unwrap(),
    }
}

#[tokio::test]
async fn history_survives_its_client_however_that_ends_and_has_every_byte() {
    let place = Place::new().await;
    let binary: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let answer = binary.clone();
    let app = App::serve(move |_| {
        let answer = answer.clone();
        async move {
            let mut response = Response::new(full(answer));
            *response.status_mut() = http::StatusCode::CREATED;
            response.headers_mut().insert("x-odd", HeaderValue::from_bytes(b"\xe9").unwrap());
            response
        }
    })
    .await;
    let mut client = place.client(&app, "hooks", &[]).await;
    let request = Request::post("/a%2Fb?x=1&x=2")
        .header("x-b", HeaderValue::from_bytes(b"\xff").unwrap())
        .header("x-a", "1")
        .header("x-b", "2");
    place.send("hooks", request.body(full(binary.clone())).unwrap()).await;
    let id = client.event("exchange").await["id"].as_str().unwrap().to_owned();
    // Without waiting for anything: what has ended is there.
    let list = place.json(&["requests"]).await;
    assert_eq!((list.len(), &list[0]["id"]), (1, &Value::from(id.as_str())));
    client.kill().await;
    let client = place.client(&app, "hooks", &[]).await;
    place.send("hooks", Request::get("/second").body(full("")).unwrap()).await;
    let list = place.json(&["requests"]).await;
    assert_eq!(
        list.iter().map(|line| line["path"].as_str().unwrap()).collect::<Vec<_>>(),
        ["/a%2Fb?x=1&x=2", "/second"]
    );
    drop(client);
    let shown = place.json(&["show", &id.to_lowercase()[..20]]).await.remove(0);
    assert_eq!((&shown["status"], &shown["tunnel"]), (&Value::from(201), &Value::from("hooks")));
    assert!(shown["url"].as_str().unwrap().ends_with("/a%2Fb?x=1&x=2"), "{shown}");
    assert_eq!((body(&shown["request"]), body(&shown["response"])), (binary.clone(), binary));
    let lines = |of: &Value, name: &str| {
        let all = of["headers"].as_array().unwrap().iter().filter(|line| line[0] == name);
        all.map(|line| line[1].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&shown["request"], "x-b"), ["\u{ff}", "2"]);
    assert_eq!(lines(&shown["response"], "x-odd"), ["\u{e9}"]);
    assert!(shown["timings"]["upstream_ms"].as_f64().unwrap() <= shown["timings"]["total_ms"].as_f64().unwrap());
    assert_eq!(std::fs::metadata(place.file()).unwrap().permissions().mode() & 0o777, 0o600);
    let text = place.run(&["show", "last"]).await;
    assert!(text.stdout.contains("GET https://") && text.stdout.contains("/second"), "{text:?}");
    let cleared = place.run(&["requests", "--clear"]).await;
    assert_eq!(cleared.stdout, "2\n");
    let none = place.run(&["show", "last"]).await;
    assert!(none.status.code() == Some(1) && none.stderr.contains("empty"), "{none:?}");
}

#[tokio::test]
async fn two_clients_share_one_history_and_one_that_must_not_keeps_nothing() {
    let place = Place::new().await;
    let app = App::serve(|_| async { ok("") }).await;
    let one = place.client(&app, "one", &[]).await;
    let two = place.client(&app, "two", &[]).await;
    let off = place.client(&app, "off", &["--inspect", "off"]).await;
    for i in 0..20 {
        for name in ["one", "two", "off"] {
            place.send(name, Request::post(format!("/{name}/{i}")).body(full("{}")).unwrap()).await;
        }
    }
    assert_eq!(place.json(&["requests"]).await.len(), 40);
    assert_eq!(place.json(&["requests", "--tunnel", "two", "--limit", "5"]).await.len(), 5);
    assert_eq!(place.json(&["requests", "--path", "/one/1*"]).await.len(), 11);
    assert!(place.json(&["requests", "--status", "error"]).await.is_empty());
    drop((one, two, off));
}

#[tokio::test]
async fn large_bodies_are_kept_up_to_a_limit_and_pass_whole() {
    let place = Place::new().await;
    let app = App::echo().await;
    let client = place.client(&app, "hooks", &[]).await;
    for (size, kept) in [(10 << 20, 10 << 20), ((11 << 20) + 1, 10 << 20)] {
        let sent = vec![b'x'; size];
        let answer = place.send("hooks", Request::post("/").body(full(sent.clone())).unwrap()).await;
        assert!(answer.body == sent, "{} bytes came back", answer.body.len());
        let shown = place.json(&["show", "last"]).await.remove(0);
        for side in ["request", "response"] {
            let side = &shown[side];
            assert_eq!((&side["body_size"], body(side).len()), (&Value::from(size), kept));
            assert_eq!(side["body_truncated"], size > kept);
        }
    }
    drop(client);
}

#[tokio::test]
async fn a_damaged_file_is_said_once_and_the_tunnel_goes_on() {
    let place = Place::new().await;
    std::fs::create_dir_all(place.file().parent().unwrap()).unwrap();
    std::fs::write(place.file(), "no database at all, as it seems".repeat(1000)).unwrap();
    let app = App::serve(|_| async { ok("fine") }).await;
    let mut client = place.client(&app, "hooks", &[]).await;
    for _ in 0..3 {
        assert_eq!(place.send("hooks", Request::get("/").body(full("")).unwrap()).await.text(), "fine");
    }
    client.error_line("is damaged").await;
    let ended = client.terminate().await;
    assert!(!ended.stderr.contains("is damaged"), "{ended:?}");
    let list = place.run(&["requests"]).await;
    assert!(list.status.code() == Some(1) && list.stderr.contains("move it away"), "{list:?}");
}
