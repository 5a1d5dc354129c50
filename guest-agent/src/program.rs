//! What the program does, from its arguments to its exit status.

use core::mem::ManuallyDrop;

use scx_vsock_wire::line::up_to;
use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS, Text, template};

use crate::agent::{Agent, Storage};
use crate::arguments::{self, Command, Config, HELP, UsageError};
use crate::sys;

/// The memory of the program's sessions.
pub type Sessions = Storage<SESSIONS, MAX_RESPONSE_BYTES>;

/// Exit status for wrong arguments.
const USAGE: i32 = 2;
/// Exit status when serving is impossible.
const FAILURE: i32 = 1;

/// Bytes of the longest message.
const MAX_MESSAGE_BYTES: usize = 256;

/// Bytes of an argument in a message.
const MAX_ARGUMENT_BYTES: usize = 128;

/// Does what the arguments after the program's name and the environment (each `NAME=VALUE`) ask for; returns the exit
/// status.
pub fn run<'a, E: Iterator<Item = &'a [u8]>>(
    arguments: impl Iterator<Item = &'a [u8]>,
    environment: impl Fn() -> E,
    sessions: &'a mut Sessions,
) -> i32 {
    sys::open_standard_descriptors();
    let mut config = Config::default();
    match arguments::parse(arguments, activated_descriptors(environment), &mut config) {
        Ok(Command::Run) => serve(&config, sessions),
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("scx-vsock-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(UsageError { problem, argument }) => {
            let argument = Text::first_line(argument).truncated(MAX_ARGUMENT_BYTES);
            print_error(b"$: $", &[], &[argument, problem.text()]);
            USAGE
        }
    }
}

fn serve(config: &Config<'_>, sessions: &mut Sessions) -> i32 {
    // The end of the process closes its descriptors.
    let error = match Agent::new(sessions, config).and_then(|agent| ManuallyDrop::new(agent).run()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let (template, numbers) = error.message();
    print_error(template, &numbers, &[]);
    FAILURE
}

/// Returns how many descriptors socket activation passed to this very process.
fn activated_descriptors<'a, E: Iterator<Item = &'a [u8]>>(environment: impl Fn() -> E) -> usize {
    let number =
        |name: &[u8]| environment().find_map(|variable| variable.strip_prefix(name)).and_then(arguments::number);
    match number(b"LISTEN_FDS=") {
        Some(count) if number(b"LISTEN_PID=") == Some(sys::process_id()) => count as usize,
        _ => 0,
    }
}

/// Prints one line to standard error.
fn print_error(template: &[u8], numbers: &[u64], texts: &[Text<'_>]) {
    let mut line = [0; MAX_MESSAGE_BYTES];
    let length = template::fill(&mut line, template, numbers, texts);
    sys::write(2, b"scx-vsock-agent: ");
    sys::write(2, up_to(&line, length));
    sys::write(2, b"\n");
}

fn print(text: &str) -> i32 {
    sys::write(1, text.as_bytes());
    0
}
