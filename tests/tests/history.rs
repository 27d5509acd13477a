//! What a client keeps of its requests: `relay requests`, `relay show`, and the file behind them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Request, Response};
use relay_protocol::webhook::{Credentials, Table, Verdict};
use relay_tests::app::ok;
use relay_tests::body::{full, pipe};
use relay_tests::{App, Place, Process, RelayServer, tools};
use rustix::process::Signal;
use serde_json::Value;

/// The file behind the commands.
fn file(place: &Place) -> PathBuf {
    place.home.path().join(".local/state/relay/history.db")
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
    let id = client.process.event("exchange").await["id"].as_str().unwrap().to_owned();
    // Without waiting for anything: what has ended is there.
    let list = place.json(&["requests"]).await;
    assert_eq!((list.len(), &list[0]["id"]), (1, &Value::from(id.as_str())));
    client.process.kill().await;
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
    assert_eq!(std::fs::metadata(file(&place)).unwrap().permissions().mode() & 0o777, 0o600);
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
    // What is cleared is gone from the clients' memories, too.
    assert_eq!(place.run(&["requests", "--clear"]).await.stdout, "40\n");
    let waited = place.run(&["wait", "--path", "/one/1", "--within", "100ms"]).await;
    assert_eq!(waited.status.code(), Some(1), "{waited:?}");
    // One that does not answer may have some that come again.
    place.send("one", Request::post("/").body(full("")).unwrap()).await;
    let _mute = std::os::unix::net::UnixListener::bind(place.home.path().join("relay/99999-0.sock")).unwrap();
    let cleared = place.run(&["requests", "--clear"]).await;
    assert_eq!((cleared.stdout.as_str(), cleared.status.code()), ("1\n", Some(1)), "{cleared:?}");
    assert!(cleared.stderr.contains("client of process 99999 does not answer"), "{cleared:?}");
    drop((one, two, off));
}

#[tokio::test]
async fn large_bodies_are_kept_up_to_a_limit_and_pass_whole() {
    let place = Place::new().await;
    let app = App::echo().await;
    let client = place.client(&app, "hooks", &[]).await;
    let sizes = [(10 << 20, 10 << 20), ((11 << 20) + 1, 10 << 20)];
    for (size, kept) in sizes.into_iter().cycle().take(6) {
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
    // Some of 120 MiB: the rest is on the disk.
    let anonymous = client.process.anonymous();
    assert!(anonymous < 24 << 20, "{anonymous} bytes");
    drop(client);
}

#[tokio::test]
async fn a_file_that_is_moved_away_is_made_anew() {
    let place = Place::new().await;
    let app = App::serve(|_| async { ok("fine") }).await;
    let client = place.client(&app, "hooks", &[]).await;
    let kept = async || {
        let list = place.json(&["requests"]).await;
        list.iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    place.send("hooks", Request::get("/first").body(full("")).unwrap()).await;
    assert_eq!(kept().await, ["/first"]);
    std::fs::rename(file(&place), file(&place).with_extension("old")).unwrap();
    assert!(kept().await.is_empty());
    for path in ["/second", "/third"] {
        place.send("hooks", Request::get(path).body(full("")).unwrap()).await;
    }
    assert_eq!(kept().await, ["/second", "/third"]);
    drop(client);
    assert_eq!(kept().await, ["/second", "/third"]);
}

#[tokio::test]
async fn a_damaged_file_is_said_once_and_the_tunnel_goes_on() {
    let place = Place::new().await;
    std::fs::create_dir_all(file(&place).parent().unwrap()).unwrap();
    std::fs::write(file(&place), "no database at all, as it seems".repeat(1000)).unwrap();
    let app = App::serve(|_| async { ok("fine") }).await;
    let mut client = place.client(&app, "hooks", &[]).await;
    for _ in 0..3 {
        assert_eq!(place.send("hooks", Request::get("/").body(full("")).unwrap()).await.text(), "fine");
    }
    client.process.error_line("is damaged").await;
    let ended = client.process.terminate().await;
    assert!(!ended.stderr.contains("is damaged"), "{ended:?}");
    let list = place.run(&["requests"]).await;
    assert!(list.status.code() == Some(1) && list.stderr.contains("move it away"), "{list:?}");
}

/// A webhook of Stripe's, signed with this secret at this time.
fn stripe(secret: &str, at: i64, body: &str) -> (String, String) {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    (format!("t={at},v1={hex}"), body.to_owned())
}

const SECRET: &str = "whsec_test";

#[tokio::test]
async fn a_replay_is_byte_for_byte_the_original_and_says_so() {
    let place = Place::new().await;
    let app = App::recording().await;
    let mut client = place.client(&app, "hooks", &[]).await;
    let odd = HeaderValue::from_bytes(b"\xff\xe9").unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let request = Request::put("/a%2F..//b?x=%zz").header("x-odd", odd).header("x-two", "1").header("x-two", "2");
    place.send("hooks", request.body(full(sent.clone())).unwrap()).await;
    let id = client.process.event("exchange").await["id"].as_str().unwrap().to_owned();
    let done = place.json(&["replay", "last", "--times", "2"]).await;
    assert_eq!((done.len(), &done[1]["status"], &done[1]["body"]), (2, &Value::from(200), &Value::from("ok")));
    assert_eq!((&done[0]["replay_of"], &done[0]["signed"]), (&Value::from(id.as_str()), &Value::from(false)));
    let seen = app.seen();
    assert_eq!(seen.len(), 3);
    for again in &seen[1..] {
        assert_eq!((&again.method, &again.target, &again.body), (&seen[0].method, &seen[0].target, &seen[0].body));
        assert_eq!(again.header("relay-replay-of"), id);
        let theirs = |seen: &relay_tests::app::Seen| {
            let ids = ["relay-request-id", "x-request-id", "relay-replay-of"];
            let all = seen.headers.iter().filter(|(name, _)| !ids.contains(&name.as_str()));
            all.map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
        };
        assert_eq!(theirs(again), theirs(&seen[0]));
    }
    // The client has shown it, and keeps it.
    assert_eq!(client.process.event("exchange").await["id"], done[0]["id"]);
    let list = place.json(&["requests"]).await;
    assert_eq!((list.len(), &list[2]["replay_of"], &list[2]["id"]), (3, &Value::from(id.as_str()), &done[1]["id"]));
    let none = place.run(&["replay", "last", "--tunnel", "other"]).await;
    assert!(none.status.code() == Some(1) && none.stderr.contains("there are hooks"), "{none:?}");
    client.process.terminate().await;
    let none = place.run(&["replay", "last"]).await;
    assert!(none.status.code() == Some(1) && none.stderr.contains("no running client has a tunnel hooks"), "{none:?}");
    // Straight to an app it needs no client.
    let to = format!("http://{}", app.addr());
    let done = place.json(&["replay", &id, "--to", &to]).await.remove(0);
    assert_eq!((&done["status"], &done["id"], &done["tunnel"]), (&Value::from(200), &Value::Null, &Value::Null));
    let last = app.last();
    assert_eq!((&last.target, &last.body, last.header("relay-replay-of")), (&seen[0].target, &seen[0].body, &*id));
    assert_eq!(last.headers["x-odd"], b"\xff\xe9".as_slice());
    place.json(&["replay", &id, "--to", &format!("{to}/other?a")]).await;
    assert_eq!(app.last().target, "/other?a");
}

#[tokio::test]
async fn a_replay_whose_signature_is_too_old_is_signed_anew_where_there_is_a_secret() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let (signature, body) = stripe(SECRET, 1_700_000_000, r#"{"id":"evt_1","type":"invoice.paid"}"#);
    let request = Request::post("/hooks").header("stripe-signature", &signature).body(full(body.clone())).unwrap();
    place.send("hooks", request).await;
    let now = || i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let signed = |seen: &relay_tests::app::Seen| {
        let header = seen.header("stripe-signature").to_owned();
        let at = header.strip_prefix("t=").unwrap().split(',').next().unwrap().parse().unwrap();
        (at, header == stripe(SECRET, at, &body).0)
    };
    for (flags, is_new) in [
        (&["--secret", SECRET][..], true),
        (&["--secret", "whsec_another"], false),
        (&[], false),
        (&["--secret", SECRET, "--no-resign"], false),
        (&["--resign", "--secret", SECRET], true),
    ] {
        let id = place.json(&["requests", "--limit", "1000"]).await.remove(0)["id"].as_str().unwrap().to_owned();
        let done = place.json(&[&["replay", &id], flags].concat()).await.remove(0);
        assert_eq!(done["signed"], is_new, "{flags:?}");
        let (at, is_right) = signed(&app.last());
        assert!(is_right && if is_new { (now() - at).abs() < 60 } else { at == 1_700_000_000 }, "{flags:?}: {at}");
        assert_eq!(app.last().body, body.as_bytes());
    }
    let failed = place.run(&["replay", "last", "--resign"]).await;
    assert!(failed.status.code() == Some(1) && failed.stderr.contains("secret"), "{failed:?}");
    drop(client);
}

/// What was sent with it is sent again with it, or an app that was told it would not take it.
#[tokio::test]
async fn a_replay_of_a_sample_that_is_too_old_is_signed_anew_with_the_secret_for_tests() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let secret = place.run(&["trigger", "stripe", "--print-secret"]).await.stdout.trim().to_owned();
    for (secret, is_new) in [(&*secret, true), ("whsec_another", false)] {
        let (signature, body) = stripe(secret, 1_700_000_000, r#"{"id":"evt_1","type":"invoice.paid"}"#);
        let request = Request::post("/hooks").header("stripe-signature", &signature).body(full(body.clone())).unwrap();
        place.send("hooks", request).await;
        let done = place.json(&["replay", "last"]).await.remove(0);
        assert_eq!(done["signed"], is_new, "{done}");
        assert_eq!(app.last().header("stripe-signature") == signature, !is_new);
    }
    // Another URL, which is signed, too.
    place.json(&["trigger", "square"]).await;
    let done = place.json(&["replay", "last", "--to", &format!("http://{}/other", app.addr())]).await.remove(0);
    assert_eq!(done["signed"], true, "{done}");
    drop(client);
}

/// Paddle's own libraries take what is five seconds old, and no more.
#[tokio::test]
async fn a_replay_that_its_providers_library_would_not_take_is_signed_anew() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec!["pdl_ntfset_a".into()], ..Credentials::default() };
    let now = jiff::Timestamp::now();
    for (age, is_new) in [(60, true), (-60, false)] {
        let paddle = relay_protocol::webhook::Request::new(&http::Method::POST, "https://t.example/", &[], b"{}");
        let signed_at = now - jiff::SignedDuration::from_secs(age);
        let draft = table.get("paddle").unwrap().sign(&paddle, &credentials, signed_at).unwrap();
        let signature = draft.headers.iter().find(|(name, _)| name == "paddle-signature").unwrap().1.clone();
        let request = Request::post("/hooks").header("paddle-signature", signature).body(full("{}")).unwrap();
        place.send("hooks", request).await;
        let done = place.json(&["replay", "last", "--secret", "pdl_ntfset_a"]).await.remove(0);
        assert_eq!(done["signed"], is_new, "{age} s old");
    }
    drop(client);
}

#[tokio::test]
async fn an_answer_that_is_no_success_is_told_by_the_exit_code() {
    let place = Place::new().await;
    let app = App::serve(|_| async {
        let mut response = ok("not now");
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let client = place.client(&app, "hooks", &[]).await;
    place.send("hooks", Request::get("/").body(full("")).unwrap()).await;
    let failed = place.run(&["replay", "last"]).await;
    assert!(failed.status.code() == Some(1) && failed.stdout.contains(": 503 in "), "{failed:?}");
    assert!(failed.stdout.contains("not now"), "{failed:?}");
    drop(app);
    let refused = place.run(&["replay", "last"]).await;
    assert!(refused.stdout.contains("no answer upstream-refused"), "{refused:?}");
    drop(client);
}

#[tokio::test]
async fn exports_have_no_secrets_unless_asked_and_say_the_same() {
    let place = Place::new().await;
    let app = App::serve(|_| async {
        let mut response = ok("{}");
        response.headers_mut().insert("set-cookie", HeaderValue::from_static("session=SECRET"));
        response
    })
    .await;
    let client = place.client(&app, "hooks", &[]).await;
    let (signature, body) = stripe(SECRET, 1_700_000_000, "{\"id\":\"evt_1\",\"it's\":\"@\"}");
    let request = Request::post("/hooks?a=1")
        .header("stripe-signature", &signature)
        .header("authorization", "Bearer SECRET")
        .header("cookie", "a=SECRET");
    place.send("hooks", request.body(full(body.clone())).unwrap()).await;
    for form in ["curl", "httpie", "fetch", "python", "http", "har", "json"] {
        let exported = place.run(&["export", "last", "--as", form]).await;
        assert!(exported.status.success(), "{form}: {exported:?}");
        assert!(!exported.stdout.contains("SECRET"), "{form}: {}", exported.stdout);
        assert!(exported.stdout.contains("***") && exported.stdout.contains(&signature), "{form}: {}", exported.stdout);
        let shown = place.run(&["export", "last", "--as", form, "--secrets", "show"]).await;
        assert!(shown.stdout.contains("Bearer SECRET"), "{form}: {}", shown.stdout);
    }
    let file = place.home.path().join("request.http");
    std::fs::write(&file, place.run(&["export", "last", "--as", "http"]).await.stdout.trim_end_matches('\n')).unwrap();
    let words = ["verify", "request.http", "--secret", SECRET, "--now", "1700000001"];
    assert!(place.run(&words).await.status.success());
    let archive: Value = serde_json::from_str(&place.run(&["export", "last", "--as", "har"]).await.stdout).unwrap();
    let entry = &archive["log"]["entries"][0];
    assert_eq!((&entry["request"]["postData"]["text"], &entry["response"]["status"]), (&body.into(), &200.into()));
    let fixture = place.run(&["export", "last", "--as", "fixture", "--to", "fixtures/one"]).await;
    assert_eq!(fixture.stdout, "fixtures/one\n");
    let done = place.json(&["replay", "fixtures/one"]).await.remove(0);
    assert_eq!((&done["status"], &done["tunnel"]), (&200.into(), &"hooks".into()));
    drop(client);
}

/// Runs a line of a shell, in which only this program is found.
async fn in_shell(line: &str, program: &str, path: &std::path::Path) -> String {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", line]).env("PATH", path).kill_on_drop(true);
    let done = shell.output().await.unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.is_empty(), "{program}: {said}\n{line}");
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test]
async fn an_export_is_one_command_whatever_a_stranger_has_sent() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    // It says its words, each on a line, and there is no other program.
    let stub = tempfile::tempdir().unwrap();
    for program in ["curl", "http"] {
        let file = stub.path().join(program);
        std::fs::write(&file, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for method in ["X`id`|a&b'$HOME", "POST|reboot", "~", "!!", "#", "*", "-o"] {
        let request = Request::builder().method(method).uri("/$(id)?a='&b=!!;id").header("-o", "x`id`");
        place.send("hooks", request.body(full("`id` $(id) 'a'")).unwrap()).await;
        let curl = place.run(&["export", "last", "--as", "curl"]).await;
        let words = in_shell(&curl.stdout, "curl", stub.path()).await;
        let words: Vec<_> = words.lines().collect();
        let at = words.iter().position(|word| *word == "-X").unwrap();
        assert_eq!(words[at + 1], method);
        assert!(words.iter().any(|word| word.ends_with("/$(id)?a='&b=!!;id")), "{words:?}");
        for word in ["-o: x`id`", "`id` $(id) 'a'"] {
            assert!(words.contains(&word), "{word}: {words:?}");
        }
        // It would take such a method for a URL.
        let httpie = place.run(&["export", "last", "--as", "httpie"]).await;
        assert_eq!(in_shell(&httpie.stdout, "http", stub.path()).await, "", "{httpie:?}");
    }
    let request = Request::post("/").header("-o", "@/etc/passwd").header("x-b", "=1");
    place.send("hooks", request.body(full("@/etc/passwd")).unwrap()).await;
    let httpie = place.run(&["export", "last", "--as", "httpie"]).await;
    let words = in_shell(&httpie.stdout, "http", stub.path()).await;
    let words: Vec<_> = words.lines().collect();
    let end = words.iter().position(|word| *word == "--").unwrap();
    assert!(words[..end].windows(2).any(|pair| pair == ["--raw", "@/etc/passwd"]), "{words:?}");
    assert!(words[end..].contains(&"-o:\\@/etc/passwd") && words[end..].contains(&"x-b:\\=1"), "{words:?}");
    drop(client);
}

#[tokio::test]
async fn an_export_sends_what_came_byte_for_byte() {
    type Line = (&'static str, &'static [u8]);
    const JSON: Line = ("content-type", b"application/json");
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let listener = App::recording().await;
    let at = format!("http://{}", listener.addr());
    let binary: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let text = "{\"it's\":\"@a\\\\b\\n$HOME `id` %s\",\n\t\"\u{fc}\":\"\u{1f600} \u{2028}\"}".as_bytes();
    let requests: [(&str, &str, &[Line], &[u8]); 6] = [
        (
            "POST",
            "/hooks?a=1&a=%20&b=c+d&e",
            &[JSON, ("x-quote", b"it's \"q\" \\ $HOME `id` %s"), ("x-json", b"{\"a\":[1]}")],
            text,
        ),
        (
            "POST",
            "/a%2Fb//c",
            &[JSON, ("x-at", b"@/etc/hostname"), ("x-is", b"=1"), ("x-empty", b""), ("x-url", b"https://a:1/;b=c@d")],
            b"@/etc/hostname",
        ),
        ("PUT", "/*!~", &[("content-type", b"application/octet-stream"), ("user-agent", b"Sender/1.0")], &binary),
        ("PATCH", "/", &[("accept", b"text/plain")], b"no type"),
        ("POST", "/", &[("x-latin", b"caf\xe9"), ("x-utf", "caf\u{e9}".as_bytes())], b""),
        ("GET", "/?x", &[("authorization", b"Bearer abc")], b""),
    ];
    for (method, target, headers, body) in requests {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        place.send("hooks", request.body(full(body.to_vec())).unwrap()).await;
        for form in ["curl", "httpie", "python", "fetch"] {
            let exported = place.run(&["export", "last", "--as", form, "--secrets", "show"]).await.stdout;
            if form == "httpie" && exported.starts_with('#') {
                assert!(headers.iter().any(|(_, value)| !value.is_ascii()), "{exported}");
                continue;
            }
            let public = format!("https://hooks.{}:{}", RelayServer::DOMAIN, place.relay.https.port());
            let program = exported.replace(&public, &at);
            assert_ne!(program, exported);
            let before = listener.requests();
            tools::exported(form, &program).await;
            assert_eq!(listener.requests(), before + 1, "{form}: {program}");
            let seen = listener.last();
            assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, target), "{form}: {program}");
            assert!(seen.body == body, "{form}: {program}\n{:?}", seen.body);
            for (name, value) in headers {
                assert_eq!(seen.headers[*name], *value, "{form}: {program}");
            }
            let typed = headers.iter().any(|(name, _)| *name == "content-type");
            assert_eq!(seen.headers.contains_key("content-type"), typed, "{form}: {program}\n{:?}", seen.headers);
            if form == "curl" {
                let lines =
                    seen.headers.iter().filter(|(name, _)| !["host", "content-length"].contains(&name.as_str()));
                assert_eq!(lines.count(), headers.len(), "{program}\n{:?}", seen.headers);
            }
        }
    }
    drop(client);
}

#[tokio::test]
async fn a_fixture_without_its_token_is_signed_anew_with_what_the_client_knows() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &["--secret", "my-gitlab-token", "--verify", "reject"]).await;
    for (name, request) in [
        (
            "gitlab",
            Request::post("/").header("x-gitlab-event", "Push Hook").header("x-gitlab-token", "my-gitlab-token"),
        ),
        (
            "parameter",
            Request::post("/?access_token=my-gitlab-token").header("ce-specversion", "1.0").header("ce-id", "1"),
        ),
    ] {
        let answer = place.send("hooks", request.body(full("{}")).unwrap()).await;
        assert_eq!(answer.code(), 200, "{name}: {}", answer.text());
        place.run(&["export", "last", "--as", "fixture", "--to", name]).await;
        let file = std::fs::read_to_string(place.home.path().join(name).join("request.http")).unwrap();
        assert!(file.contains("***") && !file.contains("my-gitlab-token"), "{file}");
        let done = place.json(&["replay", &format!("./{name}")]).await.remove(0);
        assert_eq!((&done["status"], &done["signed"]), (&200.into(), &true.into()), "{name}: {done}");
        assert!(format!("{:?}", app.last()).contains("my-gitlab-token"), "{name}");
    }
    drop(client);
}

#[tokio::test]
async fn a_replay_to_another_url_is_signed_for_that_one() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let secret = "0123456789abcdef0123456789abcdef";
    place.run(&["trigger", "twilio", "sms", "--secret", secret, "--path", "/sms"]).await;
    let to = format!("http://{}/other?team=1", app.addr());
    for flags in [&[][..], &["--resign"]] {
        let words = [&["replay", "last", "--secret", secret, "--to", &to][..], flags].concat();
        let done = place.json(&words).await.remove(0);
        assert_eq!((&done["signed"], &done["status"], &done["url"]), (&true.into(), &200.into(), &to.as_str().into()));
        let seen = app.last();
        let headers: Vec<_> = seen.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let request = relay_protocol::webhook::Request::new(&seen.method, &to, &headers, &seen.body);
        let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
        let judgement =
            Table::built_in().unwrap().get("twilio").unwrap().judge(&request, &credentials, jiff::Timestamp::now());
        assert_eq!(judgement.verdict, Verdict::Valid, "{flags:?}: {judgement:?}");
    }
    drop(client);
}

#[tokio::test]
async fn a_replay_has_what_followed_the_body() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    let (feed, body) = pipe();
    let request = Request::post("/").header("trailer", "x-sum").body(body).unwrap();
    let trailers: http::HeaderMap = [("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
    let send = async {
        feed.send("abc").await;
        feed.trailers(trailers.clone()).await;
    };
    tokio::join!(place.send("hooks", request), send);
    assert_eq!(app.last().trailers, Some(trailers.clone()));
    place.json(&["replay", "last"]).await;
    assert_eq!((app.requests(), &app.last().body[..], app.last().trailers), (2, &b"abc"[..], Some(trailers)));
    let to = place.run(&["replay", "last", "--to", &format!("http://{}", app.addr())]).await;
    assert!(to.code() == 0 && to.stderr.contains("trailers"), "{to:?}");
    drop(client);
}

#[tokio::test]
async fn a_list_that_follows_goes_on_after_everything_was_removed() {
    let place = Place::new().await;
    let app = App::recording().await;
    let client = place.client(&app, "hooks", &[]).await;
    for path in ["/1", "/2", "/3"] {
        place.send("hooks", Request::get(path).body(full("")).unwrap()).await;
    }
    assert_eq!(place.json(&["requests"]).await.len(), 3);
    let words = ["requests", "--follow", "--limit", "1", "--output", "json"];
    let mut list = Process::spawn_in(place.home.clone(), "relay", words, &[]).await;
    assert_eq!(list.json().await["path"], "/3");
    place.send("hooks", Request::get("/4").body(full("")).unwrap()).await;
    assert_eq!(list.json().await["path"], "/4");
    // While nobody looks, all go and another comes.
    list.signal(Signal::STOP);
    assert_eq!(place.run(&["requests", "--clear"]).await.stdout, "4\n");
    place.send("hooks", Request::get("/5").body(full("")).unwrap()).await;
    assert_eq!(place.json(&["requests"]).await.len(), 1);
    list.signal(Signal::CONT);
    assert_eq!(list.json().await["path"], "/5");
    drop((list, client));
}

#[tokio::test]
async fn a_full_disk_is_said_once_and_requests_pass_meanwhile() {
    let place = Place::new().await;
    let app = App::echo().await;
    let state = place.home.path().join(".local/state");
    std::fs::create_dir_all(&state).unwrap();
    let program = relay_tests::process::binary("relay").await;
    let mount = "mount -t tmpfs -o size=1m tmpfs \"$0\" && exec \"$@\"";
    let paths = [state.display().to_string(), program.display().to_string()];
    let first = ["--mount", "sh", "-c", mount].map(str::to_owned);
    let upstream = app.upstream().to_string();
    let hooks = ["http", &upstream, "--subdomain", "hooks", "--output", "json"];
    let words: Vec<_> = first.into_iter().chain(paths).chain(place.with_way(&hooks)).collect();
    let mut client = Process::spawn_in(place.home.clone(), "/usr/bin/unshare", &words, &[]).await;
    assert_eq!(client.json().await["event"], "tunnel.ready");
    let large = vec![b'x'; 1 << 20];
    for _ in 0..5 {
        let answer = place.send("hooks", Request::post("/").body(full(large.clone())).unwrap()).await;
        assert_eq!((answer.code(), answer.body.len()), (200, large.len()));
    }
    client.error_line("is full").await;
    // Small ones still fit, or do not; either way they pass.
    for _ in 0..5 {
        assert_eq!(place.send("hooks", Request::post("/").body(full("a")).unwrap()).await.text(), "a");
    }
    let ended = client.terminate().await;
    assert_eq!(ended.code(), 143, "{ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}
