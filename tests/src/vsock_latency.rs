//! The latency that vsock adds to a request: what the host's and the guest's side of the measurement share.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Instant;

use crate::traffic::wait_and_accept;

/// The guest's vsock port that socat forwards to the scheduler's socket.
pub const SOCAT: u32 = 5000;
/// The guest's vsock port that echoes lines.
pub const ECHO: u32 = 5001;
/// The guest's vsock port that reads a number N and replies with the median microseconds of N requests inside the guest.
pub const INSIDE: u32 = 5002;

/// The request line that is measured.
pub const REQUEST: &str = "{\"req\":\"stats\",\"args\":{}}\n";

/// Returns the median microseconds of `times` requests, each a line that is answered by a line.
///
/// # Errors
///
/// The error of the stream.
pub fn requests(stream: &UnixStream, request: &str, times: usize) -> io::Result<f64> {
    let mut lines = BufReader::new(stream);
    let mut answer = Vec::new();
    median(times, || {
        answer.clear();
        let mut writer = stream;
        writer.write_all(request.as_bytes())?;
        lines.read_until(b'\n', &mut answer)?;
        if answer.ends_with(b"\n") { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    })
}

/// Returns the median microseconds of `times` calls.
///
/// # Errors
///
/// The error of a call.
pub fn median<E>(times: usize, mut call: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut all = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        call()?;
        all.push(started.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[times / 2])
}

/// Answers each line of each connection with the line that `reply` returns, on threads that never end.
pub fn serve(listener: OwnedFd, reply: fn(&str) -> io::Result<String>) {
    thread::spawn(move || {
        loop {
            match wait_and_accept(&listener) {
                Ok(stream) => drop(thread::spawn(move || answer_lines(&stream, reply))),
                // The accept timed out without a connection.
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                Err(error) => panic!("a listener failed: {error}"),
            }
        }
    });
}

fn answer_lines(mut stream: &UnixStream, reply: fn(&str) -> io::Result<String>) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        stream.write_all(reply(&line)?.as_bytes())?;
        line.clear();
    }
    Ok(())
}
