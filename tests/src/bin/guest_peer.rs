//! The guest's side of tests that need a program of their own in there.
//!
//! ```text
//! guest_peer ask SOCKET REQUEST          sends a line to a Unix socket and prints the line that answers it
//! guest_peer exchange PORT BYTES         dials the host's port, sends stream 1 of that many bytes while it takes what
//!                                        comes, and prints how much that was and its checksum
//! guest_peer interrupt PID               sends SIGINT to a process and waits for its end
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program's output")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use scx_vsock::{Connect, Endpoint};
use scx_vsock_tests::pattern;

/// The host, seen from any guest.
const HOST_CID: u32 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["ask", socket, request] => ask(socket, request),
        ["exchange", port, bytes] => exchange(port, bytes),
        ["interrupt", process] => interrupt(process),
        _ => Err("usage: guest_peer ask SOCKET REQUEST | exchange PORT BYTES | interrupt PID".into()),
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
    let (port, bytes) = (port.parse()?, bytes.parse()?);
    let stream = Endpoint::Vsock { cid: HOST_CID, port }.connect()?;
    poll(&mut [PollFd::new(&stream, PollFlags::OUT)], None)?;
    // Reading, writing and shutting down are the same system calls for every family of stream sockets.
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(false)?;
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

fn interrupt(process: &str) -> Result<(), Box<dyn Error>> {
    let id = Pid::from_raw(process.parse()?).ok_or("0 is no process")?;
    let process = pidfd_open(id, PidfdFlags::empty())?;
    pidfd_send_signal(&process, Signal::INT)?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(())
}
