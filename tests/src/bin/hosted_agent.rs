//! The agent's program with std, for `ci/coverage`: the static one has no room for counters.

use std::env;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use scx_vsock_agent::program;

fn main() {
    let arguments = env::args_os().skip(1).map(|argument| &*argument.into_vec().leak());
    let variable = |name: &[u8]| env::var_os(OsStr::from_bytes(name)).map(|value| &*value.into_vec().leak());
    std::process::exit(program::run(arguments, variable, Box::leak(Box::default())));
}
