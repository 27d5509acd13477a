//! What a sender and a local service notice of one exchange.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use relay_tests::{App, World};

#[tokio::test]
async fn a_post_arrives_and_its_answer_comes_back() {
    let world = World::start().await;
    let app = App::recording().await;
    let tunnel = world.tunnel(&app).await;
    let answer = world.post(&format!("{}/hooks?a=1", tunnel.url()), r#"{"id":"evt_1"}"#).await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    let seen = app.only();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hooks?a=1"));
    assert_eq!(seen.body, r#"{"id":"evt_1"}"#);
    assert_eq!(seen.header("content-length"), "14");
    world.shutdown().await;
}
