//! The agent's session machine against its model: exactly one envelope a line, in order, never torn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_agent::session::model::check;

fuzz_target!(|input: &[u8]| check(input));
