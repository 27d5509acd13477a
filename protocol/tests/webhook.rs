//! Webhooks that were signed by the providers' own libraries are judged as those libraries judge them, and what we sign
//! is valid until a byte of it is altered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::{fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use relay_protocol::webhook::{Credentials, Fact, Reply, Request, Table, Verdict};
use serde_json::Value;

/// A request of a vector, whole.
struct Received {
    id: String,
    method: Method,
    url: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
    credentials: Credentials,
    now: Timestamp,
}

impl Received {
    fn of(case: &Value) -> Self {
        let text = |name: &str| case[name].as_str().unwrap();
        let header = |pair: &Value| {
            let part = |index: usize| pair[index].as_str().unwrap().as_bytes();
            (HeaderName::from_bytes(part(0)).unwrap(), HeaderValue::from_bytes(part(1)).unwrap())
        };
        let settings = case["config"].as_object().into_iter().flatten();
        let secrets = match text("secret") {
            "" => Vec::new(),
            secret => vec![secret.into()],
        };
        Self {
            id: text("id").into(),
            method: text("method").parse().unwrap(),
            url: text("url").into(),
            headers: case["headers"].as_array().unwrap().iter().map(header).collect(),
            body: BASE64_STANDARD.decode(text("body_b64")).unwrap(),
            credentials: Credentials {
                secrets,
                settings: settings.map(|(name, value)| (name.clone(), value.as_str().unwrap().into())).collect(),
                ..Credentials::default()
            },
            now: Timestamp::from_second(case["now"].as_i64().unwrap()).unwrap(),
        }
    }

    fn request(&self) -> Request<'_> {
        Request::new(&self.method, &self.url, &self.headers, &self.body)
    }
}

fn vectors() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let json = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut found = Vec::new();
    for path in json {
        let document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for case in document["vectors"].as_array().into_iter().flatten() {
            found.push((case["provider"].as_str().unwrap().to_owned(), case.clone()));
        }
    }
    found
}

#[test]
fn every_vector_is_judged_as_the_providers_own_library_does() {
    let table = Table::built_in().unwrap();
    let mut wrong = Vec::new();
    let (mut valid, mut tampered) = (0, 0);
    for (provider, case) in vectors() {
        let received = Received::of(&case);
        let request = received.request();
        let row = table.get(&provider).unwrap_or_else(|| panic!("there is no row for {provider}"));
        let judgement = row.explain(&request, &received.credentials, received.now);
        let expect = &case["expect"];
        let wanted = match expect["reason"].as_str().unwrap() {
            "ok" => Verdict::Valid,
            "bad_signature" => Verdict::BadSignature,
            "stale_timestamp" => Verdict::Stale,
            "future_timestamp" => Verdict::Future,
            "missing_signature" => Verdict::Missing,
            "malformed_header" | "unknown_version" => Verdict::Malformed,
            other => panic!("{}: {other}?", received.id),
        };
        assert_eq!(expect["valid"].as_bool().unwrap(), wanted == Verdict::Valid);
        if judgement.verdict != wanted {
            wrong.push(format!("{}: wanted {wanted}, and it is {judgement:?}", received.id));
        }
        if wanted != Verdict::Valid {
            tampered += 1;
            continue;
        }
        valid += 1;
        assert_eq!(table.recognise(&request).map(|row| row.id.as_str()), Some(provider.as_str()), "{}", received.id);
        let event = row.event(&request);
        if let Some(id) = expect["event_id"].as_str() {
            assert_eq!(event.id.as_deref(), Some(id), "{}", received.id);
        }
        if let Some(kind) = expect["event_type"].as_str() {
            assert_eq!(event.kind.as_deref(), Some(kind), "{}", received.id);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((valid, tampered), (61, 116), "every vector is looked at");
}

#[test]
fn every_handshake_is_answered_as_its_provider_wants_it() {
    let table = Table::built_in().unwrap();
    let document = include_str!("vectors/handshakes.json");
    let document: Value = serde_json::from_str(document).unwrap();
    let mut judged = 0;
    for case in document["cases"].as_array().unwrap() {
        let received = Received::of(case);
        let request = received.request();
        let respond = &case["respond"];
        let replies = |id: &str| {
            let row = table.get(id).unwrap_or_else(|| panic!("there is no row for {id}"));
            row.handshake(&request, &received.credentials, received.now)
        };
        judged += 1;
        let id = &received.id;
        if respond["not_a_handshake"] == true {
            for row in table.iter() {
                assert_eq!(row.handshake(&request, &received.credentials, received.now), None, "{id}: {}", row.id);
            }
            continue;
        }
        let reply = replies(case["provider"].as_str().unwrap()).unwrap_or_else(|| panic!("{id} is a handshake"));
        if respond["refuse"] == true {
            let Reply::Refuse { status, .. } = reply else { panic!("{id} is refused and not {reply:?}") };
            if let Some(wanted) = respond["status"].as_u64() {
                assert_eq!(u64::from(status.as_u16()), wanted, "{id}");
            }
            continue;
        }
        let Reply::Answer { status, headers, body, confirm } = reply else { panic!("{id} is answered, not {reply:?}") };
        let header = |name: &str| {
            let found = headers.iter().find(|(given, _)| given.as_str().eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(confirm, None);
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{id}");
        let statuses = respond["status_in"].as_array().cloned().unwrap_or_else(|| vec![respond["status"].clone()]);
        assert!(statuses.contains(&status.as_u16().into()), "{id}: {status}");
        let is_as = |wanted: &Value| {
            let kind = wanted["content_type"].as_str().unwrap_or("");
            let text = wanted["body"].as_str().is_none_or(|text| text.as_bytes() == body);
            let json = wanted["json"].is_null()
                || serde_json::from_slice(&body).is_ok_and(|json: Value| json == wanted["json"]);
            header("content-type").unwrap_or("").starts_with(kind) && text && json
        };
        let any = respond["any_of"].as_array().cloned().unwrap_or_else(|| vec![respond.clone()]);
        assert!(any.iter().any(is_as), "{id}: {:?}", String::from_utf8_lossy(&body));
        for (name, wanted) in respond["headers"].as_object().into_iter().flatten() {
            let given = header(name).unwrap_or_else(|| panic!("{id}: no {name}"));
            let fits = |wanted: &Value| match wanted.as_str().unwrap() {
                wanted if wanted.starts_with('~') => given.contains(&wanted[1..]),
                wanted => given == wanted,
            };
            assert!(wanted.as_array().unwrap().iter().any(fits), "{id}: {name}: {given}");
        }
    }
    assert_eq!(judged, 9);
}

#[test]
fn every_fact_of_the_table_names_its_source() {
    let table = Table::built_in().unwrap();
    let every = [
        Fact::Match,
        Fact::Event,
        Fact::Limit,
        Fact::Retries,
        Fact::Answer,
        Fact::Signature,
        Fact::Handshake,
        Fact::Body,
        Fact::Links,
    ];
    let mut complaints = Vec::new();
    for row in table.iter() {
        for fact in every {
            match (row.facts().contains(&fact), row.source(fact)) {
                (true, None) => complaints.push(format!("{}: {fact} has no source", row.id)),
                (false, Some(_)) => complaints.push(format!("{}: there is a source for {fact}, and no {fact}", row.id)),
                _ => {}
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

mod properties {
    use proptest::{collection::vec, prelude::*, sample::Index};
    use relay_protocol::webhook::{Draft, KeyPair, Provider, SignError};

    use super::*;

    /// A request that a provider could have sent, unsigned, and the credentials to sign it.
    fn unsigned(row: &Provider, body: &[u8]) -> (Draft, Credentials, Credentials) {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        // What the contents of some schemes need to be there.
        let mut headers = vec![
            header("webhook-id", "msg_1"),
            header("twitch-eventsub-message-id", "m1"),
            header("x-plivo-signature-v3-nonce", "n1"),
            header("x-contentful-signed-headers", "x-contentful-timestamp,webhook-id"),
        ];
        let places = [
            "/webhookTimestamp",
            "/signature/signature",
            "/signature/timestamp",
            "/signature/token",
            "/value/0/clientState",
            "/event/event_hash",
            "/event/event_time",
            "/event/event_type",
        ];
        let signature_in_body = row.sign(
            &Request::new(&Method::POST, "https://t.example/hook", &headers, b""),
            &Credentials { secrets: vec!["00".into()], ..Credentials::default() },
            Timestamp::UNIX_EPOCH,
        );
        let body = match signature_in_body {
            Err(SignError::NoPlace(_) | SignError::Lacking(_)) if row.id != "braintree" && row.id != "dropbox-sign" => {
                let mut document = serde_json::json!({
                    "text": String::from_utf8_lossy(body),
                    "webhookTimestamp": 1,
                    "signature": {"signature": "", "timestamp": "1", "token": "t"},
                    "value": [{"clientState": ""}],
                    "event": {"event_hash": "", "event_time": "1", "event_type": "e"},
                });
                for place in places {
                    assert!(document.pointer_mut(place).is_some());
                }
                document["notificationItems"] = serde_json::json!([{"NotificationRequestItem": {
                    "additionalData": {"hmacSignature": ""}, "pspReference": "p", "eventCode": "c", "success": "true",
                    "amount": {"value": 1, "currency": "EUR"},
                }}]);
                serde_json::to_vec(&document).unwrap()
            }
            _ => body.to_vec(),
        };
        if ["braintree", "twilio", "mandrill"].contains(&row.id.as_str()) {
            headers.push(header("content-type", "application/x-www-form-urlencoded"));
        }
        let body = if row.id == "braintree" { b"bt_payload=cGF5bG9hZA".to_vec() } else { body };
        let body = if row.id == "twilio" || row.id == "mandrill" {
            let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("Body={hex}&From=%2B49").into_bytes()
        } else {
            body
        };
        let settings = row.settings().keys().map(|name| (name.clone(), format!("{name}-value")));
        let settings: std::collections::BTreeMap<_, _> = settings.collect();
        let (private, public) = match row.key_pair() {
            Some(KeyPair { private, public }) if row.id != "standard-webhooks" => (private, public.as_str().into()),
            _ => {
                let secret = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
                let secret = match row.id.as_str() {
                    "adyen" => "00112233445566778899aabbccddeeff",
                    _ => secret,
                };
                (secret.into(), secret.into())
            }
        };
        let with = |secret| Credentials { secrets: vec![secret], settings: settings.clone(), ..Credentials::default() };
        let draft = Draft { url: "https://t.example/hook?a=1".into(), headers, body };
        (draft, with(private), with(public))
    }

    /// The providers whose requests anybody with the secret can sign.
    fn signable(table: &Table) -> Vec<&Provider> {
        let only_theirs = ["paypal", "aws-sns", "plaid", "google-pubsub", "atlassian-connect", "dropbox-sign"];
        let signs = |row: &&Provider| row.facts().contains(&Fact::Signature);
        table.iter().filter(signs).filter(|row| !only_theirs.contains(&row.id.as_str())).collect()
    }

    fn request(draft: &Draft) -> Request<'_> {
        Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_signed_is_valid_until_it_is_altered(body in vec(any::<u8>(), 1..200), at in any::<Index>()) {
            let table = Table::built_in().unwrap();
            let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
            for row in signable(&table) {
                let (draft, private, public) = unsigned(row, &body);
                let signed = row.sign(&request(&draft), &private, now);
                let mut signed = signed.unwrap_or_else(|error| panic!("{}: {error}", row.id));
                let judgement = row.judge(&request(&signed), &public, now);
                prop_assert_eq!(judgement.verdict, Verdict::Valid, "{}: {:?}: {:?}", row.id, judgement, signed);
                // Signed once more, it is the same but for what chance has a part in.
                if row.key_pair().is_none() {
                    prop_assert_eq!(&row.sign(&request(&signed), &private, now).unwrap(), &signed, "{}", row.id);
                }
                if row.signs_body() && row.id != "braintree" && row.id != "twilio" && row.id != "mandrill" {
                    let at = at.index(signed.body.len());
                    signed.body[at] ^= 1;
                    let verdict = row.judge(&request(&signed), &public, now).verdict;
                    prop_assert_ne!(verdict, Verdict::Valid, "{}", row.id);
                }
            }
        }

        #[test]
        fn no_request_makes_it_panic(
            body in prop_oneof![vec(any::<u8>(), 0..400), "[\\[\\]{}\":,a-z0-9\\\\ ]{0,400}".prop_map(String::into_bytes)],
            url in "(https?://)?[a-z:/?&=%#+.]{0,60}",
            values in vec("[ -~]{0,60}", 8),
            picks in vec(any::<Index>(), 8),
            secret in "[ -~]{0,40}",
        ) {
            let table = Table::built_in().unwrap();
            let names = [
                "stripe-signature", "x-hub-signature-256", "x-hub-signature", "content-type", "webhook-signature",
                "webhook-id", "webhook-timestamp", "authorization", "x-twilio-signature", "plaid-verification",
                "x-contentful-signed-headers", "x-contentful-signature", "x-contentful-timestamp", "paypal-cert-url",
            ];
            let header = |(pick, value): (&Index, &String)| {
                let name = HeaderName::from_static(names[pick.index(names.len())]);
                (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
            };
            let headers: Vec<_> = picks.iter().zip(&values).map(header).collect();
            let credentials = Credentials { secrets: vec![secret.as_str().into()], ..Credentials::default() };
            let request = Request::new(&Method::POST, &url, &headers, &body);
            let _ = table.recognise(&request);
            for row in table.iter() {
                let _ = row.event(&request);
                let _ = row.mode(&request);
                let _ = row.links(&request);
                let _ = row.retry(&request);
                let _ = row.on_deadline(&request);
                let _ = row.key_url(&request, &credentials);
                let judgement = row.explain(&request, &credentials, Timestamp::UNIX_EPOCH);
                prop_assert!(!judgement.reason.contains(secret.as_str()) || secret.len() < 8, "{:?}", judgement);
                let _ = row.handshake(&request, &credentials, Timestamp::UNIX_EPOCH);
                let _ = row.sign(&request, &credentials, Timestamp::UNIX_EPOCH);
            }
        }
    }
}
