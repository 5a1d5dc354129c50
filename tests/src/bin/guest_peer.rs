//! The guest's side of tests that need a program of their own in there.
//!
//! ```text
//! guest_peer ask SOCKET REQUEST          sends a line to a Unix socket and prints the line that answers it
//! guest_peer exchange PORT BYTES         dials the host's port, sends stream 1 of that many bytes while it takes what
//!                                        comes, and prints how much that was and its checksum
//! guest_peer interrupt PID               sends SIGINT to a process and waits for its end
//! guest_peer kill PID                    the same with SIGKILL
//! guest_peer hello CID PORT              dials a port over vsock and prints the first line that comes
//! guest_peer activate PORT PROGRAM       says so when it listens, and runs a program with the listener, as
//!                                        socket activation does
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]
#![allow(unsafe_code, reason = "a descriptor changes its owner")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use scx_vsock::{Connect, Endpoint};
use scx_vsock_agent::sys::listen_vsock;
use scx_vsock_tests::pattern;

/// The host, seen from any guest.
const HOST_CID: u32 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["ask", socket, request] => ask(socket, request),
        ["exchange", port, bytes] => exchange(port, bytes),
        ["interrupt", process] => end(process, Signal::INT),
        ["kill", process] => end(process, Signal::KILL),
        ["hello", cid, port] => hello(cid, port),
        ["activate", port, program] => activate(port, program),
        _ => Err("wrong arguments: see the top of this program's source".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest_peer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(socket: &str, request: &str) -> Result<(), Box<dyn Error>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line)?;
    Ok(std::io::stdout().write_all(&line)?)
}

fn exchange(port: &str, bytes: &str) -> Result<(), Box<dyn Error>> {
    let bytes = bytes.parse()?;
    let stream = dial(HOST_CID, port.parse()?)?;
    let sender = stream.try_clone()?;
    let sending = thread::spawn(move || {
        pattern::send(&sender, 1, bytes)?;
        sender.shutdown(Shutdown::Write)
    });
    let arrived = pattern::receive(&stream)?;
    sending.join().map_err(|_| "the sender ended")??;
    println!("{} {}", arrived.bytes, arrived.checksum);
    Ok(())
}

fn dial(cid: u32, port: u32) -> Result<UnixStream, Box<dyn Error>> {
    let stream = Endpoint::Vsock { cid, port }.connect()?;
    poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None)?;
    // Reading, writing and shutting down are the same system calls for every family of stream sockets.
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn hello(cid: &str, port: &str) -> Result<(), Box<dyn Error>> {
    let mut line = String::new();
    BufReader::new(dial(cid.parse()?, port.parse()?)?).read_line(&mut line)?;
    print!("{line}");
    Ok(())
}

fn activate(port: &str, program: &str) -> Result<(), Box<dyn Error>> {
    let listener = listen_vsock(port.parse()?, 16).map_err(|errno| format!("port {port}: {errno}"))?;
    // SAFETY: the descriptor is open, and its former owner forgets it.
    let parent_fd = unsafe { OwnedFd::from_raw_fd(listener.raw()) };
    std::mem::forget(listener);
    println!("listening");
    let mut command = Command::new(program);
    command.env("LISTEN_FDS", "1").fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }])?;
    Err(command.exec().into())
}

fn end(process: &str, signal: Signal) -> Result<(), Box<dyn Error>> {
    let id = Pid::from_raw(process.parse()?).ok_or("0 is no process")?;
    let process = pidfd_open(id, PidfdFlags::empty())?;
    pidfd_send_signal(&process, signal)?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(())
}
