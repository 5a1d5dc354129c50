//! What the program does, from its arguments to its exit status.

use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS, Text, Writer};

use crate::agent::Storage;
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
pub fn run<'a>(
    arguments: impl Iterator<Item = &'a [u8]>,
    environment: impl Iterator<Item = &'a [u8]>,
    sessions: &'a mut Sessions,
) -> i32 {
    sys::open_standard_descriptors();
    let mut config = Config::default();
    match arguments::parse(arguments, activated_descriptors(environment), &mut config) {
        Ok(Command::Run) => serve(&config, sessions),
        Ok(Command::Help) => print(HELP),
        Ok(Command::Version) => print(concat!("scx-vsock-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(UsageError { problem, argument }) => {
            print_error(|line| {
                line.add(b"$: ", 0, Text::first_line(argument).truncated(MAX_ARGUMENT_BYTES));
                line.add(b"$", 0, problem.text());
            });
            USAGE
        }
    }
}

fn serve(config: &Config<'_>, sessions: &mut Sessions) -> i32 {
    // The end of the process closes its descriptors.
    let Err(error) = sessions.start(config).and_then(|()| sessions.run());
    print_error(|line| error.write(line));
    FAILURE
}

/// Returns how many descriptors socket activation passed to this very process.
fn activated_descriptors<'a>(environment: impl Iterator<Item = &'a [u8]>) -> usize {
    let (mut count, mut process) = (None, None);
    for variable in environment {
        if let Some(value) = variable.strip_prefix(b"LISTEN_FDS=") {
            count = arguments::number(value);
        } else if let Some(value) = variable.strip_prefix(b"LISTEN_PID=") {
            process = arguments::number(value);
        }
    }
    match count {
        Some(count) if process == Some(sys::process_id()) => count as usize,
        _ => 0,
    }
}

/// Prints one line to standard error.
fn print_error(write: impl FnOnce(&mut Writer<'_>)) {
    let mut text = [0; MAX_MESSAGE_BYTES];
    let mut line = Writer::new(&mut text);
    line.add(b"scx-vsock-agent: ", 0, Text::EMPTY);
    write(&mut line);
    line.add(b"\n", 0, Text::EMPTY);
    sys::write(2, line.written());
}

fn print(text: &str) -> i32 {
    sys::write(1, text.as_bytes());
    0
}
