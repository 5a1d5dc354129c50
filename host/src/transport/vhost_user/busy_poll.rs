//! How long the worker looks for more work before it waits, so that who answers at once need not wake it.

use std::time::{Duration, Instant};

/// The longest time without work after which looking for it still pays: about what a wake-up costs on both sides.
const LONGEST: Duration = Duration::from_micros(50);

/// Less is not worth a look.
const SHORTEST: Duration = Duration::from_micros(5);

/// The time that is spent on looking, by how soon work came of late. It is zero for a guest that is idle, or whose answers
/// take longer, so that these cost no processor time.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    window: Duration,
    worked_at: Option<Instant>,
}

impl BusyPoll {
    /// The worker was woken. Returns how long it looks for more work once it has done what it was woken for.
    pub(super) fn on_wake(&mut self, now: Instant) -> Duration {
        let soon = self.worked_at.is_some_and(|before| now.saturating_duration_since(before) <= LONGEST);
        self.window = if soon { LONGEST } else { self.window / 2 };
        if self.window < SHORTEST {
            self.window = Duration::ZERO;
        }
        self.window
    }

    /// The worker did its last piece of work at this time.
    pub(super) fn on_wait(&mut self, worked_at: Instant) {
        self.worked_at = Some(worked_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The windows of wake-ups, each this many microseconds after the work of the one before.
    fn windows<const N: usize>(gaps: [u64; N]) -> [u128; N] {
        let (mut busy_poll, mut now) = (BusyPoll::default(), Instant::now());
        gaps.map(|gap| {
            now += Duration::from_micros(gap);
            let window = busy_poll.on_wake(now);
            busy_poll.on_wait(now);
            window.as_micros()
        })
    }

    #[test]
    fn an_idle_guest_costs_nothing() {
        assert_eq!(windows([0, 1_000_000, 51]), [0, 0, 0]);
    }

    #[test]
    fn work_that_comes_soon_is_looked_for() {
        assert_eq!(windows([0, 50, 30, 1]), [0, 50, 50, 50]);
    }

    #[test]
    fn work_that_comes_late_is_looked_for_less_and_less() {
        assert_eq!(windows([0, 9, 60, 60, 60, 60, 60]), [0, 50, 25, 12, 6, 0, 0]);
    }
}
