//! What a client makes of the webhooks that come through its tunnels.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;

use futures_util::FutureExt as _;
use http::Request;
use relay_tests::body::full;
use relay_tests::world::{Answer, Http, connect_tls};
use relay_tests::{App, Place, Process, RelayClient, RelayServer};
use serde_json::{Value, json};

/// Posts a webhook to a client's tunnel at this relay.
async fn post(server: &RelayServer, client: &RelayClient, headers: &[(&str, &str)], body: &str) -> Answer {
    let host = client.host();
    let mut request = Request::post(format!("https://{host}/hooks"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let tls = connect_tls(server.https, &host, &server.ca_file(), &[b"http/1.1"]).await;
    Http::one(tls).await.answer(request.body(full(body.to_owned())).unwrap()).await
}

const STRIPE: (&str, &str) = ("stripe-signature", "t=1,v1=00");
const TWILIO: (&str, &str) = ("x-twilio-signature", "AAAA");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

#[tokio::test]
async fn senders_are_named_and_so_is_what_has_happened() {
    let server = RelayServer::spawn([""; 0]).await;
    let token = server.token("t").await;
    let app = App::recording().await;
    let mut client = server.client(&token, &app.addr().to_string(), &[]).await;
    let large = format!(r#"{{"id":"evt_2","pad":"{}","type":"invoice.paid"}}"#, "x".repeat(40_000));
    for (headers, body, wanted) in [
        (vec![("x-custom", "1")], r#"{"type":"invoice.paid"}"#, json!(null)),
        (
            vec![STRIPE],
            r#"{"id":"evt_1","type":"invoice.paid"}"#,
            json!({"provider": "stripe", "event_id": "evt_1", "event_type": "invoice.paid", "verdict": null, "reason": null, "handshake": null, "limit_ms": 8000, "limit_source": null}),
        ),
        (vec![STRIPE], &large, json!({"provider": "stripe", "event_id": "evt_2", "event_type": "invoice.paid"})),
        (vec![TWILIO, FORM], "MessageSid=SM1&MessageStatus=sent", json!({"provider": "twilio", "event_type": "sent"})),
        (vec![STRIPE], "{not json", json!({"provider": "stripe", "event_id": null, "event_type": null})),
    ] {
        assert_eq!(post(&server, &client, &headers, body).await.code(), 200);
        let webhook = client.exchange().await["webhook"].clone();
        for (field, value) in wanted.as_object().into_iter().flatten().filter(|(field, _)| !field.starts_with("limit"))
        {
            assert_eq!(webhook[field], *value, "{field} of {webhook}");
        }
        assert_eq!(webhook.is_null(), wanted.is_null());
        assert!(
            webhook.is_null() || (webhook["limit_ms"].is_u64() && webhook["limit_source"].is_string()),
            "{webhook}"
        );
    }
}

#[tokio::test]
async fn services_see_the_public_name_where_a_signature_covers_it() {
    let server = RelayServer::spawn([""; 0]).await;
    let token = server.token("t").await;
    let app = App::recording().await;
    let local = app.addr().to_string();
    for (arguments, of_stripe, of_twilio) in
        [(&[][..], false, true), (&["--host-header", "rewrite"], false, false), (&["--provider", "square"], true, true)]
    {
        let client = server.client(&token, &local, arguments).await;
        for (header, is_public) in [(STRIPE, of_stripe), (TWILIO, of_twilio)] {
            assert_eq!(post(&server, &client, &[header], "x").await.code(), 200);
            let wanted = if is_public { client.host() } else { local.clone() };
            assert_eq!(app.last().header("host"), wanted, "{header:?} with {arguments:?}");
        }
    }
}

#[tokio::test]
async fn rows_of_the_users_own_name_senders_too() {
    let (place, app) = (Place::new().await, App::recording().await);
    let server = &place.relay;
    let file = place.home.path().join("relay.toml");
    let config = [("RELAY_CONFIG", file.to_str().unwrap())];
    let start = async |app: &App, rows: &str, more: &[&str]| {
        fs::write(&file, rows).unwrap();
        let target = app.addr().to_string();
        let words = [&["http", &target, "--output", "json"], more].concat();
        Process::spawn_in(place.home.clone(), "relay", place.with_way(&words), &config).await
    };
    let acme = "[[provider]]\nid = 'acme'\nname = 'Acme'\nmatch = [{ 'header:x-acme' = true }]\nlimit_ms = 2000\n\
                event_type = ['{header:x-acme}']\n";
    let mut client = RelayClient::of(start(&app, acme, &[]).await).await;
    post(server, &client, &[("x-acme", "thing.made")], "{}").await;
    let webhook = client.exchange().await["webhook"].clone();
    assert_eq!((&webhook["provider"], &webhook["event_type"]), (&json!("acme"), &json!("thing.made")));
    assert_eq!((&webhook["limit_ms"], &webhook["limit_source"]), (&json!(2000), &json!(null)));
    client.process.terminate().await;

    // The relay does not know the row, and keeps its deadline all the same where the tunnel is for that sender.
    let slow = App::serve(|_| std::future::pending::<http::Response<relay_tests::Body>>()).await;
    let client = RelayClient::of(start(&slow, acme, &["--provider", "acme"]).await).await;
    let answer = post(server, &client, &[], "{}").await;
    assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));

    let ended = start(&app, acme, &["--provider", "acne"]).await.wait().await;
    assert_eq!(ended.code(), 2);
    assert!(ended.stderr.contains("no provider is called \"acne\"; is it acme"), "{}", ended.stderr);
    let ended = start(&app, &acme.replace("match", "mtach"), &[]).await.wait().await;
    assert_eq!(ended.code(), 2);
    assert!(ended.stderr.contains("relay.toml") && ended.stderr.contains("mtach"), "{}", ended.stderr);
}

#[tokio::test]
async fn faults_happen_where_they_are_asked_for() {
    let server = RelayServer::spawn([""; 0]).await;
    let token = server.token("t").await;
    let event = r#"{"id":"evt_1","type":"invoice.paid"}"#;
    // The fault, what the sender hears, how often the service hears of it, and what is said of that.
    for (fault, code, heard, words) in [
        ("503", 503, 0, "answered with 503 instead of the service"),
        ("drop", 504, 1, "the answer was dropped; to "),
        ("duplicate", 200, 2, "sent twice; to "),
        ("delay=50ms", 200, 1, "delayed by 50ms"),
        ("duplicate,503", 503, 0, "answered with 503 instead of the service"),
        ("duplicate,delay=10ms,drop@0%", 200, 2, "delayed by 10ms; sent twice; to "),
        ("drop@0%,seed=7", 200, 1, ""),
    ] {
        let app = App::recording().await;
        let mut client = server.client(&token, &app.addr().to_string(), &["--fault", fault, "--secret", "s"]).await;
        assert_eq!(post(&server, &client, &[STRIPE], event).await.code(), code, "{fault}");
        let again = usize::from(words.contains("to "));
        let mut told = vec![client.exchange().await];
        if again == 1 {
            told.push(client.exchange().await);
        }
        let seen = app.seen();
        let ids: Vec<_> = seen.iter().filter_map(|seen| seen.headers.get("relay-replay-of")).collect();
        assert_eq!(ids.len(), again, "{fault}: {ids:?}");
        // The first one is told of when all is over.
        let exchange = told.pop().unwrap();
        assert!(ids.iter().all(|id| *id == exchange["id"].as_str().unwrap()), "{fault}: {exchange}");
        assert_eq!(exchange["status"], code, "{fault}: {exchange}");
        assert_eq!(exchange["error"], if code == 200 { Value::Null } else { json!("fault") }, "{fault}");
        // Its body need not be here when 503 answers, which is said, too.
        let verdict = exchange["webhook"]["verdict"].as_str().unwrap();
        assert!(verdict == "malformed" || fault.ends_with("503") && verdict == "unsupported", "{fault}: {exchange}");
        assert!(fault != "delay=50ms" || exchange["duration_ms"].as_f64().unwrap() >= 50.0, "{exchange}");
        assert_eq!(seen.len(), heard, "{fault}");
        assert!(seen.iter().all(|seen| seen.body == event.as_bytes()), "{fault}");
        if !words.is_empty() {
            client.process.error_line(words).await;
        }
        client.process.terminate().await;
    }
}

#[tokio::test]
async fn a_fault_lets_a_later_request_pass_an_earlier_one() {
    let server = RelayServer::spawn([""; 0]).await;
    let token = server.token("t").await;
    let app = App::recording().await;
    let mut client = server.client(&token, &app.addr().to_string(), &["--fault", "reorder"]).await;
    let tls = connect_tls(server.https, &client.host(), &server.ca_file(), &[b"http/1.1"]).await;
    let mut http = Http::one(tls).await;
    let first = http.begin(Request::post(format!("{}/first", client.url())).body(full("1")).unwrap());
    // What asks for another protocol meets no fault, and is what passes it, once the first one is at the client.
    let mut first = std::pin::pin!(first);
    let answer = loop {
        let later = Request::get(format!("{}/later", client.url()))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .body(full(""))
            .unwrap();
        let tls = connect_tls(server.https, &client.host(), &server.ca_file(), &[b"http/1.1"]).await;
        assert_eq!(Http::one(tls).await.answer(later).await.code(), 200);
        if let Some(answer) = first.as_mut().now_or_never() {
            break answer;
        }
    };
    assert_eq!(answer.unwrap().code(), 200);
    // It has not waited in vain: a later one was answered before the service had it.
    client.process.error_line("held until a later one was answered").await;
    let order: Vec<_> = app.seen().into_iter().map(|seen| seen.target).collect();
    assert!(order.iter().position(|target| target == "/first") > Some(0), "{order:?}");
}
