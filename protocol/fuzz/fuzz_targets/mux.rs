//! Operations on two honest ends, or what a hostile peer sends to one: the machine of the property tests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay_protocol::testing;

fuzz_target!(|data: &[u8]| match data.split_first() {
    Some((0..128, script)) => testing::run(script),
    Some((_, script)) => testing::run_hostile(script),
    None => {}
});
