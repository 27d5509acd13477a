//! Any request is recognised, judged, explained, answered and signed without a panic, and a signed one is valid.
#![no_main]

use std::sync::LazyLock;

use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use relay_protocol::webhook::{Credentials, Request, Table, Verdict};

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::built_in().expect("the built-in table is whole"));

// A first line as the URL, lines with a colon as headers, an empty line, and the body. The last byte picks a provider.
fuzz_target!(|data: &[u8]| {
    let Some((pick, data)) = data.split_last() else { return };
    let (head, body) = match data.windows(2).position(|window| window == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &b""[..]),
    };
    let Ok(head) = std::str::from_utf8(head) else { return };
    let mut lines = head.lines();
    let url = lines.next().unwrap_or("");
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
    };
    let headers: Vec<_> = lines.filter_map(header).collect();
    let credentials = Credentials { secrets: vec!["MDEyMw==".into()], ..Credentials::default() };
    let now = Timestamp::UNIX_EPOCH;
    let request = Request::new(&Method::POST, url, &headers, body);
    let _ = TABLE.recognise(&request);
    let Some(row) = TABLE.iter().nth(usize::from(*pick) % TABLE.iter().count()) else { return };
    let _ = (row.event(&request), row.mode(&request), row.links(&request), row.retry(&request));
    let _ = (row.explain(&request, &credentials, now), row.handshake(&request, &credentials, now));
    if let Ok(draft) = row.sign(&request, &credentials, now) {
        let signed = Request::new(&Method::POST, &draft.url, &draft.headers, &draft.body);
        let verdict = row.judge(&signed, &credentials, now).verdict;
        assert_eq!(verdict, Verdict::Valid, "{}: {draft:?}", row.id);
    }
});
