//! What the relay makes of webhooks by itself, as their senders and the tunnel's client notice it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use http::Request;
use relay_protocol::message::TunnelSpec;
use relay_protocol::webhook::Webhooks;
use relay_tests::body::{full, noise, pipe};
use relay_tests::peer::{Socket, session_of, sessions, spec};
use relay_tests::{Answer, App, RelayServer, Wire, World, within};
use serde_json::Value;
use tokio::task::JoinHandle;

/// A tunnel of that name with these webhooks.
fn webhooks(tunnel: u32, name: &str, webhooks: &Webhooks) -> TunnelSpec {
    TunnelSpec { extra: webhooks.extras().unwrap(), ..spec(tunnel, name) }
}

/// A POST to the tunnel of that name, on its way.
async fn post(world: &World, name: &str, headers: &[(&str, &str)], body: &'static str) -> JoinHandle<Answer> {
    let mut request = Request::post(world.url(name, "/hooks"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut http = world.http1(&world.host(name)).await;
    tokio::spawn(async move { http.answer(request.body(full(body)).unwrap()).await })
}

const SHOPIFY: (&str, &str) = ("X-Shopify-Topic", "orders/create");

mod deadlines {
    use super::*;

    /// How long the answer may take, by what the client is told; the clock that runs meanwhile does not matter.
    async fn allowed(socket: &mut Socket, answer: JoinHandle<Answer>) -> u32 {
        let opened = within("the request", socket.opened()).await;
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().code(), 200);
        // Two parts of a millisecond may be lost between them.
        (opened.head.deadline_ms + opened.head.elapsed_ms).next_multiple_of(10)
    }

    #[tokio::test]
    async fn are_the_senders_own_where_one_is_recognised() {
        let world = World::with(|config| config.limits.deadline = Duration::from_secs(60)).await;
        let token = world.token().await;
        let named = |id: &str| Webhooks { provider: Some(id.to_owned()), ..Webhooks::default() };
        let timeout = TunnelSpec { timeout_ms: Some(20_000), ..webhooks(4, "patient", &named("slack")) };
        let tunnels =
            vec![spec(1, "any"), webhooks(2, "slack", &named("slack")), webhooks(3, "acme", &named("acme")), timeout];
        let mut socket = session_of(&world, &token, tunnels).await;
        let whatsapp = r#"{"object":"whatsapp_business_account","entry":[]}"#;
        for (name, header, body, wanted) in [
            ("any", ("X-Custom", "1"), "{}", 60_000),
            ("any", SHOPIFY, "{}", 4250),
            ("any", ("Stripe-Signature", "t=1,v1=00"), "{}", 6800),
            // A margin of 15 % would be too short here.
            ("any", ("X-Yousign-Signature-256", "sha256=00"), "{}", 200),
            // What only the body tells is told by a body that comes with its head.
            ("any", ("X-Hub-Signature-256", "sha256=00"), whatsapp, 4250),
            // How long PayPal waits is not known.
            ("any", ("PayPal-Transmission-Id", "1"), "{}", 60_000),
            // Whoever names the provider knows better than its marks.
            ("slack", ("X-Custom", "1"), "{}", 2550),
            ("slack", SHOPIFY, "{}", 2550),
            ("acme", SHOPIFY, "{}", 60_000),
            ("patient", SHOPIFY, "{}", 20_000),
        ] {
            let answer = post(&world, name, &[header], body).await;
            // A sender that gives so little time may not wait for this test.
            if wanted == 200 {
                let opened = within("the request", socket.opened()).await;
                assert!(opened.head.deadline_ms <= 200, "{:?}", opened.head);
                within("the answer", answer).await.unwrap();
                continue;
            }
            assert_eq!(allowed(&mut socket, answer).await, wanted, "{name} {header:?}");
        }
    }

    #[tokio::test]
    async fn of_a_provider_are_told_in_its_name() {
        let world = World::with(|config| config.limits.deadline = Duration::from_secs(300)).await;
        let silent = App::raw(|mut wire: Wire, _| async move { drop(wire.rest().await) }).await;
        let tunnel = world.tunnel(&silent).await;
        let begun = Instant::now();
        let answer = post(&world, tunnel.name(), &[("Sentry-Hook-Resource", "issue")], "{}").await;
        let answer = within("the answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        let words = "Sentry waits 1 s; the local service had not answered after 700 ms.";
        assert_eq!(answer.json()["error"]["message"], words);
        assert!(begun.elapsed() >= Duration::from_millis(650), "not before its time: {:?}", begun.elapsed());
    }

    /// The upload lasts for four times as long as Sentry waits. Were it nobody's, the answer would have come behind it.
    #[tokio::test]
    async fn of_a_provider_do_not_wait_for_a_slow_upload() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let (pipe, body) = pipe();
        let request = Request::post(format!("{}/", tunnel.url())).header("Sentry-Hook-Resource", "issue");
        let answer = http.begin(request.body(body).unwrap());
        for _ in 0..10 {
            pipe.send(noise(1000)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        drop(pipe);
        let answer = within("the answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (504, Some("deadline")));
        assert!(app.seen().is_empty(), "{:?}", app.seen());
    }

    /// Later than its sender waits, nobody would hear that the client is away.
    #[tokio::test]
    async fn of_a_provider_hold_for_a_client_that_is_away() {
        let world = World::with(|config| {
            let long = Duration::from_secs(60);
            (config.limits.deadline, config.limits.client_wait) = (long, long);
        })
        .await;
        let token = world.token().await;
        drop(session_of(&world, &token, vec![spec(1, "hooks")]).await);
        sessions(&world, 0).await;
        let answer = post(&world, "hooks", &[("X-Yousign-Signature-256", "sha256=00")], "{}").await;
        let answer = within("the answer", answer).await.unwrap();
        assert_eq!((answer.code(), answer.error()), (503, Some("client-offline")));
    }

    #[tokio::test]
    async fn leave_the_senders_name_in_the_log() {
        let mut server = RelayServer::spawn([""; 0]).await;
        let app = App::echo().await;
        let token = server.token("log").await;
        let client = server.client(&token, &app.addr().to_string(), &[]).await;
        for (path, header, provider) in
            [("/shop", "X-Shopify-Topic: orders/create", Value::from("shopify")), ("/any", "X-A: b", Value::Null)]
        {
            let host = client.host();
            let mut wire = server.raw(&host).await;
            wire.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\n\r\n")).await;
            assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
            let line = server.process.error_line(&format!("\"target\":\"{path}\"")).await;
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["provider"], provider, "{line}");
        }
    }
}
