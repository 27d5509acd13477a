//! What an inbox does where the disk is full: it accepts nothing, loses nothing, and goes on by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use relay_tests::{Answer, App, Disk, Place, RelayClient, RelayServer, within};
use tokio::time::sleep;

const INBOX: [&str; 3] = ["--inbox", "--inspect", "off"];

/// A relay whose data is on a disk of 48 MiB, an inbox `hooks` whose client is away, and a live tunnel `live`.
async fn small() -> (Place, App, RelayClient) {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let config = home.path().join("relay-server.toml");
    std::fs::write(&config, "[limits]\ninbox_free = 16777216\ninbox_retry = '20ms'\nclient_wait = '1ms'\n").unwrap();
    let words = ["--config", &config.display().to_string()];
    let place = Place::of(RelayServer::spawn_on(&Disk::Small(48 * 1024), home, words, &[]).await).await;
    place.client(&App::echo().await, "hooks", &INBOX).await.process.kill().await;
    let app = App::echo().await;
    let live = place.client(&app, "live", &["--inspect", "off"]).await;
    (place, app, live)
}

/// Posts a webhook with its number, and returns whether it was acknowledged. Nothing but a full disk is a reason why not.
async fn is_acknowledged(place: &Place, number: usize, length: usize) -> bool {
    let answer: Answer = place.post("hooks", &format!("/{number}"), vec![b'x'; length]).await;
    match answer.code() {
        202 => true,
        507 => {
            assert_eq!(answer.error(), Some("inbox-full"));
            assert!(answer.headers.contains_key("retry-after"));
            false
        }
        _ => panic!("{number}: {answer:?}\n{}", place.relay.process.said()),
    }
}

/// Takes the room that is left.
fn fill(place: &Place) -> PathBuf {
    let path = place.relay.data_dir().join("somebody-elses");
    let mut file = std::fs::File::create(&path).unwrap();
    let block = [1; 4096];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    path
}

/// What was acknowledged reaches the app, and nothing is given up.
async fn is_delivered(place: &Place, acknowledged: &HashSet<usize>) {
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &INBOX).await;
    let seen = || -> HashSet<usize> { app.seen().iter().map(|seen| seen.target[1..].parse().unwrap()).collect() };
    within("all that was acknowledged", async {
        while !acknowledged.is_subset(&seen()) {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn somebody_else_fills_the_disk() {
    let (place, _app, _live) = small().await;
    let mut acknowledged = HashSet::new();
    for number in 0..50 {
        assert!(is_acknowledged(&place, number, 100).await);
        acknowledged.insert(number);
    }
    let filler = fill(&place);
    let mut refused = 0;
    for number in 50..150 {
        // What still has room in the last pages is as good as any other.
        let length = if number % 5 == 0 { 300_000 } else { 20_000 };
        if is_acknowledged(&place, number, length).await {
            acknowledged.insert(number);
        } else {
            refused += 1;
        }
    }
    assert!(refused > 90, "{refused} refused");
    assert_eq!(place.post("live", "/", "x").await.text(), "x", "tunnels without an inbox go on");
    let ready = place.relay.get_admin("/readyz").await;
    assert!(ready.code() == 503 && ready.text().contains("full"), "{ready:?}");

    std::fs::remove_file(filler).unwrap();
    for number in 150..200 {
        assert!(is_acknowledged(&place, number, 100).await, "there is room again");
        acknowledged.insert(number);
    }
    assert_eq!(place.relay.get_admin("/readyz").await.code(), 200);
    is_delivered(&place, &acknowledged).await;
}

/// Nobody makes room here but the client, who takes what waits.
#[tokio::test]
async fn an_inbox_that_has_filled_the_disk_empties() {
    let (place, _app, _live) = small().await;
    let mut acknowledged = HashSet::new();
    for length in [100_000, 10_000, 100] {
        for number in acknowledged.len().. {
            if !is_acknowledged(&place, number, length).await {
                break;
            }
            acknowledged.insert(number);
        }
    }
    assert!(acknowledged.len() > 10);
    is_delivered(&place, &acknowledged).await;
    within("room for the next", async {
        while !is_acknowledged(&place, 1_000_000, 10_000).await {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
