//! What the program does, from its arguments to its exit status.

use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};

use crate::agent::{Agent, Error, Storage};
use crate::arguments::{self, Command, Config, HELP, UsageError};
use crate::sys;

/// The memory of the program's sessions.
pub type Sessions = Storage<SESSIONS, MAX_RESPONSE_BYTES>;

/// Exit status for wrong arguments.
const USAGE: i32 = 2;
/// Exit status when serving is impossible.
pub const FAILURE: i32 = 1;

/// Does what the arguments behind the program's name and the environment's variables ask for; gives the exit status.
pub fn run<'a>(
    arguments: impl Iterator<Item = &'a [u8]>,
    variable: impl Fn(&[u8]) -> Option<&'a [u8]>,
    sessions: &'a mut Sessions,
) -> i32 {
    match arguments::parse(arguments, activated_descriptors(variable)) {
        Ok(Command::Run(config)) => serve(&config, sessions),
        Ok(Command::Help) => print(&[HELP.as_bytes()]),
        Ok(Command::Version) => print(&[b"scx-vsock-agent ", env!("CARGO_PKG_VERSION").as_bytes(), b"\n"]),
        Err(error) => complain_of(error),
    }
}

// Compiled with the program, which makes its file 200 bytes smaller.
#[inline]
fn serve<'a>(config: &Config<'a>, sessions: &'a mut Sessions) -> i32 {
    let error = match Agent::new(sessions, config).and_then(|mut agent| agent.run()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    complain(&[b"scx-vsock-agent: ", &explain(error), b"\n"]);
    FAILURE
}

/// How many descriptors socket activation passed to this very process.
fn activated_descriptors<'a>(variable: impl Fn(&[u8]) -> Option<&'a [u8]>) -> usize {
    let number = |name| variable(name).and_then(arguments::number);
    match number(b"LISTEN_PID") {
        Some(id) if id != sys::process_id() => 0,
        _ => number(b"LISTEN_FDS").and_then(|count| usize::try_from(count).ok()).unwrap_or(0),
    }
}

/// One line that says what is impossible, why and what mends it.
fn explain(error: Error) -> heapless::Vec<u8, 160> {
    let mut text = heapless::Vec::new();
    let (what, number, errno, mend): (&[u8], _, _, &[u8]) = match error {
        Error::Events(errno) => (b"no epoll instance or timer from the kernel", None, errno, b""),
        Error::Listen { port, errno: sys::Errno::EADDRINUSE } => {
            (b"cannot listen on vsock port ", Some(port), sys::Errno::EADDRINUSE, b"; does another agent run?")
        }
        Error::Listen { port, errno } => {
            (b"cannot listen on vsock port ", Some(port), errno, b"; ports below 1024 want root")
        }
        Error::Descriptor { number, errno } => {
            (b"not a listening socket: descriptor ", number.try_into().ok(), errno, b"")
        }
    };
    let _fits = text.extend_from_slice(what);
    if let Some(number) = number {
        let _fits = text.extend_from_slice(&decimal(number));
    }
    let _fits = text.extend_from_slice(b": errno ");
    let _fits = text.extend_from_slice(&decimal(errno.into_raw().unsigned_abs()));
    let _fits = text.extend_from_slice(mend);
    text
}

fn decimal(number: u32) -> heapless::Vec<u8, 10> {
    let mut divisor = 1_000_000_000;
    let mut digits = heapless::Vec::new();
    while divisor > 0 {
        let digit = number / divisor % 10;
        if digit != 0 || !digits.is_empty() || divisor == 1 {
            let _fits = digits.push(b'0' | u8::try_from(digit).unwrap_or(0));
        }
        divisor /= 10;
    }
    digits
}

fn complain_of(error: UsageError<'_>) -> i32 {
    complain(&[b"scx-vsock-agent: ", error.argument, b": ", error.problem.as_bytes(), b"\n"]);
    USAGE
}

fn complain(pieces: &[&[u8]]) {
    for piece in pieces {
        sys::write(2, piece);
    }
}

fn print(pieces: &[&[u8]]) -> i32 {
    for piece in pieces {
        sys::write(1, piece);
    }
    0
}
