//! The value of one sample, or why it has none.

use std::fmt;

use serde_json::Value;

use crate::stats::PeerText;

/// The value of one sample, or why it has none. Texts of peers are truncated.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observation {
    /// The sample's number in the series, counted from 1.
    pub sample: u64,
    /// Its tag.
    pub tag: String,
    /// Its time in milliseconds.
    pub elapsed_ms: u64,
    /// The value: a number, a string or a boolean.
    pub value: Result<Value, NoValue>,
}

/// Why a sample, or a whole series, has no value of an expectation. From what says the least to what says the most.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoValue {
    /// There is no sample, or none in the window.
    #[error("there is no sample")]
    NoSample,
    /// The sampler was not asked for what the kernel says.
    #[error("what the kernel says was not sampled")]
    NotSampled,
    /// The sample has no stats, or the kernel's answer is missing.
    #[error("{reason}")]
    Hole {
        /// Why, as the sample has it.
        reason: String,
    },
    /// There is nothing at the path.
    #[error("there is no {path}{}", suggestion(nearest.as_deref()))]
    NoField {
        /// The path.
        path: String,
        /// The path that is the most like it, if one is.
        nearest: Option<String>,
    },
    /// There is nothing before it on the same baseline that a change could be counted from.
    #[error("its baseline is new")]
    NewBaseline,
    /// The value is of another type.
    #[error("{path} is {found}, not {wanted}")]
    WrongType {
        /// The path.
        path: String,
        /// The type that it has.
        found: &'static str,
        /// The type that counts.
        wanted: &'static str,
    },
    /// A series has too few values to compare them with each other.
    #[error("there are no two values to compare")]
    OneValue,
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; the nearest is {nearest}")).unwrap_or_default()
}

impl NoValue {
    /// How much it says of a series.
    pub(super) const fn rank(&self) -> u8 {
        match self {
            Self::NoSample => 0,
            Self::NotSampled => 1,
            Self::Hole { .. } => 2,
            Self::NoField { .. } => 3,
            Self::NewBaseline => 4,
            Self::WrongType { .. } => 5,
            Self::OneValue => 6,
        }
    }
}

/// The sample by its number, tag and time.
impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.elapsed_ms / 1000, self.elapsed_ms % 1000);
        write!(f, "sample {} ({:?}) at {seconds}.{ms:03} s", self.sample, PeerText::line(&self.tag))
    }
}

/// Returns the value as text, or why there is none.
pub(super) fn value_text(value: &Result<Value, NoValue>) -> String {
    match value {
        Ok(Value::String(text)) => format!("{:?}", PeerText::line(text)),
        Ok(value) => PeerText::line(value).to_string(),
        Err(missing) => format!("none ({missing})"),
    }
}
