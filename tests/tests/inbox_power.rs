//! What was acknowledged is there after a power cut: the relay's data is in a file with a file system of its own, and what
//! that file has while the relay stands still is what a disk would have.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_tests::tools::{eatmydata, output, program};
use relay_tests::{App, Disk, Place, RelayServer, within};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::sleep;

const INBOX: [&str; 3] = ["--inbox", "--inspect", "off"];

/// Those that were acknowledged before the power was cut, and those that are delivered after it.
async fn cut(variables: &[(&str, &str)]) -> (HashSet<String>, HashSet<String>) {
    let files = tempfile::tempdir().unwrap();
    let disk = Disk::image(&files.path().join("disk")).await;
    let home = Arc::new(tempfile::tempdir().unwrap());
    // The disk is smaller than what is left free of one otherwise.
    let config = files.path().join("relay-server.toml");
    std::fs::write(&config, "[limits]\ninbox_free = 0\n").unwrap();
    let config = config.display().to_string();
    let relay = RelayServer::spawn_on(&disk, home, ["--config", &config], variables).await;
    let place = Arc::new(Place::of(relay).await);
    place.client(&App::echo().await, "hooks", &INBOX).await.process.kill().await;
    // The token and the inbox are there in any case.
    output(Command::new(program("sync")).arg("-f").arg(place.relay.data_dir())).await;
    let acknowledged: Arc<Mutex<HashSet<String>>> = Arc::default();
    let mut senders = JoinSet::new();
    for sender in 0..8 {
        let (place, acknowledged) = (place.clone(), acknowledged.clone());
        senders.spawn(async move {
            for number in 0.. {
                let path = format!("/{sender}/{number}");
                // Now and then one that is a file of its own.
                let length = if number % 10 == 9 { 300_000 } else { 1_000 };
                assert_eq!(place.post("hooks", &path, vec![b'x'; length]).await.code(), 202);
                acknowledged.lock().unwrap().insert(path);
            }
        });
    }
    within("some hundred webhooks", async {
        while acknowledged.lock().unwrap().len() < 300 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    place.relay.process.signal(Signal::STOP);
    // An answer that is on its way is no later than what is on disk.
    let told = acknowledged.lock().unwrap().clone();
    let after = disk.after_power_cut(&files.path().join("after"));
    senders.shutdown().await;
    let mut place = Arc::into_inner(place).unwrap();
    let (home, https) = (place.relay.process.home().clone(), place.relay.https.to_string());
    place.relay.process.kill().await;
    place.relay = RelayServer::spawn_on(&after, home, ["--config", &config, "--https", &https], &[]).await;
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &INBOX).await;
    let drain = place.with_way(&["inbox", "drain", "hooks", "--within", "25s"]);
    let drained = place.spawn(drain).await.wait().await;
    assert!(drained.status.success(), "{drained:?}");
    (told, app.seen().into_iter().map(|seen| seen.target).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let (acknowledged, delivered) = cut(&[]).await;
    let lost: Vec<_> = acknowledged.difference(&delivered).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// The control: what is not synced does not survive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_is_noticed_where_nothing_is_synced() {
    let (variable, library) = eatmydata();
    let (acknowledged, delivered) = cut(&[(variable, &library)]).await;
    assert!(acknowledged.difference(&delivered).count() > 0, "the test would notice no loss");
}
