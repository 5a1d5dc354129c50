//! Short texts of the guest that are safe inside a JSON string as they are.

use core::fmt;

use crate::line::{position, up_to};

/// One line of bytes, written as text that needs no escape: a double quote as a single one, and what else JSON would have to
/// escape or is not printable ASCII as `?`.
///
/// ```
/// use scx_vsock_wire::Text;
///
/// assert_eq!(Text::first_line(b"bpfland_1.1.4\n").to_string(), "bpfland_1.1.4");
/// assert_eq!(Text::first_line(b"say \"hi\"\nand more").to_string(), "say 'hi'");
/// ```
#[derive(Clone, Copy, Default)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// No text.
    pub const EMPTY: Self = Self(&[]);

    /// The first line of `bytes`, without its LF.
    #[must_use]
    pub fn first_line(bytes: &'a [u8]) -> Self {
        Self(up_to(bytes, position(bytes, b'\n')))
    }

    /// The text of `bytes`, which are one line: an LF in them is written as `?`.
    #[must_use]
    pub const fn line(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether there is no text.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many bytes it has.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// The text, truncated to `max` bytes.
    #[must_use]
    #[inline(always)]
    pub fn truncated(self, max: usize) -> Self {
        Self(up_to(self.0, max))
    }

    /// The text's bytes, all of them printable ASCII.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + use<'a> {
        self.0.iter().map(|&byte| match byte {
            b'"' => b'\'',
            b'\\' => b'?',
            b' '..=b'~' => byte,
            _ => b'?',
        })
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().try_for_each(|byte| fmt::Write::write_char(formatter, byte.into()))
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{self}\"")
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes().eq(other.bytes())
    }
}

impl Eq for Text<'_> {}

#[cfg(feature = "serde")]
impl serde::Serialize for Text<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_text_ends_at_the_first_line_feed() {
        assert_eq!(Text::first_line(b"bpfland_1.0.0\nmore").to_string(), "bpfland_1.0.0");
        assert_eq!(Text::first_line(b"a\"b\\c\x7f\xff").to_string(), "a'b?c??");
        assert_eq!(Text::first_line(b""), Text::default());
    }

    proptest! {
        #[test]
        fn a_text_is_bounded_and_needs_no_escape(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = Text::first_line(&bytes).truncated(64);
            prop_assert!(text.to_string().len() <= 64);
            prop_assert_eq!(serde_json::to_string(&text.to_string()).unwrap(), format!("{text:?}"));
        }
    }
}
