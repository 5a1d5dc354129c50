//! What an expectation is about: a value of each sample.

use std::fmt;

use super::words::{quoted, written};
use crate::stats::StatPath;

/// What begins a path into what the kernel says.
pub(super) const KERNEL: &str = "kernel:";

/// Who says a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The scheduler, by its stats.
    Stats,
    /// The guest's kernel: [`Sample::kernel`](crate::Sample::kernel). Its counters begin anew with each scheduler that is
    /// enabled.
    Kernel,
}

/// A value that a sample has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Term {
    /// The value at a path. A text of the kernel's that is a decimal number is that number, where a number is wanted.
    Value(Source, StatPath),
    /// The number at a path into the stats, by the seconds that it is a delta over. A sample with a new baseline has none.
    PerSecond(StatPath),
    /// The change of the number at a path since the sample before, in a second. A sample without one before it on the
    /// same baseline has none.
    Rate(Source, StatPath),
    /// How many samples so far had nothing of this source, once one has had something.
    Holes(Source),
}

impl Term {
    /// Returns who says the value.
    #[must_use]
    pub const fn source(&self) -> Source {
        match self {
            Self::Value(source, _) | Self::Rate(source, _) | Self::Holes(source) => *source,
            Self::PerSecond(_) => Source::Stats,
        }
    }
}

/// Returns a path as the parser takes it.
pub(super) fn written_path(source: Source, path: &StatPath) -> String {
    let path = path.to_string();
    match source {
        Source::Kernel => format!("{KERNEL}{}", written(&path)),
        // A field of the stats whose name begins so.
        Source::Stats if path.starts_with(KERNEL) => quoted(&path),
        Source::Stats => written(&path),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stats => "stats",
            Self::Kernel => "kernel",
        })
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(source, path) => f.write_str(&written_path(*source, path)),
            Self::PerSecond(path) => write!(f, "per_second({})", written_path(Source::Stats, path)),
            Self::Rate(source, path) => write!(f, "rate({})", written_path(*source, path)),
            Self::Holes(source) => write!(f, "holes({source})"),
        }
    }
}
