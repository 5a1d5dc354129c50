//! When the kicks' events are read, which count them: a driver that notifies often need not cost a read each time.

use std::time::{Duration, Instant};

/// The least time between two reads.
const PACE: Duration = Duration::from_millis(10);

/// Which queues have kicks to count, and when they are.
#[derive(Debug)]
pub(super) struct KickCount<const QUEUES: usize> {
    pending: [bool; QUEUES],
    counted_at: Option<Instant>,
}

impl<const QUEUES: usize> Default for KickCount<QUEUES> {
    fn default() -> Self {
        Self { pending: [false; QUEUES], counted_at: None }
    }
}

impl<const QUEUES: usize> KickCount<QUEUES> {
    /// A kick of this queue came.
    pub(super) fn on_kick(&mut self, queue: usize) {
        if let Some(pending) = self.pending.get_mut(queue) {
            *pending = true;
        }
    }

    /// Returns how long the worker may wait until kicks are to be counted, or `None` if there are none.
    pub(super) fn due_within(&self, now: Instant) -> Option<Duration> {
        let since = |counted_at: Instant| PACE.saturating_sub(now.saturating_duration_since(counted_at));
        self.pending.contains(&true).then(|| self.counted_at.map_or(Duration::ZERO, since))
    }

    /// Returns the queues whose kicks are to be counted now; then they have been.
    pub(super) fn take_due(&mut self, now: Instant) -> impl Iterator<Item = usize> + use<QUEUES> {
        let due = self.due_within(now).is_some_and(|within| within.is_zero());
        if due {
            self.counted_at = Some(now);
        }
        let queues = if due { std::mem::replace(&mut self.pending, [false; QUEUES]) } else { [false; QUEUES] };
        queues.into_iter().enumerate().filter(|&(_, pending)| pending).map(|(queue, _)| queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(count: &mut KickCount<3>, now: Instant) -> Vec<usize> {
        count.take_due(now).collect()
    }

    #[test]
    fn kicks_are_counted_at_once_and_then_at_a_pace() {
        let (mut count, now) = (KickCount::default(), Instant::now());
        assert_eq!(count.due_within(now), None, "an idle guest costs nothing");
        assert!(taken(&mut count, now).is_empty());
        count.on_kick(1);
        assert_eq!(taken(&mut count, now), [1]);
        count.on_kick(0);
        count.on_kick(2);
        let soon = now + PACE / 4;
        assert!(taken(&mut count, soon).is_empty());
        assert_eq!(count.due_within(soon), Some(PACE * 3 / 4));
        assert_eq!(taken(&mut count, now + PACE), [0, 2]);
        assert_eq!(count.due_within(now + PACE), None);
    }
}
