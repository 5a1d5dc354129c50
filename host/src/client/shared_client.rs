//! What the clones of a client share, whichever way they wait.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Instant;

use super::decode::Decoded;
use super::poll_client::PollClient;
use super::session::{Answer, Request};
use super::statistics::Statistics;
use crate::control::RunControl;
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::stats::SchedStatsError;

/// What the clones of a client share. `L` is the lock around the [`PollClient`], which hands it out first come, first
/// served.
pub(super) struct SharedClient<L> {
    pub(super) endpoint: Arc<dyn Connect>,
    pub(super) control: RunControl,
    pub(super) poll_client: L,
    /// The number of the newest session, to be read without a lock.
    session: AtomicU64,
    /// Whether its agent has sent hello, or sends none: how far a call came that could not lock the session.
    is_greeted: AtomicBool,
    statistics: Mutex<Statistics>,
}

impl<L> SharedClient<L> {
    /// Returns a client without a session.
    pub(super) fn new(poll_client: PollClient, control: RunControl, lock: impl FnOnce(PollClient) -> L) -> Self {
        Self {
            endpoint: Arc::clone(poll_client.endpoint()),
            control,
            session: AtomicU64::new(0),
            is_greeted: AtomicBool::new(poll_client.is_greeted()),
            poll_client: lock(poll_client),
            statistics: Mutex::default(),
        }
    }

    /// Returns the number of the newest session, 0 before the first.
    pub(super) fn session(&self) -> u64 {
        self.session.load(Ordering::Relaxed)
    }

    pub(super) fn statistics(&self) -> MutexGuard<'_, Statistics> {
        // Whole at every point where a thread could panic.
        self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the error of a call that ended with this one before its request was begun: at the deadline, how far others
    /// on its session came.
    pub(super) fn before_its_turn(&self, error: SchedStatsError, request: &Request) -> SchedStatsError {
        let SchedStatsError::TimedOut { after_ms } = error else { return error };
        if !self.is_greeted.load(Ordering::Relaxed) {
            let reason = format!("{}: no hello within {after_ms} ms, before this call had its turn", self.endpoint);
            SchedStatsError::unreachable(reason)
        } else if request.awaits_scheduler() {
            let reason = format!("the agent was not asked within {after_ms} ms: this call did not have its turn");
            SchedStatsError::NoScheduler { reason }
        } else {
            SchedStatsError::TimedOut { after_ms }
        }
    }

    /// Publishes how far the locked session is.
    pub(super) fn publish(&self, poll_client: &PollClient) {
        self.session.store(poll_client.session(), Ordering::Relaxed);
        self.is_greeted.store(poll_client.is_greeted(), Ordering::Relaxed);
    }

    /// Publishes how far the locked session is at the end of a request.
    pub(super) fn publish_end(&self, poll_client: &PollClient) {
        self.publish(poll_client);
        self.statistics().record_traffic(poll_client.traffic());
    }

    /// Begins a request on the locked session. `check_stops` tells whether the call's run was stopped.
    pub(super) fn begin(
        &self,
        poll_client: &mut PollClient,
        request: Request,
        deadline: Deadline,
        check_stops: impl Fn() -> Result<(), SchedStatsError>,
    ) -> Result<(), SchedStatsError> {
        let begun = poll_client.begin(request, deadline);
        self.publish(poll_client);
        begun.map_err(|error| check_stops().err().unwrap_or(error))
    }

    /// Drives a request that was begun as far as it goes without waiting. Returns its outcome once that is known: a stop of
    /// the run comes before the session's end and the deadline, and a complete answer before the stop.
    pub(super) fn advance<T>(
        &self,
        poll_client: &mut PollClient,
        decode: impl Fn(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
        check_stops: impl Fn() -> Result<(), SchedStatsError>,
    ) -> Option<Result<T, SchedStatsError>> {
        match poll_client.on_ready(Instant::now(), decode) {
            Poll::Ready(Err(error)) if poll_client.yields_to_stops(&error) => Some(check_stops().and(Err(error))),
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => {
                self.publish(poll_client);
                None
            }
        }
    }
}
