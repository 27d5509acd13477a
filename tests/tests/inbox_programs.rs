//! Other people's programs at both ends of an inbox: one that sends and tries again, one that checks signatures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use aws_lc_rs::hmac;
use http::Request;
use relay_tests::body::full;
use relay_tests::tools::program;
use relay_tests::{App, Http, Place, Process, RelayServer, within};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// [Alertmanager](https://github.com/prometheus/alertmanager) tries again until somebody has taken its alert.
#[tokio::test]
async fn alertmanager_sends_until_the_relay_keeps_it() {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let words = ["--http-mode", "serve"];
    let mut place = Place::of(RelayServer::spawn_in(home.clone(), words).await).await;
    let inbox = ["--inbox", "--inspect", "off"];
    place.client(&App::echo().await, "hooks", &inbox).await.process.kill().await;
    let (http, https) = (place.relay.http.unwrap().to_string(), place.relay.https.to_string());
    place.relay.process.kill().await;

    // The name leads nowhere, so it asks the relay as its proxy.
    let config = format!(
        "route: {{receiver: relay, group_wait: 0s, group_interval: 1m, repeat_interval: 1h}}\n\
         receivers:\n- name: relay\n  webhook_configs:\n  - url: http://hooks.{}/alerts\n    \
         http_config: {{proxy_url: 'http://{http}'}}\n",
        RelayServer::DOMAIN
    );
    std::fs::write(place.home.path().join("alertmanager.yml"), config).unwrap();
    let alertmanager = program("prometheus-alertmanager").display().to_string();
    let words = ["--config.file=alertmanager.yml", "--storage.path=data", "--web.listen-address=127.0.0.1:0"];
    let words = [&words[..], &["--cluster.listen-address=", "--log.level=debug"]].concat();
    let mut alertmanager = Process::spawn_in(place.home.clone(), &alertmanager, words, &[]).await;
    let port = within("its port", async {
        loop {
            match alertmanager.ports()[..] {
                [port] => break port,
                _ => sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    });
    let port = port.await;
    let mut api = Http::one(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
    let alert =
        Request::post(format!("http://127.0.0.1:{port}/api/v2/alerts")).header("content-type", "application/json");
    let alert = api.answer(alert.body(full(r#"[{"labels":{"alertname":"DiskFull"}}]"#)).unwrap()).await;
    assert_eq!(alert.code(), 200, "{alert:?}");
    // Nobody listens.
    alertmanager.error_line("will retry").await;

    let words = ["--http-mode", "serve", "--http", &http, "--https", &https];
    place.relay = RelayServer::spawn_in(home, words).await;
    alertmanager.error_line("Notify success").await;
    alertmanager.terminate().await;
    let app = App::recording().await;
    let _client = place.client(&app, "hooks", &inbox).await;
    within("the alert", app.reached(1)).await;
    let seen = within("all of it", async {
        loop {
            match app.seen().pop() {
                Some(seen) => break seen,
                None => sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    });
    let seen = seen.await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/alerts"));
    let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(body["alerts"][0]["labels"]["alertname"], "DiskFull");
    assert!(seen.header("user-agent").starts_with("Alertmanager/"));
    assert!(seen.header("relay-delivery").contains("; attempt=1; age="));
}

/// [webhook](https://github.com/adnanh/webhook) runs a command for a webhook whose HMAC is right.
#[tokio::test]
async fn webhook_finds_signatures_right_that_have_waited() {
    let home = Arc::new(tempfile::tempdir().unwrap());
    let config = home.path().join("relay-server.toml");
    std::fs::write(&config, "[limits]\ninbox_retry = '20ms'\n").unwrap();
    let words = ["--config", &config.display().to_string()];
    let place = Place::of(RelayServer::spawn_in(home, words).await).await;
    let inbox = ["--inbox=attempts=2", "--inspect", "off"];
    place.client(&App::echo().await, "hooks", &inbox).await.process.kill().await;
    let sign = |secret: &str, body: &[u8]| -> String {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()), body);
        tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    for (number, secret) in ["right", "wrong", "right"].into_iter().enumerate() {
        // Whitespace that nobody would write so again.
        let body = format!("{{\"number\" :\t{number} ,\n\"é\": \"\\u00e9\"}}");
        let request = Request::post("/hooks/deploy").header("content-type", "application/json");
        let request = request.header("x-hub-signature-256", format!("sha256={}", sign(secret, body.as_bytes())));
        assert_eq!(place.send("hooks", request.body(full(body)).unwrap()).await.code(), 202);
    }

    let done = place.home.path().join("done");
    let hooks = serde_json::json!([{
        "id": "deploy",
        "execute-command": "/bin/sh",
        "pass-arguments-to-command": [
            { "source": "string", "name": "-c" },
            { "source": "string", "name": format!("echo \"$1\" >>{}", done.display()) },
            { "source": "string", "name": "sh" },
            { "source": "payload", "name": "number" },
        ],
        "include-command-output-in-response": true,
        // A signature that is wrong is a rule that cannot be judged, which it answers with 500.
        "trigger-rule": { "match": {
            "type": "payload-hmac-sha256",
            "secret": "right",
            "parameter": { "source": "header", "name": "X-Hub-Signature-256" },
        }},
    }]);
    std::fs::write(place.home.path().join("hooks.json"), hooks.to_string()).unwrap();
    let webhook = program("webhook").display().to_string();
    let words = ["-hooks", "hooks.json", "-ip", "127.0.0.1", "-port", "0", "-verbose"];
    let webhook = Process::spawn_in(place.home.clone(), &webhook, words, &[]).await;
    let port = within("its port", async {
        loop {
            match webhook.ports()[..] {
                [port] => break port,
                _ => sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    });
    let words =
        ["http", &port.await.to_string(), "--subdomain", "hooks", "--output", "json", inbox[0], inbox[1], inbox[2]];
    // What is given up before somebody begins to wait is no news to them.
    place.spawn(place.with_way(&["inbox", "pause", "hooks"])).await.wait().await;
    let _client = relay_tests::RelayClient::spawn(place.with_way(&words)).await;
    let drained = place.spawn(place.with_way(&["inbox", "drain", "hooks", "--within", "25s"])).await.wait().await;
    assert!(drained.stderr.contains("1 became dead letters"), "{drained:?}\n{}", webhook.said());
    let mut ran: Vec<_> = std::fs::read_to_string(done).unwrap().lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, ["0", "2"], "{}", webhook.said());
    let dead = place.with_way(&["inbox", "list", "hooks", "--state", "dead", "--output", "json"]);
    let dead = place.spawn(dead).await.wait().await;
    assert!(dead.stdout.contains("The app answered ") && dead.stdout.lines().count() == 1, "{dead:?}");
}
