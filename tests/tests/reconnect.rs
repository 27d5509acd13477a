//! How a client holds on: links cut in silence, sleep, another network, relays that are killed, drain, or refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use relay_client::session::dial::{Target, Trust};
use relay_client::{Client, ClientError, Event, Observer, Tunnel, TunnelOptions};
use relay_protocol::frame::{Frame, GoAway, SessionKind};
use relay_protocol::message::{Bound, Hello, Payload, PublicName, Refusal, RequestHead, TunnelSpec, Welcome};
use relay_tests::network::{Network, Way};
use relay_tests::peer::{Socket, id};
use relay_tests::{AT_ONCE, App, Process, RelayClient, RelayServer, Wire, within};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// The way to a relay, which a test can take away: bytes vanish, and neither end is told.
struct Cable {
    addr: SocketAddr,
    to: watch::Sender<SocketAddr>,
    lost: watch::Sender<Lost>,
    accepted: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

/// Connections whose number is below this lose what is sent in this direction.
#[derive(Clone, Copy, Default)]
struct Lost {
    up: u64,
    down: u64,
}

impl Cable {
    async fn new(to: SocketAddr) -> Self {
        Self::at("127.0.0.1:0", to).await
    }

    async fn at(here: &str, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(here).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (to, target) = watch::channel(to);
        let (lost, losses) = watch::channel(Lost::default());
        let accepted = Arc::new(AtomicU64::new(0));
        let numbers = accepted.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut pumps = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = numbers.fetch_add(1, SeqCst);
                let (target, losses) = (*target.borrow(), losses.clone());
                pumps.spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    let (up, down) = (losses.clone(), losses);
                    tokio::join!(
                        pump(near_read, far_write, || number < up.borrow().up),
                        pump(far_read, near_write, || number < down.borrow().down),
                    );
                });
            }
        });
        Self { addr, to, lost, accepted, _task: task }
    }

    /// What is sent on the connections that there are vanishes from now on; later ones work.
    fn cut(&self, up: bool, down: bool) {
        let now = self.accepted.load(SeqCst);
        self.lost.send_modify(|lost| {
            lost.up = if up { now } else { lost.up };
            lost.down = if down { now } else { lost.down };
        });
    }

    /// Later connections lead there.
    fn lead_to(&self, relay: SocketAddr) {
        self.to.send_replace(relay);
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_lost: impl Fn() -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if !is_lost() && to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    if is_lost() {
        // A goodbye is lost as well.
        std::future::pending::<()>().await;
    }
    let _ = to.shutdown().await;
}

/// The arguments of `relay http TARGET` as a client of this relay, at this address.
fn arguments(server: &RelayServer, at: SocketAddr, token: &str, target: &str, more: &[&str]) -> Vec<String> {
    let words = [&["http", target, "--output", "json"], more].concat();
    relay_tests::process::arguments(&server.url, at, &server.ca_file(), token, &words)
}

async fn client(server: &RelayServer, at: SocketAddr, token: &str, app: &App, more: &[&str]) -> RelayClient {
    RelayClient::spawn(arguments(server, at, token, &app.addr().to_string(), more)).await
}

/// A request on a connection of its own, sent.
async fn begin(server: &RelayServer, host: &str, path: &str) -> Wire {
    let mut wire = server.raw(host).await;
    wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
    wire
}

async fn get(server: &RelayServer, host: &str) -> u16 {
    begin(server, host, "/").await.message().await.map_or(0, |answer| answer.status())
}

async fn service() -> App {
    App::serve(|_| async { relay_tests::app::ok("ok") }).await
}

mod a_link {
    use super::*;

    #[tokio::test]
    async fn that_is_cut_in_silence_is_replaced_once_that_has_lasted_for_15_seconds() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("cut").await;
        let app = service().await;
        let cut = async |what: &str, up: bool, down: bool| {
            let cable = Cable::new(server.https).await;
            let mut client = client(&server, cable.addr, &token, &app, &[]).await;
            let host = client.host();
            assert_eq!(get(&server, &host).await, 200);
            cable.cut(up, down);
            let since = Instant::now();
            // Neither end has been told, so this one is sent into the cut, and from there to the new link.
            let in_the_gap = async { if down && !up { get(&server, &host).await } else { 200 } };
            let back = async {
                let lost = client.process.event("session.disconnected").await;
                let noticed = since.elapsed();
                client.process.event("session.reconnected").await;
                (lost["reason"].as_str().unwrap().to_owned(), noticed, since.elapsed())
            };
            let (status, (reason, noticed, back)) = tokio::join!(in_the_gap, back);
            println!("cut {what}: noticed after {noticed:.2?}, back after {back:.2?}: {reason}");
            let silence = ["the relay heard nothing", "nothing was heard from the relay for 15 s"];
            assert!(silence.iter().any(|silence| reason.contains(silence)), "{what}: {reason}");
            assert_eq!(status, 200, "{what}: the request in the gap");
            assert_eq!(get(&server, &host).await, 200, "{what}");
        };
        tokio::join!(cut("both ways", true, true), cut("towards the relay", true, false), cut("back", false, true));
    }

    /// A stopped program is as good as a laptop that sleeps: its clocks jump, and the relay has given it up.
    #[tokio::test]
    async fn is_back_soon_after_a_sleep() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("sleep").await;
        let app = service().await;
        // A client that is connected, and then sleeps for so long.
        let sleeper = async |seconds| {
            let client = client(&server, server.https, &token, &app, &[]).await;
            client.process.signal(Signal::STOP);
            sleep(Duration::from_secs(seconds)).await;
            client.process.signal(Signal::CONT);
            client
        };
        let long = async {
            let mut client = sleeper(17).await;
            let woken = Instant::now();
            let lost = client.process.event("session.disconnected").await;
            client.process.event("session.reconnected").await;
            let back = woken.elapsed();
            println!("back {back:.2?} after a wake: {}", lost["reason"]);
            assert!(lost["reason"].as_str().unwrap().contains("did not run for"), "{lost}");
            assert_eq!(get(&server, &client.host()).await, 200);
        };
        // A nap that the link survives is nobody's business.
        let short = async {
            let mut client = sleeper(8).await;
            let host = client.host();
            assert_eq!(get(&server, &host).await, 200);
            assert_eq!(client.process.json().await["event"], "exchange");
            // Longer than the relay has for its answer to the probe.
            sleep(Duration::from_secs(2)).await;
            assert_eq!(get(&server, &host).await, 200);
            assert_eq!(client.process.json().await["event"], "exchange");
        };
        tokio::join!(long, short);
    }

    /// Looking at two clocks and an address once a second, and twice whether anybody reads what it says, is nothing that a
    /// battery feels.
    #[tokio::test]
    async fn on_which_nothing_happens_costs_nothing() {
        const SECONDS: u64 = 10;
        // Each of the three looks of a second wakes it up to three times: a timer comes nearer in steps, 64 times as fine
        // each. One more that looks ten times a second would be beyond that, and so is whatever waits for another thread.
        const NAPS: u64 = 12 * SECONDS;
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("idle").await;
        let app = service().await;
        let client = client(&server, server.https, &token, &app, &[]).await;
        // The first second is that of the start.
        client.process.rests().await;
        let (naps, spent) = (client.process.naps(), client.process.cpu());
        sleep(Duration::from_secs(SECONDS)).await;
        let (naps, spent) = (client.process.naps() - naps, client.process.cpu() - spent);
        let own = client.process.anonymous() >> 10;
        println!("idle for {SECONDS} s: woken {naps} times, {spent:?} of CPU, {own} KiB of its own");
        assert!(naps <= NAPS, "woken {naps} times");
        // What spins does not sleep at all. As built for debugging, and beside others, it takes a hundredth.
        assert!(spent < Duration::from_secs(SECONDS) / 10, "{spent:?}");
        assert!(own < 8 << 10, "{own} KiB");
    }

    #[tokio::test]
    async fn follows_the_machine_to_another_network() {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("moved").await;
        let network = Network::new();
        let cable = Cable::at(&format!("{}:0", network.here()), server.https).await;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("app.sock");
        let _app = App::unix(&socket, |_| async { relay_tests::app::ok("ok") });
        let target = format!("unix:{}", socket.display());
        let process = network.spawn("relay", arguments(&server, cable.addr, &token, &target, &[])).await;
        let mut client = RelayClient::of(process).await;
        let host = client.host();
        assert_eq!(get(&server, &host).await, 200);

        for address in [3, 4] {
            network.move_to(address);
            let moved = Instant::now();
            let lost = client.process.event("session.disconnected").await;
            client.process.event("session.reconnected").await;
            let back = moved.elapsed();
            println!("back {back:.2?} after a change of the network: {}", lost["reason"]);
            assert_eq!(lost["reason"], "the network changed");
            assert!(back < AT_ONCE, "{back:?}");
            assert_eq!(get(&server, &host).await, 200);
        }
    }
}

/// The kernel's own firewall between client and relay: neither end is told.
mod a_network {
    use super::*;

    /// A relay, and a client of it on another machine.
    struct Apart {
        server: RelayServer,
        // It ends before its network does.
        client: RelayClient,
        network: Network,
        app: App,
        host: String,
        _dir: tempfile::TempDir,
    }

    impl Apart {
        async fn new(relay: &[&str]) -> Self {
            let network = Network::new();
            let home = Arc::new(tempfile::tempdir().unwrap());
            // A development certificate is for loopback only. This one is its own CA.
            let ca = home.path().join("data/ca");
            let made =
                rcgen::generate_simple_self_signed(["relay.test".to_owned(), "*.relay.test".to_owned()]).unwrap();
            std::fs::create_dir_all(&ca).unwrap();
            let (cert, key) = (ca.join("ca.pem"), ca.join("key.pem"));
            std::fs::write(&cert, made.cert.pem()).unwrap();
            std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
            let (https, cert, key) = (format!("{}:0", network.here()), cert.to_str().unwrap(), key.to_str().unwrap());
            let all = [&["--https", &https, "--cert", cert, "--key", key], relay].concat();
            let server = RelayServer::spawn_in(home.clone(), all).await;
            let token = server.token("apart").await;
            // The service is on that machine, too.
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("app.sock");
            let app = App::unix(&socket, |_| async { relay_tests::app::ok("ok") });
            let target = format!("unix:{}", socket.display());
            let client = network.spawn("relay", arguments(&server, server.https, &token, &target, &[])).await;
            let client = RelayClient::of(client).await;
            let host = client.host();
            assert_eq!(get(&server, &host).await, 200);
            Self { server, client, network, app, host, _dir: dir }
        }

        async fn get(&self) -> u16 {
            get(&self.server, &self.host).await
        }
    }

    /// A router forgets a connection, in one direction or in both; new ones pass.
    #[tokio::test]
    async fn that_drops_a_connection_in_silence_costs_no_request_that_nobody_has_seen() {
        let cut = async |what: &str, ways: &[Way], in_the_gap: u16| {
            let Apart { server, mut client, network, app, host, _dir } = Apart::new(&[]).await;
            ways.iter().for_each(|way| network.drop_connection(*way, &client.process, server.https));
            let since = Instant::now();
            let back = async {
                let lost = client.process.event("session.disconnected").await;
                let noticed = since.elapsed();
                client.process.event("session.reconnected").await;
                (lost["reason"].as_str().unwrap().to_owned(), noticed, since.elapsed())
            };
            let (status, (reason, noticed, back)) = tokio::join!(get(&server, &host), back);
            println!("dropped {what}: noticed after {noticed:.2?}, back after {back:.2?}: {reason}");
            assert_eq!(status, in_the_gap, "{what}: the request in the gap");
            assert_eq!(get(&server, &host).await, 200, "{what}");
            assert_eq!(app.requests(), 3, "{what}: each request has come once");
        };
        // What the client has not seen moves to the new link. What it has seen, and whose answer was lost, does not.
        tokio::join!(
            cut("both ways", &[Way::Out, Way::In], 200),
            cut("towards the relay", &[Way::Out], 502),
            cut("back", &[Way::In], 200),
        );
    }

    /// Shorter than what the link survives: nothing is lost, and nobody is told of anything.
    #[tokio::test]
    async fn that_is_away_for_a_moment_delays_what_is_under_way() {
        let mut apart = Apart::new(&[]).await;
        apart.network.drop_all(Way::Out);
        apart.network.drop_all(Way::In);
        let since = Instant::now();
        let heal = async {
            sleep(Duration::from_secs(4)).await;
            apart.network.heal();
        };
        let (status, ()) = tokio::join!(apart.get(), heal);
        println!("a request into a gap of 4 s is answered after {:.2?}", since.elapsed());
        assert_eq!((status, apart.app.requests()), (200, 2));
        for _ in 0..2 {
            assert_eq!(apart.client.process.json().await["event"], "exchange", "the session has lasted");
        }
    }

    /// Longer than that: every request has its answer in time, and the client is back soon after the network is.
    #[tokio::test]
    async fn that_is_away_for_long_leaves_no_request_without_an_answer() {
        let mut apart = Apart::new(&["--timeout", "8s"]).await;
        apart.network.drop_all(Way::Out);
        apart.network.drop_all(Way::In);
        let since = Instant::now();
        let mut seen = Vec::new();
        while since.elapsed() < Duration::from_secs(22) {
            let asked = Instant::now();
            let answer = begin(&apart.server, &apart.host, "/").await.message().await.expect("an answer");
            // Without that deadline it would be 30 s.
            assert!(asked.elapsed() < Duration::from_secs(20), "{:?} with a deadline of 8 s", asked.elapsed());
            let codes = answer.values("relay-error");
            let code = codes.first().copied().unwrap_or_else(|| panic!("{}", answer.head)).to_owned();
            assert!(code == "deadline" || answer.values("retry-after").len() == 1, "{}", answer.head);
            seen.push((since.elapsed().as_secs(), answer.status(), code));
        }
        println!("away: {seen:?}");
        assert_eq!((seen[0].1, seen[0].2.as_str()), (504, "deadline"));
        let last = seen.last().unwrap();
        assert_eq!((last.1, last.2.as_str()), (503, "client-offline"), "the relay has noticed");
        assert_eq!(apart.app.requests(), 1, "nothing has come");
        apart.network.heal();
        let healed = Instant::now();
        apart.client.process.event("session.reconnected").await;
        println!("back {:.2?} after the network is, which was away for {:.0?}", healed.elapsed(), healed - since);
        assert_eq!(apart.get().await, 200);
        // Of those that were given up in the meantime none comes late.
        assert_eq!(apart.app.requests(), 2);
    }

    /// A firewall breaks off what the client says, and lets nobody in for a while. The relay believes in the old link all the
    /// time, and gives the name back at once.
    #[tokio::test]
    async fn that_refuses_the_client_has_it_back_when_it_no_longer_does() {
        let mut apart = Apart::new(&[]).await;
        apart.network.refuse_all(Way::Out);
        let refused = Instant::now();
        let lost = async {
            let lost = apart.client.process.event("session.disconnected").await;
            let noticed = refused.elapsed();
            assert!(noticed < AT_ONCE, "{noticed:?}");
            let retried = apart.client.process.event("session.disconnected").await;
            assert!(retried["reason"].as_str().unwrap().contains("refused"), "{retried}");
            apart.network.heal();
            let healed = Instant::now();
            apart.client.process.event("session.reconnected").await;
            (lost["reason"].as_str().unwrap().to_owned(), noticed, healed.elapsed())
        };
        // What the relay sends is what the client's machine would acknowledge.
        let (status, (reason, noticed, back)) = tokio::join!(get(&apart.server, &apart.host), lost);
        println!("refused: noticed after {noticed:.2?} ({reason}), back {back:.2?} after the end of it");
        assert!(back < AT_ONCE, "{back:?}");
        // Whether the client had read it before the link broke is the kernel's to decide; once is enough.
        assert_eq!(apart.app.requests(), 2, "{status}");
        assert!(matches!(status, 200 | 502), "{status}");
        assert_eq!(apart.get().await, 200);
    }
}

/// The clock on the wall, which somebody sets. What lasts for some time is counted by one that nobody can.
mod a_clock {
    use super::*;

    #[tokio::test]
    async fn that_jumps_ends_no_session_and_moves_no_deadline() {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let clock = home.path().join("clock");
        std::fs::write(&clock, "+0").unwrap();
        let variables = relay_tests::tools::faketime(&clock);
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        let mut server = RelayServer::spawn_with(home.clone(), ["--timeout", "1s"], &variables).await;
        let token = server.token("jumps").await;
        let app = App::serve(|request| async move {
            match request.uri().path() {
                "/never" => std::future::pending().await,
                _ => relay_tests::app::ok("ok"),
            }
        })
        .await;
        let all = arguments(&server, server.https, &token, &app.addr().to_string(), &[]);
        let mut client = RelayClient::of(Process::spawn_in(home, "relay", all, &variables).await).await;
        let host = client.host();

        let mut years = Vec::new();
        for (round, set) in ["+0", "+2y", "-2y", "+5m", "-5m", "+0"].into_iter().enumerate() {
            let mut waiting = begin(&server, &host, "/never").await;
            let since = Instant::now();
            app.reached(2 * round + 1).await;
            std::fs::write(&clock, set).unwrap();
            let answer = waiting.message().await.unwrap();
            let waited = since.elapsed();
            assert_eq!((answer.status(), answer.values("relay-error")), (504, vec!["deadline"]), "{set}");
            assert!(Duration::from_millis(900) < waited && waited < AT_ONCE, "{set}: {waited:?}");
            assert_eq!(get(&server, &host).await, 200, "{set}");
            for _ in 0..2 {
                assert_eq!(client.process.json().await["event"], "exchange", "{set}: the session lasts");
            }
            // The relay's log tells what its clock shows.
            server.process.error_line("504").await;
            let line = server.process.error_line("exchange").await;
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            years.push(line["timestamp"].as_str().unwrap()[..4].parse::<u32>().unwrap());
        }
        assert!(years[2] < years[0] && years[0] < years[1], "the clock did jump: {years:?}");
    }
}

mod a_relay {
    use super::*;

    #[tokio::test]
    async fn that_is_killed_has_its_client_back_under_the_same_name() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("killed").await;
        let app = service().await;
        let mut client = client(&server, server.https, &token, &app, &[]).await;
        let host = client.host();
        for _ in 0..3 {
            let (home, https) = (server.process.home().clone(), server.https.to_string());
            server.process.kill().await;
            let lost = client.process.event("session.disconnected").await;
            server = RelayServer::spawn_in(home, ["--https", https.as_str()]).await;
            let listens = Instant::now();
            client.process.event("session.reconnected").await;
            let back = listens.elapsed();
            println!("back {back:.2?} after the relay listens again: {}", lost["reason"]);
            assert_eq!(get(&server, &host).await, 200);
        }
    }

    /// An upgrade: the new relay takes over while the old one still answers what it has.
    #[tokio::test]
    async fn that_drains_is_left_for_its_successor_before_it_is_gone() {
        let mut old = RelayServer::spawn(["--public-port", "443"]).await;
        let token = old.token("drains").await;
        let (open, gate) = watch::channel(false);
        let app = App::serve(move |request| {
            let mut gate = gate.clone();
            async move {
                if request.uri().path() == "/slow" {
                    gate.wait_for(|open| *open).await.unwrap();
                }
                relay_tests::app::ok("ok")
            }
        })
        .await;
        let cable = Cable::new(old.https).await;
        let mut client = client(&old, cable.addr, &token, &app, &["--subdomain", "hooks"]).await;
        let host = client.host();
        let mut slow = begin(&old, &host, "/slow").await;
        app.reached(1).await;

        // The successor has the same tokens, names and CA.
        let home = Arc::new(tempfile::tempdir().unwrap());
        copy(old.data_dir(), &home.path().join("data"));
        let new = RelayServer::spawn_in(home, ["--public-port", "443"]).await;
        cable.lead_to(new.https);
        old.process.signal(Signal::TERM);
        let since = Instant::now();
        assert_eq!(get(&new, &host).await, 200);
        println!("the successor's first answer comes {:.2?} after the old relay began to drain", since.elapsed());
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());

        open.send_replace(true);
        let answer = slow.message().await.expect("the old relay answers what it has");
        assert_eq!((answer.status(), &answer.body[..]), (200, &b"ok"[..]));
        assert_eq!(old.process.wait().await.code(), 0);
        assert_eq!(get(&new, &host).await, 200);
        // And nobody has noticed.
        for _ in 0..3 {
            assert_eq!(client.process.json().await["event"], "exchange");
        }
    }

    fn copy(from: &std::path::Path, to: &std::path::Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            let (kind, to) = (entry.file_type().unwrap(), to.join(entry.file_name()));
            if kind.is_dir() {
                copy(&entry.path(), &to);
            } else if kind.is_file() {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    /// Also while an attempt hangs on a network that swallows everything.
    #[tokio::test]
    async fn that_stays_away_is_given_up_when_the_user_says_so() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let token = server.token("away").await;
        let app = service().await;
        let cable = Cable::new(server.https).await;
        let mut client = client(&server, cable.addr, &token, &app, &["--max-reconnect-time", "2s"]).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        cable.lead_to(silent.local_addr().unwrap());
        server.process.kill().await;
        client.process.event("session.disconnected").await;
        let lost = Instant::now();
        let ended = client.process.wait().await;
        assert_eq!(ended.code(), 6, "{}", ended.stderr);
        println!("given up {:.2?} after the loss: {}", lost.elapsed(), ended.stderr.trim());
        assert!(lost.elapsed() < AT_ONCE, "an attempt by itself lasts for 10 s: {:?}", lost.elapsed());
    }
}

/// Relays that do as the test tells them.
mod a_relay_by_hand {
    use super::*;

    struct Relay {
        listener: TcpListener,
    }

    /// What a client was told, as lines.
    struct Told(mpsc::Sender<String>);

    impl Observer for Told {
        fn observe(&mut self, event: &Event<'_>) {
            let line = match event {
                Event::Ready { name, .. } => format!("ready {name}"),
                Event::Disconnected { reason, .. } => format!("disconnected: {reason}"),
                Event::Reconnected { .. } => "reconnected".to_owned(),
                Event::Closed { url, .. } => format!("closed {url}"),
                Event::Refused { tunnel, reason, .. } => format!("refused {tunnel}: {reason}"),
                Event::Notice(text) => format!("notice: {text}"),
                _ => return,
            };
            let _ = self.0.try_send(line);
        }
    }

    impl Relay {
        async fn start() -> Self {
            Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
        }

        fn url(&self) -> String {
            format!("http://{}", self.listener.local_addr().unwrap())
        }

        /// A client of it that runs in a task of its own, and what it is told.
        fn client(
            &self,
            app: &App,
            names: &[&str],
        ) -> (tokio::task::JoinHandle<Result<(), ClientError>>, mpsc::Receiver<String>) {
            let target = Target::new(self.url().parse().unwrap(), &Trust::System).unwrap();
            let mut client = Client::new(target).token("rly_canary".to_owned().into());
            for name in names {
                client = client.tunnel(TunnelOptions::new(app.upstream()).subdomain(*name));
            }
            let (told, lines) = mpsc::channel(1000);
            let running = async move { client.run(&mut Told(told), std::future::pending()).await };
            (tokio::spawn(running), lines)
        }

        /// The client's next connection, after its request. One that it gives up before that is none.
        async fn asked(&self) -> Wire {
            loop {
                let (tcp, _) = within("a connection of the client", self.listener.accept()).await.unwrap();
                let mut wire = Wire::new(tcp);
                if wire.head().await.is_some() {
                    return wire;
                }
            }
        }

        /// The client's next session, up to its Hello.
        async fn hello(&self) -> (Socket, Hello) {
            let mut wire = self.asked().await;
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Protocol: relay.v1\r\nSec-WebSocket-Accept: x\r\n\r\n",
            )
            .await;
            let mut socket = Socket::new(wire, false);
            let hello = socket.next_message(SessionKind::Hello).await;
            (socket, hello)
        }

        /// The client's next session, with all that it asks for, and this key.
        async fn session(&self, key: u8) -> (Socket, Hello) {
            let (mut socket, hello) = self.hello().await;
            socket.send(&[welcome(key, false, hello.tunnels.iter().map(granted).collect())]).await;
            (socket, hello)
        }

        /// As [`Relay::session`], but the name is in use. Whether the client has come with a key.
        async fn refuses(&self, resumed: bool) -> bool {
            let (mut socket, hello) = self.hello().await;
            socket.send(&[welcome(9, resumed, vec![refused(0, "name-in-use", "It is in use.")])]).await;
            assert_eq!(within("a goodbye", socket.farewell()).await, Some(GoAway::Shutdown));
            hello.resume.is_some()
        }

        /// The program `relay http` as a client of it, with this name.
        async fn program(&self, app: &App, more: &[&str]) -> Process {
            let (url, target) = (self.url(), app.addr().to_string());
            let all = ["http", &target, "--relay", &url, "--token", "rly_canary", "--subdomain", "hooks"];
            Process::spawn("relay", [&all[..], &["--output", "json"], more].concat()).await
        }
    }

    fn granted(spec: &TunnelSpec) -> Bound {
        let name = spec.name.clone().unwrap();
        let url = format!("https://{name}.relay.test");
        Bound { tunnel: spec.tunnel, result: Ok(PublicName { name, url }) }
    }

    fn refused(tunnel: u32, code: &str, message: &str) -> Bound {
        let (code, message, hint) = (code.to_owned(), message.to_owned(), String::new());
        Bound { tunnel, result: Err(Refusal { code, message, hint }) }
    }

    fn answer(bound: &Bound) -> Frame {
        Frame::Session(SessionKind::Bound, bound.to_bytes().unwrap())
    }

    fn welcome(key: u8, resumed: bool, tunnels: Vec<Bound>) -> Frame {
        let welcome = Welcome {
            session: "by hand".into(),
            version: "99.0".into(),
            resume_key: [key; 32],
            resumed,
            heartbeat_ms: 10_000,
            max_streams: 1024,
            tunnels,
            // Of a later version.
            extra: vec![relay_protocol::message::Extra { tag: 999, value: vec![1, 2, 3] }],
        };
        Frame::Session(SessionKind::Welcome, welcome.to_bytes().unwrap())
    }

    /// It would let everybody in, and not say so.
    #[tokio::test]
    async fn one_that_cannot_refuse_strangers_gets_no_tunnel_that_must() {
        let (relay, app) = (Relay::start().await, App::recording().await);
        let mut client = relay.program(&app, &["--basic-auth", "ann:secret", "--allow-path", "/hooks/*"]).await;
        let (mut socket, hello) = relay.session(1).await;
        // A stranger is faster than the client's goodbye.
        socket.send(&[open(1, hello.tunnels[0].tunnel)]).await;
        let ended = client.wait().await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(ended.stderr.contains("the relay is too old to refuse those who may not call the tunnel"), "{ended:?}");
        assert_eq!(app.requests(), 0);
    }

    /// A service that answers once it is told to.
    async fn gated() -> (App, watch::Sender<bool>) {
        let (open_gate, gate) = watch::channel(false);
        let app = App::serve(move |_| {
            let mut gate = gate.clone();
            async move {
                gate.wait_for(|open| *open).await.unwrap();
                relay_tests::app::ok("ok")
            }
        });
        (app.await, open_gate)
    }

    fn open(stream: u32, tunnel: u32) -> Frame {
        let head = RequestHead {
            tunnel,
            id: "01J0000000000000000000000".into(),
            deadline_ms: 30_000,
            elapsed_ms: 0,
            method: http::Method::GET,
            target: http::uri::PathAndQuery::from_static("/"),
            authority: "hooks.relay.test".into(),
            remote: "192.0.2.1".into(),
            upgrade: None,
            headers: Vec::new(),
        };
        let head = head.to_bytes().unwrap();
        Frame::Open { stream: id(stream), request_credit: 65_536, response_credit: 65_536, last: true, head }
    }

    /// The status of a stream's answer.
    async fn status(socket: &mut Socket, stream: u32) -> u16 {
        loop {
            match socket.next_said().await.expect("the session is up") {
                Frame::Head { stream: of, head, .. } if of.get() == stream => {
                    return relay_protocol::message::ResponseHead::from_bytes(&head).unwrap().status.as_u16();
                }
                Frame::Reset { stream: of, reset } if of.get() == stream => panic!("a reset: {reset}"),
                _ => {}
            }
        }
    }

    fn unbind(tunnel: u32) -> Frame {
        Frame::Session(SessionKind::Unbind, tunnel.to_bytes().unwrap())
    }

    fn go_away(reason: GoAway, drain: bool, text: &str) -> Frame {
        Frame::GoAway { reason, drain, text: text.to_owned() }
    }

    async fn line(lines: &mut mpsc::Receiver<String>) -> String {
        within("a line", lines.recv()).await.expect("the client runs")
    }

    #[tokio::test]
    async fn gets_the_last_key_and_the_last_request_that_was_handed_over() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["hooks"]);
        let (mut first, hello) = relay.session(1).await;
        assert_eq!(hello.resume, None);
        first.send(&[open(1, 0), open(2, 0), open(7, 0)]).await;
        assert_eq!(status(&mut first, 7).await, 200);
        drop(first);
        let (second, hello) = relay.session(2).await;
        let resume = hello.resume.expect("the session is resumed");
        assert_eq!((resume.key, resume.last_stream), ([1; 32], 7));
        assert_eq!(hello.tunnels[0].name.as_deref(), Some("hooks"));
        assert_eq!(line(&mut lines).await, "ready hooks");
        let reason = line(&mut lines).await;
        assert!(reason.starts_with("disconnected: the connection to the relay broke"), "{reason}");
        assert_eq!(line(&mut lines).await, "reconnected");
        drop(second);
        // This one does not even come to a Welcome, and so uses no key up that the client knows of.
        drop(relay.hello().await);
        let (_third, hello) = relay.session(3).await;
        let resume = hello.resume.expect("the session is resumed");
        assert_eq!((resume.key, resume.last_stream), ([2; 32], 0), "each session has its own");
        running.abort();
    }

    #[tokio::test]
    async fn that_drains_is_served_to_the_end_beside_its_successor() {
        let relay = Relay::start().await;
        let (app, open_gate) = gated().await;
        let (running, mut lines) = relay.client(&app, &["hooks"]);
        let (mut old, _) = relay.session(1).await;
        old.send(&[open(1, 0)]).await;
        app.reached(1).await;
        old.send(&[go_away(GoAway::Shutdown, true, "The relay shuts down.")]).await;
        // The old session would end with its streams if it were resumed.
        let (mut new, hello) = relay.session(2).await;
        assert_eq!(hello.resume, None);
        new.send(&[open(1, 0)]).await;
        app.reached(2).await;
        open_gate.send_replace(true);
        assert_eq!(status(&mut old, 1).await, 200);
        assert_eq!(status(&mut new, 1).await, 200);
        // The end of the old one is nothing to speak of.
        while within("the old session's end", old.next_said()).await.is_some() {}
        new.send(&[open(2, 0)]).await;
        assert_eq!(status(&mut new, 2).await, 200);
        assert_eq!(line(&mut lines).await, "ready hooks");
        assert!(lines.try_recv().is_err(), "there was no gap");
        // From now on that one counts.
        drop(new);
        let (_third, hello) = relay.session(3).await;
        assert_eq!(hello.resume.map(|resume| (resume.key, resume.last_stream)), Some(([2; 32], 2)));
        running.abort();
    }

    #[tokio::test]
    async fn that_gives_one_of_several_names_away_ends_that_tunnel_only() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["one", "two"]);
        let (mut socket, _) = relay.session(1).await;
        assert_eq!((line(&mut lines).await, line(&mut lines).await), ("ready one".into(), "ready two".into()));
        socket.send(&[unbind(0), open(1, 1)]).await;
        assert_eq!(status(&mut socket, 1).await, 200, "the other goes on");
        let notice = line(&mut lines).await;
        assert_eq!(notice, "closed https://one.relay.test");
        drop(socket);
        let (mut socket, hello) = relay.session(2).await;
        let asked: Vec<_> = hello.tunnels.iter().map(|spec| (spec.tunnel, spec.name.as_deref())).collect();
        assert_eq!(asked, [(1, Some("two"))], "what is lost is not asked for again");
        socket.send(&[unbind(1)]).await;
        let ended = within("the client's end", running).await.unwrap();
        assert!(matches!(ended, Err(ClientError::NameLost(_))), "{ended:?}");
    }

    /// A client whose session was resumed knows at once that whoever has its name is another.
    #[tokio::test]
    async fn that_has_given_the_name_away_in_the_meantime_ends_the_client() {
        let relay = Relay::start().await;
        let app = service().await;
        let mut process = relay.program(&app, &[]).await;
        let (first, _) = relay.session(1).await;
        process.event("tunnel.ready").await;
        drop(first);
        assert!(relay.refuses(true).await);
        let ended = process.wait().await;
        assert_eq!(ended.code(), 7, "{}", ended.stderr);
        assert!(ended.stderr.contains("lost while this client was away: It is in use."), "{}", ended.stderr);
    }

    /// Whatever is wrong with one, the others are up at once, and it comes back under its name when it can.
    #[tokio::test]
    async fn that_refuses_one_of_several_tunnels_serves_the_others_meanwhile() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["one", "two", "three"]);
        let (mut socket, _) = relay.session(1).await;
        for name in ["one", "two", "three"] {
            assert_eq!(line(&mut lines).await, format!("ready {name}"));
        }
        let codes = ["not-allowed", "name-in-use", "of-a-later-version"];
        for (key, code) in (2..).zip(codes) {
            drop(socket);
            let (new, hello) = relay.hello().await;
            socket = new;
            let names: Vec<_> = hello.tunnels.iter().map(|spec| spec.name.as_deref().unwrap()).collect();
            assert_eq!(names, ["one", "two", "three"], "{code}");
            assert!(hello.tunnels.iter().all(|spec| !spec.takeover));
            let mut tunnels: Vec<_> = hello.tunnels.iter().map(granted).collect();
            tunnels[1] = refused(hello.tunnels[1].tunnel, code, code);
            socket.send(&[welcome(key, false, tunnels)]).await;
            socket.send(&[open(1, hello.tunnels[0].tunnel), open(2, hello.tunnels[2].tunnel)]).await;
            assert_eq!((status(&mut socket, 1).await, status(&mut socket, 2).await), (200, 200), "{code}");
            assert!(line(&mut lines).await.starts_with("disconnected: "), "{code}");
            assert_eq!(line(&mut lines).await, format!("refused two: {code}"));
            assert_eq!(line(&mut lines).await, "reconnected");
            // Refused once more for the same reason, which is nothing new.
            let bind: TunnelSpec = within("a Bind", socket.next_message(SessionKind::Bind)).await;
            assert_eq!((bind.name.as_deref(), bind.takeover), (Some("two"), false), "{code}");
            socket.send(&[answer(&refused(bind.tunnel, code, code))]).await;
            let bind: TunnelSpec = within("a Bind", socket.next_message(SessionKind::Bind)).await;
            socket.send(&[answer(&granted(&bind)), open(3, bind.tunnel)]).await;
            assert_eq!(status(&mut socket, 3).await, 200, "{code}");
            assert_eq!(line(&mut lines).await, "ready two", "{code}");
        }
        running.abort();
    }

    #[tokio::test]
    async fn that_has_given_one_of_several_names_away_in_the_meantime_ends_that_tunnel_only() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["one", "two"]);
        let (mut socket, _) = relay.session(1).await;
        assert_eq!((line(&mut lines).await, line(&mut lines).await), ("ready one".into(), "ready two".into()));
        for (key, resumed, code) in [(2, true, "name-in-use"), (3, false, "name-taken")] {
            drop(socket);
            let (new, hello) = relay.hello().await;
            socket = new;
            let first = &hello.tunnels[0];
            let mut tunnels: Vec<_> = hello.tunnels.iter().map(granted).collect();
            tunnels[0] = refused(first.tunnel, code, "It is another's.");
            socket.send(&[welcome(key, resumed, tunnels)]).await;
            if hello.tunnels.len() > 1 {
                socket.send(&[open(1, hello.tunnels[1].tunnel)]).await;
                assert_eq!(status(&mut socket, 1).await, 200);
                assert!(line(&mut lines).await.starts_with("disconnected: "));
                assert_eq!(line(&mut lines).await, "closed https://one.relay.test");
                assert_eq!(line(&mut lines).await, "reconnected");
            }
        }
        let ended = within("the client's end", running).await.unwrap();
        assert!(matches!(ended, Err(ClientError::NameLost(_))), "{ended:?}");
    }

    /// With one tunnel, too, what somebody has to see to ends the client, and nothing else does.
    #[tokio::test]
    async fn that_refuses_all_tunnels_is_asked_again_unless_that_cannot_help() {
        for (codes, ends) in [
            (["not-allowed", "too-many-names"], true),
            (["not-allowed", "too-many-tunnels"], false),
            (["internal", "of-a-later-version"], false),
        ] {
            let relay = Relay::start().await;
            let app = service().await;
            let (running, mut lines) = relay.client(&app, &["one", "two"]);
            let (first, _) = relay.session(1).await;
            assert_eq!((line(&mut lines).await, line(&mut lines).await), ("ready one".into(), "ready two".into()));
            drop(first);
            let (mut socket, hello) = relay.hello().await;
            let tunnels = hello.tunnels.iter().zip(codes).map(|(spec, code)| refused(spec.tunnel, code, code));
            socket.send(&[welcome(2, false, tunnels.collect())]).await;
            assert_eq!(within("a goodbye", socket.farewell()).await, Some(GoAway::Shutdown));
            if ends {
                let ended = within("the client's end", running).await.unwrap();
                assert!(matches!(ended, Err(ClientError::Refused(_))), "{ended:?}");
            } else {
                let (mut socket, hello) = relay.session(3).await;
                socket.send(&[open(1, hello.tunnels[1].tunnel)]).await;
                assert_eq!(status(&mut socket, 1).await, 200);
                running.abort();
                let mut told = Vec::new();
                while let Some(line) = within("the last line", lines.recv()).await {
                    told.push(line);
                }
                assert!(told.contains(&"reconnected".to_owned()), "{told:?}");
                assert!(!told.iter().any(|line| line.starts_with("ready")), "nothing is new: {told:?}");
            }
        }
    }

    /// The session that gave nothing has taken the key of the one before it, and brings another.
    #[tokio::test]
    async fn that_resumes_a_session_and_gives_nothing_is_asked_with_its_last_key() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, _lines) = relay.client(&app, &["hooks"]);
        let (mut socket, _) = relay.session(1).await;
        socket.send(&[open(1, 0)]).await;
        assert_eq!(status(&mut socket, 1).await, 200);
        drop(socket);
        let mut expected = (1, 1);
        for (key, resumed) in [(2, false), (3, true), (4, false), (5, true)] {
            let (mut socket, hello) = relay.hello().await;
            let resume = hello.resume.expect("a key");
            assert_eq!((resume.key, resume.last_stream), ([expected.0; 32], expected.1));
            socket.send(&[welcome(key, resumed, vec![refused(0, "internal", "Not now.")])]).await;
            assert_eq!(within("a goodbye", socket.farewell()).await, Some(GoAway::Shutdown));
            if resumed {
                expected = (key, 0);
            }
        }
        running.abort();
    }

    /// Only an earlier attempt of the client itself can have had its key. It is late on its way, and nobody is behind it.
    #[tokio::test]
    async fn that_lets_an_attempt_from_before_replace_the_session_has_the_client_back() {
        let relay = Relay::start().await;
        let app = service().await;
        let mut process = relay.program(&app, &[]).await;
        let (mut socket, _) = relay.session(1).await;
        process.event("tunnel.ready").await;
        socket.send(&[go_away(GoAway::Replaced, false, "The client goes on with another session.")]).await;
        let lost = process.event("session.disconnected").await;
        assert!(lost["reason"].as_str().unwrap().contains("goes on with another session"), "{lost}");
        let (mut socket, hello) = relay.session(2).await;
        assert_eq!(hello.resume.map(|resume| resume.key), Some([1; 32]));
        process.event("session.reconnected").await;
        socket.send(&[open(1, 0)]).await;
        assert_eq!(status(&mut socket, 1).await, 200);
        // Somebody else's is another matter.
        drop(socket);
        assert!(relay.refuses(true).await);
        assert_eq!(process.wait().await.code(), 7);
    }

    /// Otherwise it may be its own last session that the relay still believes in, but not for ever.
    #[tokio::test]
    async fn that_does_not_know_the_session_is_believed_once_that_is_dead_for_certain() {
        let relay = Relay::start().await;
        let app = service().await;
        let (mut running, mut lines) = relay.client(&app, &["hooks"]);
        let (first, _) = relay.session(1).await;
        assert_eq!(line(&mut lines).await, "ready hooks");
        drop(first);
        let lost = Instant::now();
        let ended = loop {
            tokio::select! {
                _ = relay.refuses(false) => {}
                ended = &mut running => break ended.unwrap(),
            }
            assert!(lost.elapsed() < Duration::from_secs(60), "the client goes on for ever");
        };
        println!("the name is given up {:.2?} after the loss", lost.elapsed());
        assert!(matches!(ended, Err(ClientError::NameLost(_))), "{ended:?}");
        assert!(lost.elapsed() > Duration::from_secs(15), "the relay may have believed in the old session");
    }

    /// What came before is answered, and told of.
    #[tokio::test]
    async fn that_takes_the_name_away_gets_what_is_under_way() {
        let relay = Relay::start().await;
        let (app, open_gate) = gated().await;
        let mut process = relay.program(&app, &[]).await;
        let (mut socket, _) = relay.session(1).await;
        process.event("tunnel.ready").await;
        socket.send(&[open(1, 0)]).await;
        app.reached(1).await;
        socket.send(&[unbind(0)]).await;
        assert_eq!(within("a goodbye", socket.farewell()).await, Some(GoAway::Shutdown));
        open_gate.send_replace(true);
        assert_eq!(status(&mut socket, 1).await, 200);
        socket.send(&[go_away(GoAway::Shutdown, true, "")]).await;
        assert_eq!(process.event("exchange").await["status"], 200);
        assert_eq!(process.wait().await.code(), 7);
    }

    #[tokio::test]
    async fn that_revokes_the_token_leaves_a_line_for_each_request_under_way() {
        let relay = Relay::start().await;
        let (app, _gate) = gated().await;
        let mut process = relay.program(&app, &[]).await;
        let (mut socket, _) = relay.session(1).await;
        process.event("tunnel.ready").await;
        socket.send(&[open(1, 0), open(2, 0)]).await;
        app.reached(2).await;
        let since = Instant::now();
        socket.send(&[go_away(GoAway::Revoked, false, "The token has ended.")]).await;
        for _ in 0..2 {
            assert_eq!(process.event("exchange").await["error"], "link-lost");
        }
        let ended = process.wait().await;
        assert_eq!(ended.code(), 3, "{}", ended.stderr);
        assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    }

    /// What nobody will answer any more is asked of the successor.
    #[tokio::test]
    async fn that_drains_when_another_tunnel_is_wanted_leaves_that_to_its_successor() {
        let relay = Relay::start().await;
        let (app, open_gate) = gated().await;
        let target = Target::new(relay.url().parse().unwrap(), &Trust::System).unwrap();
        let named = |name: &str| {
            TunnelOptions { label: Some(name.to_owned()), ..TunnelOptions::new(app.upstream()) }.subdomain(name)
        };
        let client = Client::new(target).tunnel(named("one"));
        let tunnels = client.tunnels();
        let (told, mut lines) = mpsc::channel(1000);
        let running = tokio::spawn(async move { client.run(&mut Told(told), std::future::pending()).await });
        let (mut old, _) = relay.session(1).await;
        assert_eq!(line(&mut lines).await, "ready one");
        old.send(&[open(1, 0)]).await;
        app.reached(1).await;
        old.send(&[go_away(GoAway::Shutdown, true, "")]).await;
        let (mut new, hello) = relay.hello().await;
        tunnels.send_modify(|tunnels| tunnels.push(named("two")));
        let bind: TunnelSpec = old.next_message(SessionKind::Bind).await;
        assert_eq!(bind.name.as_deref(), Some("two"));
        new.send(&[welcome(2, false, hello.tunnels.iter().map(granted).collect())]).await;
        let bind: TunnelSpec = within("the successor's Bind", new.next_message(SessionKind::Bind)).await;
        assert_eq!(bind.name.as_deref(), Some("two"));
        new.send(&[answer(&granted(&bind))]).await;
        assert_eq!(line(&mut lines).await, "ready two");
        open_gate.send(true).unwrap();
        assert_eq!(status(&mut old, 1).await, 200);
        new.send(&[open(1, bind.tunnel)]).await;
        assert_eq!(status(&mut new, 1).await, 200);
        running.abort();
    }

    /// As long as the old relay serves, there is a session.
    #[tokio::test]
    async fn that_drains_for_long_is_not_away() {
        let relay = Relay::start().await;
        let (app, open_gate) = gated().await;
        let mut process = relay.program(&app, &["--max-reconnect-time", "1s"]).await;
        let (mut old, _) = relay.session(1).await;
        process.event("tunnel.ready").await;
        old.send(&[open(1, 0)]).await;
        app.reached(1).await;
        old.send(&[go_away(GoAway::Shutdown, true, "The relay shuts down.")]).await;
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(3) {
            drop(relay.asked().await);
        }
        open_gate.send_replace(true);
        assert_eq!(status(&mut old, 1).await, 200);
        drop(old);
        let ended = tokio::select! {
            ended = process.wait() => ended,
            () = async { loop { drop(relay.asked().await) } } => unreachable!(),
        };
        assert_eq!(ended.code(), 6, "{}", ended.stderr);
        assert!(ended.stdout.contains(r#""status":200"#), "{}", ended.stdout);
    }

    /// A relay that is broken for a moment is no reason to give up.
    #[tokio::test]
    async fn that_answers_nonsense_is_asked_again_by_who_was_connected() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["hooks"]);
        let (first, _) = relay.session(1).await;
        assert_eq!(line(&mut lines).await, "ready hooks");
        drop(first);
        let elsewhere = PublicName { name: "hooks2".into(), url: "not a url".into() };
        let odd = refused(0, "of-a-later-version", "Not now.");
        for tunnels in [Vec::new(), vec![Bound { tunnel: 0, result: Ok(elsewhere) }], vec![odd]] {
            let (mut socket, _) = relay.hello().await;
            socket.send(&[welcome(2, false, tunnels)]).await;
            assert_eq!(within("a goodbye", socket.farewell()).await, Some(GoAway::Shutdown));
        }
        let (mut socket, hello) = relay.session(3).await;
        assert_eq!(hello.tunnels[0].name.as_deref(), Some("hooks"));
        socket.send(&[open(1, 0)]).await;
        assert_eq!(status(&mut socket, 1).await, 200);
        running.abort();
    }

    /// A token that ends between the upgrade and the Welcome is no transient failure.
    #[tokio::test]
    async fn that_revokes_the_token_before_its_welcome_is_not_asked_again() {
        for (reason, is_back) in [(GoAway::Revoked, false), (GoAway::Expired, true)] {
            let relay = Relay::start().await;
            let app = service().await;
            let (running, mut lines) = relay.client(&app, &["hooks"]);
            if is_back {
                let _first = relay.session(1).await;
                assert_eq!(line(&mut lines).await, "ready hooks");
            }
            let (mut socket, _) = relay.hello().await;
            socket.send(&[go_away(reason, false, "The token has ended.")]).await;
            let ended = within("the client's end", running).await.unwrap();
            let Err(ClientError::Unauthorized(text)) = ended else { panic!("{reason}: {ended:?}") };
            assert_eq!(text, "The token has ended.");
            let again = tokio::time::timeout(Duration::from_millis(500), relay.listener.accept()).await;
            assert!(again.is_err(), "{reason}: the relay is hammered");
        }
    }

    /// At the start the user is told; later the other version may be an upgrade that is taken back.
    #[tokio::test]
    async fn of_another_version_refuses_in_words_and_is_asked_again_only_by_who_was_connected() {
        let body = r#"{"error":{"code":"upgrade-required","message":"This relay speaks relay.v7.","hint":"Update."}}"#;
        let refusal = format!(
            "HTTP/1.1 426 Upgrade Required\r\nRelay-Error: upgrade-required\r\nSec-WebSocket-Protocol: relay.v7\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let relay = Relay::start().await;
        let app = service().await;
        let url = relay.url();
        let target = app.addr().to_string();
        let mut process = Process::spawn("relay", ["http", &target, "--relay", &url, "--token", "rly_canary"]).await;
        relay.asked().await.send(&refusal).await;
        let ended = process.wait().await;
        assert_eq!(ended.code(), 5, "{}", ended.stderr);
        assert!(ended.stderr.contains("This relay speaks relay.v7. Update."), "{}", ended.stderr);

        let (running, mut lines) = relay.client(&app, &["hooks"]);
        let (first, _) = relay.session(1).await;
        assert_eq!(line(&mut lines).await, "ready hooks");
        drop(first);
        relay.asked().await.send(&refusal).await;
        let (mut socket, _) = relay.session(2).await;
        // Frames of a later version that may be skipped.
        socket.send(&[Frame::Skipped, open(1, 0)]).await;
        assert_eq!(status(&mut socket, 1).await, 200);
        assert!(line(&mut lines).await.starts_with("disconnected: the connection"));
        assert_eq!(line(&mut lines).await, "disconnected: This relay speaks relay.v7. Update.");
        assert_eq!(line(&mut lines).await, "reconnected");
        running.abort();
    }

    #[tokio::test]
    async fn ends_a_session_for_a_reason_that_is_passed_on_in_words() {
        let relay = Relay::start().await;
        let app = service().await;
        let (running, mut lines) = relay.client(&app, &["hooks"]);
        let (mut socket, _) = relay.session(1).await;
        assert_eq!(line(&mut lines).await, "ready hooks");
        for (reason, text, told) in [
            (GoAway::Shutdown, "The relay shuts down.", "the relay shuts down"),
            (GoAway::Silent, "nothing was heard", "the relay heard nothing from this client for too long"),
            (GoAway::Internal, "A disk broke.", "the relay ended the session: A disk broke"),
            (GoAway::Other(4711), "Of a later version.", "the relay ended the session: Of a later version"),
        ] {
            socket.send(&[go_away(reason, false, text)]).await;
            (socket, _) = relay.session(1).await;
            assert_eq!(line(&mut lines).await, format!("disconnected: {told}"));
            assert_eq!(line(&mut lines).await, "reconnected");
        }
        running.abort();
    }

    /// A tunnel in a program's hands holds on as the command does.
    #[tokio::test]
    async fn that_is_lost_is_found_again_by_a_tunnel() {
        let relay = Relay::start().await;
        let app = service().await;
        let target = Target::new(relay.url().parse().unwrap(), &Trust::System).unwrap();
        let client = Client::new(target).token("rly_canary".to_owned().into());
        let starting = tokio::spawn(Tunnel::start(client, TunnelOptions::new(app.upstream()).subdomain("hooks")));
        let (first, _) = relay.session(1).await;
        let mut tunnel = within("a tunnel", starting).await.unwrap().unwrap();
        drop(first);
        let (mut socket, _) = relay.session(2).await;
        socket.send(&[open(1, 0)]).await;
        assert_eq!(status(&mut socket, 1).await, 200);
        let exchange = within("an exchange", tunnel.exchange()).await.unwrap();
        assert_eq!((exchange.status, exchange.path.as_str()), (Some(200), "/"));
    }
}
