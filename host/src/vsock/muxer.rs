//! The connections of one device: which of them a packet or an event is for, and whose turn it is to send.

use std::collections::hash_map::{Entry, OccupiedEntry};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::bitmap::BitmapSlice;

use super::chain::Chain;
use super::connection::{Connection, Outcome};
use super::host_side::{ConnectRequest, HostSide};
use super::key::Key;
use super::limits::{BUFFER_BYTES, MAX_CONNECTIONS};
use super::listener::ANY_PORT;
use super::packet::{Header, Operation};
use super::poller::{HostEvent, Poller};
use super::protocol::Protocol;
use super::rst_queue::{MAX_RSTS, Rst, RstQueue};
use super::spec::{HOST_CID, TYPE_STREAM};
use super::stream::pair;

/// Bytes that [`Device::held_bytes`](super::Device::held_bytes) never exceeds.
pub const MAX_HELD_BYTES: usize =
    MAX_CONNECTIONS * (BUFFER_BYTES as usize + size_of::<Key>() + size_of::<Rst>()) + (MAX_RSTS + 1) * size_of::<Rst>();

/// Host ports of connections that the host asks for: a range of their own, in ascending order, so that none is reused
/// soon.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// A connection in the muxer's table.
#[derive(Debug)]
struct Slot {
    connection: Connection,
    /// Whether it is in the queue of those that may have something to send.
    is_queued: bool,
}

/// Who sends next.
#[derive(Debug, Default)]
struct Schedule {
    /// Connections that may have something to send, for one packet each.
    ready: VecDeque<Key>,
    rst_queue: RstQueue,
    /// No connection's deadline is before this.
    next_deadline: Option<Instant>,
}

/// The connections of one device.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    host_side: Arc<HostSide>,
    poller: Poller,
    connections: HashMap<Key, Slot>,
    schedule: Schedule,
    next_port: u32,
    /// Whether the driver has stream sockets.
    streams: bool,
}

impl Schedule {
    /// Queues a connection that may have something to send.
    fn update(&mut self, key: Key, slot: &mut Slot) {
        self.next_deadline = [self.next_deadline, slot.connection.deadline()].into_iter().flatten().min();
        if !slot.is_queued && slot.connection.is_ready() {
            slot.is_queued = true;
            self.ready.push_back(key);
        }
    }

    /// Does what follows from a packet or an event for the connection that took it.
    fn apply(&mut self, mut slot: OccupiedEntry<'_, Key, Slot>, outcome: Outcome) {
        let key = *slot.key();
        match outcome {
            Outcome::Continue => self.update(key, slot.get_mut()),
            Outcome::Closed => self.forget(key, &slot.remove()),
            Outcome::SendReset => {
                self.forget(key, &slot.remove());
                self.rst_queue.push(Rst::of(key));
            }
            Outcome::StalePacket => self.rst_queue.push(Rst::of(key)),
        }
    }

    /// Forgets the turn of a removed connection: a guest that takes no packets could otherwise accumulate turns.
    fn forget(&mut self, key: Key, slot: &Slot) {
        if slot.is_queued {
            self.ready.retain(|&other| other != key);
        }
    }
}

impl Muxer {
    /// Returns the muxer of a device for this guest.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no epoll instance.
    pub fn new(guest_cid: u64, host_side: Arc<HostSide>) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            poller: Poller::new(host_side.wake_fd())?,
            host_side,
            connections: HashMap::new(),
            schedule: Schedule::default(),
            next_port: FIRST_PORT,
            streams: true,
        })
    }

    /// Returns the descriptor that is readable when [`poll`](Self::poll) has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// Returns the number of connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Bytes of memory that hold what the guest sent, or is to be sent.
    pub fn held_bytes(&self) -> usize {
        let buffered: usize = self.connections.values().map(|slot| slot.connection.held_bytes()).sum();
        buffered + self.schedule.ready.len() * size_of::<Key>() + self.schedule.rst_queue.held_bytes()
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&self) -> bool {
        !self.schedule.ready.is_empty() || !self.schedule.rst_queue.is_empty()
    }

    /// Whether this packet can be taken before the guest has received some: it adds no RST, or there is room for one.
    pub fn has_room_for(&self, packet: &Header) -> bool {
        let rst_queue = &self.schedule.rst_queue;
        !rst_queue.is_full() || packet.op == Operation::Rst.number() || rst_queue.contains(&Rst::answering(packet))
    }

    /// Removes every connection that the guest may know of; its host side reads the end.
    pub fn reset(&mut self) {
        self.connections.retain(|_, slot| slot.connection.is_connect_pending());
        self.schedule.rst_queue.clear();
        self.schedule.ready.retain(|key| self.connections.contains_key(key));
    }

    /// Returns the host port of the next connection that the host asks for.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Sets the host port of the next connection that the host asks for. Returns false if it is none of those ports.
    #[must_use]
    pub fn set_next_port(&mut self, port: u32) -> bool {
        let valid = (FIRST_PORT..=LAST_PORT).contains(&port);
        if valid {
            self.next_port = port;
        }
        valid
    }

    /// Sets whether there are stream sockets. Without them every connection ends.
    pub fn set_streams(&mut self, streams: bool) {
        self.streams = streams;
        if !streams {
            self.clear();
        }
    }

    /// Ends every connection at once.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.schedule.rst_queue.clear();
        self.schedule.ready.clear();
    }

    /// Resets connections whose deadline has passed: the guest did not confirm a close (virtio 1.3, 5.10.6.5), or did
    /// not accept what the host gave up. Nothing wakes the device for that: one that is idle harms nobody by it.
    pub fn reset_overdue(&mut self, now: Instant) {
        if self.schedule.next_deadline.is_none_or(|next| next > now) {
            return;
        }
        let deadlines = self.connections.iter().map(|(&key, slot)| (key, slot.connection.deadline()));
        let overdue: Vec<Key> =
            deadlines.filter(|(_, at)| at.is_some_and(|at| at <= now)).map(|(key, _)| key).collect();
        overdue.into_iter().for_each(|key| self.abort(key));
        self.schedule.next_deadline = self.connections.values().filter_map(|slot| slot.connection.deadline()).min();
    }

    /// Takes what happened on the host's side: connections that it asks for, and events of its streams.
    ///
    /// # Errors
    ///
    /// See [`Poller::poll`].
    pub fn poll(&mut self) -> io::Result<()> {
        self.reset_overdue(Instant::now());
        for event in self.poller.poll()? {
            match event {
                HostEvent::Wake => self.host_side.take_requests().into_iter().for_each(|request| self.connect(request)),
                HostEvent::Stream(key, event) => {
                    if let Entry::Occupied(mut slot) = self.connections.entry(key) {
                        let outcome = slot.get_mut().connection.on_event(event, &self.poller);
                        self.schedule.apply(slot, outcome);
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a connection that the host asks for. Where there is no room for it, its stream ends.
    fn connect(&mut self, request: ConnectRequest) {
        if let Some(key) = self.free_key(request.guest_port) {
            let _no_room = self.insert(Protocol::connect(key, request.preamble), request.socket);
        }
    }

    fn free_key(&mut self, guest_port: u32) -> Option<Key> {
        // One more try than there can be connections finds a free port.
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let host_port = self.next_port;
            self.next_port = if host_port == LAST_PORT { FIRST_PORT } else { host_port + 1 };
            let key = Key { host_port, guest_port };
            (!self.connections.contains_key(&key)).then_some(key)
        })
    }

    /// Adds a connection, which has a packet to send, if there is room for it and its socket can be watched.
    fn insert(&mut self, protocol: Protocol, socket: UnixStream) -> bool {
        if !self.streams || !self.make_room() {
            return false;
        }
        let key = protocol.key();
        let Ok(connection) = Connection::new(protocol, socket, &self.poller) else { return false };
        self.connections.insert(key, Slot { connection, is_queued: true });
        self.schedule.ready.push_back(key);
        true
    }

    /// Where there is no room, a connection is evicted that only waits for the guest to confirm its close; else one whose
    /// host is gone, with nothing left to send or no credit for it. The guest is sent RST.
    fn make_room(&mut self) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let first = |evictable: fn(&Connection) -> bool| {
            self.connections.iter().find(|(_, slot)| evictable(&slot.connection)).map(|(&key, _)| key)
        };
        let evicted = first(Connection::is_closing).or_else(|| first(Connection::waits_for_guest_alone));
        evicted.into_iter().for_each(|key| self.abort(key));
        evicted.is_some()
    }

    /// Ends a connection at once, with RST for the guest.
    fn abort(&mut self, key: Key) {
        if let Entry::Occupied(slot) = self.connections.entry(key) {
            self.schedule.apply(slot, Outcome::SendReset);
        }
    }

    /// Takes one packet of the guest, whose header was copied from the beginning of `chain`.
    pub fn process<B: BitmapSlice>(&mut self, packet: &Header, chain: &Chain<'_, B>) {
        if packet.src_cid != self.guest_cid || packet.dst_cid != HOST_CID {
            return;
        }
        if !self.streams || packet.socket_type != TYPE_STREAM {
            return self.reject(packet);
        }
        match self.connections.entry(Key::of(packet)) {
            Entry::Occupied(mut slot) => {
                let outcome = slot.get_mut().connection.process(packet, chain, &self.poller);
                self.schedule.apply(slot, outcome);
            }
            Entry::Vacant(_) if packet.op == Operation::Request.number() => self.accept(packet),
            Entry::Vacant(_) => self.reject(packet),
        }
    }

    /// Answers a packet of no connection: by RST, unless it is one.
    fn reject(&mut self, packet: &Header) {
        if packet.op != Operation::Rst.number() {
            self.schedule.rst_queue.push(Rst::answering(packet));
        }
    }

    fn accept(&mut self, request: &Header) {
        let accepted =
            request.dst_port != ANY_PORT && (self.accept_for_program(request) || self.accept_for_listener(request));
        if accepted {
            // A queued RST is of an earlier connection with these ports, which the guest has given up by now.
            self.schedule.rst_queue.withdraw(&Rst::answering(request));
        } else {
            self.reject(request);
        }
    }

    /// Connects the guest with the program at the host's port.
    fn accept_for_program(&mut self, request: &Header) -> bool {
        let program = self.host_side.connect_host_port(request.dst_port);
        program.is_some_and(|socket| self.insert(Protocol::accept(request), socket))
    }

    /// Connects the guest with the listener in this process.
    fn accept_for_listener(&mut self, request: &Header) -> bool {
        self.host_side.listeners().with_room(request.dst_port).is_some_and(|backlog| {
            let Ok((host, device)) = pair() else { return false };
            let inserted = self.insert(Protocol::accept(request), device);
            if inserted {
                backlog.push(host);
            }
            inserted
        })
    }

    /// Returns the next packet for the guest, if there is one. Its payload is written into `chain` after the space for
    /// the header.
    pub fn dispatch<B: BitmapSlice>(&mut self, chain: &Chain<'_, B>) -> Option<Header> {
        if let Some(rst) = self.schedule.rst_queue.pop(self.guest_cid) {
            return Some(rst);
        }
        while let Some(key) = self.schedule.ready.pop_front() {
            let Some(slot) = self.connections.get_mut(&key) else { continue };
            slot.is_queued = false;
            let packet = slot.connection.dispatch(self.guest_cid, chain);
            self.schedule.update(key, slot);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
