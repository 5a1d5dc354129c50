//! Since when a scheduler's deltas count: the last read of each target on one session.

use std::time::{Duration, Instant};

/// Targets whose reads are remembered. For one more, the one that was read longest ago is forgotten, whose next read then
/// has no interval.
const MAX_TARGETS: usize = 64;

/// Bytes of the longest name that is remembered.
const MAX_NAME_BYTES: usize = 256;

/// The targets that were read on a session, and when; in the order of their last reads.
#[derive(Debug, Default)]
pub(super) struct Baselines {
    reads: Vec<(String, Instant)>,
}

impl Baselines {
    /// Records a read of this target, and returns the time since the one before; `None` if this is the first.
    pub(super) fn read(&mut self, target: &str, now: Instant) -> Option<Duration> {
        let before = self.reads.iter().position(|(name, _)| name == target).map(|at| self.reads.remove(at));
        if target.len() <= MAX_NAME_BYTES {
            if self.reads.len() == MAX_TARGETS {
                self.reads.remove(0);
            }
            self.reads.push((target.to_owned(), now));
        }
        before.map(|(_, then)| now.saturating_duration_since(then))
    }

    /// Forgets all reads: another connection to a scheduler follows.
    pub(super) fn clear(&mut self) {
        self.reads.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_target_has_its_own_baseline() {
        let (mut baselines, now) = (Baselines::default(), Instant::now());
        assert_eq!(baselines.read("top", now), None);
        assert_eq!(baselines.read("cpus", now + SECOND), None);
        assert_eq!(baselines.read("top", now + 3 * SECOND), Some(3 * SECOND));
        assert_eq!(baselines.read("top", now + 4 * SECOND), Some(SECOND));
        assert_eq!(baselines.read("cpus", now + 4 * SECOND), Some(3 * SECOND));
        baselines.clear();
        assert_eq!(baselines.read("top", now + 5 * SECOND), None);
    }

    #[test]
    fn only_so_many_targets_are_remembered() {
        let (mut baselines, now) = (Baselines::default(), Instant::now());
        for n in 0..1_000 {
            assert_eq!(baselines.read(&n.to_string(), now), None);
            assert_eq!(baselines.read("top", now + n * SECOND), (n > 0).then_some(SECOND));
        }
        assert_eq!(baselines.reads.len(), MAX_TARGETS);
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!((baselines.read(&long, now), baselines.read(&long, now)), (None, None));
        assert_eq!(baselines.read("999", now + SECOND), Some(SECOND));
    }
}
