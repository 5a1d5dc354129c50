//! Numbers as people read them.

/// Prefixes by the power of 1,000.
const PREFIXES: [(i32, &str); 11] = [
    (-12, "p"),
    (-9, "n"),
    (-6, "\u{b5}"),
    (-3, "m"),
    (0, ""),
    (3, "k"),
    (6, "M"),
    (9, "G"),
    (12, "T"),
    (15, "P"),
    (18, "E"),
];

/// The unit of an axis or a number: a power of ten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    exponent: i32,
}

impl Scale {
    /// Returns the one by which the greatest number has one to three digits before the point.
    #[allow(clippy::cast_possible_truncation, reason = "an exponent of a float")]
    pub fn of(greatest: f64) -> Self {
        let magnitude = greatest.abs();
        if magnitude == 0.0 || (0.01..10_000.0).contains(&magnitude) {
            return Self { exponent: 0 };
        }
        // The least and the greatest ones keep their reciprocal a number.
        let exponent = (magnitude.log10().floor() as i32).clamp(-300, 306);
        Self { exponent: exponent.div_euclid(3) * 3 }
    }

    /// Returns a number by this unit.
    pub fn scaled(self, number: f64) -> f64 {
        if self.exponent < 0 { number * 10_f64.powi(-self.exponent) } else { number / 10_f64.powi(self.exponent) }
    }

    /// Returns the unit, such as `k`.
    pub fn suffix(self) -> String {
        let prefix = PREFIXES.iter().find(|(exponent, _)| *exponent == self.exponent);
        prefix.map_or_else(|| format!("e{}", self.exponent), |(_, prefix)| (*prefix).to_owned())
    }
}

/// A number with as many digits as tell it from others: an integer below 10,000 whole, else four digits.
pub fn compact(number: f64) -> String {
    let scale = Scale::of(number);
    let scaled = scale.scaled(number);
    let digits = if scaled == 0.0 { 1 } else { digits_before_point(scaled) };
    let suffix = scale.suffix();
    let space = if suffix.is_empty() || suffix.starts_with('e') { "" } else { "\u{a0}" };
    format!("{}{space}{suffix}", decimal(scaled, 4_usize.saturating_sub(digits)))
}

/// A number with at most this many decimals, without zeros at its end.
pub fn decimal(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text.as_str() };
    // The sign that people write.
    match text.strip_prefix('-') {
        None | Some("0") => text.trim_start_matches('-').to_owned(),
        Some(digits) => format!("\u{2212}{digits}"),
    }
}

/// A number that [`compact`] or [`decimal`] wrote, with its sign.
pub fn signed(text: &str) -> String {
    if text == "0" || text.starts_with('\u{2212}') { text.to_owned() } else { format!("+{text}") }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the number is below 10,000")]
fn digits_before_point(number: f64) -> usize {
    (number.abs().log10().floor().max(0.0) as usize) + 1
}

/// A time of this many milliseconds.
#[allow(clippy::cast_precision_loss, reason = "shown with three digits")]
pub fn time(ms: u64) -> String {
    let (length, unit) = time_unit(ms);
    format!("{}\u{a0}{unit}", decimal(ms as f64 / length, 1))
}

/// The milliseconds of the unit in which people read times up to this one, and its name.
pub const fn time_unit(end_ms: u64) -> (f64, &'static str) {
    match end_ms {
        0..=180_000 => (1_000.0, "s"),
        180_001..=10_800_000 => (60_000.0, "min"),
        10_800_001..=259_200_000 => (3_600_000.0, "h"),
        _ => (86_400_000.0, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "0"),
            (64.0, "64"),
            (9_999.0, "9999"),
            (12_345.0, "12.35\u{a0}k"),
            (-1.5, "\u{2212}1.5"),
            (0.123_456, "0.123"),
            (0.001_234_5, "1.234\u{a0}m"),
            (1e300, "1e300"),
            (-f64::MAX, "\u{2212}179.8e306"),
            (18_446_744_073_709_551_615.0, "18.45\u{a0}E"),
            (0.1 + 0.2, "0.3"),
        ] {
            assert_eq!(compact(number), expected, "{number}");
        }
        assert!(compact(5e-324).ends_with("e-300"), "{}", compact(5e-324));
        assert_eq!((signed("5"), signed("0"), signed("\u{2212}5")), ("+5".into(), "0".into(), "\u{2212}5".into()));
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!(time(1_500), "1.5\u{a0}s");
        assert_eq!(time(600_000), "10\u{a0}min");
        assert_eq!(time(36_000_000), "10\u{a0}h");
        assert!(time(u64::MAX).ends_with("\u{a0}d"));
    }
}
