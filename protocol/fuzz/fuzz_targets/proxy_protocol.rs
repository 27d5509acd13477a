//! Any bytes are a header, the beginning of one, or refused; and more bytes change nothing of that but the second.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The file alone: the crate that it is of would bring SQLite and TLS into this build.
#[path = "../../../relay-server/src/edge/proxy_protocol.rs"]
mod proxy_protocol;

use proxy_protocol::{LONGEST, parse};

fuzz_target!(|data: &[u8]| {
    let mut verdict = Ok(None);
    for end in 0..=data.len().min(LONGEST) {
        let next = parse(&data[..end]);
        assert!(verdict == Ok(None) || next == verdict, "{next:?} after {verdict:?}");
        assert!(next.is_ok_and(|found| found.is_none_or(|(_, used)| used <= end)) || next.is_err());
        verdict = next;
    }
    assert!(data.len() < LONGEST || verdict != Ok(None), "nobody waits for more than that");
});
