//! Webhooks that were signed by the providers' own libraries are judged as those libraries judge them, and what we sign
//! is valid until a byte of it is altered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::{fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use relay_protocol::webhook::{
    Confidence, Credentials, Draft, Fact, OnDeadline, Reply, Request, SignError, Table, Verdict,
};
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
                published: case["published"]
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(url, key)| (url.clone(), key.as_str().unwrap().into()))
                    .collect(),
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
    assert_eq!((valid, tampered), (77, 157), "every vector is looked at");
}

/// No library of theirs judges these: the headers and the events are as their documentation shows them.
#[test]
fn what_only_documentation_shows_is_told_by_it() {
    let table = Table::built_in().unwrap();
    let header =
        |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let data_center = [header("x-event-key", "repo:refs_changed"), header("x-request-id", "4a1b")];
    let app = [header("x-fourthwall-hmac-apps-sha256", "c7BeAHCZI0ni6CflpEbw7x5ObVsSOGSEFA95QAHk6QQ=")];
    let none: [(HeaderName, HeaderValue); 0] = [];
    let okta = r#"{"eventType":"com.okta.event_hook","eventId":"e-1","data":{"events":[{"uuid":"u-1","eventType":"user.x"}]}}"#;
    let fourthwall = r#"{"id":"weve_1","type":"ORDER_PLACED"}"#;
    for (id, headers, body, event_id, kind) in [
        ("bitbucket", &data_center[..], "{}", "4a1b", "repo:refs_changed"),
        ("fourthwall", &app[..], fourthwall, "weve_1", "ORDER_PLACED"),
        // By the uuid of what it is about, and not by the id of what was sent.
        ("okta", &none[..], okta, "u-1", "user.x"),
    ] {
        let request = Request::new(&Method::POST, "https://t.example/", headers, body.as_bytes());
        assert_eq!(table.recognise(&request).map(|row| row.id.as_str()), Some(id));
        let event = table.get(id).unwrap().event(&request);
        assert_eq!((event.id.as_deref(), event.kind.as_deref()), (Some(event_id), Some(kind)), "{id}");
    }
    // Made by the code of its documentation, with the key of an app.
    let secrets = vec!["e3f93c7c-c92b-4b8f-a9b1-5b70e0891abc".into()];
    let credentials = Credentials { secrets, ..Credentials::default() };
    for (body, verdict) in [(fourthwall, Verdict::Valid), ("{}", Verdict::BadSignature)] {
        let request = Request::new(&Method::POST, "https://t.example/", &app, body.as_bytes());
        assert_eq!(
            table.get("fourthwall").unwrap().judge(&request, &credentials, Timestamp::UNIX_EPOCH).verdict,
            verdict
        );
    }
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

#[test]
fn a_handshake_that_proves_something_needs_the_secret_and_a_right_signature() {
    let table = Table::built_in().unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let reply = |id: &str, draft: &Draft, secrets: &[&str]| {
        let secrets = secrets.iter().map(|secret| (*secret).into()).collect();
        let credentials = Credentials { secrets, ..Credentials::default() };
        let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        table.get(id).unwrap().handshake(&request, &credentials, now)
    };
    let status = |reply: &Option<Reply>| match reply {
        Some(Reply::Answer { status, .. } | Reply::Refuse { status, .. }) => status.as_u16(),
        other => panic!("{other:?}"),
    };

    let body = br#"{"event":"endpoint.url_validation","payload":{"plainToken":"qgg8vlvZRS6UYooatFL8Aw"}}"#;
    let zoom = signed("zoom", "secret", "https://t.example/", body, now);
    let Some(Reply::Answer { body, .. }) = reply("zoom", &zoom, &["secret"]) else { panic!("it is answered") };
    // Made with Node's crypto from the same secret and token.
    let proof = "72cef096bfd47c0b8664df30d07721641e4abd7e885ba432204260db477a9a3e";
    assert_eq!(
        serde_json::from_slice::<Value>(&body).unwrap(),
        serde_json::json!({"plainToken": "qgg8vlvZRS6UYooatFL8Aw", "encryptedToken": proof})
    );
    assert!(matches!(reply("zoom", &zoom, &["other"]), Some(Reply::Refuse { .. })));
    assert!(matches!(reply("zoom", &zoom, &[]), Some(Reply::LeaveToApp { .. })));

    let xero = signed("xero", "key", "https://t.example/", br#"{"events":[],"firstEventSequence":0}"#, now);
    let answers = [reply("xero", &xero, &["key"]), reply("xero", &xero, &["other"])];
    assert_eq!(answers.each_ref().map(status), [200, 401]);
    let event = signed("xero", "key", "https://t.example/", br#"{"events":[{"eventType":"UPDATE"}]}"#, now);
    assert_eq!(reply("xero", &event, &["key"]), None, "an event is the app's");

    let discord = table.get("discord").unwrap();
    let pair = discord.key_pair().unwrap();
    let ping = signed("discord", pair.private.expose(), "https://t.example/", br#"{"type":1}"#, now);
    let answer = reply("discord", &ping, &[&pair.public]);
    assert!(matches!(&answer, Some(Reply::Answer { body, .. }) if body == br#"{"type":1}"#), "{answer:?}");
    let other = discord.key_pair().unwrap();
    assert_eq!(status(&reply("discord", &ping, &[&other.public])), 401);
}

#[test]
fn a_handshake_is_proven_as_the_providers_own_library_proves_it() {
    let table = Table::built_in().unwrap();
    let body = |id: &str, url: &str, secret: &str| {
        let request = Request::new(&Method::GET, url, &[], b"");
        let settings = [("public_key".to_owned(), "public_1".to_owned())].into();
        let credentials = Credentials { secrets: vec![secret.into()], settings, ..Credentials::default() };
        assert_eq!(table.recognise(&request).map(|row| row.id.as_str()), Some(id));
        match table.get(id).unwrap().handshake(&request, &credentials, Timestamp::UNIX_EPOCH) {
            Some(Reply::Answer { body, .. }) => String::from_utf8(body).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    // Made by the package braintree 3.40.0.
    let challenge = "https://t.example/?bt_challenge=20f9f8ed05f77439fe955c977e4c8a53";
    assert_eq!(body("braintree", challenge, "private_1"), "public_1|9786a973761f5e91de614409a6e393983ac3d94d");
    // Made by Node's crypto.
    let challenge = "https://t.example/?crc_token=challenge_string";
    assert_eq!(
        body("x", challenge, "consumer"),
        r#"{"response_token":"sha256=eVCiy88Y5uz+6uBjQU3UFAARMBRB4rhPoSudtGlt0mE="}"#
    );
}

#[test]
fn nobody_gets_a_webhook_signed_by_asking_for_a_handshake() {
    let table = Table::built_in().unwrap();
    let credentials = Credentials {
        secrets: vec!["secret".into()],
        settings: [("public_key".to_owned(), "public_1".to_owned())].into(),
        ..Credentials::default()
    };
    // A body for X, a payload for Braintree, and one that is merely long.
    let long = format!("https://t.example/?crc_token={}", "a".repeat(65));
    for (id, url) in [
        ("x", "https://t.example/?crc_token=%7B%22for_user_id%22:%221%22%7D"),
        ("x", "https://t.example/?crc_token="),
        ("x", long.as_str()),
        ("braintree", "https://t.example/?bt_challenge=PG5vdGlmaWNhdGlvbi8%2B"),
    ] {
        let request = Request::new(&Method::GET, url, &[], b"");
        let reply = table.get(id).unwrap().handshake(&request, &credentials, Timestamp::UNIX_EPOCH);
        assert!(matches!(reply, Some(Reply::LeaveToApp { .. })), "{url}: {reply:?}");
    }
}

#[test]
fn what_a_stranger_could_have_reflected_is_short_and_no_page() {
    let table = Table::built_in().unwrap();
    let reply = |id: &str, url: &str| {
        let request = Request::new(&Method::GET, url, &[], b"");
        table.get(id).unwrap().handshake(&request, &Credentials::default(), Timestamp::UNIX_EPOCH)
    };
    let url = "https://t.example/?challenge=%3Cscript%3E";
    let Some(Reply::Answer { headers, body, .. }) = reply("dropbox", url) else { panic!("it is answered") };
    assert_eq!(body, b"<script>");
    assert!(headers.contains(&(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))));
    assert!(headers.contains(&(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))));
    let long = format!("https://t.example/?challenge={}", "a".repeat(1025));
    assert!(matches!(reply("dropbox", &long), Some(Reply::LeaveToApp { .. })));
    // Whoever keeps the key must see it.
    let headers = [(HeaderName::from_static("x-hook-secret"), HeaderValue::from_static("s"))];
    let request = Request::new(&Method::POST, "https://t.example/", &headers, b"");
    let asana = table.get("asana").unwrap().handshake(&request, &Credentials::default(), Timestamp::UNIX_EPOCH);
    assert!(matches!(asana, Some(Reply::LeaveToApp { .. })));
}

/// A request as a provider would sign it.
fn signed(row: &str, secret: &str, url: &str, body: &[u8], now: Timestamp) -> Draft {
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    table.get(row).unwrap().sign(&Request::new(&Method::POST, url, &[], body), &credentials, now).unwrap()
}

/// The verdict on what arrived of it, and the reason.
fn explained(row: &str, secret: &str, draft: &Draft, now: Timestamp) -> (Verdict, String) {
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
    let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
    let judgement = table.get(row).unwrap().explain(&request, &credentials, now);
    (judgement.verdict, judgement.reason.into_owned())
}

#[test]
fn a_bad_signature_says_what_was_done_to_the_body() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let utf8 = "{\"name\": \"Grüße\", \"n\": 1.50}";
    let latin: Vec<u8> = utf8.chars().map(|c| u32::from(c) as u8).collect();
    let mojibake: String = utf8.bytes().map(char::from).collect();
    let base64 = BASE64_STANDARD.encode(utf8);
    let cases: [(&[u8], &[u8], &str); 11] = [
        (b"{}", b"{}\n", "a newline was added at its end"),
        (b"{}\r\n", b"{}", "the newline at its end was removed"),
        (b"a\nb", b"a\r\nb", "from LF to CRLF"),
        (b"a\r\nb", b"a\nb", "from CRLF to LF"),
        (b"{}", b"\xef\xbb\xbf{}", "a byte order mark was added"),
        (utf8.as_bytes(), &latin, "re-encoded from UTF-8 to ISO-8859-1"),
        (utf8.as_bytes(), mojibake.as_bytes(), "re-encoded as UTF-8"),
        (utf8.as_bytes(), base64.as_bytes(), "encoded in base64"),
        (b"a=1+2", b"a=1%202", "with %20 for what was +"),
        (utf8.as_bytes(), "{\"name\":\"Grüße\",\"n\":1.50}".as_bytes(), "with a space after commas and colons"),
        (b"{\n  \"a\": [\n    1.0\n  ]\n}", b"{\"a\":[1.0]}", "indented by two spaces"),
    ];
    for (sent, arrived, words) in cases {
        let mut draft = signed("stripe", "whsec_1", "https://t.example/", sent, now);
        draft.body = arrived.to_vec();
        let (verdict, reason) = explained("stripe", "whsec_1", &draft, now);
        assert_eq!(verdict, Verdict::BadSignature, "{reason}");
        assert!(
            reason.starts_with("the secret is right, and the body was altered") && reason.contains(words),
            "{reason}"
        );
    }
}

#[test]
fn a_body_that_is_signed_by_its_hash_is_told_from_a_wrong_secret() {
    let now = Timestamp::UNIX_EPOCH;
    let sent = b"{\"a\":1}";
    let mut draft = signed("twilio", "token", "https://t.example/?bodySHA256=", sent, now);
    for (arrived, words) in [
        (&b"{\"a\":1}\n"[..], "a newline was added"),
        (b"{\"a\": 1}", "written without spaces"),
        (b"{\"b\":1}", "its SHA-256 is not the one in"),
    ] {
        draft.body = arrived.to_vec();
        let (verdict, reason) = explained("twilio", "token", &draft, now);
        assert_eq!(verdict, Verdict::BadSignature);
        assert!(reason.contains(words) && !reason.contains("white space"), "{reason}");
    }
}

#[test]
fn a_bad_signature_says_what_is_wrong_with_the_secret_or_the_url() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let url = "https://t.example/hook";
    let secret = |by: &str, ours: &str| {
        let draft = signed("stripe", by, url, b"{\"livemode\":false}", now);
        let (verdict, reason) = explained("stripe", ours, &draft, now);
        assert_eq!(verdict, Verdict::BadSignature, "{reason}");
        reason
    };
    assert!(secret("whsec_1", "whsec_1\n").contains("it has white space around it"));
    assert!(secret("whsec_1", "\"whsec_1\"").contains("it has quotation marks around it"));
    assert!(secret("whsec_1", "1").contains("its beginning is missing"));
    let other = secret("whsec_1", "whsec_2");
    assert!(other.contains("another secret signed it") && other.contains("this is a test event"), "{other}");
    let foreign = secret("whsec_1", "sk_live_1");
    assert!(foreign.contains("begins with whsec_, and none that is given does"), "{foreign}");
    assert!(!foreign.contains("sk_live_1"), "a secret is not shown");

    for (theirs, ours, words) in [
        ("http://t.example/hook", url, "another scheme"),
        ("https://t.example/hook/", url, "the slash at the end"),
        ("https://t.example:443/hook", url, "the default port"),
        ("https://t.example/hook", "https://t.example/hook?a=1", "without the query"),
    ] {
        let mut draft = signed("square", "key", theirs, b"{}", now);
        draft.url = ours.into();
        let (verdict, reason) = explained("square", "key", &draft, now);
        assert_eq!(verdict, Verdict::BadSignature, "{reason}");
        assert!(reason.contains(words) && reason.contains(theirs), "{reason}");
    }

    let mut draft = signed("shopify", "key", url, b"{}", now);
    let digest = BASE64_STANDARD.decode(draft.headers[0].1.as_bytes()).unwrap();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    draft.headers[0].1 = HeaderValue::from_str(&hex).unwrap();
    let (verdict, reason) = explained("shopify", "key", &draft, now);
    assert_eq!(verdict, Verdict::BadSignature);
    assert!(reason.contains("in hex, and Shopify writes base64"), "{reason}");
}

#[test]
fn a_signature_out_of_its_time_says_by_how_much() {
    let signed_at: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let draft = signed("stripe", "whsec_1", "https://t.example/", b"{}", signed_at);
    let at = |seconds: i64| {
        let now = Timestamp::from_second(signed_at.as_second() + seconds).unwrap();
        explained("stripe", "whsec_1", &draft, now)
    };
    assert_eq!(at(300).0, Verdict::Valid);
    let (verdict, reason) = at(361);
    assert_eq!(verdict, Verdict::Stale);
    assert!(reason.contains("6 min 1 s old, 1 min 1 s more than the 5 min that are allowed"), "{reason}");
    let (verdict, reason) = at(-301);
    assert_eq!(verdict, Verdict::Future);
    assert!(reason.contains("5 min 1 s ahead of this machine's clock, 1 s more"), "{reason}");
}

#[test]
fn a_secret_that_takes_anothers_place_is_good_beside_it() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let table = Table::built_in().unwrap();
    let row = table.get("github").unwrap();
    let draft = signed("github", "old", "https://t.example/", b"{}", now);
    let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
    let both = Credentials { secrets: vec!["new".into(), "old".into()], ..Credentials::default() };
    let judgement = row.judge(&request, &both, now);
    assert_eq!((judgement.verdict, judgement.secret), (Verdict::Valid, Some(1)));
    let none = row.judge(&request, &Credentials::default(), now);
    assert_eq!(none.verdict, Verdict::NoSecret);
    assert!(none.reason.contains("in the settings of the repository"), "{}", none.reason);

    // Two values of a header that differ may be read either way by whoever comes next.
    let mut twice = draft.headers.clone();
    twice.push((twice[0].0.clone(), HeaderValue::from_static("sha256=00")));
    let request = Request::new(&Method::POST, &draft.url, &twice, &draft.body);
    assert_eq!(row.judge(&request, &both, now).verdict, Verdict::Malformed);
}

#[test]
fn signatures_that_are_dear_to_check_are_few() {
    let mut table = Table::built_in().unwrap();
    let row = r#"
        [[provider]]
        id = "acme"
        name = "Acme"
        [[provider.signature]]
        scheme = "ed25519"
        from = "header:x-signature"
        list = " "
        prefix = "v1,"
        encoding = "base64"
        key = "hex"
        content = "{body}"
    "#;
    table.add(row).unwrap();
    let acme = table.get("acme").unwrap();
    let pair = acme.key_pair().unwrap();
    let with = |secret| Credentials { secrets: vec![secret], ..Credentials::default() };
    let unsigned = Request::new(&Method::POST, "https://a.example/", &[], b"{}");
    let mut draft = acme.sign(&unsigned, &with(pair.private), Timestamp::now()).unwrap();
    let right = draft.headers.iter().position(|(name, _)| name == "x-signature").unwrap();
    let signature = draft.headers[right].1.to_str().unwrap().to_owned();
    let public = with(pair.public.as_str().into());
    for (wrong, verdict) in [(7, Verdict::Valid), (8, Verdict::Malformed)] {
        let all = format!("{}{signature}", format!("v1,{} ", BASE64_STANDARD.encode([7; 64])).repeat(wrong));
        draft.headers[right].1 = all.parse().unwrap();
        let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        assert_eq!(acme.judge(&request, &public, Timestamp::now()).verdict, verdict);
    }
}

#[test]
fn what_tells_a_sender_is_found_wherever_it_stands_in_the_body() {
    let table = Table::built_in().unwrap();
    let whose = |body: &str| {
        let request = Request::new(&Method::POST, "https://a.example/", &[], body.as_bytes());
        table.recognise(&request).map(|provider| provider.id.clone())
    };
    let long = "x".repeat(10_000);
    for (body, id) in [
        (format!(r#"{{"text":"{long}","update_id":1}}"#), Some("telegram")),
        (format!(" [{{\"{long}\":0}}]"), None),
        (r#"{"value":[{"subscriptionId":"s","changeType":"updated"}]}"#.to_owned(), Some("microsoft-graph")),
        // It is named, and stands somewhere else.
        (r#"{"text":"update_id","a":{"update_id":1}}"#.to_owned(), None),
    ] {
        assert_eq!(whose(&body).as_deref(), id, "{body}");
    }
}

#[test]
fn a_shared_token_stands_in_every_event() {
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec!["s".into()], ..Credentials::default() };
    let verdict = |body: &str| {
        let request = Request::new(&Method::POST, "https://t.example/", &[], body.as_bytes());
        table.get("microsoft-graph").unwrap().judge(&request, &credentials, Timestamp::UNIX_EPOCH).verdict
    };
    assert_eq!(verdict(r#"{"value":[{"clientState":"s"},{"clientState":"s"}]}"#), Verdict::Valid);
    assert_eq!(verdict(r#"{"value":[{"clientState":"s"},{"clientState":"t"}]}"#), Verdict::BadSignature);
    assert_eq!(verdict(r#"{"value":[{"clientState":"s"},{}]}"#), Verdict::Malformed);
    assert_eq!(verdict(r#"{"value":[{}]}"#), Verdict::Missing);
}

#[test]
fn what_is_said_of_a_request_is_no_longer_than_a_line() {
    let row = Table::built_in().unwrap().get("aws-sns").unwrap().clone();
    let known = Credentials { secrets: vec!["s".into()], ..Credentials::default() };
    for host in ["evil.example", "sns.us-east-1.amazonaws.com"] {
        let url = format!("https://{host}/{}.pem", "x".repeat(1 << 20));
        let body =
            format!(r#"{{"Type":"Notification","SignatureVersion":"1","Signature":"AA==","SigningCertURL":"{url}"}}"#);
        let headers = [(HeaderName::from_static("x-amz-sns-message-type"), HeaderValue::from_static("Notification"))];
        let request = Request::new(&Method::POST, "https://t.example/", &headers, body.as_bytes());
        let judgement = row.key_url(&request, &known).unwrap_err();
        assert!(judgement.reason.len() < 1000 && judgement.reason.contains("bytes"), "{:.200}", judgement.reason);
    }
}

#[test]
fn an_id_that_is_longer_than_any_is_none() {
    let row = Table::built_in().unwrap().get("stripe").unwrap().clone();
    let id = |len: usize| {
        let body = format!(r#"{{"id":"{}","object":"event","type":"invoice.paid"}}"#, "x".repeat(len));
        let event = row.event(&Request::new(&Method::POST, "https://t.example/", &[], body.as_bytes()));
        assert_eq!(event.kind.as_deref(), Some("invoice.paid"));
        event.id.map(|id| id.len())
    };
    assert_eq!((id(256), id(257), id(1 << 20)), (Some(256), None, None));
}

#[test]
fn a_body_that_is_no_form_is_not_covered_by_a_signature_over_none() {
    let table = Table::built_in().unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let row = table.get("twilio").unwrap();
    let credentials = Credentials { secrets: vec!["token".into()], ..Credentials::default() };
    let url = "https://t.example/hook";
    // Twilio signs a GET by its URL alone; somebody sends a body along with that signature.
    let draft = row.sign(&Request::new(&Method::GET, url, &[], b""), &credentials, now).unwrap();
    let verdict = |kind: &'static str, body: &[u8]| {
        let mut headers = draft.headers.clone();
        headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static(kind)));
        row.judge(&Request::new(&Method::POST, url, &headers, body), &credentials, now).verdict
    };
    assert_eq!(verdict("text/plain", b""), Verdict::Valid);
    assert_eq!(verdict("application/json", b"{}"), Verdict::Malformed);
    assert_eq!(verdict("application/x-www-form-urlencoded", b"a=1"), Verdict::BadSignature);
    let many = "a=1&".repeat(5000);
    assert_eq!(verdict("application/x-www-form-urlencoded", many.as_bytes()), Verdict::Malformed);
}

#[test]
fn a_request_cannot_have_its_own_signature_signed() {
    let table = Table::built_in().unwrap();
    let credentials = Credentials { secrets: vec!["s".into()], ..Credentials::default() };
    let header = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
    let listed = header("x-contentful-signed-headers", "x-contentful-signature");
    let headers = [header("x-contentful-signature", "00"), listed];
    let request = Request::new(&Method::POST, "https://t.example/", &headers, b"{}");
    let signed = table.get("contentful").unwrap().sign(&request, &credentials, Timestamp::UNIX_EPOCH);
    assert_eq!(signed, Err(SignError::Circular));
}

#[test]
fn a_link_leads_to_the_providers_own_dashboard() {
    let table = Table::built_in().unwrap();
    let links = |body: &[u8]| {
        let request = Request::new(&Method::POST, "https://t.example/", &[], body);
        table.get("stripe").unwrap().links(&request).into_iter().map(|(_, url)| url).collect::<Vec<_>>()
    };
    assert_eq!(links(b"{\"id\":\"evt_1\"}"), ["https://dashboard.stripe.com/events/evt_1"]);
    assert_eq!(links(b"{\"id\":\"evt_1\\n\"}"), [""; 0], "what is no URL is none");
    assert_eq!(links(b"{}"), [""; 0]);
}

#[test]
fn an_empty_secret_is_none() {
    let table = Table::built_in().unwrap();
    let now = Timestamp::UNIX_EPOCH;
    for (id, secret) in [("github", ""), ("github", " \n"), ("telegram", ""), ("standard-webhooks", "whsec_")] {
        let row = table.get(id).unwrap();
        let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
        let headers = [("webhook-id", "1"), ("webhook-timestamp", "0"), ("webhook-signature", "v1,AAAA")];
        let headers =
            headers.into_iter().chain([("x-hub-signature-256", "sha256=00"), ("x-telegram-bot-api-secret-token", "t")]);
        let header = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers: Vec<_> = headers.map(header).collect();
        headers[3].1 = HeaderValue::from_str(&format!("sha256={}", "00".repeat(32))).unwrap();
        headers[2].1 = HeaderValue::from_str(&format!("v1,{}", BASE64_STANDARD.encode([0; 32]))).unwrap();
        let request = Request::new(&Method::POST, "https://t.example/", &headers, b"{}");
        assert_eq!(row.judge(&request, &credentials, now).verdict, Verdict::NoSecret, "{id}");
        assert!(row.sign(&request, &credentials, now).is_err(), "{id}");
    }
}

#[test]
fn an_answer_is_due_before_the_provider_gives_up() {
    let table = Table::built_in().unwrap();
    let due = |id: &str| table.get(id).unwrap().answer_within().map(|due| due.as_millis());
    // The limit less 15 %, and at least 300 ms.
    assert_eq!(due("github"), Some(8500));
    assert_eq!(due("shopify"), Some(4250));
    assert_eq!(due("line"), Some(1700));
    assert_eq!(due("sentry"), Some(700));
    assert_eq!(due("yousign"), Some(200));
    assert_eq!(due("telnyx"), None, "nobody knows");
    // A number that is only remembered says so.
    let source = |id: &str| table.get(id).unwrap().source(Fact::Limit).unwrap().confidence;
    assert_eq!(source("paddle"), Confidence::Docs);
    assert_eq!(source("dropbox").to_string(), "remembered");
}

#[test]
fn only_the_app_answers_what_steers_the_provider() {
    let table = Table::built_in().unwrap();
    let waits = |id: &str, kind: &'static str, body: &[u8]| {
        let headers = [(HeaderName::from_static("content-type"), HeaderValue::from_static(kind))];
        let request = Request::new(&Method::POST, "https://t.example/", &headers, body);
        table.get(id).unwrap().on_deadline(&request) == OnDeadline::Wait
    };
    assert!(!waits("slack", "application/json", b"{}"));
    assert!(waits("slack", "application/x-www-form-urlencoded", b"command=%2Fweather"));
    assert!(waits("twilio", "application/x-www-form-urlencoded", b"CallSid=1"));
    assert!(waits("discord", "application/json", b"{\"type\":2}"));
    assert!(!waits("discord", "application/json", b"{\"type\":1,\"event\":{\"type\":\"ENTITLEMENT_CREATE\"}}"));
}

#[test]
fn a_users_rows_add_to_the_table_and_replace_fields_of_it() {
    let mut table = Table::built_in().unwrap();
    let built_in = table.iter().count();
    table
        .add(
            r#"
            [[provider]]
            id = "acme"
            name = "Acme"
            match = [{ "header:x-acme-signature" = true }]
            event_type = ["{json:/kind}"]

            [[provider.signature]]
            scheme = "hmac-sha256"
            from = "header:x-acme-signature"
            encoding = "base64"
            content = "{method}\n{target}\n{body}"

            [[provider]]
            id = "shopify"
            limit_ms = 3000
            "#,
        )
        .unwrap();
    assert_eq!(table.iter().count(), built_in + 1);
    assert_eq!(table.get("shopify").unwrap().limit().map(|limit| limit.as_secs()), Some(3));
    assert_eq!(table.get("shopify").unwrap().name, "Shopify");
    let row = table.get("acme").unwrap();
    let now = Timestamp::UNIX_EPOCH;
    let credentials = Credentials { secrets: vec!["key".into()], ..Credentials::default() };
    let body = b"{\"kind\":\"made\"}";
    let draft = row.sign(&Request::new(&Method::POST, "https://t.example/a?b", &[], body), &credentials, now).unwrap();
    let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
    assert_eq!(table.recognise(&request).map(|row| row.id.as_str()), Some("acme"));
    assert_eq!(row.event(&request).kind.as_deref(), Some("made"));
    assert_eq!(row.judge(&request, &credentials, now).verdict, Verdict::Valid);
}

#[test]
fn a_row_of_somebody_elses_shows_no_secret_that_was_masked() {
    let mut table = Table::built_in().unwrap();
    let (url, body) = ("https://a.example/", br#"{"verification_token":"secret-1","more":"secret-2"}"#);
    for (secrets, masked) in [("[]", 1), (r#"["json:/more"]"#, 2)] {
        table.add(&format!("[[provider]]\nid = \"notion\"\nsecrets = {secrets}")).unwrap();
        let masked_body = table.get("notion").unwrap().mask(&Request::new(&Method::POST, url, &[], body), "***").body;
        assert_eq!(String::from_utf8(masked_body).unwrap().matches("***").count(), masked, "{secrets}");
    }
}

#[test]
fn the_page_about_rows_has_rows_that_are_read_and_every_field_of_them() {
    let page = include_str!("../../docs/providers.md");
    let examples: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 2);
    for example in examples {
        Table::built_in().unwrap().add(example).unwrap();
    }
    // A field that is unknown is refused with the list of those that are known.
    for (row, section) in [
        ("[[provider]]\nid = \"a\"\nname = \"A\"\nx = 1", "## Fields of a row"),
        ("[[provider]]\nid = \"a\"\nname = \"A\"\n[[provider.signature]]\nx = 1", "### `[[provider.signature]]`"),
        ("[[provider]]\nid = \"a\"\nname = \"A\"\n[[provider.handshake]]\nx = 1", "### `[[provider.handshake]]`"),
        (
            "[[provider]]\nid = \"a\"\nname = \"A\"\n[[provider.signature]]\nscheme = \"x\"",
            "### `[[provider.signature]]`",
        ),
    ] {
        let error = Table::built_in().unwrap().add(row).unwrap_err().to_string();
        let known = error.split_once("expected one of ").unwrap().1;
        let section = page.split_once(section).unwrap().1.split("\n#").next().unwrap();
        for field in known.split('`').skip(1).step_by(2).filter(|field| !["signature", "handshake"].contains(field)) {
            assert!(section.contains(&format!("`{field}`")), "the page does not say what {field} means");
        }
    }
}

#[test]
fn a_mistake_in_a_row_names_the_row_and_the_field() {
    let row = |rest: &str| format!("[[provider]]\nid = \"acme\"\nname = \"Acme\"\n{rest}");
    let rule = |rest: &str| {
        row(&format!(
            "[[provider.signature]]\nscheme = \"hmac-sha256\"\nfrom = \"header:x\"\nencoding = \"hex\"\n{rest}"
        ))
    };
    for (text, words) in [
        ("[[provider]]\nname = \"x\"".to_owned(), vec!["row 1", "id"]),
        ("[[providers]]".to_owned(), vec!["cannot be read"]),
        (format!("{0}{0}", row("")), vec!["acme", "twice"]),
        (row("limit_ms = \"5s\""), vec!["acme", "limit_ms"]),
        (row("limits_ms = 5"), vec!["acme", "limits_ms"]),
        (row("match = [{ \"cookie:x\" = true }]"), vec!["acme", "match", "cookie:x", "header:NAME"]),
        (row("match = [{}]"), vec!["acme", "match", "every request"]),
        (row("event_id = [\"{json:id}\"]"), vec!["acme", "event_id", "begins with a slash"]),
        (row("links = { event = \"{json:/url}\" }"), vec!["acme", "links", "https://"]),
        (row("links = { event = \"https://{json:/host}/\" }"), vec!["acme", "links", "https://"]),
        (row("answer = { status = 99 }"), vec!["acme", "answer.status", "99"]),
        (row("[provider.source]\nlimit = \"hearsay\""), vec!["acme", "source", "hearsay", "second:"]),
        (row("[[provider.handshake]]\nwhen = {}"), vec!["acme", "handshake.when", "every request"]),
        (rule("content = \"{timestamp}\""), vec!["acme", "signature", "timestamp"]),
        (rule("content = \"{secret}{body}\""), vec!["acme", "signature", "{secret}"]),
        (rule(""), vec!["acme", "signature", "content"]),
        (rule("content = \"{setting:id}{body}\""), vec!["acme", "signature", "{setting:id}"]),
        (rule("content = \"{body\""), vec!["acme", "signature", "bracket"]),
        (rule("content = \"{body}\"\ntimestamp = { unit = \"s\" }"), vec!["acme", "signature", "no list"]),
    ] {
        let mut table = Table::built_in().unwrap();
        let error = table.add(&text).expect_err(&text).to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
        assert!(table.get("acme").is_none(), "the table is as it was");
    }
}

#[test]
fn a_key_is_fetched_from_nowhere_but_the_providers_hosts() {
    let table = Table::built_in().unwrap();
    let row = table.get("aws-sns").unwrap();
    let url = |url: &str| {
        let body = format!(
            r#"{{"Type":"Notification","SignatureVersion":"2","Signature":"AA==","SigningCertURL":{}}}"#,
            Value::from(url)
        );
        row.key_url(&Request::new(&Method::POST, "https://t.example/", &[], body.as_bytes()), &Credentials::default())
    };
    let good = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem";
    assert_eq!(url(good).unwrap().as_deref(), Some(good));
    for wrong in [
        "http://sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com.evil.example/a.pem",
        "https://evil.example/sns.eu-west-1.amazonaws.com",
        "https://evil.example#.amazonaws.com/",
        "https://a@sns.eu-west-1.amazonaws.com/a.pem",
        "https://sns.eu-west-1.amazonaws.com:8443/a.pem",
        "https://sns.a.b.amazonaws.com/a.pem",
        "https://sns..amazonaws.com/a.pem",
        "https://sns.a\\@evil.amazonaws.com/",
        "",
    ] {
        assert_eq!(url(wrong).unwrap_err().verdict, Verdict::BadSignature, "{wrong}");
    }
}

/// No key could make it valid.
#[test]
fn a_key_is_not_fetched_for_a_request_without_a_signature() {
    let table = Table::built_in().unwrap();
    let row = table.get("aws-sns").unwrap();
    let url = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-1.pem";
    for signature in [r#""Signature":"","#, ""] {
        let body = format!(r#"{{"Type":"Notification","SignatureVersion":"2",{signature}"SigningCertURL":"{url}"}}"#);
        let request = Request::new(&Method::POST, "https://t.example/", &[], body.as_bytes());
        assert_eq!(row.key_url(&request, &Credentials::default()).unwrap(), None, "{body}");
        let verdict = row.judge(&request, &Credentials::default(), Timestamp::UNIX_EPOCH).verdict;
        assert_eq!(verdict, Verdict::Missing, "{body}");
    }
}

/// A host is called at `/`, however its URL was typed in.
#[test]
fn a_url_without_a_path_is_signed_with_a_slash_or_without() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    for row in ["square", "hubspot", "twilio"] {
        let mut draft = signed(row, "secret", "https://hooks.example", b"", now);
        draft.url = "https://hooks.example/".to_owned();
        assert_eq!(explained(row, "secret", &draft, now).0, Verdict::Valid, "{row}");
        let mut draft = signed(row, "secret", "https://hooks.example?a=1", b"", now);
        draft.url = "https://hooks.example/?a=1".to_owned();
        assert_eq!(explained(row, "secret", &draft, now).0, Verdict::Valid, "{row}");
        let mut draft = signed(row, "secret", "https://hooks.example/a", b"", now);
        draft.url = "https://hooks.example/a/".to_owned();
        assert_eq!(explained(row, "secret", &draft, now).0, Verdict::BadSignature, "{row}");
    }
    let mut draft = signed("twilio", "secret", "https://hooks.example:443", b"", now);
    draft.url = "https://hooks.example/".to_owned();
    assert_eq!(explained("twilio", "secret", &draft, now).0, Verdict::Valid);
}

/// That of RFC 7515, appendix A.3.
const PLAID_KEY: &str = r#"{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

#[test]
fn a_secret_that_no_scheme_of_its_provider_takes_is_told() {
    let table = Table::built_in().unwrap();
    let refuses = |row: &str, secret: &str| table.get(row).unwrap().refuses(&secret.into());
    for (row, right, wrong) in [
        ("standard-webhooks", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_..."),
        ("standard-webhooks", "whpk_fnOWgvZ2eyLW0Wzn4mGyAJpfTCfjRrgxsbXl6jVTFbU=", "polar"),
        ("polar", "polar_whs_abc", " "),
        ("plaid", PLAID_KEY, "no key"),
        ("discord", &"0123456789abcdef".repeat(4), "no key"),
        ("stripe", "whsec_a", " "),
    ] {
        assert_eq!(refuses(row, right), None, "{row}");
        let why = refuses(row, wrong).unwrap();
        assert!(why.contains("not in the form of") && !why.contains("MfKQ"), "{row}: {why}");
    }
    // Those that are made here are all taken.
    for row in table.iter() {
        let made = row.new_secret().map(|pair| pair.public);
        assert_eq!(made.and_then(|secret| row.refuses(&secret.into())), None, "{}", row.id);
    }
    // There is none to be given.
    assert_eq!((refuses("aws-sns", "a"), refuses("mailchimp", "a")), (None, None));
}

/// A request as Standard Webhooks signs it with a key.
fn standard(key: &[u8]) -> Draft {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let signature = BASE64_STANDARD.encode(aws_lc_rs::hmac::sign(&key, b"msg_1.1767225600.{}"));
    let list = [
        ("webhook-id", "msg_1".to_owned()),
        ("webhook-timestamp", "1767225600".to_owned()),
        ("webhook-signature", format!("v1,{signature}")),
    ];
    let headers = list.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::try_from(value).unwrap()));
    Draft { url: "https://t.example/".to_owned(), headers: headers.to_vec(), body: b"{}".to_vec() }
}

/// As the source of its server signs, and npm `@polar-sh/sdk` 1.0.1 takes it.
#[test]
fn a_secret_of_polar_is_a_key_in_base64_or_is_its_key_as_it_stands() {
    let table = Table::built_in().unwrap();
    let row = table.get("polar").unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let (old, new) = ("polar_whs_5Zq0Y6pLkQ", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    let decoded = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    for (secret, key) in
        [(old, old.as_bytes()), (new, &decoded), (new, new.as_bytes()), ("whsec_a-b_c", b"whsec_a-b_c")]
    {
        let mut draft = standard(key);
        assert_eq!(explained("polar", secret, &draft, now).0, Verdict::Valid, "{secret}");
        // What is signed anew is signed in the same way.
        let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
        assert_eq!(row.sign(&request, &credentials, now).unwrap(), draft, "{secret}");
        draft.body.push(b' ');
        let (verdict, reason) = explained("polar", secret, &draft, now);
        assert_eq!(verdict, Verdict::BadSignature, "{reason}");
    }
}

/// While one secret takes another's place both are given, and they may be of two kinds.
#[test]
fn secrets_of_two_kinds_are_each_held_against_a_signature() {
    let table = Table::built_in().unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let symmetric = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let decoded = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let public = "whpk_fnOWgvZ2eyLW0Wzn4mGyAJpfTCfjRrgxsbXl6jVTFbU=";
    for (row, secrets, key) in [
        ("polar", ["polar_whs_abc", symmetric], &decoded[..]),
        ("polar", ["whsec_AAAA", "polar_whs_abc"], b"polar_whs_abc"),
        ("standard-webhooks", [public, symmetric], &decoded),
        ("standard-webhooks", [symmetric, public], &decoded),
    ] {
        let draft = standard(key);
        let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        let credentials = Credentials { secrets: secrets.map(Into::into).to_vec(), ..Credentials::default() };
        let judgement = table.get(row).unwrap().judge(&request, &credentials, now);
        assert_eq!(judgement.verdict, Verdict::Valid, "{secrets:?}: {}", judgement.reason);
    }
    // What has signed a request signs it anew, and not the first that could.
    let (old, new) = ("polar_whs_abc", "whsec_AAAA");
    let draft = standard(old.as_bytes());
    let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
    let credentials = Credentials { secrets: vec![new.into(), old.into()], ..Credentials::default() };
    assert_eq!(table.get("polar").unwrap().sign(&request, &credentials, now).unwrap(), draft);
    // The first that can sign does.
    let draft = standard(&decoded);
    let bare = Request::new(&Method::POST, &draft.url, &draft.headers[..2], &draft.body);
    let credentials = Credentials { secrets: vec!["github!".into(), symmetric.into()], ..Credentials::default() };
    assert_eq!(table.get("standard-webhooks").unwrap().sign(&bare, &credentials, now).unwrap(), draft);
}

/// Everybody knows it: an HMAC with it proves nothing (as RFC 8725, section 2.1, of tokens).
#[test]
fn a_public_key_is_nobodys_shared_secret() {
    let table = Table::built_in().unwrap();
    let row = table.get("standard-webhooks").unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    // Whole quads of Base64, also with what stands before it.
    let public = format!("whpk_{}", "A".repeat(43));
    let read = base64::prelude::BASE64_URL_SAFE.decode(&public).unwrap();
    for secrets in [vec![&*public], vec![&*public, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]] {
        let draft = standard(&read);
        let request = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        let credentials =
            Credentials { secrets: secrets.iter().map(|secret| (*secret).into()).collect(), ..Credentials::default() };
        let judgement = row.judge(&request, &credentials, now);
        assert_ne!(judgement.verdict, Verdict::Valid, "{secrets:?}: {}", judgement.reason);
    }
    let draft = standard(b"a");
    let bare = Request::new(&Method::POST, &draft.url, &draft.headers[..2], &draft.body);
    let credentials = Credentials { secrets: vec![public.into()], ..Credentials::default() };
    let error = row.sign(&bare, &credentials, now).unwrap_err();
    assert!(error.to_string().contains("secret") || error.to_string().contains("only"), "{error}");
}

/// What signs is not sent to where a token is wanted.
#[test]
fn a_signing_secret_is_not_sent_as_a_token() {
    let table = Table::built_in().unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let lines = [("x-gitlab-event", "Push Hook"), ("x-gitlab-token", "mytoken")];
    let headers = lines.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let request = Request::new(&Method::POST, "https://t.example/", &headers, b"{}");
    let secrets = vec!["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(), "mytoken".into()];
    let credentials = Credentials { secrets, ..Credentials::default() };
    let signed = table.get("gitlab").unwrap().sign(&request, &credentials, now).unwrap();
    let token = signed.headers.iter().find(|(name, _)| name == "x-gitlab-token").unwrap();
    assert_eq!(token.1, "mytoken");
}

#[test]
fn a_signature_is_missing_where_nothing_stands_in_its_place() {
    let table = Table::built_in().unwrap();
    for (row, header) in
        [("github", "x-hub-signature-256"), ("shopify", "x-shopify-hmac-sha256"), ("stripe", "stripe-signature")]
    {
        for (value, verdict) in [("", Verdict::Missing), ("  ", Verdict::Missing), ("what=", Verdict::Malformed)] {
            let headers = [(HeaderName::from_static(header), HeaderValue::from_static(value))];
            let request = Request::new(&Method::POST, "https://t.example/", &headers, b"{}");
            let credentials = Credentials { secrets: vec!["whsec_a".into()], ..Credentials::default() };
            let judged = table.get(row).unwrap().judge(&request, &credentials, Timestamp::UNIX_EPOCH);
            assert_eq!(judged.verdict, verdict, "{row} {value:?}: {}", judged.reason);
        }
    }
}

/// The prefix tells which secret it is, and is no part of the key (Standard Webhooks, "Signature scheme").
#[test]
fn a_prefix_that_tells_a_secret_is_no_part_of_its_key() {
    let table = Table::built_in().unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let list = [("webhook-id", "msg_1"), ("x-gitlab-event", "Push Hook"), ("webhook-timestamp", "1767225600")];
    let list = list.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let signed = |id: &str, secret: &str| {
        let request = Request::new(&Method::POST, "https://t.example/", &list, b"{}");
        let credentials = Credentials { secrets: vec![secret.into()], ..Credentials::default() };
        table.get(id).unwrap().sign(&request, &credentials, now).unwrap().headers
    };
    let signature = |headers: Vec<(HeaderName, HeaderValue)>| {
        headers.into_iter().find(|(name, _)| name == "webhook-signature").unwrap().1
    };
    assert_eq!(signature(signed("gitlab", secret)), signature(signed("standard-webhooks", secret)));

    let row = table.get("standard-webhooks").unwrap();
    let pair = row.key_pair().unwrap();
    // Only a shared secret is told by its prefix when signing; a public key is when judging.
    let headers = {
        let key = BASE64_STANDARD.decode(pair.private.expose()).unwrap();
        let key = aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8(&key).unwrap();
        let signature = key.sign(b"msg_1.1767225600.{}");
        let signature = BASE64_STANDARD.encode(signature);
        let value = HeaderValue::try_from(format!("v1a,{signature}")).unwrap();
        [&list[..], &[(HeaderName::from_static("webhook-signature"), value)]].concat()
    };
    let request = Request::new(&Method::POST, "https://t.example/", &headers, b"{}");
    let public = Credentials { secrets: vec![format!("whpk_{}", pair.public).into()], ..Credentials::default() };
    let judgement = row.judge(&request, &public, now);
    assert_eq!(judgement.verdict, Verdict::Valid, "{judgement:?}");
}

#[test]
fn a_new_secret_has_the_form_of_the_providers_own() {
    let table = Table::built_in().unwrap();
    let new =
        |id: &str| table.get(id).unwrap().new_secret().map(|pair| (pair.private.expose().to_owned(), pair.public));
    for (id, begins, length) in [
        ("stripe", "whsec_", 70),
        ("github", "", 64),
        ("standard-webhooks", "whsec_", 50),
        ("gitlab", "whsec_", 50),
        ("adyen", "", 64),
        ("basic", "relay:", 70),
        ("alertmanager", "", 64),
    ] {
        let (private, public) = new(id).unwrap();
        assert!(private == public && public.starts_with(begins) && public.len() == length, "{id}: {public}");
        assert_ne!(new(id).unwrap().0, private, "{id}");
    }
    for id in ["discord", "sendgrid", "telnyx"] {
        let (private, public) = new(id).unwrap();
        assert_ne!(private, public, "{id}");
    }
    for id in ["paypal", "aws-sns", "plaid", "google-pubsub", "atlassian-connect", "mailchimp", "wix"] {
        assert_eq!(new(id), None, "{id}");
    }
}

mod properties {
    use proptest::{collection::vec, prelude::*, sample::Index};
    use relay_protocol::webhook::{KeyPair, Provider};

    use super::*;

    /// A request that a provider could have sent, unsigned; credentials to sign it, and to judge it.
    fn unsigned(row: &Provider, text: &str) -> (Draft, Credentials, Credentials) {
        let header =
            |name: &'static str, value: &'static str| (HeaderName::from_static(name), HeaderValue::from_static(value));
        // Whatever some scheme covers, or writes into, is there.
        let mut headers = vec![
            header("webhook-id", "msg_1"),
            header("twitch-eventsub-message-id", "m1"),
            header("x-plivo-signature-v3-nonce", "n1"),
            header("x-contentful-signed-headers", "x-contentful-timestamp,webhook-id"),
        ];
        let body = if ["braintree", "twilio", "mandrill"].contains(&row.id.as_str()) {
            headers.push(header("content-type", "application/x-www-form-urlencoded"));
            let text: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("bt_payload={text}x&From=%2B49").into_bytes()
        } else {
            let document = serde_json::json!({
                "text": text,
                "webhookTimestamp": 1,
                "signature": {"signature": "", "timestamp": "1", "token": "t"},
                "value": [{"clientState": ""}, {"clientState": ""}],
                "event": {"event_hash": "", "event_time": "1", "event_type": "e"},
                "notificationItems": [{"NotificationRequestItem": {
                    "additionalData": {"hmacSignature": ""}, "pspReference": "p", "eventCode": "c", "success": "true",
                    "amount": {"value": 1, "currency": "EUR"},
                }}],
            });
            serde_json::to_vec(&document).unwrap()
        };
        let (private, public) = match (row.id.as_str(), row.key_pair()) {
            // It may sign with either; here with the shared secret.
            (id, Some(KeyPair { private, public })) if id != "standard-webhooks" => (private, public.as_str().into()),
            // Good as text, in hex and in base64.
            _ => ("00112233445566778899aabbccddeeff".into(), "00112233445566778899aabbccddeeff".into()),
        };
        let settings = row.settings().keys().map(|name| (name.clone(), format!("{name}-value")));
        let settings: std::collections::BTreeMap<_, _> = settings.collect();
        let with = |secret| Credentials { secrets: vec![secret], settings: settings.clone(), ..Credentials::default() };
        let draft = Draft { url: "https://t.example/hook?a=1".into(), headers, body };
        (draft, with(private), with(public))
    }

    #[test]
    fn a_fragment_is_no_part_of_what_is_signed() {
        let table = Table::built_in().unwrap();
        let (twilio, method) = (table.get("twilio").unwrap(), Method::POST);
        let credentials = Credentials { secrets: vec!["secret".into()], ..Credentials::default() };
        let asked = Request::new(&method, "https://t.example/hook?a=1&bodySHA256#part&b=2", &[], b"{}");
        let draft = twilio.sign(&asked, &credentials, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(draft.url.split('#').next(), Some(draft.url.as_str()));
        let judged = twilio.judge(&request(&draft), &credentials, Timestamp::UNIX_EPOCH);
        assert_eq!(judged.verdict, Verdict::Valid, "{draft:?}");
    }

    /// The providers whose requests anybody with the secret can sign.
    fn signable(table: &Table) -> Vec<&Provider> {
        let only_theirs = ["paypal", "aws-sns", "plaid", "google-pubsub", "atlassian-connect"];
        let signs = |row: &&Provider| row.facts().contains(&Fact::Signature);
        table.iter().filter(signs).filter(|row| !only_theirs.contains(&row.id.as_str())).collect()
    }

    fn request(draft: &Draft) -> Request<'_> {
        Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body)
    }

    /// Each case asks every provider: a few are many. `PROPTEST_CASES` makes a run longer.
    fn config() -> ProptestConfig {
        let default = ProptestConfig::default();
        ProptestConfig { cases: default.cases.div_ceil(8), failure_persistence: None, ..default }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn what_is_signed_is_valid_until_it_is_altered(text in ".{0,100}", at in any::<Index>()) {
            let table = Table::built_in().unwrap();
            let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
            for row in signable(&table) {
                let (draft, private, public) = unsigned(row, &text);
                let signed = row.sign(&request(&draft), &private, now);
                let mut signed = signed.unwrap_or_else(|error| panic!("{}: {error}", row.id));
                let judgement = row.judge(&request(&signed), &public, now);
                prop_assert_eq!(judgement.verdict, Verdict::Valid, "{}: {:?}: {:?}", row.id, judgement, signed);
                // Signed once more, it is the same but for what chance has a part in.
                if row.key_pair().is_none() {
                    prop_assert_eq!(&row.sign(&request(&signed), &private, now).unwrap(), &signed, "{}", row.id);
                }
                if row.signs_body() {
                    let at = at.index(signed.body.len());
                    signed.body[at] ^= 2;
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
                if let Ok(draft) = row.sign(&request, &credentials, Timestamp::UNIX_EPOCH) {
                    let signed = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
                    let judgement = row.judge(&signed, &credentials, Timestamp::UNIX_EPOCH);
                    prop_assert_eq!(judgement.verdict, Verdict::Valid, "{}: {:?}: {:?}", row.id, judgement, draft);
                }
            }
        }
    }
}
