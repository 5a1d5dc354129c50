//! A driver's three queues in guest memory, and the packets that it receives.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::driver_queue::{DriverQueue, QueueAddresses, WRITE};
use super::{GUEST_BUFFER_BYTES, MAX_PACKET_BYTES, MEMORY_BYTES, QUEUE_SIZE, RX_BUFFER_BYTES, RX_BUFFERS, TX_BUFFERS};
use crate::vsock::packet::{Header, Operation};
use crate::vsock::spec::{EVENT_BYTES, TYPE_STREAM};

/// Where the parts of the receive, transmit and event queue are.
const QUEUES: [u64; 3] = [0x10_0000, 0x20_0000, 0x30_0000];

/// Guest memory for the buffers of events, each of them as long as an event.
const EVENT_BUFFERS: u64 = 0x80_0000;

/// Buffers for events, as Linux posts them.
const EVENTS: usize = 8;

/// Guest memory for one receive buffer. No power of two, which would put every header into the same set of a cache.
const RX_BUFFER_STRIDE: u64 = 0x1_1040;

/// Returns memory of a guest: [`MEMORY_BYTES`] at address 0.
#[must_use]
pub fn guest_memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("guest memory")
}

/// A packet that the guest received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its header.
    pub header: Header,
    /// Its payload, of `header.len` bytes.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Returns the packet's operation.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::parse(self.header.op).expect("the device sends operations that exist")
    }

    /// Returns the header of a packet in the other direction of the same connection, without payload, of a guest that has
    /// taken nothing out of its buffer.
    #[must_use]
    pub fn reply(&self, operation: Operation) -> Header {
        Header {
            src_cid: self.header.dst_cid,
            dst_cid: self.header.src_cid,
            src_port: self.header.dst_port,
            dst_port: self.header.src_port,
            socket_type: TYPE_STREAM,
            op: operation.number(),
            buf_alloc: GUEST_BUFFER_BYTES,
            ..Header::default()
        }
    }
}

/// A driver's queues in guest memory. The [module](super) has an example.
#[derive(Debug)]
pub struct SimulatedDriver {
    memory: GuestMemoryMmap,
    rx: DriverQueue,
    tx: DriverQueue,
    event: DriverQueue,
    /// Where each receive buffer is, by the head of its chain.
    rx_buffers: Vec<(u64, u32)>,
    /// Packets that were queued, which take turns with the buffers.
    queued: u64,
    /// Whether receive buffers are posted again once they were read.
    pub reposts: bool,
}

impl SimulatedDriver {
    /// Returns a driver that has posted no buffer, in memory of at least [`MEMORY_BYTES`] at address 0.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap) -> Self {
        let [rx, tx, event] = QUEUES.map(DriverQueue::new);
        let rx_buffers = vec![(0, 0); usize::from(QUEUE_SIZE)];
        Self { memory, rx, tx, event, rx_buffers, queued: 0, reposts: true }
    }

    /// Returns the driver as it is, in other memory, which has the bytes that this one's had: its guest was saved and
    /// restored.
    #[must_use]
    pub fn moved_to(self, memory: GuestMemoryMmap) -> Self {
        Self { memory, ..self }
    }

    /// Starts anew on empty queues, with all buffers posted, as after a reset of the device.
    pub fn restart(&mut self) {
        self.restart_without_events();
        self.post_events();
    }

    /// Starts anew on empty queues, with all receive buffers posted and none for events.
    pub fn restart_without_events(&mut self) {
        [&self.rx, &self.tx, &self.event].into_iter().for_each(|queue| queue.zero(&self.memory));
        [self.rx, self.tx, self.event] = QUEUES.map(DriverQueue::new);
        self.post_all(RX_BUFFER_BYTES);
    }

    /// Returns guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Returns where the receive, the transmit and the event queue are.
    #[must_use]
    pub fn addresses(&self) -> [QueueAddresses; 3] {
        [&self.rx, &self.tx, &self.event].map(DriverQueue::addresses)
    }

    /// Returns the device's side of the receive, the transmit and the event queue, for
    /// [`Device::service`](crate::vsock::Device::service), of a driver that has just started.
    #[must_use]
    pub fn queues(&self) -> [Queue; 3] {
        [&self.rx, &self.tx, &self.event].map(DriverQueue::device_side)
    }

    /// Returns which of the receive, transmit and event queue are to be notified of what was made available since the last
    /// call.
    pub fn take_notifications(&mut self) -> [bool; 3] {
        let Self { memory, rx, tx, event, .. } = self;
        [rx, tx, event].map(|queue| queue.take_notification(memory))
    }

    /// Asks for an interrupt at the next buffer that the device uses in each queue (virtio 1.3, 2.7.7).
    pub fn ask_for_interrupts(&self) {
        [&self.rx, &self.tx, &self.event].into_iter().for_each(|queue| queue.ask_for_interrupt(&self.memory));
        // The device must see `used_event` before this side reads what was used meanwhile.
        fence(Ordering::SeqCst);
    }

    /// Whether the device used a buffer that was not taken back yet.
    #[must_use]
    pub fn has_used(&self) -> bool {
        [&self.rx, &self.tx, &self.event].iter().any(|queue| queue.has_used(&self.memory))
    }

    /// Whether there is a packet that was not received yet.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        self.rx.has_used(&self.memory)
    }

    /// Whether there is an event that was not taken yet.
    #[must_use]
    pub fn has_event(&self) -> bool {
        self.event.has_used(&self.memory)
    }

    /// Posts receive buffers of [`RX_BUFFER_BYTES`] and buffers for events until the queues have what Linux posts.
    pub fn post_all_buffers(&mut self) {
        self.post_all(RX_BUFFER_BYTES);
        self.post_events();
    }

    /// Posts receive buffers of this size until the queue is full.
    pub fn post_all(&mut self, size: u32) {
        while self.post(size) {}
    }

    /// Posts one receive buffer of this size, at most 64 KiB, if there is a free descriptor.
    pub fn post(&mut self, size: u32) -> bool {
        let Some(head) = self.rx.next_head() else { return false };
        let address = RX_BUFFERS + u64::from(head) * RX_BUFFER_STRIDE;
        self.rx_buffers[usize::from(head)] = (address, size);
        self.rx.offer(&self.memory, &[(address, size)], WRITE)
    }

    /// Posts 8 buffers for events, as Linux does.
    pub fn post_events(&mut self) {
        for _ in 0..EVENTS {
            self.post_event(EVENT_BYTES);
        }
    }

    /// Posts one buffer of this size for an event, if there is a free descriptor.
    pub fn post_event(&mut self, size: u32) -> bool {
        let Some(head) = self.event.next_head() else { return false };
        let address = EVENT_BUFFERS + u64::from(head) * u64::from(EVENT_BYTES);
        self.event.offer(&self.memory, &[(address, size)], WRITE)
    }

    /// Queues a packet without a notification, its header in one descriptor and its payload in another. Returns false if
    /// the transmit queue is full.
    pub fn queue_packet(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.queue_bytes(&[&header.emit()[..], payload].concat(), &[Header::BYTES])
    }

    /// Queues a packet without a notification, cut into descriptors at these offsets. Returns false if the queue is full.
    pub fn queue_bytes(&mut self, bytes: &[u8], cuts: &[usize]) -> bool {
        let base = TX_BUFFERS + (self.queued % u64::from(QUEUE_SIZE)) * MAX_PACKET_BYTES as u64;
        let mut pieces = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            let cut = cut.min(bytes.len());
            let length = u32::try_from(cut - from).expect("a small piece");
            if length > 0 || bytes.is_empty() {
                pieces.push((base + from as u64, length));
            }
            from = cut;
        }
        // The buffer may still be that of a packet which the device has not taken.
        if !self.tx.has_room_for(&pieces) {
            return false;
        }
        self.queued += 1;
        self.memory.write_slice(bytes, GuestAddress(base)).expect("the buffer is in memory");
        self.queue_pieces(&pieces)
    }

    /// Queues a packet without a notification, whose (address, length) pieces are in memory already. Returns false if the
    /// queue is full.
    pub fn queue_pieces(&mut self, pieces: &[(u64, u32)]) -> bool {
        self.tx.offer(&self.memory, pieces, 0)
    }

    /// Takes back every transmit chain that the device used.
    pub fn take_sent(&mut self) {
        while self.tx.take_used(&self.memory).is_some() {}
    }

    /// Returns the next packet that the guest received, and posts its buffer again.
    pub fn receive(&mut self) -> Option<Packet> {
        let (head, length) = self.rx.take_used(&self.memory)?;
        let (address, size) = self.rx_buffers[usize::from(head)];
        assert!(length <= size, "the device wrote {length} bytes into {size}");
        let packet = self.read_packet(address, length as usize);
        if self.reposts {
            self.post(size);
        }
        packet
    }

    /// Returns the packet of so many bytes at this address, if there is room for a header in them.
    fn read_packet(&self, address: u64, length: usize) -> Option<Packet> {
        let mut header = [0; Header::BYTES];
        let mut payload = vec![0; length.checked_sub(Header::BYTES)?];
        self.memory.read_slice(&mut header, GuestAddress(address)).expect("the buffer is in memory");
        if !payload.is_empty() {
            let from = GuestAddress(address + Header::BYTES as u64);
            self.memory.read_slice(&mut payload, from).expect("the buffer is in memory");
        }
        let header = Header::parse(&header);
        assert_eq!(header.len as usize, payload.len(), "the used length is the header's and the payload's");
        Some(Packet { header, payload })
    }

    /// Takes back one receive buffer that the device says it used, whatever is in it. False if there is none.
    pub fn discard_received(&mut self) -> bool {
        self.rx.take_used(&self.memory).is_some()
    }

    /// Returns the next event, whose buffer is not posted again yet. An empty buffer has none.
    pub fn take_event(&mut self) -> Option<Option<u32>> {
        let (head, length) = self.event.take_used(&self.memory)?;
        let address = EVENT_BUFFERS + u64::from(head) * u64::from(EVENT_BYTES);
        let event = || self.memory.read_obj(GuestAddress(address)).expect("the buffer is in memory");
        Some((length == EVENT_BYTES).then(event))
    }

    /// Makes the chain that begins at descriptor `head` of a queue available, whatever is there: for a hostile guest, which
    /// writes descriptors by [`addresses`](Self::addresses). Queues are numbered as in [`spec`](crate::vsock::spec).
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let (queue, memory) = self.queue(queue);
        queue.publish(memory, head);
    }

    /// Moves the available index of a queue ahead by `count` entries that do not exist: for a hostile guest.
    pub fn skip_available(&mut self, queue: usize, count: u16) {
        let (queue, memory) = self.queue(queue);
        queue.skip(memory, count);
    }

    fn queue(&mut self, number: usize) -> (&mut DriverQueue, &GuestMemoryMmap) {
        let queues = [&mut self.rx, &mut self.tx, &mut self.event];
        (queues.into_iter().nth(number).expect("three queues"), &self.memory)
    }
}
