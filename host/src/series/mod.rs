//! Many samples: values by path, columns, changes over time, and JSON Lines.
//!
//! [`SampleSeries`] has one outcome a sample for each question; a sample without the value says why by a
//! [`SnapshotError`].

mod column;
#[cfg(feature = "expect")]
pub mod expectation;
mod lines;
mod number;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod series;
mod snapshot_error;
#[cfg(test)]
mod tests;

pub use column::{Change, Delta, FromStat};
#[cfg(feature = "report")]
pub(crate) use lines::SampleLines;
pub use lines::{LineError, MAX_LINE_BYTES, Recording};
pub use series::SampleSeries;
pub use snapshot_error::SnapshotError;

pub use crate::stats::{ParsePathError, StatPath};
