//! Run-wide stops: freezes, cancel, watchdog.
//!
//! [`RunControl`] is what a monitor's own code holds; a client that was built with one ends its calls when it says so.
//! Its state is a few atomic numbers, and who waits is woken through a descriptor of its own, so that
//! stopping takes no lock.

mod wakers;
mod watchdog;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub use watchdog::Watchdog;

use crate::error::SchedStatsError;
use crate::wake::Wake;
use wakers::{Waker, Wakers};

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
#[derive(Clone, Default)]
pub struct RunControl {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Guards that are alive.
    freezes: AtomicUsize,
    /// Freezes so far, so that one that is over still ends what it met.
    epoch: AtomicU64,
    cancelled: AtomicBool,
    wakers: Wakers,
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
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Freezes the run until the guard is dropped: calls that are in flight end with
    /// [`DuringFreeze`](SchedStatsError::DuringFreeze) at once, also if the guard is dropped at once, and none can
    /// start. Several freezes may be nested or concurrent; the last guard thaws.
    ///
    /// Never blocks or allocates, so it may be called under any lock.
    #[must_use = "the run is thawed when the guard is dropped"]
    pub fn freeze(&self) -> Frozen {
        self.shared.freezes.fetch_add(1, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.wakers.wake_all();
        Frozen { shared: Arc::clone(&self.shared) }
    }

    /// Ends the run for good: calls that are in flight and all later ones end with
    /// [`Cancelled`](SchedStatsError::Cancelled).
    ///
    /// Never blocks or allocates, so it may be called under any lock.
    pub fn cancel(&self) {
        self.shared.cancelled.store(true, Ordering::SeqCst);
        self.shared.wakers.wake_all();
    }

    /// Cancels the run after this time, unless the watchdog is disarmed or dropped before.
    ///
    /// # Errors
    ///
    /// What the kernel says if it has no thread for it.
    pub fn watchdog(&self, after: Duration) -> std::io::Result<Watchdog> {
        Watchdog::start(self.clone(), after)
    }

    /// Whether a guard of [`freeze`](Self::freeze) is alive.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.shared.freezes.load(Ordering::SeqCst) > 0
    }

    /// Whether the run was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// If none can start: [`SchedStatsError::Cancelled`], [`SchedStatsError::DuringFreeze`]; or there is no descriptor
    /// to wait with.
    pub(crate) fn enter(&self) -> Result<Entry, SchedStatsError> {
        // Before it looks at the state: a stop that comes in between finds the waker.
        let waker = self.shared.wakers.take()?;
        let epoch = self.shared.epoch.load(Ordering::SeqCst);
        let entry = Entry { shared: Arc::clone(&self.shared), epoch, waker };
        if self.is_frozen() && !self.is_cancelled() {
            return Err(SchedStatsError::DuringFreeze);
        }
        entry.stopped().map(|()| entry)
    }
}

/// A call that the run can stop.
pub(crate) struct Entry {
    shared: Arc<Shared>,
    epoch: u64,
    waker: Waker,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Entry {
    /// Whether the run was stopped since this call began: cancel comes before freeze.
    pub(crate) fn stopped(&self) -> Result<(), SchedStatsError> {
        if self.shared.cancelled.load(Ordering::SeqCst) {
            Err(SchedStatsError::Cancelled)
        } else if self.shared.epoch.load(Ordering::SeqCst) != self.epoch {
            Err(SchedStatsError::DuringFreeze)
        } else {
            Ok(())
        }
    }

    /// What wakes this call.
    pub(crate) fn wake(&self) -> &Arc<Wake> {
        self.waker.wake()
    }
}

/// A frozen run; thaws on drop.
#[must_use = "the run is thawed when this is dropped"]
pub struct Frozen {
    shared: Arc<Shared>,
}

impl fmt::Debug for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").finish_non_exhaustive()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.shared.freezes.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = {
        const fn sent<T: Send + 'static>() {}
        const fn shared<T: Send + Sync + 'static>() {}
        sent::<Frozen>();
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

    #[test]
    fn a_freeze_that_is_over_at_once_still_ends_what_it_met() {
        let control = RunControl::new();
        let before = control.enter().unwrap();
        drop(control.freeze());
        assert_eq!(before.stopped(), Err(SchedStatsError::DuringFreeze));
        assert_eq!(control.enter().unwrap().stopped(), Ok(()));
    }

    #[test]
    fn cancel_comes_before_freeze_and_stays() {
        let control = RunControl::new();
        let before = control.enter().unwrap();
        let frozen = control.freeze();
        control.cancel();
        assert_eq!(before.stopped(), Err(SchedStatsError::Cancelled));
        assert_eq!(control.enter().unwrap_err(), SchedStatsError::Cancelled);
        drop(frozen);
        assert_eq!(control.enter().unwrap_err(), SchedStatsError::Cancelled);
    }
}
