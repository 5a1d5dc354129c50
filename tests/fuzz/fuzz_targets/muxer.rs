//! Connections and credit against what a guest can know.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::muxer::check;

fuzz_target!(|input: &[u8]| check(input));
