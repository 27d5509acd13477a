//! What was acknowledged is delivered, whatever is killed meanwhile.
//!
//! Senders number their webhooks and note which were acknowledged, while the relay, the client and the application are
//! killed at random moments, or the client is frozen. Then everything has to be there. `tests/run crash [N]` does that 200
//! times or as often as it is told; the suite, six times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Request;
use relay_tests::body::full;
use relay_tests::tools::{app_file, program};
use relay_tests::world::try_connect_tls;
use relay_tests::{Answer, Http, Place, Process, RelayClient, RelayServer, within};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Senders at the same time.
const SENDERS: usize = 4;
/// Webhooks by which they are ahead of the application at most.
const AHEAD: usize = 100;

/// A webhook: its sender, and its number there.
type Number = (usize, usize);

/// What the senders share.
struct Sent {
    https: SocketAddr,
    host: String,
    ca: PathBuf,
    acknowledged: Mutex<HashSet<Number>>,
    count: AtomicUsize,
    /// As many has the application.
    taken: AtomicUsize,
}

impl Sent {
    /// Sends numbered webhooks for ever, each after the one before was acknowledged. One that is not is sent again, as its
    /// provider would, or left, where it may come late otherwise.
    async fn go_on(self: Arc<Self>, sender: usize, ordered: bool) {
        let (mut number, mut http) = (0, None);
        loop {
            // What waits is to be through soon after the last crash.
            while self.count() > self.taken.load(SeqCst) + AHEAD {
                sleep(Duration::from_millis(1)).await;
            }
            let answer = self.send(&mut http, (sender, number)).await;
            match &answer {
                Some(answer) if answer.status.is_success() => {
                    self.acknowledged.lock().unwrap().insert((sender, number));
                    self.count.fetch_add(1, SeqCst);
                    number += 1;
                }
                Some(_) if ordered => number += 1,
                Some(_) => {}
                None => {
                    number += usize::from(ordered);
                    // A relay that was killed is back in a moment; nothing waits for this.
                    sleep(Duration::from_millis(5)).await;
                }
            }
        }
    }

    /// An event of GitHub's; none where the connection breaks.
    async fn send(&self, http: &mut Option<Http>, (sender, number): Number) -> Option<Answer> {
        let mut connection = match http.take() {
            Some(connection) => connection,
            None => Http::one(try_connect_tls(self.https, &self.host, &self.ca, &[b"http/1.1"]).await.ok()?).await,
        };
        let path = format!("/{sender}/{number}");
        let request = Request::post(format!("https://{}{path}", self.host))
            .header("x-github-event", "push")
            .header("x-github-delivery", format!("{sender:08x}-0000-0000-0000-{number:012x}"))
            .header("x-github-hook-id", "1")
            .header("user-agent", "GitHub-Hookshot/044aadd")
            .header("content-type", "application/json");
        let answer = connection.try_answer(request.body(full(path)).unwrap()).await;
        *http = answer.is_some().then_some(connection);
        answer
    }

    fn count(&self) -> usize {
        self.count.load(SeqCst)
    }
}

/// What is killed, and what is left of it in the end.
struct Crash {
    place: Place,
    config: String,
    client: RelayClient,
    /// A client that stands still.
    frozen: Option<RelayClient>,
    app: Process,
    app_port: String,
    inbox: &'static str,
}

impl Crash {
    async fn begin(inbox: &'static str) -> Self {
        let home = Arc::new(tempfile::tempdir().unwrap());
        let config = home.path().join("relay-server.toml");
        let limits = "inbox_retry = '20ms'\nclient_wait = '50ms'\ninbox_delivered_count = 10000000";
        std::fs::write(&config, format!("[limits]\n{limits}\n")).unwrap();
        let config = config.display().to_string();
        let place = Place::of(RelayServer::spawn_in(home, ["--config", &config, "--timeout", "2s"]).await).await;
        let (app, app_port) = Self::app(&place, "0").await;
        let client = Self::client(&place, &app_port, inbox).await;
        Self { place, config, client, frozen: None, app, app_port, inbox }
    }

    async fn app(place: &Place, port: &str) -> (Process, String) {
        let notes = place.home.path().join("notes").display().to_string();
        let words = [app_file("numbered_app.py").display().to_string(), notes, port.to_owned()];
        let python = program("python3").display().to_string();
        let mut app = Process::spawn_in(place.home.clone(), &python, words, &[]).await;
        let line = app.line().await.unwrap_or_else(|| panic!("{}", app.said()));
        (app, line.rsplit_once(':').unwrap().1.to_owned())
    }

    async fn client(place: &Place, port: &str, inbox: &str) -> RelayClient {
        let words = ["http", port, "--subdomain", "hooks", inbox, "--timeout", "500ms", "--takeover"];
        let words = [&words[..], &["--inspect", "off", "--output", "json"]].concat();
        // In a home of its own: two of one user would find each other.
        RelayClient::spawn(place.with_way(&words)).await
    }

    /// What the app has taken, in that order.
    fn taken(&self) -> Vec<Number> {
        let notes = std::fs::read_to_string(self.place.home.path().join("notes")).unwrap_or_default();
        let taken = notes.lines().filter_map(|line| line.strip_suffix(" 200"));
        let number = |path: &str| path[1..].split_once('/').map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
        taken.map(|path| number(path).unwrap()).collect()
    }

    /// Ends something, and starts it again.
    async fn one(&mut self) -> &'static str {
        match fastrand::u8(..8) {
            0..3 => {
                self.place.relay.process.kill().await;
                let (home, https) = (self.place.relay.process.home().clone(), self.place.relay.https.to_string());
                self.place.relay =
                    RelayServer::spawn_in(home, ["--config", &self.config, "--timeout", "2s", "--https", &https]).await;
                "relay"
            }
            3..5 => {
                self.client.process.kill().await;
                self.client = Self::client(&self.place, &self.app_port, self.inbox).await;
                "client"
            }
            5..7 => {
                self.app.kill().await;
                self.app = Self::app(&self.place, &self.app_port).await.0;
                "application"
            }
            _ => {
                match self.frozen.take() {
                    // Another one has its place by now, and it has things to deliver still.
                    Some(old) => old.process.signal(Signal::CONT),
                    None => {
                        self.client.process.signal(Signal::STOP);
                        let next = Self::client(&self.place, &self.app_port, self.inbox).await;
                        self.frozen = Some(std::mem::replace(&mut self.client, next));
                    }
                }
                "freeze"
            }
        }
    }
}

/// How often something is killed.
fn crashes() -> usize {
    std::env::var("RELAY_CRASHES").ok().and_then(|many| many.parse().ok()).unwrap_or(6)
}

async fn whatever_is_killed(inbox: &'static str, crashes: usize) {
    let (begun, ordered) = (Instant::now(), inbox.contains("ordered"));
    let mut crash = Crash::begin(inbox).await;
    let sent = Arc::new(Sent {
        https: crash.place.relay.https,
        host: crash.client.host(),
        ca: crash.place.relay.ca_file(),
        acknowledged: Mutex::default(),
        count: AtomicUsize::new(0),
        taken: AtomicUsize::new(0),
    });
    let mut senders = JoinSet::new();
    (0..SENDERS).for_each(|sender| drop(senders.spawn(sent.clone().go_on(sender, ordered))));
    let mut killed = Vec::new();
    for _ in 0..crashes {
        // In the middle of what comes, or of what goes.
        let (acknowledged, taken) =
            (sent.count() + fastrand::usize(1..40), crash.taken().len() + fastrand::usize(1..20));
        let wait_for_taken = fastrand::bool();
        within("webhooks that are acknowledged, and taken", async {
            loop {
                let now = crash.taken().len();
                sent.taken.store(now, SeqCst);
                if if wait_for_taken { now >= taken } else { sent.count() >= acknowledged } {
                    break;
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        killed.push(crash.one().await);
    }
    senders.shutdown().await;
    // Who stands still cannot be told from who is slow; it is not to come back after all the others.
    if let Some(mut old) = crash.frozen.take() {
        old.process.kill().await;
    }
    // As a person would, who does not want to wait for what rests after its failures.
    let drain = crash.place.with_way(&["inbox", "drain", "hooks", "--within", "25s"]);
    let ended = crash.place.spawn(drain).await.wait().await;
    assert!(ended.status.success(), "{ended:?}\n{}", crash.place.relay.process.said());
    let acknowledged = sent.acknowledged.lock().unwrap().clone();
    let taken = crash.taken();
    let lost: Vec<_> = acknowledged.iter().filter(|number| !taken.contains(number)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}; killed: {killed:?}");
    if ordered {
        for sender in 0..SENDERS {
            // One that was taken and whose answer was lost comes again; it came in its place before.
            let mut first = HashSet::new();
            let order: Vec<_> = taken.iter().filter(|it| it.0 == sender && first.insert(it.1)).map(|it| it.1).collect();
            assert!(order.is_sorted(), "out of order: {order:?}; killed: {killed:?}");
        }
    }
    // All of it is confirmed now, so nothing of it is delivered again.
    let mut http = None;
    for number in &acknowledged {
        let answer = within("an answer", sent.send(&mut http, *number)).await.unwrap();
        let what = answer.headers.get("relay-inbox").map(|what| what.to_str().unwrap()).unwrap_or_default();
        assert!(answer.status.is_success() && what.starts_with("delivered; id="), "{number:?}: {answer:?}");
    }
    assert_eq!(crash.taken().len(), taken.len(), "delivered again");
    let count = |what: &str| killed.iter().filter(|killed| **killed == what).count();
    println!(
        "{inbox}: {} webhooks acknowledged, {} taken; killed: relay {}, client {}, application {}; client frozen or woken {}; {} s",
        acknowledged.len(),
        taken.len(),
        count("relay"),
        count("client"),
        count("application"),
        count("freeze"),
        begun.elapsed().as_secs(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_delivered_whatever_is_killed() {
    whatever_is_killed("--inbox=attempts=100000,rate=10000", crashes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn and_in_order_where_that_is_asked_for() {
    whatever_is_killed("--inbox=ordered,attempts=100000,rate=10000", crashes()).await;
}
