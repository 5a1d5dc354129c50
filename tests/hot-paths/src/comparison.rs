//! Counts against those that are committed.

use std::fmt;

use crate::counts::{Counts, PathCounts};

/// The greatest increase, in percent.
const MOST: i64 = 5;

/// What the comparison of all paths says, a line each.
pub struct Comparison(Vec<Line>);

struct Line {
    path: String,
    verdict: Verdict,
}

enum Verdict {
    /// The changes of instructions and calls.
    Counted([Change; 2]),
    /// The file has no such path.
    New,
    /// There is no such path any more.
    Gone,
}

/// A number that was committed, and what it is now.
struct Change {
    what: &'static str,
    committed: u64,
    now: u64,
}

impl Change {
    fn holds(&self) -> bool {
        u128::from(self.now) * 100 <= u128::from(self.committed) * (100 + u128::from(MOST.unsigned_abs()))
    }

    fn percent(&self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "counts are small")]
        let [committed, now] = [self.committed as f64, self.now as f64];
        if self.committed == self.now { 0.0 } else { (now / committed - 1.0) * 100.0 }
    }
}

impl Verdict {
    fn holds(&self) -> bool {
        matches!(self, Self::Counted(changes) if changes.iter().all(Change::holds))
    }
}

impl Comparison {
    /// Whether every path holds.
    pub fn holds(&self) -> bool {
        self.0.iter().all(|line| line.verdict.holds())
    }

    /// Whether a path takes so much less that its numbers no longer guard it.
    fn is_stale(&self) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "5 is exact")]
        let improved = |change: &Change| change.percent() < -(MOST as f64);
        self.0.iter().any(|line| matches!(&line.verdict, Verdict::Counted(changes) if changes.iter().any(improved)))
    }
}

/// Compares the counts of now with those that are committed.
pub fn compare(committed: &Counts, now: &Counts) -> Comparison {
    let gone = committed.0.iter().filter(|counts| now.of(&counts.path).is_none());
    let gone = gone.map(|counts| Line { path: counts.path.clone(), verdict: Verdict::Gone });
    let lines = now.0.iter().map(|counts| Line {
        path: counts.path.clone(),
        verdict: committed.of(&counts.path).map_or(Verdict::New, |before| verdict(before, counts)),
    });
    Comparison(lines.chain(gone).collect())
}

fn verdict(before: &PathCounts, now: &PathCounts) -> Verdict {
    Verdict::Counted([
        Change { what: "instructions", committed: before.instructions, now: now.instructions },
        Change { what: "calls", committed: before.calls, now: now.calls },
    ])
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        if !self.holds() {
            writeln!(f, "over +{MOST} %: find what added it, or accept the numbers with: ci/callgrind --update")
        } else if self.is_stale() {
            writeln!(f, "below -{MOST} %: keep what was won with: ci/callgrind --update")
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.verdict.holds() { "ok" } else { "FAILED" };
        write!(f, "{:<14} {word:<7}", self.path)?;
        match &self.verdict {
            Verdict::Counted(changes) => changes.iter().try_for_each(|change| write!(f, " {change}")),
            Verdict::New => f.write_str(" not in the file of counts"),
            Verdict::Gone => f.write_str(" in the file of counts, but no path any more"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, committed, now } = self;
        write!(f, " {now} {what} ({:+.1} % of {committed})", self.percent())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(instructions: u64, calls: u64) -> Counts {
        Counts(vec![PathCounts { path: "request".into(), instructions, calls }])
    }

    #[test]
    fn five_percent_more_hold_and_a_little_more_fails() {
        assert!(compare(&counts(1_000, 20), &counts(1_050, 21)).holds());
        assert!(!compare(&counts(1_000, 20), &counts(1_051, 20)).holds());
        assert!(!compare(&counts(1_000, 20), &counts(1_000, 22)).holds());
        assert!(!compare(&counts(1_000, 0), &counts(1_000, 1)).holds());
    }

    #[test]
    fn a_failure_names_its_path_and_by_how_much() {
        let text = compare(&counts(1_000, 20), &counts(1_120, 20)).to_string();
        assert!(text.contains("request        FAILED   1120 instructions (+12.0 % of 1000)"), "{text}");
        assert!(text.contains("ci/callgrind --update"), "{text}");
    }

    #[test]
    fn numbers_that_no_longer_guard_are_reported() {
        let comparison = compare(&counts(1_000, 20), &counts(900, 20));
        assert!(comparison.holds());
        assert!(comparison.to_string().contains("ci/callgrind --update"));
    }

    #[test]
    fn paths_that_are_on_one_side_only_fail() {
        assert!(!compare(&Counts::default(), &counts(1, 1)).holds());
        assert!(!compare(&counts(1, 1), &Counts::default()).holds());
    }
}
