//! One read of a scheduler's stats.

use std::time::Duration;

/// What a read of a scheduler's stats returned, in which session, and since when its deltas count.
///
/// ```no_run
/// use scx_vsock::{Endpoint, SchedStatsClient};
///
/// let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).build();
/// let reading = client.read::<serde_json::Value>(&[])?;
/// match reading.interval {
///     Some(interval) => println!("over {interval:?}: {}", reading.value),
///     None => println!("from a new baseline: {}", reading.value),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reading<T> {
    /// The stats.
    pub value: T,
    /// The number of the session that answered, counted from 1. In another one the deltas have another baseline.
    pub session: u64,
    /// The time since that session's previous read of the same target, by whichever clone of the client: what the deltas
    /// span. `None` for the first.
    pub interval: Option<Duration>,
}
