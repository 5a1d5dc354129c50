//! The agent as a static program without libc.
#![no_std]
#![no_main]

mod runtime;

use scx_vsock_agent::program::{self, Sessions};

use runtime::{Process, Static};

static STORAGE: Static<Sessions> = Static::new(Sessions::new());

fn main(process: Process) -> i32 {
    #[cfg(feature = "planted-panic")]
    assert!(process.arguments().count() != 7);
    let Some(sessions) = STORAGE.take() else { return program::FAILURE };
    program::run(process.arguments().skip(1), |name| process.variable(name), sessions)
}
