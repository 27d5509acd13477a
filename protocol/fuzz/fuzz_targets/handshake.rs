//! Any bytes are a message or are refused, and a message survives the round trip.
#![no_main]

use std::fmt::Debug;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use relay_protocol::message::{Bound, HeaderList, Hello, Payload, RequestHead, ResponseHead, TunnelSpec, Welcome};
use relay_protocol::webhook::Webhooks;

fn round_trip<M: Payload + PartialEq + Debug>(bytes: &Bytes) {
    if let Ok(message) = M::from_bytes(bytes) {
        let again = message.to_bytes().expect("what was decoded can be encoded");
        assert!(again.len() <= bytes.len(), "our own encoding is the shortest");
        assert_eq!(M::from_bytes(&again).as_ref(), Ok(&message));
        let _ = format!("{message:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(rest);
    match which % 8 {
        0 => round_trip::<Hello>(&bytes),
        1 => round_trip::<Welcome>(&bytes),
        2 => {
            round_trip::<TunnelSpec>(&bytes);
            let Ok(spec) = TunnelSpec::from_bytes(&bytes) else { return };
            if let Ok(webhooks) = Webhooks::of(&spec.extra) {
                let again = webhooks.extras().expect("what was heard can be told");
                assert_eq!(Webhooks::of(&again).as_ref(), Ok(&webhooks));
            }
        }
        3 => round_trip::<Bound>(&bytes),
        4 => round_trip::<u32>(&bytes),
        5 => round_trip::<RequestHead>(&bytes),
        6 => round_trip::<ResponseHead>(&bytes),
        _ => round_trip::<HeaderList>(&bytes),
    }
});
