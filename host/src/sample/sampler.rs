//! Takes samples of one scheduler on demand.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::sample::Sample;
use crate::client::SchedStatsClient;
use crate::control::RunControl;
use crate::stats::{MAX_JSON_DEPTH, MissingStatsReason, nest_too_deep};

/// Takes samples of one scheduler.
///
/// ```no_run
/// use scx_vsock::{Endpoint, Sampler, SchedStatsClient};
///
/// let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).build();
/// let mut sampler = Sampler::new(Some(client));
/// sampler.prime()?;
/// // ... the phase to measure ...
/// let sample = sampler.sample("first phase");
/// println!("{}", serde_json::to_string(&sample)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    client: Option<SchedStatsClient>,
    pub(super) started: Instant,
    baseline: Option<Baseline>,
    /// What ends a sample beside the client's own run.
    pub(super) stop: RunControl,
}

/// Since when the scheduler's deltas count.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    session: u64,
    at: Instant,
}

impl Sampler {
    /// Returns a sampler of this client's scheduler, or of none if the run is configured without one. Does no I/O.
    #[must_use]
    pub fn new(client: Option<SchedStatsClient>) -> Self {
        Self { client, started: Instant::now(), baseline: None, stop: RunControl::new() }
    }

    /// Reads the stats once and drops them, so that the next sample's deltas span the time from here.
    ///
    /// # Errors
    ///
    /// The reason that a sample would have.
    pub fn prime(&mut self) -> Result<(), MissingStatsReason> {
        self.read().1.map(drop)
    }

    /// Takes a sample now. It takes as long as the client's deadline allows.
    pub fn sample(&mut self, tag: impl Into<String>) -> Sample {
        let before = self.baseline;
        let (at, stats) = self.read();
        let session = self.client.as_ref().map_or(0, SchedStatsClient::session);
        let interval = before.filter(|baseline| stats.is_ok() && baseline.session == session);
        Sample {
            tag: tag.into(),
            elapsed_ms: milliseconds(at.duration_since(self.started)),
            session,
            interval_ms: interval.map(|baseline| milliseconds(at.duration_since(baseline.at))),
            stats,
        }
    }

    /// Asks, and keeps when the deltas now begin to count.
    fn read(&mut self) -> (Instant, Result<Value, MissingStatsReason>) {
        let Some(client) = &self.client else { return (Instant::now(), Err(MissingStatsReason::NoSchedulerBinary)) };
        let stats = client.stats_until(&self.stop).map_err(MissingStatsReason::from);
        let stats = bounded(stats);
        let at = Instant::now();
        self.baseline = stats.is_ok().then(|| Baseline { session: client.session(), at });
        (at, stats)
    }
}

/// Returns what a recording can hold: stats, or an error's `args`, that nest too deep are malformed.
fn bounded(stats: Result<Value, MissingStatsReason>) -> Result<Value, MissingStatsReason> {
    if nest_too_deep(&stats) {
        let reason = format!("the answer nests more than {MAX_JSON_DEPTH} levels deep");
        return Err(MissingStatsReason::MalformedResponse { reason });
    }
    stats
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn stats_that_nest_too_deep_are_malformed() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        let malformed = |stats| matches!(bounded(stats), Err(MissingStatsReason::MalformedResponse { .. }));
        assert!(!malformed(Ok(nested(96))) && malformed(Ok(nested(97))));
        let error = |depth| Err(MissingStatsReason::SchedulerError { errno: 22, args: nested(depth) });
        assert!(!malformed(error(96)) && malformed(error(97)));
    }

    #[test]
    fn a_run_without_a_scheduler_says_so_in_every_sample() {
        let mut sampler = Sampler::new(None);
        assert_eq!(sampler.prime(), Err(MissingStatsReason::NoSchedulerBinary));
        let sample = sampler.sample("a");
        assert_eq!((sample.tag.as_str(), sample.session, sample.interval_ms), ("a", 0, None));
        assert_eq!(sample.stats, Err(MissingStatsReason::NoSchedulerBinary));
    }
}
