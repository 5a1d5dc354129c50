//! A queue as its registers describe it (virtio 1.3, 4.2.3.2), and as it runs.
//!
//! What the driver writes is validated once, when the queue is made ready. From then on only the copy counts, and
//! nothing that the driver writes changes it.

use serde::{Deserialize, Serialize};
use virtio_queue::{Error, Queue, QueueT};
use vm_memory::GuestAddress;

use super::register::{Half, Part};

/// Entries of the largest queue that a driver may set up (`QueueNumMax`).
pub const MAX_QUEUE_SIZE: u16 = 256;

/// The addresses and size of a queue, not validated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The number of entries.
    pub size: u32,
    /// The descriptor table's guest address.
    pub descriptors: u64,
    /// The available ring's guest address.
    pub driver: u64,
    /// The used ring's guest address.
    pub device: u64,
}

impl Layout {
    fn address(&mut self, part: Part) -> &mut u64 {
        match part {
            Part::Descriptors => &mut self.descriptors,
            Part::Driver => &mut self.driver,
            Part::Device => &mut self.device,
        }
    }

    /// Returns the queue with this layout, from its index `next` on.
    ///
    /// # Errors
    ///
    /// If the size is no power of two or too large, or an address is not aligned as it must be.
    pub fn queue(&self, event_idx: bool, next: u16) -> Result<Queue, Error> {
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
}

/// One queue's registers.
#[derive(Debug)]
pub struct QueueRegisters {
    layout: Layout,
    /// The queue that runs. It is not ready until the driver makes it so.
    queue: Queue,
}

impl QueueRegisters {
    /// Returns a queue after a reset.
    ///
    /// # Errors
    ///
    /// None, as long as [`MAX_QUEUE_SIZE`] is a valid size.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { layout: Layout::default(), queue: Queue::new(MAX_QUEUE_SIZE)? })
    }

    /// Returns a queue that ran, with its index then.
    ///
    /// # Errors
    ///
    /// See [`Layout::queue`].
    pub fn running(layout: Layout, event_idx: bool, next: u16) -> Result<Self, Error> {
        Ok(Self { layout, queue: layout.queue(event_idx, next)? })
    }

    /// Returns a queue that is not ready, with this layout so far.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn laid_out(layout: Layout) -> Result<Self, Error> {
        Ok(Self { layout, ..Self::new()? })
    }

    /// Clears everything.
    pub fn reset(&mut self) {
        self.layout = Layout::default();
        self.queue.reset();
    }

    /// Returns the layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Returns the queue, ready or not.
    pub fn queue(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Whether the driver has made it ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Returns the index of the next chain.
    #[must_use]
    pub fn next(&self) -> u16 {
        self.queue.next_avail()
    }

    /// `QueueNum`.
    pub fn set_size(&mut self, size: u32) {
        if !self.is_ready() {
            self.layout.size = size;
        }
    }

    /// `QueueDescLow` and its like.
    pub fn set_address(&mut self, part: Part, half: Half, value: u32) {
        if !self.is_ready() {
            let address = self.layout.address(part);
            *address = half.replaced(*address, value);
        }
    }

    /// `QueueReady` is 1: the queue runs from its beginning, unless it does already or its layout is invalid.
    pub fn make_ready(&mut self, event_idx: bool) {
        if !self.is_ready()
            && let Ok(queue) = self.layout.queue(event_idx, 0)
        {
            self.queue = queue;
        }
    }

    /// `QueueReady` is 0: the queue is not accessed any more.
    pub fn stop(&mut self) {
        self.queue.set_ready(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { size: 128, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };

    #[test]
    fn a_valid_queue_becomes_ready() {
        let mut registers = QueueRegisters::new().unwrap();
        registers.set_size(128);
        for (part, address) in [(Part::Descriptors, 0x1000), (Part::Driver, 0x2000), (Part::Device, 0x3000)] {
            registers.set_address(part, Half::Low, address);
            registers.set_address(part, Half::High, 1);
        }
        registers.make_ready(true);
        assert!(registers.is_ready());
        let queue = registers.queue();
        assert_eq!((queue.size(), queue.desc_table(), queue.event_idx_enabled()), (128, 0x1_0000_1000, true));
    }

    #[test]
    fn invalid_layouts_are_refused() {
        for size in [0, 3, 100, 512, 0x1_0080, u32::MAX] {
            assert!(Layout { size, ..LAYOUT }.queue(false, 0).is_err(), "{size}");
        }
        assert!(Layout { descriptors: 0x1008, ..LAYOUT }.queue(false, 0).is_err());
        assert!(Layout { driver: 0x2001, ..LAYOUT }.queue(false, 0).is_err());
        assert!(Layout { device: 0x3002, ..LAYOUT }.queue(false, 0).is_err());
        assert!(LAYOUT.queue(false, 0).is_ok());
    }

    #[test]
    fn nothing_changes_a_ready_queue() {
        let mut registers = QueueRegisters::running(LAYOUT, true, 7).unwrap();
        registers.set_size(16);
        registers.set_address(Part::Driver, Half::Low, 0x9000);
        registers.make_ready(false);
        let queue = registers.queue();
        assert_eq!((queue.size(), queue.avail_ring(), queue.next_avail()), (128, 0x2000, 7));
        assert!(queue.event_idx_enabled());
        assert_eq!(registers.layout(), LAYOUT);
    }
}
