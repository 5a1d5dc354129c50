//! What a row is measured with.

use std::path::PathBuf;
use std::time::Duration;

use crate::row::Row;

/// The name of a row on the command line, and the function that measures it.
pub type Measure = (&'static str, fn(&Programs) -> Row);

/// The programs that are measured, apart from the agent.
pub struct Programs {
    /// The relay with std.
    pub relay: PathBuf,
    /// The `scx-vsock` command.
    pub command: PathBuf,
}

/// Returns a duration in microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
