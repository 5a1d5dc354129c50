//! The connections of one device: which of them a packet or an event is for, and whose turn it is to send.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, OccupiedEntry};
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::bitmap::BitmapSlice;

use super::admission::{Admission, Origin};
use super::burst::GuestPacket;
use super::chain::Chain;
use super::connecting::ConnectReport;
use super::connection::{Connection, MAX_BUFFERS, Outcome, Packets};
use super::counters::{ConnectionCounts, Counters, Refusal, Stage};
use super::host_side::{ConnectRequest, HostSide};
use super::key::Key;
use super::limits::{BUFFER_BYTES, MAX_CONNECTIONS};
use super::listener::ANY_PORT;
use super::long_reads::LongReads;
use super::packet::{Header, Operation};
use super::policy::GuestPolicy;
use super::poller::{HostEvent, HostEvents, Poller, StreamEvent, Token};
use super::protocol::Protocol;
use super::rst_queue::{MAX_RSTS, Rst};
use super::schedule::{Schedule, Slot, Turn};
use super::spec::{HOST_CID, TYPE_STREAM};
use super::stream::pair;
use super::unread::UnreadStreams;

/// Bytes that [`Device::held_bytes`](super::Device::held_bytes) never exceeds.
pub const MAX_HELD_BYTES: usize =
    MAX_CONNECTIONS * (BUFFER_BYTES as usize + size_of::<Key>() + size_of::<Rst>()) + (MAX_RSTS + 1) * size_of::<Rst>();

/// Host ports of connections that the host asks for: a range of their own, in ascending order, so that none is reused
/// soon.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The least time between two wake-ups for the sake of refusals that are held, so that several go at once.
const PACE: Duration = Duration::from_micros(250);

/// The connections of one device.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    host_side: Arc<HostSide>,
    poller: Poller,
    connections: HashMap<Key, Slot>,
    unread: UnreadStreams,
    admission: Admission,
    schedule: Schedule,
    long_reads: LongReads,
    counters: Counters,
    next_port: u32,
    /// Whether the driver has stream sockets.
    streams: bool,
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
            unread: UnreadStreams::default(),
            admission: Admission::default(),
            schedule: Schedule::default(),
            long_reads: LongReads::default(),
            counters: Counters::default(),
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
        buffered + self.schedule.held_bytes()
    }

    /// Returns what was done so far, and the connections by state.
    pub fn counters(&self) -> Counters {
        let connections = ConnectionCounts { unread: self.unread.len(), ..self.schedule.counts() };
        Counters { connections, ..self.counters }
    }

    /// Shows the numbers to the handles.
    pub fn publish_counters(&self) {
        self.host_side.publish(self.counters());
    }

    /// Sees to it that the device is woken when the time of refusals comes that are held. Where the kernel has no timer,
    /// it is woken at once.
    pub fn arm_timer(&mut self) {
        if !self.schedule.holds_refusals() {
            return;
        }
        let time = PACE.max(Duration::from_secs(1) / self.host_side.policy().refusal_rate());
        if self.poller.wake_after(time).is_err() {
            self.host_side.wake();
        }
    }

    /// Counts the interrupts of queues that are to be raised.
    pub fn count_interrupts(&mut self, count: u64) {
        self.counters.interrupts = self.counters.interrupts.saturating_add(count);
    }

    /// Counts notifications of the driver.
    #[cfg(feature = "vhost-user")]
    pub fn count_notifications(&mut self, count: u64) {
        self.counters.notifications = self.counters.notifications.saturating_add(count);
    }

    /// Counts a packet that has no header.
    pub fn count_short_packet(&mut self) {
        self.counters.dropped_packets += 1;
    }

    /// Counts a wait of the transmit queue for the guest to receive RSTs.
    pub fn count_reset_stall(&mut self) {
        self.counters.reset_stalls += 1;
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&self) -> bool {
        self.schedule.has_packets()
    }

    /// Whether this packet can be taken before the guest has received some: it adds no RST, or there is room for one.
    pub fn has_room_for(&self, packet: &Header) -> bool {
        packet.op == Operation::Rst.number() || self.schedule.has_room_for(&Rst::answering(packet))
    }

    /// Removes every connection that the guest may know of; its host side reads the end.
    pub fn reset(&mut self) {
        self.remove_all(|connection| !connection.is_connect_pending());
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
        self.remove_all(|_| true);
    }

    /// Ends every connection, and leaves alone what the host has yet to read: the guest is gone for good.
    pub fn close(&mut self) {
        self.clear();
        self.unread = UnreadStreams::default();
        self.admission = Admission::default();
    }

    /// Removes connections, and all RSTs.
    fn remove_all(&mut self, is_over: fn(&Connection) -> bool) {
        let over = self.connections.iter().filter(|(_, slot)| is_over(&slot.connection)).map(|(&key, _)| key);
        for key in over.collect::<Vec<_>>() {
            if let Some(slot) = self.connections.remove(&key) {
                self.schedule.forget(key, &slot);
                self.end(slot);
            }
        }
        self.schedule.clear_rsts();
    }

    /// Resets connections whose deadline has passed: the guest did not confirm a close (virtio 1.3, 5.10.6.5), or did
    /// not accept what the host gave up. Nothing wakes the device for that: one that is idle harms nobody by it.
    pub fn reset_overdue(&mut self, now: Instant) {
        if !self.schedule.is_overdue(now) {
            return;
        }
        let deadlines = self.connections.iter().map(|(&key, slot)| (key, slot.connection.deadline()));
        let overdue: Vec<Key> =
            deadlines.filter(|(_, at)| at.is_some_and(|at| at <= now)).map(|(key, _)| key).collect();
        overdue.into_iter().for_each(|key| self.abort(key));
        let next = self.connections.values().filter_map(|slot| slot.connection.deadline()).min();
        self.schedule.set_next_deadline(next);
    }

    /// Takes what happened on the host's side: connections that it asks for, and events of its streams.
    ///
    /// # Errors
    ///
    /// See [`Poller::poll`].
    pub fn poll(&mut self) -> io::Result<()> {
        let events = self.poller.poll()?;
        self.on_events(&events);
        Ok(())
    }

    /// Takes what happened on the host's side, as its descriptor reported it.
    pub fn on_events(&mut self, events: &HostEvents) {
        let now = Instant::now();
        self.reset_overdue(now);
        if self.schedule.has_refusals() {
            self.allow_refusals(now);
        }
        for &event in events {
            match event {
                HostEvent::Wake => self.host_side.take_requests().into_iter().for_each(|request| self.connect(request)),
                HostEvent::Timer => {}
                // The rings are looked at whatever has happened.
                #[cfg(feature = "vhost-user")]
                HostEvent::Notification(_) | HostEvent::Transport => {}
                HostEvent::Stream(Token::Connection(key), event) => self.on_event(key, event),
                HostEvent::Stream(Token::Unread(number), event) => {
                    self.unread.on_event(number, event, &mut self.admission);
                }
            }
        }
    }

    fn on_event(&mut self, key: Key, event: StreamEvent) {
        if let Entry::Occupied(mut slot) = self.connections.entry(key) {
            let outcome = slot.get_mut().connection.on_event(event, &self.poller);
            if let Some(slot) = apply(&mut self.schedule, slot, outcome) {
                self.end(slot);
            }
        }
    }

    /// Starts a connection that the host asks for. Where there is no room for it, its stream ends.
    fn connect(&mut self, request: ConnectRequest) {
        let ConnectRequest { guest_port, socket, preamble, report } = request;
        if !self.streams {
            return;
        }
        if let Err(refusal) = self.make_room(Origin::Host, &self.host_side.policy()) {
            self.counters.refused.count(refusal);
            if let Some(report) = report {
                report.table_full();
            }
        } else if let Some(key) = self.free_key(guest_port) {
            let _no_watch = self.insert(Protocol::connect(key, preamble), socket, Origin::Host, report);
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

    /// Adds a connection, which has a packet to send, if its socket can be watched. There is room for it.
    fn insert(
        &mut self,
        protocol: Protocol,
        socket: UnixStream,
        origin: Origin,
        report: Option<ConnectReport>,
    ) -> bool {
        let key = protocol.key();
        let Ok(connection) = Connection::new(protocol, socket, &self.poller) else { return false };
        let mut slot = Slot::new(connection, origin, report);
        self.admission.enter(origin);
        self.schedule.add(key, &mut slot);
        self.connections.insert(key, slot);
        true
    }

    /// Makes room for a connection of this origin. Where there is none, a connection is evicted that only waits for the
    /// guest to confirm its close; else one whose host is gone, with nothing left to send or no credit for it; else, for
    /// the host, one of its own whose guest has closed. The guest is sent RST.
    fn make_room(&mut self, origin: Origin, policy: &GuestPolicy) -> Result<(), Refusal> {
        while let Some(shortage) = self.admission.shortage(origin, policy) {
            let Some(key) = self.evictable(origin, shortage) else { return Err(shortage) };
            self.counters.evictions += 1;
            self.abort(key);
        }
        Ok(())
    }

    /// Returns a connection whose end gives a place back that is short.
    fn evictable(&self, origin: Origin, shortage: Refusal) -> Option<Key> {
        let has_place = |slot: &Slot| match shortage {
            Refusal::PortFull => slot.origin == origin,
            Refusal::GuestFull => slot.origin != Origin::Host,
            _ => true,
        };
        let first = |evictable: fn(&Slot) -> bool| {
            self.connections.iter().find(|(_, slot)| has_place(slot) && evictable(slot)).map(|(&key, _)| key)
        };
        first(|slot| slot.gives_its_place_back() && slot.connection.is_closing())
            .or_else(|| first(|slot| slot.connection.waits_for_guest_alone()))
            .or_else(|| self.drains_for_host().filter(|_| origin == Origin::Host))
    }

    /// Returns a connection that the host asked for, whose guest has closed.
    fn drains_for_host(&self) -> Option<Key> {
        let is_drained = |slot: &Slot| slot.origin == Origin::Host && slot.connection.is_draining();
        self.connections.iter().find(|(_, slot)| is_drained(slot)).map(|(&key, _)| key)
    }

    /// Ends a connection at once, with RST for a guest that has not ended it.
    fn abort(&mut self, key: Key) {
        if let Entry::Occupied(slot) = self.connections.entry(key) {
            let outcome = slot.get().connection.end_at_once();
            if let Some(slot) = apply(&mut self.schedule, slot, outcome) {
                self.end(slot);
            }
        }
    }

    /// Ends a connection that was removed. What its program has yet to read keeps its place.
    fn end(&mut self, slot: Slot) {
        self.counters.lost_bytes += u64::try_from(slot.connection.buffered_bytes()).unwrap_or(0);
        match slot.origin {
            Origin::Host => self.admission.leave(Origin::Host),
            origin @ Origin::Guest { .. } => {
                self.unread.take(slot.connection.into_remains(), origin, &self.poller, &mut self.admission);
            }
        }
    }

    /// Takes packets of the guest that came in a row: one, or payload of one connection.
    pub fn process<B: BitmapSlice>(&mut self, packets: &[GuestPacket<'_, B>]) {
        let mut left = packets;
        while let Some(first) = left.first() {
            let taken = self.process_first(&first.header, left);
            left = left.get(taken..).unwrap_or(&[]);
        }
    }

    /// Takes the first of these packets, whose header is `first`, and as many after it as its connection takes with it.
    /// Returns how many.
    fn process_first<B: BitmapSlice>(&mut self, first: &Header, packets: &[GuestPacket<'_, B>]) -> usize {
        self.counters.from_guest.count(0);
        if first.src_cid != self.guest_cid || first.dst_cid != HOST_CID {
            self.counters.dropped_packets += 1;
            return 1;
        }
        self.counters.resets_received += u64::from(first.op == Operation::Rst.number());
        if !self.streams || first.socket_type != TYPE_STREAM {
            self.reject(first);
            return 1;
        }
        match self.connections.entry(Key::of(first)) {
            Entry::Occupied(mut slot) => {
                let (taken, outcome) = slot.get_mut().connection.process(packets, &self.poller);
                let kept = if outcome == Outcome::Continue { taken } else { taken - 1 };
                let payload = packets.iter().take(kept).filter(|packet| packet.is_payload());
                self.counters.from_guest.packets += taken as u64 - 1;
                self.counters.from_guest.bytes += payload.map(|packet| u64::from(packet.header.len)).sum::<u64>();
                if let Some(slot) = apply(&mut self.schedule, slot, outcome) {
                    self.refuse(&slot, outcome);
                    self.end(slot);
                }
                return taken;
            }
            Entry::Vacant(_) if first.op == Operation::Request.number() => self.accept(first),
            Entry::Vacant(_) => self.reject(first),
        }
        1
    }

    /// Answers a packet of no connection: by RST, unless it is one.
    fn reject(&mut self, packet: &Header) {
        if packet.op == Operation::Rst.number() {
            return;
        }
        if !self.schedule.has_refusals() {
            self.allow_refusals(Instant::now());
        }
        self.schedule.push_refusal(Rst::answering(packet));
    }

    /// Allows the refusals of the time that has passed, as the policy has them.
    fn allow_refusals(&mut self, now: Instant) {
        self.schedule.allow_refusals(self.host_side.policy().refusal_rate(), now);
    }

    /// Tells who waits for a connection that the guest refused it, if that is how it ended.
    fn refuse(&mut self, slot: &Slot, outcome: Outcome) {
        if slot.stage() == Stage::ConnectSent && outcome == Outcome::Closed {
            self.counters.refused.count(Refusal::ByGuest);
            slot.report.iter().for_each(ConnectReport::refused);
        }
    }

    fn accept(&mut self, request: &Header) {
        match self.try_accept(request) {
            // A queued RST is of an earlier connection with these ports, which the guest has given up by now.
            Ok(()) => self.schedule.withdraw_rst(&Rst::answering(request)),
            Err(refusal) => {
                self.counters.refused.count(refusal);
                self.reject(request);
            }
        }
    }

    fn try_accept(&mut self, request: &Header) -> Result<(), Refusal> {
        let port = request.dst_port;
        if port == ANY_PORT {
            return Err(Refusal::NoListener);
        }
        let policy = self.host_side.policy();
        self.admission.permits(port, &policy, Instant::now())?;
        self.make_room(Origin::Guest { port }, &policy)?;
        let accepted = self.accept_for_program(request) || self.accept_for_listener(request);
        if accepted { Ok(()) } else { Err(Refusal::NoListener) }
    }

    /// Connects the guest with the program at the host's port.
    fn accept_for_program(&mut self, request: &Header) -> bool {
        let program = self.host_side.connect_host_port(request.dst_port);
        program.is_some_and(|socket| self.insert_accepted(request, socket))
    }

    /// Connects the guest with the listener in this process.
    fn accept_for_listener(&mut self, request: &Header) -> bool {
        self.host_side.listeners().with_room(request.dst_port).is_some_and(|backlog| {
            let Ok((host, device)) = pair() else { return false };
            let inserted = self.insert_accepted(request, device);
            if inserted {
                backlog.push(host);
            }
            inserted
        })
    }

    fn insert_accepted(&mut self, request: &Header, socket: UnixStream) -> bool {
        self.insert(Protocol::accept(request), socket, Origin::Guest { port: request.dst_port }, None)
    }

    /// Returns how many buffers of the guest its next packets may fill.
    pub fn wanted_buffers(&self) -> usize {
        if self.schedule.only().is_some_and(|key| self.long_reads.is_expected(key)) { MAX_BUFFERS } else { 1 }
    }

    /// Returns the next packets for the guest, if there are any, one for each of the first buffers. Their payload is written
    /// after the space for the header.
    pub fn dispatch<B: BitmapSlice>(&mut self, buffers: &[Chain<'_, B>]) -> Packets {
        let packets = self.next_packets(buffers);
        for packet in &packets {
            self.counters.to_guest.count(packet.len);
            self.counters.resets_sent += u64::from(packet.op == Operation::Rst.number());
            self.counters.credit_stalls += u64::from(packet.op == Operation::CreditRequest.number());
        }
        packets
    }

    fn next_packets<B: BitmapSlice>(&mut self, buffers: &[Chain<'_, B>]) -> Packets {
        while let Some(turn) = self.schedule.next(self.guest_cid) {
            let key = match turn {
                Turn::Rst(packet) => return iter::once(packet).collect(),
                Turn::Connection(key) => key,
            };
            let Some(slot) = self.connections.get_mut(&key) else { continue };
            if self.schedule.must_hold(slot) {
                self.schedule.hold(key);
                continue;
            }
            slot.is_queued = false;
            let packets = slot.connection.dispatch(self.guest_cid, buffers);
            self.schedule.update(key, slot);
            match (packets.as_slice(), buffers) {
                ([], _) => continue,
                ([control], _) if control.op != Operation::ReadWrite.number() => {}
                ([packet], [buffer]) => self.long_reads.on_single(key, packet.packet_bytes() == buffer.len()),
                _ => self.long_reads.on_several(key, packets.len() > 1),
            }
            return packets;
        }
        Packets::new()
    }
}

/// Does what follows from a packet or an event for the connection that took it. Returns that if it is removed.
fn apply(schedule: &mut Schedule, mut slot: OccupiedEntry<'_, Key, Slot>, outcome: Outcome) -> Option<Slot> {
    let key = *slot.key();
    match outcome {
        Outcome::Continue => schedule.update(key, slot.get_mut()),
        Outcome::StalePacket => schedule.push_rst(Rst::of(key)),
        Outcome::Closed | Outcome::SendReset => {
            let slot = slot.remove();
            schedule.forget(key, &slot);
            if outcome == Outcome::SendReset {
                schedule.push_rst(Rst::of(key));
            }
            return Some(slot);
        }
    }
    None
}

#[cfg(test)]
mod tests;
