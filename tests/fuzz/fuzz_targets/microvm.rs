//! A microVM's devices whose guest reads and writes any port and any address without memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::microvm::check;

fuzz_target!(|input: &[u8]| check(input));
