//! A webhook is acknowledged once the disk has it: seen in the system calls of the real relay, with a disk that fails, and
//! with one that is slow.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use relay_tests::body::full;
use relay_tests::strace::Call;
use relay_tests::tools::eatmydata;
use relay_tests::{Answer, App, Http, Place, RelayServer, Strace, within};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What goes to the disk and to the network.
const CALLS: [&str; 2] = ["-e", "trace=fsync,fdatasync,pwrite64,write,writev,sendto,sendmsg"];

/// A relay with the inbox `hooks`, whose client is away.
async fn relay(config: &str, variables: &[(&str, &str)]) -> Place {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let file = home.path().join("relay-server.toml");
    std::fs::write(&file, format!("[limits]\ninbox_retry = '20ms'\nclient_wait = '1ms'\n{config}")).unwrap();
    // In the clear, so that its answers can be read where it writes them.
    let words = ["--config", &file.display().to_string(), "--http-mode", "serve"];
    let place = Place::of(RelayServer::spawn_with(home, words, variables).await).await;
    place.client(&App::echo().await, "hooks", &["--inbox", "--inspect", "off"]).await.process.kill().await;
    place
}

/// The same again, after it was killed.
async fn again(place: &mut Place) {
    place.relay.process.kill().await;
    let home = place.relay.process.home().clone();
    let file = home.path().join("relay-server.toml").display().to_string();
    let https = place.relay.https.to_string();
    let words = ["--config", &file, "--http-mode", "serve", "--https", &https];
    place.relay = RelayServer::spawn_in(home, words).await;
}

/// Posts to the inbox in the clear.
async fn post(place: &Place, body: impl Into<bytes::Bytes>) -> Answer {
    let mut http = Http::one(TcpStream::connect(place.relay.http.unwrap()).await.unwrap()).await;
    let request = Request::post(format!("http://hooks.{}/", RelayServer::DOMAIN)).body(full(body)).unwrap();
    within("an answer", http.answer(request)).await
}

/// Posts so many at once, each with the mark of its number in its body.
async fn post_many(place: &Arc<Place>, count: usize, length: usize) -> Vec<Answer> {
    let mut posts = JoinSet::new();
    for number in 0..count {
        let place = place.clone();
        let text = format!("mark-{number}-");
        posts.spawn(async move { post(&place, text.repeat(length.div_ceil(text.len()))).await });
    }
    posts.join_all().await
}

/// The id that an acknowledgement has.
fn id(answer: &Answer) -> &str {
    answer.header("relay-inbox").strip_prefix("stored; id=").unwrap()
}

/// Where to its log what has `mark` in it was written first, and has reached the disk before it was named to anybody.
fn is_synced_before_told(calls: &[Call], mark: &str) -> bool {
    let of_log = |call: &&Call| call.arguments.contains("/inbox.db-wal>");
    let written = calls.iter().filter(of_log).find(|call| call.name == "pwrite64" && call.arguments.contains(mark));
    let told = calls.iter().find(|call| call.arguments.contains("<socket:") && call.arguments.contains(mark));
    let (Some(written), Some(told)) = (written, told) else { panic!("{mark} was not written, or not told") };
    let is_sync = |call: &&Call| matches!(&*call.name, "fsync" | "fdatasync") && call.succeeded;
    let synced = |call: &Call| written.at.1 < call.at.0 && call.at.1 < told.at.0;
    calls.iter().filter(of_log).filter(is_sync).any(synced)
}

#[tokio::test]
async fn a_webhook_is_on_disk_before_its_sender_is_told() {
    let place = Arc::new(relay("", &[]).await);
    let trace = Strace::attach(place.relay.process.pid(), &CALLS).await;
    let answers = post_many(&place, 64, 500).await;
    let calls = trace.end().await;
    for answer in &answers {
        assert_eq!(answer.code(), 202);
        assert!(is_synced_before_told(&calls, id(answer)), "{answer:?}");
    }
    // And where the app answers: there is no id in its answer, and its own words are in the body that was stored.
    let app = App::echo().await;
    let _client = place.client(&app, "hooks", &["--inbox", "--inspect", "off"]).await;
    let trace = Strace::attach(place.relay.process.pid(), &CALLS).await;
    let answers = post_many(&place, 32, 500).await;
    let calls = trace.end().await;
    for (number, answer) in answers.iter().enumerate() {
        assert!(answer.code() == 200 && is_synced_before_told(&calls, &format!("mark-{number}-")), "{answer:?}");
    }
}

/// A long body is a file, whose bytes and whose name are there before the row that leads to it.
#[tokio::test]
async fn a_long_body_is_on_disk_before_what_leads_to_it() {
    let place = Arc::new(relay("", &[]).await);
    let trace = Strace::attach(place.relay.process.pid(), &CALLS).await;
    let answers = post_many(&place, 8, 300_000).await;
    let calls = trace.end().await;
    for answer in &answers {
        let id = id(answer);
        assert!(answer.code() == 202 && is_synced_before_told(&calls, id), "{answer:?}");
        let file = format!("/inbox/{id}>");
        let last = calls.iter().rfind(|call| call.name == "write" && call.arguments.contains(&file)).unwrap();
        let synced = calls.iter().find(|call| call.name == "fsync" && call.arguments.contains(&file)).unwrap();
        let name = |call: &&Call| call.name == "fsync" && call.arguments.contains("/inbox>") && call.at.0 > synced.at.1;
        let name = calls.iter().find(name).unwrap();
        let row = calls.iter().find(|call| call.name == "pwrite64" && call.arguments.contains(id)).unwrap();
        let order = last.at.1 < synced.at.0 && name.at.1 < row.at.0;
        assert!(order && synced.succeeded && name.succeeded, "{last:?}\n{synced:?}\n{name:?}\n{row:?}");
    }
}

/// The control of the two above.
#[tokio::test]
async fn a_relay_that_does_not_sync_is_found_out() {
    let (variable, library) = eatmydata();
    let place = Arc::new(relay("", &[(variable, &library)]).await);
    let trace = Strace::attach(place.relay.process.pid(), &CALLS).await;
    let answers = post_many(&place, 8, 500).await;
    let calls = trace.end().await;
    assert!(answers.iter().all(|answer| answer.code() == 202 && !is_synced_before_told(&calls, id(answer))));
}

/// After an fsync that failed nobody knows what is on disk, also where a later one succeeds.
#[tokio::test]
async fn a_log_that_fails_ends_acknowledgements_until_a_restart() {
    ends_acknowledgements_until_a_restart(10).await;
}

/// As above, where the fsync is that of a long body's file.
#[tokio::test]
async fn a_body_that_fails_ends_acknowledgements_until_a_restart() {
    ends_acknowledgements_until_a_restart(300_000).await;
}

async fn ends_acknowledgements_until_a_restart(length: usize) {
    let mut place = relay("", &[]).await;
    let body = || vec![b'x'; length];
    for _ in 0..3 {
        assert_eq!(post(&place, body()).await.code(), 202);
    }
    let fail = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"];
    let trace = Strace::attach(place.relay.process.pid(), &fail).await;
    let refused =
        |answer: Answer| assert_eq!((answer.code(), answer.error()), (503, Some("inbox-failed")), "{answer:?}");
    refused(post(&place, body()).await);
    let calls = trace.end().await;
    assert!(calls.iter().any(|call| !call.succeeded), "{calls:?}");
    for length in [10, 300_000] {
        refused(post(&place, vec![b'x'; length]).await);
    }
    let ready = place.relay.get_admin("/readyz").await;
    assert!(ready.code() == 503 && ready.text().contains("not ready: the store"), "{ready:?}");
    let metrics = place.relay.get_admin("/metrics").await;
    for line in
        ["relay_ready 0\n", "relay_store_failed{database=\"inbox\"} 1\n", "relay_store_failed{database=\"relay\"} 0\n"]
    {
        assert!(metrics.text().contains(line), "{line}{}", metrics.text());
    }
    assert_eq!(place.relay.get_admin("/healthz").await.code(), 200);
    place.relay.process.error_line("the store has failed").await;

    again(&mut place).await;
    assert_eq!(place.relay.get_admin("/readyz").await.code(), 200);
    assert_eq!(post(&place, body()).await.code(), 202);
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &["--inbox", "--inspect", "off"]).await;
    // One more, perhaps: nobody was told that it was not there.
    within("all that was acknowledged", app.reached(4)).await;
}

/// Nobody waits for it longer than senders do.
#[tokio::test]
async fn a_slow_disk_sheds_before_its_senders_give_up() {
    let place = Arc::new(relay("inbox_ack = '1s'\n", &[]).await);
    assert_eq!(post(&place, "before").await.code(), 202);
    let slow = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=60000000"];
    let trace = Strace::attach(place.relay.process.pid(), &slow).await;
    // Half a minute is what `within` waits.
    for answer in post_many(&place, 20, 10).await {
        assert_eq!((answer.code(), answer.error()), (503, Some("inbox-failed")), "{answer:?}");
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    }
    assert_eq!(place.relay.get_admin("/healthz").await.code(), 200);
    trace.end().await;
    let after = within("an acknowledgement", async {
        loop {
            let answer = post(&place, "after").await;
            if answer.code() != 503 {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(after.await.code(), 202);
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &["--inbox", "--inspect", "off"]).await;
    within("what was acknowledged", async {
        let has = |text: &str| app.seen().iter().any(|seen| seen.body == text);
        while !has("before") || !has("after") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
