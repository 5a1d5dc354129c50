//! Moments of the exporter.

use std::time::{Duration, Instant};

/// The least time from one read of a guest to the next.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Returns a moment that is `duration` later, or the same one beyond the clock's range.
pub(super) fn after(moment: Instant, duration: Duration) -> Instant {
    moment.checked_add(duration).unwrap_or(moment)
}
