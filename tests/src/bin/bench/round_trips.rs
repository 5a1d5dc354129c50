//! Round trips of a program that connects to an echo service.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::measure::micros;

/// The payload of a round trip, in bytes.
pub const PAYLOAD: usize = 4096;

/// Returns the microseconds of each of `times` round trips of so many bytes.
pub fn round_trips(host: &mut UnixStream, bytes: usize, times: usize) -> Vec<f64> {
    let payload = vec![b'x'; bytes];
    let mut back = vec![0; bytes];
    let mut round_trip = || {
        let started = Instant::now();
        host.write_all(&payload).unwrap();
        host.read_exact(&mut back).unwrap();
        micros(started.elapsed())
    };
    (0..times).map(|_| round_trip()).collect()
}
