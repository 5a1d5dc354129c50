//! What a client's calls came to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::poll_client::Traffic;
use crate::histogram::Histogram;
use crate::stats::SchedStatsError;

/// What the calls of a client and all its clones came to so far.
///
/// ```
/// use scx_vsock::{Endpoint, SchedStatsClient};
///
/// let client = SchedStatsClient::builder("unix:/run/no-agent.sock".parse::<Endpoint>()?).build();
/// assert!(client.stats(&[]).is_err() && client.request_raw("").is_err());
///
/// let statistics = client.statistics();
/// assert_eq!((statistics.requests, statistics.answers, statistics.bytes_sent), (2, 0, 0));
/// assert_eq!(statistics.reasons["agent_unreachable"], 1);
/// assert_eq!(statistics.reasons["invalid_request"], 1);
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Calls that have ended, whatever with.
    pub requests: u64,
    /// Those that ended with what was asked for.
    pub answers: u64,
    /// The others, by the [kind](SchedStatsError::kind) of their error.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Bytes of requests that were written, LFs included.
    pub bytes_sent: u64,
    /// Bytes that the agent sent, its hellos and LFs included.
    pub bytes_received: u64,
    /// Sessions that were opened. All but the first are renewals.
    pub sessions: u64,
    /// How long answers took, from the call to its return. What the scheduler itself was waited for is not in it.
    pub latency: Histogram,
}

impl Statistics {
    /// Takes note of a call that ended.
    pub(super) fn note<T>(&mut self, outcome: &Result<T, SchedStatsError>, latency: Option<Duration>) {
        self.requests += 1;
        match outcome {
            Ok(_) => {
                self.answers += 1;
                if let Some(latency) = latency {
                    self.latency.record(latency);
                }
            }
            Err(error) => *self.reasons.entry(error.kind()).or_default() += 1,
        }
    }

    /// Takes note of what a conversation has moved since it began.
    pub(super) fn note_traffic(&mut self, traffic: Traffic) {
        self.bytes_sent = traffic.sent;
        self.bytes_received = traffic.received;
        self.sessions = traffic.sessions;
    }

    /// Sessions that were opened after another had ended.
    ///
    /// ```
    /// assert_eq!(scx_vsock::client::Statistics::default().renewals(), 0);
    /// ```
    #[must_use]
    pub fn renewals(&self) -> u64 {
        self.sessions.saturating_sub(1)
    }
}
