//! Samples of a scheduler's stats: one moment each, with stats or the reason why there are none.
//!
//! A [`Sampler`] takes them when it is told to; [`Sampler::spawn`] gives it a thread and a [`Schedule`].

mod background_sampler;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use background_sampler::{BackgroundSampler, SamplerStats, Schedule, ScheduleError};

use crate::client::SchedStatsClient;
use crate::control::RunControl;
use crate::stats::MissingStatsReason;

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
/// let missing = Sample { stats: Err(MissingStatsReason::Cancelled), ..sample };
/// assert!(serde_json::to_string(&missing)?.ends_with(r#""stats":{"Err":"Cancelled"}}"#));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What the caller calls this moment.
    pub tag: String,
    /// Milliseconds from the sampler's start to when the answer was in.
    pub elapsed_ms: u64,
    /// The number of the session that answered; with another one the scheduler's deltas have another baseline.
    pub session: u64,
    /// Milliseconds that the deltas span; `None` when their baseline is new, and they span almost no time.
    pub interval_ms: Option<u64>,
    /// The stats, or why there are none.
    pub stats: Result<Value, MissingStatsReason>,
}

/// Takes samples of one scheduler.
///
/// ```no_run
/// use scx_vsock::{Endpoint, Sampler, SchedStatsClient};
///
/// let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).build();
/// let mut sampler = Sampler::new(Some(client));
/// sampler.prime()?;
/// // ... the phase of the run that is looked at ...
/// let sample = sampler.sample("first phase");
/// println!("{}", serde_json::to_string(&sample)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    client: Option<SchedStatsClient>,
    started: Instant,
    baseline: Option<Baseline>,
    /// What ends a sample beside the client's own run.
    stop: RunControl,
}

/// Since when the scheduler's deltas count.
#[derive(Clone, Copy, Debug)]
struct Baseline {
    session: u64,
    at: Instant,
}

impl Sampler {
    /// A sampler of this client's scheduler; of none, when the run was configured without one. Does no I/O.
    ///
    /// ```
    /// use scx_vsock::{MissingStatsReason, Sampler};
    ///
    /// let mut sampler = Sampler::new(None);
    /// assert_eq!(sampler.sample("a").stats, Err(MissingStatsReason::NoSchedulerBinary));
    /// ```
    #[must_use]
    pub fn new(client: Option<SchedStatsClient>) -> Self {
        Self { client, started: Instant::now(), baseline: None, stop: RunControl::new() }
    }

    /// Reads the stats once and drops them, so that the next sample's deltas span the time from now on.
    ///
    /// ```
    /// use scx_vsock::{MissingStatsReason, Sampler};
    ///
    /// let mut sampler = Sampler::new(None);
    /// assert_eq!(sampler.prime(), Err(MissingStatsReason::NoSchedulerBinary));
    /// ```
    ///
    /// # Errors
    ///
    /// The reason that a sample would have had.
    pub fn prime(&mut self) -> Result<(), MissingStatsReason> {
        self.read().1.map(drop)
    }

    /// Takes a sample now. It takes as long as the client's deadline allows.
    ///
    /// ```
    /// use scx_vsock::{MissingStatsReason, Sampler};
    ///
    /// let mut sampler = Sampler::new(None);
    /// let sample = sampler.sample("after boot");
    /// assert_eq!((sample.tag.as_str(), sample.interval_ms), ("after boot", None));
    /// ```
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
        let at = Instant::now();
        self.baseline = stats.is_ok().then(|| Baseline { session: client.session(), at });
        (at, stats)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_a_scheduler_says_so_in_every_sample() {
        let mut sampler = Sampler::new(None);
        assert_eq!(sampler.prime(), Err(MissingStatsReason::NoSchedulerBinary));
        let sample = sampler.sample("a");
        assert_eq!((sample.tag.as_str(), sample.session, sample.interval_ms), ("a", 0, None));
        assert_eq!(sample.stats, Err(MissingStatsReason::NoSchedulerBinary));
    }
}
