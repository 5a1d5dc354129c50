//! A simulated guest: a driver with its device and its connections, which can do what no honest driver does.

use std::io::{ErrorKind, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Once;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{
    EVENT_BYTES, EVENT_QUEUE, EVENT_TRANSPORT_RESET, HOST_CID, RX_QUEUE, TX_QUEUE, TYPE_STREAM,
};
use scx_vsock::vsock::test_util::{GUEST_BUFFER_BYTES, Packet, QUEUE_SIZE, SimulatedDriver, guest_memory};
use scx_vsock::vsock::{
    BUFFER_BYTES, Device, DeviceError, DeviceState, GuestPolicy, Handle, Interrupts, InvalidSnapshot,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The guest's CID.
pub const CID: u64 = 3;

/// Another descriptor follows (virtio 1.3, 2.7.5).
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor's address, length, flags and next.
pub type RawDescriptor = (u64, u32, u16, u16);

/// What no honest driver does with its rings, and what they look like.
pub trait RawRings {
    /// Puts a chain of (address, length, flags, next) descriptors, from descriptor 0 on, into a queue as it is.
    fn offer_raw(&mut self, queue: usize, descriptors: &[RawDescriptor]);

    /// Puts a chain into the transmit queue as it is.
    fn queue_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.offer_raw(TX_QUEUE, descriptors);
    }

    /// Puts a chain into the receive queue as it is.
    fn post_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.offer_raw(RX_QUEUE, descriptors);
    }

    /// Puts a chain into the event queue as it is.
    fn post_event_raw(&mut self, descriptors: &[RawDescriptor]) {
        self.offer_raw(EVENT_QUEUE, descriptors);
    }

    /// How many chains the driver has made available in the receive, the transmit and the event queue, as their rings in
    /// guest memory say.
    fn available(&self) -> [u16; 3];

    /// Whether the device gave back the chains from number `from` of each queue up to number `to` as it must: each of
    /// those that were made available, once, in their order.
    fn has_used_each_once(&self, from: [u16; 3], to: [u16; 3]) -> bool;

    /// How many bytes the device says that it wrote into the event buffer that it used as number `index`.
    fn event_length(&self, index: u16) -> u32;
}

impl RawRings for SimulatedDriver {
    fn offer_raw(&mut self, queue: usize, descriptors: &[RawDescriptor]) {
        for (index, &(address, length, flags, next)) in (0u64..).zip(descriptors) {
            let bytes =
                [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
            let entry = GuestAddress(self.addresses()[queue].descriptors + 16 * index);
            self.memory().write_slice(&bytes, entry).expect("the ring is in memory");
        }
        self.make_available(queue, 0);
    }

    fn available(&self) -> [u16; 3] {
        self.addresses().map(|ring| half(self.memory(), ring.available + 2))
    }

    fn has_used_each_once(&self, from: [u16; 3], to: [u16; 3]) -> bool {
        let memory = self.memory();
        self.addresses().into_iter().zip(from.into_iter().zip(to)).all(|(ring, (from, to))| {
            let count = to.wrapping_sub(from);
            half(memory, ring.used + 2) == to
                && (0..count).map(|number| from.wrapping_add(number)).all(|number| {
                    let slot = u64::from(number % QUEUE_SIZE);
                    let available = half(memory, ring.available + 4 + 2 * slot);
                    word(memory, ring.used + 4 + 8 * slot) == u32::from(available)
                })
        })
    }

    fn event_length(&self, index: u16) -> u32 {
        let slot = u64::from(index % QUEUE_SIZE);
        word(self.memory(), self.addresses()[EVENT_QUEUE].used + 4 + 8 * slot + 4)
    }
}

fn half(memory: &GuestMemoryMmap, at: u64) -> u16 {
    u16::from_le(memory.read_obj(GuestAddress(at)).expect("the ring is in memory"))
}

fn word(memory: &GuestMemoryMmap, at: u64) -> u32 {
    u32::from_le(memory.read_obj(GuestAddress(at)).expect("the ring is in memory"))
}

/// Whether a descriptor is readable within this time.
pub fn is_readable(fd: impl AsFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).expect("a short deadline");
    // A fuzzer's clock interrupts.
    let ready = || poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&within));
    rustix::io::retry_on_intr(ready).expect("poll works") > 0
}

/// How a guest's device is attached to it.
pub trait Attached {
    /// Lets the device do what there is to do.
    ///
    /// # Errors
    ///
    /// What the device says of a broken driver.
    fn service(&mut self, driver: &mut SimulatedDriver) -> Result<(), DeviceError>;

    /// The device's host side.
    fn handle(&self) -> Handle;
}

/// A device without a transport: the test is the transport. Refusals have no pace, so that each packet's answer is there
/// at once.
#[derive(Debug)]
pub struct Bare {
    device: Device,
    rx: Queue,
    tx: Queue,
    event: Queue,
}

impl Bare {
    fn new(driver: &SimulatedDriver) -> Self {
        let [rx, tx, event] = driver.queues();
        let device = Device::new(CID).expect("a device");
        device.handle().set_guest_policy(GuestPolicy::default().refusals_per_second(u32::MAX));
        Self { device, rx, tx, event }
    }

    fn service_once(&mut self, driver: &SimulatedDriver) -> Result<Interrupts, DeviceError> {
        let Self { device, rx, tx, event } = self;
        device.service(driver.memory(), rx, tx, Some(event))
    }

    /// How many chains of the receive, the transmit and the event queue the device has used.
    #[must_use]
    pub fn used(&self) -> [u16; 3] {
        [&self.rx, &self.tx, &self.event].map(QueueT::next_used)
    }
}

impl Attached for Bare {
    /// As a transport does: as often as the device's descriptor says so, and once for a notification.
    fn service(&mut self, driver: &mut SimulatedDriver) -> Result<(), DeviceError> {
        let _interrupts = self.service_once(driver)?;
        while is_readable(self.device.fd(), Duration::ZERO) {
            let _interrupts = self.service_once(driver)?;
        }
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
    driver: SimulatedDriver,
}

impl<D> Deref for Guest<D> {
    type Target = SimulatedDriver;

    fn deref(&self) -> &SimulatedDriver {
        &self.driver
    }
}

impl<D> DerefMut for Guest<D> {
    fn deref_mut(&mut self) -> &mut SimulatedDriver {
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
        guest.post_all_buffers();
        guest
    }

    /// A guest whose driver runs and has posted no receive buffer.
    #[must_use]
    pub fn without_buffers() -> Self {
        Self::in_memory(guest_memory())
    }

    /// A guest whose driver runs in this memory, which is as large as [`guest_memory`], and has posted no receive buffer.
    #[must_use]
    pub fn in_memory(memory: GuestMemoryMmap) -> Self {
        allow_all_descriptors();
        let driver = SimulatedDriver::new(memory);
        Self { device: Bare::new(&driver), driver }
    }

    /// Lets the device do what it does in one call.
    pub fn service_once(&mut self) -> Interrupts {
        let interrupts = self.device.service_once(&self.driver).expect("an honest driver breaks nothing");
        self.driver.take_sent();
        interrupts
    }

    /// The driver starts anew on empty rings.
    pub fn reboot(&mut self) {
        self.driver.restart();
        [self.device.rx, self.device.tx, self.device.event] = self.driver.queues();
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
            buf_alloc: GUEST_BUFFER_BYTES,
            ..Header::default()
        }
    }
}

impl<D: Attached> Guest<D> {
    /// A guest whose `driver` drives `device`.
    pub fn attached(device: D, driver: SimulatedDriver) -> Self {
        Self { device, driver }
    }

    /// What is left of the guest without its device, which ends.
    pub fn into_driver(self) -> SimulatedDriver {
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
        assert!(self.queue_packet(header, payload), "the transmit queue is full");
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
            buf_alloc: GUEST_BUFFER_BYTES,
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

    /// Reads at most `most` bytes that the host can read now. Returns how many.
    pub fn read_some(&mut self, most: usize) -> usize {
        match self.stream.read(&mut vec![0; most]) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the host's stream failed: {error}"),
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
