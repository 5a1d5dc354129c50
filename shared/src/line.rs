//! The fixed line buffer: its type is the byte cap.

/// A buffer for one line of at most `CAP` bytes, its LF counted.
///
/// Bytes are read straight into [`spare`](Self::spare) and accounted for with [`fill`](Self::fill), which says
/// whether a line is complete. No operation allocates, panics or grows past `CAP`.
///
/// ```
/// use scx_vsock_wire::{Fill, LineBuffer};
///
/// let mut buffer = LineBuffer::<8>::new();
/// buffer.spare()[..6].copy_from_slice(b"abc\nde");
/// assert_eq!(buffer.fill(6), Fill::Line { after: 2 });
/// assert_eq!(buffer.line(), b"abc\n");
/// assert_eq!(buffer.rest(), b"de");
/// ```
#[derive(Debug)]
#[repr(C)]
pub struct LineBuffer<const CAP: usize> {
    /// Bytes that hold data.
    filled: usize,
    /// Length of the complete line at the front, LF counted; 0 while there is none.
    line: usize,
    bytes: [u8; CAP],
}

/// What a [`LineBuffer`] holds after bytes were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// No LF yet, and room for more.
    Partial,
    /// A complete line, and this many bytes after it.
    Line {
        /// Bytes that follow the line's LF.
        after: usize,
    },
    /// `CAP` bytes and no LF among them: the line is over the cap.
    Over,
}

impl<const CAP: usize> Default for LineBuffer<CAP> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const CAP: usize> LineBuffer<CAP> {
    /// An empty buffer. All its bytes are zero, so that a static one costs no space in a program file.
    #[must_use]
    pub const fn new() -> Self {
        Self { filled: 0, line: 0, bytes: [0; CAP] }
    }

    /// The room that is left, to read into.
    pub fn spare(&mut self) -> &mut [u8] {
        self.bytes.split_at_mut(self.filled.min(CAP)).1
    }

    /// Accounts for `count` bytes that were written to the front of [`spare`](Self::spare); a larger count than
    /// there is room is taken as all of the room.
    pub fn fill(&mut self, count: usize) -> Fill {
        let before = self.filled;
        self.filled = before + count.min(CAP - before);
        if self.line == 0 {
            let end = before + position(after(up_to(&self.bytes, self.filled), before), b'\n');
            if end < self.filled {
                self.line = end + 1;
            }
        }
        self.state()
    }

    /// Appends the front of `bytes`, up to and with the first LF or until the buffer is full; returns how many
    /// bytes were taken.
    pub fn take_line(&mut self, bytes: &[u8]) -> (usize, Fill) {
        let end = position(bytes, b'\n') + 1;
        let count = copy_prefix(self.spare(), up_to(bytes, end));
        (count, self.fill(count))
    }

    fn state(&self) -> Fill {
        if self.line > 0 {
            Fill::Line { after: self.filled - self.line }
        } else if self.filled >= CAP {
            Fill::Over
        } else {
            Fill::Partial
        }
    }

    /// The complete line at the front, its LF included; empty while there is none.
    #[must_use]
    pub fn line(&self) -> &[u8] {
        up_to(&self.bytes, self.line)
    }

    /// The complete line without its LF; empty while there is none.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        up_to(&self.bytes, self.line.saturating_sub(1))
    }

    /// The bytes after the complete line; empty while there is none.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        if self.line == 0 { &[] } else { after(up_to(&self.bytes, self.filled), self.line) }
    }

    /// How many bytes the buffer holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the buffer holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.filled = 0;
        self.line = 0;
    }
}

/// Returns the first `count` bytes, or all where there are fewer. Unlike an index it has no panic path.
#[must_use]
#[inline(always)]
pub fn up_to(bytes: &[u8], count: usize) -> &[u8] {
    bytes.split_at(count.min(bytes.len())).0
}

/// Returns what follows the first `count` bytes; nothing where there are fewer.
#[must_use]
#[inline(always)]
pub fn after(bytes: &[u8], count: usize) -> &[u8] {
    bytes.split_at(count.min(bytes.len())).1
}

/// Returns where the first `byte` is; the length where there is none.
#[must_use]
#[inline(never)]
pub fn position(bytes: &[u8], byte: u8) -> usize {
    let mut at = 0;
    for &other in bytes {
        if other == byte {
            break;
        }
        at += 1;
    }
    at
}

/// Takes what is before the first `byte` off `rest`, and that byte; all where there is none.
#[inline(never)]
pub fn take_until<'b>(rest: &mut &'b [u8], byte: u8) -> &'b [u8] {
    let bytes = *rest;
    let end = position(bytes, byte);
    *rest = after(bytes, end + 1);
    up_to(bytes, end)
}

/// Returns the line of this number, from 0, without its LF.
#[must_use]
#[inline(never)]
pub fn nth_line(lines: &str, number: usize) -> &[u8] {
    let mut rest = lines.as_bytes();
    for _ in 0..number {
        take_until(&mut rest, b'\n');
    }
    take_until(&mut rest, b'\n')
}

/// Returns the number of the first line that is `line`, from 0; the number of lines where there is none.
#[must_use]
#[inline(never)]
pub fn line_number(lines: &str, line: &[u8]) -> usize {
    let mut rest = lines.as_bytes();
    let mut number = 0;
    while !rest.is_empty() && take_until(&mut rest, b'\n') != line {
        number += 1;
    }
    number
}

/// Copies as much of `from` as `to` has room for and returns how much that is. Unlike `copy_from_slice` it has no
/// panic path.
pub fn copy_prefix(to: &mut [u8], from: &[u8]) -> usize {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    to.len().min(from.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn push<const CAP: usize>(buffer: &mut LineBuffer<CAP>, bytes: &[u8]) -> Fill {
        buffer.spare()[..bytes.len()].copy_from_slice(bytes);
        buffer.fill(bytes.len())
    }

    #[test]
    fn a_buffer_is_empty_until_it_is_filled_and_again_when_it_is_cleared() {
        let mut buffer = LineBuffer::<4>::new();
        assert!(buffer.is_empty());
        buffer.fill(1);
        assert!(!buffer.is_empty());
        buffer.clear();
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_line_of_exactly_the_cap_passes() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(push(&mut buffer, b"ab"), Fill::Partial);
        assert_eq!(push(&mut buffer, b"c\n"), Fill::Line { after: 0 });
        assert_eq!(buffer.content(), b"abc");
    }

    #[test]
    fn a_line_of_one_byte_more_is_over_the_cap() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(push(&mut buffer, b"abcd"), Fill::Over);
        assert!(buffer.spare().is_empty());
        assert_eq!(buffer.line(), b"");
    }

    #[test]
    fn a_count_beyond_the_room_is_all_of_the_room() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(buffer.fill(usize::MAX), Fill::Over);
        assert_eq!(buffer.len(), 4);
    }

    #[test]
    fn a_line_that_starts_with_its_end_is_a_line() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(push(&mut buffer, b"\n\n"), Fill::Line { after: 1 });
        assert_eq!(buffer.content(), b"");
        assert_eq!(buffer.rest(), b"\n");
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_yields_the_first_line_and_the_rest(
            bytes in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..24),
            cuts in proptest::collection::vec(1usize..6, 24),
        ) {
            let mut buffer = LineBuffer::<16>::new();
            let mut state = Fill::Partial;
            let mut added = 0;
            for cut in cuts {
                let piece = cut.min(bytes.len() - added).min(buffer.spare().len());
                state = push(&mut buffer, &bytes[added..added + piece]);
                added += piece;
            }
            let end = bytes[..added].iter().position(|&byte| byte == b'\n');
            match end {
                Some(at) => {
                    prop_assert_eq!(state, Fill::Line { after: added - at - 1 });
                    prop_assert_eq!(buffer.line(), &bytes[..=at]);
                    prop_assert_eq!(buffer.rest(), &bytes[at + 1..added]);
                }
                None if added == 16 => prop_assert_eq!(state, Fill::Over),
                None => prop_assert_eq!(state, Fill::Partial),
            }
        }

        #[test]
        fn take_line_stops_after_the_first_line(bytes in proptest::collection::vec(0u8..20, 0..24)) {
            let mut buffer = LineBuffer::<16>::new();
            let (taken, fill) = buffer.take_line(&bytes);
            let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            prop_assert_eq!(taken, end.min(16));
            prop_assert_eq!(matches!(fill, Fill::Line { after: 0 }), bytes[..taken].contains(&b'\n'));
        }
    }
}
