//! A queue as the driver lays it out (virtio 1.3, 2.6 and 2.7), and as it runs.
//!
//! What the driver writes is validated once, when the queue is started. From then on only the copy counts, and nothing that
//! the driver writes changes it.

use serde::{Deserialize, Serialize};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// Entries of the largest queue that a driver may set up.
pub const MAX_QUEUE_SIZE: u16 = 256;

/// The addresses and size of a queue, as the driver wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueLayout {
    /// The number of entries.
    pub size: u32,
    /// The descriptor table's guest address.
    pub descriptors: u64,
    /// The guest address of the available ring, the driver's area.
    pub driver: u64,
    /// The guest address of the used ring, the device's area.
    pub device: u64,
}

impl QueueLayout {
    /// Returns the queue with this layout, from its index `next` on.
    ///
    /// # Errors
    ///
    /// If the size is no power of two or too large, or an address is not aligned as it must be.
    pub(super) fn queue(&self, event_idx: bool, next: u16) -> Result<Queue, Error> {
        let mut queue = Queue::new(MAX_QUEUE_SIZE)?;
        queue.try_set_size(u16::try_from(self.size).map_err(|_| Error::InvalidSize)?)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
        queue.try_set_used_ring_address(GuestAddress(self.device))?;
        queue.set_event_idx(event_idx);
        // The device uses a chain before it takes the next: both indices are one.
        queue.set_next_avail(next);
        queue.set_next_used(next);
        queue.set_ready(true);
        Ok(queue)
    }

    /// Whether all three parts are in guest memory, the indices of notifications (`event_idx`) included.
    pub(super) fn is_in<M: GuestMemory>(&self, memory: &M) -> bool {
        let Ok(size) = usize::try_from(self.size) else { return false };
        let parts = [
            (self.descriptors, size.saturating_mul(16), Permissions::Read),
            (self.driver, size.saturating_mul(2).saturating_add(6), Permissions::Read),
            (self.device, size.saturating_mul(8).saturating_add(6), Permissions::ReadWrite),
        ];
        parts.into_iter().all(|(address, bytes, access)| memory.check_range(GuestAddress(address), bytes, access))
    }
}

/// One queue, as far as the driver has set it up.
#[derive(Debug)]
pub(super) struct QueueSetup {
    layout: QueueLayout,
    /// The queue that runs. It is not ready until the driver starts it.
    queue: Queue,
}

impl QueueSetup {
    /// Returns a queue after a reset.
    ///
    /// # Errors
    ///
    /// None, as long as [`MAX_QUEUE_SIZE`] is a valid size.
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self { layout: QueueLayout::default(), queue: Queue::new(MAX_QUEUE_SIZE)? })
    }

    /// Returns a queue that ran, with its index then.
    ///
    /// # Errors
    ///
    /// See [`QueueLayout::queue`].
    pub(super) fn running(layout: QueueLayout, event_idx: bool, next: u16) -> Result<Self, Error> {
        Ok(Self { layout, queue: layout.queue(event_idx, next)? })
    }

    /// Returns a queue that does not run, with this layout so far.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub(super) fn laid_out(layout: QueueLayout) -> Result<Self, Error> {
        Ok(Self { layout, ..Self::new()? })
    }

    /// Clears everything.
    pub(super) fn reset(&mut self) {
        self.layout = QueueLayout::default();
        self.queue.reset();
    }

    /// Returns the layout.
    pub(super) fn layout(&self) -> QueueLayout {
        self.layout
    }

    /// Returns the queue, ready or not.
    pub(super) fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Whether the driver has started it.
    pub(super) fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Returns the index of the next chain.
    pub(super) fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// Changes the layout, unless the queue runs.
    pub(super) fn lay_out(&mut self, change: impl FnOnce(&mut QueueLayout)) {
        if !self.is_ready() {
            change(&mut self.layout);
        }
    }

    /// Starts the queue from its beginning, unless it runs already or its layout is invalid.
    pub(super) fn start<M: GuestMemory>(&mut self, event_idx: bool, memory: &M) {
        if !self.is_ready()
            && let Ok(queue) = self.layout.queue(event_idx, 0)
            && self.layout.is_in(memory)
        {
            self.queue = queue;
        }
    }

    /// Stops the queue: it is not accessed any more.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    const LAYOUT: QueueLayout = QueueLayout { size: 128, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };

    fn memory(bytes: usize) -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
    }

    #[test]
    fn a_valid_queue_starts() {
        let mut setup = QueueSetup::new().unwrap();
        setup.lay_out(|layout| *layout = LAYOUT);
        setup.start(true, &memory(0x4000));
        assert!(setup.is_ready());
        let queue = setup.queue();
        assert_eq!((queue.size(), queue.desc_table(), queue.event_idx_enabled()), (128, 0x1000, true));
    }

    #[test]
    fn invalid_layouts_are_refused() {
        for size in [0, 3, 100, 512, 0x1_0080, u32::MAX] {
            assert!(QueueLayout { size, ..LAYOUT }.queue(false, 0).is_err(), "{size}");
        }
        assert!(QueueLayout { descriptors: 0x1008, ..LAYOUT }.queue(false, 0).is_err());
        assert!(QueueLayout { driver: 0x2001, ..LAYOUT }.queue(false, 0).is_err());
        assert!(QueueLayout { device: 0x3002, ..LAYOUT }.queue(false, 0).is_err());
        assert!(LAYOUT.queue(false, 0).is_ok());
    }

    #[test]
    fn a_queue_outside_guest_memory_does_not_start() {
        // The used ring, the last part, takes 6 + 8 * 128 bytes.
        let end = 0x3000 + 6 + 8 * 128;
        for (bytes, starts) in [(end - 1, false), (end, true)] {
            let mut setup = QueueSetup::laid_out(LAYOUT).unwrap();
            setup.start(false, &memory(bytes));
            assert_eq!(setup.is_ready(), starts, "{bytes} bytes of memory");
        }
        let memory = memory(0x10_0000);
        for far in [0x10_0000, !0xfff_u64] {
            assert!(!QueueLayout { descriptors: far, ..LAYOUT }.is_in(&memory));
            assert!(!QueueLayout { driver: far, ..LAYOUT }.is_in(&memory));
            assert!(!QueueLayout { device: far, ..LAYOUT }.is_in(&memory));
        }
    }

    #[test]
    fn nothing_changes_a_running_queue() {
        let mut setup = QueueSetup::running(LAYOUT, true, 7).unwrap();
        setup.lay_out(|layout| layout.size = 16);
        setup.start(false, &memory(0x4000));
        let queue = setup.queue();
        assert_eq!((queue.size(), queue.avail_ring(), queue.next_avail()), (128, 0x2000, 7));
        assert!(queue.event_idx_enabled());
        assert_eq!(setup.layout(), LAYOUT);
    }
}
