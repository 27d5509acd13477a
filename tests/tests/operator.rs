//! What the relay's operator notices of inboxes: all of them, by `relay-server`, before a client has ever come and with
//! no relay running.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode};
use relay_client::{Client, Tunnel, TunnelOptions};
use relay_server::config::Alert;
use relay_server::store::unix_now;
use relay_tests::body::{empty, full, noise};
use relay_tests::process::{Ended, run};
use relay_tests::{Answer, App, RelayClient, Seen, World, within};
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
    let words = ["http", &app.addr().port().to_string(), "--subdomain", "hooks", "--output", "json"];
    let mut client = RelayClient::spawn(world.arguments(&token, &words)).await;
    assert_eq!(client.process.event("inbox").await["tunnel"], "hooks", "it is told what the name has");
    done(&world, "inbox drain hooks").await;
    let mut seen: Vec<_> = app.seen().into_iter().map(|seen| (seen.target, seen.body)).collect();
    seen.sort();
    assert_eq!(seen, [("/one".into(), "1".into()), ("/two".into(), "2".into())]);
    assert_eq!(client.process.terminate().await.code(), 143);
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
    let shown = |secrets: &str| format!("inbox show hooks {first} --output json --secrets {secrets}");
    let whole: Value = done(&world, &shown("mask")).await.lines().remove(0);
    assert!(whole["headers"].as_array().unwrap().contains(&json!(["authorization", "Bearer ***"])), "{whole}");
    let whole: Value = done(&world, &shown("show")).await.lines().remove(0);
    assert!(whole["headers"].as_array().unwrap().contains(&json!(["authorization", "Bearer let-me-in"])), "{whole}");
    assert_eq!((&whole["path"], &whole["size"]), (&"/one?a=%31".into(), &3000.into()));

    assert_eq!(done(&world, &format!("inbox drop hooks {second}")).await.stdout, "1\n");
    let nothing = relay_server(&world, &format!("inbox drop hooks {second}")).await;
    assert!(nothing.code() == 1 && nothing.stderr.contains("nothing was done"), "{nothing:?}");
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
    // What becomes of an attempt is counted once it is noted, behind the answer.
    let metrics = async |world: &World, expected: &[&str]| {
        let all_are_there = async {
            loop {
                let answer = world.get_admin("/metrics").await.text().to_owned();
                if expected.iter().all(|line| answer.lines().any(|there| there == *line)) {
                    break;
                }
            }
        };
        within(&expected.join(", "), all_are_there).await;
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
    // What is given up before somebody begins to wait is no news to them.
    done(&world, "inbox pause hooks").await;
    let tunnel = tunnel(&world, &token, &app).await;
    let drained = relay_server(&world, "inbox drain hooks").await;
    assert!(drained.code() == 1 && drained.stderr.contains("1 became dead letters"), "{drained:?}");
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

/// The alerts that a receiver has had, in the order in which they came, each signed as Standard Webhooks has it.
fn alerts(receiver: &App, key: &[u8]) -> Vec<Value> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let read = |seen: &Seen| {
        let (id, at) = (seen.header("webhook-id"), seen.header("webhook-timestamp"));
        let signed = [id.as_bytes(), b".", at.as_bytes(), b".", &seen.body].concat();
        let signature = seen.header("webhook-signature").strip_prefix("v1,").unwrap();
        hmac::verify(&key, &signed, &STANDARD.decode(signature).unwrap()).expect("its signature");
        assert!(id.starts_with("msg_") && (at.parse::<i64>().unwrap() - unix_now()).abs() < 60, "{seen:?}");
        assert_eq!((seen.method.as_str(), seen.header("content-type")), ("POST", "application/json"));
        serde_json::from_slice(&seen.body).unwrap()
    };
    receiver.seen().iter().map(read).collect()
}

#[tokio::test]
async fn a_backlog_and_dead_letters_are_told_once_each() {
    let receiver = App::recording().await;
    let key = [7; 32];
    let world = World::with(|config| {
        let secret = Some(format!("whsec_{}", STANDARD.encode(key)).into());
        let every = Duration::from_millis(20);
        let url = format!("http://{}/alerts?key=1", receiver.addr());
        config.alert = Some(Alert { secret, waiting: 3, every, ..Alert::to(&url) });
    })
    .await;
    let (token, _) = world.token_with(|new| new.name = "ours".to_owned()).await;
    done(&world, "token reserve ours hooks --inbox=attempts=1").await;
    let mut ids = Vec::new();
    for path in ["/200", "/500", "/200"] {
        ids.push(kept(&world.post(&world.url("hooks", path), r#"{"type":"invoice.paid"}"#).await));
    }
    within("the backlog", receiver.reached(1)).await;
    // Nothing is told of what has been told.
    kept(&world.post(&world.url("hooks", "/500"), "4").await);
    let app = App::serve(|request: Request<_>| async move {
        let mut response = Response::new(empty());
        let code = request.uri().path().trim_start_matches('/').parse().unwrap();
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    })
    .await;
    let _tunnel = tunnel(&world, &token, &app).await;
    within("the end of the backlog, and dead letters", receiver.reached(3)).await;
    assert!(relay_server(&world, "inbox drain hooks").await.stdout.contains("0 waiting"));
    let metrics = world.get_admin("/metrics").await;
    assert!(metrics.text().contains("relay_alerts_total{outcome=\"sent\"} "), "{}", metrics.text());
    // Dead letters can be seen before the backlog is gone, and one of them before the other.
    world.shutdown().await;
    let alerts = alerts(&receiver, &key);
    assert_eq!(receiver.last().target, "/alerts?key=1");
    let events: Vec<_> = alerts.iter().map(|alert| alert["event"].as_str().unwrap()).collect();
    assert!(events[0] == "inbox.backlog" && events.len() == 3, "{events:?}");
    let of = |event: &str| alerts.iter().find(|alert| alert["event"] == event).unwrap_or_else(|| panic!("{events:?}"));
    let backlog = of("inbox.backlog");
    let text = backlog["text"].as_str().unwrap();
    assert!(text.starts_with("Inbox hooks of ours: 3 webhooks wait to be delivered, the oldest for "), "{text}");
    assert_eq!(
        (&backlog["inbox"], &backlog["token"], &backlog["waiting"]),
        (&"hooks".into(), &"ours".into(), &3.into())
    );
    assert!(backlog["webhook"].is_null() && backlog["oldest_s"].is_u64(), "{backlog}");
    let dead = of("inbox.dead");
    assert!(dead["webhook"]["reason"].as_str().unwrap().contains("500"), "{dead}");
    assert!(dead["dead"].as_u64().unwrap() > 0 && dead["webhook"]["id"].as_str().unwrap().len() == 26, "{dead}");
    assert!(of("inbox.recovered")["waiting"].as_u64().unwrap() <= 1, "{alerts:?}");
}

#[tokio::test]
async fn an_alert_is_sent_again_until_it_is_taken_and_holds_up_no_webhook() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    let receiver = App::serve(move |request: Request<_>| {
        let mut seen = seen.lock().unwrap();
        seen.push(request.headers()["webhook-id"].clone());
        let mut response = Response::new(empty());
        *response.status_mut() = if seen.len() < 2 { StatusCode::BAD_GATEWAY } else { StatusCode::NO_CONTENT };
        std::future::ready(response)
    })
    .await;
    let world = World::with(|config| {
        let every = Duration::from_millis(20);
        config.alert = Some(Alert { waiting: 1, every, ..Alert::to(&format!("http://{}/", receiver.addr())) });
    })
    .await;
    world.token_with(|new| new.name = "ours".to_owned()).await;
    done(&world, "token reserve ours hooks --inbox").await;
    kept(&world.post(&world.url("hooks", "/"), "1").await);
    within("the first", receiver.reached(1)).await;
    kept(&world.post(&world.url("hooks", "/"), "2").await);
    within("the second", receiver.reached(2)).await;
    world.shutdown().await;
    let requests = requests.lock().unwrap();
    assert!(requests.len() == 2 && requests[0] == requests[1], "the same alert: {requests:?}");
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
    let listed = within("what became of it is noted", async {
        loop {
            let mut dead = done(&world, "inbox list hooks --state dead --output json").await.lines();
            if let Some(listed) = dead.pop() {
                break listed;
            }
        }
    })
    .await;
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
