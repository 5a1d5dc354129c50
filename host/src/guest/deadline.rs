//! Waiting on a blocking stream until a moment, however many reads and writes that takes.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Lets the stream's next read or write wait until `deadline` at the longest.
///
/// # Errors
///
/// `TimedOut` where that has passed.
pub(crate) fn wait_until(stream: &UnixStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}
