//! Counters of a client's calls.

use std::collections::BTreeMap;
use std::time::Duration;

use super::poll_client::Traffic;
use crate::histogram::Histogram;
use crate::stats::SchedStatsError;

/// Counters of the calls of a client and all its clones.
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
    /// Calls that have ended, with an answer or an error.
    pub requests: u64,
    /// Calls that ended with an answer.
    pub answers: u64,
    /// Calls that ended with an error, by its [kind](SchedStatsError::kind).
    pub reasons: BTreeMap<&'static str, u64>,
    /// Bytes of requests that were written, LFs included.
    pub bytes_sent: u64,
    /// Bytes that the agent sent, its hellos and LFs included.
    pub bytes_received: u64,
    /// Sessions that were opened. All but the first are renewals.
    pub sessions: u64,
    /// How long answers took, from the call to its return, without the calls that wait for a scheduler or an agent.
    pub latency: Histogram,
}

impl Statistics {
    /// Counts a call that ended.
    pub(super) fn record<T>(&mut self, outcome: &Result<T, SchedStatsError>, latency: Option<Duration>) {
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

    /// Copies the totals of a [`PollClient`](super::PollClient).
    pub(super) fn record_traffic(&mut self, traffic: Traffic) {
        self.bytes_sent = traffic.sent;
        self.bytes_received = traffic.received;
        self.sessions = traffic.sessions;
    }

    /// Returns how many sessions were opened after another had ended.
    #[must_use]
    pub fn renewals(&self) -> u64 {
        self.sessions.saturating_sub(1)
    }
}
