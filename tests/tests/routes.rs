//! Routes: which requests of a tunnel go to which service, and which to none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::sync::Arc;

use http::Request;
use relay_tests::body::{full, pipe};
use relay_tests::world::{Answer, Http, connect_tls};
use relay_tests::{App, Process, RelayClient, RelayServer};
use tempfile::TempDir;

const STRIPE: (&str, &str) = ("stripe-signature", "t=1,v1=00");

/// A client of `relay start` with these routes, and its relay.
async fn started(routes: &str, main: &App) -> (RelayServer, RelayClient) {
    let server = RelayServer::spawn([""; 0]).await;
    let token = server.token("t").await;
    let home = Arc::new(TempDir::new().unwrap());
    let file = home.path().join("relay.toml");
    let (ca, addr, target) = (server.ca_file(), server.https, main.addr());
    let text = format!(
        "relay = '{}'\ntoken = '{token}'\nrelay_ca = '{}'\nrelay_addr = '{addr}'\noutput = 'json'\n\
         [tunnels.web]\nupstream = '{target}'\n{routes}",
        server.url,
        ca.display()
    );
    fs::write(&file, text).unwrap();
    let config = [("RELAY_CONFIG", file.to_str().unwrap())];
    let client = RelayClient::of(Process::spawn_in(home, "relay", ["start"], &config).await).await;
    (server, client)
}

async fn connect(server: &RelayServer, client: &RelayClient) -> Http {
    Http::one(connect_tls(server.https, &client.host(), &server.ca_file(), &[b"http/1.1"]).await).await
}

async fn post(server: &RelayServer, client: &RelayClient, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::post(format!("{}{path}", client.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    connect(server, client).await.answer(request.body(full(body.to_owned())).unwrap()).await
}

#[tokio::test]
async fn send_each_request_where_the_first_that_fits_leads() {
    let (main, billing, staging) = (App::recording().await, App::recording().await, App::recording().await);
    let routes = format!(
        "[[tunnels.web.routes]]\nprovider = 'stripe'\ntype = 'invoice.*'\nupstream = '{}'\n\
         [[tunnels.web.routes]]\nwhen = {{ path = '/staging/*', 'header:x-env' = 'staging' }}\nupstream = {}\n\
         [[tunnels.web.routes]]\nwhen = {{ 'json:/test' = 'true' }}\nanswer = 202\nbody = 'not here'\n\
         [[tunnels.web.routes]]\nprovider = 'shopify'\ndrop = true\n",
        billing.addr(),
        staging.addr().port()
    );
    let (server, mut client) = started(&routes, &main).await;
    // Longer than what comes with a head, so that the route has to wait for it.
    let long = format!(r#"{{"pad":"{}","type":"invoice.paid"}}"#, "x".repeat(300_000));
    for (path, headers, body, wanted) in [
        ("/hooks", vec![STRIPE], r#"{"type":"invoice.paid"}"#, "billing"),
        ("/hooks", vec![STRIPE], &*long, "billing"),
        ("/hooks", vec![STRIPE], r#"{"type":"charge.failed"}"#, "main"),
        ("/hooks", vec![], r#"{"type":"invoice.paid"}"#, "main"),
        ("/staging/a?b=c", vec![("x-env", "staging")], "x", "staging"),
        ("/staging/a", vec![("x-env", "live")], "x", "main"),
        ("/stagings", vec![("x-env", "staging")], "x", "main"),
        ("/hooks", vec![], r#"{"test":true}"#, "answer"),
        ("/hooks", vec![], r#"{"test":false}"#, "main"),
        ("/hooks", vec![("x-shopify-topic", "orders/create")], "{}", "drop"),
    ] {
        let before = [&main, &billing, &staging].map(App::requests);
        let answer = post(&server, &client, path, &headers, body).await;
        let after = [&main, &billing, &staging].map(App::requests);
        let (went, code, text) = match wanted {
            "main" => ([1, 0, 0], 200, None),
            "billing" => ([0, 1, 0], 200, None),
            "staging" => ([0, 0, 1], 200, None),
            "answer" => ([0, 0, 0], 202, Some("not here")),
            _ => ([0, 0, 0], 200, Some("")),
        };
        let more: Vec<_> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        assert_eq!((answer.code(), &more[..]), (code, &went[..]), "{path} {headers:?} {:.40}", body);
        assert!(text.is_none_or(|text| answer.text() == text), "{}", answer.text());
        assert_eq!(client.exchange().await["status"], code);
    }
    assert_eq!(billing.last().body, long.as_bytes(), "byte for byte");
}

#[tokio::test]
async fn hold_nothing_back_that_they_do_not_ask_for() {
    let main = App::echo().await;
    // The second one is about somebody who is known by a header.
    let routes = "[[tunnels.web.routes]]\nwhen = { path = '/other', 'json:/a' = true }\ndrop = true\n\
                  [[tunnels.web.routes]]\nprovider = 'stripe'\ndrop = true\n";
    let (server, client) = started(routes, &main).await;
    let (feed, body) = pipe();
    let request = Request::post(format!("{}/stream", client.url())).body(body).unwrap();
    let mut http = connect(&server, &client).await;
    let answer = http.begin(request);
    assert!(feed.send("first").await);
    // It is with the service although its end has not come.
    main.reached(1).await;
    drop(feed);
    assert_eq!(answer.await.unwrap().text(), "first");
}

#[tokio::test]
async fn let_pass_what_is_too_long_for_them_to_look_into() {
    let main = App::recording().await;
    let routes = "[[tunnels.web.routes]]\nwhen = { 'json:/a' = false }\ndrop = true\n";
    let (server, mut client) = started(routes, &main).await;
    let (feed, body) = pipe();
    let request = Request::post(format!("{}/upload", client.url())).body(body).unwrap();
    let mut http = connect(&server, &client).await;
    let answer = http.begin(request);
    for part in 0..11_u8 {
        assert!(feed.send(vec![part; 1 << 20]).await);
    }
    drop(feed);
    assert_eq!(answer.await.unwrap().code(), 200);
    assert_eq!(client.exchange().await["status"], 200);
    let came = main.last().body;
    assert_eq!(came.len(), 11 << 20);
    assert!(came.chunks(1 << 20).zip(0..).all(|(piece, part)| piece.iter().all(|byte| *byte == part)), "in order");
}

#[tokio::test]
async fn hold_for_what_asks_for_another_protocol_too() {
    let (main, socket) = (App::recording().await, App::recording().await);
    let routes = format!("[[tunnels.web.routes]]\nwhen = {{ path = '/ws/*' }}\nupstream = '{}'\n", socket.addr());
    let (server, client) = started(&routes, &main).await;
    for (path, wanted) in [("/ws/1", [0, 1]), ("/other", [1, 1])] {
        let request = Request::get(format!("{}{path}", client.url()))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        // Neither of them speaks it.
        assert_eq!(connect(&server, &client).await.answer(request.body(full("")).unwrap()).await.code(), 200);
        assert_eq!([&main, &socket].map(App::requests), wanted, "{path}");
    }
}

#[tokio::test]
async fn that_are_wrong_are_explained() {
    for (route, wanted) in [
        ("provider = 'strip'\ndrop = true", "is it stripe"),
        ("drop = true\nanswer = 204", "one of upstream = 4000, answer = 204 and drop = true"),
        ("when = { path = '/a' }", "one of upstream = 4000, answer = 204 and drop = true"),
        ("when = { paths = '/a' }\ndrop = true", "names no place of a request"),
        ("answer = 100", "from 200 to 599"),
        ("answer = 204\nbody = 'x'", "has no body"),
        ("upstream = 'no port'", "relay.toml:"),
    ] {
        let home = Arc::new(TempDir::new().unwrap());
        let file = home.path().join("relay.toml");
        let text =
            format!("relay = 'https://relay.test'\n[tunnels.web]\nupstream = 1\n[[tunnels.web.routes]]\n{route}\n");
        fs::write(&file, text).unwrap();
        let config = [("RELAY_CONFIG", file.to_str().unwrap())];
        let ended = Process::spawn_in(home.clone(), "relay", ["start"], &config).await.wait().await;
        assert_eq!(ended.code(), 2, "{route}: {}", ended.stderr);
        assert!(ended.stderr.contains(wanted), "{route}: {}", ended.stderr);
    }
}
