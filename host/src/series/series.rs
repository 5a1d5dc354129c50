//! Samples of one run, and their values by path.

use std::collections::BTreeSet;

use serde_json::Value;

use super::snapshot_error::{SnapshotError, stat};
use crate::sample::Sample;
use crate::stats::{ParsePathError, StatPath};

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
    pub(super) samples: Vec<Sample>,
}

impl SampleSeries {
    /// Returns a series without samples.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sample after the others.
    pub fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Returns the samples, in the order in which they were taken.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Returns the value at a [path](StatPath) in each sample.
    ///
    /// # Errors
    ///
    /// [`ParsePathError`]. Each sample has an outcome of its own.
    pub fn stats(&self, path: &str) -> Result<Vec<Result<&Value, SnapshotError>>, ParsePathError> {
        let path: StatPath = path.parse()?;
        Ok(self.samples.iter().map(|sample| stat(&path, sample)).collect())
    }

    /// Returns the names of all fields at a path over all samples that have it, in order; for the empty path those of the
    /// stats themselves. A field without a name, which no path leads to, is not listed.
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn keys(&self, path: &str) -> Result<BTreeSet<String>, ParsePathError> {
        let path: StatPath = if path.is_empty() { StatPath::root() } else { path.parse()? };
        let objects = self.samples.iter().filter_map(|sample| stat(&path, sample).ok()?.as_object());
        Ok(objects.flat_map(|object| object.keys().filter(|name| !name.is_empty()).cloned()).collect())
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
