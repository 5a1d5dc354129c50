//! A vhost-user front end with a simulated guest driver: what QEMU does, step by step.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use scx_vsock::vsock::packet::{Header, Operation};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest_driver::Connection;
use crate::peer::{DEADLINE, Peer};
use scx_vsock::vsock::test_util::{MEMORY_BYTES, Packet, QUEUE_SIZE, SimulatedDriver};

/// Queues of the device.
const QUEUES: usize = 3;

/// `VHOST_USER_SET_VRING_KICK`.
pub const SET_VRING_KICK: u32 = 12;
/// `VHOST_USER_SET_VRING_CALL`.
pub const SET_VRING_CALL: u32 = 13;

/// A front end that is connected to a back end, and its guest.
pub struct FrontEnd {
    /// The guest's driver.
    pub driver: SimulatedDriver,
    file: File,
    stream: UnixStream,
    back_end: Frontend,
    /// Queues that the back end serves: the front end keeps the others.
    queues: usize,
    kicks: [EventFd; QUEUES],
    calls: [EventFd; QUEUES],
    interrupts: Epoll,
}

/// A file with guest memory, and a driver in it.
fn shared_memory() -> (File, SimulatedDriver) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file"));
    ftruncate(&file, MEMORY_BYTES as u64).expect("a memory file has room");
    let part = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
    let memory =
        GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY_BYTES, Some(part))]).expect("memory");
    (file, SimulatedDriver::new(memory))
}

/// The protocol's machine for one connection.
fn protocol(stream: &UnixStream) -> Frontend {
    Frontend::from_stream(stream.try_clone().expect("a descriptor"), QUEUES as u64)
}

impl FrontEnd {
    /// Negotiates with the back end at the other end of `stream`, keeps the event queue as QEMU does, and starts both
    /// other rings from 0.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self::with_queues(stream, 2)
    }

    /// As crosvm: the back end has the event queue, too.
    #[must_use]
    pub fn with_event_queue(stream: UnixStream) -> Self {
        Self::with_queues(stream, QUEUES)
    }

    fn with_queues(stream: UnixStream, queues: usize) -> Self {
        let (file, driver) = shared_memory();
        let event = || EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        let mut front_end = Self {
            driver,
            file,
            back_end: protocol(&stream),
            stream,
            queues,
            kicks: [event(), event(), event()],
            calls: [event(), event(), event()],
            interrupts: Epoll::new().expect("an epoll descriptor"),
        };
        for (queue, call) in (0..).zip(&front_end.calls) {
            let readable = EpollEvent::new(EventSet::IN, queue);
            front_end.interrupts.ctl(ControlOperation::Add, call.as_raw_fd(), readable).expect("an event to wait for");
        }
        front_end.negotiate();
        front_end.driver.restart();
        front_end.start([0; QUEUES]);
        front_end
    }

    /// The guest goes on at another back end.
    #[must_use]
    pub fn moved_to(mut self, stream: UnixStream) -> Self {
        let from = self.stop();
        self.back_end = protocol(&stream);
        self.stream = stream;
        self.negotiate();
        self.start(from);
        self
    }

    fn negotiate(&mut self) {
        let back_end = &mut self.back_end;
        back_end.set_owner().expect("an owner");
        let features = back_end.get_features().expect("features");
        back_end.set_features(features).expect("features");
        let offered = back_end.get_protocol_features().expect("protocol features");
        let supported =
            VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::MQ;
        back_end.set_protocol_features(offered & supported).expect("protocol features");
        self.share_memory();
    }

    fn share_memory(&mut self) {
        let region = self.driver.memory().find_region(GuestAddress(0)).expect("one region");
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).expect("a region with a file");
        self.back_end.set_mem_table(&[region]).expect("memory");
    }

    /// How many queues the back end has, as it says.
    pub fn queue_count(&mut self) -> u64 {
        self.back_end.get_queue_num().expect("a number of queues")
    }

    /// Starts the rings at these indices of their available rings.
    pub fn start(&mut self, from: [u16; QUEUES]) {
        let memory = self.driver.memory().clone();
        let address = |at| memory.get_host_address(GuestAddress(at)).expect("a ring in memory") as u64;
        for (queue, addresses) in self.driver.addresses().into_iter().take(self.queues).enumerate() {
            let config = VringConfigData {
                queue_max_size: QUEUE_SIZE,
                queue_size: QUEUE_SIZE,
                flags: 0,
                desc_table_addr: address(addresses.descriptors),
                used_ring_addr: address(addresses.used),
                avail_ring_addr: address(addresses.available),
                log_addr: None,
            };
            let back_end = &mut self.back_end;
            back_end.set_vring_num(queue, QUEUE_SIZE).expect("a size");
            back_end.set_vring_addr(queue, &config).expect("addresses");
            back_end.set_vring_base(queue, from[queue]).expect("a base");
            back_end.set_vring_call(queue, &self.calls[queue]).expect("an interrupt");
            back_end.set_vring_kick(queue, &self.kicks[queue]).expect("a kick");
            back_end.set_vring_enable(queue, true).expect("a ring to run");
        }
        self.kick();
    }

    /// Stops a queue, and starts it with a descriptor of any kind. The back end may end the session meanwhile.
    pub fn start_with_descriptor(&mut self, queue: usize, request: u32, fd: BorrowedFd<'_>) {
        let _base = self.back_end.get_vring_base(queue).expect("a base");
        if request != SET_VRING_CALL {
            self.back_end.set_vring_call(queue, &self.calls[queue]).expect("an interrupt");
        }
        self.send_descriptor(request, queue as u64, fd);
        if request != SET_VRING_KICK {
            let _ended = self.back_end.set_vring_kick(queue, &self.kicks[queue]);
        }
        let _ended = self.back_end.set_vring_enable(queue, true);
        self.kick();
    }

    /// Stops the rings, as QEMU does to pause a guest and to reset it. Returns their indices.
    pub fn stop(&mut self) -> [u16; QUEUES] {
        [0, 1, 2].map(|queue| {
            if queue >= self.queues {
                return 0;
            }
            let base = self.back_end.get_vring_base(queue).expect("a base");
            u16::try_from(base).expect("an index")
        })
    }

    /// Sends a descriptor of any kind for a queue.
    pub fn send_descriptor(&self, request: u32, queue: u64, fd: BorrowedFd<'_>) {
        const VERSION: u32 = 1;
        let message = [&request.to_le_bytes()[..], &VERSION.to_le_bytes(), &8u32.to_le_bytes(), &queue.to_le_bytes()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let message = message.concat();
        let sent = sendmsg(&self.stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent.expect("a back end"), message.len());
    }

    /// The guest boots anew: rings are stopped, empty, and started from 0.
    pub fn reboot(&mut self) {
        self.stop();
        self.driver.restart();
        self.start([0; QUEUES]);
    }

    /// Cuts guest memory short, for the device as for the driver, which must not touch what is gone.
    pub fn cut_memory(&self, bytes: u64) {
        ftruncate(&self.file, bytes).expect("a memory file can be cut");
    }

    /// The guest boots anew in other memory.
    pub fn reboot_in_other_memory(&mut self) {
        self.stop();
        (self.file, self.driver) = shared_memory();
        self.share_memory();
        self.driver.restart();
        self.start([0; QUEUES]);
    }

    /// Sets the size of a ring, which an honest front end does before it starts the ring, and truly.
    pub fn resize(&mut self, queue: usize, size: u16) {
        self.back_end.set_vring_num(queue, size).expect("a message that is not answered");
    }

    /// The device's configuration space.
    pub fn config(&mut self) -> [u8; 8] {
        let (_, bytes) = self.back_end.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).expect("a config");
        bytes.try_into().expect("8 bytes")
    }

    /// Kicks all queues, whether the back end asked for that or not.
    pub fn kick(&self) {
        self.kicks.iter().for_each(|kick| kick.write(1).expect("an event"));
    }

    /// Kicks the queues that are to be notified.
    pub fn notify(&mut self) {
        for (kick, notified) in self.kicks.iter().zip(self.driver.take_notifications()) {
            if notified {
                kick.write(1).expect("an event");
            }
        }
    }

    /// The guest accepts a program, which connects to its port 729 through the back end's hybrid socket.
    pub fn accept(&mut self, hybrid: &Path) -> (Peer, Connection) {
        let mut program = Peer::connect(hybrid);
        program.send("CONNECT 729\n");
        let request = self.expect(Operation::Request);
        let stream = program.stream().try_clone().expect("a descriptor");
        let mut connection = Connection::new(stream, 729, request.header.src_port);
        connection.on_packet(&request.header);
        self.send(&connection.header(Operation::Response), &[]);
        let answer = program.line();
        assert!(answer.starts_with(b"OK "), "{answer:?}");
        (program, connection)
    }

    /// Sends a packet.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        assert!(self.queue(header, payload), "the transmit queue is full");
        self.notify();
    }

    /// Queues a packet. False if the queue is full.
    pub fn queue(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.driver.take_sent();
        self.driver.queue_bytes(&[&header.emit()[..], payload].concat(), &[Header::BYTES])
    }

    /// Waits until the device has used a buffer of any queue.
    pub fn wait(&mut self) {
        self.notify();
        self.driver.ask_for_interrupts();
        if self.driver.has_used() {
            return;
        }
        let within = i32::try_from(DEADLINE.as_millis()).expect("a short deadline");
        let mut events = [EpollEvent::default(); QUEUES];
        let signalled = self.interrupts.wait(within, &mut events).expect("epoll works");
        assert!(signalled > 0, "no interrupt within {DEADLINE:?}");
        for event in &events[..signalled] {
            let _count = self.calls[usize::try_from(event.data()).expect("a queue")].read().expect("it is readable");
        }
    }

    /// The next packet; waits for it.
    pub fn packet(&mut self) -> Packet {
        loop {
            self.driver.take_sent();
            if let Some(packet) = self.driver.receive() {
                return packet;
            }
            self.wait();
        }
    }

    /// The next packet, which must have this operation.
    pub fn expect(&mut self, operation: Operation) -> Packet {
        let packet = self.packet();
        assert_eq!(packet.operation(), operation);
        packet
    }
}
