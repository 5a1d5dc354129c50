//! One end of a stream of lines, for tests that script both ends by hand. Every wait has a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a test waits for an event that must happen.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// One end of a stream.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    deadline: Duration,
    buffered: Vec<u8>,
}

impl Peer {
    /// Returns the peer at the other end of a connected stream.
    ///
    /// # Panics
    ///
    /// When the stream cannot have time-outs.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self::within(stream, DEADLINE)
    }

    /// As [`new`](Self::new), with another deadline than [`DEADLINE`].
    ///
    /// # Panics
    ///
    /// When the stream cannot have time-outs.
    #[must_use]
    pub fn within(stream: UnixStream, deadline: Duration) -> Self {
        stream.set_read_timeout(Some(deadline)).expect("a stream can have a time-out");
        stream.set_write_timeout(Some(deadline)).expect("a stream can have a time-out");
        Self { stream, deadline, buffered: Vec::new() }
    }

    /// Connects to a Unix socket.
    ///
    /// # Panics
    ///
    /// When nobody listens there.
    #[must_use]
    pub fn connect(path: &Path) -> Self {
        Self::new(UnixStream::connect(path).expect("somebody listens"))
    }

    /// Accepts the next connection of a listener.
    ///
    /// # Panics
    ///
    /// When none comes within [`DEADLINE`].
    #[must_use]
    pub fn accept(listener: &UnixListener) -> Self {
        wait_for_input(listener, DEADLINE);
        Self::new(listener.accept().expect("a connection waits").0)
    }

    /// Returns the stream.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes.
    ///
    /// # Panics
    ///
    /// When the other end does not take them within its deadline.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the other end takes the bytes");
    }

    /// Sends bytes as long as the other end takes them.
    ///
    /// # Errors
    ///
    /// What the write failed with.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Shuts down the stream for writing.
    ///
    /// # Panics
    ///
    /// When the stream is not connected.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the stream is connected");
    }

    /// Closes the stream, at once: a child that another thread is starting has the descriptor until it executes its program.
    ///
    /// # Panics
    ///
    /// When the stream is not connected.
    pub fn close(self) {
        self.stream.shutdown(Shutdown::Both).expect("the stream is connected");
    }

    /// Waits until something can be read, and reads nothing.
    ///
    /// # Panics
    ///
    /// When nothing comes within its deadline.
    pub fn wait_readable(&self) {
        wait_for_input(&self.stream, self.deadline);
    }

    /// Returns the next line with its LF, or what is left at the end of the stream.
    ///
    /// # Panics
    ///
    /// When neither comes within its deadline.
    pub fn line(&mut self) -> Vec<u8> {
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some(at) = self.buffered.iter().position(|&byte| byte == b'\n') {
                return self.buffered.drain(..=at).collect();
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return std::mem::take(&mut self.buffered),
                Ok(count) => self.buffered.extend(chunk.iter().take(count)),
                // A socket that is closed with unread bytes is reset after its last byte.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return std::mem::take(&mut self.buffered),
                // Also where the process was stopped and continued (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no line within {:?}: {error}", self.deadline),
            }
        }
    }

    /// Expects this line, given without its LF.
    ///
    /// # Panics
    ///
    /// When another one comes, or none.
    pub fn expect(&mut self, line: impl AsRef<[u8]>) {
        let got = self.line();
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(bytes.get(..200.min(bytes.len())).unwrap_or(&[])).into_owned();
        let want = [line.as_ref(), b"\n"].concat();
        assert!(got == want, "wanted {} bytes {:?}, got {} bytes {:?}", want.len(), text(&want), got.len(), text(&got));
    }

    /// Expects the end of the stream with nothing before it.
    ///
    /// # Panics
    ///
    /// When something comes first, or the end does not.
    pub fn expect_end(&mut self) {
        let rest = self.line();
        assert!(rest.is_empty(), "wanted the end, got {:?}", String::from_utf8_lossy(&rest));
    }
}

fn wait_for_input(fd: &impl AsFd, within: Duration) {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let time = Timespec::try_from(within).expect("a short deadline");
    let ready = poll(&mut fds, Some(&time)).expect("poll works");
    assert!(ready > 0, "nothing came within {within:?}");
}
