//! One value of every sample, as a type, and how it changes.

use serde_json::Value;

use super::{ParsePathError, SampleSeries, SnapshotError, StatPath};
use crate::sample::Sample;
use crate::stats::path::kind;

/// A type that a column can have.
///
/// ```
/// use scx_vsock::series::FromStat;
///
/// assert_eq!(u64::from_stat(&7.into()), Some(7));
/// assert_eq!(u64::from_stat(&(-7).into()), None);
/// ```
pub trait FromStat: Sized {
    /// Its name, for messages.
    const NAME: &'static str;

    /// The value as this type, if it is one without loss.
    fn from_stat(value: &Value) -> Option<Self>;
}

impl FromStat for u64 {
    const NAME: &'static str = "u64";

    fn from_stat(value: &Value) -> Option<Self> {
        value.as_u64()
    }
}

impl FromStat for i64 {
    const NAME: &'static str = "i64";

    fn from_stat(value: &Value) -> Option<Self> {
        value.as_i64()
    }
}

impl FromStat for f64 {
    const NAME: &'static str = "f64";

    /// Whole numbers are taken too; those beyond 2^53 to the nearest.
    fn from_stat(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl FromStat for String {
    const NAME: &'static str = "string";

    fn from_stat(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

/// From one sample to the next.
///
/// ```
/// use scx_vsock::SampleSeries;
///
/// let lines = concat!(
///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
/// );
/// let series = SampleSeries::from_json_lines(lines)?;
/// use scx_vsock::series::Change;
///
/// assert_eq!(series.changes("nr")?, [Change::NewBaseline, Change::Since { delta: 6.0, rate: Some(3.0) }]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Both samples have the value, on one baseline: its change, and the change a second.
    Since {
        /// What was added; negative for what was taken away.
        delta: f64,
        /// The same by the seconds between the samples; `None` if there was no millisecond between them.
        rate: Option<f64>,
    },
    /// There is nothing before it on the same baseline: the first sample, one behind a hole, or one of a new session.
    NewBaseline,
    /// The sample has no value itself.
    Missing(SnapshotError),
}

impl SampleSeries {
    /// The values at a dotted path, as a type: `u64`, `i64`, `f64` or `String`. One outcome a sample.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.column::<f64>("nr")?[0], Ok(10.0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn column<T: FromStat>(&self, path: &str) -> Result<Vec<Result<T, SnapshotError>>, ParsePathError> {
        let path: StatPath = path.parse()?;
        Ok(self.samples.iter().map(|sample| typed(&path, sample)).collect())
    }

    /// How the number at a dotted path changes from sample to sample: for counters that grow without end. A change
    /// never reaches across a new session or a sample without the value.
    ///
    /// ```
    /// use scx_vsock::SampleSeries;
    ///
    /// let lines = concat!(
    ///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
    ///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
    /// );
    /// let series = SampleSeries::from_json_lines(lines)?;
    /// assert_eq!(series.changes("nr")?.len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn changes(&self, path: &str) -> Result<Vec<Change>, ParsePathError> {
        let path: StatPath = path.parse()?;
        let mut before: Option<(&Sample, f64)> = None;
        let changes = self.samples.iter().map(|sample| match typed::<f64>(&path, sample) {
            Ok(value) => {
                let change = before
                    .filter(|(before, _)| before.session == sample.session)
                    .map_or(Change::NewBaseline, |(before, earlier)| since(before, earlier, sample, value));
                before = Some((sample, value));
                change
            }
            Err(error) => {
                before = None;
                Change::Missing(error)
            }
        });
        Ok(changes.collect())
    }
}

fn typed<T: FromStat>(path: &StatPath, sample: &Sample) -> Result<T, SnapshotError> {
    let value = path.look_up(sample)?;
    T::from_stat(value).ok_or_else(|| SnapshotError::WrongType {
        tag: sample.tag.clone(),
        path: path.to_string(),
        wanted: T::NAME,
        found: kind(value).to_owned(),
    })
}

fn since(before: &Sample, earlier: f64, sample: &Sample, value: f64) -> Change {
    let delta = value - earlier;
    let seconds = std::time::Duration::from_millis(sample.elapsed_ms.saturating_sub(before.elapsed_ms)).as_secs_f64();
    Change::Since { delta, rate: (seconds > 0.0).then(|| delta / seconds) }
}
