//! A blocking stream whose reads and writes end by a deadline, however many system calls they take.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::{Errno, read, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SendFlags, send};

/// A blocking stream whose reads and writes end by a deadline.
#[derive(Debug)]
pub(super) struct TimedStream(UnixStream);

impl TimedStream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Reads what has arrived, or waits for it; no bytes are the stream's end.
    ///
    /// # Errors
    ///
    /// `TimedOut` or `WouldBlock` once `deadline` has passed; what reading failed with.
    pub(super) fn read(&self, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
        Ok(retry_on_intr(|| {
            self.limit(Timeout::Recv, deadline)?;
            read(&self.0, &mut *buffer)
        })?)
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// `TimedOut` or `WouldBlock` once `deadline` has passed; what writing failed with.
    pub(super) fn write_all(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = retry_on_intr(|| {
                self.limit(Timeout::Send, deadline)?;
                send(&self.0, bytes, SendFlags::NOSIGNAL)
            })?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the stream in both directions, for good.
    pub(super) fn shut_down(&self) {
        let _already_closed = self.0.shutdown(Shutdown::Both);
    }

    /// Limits the next read or write to the time that is left.
    fn limit(&self, direction: Timeout, deadline: Instant) -> Result<(), Errno> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        set_socket_timeout(&self.0, direction, Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Write};
    use std::time::Duration;

    #[test]
    fn a_read_ends_by_its_deadline() {
        let (stream, mut peer) = UnixStream::pair().unwrap();
        let stream = TimedStream::new(stream);
        peer.write_all(b"ab").unwrap();
        assert_eq!(stream.read(&mut [0; 3], Instant::now() + Duration::from_secs(60)).unwrap(), 2);
        let started = Instant::now();
        let deadline = started + Duration::from_millis(50);
        let error = stream.read(&mut [0; 3], deadline).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        assert!(started.elapsed() >= Duration::from_millis(50));
        assert_eq!(stream.read(&mut [0; 3], started).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_write_ends_by_its_deadline() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = TimedStream::new(stream).write_all(&vec![0; 16 << 20], deadline).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    }
}
