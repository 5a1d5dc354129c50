//! The calls in flight of one run, and what stops them: a few atomic numbers, and a signal for the calls that wait.
//!
//! A call first takes its signal and then reads the numbers; a stop first changes the numbers and then signals. So
//! whichever of the two comes first, the call either sees the stop or is woken by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::wait_queue::{WaitQueue, Waiter};
use crate::io::eventfd::{EventFd, Notify};
use crate::io::sync::{AtomicBool, AtomicU64, AtomicUsize};
use crate::stats::SchedStatsError;

/// The stops of one run and the calls that they end.
pub(crate) struct InFlight<N = EventFd> {
    /// Freezes that are not thawed.
    freezes: AtomicUsize,
    /// Freezes so far, so that one that was thawed still ends the calls before it.
    epoch: AtomicU64,
    cancelled: AtomicBool,
    waiters: WaitQueue<N>,
}

impl<N: Notify> InFlight<N> {
    pub(crate) fn new() -> Self {
        Self {
            freezes: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            waiters: WaitQueue::new(),
        }
    }

    /// Ends all calls in flight, and lets none begin until as many [thaws](Self::thaw).
    pub(crate) fn freeze(&self) {
        self.freezes.fetch_add(1, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.waiters.wake_all();
    }

    /// Takes one freeze back.
    pub(crate) fn thaw(&self) {
        self.freezes.fetch_sub(1, Ordering::SeqCst);
    }

    /// Ends all calls in flight, and lets none begin any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.waiters.wake_all();
    }

    /// Wakes all calls as a stop does that another thread has overtaken after it changed the numbers.
    #[cfg(test)]
    pub(crate) fn wake_late(&self) {
        self.waiters.wake_all();
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
    /// [`SchedStatsError::Cancelled`] and [`SchedStatsError::DuringFreeze`] if none can begin;
    /// [`SchedStatsError::AgentUnreachable`] if this process has no more descriptors.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<InFlightCall<N>, SchedStatsError> {
        let epoch = self.epoch.load(Ordering::SeqCst);
        let waiter = self.waiters.join(epoch).map_err(SchedStatsError::no_descriptor)?;
        let call = InFlightCall { run: Arc::clone(self), waiter };
        if self.is_frozen() && !self.is_cancelled() {
            return Err(SchedStatsError::DuringFreeze);
        }
        call.check().map(|()| call)
    }
}

/// A call that its run can stop.
pub(crate) struct InFlightCall<N: Notify = EventFd> {
    run: Arc<InFlight<N>>,
    waiter: Waiter<N>,
}

impl<N: Notify> fmt::Debug for InFlightCall<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightCall").field("epoch", &self.waiter.epoch()).finish_non_exhaustive()
    }
}

impl<N: Notify> InFlightCall<N> {
    /// Checks that the run was not stopped since this call began.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::Cancelled`], or else [`SchedStatsError::DuringFreeze`].
    pub(crate) fn check(&self) -> Result<(), SchedStatsError> {
        if self.run.is_cancelled() {
            Err(SchedStatsError::Cancelled)
        } else if self.run.epoch.load(Ordering::SeqCst) != self.waiter.epoch() {
            Err(SchedStatsError::DuringFreeze)
        } else {
            Ok(())
        }
    }

    /// Returns the signal of a stop. It is shared with other calls, and stays until all of them have ended.
    pub(crate) fn signal(&self) -> &N {
        self.waiter.signal()
    }

    /// Must be called when the signal is there.
    ///
    /// A stop signals all calls that it finds, and a slow one also finds calls that began after it. Such a call clears
    /// the signal, or it could not wait any more.
    pub(crate) fn on_signal(&self) {
        if self.check().is_ok() {
            self.signal().clear();
            // A stop in between meant its signal for all calls that share it.
            if self.check().is_err() {
                self.signal().notify();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn in_flight() -> Arc<InFlight> {
        Arc::new(InFlight::new())
    }

    #[test]
    fn every_freeze_needs_a_thaw() {
        let run = in_flight();
        run.freeze();
        run.freeze();
        run.thaw();
        assert_eq!(run.begin().unwrap_err(), SchedStatsError::DuringFreeze);
        run.thaw();
        assert!(run.begin().is_ok() && !run.is_frozen());
    }

    #[test]
    fn a_thawed_freeze_ends_earlier_calls() {
        let run = in_flight();
        let before = run.begin().unwrap();
        run.freeze();
        run.thaw();
        assert_eq!(before.check(), Err(SchedStatsError::DuringFreeze));
        assert_eq!(run.begin().unwrap().check(), Ok(()));
    }

    fn is_signalled(call: &InFlightCall) -> bool {
        poll(&mut [PollFd::new(call.signal(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_signal_stays_until_all_its_calls_end() {
        let run = in_flight();
        let (first, second) = (run.begin().unwrap(), run.begin().unwrap());
        run.freeze();
        run.thaw();
        let later = run.begin().unwrap();
        first.on_signal();
        drop(first);
        assert!(is_signalled(&second), "the first took the signal from the second");
        assert!(!is_signalled(&later), "the signal was not for one that began after it");
    }

    #[test]
    fn a_late_signal_is_cleared() {
        let run = in_flight();
        run.freeze();
        run.thaw();
        let call = run.begin().unwrap();
        run.wake_late();
        assert!(is_signalled(&call));
        call.on_signal();
        assert!(!is_signalled(&call) && call.check().is_ok());
    }

    #[test]
    fn cancel_comes_before_freeze_and_stays() {
        let run = in_flight();
        let before = run.begin().unwrap();
        run.freeze();
        run.cancel();
        assert_eq!(before.check(), Err(SchedStatsError::Cancelled));
        assert_eq!(run.begin().unwrap_err(), SchedStatsError::Cancelled);
        run.thaw();
        assert_eq!(run.begin().unwrap_err(), SchedStatsError::Cancelled);
    }
}
