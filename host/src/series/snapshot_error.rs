//! Why a sample has no value.

use serde_json::Value;

use crate::sample::Sample;
use crate::stats::path::listed;
use crate::stats::{MissingStatsReason, PathError, PeerText, StatPath};

/// Why a sample has no value at a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The sample has no stats.
    #[error("sample {:?} has no stats: {reason}", PeerText::line(tag))]
    MissingStats {
        /// The sample's tag.
        tag: String,
        /// Why.
        reason: MissingStatsReason,
    },
    /// The stats have nothing at this path.
    #[error("sample {:?} has no {field:?} at {at:?}; there is {}", PeerText::line(tag), listed(there))]
    MissingField {
        /// The sample's tag.
        tag: String,
        /// The part of the path that leads to a value; empty for the stats themselves.
        at: String,
        /// The component that the value does not have.
        field: String,
        /// What is there, as [`PathError::there`] lists it.
        there: Vec<String>,
    },
    /// The value is of another type.
    #[error("sample {:?} has {found} at {path:?}, which is no {wanted}", PeerText::line(tag))]
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

/// Returns the value at a path in a sample.
pub(super) fn stat<'s>(path: &StatPath, sample: &'s Sample) -> Result<&'s Value, SnapshotError> {
    let tag = || sample.tag.clone();
    let missing = |reason: &MissingStatsReason| SnapshotError::MissingStats { tag: tag(), reason: reason.clone() };
    let stats = sample.stats.as_ref().map_err(missing)?;
    path.get(stats).map_err(|PathError { at, field, there }| SnapshotError::MissingField {
        tag: tag(),
        at,
        field,
        there,
    })
}
