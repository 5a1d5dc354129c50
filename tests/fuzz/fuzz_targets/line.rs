//! The line buffer and the envelopes against their model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::line::check;

fuzz_target!(|input: &[u8]| check(input));
