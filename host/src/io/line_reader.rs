//! Lines of a stream: a buffer that grows by need, up to the longest line, and its search for line ends.

use std::ops::Range;

/// Bytes that a read has room for at least, unless less is left of the longest line.
const MIN_READ: usize = 4096;

/// A buffer that a stream is read into, and the lines in it. Each byte is searched once and moved at most once a line,
/// however the stream is split into reads.
///
/// The driver appends to [`room`](Self::room), then calls [`next_line`](Self::next_line) until it returns `None`. Lines
/// stay where they are until the next call of `room`.
#[derive(Debug, Default)]
pub(crate) struct LineReader {
    received: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    /// Up to here there is no LF after `start`.
    searched: usize,
}

impl LineReader {
    /// Returns the buffer to append to. It has spare capacity unless `max` bytes without an LF are in it.
    pub(crate) fn room(&mut self, max: usize) -> &mut Vec<u8> {
        if self.start > 0 {
            self.received.drain(..self.start);
            self.received.shrink_to(MIN_READ);
            self.searched = self.searched.saturating_sub(self.start);
            self.start = 0;
        }
        let length = self.received.len();
        if length == self.received.capacity() {
            let most = max.saturating_sub(length);
            self.received.reserve_exact(length.max(MIN_READ).min(most));
        }
        &mut self.received
    }

    /// Returns where the next line is, its LF included, if that is among the line's first `max` bytes.
    pub(crate) fn next_line(&mut self, max: usize) -> Option<Range<usize>> {
        let end = self.received.len().min(self.start.saturating_add(max));
        let unsearched = self.received.get(self.searched..end)?;
        let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') else {
            self.searched = end;
            return None;
        };
        let line = self.start..self.searched + at + 1;
        self.start = line.end;
        self.searched = line.end;
        Some(line)
    }

    /// Returns a part of the buffer.
    pub(crate) fn get(&self, part: Range<usize>) -> &[u8] {
        self.received.get(part).unwrap_or(&[])
    }

    /// Returns what follows the lines that were returned.
    pub(crate) fn rest(&self) -> &[u8] {
        self.get(self.start..self.received.len())
    }

    /// Returns where that is, which is a line without an end, and takes it as returned.
    pub(crate) fn take_rest(&mut self) -> Range<usize> {
        let rest = self.start..self.received.len();
        self.start = rest.end;
        self.searched = rest.end;
        rest
    }

    /// Whether bytes were appended that were not searched.
    pub(crate) fn has_unsearched(&self) -> bool {
        self.searched < self.received.len()
    }

    /// Drops all bytes, and all but `kept` bytes of memory.
    pub(crate) fn clear(&mut self, kept: usize) {
        self.received.clear();
        self.received.shrink_to(kept);
        self.start = 0;
        self.searched = 0;
    }

    /// Returns the bytes of memory that it has.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.received.capacity()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `bytes` in pieces of at most `piece`; returns the lines, and what follows them.
    fn lines_of(bytes: &[u8], piece: usize, max: usize) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut reader = LineReader::default();
        let (mut left, mut lines) = (bytes, Vec::new());
        loop {
            while let Some(line) = reader.next_line(max) {
                lines.push(reader.get(line).to_vec());
            }
            assert!(!reader.has_unsearched() || reader.rest().len() > max);
            let room = reader.room(max);
            let spare = room.capacity() - room.len();
            if left.is_empty() || spare == 0 {
                return (lines, reader.rest().to_vec());
            }
            assert!(room.capacity() <= max.max(MIN_READ), "{}", room.capacity());
            let (now, later) = left.split_at(piece.min(spare).min(left.len()));
            room.extend_from_slice(now);
            left = later;
        }
    }

    #[test]
    fn a_line_of_the_maximum_passes_and_a_longer_one_fills_the_buffer() {
        let max = 3 * MIN_READ;
        let mut line = vec![b'x'; max];
        assert_eq!(lines_of(&line, 1_000, max), (vec![], line.clone()));
        *line.last_mut().unwrap() = b'\n';
        assert_eq!(lines_of(&line, 1_000, max), (vec![line.clone()], vec![]));
        line.insert(0, b'x');
        assert_eq!(lines_of(&line, 1_000, max).0, Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_line_without_an_end_can_be_taken() {
        let mut reader = LineReader::default();
        reader.room(100).extend_from_slice(b"a\nb");
        assert_eq!(reader.next_line(100), Some(0..2));
        assert_eq!((reader.next_line(100), reader.rest()), (None, &b"b"[..]));
        assert_eq!(reader.take_rest(), 2..3);
        assert!(reader.rest().is_empty() && !reader.has_unsearched());
    }

    #[test]
    fn memory_is_kept_up_to_a_bound() {
        let mut reader = LineReader::default();
        for _ in 0..8 {
            let room = reader.room(1 << 20);
            room.resize(room.capacity(), b'x');
        }
        reader.clear(1_000);
        assert!(reader.capacity() <= 1_000 && reader.rest().is_empty() && reader.next_line(9).is_none());
    }

    #[test]
    fn a_long_line_in_small_pieces_is_searched_once() {
        // Searched anew with each of its pieces, this would take minutes.
        let mut line = vec![b'x'; 8 << 20];
        line.push(b'\n');
        assert_eq!(lines_of(&line, 16, line.len()).0.len(), 1);
    }

    proptest! {
        #[test]
        fn the_size_of_pieces_never_matters(text in "[a-c\n]{0,60}", piece in 1usize..20) {
            let (lines, rest) = lines_of(text.as_bytes(), piece, 100);
            prop_assert_eq!([lines.concat(), rest.clone()].concat(), text.as_bytes());
            prop_assert!(!rest.contains(&b'\n'));
            prop_assert!(lines.iter().all(|line| line.iter().position(|&byte| byte == b'\n') == Some(line.len() - 1)));
        }
    }
}
