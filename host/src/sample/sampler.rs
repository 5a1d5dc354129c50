//! Takes samples of one scheduler on demand.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::sample::Sample;
use crate::client::{Reading, SchedStatsClient};
use crate::control::RunControl;
use crate::stats::{MissingStatsReason, SchedExt};

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
    /// Asked for what the kernel says.
    kernel: Option<SchedStatsClient>,
    pub(super) started: Instant,
    /// What ends a sample beside the client's own run.
    pub(super) stop: RunControl,
}

impl Sampler {
    /// Returns a sampler of this client's scheduler, or of none if the run is configured without one. Does no I/O.
    #[must_use]
    pub fn new(client: Option<SchedStatsClient>) -> Self {
        Self { client, kernel: None, started: Instant::now(), stop: RunControl::new() }
    }

    /// Adds to each sample what the guest's kernel says about sched_ext, as this client reads it: also where there is no
    /// client for stats, since no scheduler is needed. A clone of the client for stats shares its session.
    ///
    /// A sample then takes up to two deadlines. If there is no agent, or the run is frozen or cancelled, the kernel is not
    /// asked in vain.
    ///
    /// ```no_run
    /// use scx_vsock::{Endpoint, Sampler, SchedStatsClient};
    ///
    /// let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).build();
    /// let sample = Sampler::new(Some(client.clone())).kernel(client).sample("now");
    /// if let Some(Ok(kernel)) = sample.kernel {
    ///     println!("{:?}", kernel.state);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn kernel(mut self, client: SchedStatsClient) -> Self {
        self.kernel = Some(client);
        self
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
        let stats = reading.map(|reading| reading.value);
        let kernel = self.kernel.as_ref().map(|client| self.ask_kernel(client, stats.as_ref().err()));
        Sample { tag: tag.into(), elapsed_ms, session, interval_ms, stats, kernel }
    }

    /// Reads what the kernel says, unless what ended the request for stats would end this one as well.
    fn ask_kernel(
        &self,
        client: &SchedStatsClient,
        missing: Option<&MissingStatsReason>,
    ) -> Result<SchedExt, MissingStatsReason> {
        use MissingStatsReason::{AgentUnreachable, Cancelled, DuringFreeze};
        match missing {
            Some(reason @ (AgentUnreachable { .. } | Cancelled | DuringFreeze)) => Err(reason.clone()),
            _ => client.sched_ext_until(&self.stop).map_err(MissingStatsReason::from),
        }
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
