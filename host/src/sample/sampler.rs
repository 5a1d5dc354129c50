//! Takes samples of one scheduler on demand.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::sample::Sample;
use crate::client::{Reading, SchedStatsClient};
use crate::control::RunControl;
use crate::stats::MissingStatsReason;

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
    /// What ends a sample beside the client's own run.
    pub(super) stop: RunControl,
}

impl Sampler {
    /// Returns a sampler of this client's scheduler, or of none if the run is configured without one. Does no I/O.
    #[must_use]
    pub fn new(client: Option<SchedStatsClient>) -> Self {
        Self { client, started: Instant::now(), stop: RunControl::new() }
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
        let (session, reading) = self.read();
        let elapsed_ms = milliseconds(self.started.elapsed());
        let interval_ms = reading.as_ref().ok().and_then(|reading| reading.interval).map(milliseconds);
        Sample { tag: tag.into(), elapsed_ms, session, interval_ms, stats: reading.map(|reading| reading.value) }
    }

    /// Reads the stats; also returns the session, 0 without one.
    fn read(&self) -> (u64, Result<Reading<Value>, MissingStatsReason>) {
        let Some(client) = &self.client else { return (0, Err(MissingStatsReason::NoSchedulerBinary)) };
        let (session, reading) = client.read_until(&self.stop);
        (session, reading.map_err(MissingStatsReason::from))
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
