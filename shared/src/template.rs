//! Text with numbers and texts in it, written without a formatter.
//!
//! A general formatter cannot be linked into a program that must not be able to panic.

use crate::text::Text;

/// Writes `template` to the beginning of `out` and returns how many bytes that took. Each `#` stands for the next of
/// `numbers`, each `$` for the next of `texts`. What does not fit is truncated; a missing value is written as nothing.
///
/// ```
/// use scx_vsock_wire::{Text, template};
///
/// let mut out = [0; 64];
/// let length = template::fill(&mut out, b"port #: $\n", &[729], &[Text::first_line(b"in use\n")]);
/// assert_eq!(&out[..length], b"port 729: in use\n");
/// ```
pub fn fill(out: &mut [u8], template: &[u8], numbers: &[u64], texts: &[Text<'_>]) -> usize {
    let mut writer = Writer { out, length: 0 };
    let (mut numbers, mut texts) = (numbers.iter(), texts.iter());
    for &byte in template {
        match byte {
            b'#' => numbers.next().into_iter().for_each(|&number| writer.number(number)),
            b'$' => texts.next().into_iter().flat_map(|text| text.bytes()).for_each(|byte| writer.put(byte)),
            byte => writer.put(byte),
        }
    }
    writer.length
}

struct Writer<'o> {
    out: &'o mut [u8],
    length: usize,
}

impl Writer<'_> {
    fn put(&mut self, byte: u8) {
        if let Some(place) = self.out.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: u64) {
        let mut divisor = 10_000_000_000_000_000_000;
        while divisor > 0 {
            if divisor <= number || divisor == 1 {
                self.put(b'0' | u8::try_from(number / divisor % 10).unwrap_or(0));
            }
            divisor /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(template: &str, numbers: &[u64], texts: &[Text<'_>]) -> String {
        let mut out = [0; 256];
        let length = fill(&mut out, template.as_bytes(), numbers, texts);
        String::from_utf8(out[..length].to_vec()).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_truncated() {
        let mut out = [0; 4];
        assert_eq!(fill(&mut out, b"a#b", &[1234], &[]), 4);
        assert_eq!(&out, b"a123");
    }

    #[test]
    fn the_smallest_and_the_greatest_numbers_are_written() {
        assert_eq!(filled("#,#,#", &[0, u32::MAX.into(), u64::MAX], &[]), "0,4294967295,18446744073709551615");
    }

    #[test]
    fn a_missing_value_is_nothing() {
        assert_eq!(filled("<#><$>", &[], &[]), "<><>");
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_the_formatter_writes_them(number: u64, digits in 0u32..20, other: u8) {
            let number = number / 10u64.pow(digits);
            prop_assert_eq!(filled("#,#", &[number, other.into()], &[]), format!("{number},{other}"));
        }
    }
}
