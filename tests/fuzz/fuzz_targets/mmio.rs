//! A device behind registers whose driver reads and writes any of them at any time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::mmio::check;

fuzz_target!(|input: &[u8]| check(input));
