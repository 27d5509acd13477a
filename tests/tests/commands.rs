//! The commands of `relay` beside `http` and `dev`, as a user runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::PathBuf;
use std::sync::Arc;

use http::Request;
use relay_tests::body::{empty, full};
use relay_tests::process::{Ended, run};
use relay_tests::world::connect_tls;
use relay_tests::{Answer, Body, Http, Place, Process, RelayClient, RelayServer};
use serde_json::{Value, json};
use tempfile::TempDir;

const DEFAULTS: [&str; 0] = [];

async fn send(relay: &RelayServer, request: Request<Body>) -> Answer {
    let host = request.uri().authority().unwrap().to_string();
    let mut http = Http::one(connect_tls(relay.https, &host, &relay.ca_file(), &[b"http/1.1"]).await).await;
    http.answer(request).await
}

/// The arguments of a client of this relay, with a token of its own.
async fn arguments(relay: &RelayServer, words: &[&str]) -> Vec<String> {
    relay.arguments(&relay.token("me").await, words)
}

mod relay_listen {
    use super::*;

    async fn listen(relay: &RelayServer, flags: &[&str]) -> RelayClient {
        let words = [&["listen", "--output", "json"], flags].concat();
        RelayClient::spawn(arguments(relay, &words).await).await
    }

    fn header<'a>(request: &'a Value, name: &str) -> Vec<&'a str> {
        let headers = request["headers"].as_array().unwrap().iter();
        headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
    }

    #[tokio::test]
    async fn shows_each_request_to_programs_and_answers_it() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let flags = ["--respond", "202", "--body", "{\"ok\":true}", "--header", "X-Bin: a", "--header", "X-Bin: b"];
        let mut bin = listen(&relay, &[&flags[..], &["--subdomain", "bin", "--max-body", "1KiB"]].concat()).await;
        assert_eq!((&bin.ready["name"], &bin.ready["upstream"]), (&"bin".into(), &"listen".into()));
        let url = bin.url().to_owned();
        let target = "//a/../b?x=%2F";
        let request = Request::post(format!("{url}{target}")).header("x-two", "1").header("x-two", "2");
        let answer = send(&relay, request.body(full("{\"a\":\"é\"}")).unwrap()).await;
        assert_eq!((answer.code(), answer.text()), (202, "{\"ok\":true}"));
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(answer.headers.get_all("x-bin").iter().collect::<Vec<_>>(), ["a", "b"]);

        let shown = bin.process.json().await;
        let fields =
            json!(["body", "body_size", "body_truncated", "event", "headers", "id", "method", "path", "status"]);
        let mut keys: Vec<_> = shown.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(json!(keys), fields);
        assert_eq!((&shown["event"], &shown["method"]), (&"request".into(), &"POST".into()));
        assert_eq!((&shown["path"], &shown["status"]), (&target.into(), &202.into()));
        assert_eq!((&shown["body"], &shown["body_size"]), (&"{\"a\":\"é\"}".into(), &10.into()));
        assert_eq!(shown["body_truncated"], false);
        assert_eq!(header(&shown, "host"), [url.strip_prefix("https://").unwrap()], "as it was sent");
        assert_eq!(header(&shown, "x-two"), ["1", "2"]);
        assert_eq!(header(&shown, "relay-request-id"), [shown["id"].as_str().unwrap()]);

        send(&relay, Request::put(&url).body(full(&b"\xff\xfe\x00"[..])).unwrap()).await;
        let binary = bin.process.json().await;
        assert_eq!((&binary["body"], &binary["body_base64"]), (&Value::Null, &"//4A".into()));
        send(&relay, Request::put(&url).body(full("x".repeat(5000))).unwrap()).await;
        let large = bin.process.json().await;
        assert_eq!((large["body"].as_str().unwrap().len(), &large["body_size"]), (1024, &5000.into()));
        assert_eq!(large["body_truncated"], true);
        send(&relay, Request::get(&url).body(empty()).unwrap()).await;
        let empty = bin.process.json().await;
        assert_eq!((&empty["body"], &empty["body_size"], &empty["path"]), (&"".into(), &0.into(), &"/".into()));
        assert_eq!(bin.process.terminate().await.code(), 143);
    }

    /// Whoever else uses this machine cannot post to it past the relay.
    #[tokio::test]
    async fn opens_no_port() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let mut bin = listen(&relay, &["--inspect", "off"]).await;
        assert_eq!(send(&relay, Request::get(bin.url()).body(empty()).unwrap()).await.code(), 200);
        assert_eq!(bin.process.listeners(), 0);
        assert!(relay.process.listeners() > 0, "this test sees listeners");
        assert_eq!(bin.process.terminate().await.code(), 143);
    }

    #[tokio::test]
    async fn tells_of_senders_that_did_not_get_the_answer() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let mut bin = listen(&relay, &["--delay", "1h", "--timeout", "200ms"]).await;
        let answer = send(&relay, Request::get(format!("{}/late", bin.url())).body(empty()).unwrap()).await;
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        assert_eq!(bin.process.json().await["event"], "request");
        let exchange = bin.process.json().await;
        assert_eq!((&exchange["path"], &exchange["error"]), (&"/late".into(), &"deadline".into()));
    }

    #[tokio::test]
    async fn shows_people_what_was_sent() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let mut bin = Process::spawn("relay", arguments(&relay, &["listen", "--respond", "404"]).await).await;
        let url = bin.line().await.unwrap();
        assert!(bin.line().await.unwrap().contains("answers 404"));
        let hostile = Request::post(format!("{url}/a")).header("x-odd", "\u{9b}31m");
        let body = full("{\"b\": [1], \"a\": \"\u{202e}\"}");
        assert_eq!(send(&relay, hostile.body(body).unwrap()).await.code(), 404);
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != "  }") {
            lines.push(bin.line().await.unwrap());
        }
        let text = lines.join("\n");
        assert!(lines.iter().any(|line| line.contains("POST    /a") && line.contains(" 404 ")), "{text}");
        assert!(lines.iter().any(|line| line == "  x-odd: \\u{9b}31m"), "{text}");
        assert!(text.ends_with("\n  {\n    \"b\": [\n      1\n    ],\n    \"a\": \"\\u{202e}\"\n  }"), "{text}");
        assert_eq!(bin.terminate().await.code(), 143);
    }

    #[tokio::test]
    async fn says_what_is_wrong_with_an_answer() {
        for (arguments, hint) in [
            (&["--body", "@/nowhere"][..], "/nowhere"),
            (&["--respond", "204", "--body", "x"], "204"),
            (&["--respond", "99"], "200"),
            (&["--header", "x"], "Name: value"),
        ] {
            let ended = run("relay", [&["listen"], arguments].concat()).await;
            assert_eq!(ended.code(), 2, "{ended:?}");
            assert!(ended.stderr.contains(hint) && ended.stdout.is_empty(), "{ended:?}");
        }
    }
}

mod relay_login {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// `relay …` in this home, with `input` on standard input.
    async fn relay(home: &Arc<TempDir>, input: &str, arguments: &[impl AsRef<str>]) -> Ended {
        // The binary stands beside the directory of the tests.
        let test = std::env::current_exe().unwrap();
        let binary = test.ancestors().nth(2).unwrap().join("relay").display().to_string();
        let variables = [("BINARY", binary.as_str()), ("INPUT", input)];
        let line = ["-c", "printf %s \"$INPUT\" | \"$BINARY\" \"$@\"", "sh"];
        let all = line.into_iter().chain(arguments.iter().map(AsRef::as_ref));
        Process::spawn_in(home.clone(), "/bin/sh", all, &variables).await.wait().await
    }

    fn home() -> Arc<TempDir> {
        Arc::new(tempfile::tempdir().unwrap())
    }

    /// `login` to this relay.
    fn login(relay: &RelayServer) -> Vec<String> {
        let (addr, ca) = (relay.https.to_string(), relay.ca_file().display().to_string());
        ["login", &relay.url, "--relay-addr", &addr, "--relay-ca", &ca].map(str::to_owned).to_vec()
    }

    fn stored(home: &Arc<TempDir>) -> PathBuf {
        home.path().join(".config/relay/login.toml")
    }

    #[tokio::test]
    async fn makes_the_flags_of_the_way_unnecessary() {
        let server = RelayServer::spawn(DEFAULTS).await;
        let token = server.token("me").await;
        let home = home();
        let ended = relay(&home, &format!("{token}\n"), &login(&server)).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""), "{ended:?}");
        assert!(ended.stderr.contains(&stored(&home).display().to_string()), "{ended:?}");
        assert!(!ended.stderr.contains("rly_"), "{ended:?}");
        let mode = std::fs::metadata(stored(&home)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut bin = Process::spawn_in(home.clone(), "relay", ["listen", "--output", "json"], &[]).await;
        assert_eq!(bin.json().await["relay"], server.url);
        bin.terminate().await;

        for said in ["Removed", "nothing"] {
            let ended = relay(&home, "", &["logout"]).await;
            assert_eq!(ended.code(), 0, "{ended:?}");
            assert!(ended.stderr.contains(said), "{ended:?}");
        }
        assert!(!stored(&home).exists());
        assert_eq!(relay(&home, "", &["listen"]).await.code(), 2, "no relay is named");
    }

    /// What writes the token need not end before the relay is asked.
    #[tokio::test]
    async fn reads_one_line_of_a_pipe_that_stays_open() {
        let server = RelayServer::spawn(DEFAULTS).await;
        let token = server.token("me").await;
        let home = home();
        let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("relay");
        let mut login = tokio::process::Command::new(binary)
            .args(login(&server))
            .env_clear()
            .env("HOME", home.path())
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut pipe = login.stdin.take().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut pipe, format!("{token}\n").as_bytes()).await.unwrap();
        let status = relay_tests::within("the login", login.wait()).await.unwrap();
        assert!(status.success() && stored(&home).exists(), "{status}");
        drop(pipe);
    }

    #[tokio::test]
    async fn stores_nothing_that_the_relay_does_not_take() {
        let server = RelayServer::spawn(DEFAULTS).await;
        let home = home();
        let closed = relay_tests::app::listener().await.local_addr().unwrap().to_string();
        let login = login(&server);
        let login: Vec<_> = login.iter().map(String::as_str).collect();
        let nobody = ["login", &server.url, "--relay-addr", &closed];
        for (input, arguments, code) in [
            ("rly_wrong\n", &login[..], 3),
            ("", &login, 2),
            ("two words\n", &login, 2),
            ("rly_x", &nobody, 5),
            ("rly_x", &["login"], 2),
            ("rly_x", &["login", "http://relay.example"], 2),
        ] {
            let ended = relay(&home, input, arguments).await;
            assert_eq!(ended.code(), code, "{input} {arguments:?}: {ended:?}");
            assert!(!ended.stderr.contains("rly_") && !ended.stderr.contains("two words"), "{ended:?}");
            assert!(!stored(&home).exists());
        }
    }
}

mod relay_config {
    use super::*;

    #[tokio::test]
    async fn check_names_the_line_that_is_wrong() {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let file = home.path().join("relay.toml");
        std::fs::write(&file, "relay = \"relay.example\"\ntoken = \"rly_secret\"\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let check = |variables: &'static [(&str, &str)]| {
            let home = home.clone();
            async move {
                let arguments = ["config", "check", "--output", "json"];
                Process::spawn_in(home, "relay", arguments, variables).await.wait().await
            }
        };
        let sound = check(&[("RELAY_TOKEN", "rly_other")]).await;
        assert_eq!((sound.code(), sound.stderr.as_str()), (0, ""), "{sound:?}");
        let settings: Vec<Value> = sound.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let relay = json!({"setting": "relay", "value": "https://relay.example", "from": "relay.toml:1"});
        let token = json!({"setting": "token", "value": "(not shown)", "from": "RELAY_TOKEN"});
        assert_eq!(settings[..2], [relay, token]);
        std::fs::write(&file, "relay = \"relay.example\"\n\ntimeout = \"soon\"\n").unwrap();
        let broken = check(&[("RELAY_URL", "gopher://x")]).await;
        assert_eq!(broken.code(), 2, "{broken:?}");
        assert!(broken.stderr.contains("relay.toml:3:11: ") && broken.stderr.contains("RELAY_URL: "), "{broken:?}");
    }
}

#[tokio::test]
async fn completions_and_manual_pages_are_made() {
    let script = run("relay", ["completions", "bash"]).await;
    assert!(script.code() == 0 && script.stdout.contains("listen"), "{script:?}");
    let directory = tempfile::tempdir().unwrap();
    let made = run("relay", ["man", &directory.path().display().to_string()]).await;
    assert_eq!(made.code(), 0, "{made:?}");
    assert!(std::fs::read_to_string(directory.path().join("relay-listen.1")).unwrap().contains("respond"));
}

mod readiness {
    use super::*;

    #[tokio::test]
    async fn the_url_stands_alone_and_the_file_is_there_as_long_as_the_tunnel() {
        let place = Place::new().await;
        let file = place.home.path().join("ready.json");
        std::fs::write(&file, "of an earlier run").unwrap();
        let words = ["listen", "--url-only", "--ready-file", "ready.json"];
        let mut bin = place.spawn(place.with_way(&words)).await;
        let url = bin.line().await.unwrap();
        let written = async {
            loop {
                match std::fs::read(&file) {
                    Ok(ready) => return ready,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        let written = relay_tests::within("the file, once the URL has answered", written).await;
        let ready: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!((&ready["event"], &ready["url"]), (&"tunnel.ready".into(), &url.as_str().into()));
        send(&place.relay, Request::get(format!("{url}/seen")).body(empty()).unwrap()).await;
        assert!(bin.error_line("/seen").await.contains("GET"));
        let ended = bin.terminate().await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (143, ""));
        assert!(!file.exists(), "it goes with the tunnel");

        // What is no file of its own is left alone.
        std::os::unix::fs::symlink("target", place.home.path().join("link")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(place.home.path().join("pipe")).status().unwrap();
        assert!(pipe.success());
        for not_a_file in ["link", "pipe", ".", "/dev/stdout"] {
            let words = place.with_way(&["http", "3000", "--ready-file", not_a_file]);
            let ended = place.spawn(words).await.wait().await;
            assert_eq!(ended.code(), 2, "{ended:?}");
            assert!(ended.stderr.contains("not a regular file") && ended.stderr.contains("--ready-file"), "{ended:?}");
        }
        for left in ["link", "pipe"] {
            assert!(!place.home.path().join(left).symlink_metadata().unwrap().is_file(), "{left}");
        }

        let words = place.with_way(&["http", "3000", "--ready-file", "no/such/directory"]);
        let ended = place.spawn(words).await.wait().await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("no/such/directory"), "{ended:?}");
    }
}

mod relay_run {
    use relay_tests::App;
    use relay_tests::app::ok;

    use super::*;

    fn arguments(relay: &RelayServer, token: &str, app: &App, more: &[&str]) -> Vec<String> {
        relay.arguments(token, &[&["run", &app.addr().to_string()], more].concat())
    }

    #[tokio::test]
    async fn gives_a_command_a_tunnel_that_answers_and_returns_its_code() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::serve(|request| async move { ok(request.uri().path().to_owned()) }).await;
        let script = "curl -sS --cacert $RELAY_CA_FILE --connect-to ::$ADDR $RELAY_PUBLIC_URL/from-inside; exit 7";
        let script = script.replace("$ADDR", &relay.https.to_string());
        let ended = run("relay", arguments(&relay, &token, &app, &["--", "sh", "-c", &script])).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (7, "/from-inside\n"), "{}", ended.stderr);
        assert!(ended.stderr.contains("https://"), "{}", ended.stderr);
        assert_eq!(app.requests(), 1, "the service hears nothing of the probe");
        assert!(!ended.stderr.contains("probe"), "{}", ended.stderr);
    }

    #[tokio::test]
    async fn writes_what_happens_into_a_file_when_asked() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::serve(|_| async { ok("here") }).await;
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("events").display().to_string();
        let ended = run("relay", arguments(&relay, &token, &app, &["--events", &file, "--", "true"])).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""), "{}", ended.stderr);
        assert!(!ended.stderr.contains("forwards to"), "{}", ended.stderr);
        let events = std::fs::read_to_string(&file).unwrap();
        let ready: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
        assert_eq!(ready["event"], "tunnel.ready");
        assert_eq!(events.lines().count(), 1, "{events}");
    }

    #[tokio::test]
    async fn passes_signals_on_and_lets_the_command_decide() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::serve(|_| async { ok("here") }).await;
        let script = "trap 'echo bye; exit 3' TERM; echo started; while :; do sleep 0.05; done";
        let arguments = arguments(&relay, &token, &app, &["--", "sh", "-c", script]);
        let mut process = Process::spawn("relay", arguments).await;
        assert_eq!(process.line().await.as_deref(), Some("started"));
        let ended = process.terminate().await;
        assert_eq!((ended.code(), ended.stdout.contains("bye")), (3, true), "{} {}", ended.stdout, ended.stderr);
    }

    #[tokio::test]
    async fn says_why_it_runs_nothing() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::serve(|_| async { ok("here") }).await;
        let ended = run("relay", arguments(&relay, &token, &app, &["--", "./no-such-command"])).await;
        assert_eq!(ended.code(), 1);
        assert!(ended.stderr.contains("cannot run ./no-such-command"), "{}", ended.stderr);
        relay.token_command(&["revoke", "me"]).await;
        let ended = run("relay", arguments(&relay, &token, &app, &["--", "true"])).await;
        assert_eq!(ended.code(), 3, "{}", ended.stderr);
        assert_eq!(run("relay", arguments(&relay, &token, &app, &[])).await.code(), 2);
    }
}
