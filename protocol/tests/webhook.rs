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
        assert_eq!(event.id.as_deref(), expect["event_id"].as_str(), "{}", received.id);
        if let Some(kind) = expect["event_type"].as_str() {
            assert_eq!(event.kind.as_deref(), Some(kind), "{}", received.id);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!((valid, tampered), (35, 56), "every vector is looked at");
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
