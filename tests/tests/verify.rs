//! `relay verify`, as a user or a script runs it over requests that the providers' own libraries signed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::Response;
use relay_tests::process::{Ended, binary};
use relay_tests::{Process, Web, app, body};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A directory to work in.
struct Desk(Arc<TempDir>);

impl Desk {
    fn new() -> Self {
        Self(Arc::new(tempfile::tempdir().unwrap()))
    }

    /// A desk with this request on it, as `request.http`.
    fn with(request: &[u8]) -> Self {
        let desk = Self::new();
        desk.write("request.http", request);
        desk
    }

    fn write(&self, name: &str, data: impl AsRef<[u8]>) {
        std::fs::write(self.0.path().join(name), data).unwrap();
    }

    /// `relay verify …`
    async fn verify(&self, arguments: &[&str]) -> Ended {
        self.verify_with(&[], arguments).await
    }

    async fn verify_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
        let all = [&["verify"], arguments].concat();
        Process::spawn_in(self.0.clone(), "relay", all, variables).await.wait().await
    }
}

/// The vectors of a provider.
fn vectors(provider: &str) -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/vectors");
    let text = std::fs::read_to_string(directory.join(format!("{provider}.json"))).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(document["vectors"].take()).unwrap()
}

fn vector(id: &str) -> Value {
    let (provider, _) = id.split_once('/').unwrap();
    vectors(provider).into_iter().find(|vector| vector["id"] == id).unwrap()
}

/// A vector's request as a file, with lines that end so.
fn raw(vector: &Value, end: &str) -> Vec<u8> {
    let url = vector["url"].as_str().unwrap().strip_prefix("https://").unwrap();
    let (host, target) = url.split_at(url.find('/').unwrap());
    let mut head = format!("{} {target} HTTP/1.1{end}Host: {host}{end}", vector["method"].as_str().unwrap());
    for header in vector["headers"].as_array().unwrap() {
        head.push_str(&format!("{}: {}{end}", header[0].as_str().unwrap(), header[1].as_str().unwrap()));
    }
    let body = BASE64_STANDARD.decode(vector["body_b64"].as_str().unwrap()).unwrap();
    [head.as_bytes(), end.as_bytes(), &body].concat()
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap()
}

/// What is said to a program, which is one line.
fn said(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test]
async fn judges_a_file_as_the_providers_own_library_judges_the_request() {
    let providers = [
        "stripe",
        "github",
        "slack",
        "twilio",
        "square",
        "hubspot",
        "discord",
        "sendgrid",
        "standard-webhooks",
        "braintree",
    ];
    let (mut valid, mut invalid) = (0, 0);
    for (index, vector) in providers.into_iter().flat_map(vectors).enumerate() {
        let id = text(&vector, "id");
        let desk = Desk::with(&raw(&vector, if index % 2 == 0 { "\r\n" } else { "\n" }));
        let now = vector["now"].to_string();
        let secret = text(&vector, "secret");
        let mut arguments = vec!["request.http", "--now", &now, "--secret", secret, "--output", "json"];
        let settings = vector["config"].as_object().into_iter().flatten();
        let settings: Vec<String> =
            settings.map(|(name, value)| format!("--set={name}={}", value.as_str().unwrap())).collect();
        arguments.extend(settings.iter().map(String::as_str));
        let expect = &vector["expect"];
        let is_valid = expect["valid"] == true;
        // What is valid is recognised; a header may be missing that tells the others.
        if !is_valid {
            arguments.extend(["--provider", text(&vector, "provider")]);
        }
        let ended = desk.verify(&arguments).await;
        let found = said(&ended);
        let verdict = match text(expect, "reason") {
            "ok" => "valid",
            "bad_signature" => "bad_signature",
            "stale_timestamp" => "stale",
            "future_timestamp" => "future",
            "missing_signature" => "missing",
            _ => "malformed",
        };
        assert_eq!((&found["verdict"], &found["provider"]), (&verdict.into(), &vector["provider"]), "{id}: {ended:?}");
        assert_eq!((ended.code(), ended.stderr.as_str()), (i32::from(!is_valid), ""), "{id}");
        let fields: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
        let mut wanted = ["provider", "verdict", "reason", "event_id", "event_type"];
        wanted.sort_unstable();
        assert_eq!(fields, wanted, "{id}");
        assert!(!ended.stdout.contains(secret), "{id}: a secret is not shown");
        for name in ["event_id", "event_type"] {
            if is_valid && expect[name].is_string() {
                assert_eq!(found[name], expect[name], "{id}");
            }
        }
        *(if is_valid { &mut valid } else { &mut invalid }) += 1;
    }
    assert!(valid > 30 && invalid > 50, "{valid} {invalid}");
}

#[tokio::test]
async fn tells_a_person_in_a_line_what_is_wrong() {
    let vector = vector("stripe/basic");
    let (secret, now) = (text(&vector, "secret"), vector["now"].to_string());
    let request = raw(&vector, "\r\n");
    let desk = Desk::with(&request);
    let all = ["request.http", "--now", &now, "--secret", secret];
    let ended = desk.verify(&all).await;
    let line = "valid: stripe payment_intent.succeeded evt_1SkRel0000000000000000A1: signed by Stripe, 2 s ago\n";
    assert_eq!((ended.code(), ended.stdout.as_str(), ended.stderr.as_str()), (0, line, ""));

    // An editor's newline at the end of the file is one of the body.
    desk.write("request.http", [&request, &b"\n"[..]].concat());
    let late = (vector["now"].as_i64().unwrap() + 3600).to_string();
    for (arguments, hints) in [
        (&all[..], &["bad signature: stripe ", "the secret is right", "a newline was added at its end"][..]),
        (&["request.http", "--now", &now, "--secret", "whsec_other"], &["bad signature: ", "another secret signed it"]),
        (&["request.http", "--now", &now, "--secret", "whsec_other"], &["this is a test event"]),
        (&["request.http", "--now", &now], &["no secret: ", "whsec_", "--secret takes it"]),
        (&["request.http", "--provider", "github", "--secret", secret], &["missing: github", "x-hub-signature-256"]),
        (&["request.http", "--provider", "calendly"], &["calendly-webhook-signature"]),
    ] {
        let ended = desk.verify(arguments).await;
        assert_eq!((ended.code(), ended.stderr.as_str()), (1, ""), "{ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
        assert!(hints.iter().all(|hint| ended.stdout.contains(hint)), "{hints:?}: {ended:?}");
        assert!(!ended.stdout.contains(secret) && !ended.stdout.contains("whsec_other"), "{ended:?}");
    }

    desk.write("request.http", &request);
    let ended = desk.verify(&["request.http", "--now", &late, "--secret", secret]).await;
    assert!(ended.stdout.starts_with("stale: ") && ended.stdout.contains("55 min"), "{ended:?}");
    let signed =
        String::from_utf8(request).unwrap().replace("Stripe-Signature", "Content-Length: 7\r\nStripe-Signature");
    desk.write("request.http", signed.replace("evt_", "evu_"));
    let ended = desk.verify(&all).await;
    assert!(ended.stdout.contains("its Content-Length is 7, and the file has a body of"), "{ended:?}");

    let desk = Desk::with(b"POST /\x1b[31m HTTP/1.1\n\n{}");
    assert_eq!(desk.verify(&["request.http"]).await.code(), 2);
    let desk = Desk::with(b"POST / HTTP/1.1\n\n{}");
    let ended = desk.verify(&["request.http"]).await;
    assert_eq!(ended.code(), 1);
    assert!(ended.stdout.starts_with("unsupported: ") && ended.stdout.contains("--provider"), "{ended:?}");
    let ended = desk.verify(&["request.http", "--output", "json"]).await;
    let found = said(&ended);
    assert_eq!((&found["provider"], &found["verdict"]), (&Value::Null, &json!("unsupported")));
}

#[tokio::test]
async fn a_strangers_words_do_not_reach_the_terminal_as_they_are() {
    let request = "POST / HTTP/1.1\nX-GitHub-Event: push\nX-GitHub-Delivery: a\u{9b}31m\u{202e}b\n\
                   X-Hub-Signature-256: sha256=00\n\n{}";
    let desk = Desk::with(request.as_bytes());
    for output in ["text", "json"] {
        let ended = desk.verify(&["request.http", "--output", output, "--provider", "github"]).await;
        assert_eq!(ended.code(), 1, "{ended:?}");
        assert!(!ended.stdout.contains(['\u{9b}', '\u{202e}', '\x1b']), "{ended:?}");
    }
}

#[tokio::test]
async fn takes_secrets_from_files_and_variables_and_several_of_them() {
    let vector = vector("github/hello-world");
    let (secret, now) = (text(&vector, "secret"), vector["now"].to_string());
    let desk = Desk::with(&raw(&vector, "\n"));
    desk.write("old.txt", format!("{secret}\r\n"));
    desk.write("new.txt", "another\n");
    let request = ["request.http", "--now", &now];
    for (secrets, code, said) in [
        (&["--secret", "@old.txt"][..], 0, "signed by GitHub"),
        (&["--secret", "@new.txt", "--secret", "@old.txt"], 0, "secret 2 of 2"),
        (&["--secret", "env:HOOK_SECRET"], 0, "signed by GitHub"),
        (&[], 0, "signed by GitHub"),
        (&["--secret", "@new.txt", "--secret", "another"], 1, "another secret"),
        (&["--secret", "@none.txt"], 2, "--secret @none.txt: "),
        (&["--secret", "@."], 2, "--secret @.: "),
        (&["--secret", "env:NO_SUCH_VARIABLE"], 2, "--secret env:NO_SUCH_VARIABLE: this variable is not set"),
        (&["--secret", ""], 2, "it is empty"),
        (&["--secret", "env:EMPTY"], 2, "it is empty"),
    ] {
        let variables = [("HOOK_SECRET", secret), ("EMPTY", ""), ("RELAY_SECRET", "@old.txt")];
        let ended = desk.verify_with(&variables, &[&request, secrets].concat()).await;
        assert_eq!(ended.code(), code, "{secrets:?}: {ended:?}");
        let all = [ended.stdout, ended.stderr].concat();
        assert!(all.contains(said) && !all.contains(secret), "{secrets:?}: {all}");
    }
}

#[tokio::test]
async fn reads_standard_input() {
    let vector = vector("shopify/odd-whitespace-body");
    let desk = Desk::with(&raw(&vector, "\r\n"));
    let relay = binary("relay").await.display().to_string();
    let line = "exec \"$0\" verify - --secret \"$1\" --output json < request.http";
    let arguments = ["-c", line, &relay, text(&vector, "secret")];
    let ended = Process::spawn_in(desk.0.clone(), "/bin/sh", arguments, &[]).await.wait().await;
    assert_eq!((ended.code(), &said(&ended)["provider"]), (0, &json!("shopify")), "{ended:?}");
    let ended = desk.verify(&["-"]).await;
    assert!(ended.code() == 2 && ended.stderr.contains("-: no empty line"), "{ended:?}");
}

/// Some sign the URL, and what is saved behind a tunnel may name another host.
#[tokio::test]
async fn judges_the_url_that_the_provider_called() {
    let mut vector = vector("square/basic");
    let public = text(&vector, "url").to_owned();
    vector["url"] = public.replace("t-7f3a.relay.example", "localhost:3000").into();
    let desk = Desk::with(&raw(&vector, "\n"));
    let (secret, now) = (text(&vector, "secret"), vector["now"].to_string());
    let all = ["request.http", "--secret", secret, "--now", &now];
    let ended = desk.verify(&all).await;
    assert_eq!(ended.code(), 1);
    let hint = "the URL was taken to be https://localhost:3000/hooks/square?team=a%20b: --url says another";
    assert!(ended.stdout.contains(hint), "{ended:?}");
    for url in [&public, "https://t-7f3a.relay.example"] {
        let ended = desk.verify(&[&all[..], &["--url", url]].concat()).await;
        assert_eq!(ended.code(), 0, "{url}: {ended:?}");
    }
    let ended = desk.verify(&[&all[..], &["--url", "https://t-7f3a.relay.example/"]].concat()).await;
    assert_eq!(ended.code(), 1, "that is another path: {ended:?}");
}

/// The keys of a provider who publishes them, and everything about a request that is signed with one.
#[tokio::test]
async fn fetches_a_published_key_where_that_is_asked_for() {
    for id in ["aws-sns/version-2", "google-pubsub/basic", "google-pubsub/wrong-key"] {
        let vector = vector(id);
        let published = vector["published"].clone();
        let web = Web::start(move |url| match published[url].as_str() {
            Some(key) => app::ok(key.to_owned()),
            None => Response::builder().status(404).body(body::empty()).unwrap(),
        })
        .await;
        let variables = web.variables();
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let desk = Desk::with(&raw(&vector, "\r\n"));
        let now = vector["now"].to_string();
        let mut all = vec!["request.http", "--now", &now, "--set", "service_account=push@p.iam.gserviceaccount.com"];
        let ended = desk.verify_with(&variables, &all).await;
        assert!(ended.stdout.starts_with("unsupported: ") && ended.stdout.contains("--fetch-keys"), "{id}: {ended:?}");
        assert!(web.asked().is_empty(), "nothing is fetched unasked");
        all.push("--fetch-keys");
        let ended = desk.verify_with(&variables, &all).await;
        let (code, said) = if vector["expect"]["valid"] == true { (0, "valid: ") } else { (1, "bad signature: ") };
        assert_eq!(ended.code(), code, "{id}: {ended:?}");
        assert!(ended.stdout.starts_with(said), "{id}: {ended:?}");
        assert_eq!(web.asked(), vector["published"].as_object().unwrap().keys().cloned().collect::<Vec<_>>(), "{id}");
    }
}

/// What a request names is fetched from the provider's hosts alone, and what they say is believed only where it is a key.
#[tokio::test]
async fn a_request_leads_to_no_other_place() {
    let vector = vector("aws-sns/version-2");
    let whole = String::from_utf8(raw(&vector, "\n")).unwrap();
    let own = "https://sns.us-west-2.amazonaws.com/SimpleNotificationService-abc.pem";
    assert!(whole.contains(own));
    let web = Web::start(|url| {
        let response = Response::builder();
        match url.rsplit('/').next().unwrap() {
            "moved.pem" => {
                response.status(302).header("location", "https://evil.example/").body(body::empty()).unwrap()
            }
            "page.pem" => app::ok("<p>-----BEGIN CERTIFICATE-----</p>"),
            "long.pem" => app::ok("{".repeat(70_000)),
            _ => response.status(404).body(body::empty()).unwrap(),
        }
    })
    .await;
    let variables = web.variables();
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for (named, said, is_asked) in [
        ("https://evil.example/key.pem", "bad signature: ", false),
        ("https://sns.us-west-2.amazonaws.com.evil.example/key.pem", "bad signature: ", false),
        ("http://sns.us-west-2.amazonaws.com/key.pem", "bad signature: ", false),
        ("https://sns.us-west-2.amazonaws.com/?Action=key.pem", "page of its own", false),
        ("https://sns.us-west-2.amazonaws.com/moved.pem", "status 302", true),
        ("https://sns.us-west-2.amazonaws.com/page.pem", "is no key", true),
        ("https://sns.us-west-2.amazonaws.com/long.pem", "more than 64 KiB", true),
        ("https://sns.us-west-2.amazonaws.com/none.pem", "status 404", true),
    ] {
        let before = web.asked().len();
        let desk = Desk::with(whole.replace(own, named).as_bytes());
        let ended = desk.verify_with(&variables, &["request.http", "--fetch-keys"]).await;
        assert_eq!(ended.code(), 1, "{named}: {ended:?}");
        assert!(ended.stdout.contains(said), "{named}: {ended:?}");
        assert_eq!(web.asked().len() - before, usize::from(is_asked), "{named}: {:?}", web.asked());
    }
    assert!(!web.asked().iter().any(|url| url.contains("evil")), "{:?}", web.asked());
}

#[tokio::test]
async fn says_what_cannot_be_judged_at_all() {
    let desk = Desk::with(b"POST / HTTP/1.1\nHost: a\n\n{}");
    desk.write("answer.http", "HTTP/1.1 200 OK\n\n");
    let large = std::fs::File::create(desk.0.path().join("large.http")).unwrap();
    large.set_len((64 << 20) + 1).unwrap();
    for (arguments, hint) in [
        (&["none.http"][..], "none.http: No such file"),
        (&["."], ".: Is a directory"),
        (&["answer.http"], "answer.http: line 1 is no request line"),
        (&["large.http"], "it has more than 65536 KiB"),
        (&["request.http", "--provider", "stirpe"], "is it stripe"),
        (&["request.http", "--provider", "GitHub"], "is it github"),
        (&["request.http", "--provider", "qqqq"], "no provider is called \"qqqq\""),
    ] {
        let ended = desk.verify(arguments).await;
        assert_eq!((ended.code(), ended.stdout.as_str()), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains(hint), "{hint}: {ended:?}");
    }
    let ended = desk.verify(&["request.http", "--provider", "paypal", "--set", "webhookid=1"]).await;
    assert!(ended.stderr.contains("--set webhookid: PayPal has no such setting; it has webhook_id"), "{ended:?}");
    assert_eq!(ended.code(), 1);
}
