//! Descriptor chains and packet headers against a walk byte by byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::chain::check;

fuzz_target!(|input: &[u8]| check(input));
