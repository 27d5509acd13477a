//! What was acknowledged is delivered, whatever is killed meanwhile.
//!
//! The suite kills a few times; `RELAY_CRASHES=200 tests/run whatever_is_killed` does so for longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use relay_tests::body::{empty, full};
use relay_tests::world::try_connect_tls;
use relay_tests::{App, Http, RelayClient, RelayServer, within};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Senders at the same time.
const SENDERS: u64 = 4;

/// What the senders share.
struct Sent {
    https: SocketAddr,
    host: String,
    ca: PathBuf,
    next: AtomicU64,
    acknowledged: Mutex<HashSet<u64>>,
}

impl Sent {
    /// Sends numbered webhooks for ever, and notes which were acknowledged.
    async fn go_on(self: Arc<Self>) {
        loop {
            // A relay that was killed is back in a moment; nothing waits for this.
            if self.some().await.is_none() {
                sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Some of them on one connection, until it breaks.
    async fn some(&self) -> Option<()> {
        let tls = try_connect_tls(self.https, &self.host, &self.ca, &[b"http/1.1"]).await.ok()?;
        // Killed in the middle of the handshake, it is none.
        let mut http = Http::one(tls).await;
        loop {
            let number = self.next.fetch_add(1, SeqCst);
            let request = Request::post(format!("https://{}/{number}", self.host)).body(full(number.to_string()));
            let answer = http.try_answer(request.unwrap()).await?;
            if answer.status.is_success() {
                self.acknowledged.lock().unwrap().insert(number);
            }
        }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_delivered_whatever_is_killed() {
    let crashes: u64 = std::env::var("RELAY_CRASHES").ok().and_then(|many| many.parse().ok()).unwrap_or(3);
    let home = Arc::new(tempfile::tempdir().unwrap());
    let config = home.path().join("relay-server.toml");
    std::fs::write(&config, "[limits]\ninbox_retry = '20ms'\ninbox_ack = '500ms'\nclient_wait = '50ms'\n").unwrap();
    let config = config.display().to_string();
    let mut relay = RelayServer::spawn_in(home.clone(), ["--config", &config]).await;
    let (https, token) = (relay.https, relay.token("t").await);
    let address = https.to_string();

    let delivered: Arc<Mutex<HashSet<u64>>> = Arc::default();
    let seen = delivered.clone();
    let app = App::serve(move |request: Request<hyper::body::Incoming>| {
        let seen = seen.clone();
        async move {
            let mut response = Response::new(empty());
            let path: u64 = request.uri().path().trim_start_matches('/').parse().unwrap();
            // An app that was killed has not read all of it, and says nothing.
            let Ok(body) = request.into_body().collect().await else { return response };
            assert_eq!(body.to_bytes(), path.to_string(), "whole, or not at all");
            // One in ten fails the first time.
            if path.is_multiple_of(10) && fastrand::bool() {
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            } else {
                seen.lock().unwrap().insert(path);
            }
            response
        }
    })
    .await;
    let target = app.addr().to_string();
    let arguments = |relay: &RelayServer| -> Vec<String> {
        let ca = relay.ca_file().display().to_string();
        let all = ["http", &target, "--relay", &relay.url, "--relay-ca", &ca, "--relay-addr", &address];
        let all = all.into_iter().chain(["--token", &token, "--output", "json"]);
        all.chain(["--subdomain", "hooks", "--inbox", "--inspect", "off", "--takeover"]).map(str::to_owned).collect()
    };
    let mut client = RelayClient::spawn(arguments(&relay)).await;
    let (next, acknowledged) = (AtomicU64::new(1), Mutex::default());
    let sent = Arc::new(Sent { https, host: client.host(), ca: relay.ca_file(), next, acknowledged });
    let mut senders = JoinSet::new();
    (0..SENDERS).for_each(|_| drop(senders.spawn(sent.clone().go_on())));
    for crash in 0..crashes {
        let until = sent.count() + fastrand::usize(1..40);
        within("some more are acknowledged", async {
            while sent.count() < until {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        if crash % 3 == 2 {
            client.process.kill().await;
            client = RelayClient::spawn(arguments(&relay)).await;
        } else {
            relay.process.kill().await;
            relay = RelayServer::spawn_in(home.clone(), ["--config", &config, "--https", &address]).await;
        }
    }
    senders.shutdown().await;
    let acknowledged = sent.acknowledged.lock().unwrap().clone();
    within("all that was acknowledged is delivered", async {
        while !acknowledged.iter().all(|number| delivered.lock().unwrap().contains(number)) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    println!("{} webhooks acknowledged, {crashes} crashes, {} delivered", acknowledged.len(), app.requests());
}
