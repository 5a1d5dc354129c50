//! How far a guest's messages were read, so that another guest goes on with them.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::io::lock::lock;

/// How far a stream of messages was read.
#[derive(Debug, Default)]
pub(super) struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The last bytes that were read: those of messages that were not handled yet.
    unhandled: Vec<u8>,
    /// How many bytes were read of the stream.
    read: u64,
    /// How many were read when the reader began to wait for more, all whole messages handled.
    waits_at: Option<u64>,
}

impl Progress {
    /// Returns the progress of a stream that goes on with the rest of a message.
    pub(super) fn after(beginning: Vec<u8>) -> Self {
        let state = State { unhandled: beginning, ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// All messages before the last bytes were handled: so many bytes.
    pub(super) fn handled(&self, bytes_left: usize) {
        let mut state = self.state();
        let handled = state.unhandled.len().saturating_sub(bytes_left);
        state.unhandled.drain(..handled);
    }

    /// Waits until this many bytes were read, and the messages in them handled. Returns the beginning of the message whose
    /// rest is to come; `None` if that takes too long.
    pub(super) fn beginning_at(&self, bytes: u64, within: Duration) -> Option<Vec<u8>> {
        let differs = |state: &mut State| state.waits_at != Some(bytes);
        let waited = self.changed.wait_timeout_while(self.state(), within, differs);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (!timeout.timed_out()).then(|| state.unhandled.clone())
    }

    fn wait_for_more(&self) {
        let mut state = self.state();
        state.waits_at = Some(state.read);
        self.changed.notify_all();
    }

    fn add(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.waits_at = None;
        state.read += bytes.len() as u64;
        state.unhandled.extend_from_slice(bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// A stream that keeps its progress. To be read once all messages were handled that are whole.
pub(super) struct FollowedStream<'a> {
    pub(super) stream: UnixStream,
    pub(super) progress: &'a Progress,
}

impl Read for FollowedStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.progress.wait_for_more();
        let count = self.stream.read(buffer)?;
        self.progress.add(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::sync::Arc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);

    /// Reads lines to the end of the stream.
    fn follow(stream: UnixStream, beginning: &[u8]) -> (Arc<Progress>, thread::JoinHandle<Vec<String>>) {
        let progress = Arc::new(Progress::after(beginning.to_vec()));
        let (of_reader, beginning) = (Arc::clone(&progress), io::Cursor::new(beginning.to_vec()));
        let reader = thread::spawn(move || {
            let followed = FollowedStream { stream, progress: &of_reader };
            let (mut source, mut lines) = (BufReader::new(beginning.chain(followed)), Vec::new());
            loop {
                let mut line = String::new();
                if source.read_line(&mut line).unwrap() == 0 {
                    return lines;
                }
                lines.push(line);
                of_reader.handled(source.buffer().len());
            }
        });
        (progress, reader)
    }

    #[test]
    fn a_message_is_divided_between_two_streams() {
        let ((mut guest, host), (mut other, others)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let (progress, reader) = follow(host, b"ze");
        guest.write_all(b"ro\none\ntw").unwrap();
        let beginning = progress.beginning_at(9, LONG).unwrap();
        assert_eq!(beginning, b"tw");
        assert_eq!(progress.beginning_at(10, Duration::ZERO), None);
        let (progress, others_reader) = follow(others, &beginning);
        assert_eq!(progress.beginning_at(0, LONG).unwrap(), b"tw");
        other.write_all(b"o\n").unwrap();
        assert_eq!(progress.beginning_at(2, LONG).unwrap(), b"");
        drop((guest, other));
        assert_eq!(reader.join().unwrap(), ["zero\n", "one\n", "tw"]);
        assert_eq!(others_reader.join().unwrap(), ["two\n"]);
    }
}
