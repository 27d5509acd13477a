//! Random operations, random delivery, virtual time: what the machine of `relay_protocol::testing` promises holds for
//! any script. `PROPTEST_CASES` makes a run longer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;
use relay_protocol::message::{Extra, Hello, MessageError, Payload, RequestHead, Resume, TunnelSpec, Welcome};
use relay_protocol::testing;

/// Scripts are cheap: four for each case that is asked for.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: 4 * default.cases, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn two_honest_ends_keep_every_promise(script in vec(any::<u8>(), 0..1500)) {
        testing::run(&script);
    }

    #[test]
    fn a_hostile_peer_gets_an_error_and_nothing_else(script in vec(any::<u8>(), 0..1500)) {
        testing::run_hostile(&script);
    }

    #[test]
    fn what_encodes_decodes_up_to_the_last_byte_of_a_frame(lens in vec((1..300_usize, 0..900_usize), 0..140)) {
        let headers = lens.iter().map(|(name, value)| {
            let name = HeaderName::from_lowercase("n".repeat(*name).as_bytes()).unwrap();
            (name, HeaderValue::from_bytes(&vec![0xff; *value]).unwrap())
        });
        let head = RequestHead { headers: headers.collect(), ..request() };
        match head.to_bytes() {
            Ok(bytes) => prop_assert_eq!(RequestHead::from_bytes(&bytes), Ok(head)),
            Err(error) => prop_assert!(matches!(error, MessageError::TooLong(_) | MessageError::TooManyHeaders)),
        }
    }

    #[test]
    fn a_handshake_survives_the_round_trip(
        names in vec(("[a-z]{0,20}", any::<u32>(), any::<Option<u32>>(), any::<bool>()), 0..100),
        key in any::<Option<[u8; 32]>>(),
        extra in vec((any::<u16>(), vec(any::<u8>(), 0..50)), 0..10),
    ) {
        let extra: Vec<_> = extra.into_iter().map(|(tag, value)| Extra { tag, value }).collect();
        let tunnels = names.into_iter().map(|(name, tunnel, timeout_ms, takeover)| TunnelSpec {
            tunnel, name: Some(name), domain: None, timeout_ms, takeover, extra: extra.clone(),
        });
        let hello = Hello {
            client: "relay".into(),
            version: "0.1.0".into(),
            features: vec!["a".into()],
            tunnels: tunnels.collect(),
            resume: key.map(|key| Resume { key, last_stream: 7 }),
            extra,
        };
        prop_assert_eq!(Hello::from_bytes(&hello.to_bytes().unwrap()), Ok(hello));
    }

    #[test]
    fn no_bytes_make_a_message_panic(bytes in vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        let _ = (Hello::from_bytes(&bytes), Welcome::from_bytes(&bytes), RequestHead::from_bytes(&bytes));
    }
}

#[test]
fn a_head_of_exactly_the_largest_size_arrives() {
    let line = |len: usize| (HeaderName::from_static("n"), HeaderValue::from_bytes(&vec![b'v'; len]).unwrap());
    let mut head = RequestHead { headers: vec![line(300); 128], ..request() };
    let free = relay_protocol::frame::MAX_HEAD - head.to_bytes().unwrap().len();
    head.headers[0] = line(300 + free);
    let bytes = head.to_bytes().unwrap();
    assert_eq!(bytes.len(), relay_protocol::frame::MAX_HEAD);
    assert_eq!(RequestHead::from_bytes(&bytes), Ok(head));
}

fn request() -> RequestHead {
    RequestHead {
        tunnel: 1,
        id: "id".into(),
        deadline_ms: 30_000,
        elapsed_ms: 0,
        method: Method::POST,
        target: "/".parse().unwrap(),
        authority: "web.relay.example.com".into(),
        remote: "192.0.2.7".into(),
        upgrade: None,
        headers: vec![],
    }
}
