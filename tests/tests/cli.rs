//! The two programs as a user runs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use relay_tests::{App, RelayServer};

#[tokio::test]
async fn relay_http_serves_and_reports() {
    let relay = RelayServer::spawn([""; 0]).await;
    let token = relay.token("me").await;
    let app = App::echo().await;
    let mut client = relay.client(&token, &app.addr().to_string(), &[]).await;
    let host = client.url().strip_prefix("https://").unwrap().to_owned();
    let tls = relay_tests::world::connect_tls(relay.https, &host, &relay.ca_file(), &[b"http/1.1"]).await;
    let mut http = relay_tests::Http::one(tls).await;
    let request = http::Request::post(format!("{}/a", client.url())).body(relay_tests::body::full("x")).unwrap();
    assert_eq!(http.answer(request).await.text(), "x");
    assert_eq!(client.exchange().await["path"], "/a");
}
