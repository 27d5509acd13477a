//! What senders notice of the limits that a token has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_tests::app::ok;
use relay_tests::body::{empty, noise, pipe};
use relay_tests::process::{Ended, run};
use relay_tests::{Answer, App, World, within};
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

/// `relay-server token WORD …` on the world's data.
async fn token(world: &World, line: &str) -> Ended {
    let data = world.data_dir().display().to_string();
    let ended = run("relay-server", ["token", "--data-dir", &data].into_iter().chain(line.split_whitespace())).await;
    assert_eq!(ended.code(), 0, "{line}: {ended:?}");
    ended
}

async fn tunnel(world: &World, secret: &str, app: &App, name: &str) -> Tunnel {
    let client = Client::new(world.target()).token(secret.trim().to_owned().into());
    let options = TunnelOptions::new(app.upstream()).subdomain(name);
    within("a tunnel", Tunnel::start(client, options)).await.unwrap()
}

/// A relay with a token that has these limits, and a tunnel of it with this name.
async fn limited(app: &App, flags: &str) -> (World, Tunnel) {
    let world = World::start().await;
    let made = token(&world, &format!("create ours {flags}")).await;
    let tunnel = tunnel(&world, &made.stdout, app, "ours").await;
    (world, tunnel)
}

fn refused<'a>(answer: &'a Answer, code: &str) -> &'a str {
    assert_eq!((answer.code(), answer.error()), (429, Some(code)), "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    answer.text()
}

#[tokio::test]
async fn requests_beyond_the_rate_are_refused_until_it_is_changed() {
    let app = App::echo().await;
    let (world, tunnel) = limited(&app, "--max-rate 2").await;
    let url = world.url("ours", "/");
    let began = Instant::now();
    let mut http = world.http2(&world.host("ours")).await;
    let mut answers = Vec::new();
    // However long it takes: so many at once that some are too many.
    while !answers.iter().any(|answer: &Answer| answer.code() != 200) {
        let batch: Vec<_> = (0..20).map(|_| http.begin(Request::get(&url).body(empty()).unwrap())).collect();
        for answer in batch {
            answers.push(within("an answer", answer).await.unwrap());
        }
    }
    let (passed, others): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.code() == 200);
    let most = 2 * (began.elapsed().as_secs() as usize + 2);
    assert!((2..=most).contains(&passed.len()), "{} of {} have passed", passed.len(), answers.len());
    let text = refused(others[0], "too-many-requests");
    assert!(text.contains("2 requests per second"), "{text}");
    let metrics = world.get_admin("/metrics").await;
    let line = format!("relay_quota_refused_total{{quota=\"rate\"}} {}\n", others.len());
    assert!(metrics.text().contains(&line), "{line}{}", metrics.text());
    // Another token's tunnel is not concerned.
    let other = world.tunnel(&app).await;
    for _ in 0..5 {
        assert_eq!(world.get(&world.url(other.name(), "/")).await.code(), 200);
    }
    let said = token(&world, "limit ours --max-rate off").await;
    assert!(said.stdout.contains("any number of requests per second"), "{said:?}");
    for _ in 0..20 {
        assert_eq!(http.answer(Request::get(&url).body(empty()).unwrap()).await.code(), 200);
    }
    drop((tunnel, other));
    world.shutdown().await;
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_are_allowed() {
    let go = Arc::new(Notify::new());
    let told = go.clone();
    let app = App::serve(move |request| {
        let told = told.clone();
        async move {
            if request.uri().path() == "/slow" {
                told.notified().await;
            }
            Response::new(relay_tests::body::full("done"))
        }
    })
    .await;
    let (world, tunnel) = limited(&app, "--max-streams 1").await;
    let mut http = world.http2(&world.host("ours")).await;
    let slow = http.begin(Request::get(world.url("ours", "/slow")).body(empty()).unwrap());
    app.reached(1).await;
    let text = world.get(&world.url("ours", "/")).await;
    assert!(refused(&text, "too-many-requests").contains("1 request under way"), "{text:?}");
    let told = async |line: &str| world.get_admin("/metrics").await.text().contains(line);
    assert!(told("relay_quota_refused_total{quota=\"streams\"} 1\n").await);
    // The refused one ends a moment behind its answer.
    within("one request under way", async { while !told("relay_exchanges_under_way 1\n").await {} }).await;
    go.notify_one();
    assert_eq!(within("the first answer", slow).await.unwrap().code(), 200);
    assert_eq!(world.get(&world.url("ours", "/")).await.code(), 200);
    drop(tunnel);
    world.shutdown().await;
}

/// What the relay refuses has cost its owner nothing.
#[tokio::test]
async fn bodies_that_are_refused_do_not_count() {
    let app = App::serve(|_| async { ok("") }).await;
    let (world, tunnel) = limited(&app, "--max-bytes 10KiB").await;
    token(&world, "reserve ours kept --inbox=body=1KiB").await;
    for _ in 0..4 {
        let answer = world.post(&world.url("kept", "/"), noise(5 * 1024)).await;
        assert_eq!((answer.code(), answer.error()), (413, Some("body-too-large")), "{answer:?}");
    }
    assert_eq!(world.post(&world.url("kept", "/"), noise(512)).await.code(), 202);
    assert_eq!(world.post(&world.url("ours", "/"), noise(10 * 1024 - 512)).await.code(), 200);
    refused(&world.get(&world.url("ours", "/")).await, "quota-exceeded");
    drop(tunnel);
    world.shutdown().await;
}

/// So many bytes come before the relay has enough, of an exchange that would go on for ever.
#[tokio::test]
async fn what_goes_on_far_beyond_a_month_is_ended() {
    const LIMIT: usize = 4 << 20;
    let app = App::endless(noise(16 * 1024)).await;
    let (world, tunnel) = limited(&app, "--max-bytes 4MiB").await;
    let url = world.url("ours", "/");
    let mut http = world.http1(&world.host("ours")).await;
    let response = within("an answer", http.request(Request::get(&url).body(empty()).unwrap())).await.unwrap();
    let (mut body, mut came) = (response.into_body(), 0);
    while let Some(Ok(frame)) = within("a piece", body.frame()).await {
        came += frame.data_ref().map_or(0, |bytes| bytes.len());
        assert!(came < 2 * LIMIT, "it goes on");
    }
    assert!(came > LIMIT, "{came}");
    refused(&world.get(&url).await, "quota-exceeded");

    // Nor does what was upgraded, or is sent.
    token(&world, "limit ours --max-bytes off").await;
    let request = Request::get(world.url("ours", "/socket")).body(empty()).unwrap();
    let mut socket = world.http1(&world.host("ours")).await.switch(request).await;
    token(&world, "limit ours --max-bytes 4MiB").await;
    let mut buffer = vec![0; 64 * 1024];
    while within("more, or the end", socket.read(&mut buffer)).await.is_ok_and(|length| length > 0) {}

    token(&world, "limit ours --max-bytes off").await;
    let (pipe, body) = pipe();
    let mut http = world.http1(&world.host("ours")).await;
    let answer = http.request(Request::post(world.url("ours", "/wait")).body(body).unwrap());
    let answer = tokio::spawn(answer);
    assert!(pipe.send(noise(1024)).await);
    app.reached(3).await;
    token(&world, "limit ours --max-bytes 4MiB").await;
    while pipe.send(noise(64 * 1024)).await {}
    // The answer, or the end of the connection where the body is still on its way.
    let answer = within("the end", answer).await.unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 429));
    drop(tunnel);
    world.shutdown().await;
}

#[tokio::test]
async fn the_bytes_of_a_month_outlive_the_relay_and_keep_webhooks_out() {
    let app = App::serve(|_| async { ok("1234") }).await;
    let (mut world, tunnel) = limited(&app, "--max-bytes 10KiB").await;
    let body = noise(10 * 1024 - 4);
    assert_eq!(world.post(&world.url("ours", "/"), body).await.code(), 200);
    let answer = world.get(&world.url("ours", "/")).await;
    let text = refused(&answer, "quota-exceeded").to_owned();
    let metrics = world.get_admin("/metrics").await;
    for line in ["relay_tokens_over_quota 1\n", "relay_quota_refused_total{quota=\"bytes\"} 1\n"] {
        assert!(metrics.text().contains(line), "{line}{}", metrics.text());
    }
    assert!(text.contains("10KiB of this month") && text.contains("-01T00:00:00Z"), "{text}");
    drop(tunnel);

    token(&world, "reserve ours kept --inbox").await;
    world.stop().await;
    world.start_again().await;
    let answer = world.post(&world.url("kept", "/"), "{}").await;
    refused(&answer, "quota-exceeded");
    let listed = token(&world, "list --output json").await.lines().remove(0);
    assert_eq!((&listed["month_bytes"], &listed["max_bytes"]), (&(10 * 1024).into(), &(10 * 1024).into()));
    token(&world, "limit ours --max-bytes 1GiB").await;
    assert_eq!(world.post(&world.url("kept", "/"), "{}").await.code(), 202);
    world.shutdown().await;
}

#[tokio::test]
async fn fewer_tunnels_hold_for_clients_that_are_connected() {
    let app = App::echo().await;
    let world = World::start().await;
    let made = token(&world, "create ours").await;
    let first = tunnel(&world, &made.stdout, &app, "one").await;
    token(&world, "limit ours --max-tunnels 1").await;
    let client = Client::new(world.target()).token(made.stdout.trim().to_owned().into());
    let second = Tunnel::start(client, TunnelOptions::new(app.upstream()).subdomain("two"));
    let error = within("a refusal", second).await.unwrap_err().to_string();
    assert!(error.contains("1 tunnels open"), "{error}");
    assert_eq!(world.get(&world.url("one", "/")).await.code(), 200, "what is there goes on");
    drop(first);
    world.shutdown().await;
}
