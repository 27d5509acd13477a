//! Faults injected into real processes: killed, frozen, starved, restarted, robbed of their token or their service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Response;
use relay_client::{ClientError, Tunnel, TunnelOptions};
use relay_tests::body::pipe;
use relay_tests::{AT_ONCE, App, RelayServer, Wire, World, within};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::net::TcpStream;

/// The answer to a GET on a connection of its own, whole or not.
async fn get(server: &RelayServer, host: &str, path: &str) -> String {
    let mut wire = server.raw(host).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
    String::from_utf8_lossy(&wire.rest().await.unwrap_or_else(|(read, _)| read)).into_owned()
}

async fn admin(server: &RelayServer, path: &str) -> String {
    let mut wire = Wire::new(TcpStream::connect(server.admin.unwrap()).await.unwrap());
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")).await;
    String::from_utf8_lossy(&wire.rest().await.unwrap()).into_owned()
}

/// Answers `/never` never, `/begun` with a body of 100 bytes of which 5 come, `/events` with an event and then no more,
/// and everything else with `ok`.
async fn service() -> App {
    App::serve(|request| async move {
        match request.uri().path() {
            "/never" => std::future::pending().await,
            path @ ("/begun" | "/events") => {
                let (feed, body) = pipe();
                tokio::spawn(async move {
                    feed.send("hello").await;
                    feed.closed().await;
                });
                let mut response = Response::new(body);
                if path == "/begun" {
                    response.headers_mut().insert("content-length", "100".parse().unwrap());
                }
                response
            }
            _ => relay_tests::app::ok("ok"),
        }
    })
    .await
}

mod a_client {
    use super::*;

    #[tokio::test]
    async fn that_is_killed_leaves_no_answer_that_looks_whole() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("killed").await;
        let app = service().await;
        let mut client = server.client(&token, &app.addr().to_string(), &[]).await;
        let other = server.client(&token, &app.addr().to_string(), &[]).await;
        let (host, witness) = (client.host(), other.host());

        let mut waiting = server.raw(&host).await;
        waiting.send(format!("GET /never HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let mut begun = [server.raw(&host).await, server.raw(&host).await];
        for (wire, (path, part)) in begun.iter_mut().zip([("/begun", "hello"), ("/events", "5\r\nhello\r\n")]) {
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
            assert_eq!(wire.exactly(part.len()).await, part.as_bytes());
        }
        app.reached(3).await;
        client.process.kill().await;
        let killed = Instant::now();

        // It had begun to answer later ones, so that this one is not kept for its return.
        let answer = waiting.message().await.unwrap();
        assert_eq!((answer.status(), answer.values("relay-error")), (502, vec!["link-lost"]));
        assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
        assert_eq!(answer.values("retry-after").len(), 1, "{}", answer.head);
        let [length, chunks] = begun;
        for (what, mut wire) in [("a length", length), ("chunks", chunks)] {
            let rest = wire.rest().await.unwrap_or_else(|(read, _)| read);
            let rest = String::from_utf8_lossy(&rest).into_owned();
            assert!(rest.len() < 95 && !rest.ends_with("0\r\n\r\n"), "{what}: {rest:?}");
        }
        assert!(get(&server, &witness, "/").await.starts_with("HTTP/1.1 200"), "others go on");
        let answer = get(&server, &host, "/").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("relay-error: client-offline"), "{answer}");
        assert!(admin(&server, "/metrics").await.contains("relay_panics_total 0"));
    }

    /// TCP goes on as if nothing had happened: the kernel acknowledges for a process that does not run.
    #[tokio::test]
    async fn that_is_frozen_is_noticed_and_holds_nobody_up() {
        let server = RelayServer::spawn(["--timeout", "5s"]).await;
        let token = server.token("frozen").await;
        let app = service().await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let other = server.client(&token, &app.addr().to_string(), &[]).await;
        let (host, witness) = (client.host(), other.host());
        client.process.signal(Signal::STOP);

        // As many large bodies as no buffer holds; each gets its answer at its deadline.
        let upload = async || {
            let mut wire = server.raw(&host).await;
            wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4194304\r\n\r\n")).await;
            // The relay may stop reading; that is its answer to a client that stopped.
            let _ = tokio::time::timeout(Duration::from_millis(500), wire.try_send(vec![b'x'; 4 << 20])).await;
            wire.message().await.map(|answer| answer.status())
        };
        let answers = join_all((0..20).map(|_| upload()));
        let others = async {
            for _ in 0..10 {
                // Who waits for the frozen one gets the same answer as it.
                let answer = get(&server, &witness, "/").await;
                assert!(answer.starts_with("HTTP/1.1 200"), "what a frozen neighbour costs: {answer}");
            }
        };
        let (answers, ()) = tokio::join!(answers, others);
        assert!(answers.iter().all(|status| matches!(status, Some(504) | None)), "{answers:?}");
        assert!(server.process.resident() < 160 << 20, "{} MiB", server.process.resident() >> 20);

        // Silence is a dead link, at the latest after 15 s.
        let noticed = async {
            loop {
                let answer = get(&server, &host, "/").await;
                if answer.contains("relay-error: client-offline") {
                    return;
                }
                assert!(
                    answer.contains("relay-error: deadline") || answer.contains("relay-error: link-lost"),
                    "{answer}"
                );
            }
        };
        within("the dead link is noticed", noticed).await;

        // It wakes up, notices, and comes back by itself.
        client.process.signal(Signal::CONT);
        within("the client is back", async { while !get(&server, &host, "/").await.starts_with("HTTP/1.1 200") {} })
            .await;
    }

    #[tokio::test]
    async fn whose_token_is_revoked_is_cut_at_once_and_does_not_come_back() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("revoked").await;
        let other = server.token("other").await;
        let app = service().await;
        let mut client = server.client(&token, &app.addr().to_string(), &[]).await;
        let witness = server.client(&other, &app.addr().to_string(), &[]).await;
        let host_of = client.host();
        let mut events = server.raw(&host_of).await;
        events.send(format!("GET /events HTTP/1.1\r\nHost: {host_of}\r\n\r\n")).await;
        events.head().await.unwrap();
        let mut waiting = server.raw(&host_of).await;
        waiting.send(format!("GET /never HTTP/1.1\r\nHost: {host_of}\r\n\r\n")).await;
        app.reached(2).await;

        assert!(server.token_command(&["revoke", "revoked"]).await.status.success());
        let revoked = Instant::now();
        let rest = events.rest().await.unwrap_or_else(|(read, _)| read);
        assert!(!rest.ends_with(b"0\r\n\r\n"), "the events end as if they were whole");
        assert_eq!(waiting.message().await.unwrap().status(), 502);
        let ended = client.process.wait().await;
        assert_eq!(ended.code(), 3, "{}", ended.stderr);
        assert!(ended.stderr.contains("revoked"), "it says why: {}", ended.stderr);
        assert!(revoked.elapsed() < AT_ONCE, "neither waits for anything: {:?}", revoked.elapsed());
        assert!(get(&server, &witness.host(), "/").await.starts_with("HTTP/1.1 200"));
    }
}

mod a_relay {
    use super::*;

    #[tokio::test]
    async fn that_is_killed_gets_its_clients_back_under_their_names() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("restart").await;
        let app = service().await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let named = server.client(&token, &app.addr().to_string(), &["--subdomain", "named"]).await;
        let hosts = [client.host(), named.host()];
        for _ in 0..3 {
            let home = server.process.home().clone();
            let https = server.https.to_string();
            server.process.kill().await;
            server = RelayServer::spawn_in(home, ["--https", https.as_str()]).await;
            for host in &hosts {
                within("the client is back", async {
                    while !get(&server, host, "/").await.starts_with("HTTP/1.1 200") {}
                })
                .await;
            }
        }
    }

    /// Upgrades under load. Whoever is not accepted tries again, as providers do; whoever is has one answer, and what is
    /// answered with 200 has come to the service once.
    #[tokio::test]
    async fn that_is_restarted_twenty_times_under_load_answers_whatever_it_has_accepted() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("upgraded").await;
        let come: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
        let record = come.clone();
        let app = App::serve(move |request| {
            let record = record.clone();
            async move {
                let path = request.uri().path().to_owned();
                *record.lock().unwrap().entry(path.clone()).or_default() += 1;
                // So that some are under way at any time.
                tokio::time::sleep(Duration::from_millis(50)).await;
                relay_tests::app::ok(path)
            }
        })
        .await;
        let client = server.client(&token, &app.addr().to_string(), &["--subdomain", "hooks"]).await;
        let (https, host, ca) = (server.https, client.host(), server.ca_file());
        let sent = Arc::new(AtomicU32::new(0));
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut load = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (host, ca, sent, stopped) = (host.clone(), ca.clone(), sent.clone(), stopped.clone());
            load.spawn(async move {
                let mut outcomes = Vec::new();
                let mut tick = tokio::time::interval(Duration::from_millis(100));
                while !*stopped.borrow() {
                    tick.tick().await;
                    let path = format!("/{}", sent.fetch_add(1, Relaxed));
                    let connected = relay_tests::world::try_connect_tls(https, &host, &ca, &[b"http/1.1"]);
                    let outcome = match within("a connection, or none", connected).await {
                        Err(_) => Outcome::NotAccepted,
                        Ok(tls) => whole_answer(Wire::new(tls), &host, &path).await,
                    };
                    outcomes.push((path, outcome));
                }
                outcomes
            });
        }
        let mut backs = Vec::new();
        for round in 0..20 {
            // While there is something under way.
            let before = app.requests();
            app.reached(before + 3).await;
            let home = server.process.home().clone();
            let ended = server.process.terminate().await;
            assert_eq!(ended.code(), 0, "round {round}: {}", ended.stderr);
            let https = server.https.to_string();
            server = RelayServer::spawn_in(home, ["--https", https.as_str()]).await;
            let listens = Instant::now();
            within("the client is back under its name", async {
                while !get(&server, &host, "/back").await.starts_with("HTTP/1.1 200") {}
            })
            .await;
            backs.push(listens.elapsed());
        }
        stop.send_replace(true);
        let outcomes: Vec<_> = load.join_all().await.into_iter().flatten().collect();
        backs.sort();
        println!(
            "20 restarts: back {:.2?} after the relay listens in the middle, {:.2?} at most",
            backs[10], backs[19]
        );
        let come = come.lock().unwrap();
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (path, outcome) in &outcomes {
            let times = come.get(path).copied().unwrap_or_default();
            let right = match outcome {
                Outcome::NotAccepted => times == 0,
                Outcome::Answer { status: 200, body, .. } => times == 1 && body == path,
                Outcome::Answer { status: 503, .. } => times == 0,
                // It was under way, and given up.
                Outcome::Answer { status, .. } => *status == 502 && times <= 1,
                Outcome::Cut(what) => panic!("{path} was accepted, and its connection ended with {what:?}"),
            };
            assert!(right, "{path} has come {times} times: {outcome:?}");
            let kind = match outcome {
                Outcome::Answer { status, error, .. } => format!("{status} {error}"),
                _ => "not accepted".to_owned(),
            };
            *counts.entry(kind).or_default() += 1;
        }
        println!("{} requests: {counts:?}", outcomes.len());
        assert!(counts["200 "] >= 40, "{counts:?}");
    }

    /// What became of a request.
    #[derive(Debug)]
    enum Outcome {
        /// Nobody listened, or nobody ended the handshake.
        NotAccepted,
        Answer {
            status: u16,
            error: String,
            body: String,
        },
        /// The connection broke without a whole answer, or with more than one.
        Cut(String),
    }

    async fn whole_answer(mut wire: Wire, host: &str, path: &str) -> Outcome {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        if let Err(error) = wire.try_send(request).await {
            return Outcome::Cut(error.to_string());
        }
        let read = match wire.rest().await {
            Ok(read) => String::from_utf8_lossy(&read).into_owned(),
            Err((read, error)) => return Outcome::Cut(format!("{error} after {:?}", String::from_utf8_lossy(&read))),
        };
        let Some((head, body)) = read.split_once("\r\n\r\n") else { return Outcome::Cut(read) };
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
        match (head.get(9..12).and_then(|status| status.parse().ok()), value("content-length: ").parse::<usize>()) {
            (Some(status), Ok(length)) if body.len() == length => {
                Outcome::Answer { status, error: value("relay-error: "), body: body.to_owned() }
            }
            _ => Outcome::Cut(read),
        }
    }

    #[tokio::test]
    async fn that_is_told_to_stop_answers_what_is_under_way() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("drain").await;
        let (go, gate) = tokio::sync::watch::channel(false);
        let app = App::serve(move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.unwrap();
                relay_tests::app::ok("done")
            }
        })
        .await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.host();
        let mut wires = Vec::new();
        for _ in 0..20 {
            let mut wire = server.raw(&host).await;
            wire.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            wires.push(wire);
        }
        app.reached(20).await;
        server.process.signal(Signal::TERM);
        within("the relay says that it is not ready", async {
            while !admin(&server, "/readyz").await.starts_with("HTTP/1.1 503") {}
        })
        .await;
        assert!(admin(&server, "/healthz").await.starts_with("HTTP/1.1 200"), "it is alive while it drains");
        go.send_replace(true);
        for mut wire in wires {
            let answer = wire.message().await.expect("an answer");
            assert_eq!((answer.status(), &answer.body[..]), (200, &b"done"[..]));
        }
        let ended = server.process.wait().await;
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
    }

    /// The certificate changes on disk, as renewal does it: nobody is dropped, and new connections see the new one.
    #[tokio::test]
    async fn whose_certificate_changes_drops_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key, both) = (dir.path().join("cert.pem"), dir.path().join("key.pem"), dir.path().join("both.pem"));
        let (old, old_key) = certificate();
        let (new, new_key) = certificate();
        std::fs::write(&cert, &old).unwrap();
        std::fs::write(&key, &old_key).unwrap();
        std::fs::write(&both, format!("{old}{new}")).unwrap();
        let world = World::with(|config| {
            config.certificate =
                relay_server::config::CertificateSource::Files { cert: cert.clone(), key: key.clone() };
        })
        .await;
        let app = service().await;
        let trust = relay_client::session::dial::Trust::only(&both).unwrap();
        let target = relay_client::session::dial::Target::new(world.relay_url().parse().unwrap(), &trust).unwrap();
        let target = target.dialling(Some(world.https().to_string().parse().unwrap()));
        let client = relay_client::Client::new(target).token(world.token().await.into());
        let tunnel = Tunnel::start(client, TunnelOptions::new(app.upstream())).await.unwrap();
        let host = world.host(tunnel.name());
        let connect = async |ca: &Path| {
            let tls = relay_tests::world::connect_tls(world.https(), &host, ca, &[b"http/1.1"]).await;
            let shown = tls.get_ref().1.peer_certificates().unwrap()[0].to_vec();
            (Wire::new(tls), shown)
        };
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (mut before, first) = connect(&both).await;
        before.send(&request).await;
        assert_eq!(before.message().await.unwrap().status(), 200);

        // A key that does not fit is not used, and the old one is kept.
        std::fs::write(&key, &new_key).unwrap();
        assert_eq!(connect(&both).await.1, first);
        std::fs::write(&cert, &new).unwrap();
        within("the new certificate is shown", async {
            while connect(&both).await.1 == first {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        before.send(&request).await;
        assert_eq!(before.message().await.unwrap().status(), 200, "an old connection goes on");
        let (mut after, _) = connect(&both).await;
        after.send(&request).await;
        assert_eq!(after.message().await.unwrap().status(), 200);
        assert_eq!(app.requests(), 3);
    }

    fn certificate() -> (String, String) {
        let names = ["relay.test".to_owned(), "*.relay.test".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    /// Strangers take every descriptor: the accept loops wait instead of spinning, who is connected is served, and
    /// all is as before once they go.
    #[tokio::test]
    async fn without_descriptors_waits_and_recovers() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("starved").await;
        let app = service().await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.host();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let mut before = server.raw(&host).await;
        before.send(&request).await;
        assert_eq!(before.message().await.unwrap().status(), 200);

        let pid = Pid::from_raw(server.process.pid() as i32).unwrap();
        let room = server.process.descriptors() as u64 + 20;
        rustix::process::prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(room), maximum: Some(room) })
            .unwrap();
        let mut held = Vec::new();
        for address in [server.https, server.http.unwrap(), server.admin.unwrap()] {
            for _ in 0..40 {
                held.push(TcpStream::connect(address).await.unwrap());
            }
        }
        within("the descriptors are used up", async {
            while (server.process.descriptors() as u64) < room {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        server.process.rests().await;
        before.send(&request).await;
        assert_eq!(before.message().await.unwrap().status(), 200, "who is connected is served");
        drop(held);
        within("the relay recovers", async { while !get(&server, &host, "/").await.starts_with("HTTP/1.1 200") {} })
            .await;
        assert!(admin(&server, "/metrics").await.contains("relay_panics_total 0"));
    }
}

mod a_name {
    use super::*;

    /// Whoever wins, one wins: no request goes to the loser, and a stranger's token never gets the name.
    #[tokio::test]
    async fn that_two_clients_want_goes_to_one_of_them() {
        let world = World::start().await;
        let token = world.token().await;
        let service = |name: &'static str| App::serve(move |_| async move { relay_tests::app::ok(name) });
        let (a, b) = (service("a").await, service("b").await);
        let race = async |round: usize| {
            let name = format!("race{round}");
            let start = |app: &App| {
                let client = relay_client::Client::new(world.target()).token(token.clone().into());
                Tunnel::start(client, TunnelOptions::new(app.upstream()).subdomain(name.as_str()))
            };
            let (of_a, of_b) = within("a race", async { tokio::join!(start(&a), start(&b)) }).await;
            let (winner, loser) = match (of_a, of_b) {
                (Ok(tunnel), Err(loser)) => (("a", tunnel), loser),
                (Err(loser), Ok(tunnel)) => (("b", tunnel), loser),
                (Ok(_), Ok(_)) => panic!("round {round}: both have {name}"),
                (Err(a), Err(b)) => panic!("round {round}: nobody has {name}: {a}; {b}"),
            };
            assert!(matches!(&loser, ClientError::NameTaken(why) if why.contains("is in use")), "{loser:?}");
            let mut http = world.http2(&world.host(&name)).await;
            for _ in 0..3 {
                let request = http::Request::get(winner.1.url()).body(relay_tests::body::empty()).unwrap();
                assert_eq!(http.answer(request).await.text(), winner.0, "round {round}");
            }
        };
        // Several at once, so that names do not only meet their own rivals.
        for ten in 0..100 {
            join_all((ten * 10..ten * 10 + 10).map(&race)).await;
        }
        // Whose it was, it stays: also while nobody is connected.
        let options = TunnelOptions::new(a.upstream()).subdomain("race0");
        let stolen = Tunnel::start(world.client().await, options).await;
        assert!(matches!(stolen, Err(ClientError::NameTaken(_))), "{stolen:?}");
    }

    /// Each takes the name from the other, at the same time: in the end one has it, and the other has been told.
    #[tokio::test]
    async fn that_two_clients_take_from_each_other_never_has_two_owners() {
        let world = World::start().await;
        let token = world.token().await;
        let service = |name: &'static str| App::serve(move |_| async move { relay_tests::app::ok(name) });
        let apps = [service("a").await, service("b").await];
        let start = |app: &App| {
            let options = TunnelOptions { takeover: true, ..TunnelOptions::new(app.upstream()).subdomain("wanted") };
            Tunnel::start(relay_client::Client::new(world.target()).token(token.clone().into()), options)
        };
        let mut owner = within("a tunnel", start(&apps[0])).await.unwrap();
        for round in 1..20 {
            let next = within("a takeover", start(&apps[round % 2])).await.unwrap();
            // The one that lost it stops by itself.
            while within("the end of the evicted client", owner.exchange()).await.is_some() {}
            assert!(matches!(owner.close().await, Err(ClientError::NameLost(_))), "round {round}");
            for _ in 0..3 {
                assert_eq!(world.get(next.url()).await.text(), ["a", "b"][round % 2], "round {round}");
            }
            owner = next;
        }
        let (one, two) = tokio::join!(start(&apps[0]), start(&apps[1]));
        drop((one, two));
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }
}

mod a_service {
    use super::*;

    #[tokio::test]
    async fn that_is_down_gets_502_with_its_reason_and_is_found_again() {
        let world = World::start().await;
        let listener = relay_tests::app::listener().await;
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let upstream: relay_client::upstream::address::UpstreamAddr = addr.to_string().parse().unwrap();
        let tunnel = world.tunnel(upstream).await;
        let answer = world.get(tunnel.url()).await;
        assert_eq!((answer.code(), answer.error()), (502, Some("upstream-refused")));
        assert_eq!(answer.json()["error"]["code"], "upstream-refused");
        let app = App::recording_on(tokio::net::TcpListener::bind(addr).await.unwrap());
        assert_eq!(world.get(tunnel.url()).await.code(), 200);
        drop(app);
        within("the service is gone", async {
            while world.get(tunnel.url()).await.error() != Some("upstream-refused") {}
        })
        .await;
    }

    /// The deadline passes for hundreds at once; what the service says later reaches nobody.
    #[tokio::test]
    async fn that_is_slow_gets_504_and_its_late_answers_reach_nobody() {
        let world = World::with(|config| config.limits.deadline = Duration::from_millis(800)).await;
        let late = Arc::new(tokio::sync::Notify::new());
        let gate = late.clone();
        let app = App::raw(move |mut wire: Wire, _| {
            let gate = gate.clone();
            async move {
                while let Some(request) = wire.message().await {
                    let path = request.first_line().split(' ').nth(1).unwrap().to_owned();
                    if path.starts_with("/slow") {
                        gate.notified().await;
                    }
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len());
                    if wire.try_send(answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        let tunnel = world.tunnel(&app).await;
        let host = world.host(tunnel.name());
        let mut two = [world.http2(&host).await, world.http2(&host).await, world.http2(&host).await];
        let mut slow = Vec::new();
        for i in 0..300 {
            let request =
                http::Request::get(format!("https://{host}/slow{i}")).body(relay_tests::body::empty()).unwrap();
            slow.push(two[i % 3].begin(request));
        }
        for answer in slow {
            let answer = within("an answer", answer).await.unwrap();
            assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        }
        late.notify_waiters();
        for i in 0..100 {
            let request =
                http::Request::get(format!("https://{host}/own{i}")).body(relay_tests::body::empty()).unwrap();
            let answer = two[i % 3].answer(request).await;
            assert_eq!((answer.code(), answer.text()), (200, format!("/own{i}").as_str()));
        }
        assert!(world.get_admin("/metrics").await.text().contains("relay_panics_total 0"));
    }
}
