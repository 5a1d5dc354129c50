//! One split virtqueue as a driver sees it (virtio 1.3, 2.7), written byte by byte.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::QUEUE_SIZE;

/// Another descriptor follows (2.7.5).
const NEXT: u16 = 1;
/// The device writes (2.7.5).
pub const WRITE: u16 = 2;

/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u64 = 16;

/// Where the available and the used ring are, from the table of descriptors on.
const AVAILABLE: u64 = 0x1_0000;
const USED: u64 = 0x2_0000;

/// Where a queue's three parts are in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

/// A driver's side of one queue.
#[derive(Debug)]
pub struct DriverQueue {
    base: u64,
    available: u16,
    /// The available index when the driver last checked whether to notify the queue.
    notified: u16,
    used_seen: u16,
    free: Vec<u16>,
    /// The descriptors of each chain by its head.
    chains: Vec<Vec<u16>>,
}

impl DriverQueue {
    /// Returns an empty queue whose parts are in memory from `base` on.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            available: 0,
            notified: 0,
            used_seen: 0,
            free: (0..QUEUE_SIZE).rev().collect(),
            chains: vec![Vec::new(); usize::from(QUEUE_SIZE)],
        }
    }

    pub fn addresses(&self) -> QueueAddresses {
        QueueAddresses { descriptors: self.base, available: self.base + AVAILABLE, used: self.base + USED }
    }

    /// Clears the queue's parts in memory.
    pub fn zero(&self, memory: &GuestMemoryMmap) {
        let QueueAddresses { descriptors, available, used } = self.addresses();
        for part in [descriptors, available, used] {
            // The largest part is the table of descriptors.
            let zeros = [0; 16 * QUEUE_SIZE as usize];
            memory.write_slice(&zeros, GuestAddress(part)).expect("the rings are in memory");
        }
    }

    /// Returns the device's side of the queue.
    pub fn device_side(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a valid size");
        queue.set_size(QUEUE_SIZE);
        let QueueAddresses { descriptors, available, used } = self.addresses();
        let low = |address: u64| Some(u32::try_from(address).expect("low memory"));
        queue.set_desc_table_address(low(descriptors), Some(0));
        queue.set_avail_ring_address(low(available), Some(0));
        queue.set_used_ring_address(low(used), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    /// Whether there are free descriptors for a chain of these pieces.
    pub fn has_room_for(&self, pieces: &[(u64, u32)]) -> bool {
        self.free.len() >= pieces.len()
    }

    /// Returns the head that the next chain will have, if there is a free descriptor.
    pub fn next_head(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Makes a chain of (address, length) pieces available. False if there are not enough free descriptors.
    pub fn offer(&mut self, memory: &GuestMemoryMmap, pieces: &[(u64, u32)], flags: u16) -> bool {
        if !self.has_room_for(pieces) {
            return false;
        }
        // The heads' lists keep their memory: a driver in a benchmark must not be slower than the device.
        let Some(head) = self.next_head() else { return false };
        let mut indices = std::mem::take(&mut self.chains[usize::from(head)]);
        indices.clear();
        indices.extend(pieces.iter().filter_map(|_| self.free.pop()));
        for (at, (&index, &(address, length))) in indices.iter().zip(pieces).enumerate() {
            let next = indices.get(at + 1).copied();
            let flags = flags | next.map_or(0, |_| NEXT);
            let entry = GuestAddress(self.base + DESCRIPTOR_BYTES * u64::from(index));
            let bytes = descriptor(address, length, flags, next.unwrap_or(0));
            memory.write_slice(&bytes, entry).expect("the ring is in memory");
        }
        self.chains[usize::from(head)] = indices;
        self.publish(memory, head);
        true
    }

    /// Makes the chain that begins at `head` available.
    pub fn publish(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let slot = self.base + AVAILABLE + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        memory.write_obj(head.to_le(), GuestAddress(slot)).expect("the ring is in memory");
        self.skip(memory, 1);
    }

    /// Moves the available index ahead by `count` entries, whatever is in them.
    pub fn skip(&mut self, memory: &GuestMemoryMmap, count: u16) {
        self.available = self.available.wrapping_add(count);
        let index = GuestAddress(self.base + AVAILABLE + 2);
        memory.store(self.available.to_le(), index, Ordering::Release).expect("the ring is in memory");
    }

    /// Asks for an interrupt at the next buffer that the device uses (2.7.7).
    pub fn ask_for_interrupt(&self, memory: &GuestMemoryMmap) {
        let used_event = GuestAddress(self.base + AVAILABLE + 4 + 2 * u64::from(QUEUE_SIZE));
        memory.write_obj(self.used_seen.to_le(), used_event).expect("the ring is in memory");
    }

    /// Whether the device used a chain that was not taken back yet.
    pub fn has_used(&self, memory: &GuestMemoryMmap) -> bool {
        self.used_index(memory) != self.used_seen
    }

    fn used_index(&self, memory: &GuestMemoryMmap) -> u16 {
        let index = GuestAddress(self.base + USED + 2);
        u16::from_le(memory.load(index, Ordering::Acquire).expect("the ring is in memory"))
    }

    /// Whether the queue is to be notified of what was made available since the last call (2.7.10).
    pub fn take_notification(&mut self, memory: &GuestMemoryMmap) -> bool {
        // The device must see the index before this side reads `avail_event`.
        fence(Ordering::SeqCst);
        let avail_event = GuestAddress(self.base + USED + 4 + 8 * u64::from(QUEUE_SIZE));
        let avail_event = u16::from_le(memory.read_obj(avail_event).expect("the ring is in memory"));
        let before = std::mem::replace(&mut self.notified, self.available);
        self.available.wrapping_sub(avail_event).wrapping_sub(1) < self.available.wrapping_sub(before)
    }

    /// Takes back the next chain that the device used: its head and how many bytes it wrote.
    pub fn take_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        if !self.has_used(memory) {
            return None;
        }
        let entry = self.base + USED + 4 + 8 * u64::from(self.used_seen % QUEUE_SIZE);
        let word = |at| u32::from_le(memory.read_obj(GuestAddress(at)).expect("the ring is in memory"));
        let (head, length) = (word(entry), word(entry + 4));
        self.used_seen = self.used_seen.wrapping_add(1);
        // A test that writes over the rings reads there what it wrote.
        let head = u16::try_from(head).ok().filter(|&head| head < QUEUE_SIZE)?;
        self.free.append(&mut self.chains[usize::from(head)]);
        Some((head, length))
    }
}

/// The bytes of a descriptor (2.7.5).
fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let fields = u128::from(next) << 112 | u128::from(flags) << 96 | u128::from(length) << 64 | u128::from(address);
    fields.to_le_bytes()
}
