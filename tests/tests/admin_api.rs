//! What a program notices that operates a relay over HTTP.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use http::{Method, Request};
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_tests::body::full;
use relay_tests::process::{Ended, binary, run};
use relay_tests::tools::{keeps_to_openapi_with, output, program};
use relay_tests::world::Http;
use relay_tests::{Answer, App, RelayServer, World, within};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;

/// A relay, and what its operator knows.
struct Admin {
    world: World,
    token: String,
}

impl Admin {
    async fn start() -> Self {
        Self::of(World::start().await).await
    }

    async fn of(world: World) -> Self {
        let token = std::fs::read_to_string(world.data_dir().join("admin.token")).expect("it is made at the start");
        Self { world, token: token.trim().to_owned() }
    }

    /// `relay-server WORD …` on its data.
    async fn command(&self, line: &str) -> Ended {
        let data = self.world.data_dir().display().to_string();
        let mut words = line.split_whitespace();
        let command = words.next().unwrap();
        run("relay-server", [command, "--data-dir", &data].into_iter().chain(words)).await
    }

    async fn send(&self, request: http::request::Builder, body: &str) -> Answer {
        let tcp = TcpStream::connect(self.world.admin()).await.unwrap();
        let request = request.body(full(body.to_owned())).unwrap();
        within("an answer of the admin API", Http::one(tcp).await.answer(request)).await
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let uri = format!("http://{}/api/v1/{path}", self.world.admin());
        Request::builder().method(method).uri(uri).header("authorization", format!("Bearer {}", self.token))
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Answer {
        let request = self.request(method, path);
        match body {
            Value::Null => self.send(request, "").await,
            body => self.send(request.header("content-type", "application/json"), &body.to_string()).await,
        }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.call(Method::GET, path, Value::Null).await;
        assert_eq!(answer.code(), 200, "{path}: {answer:?}");
        answer.json()
    }

    /// A token that is made over the API.
    async fn make_token(&self, wish: Value) -> Value {
        let made = self.call(Method::POST, "tokens", wish).await;
        assert_eq!(made.code(), 201, "{made:?}");
        made.json()
    }

    async fn tunnel(&self, token: &Value, app: &App, name: &str) -> Tunnel {
        let client = Client::new(self.world.target()).token(token["secret"].as_str().unwrap().to_owned().into());
        let options = TunnelOptions::new(app.upstream()).subdomain(name);
        within("a tunnel", Tunnel::start(client, options)).await.unwrap()
    }
}

/// The status and the code of a refusal.
fn refused(answer: &Answer) -> (u16, String) {
    assert!(answer.json()["error"]["message"].as_str().unwrap().ends_with('.'), "{answer:?}");
    (answer.code(), answer.json()["error"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn only_the_token_lets_in_and_no_page_calls() {
    let admin = Admin::start().await;
    let file = admin.world.data_dir().join("admin.token");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let printed = admin.command("admin-token").await;
    assert_eq!((printed.code(), printed.stdout.trim()), (0, admin.token.as_str()));
    assert_eq!(admin.get("status").await["ready"], json!(true));

    let bare = |path: &str| Request::get(format!("http://{}/api/v1/{path}", admin.world.admin()));
    let other = admin.world.token().await;
    for authorization in ["", "Bearer ", &format!("Bearer {other}"), &format!("Basic {}", admin.token)] {
        let answer = admin.send(bare("status").header("authorization", authorization), "").await;
        assert_eq!(refused(&answer), (401, "unauthorized".to_owned()), "{authorization}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    // Who is not let in is not told what there is.
    assert_eq!(admin.send(bare("nothing"), "").await.code(), 401);
    assert_eq!(admin.send(bare("openapi.json"), "").await.code(), 200);
    for (name, value, code) in [
        ("origin", "https://evil.example", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("host", "evil.example", 421),
        ("sec-fetch-site", "none", 200),
    ] {
        let answer = admin.send(admin.request(Method::GET, "status").header(name, value), "").await;
        assert_eq!(answer.code(), code, "{name}: {value}");
    }
    let form = admin.request(Method::POST, "tokens").header("content-type", "text/plain");
    assert_eq!(refused(&admin.send(form, "{\"name\": \"a\"}").await), (415, "unsupported-media-type".to_owned()));

    assert_eq!(refused(&admin.call(Method::PUT, "status", Value::Null).await), (405, "method-not-allowed".to_owned()));
    let metrics = admin.world.get_admin("/metrics").await.text().to_owned();
    for (code, count) in [("unauthorized", 5), ("cross-site", 2), ("unknown-host", 1), ("method-not-allowed", 1)] {
        let line = format!("relay_admin_refused_total{{error=\"{code}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }

    let renewed = admin.command("admin-token --renew").await;
    assert_eq!(renewed.code(), 0, "{renewed:?}");
    assert_eq!(admin.call(Method::GET, "status", Value::Null).await.code(), 401, "the one before is worth nothing");
    let admin = Admin::of(admin.world).await;
    assert_eq!(renewed.stdout.trim(), admin.token);
    assert_eq!(admin.get("status").await["url"], json!(admin.world.relay_url()));
    admin.world.shutdown().await;
}

#[tokio::test]
async fn tokens_and_names_are_those_of_the_command_line() {
    let admin = Admin::start().await;
    let wish = json!({ "name": "ci", "reserve": ["builds"], "expires_at": "2999-01-01T00:00:00Z", "max_tunnels": 5 });
    let made = admin.make_token(wish.clone()).await;
    assert_eq!((&made["name"], &made["max_tunnels"], &made["reserved"]), (&json!("ci"), &json!(5), &json!(["builds"])));
    assert_eq!(refused(&admin.call(Method::POST, "tokens", wish).await), (409, "conflict".to_owned()));
    let listed = admin.command("token list --output json").await.lines().remove(0);
    assert_eq!(listed, admin.get("tokens/ci").await, "both faces tell the same");
    assert!(!admin.get("tokens").await.to_string().contains(made["secret"].as_str().unwrap()));

    let reserve = json!({ "token": "ci", "provider": "stripe", "inbox": "ordered" });
    let held = admin.call(Method::PUT, "names/hooks", reserve).await;
    let expected = json!({ "name": "hooks", "token": "ci", "state": "reserved", "provider": "stripe" });
    assert_eq!((held.code(), held.json()), (200, expected.clone()));
    let names = admin.get("names").await["names"].as_array().unwrap().clone();
    assert!(names.len() == 2 && names.contains(&expected), "{names:?}");
    let kept = admin.world.post(&admin.world.url("hooks", "/a"), "1").await;
    assert_eq!(kept.code(), 200, "the inbox takes webhooks at once: {kept:?}");

    let release = admin.call(Method::DELETE, "names/hooks", Value::Null).await;
    assert_eq!(refused(&release), (409, "conflict".to_owned()), "a webhook would be lost");
    let release = admin.call(Method::DELETE, "names/hooks?forget_webhooks=true", Value::Null).await;
    assert_eq!((release.code(), release.json()), (200, json!({ "closed": 1, "forgotten": 1 })));
    assert_eq!(admin.call(Method::DELETE, "names/hooks", Value::Null).await.code(), 404);

    for (method, path, body, code) in [
        (Method::POST, "tokens", json!({ "name": "a b" }), 400),
        (Method::POST, "tokens", json!({ "name": "b", "max_tunnels": 0 }), 400),
        (Method::POST, "tokens", json!({ "name": "b", "expires_at": "2020-01-01T00:00:00Z" }), 400),
        (Method::POST, "tokens", json!({ "name": "b", "tunnels": 1 }), 400),
        (Method::PUT, "names/a_b", json!({ "token": "ci" }), 400),
        (Method::PUT, "names/free", json!({ "token": "nobody" }), 404),
        (Method::PUT, "names/free", json!({ "token": "ci", "provider": "nobody" }), 400),
        (Method::PUT, "names/free", json!({ "token": "ci", "inbox": "sideways" }), 400),
        (Method::GET, "tokens/nobody", Value::Null, 404),
        (Method::GET, "tokens?limit=1", Value::Null, 400),
        (Method::PUT, "tokens", json!({}), 405),
        (Method::GET, "token", Value::Null, 404),
        (Method::DELETE, "sessions/1", Value::Null, 404),
    ] {
        let answer = admin.call(method.clone(), path, body.clone()).await;
        assert_eq!(answer.code(), code, "{method} {path} {body}: {answer:?}");
        refused(&answer);
    }
    assert_eq!(admin.call(Method::DELETE, "tokens/ci", Value::Null).await.code(), 204);
    assert_eq!(admin.get("tokens/ci").await["state"], "revoked");
    assert_eq!(admin.call(Method::DELETE, "tokens/nobody", Value::Null).await.code(), 404);
    admin.world.shutdown().await;
}

#[tokio::test]
async fn sessions_are_told_of_and_ended() {
    let admin = Admin::start().await;
    let app = App::echo().await;
    let made = admin.make_token(json!({ "name": "laptop" })).await;
    let tunnel = admin.tunnel(&made, &app, "live").await;
    let sessions = admin.get("sessions").await["sessions"].clone();
    let session = &sessions[0];
    assert_eq!((&session["token"], &session["tunnels"]), (&json!("laptop"), &json!(["live"])));
    assert!(session["client"].as_str().unwrap().starts_with("relay "), "{session}");
    let tunnels = admin.get("tunnels").await["tunnels"].clone();
    let expected = json!({
        "name": "live", "url": tunnel.url(), "token": "laptop", "session": session["id"], "inbox": false,
    });
    assert_eq!(tunnels, json!([expected]));
    let status = admin.get("status").await;
    assert_eq!((&status["sessions"], &status["tunnels"]), (&json!(1), &json!(1)));
    let listed = admin.command("session list").await;
    assert!(listed.stdout.contains(session["id"].as_str().unwrap()) && listed.stdout.contains("live"), "{listed:?}");

    // It is another session that serves the name then.
    let end = admin.call(Method::DELETE, &format!("sessions/{}", session["id"].as_str().unwrap()), Value::Null).await;
    assert_eq!(end.code(), 204, "{end:?}");
    let next = async {
        loop {
            let sessions = admin.get("sessions").await["sessions"].clone();
            if sessions[0]["tunnels"] == json!(["live"]) && sessions[0]["id"] != session["id"] {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    within("the client's next session", next).await;
    assert_eq!(admin.world.post(&admin.world.url("live", "/"), "again").await.text(), "again");
    assert_eq!(admin.call(Method::DELETE, "tokens/laptop", Value::Null).await.code(), 204);
    let gone = async {
        while admin.get("sessions").await["sessions"] != json!([]) {
            tokio::task::yield_now().await;
        }
    };
    within("the end of the session", gone).await;
    drop(tunnel);
    admin.world.shutdown().await;
}

#[tokio::test]
async fn inboxes_and_certificates_are_told_of() {
    let admin = Admin::start().await;
    admin.make_token(json!({ "name": "ours" })).await;
    assert_eq!(admin.call(Method::PUT, "names/hooks", json!({ "token": "ours", "inbox": "on" })).await.code(), 200);
    let request = Request::post(admin.world.url("hooks", "/a?b=1")).header("authorization", "Bearer let-me-in");
    assert_eq!(admin.world.send(request.body(full("body")).unwrap()).await.code(), 202);
    let inboxes = admin.get("inboxes").await;
    let inbox = &inboxes["inboxes"][0];
    assert_eq!((&inbox["name"], &inbox["token"], &inbox["waiting"]), (&json!("hooks"), &json!("ours"), &json!(1)));
    let page = admin.get("inboxes/hooks?state=waiting&limit=5").await;
    let id = page["webhooks"][0]["id"].as_str().unwrap().to_owned();
    let header =
        |whole: &Value, value: &str| whole["headers"].as_array().unwrap().contains(&json!(["authorization", value]));
    let whole = admin.get(&format!("inboxes/hooks/webhooks/{id}")).await;
    assert!(whole["path"] == "/a?b=1" && header(&whole, "Bearer ***"), "{whole}");
    let whole = admin.get(&format!("inboxes/hooks/webhooks/{id}?secrets=show")).await;
    assert!(header(&whole, "Bearer let-me-in"), "{whole}");
    let paused = admin.call(Method::POST, "inboxes/hooks/pause", Value::Null).await;
    assert_eq!((paused.code(), &paused.json()["paused"]), (200, &json!(true)));
    let dropped = admin.call(Method::POST, "inboxes/hooks/drop", json!({ "ids": [id] })).await;
    assert_eq!(dropped.json(), json!({ "count": 1 }));
    assert_eq!(admin.call(Method::DELETE, "inboxes/hooks", Value::Null).await.json(), json!({ "count": 1 }));
    assert_eq!(admin.call(Method::GET, "inboxes/hooks", Value::Null).await.code(), 404);

    let certificate = admin.get("certificates").await["certificates"][0].clone();
    assert_eq!((&certificate["source"], &certificate["trouble"]), (&json!("development"), &Value::Null));
    assert!(certificate["names"].as_array().unwrap().contains(&json!("*.relay.test")), "{certificate}");
    admin.world.shutdown().await;
}

#[tokio::test]
async fn who_did_what_is_told() {
    let admin = Admin::start().await;
    let made = admin.make_token(json!({ "name": "ci", "reserve": ["builds"] })).await;
    assert_eq!(admin.call(Method::POST, "tokens", json!({ "name": "ci" })).await.code(), 409);
    assert_eq!(admin.command("token limit ci --max-rate 5").await.code(), 0);
    assert_eq!(admin.command("token list").await.code(), 0);
    let audit = admin.get("audit").await;
    let (entries, user) = (audit["entries"].as_array().unwrap(), rustix::process::geteuid().as_raw());
    let told: Vec<_> =
        entries.iter().map(|it| (it["operation"].as_str().unwrap(), it["subject"].as_str().unwrap())).collect();
    assert_eq!(told, [("token.limit", "ci"), ("token.create", "ci")], "neither what was refused nor what only looks");
    assert_eq!((&entries[0]["by"]["via"], &entries[0]["by"]["user"]), (&json!("command"), &json!(user)));
    assert_eq!(entries[1]["by"], json!({ "via": "api", "address": "127.0.0.1" }));
    assert_eq!((&entries[0]["detail"], &entries[1]["detail"]), (&json!("{\"max_rate\":5}"), &json!("reserve builds")));
    assert!(!audit.to_string().contains(made["secret"].as_str().unwrap()));
    let page = admin.get("audit?limit=1").await;
    let rest = admin.get(&format!("audit?before={}", page["next"])).await;
    assert_eq!((&page["entries"][0], &rest["entries"][0], &rest["next"]), (&entries[0], &entries[1], &Value::Null));

    // The command tells the same, also where no relay runs, and what is done then is noted as well.
    let Admin { mut world, token } = admin;
    world.stop().await;
    let admin = Admin { world, token };
    assert_eq!(admin.command("token revoke ci").await.code(), 0);
    let listed = admin.command("audit --output json").await.lines();
    assert_eq!(listed[..2], [entries[1].clone(), entries[0].clone()]);
    assert_eq!((listed.len(), &listed[2]["operation"]), (3, &json!("token.revoke")));
    let text = admin.command("audit --limit 1").await.stdout;
    assert!(text.contains(&format!("user {user}, process ")) && text.contains("token.revoke"), "{text}");
}

/// Every answer of every call has the shape that the document says.
#[tokio::test]
async fn the_document_is_kept_to() {
    let admin = Admin::start().await;
    let app = App::echo().await;
    let made = admin.make_token(json!({ "name": "ours" })).await;
    let tunnel = admin.tunnel(&made, &app, "live").await;
    assert_eq!(admin.call(Method::PUT, "names/hooks", json!({ "token": "ours", "inbox": "on" })).await.code(), 200);
    assert_eq!(admin.world.post(&admin.world.url("hooks", "/"), "1").await.code(), 202);
    let webhook = admin.get("inboxes/hooks").await["webhooks"][0]["id"].as_str().unwrap().to_owned();
    let url = format!("http://{}/api/v1/openapi.json", admin.world.admin());
    let settings = format!("[parameters]\ninbox = \"hooks\"\nwebhook = \"{webhook}\"\nname = \"hooks\"\n");
    keeps_to_openapi_with(&url, &settings, &["-H", &format!("Authorization: Bearer {}", admin.token)]).await;
    // It was let in, and has tried what changes something, too.
    assert!(admin.get("tokens").await["tokens"].as_array().unwrap().len() > 1);
    drop(tunnel);
}

/// The page's own example, word for word but for the path.
#[tokio::test]
async fn who_reads_nothing_keeps_nobody_out() {
    // Until that is over, every place can be seen to be taken.
    let world = World::with(|config| config.limits.write_idle = Duration::from_secs(5)).await;
    let request = format!("GET /api/v1/openapi.json HTTP/1.1\r\nhost: {}\r\n\r\n", world.admin());
    let mut greedy = Vec::new();
    for _ in 0..64 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut tcp = socket.connect(world.admin()).await.unwrap();
        tcp.write_all(request.repeat(200).as_bytes()).await.unwrap();
        greedy.push(tcp);
    }
    let is_alive = async || {
        let mut tcp = TcpStream::connect(world.admin()).await.unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", world.admin());
        let mut answer = String::new();
        // One for which there is no place is reset, before or after it has asked.
        let asked = tcp.write_all(request.as_bytes()).await.is_ok();
        asked && tcp.read_to_string(&mut answer).await.is_ok() && answer.starts_with("HTTP/1.1 200")
    };
    assert!(!is_alive().await, "there is a place left");
    within("a place", async { while !is_alive().await {} }).await;
    drop(greedy);
    world.shutdown().await;
}

#[tokio::test]
async fn a_unix_socket_is_for_the_owner_alone_and_is_handed_over() {
    let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let socket = home.path().join("run/relay/admin.sock");
    let admin = format!("unix:{}", socket.display());
    let mut relay = RelayServer::spawn_in(home.clone(), ["--admin", &admin]).await;
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));

    let page = include_str!("../../docs/admin-api.md");
    let script = page.lines().find(|line| line.contains("--unix-socket")).unwrap();
    let script = script.replace("/var/lib/relay/admin.sock", socket.to_str().unwrap());
    let script = script.replace("curl ", &format!("{} --silent --show-error --fail ", program("curl").display()));
    let token = std::fs::read_to_string(relay.data_dir().join("admin.token")).unwrap();
    let status = async || -> Value {
        let mut shell = Command::new("bash");
        serde_json::from_str(&output(shell.args(["-c", &script]).env("ADMIN", token.trim())).await).unwrap()
    };
    let before = status().await;
    assert_eq!((&before["admin"], &before["ready"]), (&json!(admin), &json!(true)));

    // Who has called is known without an address.
    let call = async |words: &[&str], token: &str| {
        let mut curl = Command::new(program("curl"));
        curl.args(["--silent", "--unix-socket", socket.to_str().unwrap(), "-H"]);
        output(curl.arg(format!("Authorization: Bearer {token}")).args(words)).await
    };
    let refused = call(&["http://localhost/api/v1/status"], "wrong").await;
    assert!(refused.contains("\"unauthorized\""), "{refused}");
    let user = rustix::process::geteuid().as_raw();
    let line = relay.process.error_line("a call of the admin API was refused").await;
    assert!(line.contains(&format!("user {user}, process ")), "{line}");
    let made = ["http://localhost/api/v1/tokens", "--json", "{\"name\":\"ci\"}"];
    assert!(call(&made, token.trim()).await.contains("rly_"));
    let audit: Value = serde_json::from_str(&call(&["http://localhost/api/v1/audit"], token.trim()).await).unwrap();
    assert_eq!(
        (&audit["entries"][0]["by"]["via"], &audit["entries"][0]["by"]["user"]),
        (&json!("command"), &json!(user))
    );
    assert!(call(&["http://localhost/readyz"], "").await.starts_with("ready"));
    let second = run(
        "relay-server",
        ["serve", "--domain", "b.test", "--https", "127.0.0.1:0", "--http", "off", "--admin", &admin],
    );
    let second = second.await;
    assert!(second.code() != 0 && second.stderr.contains("another program listens there"), "{second:?}");

    // Another process listens there, and the one before leaves the file to it.
    let data = relay.data_dir().display().to_string();
    let mut next = relay.successor(&["--admin", &admin]).await;
    assert_eq!(relay.process.wait().await.code(), 0);
    assert_ne!(status().await["process"], before["process"]);
    let health = run("relay-server", ["health", "--data-dir", &data]).await;
    assert_eq!(health.code(), 0, "{health:?}");
    assert_eq!(next.process.terminate().await.code(), 0);
    // It did not make the file, and has left it; the next one takes its place, and takes it away in the end.
    let mut last = RelayServer::spawn_in(home, ["--admin", &admin]).await;
    assert_eq!(status().await["process"], json!(last.process.pid()));
    assert_eq!(last.process.terminate().await.code(), 0);
    assert!(!socket.exists());
}

/// The page's own example, word for word but for the address.
#[tokio::test]
async fn the_documented_calls_work() {
    let admin = Admin::start().await;
    let page = include_str!("../../docs/admin-api.md");
    let (_, script) = page.split_once("```sh\n").unwrap();
    let (script, _) = script.split_once("```").unwrap();
    let script = script.replace("127.0.0.1:9180", &admin.world.admin().to_string());
    // A shell forgives what curl does not say, so that each has to.
    let script = script.replace("curl ", &format!("{} --silent --show-error --fail ", program("curl").display()));
    let directory = binary("relay-server").await.parent().unwrap().to_path_buf();
    let path = std::env::join_paths([directory, "/usr/bin".into(), "/bin".into()]).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &script]).env("PATH", path).env("RELAY_DATA_DIR", admin.world.data_dir());
    output(&mut shell).await;
    assert_eq!(admin.get("tokens/ci").await["state"], "revoked");
    admin.world.shutdown().await;
}
