//! The stats of one moment.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stats::{MissingStatsReason, SchedExt};

/// One moment's stats.
///
/// Its JSON is serde's own form and part of this crate's contract:
///
/// ```
/// use scx_vsock::{MissingStatsReason, Sample};
///
/// let line = r#"{"tag":"boot","elapsed_ms":12,"session":1,"interval_ms":null,"stats":{"Ok":{"nr":1}}}"#;
/// let sample: Sample = serde_json::from_str(line)?;
/// assert_eq!(sample.stats, Ok(serde_json::json!({ "nr": 1 })));
/// assert_eq!(serde_json::to_string(&sample)?, line);
///
/// let missing = Sample::new("boot", Err(MissingStatsReason::Cancelled));
/// assert!(serde_json::to_string(&missing)?.ends_with(r#""stats":{"Err":"Cancelled"}}"#));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// What the caller calls this moment.
    pub tag: String,
    /// Milliseconds from the sampler's start to when the answer was in.
    pub elapsed_ms: u64,
    /// The number of the session that the request was begun on, 0 if it was begun on none. With another one the
    /// scheduler's deltas have another baseline.
    pub session: u64,
    /// Milliseconds that the deltas span: those since the session's previous read of these stats, by whichever clone of the
    /// client. `None` when their baseline is new, and they span almost no time.
    pub interval_ms: Option<u64>,
    /// The stats, or why there are none.
    pub stats: Result<Value, MissingStatsReason>,
    /// What the guest's kernel said about sched_ext right after the stats, or why it did not. `None`, and absent in JSON,
    /// where the sampler [was not asked to](super::Sampler::kernel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Result<SchedExt, MissingStatsReason>>,
}

impl Sample {
    /// Returns a sample at 0 ms, on no session, without what the kernel says.
    #[must_use]
    pub fn new(tag: impl Into<String>, stats: Result<Value, MissingStatsReason>) -> Self {
        Self { tag: tag.into(), elapsed_ms: 0, session: 0, interval_ms: None, stats, kernel: None }
    }
}
