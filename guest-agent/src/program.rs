//! What the program does, from its arguments to its exit status.

use heapless::Vec;
use scx_vsock_wire::line::{line_number, take_until};
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
    let mut text = [0; MAX_MESSAGE_BYTES];
    let mut line = Writer::new(&mut text);
    line.add_plain(b"scx-vsock-agent: ");
    let mut config = Config { maps: Vec::new(), listeners: Vec::new(), allow_cid: None };
    let status = match arguments::parse(arguments, activated_descriptors(environment), &mut config) {
        Ok(Command::Run) => {
            // The end of the process closes its descriptors.
            let Err(error) = sessions.start(&config).and_then(|_| sessions.run());
            error.write(&mut line);
            FAILURE
        }
        Ok(Command::Help) => return print(HELP),
        Ok(Command::Version) => return print(concat!("scx-vsock-agent ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(UsageError { problem, argument }) => {
            line.add(b"$: ", 0, Text::first_line(argument).truncated(MAX_ARGUMENT_BYTES));
            line.add(b"$", 0, problem.text());
            USAGE
        }
    };
    line.add_plain(b"\n");
    sys::write(2, line.written());
    status
}

/// The variables of socket activation: the process that it is for, and how many descriptors it passed.
const VARIABLES: &str = "LISTEN_PID\nLISTEN_FDS";

/// Returns how many descriptors socket activation passed to this very process.
fn activated_descriptors<'a>(environment: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut numbers = [0; 2];
    for mut value in environment {
        let name = take_until(&mut value, b'=');
        if let Some(number) = numbers.get_mut(line_number(VARIABLES, name)) {
            *number = arguments::number(value).unwrap_or(0);
        }
    }
    let [process, count] = numbers;
    if process == sys::process_id() { count as usize } else { 0 }
}

fn print(text: &str) -> i32 {
    sys::write(1, text.as_bytes());
    0
}
