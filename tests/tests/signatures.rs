//! Signatures and handshakes, as the owner of a tunnel, a provider and a stranger see them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use relay_client::TunnelOptions;
use relay_client::webhooks::WebhookOptions;
use relay_protocol::webhook::{Credentials, Draft, Table};
use relay_tests::{Answer, App, Process, RelayClient, Web, World, app, body};
use serde_json::{Value, json};
use tempfile::TempDir;

const SECRET: &str = "whsec_Y2FuYXJ5LWNhbmFyeS1jYW5hcnk";

/// A relay, and `relay http` before an app that records.
struct Scene {
    world: World,
    app: App,
    home: Arc<TempDir>,
    client: RelayClient,
}

impl Scene {
    async fn start(arguments: &[&str]) -> Self {
        Self::with(arguments, &[]).await
    }

    async fn with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let (world, app) = (World::start().await, App::recording().await);
        let home = Arc::new(tempfile::tempdir().unwrap());
        let target = app.addr().to_string();
        let words = [&["http", &target, "--subdomain", "hooks", "--output", "json"], arguments].concat();
        let all = world.arguments(&world.token().await, &words);
        let client = RelayClient::of(Process::spawn_in(home.clone(), "relay", all, variables).await).await;
        Self { world, app, home, client }
    }

    /// Sends a request as it was signed; what comes back, and what the client says of it.
    async fn send(&mut self, method: Method, draft: &Draft) -> (Answer, Value) {
        let mut request = Request::builder().method(method).uri(&draft.url);
        for (name, value) in &draft.headers {
            request = request.header(name, value);
        }
        let answer = self.world.send(request.body(body::full(draft.body.clone())).unwrap()).await;
        (answer, self.client.exchange().await)
    }

    async fn post(&mut self, draft: &Draft) -> (Answer, Value) {
        self.send(Method::POST, draft).await
    }

    /// A request of this provider's, signed now.
    fn signed(&self, provider: &str, secret: &str, body: impl Into<Vec<u8>>) -> Draft {
        signed(provider, secret, &self.world.url("hooks", "/hooks?a=1"), body)
    }
}

fn unsigned(url: &str, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Draft {
    let header = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    Draft { url: url.to_owned(), headers: headers.iter().map(header).collect(), body: body.into() }
}

fn signed(provider: &str, secret: &str, url: &str, body: impl Into<Vec<u8>>) -> Draft {
    let marks: &[(&str, &str)] = match provider {
        "github" => &[("x-github-event", "push"), ("x-github-delivery", "d-1")],
        "twitch" => {
            &[("twitch-eventsub-message-id", "m-1"), ("twitch-eventsub-message-type", "webhook_callback_verification")]
        }
        _ => &[],
    };
    let draft = unsigned(url, marks, body);
    let request = relay_protocol::webhook::Request::new(&Method::POST, url, &draft.headers, &draft.body);
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    let table = Table::built_in().unwrap();
    table.get(provider).unwrap().sign(&request, &credentials, jiff::Timestamp::now()).unwrap()
}

const EVENT: &str = r#"{"id":"evt_1","type":"invoice.paid","livemode":false}"#;

#[tokio::test]
async fn with_warn_everything_passes_and_the_verdict_is_told() {
    let mut scene = Scene::start(&["--secret", SECRET]).await;
    let stripe = scene.signed("stripe", SECRET, EVENT);
    let (answer, event) = scene.post(&stripe).await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"));
    let webhook = &event["webhook"];
    assert_eq!(webhook["verdict"], "valid", "{event}");
    assert_eq!((&webhook["provider"], &webhook["event_type"]), (&json!("stripe"), &json!("invoice.paid")));
    assert!(webhook["reason"].as_str().unwrap().starts_with("signed by Stripe"), "{event}");

    let altered = Draft { body: format!("{EVENT}\n").into(), ..stripe };
    let (answer, event) = scene.post(&altered).await;
    assert_eq!((answer.code(), &event["error"]), (200, &Value::Null));
    assert_eq!(event["webhook"]["verdict"], "bad_signature");
    assert!(event["webhook"]["reason"].as_str().unwrap().contains("a newline was added at its end"), "{event}");
    assert_eq!(scene.app.last().body, format!("{EVENT}\n"));
    scene.client.process.error_line("bad signature: the secret is right").await;

    // One that streams, and is far larger than what is kept to be sent again.
    let long = vec![b'x'; 3 << 20];
    let (answer, event) = scene.post(&scene.signed("github", SECRET, long.clone())).await;
    assert_eq!((answer.code(), &event["webhook"]["verdict"]), (200, &json!("valid")), "{event}");
    assert_eq!(scene.app.last().body, long);

    // So long that it is not judged, which is said.
    let (answer, event) = scene.post(&scene.signed("github", SECRET, vec![b'x'; 11 << 20])).await;
    assert_eq!((answer.code(), &event["webhook"]["verdict"]), (200, &json!("unsupported")), "{event}");
    assert!(event["webhook"]["reason"].as_str().unwrap().contains("at most 10 MiB"), "{event}");

    // Whoever is not known is not judged.
    let url = scene.world.url("hooks", "/");
    let (answer, event) = scene.send(Method::GET, &unsigned(&url, &[], "")).await;
    assert_eq!((answer.code(), &event["webhook"]), (200, &Value::Null));
}

#[tokio::test]
async fn with_reject_the_service_hears_of_nothing_else_than_what_is_signed_rightly() {
    let mut scene = Scene::start(&["--secret", SECRET, "--secret", "old", "--verify", "reject"]).await;
    let url = scene.world.url("hooks", "/hooks?a=1");
    let right = [
        scene.signed("stripe", SECRET, EVENT),
        scene.signed("stripe", "old", EVENT),
        scene.signed("github", "old", vec![b'x'; 2 << 20]),
        // Some sign the URL that was called.
        scene.signed("square", SECRET, EVENT),
    ];
    for (index, draft) in right.iter().enumerate() {
        let (answer, event) = scene.post(draft).await;
        assert_eq!((answer.code(), answer.text()), (200, "ok"), "{event}");
        assert_eq!(event["webhook"]["verdict"], "valid", "{event}");
        assert_eq!(scene.app.requests(), index + 1);
        assert_eq!(scene.app.last().body, draft.body);
    }
    let signed = &right[0];
    let stale = {
        let mut stale = signed.clone();
        stale.headers[0].1 = HeaderValue::from_static("t=1767225600,v1=00");
        stale
    };
    let wrong = [
        ("another secret", "bad_signature", signed_by(&scene, "whsec_b3RoZXI")),
        ("altered", "bad_signature", Draft { body: EVENT.replace("paid", "void").into(), ..signed.clone() }),
        ("another URL", "bad_signature", Draft { url: url.replace("a=1", "a=2"), ..right[3].clone() }),
        ("malformed", "malformed", stale),
        ("no secret of it", "missing", unsigned(&url, &[("x-github-event", "push")], EVENT)),
        ("nobody's", "", unsigned(&url, &[], EVENT)),
        ("a page", "", unsigned(&url, &[], "")),
    ];
    for (what, verdict, draft) in wrong {
        let method = if what == "a page" { Method::GET } else { Method::POST };
        let (answer, event) = scene.send(method, &draft).await;
        assert_eq!(answer.code(), 401, "{what}: {event}");
        assert_eq!(answer.headers["relay-error"], "signature-invalid", "{what}");
        // A stranger learns that, and no more.
        for hint in ["newline", "secret is right", "almost", "altered", SECRET] {
            assert!(!answer.text().contains(hint), "{what}: {}", answer.text());
        }
        assert_eq!((&event["status"], &event["error"]), (&json!(401), &json!("signature-invalid")), "{what}");
        if !verdict.is_empty() {
            assert_eq!(event["webhook"]["verdict"], verdict, "{what}: {event}");
        }
    }
    assert_eq!(scene.app.requests(), right.len(), "the service has heard of none");
    scene.client.process.error_line("nobody who is known").await;
    let challenge =
        unsigned(&scene.world.url("hooks", "/?hub.mode=subscribe&hub.verify_token=v&hub.challenge=c"), &[], "");
    let (answer, event) = scene.send(Method::GET, &challenge).await;
    assert_eq!(answer.code(), 401, "{event}");
    scene.client.process.error_line("--handshake answers").await;

    // What cannot be held until it is judged.
    let (answer, event) = scene.post(&scene.signed("github", "old", vec![b'x'; 11 << 20])).await;
    assert_eq!((answer.code(), &event["error"]), (413, &json!("body-too-large")), "{event}");
    assert_eq!(scene.app.requests(), right.len());
}

fn signed_by(scene: &Scene, secret: &str) -> Draft {
    scene.signed("stripe", secret, EVENT)
}

/// The relay judges, and what it refuses costs the tunnel nothing.
#[tokio::test]
async fn the_relay_judges_where_it_is_told_the_secrets() {
    let mut scene = Scene::start(&["--secret", SECRET, "--verify-at", "edge", "--verify", "reject"]).await;
    let right = scene.signed("stripe", SECRET, EVENT);
    let forged = Draft { body: EVENT.replace("paid", "void").into(), ..right.clone() };
    let request = |draft: &Draft| {
        let mut request = Request::post(&draft.url);
        for (name, value) in &draft.headers {
            request = request.header(name, value);
        }
        request.body(body::full(draft.body.clone())).unwrap()
    };
    let answer = scene.world.send(request(&forged)).await;
    assert_eq!((answer.code(), &answer.headers["relay-error"]), (401, &HeaderValue::from_static("signature-invalid")));
    let (answer, event) = scene.post(&right).await;
    assert_eq!((answer.code(), &event["webhook"]["verdict"]), (200, &json!("valid")), "{event}");
    assert_eq!(scene.app.requests(), 1, "and the client has heard of nothing else before");

    let mut scene = Scene::start(&["--secret", SECRET, "--verify-at", "edge"]).await;
    let right = scene.signed("stripe", SECRET, EVENT);
    let (answer, event) = scene.post(&Draft { body: format!("{EVENT}\n").into(), ..right }).await;
    assert_eq!((answer.code(), &event["webhook"]["verdict"]), (200, &json!("bad_signature")), "{event}");
    assert!(event["webhook"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{event}");
}

/// As curl does with a body of some size, and as a program does that does not know how much will come.
#[tokio::test]
async fn a_body_that_comes_later_is_waited_for() {
    let mut scene = Scene::start(&["--secret", SECRET, "--verify", "reject"]).await;
    // Strangers who do not say how much will come, and send nothing, are in nobody's way.
    let host = scene.world.host("hooks");
    let mut strangers = Vec::new();
    for _ in 0..12 {
        let mut wire = scene.world.raw(&host).await;
        let head = format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        wire.send(head).await;
        strangers.push(wire);
    }
    // They are at the client once a request behind them has come back.
    scene.post(&scene.signed("github", SECRET, "x")).await;
    let draft = scene.signed("github", SECRET, vec![b'x'; 300_000]);
    let signature = draft.headers.iter().find(|(name, _)| name == "x-hub-signature-256").unwrap().1.clone();
    let head = |framing: &str| {
        let signature = signature.to_str().unwrap();
        format!(
            "POST /hooks?a=1 HTTP/1.1\r\nHost: {host}\r\nX-GitHub-Event: push\r\nX-Hub-Signature-256: {signature}\r\n\
             {framing}\r\nConnection: close\r\n\r\n"
        )
    };
    let mut wire = scene.world.raw(&host).await;
    wire.send(head("Content-Length: 300000\r\nExpect: 100-continue")).await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 100 "));
    wire.send(&draft.body).await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(scene.client.exchange().await["webhook"]["verdict"], "valid");

    let mut wire = scene.world.raw(&host).await;
    wire.send(head("Transfer-Encoding: chunked")).await;
    for part in draft.body.chunks(100_000) {
        wire.send([format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()).await;
    }
    wire.send(b"0\r\n\r\n").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(scene.client.exchange().await["webhook"]["verdict"], "valid");
    let seen = scene.app.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().skip(1).all(|seen| seen.body == draft.body));
}

/// A handshake: its provider, how it is asked, the status of the answer, and a part of that.
type Case<'c> = (&'c str, Method, &'c str, &'c [(&'c str, &'c str)], &'c str, u16, &'c str);

#[tokio::test]
async fn each_handshake_of_the_table_is_answered_for_the_service() {
    let (world, app) = (World::start().await, App::recording().await);
    let token = r#"{"challenge":"c-1","type":"url_verification","verification_token":"t"}"#;
    let discord = Table::built_in().unwrap().get("discord").unwrap().key_pair().unwrap();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let cases: &[Case<'_>] = &[
        ("slack", Method::POST, "/", &[], r#"{"type":"url_verification","challenge":"c-1"}"#, 200, "c-1"),
        ("twitch", Method::POST, "/", &[], r#"{"challenge":"c-2"}"#, 200, "c-2"),
        ("discord", Method::POST, "/", &[], r#"{"type":1}"#, 200, r#"{"type":1}"#),
        ("discord", Method::POST, "/", &[], r#"{"type":0}"#, 204, ""),
        ("mandrill", Method::HEAD, "/", &[], "", 200, ""),
        ("mailchimp", Method::GET, "/", &[], "", 200, ""),
        (
            "zoom",
            Method::POST,
            "/",
            &[],
            r#"{"event":"endpoint.url_validation","payload":{"plainToken":"p-1"}}"#,
            200,
            r#""plainToken":"p-1""#,
        ),
        ("dropbox", Method::GET, "/?challenge=c-3", &[], "", 200, "c-3"),
        ("xero", Method::POST, "/", &[], r#"{"events":[]}"#, 200, ""),
        ("woocommerce", Method::POST, "/", &form, "webhook_id=7", 200, ""),
        ("x", Method::GET, "/?crc_token=c-4", &[], "", 200, r#""response_token":"sha256="#),
        ("okta", Method::GET, "/", &[("x-okta-verification-challenge", "c-5")], "", 200, r#""verification":"c-5""#),
        (
            "event-grid",
            Method::POST,
            "/",
            &[("aeg-event-type", "SubscriptionValidation")],
            r#"[{"data":{"validationCode":"v-1"}}]"#,
            200,
            r#""validationResponse":"v-1""#,
        ),
        ("trello", Method::HEAD, "/", &[], "", 200, ""),
        ("intercom", Method::HEAD, "/", &[], "", 200, ""),
        ("onfleet", Method::GET, "/?check=c-6", &[], "", 200, "c-6"),
        ("nylas", Method::GET, "/?challenge=c-7", &[], "", 200, "c-7"),
        (
            "smartsheet",
            Method::POST,
            "/",
            &[("smartsheet-hook-challenge", "c-8")],
            r#"{"challenge":"c-8"}"#,
            200,
            r#""smartsheetHookResponse":"c-8""#,
        ),
        (
            "meta-whatsapp",
            Method::GET,
            "/?hub.mode=subscribe&hub.challenge=c-9&hub.verify_token=v-2",
            &[],
            "",
            200,
            "c-9",
        ),
        ("meta-whatsapp", Method::GET, "/?hub.mode=subscribe&hub.challenge=c&hub.verify_token=no", &[], "", 403, ""),
        ("websub", Method::GET, "/?hub.mode=subscribe&hub.topic=t&hub.challenge=c-10", &[], "", 200, "c-10"),
        ("microsoft-graph", Method::POST, "/?validationToken=v-3", &[], "", 200, "v-3"),
        ("braintree", Method::GET, "/?bt_challenge=20f9f8ed05f77439fe955c977e4c8a53", &[], "", 200, "public_1|"),
        ("monday", Method::POST, "/", &[], r#"{"challenge":"c-11"}"#, 200, r#""challenge":"c-11""#),
        ("cloudevents", Method::OPTIONS, "/", &[("webhook-request-origin", "o.example")], "", 200, ""),
        // What only the service can answer.
        ("notion", Method::POST, "/", &[], token, 200, "ok"),
        ("asana", Method::POST, "/", &[("x-hook-secret", "s")], "{}", 200, "ok"),
    ];
    let is_signed = |provider| matches!(provider, "slack" | "twitch" | "zoom" | "discord" | "xero");
    for (provider, method, target, headers, content, status, said) in cases {
        let (public, private) = match *provider {
            "discord" => (discord.public.as_str(), discord.private.expose()),
            _ => ("secret", "secret"),
        };
        let settings = [("verify_token", "v-2"), ("public_key", "public_1")];
        let webhooks = WebhookOptions {
            provider: Some((*provider).to_owned()),
            handshake: true,
            credentials: Credentials {
                secrets: vec![public.into()],
                settings: settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                ..Credentials::default()
            },
            ..WebhookOptions::default()
        };
        let tunnel = world.tunnel_with(TunnelOptions { webhooks, ..TunnelOptions::new(app.upstream()) }).await;
        let url = format!("{}{target}", tunnel.url());
        let mut all = vec![unsigned(&url, headers, *content)];
        if is_signed(*provider) {
            // Signed with another key, and as the provider does.
            let other = Table::built_in().unwrap().get(provider).unwrap().key_pair();
            let other = other.map_or("other".to_owned(), |pair| pair.private.expose().to_owned());
            all = vec![signed(provider, &other, &url, *content), signed(provider, private, &url, *content)];
        }
        let before = app.requests();
        let mut answers = Vec::new();
        for draft in &all {
            let mut request = Request::builder().method(method).uri(&draft.url);
            for (name, value) in &draft.headers {
                request = request.header(name, value);
            }
            answers.push(world.send(request.body(body::full(draft.body.clone())).unwrap()).await);
        }
        let answer = answers.pop().unwrap();
        let shown = format!("{provider} {target}: {answer:?}");
        assert_eq!(answer.code(), *status, "{shown}");
        assert!(answer.text().contains(said), "{shown}");
        let is_left = *said == "ok";
        assert_eq!(app.requests() - before, usize::from(is_left), "{shown}");
        if *status == 200 && !is_left {
            assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{shown}");
        }
        if let Some(refused) = answers.pop() {
            assert_eq!(refused.code(), 401, "{provider}: {refused:?}");
            assert!(!refused.text().contains(said) || said.is_empty(), "{provider}: {refused:?}");
        }
        tunnel.close().await.unwrap();
    }
    let rows: Vec<_> =
        include_str!("../../protocol/src/webhook/providers.toml").split("[[provider.handshake]]").collect();
    // What stands before the first is no row; Amazon SNS's has a test of its own, and one is here that is refused.
    assert_eq!(cases.len(), rows.len() - 1, "every row of the table is asked");
}

/// Secrets of several providers are behind one tunnel. Nobody gets any of them used by calling himself another one.
#[tokio::test]
async fn a_proof_is_given_to_nobody_who_has_not_proven_anything() {
    let mut scene = Scene::start(&["--secret", SECRET, "--handshake"]).await;
    let url = scene.world.url("hooks", "/?crc_token=17672256000123456789abcdef");
    let (answer, event) = scene.send(Method::GET, &unsigned(&url, &[], "")).await;
    assert_eq!((answer.code(), answer.text()), (200, "ok"), "the service has answered");
    assert_eq!((&event["webhook"]["provider"], &event["webhook"]["handshake"]), (&json!("x"), &json!("left")));
    scene.client.process.error_line("name --provider x").await;
    // One that is signed itself is another matter.
    let content = r#"{"event":"endpoint.url_validation","payload":{"plainToken":"p-1"}}"#;
    let (answer, event) = scene.post(&scene.signed("zoom", SECRET, content)).await;
    assert!(answer.text().contains("encryptedToken"), "{answer:?}");
    assert_eq!(event["webhook"]["handshake"], "answered");
    assert_eq!(scene.app.requests(), 1);
}

/// A key pair of Amazon SNS's, and what signs with it.
struct Sns(RsaKeyPair);

impl Sns {
    const CERTIFICATE: &str = "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem";
    const SUBSCRIBE: &str = "https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&Token=t";

    fn new() -> Self {
        Self(RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
        let text = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    /// A request to confirm a subscription, whose page is `subscribe`.
    fn confirmation(&self, url: &str, certificate: &str, subscribe: &str) -> Draft {
        let time = jiff::Timestamp::now().to_string();
        let fields = [
            ("Message", "m"),
            ("MessageId", "id-1"),
            ("SubscribeURL", subscribe),
            ("Timestamp", &time),
            ("Token", "t"),
            ("TopicArn", "arn:aws:sns:eu-central-1:1:topic"),
            ("Type", "SubscriptionConfirmation"),
        ];
        let content: String = fields.iter().map(|(name, value)| format!("{name}\n{value}\n")).collect();
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), content.as_bytes(), &mut signature).unwrap();
        let mut body: serde_json::Map<_, _> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        body.insert("SignatureVersion".into(), json!("2"));
        body.insert("Signature".into(), json!(BASE64_STANDARD.encode(&signature)));
        body.insert("SigningCertURL".into(), json!(certificate));
        let headers = [("x-amz-sns-message-type", "SubscriptionConfirmation"), ("content-type", "text/plain")];
        unsigned(url, &headers, Value::Object(body).to_string())
    }
}

#[tokio::test]
async fn a_subscription_is_confirmed_once_its_signature_is_right_and_nowhere_else() {
    let (sns, other) = (Sns::new(), Sns::new());
    let pem = sns.pem();
    let web = Web::start(move |url| match url {
        Sns::CERTIFICATE => app::ok(pem.clone()),
        url if url.starts_with(Sns::SUBSCRIBE) => app::ok("<ConfirmSubscriptionResponse/>"),
        _ => Response::builder().status(404).body(body::empty()).unwrap(),
    })
    .await;
    let variables = web.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut scene = Scene::with(&["--handshake", "--verify", "warn"], &variables).await;
    let url = scene.world.url("hooks", "/sns");
    let evil = "https://evil.example/?Action=ConfirmSubscription";
    for (what, draft) in [
        ("forged", other.confirmation(&url, Sns::CERTIFICATE, Sns::SUBSCRIBE)),
        ("elsewhere", sns.confirmation(&url, Sns::CERTIFICATE, evil)),
        ("own key", other.confirmation(&url, "https://evil.example/key.pem", Sns::SUBSCRIBE)),
    ] {
        let (answer, event) = scene.post(&draft).await;
        assert_eq!((answer.code(), &event["webhook"]["handshake"]), (401, &json!("refused")), "{what}: {event}");
    }
    assert_eq!(web.asked(), [Sns::CERTIFICATE], "the key is fetched once, and no subscription was confirmed");
    let (answer, event) = scene.post(&sns.confirmation(&url, Sns::CERTIFICATE, Sns::SUBSCRIBE)).await;
    assert_eq!((answer.code(), &event["webhook"]["handshake"]), (200, &json!("answered")), "{event}");
    let before = web.asked();
    assert_eq!(before, [Sns::CERTIFICATE, Sns::SUBSCRIBE]);
    assert_eq!(scene.app.requests(), 0);
    // Of another topic than the owner's, which anybody with an account can make.
    for (topic, is_own) in [(2, false), (1, true)] {
        let topic = format!("topic_arn=arn:aws:sns:eu-central-1:{topic}:topic");
        let arguments = ["--handshake", "--verify", "warn", "--provider", "aws-sns", "--set", &topic];
        let mut scene = Scene::with(&arguments, &variables).await;
        let url = scene.world.url("hooks", "/sns");
        let (answer, event) = scene.post(&sns.confirmation(&url, Sns::CERTIFICATE, Sns::SUBSCRIBE)).await;
        let expected = if is_own { (200, "answered") } else { (401, "refused") };
        assert_eq!((answer.code(), event["webhook"]["handshake"].as_str().unwrap()), expected, "{event}");
        let confirmed = web.asked().iter().filter(|url| *url == Sns::SUBSCRIBE).count();
        assert_eq!(confirmed, 1 + usize::from(is_own), "{topic}");
    }
}

/// Anybody with an account there can have Amazon sign something.
#[tokio::test]
async fn what_a_provider_signs_for_everybody_lets_nobody_in_unless_that_provider_is_meant() {
    let sns = Sns::new();
    let pem = sns.pem();
    let web = Web::start(move |_| app::ok(pem.clone())).await;
    let variables = web.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let meant = ["--provider", "aws-sns"];
    for (arguments, status) in [
        (&[][..], 401),
        (&meant[..], 200),
        (&[meant[0], meant[1], "--set", "topic_arn=arn:aws:sns:eu-central-1:1:topic"], 200),
        (&[meant[0], meant[1], "--set", "topic_arn=arn:aws:sns:eu-central-1:2:topic"], 401),
    ] {
        let mut scene =
            Scene::with(&[&["--secret", SECRET, "--verify", "reject"], arguments].concat(), &variables).await;
        let url = scene.world.url("hooks", "/sns");
        let (answer, event) = scene.post(&sns.confirmation(&url, Sns::CERTIFICATE, Sns::SUBSCRIBE)).await;
        assert_eq!(answer.code(), status, "{event}");
        assert_eq!(scene.app.requests(), usize::from(status == 200));
        let reason = event["webhook"]["reason"].as_str().unwrap();
        let is_others = arguments.len() == 4 && status == 401;
        assert_eq!(
            reason.contains("for somebody else: /TopicArn in the JSON body is not arn:aws:sns:eu-central-1:2"),
            is_others,
            "{reason}"
        );
    }
}

/// A header is all that it takes to look like a handshake that only the service can answer.
#[tokio::test]
async fn what_only_looks_like_a_handshake_is_refused_like_everything_that_is_not_signed() {
    let arguments = ["--secret", SECRET, "--verify", "reject", "--handshake", "--provider", "asana"];
    let mut scene = Scene::start(&arguments).await;
    let forged = unsigned(&scene.world.url("hooks", "/"), &[("x-hook-secret", "x")], r#"{"events":[]}"#);
    let (answer, event) = scene.post(&forged).await;
    assert_eq!((answer.code(), answer.error()), (401, Some("signature-invalid")), "{event}");
    assert_eq!(scene.app.requests(), 0);
}

/// Whatever happens, nobody finds a secret anywhere but where its owner has put it.
#[tokio::test]
async fn a_secret_is_in_nothing_that_the_client_says_or_keeps() {
    let canary = "canary";
    let secret = format!("whsec_{canary}{canary}");
    let variables = [("RELAY_SECRET", secret.as_str()), ("RELAY_LOG", "trace")];
    let set = format!("verify_token={canary}token");
    let mut scene = Scene::with(&["--verify", "warn", "--handshake", "--set", &set], &variables).await;
    let good = scene.signed("stripe", &secret, EVENT);
    let mut all = String::new();
    let drafts = [
        good.clone(),
        Draft { body: EVENT.replace("paid", "void").into(), ..good },
        scene.signed("github", "another", EVENT),
        scene.signed("slack", "another", r#"{"type":"url_verification","challenge":"c"}"#),
        unsigned(&scene.world.url("hooks", "/?crc_token=x"), &[], ""),
    ];
    for draft in &drafts {
        let (answer, event) = scene.post(draft).await;
        all.push_str(&format!("{answer:?} {event}\n"));
    }
    let url = scene.world.url("hooks", "/?hub.mode=subscribe&hub.challenge=c&hub.verify_token=no");
    let (answer, event) = scene.send(Method::GET, &unsigned(&url, &[], "")).await;
    all.push_str(&format!("{answer:?} {event}\n"));
    for arguments in [&["status", "--output", "json"][..], &["config", "check"]] {
        let ended = Process::spawn_in(scene.home.clone(), "relay", arguments, &variables).await.wait().await;
        all.push_str(&format!("{ended:?}"));
    }
    let ended = scene.client.process.terminate().await;
    all.push_str(&scene.client.process.said());
    all.push_str(&format!("{ended:?}"));
    assert!(all.contains("bad_signature") && all.contains("RELAY_SECRET"), "{all}");
    assert!(!all.contains(canary), "{all}");
    let mut directories = vec![scene.home.path().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                let found = bytes.windows(canary.len()).any(|window| window == canary.as_bytes());
                assert!(!found, "{}", path.display());
            }
        }
    }
}
