//! When samples are due.

use std::io;
use std::time::Duration;

/// When samples are due, counted from the start, so that lateness never adds up.
///
/// ```
/// use std::time::Duration;
/// use scx_vsock::sample::Schedule;
///
/// let schedule = Schedule::Every(Duration::from_secs(1)).validate()?;
/// assert_eq!(schedule.due(3), Some(Duration::from_secs(3)));
/// // Sample 1 took until 4.2 s: sample 4 is taken at once, samples 2 and 3 are skipped.
/// assert_eq!(schedule.next_after(1, Duration::from_millis(4_200)), 4);
/// # Ok::<(), scx_vsock::sample::ScheduleError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Sample `n` after `n` times this.
    Every(Duration),
    /// A sample after each of these, in growing order.
    At(Vec<Duration>),
}

/// A schedule that cannot be kept, or no thread to keep it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// An interval of 0.
    #[error("the interval is 0: give the time between two samples")]
    NoInterval,
    /// A boundary that is not after the one before it.
    #[error("boundary {number} is at {} ms, which is not after {} ms: give them in growing order", at.as_millis(), before.as_millis())]
    OutOfOrder {
        /// The boundary's number, counted from 1.
        number: usize,
        /// Where it is.
        at: Duration,
        /// Where the one before it is.
        before: Duration,
    },
    /// The kernel has no thread or descriptor for it.
    #[error("cannot start the sampler's thread")]
    Host(#[from] io::Error),
}

impl Schedule {
    /// Returns the schedule if it can be kept.
    ///
    /// # Errors
    ///
    /// [`ScheduleError::NoInterval`], [`ScheduleError::OutOfOrder`].
    pub fn validate(self) -> Result<Self, ScheduleError> {
        match &self {
            Self::Every(Duration::ZERO) => return Err(ScheduleError::NoInterval),
            Self::Every(_) => {}
            Self::At(boundaries) => {
                let pairs = (2..).zip(boundaries.iter().zip(boundaries.iter().skip(1)));
                for (number, (&before, &at)) in pairs {
                    if at <= before {
                        return Err(ScheduleError::OutOfOrder { number, at, before });
                    }
                }
            }
        }
        Ok(self)
    }

    /// Returns when sample `n`, counted from 1, is due after the start; `None` after the last. The longest time is about
    /// 584 years.
    #[must_use]
    pub fn due(&self, n: u64) -> Option<Duration> {
        match self {
            Self::Every(interval) => {
                let nanoseconds = interval.as_nanos().saturating_mul(n.into());
                Some(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)))
            }
            Self::At(boundaries) => boundaries.get(usize::try_from(n).ok()?.checked_sub(1)?).copied(),
        }
    }

    /// Returns the number of the sample to take after `n`: the newest one that is due, else the next. Those between them
    /// are skipped, so that a slow scheduler delays no other sample.
    #[must_use]
    pub fn next_after(&self, n: u64, elapsed: Duration) -> u64 {
        self.due_by(elapsed).max(n.saturating_add(1))
    }

    /// How many samples are due by then.
    fn due_by(&self, elapsed: Duration) -> u64 {
        match self {
            Self::Every(interval) => u64::try_from(elapsed.as_nanos() / interval.as_nanos().max(1)).unwrap_or(u64::MAX),
            Self::At(boundaries) => boundaries.partition_point(|&due| due <= elapsed) as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn schedules_that_cannot_be_kept_are_refused() {
        let error = |schedule: Schedule| schedule.validate().unwrap_err().to_string();
        assert!(error(Schedule::Every(Duration::ZERO)).starts_with("the interval is 0"));
        let expected = "boundary 3 is at 5 ms, which is not after 7 ms: give them in growing order";
        assert_eq!(error(Schedule::At(vec![MS, 7 * MS, 5 * MS])), expected);
        assert!(error(Schedule::At(vec![MS, MS])).starts_with("boundary 2 is at 1 ms"));
    }

    #[test]
    fn samples_that_a_slow_one_delays_are_skipped() {
        let every = Schedule::Every(10 * MS);
        assert_eq!(every.next_after(1, 15 * MS), 2);
        assert_eq!(every.next_after(1, 47 * MS), 4, "the newest that is due, and none before it");
        assert_eq!(every.due(4), Some(40 * MS));
        let at = Schedule::At(vec![MS, 2 * MS, 30 * MS]);
        assert_eq!(at.next_after(1, 5 * MS), 2);
        assert_eq!(at.next_after(1, 31 * MS), 3);
        assert_eq!(at.due(at.next_after(3, 40 * MS)), None);
        let tiny = Schedule::Every(Duration::from_nanos(1));
        assert_eq!(tiny.next_after(1, Duration::from_secs(60)), 60_000_000_000);
        assert_eq!(
            (tiny.next_after(u64::MAX, Duration::MAX), Schedule::Every(Duration::MAX).due(2)),
            (u64::MAX, Some(Duration::from_nanos(u64::MAX)))
        );
    }
}
