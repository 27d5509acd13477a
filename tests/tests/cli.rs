//! The two programs as a user runs them: what they print, what they log, and how they end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use http::Request;
use http_body_util::BodyExt as _;
use relay_tests::app::ok;
use relay_tests::body::{empty, full};
use relay_tests::process::{self, run};
use relay_tests::world::connect_tls;
use relay_tests::{Answer, App, Body, Http, Place, Process, RelayClient, RelayServer, Wire, within};
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const DEFAULTS: [&str; 0] = [];

/// A public connection to a tunnel.
async fn public(relay: &RelayServer, url: &str) -> Http {
    let host = url.strip_prefix("https://").unwrap();
    Http::one(connect_tls(relay.https, host, &relay.ca_file(), &[b"http/1.1"]).await).await
}

async fn send(relay: &RelayServer, request: Request<Body>) -> Answer {
    let url = format!("https://{}", request.uri().authority().unwrap());
    public(relay, &url).await.answer(request).await
}

async fn get(relay: &RelayServer, url: &str) -> Answer {
    send(relay, Request::get(url).body(empty()).unwrap()).await
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

async fn shell(line: &str) -> String {
    let mut sh = tokio::process::Command::new("sh");
    sh.args(["-c", line]).env_remove("CURL_CA_BUNDLE").env("NO_PROXY", "*").env("no_proxy", "*");
    relay_tests::tools::output(&mut sh).await
}

mod relay_http {
    use super::*;

    /// Fields that programs read; see `relay-client/src/terminal.rs`.
    #[tokio::test]
    async fn speaks_json_as_promised() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::recording().await;
        let mut client = relay.client(&token, &app.addr().to_string(), &["--subdomain", "hooks"]).await;
        let ready = client.ready.clone();
        assert_eq!(
            keys(&ready),
            BTreeSet::from([
                "event",
                "tunnel",
                "name",
                "url",
                "upstream",
                "relay",
                "ca_file",
                "local_url",
                "inspector"
            ])
        );
        assert_eq!(ready["name"], "hooks");
        assert_eq!(ready["url"], format!("https://hooks.relay.test:{}", relay.https.port()));
        assert_eq!(ready["upstream"], format!("http://{}", app.addr()));
        assert_eq!(ready["relay"], relay.url);
        assert_eq!(ready["ca_file"], relay.ca_file().display().to_string());
        assert_eq!(ready["local_url"], Value::Null);

        let target = "//a/../b?x=%2F&y=%00";
        let url = format!("{}{target}", client.url());
        assert_eq!(send(&relay, Request::post(url).body(full("x")).unwrap()).await.code(), 200);
        let exchange = client.process.json().await;
        let fields = BTreeSet::from([
            "event",
            "tunnel",
            "id",
            "method",
            "path",
            "status",
            "duration_ms",
            "error",
            "webhook",
            "delivery",
        ]);
        assert_eq!(keys(&exchange), fields);
        assert_eq!(exchange["webhook"], Value::Null);
        assert_eq!((&exchange["event"], &exchange["tunnel"]), (&"exchange".into(), &client.ready["tunnel"]));
        assert_eq!(exchange["id"], app.only().header("relay-request-id"));
        assert_eq!((&exchange["method"], &exchange["path"]), (&"POST".into(), &target.into()));
        assert_eq!((&exchange["status"], &exchange["error"]), (&200.into(), &Value::Null));
        let duration = exchange["duration_ms"].as_f64().unwrap();
        assert!(duration > 0.0 && duration < 60_000.0, "{duration}");

        let ended = client.process.terminate().await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (143, ""), "{ended:?}");
    }

    #[tokio::test]
    async fn tells_of_exchanges_that_fail_and_of_those_that_nobody_waited_for() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::raw(|mut wire: Wire, _| async move {
            wire.head().await;
            wire.rest().await.ok();
        })
        .await;
        let mut client = relay.client(&token, &app.addr().to_string(), &["--timeout", "200ms"]).await;
        assert_eq!(get(&relay, client.url()).await.code(), 504);
        let exchange = client.exchange().await;
        assert_eq!((&exchange["status"], &exchange["error"]), (&504.into(), &"deadline".into()));

        let mut patient = relay.client(&token, &app.addr().to_string(), &[]).await;
        let mut http = public(&relay, patient.url()).await;
        let request = http.begin(Request::get(patient.url()).body(empty()).unwrap());
        within("the request at the service", async {
            while app.connections() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        request.abort();
        drop(http);
        let exchange = patient.exchange().await;
        assert_eq!(exchange["status"], Value::Null, "no answer was sent: {exchange}");
        assert!(exchange["error"].is_string(), "{exchange}");
    }

    /// However the session ends: while it reads, or while it writes what the services say.
    #[tokio::test]
    async fn tells_of_every_exchange_that_the_relays_end_cuts_off() {
        const EXCHANGES: usize = 8;
        let app = App::raw(|mut wire: Wire, _| async move {
            let request = wire.head().await.unwrap();
            if request.starts_with("GET /silent") {
                let _ = wire.rest().await;
                return;
            }
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").await;
            let piece = vec![b'x'; 16 * 1024];
            while wire.try_send(&piece).await.is_ok() {}
        })
        .await;
        for _ in 0..5 {
            let mut relay = RelayServer::spawn(DEFAULTS).await;
            let token = relay.token("me").await;
            let before = app.connections();
            let mut client = relay.client(&token, &app.addr().to_string(), &[]).await;
            let mut reading = tokio::task::JoinSet::new();
            let begun = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
            for n in 0..EXCHANGES {
                let path = if n % 2 == 0 { "silent" } else { "endless" };
                let mut http = public(&relay, client.url()).await;
                let request = Request::get(format!("{}/{path}", client.url())).body(empty()).unwrap();
                let begun = begun.clone();
                reading.spawn(async move {
                    let mut body = http.request(request).await?.into_body();
                    begun.add_permits(1);
                    while body.frame().await.transpose()?.is_some() {}
                    Ok::<_, hyper::Error>(())
                });
            }
            within("the requests at the service", async {
                while app.connections() < before + EXCHANGES {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            let half = u32::try_from(EXCHANGES / 2).unwrap();
            drop(within("the answers that have begun", begun.acquire_many(half)).await.unwrap());
            relay.process.kill().await;
            for _ in 0..EXCHANGES {
                let exchange = within("a line for each exchange", client.exchange()).await;
                let status = if exchange["path"] == "/silent" { Value::Null } else { 200.into() };
                assert_eq!((&exchange["status"], &exchange["error"]), (&status, &"link-lost".into()), "{exchange}");
            }
        }
    }

    #[tokio::test]
    async fn shows_people_the_url_first_and_alone() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::echo().await;
        let (addr, ca, target) =
            (relay.https.to_string(), relay.ca_file().display().to_string(), app.addr().to_string());
        let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let arguments = ["http", &target, "--relay-addr", &addr, "--subdomain", "hooks"];
        let variables = [("RELAY_URL", relay.url.as_str()), ("RELAY_TOKEN", &token), ("RELAY_CA_FILE", &ca)];
        let mut client = Process::spawn_in(home, "relay", arguments, &variables).await;
        let url = client.line().await.unwrap();
        assert_eq!(url, format!("https://hooks.relay.test:{}", relay.https.port()));
        assert!(client.line().await.unwrap().contains(&target));
        let hostile = format!("{url}/a?b=\x7f").replace('\x7f', "~");
        assert_eq!(get(&relay, &hostile).await.code(), 200);
        let line = loop {
            let line = client.line().await.unwrap();
            if line.contains("GET") {
                break line;
            }
        };
        assert!(line.contains("/a?b=~") && line.contains("200") && line.contains("ms"), "{line}");
        assert!(!line.contains('\u{1b}'), "no colours into a pipe: {line:?}");
        let ended = client.terminate().await;
        assert!(!format!("{ended:?}{}", client.said()).contains("rly_"), "a token is not shown");
    }

    #[tokio::test]
    async fn ends_with_a_code_that_says_why() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let (addr, ca) = (relay.https.to_string(), relay.ca_file().display().to_string());
        let way = ["--relay", &relay.url, "--relay-addr", &addr, "--relay-ca", &ca, "--output", "json"];
        let with = |more: &[&'static str]| {
            way.iter().map(|s| (*s).to_owned()).chain(more.iter().map(|s| (*s).to_owned())).collect::<Vec<_>>()
        };
        let closed = relay_tests::app::listener().await.local_addr().unwrap().to_string();
        for (code, what, arguments) in [
            (0, "help", vec!["--help".to_owned()]),
            (2, "no command", vec![]),
            (2, "no target", vec!["http".to_owned()]),
            (2, "no relay", vec!["http".to_owned(), "3000".to_owned()]),
            (2, "an odd timeout", [vec!["http".to_owned(), "3000".to_owned()], with(&["--timeout", "soon"])].concat()),
            (3, "no token", [vec!["http".to_owned(), "3000".to_owned()], with(&[])].concat()),
            (
                3,
                "a wrong token",
                [vec!["http".to_owned(), "3000".to_owned()], with(&["--token", "rly_wrong"])].concat(),
            ),
            (
                5,
                "nobody there",
                ["http", "3000", "--relay", "https://relay.test", "--relay-addr", &closed, "--token", "x"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            (
                5,
                "a relay that nobody vouches for",
                ["http", "3000", "--relay", &relay.url, "--relay-addr", &addr, "--token", "x"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
        ] {
            let ended = run("relay", &arguments).await;
            assert_eq!(ended.code(), code, "{what}: {ended:?}");
            if code != 0 {
                assert_eq!(ended.stdout, "", "{what}");
                assert!(!ended.stderr.is_empty(), "{what} is explained");
            }
        }
    }

    #[tokio::test]
    async fn ends_on_signals_and_when_it_gives_up() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::echo().await;
        let target = app.addr().to_string();
        let mut interrupted = relay.client(&token, &target, &[]).await;
        interrupted.process.signal(Signal::INT);
        assert_eq!(interrupted.process.wait().await.code(), 130);

        let mut patient = relay.client(&token, &target, &["--max-reconnect-time", "300ms"]).await;
        relay.process.kill().await;
        assert_eq!(patient.process.event("session.disconnected").await["retry_in_ms"].as_u64().unwrap() / 1000, 0);
        let ended = patient.process.wait().await;
        assert_eq!(ended.code(), 6, "{ended:?}");
    }

    /// Whoever started it was killed and could not end it. Without a request it has nothing to print.
    #[tokio::test]
    async fn ends_when_its_reader_is_gone() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let arguments = relay.arguments(&token, &["http", "3000", "--output", "json"]);
        let (pipe, pipe_end) = std::io::pipe().unwrap();
        // Node.js gives its children sockets.
        let (socket, socket_end) = std::os::unix::net::UnixStream::pair().unwrap();
        let readers: [(OwnedFd, OwnedFd); 2] = [(pipe.into(), pipe_end.into()), (socket.into(), socket_end.into())];
        for (reader, end) in readers {
            let home = tempfile::tempdir().unwrap();
            let mut client = process::command("relay", home.path()).await;
            client.args(&arguments).kill_on_drop(true);
            let mut child = client.stdout(end).spawn().unwrap();
            // With it goes our own copy of the end that is written to.
            drop(client);
            let mut ready = String::new();
            let mut reader = BufReader::new(tokio::fs::File::from_std(reader.into()));
            within("the first line", reader.read_line(&mut ready)).await.unwrap();
            assert!(ready.contains("tunnel.ready"), "{ready}");
            drop(reader);
            let status = within("the client's end", child.wait()).await.unwrap();
            assert_eq!(status.code(), Some(0));
        }
    }

    /// The relay's machine loses power; its clients come back by themselves, under their names.
    #[tokio::test]
    async fn comes_back_after_the_relay_was_killed() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::echo().await;
        let mut client = relay.client(&token, &app.addr().to_string(), &[]).await;
        let (home, https) = (relay.process.home().clone(), relay.https.to_string());
        relay.process.kill().await;
        client.process.event("session.disconnected").await;
        let relay = RelayServer::spawn_in(home, ["--https", &https]).await;
        let url = client.url().to_owned();
        assert_eq!(send(&relay, Request::post(&url).body(full("again")).unwrap()).await.text(), "again");
        let back = client.process.event("session.reconnected").await;
        assert_eq!(keys(&back), BTreeSet::from(["event", "relay", "after_ms"]));
        assert!((1..30_000).contains(&back["after_ms"].as_u64().unwrap()), "{back}");
        assert_eq!(client.exchange().await["status"], 200);
    }

    /// A random name is remembered for the directory, so that a webhook's settings stay right.
    #[tokio::test]
    async fn has_the_same_random_name_the_next_time() {
        let place = Place::new().await;
        let app = App::echo().await;
        let target = app.addr().to_string();
        let begin = async |more: &[&str]| {
            let words = [&["http", &target, "--output", "json"], more].concat();
            let mut process = place.spawn(place.with_way(&words)).await;
            let name = process.json().await["name"].as_str().unwrap().to_owned();
            (process, name)
        };
        let (mut one, first) = begin(&[]).await;
        one.terminate().await;
        let (_again, second) = begin(&[]).await;
        assert_eq!(first, second);
        let (_random, third) = begin(&["--random"]).await;
        let (_beside, fourth) = begin(&[]).await;
        assert_eq!(BTreeSet::from([first, third, fourth]).len(), 3, "those that run beside it get others");
    }
}

mod relay_dev {
    use super::*;

    /// The first thing that anybody tries.
    #[tokio::test]
    async fn prints_a_url_and_a_curl_line_that_works_as_pasted() {
        let mut dev = Process::spawn("relay", ["dev", "--https", "127.0.0.1:0"]).await;
        let url = dev.line().await.unwrap();
        assert!(url.starts_with("https://app.relay.localhost:"), "{url}");
        assert!(dev.line().await.unwrap().contains("a demo app answers"));
        let line = loop {
            let line = dev.line().await.unwrap();
            if line.trim_start().starts_with("curl ") {
                break line;
            }
        };
        assert!(line.contains("--cacert"), "{line}");
        let page = shell(&format!("{line} --silent --show-error")).await;
        assert!(page.contains("reached the demo app"), "{page}");
        assert_eq!(dev.listeners(), 2, "the relay's and the inspector's, and none of the demo app");
        loop {
            let line = dev.line().await.unwrap();
            if line.contains("GET") {
                assert!(line.contains("200"), "{line}");
                break;
            }
        }
        assert_eq!(dev.terminate().await.code(), 143);
    }

    #[tokio::test]
    async fn serves_the_users_own_port_under_the_name_asked_for() {
        let app = App::recording().await;
        let target = app.addr().to_string();
        let arguments = ["dev", &target, "--https", "127.0.0.1:0", "--subdomain", "hooks", "--output", "json"];
        let mut dev = RelayClient::spawn(arguments).await;
        let ca = dev.ready["ca_file"].as_str().unwrap().to_owned();
        let local = dev.ready["local_url"].as_str().unwrap().to_owned();
        let port = local.strip_prefix("https://localhost:").unwrap();
        assert_eq!(dev.url(), format!("https://hooks.relay.localhost:{port}"));
        assert_eq!(shell(&format!("curl -sS --cacert '{ca}' -d x {local}/local")).await, "ok");
        let public = format!("{}/public", dev.url());
        // Some TLS libraries refuse certificates for names below localhost; ours does not.
        let url = dev.url().to_owned();
        let host = url.strip_prefix("https://").unwrap();
        let addr = format!("127.0.0.1:{port}").parse().unwrap();
        let mut http = Http::one(connect_tls(addr, host, Path::new(&ca), &[b"http/1.1"]).await).await;
        assert_eq!(http.answer(Request::get(&public).body(empty()).unwrap()).await.text(), "ok");
        let paths: Vec<_> = app.seen().iter().map(|seen| seen.target.clone()).collect();
        assert_eq!(paths, ["/local", "/public"]);
        assert_eq!(dev.exchange().await["path"], "/local");
        let key = std::fs::metadata(Path::new(&ca).with_file_name("ca.key")).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o077, 0, "the CA's key is private");
    }

    #[tokio::test]
    async fn keeps_its_ca() {
        let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let mut cas = Vec::new();
        for _ in 0..2 {
            let arguments = ["dev", "--https", "127.0.0.1:0", "--output", "json"];
            let mut dev = Process::spawn_in(home.clone(), "relay", arguments, &[]).await;
            let ready = dev.json().await;
            cas.push(std::fs::read(ready["ca_file"].as_str().unwrap()).unwrap());
            dev.terminate().await;
        }
        assert!(cas[0] == cas[1], "to be trusted once");
    }

    #[tokio::test]
    async fn says_which_port_is_taken() {
        let taken = relay_tests::app::listener().await;
        let addr = taken.local_addr().unwrap().to_string();
        let ended = run("relay", ["dev", "--https", &addr]).await;
        assert_eq!(ended.code(), 1);
        assert!(ended.stderr.contains(&addr), "{ended:?}");
    }
}

mod relay_server {
    use super::*;

    #[tokio::test]
    async fn token_create_prints_the_token_and_nothing_else() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let made = relay.token_command(&["create", "alice", "--reserve", "hooks", "--expires", "30d"]).await;
        assert_eq!(made.code(), 0, "{made:?}");
        let token = made.stdout.strip_suffix('\n').unwrap();
        assert!(token.starts_with("rly_") && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{token}");
        assert!(!made.stderr.contains("rly_"));
        let list = relay.token_command(&["list", "--output", "json"]).await;
        let listed: Value = serde_json::from_str(list.stdout.trim()).unwrap();
        assert!(list.stdout.contains("alice") && list.stdout.contains("hooks"), "{listed}");
        assert!(!list.stdout.contains(token));
        for file in std::fs::read_dir(relay.data_dir()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap_or_default();
            let found = bytes.windows(token.len()).any(|window| window == token.as_bytes());
            assert!(!found, "the token stands in {}", path.display());
        }
        let twice = relay.token_command(&["create", "alice"]).await;
        assert_eq!((twice.code(), twice.stdout.as_str()), (1, ""), "{twice:?}");
        assert!(twice.stderr.contains("alice"), "{twice:?}");
    }

    #[tokio::test]
    async fn tells_of_its_health_and_its_figures() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let release = std::sync::Arc::new(tokio::sync::Notify::new());
        let wait = release.clone();
        let app = App::serve(move |request| {
            let wait = wait.clone();
            async move {
                if request.uri().path() == "/slow" {
                    wait.notified().await;
                }
                ok("done")
            }
        })
        .await;
        let client = relay.client(&token, &app.addr().to_string(), &[]).await;
        assert_eq!(get(&relay, client.url()).await.text(), "done");
        let admin = relay.admin.unwrap();
        let ask = |path: &'static str| async move {
            let mut http = Http::one(tokio::net::TcpStream::connect(admin).await.unwrap()).await;
            http.answer(Request::get(format!("http://{admin}{path}")).body(empty()).unwrap()).await
        };
        assert_eq!(ask("/healthz").await.code(), 200);
        assert_eq!(ask("/readyz").await.code(), 200);
        assert_eq!(ask("/nothing").await.code(), 404);
        let metrics = ask("/metrics").await;
        assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
        for figure in ["sessions 1", "tunnels 1", "panics_total 0"] {
            assert!(metrics.text().lines().any(|line| line.ends_with(figure)), "{figure}: {}", metrics.text());
        }

        // A drain: not ready, no new connections, what is under way ends well, and the exit code says so.
        let mut http = public(&relay, client.url()).await;
        let answer = http.begin(Request::get(format!("{}/slow", client.url())).body(empty()).unwrap());
        app.reached(2).await;
        relay.process.signal(Signal::TERM);
        relay.process.error_line("shutting down").await;
        within("readiness to end", async {
            while ask("/readyz").await.code() != 503 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        within("the listener to close", async {
            while tokio::net::TcpStream::connect(relay.https).await.is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        release.notify_one();
        assert_eq!(within("an answer", answer).await.unwrap().text(), "done");
        let ended = relay.process.wait().await;
        assert_eq!(ended.code(), 0, "{ended:?}");
    }

    #[tokio::test]
    async fn logs_a_line_of_json_for_each_exchange() {
        let mut relay = RelayServer::spawn(DEFAULTS).await;
        let token = relay.token("me").await;
        let app = App::recording().await;
        let client = relay.client(&token, &app.addr().to_string(), &["--subdomain", "hooks"]).await;
        let target = "/a\\\"b'?x=<%0a%1b[31m>".replace(['<', '>', '"'], "");
        assert_eq!(
            send(&relay, Request::post(format!("{}{target}", client.url())).body(full("12345")).unwrap()).await.code(),
            200
        );
        let line: Value = serde_json::from_str(&relay.process.error_line("\"exchange\"").await).unwrap();
        assert_eq!((&line["target"], &line["method"]), (&target.into(), &"POST".into()));
        assert_eq!(line["id"], app.only().header("relay-request-id"));
        assert_eq!((&line["status"], &line["received"], &line["sent"]), (&200.into(), &5.into(), &2.into()));
        assert_eq!((&line["remote"], &line["error"]), (&"127.0.0.1".into(), &Value::Null));
        assert!(line["host"].as_str().unwrap().starts_with("hooks.relay.test"), "{line}");

        // Bytes of UTF-8 that no terminal should see, as a stranger may send them.
        let host = client.url().strip_prefix("https://").unwrap().to_owned();
        let mut wire = Wire::new(connect_tls(relay.https, &host, &relay.ca_file(), &[b"http/1.1"]).await);
        wire.send(format!("GET /\u{202e}\u{9b}31m HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        if wire.message().await.unwrap().status() == 200 {
            let line = relay.process.error_line("\"exchange\"").await;
            assert!(line.is_ascii() || !line.contains(['\u{202e}', '\u{9b}']), "{line:?}");
            serde_json::from_str::<Value>(&line).unwrap();
        }
    }

    #[tokio::test]
    async fn logs_a_line_of_text_for_each_exchange() {
        let mut relay = RelayServer::spawn(["--log", "text"]).await;
        let token = relay.token("me").await;
        let app = App::recording().await;
        let client = relay.client(&token, &app.addr().to_string(), &["--subdomain", "hooks"]).await;
        assert_eq!(get(&relay, &format!("{}/a?b=c", client.url())).await.code(), 200);
        let line = relay.process.error_line("/a?b=c").await;
        let id = app.only().header("relay-request-id").to_owned();
        for part in [id.as_str(), " 127.0.0.1 GET hooks.relay.test", " 200 "] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let unknown = client.url().replace("hooks", "nobody");
        assert_eq!(get(&relay, &format!("{unknown}/x")).await.code(), 404);
        assert!(relay.process.error_line("/x").await.ends_with("tunnel-not-found"));
    }

    /// Behind a proxy that terminates TLS, its word about the sender counts, and nobody else's.
    #[tokio::test]
    async fn believes_the_proxies_that_it_was_told_to_trust() {
        let app = App::recording().await;
        for trusted in [true, false] {
            let network = if trusted { "127.0.0.0/8" } else { "10.0.0.0/8" };
            let relay = RelayServer::spawn(["--http-mode", "serve", "--trusted-proxy", network]).await;
            let token = relay.token("me").await;
            let _client = relay.client(&token, &app.addr().to_string(), &["--subdomain", "hooks"]).await;
            let mut wire = Wire::new(tokio::net::TcpStream::connect(relay.http.unwrap()).await.unwrap());
            wire.send(
                "POST /a HTTP/1.1\r\nHost: hooks.relay.test\r\nContent-Length: 2\r\nX-Forwarded-Proto: https\r\n",
            )
            .await;
            wire.send("X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 6.6.6.6\r\n\r\nhi")
                .await;
            assert_eq!(wire.message().await.unwrap().status(), 200);
            let seen = app.last();
            assert_eq!((&seen.body[..], seen.header("x-forwarded-host")), (&b"hi"[..], "hooks.relay.test"));
            if trusted {
                assert_eq!(seen.header("x-forwarded-for"), "198.51.100.9, 203.0.113.7, 127.0.0.1");
                assert_eq!((seen.header("x-real-ip"), seen.header("x-forwarded-proto")), ("203.0.113.7", "https"));
            } else {
                assert_eq!(seen.header("x-forwarded-for"), "127.0.0.1");
                assert_eq!((seen.header("x-real-ip"), seen.header("x-forwarded-proto")), ("127.0.0.1", "http"));
            }
        }
    }

    #[tokio::test]
    async fn explains_a_configuration_that_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay-server.toml");
        let shown = file.display().to_string();
        for (text, hint) in [
            ("domain = \"relay.example.com\"\nhtttp = \"off\"\n", "htttp"),
            ("domain = \"relay.example.com\"\nhttps = \"127.0.0.1:0\"\n[limits]\nhead = \"soon\"\n", "limits.head"),
            ("https = \"127.0.0.1:0\"\n", "--domain"),
            ("domain = \"relay.example.com\"\nhttps = \"0.0.0.0:443\"\n", "--cert"),
        ] {
            std::fs::write(&file, text).unwrap();
            let ended = run("relay-server", ["check-config", "--config", &shown]).await;
            assert_ne!(ended.code(), 0, "{text}");
            assert!(ended.stderr.contains(hint), "{text}: {ended:?}");
        }
        std::fs::write(&file, "domain = \"relay.example.com\"\nhttps = \"127.0.0.1:0\"\n").unwrap();
        assert_eq!(run("relay-server", ["check-config", "--config", &shown]).await.code(), 0);
    }

    #[tokio::test]
    async fn is_alone_on_its_data() {
        let relay = RelayServer::spawn(DEFAULTS).await;
        let data = relay.data_dir().display().to_string();
        let arguments =
            ["serve", "--domain", "relay.test", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off"];
        let second = run("relay-server", [&arguments[..], &["--data-dir", &data]].concat()).await;
        assert_ne!(second.code(), 0);
        assert!(second.stderr.contains(&data), "{second:?}");
        relay.token("still-there").await;
    }
}

/// What passes through stays out of memory.
#[tokio::test]
async fn large_bodies_pass_in_bounded_memory() {
    const TOTAL: usize = 96 << 20;
    let relay = RelayServer::spawn(DEFAULTS).await;
    let token = relay.token("me").await;
    let app = App::serve(|request| async move {
        let mut body = request.into_body();
        let mut size = 0;
        while let Some(Ok(frame)) = body.frame().await {
            size += frame.into_data().map_or(0, |bytes| bytes.len());
        }
        ok(size.to_string())
    })
    .await;
    let client = relay.client(&token, &app.addr().to_string(), &[]).await;
    let mut http = public(&relay, client.url()).await;
    let (feed, body) = relay_tests::body::pipe();
    let answer = http.begin(Request::post(client.url()).body(body).unwrap());
    let piece = relay_tests::body::noise(1 << 20);
    for _ in 0..TOTAL / piece.len() {
        assert!(feed.send(piece.clone()).await);
    }
    drop(feed);
    assert_eq!(within("an answer", answer).await.unwrap().text(), TOTAL.to_string());
    for (name, process) in [("relay-server", &relay.process), ("relay", &client.process)] {
        let peak = process.peak() >> 20;
        assert!(peak < 48, "{name} took {peak} MiB for a body of {} MiB", TOTAL >> 20);
    }
}
