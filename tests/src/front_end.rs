//! A vhost-user front end with a simulated guest driver: what QEMU does, step by step.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use scx_vsock::vsock::packet::{Header, Operation};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest_driver::{Connection, Driver, MEMORY, Packet, QUEUE_SIZE, RX_BUFFER};
use crate::peer::{DEADLINE, Peer};

/// A front end that is connected to a back end, and its guest.
pub struct FrontEnd {
    /// The guest's driver.
    pub driver: Driver,
    file: File,
    back_end: Frontend,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    interrupts: Epoll,
}

/// A file with guest memory, and a driver in it.
fn shared_memory() -> (File, Driver) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memory file"));
    ftruncate(&file, MEMORY as u64).expect("a memory file has room");
    let part = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
    let memory = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(part))]).expect("memory");
    (file, Driver::new(memory))
}

impl FrontEnd {
    /// Negotiates with the back end at the other end of `stream`, and starts both rings from 0.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let (file, driver) = shared_memory();
        let event = || EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        let mut front_end = Self {
            driver,
            file,
            back_end: Frontend::from_stream(stream, 2),
            kicks: [event(), event()],
            calls: [event(), event()],
            interrupts: Epoll::new().expect("an epoll descriptor"),
        };
        for call in &front_end.calls {
            let readable = EpollEvent::new(EventSet::IN, 0);
            front_end.interrupts.ctl(ControlOperation::Add, call.as_raw_fd(), readable).expect("an event to wait for");
        }
        front_end.negotiate();
        front_end.driver.post_all(RX_BUFFER);
        front_end.start([0, 0]);
        front_end
    }

    fn negotiate(&mut self) {
        let back_end = &mut self.back_end;
        back_end.set_owner().expect("an owner");
        let features = back_end.get_features().expect("features");
        back_end.set_features(features).expect("features");
        let offered = back_end.get_protocol_features().expect("protocol features");
        let supported = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK;
        back_end.set_protocol_features(offered & supported).expect("protocol features");
        self.share_memory();
    }

    fn share_memory(&mut self) {
        let region = self.driver.memory().find_region(GuestAddress(0)).expect("one region");
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).expect("a region with a file");
        self.back_end.set_mem_table(&[region]).expect("memory");
    }

    /// Starts both rings at these indices of their available rings.
    pub fn start(&mut self, from: [u16; 2]) {
        let memory = self.driver.memory().clone();
        let address = |at| memory.get_host_address(GuestAddress(at)).expect("a ring in memory") as u64;
        for (queue, addresses) in self.driver.addresses().into_iter().take(2).enumerate() {
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

    /// Stops both rings, as QEMU does to pause a guest and to reset it. Returns their indices.
    pub fn stop(&mut self) -> [u16; 2] {
        [0, 1].map(|queue| {
            let base = self.back_end.get_vring_base(queue).expect("a base");
            u16::try_from(base).expect("an index")
        })
    }

    /// The guest boots anew: rings are stopped, empty, and started from 0.
    pub fn reboot(&mut self) {
        self.stop();
        self.driver.restart();
        self.start([0, 0]);
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
        self.start([0, 0]);
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

    /// Kicks both queues.
    pub fn kick(&self) {
        self.kicks.iter().for_each(|kick| kick.write(1).expect("an event"));
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

    /// Queues a packet and kicks both queues.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        assert!(self.queue(header, payload), "the transmit queue is full");
        self.kick();
    }

    /// Queues a packet. False if the queue is full.
    pub fn queue(&mut self, header: &Header, payload: &[u8]) -> bool {
        self.driver.take_sent();
        self.driver.queue_bytes(&[&header.emit()[..], payload].concat(), &[Header::BYTES])
    }

    /// Waits until the device has used a buffer of either queue.
    pub fn wait(&self) {
        self.driver.ask_for_interrupts();
        if self.driver.has_used() {
            return;
        }
        let within = i32::try_from(DEADLINE.as_millis()).expect("a short deadline");
        let signalled = self.interrupts.wait(within, &mut [EpollEvent::default(); 2]).expect("epoll works");
        assert!(signalled > 0, "no interrupt within {DEADLINE:?}");
        for call in &self.calls {
            // One of the two may not have been signalled.
            let _empty = call.read();
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
