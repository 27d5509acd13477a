//! What the relay's operator notices of inboxes: all of them, by `relay-server`, before a client has ever come and with
//! no relay running.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use http::{Request, Response, StatusCode};
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_tests::body::{empty, full, noise};
use relay_tests::process::{Ended, run};
use relay_tests::{Answer, App, World, within};
use serde_json::{Value, json};

/// `relay-server WORD …` on the world's data.
async fn relay_server(world: &World, line: &str) -> Ended {
    let data = world.data_dir().display().to_string();
    let mut words = line.split_whitespace();
    let command = words.next().unwrap();
    run("relay-server", [command, "--data-dir", &data].into_iter().chain(words)).await
}

/// As [`relay_server`], where it succeeds.
async fn done(world: &World, line: &str) -> Ended {
    let ended = relay_server(world, line).await;
    assert_eq!(ended.code(), 0, "{line}: {ended:?}");
    ended
}

/// A relay on which the name `hooks` is reserved with an inbox, and the token that it is reserved for.
async fn reserved(how: &str) -> (World, String) {
    let world = World::start().await;
    let (token, name) = world.token_with(|new| new.name = "ours".to_owned()).await;
    assert_eq!(name, "ours");
    done(&world, &format!("token reserve ours hooks --inbox{how}")).await;
    (world, token)
}

async fn tunnel(world: &World, token: &str, app: &App) -> Tunnel {
    let client = Client::new(world.target()).token(token.to_owned().into());
    let options = TunnelOptions::new(app.upstream()).subdomain("hooks");
    within("a tunnel", Tunnel::start(client, options)).await.unwrap()
}

fn kept(answer: &Answer) -> String {
    assert_eq!(answer.code(), 202, "{answer:?}");
    answer.header("relay-inbox").strip_prefix("stored; id=").unwrap().to_owned()
}

#[tokio::test]
async fn a_reserved_name_keeps_webhooks_before_any_client_has_come() {
    let (mut world, token) = reserved("").await;
    kept(&world.post(&world.url("hooks", "/one"), "1").await);
    world.stop().await;
    world.start_again().await;
    kept(&world.post(&world.url("hooks", "/two"), "2").await);
    // A client that does not ask for an inbox, and leaves the one that is there as it is.
    let app = App::recording().await;
    let tunnel = tunnel(&world, &token, &app).await;
    done(&world, "inbox drain hooks").await;
    let mut seen: Vec<_> = app.seen().into_iter().map(|seen| (seen.target, seen.body)).collect();
    seen.sort();
    assert_eq!(seen, [("/one".into(), "1".into()), ("/two".into(), "2".into())]);
    tunnel.close().await.unwrap();
    kept(&world.post(&world.url("hooks", "/three"), "3").await);
    world.shutdown().await;
}

#[tokio::test]
async fn a_name_is_reserved_with_an_inbox_while_no_relay_runs() {
    let mut world = World::start().await;
    let (_, name) = world.token_with(|_| {}).await;
    world.stop().await;
    let ended = done(&world, &format!("token reserve {name} hooks --provider slack --inbox=ordered,ack=200")).await;
    assert!(ended.stderr.contains("hooks, for the webhooks of Slack, with an inbox (ordered,ack=200)"), "{ended:?}");
    // Once more, without: it stays.
    done(&world, &format!("token reserve {name} hooks --provider slack")).await;
    world.start_again().await;
    let answer = world.post(&world.url("hooks", "/"), "{}").await;
    assert_eq!((answer.code(), answer.headers.contains_key("relay-inbox")), (200, true), "{answer:?}");
    // The provider is known, and its handshake is answered for the app that is not there yet.
    let challenge = r#"{"type":"url_verification","token":"t","challenge":"c-1"}"#;
    let request = Request::post(world.url("hooks", "/")).header("content-type", "application/json");
    let answer = world.send(request.body(full(challenge)).unwrap()).await;
    assert!(answer.code() == 200 && answer.text().contains("c-1"), "{answer:?}");
    let line = done(&world, "inbox list --output json").await.lines().remove(0);
    assert_eq!((&line["how"], &line["waiting"], &line["token"]), (&"ordered,ack=200".into(), &1.into(), &name.into()));
    world.shutdown().await;
}

#[tokio::test]
async fn a_name_is_not_released_with_webhooks_that_nobody_has_had() {
    let (world, _) = reserved("").await;
    kept(&world.post(&world.url("hooks", "/"), "1").await);
    let refused = relay_server(&world, "token release hooks").await;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains("1 webhook ") && refused.stderr.contains("--forget-webhooks"), "{refused:?}");
    kept(&world.post(&world.url("hooks", "/"), "2").await);
    let released = done(&world, "token release hooks --forget-webhooks").await;
    assert!(released.stderr.contains("2 webhooks"), "{released:?}");
    let answer = world.post(&world.url("hooks", "/"), "3").await;
    assert_eq!(answer.code(), 503, "the name is nobody's, and nothing is kept: {answer:?}");
    assert_eq!(done(&world, "inbox list").await.stdout, "");
    world.shutdown().await;
}

#[tokio::test]
async fn the_operator_handles_the_inboxes_of_all_tokens() {
    let (world, token) = reserved("=ordered").await;
    let (_, other) = world.token_with(|_| {}).await;
    done(&world, &format!("token reserve {other} forms --inbox")).await;
    let lines = done(&world, "inbox --output json").await.lines();
    let names: Vec<_> = lines.iter().map(|line| (line["name"].as_str().unwrap(), line["token"].as_str())).collect();
    assert_eq!(names, [("forms", Some(other.as_str())), ("hooks", Some("ours"))]);

    let body = noise(3000);
    let request = Request::post(world.url("hooks", "/one?a=%31"))
        .header("authorization", "Bearer let-me-in")
        .header("x-evil", http::HeaderValue::from_bytes(b"\xff\x9b2J").unwrap());
    let first = kept(&world.send(request.body(full(body.clone())).unwrap()).await);
    let evil = "\u{1b}]0;owned\u{7} \u{9b}31m \u{202e}done".to_owned();
    let second = kept(&world.post(&world.url("hooks", "/two"), evil).await);
    let listed = done(&world, "inbox list hooks --output json").await.lines();
    let ids: Vec<_> = listed.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&first, &second], "the newest last");
    let text = done(&world, "inbox list hooks --state waiting").await.stdout;
    assert!(text.contains("POST /one?a=%31") && text.contains("2 waiting") && text.contains("of ours"), "{text}");

    // A person sees no secrets, and nothing moves the cursor.
    for id in [&first, &second] {
        let text = done(&world, &format!("inbox show hooks {id}")).await.stdout;
        let is_harmless = |c: char| c == '\n' || !(c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
        assert!(text.chars().all(is_harmless) && !text.contains("let-me-in"), "{text:?}");
    }
    let whole: Value = done(&world, &format!("inbox show hooks {first} --output json")).await.lines().remove(0);
    assert!(whole["headers"].as_array().unwrap().contains(&json!(["authorization", "Bearer let-me-in"])), "{whole}");
    assert_eq!((&whole["path"], &whole["size"]), (&"/one?a=%31".into(), &3000.into()));

    assert_eq!(done(&world, &format!("inbox drop hooks {second}")).await.stdout, "1\n");
    let paused: Value = done(&world, "inbox pause hooks --output json").await.lines().remove(0);
    assert_eq!((&paused["paused"], &paused["waiting"]), (&true.into(), &1.into()));
    let late = relay_server(&world, "inbox drain hooks --within 50ms").await;
    assert!(late.code() == 1 && late.stderr.contains("1 webhook waits still"), "{late:?}");
    let app = App::recording().await;
    let _tunnel = tunnel(&world, &token, &app).await;
    let drained: Value = done(&world, "inbox drain hooks --output json").await.lines().remove(0);
    assert_eq!((&drained["waiting"], &drained["delivered"], &drained["paused"]), (&0.into(), &1.into(), &false.into()));
    assert_eq!(app.only().target, "/one?a=%31");
    let gone = relay_server(&world, &format!("inbox export hooks {first}")).await;
    assert!(gone.code() == 1 && gone.stderr.contains("not kept any more"), "{gone:?}");

    assert_eq!(done(&world, "inbox close hooks").await.stdout, "1\n");
    for line in ["inbox list hooks", "inbox close hooks", "inbox retry hooks --all dead"] {
        let ended = relay_server(&world, line).await;
        assert!(ended.code() == 1 && ended.stderr.contains("no inbox of the name hooks"), "{line}: {ended:?}");
    }
    for line in ["inbox show hooks 1", "inbox retry hooks", "inbox list --state dead", "inbox drop a_b --all dead"] {
        assert_eq!(relay_server(&world, line).await.code(), 2, "{line}");
    }
    world.shutdown().await;
}

#[tokio::test]
async fn metrics_tell_of_all_inboxes() {
    let (mut world, token) = reserved("=attempts=1").await;
    let (_, other) = world.token_with(|_| {}).await;
    done(&world, &format!("token reserve {other} forms --inbox")).await;
    let metrics = async |world: &World, expected: &[&str]| {
        let answer = world.get_admin("/metrics").await;
        for line in expected {
            assert!(answer.text().lines().any(|there| there == *line), "{line}\n{}", answer.text());
        }
    };
    metrics(&world, &["relay_inboxes 2", "relay_inbox_waiting 0", "relay_inbox_oldest_seconds 0"]).await;
    kept(&world.post(&world.url("forms", "/"), "1").await);
    kept(&world.post(&world.url("hooks", "/500"), "2").await);
    metrics(&world, &["relay_inbox_waiting 2", "relay_inbox_accepted_total 2", "relay_inbox_acknowledged_total 2"])
        .await;
    let app = App::serve(|request: Request<_>| async move {
        let mut response = Response::new(empty());
        let code = request.uri().path().trim_start_matches('/').parse().unwrap();
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    })
    .await;
    let tunnel = tunnel(&world, &token, &app).await;
    done(&world, "inbox drain hooks").await;
    assert_eq!(world.post(&format!("{}/200", tunnel.url()), "3").await.code(), 200);
    done(&world, "inbox drain hooks").await;
    metrics(
        &world,
        &[
            "relay_inbox_waiting 1",
            "relay_inbox_dead 1",
            "relay_inbox_accepted_total 3",
            "relay_inbox_acknowledged_total 2",
            "relay_inbox_attempts_total{outcome=\"delivered\"} 1",
            "relay_inbox_attempts_total{outcome=\"failed\"} 1",
            "relay_inbox_attempts_total{outcome=\"unsent\"} 0",
            "relay_inbox_dead_letters_total 1",
        ],
    )
    .await;
    // Gauges tell of what is there, and not of what this process has seen.
    tunnel.close().await.unwrap();
    world.stop().await;
    world.start_again().await;
    metrics(
        &world,
        &["relay_inboxes 2", "relay_inbox_waiting 1", "relay_inbox_dead 1", "relay_inbox_accepted_total 0"],
    )
    .await;
    world.shutdown().await;
}

#[tokio::test]
async fn a_dead_letter_is_exported_and_tried_again() {
    let (world, token) = reserved("=attempts=1").await;
    let app = App::serve(|request: Request<_>| async move {
        let mut response = Response::new(empty());
        let is_bad = request.uri().path() == "/bad" && !request.headers().contains_key("relay-delivery");
        *response.status_mut() = if is_bad { StatusCode::BAD_GATEWAY } else { StatusCode::OK };
        response
    })
    .await;
    let tunnel = tunnel(&world, &token, &app).await;
    let id = kept(&world.post(&format!("{}/bad", tunnel.url()), noise(500)).await);
    let listed = done(&world, "inbox list hooks --state dead --output json").await.lines().remove(0);
    assert_eq!((listed["id"].as_str(), &listed["status"]), (Some(id.as_str()), &502.into()));
    assert!(listed["reason"].as_str().unwrap().contains("502"), "{listed}");
    let text = done(&world, &format!("inbox show hooks {id}")).await.stdout;
    assert!(text.contains("attempt 1") && text.contains("  502\n"), "{text}");
    assert_eq!(done(&world, "inbox retry hooks --all dead").await.stdout, "1\n");
    within("the second attempt", app.reached(2)).await;
    world.shutdown().await;
}

#[tokio::test]
async fn inboxes_are_handled_while_no_relay_runs() {
    let (mut world, token) = reserved("").await;
    let ids = [
        kept(&world.post(&world.url("hooks", "/a"), "1").await),
        kept(&world.post(&world.url("hooks", "/b"), noise(300_000)).await),
        kept(&world.post(&world.url("hooks", "/c"), "3").await),
    ];
    world.stop().await;
    let inbox = done(&world, "inbox list --output json").await.lines().remove(0);
    assert_eq!((&inbox["waiting"], &inbox["token"]), (&3.into(), &"ours".into()));
    let exported = done(&world, &format!("inbox export hooks {}", ids[0])).await.stdout;
    let host = world.host("hooks");
    assert!(exported.starts_with(&format!("POST /a HTTP/1.1\nhost: {host}\n")), "{exported}");
    assert!(exported.trim_end().ends_with("\n\n1"), "{exported}");
    assert_eq!(done(&world, &format!("inbox drop hooks {} {}", ids[0], ids[0])).await.stdout, "1\n");
    assert_eq!(done(&world, "inbox retry hooks --all waiting").await.stdout, "2\n");
    let drained = relay_server(&world, "inbox drain hooks").await;
    assert!(drained.code() == 1 && drained.stderr.contains("no relay runs"), "{drained:?}");
    done(&world, "inbox pause hooks").await;
    done(&world, "inbox resume hooks").await;
    world.start_again().await;
    let app = App::recording().await;
    let _tunnel = tunnel(&world, &token, &app).await;
    done(&world, "inbox drain hooks").await;
    let mut targets: Vec<_> = app.seen().into_iter().map(|seen| seen.target).collect();
    targets.sort();
    assert_eq!(targets, ["/b", "/c"]);
    world.shutdown().await;
}
