//! A device whose guest does anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::guest::check;

fuzz_target!(|input: &[u8]| check(input));
