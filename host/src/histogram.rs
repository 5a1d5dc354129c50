//! Durations in a fixed amount of memory.

use std::time::Duration;

/// Buckets: one for each power of two of microseconds up to 18 minutes, and one for all that is longer.
const BUCKETS: usize = 32;

/// Durations counted by powers of two of microseconds.
///
/// ```
/// use std::time::Duration;
/// use scx_vsock::Histogram;
///
/// let mut histogram = Histogram::default();
/// for micros in [90, 100, 110, 5_000] {
///     histogram.record(Duration::from_micros(micros));
/// }
/// assert_eq!(histogram.count(), 4);
/// assert_eq!(histogram.sum(), Duration::from_micros(5_300));
/// assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(128)));
/// assert_eq!(histogram.quantile(1.0), Some(Duration::from_micros(8_192)));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&mut self, duration: Duration) {
        let bucket = self.buckets().position(|(bound, _)| bound.is_none_or(|bound| duration <= bound));
        if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            *count = count.saturating_add(1);
        }
        self.sum = self.sum.saturating_add(duration);
    }

    /// Returns how many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, &count| sum.saturating_add(count))
    }

    /// Returns their sum.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Returns the buckets in growing order: each one's bound, which belongs to it, and its count. The last has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> {
        (0..).zip(&self.counts).map(|(power, &count)| {
            let bound = (power + 1 < BUCKETS).then(|| Duration::from_micros(1 << power));
            (bound, count)
        })
    }

    /// Returns a duration that the quantile `part`, from 0 to 1, does not exceed: the bound of the bucket where it is
    /// reached. `None` without durations, or if it is reached in the last bucket, which has no bound.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let mut passed = 0;
        let mut buckets = self.buckets().filter(|(_, count)| *count > 0);
        buckets.find_map(|(bound, here)| {
            passed = here.saturating_add(passed);
            is_part(passed, count, part).then_some(bound)
        })?
    }
}

/// Whether `passed` of `count` make up `part`.
#[allow(clippy::cast_precision_loss, reason = "a quantile is no exact number")]
fn is_part(passed: u64, count: u64, part: f64) -> bool {
    passed == count || passed as f64 >= part * count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_first_bucket_above_it() {
        let mut histogram = Histogram::default();
        for duration in [Duration::ZERO, Duration::from_micros(1), Duration::from_nanos(1_001), Duration::MAX] {
            histogram.record(duration);
        }
        let filled: Vec<_> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        let micros = |micros| Some(Duration::from_micros(micros));
        assert_eq!(filled, [(micros(1), 2), (micros(2), 1), (None, 1)]);
        assert_eq!(histogram.sum(), Duration::MAX);
        assert_eq!(histogram.buckets().count(), BUCKETS);
    }

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..99 {
            histogram.record(Duration::from_micros(60));
        }
        histogram.record(Duration::from_secs(1));
        assert_eq!(histogram.quantile(0.0), Some(Duration::from_micros(64)));
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_micros(64)));
        assert_eq!(histogram.quantile(0.999), Some(Duration::from_micros(1 << 20)));
        histogram.record(Duration::MAX);
        assert_eq!(histogram.quantile(1.0), None);
    }
}
