//! The middle of numbers, and how far they are spread.

/// The median and the quartiles of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// A quarter of the numbers is not above it.
    pub lower: f64,
    /// The middle.
    pub median: f64,
    /// A quarter of the numbers is not below it.
    pub upper: f64,
}

impl Summary {
    /// Returns that of numbers, if there are any. None of them is NaN.
    pub fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let quantile = |part| quantile(&sorted, part);
        Some(Self { lower: quantile(0.25)?, median: quantile(0.5)?, upper: quantile(0.75)? })
    }
}

/// Returns the median of numbers, if there are any.
pub fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    Summary::of(numbers).map(|summary| summary.median)
}

/// The quantile between the two numbers that are next to it, as most programs have it.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into memory, never negative"
)]
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let at = part * sorted.len().checked_sub(1)? as f64;
    let (below, fraction) = (sorted.get(at as usize)?, at.fract());
    let above = sorted.get(at.ceil() as usize)?;
    // Their difference could be beyond the largest number.
    Some(below * (1.0 - fraction) + above * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_between_the_numbers_beside_them() {
        let of = |numbers: &[f64]| Summary::of(numbers.iter().copied());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[7.0]), Some(Summary { lower: 7.0, median: 7.0, upper: 7.0 }));
        assert_eq!(of(&[4.0, 1.0, 3.0, 2.0]), Some(Summary { lower: 1.75, median: 2.5, upper: 3.25 }));
        assert_eq!(of(&[5.0, 1.0, 9.0]).unwrap().median, 5.0);
        assert_eq!(median([-f64::MAX, f64::MAX].into_iter()), Some(0.0));
    }
}
