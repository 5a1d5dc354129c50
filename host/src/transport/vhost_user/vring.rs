//! A ring of the framework, with the descriptors that the front end sent for it: the framework itself would read and write
//! them whatever they are.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLockReadGuard, RwLockWriteGuard};

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::{VringRwLock, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::error::{Error, EventPurpose};
use super::front_end_event::FrontEndEvent;
use crate::io::lock::lock;

/// The type of guest memory that the framework keeps.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A ring; clones are the same one.
#[derive(Clone)]
pub(super) struct Vring {
    ring: VringRwLock<Memory>,
    events: Arc<Mutex<RingEvents>>,
    /// Kicks that came and were not taken.
    kicks: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct RingEvents {
    kick: Option<Arc<FrontEndEvent>>,
    call: Option<Arc<FrontEndEvent>>,
    /// What is wrong with the first descriptor that is no event.
    fault: Option<Fault>,
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

    /// Takes the number of kicks that came since the last call.
    pub(super) fn take_kicks(&self) -> u64 {
        self.kicks.swap(0, Ordering::Relaxed)
    }

    /// Takes the fault that the front end made in this ring, the queue of this number.
    pub(super) fn take_fault(&self, queue: usize) -> Option<Error> {
        let Fault { purpose, unknown } = self.events().fault.take()?;
        Some(unknown.map_or(Error::NotAnEvent { purpose, queue }, Error::Host))
    }

    /// Returns the event of a descriptor; none, and a fault, if it is none.
    fn received(&self, purpose: EventPurpose, file: File) -> Option<Arc<FrontEndEvent>> {
        let unknown = match FrontEndEvent::new(file.into()) {
            Ok(Some(event)) => return Some(Arc::new(event)),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        self.events().fault.get_or_insert(Fault { purpose, unknown });
        None
    }

    /// Returns what the framework waits for in place of a kick: a duplicate of it, or where it is faulty an event of this
    /// process, so that the worker is woken and reports the fault.
    fn watched(&self, kick: File) -> io::Result<File> {
        let watched = kick.try_clone()?;
        let Some(event) = self.received(EventPurpose::Kick, kick) else {
            return Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?.into());
        };
        self.events().kick = Some(event);
        Ok(watched)
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
        Ok(Self { ring: VringRwLock::new(memory, max_queue_size)?, events: Arc::default(), kicks: Arc::default() })
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
        self.events().kick = None;
        let watched = file.map(|kick| self.watched(kick)).transpose();
        self.ring.set_kick(watched.unwrap_or_else(|error| {
            // Without a descriptor the ring never starts.
            self.events().fault.get_or_insert(Fault { purpose: EventPurpose::Kick, unknown: Some(error) });
            None
        }));
    }

    fn read_kick(&self) -> io::Result<bool> {
        let kick = self.events().kick.clone();
        match kick.map_or(Ok(0), |kick| kick.clear()) {
            Ok(count) => drop(self.kicks.fetch_add(count, Ordering::Relaxed)),
            Err(error) => {
                self.events().fault.get_or_insert(Fault { purpose: EventPurpose::Kick, unknown: Some(error) });
            }
        }
        Ok(self.ring.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        let call = file.and_then(|call| self.received(EventPurpose::Call, call));
        self.events().call = call;
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
            ring.read_kick().unwrap();
            assert_eq!(ring.take_kicks(), count);
        }
    }
}
