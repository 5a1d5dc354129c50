//! What a guest reports by itself: that it has no vsock device, that its agent or its scheduler ended.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use super::guest_message::GuestEvent;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;

/// What a guest has reported since it booted. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct GuestEvents(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reported: Mutex<Reported>,
    /// Readable once the agent can no longer become ready.
    boot_failed: EventFd,
}

#[derive(Default)]
struct Reported {
    has_no_vsock: bool,
    agent: Option<i32>,
    scheduler: Option<i32>,
    next_watch: u64,
    watches: BTreeMap<u64, Box<dyn FnOnce() + Send>>,
}

/// What keeps a guest from serving stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NoVsock,
    AgentEnded(i32),
    SchedulerEnded(i32),
}

impl GuestEvents {
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared { reported: Mutex::default(), boot_failed: EventFd::new()? })))
    }

    /// Returns what was reported so far, to be gone on with alone.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        let events = Self::new()?;
        let Reported { has_no_vsock, agent, scheduler, .. } = *self.reported();
        let reported = Reported { has_no_vsock, agent, scheduler, ..Reported::default() };
        if reported.fault_of_boot().is_some() {
            events.0.boot_failed.notify();
        }
        *events.reported() = reported;
        Ok(events)
    }

    /// Takes a report, and calls those that wait for one.
    pub(super) fn report(&self, event: GuestEvent) {
        let mut reported = self.reported();
        match event {
            GuestEvent::NoVsock => reported.has_no_vsock = true,
            GuestEvent::AgentEnded(status) => reported.agent = Some(status),
            GuestEvent::SchedulerEnded(status) => reported.scheduler = Some(status),
        }
        if reported.fault_of_boot().is_some() {
            self.0.boot_failed.notify();
        }
        let watches = std::mem::take(&mut reported.watches);
        drop(reported);
        watches.into_values().for_each(|call| call());
    }

    /// Forgets what was reported: the guest boots again.
    pub(super) fn clear(&self) {
        let mut reported = self.reported();
        (reported.has_no_vsock, reported.agent, reported.scheduler) = (false, None, None);
        self.0.boot_failed.clear();
    }

    /// Returns why the agent cannot become ready.
    pub(super) fn fault_of_boot(&self) -> Option<Fault> {
        self.reported().fault_of_boot()
    }

    /// Returns why there can be no stats.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.reported().fault()
    }

    /// Calls `call` at the first fault, at once if there is one already, unless the watch was dropped before.
    pub(super) fn watch(&self, call: impl FnOnce() + Send + 'static) -> FaultWatch {
        let mut reported = self.reported();
        let id = reported.next_watch;
        reported.next_watch += 1;
        if reported.fault().is_some() {
            drop(reported);
            call();
        } else {
            reported.watches.insert(id, Box::new(call));
        }
        FaultWatch { events: self.clone(), id }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        lock(&self.0.reported)
    }
}

impl Reported {
    fn fault_of_boot(&self) -> Option<Fault> {
        if self.has_no_vsock { Some(Fault::NoVsock) } else { self.agent.map(Fault::AgentEnded) }
    }

    fn fault(&self) -> Option<Fault> {
        self.scheduler.map(Fault::SchedulerEnded).or_else(|| self.fault_of_boot())
    }
}

impl fmt::Debug for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reported").field("fault", &self.fault()).finish_non_exhaustive()
    }
}

/// Readable once the agent can no longer become ready.
impl AsFd for GuestEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.boot_failed.as_fd()
    }
}

/// Watches a guest until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the watch"]
pub struct FaultWatch {
    events: GuestEvents,
    id: u64,
}

impl Drop for FaultWatch {
    fn drop(&mut self) {
        self.events.reported().watches.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{self, Receiver};

    fn watch(events: &GuestEvents) -> (FaultWatch, Receiver<()>) {
        let (sender, called) = mpsc::channel();
        (events.watch(move || sender.send(()).unwrap()), called)
    }

    #[test]
    fn a_watch_is_called_at_the_first_fault() {
        let events = GuestEvents::new().unwrap();
        let (_watch, called) = watch(&events);
        called.try_recv().unwrap_err();
        events.report(GuestEvent::SchedulerEnded(1));
        called.try_recv().unwrap();
        assert_eq!(events.fault(), Some(Fault::SchedulerEnded(1)));
        events.report(GuestEvent::AgentEnded(2));
        called.try_recv().unwrap_err();
    }

    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    #[test]
    fn a_duplicate_goes_on_alone() {
        let events = GuestEvents::new().unwrap();
        events.report(GuestEvent::SchedulerEnded(1));
        let duplicate = events.duplicate().unwrap();
        events.report(GuestEvent::AgentEnded(2));
        assert_eq!((duplicate.fault(), duplicate.fault_of_boot()), (Some(Fault::SchedulerEnded(1)), None));
        assert_eq!(events.duplicate().unwrap().fault_of_boot(), Some(Fault::AgentEnded(2)));
    }

    #[test]
    fn a_late_watch_is_called_at_once() {
        let events = GuestEvents::new().unwrap();
        events.report(GuestEvent::AgentEnded(2));
        watch(&events).1.try_recv().unwrap();
    }

    #[test]
    fn a_dropped_watch_is_not_called() {
        let events = GuestEvents::new().unwrap();
        drop(watch(&events).0);
        assert!(events.reported().watches.is_empty());
    }

    #[test]
    fn a_scheduler_that_ends_does_not_end_the_boot() {
        let events = GuestEvents::new().unwrap();
        events.report(GuestEvent::SchedulerEnded(1));
        assert_eq!(events.fault_of_boot(), None);
        events.report(GuestEvent::NoVsock);
        assert_eq!(events.fault_of_boot(), Some(Fault::NoVsock));
        events.clear();
        assert_eq!((events.fault_of_boot(), events.fault()), (None, None));
    }
}
