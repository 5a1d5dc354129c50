//! Splits what a client sends into requests, one a line. No line grows past the cap.

use std::ops::Range;

use scx_vsock_wire::MAX_REQUEST_BYTES;

use crate::io::line_reader::LineReader;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// A buffer of at most [`MAX_REQUEST_BYTES`] that is read into, and its requests.
#[derive(Debug, Default)]
pub(super) struct RequestReader {
    lines: LineReader,
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

/// What [`RequestReader::next_request`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextRequest {
    /// A complete line, or why it is not a request.
    Complete(Result<RequestLine, SchedStatsError>),
    /// No complete line: read more.
    Incomplete,
    /// All lines were returned, and no more will come.
    End,
}

impl RequestReader {
    /// Returns the buffer to append to, with spare capacity. Only after [`NextRequest::Incomplete`].
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        self.lines.room(MAX_REQUEST_BYTES)
    }

    /// Ends the input.
    pub(super) fn end(&mut self) {
        self.input = Input::Ended;
    }

    /// Whether [`next_request`](Self::next_request) may return one without further input.
    pub(super) fn has_unsearched(&self) -> bool {
        self.lines.has_unsearched() || matches!(self.input, Input::Ended)
    }

    /// Returns the next request, if its line is complete.
    pub(super) fn next_request(&mut self) -> NextRequest {
        if let Some(line) = self.lines.next_line(usize::MAX) {
            return self.complete(line);
        }
        if matches!(self.input, Input::Ended) {
            let is_over = self.lines.rest().is_empty() && matches!(self.line, LineState::Buffered);
            let rest = self.lines.take_rest();
            return if is_over { NextRequest::End } else { self.complete(rest) };
        }
        self.drop_excess();
        NextRequest::Incomplete
    }

    /// Completes the line that ends in this part of the buffer, after its LF where it has one.
    fn complete(&mut self, line: Range<usize>) -> NextRequest {
        let line = self.lines.get(line);
        NextRequest::Complete(match std::mem::take(&mut self.line) {
            LineState::Buffered => RequestLine::new(line),
            LineState::Dropped { size } => {
                let size = size.saturating_add(line.len());
                Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES })
            }
        })
    }

    /// Drops what there is of a line that fills the whole buffer, and all that follows of it.
    fn drop_excess(&mut self) {
        let length = self.lines.rest().len();
        match &mut self.line {
            LineState::Buffered if length < MAX_REQUEST_BYTES => return,
            LineState::Buffered => self.line = LineState::Dropped { size: length },
            LineState::Dropped { size } => *size = size.saturating_add(length),
        }
        self.lines.take_rest();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns all lines of `bytes`, which are read in pieces of at most `piece`.
    fn all_lines(bytes: &[u8], piece: usize) -> Vec<Result<Vec<u8>, SchedStatsError>> {
        let mut reader = RequestReader::default();
        let mut left = bytes;
        let mut out = Vec::new();
        loop {
            match reader.next_request() {
                NextRequest::Complete(request) => out.push(request.map(|line| line.as_bytes().to_vec())),
                NextRequest::Incomplete if left.is_empty() => reader.end(),
                NextRequest::Incomplete => {
                    let buffer = reader.room();
                    let room = buffer.capacity() - buffer.len();
                    assert!(room > 0 && buffer.capacity() <= MAX_REQUEST_BYTES, "{room}");
                    let (now, later) = left.split_at(piece.min(room).min(left.len()));
                    buffer.extend_from_slice(now);
                    left = later;
                }
                NextRequest::End => return out,
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
