//! The client's machine against an agent that says anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::client::check;

fuzz_target!(|input: &[u8]| check(input));
