//! A stand-in scheduler: serves the machine's own scheduling counters as scx_stats, without a sched_ext scheduler.
//!
//! It speaks the protocol as real servers do, their habits included: one JSON object a line, answers in order, errno
//! 22 for what it does not understand, a connection closed without a reply for what is not UTF-8, an unterminated line
//! executed at the end of the stream, deltas since that connection's last read, and a socket file that stays on exit.
//!
//! ```text
//! procsched [--socket PATH]
//! ```
#![allow(clippy::print_stderr, reason = "a program's messages")]

mod connection;
mod counters;
mod meta;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use scx_vsock_wire::limits::SCHEDULER_SOCKET;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("procsched: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let socket = socket_of(std::env::args().skip(1))?;
    let listener = listen(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
    eprintln!("procsched: listening on {}", socket.display());
    for stream in listener.incoming() {
        let stream = stream.map_err(|error| format!("accept: {error}"))?;
        thread::Builder::new()
            .spawn(move || {
                if let Err(error) = connection::serve(&stream) {
                    eprintln!("procsched: connection: {error}");
                }
            })
            .map_err(|error| format!("thread: {error}"))?;
    }
    Ok(())
}

fn socket_of(mut arguments: impl Iterator<Item = String>) -> Result<PathBuf, String> {
    let mut socket = PathBuf::from(SCHEDULER_SOCKET);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--socket" => socket = arguments.next().ok_or("--socket needs a path")?.into(),
            other => return Err(format!("unknown argument {other:?}; usage: procsched [--socket PATH]")),
        }
    }
    Ok(socket)
}

/// Listens at `socket`, and replaces the file that an earlier server left there.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}
