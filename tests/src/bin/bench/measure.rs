//! What rows are measured with.

use std::path::PathBuf;
use std::time::Duration;

use crate::row::Row;

/// A measurement of one or several rows.
pub struct Measure {
    /// Its name on the command line.
    pub name: &'static str,
    /// Whether `--quick` has it: it boots one guest at most, and takes seconds.
    pub is_quick: bool,
    /// What bounds its rows, as a sentence or two of the page.
    pub bound: &'static str,
    /// Measures it. A panic is a measurement that failed.
    pub rows: fn(&Bench) -> Vec<Row>,
}

/// What is measured, and how often.
pub struct Bench {
    /// The relay with std.
    pub relay: PathBuf,
    /// The `scx-vsock` command.
    pub command: PathBuf,
    /// Whether there is little time.
    pub quick: bool,
}

impl Bench {
    /// Returns how many runs a measurement makes that makes `all` of them where there is time.
    pub fn runs(&self, all: usize) -> usize {
        if self.quick { all.div_ceil(3).max(3) } else { all }
    }
}

/// Returns a duration in microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
