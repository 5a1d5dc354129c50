//! The agent's session machine against its oracle: exactly one envelope a line, in order, never torn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_agent::session::oracle::check;

fuzz_target!(|input: &[u8]| check(input));
