//! Any bytes decode to frames or are refused, and what decodes encodes to the same bytes.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use relay_protocol::frame::{Frame, HEADER_LEN};

fuzz_target!(|data: &[u8]| {
    let mut message = Bytes::copy_from_slice(data);
    loop {
        let before = message.clone();
        match Frame::decode(&mut message) {
            Ok(Some(frame)) => {
                let used = before.len() - message.len();
                assert!(used >= HEADER_LEN);
                if frame != Frame::Skipped {
                    let mut again = BytesMut::new();
                    frame.encode(&mut again);
                    assert_eq!(again, before[..used]);
                }
            }
            Ok(None) => return assert!(message.is_empty()),
            Err(_) => return assert_eq!(message, before, "a refused frame is left where it was"),
        }
    }
});
