//! Where a run has no stats, and where its sessions begin, by columns of pixels.

use super::polyline::column_of;
use super::recording::Recording;

/// The marks of one run.
#[derive(Debug, PartialEq, Eq)]
pub struct Lane {
    /// The holes, in order. They do not overlap.
    pub holes: Vec<Hole>,
    /// The columns in which a new session begins.
    pub baselines: Vec<usize>,
}

/// Samples without stats that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The first column.
    pub from: usize,
    /// The last one.
    pub to: usize,
    /// The number of its reason, counted from 0.
    pub reason: usize,
}

impl Lane {
    /// Returns the marks of a run's recordings, by the kinds of reasons in the order of their numbers.
    pub fn of(recordings: &[Recording], reasons: &[&str], end_ms: u64, columns: usize) -> Self {
        let mut cells = vec![None; columns];
        let mut begins = vec![false; columns];
        for recording in recordings {
            let column = |sample: usize| column_of(recording.times.get(sample).copied().unwrap_or(0), end_ms, columns);
            let mut before: Option<(usize, &str)> = None;
            for &(sample, kind) in &recording.holes {
                // A hole goes on while no sample between has stats.
                let goes_on = before.is_some_and(|(last, of)| last + 1 == sample && of == kind);
                let from = before.filter(|_| goes_on).map_or(column(sample), |(last, _)| column(last));
                let reason = reasons.iter().position(|known| *known == kind);
                let (from, to) = (from.min(column(sample)), from.max(column(sample)));
                cells.iter_mut().take(to + 1).skip(from).for_each(|cell| *cell = reason);
                before = Some((sample, kind));
            }
            for sample in &recording.baselines {
                begins.iter_mut().skip(column(*sample)).take(1).for_each(|begin| *begin = true);
            }
        }
        let baselines = begins.iter().enumerate().filter_map(|(at, begins)| begins.then_some(at)).collect();
        Self { holes: joined(&cells), baselines }
    }
}

fn joined(cells: &[Option<usize>]) -> Vec<Hole> {
    let mut holes: Vec<Hole> = Vec::new();
    for (at, reason) in cells.iter().enumerate().filter_map(|(at, reason)| Some((at, (*reason)?))) {
        match holes.last_mut().filter(|last| last.to + 1 == at && last.reason == reason) {
            Some(last) => last.to = at,
            None => holes.push(Hole { from: at, to: at, reason }),
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_join_and_keep_their_reasons() {
        let mut recording = Recording::new("r");
        recording.times = (0..10).map(|at| at * 10).collect();
        recording.holes = vec![(1, "timed_out"), (2, "timed_out"), (3, "cancelled"), (7, "timed_out")];
        recording.baselines = vec![4, 8];
        let lane = Lane::of(&[recording], &["cancelled", "timed_out"], 90, 91);
        let hole = |from, to, reason| Hole { from, to, reason };
        assert_eq!(lane.holes, [hole(10, 20, 1), hole(30, 30, 0), hole(70, 70, 1)]);
        assert_eq!(lane.baselines, [40, 80]);
    }

    #[test]
    fn marks_are_bounded_by_columns() {
        let mut recording = Recording::new("r");
        recording.times = (0..10_000).map(|at| at % 100).collect();
        recording.holes = (0..10_000).step_by(2).map(|at| (at, "timed_out")).collect();
        recording.baselines = (0..10_000).collect();
        let lane = Lane::of(&[recording], &["timed_out"], 99, 50);
        assert!(lane.holes.len() <= 50 && lane.baselines.len() <= 50);
    }
}
