//! Run-wide stops: freezes, cancel, watchdog.
//!
//! [`RunControl`] is what a monitor's own code holds; a client that was built with one ends its calls when it says so.
//! Its state is a few atomic numbers, and all who wait are woken through one descriptor, so that stopping takes no
//! lock and hardly depends on how many they are.

mod in_flight;
mod wait_queue;
mod watchdog;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use watchdog::Watchdog;

use crate::stats::SchedStatsError;
pub(crate) use in_flight::{Entry, InFlight};

/// The stops of one run, for all clients that were built with it. Cheap to clone: all clones are one.
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
    stops: Arc<InFlight>,
}

impl Default for RunControl {
    fn default() -> Self {
        Self { stops: Arc::new(InFlight::new()) }
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
    /// A run that goes on.
    ///
    /// ```
    /// let run = scx_vsock::RunControl::new();
    /// assert!(!run.is_frozen() && !run.is_cancelled());
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Freezes the run until the guard is dropped: calls that are in flight end with
    /// [`DuringFreeze`](SchedStatsError::DuringFreeze) at once, also if the guard is dropped at once, and none can
    /// start. Several freezes may be nested or concurrent; the last guard thaws.
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
        self.stops.freeze();
        FreezeGuard { stops: Arc::clone(&self.stops) }
    }

    /// Ends the run for good: calls that are in flight and all later ones end with
    /// [`Cancelled`](SchedStatsError::Cancelled).
    ///
    /// Never blocks or allocates, so it may be called under any lock.
    ///
    /// ```
    /// let run = scx_vsock::RunControl::new();
    /// run.clone().cancel();
    /// assert!(run.is_cancelled(), "all clones are one run");
    /// ```
    pub fn cancel(&self) {
        self.stops.cancel();
    }

    /// Cancels the run after this time, unless the watchdog is disarmed or dropped before.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let run = scx_vsock::RunControl::new();
    /// let watchdog = run.watchdog(Duration::from_secs(600))?;
    /// // ... the run ...
    /// drop(watchdog);
    /// assert!(!run.is_cancelled());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the kernel says if it has no thread for it.
    pub fn watchdog(&self, after: Duration) -> std::io::Result<Watchdog> {
        Watchdog::start(self.clone(), after)
    }

    /// Whether a guard of [`freeze`](Self::freeze) is alive.
    ///
    /// ```
    /// let run = scx_vsock::RunControl::new();
    /// let frozen = run.freeze();
    /// assert!(run.is_frozen());
    /// ```
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.stops.is_frozen()
    }

    /// Whether the run was cancelled.
    ///
    /// ```
    /// let run = scx_vsock::RunControl::new();
    /// assert!(!run.is_cancelled());
    /// ```
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.stops.is_cancelled()
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// See [`InFlight::enter`].
    pub(crate) fn enter(&self) -> Result<Entry, SchedStatsError> {
        self.stops.enter()
    }
}

/// A frozen run; thaws on drop.
///
/// ```
/// use scx_vsock::{RunControl, control::FreezeGuard};
///
/// let run = RunControl::new();
/// let frozen: FreezeGuard = run.freeze();
/// // It may be dropped by another thread.
/// std::thread::spawn(move || drop(frozen)).join().unwrap();
/// assert!(!run.is_frozen());
/// ```
#[must_use = "the run is thawed when this is dropped"]
pub struct FreezeGuard {
    stops: Arc<InFlight>,
}

impl fmt::Debug for FreezeGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreezeGuard").finish_non_exhaustive()
    }
}

impl Drop for FreezeGuard {
    fn drop(&mut self) {
        self.stops.thaw();
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
    fn a_run_is_frozen_until_its_last_guard_goes() {
        let control = RunControl::new();
        let (outer, inner) = (control.freeze(), control.clone().freeze());
        drop(outer);
        assert_eq!(control.enter().unwrap_err(), SchedStatsError::DuringFreeze);
        drop(inner);
        assert!(control.enter().is_ok() && !control.is_frozen());
    }
}
