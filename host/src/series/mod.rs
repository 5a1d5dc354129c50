//! Many samples: looked at by path, as columns, as changes over time, and as JSON Lines.

mod column;
mod lines;

use std::collections::BTreeSet;

use serde_json::Value;

pub use crate::stats::{ParsePathError, StatPath};
pub use column::{Change, FromStat};
pub use lines::LineError;

use crate::sample::Sample;
use crate::stats::MissingStatsReason;

/// Samples of one run, in the order in which they were taken.
///
/// ```
/// use scx_vsock::{SampleSeries, SnapshotError};
///
/// let series = SampleSeries::from_json_lines(concat!(
///     r#"{"tag":"a","elapsed_ms":10,"session":1,"interval_ms":null,"stats":{"Ok":{"layers":{"batch":{"util":0.5}}}}}"#,
///     "\n",
///     r#"{"tag":"b","elapsed_ms":20,"session":1,"interval_ms":null,"stats":{"Err":"DuringFreeze"}}"#,
///     "\n",
/// ))?;
/// let column: Vec<Result<f64, SnapshotError>> = series.column("layers.batch.util")?;
/// assert_eq!(column[0], Ok(0.5));
/// assert_eq!(column[1].as_ref().unwrap_err().to_string(), "sample \"b\" has no stats: the guest was being frozen, and a frozen guest cannot answer");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleSeries {
    samples: Vec<Sample>,
}

/// Why a sample has no value at a path.
///
/// ```
/// use scx_vsock::SampleSeries;
///
/// let lines = concat!(
///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
/// );
/// let series = SampleSeries::from_json_lines(lines)?;
/// let error = series.column::<u64>("nr_cpus")?.remove(0).unwrap_err();
/// assert_eq!(error.to_string(), r#"sample "a" has no "nr_cpus" at ""; there is nr"#);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The sample has no stats.
    #[error("sample {tag:?} has no stats: {reason}")]
    MissingStats {
        /// The sample's tag.
        tag: String,
        /// Why.
        reason: MissingStatsReason,
    },
    /// The stats have nothing at this path.
    #[error("sample {tag:?} has no {field:?} at {at:?}; there is {}", listed(there))]
    MissingField {
        /// The sample's tag.
        tag: String,
        /// Where the path still led to something; empty for the stats themselves.
        at: String,
        /// The component that is not there.
        field: String,
        /// The fields that are there; for an array how many elements it has; for a scalar its kind.
        there: Vec<String>,
    },
    /// The value is of another type.
    #[error("sample {tag:?} has {found} at {path:?}, which is no {wanted}")]
    WrongType {
        /// The sample's tag.
        tag: String,
        /// The path.
        path: String,
        /// What was wanted.
        wanted: &'static str,
        /// What is there.
        found: String,
    },
}

fn listed(there: &[String]) -> String {
    if there.is_empty() { "nothing".into() } else { there.join(", ") }
}

impl SampleSeries {
    /// A series without samples.
    ///
    /// ```
    /// assert!(scx_vsock::SampleSeries::new().samples().is_empty());
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample behind the others.
    ///
    /// ```
    /// use scx_vsock::{SampleSeries, Sampler};
    ///
    /// let mut series = SampleSeries::new();
    /// series.push(Sampler::new(None).sample("a"));
    /// assert_eq!(series.samples().len(), 1);
    /// ```
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// The samples, in the order in which they were taken.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.samples()[1].elapsed_ms, 3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The value at a dotted path in each sample. Array indices are numbers; a dot or a backslash that belongs to a
    /// name stands behind a backslash.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.stats("nr")?[1], Ok(&16.into()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ParsePathError`]. Each sample has an outcome of its own.
    pub fn stats(&self, path: &str) -> Result<Vec<Result<&Value, SnapshotError>>, ParsePathError> {
        let path: StatPath = path.parse()?;
        Ok(self.samples.iter().map(|sample| path.look_up(sample)).collect())
    }

    /// The names of all fields at a path over all samples that have it, in order; for the empty path those of the
    /// stats themselves.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert!(series.keys("")?.contains("nr"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn keys(&self, path: &str) -> Result<BTreeSet<String>, ParsePathError> {
        let path: StatPath = if path.is_empty() { StatPath::root() } else { path.parse()? };
        let objects = self.samples.iter().filter_map(|sample| path.look_up(sample).ok()?.as_object());
        Ok(objects.flat_map(|object| object.keys().cloned()).collect())
    }
}

impl FromIterator<Sample> for SampleSeries {
    fn from_iter<I: IntoIterator<Item = Sample>>(samples: I) -> Self {
        Self { samples: samples.into_iter().collect() }
    }
}

impl Extend<Sample> for SampleSeries {
    fn extend<I: IntoIterator<Item = Sample>>(&mut self, samples: I) {
        self.samples.extend(samples);
    }
}

impl IntoIterator for SampleSeries {
    type Item = Sample;
    type IntoIter = std::vec::IntoIter<Sample>;

    fn into_iter(self) -> Self::IntoIter {
        self.samples.into_iter()
    }
}

#[cfg(test)]
mod tests;
