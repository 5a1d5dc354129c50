//! Text with numbers and texts in it, written without a formatter.
//!
//! A general formatter cannot be linked into a program that must not be able to panic.

use crate::line::up_to;
use crate::text::Text;

/// Writes to the beginning of a buffer. What does not fit is dropped.
///
/// ```
/// use scx_vsock_wire::{Text, Writer};
///
/// let mut out = [0; 64];
/// let mut writer = Writer::new(&mut out);
/// writer.add(b"port #: $\n", 729, Text::first_line(b"in use\n"));
/// assert_eq!(writer.written(), b"port 729: in use\n");
/// ```
#[derive(Debug)]
pub struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl<'o> Writer<'o> {
    /// Creates a writer to the beginning of `out`.
    #[must_use]
    pub fn new(out: &'o mut [u8]) -> Self {
        Self { out, length: 0 }
    }

    /// Returns how many bytes were written.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns how many bytes there is room for, with those that were written.
    #[must_use]
    pub fn room(&self) -> usize {
        self.out.len()
    }

    /// Returns what was written.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        up_to(self.out, self.length)
    }

    /// Forgets what was written after the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.length = length;
    }

    /// Adds `template`, in which each `#` stands for `number` and each `$` for `text`.
    #[inline(never)]
    pub fn add(&mut self, template: &[u8], number: u64, text: Text<'_>) {
        for &byte in template {
            match byte {
                b'#' => self.number(number),
                b'$' => text.bytes().for_each(|byte| self.put(byte)),
                byte => self.put(byte),
            }
        }
    }

    /// Adds `template`, in which each `#` stands for `number`, and no `$` is.
    #[inline(never)]
    pub fn add_number(&mut self, template: &[u8], number: u64) {
        self.add(template, number, Text::EMPTY);
    }

    /// Adds `text` as it is, in which neither `#` nor `$` is.
    pub fn add_plain(&mut self, text: &[u8]) {
        self.add_number(text, 0);
    }

    /// Adds a JSON key and its text, with a comma.
    #[inline(never)]
    pub(crate) fn pair(&mut self, key: Text<'_>, text: Text<'_>) {
        self.add(b"\"$\":", 0, key);
        self.add(b"\"$\",", 0, text);
    }

    #[inline(never)]
    pub(crate) fn put(&mut self, byte: u8) {
        if let Some(place) = self.out.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    /// Has at most 20 digits, and so calls of itself.
    fn number(&mut self, number: u64) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.put(b'0' | u8::try_from(number % 10).unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(template: &str, number: u64, text: Text<'_>) -> String {
        let mut out = [0; 256];
        let mut writer = Writer::new(&mut out);
        writer.add(template.as_bytes(), number, text);
        String::from_utf8(writer.written().to_vec()).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_truncated() {
        let mut out = [0; 4];
        let mut writer = Writer::new(&mut out);
        writer.add(b"a#b", 1234, Text::EMPTY);
        writer.add(b"c", 0, Text::EMPTY);
        assert_eq!(writer.length(), 4);
        assert_eq!(&out, b"a123");
    }

    #[test]
    fn the_smallest_and_the_greatest_numbers_are_written() {
        assert_eq!(filled("#", 0, Text::EMPTY), "0");
        assert_eq!(filled("#,#", u64::MAX, Text::EMPTY), "18446744073709551615,18446744073709551615");
    }

    #[test]
    fn an_empty_text_is_nothing() {
        assert_eq!(filled("<$>", 0, Text::EMPTY), "<>");
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_the_formatter_writes_them(number: u64, digits in 0u32..20) {
            let number = number / 10u64.pow(digits);
            prop_assert_eq!(filled("#,#", number, Text::EMPTY), format!("{number},{number}"));
        }
    }
}
