//! What stops calls, and how a call learns of it: a few atomic numbers, and a signal for the calls that wait.
//!
//! A call first takes its signal and then looks at the numbers; a stop first changes the numbers and then signals. So
//! whichever of the two comes first, the call either sees the stop or is woken by it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::wait_queue::{Alarm, WaitQueue};
use crate::io::eventfd::{EventFd, Notify, no_descriptor};
use crate::io::sync::{AtomicBool, AtomicU64, AtomicUsize};
use crate::stats::SchedStatsError;

/// The stops of one run.
pub(crate) struct InFlight<N = EventFd> {
    /// Freezes that are not thawed.
    freezes: AtomicUsize,
    /// Freezes so far, so that one that is over still ends what it met.
    epoch: AtomicU64,
    cancelled: AtomicBool,
    alarms: WaitQueue<N>,
}

impl<N: Notify> InFlight<N> {
    /// A run that goes on.
    pub(crate) fn new() -> Self {
        Self {
            freezes: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            alarms: WaitQueue::new(),
        }
    }

    /// Ends what is in flight, and keeps everything from starting until it is [thawed](Self::thaw) as often.
    pub(crate) fn freeze(&self) {
        self.freezes.fetch_add(1, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.alarms.ring();
    }

    /// Takes one freeze back.
    pub(crate) fn thaw(&self) {
        self.freezes.fetch_sub(1, Ordering::SeqCst);
    }

    /// Ends what is in flight, and keeps everything from starting for good.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.alarms.ring();
    }

    /// What a freeze does that another thread overtakes between its stop and its signal.
    #[cfg(test)]
    pub(crate) fn signal_late(&self) {
        self.alarms.ring();
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
        let alarm = self.alarms.join(self.epoch.load(Ordering::SeqCst)).map_err(no_descriptor)?;
        let entry = Entry { stops: Arc::clone(self), alarm };
        if self.is_frozen() && !self.is_cancelled() {
            return Err(SchedStatsError::DuringFreeze);
        }
        entry.stopped().map(|()| entry)
    }
}

/// A call that the run can stop.
pub(crate) struct Entry<N: Notify = EventFd> {
    stops: Arc<InFlight<N>>,
    alarm: Alarm<N>,
}

impl<N: Notify> fmt::Debug for Entry<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("epoch", &self.alarm.epoch()).finish_non_exhaustive()
    }
}

impl<N: Notify> Entry<N> {
    /// Whether the run was stopped since this call began: cancel comes before freeze.
    pub(crate) fn stopped(&self) -> Result<(), SchedStatsError> {
        if self.stops.is_cancelled() {
            Err(SchedStatsError::Cancelled)
        } else if self.stops.epoch.load(Ordering::SeqCst) != self.alarm.epoch() {
            Err(SchedStatsError::DuringFreeze)
        } else {
            Ok(())
        }
    }

    /// What wakes this call and others, and stays until all of them are over.
    pub(crate) fn wake(&self) -> &N {
        self.alarm.wake()
    }

    /// What a call does whose signal was there.
    ///
    /// A stop signals all calls that it finds, and one that is slow about it can so signal a call that began after
    /// it. That signal is taken back, or the call could not wait any more.
    pub(crate) fn woken(&self) {
        if self.stopped().is_ok() {
            self.wake().clear();
            // A stop that came in between meant it, for all calls that have this signal.
            if self.stopped().is_err() {
                self.wake().notify();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn stops() -> Arc<InFlight> {
        Arc::new(InFlight::new())
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

    fn is_rung(entry: &Entry) -> bool {
        poll(&mut [PollFd::new(entry.wake(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn the_signal_of_a_stop_stays_until_all_calls_that_it_ends_are_over() {
        let stops = stops();
        let (first, second) = (stops.enter().unwrap(), stops.enter().unwrap());
        stops.freeze();
        stops.thaw();
        let later = stops.enter().unwrap();
        first.woken();
        drop(first);
        assert!(is_rung(&second), "the first took the signal from the second");
        assert!(!is_rung(&later), "the signal was not for one that began after it");
    }

    #[test]
    fn a_signal_that_comes_late_from_a_stop_before_the_call_is_taken_back() {
        let stops = stops();
        stops.freeze();
        stops.thaw();
        let call = stops.enter().unwrap();
        stops.signal_late();
        assert!(is_rung(&call));
        call.woken();
        assert!(!is_rung(&call) && call.stopped().is_ok());
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
