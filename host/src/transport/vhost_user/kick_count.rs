//! When the kicks' events are read, which count them: a driver that notifies often need not cost a read each time.

use std::time::{Duration, Instant};

/// The least time between two reads.
const PACE: Duration = Duration::from_millis(1);

/// Whether there are kicks to count, and when they are.
#[derive(Debug, Default)]
pub(super) struct KickCount {
    pending: bool,
    counted_at: Option<Instant>,
}

impl KickCount {
    /// A kick came.
    pub(super) fn on_kick(&mut self) {
        self.pending = true;
    }

    /// Returns how long the worker may wait until kicks are to be counted, or `None` if there are none.
    pub(super) fn due_within(&self, now: Instant) -> Option<Duration> {
        let since = |counted_at: Instant| PACE.saturating_sub(now.saturating_duration_since(counted_at));
        self.pending.then(|| self.counted_at.map_or(Duration::ZERO, since))
    }

    /// Whether the kicks are to be counted now; then they have been.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let due = self.due_within(now).is_some_and(|within| within.is_zero());
        if due {
            *self = Self { pending: false, counted_at: Some(now) };
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_are_counted_at_once_and_then_at_a_pace() {
        let (mut count, now) = (KickCount::default(), Instant::now());
        assert!(count.due_within(now).is_none() && !count.take_due(now), "an idle guest costs nothing");
        count.on_kick();
        assert!(count.take_due(now));
        count.on_kick();
        let soon = now + PACE / 4;
        assert!(!count.take_due(soon));
        assert_eq!(count.due_within(soon), Some(PACE * 3 / 4));
        assert!(count.take_due(now + PACE));
        assert!(count.due_within(now + PACE).is_none());
    }
}
