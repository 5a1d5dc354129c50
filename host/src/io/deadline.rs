//! When a wait ends at the latest.

use std::time::{Duration, Instant};

/// The longest time that a wait can be allowed. More could leave the range of a system's clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The moment at which a wait ends at the latest, and how long it was allowed in all.
///
/// ```
/// use std::time::{Duration, Instant};
/// use scx_vsock::io::Deadline;
///
/// let now = Instant::now();
/// let deadline = Deadline::after(now, Duration::from_millis(50));
/// assert!(!deadline.has_passed(now) && deadline.has_passed(now + Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// Returns the deadline of a wait that begins at `now` and is allowed this long, or a year if that is shorter.
    #[must_use]
    pub fn after(now: Instant, allowed: Duration) -> Self {
        let allowed = allowed.min(LONGEST);
        Self { at: now.checked_add(allowed).unwrap_or(now), allowed }
    }

    /// Returns the moment.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Returns how long the whole wait was allowed.
    #[must_use]
    pub fn allowed(&self) -> Duration {
        self.allowed
    }

    /// Returns how much of the time is left; zero once the deadline has passed.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }

    /// Whether the deadline has passed.
    #[must_use]
    pub fn has_passed(&self, now: Instant) -> bool {
        now >= self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_duration_is_a_year() {
        let now = Instant::now();
        let deadline = Deadline::after(now, Duration::MAX);
        assert_eq!(deadline.left(now), LONGEST);
        assert!(!deadline.has_passed(now));
    }

    #[test]
    fn nothing_is_left_after_the_deadline() {
        let now = Instant::now();
        let deadline = Deadline::after(now, Duration::from_millis(50));
        assert_eq!(deadline.left(now + Duration::from_secs(1)), Duration::ZERO);
        assert!(deadline.has_passed(deadline.at()));
    }
}
