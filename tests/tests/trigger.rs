//! `relay trigger` and `relay send`: webhooks as providers send them, which apps and the providers' own libraries take.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use relay_protocol::webhook::{Credentials, Judgement, Request, Table, Verdict};
use relay_tests::app::Seen;
use relay_tests::body::full;
use relay_tests::process::Ended;
use relay_tests::{App, Place, Process, RelayClient, RelayServer, Wire, tools};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A user's home, in which commands run.
struct Home(Arc<TempDir>);

impl Home {
    fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().unwrap()))
    }

    async fn run(&self, words: &[&str]) -> Ended {
        Process::spawn_in(self.0.clone(), "relay", words, &[]).await.wait().await
    }

    fn write(&self, name: &str, contents: &[u8]) -> String {
        let file = self.0.path().join(name);
        std::fs::write(&file, contents).unwrap();
        file.display().to_string()
    }
}

/// The secret that standard error told of.
fn told(ended: &Ended) -> &str {
    let line = ended.stderr.lines().find(|line| line.contains(" for tests")).unwrap_or_else(|| panic!("{ended:?}"));
    line.rsplit(' ').next().unwrap()
}

/// What the table makes of a request that has arrived.
fn judge(provider: &str, seen: &Seen, url: &str, secret: &str) -> Judgement {
    let headers: Vec<(HeaderName, HeaderValue)> =
        seen.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let request = Request::new(&seen.method, url, &headers, &seen.body);
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    let table = Table::built_in().unwrap();
    table.get(provider).unwrap().judge(&request, &credentials, jiff::Timestamp::now())
}

#[tokio::test]
async fn a_sample_takes_the_whole_way_through_the_only_tunnel() {
    let (place, app) = (Place::new().await, App::recording().await);
    let home = Home(place.home.clone());
    let nothing = home.run(&["trigger", "stripe"]).await;
    assert_eq!((nothing.code(), nothing.stdout.as_str()), (1, ""), "{nothing:?}");
    assert!(nothing.stderr.contains("no tunnel is open") && nothing.stderr.contains("--to"), "{nothing:?}");

    let mut client = place.client(&app, "hooks", &[]).await;
    let url = format!("https://hooks.{}:{}/hooks?team=1", RelayServer::DOMAIN, place.relay.https.port());
    let flags = ["--path", "/hooks?team=1", "--output", "json", "--override", "/data/object/amount_paid=500"];
    let ended = home.run(&[&["trigger", "stripe", "invoice.paid"], &flags[..]].concat()).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let [report] = &ended.lines()[..] else { panic!("{ended:?}") };
    let seen = app.seen().pop().unwrap();
    let sent: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!((seen.target.as_str(), &sent["data"]["object"]["amount_paid"]), ("/hooks?team=1", &500.into()));
    assert_eq!(judge("stripe", &seen, &url, told(&ended)).verdict, Verdict::Valid);
    assert_eq!((&report["event_id"], &report["event_type"]), (&sent["id"], &"invoice.paid".into()));
    assert_eq!((&report["url"], &report["status"], &report["body"]), (&url.as_str().into(), &200.into(), &"ok".into()));
    assert_eq!(
        (&report["provider"], &report["signed"], &report["error"]),
        (&"stripe".into(), &true.into(), &Value::Null)
    );
    let mut fields: Vec<_> = report.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    let page = include_str!("../../docs/json-output.md");
    assert!(fields.iter().all(|field| page.contains(&format!("`{field}`"))), "{fields:?}");

    // Twilio signs the public URL, and not the one that the app is called at.
    let secret = "0123456789abcdef0123456789abcdef";
    let ended = home.run(&["trigger", "twilio", "--secret", secret, "--times", "2", "--path", "/sms"]).await;
    assert!(ended.code() == 0 && !ended.stderr.contains(secret) && !ended.stdout.contains(secret), "{ended:?}");
    let public = format!("https://hooks.{}:{}/sms", RelayServer::DOMAIN, place.relay.https.port());
    let seen: Vec<_> = app.seen().into_iter().skip(1).collect();
    assert!(seen.len() == 2 && seen[0].body != seen[1].body, "each is another");
    assert!(seen.iter().all(|seen| judge("twilio", seen, &public, secret).verdict == Verdict::Valid));

    let other = place.client(&app, "other", &[]).await;
    let ended = home.run(&["trigger", "stripe"]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("hooks") && ended.stderr.contains("other"), "{ended:?}");
    assert_eq!(home.run(&["trigger", "stripe", "--tunnel", "other"]).await.code(), 0);
    let ended = home.run(&["trigger", "stripe", "--tunnel", "third"]).await;
    assert!(ended.code() == 1 && ended.stderr.contains("there are "), "{ended:?}");
    drop(other);
    assert_eq!(client.process.terminate().await.code(), 143);
}

#[tokio::test]
async fn a_tunnels_own_secret_signs_and_stays_where_it_is() {
    let (place, app) = (Place::new().await, App::recording().await);
    let home = Home(place.home.clone());
    let flags = ["--secret", "whsec_dHVubmVs", "--verify", "reject"];
    let mut client = place.client(&app, "hooks", &flags).await;
    for (sender, path) in [("stripe", "/a"), ("github", "/b"), ("twilio", "/c?d=e"), ("gitlab", "/f")] {
        let ended = home.run(&["trigger", sender, "--path", path, "--times", "2", "--output", "json"]).await;
        assert!(ended.code() == 0 && ended.lines()[1]["signed"] == true, "{sender}: {ended:?}");
        assert!(!ended.stderr.contains("secret") && !ended.stdout.contains("whsec_dHVubmVs"), "{sender}: {ended:?}");
    }
    assert_eq!(app.seen().len(), 8);
    let body = home.write("body.json", b"{\"type\":\"invoice.paid\"}");
    assert_eq!(home.run(&["send", &body, "--provider", "stripe"]).await.code(), 0);
    // What is typed counts, and what the tunnel knows nothing of is signed as without it.
    assert_eq!(home.run(&["trigger", "stripe", "--secret", "whsec_other"]).await.code(), 1);
    let ended = home.run(&["trigger", "discord"]).await;
    assert!(ended.code() == 1 && ended.stderr.contains("key pair for tests"), "{ended:?}");
    assert_eq!(client.process.terminate().await.code(), 143);
}

/// To see that an app refuses it.
#[tokio::test]
async fn a_signature_that_is_typed_is_sent() {
    let app = App::recording().await;
    let url = format!("http://{}/", app.upstream().host_port().unwrap());
    let words = ["trigger", "github", "push", "--to", &url, "--output", "json", "--header"];
    for (typed, is_signed) in [("X-Other: 1", true), ("X-Hub-Signature-256: sha256=00", false)] {
        let ended = Home::new().run(&[&words[..], &[typed]].concat()).await;
        assert_eq!((ended.code(), &ended.lines()[0]["signed"]), (0, &is_signed.into()), "{ended:?}");
        assert_eq!(app.last().header("x-hub-signature-256") == "sha256=00", !is_signed);
    }
}

/// Nothing would ever be valid.
#[tokio::test]
async fn a_secret_that_is_none_of_its_provider_is_told_at_the_start() {
    let (place, app) = (Place::new().await, App::recording().await);
    let secret = ["--provider", "standard-webhooks", "--secret", "whsec_..."];
    let mut client = place.client(&app, "hooks", &secret).await;
    client.process.error_line("the secret is not in the form of one of Standard Webhooks: give").await;
    assert_eq!(client.process.terminate().await.code(), 143);
}

#[tokio::test]
async fn a_sender_that_is_mistyped_is_proposed() {
    let ended = Home::new().run(&["trigger", "strip"]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("is it stripe?"), "{ended:?}");
}

/// Nothing would ever be let in.
#[tokio::test]
async fn a_secret_that_is_not_given_where_only_what_is_signed_is_let_in_is_told_at_the_start() {
    let (place, app) = (Place::new().await, App::recording().await);
    for (flags, said) in [
        (&["--verify", "reject"][..], "without a secret nothing is let in: every webhook is answered with 401"),
        (&["--verify", "reject", "--provider", "mailchimp"], "Mailchimp signs nothing, and nothing else is let in"),
    ] {
        let mut client = place.client(&app, "hooks", flags).await;
        client.process.error_line(said).await;
        assert_eq!(client.process.terminate().await.code(), 143);
    }
}

/// It would let in what it is to keep out.
#[tokio::test]
async fn a_setting_that_means_nothing_is_refused() {
    let (place, app) = (Place::new().await, App::recording().await);
    let upstream = app.upstream().to_string();
    for (words, said) in [
        (&["--provider", "aws-sns", "--set", "topicarn=a"][..], "Amazon SNS has no such setting; it has topic_arn"),
        (&["--provider", "github", "--set", "topicarn=a"], "GitHub has no such setting; it has none"),
        (&["--set", "topicarn=a"], "no provider has such a setting; there are "),
    ] {
        let words = place.with_way(&[&["http", &upstream, "--verify", "reject"], words].concat());
        let ended = place.spawn(words).await.wait().await;
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
}

/// What stands above the tables is for whichever of them it is for.
#[tokio::test]
async fn a_setting_of_another_provider_is_left_alone() {
    let home = Home::new();
    let mine = "[[provider]]\nid = 'mine'\nname = 'Mine'\nmatch = [{ 'header:x-mine' = true }]\nlimit_ms = 5000\n\
                settings = { own = 'of mine' }\n[provider.source]\nmatch = 'docs: mine'\nlimit = 'docs: mine'\n";
    for (file, code) in [
        ("provider = 'stripe'\nset = { webhook_id = 'WH-1' }\n".to_owned(), 0),
        (format!("set = {{ own = '1' }}\n{mine}"), 0),
        ("set = { own = '1' }\n".to_owned(), 2),
    ] {
        home.write("relay.toml", file.as_bytes());
        let ended = home.run(&["config", "check"]).await;
        assert_eq!(ended.code(), code, "{file}: {ended:?}");
    }
}

/// Frameworks answer with pages of thousands of lines where they have failed.
#[tokio::test]
async fn of_a_page_that_is_the_answer_only_the_beginning_is_shown() {
    let app = App::serve(|_| async {
        let page = format!("<!DOCTYPE html>\n<title>DisallowedHost at /</title>\n{}", "<p>more</p>\n".repeat(1000));
        let mut response = relay_tests::app::ok(page);
        *response.status_mut() = http::StatusCode::BAD_REQUEST;
        response
    })
    .await;
    let url = format!("http://{}/", app.upstream().host_port().unwrap());
    let ended = Home::new().run(&["trigger", "github", "push", "--to", &url]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stdout.contains("DisallowedHost at /") && ended.stdout.len() < 2000, "{ended:?}");
    assert!(ended.stdout.contains("more bytes are not shown"), "{ended:?}");
}

#[tokio::test]
async fn what_only_the_client_can_read_signs_all_the_same() {
    let (place, app) = (Place::new().await, App::recording().await);
    let home = Home(place.home.clone());
    home.write("relay.toml", b"secret = 'env:RELAY_SECRET_OF_HOOKS'\nverify = 'reject'\n");
    let words = place.with_way(&["http", &app.upstream().to_string(), "--subdomain", "hooks", "--output", "json"]);
    let variables = [("RELAY_SECRET_OF_HOOKS", "whsec_dHVubmVs")];
    let _client = RelayClient::of(Process::spawn_in(home.0.clone(), "relay", words, &variables).await).await;
    for words in [&["trigger", "stripe"][..], &["replay", "last", "--resign"]] {
        assert_eq!(place.json(words).await[0]["signed"], true, "{words:?}");
    }
    assert_eq!(app.requests(), 2);
    // Where this process is to sign, it says what it lacks.
    let url = format!("http://{}/", app.addr());
    let ended = place.run(&["trigger", "stripe", "--to", &url]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("env:RELAY_SECRET_OF_HOOKS"), "{ended:?}");
}

#[tokio::test]
async fn the_providers_own_libraries_take_what_is_sent() {
    let app = App::recording().await;
    let home = Home::new();
    let samples = [
        ("stripe", "payment_intent.succeeded"),
        ("stripe", "customer.subscription.deleted"),
        ("github", "push"),
        ("github", "ping"),
        ("slack", "event_callback"),
        ("slack", "slash_command"),
        ("slack", "block_actions"),
        ("twilio", "sms"),
        ("twilio", "voice"),
        ("sendgrid", "events"),
        ("discord", "application_command"),
        ("discord", "ping"),
        ("hubspot", "contact.creation"),
        ("standard-webhooks", "order.created"),
        ("polar", "order.paid"),
        ("paddle", "transaction.completed"),
        ("razorpay", "payment.captured"),
        ("plivo", "sms"),
        ("square", "payment.updated"),
        ("shopify", "orders/create"),
        ("shopify", "app/uninstalled"),
        ("adyen", "AUTHORISATION"),
        ("adyen", "balancePlatform.transfer.created"),
        ("zoom", "meeting.started"),
        ("zoom", "endpoint.url_validation"),
        ("line", "message"),
        ("telnyx", "message.received"),
        ("workos", "user.created"),
        ("mux", "video.asset.ready"),
        ("notion", "page.content_updated"),
        ("sanity", "create"),
        ("contentful", "Entry.publish"),
        ("gocardless", "payments.confirmed"),
        ("pusher", "channel_occupied"),
        ("openai", "response.completed"),
        ("resend", "email.delivered"),
        ("svix", "invoice.paid"),
        ("braintree", "check"),
        ("dropbox-sign", "signature_request_signed"),
    ];
    let page = include_str!("../../docs/providers.md").replace(" and ", ", ").replace('\n', " ");
    let (_, named) = page.split_once("as they do in an app: ").unwrap();
    let named = named.split('.').next().unwrap().split(", ").map(|name| name.to_lowercase().replace(' ', "-"));
    let asked: BTreeSet<_> = samples.iter().map(|(sender, _)| (*sender).to_owned()).collect();
    assert_eq!(named.collect::<BTreeSet<_>>(), asked, "docs/providers.md");
    let mut questions = Vec::new();
    for (sender, event) in samples {
        let url = format!("http://{}/{sender}?team=a%20b", app.upstream().host_port().unwrap());
        // Two sign a query in a form of their own.
        let bare = ["plivo", "contentful"].contains(&sender);
        let url = if bare { url.split('?').next().unwrap().to_owned() } else { url };
        let now = jiff::Timestamp::now().as_millisecond();
        let ended = home.run(&["trigger", sender, event, "--to", &url]).await;
        assert_eq!(ended.code(), 0, "{sender}/{event}: {ended:?}");
        let seen = app.seen().pop().unwrap();
        let headers: Vec<_> =
            seen.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let question = |body: &[u8]| {
            json!({
                "provider": sender, "secret": told(&ended), "method": seen.method.as_str(), "url": url,
                "headers": headers, "body_base64": BASE64_STANDARD.encode(body), "now": now,
            })
        };
        // One byte more, and no library takes it; where fields are signed, or what is read and written anew, another value.
        let text = std::str::from_utf8(&seen.body).unwrap();
        let altered = match (sender, event) {
            ("twilio" | "plivo", _) => format!("{text}&X=1"),
            ("adyen", "AUTHORISATION") => text.replacen("4200", "4201", 1),
            ("dropbox-sign", _) => text.replacen("request_signed", "request_viewed", 1),
            ("zoom" | "workos", _) => text.replacen("\"event\":\"", "\"event\":\"other.", 1),
            _ => format!("{text} "),
        };
        assert_ne!(altered, text);
        questions.push((true, question(&seen.body)));
        questions.push((false, question(altered.as_bytes())));
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("apps/verify_webhook.cjs");
    let mut node = Command::new(tools::program("node"))
        .arg(script)
        .env("NODE_PATH", tools::node_modules())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = node.stdin.take().unwrap();
    for (_, question) in &questions {
        writeln!(stdin, "{question}").unwrap();
    }
    drop(stdin);
    let judged = node.wait_with_output().unwrap();
    let (judged, said) = (String::from_utf8_lossy(&judged.stdout), String::from_utf8_lossy(&judged.stderr));
    let judged: Vec<Value> = judged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(judged.len(), questions.len(), "{said}");
    for ((valid, question), judged) in questions.iter().zip(&judged) {
        assert_eq!(judged["valid"], *valid, "{}: {said}", question["provider"]);
    }
}

#[tokio::test]
async fn a_secret_for_tests_is_the_same_each_time_and_nobody_elses() {
    let app = App::recording().await;
    let url = format!("http://{}/", app.upstream().host_port().unwrap());
    let (home, other) = (Home::new(), Home::new());
    let words = ["trigger", "github", "--to", &url];
    let (first, second, third) = (home.run(&words).await, home.run(&words).await, other.run(&words).await);
    assert_eq!(told(&first), told(&second));
    assert_ne!(told(&first), told(&third));
    let kept = home.0.path().join(".local/state/relay/test-secrets/github");
    assert_eq!(std::fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    let secrets = [told(&first), told(&second), told(&third)];
    for (seen, secret) in app.seen().iter().zip(secrets) {
        assert_eq!(judge("github", seen, &url, secret).verdict, Verdict::Valid);
    }
    // For the app's environment, also before anything was sent.
    let printed = async |home: &Home, sender| home.run(&["trigger", sender, "--print-secret"]).await;
    assert_eq!(printed(&home, "github").await.stdout, format!("{}\n", told(&first)));
    assert_eq!(
        printed(&Home::new(), "stripe").await.stdout.trim_end().split_once('_').map(|(begin, _)| begin),
        Some("whsec")
    );
    let theirs = printed(&home, "paypal").await;
    assert!(theirs.code() == 1 && theirs.stdout.is_empty() && theirs.stderr.contains("nobody else"), "{theirs:?}");
    // Of a key pair the app gets the half that cannot sign.
    let public = printed(&home, "discord").await.stdout.trim_end().to_owned();
    let ended = home.run(&["trigger", "discord", "--to", &url]).await;
    assert_eq!(told(&ended), public);
    assert_eq!(app.seen().len(), 4);
    assert_eq!(judge("discord", &app.seen()[3], &url, &public).verdict, Verdict::Valid);
    let ended = home.run(&["trigger", "discord", "--to", &url, "--secret", &public]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("private key"), "{ended:?}");
}

#[tokio::test]
async fn what_only_the_provider_can_sign_is_sent_unsigned_and_says_so() {
    let app = App::recording().await;
    let url = format!("http://{}/hook", app.upstream().host_port().unwrap());
    let home = Home::new();
    for (sender, says) in [
        ("paypal", "only PayPal itself"),
        ("aws-sns", "only Amazon SNS itself"),
        ("plaid", "only Plaid itself"),
        ("google-pubsub", "only Google Pub/Sub itself"),
        ("mailchimp", "does not sign"),
    ] {
        let ended = home.run(&["trigger", sender, "--to", &url, "--output", "json"]).await;
        assert!(ended.code() == 0 && ended.stderr.contains(says), "{ended:?}");
        assert_eq!(ended.lines()[0]["signed"], false);
    }
    assert_eq!(app.seen().len(), 5);
}

#[tokio::test]
async fn what_became_of_it_is_said_and_decides_the_exit_code() {
    let app = App::serve(async |_| {
        let mut answer = Response::new(full("{\"error\": \"no such \\u001b order\"}"));
        *answer.status_mut() = StatusCode::NOT_FOUND;
        answer
    })
    .await;
    let home = Home::new();
    let at = app.upstream().host_port().unwrap().to_string();
    let url = format!("http://{at}/hooks");
    let ended = home.run(&["trigger", "github", "ping", "--to", &url, "--header", "X-GitHub-Event: pong"]).await;
    assert_eq!(ended.code(), 1, "{ended:?}");
    assert!(ended.stdout.starts_with("github pong "), "{ended:?}");
    assert!(ended.stdout.contains(&format!(": POST {url}: 404 not found in ")), "{ended:?}");
    assert!(ended.stdout.contains("\n    \"error\": \"no such \\u001b order\"\n"), "{ended:?}");

    // One that takes the request and hangs up.
    let rude = App::raw(|mut wire: Wire, _| async move { drop(wire.message().await) }).await;
    let at_rude = format!("http://{}/", rude.upstream().host_port().unwrap());
    let ended = home.run(&["trigger", "github", "ping", "--to", &at_rude, "--times", "2", "--output", "json"]).await;
    assert!(ended.code() == 1 && ended.stderr.contains("2 of 2 were not answered with 2xx"), "{ended:?}");
    for report in ended.lines() {
        assert!(report["status"].is_null() && report["error"].as_str().unwrap().contains("ended before"), "{report}");
    }

    drop(app);
    for (words, code, hint) in [
        (&["trigger", "stripe", "--to", &url][..], 1, "could not connect to the server"),
        (&["trigger", "strip", "--to", &url], 2, "--list"),
        (&["trigger", "stripe", "invoice", "--to", &url], 2, "invoice.paid"),
        (&["trigger", "stripe", "--to", &url, "--override", "/nothing=1"], 2, "/nothing"),
        (&["trigger", "stripe", "--to", &url, "--secret", "@/nowhere"], 2, "/nowhere"),
        (&["send", "/nowhere", "--provider", "stripe", "--to", &url], 2, "/nowhere"),
    ] {
        let ended = home.run(words).await;
        assert!(ended.code() == code && ended.stderr.contains(hint), "{words:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{words:?}");
    }
}

#[tokio::test]
async fn all_samples_are_listed_and_each_is_sent() {
    let app = App::recording().await;
    let url = format!("http://{}/hook", app.upstream().host_port().unwrap());
    let home = Home::new();
    let ended = home.run(&["trigger", "--list", "--output", "json"]).await;
    let listed = ended.lines();
    assert!(ended.code() == 0 && listed.len() > 110, "{ended:?}");
    let ours = listed.iter().filter(|sample| sample["sender"] == "shopify").collect::<Vec<_>>();
    assert!(ours.iter().any(|sample| sample["event_type"] == "orders/create" && sample["signed"] == true), "{ours:?}");
    let people = home.run(&["trigger", "shopify", "--list"]).await;
    assert_eq!(people.stdout.lines().next(), Some("shopify (Shopify)"));
    assert_eq!(people.stdout.lines().count(), ours.len() + 1);

    let table = Table::built_in().unwrap();
    // A few of each kind; a unit test signs all.
    for sample in listed.iter().step_by(9) {
        let text = |name: &str| sample[name].as_str().unwrap();
        let ended = home.run(&["trigger", text("sender"), text("sample"), "--to", &url, "--output", "json"]).await;
        assert_eq!(ended.code(), 0, "{sample}: {ended:?}");
        assert_eq!(ended.lines()[0]["provider"], sample["provider"]);
        assert!(table.get(text("provider")).is_some());
    }
}

#[tokio::test]
async fn any_body_is_signed_and_sent_as_it_is() {
    let app = App::recording().await;
    let url = format!("http://{}/hook", app.upstream().host_port().unwrap());
    let home = Home::new();
    let body = b"{ \"type\":\"invoice.paid\",\n \"amount\": 1.50 }\n";
    let file = home.write("body.json", body);
    let secret = home.write("secret.txt", b"whsec_file\n");
    let from_file = format!("@{secret}");
    let send = async |words: &[&str]| {
        let ended = home.run(&[&["send"], words, &["--to", &url, "--output", "json"]].concat()).await;
        assert!(!ended.stderr.contains("whsec_file") && !ended.stdout.contains("whsec_file"), "{ended:?}");
        ended
    };
    let ended = send(&[&file, "--provider", "stripe", "--secret", &from_file]).await;
    assert_eq!((ended.code(), &ended.lines()[0]["event_type"]), (0, &"invoice.paid".into()), "{ended:?}");
    let seen = app.seen().pop().unwrap();
    assert_eq!(seen.body, &body[..], "byte for byte");
    assert!(
        seen.header("content-type").starts_with("application/json") && seen.header("user-agent").contains("Stripe")
    );
    assert_eq!(judge("stripe", &seen, &url, "whsec_file").verdict, Verdict::Valid);

    // GitHub says in a header what it is about, and Stripe in the body.
    let ended = send(&[&file, "--provider", "github", "--type", "star", "--secret", "s"]).await;
    assert_eq!((ended.code(), app.seen().pop().unwrap().header("x-github-event")), (0, "star"), "{ended:?}");
    let ended = send(&[&file, "--provider", "stripe", "--type", "star", "--secret", "s"]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("stands in its body"), "{ended:?}");
    let ended = send(&[&file, "--secret", "s"]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("--provider"), "{ended:?}");

    // A saved request is recognised, and signed anew in the place of its old signature.
    let saved = b"PUT /old?a=%20b HTTP/1.1\r\nHost: t.example\r\nX-Custom: 1\r\nStripe-Signature: t=1,v1=00\r\n\
        Content-Length: 999\r\n\r\n\xff{}";
    let file = home.write("request.http", saved);
    let bare = url.strip_suffix("/hook").unwrap();
    let ended = home.run(&["send", &file, "--secret", "s", "--to", bare]).await;
    assert_eq!(ended.code(), 0, "{ended:?}");
    let seen = app.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target.as_str(), &seen.body[..]), ("PUT", "/old?a=%20b", &b"\xff{}"[..]));
    assert_eq!((seen.header("x-custom"), seen.header("content-length")), ("1", "3"));
    assert_eq!(seen.header("host"), bare.strip_prefix("http://").unwrap());
    assert_eq!(judge("stripe", &seen, &format!("{bare}/old?a=%20b"), "s").verdict, Verdict::Valid);
}
