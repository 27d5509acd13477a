//! What the relay makes of webhooks by itself, as their senders and the tunnel's client notice it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::{Method, Request};
use jiff::Timestamp;
use relay_protocol::frame::{Frame, GoAway, SessionKind};
use relay_protocol::message::{Extra, TunnelSpec, Withheld};
use relay_protocol::webhook::{Credentials, Draft, Secret, Table, Verify, Webhooks};
use relay_server::config::Limits;
use relay_tests::body::{full, noise, pipe};
use relay_tests::peer::{Socket, connect_on, session_of, sessions, spec};
use relay_tests::{Answer, App, Body, RelayClient, RelayServer, Wire, World, within};
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

/// What Stripe would send, with a signature by this secret.
fn draft(url: &str, secret: &str, body: &[u8]) -> Draft {
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    let unsigned = relay_protocol::webhook::Request::new(&Method::POST, url, &[], body);
    table.get("stripe").unwrap().sign(&unsigned, &credentials, Timestamp::now()).unwrap()
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

    /// The upload lasts for longer than LINE waits. Were it nobody's, the answer would have come behind it.
    #[tokio::test]
    async fn of_a_provider_do_not_wait_for_a_slow_upload() {
        let world = World::start().await;
        let app = App::recording().await;
        let tunnel = world.tunnel(&app).await;
        let mut http = world.http1(&world.host(tunnel.name())).await;
        let (pipe, body) = pipe();
        let request = Request::post(format!("{}/", tunnel.url())).header("X-Line-Signature", "AA==");
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

mod handshakes {
    use super::*;

    const SLACK: &str = r#"{"type":"url_verification","challenge":"3eZb","token":"x"}"#;

    fn slack() -> Webhooks {
        Webhooks { provider: Some("slack".into()), handshake: true, ..Webhooks::default() }
    }

    /// A world in which nobody who is away comes back soon enough to be waited for.
    async fn impatient() -> (World, String) {
        let world = World::with(|config| config.limits.client_wait = Duration::from_millis(50)).await;
        let token = world.token().await;
        (world, token)
    }

    /// The last answer to a handshake of Slack at this name.
    async fn asked(world: &World, name: &str) -> Answer {
        let answer = post(world, name, &[("X-Slack-Request-Timestamp", "1")], SLACK).await;
        within("the answer", answer).await.unwrap()
    }

    fn is_answered(answer: &Answer) {
        assert_eq!((answer.code(), answer.text(), answer.error()), (200, "3eZb", None), "{answer:?}");
        assert_eq!(answer.header("relay-handshake"), "slack");
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!((answer.header("x-content-type-options"), answer.header("cache-control")), ("nosniff", "no-store"));
    }

    fn is_left(answer: &Answer) {
        assert_eq!((answer.code(), answer.error()), (503, Some("client-offline")), "{answer:?}");
        assert!(!answer.headers.contains_key("relay-handshake"));
    }

    /// A client that is lost without a word.
    async fn lost(world: &World, token: &str, tunnels: Vec<TunnelSpec>) {
        drop(session_of(world, token, tunnels).await);
        sessions(world, 0).await;
    }

    #[tokio::test]
    async fn are_answered_for_a_client_that_was_lost_and_has_asked_for_it() {
        let (world, token) = impatient().await;
        let unasked = Webhooks { handshake: false, ..slack() };
        let unnamed = Webhooks { provider: None, ..slack() };
        let tunnels = vec![
            webhooks(1, "asks", &slack()),
            webhooks(2, "unasked", &unasked),
            webhooks(3, "unnamed", &unnamed),
            spec(4, "plain"),
        ];
        let mut socket = session_of(&world, &token, tunnels.clone()).await;
        // A client that is there answers by itself.
        let answer = post(&world, "asks", &[], SLACK).await;
        let opened = within("the request", socket.opened()).await;
        socket.answer(opened.stream, "mine").await;
        assert_eq!(within("the answer", answer).await.unwrap().text(), "mine");
        drop(socket);
        sessions(&world, 0).await;
        is_answered(&asked(&world, "asks").await);
        for name in ["unasked", "unnamed", "plain"] {
            is_left(&asked(&world, name).await);
        }
        // What is no handshake waits for the client, however long it is.
        let long = Box::leak(format!("{{\"a\":\"{}\"}}", "x".repeat(100_000)).into_boxed_str());
        for body in ["{\"type\":\"event_callback\"}", "", long] {
            is_left(&within("the answer", post(&world, "asks", &[], body).await).await.unwrap());
        }
    }

    /// Those who have stopped their client on purpose have taken the URL away from their provider, too.
    #[tokio::test]
    async fn are_not_answered_for_a_client_that_said_goodbye() {
        let (world, token) = impatient().await;
        let mut socket = session_of(&world, &token, vec![webhooks(1, "hooks", &slack())]).await;
        let goodbye = Frame::GoAway { reason: GoAway::Shutdown, drain: false, text: "bye".into() };
        socket.send(&[goodbye]).await;
        sessions(&world, 0).await;
        is_left(&asked(&world, "hooks").await);
    }

    #[tokio::test]
    async fn are_answered_as_long_as_the_session_can_be_resumed() {
        let world = World::with(|config| {
            config.limits.client_wait = Duration::from_millis(50);
            config.limits.resume = Duration::from_millis(1);
        })
        .await;
        let token = world.token().await;
        lost(&world, &token, vec![webhooks(1, "hooks", &slack())]).await;
        within("the end of that", async {
            while asked(&world, "hooks").await.code() == 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        is_left(&asked(&world, "hooks").await);
    }

    #[tokio::test]
    async fn that_need_a_secret_are_answered_with_the_clients() {
        let (world, token) = impatient().await;
        let x = |secrets: Vec<Secret>| Webhooks {
            provider: Some("x".into()),
            handshake: true,
            credentials: Credentials { secrets, ..Credentials::default() },
            ..Webhooks::default()
        };
        let tunnels = vec![webhooks(1, "knows", &x(vec!["consumer".into()])), webhooks(2, "forgot", &x(Vec::new()))];
        lost(&world, &token, tunnels).await;
        let ask = async |name: &str| world.get(&world.url(name, "/?crc_token=challenge_string")).await;
        // Made by Node's crypto.
        let token = r#"{"response_token":"sha256=eVCiy88Y5uz+6uBjQU3UFAARMBRB4rhPoSudtGlt0mE="}"#;
        let answer = ask("knows").await;
        assert_eq!((answer.code(), answer.text(), answer.header("content-type")), (200, token, "application/json"));
        is_left(&ask("forgot").await);
    }

    #[tokio::test]
    async fn of_somebody_else_are_refused() {
        let (world, token) = impatient().await;
        let meta = Webhooks {
            provider: Some("meta-whatsapp".into()),
            handshake: true,
            credentials: Credentials {
                settings: [("verify_token".to_owned(), "mine".to_owned())].into(),
                ..Credentials::default()
            },
            ..Webhooks::default()
        };
        lost(&world, &token, vec![webhooks(1, "hooks", &meta)]).await;
        let ask = async |token: &str| {
            let query = format!("/?hub.mode=subscribe&hub.verify_token={token}&hub.challenge=%3Cb%3E");
            world.get(&world.url("hooks", &query)).await
        };
        let answer = ask("mine").await;
        assert_eq!((answer.code(), answer.text()), (200, "<b>"));
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        let answer = ask("yours").await;
        assert_eq!((answer.code(), answer.error()), (403, Some("signature-invalid")));
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "signature-invalid");
        assert!(!error["message"].as_str().unwrap().is_empty() && !answer.text().contains("mine"), "{error}");
    }

    /// One is confirmed by a call, which the relay does not make; the other brings the key that the app must keep.
    #[tokio::test]
    async fn that_only_the_client_can_answer_wait_for_it() {
        let (world, token) = impatient().await;
        let of = |id: &str| Webhooks { provider: Some(id.to_owned()), ..slack() };
        lost(&world, &token, vec![webhooks(1, "sns", &of("aws-sns")), webhooks(2, "asana", &of("asana"))]).await;
        let body = r#"{"Type":"SubscriptionConfirmation","SubscribeURL":"https://sns.us-east-1.amazonaws.com/?a",
            "SigningCertURL":"https://sns.us-east-1.amazonaws.com/a.pem","SignatureVersion":"1","Signature":"c2ln"}"#;
        let answer = post(&world, "sns", &[("X-Amz-Sns-Message-Type", "SubscriptionConfirmation")], body).await;
        is_left(&within("the answer", answer).await.unwrap());
        is_left(&within("the answer", post(&world, "asana", &[("X-Hook-Secret", "s")], "{}").await).await.unwrap());
    }

    #[tokio::test]
    async fn die_with_the_token() {
        let home = tempfile::tempdir().unwrap();
        let server = RelayServer::spawn_in(home.into(), ["--timeout", "1s"]).await;
        let secret = server.token("mine").await;
        for reserve in [&["reserve", "mine", "slack", "--provider", "slack"][..], &["reserve", "mine", "plain"]] {
            assert_eq!(server.token_command(reserve).await.code(), 0);
        }
        let mut socket = connect_on(server.raw(RelayServer::DOMAIN).await, &secret).await;
        let bound = socket.hello(vec![webhooks(1, "tunnel", &slack())]).await;
        assert!(bound[0].result.is_ok(), "{bound:?}");
        drop(socket);
        let ask = async |name: &str| {
            let host = format!("{name}.{}", RelayServer::DOMAIN);
            let mut wire = server.raw(&host).await;
            let length = SLACK.len();
            wire.send(format!("POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n{SLACK}")).await;
            wire.message().await.expect("an answer")
        };
        within("the client to be away", async {
            while ask("tunnel").await.status() != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(ask("slack").await.status(), 200);
        assert_eq!(ask("plain").await.status(), 503);
        assert_eq!(server.token_command(&["revoke", "mine"]).await.code(), 0);
        for name in ["tunnel", "slack"] {
            assert_eq!(ask(name).await.status(), 503, "{name}");
        }
    }

    /// The operator knows what a name is for, also where no client has ever come.
    #[tokio::test]
    async fn are_answered_at_a_name_that_is_reserved_for_a_provider() {
        let home: std::sync::Arc<_> = tempfile::tempdir().unwrap().into();
        let mut server = RelayServer::spawn_in(home.clone(), ["--timeout", "1s"]).await;
        let token = server.token("mine").await;
        let command = ["reserve", "mine", "files", "--provider", "dropbox"];
        assert_eq!(server.token_command(&command).await.code(), 0);
        let ask = async |server: &RelayServer| {
            let host = format!("files.{}", RelayServer::DOMAIN);
            let mut wire = server.raw(&host).await;
            wire.send(format!("GET /?challenge=abc HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            wire.message().await.expect("an answer")
        };
        let answer = ask(&server).await;
        assert_eq!((answer.status(), &answer.body[..]), (200, &b"abc"[..]));
        server.process.terminate().await;
        let server = RelayServer::spawn_in(home, ["--timeout", "1s"]).await;
        assert_eq!(ask(&server).await.status(), 200, "after a restart");
        // Of a client that was there nothing is left, either, once the name is nobody's.
        let mut socket = connect_on(server.raw(RelayServer::DOMAIN).await, &token).await;
        let dropbox = Webhooks { provider: Some("dropbox".into()), ..slack() };
        assert!(socket.hello(vec![webhooks(1, "files", &dropbox)]).await[0].result.is_ok());
        drop(socket);
        within("the client to be away", async {
            while ask(&server).await.status() != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(server.token_command(&["release", "files"]).await.code(), 0);
        assert_eq!(ask(&server).await.status(), 503);
    }
}

mod signatures {
    use relay_protocol::message::{Refusal, Resume};

    use super::*;

    const SECRET: &str = "whsec_canary";

    fn judged(verify: Verify, secrets: &[&str]) -> Webhooks {
        let secrets = secrets.iter().map(|secret| Secret::from(*secret)).collect();
        Webhooks { verify, credentials: Credentials { secrets, ..Credentials::default() }, ..Webhooks::default() }
    }

    /// A POST that Stripe would send, with a signature by this secret.
    fn signed(url: &str, secret: &str, body: &[u8]) -> Request<Body> {
        let draft = draft(url, secret, body);
        let mut request = Request::post(url);
        for (name, value) in &draft.headers {
            request = request.header(name, value);
        }
        request.body(full(draft.body)).unwrap()
    }

    /// A relay, and a client's session with a tunnel of that name for each.
    async fn with(change: impl FnOnce(&mut Limits), tunnels: &[(&str, Webhooks)]) -> (World, Socket) {
        let world = World::with(|config| change(&mut config.limits)).await;
        let token = world.token().await;
        let tunnels = tunnels.iter().zip(1..).map(|((name, told), number)| webhooks(number, name, told)).collect();
        let socket = session_of(&world, &token, tunnels).await;
        (world, socket)
    }

    async fn begin(world: &World, name: &str, request: Request<Body>) -> JoinHandle<Answer> {
        let mut http = world.http1(&world.host(name)).await;
        tokio::spawn(async move { http.answer(request).await })
    }

    /// What the client hears of a request, which is answered: verdict and reason, and its body.
    async fn heard(socket: &mut Socket, answer: JoinHandle<Answer>) -> (Option<String>, Option<String>, Vec<u8>) {
        let opened = within("the request", socket.opened()).await;
        let body = within("its body", socket.body(&opened)).await;
        let line = |wanted: &str| {
            let mut lines = opened.head.headers.iter().filter(|(name, _)| name == wanted);
            let line = lines.next().map(|(_, value)| value.to_str().unwrap().to_owned());
            assert!(lines.next().is_none(), "{wanted} twice: {:?}", opened.head.headers);
            line
        };
        let found = (line("relay-verdict"), line("relay-verdict-reason"), body);
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().text(), "ok");
        found
    }

    async fn refused(world: &World, name: &str, request: Request<Body>) -> (u16, String, String) {
        let answer = within("the answer", begin(world, name, request).await).await.unwrap();
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        (answer.code(), answer.error().unwrap_or_default().to_owned(), message)
    }

    #[tokio::test]
    async fn that_are_wrong_do_not_reach_the_client() {
        let told = judged(Verify::Reject, &["whsec_new", SECRET]);
        let (world, mut socket) = with(|_| {}, &[("hooks", told)]).await;
        let url = world.url("hooks", "/hooks");
        let code = |(code, error, message): (u16, String, String), words: &str| {
            assert_eq!((code, error.as_str()), (401, "signature-invalid"), "{message}");
            assert!(message.contains(words) && !message.contains("canary"), "{message}");
        };
        code(refused(&world, "hooks", signed(&url, "whsec_other", b"{}")).await, "signature does not fit");
        let mut altered = signed(&url, SECRET, b"{}");
        *altered.body_mut() = full("{ }");
        code(refused(&world, "hooks", altered).await, "signature does not fit");
        let unsigned = Request::post(&url).header("Relay-Verdict", "valid").body(full("{}")).unwrap();
        code(refused(&world, "hooks", unsigned).await, "cannot be judged");
        let old = Request::post(&url).header("Stripe-Signature", "t=1,v1=00").body(full("{}")).unwrap();
        code(refused(&world, "hooks", old).await, "not accepted");
        // Of five the client hears of one: with either secret, while one takes the other's place.
        for (secret, reason) in
            [(SECRET, "signed by Stripe with secret 2 of 2"), ("whsec_new", "signed by Stripe with secret 1 of 2")]
        {
            let request = signed(&url, secret, b"{\"a\": 1}");
            let found = heard(&mut socket, begin(&world, "hooks", request).await).await;
            assert_eq!((found.0.as_deref(), found.2), (Some("valid"), b"{\"a\": 1}".to_vec()));
            assert!(found.1.as_ref().unwrap().starts_with(reason), "{:?}", found.1);
        }
    }

    /// Not with a message for each, because strangers decide how many there are.
    #[tokio::test]
    async fn that_are_wrong_are_told_of() {
        let (world, mut socket) = with(|_| {}, &[("hooks", judged(Verify::Reject, &[SECRET]))]).await;
        let url = format!("{}?{}", world.url("hooks", "/hooks"), "x".repeat(500));
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(refused(&world, "hooks", signed(&url, "whsec_other", b"{}")).await.0, 401);
        }
        let (mut count, mut messages) = (0, 0);
        while count < 10 {
            let told: Withheld = within("a message", socket.next_message(SessionKind::Withheld)).await;
            (count, messages) = (count + told.count, messages + 1);
            assert_eq!((told.tunnel, told.method.as_str(), told.code.as_str()), (1, "POST", "signature-invalid"));
            assert_eq!((told.provider.as_deref(), told.verdict.as_str()), (Some("stripe"), "bad_signature"));
            assert!(told.reason.contains("another secret signed it"), "{told:?}");
            assert!(told.target.starts_with("/hooks?xx") && told.target.len() == 256, "{told:?}");
        }
        // The first comes at once.
        let most = begun.elapsed().as_secs() + 1;
        assert!(count == 10 && messages <= most, "{count} requests in {messages} messages");
    }

    /// A wrong word in the provider's console is the commonest mistake, and the client's terminal is where it is looked for.
    #[tokio::test]
    async fn that_are_required_have_refused_handshakes_told_of() {
        let mut told =
            Webhooks { provider: Some("meta-whatsapp".into()), handshake: true, ..judged(Verify::Reject, &["secret"]) };
        told.credentials.settings.insert("verify_token".to_owned(), "mine".to_owned());
        let (world, mut socket) = with(|_| {}, &[("hooks", told)]).await;
        let url = world.url("hooks", "/hooks?hub.mode=subscribe&hub.verify_token=yours&hub.challenge=1");
        assert_eq!(refused(&world, "hooks", Request::get(url).body(full("")).unwrap()).await.0, 403);
        let told: Withheld = within("a message", socket.next_message(SessionKind::Withheld)).await;
        assert_eq!((told.tunnel, told.count, told.code.as_str()), (1, 1, "signature-invalid"), "{told:?}");
        assert_eq!((told.provider.as_deref(), told.verdict.as_str()), (Some("meta-whatsapp"), "bad_signature"));
        assert!(told.reason.contains("hub.verify_token"), "{told:?}");
    }

    #[tokio::test]
    async fn that_are_wrong_pass_with_a_warning_where_that_is_wanted() {
        let (world, mut socket) = with(|_| {}, &[("hooks", judged(Verify::Warn, &[SECRET]))]).await;
        let url = world.url("hooks", "/hooks");
        let found = heard(&mut socket, begin(&world, "hooks", signed(&url, SECRET, b"{}")).await).await;
        assert_eq!((found.0.as_deref(), found.2), (Some("valid"), b"{}".to_vec()));
        let found = heard(&mut socket, begin(&world, "hooks", signed(&url, "whsec_other", b"{}")).await).await;
        assert_eq!((found.0.as_deref(), found.2), (Some("bad_signature"), b"{}".to_vec()));
        assert!(found.1.unwrap().contains("another secret signed it"));
        // What may be no webhook at all is not waited for.
        let (pipe, body) = pipe();
        let answer = begin(&world, "hooks", Request::post(&url).body(body).unwrap()).await;
        let opened = within("the request", socket.opened()).await;
        assert!(opened.head.headers.iter().any(|(name, value)| name == "relay-verdict" && value == "unsupported"));
        drop(pipe);
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().code(), 200);
        // A stranger has no say in it.
        let request = Request::post(&url).header("Relay-Verdict", "valid").body(full("{}")).unwrap();
        let found = heard(&mut socket, begin(&world, "hooks", request).await).await;
        assert_eq!(found.0.as_deref(), Some("unsupported"));
    }

    #[tokio::test]
    async fn over_large_bodies_are_judged_as_far_as_there_is_room() {
        let (reject, warn) = (judged(Verify::Reject, &[SECRET]), judged(Verify::Warn, &[SECRET]));
        // Of which one token has half.
        let limit = |limits: &mut Limits| (limits.verify_body, limits.verify_bytes) = (200_000, 200 << 10);
        let (world, mut socket) = with(limit, &[("strict", reject), ("lenient", warn)]).await;
        let url = |name| world.url(name, "/hooks");
        for size in [64 << 10, (64 << 10) + 1, 150_000] {
            let body = noise(size);
            let request = signed(&url("strict"), SECRET, &body);
            let found = heard(&mut socket, begin(&world, "strict", request).await).await;
            assert_eq!(found.0.as_deref(), Some("valid"));
            assert!(found.2 == body, "{size} bytes arrive as they were sent");
        }
        for (size, status, code) in [(200_001, 413, "body-too-large"), (190_000, 429, "too-many-requests")] {
            let body = noise(size);
            let refused = refused(&world, "strict", signed(&url("strict"), SECRET, &body)).await;
            assert_eq!((refused.0, refused.1.as_str()), (status, code), "{}", refused.2);
            let request = signed(&url("lenient"), SECRET, &body);
            let found = heard(&mut socket, begin(&world, "lenient", request).await).await;
            assert_eq!(found.0.as_deref(), Some("unsupported"), "{:?}", found.1);
            assert!(found.2 == body, "{size} bytes arrive as they were sent");
        }
        // Whoever is done gives the room back.
        let body = noise(150_000);
        let request = signed(&url("strict"), SECRET, &body);
        assert_eq!(heard(&mut socket, begin(&world, "strict", request).await).await.0.as_deref(), Some("valid"));
    }

    /// A stranger who sends much to one tunnel, and never ends, takes nothing from those of others.
    #[tokio::test]
    async fn of_large_bodies_are_judged_however_much_is_sent_to_others() {
        let limit = |limits: &mut Limits| (limits.verify_body, limits.verify_bytes) = (200_000, 1 << 20);
        let told = || judged(Verify::Reject, &[SECRET]);
        let (world, _attacked) = with(limit, &[("attacked", told())]).await;
        let mut socket = session_of(&world, &world.token().await, vec![webhooks(1, "hooks", &told())]).await;
        let mut answers = Vec::new();
        let mut pipes = Vec::new();
        for _ in 0..20 {
            let (pipe, body) = pipe();
            let request = Request::post(world.url("attacked", "/")).body(body).unwrap();
            answers.push(begin(&world, "attacked", request).await);
            assert!(pipe.send(noise(190_000)).await);
            pipes.push(pipe);
        }
        // Eight of them would fit, if there was nobody else.
        let mut answers: FuturesUnordered<_> = answers.into_iter().collect();
        for _ in 0..12 {
            let answer = within("an answer", answers.next()).await.unwrap().unwrap();
            assert_eq!((answer.code(), answer.error()), (429, Some("too-many-requests")));
        }
        let body = noise(150_000);
        let request = signed(&world.url("hooks", "/hooks"), SECRET, &body);
        let found = heard(&mut socket, begin(&world, "hooks", request).await).await;
        assert_eq!(found.0.as_deref(), Some("valid"));
        drop(pipes);
    }

    /// Nobody holds a place with a body for what has no signature, whatever that body is.
    #[tokio::test]
    async fn that_are_not_there_are_not_waited_for() {
        let stripe = |verify| Webhooks { provider: Some("stripe".into()), ..judged(verify, &[SECRET]) };
        let slack = Webhooks { provider: Some("slack".into()), handshake: true, ..stripe(Verify::Reject) };
        let tunnels = [("strict", stripe(Verify::Reject)), ("lenient", stripe(Verify::Warn)), ("slack", slack)];
        let (world, mut socket) = with(|_| {}, &tunnels).await;
        let unsigned = |name| {
            let (pipe, body) = pipe();
            (pipe, Request::post(world.url(name, "/")).body(body).unwrap())
        };
        let (_pipe, request) = unsigned("strict");
        let (status, code, message) = refused(&world, "strict", request).await;
        assert_eq!((status, code.as_str()), (401, "signature-invalid"), "{message}");
        assert!(message.contains("has the header stripe-signature"), "{message}");
        let (pipe, request) = unsigned("lenient");
        let answer = begin(&world, "lenient", request).await;
        let opened = within("the request", socket.opened()).await;
        assert!(opened.head.headers.iter().any(|(name, value)| name == "relay-verdict" && value == "missing"));
        drop(pipe);
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().code(), 200);
        // It may be a handshake, as only its body says.
        let (pipe, request) = unsigned("slack");
        let answer = begin(&world, "slack", request).await;
        assert!(pipe.send(r#"{"type":"event_callback"}"#).await);
        drop(pipe);
        assert_eq!(within("the answer", answer).await.unwrap().code(), 401);
    }

    /// A stranger who sends as many bodies as he can, and never ends them, takes few of the places of their token.
    #[tokio::test]
    async fn of_others_are_judged_however_many_bodies_one_sender_begins() {
        let world = World::with(|config| {
            config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            config.limits.session_streams = 16;
        })
        .await;
        let tunnel = webhooks(1, "hooks", &judged(Verify::Reject, &[SECRET]));
        let mut socket = session_of(&world, &world.token().await, vec![tunnel]).await;
        let url = world.url("hooks", "/hooks");
        let (mut answers, mut pipes) = (FuturesUnordered::new(), Vec::new());
        for n in 0..20 {
            let (pipe, body) = pipe();
            let head = Request::post(&url).header("Stripe-Signature", "t=1,v1=00");
            // Of all its addresses.
            let head = head.header("X-Forwarded-For", format!("2001:db8::{n:x}"));
            answers.push(begin(&world, "hooks", head.body(body).unwrap()).await);
            assert!(pipe.send("{").await);
            pipes.push(pipe);
        }
        for _ in 0..18 {
            let answer = within("an answer", answers.next()).await.unwrap().unwrap();
            assert_eq!((answer.code(), answer.error()), (429, Some("too-many-requests")));
        }
        let (pipe, body) = pipe();
        let mut request = signed(&url, SECRET, b"{}");
        *request.body_mut() = body;
        request.headers_mut().insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
        let answer = begin(&world, "hooks", request).await;
        assert!(pipe.send("{}").await);
        drop(pipe);
        assert_eq!(heard(&mut socket, answer).await.0.as_deref(), Some("valid"));
        drop(pipes);
    }

    /// It is looked at before, because it might be a handshake, and waits for the client then.
    #[tokio::test]
    async fn of_a_body_that_was_read_for_a_client_that_is_away_need_no_other_place() {
        let world = World::with(|config| config.limits.session_streams = 1).await;
        let told = Webhooks { provider: Some("stripe".into()), handshake: true, ..judged(Verify::Reject, &[SECRET]) };
        let (token, tunnels) = (world.token().await, vec![webhooks(1, "hooks", &told)]);
        drop(session_of(&world, &token, tunnels.clone()).await);
        sessions(&world, 0).await;
        let (pipe, body) = pipe();
        let sent = noise(100_000);
        let mut request = signed(&world.url("hooks", "/hooks"), SECRET, &sent);
        *request.body_mut() = body;
        let answer = begin(&world, "hooks", request).await;
        // The relay does not read on when it has more than a handshake has.
        for piece in sent.chunks(70_000) {
            assert!(pipe.send(piece.to_vec()).await);
        }
        drop(pipe);
        let mut socket = session_of(&world, &token, tunnels).await;
        let found = heard(&mut socket, answer).await;
        assert_eq!(found.0.as_deref(), Some("valid"));
        assert!(found.2 == sent, "it arrives as it was sent");
    }

    /// What was held takes no room any more once the client has it, however long the rest goes on.
    #[tokio::test]
    async fn of_large_bodies_are_judged_while_an_endless_one_passes() {
        let limit = |limits: &mut Limits| (limits.verify_body, limits.verify_bytes) = (200_000, 300 << 10);
        let (world, mut socket) = with(limit, &[("hooks", judged(Verify::Warn, &[SECRET]))]).await;
        let url = world.url("hooks", "/hooks");
        let (pipe, body) = pipe();
        let endless = Request::post(&url).header("Stripe-Signature", "t=1,v1=00").body(body).unwrap();
        let answer = begin(&world, "hooks", endless).await;
        for size in [199_000, 2_000] {
            assert!(pipe.send(noise(size)).await);
        }
        let opened = within("the request", socket.opened()).await;
        assert!(opened.head.headers.iter().any(|(name, value)| name == "relay-verdict" && value == "unsupported"));
        within("what was held", async {
            let mut arrived = 0;
            while arrived < 201_000 {
                if let Frame::Data { bytes, .. } = socket.next_said().await.expect("a session") {
                    arrived += bytes.len();
                }
            }
        })
        .await;
        let body = noise(150_000);
        let request = signed(&url, SECRET, &body);
        assert_eq!(heard(&mut socket, begin(&world, "hooks", request).await).await.0.as_deref(), Some("valid"));
        drop(pipe);
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().code(), 200);
    }

    /// A body that takes its time is held for as long as other requests have, and then it is as if there was no room.
    #[tokio::test]
    async fn of_slow_bodies_are_not_judged() {
        let (reject, warn) = (judged(Verify::Reject, &[SECRET]), judged(Verify::Warn, &[SECRET]));
        let limit = |limits: &mut Limits| limits.deadline = Duration::from_millis(300);
        let (world, mut socket) = with(limit, &[("strict", reject), ("lenient", warn)]).await;
        // Stripe waits for longer than that.
        let slow = |name: &str| {
            let (pipe, body) = pipe();
            let request =
                Request::post(world.url(name, "/")).header("Stripe-Signature", "t=1,v1=00").body(body).unwrap();
            (pipe, request)
        };
        let (_pipe, request) = slow("strict");
        let refused = refused(&world, "strict", request).await;
        assert_eq!((refused.0, refused.1.as_str()), (408, "body-timeout"), "{}", refused.2);
        let (pipe, request) = slow("lenient");
        assert!(pipe.send("{").await);
        let answer = begin(&world, "lenient", request).await;
        let opened = within("the request", socket.opened()).await;
        assert!(opened.head.headers.iter().any(|(name, value)| name == "relay-verdict" && value == "unsupported"));
        assert!(pipe.send("}").await);
        drop(pipe);
        assert_eq!(within("its body", socket.body(&opened)).await, b"{}");
        socket.answer(opened.stream, "ok").await;
        assert_eq!(within("the answer", answer).await.unwrap().code(), 200);
    }

    /// The client of "hooks", which asks for this now, comes back on another connection, while a request is on its way
    /// to the one that it had, where it asked for that. What the sender is answered, and the new session.
    async fn moved(was: &Webhooks, is: &Webhooks, secret: &str, body: &[u8]) -> (JoinHandle<Answer>, Socket, World) {
        let world = World::start().await;
        let token = world.token().await;
        let mut old = connect_on(world.raw("relay.test").await, &token).await;
        let first = old.welcome(None, vec![webhooks(1, "hooks", was)]).await;
        let answer = begin(&world, "hooks", signed(&world.url("hooks", "/"), secret, body)).await;
        within("the request", async { while !matches!(old.next().await.expect("a session"), Frame::Open { .. }) {} })
            .await;
        let mut new = connect_on(world.raw("relay.test").await, &token).await;
        let resume = Resume { key: first.resume_key, last_stream: 0 };
        assert!(new.welcome(Some(resume), vec![webhooks(1, "hooks", is)]).await.resumed);
        (answer, new, world)
    }

    /// What was judged is not sent half when the client comes back on another connection.
    #[tokio::test]
    async fn stay_with_a_request_that_moves() {
        let (told, body) = (judged(Verify::Reject, &[SECRET]), noise(50_000));
        let (answer, mut new, _world) = moved(&told, &told, SECRET, &body).await;
        let found = heard(&mut new, answer).await;
        assert_eq!(found.0.as_deref(), Some("valid"));
        assert!(found.2 == body);
    }

    /// A request reaches nobody by what somebody else has asked for.
    #[tokio::test]
    async fn are_judged_anew_where_the_tunnel_asks_for_something_else_by_now() {
        let (off, body) = (Webhooks::default(), noise(50_000));
        let (warn, reject) = (judged(Verify::Warn, &[SECRET]), judged(Verify::Reject, &[SECRET]));
        let other = judged(Verify::Reject, &["whsec_other"]);
        for was in [&off, &warn, &other] {
            let (answer, _new, _world) = moved(was, &reject, "whsec_other", &body).await;
            let answer = within("the answer", answer).await.unwrap();
            assert_eq!((answer.code(), answer.error()), (401, Some("signature-invalid")), "{was:?}");
        }
        for (was, is, verdict) in [(&off, &reject, Some("valid")), (&warn, &reject, Some("valid")), (&warn, &off, None)]
        {
            let (answer, mut new, _world) = moved(was, is, SECRET, &body).await;
            let found = heard(&mut new, answer).await;
            assert_eq!(found.0.as_deref(), verdict, "{was:?} {is:?}");
            assert!(found.2 == body, "nothing of it is lost");
        }
    }

    /// Nobody is left to believe that signatures are judged which are not.
    #[tokio::test]
    async fn that_the_relay_cannot_judge_are_refused_at_once() {
        let world = World::start().await;
        let token = world.token().await;
        let named = |id: &str| Webhooks { provider: Some(id.into()), ..judged(Verify::Warn, &[SECRET]) };
        let broken = TunnelSpec { extra: vec![Extra { tag: 3, value: b"maybe".to_vec() }], ..spec(5, "e") };
        let mut socket = connect_on(world.raw("relay.test").await, &token).await;
        let tunnels = vec![
            webhooks(1, "a", &judged(Verify::Reject, &[])),
            webhooks(2, "b", &named("acme")),
            webhooks(3, "c", &named("aws-sns")),
            webhooks(4, "d", &named("mailchimp")),
            broken,
            webhooks(6, "f", &named("stripe")),
        ];
        let welcome = socket.welcome(None, tunnels).await;
        assert!(Webhooks::are_known(&welcome.extra), "a client knows that it can rely on it");
        let results: Vec<_> = welcome.tunnels.into_iter().map(|bound| bound.result.map(|_| ())).collect();
        let words = |result: &Result<(), Refusal>| match result {
            Ok(()) => String::new(),
            Err(Refusal { code, message, .. }) => format!("{code}: {message}"),
        };
        for (result, wanted) in results.iter().zip([
            "not-allowed: The relay has no secret",
            "not-allowed: This relay does not know the provider acme.",
            "not-allowed: Amazon SNS does not sign, or with a key that must be fetched",
            "not-allowed: Mailchimp does not sign",
            "bad-request: \"maybe\" is none of off, warn and reject",
            "",
        ]) {
            let words = words(result);
            assert!(
                words.to_lowercase().starts_with(&wanted.to_lowercase()) && words.is_empty() == wanted.is_empty(),
                "{words}"
            );
        }
    }

    /// It is no use to refuse what cannot be signed, and to let it pass would let everything pass that looks like it.
    #[tokio::test]
    async fn that_are_required_leave_handshakes_to_the_relay() {
        let told =
            Webhooks { provider: Some("dropbox".into()), handshake: true, ..judged(Verify::Reject, &["secret"]) };
        let (world, mut socket) = with(|_| {}, &[("hooks", told)]).await;
        let answer = world.get(&world.url("hooks", "/?challenge=abc")).await;
        assert_eq!((answer.code(), answer.text(), answer.header("relay-handshake")), (200, "abc", "dropbox"));
        let request = Request::get(world.url("hooks", "/")).body(full("")).unwrap();
        assert_eq!(refused(&world, "hooks", request).await.0, 401);
        // The client is there all the time, and hears of none.
        socket.send(&[Frame::Ping(7)]).await;
        let mut heard = Vec::new();
        within("a Pong", async {
            loop {
                match socket.next().await.expect("a session") {
                    Frame::Pong(7) => break,
                    frame => heard.push(frame),
                }
            }
        })
        .await;
        assert!(!heard.iter().any(|frame| matches!(frame, Frame::Open { .. })), "{heard:?}");
    }

    #[tokio::test]
    async fn are_judged_by_a_secret_that_is_written_nowhere() {
        let mut server =
            RelayServer::spawn_with(tempfile::tempdir().unwrap().into(), [""; 0], &[("RELAY_LOG", "trace")]).await;
        let token = server.token("secret").await;
        let mut socket = connect_on(server.raw(RelayServer::DOMAIN).await, &token).await;
        let told = Webhooks {
            provider: Some("stripe".into()),
            credentials: Credentials {
                settings: [("setting".to_owned(), "canary2".to_owned())].into(),
                ..judged(Verify::Reject, &[SECRET]).credentials
            },
            ..judged(Verify::Reject, &[SECRET])
        };
        let bound = socket.hello(vec![webhooks(1, "hooks", &told)]).await;
        assert!(bound[0].result.is_ok(), "{bound:?}");
        let host = format!("hooks.{}", RelayServer::DOMAIN);
        let mut wire = server.raw(&host).await;
        wire.send(format!("POST /canaryless HTTP/1.1\r\nHost: {host}\r\nStripe-Signature: t=1,v1=00\r\n\r\n")).await;
        let answer = wire.message().await.unwrap();
        assert_eq!((answer.status(), answer.values("relay-error")), (401, vec!["signature-invalid"]));
        assert!(!String::from_utf8_lossy(&answer.body).contains("whsec"));
        let metrics = server.get_admin("/metrics").await;
        assert!(metrics.text().contains("relay_errors_total{error=\"signature-invalid\"} 1"), "{}", metrics.text());
        drop(socket);
        let data = server.data_dir().to_owned();
        let ended = server.process.terminate().await;
        let mut texts = vec![metrics.text().to_owned(), ended.stderr, ended.stdout];
        for entry in std::fs::read_dir(data).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                texts.push(String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned());
            }
        }
        assert!(texts.iter().any(|text| text.contains("/canaryless")), "the log is read");
        for canary in ["whsec_canary", "canary2"] {
            assert!(!texts.iter().any(|text| text.contains(canary)), "{canary} is written somewhere");
        }
    }
}

/// The same by the programs as they are, from the flags of one to the log of the other.
mod with_a_real_client {
    use super::*;

    async fn start(app: &App, flags: &[&str]) -> (RelayServer, RelayClient) {
        let server = RelayServer::spawn([""; 0]).await;
        let token = server.token("real").await;
        let client = server.client(&token, &app.addr().to_string(), flags).await;
        (server, client)
    }

    #[tokio::test]
    async fn signatures_are_judged_before_its_service_hears_of_anything() {
        let app = App::recording().await;
        let flags = ["--verify-at", "edge", "--verify", "reject", "--secret", "whsec_canary", "--inspect", "off"];
        let (mut server, mut client) = start(&app, &flags).await;
        let host = client.host();
        for (secret, path, status) in [("whsec_other", "/forged", 401), ("whsec_canary", "/hooks", 200)] {
            let url = format!("https://{host}{path}");
            let draft = draft(&url, secret, br#"{"type":"invoice.paid"}"#);
            let lines = draft.headers.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
            let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n", draft.body.len());
            let head = lines.fold(head, |head, line| head + &line);
            let mut wire = server.raw(&host).await;
            wire.send([format!("{head}\r\n").as_bytes(), &draft.body].concat()).await;
            assert_eq!(wire.message().await.unwrap().status(), status, "{path}");
            let line = server.process.error_line(&format!("\"target\":\"{path}\"")).await;
            assert!(line.contains("\"provider\":\"stripe\"") && !line.contains("whsec"), "{line}");
        }
        let withheld = client.process.event("requests.withheld").await;
        let [count, path, error, verdict] = ["count", "path", "error", "verdict"].map(|field| &withheld[field]);
        assert_eq!((count, path), (&1.into(), &"/forged".into()), "{withheld}");
        assert_eq!((error, verdict), (&"signature-invalid".into(), &"bad_signature".into()), "{withheld}");
        assert_eq!(withheld["tunnel"], client.ready["tunnel"]);
        assert_eq!(app.only().header("relay-verdict"), "valid");
        let exchange = client.exchange().await;
        let (path, webhook) = (&exchange["path"], &exchange["webhook"]);
        assert_eq!((path, &webhook["verdict"]), (&"/hooks".into(), &"valid".into()), "{exchange}");
        assert!(webhook["reason"].as_str().unwrap().starts_with("signed by Stripe"), "{exchange}");
    }

    #[tokio::test]
    async fn handshakes_are_answered_when_its_machine_has_died() {
        let app = App::recording().await;
        let (server, mut client) = start(&app, &["--provider", "dropbox", "--handshake", "--inspect", "off"]).await;
        let host = client.host();
        client.process.kill().await;
        let answer = within("an answer in its place", async {
            loop {
                let mut wire = server.raw(&host).await;
                wire.send(format!("GET /?challenge=abc HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
                let answer = wire.message().await.expect("an answer");
                // Until the relay knows that the client is gone.
                if answer.status() == 200 {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!((answer.values("relay-handshake"), &answer.body[..]), (vec!["dropbox"], &b"abc"[..]));
        assert_eq!(app.requests(), 0);
    }
}
