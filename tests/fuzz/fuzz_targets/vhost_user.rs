//! A vhost-user back end whose front end sends anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use scx_vsock_tests::oracles::vhost_user::check;

fuzz_target!(|input: &[u8]| check(input));
