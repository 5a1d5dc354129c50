//! A ring of the framework, with the descriptors that the front end sent for it: the framework itself would read and write
//! them whatever they are.
//!
//! The framework watches a descriptor of this process in place of a kick, so that it tells its worker when the ring starts.
//! From then on the worker waits for the kick itself, with the host's streams.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::{VringRwLock, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::error::{Error, EventPurpose};
use super::front_end_event::FrontEndEvent;
use crate::io::lock::lock;
use crate::vsock::{add_notifications, remove_notifications};

/// The type of guest memory that the framework keeps.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A ring; clones are the same one.
#[derive(Clone)]
pub(super) struct Vring {
    ring: VringRwLock<Memory>,
    events: Arc<Mutex<RingEvents>>,
}

#[derive(Debug, Default)]
struct RingEvents {
    kick: Option<Kick>,
    /// Kicks that were read and not counted yet.
    uncounted: u64,
    call: Option<Arc<FrontEndEvent>>,
    /// What is wrong with the first descriptor that is no event.
    fault: Option<Fault>,
}

/// A kick, and the device's epoll instance once that has it.
#[derive(Debug)]
struct Kick {
    event: FrontEndEvent,
    watched_by: Option<Arc<OwnedFd>>,
}

impl Drop for Kick {
    fn drop(&mut self) {
        // The front end keeps the event, so that to close it here would not end the watch.
        if let Some(epoll) = &self.watched_by {
            remove_notifications(epoll, &self.event);
        }
    }
}

#[derive(Debug)]
struct Fault {
    purpose: EventPurpose,
    /// Why the kernel does not say what the descriptor is.
    unknown: Option<io::Error>,
}

impl Vring {
    fn events(&self) -> MutexGuard<'_, RingEvents> {
        lock(&self.events)
    }

    /// Returns the event by which the front end interrupts the guest, if it wants to know of used buffers.
    pub(super) fn call(&self) -> Option<Arc<FrontEndEvent>> {
        self.events().call.clone()
    }

    /// Adds the kick to the device's epoll instance, unless that has it.
    pub(super) fn watch_kick(&self, queue: usize, epoll: &Arc<OwnedFd>) {
        let mut events = self.events();
        let Some(kick) = events.kick.as_mut().filter(|kick| kick.watched_by.is_none()) else { return };
        match add_notifications(epoll, queue, &kick.event) {
            Ok(()) => kick.watched_by = Some(Arc::clone(epoll)),
            Err(error) => events.fail(EventPurpose::Kick, Some(error)),
        }
    }

    /// Takes the number of kicks that came since the last call, by descriptors that the front end has replaced, too.
    pub(super) fn take_kicks(&self) -> u64 {
        let mut events = self.events();
        if let Err(error) = events.count_kicks() {
            events.fail(EventPurpose::Kick, Some(error));
        }
        std::mem::take(&mut events.uncounted)
    }

    /// Takes the fault that the front end made in this ring, the queue of this number.
    pub(super) fn take_fault(&self, queue: usize) -> Option<Error> {
        let Fault { purpose, unknown } = self.events().fault.take()?;
        Some(unknown.map_or(Error::NotAnEvent { purpose, queue }, Error::Host))
    }

    /// Returns the event of a descriptor; none, and a fault, if it is none.
    fn received(&self, purpose: EventPurpose, file: File) -> Option<FrontEndEvent> {
        let unknown = match FrontEndEvent::new(file.into()) {
            Ok(Some(event)) => return Some(event),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        self.events().fail(purpose, unknown);
        None
    }
}

impl RingEvents {
    /// Takes the kicks of the present descriptor to those that are not counted yet.
    fn count_kicks(&mut self) -> io::Result<()> {
        let count = self.kick.as_ref().map_or(Ok(0), |kick| kick.event.clear())?;
        self.uncounted = self.uncounted.saturating_add(count);
        Ok(())
    }

    fn fail(&mut self, purpose: EventPurpose, unknown: Option<io::Error>) {
        self.fault.get_or_insert(Fault { purpose, unknown });
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = RwLockReadGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = RwLockWriteGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        Ok(Self { ring: VringRwLock::new(memory, max_queue_size)?, events: Arc::default() })
    }

    fn get_ref(&self) -> RwLockReadGuard<'_, VringState<Memory>> {
        self.ring.get_ref()
    }

    fn get_mut(&self) -> RwLockWriteGuard<'_, VringState<Memory>> {
        self.ring.get_mut()
    }

    fn add_used(&self, index: u16, len: u32) -> Result<(), QueueError> {
        self.ring.add_used(index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        // The back end interrupts the guest under no lock.
        Ok(())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.ring.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.ring.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.ring.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.ring.set_enabled(enabled);
    }

    fn set_queue_info(&self, descriptors: u64, available: u64, used: u64) -> Result<(), QueueError> {
        self.ring.set_queue_info(descriptors, available, used)
    }

    fn queue_next_avail(&self) -> u16 {
        self.ring.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.ring.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, index: u16) {
        self.ring.set_queue_next_used(index);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.ring.queue_used_idx()
    }

    fn set_queue_size(&self, size: u16) {
        self.ring.set_queue_size(size);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.ring.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.ring.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        let starts = file.is_some();
        let event = file.and_then(|kick| self.received(EventPurpose::Kick, kick));
        let mut events = self.events();
        let _replaced_anyway = events.count_kicks();
        events.kick = event.map(|event| Kick { event, watched_by: None });
        drop(events);
        let watched = starts.then(|| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)).transpose();
        let watched = watched.unwrap_or_else(|errno| {
            // Without a descriptor the ring never starts.
            self.events().fail(EventPurpose::Kick, Some(errno.into()));
            None
        });
        self.ring.set_kick(watched.map(File::from));
    }

    fn read_kick(&self) -> io::Result<bool> {
        // What the framework watches is never signalled.
        Ok(self.ring.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let call = file.and_then(|call| self.received(EventPurpose::Call, call));
        self.events().call = call.map(Arc::new);
    }

    fn set_err(&self, _file: Option<File>) {
        // The device reports errors by no descriptor, so that it keeps none.
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn each_kick_counts_once() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let ring = Vring::new(GuestMemoryAtomic::new(memory), 128).unwrap();
        let kick = File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        ring.set_kick(Some(kick.try_clone().unwrap()));
        for count in [1, 2, 0] {
            for _ in 0..count {
                rustix::io::write(&kick, &1u64.to_ne_bytes()).unwrap();
            }
            assert_eq!(ring.take_kicks(), count);
        }
        rustix::io::write(&kick, &3u64.to_ne_bytes()).unwrap();
        ring.set_kick(None);
        assert_eq!(ring.take_kicks(), 3, "the descriptor is gone, and its kicks are not");
    }
}
