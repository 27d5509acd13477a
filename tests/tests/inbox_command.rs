//! `relay inbox`, and what a client says of its inbox, as a user sees them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_protocol::inbox::Inbox;
use relay_tests::body::{empty, full};
use relay_tests::process::{Ended, run};
use relay_tests::{App, Process, RelayClient, World, within};
use serde_json::json;

/// A relay that tries again soon, and a token.
async fn world() -> (World, String) {
    let world = World::with(|config| config.limits.inbox_retry = Duration::from_millis(50)).await;
    let token = world.token().await;
    (world, token)
}

/// A tunnel of the name `hooks` with an inbox.
async fn tunnel(world: &World, token: &str, app: &App, how: &str) -> Tunnel {
    let inbox = Some(how.parse::<Inbox>().unwrap());
    let options = TunnelOptions { inbox, ..TunnelOptions::new(app.upstream()) }.subdomain("hooks");
    let client = Client::new(world.target()).token(token.to_owned().into());
    within("a tunnel with an inbox", Tunnel::start(client, options)).await.unwrap()
}

/// The inbox `hooks`, whose client is away, with a webhook for each of these paths. Returns their ids.
async fn waiting(world: &World, token: &str, how: &str, paths: &[&str]) -> Vec<String> {
    tunnel(world, token, &App::echo().await, how).await.close().await.unwrap();
    let mut ids = Vec::new();
    for path in paths {
        let answer = world.post(&world.url("hooks", path), "x").await;
        let line = answer.headers["relay-inbox"].to_str().unwrap();
        ids.push(line.strip_prefix("stored; id=").unwrap().to_owned());
    }
    ids
}

/// What a service answers that always says the same.
async fn app(status: StatusCode) -> App {
    App::serve(move |_| async move {
        let mut response = Response::new(empty());
        *response.status_mut() = status;
        response
    })
    .await
}

/// `relay inbox WORDS`, with what leads to the relay before them.
async fn inbox(world: &World, token: &str, words: &[&str]) -> Ended {
    run("relay", world.arguments(token, &[&["inbox"], words].concat())).await
}

/// The inbox as the relay tells of it.
async fn told(world: &World, token: &str) -> serde_json::Value {
    inbox(world, token, &["--output", "json"]).await.lines().remove(0)
}

/// Waits until the inbox has so many dead letters.
async fn until_dead(world: &World, token: &str, count: u64) {
    within("dead letters", async { while told(world, token).await["dead"] != count {} }).await;
}

#[tokio::test]
async fn a_webhook_is_listed_shown_and_exported() {
    let (world, token) = world().await;
    let ids = waiting(&world, &token, "on", &["/first", "/second"]).await;
    let secret = Request::post(world.url("hooks", "/a?token=hush")).header("authorization", "Bearer hush");
    let body = b"\x1b[2Jclear\xff\x00";
    let answer = world.send(secret.body(full(&body[..])).unwrap()).await;
    let id = answer.headers["relay-inbox"].to_str().unwrap().strip_prefix("stored; id=").unwrap().to_owned();

    // The flags stand before the words and behind them.
    let before = inbox(&world, &token, &["hooks"]).await;
    let mut behind = world.arguments(&token, &["inbox"]);
    behind.splice(1..1, ["list".to_owned(), "hooks".to_owned()]);
    let behind = run("relay", behind).await;
    assert_eq!((before.code(), &before.stdout), (0, &behind.stdout), "{}", behind.stderr);
    let lines: Vec<_> = before.stdout.lines().collect();
    assert!(lines[0].contains(&ids[0]) && lines[1].contains(&ids[1]) && lines[2].contains(&id), "{lines:?}");
    assert!(lines[3].starts_with("hooks") && lines[3].contains("3 waiting"), "{lines:?}");
    let most = inbox(&world, &token, &["list", "hooks", "--limit", "100000", "--output", "json"]).await;
    assert_eq!(most.lines().len(), 3, "pages are followed to their end");
    let two = inbox(&world, &token, &["list", "hooks", "--limit", "2", "--output", "json"]).await.lines();
    assert_eq!((two.len(), &two[1]["id"]), (2, &json!(id)), "the newest");
    let twice = inbox(&world, &token, &["hooks", "list"]).await;
    assert!(twice.code() == 2 && twice.stderr.contains("relay inbox list hooks"), "{}", twice.stderr);

    let shown = inbox(&world, &token, &["show", "hooks", &id]).await;
    assert!(shown.code() == 0 && shown.stdout.contains("authorization: Bearer ***"), "{}", shown.stdout);
    assert!(!shown.stdout.contains("Bearer hush") && !shown.stdout.contains('\u{1b}'), "{}", shown.stdout);
    let json = inbox(&world, &token, &["show", "hooks", &id, "--output", "json"]).await;
    assert!(!json.stdout.contains("hush"), "{}", json.stdout);
    let open = inbox(&world, &token, &["show", "hooks", &id, "--secrets", "show"]).await;
    assert!(open.stdout.contains("authorization: Bearer hush"), "{}", open.stdout);
    let file = inbox(&world, &token, &["export", "hooks", &ids[0]]).await;
    assert!(
        file.stdout.starts_with("POST /first HTTP/1.1\n") && file.stdout.trim_end().ends_with("\n\nx"),
        "{}",
        file.stdout
    );
    world.shutdown().await;
}

#[tokio::test]
async fn what_is_done_with_nothing_is_said() {
    let (world, token) = world().await;
    let ids = waiting(&world, &token, "on", &["/"]).await;
    let unknown = "01M8067H447D3H3MSZ2H689PZF";
    for words in [
        &["retry", "hooks", "--all", "dead"][..],
        &["drop", "hooks", "--all", "delivered"],
        &["retry", "hooks", unknown],
        &["drop", "hooks", unknown],
    ] {
        let ended = inbox(&world, &token, words).await;
        assert!(ended.code() == 1 && ended.stderr.contains("nothing was done"), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    let some = inbox(&world, &token, &["drop", "hooks", &ids[0], unknown]).await;
    assert_eq!((some.code(), some.stdout.as_str()), (0, "1\n"));
    assert!(some.stderr.contains("1 of these 2 webhooks are not in the inbox"), "{}", some.stderr);
    let none = inbox(&world, &token, &["other"]).await;
    assert!(none.code() == 1 && none.stderr.contains("other"), "{}", none.stderr);
    world.shutdown().await;
}

#[tokio::test]
async fn draining_resumes_and_tells_of_what_died() {
    let (world, token) = world().await;
    waiting(&world, &token, "attempts=1", &["/1", "/2"]).await;
    assert_eq!(inbox(&world, &token, &["pause", "hooks"]).await.code(), 0);
    let good = app(StatusCode::OK).await;
    let up = tunnel(&world, &token, &good, "attempts=1").await;
    let drained = inbox(&world, &token, &["drain", "hooks", "--within", "20s"]).await;
    assert!(drained.code() == 0 && drained.stderr.contains("was paused"), "{}", drained.stderr);
    assert_eq!(good.requests(), 2);
    up.close().await.unwrap();

    assert_eq!(inbox(&world, &token, &["pause", "hooks"]).await.code(), 0);
    for _ in 0..2 {
        assert_eq!(world.post(&world.url("hooks", "/"), "x").await.code(), 202);
    }
    let late = inbox(&world, &token, &["drain", "hooks", "--within", "100ms"]).await;
    assert!(late.code() == 1 && late.stderr.contains("2 webhooks of hooks wait still"), "{}", late.stderr);
    assert_eq!(inbox(&world, &token, &["pause", "hooks"]).await.code(), 0);
    let bad = app(StatusCode::BAD_GATEWAY).await;
    let _up = tunnel(&world, &token, &bad, "attempts=1").await;
    let died = inbox(&world, &token, &["drain", "hooks", "--within", "20s"]).await;
    assert!(died.code() == 1 && died.stderr.contains("2 became dead letters"), "{}", died.stderr);
    world.shutdown().await;
}

#[tokio::test]
async fn a_client_says_what_waits_and_what_comes_out_of_the_inbox() {
    let (world, token) = world().await;
    let ids = waiting(&world, &token, "on", &["/1", "/2"]).await;
    assert_eq!(inbox(&world, &token, &["pause", "hooks"]).await.code(), 0);
    let app = app(StatusCode::OK).await;
    let words = ["http", &app.addr().port().to_string(), "--subdomain", "hooks", "--inbox", "--output", "json"];
    let mut client = RelayClient::spawn(world.arguments(&token, &words)).await;
    let told = client.process.event("inbox").await;
    assert_eq!((&told["tunnel"], &told["waiting"], &told["paused"]), (&json!("hooks"), &json!(2), &json!(true)));
    assert!(told["oldest_at"].is_string() && told["at"].is_string(), "{told}");
    assert_eq!(inbox(&world, &token, &["resume", "hooks"]).await.code(), 0);
    let first = client.exchange().await;
    let delivery = &first["delivery"];
    assert_eq!((&delivery["attempt"], delivery["age_s"].is_u64()), (&json!(1), true), "{first}");
    assert!(ids.iter().any(|id| delivery["id"] == json!(id)), "{first}");
    client.exchange().await;
    world.post(client.url(), "x").await;
    assert_eq!(client.exchange().await["delivery"], json!(null), "its sender has waited");
    let beside = async |words: &[&str]| {
        let ended = Process::spawn_in(client.process.home().clone(), "relay", words, &[]).await.wait().await;
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended
    };
    let listed = beside(&["requests", "--output", "json"]).await;
    let attempts: Vec<_> = listed.lines().iter().map(|line| line["inbox_attempt"].clone()).collect();
    assert_eq!(attempts, [json!(1), json!(1), json!(null)], "{listed:?}");
    let listed = beside(&["requests"]).await;
    assert_eq!(listed.stdout.matches("from the inbox").count(), 2, "{listed:?}");
    assert_eq!(client.process.terminate().await.code(), 143);
    world.shutdown().await;
}

#[tokio::test]
async fn what_the_file_says_of_an_inbox_holds() {
    let (world, token) = world().await;
    let home = Arc::new(tempfile::tempdir().unwrap());
    let file = format!(
        "[tunnels.hooks]\nupstream = {}\nsubdomain = \"hooks\"\n[tunnels.hooks.inbox]\nhow = \"body=1KiB\"\n\
         ack = {{ status = 200, headers = {{ content-type = \"text/xml\" }}, body = \"<Ok/>\" }}\n\
         ignore = [{{ provider = \"github\", type = \"check_*\" }}, {{ when = {{ \"json:/test\" = \"true\" }} }}]\n",
        App::echo().await.addr().port()
    );
    std::fs::write(home.path().join("relay.toml"), file).unwrap();
    let words = world.arguments(&token, &["start", "--output", "json"]);
    let mut client = RelayClient::of(Process::spawn_in(home, "relay", words, &[]).await).await;
    client.process.terminate().await;

    let url = world.url("hooks", "/");
    let answer = world.post(&url, "{\"test\":false}").await;
    assert_eq!((answer.code(), answer.header("content-type"), answer.text()), (200, "text/xml", "<Ok/>"));
    assert!(answer.header("relay-inbox").starts_with("stored; "), "{answer:?}");
    let answer = world.post(&url, "{\"test\":true}").await;
    assert_eq!((answer.code(), answer.header("relay-inbox"), answer.text()), (200, "ignored", "<Ok/>"));
    for (event, is_kept) in [("check_run", false), ("push", true)] {
        let request = Request::post(&url).header("x-github-event", event).header("x-github-delivery", event);
        let request = request.header("x-github-hook-id", "1").header("content-type", "application/json");
        let answer = world.send(request.body(full("{}")).unwrap()).await;
        assert_eq!(answer.header("relay-inbox") == "ignored", !is_kept, "{event}: {answer:?}");
    }
    assert_eq!(world.post(&url, "x".repeat(1025)).await.code(), 413);
    let told = told(&world, &token).await;
    assert_eq!((&told["waiting"], &told["how"]), (&json!(2), &json!("ack=200,body=1KiB,ignore=2")));
    world.shutdown().await;
}

/// The commands of the page, in their order, with the id of a webhook that there is.
#[tokio::test]
async fn the_documented_commands_do_what_they_say() {
    let (world, token) = world().await;
    let ids = waiting(&world, &token, "attempts=1", &["/1", "/2"]).await;
    let (bad, good) = (app(StatusCode::BAD_GATEWAY).await, app(StatusCode::OK).await);
    let up = tunnel(&world, &token, &bad, "attempts=1").await;
    until_dead(&world, &token, 2).await;
    up.close().await.unwrap();
    let _up = tunnel(&world, &token, &good, "attempts=1").await;
    let page = include_str!("../../docs/inbox.md");
    let lines = page.split("```").skip(1).step_by(2).flat_map(str::lines);
    let lines: Vec<_> = lines.filter_map(|line| line.strip_prefix("relay inbox")).collect();
    assert!(lines.len() > 8, "{lines:?}");
    for line in lines {
        let line = line.replace("01M8067H447D3H3MSZ2H689PZF", &ids[0]);
        let words: Vec<&str> = line.split_whitespace().collect();
        let ended = inbox(&world, &token, &words).await;
        let dead = inbox(&world, &token, &["list", "hooks", "--state", "dead"]).await;
        assert_eq!(ended.code(), 0, "relay inbox{line}: {}{}", ended.stderr, dead.stdout);
    }
    let all = inbox(&world, &token, &["--output", "json"]).await;
    assert_eq!(all.stdout, "", "it is closed");
    assert_eq!((bad.requests(), good.requests()), (2, 1), "one of the two was dropped");
    world.shutdown().await;
}
