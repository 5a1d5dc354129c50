//! What a client sends, as requests: bytes go in, one request a line comes out, and no line grows past the cap.

use scx_vsock_wire::MAX_REQUEST_BYTES;

use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// The least that a read has room for, unless less is left below the cap.
const MIN_READ: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct LineReader {
    received: Vec<u8>,
    /// Where the next line begins in `received`.
    start: usize,
    /// Up to where `received` is known to have no LF behind `start`.
    searched: usize,
    line: Line,
    source: Source,
}

/// The line that is being received.
#[derive(Debug, Default)]
enum Line {
    #[default]
    Kept,
    /// It is over the cap: so many bytes of it were thrown away.
    Dropped { size: usize },
}

#[derive(Debug, Default)]
enum Source {
    #[default]
    Open,
    Ended,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Serve this line, or say why it is no request.
    Request(Result<RequestLine, SchedStatsError>),
    /// Read more.
    Receive,
    /// Nothing more will come.
    End,
}

impl LineReader {
    /// Where to read to, with room behind its bytes. To be read into only after [`Next::Receive`].
    pub(super) fn spare(&mut self) -> &mut Vec<u8> {
        let length = self.received.len();
        if length == self.received.capacity() {
            self.received.reserve_exact(length.max(MIN_READ).min(MAX_REQUEST_BYTES.saturating_sub(length)));
        }
        &mut self.received
    }

    /// Nothing more will come.
    pub(super) fn end(&mut self) {
        self.source = Source::Ended;
    }

    /// Whether there is more to look at without reading.
    pub(super) fn has_more(&self) -> bool {
        self.searched < self.received.len() || matches!(self.source, Source::Ended)
    }

    /// The next complete line, or what is missing for one.
    pub(super) fn next(&mut self) -> Next {
        let behind = self.received.get(self.searched..).unwrap_or(&[]);
        if let Some(at) = behind.iter().position(|&byte| byte == b'\n') {
            return self.complete(self.searched + at + 1);
        }
        self.searched = self.received.len();
        if matches!(self.source, Source::Ended) {
            return if self.is_empty() { Next::End } else { self.complete(self.received.len()) };
        }
        self.make_room();
        Next::Receive
    }

    /// The line that ends at `end`, its LF included where it has one.
    fn complete(&mut self, end: usize) -> Next {
        let line = self.received.get(self.start..end).unwrap_or(&[]);
        let request = match std::mem::take(&mut self.line) {
            Line::Kept => RequestLine::new(line),
            Line::Dropped { size } => {
                let size = size.saturating_add(line.len());
                Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES })
            }
        };
        self.start = end;
        self.searched = end;
        Next::Request(request)
    }

    fn is_empty(&self) -> bool {
        self.received.len() == self.start && matches!(self.line, Line::Kept)
    }

    /// Forgets the lines that were served, and a line that fills all the room there may be.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.received.drain(..self.start);
            self.received.shrink_to(MIN_READ);
        }
        let length = self.received.len();
        match &mut self.line {
            Line::Kept if length < MAX_REQUEST_BYTES => {}
            Line::Kept => {
                self.line = Line::Dropped { size: length };
                self.received.clear();
            }
            Line::Dropped { size } => {
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

    /// Feeds bytes in pieces of at most `piece`; gives everything that comes out, to the end.
    fn all(bytes: &[u8], piece: usize) -> Vec<Result<Vec<u8>, SchedStatsError>> {
        let mut inbox = LineReader::default();
        let mut left = bytes;
        let mut out = Vec::new();
        loop {
            match inbox.next() {
                Next::Request(request) => out.push(request.map(|line| line.as_bytes().to_vec())),
                Next::Receive if left.is_empty() => inbox.end(),
                Next::Receive => {
                    let spare = inbox.spare();
                    let room = spare.capacity() - spare.len();
                    assert!(room > 0 && spare.capacity() <= MAX_REQUEST_BYTES.max(2 * MIN_READ), "{room}");
                    let (now, later) = left.split_at(piece.min(room).min(left.len()));
                    spare.extend_from_slice(now);
                    left = later;
                }
                Next::End => return out,
            }
        }
    }

    fn too_large(size: usize) -> Result<Vec<u8>, SchedStatsError> {
        Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES })
    }

    #[test]
    fn a_line_without_an_end_is_executed_at_the_end() {
        assert_eq!(all(b"{\"a\":1}\n{\"b\":2}", 100), [Ok(b"{\"a\":1}\n".to_vec()), Ok(b"{\"b\":2}\n".to_vec())]);
        assert_eq!(all(b"", 1), []);
    }

    #[test]
    fn a_line_of_the_cap_passes_and_a_longer_one_is_dropped_whole() {
        let mut line = vec![b'x'; MAX_REQUEST_BYTES - 1];
        line.push(b'\n');
        let (most, max) = (line.clone(), MAX_REQUEST_BYTES);
        line.insert(0, b'x');
        let over = line.len();
        line.extend_from_slice(b"{}\n");
        for piece in [1_000, 4_096, max - 1, max, max + 1] {
            assert_eq!(all(&most, piece), [Ok(most.clone())], "{piece}");
            assert_eq!(all(&line, piece), [too_large(over), Ok(b"{}\n".to_vec())], "{piece}");
        }
        let endless = vec![b'x'; 3 * max + 5];
        assert_eq!(all(&endless, 10_000), [too_large(3 * max + 5)]);
    }

    #[test]
    fn lines_that_are_no_requests_are_named_and_the_next_is_served() {
        let out = all(b"\n{\"agent\":\"wait_scheduler\"}\n{}\n", 3);
        let kinds: Vec<&str> =
            out.iter().map(|line| line.as_ref().map_or_else(SchedStatsError::kind, |_| "ok")).collect();
        assert_eq!(kinds, ["invalid_request", "invalid_request", "ok"]);
    }

    proptest! {
        #[test]
        fn pieces_never_matter(text in "[a-c\n]{0,60}", piece in 1usize..20) {
            prop_assert_eq!(all(text.as_bytes(), piece), all(text.as_bytes(), 1_000));
        }
    }
}
