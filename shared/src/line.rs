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
/// assert_eq!(buffer.fill(6), Fill::Line { behind: 2 });
/// assert_eq!(buffer.line(), b"abc\n");
/// assert_eq!(buffer.behind(), b"de");
/// ```
#[derive(Debug)]
pub struct LineBuffer<const CAP: usize> {
    bytes: [u8; CAP],
    /// Bytes that hold data.
    filled: usize,
    /// Length of the complete line at the front, LF counted; 0 while there is none.
    line: usize,
}

/// What a [`LineBuffer`] holds after bytes were added.
///
/// ```
/// use scx_vsock_wire::{Fill, LineBuffer};
///
/// let mut buffer = LineBuffer::<4>::new();
/// assert_eq!(buffer.take_line(b"ab"), (2, Fill::Partial));
/// assert_eq!(buffer.take_line(b"cde\n"), (2, Fill::Over));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// No LF yet, and room for more.
    Partial,
    /// A complete line, and this many bytes behind it.
    Line {
        /// Bytes that follow the line's LF.
        behind: usize,
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
    /// Bytes at which a line without an end is over the cap. The planted fault is one that the fuzz targets must find.
    const FULL: usize = if cfg!(planted_off_by_one) { CAP - 1 } else { CAP };

    /// An empty buffer. All its bytes are zero, so that a static one costs no space in a program file.
    ///
    /// ```
    /// use scx_vsock_wire::{LineBuffer, MAX_REQUEST_BYTES};
    ///
    /// static BUFFER: LineBuffer<MAX_REQUEST_BYTES> = LineBuffer::new();
    /// assert!(BUFFER.is_empty());
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: [0; CAP], filled: 0, line: 0 }
    }

    /// The room that is left, to read into.
    ///
    /// ```
    /// use std::io::Read;
    /// use scx_vsock_wire::{Fill, LineBuffer};
    ///
    /// let mut buffer = LineBuffer::<8>::new();
    /// let count = (&b"abc\n"[..]).read(buffer.spare())?;
    /// assert_eq!(buffer.fill(count), Fill::Line { behind: 0 });
    /// assert_eq!(buffer.spare().len(), 4);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spare(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or(&mut [])
    }

    /// Accounts for `count` bytes that were written to the front of [`spare`](Self::spare); a larger count than
    /// there is room is taken as all of the room.
    ///
    /// ```
    /// use scx_vsock_wire::{Fill, LineBuffer};
    ///
    /// let mut buffer = LineBuffer::<8>::new();
    /// buffer.spare()[..2].copy_from_slice(b"ab");
    /// assert_eq!(buffer.fill(2), Fill::Partial);
    /// buffer.spare()[..2].copy_from_slice(b"\nc");
    /// assert_eq!(buffer.fill(2), Fill::Line { behind: 1 });
    /// ```
    pub fn fill(&mut self, count: usize) -> Fill {
        let before = self.filled;
        self.filled = before.saturating_add(count).min(CAP);
        if self.line == 0 {
            let added = self.bytes.get(before..self.filled).unwrap_or(&[]);
            if let Some(at) = added.iter().position(|&byte| byte == b'\n') {
                self.line = before + at + 1;
            }
        }
        self.state()
    }

    /// Appends the front of `bytes`, up to and with the first LF or until the buffer is full; returns how many
    /// bytes were taken.
    ///
    /// ```
    /// use scx_vsock_wire::{Fill, LineBuffer};
    ///
    /// let mut buffer = LineBuffer::<8>::new();
    /// assert_eq!(buffer.take_line(b"abc\nde\n"), (4, Fill::Line { behind: 0 }));
    /// assert_eq!(buffer.line(), b"abc\n");
    /// ```
    pub fn take_line(&mut self, bytes: &[u8]) -> (usize, Fill) {
        let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
        let count = copy_front(self.spare(), bytes.get(..end).unwrap_or(&[]));
        (count, self.fill(count))
    }

    fn state(&self) -> Fill {
        if self.line > 0 {
            Fill::Line { behind: self.filled - self.line }
        } else if self.filled >= Self::FULL {
            Fill::Over
        } else {
            Fill::Partial
        }
    }

    /// The complete line at the front, its LF included; empty while there is none.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// buffer.take_line(b"abc");
    /// assert_eq!(buffer.line(), b"");
    /// buffer.take_line(b"\n");
    /// assert_eq!(buffer.line(), b"abc\n");
    /// ```
    #[must_use]
    pub fn line(&self) -> &[u8] {
        self.bytes.get(..self.line).unwrap_or(&[])
    }

    /// The complete line without its LF; empty while there is none.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// buffer.take_line(b"abc\n");
    /// assert_eq!(buffer.content(), b"abc");
    /// ```
    #[must_use]
    pub fn content(&self) -> &[u8] {
        self.bytes.get(..self.line.saturating_sub(1)).unwrap_or(&[])
    }

    /// The bytes behind the complete line; empty while there is none.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// buffer.spare()[..6].copy_from_slice(b"abc\nde");
    /// buffer.fill(6);
    /// assert_eq!(buffer.behind(), b"de");
    /// ```
    #[must_use]
    pub fn behind(&self) -> &[u8] {
        if self.line == 0 { &[] } else { self.bytes.get(self.line..self.filled).unwrap_or(&[]) }
    }

    /// How many bytes the buffer holds.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// buffer.take_line(b"abc");
    /// assert_eq!(buffer.len(), 3);
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether the buffer holds nothing.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// assert!(buffer.is_empty());
    /// buffer.take_line(b"abc");
    /// assert!(!buffer.is_empty());
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Forgets everything.
    ///
    /// ```
    /// # let mut buffer = scx_vsock_wire::LineBuffer::<8>::new();
    /// buffer.take_line(b"abc\n");
    /// buffer.clear();
    /// assert!(buffer.is_empty() && buffer.line().is_empty());
    /// ```
    pub fn clear(&mut self) {
        self.filled = 0;
        self.line = 0;
    }
}

/// Copies as much of `from` as `to` has room for, and gives how much that is. Unlike `copy_from_slice` it has no
/// panic path.
///
/// ```
/// let mut room = [0; 2];
/// assert_eq!(scx_vsock_wire::line::copy_front(&mut room, b"abc"), 2);
/// assert_eq!(&room, b"ab");
/// ```
pub fn copy_front(to: &mut [u8], from: &[u8]) -> usize {
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
        assert_eq!(push(&mut buffer, b"c\n"), Fill::Line { behind: 0 });
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
    fn a_count_beyond_the_room_is_cut_to_the_room() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(buffer.fill(usize::MAX), Fill::Over);
        assert_eq!(buffer.len(), 4);
    }

    #[test]
    fn a_line_that_starts_with_its_end_is_a_line() {
        let mut buffer = LineBuffer::<4>::new();
        assert_eq!(push(&mut buffer, b"\n\n"), Fill::Line { behind: 1 });
        assert_eq!(buffer.content(), b"");
        assert_eq!(buffer.behind(), b"\n");
    }

    proptest! {
        #[test]
        fn any_split_of_any_bytes_gives_the_first_line_and_what_is_behind(
            bytes in proptest::collection::vec(prop_oneof![3 => any::<u8>(), 1 => Just(b'\n')], 0..24),
            cuts in proptest::collection::vec(1usize..6, 24),
        ) {
            let mut buffer = LineBuffer::<16>::new();
            let mut state = Fill::Partial;
            let mut given = 0;
            for cut in cuts {
                let piece = cut.min(bytes.len() - given).min(buffer.spare().len());
                state = push(&mut buffer, &bytes[given..given + piece]);
                given += piece;
            }
            let end = bytes[..given].iter().position(|&byte| byte == b'\n');
            match end {
                Some(at) => {
                    prop_assert_eq!(state, Fill::Line { behind: given - at - 1 });
                    prop_assert_eq!(buffer.line(), &bytes[..=at]);
                    prop_assert_eq!(buffer.behind(), &bytes[at + 1..given]);
                }
                None if given == 16 => prop_assert_eq!(state, Fill::Over),
                None => prop_assert_eq!(state, Fill::Partial),
            }
        }

        #[test]
        fn take_line_stops_behind_the_first_line(bytes in proptest::collection::vec(0u8..20, 0..24)) {
            let mut buffer = LineBuffer::<16>::new();
            let (taken, fill) = buffer.take_line(&bytes);
            let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            prop_assert_eq!(taken, end.min(16));
            prop_assert_eq!(matches!(fill, Fill::Line { behind: 0 }), bytes[..taken].contains(&b'\n'));
        }
    }
}
