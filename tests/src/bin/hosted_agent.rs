//! The agent's library in a program with std, for `ci/coverage`: the static agent has no room for counters.
#![allow(clippy::expect_used, clippy::panic, reason = "a fixture that fails is a test that fails")]

use std::os::unix::ffi::OsStringExt;

use scx_vsock_agent::arguments::{self, Command, HELP};
use scx_vsock_agent::{Agent, Storage};
use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};

fn main() {
    let given: Vec<Vec<u8>> = std::env::args_os().skip(1).map(OsStringExt::into_vec).collect();
    let activated = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
    match arguments::parse(given.iter().map(Vec::as_slice), activated) {
        Ok(Command::Run(config)) => {
            let storage = Box::leak(Box::new(Storage::<SESSIONS, MAX_RESPONSE_BYTES>::new()));
            let mut agent = Agent::new(storage, &config).expect("the agent listens");
            let Err(error) = agent.run();
            panic!("the agent cannot go on: {error:?}");
        }
        Ok(Command::Help) => print!("{HELP}"),
        Ok(Command::Version) => println!("scx-vsock-agent {}", env!("CARGO_PKG_VERSION")),
        Err(error) => {
            eprintln!("scx-vsock-agent: {}: {}", String::from_utf8_lossy(error.argument), error.problem);
            std::process::exit(2);
        }
    }
}
