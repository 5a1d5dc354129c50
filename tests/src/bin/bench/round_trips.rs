//! Round trips of a program that connects to an echo service.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use scx_vsock_tests::guest_driver::is_readable;
use scx_vsock_tests::peer::DEADLINE;

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
        read_polled(host, &mut back);
        micros(started.elapsed())
    };
    (0..times).map(|_| round_trip()).collect()
}

/// Fills `bytes`, and waits for them in poll(2), as programs with a deadline do: who waits in a read is woken, too, when what
/// it has sent is taken.
pub fn read_polled(stream: &mut UnixStream, bytes: &mut [u8]) {
    let mut read = 0;
    while read < bytes.len() {
        assert!(is_readable(&*stream, DEADLINE), "no answer within {DEADLINE:?}");
        let count = stream.read(&mut bytes[read..]).unwrap();
        assert!(count > 0, "the stream has ended");
        read += count;
    }
}
