//! The agent's program built with std, for `ci/coverage`: the static one cannot be instrumented.

use std::env;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use scx_vsock_agent::program;

fn main() {
    let arguments = env::args_os().skip(1).map(|argument| &*argument.into_vec().leak());
    let environment = env::vars_os().map(|(name, value)| &*[name.as_bytes(), b"=", value.as_bytes()].concat().leak());
    std::process::exit(program::run(arguments, environment, Box::leak(Box::default())));
}
