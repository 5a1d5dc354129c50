//! What stops calls, and how a call learns of it: a few atomic numbers, and a waker for each call that waits.
//!
//! A call first takes its waker and then looks at the numbers; a stop first changes the numbers and then wakes. So
//! whichever of the two comes first, the call either sees the stop or is woken by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::wakers::{Waker, Wakers};
use crate::error::SchedStatsError;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize};
use crate::wake::{Notify, Wake};

/// The stops of one run.
pub(crate) struct Stops<N = Wake> {
    /// Freezes that are not thawed.
    freezes: AtomicUsize,
    /// Freezes so far, so that one that is over still ends what it met.
    epoch: AtomicU64,
    cancelled: AtomicBool,
    wakers: Wakers<N>,
}

impl<N: Notify> Stops<N> {
    /// A run that goes on.
    pub(crate) fn new() -> Self {
        Self {
            freezes: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            wakers: Wakers::new(),
        }
    }

    /// Ends what is in flight, and keeps everything from starting until it is [thawed](Self::thaw) as often.
    pub(crate) fn freeze(&self) {
        self.freezes.fetch_add(1, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.wakers.wake_all();
    }

    /// Takes one freeze back.
    pub(crate) fn thaw(&self) {
        self.freezes.fetch_sub(1, Ordering::SeqCst);
    }

    /// Ends what is in flight, and keeps everything from starting for good.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.wakers.wake_all();
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.freezes.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// If none can start: [`SchedStatsError::Cancelled`], [`SchedStatsError::DuringFreeze`]; or there is no descriptor
    /// to wait with.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Entry<N>, SchedStatsError> {
        let waker = self
            .wakers
            .take()
            .map_err(|error| SchedStatsError::unreachable(format!("no descriptor to wait with: {error}")))?;
        let epoch = self.epoch.load(Ordering::SeqCst);
        let entry = Entry { stops: Arc::clone(self), epoch, waker };
        if self.is_frozen() && !self.is_cancelled() {
            return Err(SchedStatsError::DuringFreeze);
        }
        entry.stopped().map(|()| entry)
    }
}

/// A call that the run can stop.
pub(crate) struct Entry<N = Wake> {
    stops: Arc<Stops<N>>,
    epoch: u64,
    waker: Waker<N>,
}

impl<N> fmt::Debug for Entry<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl<N: Notify> Entry<N> {
    /// Whether the run was stopped since this call began: cancel comes before freeze.
    pub(crate) fn stopped(&self) -> Result<(), SchedStatsError> {
        if self.stops.is_cancelled() {
            Err(SchedStatsError::Cancelled)
        } else if self.stops.epoch.load(Ordering::SeqCst) != self.epoch {
            Err(SchedStatsError::DuringFreeze)
        } else {
            Ok(())
        }
    }

    /// What wakes this call.
    pub(crate) fn wake(&self) -> &Arc<N> {
        self.waker.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops() -> Arc<Stops> {
        Arc::new(Stops::new())
    }

    #[test]
    fn a_run_is_frozen_until_it_is_thawed_as_often() {
        let stops = stops();
        stops.freeze();
        stops.freeze();
        stops.thaw();
        assert_eq!(stops.enter().unwrap_err(), SchedStatsError::DuringFreeze);
        stops.thaw();
        assert!(stops.enter().is_ok() && !stops.is_frozen());
    }

    #[test]
    fn a_freeze_that_is_over_at_once_still_ends_what_it_met() {
        let stops = stops();
        let before = stops.enter().unwrap();
        stops.freeze();
        stops.thaw();
        assert_eq!(before.stopped(), Err(SchedStatsError::DuringFreeze));
        assert_eq!(stops.enter().unwrap().stopped(), Ok(()));
    }

    #[test]
    fn cancel_comes_before_freeze_and_stays() {
        let stops = stops();
        let before = stops.enter().unwrap();
        stops.freeze();
        stops.cancel();
        assert_eq!(before.stopped(), Err(SchedStatsError::Cancelled));
        assert_eq!(stops.enter().unwrap_err(), SchedStatsError::Cancelled);
        stops.thaw();
        assert_eq!(stops.enter().unwrap_err(), SchedStatsError::Cancelled);
    }
}
