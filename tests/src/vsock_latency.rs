//! The latency that vsock adds to a request: what the host's and the guest's side of the measurement share.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use crate::traffic::wait_and_accept;

/// The guest's vsock port that socat forwards to the scheduler's socket.
pub const SOCAT: u32 = 5000;
/// The guest's virtio-serial port whose lines a relay passes to the scheduler's socket and back.
pub const SERIAL: &str = "stats";
/// The guest's vsock port that echoes lines.
pub const ECHO: u32 = 5001;
/// The guest's vsock port that reads a number N and a request, and replies with the median microseconds of N such requests
/// inside the guest.
pub const INSIDE: u32 = 5002;

/// Bytes of an answer whose request names no number as its target.
const USUAL_ANSWER: usize = 600;

/// The least bytes of an answer.
const SHORTEST_ANSWER: usize = 64;

/// Returns the device of the virtio-serial port [`SERIAL`], if the guest has it.
#[must_use]
pub fn serial_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.filter_map(Result::ok);
    let named = |folder: &Path| fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim() == SERIAL);
    let port = ports.map(|port| port.path()).find(|folder| named(folder))?;
    Some(Path::new("/dev").join(port.file_name()?))
}

/// Passes each line of a virtio-serial port to the scheduler, and the line that answers it back.
///
/// # Errors
///
/// The error of either end.
pub fn relay(port: &File, scheduler: &UnixStream) -> io::Result<()> {
    let (mut requests, mut answers) = (BufReader::new(port), BufReader::new(scheduler));
    let (mut to_scheduler, mut to_host) = (scheduler, port);
    let mut line = Vec::new();
    while requests.read_until(b'\n', &mut line)? > 0 {
        to_scheduler.write_all(&line)?;
        line.clear();
        answers.read_until(b'\n', &mut line)?;
        to_host.write_all(&line)?;
        line.clear();
    }
    Ok(())
}

/// Answers as a scheduler does, each request with as many bytes as its target says, the LF counted.
///
/// # Errors
///
/// The error of the stream.
pub fn answer_in_sizes(mut stream: &UnixStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let (mut line, mut answer) = (String::new(), Vec::new());
    while lines.read_line(&mut line)? > 0 {
        let target = line.split_once("\"target\":\"").and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
        let size = target.unwrap_or(USUAL_ANSWER).max(SHORTEST_ANSWER);
        if answer.len() != size {
            answer = answer_of(size);
        }
        stream.write_all(&answer)?;
        line.clear();
    }
    Ok(())
}

fn answer_of(size: usize) -> Vec<u8> {
    let [before, after] = [&b"{\"errno\":0,\"args\":{\"resp\":\""[..], b"\"}}\n"];
    let text = vec![b'x'; size - before.len() - after.len()];
    [before, &text, after].concat()
}

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
    accept_all(listener, move |stream| drop(thread::spawn(move || answer_lines(&stream, reply))));
}

/// Passes each connection to `each`, on a thread that never ends.
pub fn accept_all(listener: OwnedFd, each: impl Fn(UnixStream) + Send + 'static) {
    thread::spawn(move || {
        loop {
            match wait_and_accept(&listener) {
                Ok(stream) => each(stream),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_size_that_its_request_asks_for() {
        let (host, guest) = UnixStream::pair().unwrap();
        thread::spawn(move || answer_in_sizes(&guest));
        let mut lines = BufReader::new(&host);
        for (request, size) in
            [("{\"args\":{\"target\":\"3072\"}}\n", 3072), ("{\"args\":{\"target\":\"top\"}}\n", 600)]
        {
            (&host).write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            assert_eq!(lines.read_line(&mut answer).unwrap(), size);
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["errno"], 0);
        }
    }
}
