//! One value of every sample, as a type, and how it changes.

use std::time::Duration;

use serde_json::Value;

use super::number::Number;
use super::series::SampleSeries;
use super::snapshot_error::{SnapshotError, stat};
use crate::sample::Sample;
use crate::stats::path::kind;
use crate::stats::{ParsePathError, StatPath};

/// A type that a column can have.
pub trait FromStat: Sized {
    /// The type's name, for messages.
    const NAME: &'static str;

    /// Returns the value as this type, if it is one without loss.
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

    /// Integers are taken, too; beyond 2^53 as the nearest float.
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

/// How a number changed from one sample to the next.
///
/// ```
/// use scx_vsock::SampleSeries;
/// use scx_vsock::series::{Change, Delta};
///
/// let lines = concat!(
///     r#"{"tag":"a","elapsed_ms":1000,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":10}}}"#, "\n",
///     r#"{"tag":"b","elapsed_ms":3000,"session":1,"interval_ms":2000,"stats":{"Ok":{"nr":16}}}"#, "\n",
/// );
/// let series = SampleSeries::from_json_lines(lines)?;
/// let change = Change::Since { delta: Delta::Integer(6), rate: Some(3.0) };
/// assert_eq!(series.changes("nr")?, [Change::NewBaseline, change]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Both samples have the value, on one baseline: its change, and the change a second.
    Since {
        /// What was added; negative for what was taken away.
        delta: Delta,
        /// The delta by the seconds between the samples; `None` if there was no millisecond between them.
        rate: Option<f64>,
    },
    /// There is nothing before it on the same baseline: the first sample, one after a hole, or one of a new session.
    NewBaseline,
    /// The sample has no value itself.
    Missing(SnapshotError),
}

/// The difference of two numbers, exact if both are integers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delta {
    /// Of two integers.
    Integer(i128),
    /// Of two numbers of which one is none.
    Float(f64),
}

impl Delta {
    /// Returns the difference as a float; beyond 2^53 the nearest one.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "documented")]
    pub const fn as_f64(self) -> f64 {
        match self {
            Self::Integer(delta) => delta as f64,
            Self::Float(delta) => delta,
        }
    }
}

impl FromStat for Number {
    const NAME: &'static str = "number";

    fn from_stat(value: &Value) -> Option<Self> {
        Self::of(value)
    }
}

impl SampleSeries {
    /// Returns the values at a path, as a type: `u64`, `i64`, `f64` or `String`. One outcome a sample.
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn column<T: FromStat>(&self, path: &str) -> Result<Vec<Result<T, SnapshotError>>, ParsePathError> {
        let path: StatPath = path.parse()?;
        Ok(self.samples.iter().map(|sample| typed(&path, sample)).collect())
    }

    /// Returns how the number at a path changes from sample to sample: for counters that grow without end. A change never
    /// reaches across a new session or a sample without the value.
    ///
    /// # Errors
    ///
    /// [`ParsePathError`].
    pub fn changes(&self, path: &str) -> Result<Vec<Change>, ParsePathError> {
        let path: StatPath = path.parse()?;
        let mut before: Option<(&Sample, Number)> = None;
        let changes = self.samples.iter().map(|sample| match typed::<Number>(&path, sample) {
            Ok(value) => {
                let change = before
                    .filter(|(before, _)| before.session == sample.session)
                    .map_or(Change::NewBaseline, |(before, earlier)| {
                        since(earlier, value, sample.elapsed_ms.saturating_sub(before.elapsed_ms))
                    });
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
    let value = stat(path, sample)?;
    T::from_stat(value).ok_or_else(|| SnapshotError::WrongType {
        tag: sample.tag.clone(),
        path: path.to_string(),
        wanted: T::NAME,
        found: kind(value).to_owned(),
    })
}

/// Returns the change of a number within this time.
pub(super) fn since(earlier: Number, later: Number, elapsed_ms: u64) -> Change {
    let delta = match (later, earlier) {
        // Integers have 64 bits, so that their difference never overflows.
        (Number::Integer(later), Number::Integer(earlier)) => Delta::Integer(later.saturating_sub(earlier)),
        (later, earlier) => Delta::Float(later.as_f64() - earlier.as_f64()),
    };
    let seconds = Duration::from_millis(elapsed_ms).as_secs_f64();
    Change::Since { delta, rate: (seconds > 0.0).then(|| delta.as_f64() / seconds) }
}
