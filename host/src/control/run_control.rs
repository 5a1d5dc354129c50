//! A run, as its VMM stops it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::in_flight::{InFlight, InFlightCall};
use super::watchdog::Watchdog;
use crate::stats::SchedStatsError;

/// Stops the calls of one run, in all clients that were built with it. Clones are cheap and share the run.
///
/// ```
/// use scx_vsock::{Endpoint, RunControl, SchedStatsClient, SchedStatsError};
///
/// let control = RunControl::new();
/// let agent: Endpoint = "unix:/run/agent.sock".parse()?;
/// let client = SchedStatsClient::builder(agent).control(&control).build();
///
/// let frozen = control.freeze();
/// assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
/// drop(frozen);
///
/// control.cancel();
/// assert_eq!(client.stats(&[]), Err(SchedStatsError::Cancelled));
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Clone)]
pub struct RunControl {
    in_flight: Arc<InFlight>,
}

impl Default for RunControl {
    fn default() -> Self {
        Self { in_flight: Arc::new(InFlight::new()) }
    }
}

impl fmt::Debug for RunControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunControl")
            .field("frozen", &self.is_frozen())
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

impl RunControl {
    /// Creates a run that is neither frozen nor cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Freezes the run until the guard is dropped: calls in flight end with
    /// [`DuringFreeze`](SchedStatsError::DuringFreeze) at once, even if the guard is dropped right away, and none can
    /// begin. Freezes may be nested or concurrent; the drop of the last guard thaws the run.
    ///
    /// Never blocks or allocates, so it may be called under any lock.
    ///
    /// ```
    /// let run = scx_vsock::RunControl::new();
    /// let outer = run.freeze();
    /// drop(run.freeze());
    /// assert!(run.is_frozen(), "the last guard thaws");
    /// drop(outer);
    /// assert!(!run.is_frozen());
    /// ```
    #[must_use = "the run is thawed when the guard is dropped"]
    pub fn freeze(&self) -> FreezeGuard {
        self.in_flight.freeze();
        FreezeGuard { in_flight: Arc::clone(&self.in_flight) }
    }

    /// Ends the run: calls in flight and all later ones end with [`Cancelled`](SchedStatsError::Cancelled).
    ///
    /// Never blocks or allocates, so it may be called under any lock.
    pub fn cancel(&self) {
        self.in_flight.cancel();
    }

    /// Starts a thread that cancels the run after this time, unless the watchdog is disarmed or dropped before.
    ///
    /// # Errors
    ///
    /// If the thread cannot be created.
    pub fn watchdog(&self, after: Duration) -> std::io::Result<Watchdog> {
        Watchdog::start(Arc::clone(&self.in_flight), after)
    }

    /// Whether a guard of [`freeze`](Self::freeze) is alive.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.in_flight.is_frozen()
    }

    /// Whether the run was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.in_flight.is_cancelled()
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// See [`InFlight::begin`].
    pub(crate) fn begin_call(&self) -> Result<InFlightCall, SchedStatsError> {
        self.in_flight.begin()
    }
}

/// Keeps a run frozen; thaws it on drop, in whichever thread that is.
#[must_use = "the run is thawed when this is dropped"]
pub struct FreezeGuard {
    in_flight: Arc<InFlight>,
}

impl fmt::Debug for FreezeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreezeGuard").finish_non_exhaustive()
    }
}

impl Drop for FreezeGuard {
    fn drop(&mut self) {
        self.in_flight.thaw();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = {
        const fn sent<T: Send + 'static>() {}
        const fn shared<T: Send + Sync + 'static>() {}
        sent::<FreezeGuard>();
        shared::<RunControl>();
    };

    #[test]
    fn the_last_guard_thaws_the_run() {
        let control = RunControl::new();
        let (outer, inner) = (control.freeze(), control.clone().freeze());
        drop(outer);
        assert_eq!(control.begin_call().unwrap_err(), SchedStatsError::DuringFreeze);
        drop(inner);
        assert!(control.begin_call().is_ok() && !control.is_frozen());
    }
}
