//! `relay wait` and `relay status`: what other processes of the same user learn of a running client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use http::Request;
use relay_tests::app::ok;
use relay_tests::body::{full, pipe};
use relay_tests::process::Ended;
use relay_tests::world::connect_tls;
use relay_tests::{App, Http, PATIENCE, Place, Process, RelayServer, within};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

async fn connect(place: &Place) -> Http {
    let host = format!("hooks.{}", RelayServer::DOMAIN);
    Http::two(connect_tls(place.relay.https, &host, &place.relay.ca_file(), &[b"h2"]).await).await
}

fn request(place: &Place, target: &str, body: impl Into<bytes::Bytes>) -> Request<relay_tests::Body> {
    place.request("hooks", Request::post(target).header("x-kind", "test").body(full(body)).unwrap())
}

fn sockets(place: &Place) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(place.home.path().join("relay"));
    directory.map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}

fn paths(ended: &Ended) -> Vec<String> {
    ended.lines().iter().map(|line| line["path"].as_str().unwrap().to_owned()).collect()
}

mod relay_wait {
    use super::*;

    #[tokio::test]
    async fn prints_what_has_come_and_says_what_was_near() {
        let place = Place::new().await;
        let app = App::echo().await;
        let _client = place.client(&app, "hooks", &[]).await;
        assert_eq!(
            connect(&place)
                .await
                .answer(request(&place, "/hooks?a=1", "{\"type\":\"invoice.paid\",\"n\":1}"))
                .await
                .code(),
            200
        );
        let words =
            ["wait", "--path", "/hooks", "--method", "post", "--header", "X-Kind: test", "--header", "content-length"];
        let ended = place.run(&[&words[..], &["--json", "/type=invoice.paid", "--json", "/n=1"]].concat()).await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        let [request] = &ended.lines()[..] else { panic!("{ended:?}") };
        let mut keys: Vec<_> = request.as_object().unwrap().keys().collect();
        keys.sort();
        let fields = ["body", "body_size", "body_truncated", "event", "headers", "id", "method", "path", "status"];
        assert_eq!(keys, fields);
        assert_eq!((&request["event"], &request["method"]), (&"request".into(), &"POST".into()));
        assert_eq!((&request["path"], &request["status"]), (&"/hooks?a=1".into(), &200.into()));
        assert_eq!(request["body"], "{\"type\":\"invoice.paid\",\"n\":1}");
        let host = format!("hooks.{}:{}", RelayServer::DOMAIN, place.relay.https.port());
        assert_eq!(request["headers"][0], json!(["host", host]));

        let ended = place.run(&["wait", "--json", "/type=invoice.created", "--within", "1s", "--count", "2"]).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (1, ""), "{ended:?}");
        for said in ["0 of 2 such requests arrived within 1s, and 1 other", "its /type is \"invoice.paid\""] {
            assert!(ended.stderr.contains(said), "{said}: {ended:?}");
        }
        // Some is not enough, and is printed all the same.
        let ended = place.run(&["wait", "--within", "1s", "--count", "2"]).await;
        assert_eq!((ended.code(), ended.lines().len()), (1, 1), "{ended:?}");
        assert!(ended.stderr.contains("1 of 2"), "{ended:?}");
    }

    #[tokio::test]
    async fn counts_what_comes_while_it_waits() {
        let place = Place::new().await;
        let app = App::echo().await;
        let mut client = place.client(&app, "hooks", &[]).await;
        place.post("hooks", "/before", "").await;
        let id = client.process.event("exchange").await["id"].as_str().unwrap().to_owned();
        let mut waits = Vec::new();
        for since in ["now", &id, "1h"] {
            let mut wait = place.spawn(&["wait", "--count", "2", "--since", since]).await;
            wait.error_line("waiting for requests to https://hooks.").await;
            waits.push(wait);
        }
        place.post("hooks", "/one", "").await;
        place.post("hooks", "/two", &b"\xff\x00"[..]).await;
        let expected = [["/one", "/two"], ["/one", "/two"], ["/before", "/one"]];
        for (mut wait, expected) in waits.into_iter().zip(expected) {
            let ended = wait.wait().await;
            assert_eq!((ended.code(), paths(&ended)), (0, expected.map(str::to_owned).to_vec()), "{ended:?}");
        }
        let ended = place.run(&["wait", "--path", "/two"]).await;
        assert_eq!(ended.lines()[0]["body_base64"], "/wA=");
        assert_eq!(client.process.terminate().await.code(), 143);
    }

    /// Requests arrive all the time while it looks at what is kept and begins to listen: each is seen, and once.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn loses_nothing_between_what_is_kept_and_what_comes() {
        const ALL: usize = 300;
        let place = Place::new().await;
        let app = App::echo().await;
        let _client = place.client(&app, "hooks", &[]).await;
        let count = ALL.to_string();
        let mut waits = Vec::new();
        let mut http = connect(&place).await;
        for round in 0..ALL / 50 {
            let under_way: Vec<_> =
                (0..50).map(|i| http.begin(request(&place, &format!("/{round}/{i}"), "{\"n\":1}"))).collect();
            waits.push(place.spawn(&["wait", "--json", "/n=1", "--count", &count]).await);
            for answer in under_way {
                assert_eq!(answer.await.unwrap().code(), 200);
            }
        }
        for mut wait in waits {
            let ended = wait.wait().await;
            let seen: HashSet<_> = paths(&ended).into_iter().collect();
            assert_eq!((ended.code(), seen.len()), (0, ALL), "{ended:?}");
        }
    }

    #[tokio::test]
    async fn watches_all_clients_or_one_tunnel() {
        let place = Place::new().await;
        let app = App::echo().await;
        let (mut one, _two) = (place.client(&app, "one", &[]).await, place.client(&app, "two", &[]).await);
        place.post("one", "/a", "").await;
        place.post("two", "/b", "").await;
        let ended = place.run(&["wait", "--count", "2"]).await;
        let seen: HashSet<_> = paths(&ended).into_iter().collect();
        assert_eq!(seen, HashSet::from(["/a".to_owned(), "/b".to_owned()]), "{ended:?}");
        let ended = place.run(&["wait", "--tunnel", "two"]).await;
        assert_eq!(paths(&ended), ["/b"]);
        let ended = place.run(&["wait", "--tunnel", "three"]).await;
        assert_eq!(ended.code(), 1);
        assert!(ended.stderr.contains("no running client has a tunnel three; there are "), "{ended:?}");

        // One that is stopped is told of, and holds up nobody.
        one.process.signal(Signal::STOP);
        let ended = place.run(&["wait"]).await;
        assert_eq!((ended.code(), paths(&ended)), (0, vec!["/b".to_owned()]), "{ended:?}");
        assert!(
            ended.stderr.contains(&format!("the client of process {} does not answer", one.process.pid())),
            "{ended:?}"
        );
        one.process.signal(Signal::CONT);
        let mut wait = place.spawn(&["wait", "--tunnel", "one", "--since", "now"]).await;
        wait.error_line("waiting for").await;
        one.process.terminate().await;
        let ended = wait.wait().await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("the client has ended"), "{ended:?}");
    }

    /// A test that is over quickly has sent its last webhook just before the client ends.
    #[tokio::test]
    async fn sees_the_last_requests_of_a_client_that_ends() {
        let place = Place::new().await;
        let app = App::echo().await;
        std::fs::write(place.home.path().join("body"), vec![b'x'; 700_000]).unwrap();
        std::fs::write(place.home.path().join("go"), "").unwrap();
        let upstream = app.upstream().to_string();
        let script = "while test -e go; do sleep 0.02; done; curl -sS --fail -o /dev/null --cacert $RELAY_CA_FILE \
                      --connect-to ::$ADDR --data-binary @body $RELAY_PUBLIC_URL/[1-4]";
        let script = script.replace("$ADDR", &place.relay.https.to_string());
        let words = ["run", &upstream, "--subdomain", "hooks", "--", "sh", "-c", &script];
        let mut client = place.spawn(place.with_way(&words)).await;
        client.error_line("https://hooks.").await;
        let mut wait = place.spawn(&["wait", "--count", "4"]).await;
        wait.error_line("waiting for").await;
        std::fs::remove_file(place.home.path().join("go")).unwrap();
        assert_eq!(client.wait().await.code(), 0, "{}", client.said());
        let ended = wait.wait().await;
        assert_eq!((ended.code(), paths(&ended)), (0, ["/1", "/2", "/3", "/4"].map(str::to_owned).to_vec()));

        // One that does not read is left behind.
        let mut client = place.client(&app, "hooks", &[]).await;
        let mut wait = place.spawn(&["wait", "--count", "5"]).await;
        wait.error_line("waiting for").await;
        wait.signal(Signal::STOP);
        for _ in 0..4 {
            assert_eq!(place.post("hooks", "/", vec![b'x'; 700_000]).await.code(), 200);
        }
        assert_eq!(client.process.terminate().await.code(), 143);
        wait.signal(Signal::CONT);
        let ended = wait.wait().await;
        assert!(ended.code() == 1 && ended.stderr.contains("the client has ended"), "{}", ended.stderr);
    }

    #[tokio::test]
    async fn is_told_where_a_client_is_watched_by_too_many() {
        let place = Place::new().await;
        let app = App::echo().await;
        let _client = place.client(&app, "hooks", &[]).await;
        let socket = sockets(&place).remove(0);
        let mut watching = Vec::new();
        for _ in 0..64 {
            let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
            let question = b"{\"version\":1,\"ask\":\"requests\",\"since\":{\"from\":\"now\"}}\n";
            stream.write_all(question).await.unwrap();
            let mut status = String::new();
            within("an answer", stream.read_line(&mut status)).await.unwrap();
            assert!(status.contains("https://hooks."), "{status}");
            watching.push(stream);
        }
        let ended = place.run(&["wait", "--within", "10s"]).await;
        assert!(ended.code() == 1 && ended.stderr.contains("64 others watch it already"), "{ended:?}");
        let ended = place.run(&["status"]).await;
        assert!(ended.stdout.contains("https://hooks."), "how it is, it tells all the same: {ended:?}");
        place.post("hooks", "/", "").await;
        watching.pop();
        let room = async { while place.run(&["wait", "--within", "10s"]).await.code() != 0 {} };
        tokio::time::timeout(PATIENCE, room).await.expect("who has gone makes room");
    }

    #[tokio::test]
    async fn counts_a_request_that_nobody_answers_in_time() {
        let place = Place::new().await;
        let app = App::serve(|_| async {
            std::future::pending::<()>().await;
            ok("")
        })
        .await;
        let _client = place.client(&app, "hooks", &[]).await;
        let mut http = connect(&place).await;
        // It is whole when as much has come as it says, whether or not its end has come, too.
        let (body, rest) = pipe();
        let mut request = request(&place, "/hangs", "").map(|_| rest);
        request.headers_mut().insert("content-length", "4".parse().unwrap());
        let _hangs = http.begin(request);
        app.reached(1).await;
        assert!(body.send("body").await);
        let ended = place.run(&["wait", "--path", "/hangs", "--within", "2s"]).await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        let request = &ended.lines()[0];
        assert_eq!((&request["status"], &request["body"]), (&Value::Null, &"body".into()));
        assert_eq!(request["body_truncated"], false);
    }

    #[tokio::test]
    async fn shows_the_beginning_of_a_large_body_and_the_client_stays_small() {
        let place = Place::new().await;
        let app = App::echo().await;
        let client = place.client(&app, "hooks", &[]).await;
        println!("resident while idle: {} KiB", client.process.resident() / 1024);
        let mut http = connect(&place).await;
        let large = vec![b'x'; (1 << 20) + 5];
        for _ in 0..4 {
            http.answer(request(&place, "/large", large.clone())).await;
        }
        let before = client.process.resident();
        for _ in 0..100 {
            http.answer(request(&place, "/large", large.clone())).await;
        }
        let grown = client.process.resident().saturating_sub(before);
        println!("grown by {} KiB after 100 MiB", grown / 1024);
        assert!(grown < 64 << 20, "{grown}");
        let ended = place.run(&["wait", "--path", "/large"]).await;
        let request = &ended.lines()[0];
        assert_eq!(request["body"].as_str().unwrap().len(), 1 << 20);
        assert_eq!((&request["body_size"], &request["body_truncated"]), (&((1 << 20) + 5).into(), &true.into()));
        assert!(ended.code() == 0);
    }

    #[tokio::test]
    async fn finds_nothing_where_nothing_is_kept() {
        let place = Place::new().await;
        let app = App::echo().await;
        let _client = place.client(&app, "hooks", &["--inspect", "off"]).await;
        place.post("hooks", "/", "").await;
        let ended = place.run(&["wait", "--within", "10s"]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("--inspect off"), "{ended:?}");
        let ended = place.run(&["status"]).await;
        assert!(ended.code() == 0 && ended.stdout.contains("https://hooks."), "{ended:?}");
    }

    /// The probe of `relay run` is the client's own, and no request of anybody.
    #[tokio::test]
    async fn does_not_see_the_probe() {
        let place = Place::new().await;
        let app = App::echo().await;
        let upstream = app.upstream().to_string();
        let relay = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("relay").display().to_string();
        let words = ["run", &upstream, "--subdomain", "hooks", "--", &relay, "wait", "--within", "1s"];
        let ended = place.spawn(place.with_way(&words)).await.wait().await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("0 of 1 such requests arrived within 1s, and no other"), "{ended:?}");
    }

    #[tokio::test]
    async fn opens_a_tunnel_of_its_own_where_no_client_runs() {
        let place = Place::new().await;
        let ended = place.run(&["wait"]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("relay http 3000") && ended.stderr.contains("--relay"), "{ended:?}");
        let mut words = place.with_way(&["wait", "--subdomain", "own", "--path", "/hooks*"]);
        let mut wait = place.spawn(&words).await;
        wait.error_line("https://own.").await;
        assert_eq!(place.post("own", "/other", "").await.code(), 200);
        assert_eq!(place.post("own", "/hooks/1", "body").await.code(), 200);
        let ended = wait.wait().await;
        assert_eq!((ended.code(), paths(&ended)), (0, vec!["/hooks/1".to_owned()]), "{ended:?}");
        assert_eq!((&ended.lines()[0]["status"], &ended.lines()[0]["body"]), (&200.into(), &"body".into()));

        words.extend(["--within", "300ms"].map(str::to_owned));
        let ended = place.spawn(&words).await.wait().await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("0 of 1 such requests arrived within 300ms"), "{ended:?}");
        let mut wait = place.spawn(&words[..words.len() - 2]).await;
        wait.error_line("https://own.").await;
        assert_eq!(wait.terminate().await.code(), 143);
        assert!(sockets(&place).is_empty());

        // Where running clients cannot be looked for, too.
        let directory = place.home.path().join("relay");
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        let ended = place.run(&["wait"]).await;
        assert!(ended.code() == 1 && ended.stderr.contains("chmod 700"), "{ended:?}");
        let mut wait = place.spawn(place.with_way(&["wait", "--path", "/late"])).await;
        wait.error_line("running clients cannot be watched: ").await;
        wait.error_line("connecting to").await;
        let line = wait.error_line("https://").await;
        let name = line.split_once("https://").unwrap().1.split('.').next().unwrap();
        assert_eq!(place.post(name, "/late", "").await.code(), 200);
        let ended = wait.wait().await;
        assert_eq!((ended.code(), paths(&ended)), (0, vec!["/late".to_owned()]), "{ended:?}");
    }

    #[tokio::test]
    async fn says_what_it_does_not_understand() {
        let place = Place::new().await;
        for (words, hint) in [
            (["--json", "type=x"], "JSON pointer"),
            (["--json", "/a~=x"], "JSON pointer"),
            (["--json", "/type"], "POINTER=VALUE"),
            (["--path", "hooks"], "slash"),
            (["--header", "a b: c"], "Name: value"),
            (["--since", "yesterday"], "now"),
            (["--count", "0"], "1..=1000"),
            (["--within", "30"], "30s"),
        ] {
            let ended = place.run(&[&["wait"], &words[..]].concat()).await;
            assert_eq!(ended.code(), 2, "{ended:?}");
            assert!(ended.stderr.contains(hint), "{hint}: {ended:?}");
        }
    }
}

mod relay_status {
    use super::*;

    #[tokio::test]
    async fn tells_of_each_client_and_its_state() {
        let mut place = Place::new().await;
        let ended = place.run(&["status"]).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (0, ""));
        assert!(ended.stderr.contains("no client of this user runs"), "{ended:?}");
        let app = App::echo().await;
        let mut client = place.client(&app, "hooks", &[]).await;
        place.post("hooks", "/", "").await;
        client.process.event("exchange").await;

        let [status] = &place.json(&["status"]).await[..] else { panic!("not one") };
        assert_eq!((&status["pid"], &status["state"]), (&client.process.pid().into(), &"connected".into()));
        assert_eq!((&status["relay"], &status["requests"]), (&place.relay.url.as_str().into(), &1.into()));
        assert_eq!((&status["reason"], &status["retry_in_ms"]), (&Value::Null, &Value::Null));
        assert!(status["last_heard_ms"].as_u64().unwrap() < 30_000, "{status}");
        assert!(status["since"].as_str() <= status["connected_since"].as_str(), "{status}");
        let tunnels = &status["tunnels"];
        assert_eq!((&tunnels[0]["name"], tunnels.as_array().unwrap().len()), (&"hooks".into(), 1));
        assert_eq!(tunnels[0]["upstream"], app.upstream().to_string());
        let ended = place.run(&["status"]).await;
        for said in
            [format!("process {}", client.process.pid()), "connected for".to_owned(), "https://hooks.".to_owned()]
        {
            assert!(ended.code() == 0 && ended.stdout.contains(&said), "{said}: {ended:?}");
        }

        place.relay.process.kill().await;
        client.process.event("session.disconnected").await;
        let [status] = &place.json(&["status"]).await[..] else { panic!("not one") };
        assert_eq!((&status["state"], &status["connected_since"]), (&"reconnecting".into(), &Value::Null));
        assert!(status["reason"].is_string() && status["retry_in_ms"].is_number(), "{status}");
        client.process.terminate().await;
        assert!(sockets(&place).is_empty());
    }

    #[tokio::test]
    async fn a_socket_is_private_and_goes_with_its_client() {
        let place = Place::new().await;
        let app = App::echo().await;
        let mut client = place.client(&app, "hooks", &[]).await;
        let [socket] = &sockets(&place)[..] else { panic!("{:?}", sockets(&place)) };
        let name = socket.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with(&format!("{}-", client.process.pid())) && name.ends_with(".sock"), "{name}");
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(socket), mode(socket.parent().unwrap())), (0o600, 0o700));
        client.process.kill().await;
        assert_eq!(sockets(&place).len(), 1, "nobody could remove it");
        let ended = place.run(&["status"]).await;
        assert!(ended.code() == 0 && ended.stdout.is_empty(), "{ended:?}");
        assert!(sockets(&place).is_empty(), "whoever finds it does");

        // A directory that others can reach is not used, and the tunnel works all the same.
        let directory = place.home.path().join("relay");
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        let mut client = place.client(&app, "hooks", &["--takeover"]).await;
        client.process.error_line("chmod 700").await;
        assert_eq!(place.post("hooks", "/", "").await.code(), 200);
        let ended = place.run(&["status"]).await;
        assert!(ended.code() == 1 && ended.stderr.contains("chmod 700"), "{ended:?}");
    }

    /// As after `sudo -E`, which leaves the variable as it was.
    #[tokio::test]
    async fn a_runtime_directory_of_another_user_is_left_alone() {
        let place = Place::new().await;
        let app = App::echo().await;
        let runtime = place.home.path().join("runtime");
        std::fs::create_dir(&runtime).unwrap();
        std::os::unix::fs::chown(&runtime, Some(65534), None).unwrap();
        let words = place.with_way(&["http", &app.upstream().to_string(), "--subdomain", "hooks"]);
        let variables = [("XDG_RUNTIME_DIR", runtime.to_str().unwrap())];
        let mut client = Process::spawn_in(place.home.clone(), "relay", &words, &variables).await;
        client.line().await;
        let ended = Process::spawn_in(place.home.clone(), "relay", ["status"], &variables).await.wait().await;
        assert!(ended.code() == 0 && ended.stdout.contains("https://hooks."), "{ended:?}");
        assert_eq!(std::fs::read_dir(&runtime).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(place.home.path().join(".local/state/relay/clients")).unwrap().count(), 1);
    }

    /// In containers that share a home.
    #[tokio::test]
    async fn clients_of_the_same_process_number_are_told_apart() {
        let place = Place::new().await;
        let app = App::echo().await;
        let relay = relay_tests::process::binary("relay").await.display().to_string();
        let upstream = app.upstream().to_string();
        let mut clients = Vec::new();
        for name in ["one", "two"] {
            let relay = ["--pid", "--fork", "--kill-child", &relay].map(str::to_owned).into_iter();
            let words = relay.chain(place.with_way(&["http", &upstream, "--subdomain", name, "--output", "json"]));
            let mut client = Process::spawn_in(place.home.clone(), "/usr/bin/unshare", words, &[]).await;
            assert_eq!(client.json().await["name"], name);
            clients.push(client);
        }
        let both = place.json(&["status"]).await;
        let told: Vec<_> = both.iter().map(|status| (&status["pid"], &status["tunnels"][0]["name"])).collect();
        let (one, two) = ((&1.into(), &"one".into()), (&1.into(), &"two".into()));
        assert!(told == [one, two] || told == [two, one], "{told:?}");
        for client in &mut clients {
            client.kill().await;
        }
        // A process of that number runs here, too, and it is not theirs.
        let gone = async {
            while !sockets(&place).is_empty() {
                place.run(&["status"]).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("what they have left behind is removed");
    }

    #[tokio::test]
    async fn those_that_do_not_answer_are_waited_for_together() {
        let place = Place::new().await;
        let app = App::echo().await;
        let _client = place.client(&app, "hooks", &[]).await;
        place.post("hooks", "/", "").await;
        let directory = place.home.path().join("relay");
        let silent =
            |pid: u32| std::os::unix::net::UnixListener::bind(directory.join(format!("{pid}-0.sock"))).unwrap();
        let _silent: Vec<_> = (1..=10).map(silent).collect();
        let began = Instant::now();
        let ended = place.run(&["status"]).await;
        let took = began.elapsed();
        assert!(ended.stdout.contains("https://hooks."), "{ended:?}");
        assert_eq!(ended.stderr.matches("does not answer").count(), 10, "{ended:?}");
        assert!(took < Duration::from_secs(15), "one after another they take 20 s: {took:?}");
        let ended = place.run(&["wait", "--count", "2", "--within", "1s"]).await;
        assert!(ended.code() == 1 && ended.stderr.contains("1 of 2 such requests arrived within 1s"), "{ended:?}");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_for_a_socket_is_told() {
        let place = Place::new().await;
        let app = App::echo().await;
        let runtime = place.home.path().join("x".repeat(100));
        std::fs::create_dir(&runtime).unwrap();
        let words = place.with_way(&["http", &app.upstream().to_string(), "--subdomain", "hooks"]);
        let variables = [("XDG_RUNTIME_DIR", runtime.to_str().unwrap())];
        let mut client = Process::spawn_in(place.home.clone(), "relay", &words, &variables).await;
        client.error_line("XDG_RUNTIME_DIR to a directory of yours with a shorter path").await;
        client.line().await;
        assert_eq!(place.post("hooks", "/", "").await.code(), 200);
    }

    /// Whatever has a tunnel is there.
    #[tokio::test]
    async fn every_command_with_a_tunnel_is_shown() {
        let place = Place::new().await;
        let file =
            "[tunnels.web]\nupstream = 3000\nsubdomain = 'web'\n[tunnels.api]\nupstream = 3001\nsubdomain = 'api'\n";
        std::fs::write(place.home.path().join("relay.toml"), file).unwrap();
        let mut running = Vec::new();
        for words in [
            &["listen", "--subdomain", "bin", "--output", "json"][..],
            &["start", "--output", "json"],
            &["run", "3000", "--subdomain", "run", "--events", "events", "--", "sleep", "3600"],
        ] {
            running.push(place.spawn(place.with_way(words)).await);
        }
        running.push(place.spawn(["dev", "--https", "0", "--output", "json"]).await);
        let all = ["api", "app", "bin", "run", "web"];
        let shown = async {
            loop {
                let clients = place.json(&["status"]).await;
                let tunnels = clients.iter().flat_map(|client| client["tunnels"].as_array().unwrap());
                let mut names: Vec<_> = tunnels.map(|tunnel| tunnel["tunnel"].as_str().unwrap().to_owned()).collect();
                names.sort();
                if names == all {
                    return clients.len();
                }
            }
        };
        assert_eq!(tokio::time::timeout(PATIENCE, shown).await.expect("all are shown"), 4);
        for mut process in running {
            process.terminate().await;
        }
        assert!(sockets(&place).is_empty());
    }

    #[tokio::test]
    async fn whoever_says_nothing_or_too_much_disturbs_nobody() {
        let place = Place::new().await;
        let app = App::echo().await;
        let client = place.client(&app, "hooks", &[]).await;
        let socket = sockets(&place).remove(0);
        let before = client.process.descriptors();
        let mut silent = Vec::new();
        for i in 0..40 {
            let mut stream = UnixStream::connect(&socket).await.unwrap();
            if i % 2 == 0 {
                let _ = stream.write_all(&[b'{'; 100_000]).await;
            }
            silent.push(stream);
        }
        assert_eq!(place.post("hooks", "/", "").await.code(), 200);
        assert!(client.process.descriptors() <= before + 20, "{before} and then {}", client.process.descriptors());
        let answered = async { while !place.run(&["status"]).await.stdout.contains("https://hooks.") {} };
        tokio::time::timeout(PATIENCE, answered).await.expect("silence is not borne for ever");
    }
}
