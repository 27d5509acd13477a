//! What an inbox does where something around it fails: the client, the application, the clock, the token, descriptors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use relay_tests::body::empty;
use relay_tests::tools::{faketime, output, program};
use relay_tests::{App, Body, Place, RelayClient, RelayServer, within};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::sleep;

/// A relay that tries again soon.
async fn relay(variables: &[(&str, &str)]) -> Place {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let config = home.path().join("relay-server.toml");
    std::fs::write(&config, "[limits]\ninbox_retry = '20ms'\ninbox_ack = '500ms'\nclient_wait = '1ms'\n").unwrap();
    let words = ["--config", &config.display().to_string()];
    Place::of(RelayServer::spawn_with(home, words, variables).await).await
}

async fn client(place: &Place, app: &App, inbox: &str) -> RelayClient {
    place.client(app, "hooks", &[inbox, "--inspect", "off", "--takeover"]).await
}

/// A relay with the inbox `hooks`, whose client is away.
async fn away() -> Place {
    let place = relay(&[]).await;
    client(&place, &App::echo().await, "--inbox").await.process.kill().await;
    place
}

async fn keep(place: &Place, target: &str, length: usize) {
    let answer = place.post("hooks", target, vec![b'x'; length]).await;
    assert_eq!(answer.code(), 202, "{answer:?}\n{}", place.relay.process.said());
}

/// An application that answers a target with a status, and what it has taken with a 2xx.
async fn app(status: impl Fn(&str) -> StatusCode + Clone + Send + Sync + 'static) -> (App, Arc<Mutex<Vec<String>>>) {
    let taken: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = taken.clone();
    let app = App::serve(move |request: Request<Incoming>| {
        let (status, seen) = (status.clone(), seen.clone());
        async move {
            let target = request.uri().to_string();
            let mut response: Response<Body> = Response::new(empty());
            if request.into_body().collect().await.is_ok() {
                *response.status_mut() = status(&target);
                if response.status().is_success() {
                    seen.lock().unwrap().push(target);
                }
            }
            response
        }
    })
    .await;
    (app, taken)
}

async fn until(what: &str, is: impl Fn() -> bool) {
    within(what, async {
        while !is() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What `relay inbox list` tells of dead letters.
async fn dead(place: &Place) -> String {
    let list = place.with_way(&["inbox", "list", "hooks", "--state", "dead", "--output", "json"]);
    let ended = place.spawn(list).await.wait().await;
    assert!(ended.status.success(), "{ended:?}");
    ended.stdout
}

/// Nobody knows what the application has made of it, so it comes again, and says that it does.
#[tokio::test]
async fn a_client_that_is_killed_in_the_middle_is_asked_again() {
    let place = away().await;
    let begun = Arc::new(Notify::new());
    let (tell, stuck) = (begun.clone(), Arc::new(AtomicBool::new(true)));
    let (deliveries, holds): (Arc<Mutex<Vec<String>>>, _) = (Arc::default(), stuck.clone());
    let seen = deliveries.clone();
    let app = App::serve(move |request: Request<Incoming>| {
        let delivery = request.headers().get("relay-delivery").map(|line| line.to_str().unwrap().to_owned());
        seen.lock().unwrap().push(delivery.unwrap_or_default());
        let (tell, holds) = (tell.clone(), holds.clone());
        async move {
            request.into_body().collect().await.unwrap();
            tell.notify_one();
            if holds.load(SeqCst) {
                std::future::pending::<()>().await;
            }
            Response::new(empty())
        }
    })
    .await;
    keep(&place, "/", 10).await;
    let mut first = client(&place, &app, "--inbox").await;
    within("the first attempt", begun.notified()).await;
    // The relay asks what became of it behind 200 ms, and has heard it by then.
    sleep(Duration::from_secs(3)).await;
    stuck.store(false, SeqCst);
    first.process.kill().await;
    let _second = client(&place, &app, "--inbox").await;
    within("the second attempt", begun.notified()).await;
    let seen = deliveries.lock().unwrap().clone();
    let parts = |line: &str| -> Vec<String> { line.split("; ").map(str::to_owned).collect() };
    let (one, two) = (parts(&seen[0]), parts(&seen[1]));
    assert_eq!((&one[0], one[1].as_str(), two[1].as_str()), (&two[0], "attempt=1", "attempt=2"), "{seen:?}");
}

#[tokio::test]
async fn a_poisonous_webhook_ends_as_a_dead_letter_and_holds_up_nobody() {
    let place = relay(&[]).await;
    let poison = |target: &str| if target == "/3" { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
    let (app, taken) = app(poison).await;
    client(&place, &app, "--inbox=attempts=4").await.process.kill().await;
    for number in 0..20 {
        keep(&place, &format!("/{number}"), 10).await;
    }
    let _client = client(&place, &app, "--inbox=attempts=4").await;
    until("the others", || taken.lock().unwrap().len() == 19).await;
    let drained = place.spawn(place.with_way(&["inbox", "drain", "hooks", "--within", "25s"])).await.wait().await;
    let dead = dead(&place).await;
    assert!(dead.lines().count() == 1 && dead.contains("/3") && dead.contains("502"), "{dead} {drained:?}");
}

#[tokio::test]
async fn an_application_that_is_down_has_its_webhooks_when_it_is_up() {
    let place = relay(&[]).await;
    let listener = relay_tests::app::listener().await;
    let port = listener.local_addr().unwrap().port().to_string();
    let words = ["http", &port, "--subdomain", "hooks", "--inbox", "--inspect", "off", "--output", "json"];
    // The port is taken, and nobody accepts: then it is free, and connections are refused.
    drop(listener);
    let _client = RelayClient::spawn(place.with_way(&words)).await;
    for number in 0..5 {
        keep(&place, &format!("/{number}"), 10).await;
    }
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
    let app = App::recording_on(listener);
    until("all of them", || app.seen().len() == 5).await;
    assert_eq!(dead(&place).await, "");
}

/// By the token's end nothing of its backlog goes out any more, and nothing more is kept for it.
#[tokio::test]
async fn a_token_that_is_revoked_gets_no_more_of_its_backlog() {
    let place = away().await;
    for number in 0..100 {
        keep(&place, &format!("/{number}"), 10).await;
    }
    let (app, taken) = app(|_| StatusCode::OK).await;
    let mut client = client(&place, &app, "--inbox=rate=10").await;
    until("the first", || !taken.lock().unwrap().is_empty()).await;
    let revoked = place.relay.token_command(&["revoke", "me"]).await;
    assert!(revoked.status.success(), "{revoked:?}");
    assert_eq!(client.process.wait().await.code(), 3);
    let after = taken.lock().unwrap().len();
    assert!(after < 100, "{after}");
    let answer = place.post("hooks", "/late", "x").await;
    assert!(!answer.status.is_success(), "{answer:?}");
    assert_eq!(taken.lock().unwrap().len(), after);
}

/// Webhooks wait while the clock jumps: none is too old by that, and none waits for an hour that has passed.
#[tokio::test]
async fn no_webhook_is_lost_or_left_when_the_clock_jumps() {
    let clocks = tempfile::tempdir().unwrap();
    let clock = clocks.path().join("clock");
    let set = |to: &str| {
        std::fs::write(clock.with_extension("next"), to).unwrap();
        std::fs::rename(clock.with_extension("next"), &clock).unwrap();
    };
    set("+0");
    let variables = faketime(&clock);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let place = relay(&variables).await;
    let works = Arc::new(AtomicBool::new(false));
    let (asked, ok) = (Arc::new(AtomicUsize::new(0)), works.clone());
    let count = asked.clone();
    let (app, taken) = app(move |_| {
        count.fetch_add(1, SeqCst);
        if ok.load(SeqCst) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    })
    .await;
    let mut client = client(&place, &app, "--inbox").await;
    let mut kept = HashSet::new();
    for (round, jump) in ["+3600", "-3600", "+31536000"].into_iter().enumerate() {
        works.store(false, SeqCst);
        for number in 0..5 {
            let target = format!("/{round}/{number}");
            keep(&place, &target, 10).await;
            kept.insert(target);
        }
        if round == 2 {
            // Also where nothing was tried yet.
            client.process.kill().await;
            keep(&place, "/2/away", 10).await;
            kept.insert("/2/away".to_owned());
        }
        set(jump);
        if round == 2 {
            client = self::client(&place, &app, "--inbox").await;
        }
        let so_far = asked.load(SeqCst);
        until(&format!("attempts that go on after {jump}"), || asked.load(SeqCst) > so_far + 5).await;
        works.store(true, SeqCst);
        until(jump, || kept.iter().all(|target| taken.lock().unwrap().contains(target))).await;
    }
    assert_eq!(dead(&place).await, "");
    client.process.kill().await;
}

/// A long body is a file: where none can be opened it waits.
#[tokio::test]
async fn a_relay_without_descriptors_gives_nothing_up() {
    let place = relay(&[]).await;
    let works = Arc::new(AtomicBool::new(false));
    let ok = works.clone();
    let (app, taken) =
        app(move |_| if ok.load(SeqCst) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }).await;
    let _client = client(&place, &app, "--inbox").await;
    let mut targets = HashSet::new();
    for number in 0..5 {
        keep(&place, &format!("/{number}"), 300_000).await;
        targets.insert(format!("/{number}"));
    }
    let pid = place.relay.process.pid().to_string();
    let limit = async |most: usize| {
        let most = format!("--nofile={most}:");
        output(Command::new(program("prlimit")).args(["--pid", &pid, &most])).await;
    };
    // The lowest that are free are given out first, so nothing new can be opened below those that are open.
    limit(3).await;
    works.store(true, SeqCst);
    let mut place = place;
    place.relay.process.error_line("cannot be read now").await;
    limit(1024).await;
    until("all of them", || targets.iter().all(|target| taken.lock().unwrap().contains(target))).await;
    assert_eq!(dead(&place).await, "");
}
