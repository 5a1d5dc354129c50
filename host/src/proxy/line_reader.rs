//! Splits what a client sends into requests, one a line. No line grows past the cap.

use scx_vsock_wire::MAX_REQUEST_BYTES;

use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// The least room for a read, unless less is left below the cap.
const MIN_READ: usize = 4096;

/// A buffer of at most [`MAX_REQUEST_BYTES`] that is read into, and its lines.
#[derive(Debug, Default)]
pub(super) struct LineReader {
    received: Vec<u8>,
    /// Where the next line begins in `received`.
    start: usize,
    /// Up to here `received` has no LF after `start`.
    searched: usize,
    line: LineState,
    input: Input,
}

/// The line that is being received.
#[derive(Debug, Default)]
enum LineState {
    #[default]
    Buffered,
    /// It is over the cap: this many bytes of it were dropped.
    Dropped { size: usize },
}

#[derive(Debug, Default)]
enum Input {
    #[default]
    Open,
    Ended,
}

/// What [`LineReader::next_line`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextLine {
    /// A complete line, or why it is not a request.
    Request(Result<RequestLine, SchedStatsError>),
    /// No complete line: read more.
    Incomplete,
    /// All lines were returned, and no more will come.
    End,
}

impl LineReader {
    /// Returns the buffer to append to, with spare capacity. Only after [`NextLine::Incomplete`].
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        let length = self.received.len();
        if length == self.received.capacity() {
            self.received.reserve_exact(length.max(MIN_READ).min(MAX_REQUEST_BYTES.saturating_sub(length)));
        }
        &mut self.received
    }

    /// Ends the input.
    pub(super) fn end(&mut self) {
        self.input = Input::Ended;
    }

    /// Whether [`next_line`](Self::next_line) may return a line without further input.
    pub(super) fn has_unsearched(&self) -> bool {
        self.searched < self.received.len() || matches!(self.input, Input::Ended)
    }

    /// Returns the next line, if it is complete.
    pub(super) fn next_line(&mut self) -> NextLine {
        let unsearched = self.received.get(self.searched..).unwrap_or(&[]);
        if let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') {
            return self.complete(self.searched + at + 1);
        }
        self.searched = self.received.len();
        if matches!(self.input, Input::Ended) {
            return if self.is_empty() { NextLine::End } else { self.complete(self.received.len()) };
        }
        self.make_room();
        NextLine::Incomplete
    }

    /// Completes the line that ends at `end`, after its LF where it has one.
    fn complete(&mut self, end: usize) -> NextLine {
        let line = self.received.get(self.start..end).unwrap_or(&[]);
        let request = match std::mem::take(&mut self.line) {
            LineState::Buffered => RequestLine::new(line),
            LineState::Dropped { size } => {
                let size = size.saturating_add(line.len());
                Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES })
            }
        };
        self.start = end;
        self.searched = end;
        NextLine::Request(request)
    }

    fn is_empty(&self) -> bool {
        self.received.len() == self.start && matches!(self.line, LineState::Buffered)
    }

    /// Drops the lines that were returned, and a line that fills the whole buffer.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.received.drain(..self.start);
            self.received.shrink_to(MIN_READ);
        }
        let length = self.received.len();
        match &mut self.line {
            LineState::Buffered if length < MAX_REQUEST_BYTES => {}
            LineState::Buffered => {
                self.line = LineState::Dropped { size: length };
                self.received.clear();
            }
            LineState::Dropped { size } => {
                *size = size.saturating_add(length);
                self.received.clear();
            }
        }
        self.start = 0;
        self.searched = self.received.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns all lines of `bytes`, which are read in pieces of at most `piece`.
    fn all_lines(bytes: &[u8], piece: usize) -> Vec<Result<Vec<u8>, SchedStatsError>> {
        let mut reader = LineReader::default();
        let mut left = bytes;
        let mut out = Vec::new();
        loop {
            match reader.next_line() {
                NextLine::Request(request) => out.push(request.map(|line| line.as_bytes().to_vec())),
                NextLine::Incomplete if left.is_empty() => reader.end(),
                NextLine::Incomplete => {
                    let buffer = reader.buffer();
                    let room = buffer.capacity() - buffer.len();
                    assert!(room > 0 && buffer.capacity() <= MAX_REQUEST_BYTES.max(2 * MIN_READ), "{room}");
                    let (now, later) = left.split_at(piece.min(room).min(left.len()));
                    buffer.extend_from_slice(now);
                    left = later;
                }
                NextLine::End => return out,
            }
        }
    }

    fn too_large(size: usize) -> Result<Vec<u8>, SchedStatsError> {
        Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES })
    }

    #[test]
    fn an_unterminated_line_is_served_at_the_end() {
        assert_eq!(all_lines(b"{\"a\":1}\n{\"b\":2}", 100), [Ok(b"{\"a\":1}\n".to_vec()), Ok(b"{\"b\":2}\n".to_vec())]);
        assert_eq!(all_lines(b"", 1), []);
    }

    #[test]
    fn a_line_over_the_cap_is_dropped_whole() {
        let mut line = vec![b'x'; MAX_REQUEST_BYTES - 1];
        line.push(b'\n');
        let (most, max) = (line.clone(), MAX_REQUEST_BYTES);
        line.insert(0, b'x');
        let over = line.len();
        line.extend_from_slice(b"{}\n");
        for piece in [1_000, 4_096, max - 1, max, max + 1] {
            assert_eq!(all_lines(&most, piece), [Ok(most.clone())], "{piece}");
            assert_eq!(all_lines(&line, piece), [too_large(over), Ok(b"{}\n".to_vec())], "{piece}");
        }
        let endless = vec![b'x'; 3 * max + 5];
        assert_eq!(all_lines(&endless, 10_000), [too_large(3 * max + 5)]);
    }

    #[test]
    fn invalid_lines_are_named_and_the_next_served() {
        let out = all_lines(b"\n{\"agent\":\"wait_scheduler\"}\n{}\n", 3);
        let kinds: Vec<&str> =
            out.iter().map(|line| line.as_ref().map_or_else(SchedStatsError::kind, |_| "ok")).collect();
        assert_eq!(kinds, ["invalid_request", "invalid_request", "ok"]);
    }

    proptest! {
        #[test]
        fn the_size_of_pieces_never_matters(text in "[a-c\n]{0,60}", piece in 1usize..20) {
            prop_assert_eq!(all_lines(text.as_bytes(), piece), all_lines(text.as_bytes(), 1_000));
        }
    }
}
