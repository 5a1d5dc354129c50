//! A simulated guest driver: real split virtqueues in guest memory, written byte by byte by code of its own, so that it
//! can do what no honest driver does.

use std::io::{ErrorKind, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::sync::Once;
use std::sync::atomic::{Ordering, fence};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET, HOST_CID, TYPE_STREAM};
use scx_vsock::vsock::{BUFFER_BYTES, Device, DeviceError, DeviceState, Handle, InvalidSnapshot};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The guest's CID.
pub const CID: u64 = 3;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 128;
/// Bytes of a receive buffer unless said otherwise, as Linux posts them.
pub const RX_BUFFER: u32 = 4096;
/// The guest's `buf_alloc` unless said otherwise, as Linux has it.
pub const GUEST_BUFFER: u32 = 256 * 1024;

/// Bytes of guest memory.
pub const MEMORY: usize = 128 << 20;
const RX_RING: u64 = 0x10_0000;
const TX_RING: u64 = 0x20_0000;
const EVENT_RING: u64 = 0x30_0000;
/// Where the buffers of the receive queue begin, after all rings.
pub const RX_BUFFERS: u64 = 0x100_0000;
/// Where the buffers of the transmit queue begin.
pub const TX_BUFFERS: u64 = 0x200_0000;
/// Guest memory for the buffers of events, each of them as long as an event.
const EVENT_BUFFERS: u64 = 0x80_0000;
/// Buffers for events, as Linux posts them.
const EVENTS: usize = 8;
/// Guest memory for one transmit chain.
const TX_BUFFER: u64 = 0x8_0000;

/// Another descriptor follows (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor's address, length, flags and next.
pub type RawDescriptor = (u64, u32, u16, u16);

/// Memory of a guest: [`MEMORY`] bytes at address 0.
#[must_use]
pub fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory")
}

/// A packet that the guest received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// The packet's operation.
    #[must_use]
    pub fn operation(&self) -> Operation {
        Operation::parse(self.header.op).expect("the device sends operations that exist")
    }
}

/// One side of a split virtqueue as a driver sees it (virtio 1.3, 2.7).
#[derive(Debug)]
struct Ring {
    base: u64,
    available: u16,
    /// The available index when the driver last checked whether to notify the queue.
    notified: u16,
    used_seen: u16,
    free: Vec<u16>,
    /// The descriptors of each chain by its head.
    chains: Vec<Vec<u16>>,
}

impl Ring {
    fn new(base: u64) -> Self {
        Self {
            base,
            available: 0,
            notified: 0,
            used_seen: 0,
            free: (0..QUEUE_SIZE).rev().collect(),
            chains: vec![Vec::new(); usize::from(QUEUE_SIZE)],
        }
    }

    fn descriptors(&self) -> u64 {
        self.base
    }

    fn avail(&self) -> u64 {
        self.base + 0x1_0000
    }

    fn used(&self) -> u64 {
        self.base + 0x2_0000
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(QUEUE_SIZE).expect("a valid size");
        queue.set_size(QUEUE_SIZE);
        let low = |address: u64| Some(u32::try_from(address).expect("low memory"));
        queue.set_desc_table_address(low(self.descriptors()), Some(0));
        queue.set_avail_ring_address(low(self.avail()), Some(0));
        queue.set_used_ring_address(low(self.used()), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    /// Whether there are free descriptors for a chain of these pieces.
    fn has_room_for(&self, pieces: &[(u64, u32)]) -> bool {
        self.free.len() >= pieces.len()
    }

    /// Makes a chain of (address, length) pieces available. False if there are not enough free descriptors.
    fn offer(&mut self, memory: &GuestMemoryMmap, pieces: &[(u64, u32)], flags: u16) -> bool {
        if !self.has_room_for(pieces) {
            return false;
        }
        let indices: Vec<u16> = pieces.iter().filter_map(|_| self.free.pop()).collect();
        for (at, (&index, &(address, length))) in indices.iter().zip(pieces).enumerate() {
            let next = indices.get(at + 1).copied();
            let flags = flags | next.map_or(0, |_| NEXT);
            let entry = GuestAddress(self.descriptors() + 16 * u64::from(index));
            let bytes = [
                &address.to_le_bytes()[..],
                &length.to_le_bytes(),
                &flags.to_le_bytes(),
                &next.unwrap_or(0).to_le_bytes(),
            ]
            .concat();
            memory.write_slice(&bytes, entry).expect("the ring is in memory");
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.publish(memory, head);
        true
    }

    /// Makes a chain available that begins at descriptor 0 and is what it is.
    fn offer_raw(&mut self, memory: &GuestMemoryMmap, descriptors: &[RawDescriptor]) {
        for (index, &(address, length, flags, next)) in (0u64..).zip(descriptors) {
            let bytes =
                [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            let entry = GuestAddress(self.descriptors() + 16 * index);
            memory.write_slice(&bytes, entry).expect("the ring is in memory");
        }
        self.publish(memory, 0);
    }

    fn publish(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let slot = self.avail() + 4 + 2 * u64::from(self.available % QUEUE_SIZE);
        memory.write_obj(head.to_le(), GuestAddress(slot)).expect("the ring is in memory");
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.avail() + 2);
        memory.store(self.available.to_le(), index, Ordering::Release).expect("the ring is in memory");
    }

    /// Moves the available index ahead by `count` entries that do not exist.
    fn jump(&mut self, memory: &GuestMemoryMmap, count: u16) {
        self.available = self.available.wrapping_add(count);
        memory.write_obj(self.available.to_le(), GuestAddress(self.avail() + 2)).expect("the ring is in memory");
    }

    /// The head of the chain that was made available as number `index`, while there are no more than fit.
    fn available_head(&self, memory: &GuestMemoryMmap, index: u16) -> u16 {
        let entry = self.avail() + 4 + 2 * u64::from(index % QUEUE_SIZE);
        u16::from_le(memory.read_obj(GuestAddress(entry)).expect("the ring is in memory"))
    }

    /// The head of the chain that was used as number `index`, and how many bytes the device says it wrote.
    fn used_entry(&self, memory: &GuestMemoryMmap, index: u16) -> (u32, u32) {
        let entry = self.used() + 4 + 8 * u64::from(index % QUEUE_SIZE);
        let word = |at| u32::from_le(memory.read_obj(GuestAddress(at)).expect("the ring is in memory"));
        (word(entry), word(entry + 4))
    }

    fn used_index(&self, memory: &GuestMemoryMmap) -> u16 {
        u16::from_le(memory.load(GuestAddress(self.used() + 2), Ordering::Acquire).expect("the ring is in memory"))
    }

    /// Whether the queue is to be notified of what was made available since the last call (virtio 1.3, 2.7.10).
    fn take_notification(&mut self, memory: &GuestMemoryMmap) -> bool {
        // The device must see the index before this side reads `avail_event`.
        fence(Ordering::SeqCst);
        let avail_event = GuestAddress(self.used() + 4 + 8 * u64::from(QUEUE_SIZE));
        let avail_event = u16::from_le(memory.read_obj(avail_event).expect("the ring is in memory"));
        let before = std::mem::replace(&mut self.notified, self.available);
        self.available.wrapping_sub(avail_event).wrapping_sub(1) < self.available.wrapping_sub(before)
    }

    /// Takes back the next chain that the device used: its head and how many bytes it wrote.
    fn take_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        if self.used_index(memory) == self.used_seen {
            return None;
        }
        let (head, length) = self.used_entry(memory, self.used_seen);
        self.used_seen = self.used_seen.wrapping_add(1);
        // A driver that scribbles over its rings reads there what it wrote.
        let head = u16::try_from(head).ok().filter(|&head| head < QUEUE_SIZE)?;
        let indices = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(indices);
        Some((head, length))
    }
}

/// A driver's queues in guest memory.
#[derive(Debug)]
pub struct Driver {
    memory: GuestMemoryMmap,
    rx: Ring,
    tx: Ring,
    event: Ring,
    /// Where each receive buffer is, by the head of its chain.
    rx_buffers: Vec<(u64, u32)>,
    tx_turn: u64,
    /// Whether receive buffers are posted again once they were read.
    pub reposts: bool,
}

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

impl Driver {
    /// A driver that has posted no buffer, in memory of at least [`MEMORY`] bytes at address 0.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap) -> Self {
        let (rx, tx, event) = (Ring::new(RX_RING), Ring::new(TX_RING), Ring::new(EVENT_RING));
        Self { memory, rx, tx, event, rx_buffers: vec![(0, 0); usize::from(QUEUE_SIZE)], tx_turn: 0, reposts: true }
    }

    /// The driver goes on as it is in other memory, which has the bytes that this one's had: it was saved and restored.
    #[must_use]
    pub fn moved_to(self, memory: GuestMemoryMmap) -> Self {
        Self { memory, ..self }
    }

    /// The driver starts anew on empty rings, with all buffers posted.
    pub fn restart(&mut self) {
        self.restart_without_events();
        self.post_events();
    }

    /// The driver starts anew on empty rings, with all receive buffers posted and none for events.
    pub fn restart_without_events(&mut self) {
        for ring in self.addresses() {
            for part in [ring.descriptors, ring.available, ring.used] {
                // The largest part is the table of descriptors.
                let zeros = [0; 16 * QUEUE_SIZE as usize];
                self.memory.write_slice(&zeros, GuestAddress(part)).expect("the rings are in memory");
            }
        }
        (self.rx, self.tx, self.event) = (Ring::new(RX_RING), Ring::new(TX_RING), Ring::new(EVENT_RING));
        self.post_all(RX_BUFFER);
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Where the receive, the transmit and the event queue are.
    #[must_use]
    pub fn addresses(&self) -> [QueueAddresses; 3] {
        [&self.rx, &self.tx, &self.event].map(|ring| QueueAddresses {
            descriptors: ring.descriptors(),
            available: ring.avail(),
            used: ring.used(),
        })
    }

    /// Which of the receive, transmit and event queue are to be notified of what was made available since the last call.
    pub fn take_notifications(&mut self) -> [bool; 3] {
        let Self { memory, rx, tx, event, .. } = self;
        [rx, tx, event].map(|ring| ring.take_notification(memory))
    }

    /// Asks for an interrupt at the next buffer that the device uses in each queue (virtio 1.3, 2.7.7).
    pub fn ask_for_interrupts(&self) {
        for ring in [&self.rx, &self.tx, &self.event] {
            let used_event = ring.avail() + 4 + 2 * u64::from(QUEUE_SIZE);
            self.memory.write_obj(ring.used_seen.to_le(), GuestAddress(used_event)).expect("the ring is in memory");
        }
        // The device must see `used_event` before this side reads what was used meanwhile.
        fence(Ordering::SeqCst);
    }

    /// Whether the device used a buffer that was not taken back yet.
    #[must_use]
    pub fn has_used(&self) -> bool {
        [&self.rx, &self.tx, &self.event].iter().any(|ring| ring.used_index(&self.memory) != ring.used_seen)
    }

    /// Whether there is a packet that was not received yet.
    #[must_use]
    pub fn has_packet(&self) -> bool {
        self.rx.used_index(&self.memory) != self.rx.used_seen
    }

    /// Whether there is an event that was not taken yet.
    #[must_use]
    pub fn has_event(&self) -> bool {
        self.event.used_index(&self.memory) != self.event.used_seen
    }

    /// Takes back every transmit chain that the device used.
    pub fn take_sent(&mut self) {
        while self.tx.take_used(&self.memory).is_some() {}
    }

    /// Posts buffers for events.
    pub fn post_events(&mut self) {
        for _ in 0..EVENTS {
            self.post_event(EVENT_BYTES);
        }
    }

    /// Posts one buffer of this size for an event, if there is a free descriptor.
    pub fn post_event(&mut self, size: u32) -> bool {
        let Some(&head) = self.event.free.last() else { return false };
        let address = EVENT_BUFFERS + u64::from(head) * u64::from(EVENT_BYTES);
        self.event.offer(&self.memory, &[(address, size)], WRITE)
    }

    /// Takes the next event, whose buffer is not posted again yet. An empty buffer has none.
    pub fn take_event(&mut self) -> Option<Option<u32>> {
        let (head, length) = self.event.take_used(&self.memory)?;
        let address = EVENT_BUFFERS + u64::from(head) * u64::from(EVENT_BYTES);
        let event = || self.memory.read_obj(GuestAddress(address)).expect("the buffer is in memory");
        Some((length == EVENT_BYTES).then(event))
    }

    /// Posts receive buffers of this size until the queue is full.
    pub fn post_all(&mut self, size: u32) {
        while self.post(size) {}
    }

    /// Posts one receive buffer of this size, if there is a free descriptor.
    pub fn post(&mut self, size: u32) -> bool {
        let Some(&head) = self.rx.free.last() else { return false };
        let address = RX_BUFFERS + u64::from(head) * 0x1_0000;
        self.rx_buffers[usize::from(head)] = (address, size);
        self.rx.offer(&self.memory, &[(address, size)], WRITE)
    }

    /// Queues a packet without a notification, cut into descriptors at these offsets. Returns false if the queue is full.
    pub fn queue_bytes(&mut self, bytes: &[u8], cuts: &[usize]) -> bool {
        let base = TX_BUFFERS + (self.tx_turn % u64::from(QUEUE_SIZE)) * TX_BUFFER;
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
        self.tx_turn += 1;
        self.memory.write_slice(bytes, GuestAddress(base)).expect("the buffer is in memory");
        self.tx.offer(&self.memory, &pieces, 0)
    }

    /// Queues a packet without a notification, whose (address, length) pieces are in memory already. Returns false if the
    /// queue is full.
    pub fn queue_pieces(&mut self, pieces: &[(u64, u32)]) -> bool {
        self.tx.offer(&self.memory, pieces, 0)
    }

    /// Puts a chain of (address, length, flags, next) descriptors into the transmit queue as it is.
    pub fn queue_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.tx.offer_raw(&self.memory, descriptors);
    }

    /// Puts a chain of (address, length, flags, next) descriptors into the receive queue as it is.
    pub fn post_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.rx.offer_raw(&self.memory, descriptors);
    }

    /// Makes the chain that begins at `head` available in the transmit queue, whatever is there.
    pub fn queue_head(&mut self, head: u16) {
        self.tx.publish(&self.memory, head);
    }

    /// Puts a chain of (address, length, flags, next) descriptors into the event queue as it is.
    pub fn post_event_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.event.offer_raw(&self.memory, descriptors);
    }

    /// Moves the transmit queue's available index ahead by `count` entries that do not exist.
    pub fn jump_available(&mut self, count: u16) {
        self.tx.jump(&self.memory, count);
    }

    /// Moves the event queue's available index ahead by `count` entries that do not exist.
    pub fn jump_available_events(&mut self, count: u16) {
        self.event.jump(&self.memory, count);
    }

    /// How many chains the driver has made available in the receive, the transmit and the event queue, as their rings in
    /// guest memory say.
    #[must_use]
    pub fn available(&self) -> [u16; 3] {
        [&self.rx, &self.tx, &self.event].map(|ring| {
            u16::from_le(self.memory.read_obj(GuestAddress(ring.avail() + 2)).expect("the ring is in memory"))
        })
    }

    /// Whether the device gave back the chains from number `from` of each queue up to number `to` as it must: each of
    /// those that were made available, once, in their order.
    #[must_use]
    pub fn has_used_each_once(&self, from: [u16; 3], to: [u16; 3]) -> bool {
        let rings = [&self.rx, &self.tx, &self.event].into_iter();
        rings.zip(from.into_iter().zip(to)).all(|(ring, (from, to))| {
            let count = to.wrapping_sub(from);
            ring.used_index(&self.memory) == to
                && (0..count).map(|number| from.wrapping_add(number)).all(|number| {
                    ring.used_entry(&self.memory, number).0 == u32::from(ring.available_head(&self.memory, number))
                })
        })
    }

    /// How many bytes the device says that it wrote into the event buffer that it used as number `index`.
    #[must_use]
    pub fn event_length(&self, index: u16) -> u32 {
        self.event.used_entry(&self.memory, index).1
    }

    /// Takes back one receive buffer that the device says it used, whatever it says of it. False if there is none.
    pub fn receive_raw(&mut self) -> bool {
        self.rx.take_used(&self.memory).is_some()
    }

    /// The next packet that the guest received.
    pub fn receive(&mut self) -> Option<Packet> {
        let (head, length) = self.rx.take_used(&self.memory)?;
        let (address, size) = self.rx_buffers[usize::from(head)];
        assert!(length <= size, "the device wrote {length} bytes into {size}");
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("the buffer is in memory");
        if self.reposts {
            self.post(size);
        }
        let (header, payload) = bytes.split_first_chunk()?;
        let header = Header::parse(header);
        assert_eq!(header.len as usize, payload.len(), "the used length is the header's and the payload's");
        Some(Packet { header, payload: payload.to_vec() })
    }
}

/// How a guest's device is attached to it.
pub trait Attached {
    /// Lets the device do what there is to do.
    ///
    /// # Errors
    ///
    /// What the device says of a broken driver.
    fn service(&mut self, driver: &mut Driver) -> Result<(), DeviceError>;

    /// The device's host side.
    fn handle(&self) -> Handle;
}

/// A device without a transport: the test is the transport.
#[derive(Debug)]
pub struct Bare {
    device: Device,
    rx: Queue,
    tx: Queue,
    event: Queue,
}

impl Bare {
    fn new(driver: &Driver) -> Self {
        let (rx, tx, event) = (driver.rx.queue(), driver.tx.queue(), driver.event.queue());
        Self { device: Device::new(CID).expect("a device"), rx, tx, event }
    }

    /// How many chains of the receive, the transmit and the event queue the device has used.
    #[must_use]
    pub fn used(&self) -> [u16; 3] {
        [&self.rx, &self.tx, &self.event].map(QueueT::next_used)
    }
}

impl Attached for Bare {
    fn service(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Self { device, rx, tx, event } = self;
        let _interrupts = device.service(&driver.memory, rx, tx, Some(event))?;
        Ok(())
    }

    fn handle(&self) -> Handle {
        self.device.handle()
    }
}

impl Deref for Bare {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

impl DerefMut for Bare {
    fn deref_mut(&mut self) -> &mut Device {
        &mut self.device
    }
}

/// A guest with its device.
#[derive(Debug)]
pub struct Guest<D = Bare> {
    /// The device under test.
    pub device: D,
    driver: Driver,
}

impl<D> Deref for Guest<D> {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        &self.driver
    }
}

impl<D> DerefMut for Guest<D> {
    fn deref_mut(&mut self) -> &mut Driver {
        &mut self.driver
    }
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// A device has more descriptors than a process may have where nobody asked for more.
fn allow_all_descriptors() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the maximum");
    });
}

impl Guest {
    /// A guest whose driver runs and has posted all its receive buffers.
    #[must_use]
    pub fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.post_all(RX_BUFFER);
        guest.post_events();
        guest
    }

    /// A guest whose driver runs and has posted no receive buffer.
    #[must_use]
    pub fn without_buffers() -> Self {
        Self::in_memory(memory())
    }

    /// A guest whose driver runs in this memory, of at least [`MEMORY`] bytes at address 0, and has posted no receive
    /// buffer.
    #[must_use]
    pub fn in_memory(memory: GuestMemoryMmap) -> Self {
        allow_all_descriptors();
        let driver = Driver::new(memory);
        Self { device: Bare::new(&driver), driver }
    }

    /// The driver starts anew on empty rings.
    pub fn reboot(&mut self) {
        self.driver.restart();
        let Bare { rx, tx, event, .. } = Bare::new(&self.driver);
        (self.device.rx, self.device.tx, self.device.event) = (rx, tx, event);
        self.device.reset();
    }

    /// A new device takes this one's place, as where a transport restores it for a driver that runs: memory is what it was,
    /// and the queues go on where they were.
    ///
    /// # Errors
    ///
    /// What the new device says of the state; the old one goes on then.
    pub fn restore(&mut self, state: &DeviceState) -> Result<(), InvalidSnapshot> {
        let mut restored = Bare::new(&self.driver);
        restored.device.restore(state)?;
        restored.device.reset_transport();
        let before = [&self.device.rx, &self.device.tx, &self.device.event];
        for (queue, before) in [&mut restored.rx, &mut restored.tx, &mut restored.event].into_iter().zip(before) {
            queue.set_next_avail(before.next_avail());
            queue.set_next_used(before.next_used());
        }
        self.device = restored;
        Ok(())
    }

    /// A header of this guest.
    #[must_use]
    pub fn header(operation: Operation, guest_port: u32, host_port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            socket_type: TYPE_STREAM,
            op: operation.number(),
            buf_alloc: GUEST_BUFFER,
            ..Header::default()
        }
    }
}

impl<D: Attached> Guest<D> {
    /// A guest whose `driver` drives `device`.
    pub fn attached(device: D, driver: Driver) -> Self {
        Self { device, driver }
    }

    /// What is left of the guest without its device, which ends.
    pub fn into_driver(self) -> Driver {
        self.driver
    }

    /// Lets the device do what there is to do.
    ///
    /// # Errors
    ///
    /// What the device says of a broken driver.
    pub fn try_service(&mut self) -> Result<(), DeviceError> {
        self.device.service(&mut self.driver)?;
        self.driver.take_sent();
        Ok(())
    }

    /// The device's host side.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.device.handle()
    }

    /// Lets the device do what there is to do.
    pub fn service(&mut self) {
        self.try_service().expect("an honest driver breaks nothing");
    }

    /// Sends a packet, its header in one descriptor and its payload in another, and lets the device take it.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        let bytes = [&header.emit()[..], payload].concat();
        assert!(self.queue_bytes(&bytes, &[Header::BYTES]), "the transmit queue is full");
        self.service();
    }

    /// Every packet that the guest received by now, after the device did what there was to do.
    pub fn received(&mut self) -> Vec<Packet> {
        self.service();
        std::iter::from_fn(|| self.receive()).collect()
    }

    /// The operations of every packet that the guest received by now.
    pub fn operations(&mut self) -> Vec<Operation> {
        self.received().iter().map(Packet::operation).collect()
    }

    /// The driver comes to the event of a transport reset: it closes its connections, and posts the buffer again.
    pub fn take_transport_reset(&mut self) {
        self.service();
        assert_eq!(self.take_event(), Some(Some(EVENT_TRANSPORT_RESET)));
        self.post_event(EVENT_BYTES);
        self.service();
    }

    /// The device serves an honest connection, whatever was before.
    pub fn serves_on(&mut self) {
        self.received();
        let mut connection = self.connect_from_host(729);
        assert_eq!(connection.transfer_to_host(self, b"honest", 6), b"honest");
        assert_eq!(connection.transfer_to_guest(self, b"reply"), b"reply");
        let confirmation = connection.header(Operation::Rst);
        drop(connection);
        assert_eq!(self.operations(), [Operation::Shutdown]);
        self.send(&confirmation, &[]);
    }

    /// Connects the host to a port of the guest.
    pub fn connect_from_host(&mut self, guest_port: u32) -> Connection {
        let stream = self.handle().connect(guest_port).expect("the device is there");
        let request = self.received().pop().expect("a request");
        assert_eq!(request.operation(), Operation::Request);
        assert_eq!(request.header.dst_port, guest_port);
        let mut connection = Connection::new(stream, guest_port, request.header.src_port);
        connection.on_packet(&request.header);
        self.send(&connection.header(Operation::Response), &[]);
        connection
    }

    /// Connects the guest to a port of the host that `listener` listens on.
    pub fn connect_from_guest(
        &mut self,
        listener: &scx_vsock::vsock::Listener,
        guest_port: u32,
        host_port: u32,
    ) -> Connection {
        self.send(&Guest::header(Operation::Request, guest_port, host_port), &[]);
        let response = self.received().pop().expect("a response");
        assert_eq!(response.operation(), Operation::Response);
        let stream = listener.accept().expect("a connection");
        let mut connection = Connection::new(stream, guest_port, host_port);
        connection.on_packet(&response.header);
        connection
    }
}

/// The guest's side of a connection, with the host's stream.
#[derive(Debug)]
pub struct Connection {
    /// The host's end.
    pub stream: UnixStream,
    /// The guest's port.
    pub guest_port: u32,
    /// The host's port.
    pub host_port: u32,
    /// The guest's `buf_alloc`.
    pub buf_alloc: u32,
    /// The guest's `fwd_cnt`.
    pub fwd_cnt: u32,
    /// Bytes that the guest has sent.
    pub sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
}

impl Connection {
    /// A connection that nothing went over yet.
    #[must_use]
    pub fn new(stream: UnixStream, guest_port: u32, host_port: u32) -> Self {
        Self {
            stream,
            guest_port,
            host_port,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: 0,
            sent: 0,
            host_buffer: 0,
            host_forwarded: 0,
        }
    }

    /// A header of this connection.
    #[must_use]
    pub fn header(&self, operation: Operation) -> Header {
        Header {
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Guest::header(operation, self.guest_port, self.host_port)
        }
    }

    /// Takes the credit in a packet of the device.
    pub fn on_packet(&mut self, header: &Header) {
        self.host_buffer = header.buf_alloc;
        self.host_forwarded = header.fwd_cnt;
    }

    /// Bytes that the guest may send now.
    #[must_use]
    pub fn credit(&self) -> u32 {
        self.host_buffer - self.sent.wrapping_sub(self.host_forwarded)
    }

    /// Sends payload to the host.
    pub fn write<D: Attached>(&mut self, guest: &mut Guest<D>, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("a small payload");
        let header = Header { len, ..self.header(Operation::ReadWrite) };
        guest.send(&header, payload);
        self.sent = self.sent.wrapping_add(len);
    }

    /// Sends all of `payload` to the host in packets of at most `most` bytes, as credit allows, while the host reads;
    /// returns what the host got.
    pub fn transfer_to_host<D: Attached>(&mut self, guest: &mut Guest<D>, payload: &[u8], most: usize) -> Vec<u8> {
        let mut got = Vec::new();
        let mut rest = payload;
        while got.len() < payload.len() {
            while !rest.is_empty() && self.credit() > 0 {
                let (now, later) = rest.split_at(rest.len().min(most).min(self.credit() as usize));
                self.write(guest, now);
                rest = later;
            }
            got.extend(self.read_host());
            for packet in guest.received() {
                self.on_packet(&packet.header);
            }
        }
        got
    }

    /// Sends all of `payload` to the guest; returns what the guest got.
    pub fn transfer_to_guest<D: Attached>(&mut self, guest: &mut Guest<D>, payload: &[u8]) -> Vec<u8> {
        let mut got = Vec::new();
        let mut rest = payload;
        while got.len() < payload.len() {
            if !rest.is_empty() {
                match self.stream.write(rest) {
                    Ok(count) => rest = &rest[count..],
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
            let packets = guest.received();
            let before = got.len();
            for packet in packets {
                self.on_packet(&packet.header);
                got.extend(packet.payload);
            }
            if got.len() > before {
                self.fwd_cnt = self.fwd_cnt.wrapping_add(u32::try_from(got.len() - before).expect("a small step"));
                guest.send(&self.header(Operation::CreditUpdate), &[]);
            }
        }
        got
    }

    /// What the host can read now.
    pub fn read_host(&mut self) -> Vec<u8> {
        let mut got = Vec::new();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return got,
                Ok(count) => got.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return got,
                Err(error) => panic!("the host's stream failed: {error}"),
            }
        }
    }

    /// Whether the host reads the stream's end now.
    pub fn host_reads_end(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// Bytes that differ from their neighbours.
#[must_use]
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap_or(0)).collect()
}

/// Sizes around every limit on the path.
#[must_use]
pub fn interesting_sizes() -> Vec<usize> {
    let buffer = BUFFER_BYTES as usize;
    let edges = [1, 44, 4052, 4096, 32 << 10, 64 << 10, buffer / 2, buffer];
    edges.iter().flat_map(|&edge| [edge - 1, edge, edge + 1]).filter(|&size| size > 0).collect()
}
