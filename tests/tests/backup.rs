//! What an operator has of `relay-server backup`: all that was acknowledged before it, on another machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use relay_tests::process::{Ended, run};
use relay_tests::tools::{output, program};
use relay_tests::{App, Place, RelayServer, within};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::sleep;

const INBOX: [&str; 3] = ["--inbox", "--inspect", "off"];

/// `relay-server backup`, of the data directory `from`.
async fn backup(from: &Path, to: &Path) -> Ended {
    run("relay-server", ["backup", "--data-dir", from.to_str().unwrap(), to.to_str().unwrap()]).await
}

/// Now and then one that is a file of its own.
fn length(number: usize) -> usize {
    if number % 10 == 9 { 300_000 } else { 1_000 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_has_all_that_was_acknowledged_before_it() {
    let mut place = Place::new().await;
    place.client(&App::echo().await, "hooks", &INBOX).await.process.kill().await;
    // Webhooks of this one come and go while the backup is made.
    let busy = place.client(&App::echo().await, "busy", &INBOX).await;
    let place_then = Arc::new(place);
    let acknowledged: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let mut senders = JoinSet::new();
    for sender in 0..6 {
        let (place, acknowledged) = (place_then.clone(), acknowledged.clone());
        senders.spawn(async move {
            for number in 0.. {
                let (path, length) = (format!("/{sender}/{number}"), length(number));
                if sender < 2 {
                    assert_eq!(place.post("busy", &path, vec![b'x'; length]).await.code(), 200);
                    continue;
                }
                assert_eq!(place.post("hooks", &path, vec![b'x'; length]).await.code(), 202);
                acknowledged.lock().unwrap().insert(path, length);
            }
        });
    }
    let some = async |more: usize| {
        let wanted = acknowledged.lock().unwrap().len() + more;
        within("webhooks", async {
            while acknowledged.lock().unwrap().len() < wanted {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    };
    some(200).await;
    let before = acknowledged.lock().unwrap().clone();
    let backups = tempfile::tempdir().unwrap();
    let to = backups.path().join("today");
    let ended = backup(place_then.relay.data_dir(), &to).await;
    assert!(ended.code() == 0 && ended.stdout.contains("1 tokens, 2 inboxes, "), "{ended:?}");
    // The relay has gone on, and is lost with what came later.
    some(20).await;
    senders.shutdown().await;
    drop(busy);
    place = Arc::into_inner(place_then).unwrap();
    let https = place.relay.https.to_string();
    place.relay.process.kill().await;

    // As docs/backup.md says it is restored.
    let home = Arc::new(tempfile::tempdir().unwrap());
    output(Command::new(program("cp")).arg("-a").arg(&to).arg(home.path().join("data"))).await;
    place.relay = RelayServer::spawn_in(home, ["--https", &https]).await;
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &INBOX).await;
    let drain = place.with_way(&["inbox", "drain", "hooks", "--within", "25s"]);
    let drained = place.spawn(drain).await.wait().await;
    assert!(drained.status.success(), "{drained:?}");
    let delivered: HashSet<_> = app.seen().into_iter().map(|seen| (seen.target, seen.body.len())).collect();
    let lost: Vec<_> = before.into_iter().filter(|webhook| !delivered.contains(webhook)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(place.post("hooks", "/after", "x").await.code(), 200, "the certificate is as it was, too");
}

#[tokio::test]
async fn a_backup_is_for_its_maker_alone_and_takes_no_name_that_is_taken() {
    let mut place = Place::new().await;
    place.client(&App::echo().await, "hooks", &INBOX).await.process.kill().await;
    assert_eq!(place.post("hooks", "/", vec![0; 300_000]).await.code(), 202);
    place.relay.process.terminate().await;
    let backups = tempfile::tempdir().unwrap();
    let to = backups.path().join("today");
    let ended = backup(place.relay.data_dir(), &to).await;
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "also where no relay runs: {ended:?}");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let directories = [to.clone(), to.join("inbox"), to.join("ca")];
    assert!(directories.iter().all(|directory| mode(directory) == 0o700), "{directories:?}");
    let bodies = std::fs::read_dir(to.join("inbox")).unwrap().map(|body| body.unwrap().path());
    let files: Vec<_> = bodies.chain([to.join("relay.db"), to.join("inbox.db")]).collect();
    assert!(files.len() == 3 && files.iter().all(|file| mode(file) == 0o600), "{files:?}");

    let again = backup(place.relay.data_dir(), &to).await;
    assert!(again.code() == 1 && again.stderr.contains("choose a name that is free"), "{again:?}");
    let nowhere = backup(backups.path(), &backups.path().join("other")).await;
    assert!(nowhere.code() == 1 && nowhere.stderr.contains("--data-dir"), "{nowhere:?}");
    assert_eq!(std::fs::read_dir(backups.path()).unwrap().count(), 1, "nothing but the backup");
}
