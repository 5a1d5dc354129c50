//! The connections of one device: which stream a packet belongs to, and whose turn it is.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use vm_memory::bitmap::BitmapSlice;

use super::chain::Chain;
use super::connection::{Connection, Key, Reaction, State};
use super::handle::{Shared, WantedConnection};
use super::listener::ANY_PORT;
use super::packet::{Header, Operation};
use super::rst_queue::{Reset, Resets};
use super::spec::{HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::stream::{FromHost, Stream, pair};
use crate::endpoint::hybrid::ok_line;

/// Connections that a device has at the most, those that close included.
pub const MAX_CONNECTIONS: usize = 1024;

/// How long the guest may take to confirm a close. What it has received by then stays readable in Linux guests.
pub const CLOSE_WITHIN: Duration = Duration::from_secs(8);

/// Host ports of connections that the host starts: a range of their own, taken in turn, so that none is reused soon.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// Events taken in one look.
const EVENTS_A_LOOK: usize = 64;

/// The token of the handles' wake-up. No connection has it: nobody is at the host port that means any.
const WAKE: u64 = u64::MAX;

/// The host's end may have something to read, if only its end.
const READABLE: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// The host's end is closed.
const HUNG_UP: EventFlags = EventFlags::HUP.union(EventFlags::ERR);

/// The host's end sends no more.
const ENDED: EventFlags = HUNG_UP.union(EventFlags::RDHUP);

/// What is watched for where nothing waits for room.
const QUIET: EventFlags = READABLE.union(EventFlags::ET);

const WATCHING_ROOM: EventFlags = QUIET.union(EventFlags::OUT);

#[derive(Debug)]
struct Entry {
    connection: Connection,
    stream: Stream,
    /// Whether the connection stands in the queue of those that have something to send.
    queued: bool,
    /// Whether room in the host's socket is watched for.
    watching_room: bool,
    /// Whether the host's side is still to be told that the guest accepted.
    owes_ok: bool,
    /// When the guest, which was told that the host closed, has had time enough to confirm that.
    overdue_at: Option<Instant>,
}

/// The connections of one device.
#[derive(Debug)]
pub struct Muxer {
    guest_cid: u64,
    shared: Arc<Shared>,
    epoll: OwnedFd,
    entries: HashMap<Key, Entry>,
    /// Those that may have something to send: each has its turn for one packet.
    turns: VecDeque<Key>,
    resets: Resets,
    next_port: u32,
    /// Whether the driver has stream sockets.
    streams: bool,
    /// No close is overdue before this; none at all if there is no time.
    overdue_from: Option<Instant>,
}

impl Muxer {
    /// # Errors
    ///
    /// What the kernel says if it has no epoll instance.
    pub fn new(guest_cid: u64, shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, shared.wake_fd(), EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            guest_cid,
            shared,
            epoll,
            entries: HashMap::new(),
            turns: VecDeque::new(),
            resets: Resets::default(),
            next_port: FIRST_PORT,
            streams: true,
            overdue_from: None,
        })
    }

    /// The descriptor that is readable when [`look`](Self::look) has something to see.
    pub fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.entries.len()
    }

    /// Bytes that hold what the guest sent, or is to be sent.
    pub fn held_bytes(&self) -> usize {
        let spills: usize = self.entries.values().map(|entry| entry.stream.held_bytes()).sum();
        spills + self.turns.len() * size_of::<Key>() + self.resets.held_bytes()
    }

    /// Whether the guest may be owed packets.
    pub fn has_packets(&self) -> bool {
        !self.turns.is_empty() || !self.resets.is_empty()
    }

    /// Whether this packet of the guest can be taken before the guest has received some: it adds no reset, or there is room
    /// for one.
    pub fn has_room_for(&self, packet: &Header) -> bool {
        !self.resets.are_full()
            || packet.op == Operation::Reset.number()
            || self.resets.contains(&Reset::answering(packet))
    }

    /// Forgets every connection that the guest may know of; its host side reads the end.
    pub fn reset(&mut self) {
        self.entries.retain(|_, entry| entry.connection.state() == State::Wanted);
        self.resets.clear();
        self.turns.retain(|key| self.entries.contains_key(key));
    }

    /// The host port of the next connection that the host starts.
    pub fn next_port(&self) -> u32 {
        self.next_port
    }

    /// Goes on with this host port. False if it is not one of those that there are for this.
    #[must_use]
    pub fn set_next_port(&mut self, port: u32) -> bool {
        let known = (FIRST_PORT..=LAST_PORT).contains(&port);
        if known {
            self.next_port = port;
        }
        known
    }

    /// Whether there are stream sockets. Without them every connection ends.
    pub fn set_streams(&mut self, streams: bool) {
        self.streams = streams;
        if !streams {
            self.clear();
        }
    }

    /// Ends every connection at once.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.resets.clear();
        self.turns.clear();
    }

    /// Resets connections whose close the guest did not confirm in time (virtio 1.3, 5.10.6.5). This is looked at when
    /// there is something else to do: a device that rests has nobody whom they could harm.
    pub fn reset_overdue(&mut self, now: Instant) {
        if self.overdue_from.is_none_or(|from| from > now) {
            return;
        }
        let is_overdue = |entry: &Entry| entry.overdue_at.is_some_and(|at| at <= now);
        let overdue: Vec<Key> =
            self.entries.iter().filter(|(_, entry)| is_overdue(entry)).map(|(&key, _)| key).collect();
        overdue.into_iter().for_each(|key| self.abort(key));
        self.overdue_from = self.entries.values().filter_map(|entry| entry.overdue_at).min();
    }

    /// Takes note of what the host's side did.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait for events.
    pub fn look(&mut self) -> io::Result<()> {
        self.reset_overdue(Instant::now());
        let mut events = Vec::with_capacity(EVENTS_A_LOOK);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&rustix::event::Timespec::default()),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for event in events {
            if event.data.u64() == WAKE {
                self.connect_wanted();
            } else {
                self.note(event);
            }
        }
        Ok(())
    }

    fn connect_wanted(&mut self) {
        for WantedConnection { guest_port, socket, wants_ok } in self.shared.take_wanted() {
            if let Some(key) = self.free_key(guest_port)
                && self.insert(key, Connection::wanted(key), socket)
                && let Some(entry) = self.entries.get_mut(&key)
            {
                entry.owes_ok = wants_ok;
            }
        }
    }

    fn free_key(&mut self, guest_port: u32) -> Option<Key> {
        // One more try than there can be connections finds a free port.
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let host_port = self.next_port;
            self.next_port = if host_port == LAST_PORT { FIRST_PORT } else { host_port + 1 };
            let key = Key { host_port, guest_port };
            (!self.entries.contains_key(&key)).then_some(key)
        })
    }

    /// Adds a connection, if there is a place for it and its socket can be watched.
    fn insert(&mut self, key: Key, connection: Connection, socket: UnixStream) -> bool {
        if !self.streams || !self.make_room() {
            return false;
        }
        let stream = Stream::new(socket);
        if epoll::add(&self.epoll, stream.as_fd(), EventData::new_u64(token(key)), QUIET).is_err() {
            return false;
        }
        let entry = Entry { connection, stream, queued: false, watching_room: false, owes_ok: false, overdue_at: None };
        self.entries.insert(key, entry);
        self.enqueue(key);
        true
    }

    /// Where there is no place, a new connection gets that of one which only waits for the guest to confirm its close; else
    /// that of one whose host is gone, with nothing left or nothing that the guest has given credit for. The guest is told.
    fn make_room(&mut self) -> bool {
        if self.entries.len() < MAX_CONNECTIONS {
            return true;
        }
        let first = |gives_way: fn(&Entry) -> bool| self.entries.iter().find(|(_, entry)| gives_way(entry));
        let closing = first(|entry| entry.connection.state() == State::Closing);
        let Some((&key, _)) = closing.or_else(|| first(Entry::waits_for_the_guest_alone)) else { return false };
        self.abort(key);
        true
    }

    fn note(&mut self, event: Event) {
        let key = key(event.data.u64());
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let flags = event.flags;
        if flags.intersects(HUNG_UP) {
            entry.stream.note_hang_up();
        } else if flags.intersects(READABLE) {
            entry.stream.note_readable();
        }
        // The end needs no credit, and a guest that gives none is told of it all the same.
        if flags.intersects(ENDED) && entry.stream.finds_end() {
            entry.shut_down();
        }
        let given_up = entry.stream.host_takes_nothing();
        match entry.connection.state() {
            State::Wanted if given_up => self.remove(key),
            State::Requested if given_up => self.abort(key),
            _ => {
                self.flush(key);
                self.enqueue(key);
            }
        }
    }

    /// Gives a connection its turn, if it may have something to send.
    fn enqueue(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key)
            && !entry.queued
            && entry.wants_turn()
        {
            entry.queued = true;
            self.turns.push_back(key);
        }
    }

    /// Takes one packet of the guest, whose header was copied from the front of `chain`.
    pub fn process<B: BitmapSlice>(&mut self, packet: &Header, chain: &Chain<'_, B>) {
        if packet.src_cid != self.guest_cid || packet.dst_cid != HOST_CID {
            return;
        }
        let key = Key::of(packet);
        let operation = Operation::parse(packet.op).filter(|_| self.streams && packet.socket_type == TYPE_STREAM);
        let fits = usize::try_from(packet.len).is_ok_and(|len| len <= chain.len() - Header::BYTES);
        match (operation, self.entries.get_mut(&key)) {
            (Some(Operation::ReadWrite), Some(_)) if !fits => self.abort(key),
            (Some(operation), Some(entry)) => {
                let reaction = entry.connection.process(operation, packet);
                if entry.connection.state() == State::Established && !entry.say_ok(key) {
                    return self.abort(key);
                }
                self.react(key, reaction, packet, chain);
            }
            (Some(Operation::Request), None) => self.accept(packet),
            (Some(Operation::Reset), None) => {}
            (None, _) if packet.op == Operation::Reset.number() => {}
            (Some(_), None) => self.refuse(packet),
            (None, Some(_)) if packet.socket_type == TYPE_STREAM => self.abort(key),
            (None, _) => self.refuse(packet),
        }
    }

    fn react<B: BitmapSlice>(&mut self, key: Key, reaction: Reaction, packet: &Header, chain: &Chain<'_, B>) {
        match reaction {
            Reaction::Nothing => {}
            Reaction::Send => self.enqueue(key),
            Reaction::Payload => self.forward(key, packet, chain),
            Reaction::Shutdown => self.shut_down(key),
            Reaction::Over => self.close(key, false),
            Reaction::Violation => self.abort(key),
            Reaction::Late => self.refuse(packet),
        }
    }

    /// Moves a packet's payload to the host.
    fn forward<B: BitmapSlice>(&mut self, key: Key, packet: &Header, chain: &Chain<'_, B>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        let count = usize::try_from(packet.len).unwrap_or(0);
        let entered = entry.stream.take(chain, Header::BYTES, count);
        entry.connection.forward(u32::try_from(entered).unwrap_or(packet.len));
        self.after_forwarding(key);
    }

    /// Moves waiting bytes into the host's socket, and does what waited for that.
    fn flush(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.watching_room {
            let entered = entry.stream.flush();
            entry.connection.forward(u32::try_from(entered).unwrap_or(u32::MAX));
            self.after_forwarding(key);
        }
    }

    fn after_forwarding(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.stream.host_takes_nothing() {
            entry.connection.shut_down(SHUTDOWN_RECEIVE);
        }
        let spilling = entry.stream.is_spilling();
        if spilling != entry.watching_room {
            let flags = if spilling { WATCHING_ROOM } else { QUIET };
            let watched = epoll::modify(&self.epoll, entry.stream.as_fd(), EventData::new_u64(token(key)), flags);
            if watched.is_err() {
                return self.abort(key);
            }
            entry.watching_room = spilling;
        }
        match entry.connection.state() {
            State::Draining { owes_reset } => self.close(key, owes_reset),
            _ => {
                self.finish_sending(key);
                self.enqueue(key);
            }
        }
    }

    /// The guest sends no more: the host reads the end once all that waited has entered its socket.
    fn finish_sending(&mut self, key: Key) {
        if let Some(entry) = self.entries.get_mut(&key)
            && !entry.connection.guest_sends()
            && !entry.stream.is_spilling()
        {
            entry.stream.finish_sending();
        }
    }

    fn shut_down(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if !entry.connection.guest_receives() {
            entry.stream.refuse_receiving();
        }
        if entry.connection.guest_receives() || entry.connection.guest_sends() {
            self.finish_sending(key);
            // Credit came along, as with every packet.
            self.enqueue(key);
        } else {
            self.close(key, true);
        }
    }

    /// The guest closed the connection. Nothing that it sent before is lost: while something waits, so does the close.
    fn close(&mut self, key: Key, owes_reset: bool) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.stream.is_spilling() {
            entry.connection.drain(owes_reset);
        } else {
            self.remove(key);
            if owes_reset {
                self.resets.push(Reset::of(key));
            }
        }
    }

    /// Forgets a connection, and its turn: a guest that takes no packets could otherwise heap up turns.
    fn remove(&mut self, key: Key) {
        if self.entries.remove(&key).is_some_and(|entry| entry.queued) {
            self.turns.retain(|&other| other != key);
        }
    }

    /// Ends a connection at once, with a reset for the guest.
    fn abort(&mut self, key: Key) {
        self.remove(key);
        self.resets.push(Reset::of(key));
    }

    /// Answers a packet that belongs to no connection.
    fn refuse(&mut self, packet: &Header) {
        self.resets.push(Reset::answering(packet));
    }

    fn accept(&mut self, request: &Header) {
        let accepted = request.dst_port != ANY_PORT && (self.forward_request(request) || self.hand_over(request));
        if accepted {
            // One that waits is of a connection of the same ports, which the guest has given up by now.
            self.resets.withdraw(&Reset::answering(request));
        } else {
            self.refuse(request);
        }
    }

    /// Connects the guest with the program behind the host's port.
    fn forward_request(&mut self, request: &Header) -> bool {
        let program = self.shared.forwarded(request.dst_port);
        program.is_some_and(|socket| self.insert(Key::of(request), Connection::accepted(request), socket))
    }

    /// Connects the guest with whoever listens in this process.
    fn hand_over(&mut self, request: &Header) -> bool {
        self.shared.listeners.with_room(request.dst_port).is_some_and(|backlog| {
            let Ok((host, device)) = pair() else { return false };
            let inserted = self.insert(Key::of(request), Connection::accepted(request), device);
            if inserted {
                backlog.push(host);
            }
            inserted
        })
    }

    /// The next packet for the guest, whose payload is put behind the header's place in `chain`; none if there is
    /// none after all.
    pub fn dispatch<B: BitmapSlice>(&mut self, chain: &Chain<'_, B>) -> Option<Header> {
        if let Some(reset) = self.resets.pop(self.guest_cid) {
            return Some(reset);
        }
        while let Some(key) = self.turns.pop_front() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            entry.queued = false;
            let packet = entry.dispatch(self.guest_cid, chain);
            if entry.connection.state() == State::Closing && entry.overdue_at.is_none() {
                entry.overdue_at = Some(Instant::now() + CLOSE_WITHIN);
                self.overdue_from = self.overdue_from.or(entry.overdue_at);
            }
            self.enqueue(key);
            if packet.is_some() {
                return packet;
            }
        }
        None
    }
}

impl Entry {
    /// Tells a host's program that asked for the connection that it is there, before any byte of the guest. False if
    /// it does not listen.
    fn say_ok(&mut self, key: Key) -> bool {
        !std::mem::take(&mut self.owes_ok) || self.stream.say(ok_line(key.host_port).as_bytes())
    }

    /// Whether the host has closed its end, and nothing that it sent before can go to the guest now.
    fn waits_for_the_guest_alone(&self) -> bool {
        self.stream.host_is_gone() && (!self.stream.is_readable() || self.connection.credit.available() == 0)
    }

    /// Whether there may be something to send: a control packet, or payload that the guest has credit for or can be
    /// asked for some.
    fn wants_turn(&self) -> bool {
        self.connection.owes_packet()
            || (self.connection.may_send() && self.stream.is_readable() && self.connection.has_or_may_ask_for_credit())
    }

    fn dispatch<B: BitmapSlice>(&mut self, guest_cid: u64, chain: &Chain<'_, B>) -> Option<Header> {
        if let Some(packet) = self.connection.dispatch(guest_cid) {
            return Some(packet);
        }
        if !self.connection.may_send() || !self.stream.is_readable() {
            return None;
        }
        match self.connection.credit.available() {
            0 => {
                self.connection.want_credit();
                self.connection.dispatch(guest_cid)
            }
            credit => self.dispatch_payload(guest_cid, chain, credit),
        }
    }

    fn dispatch_payload<B: BitmapSlice>(
        &mut self,
        guest_cid: u64,
        chain: &Chain<'_, B>,
        credit: u32,
    ) -> Option<Header> {
        let room = chain.len().saturating_sub(Header::BYTES);
        let most = room.min(usize::try_from(credit).unwrap_or(room));
        match self.stream.give(chain, Header::BYTES, most) {
            FromHost::Bytes(count) => u32::try_from(count).ok().map(|len| self.connection.payload(guest_cid, len)),
            FromHost::Nothing => None,
            FromHost::End => {
                self.shut_down();
                self.connection.dispatch(guest_cid)
            }
        }
    }

    /// The host has sent all.
    fn shut_down(&mut self) {
        let flags = if self.stream.host_takes_nothing() { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
        self.connection.shut_down(flags);
    }
}

fn token(key: Key) -> u64 {
    let ([g0, g1, g2, g3], [h0, h1, h2, h3]) = (key.guest_port.to_le_bytes(), key.host_port.to_le_bytes());
    u64::from_le_bytes([g0, g1, g2, g3, h0, h1, h2, h3])
}

fn key(token: u64) -> Key {
    let [g0, g1, g2, g3, h0, h1, h2, h3] = token.to_le_bytes();
    Key { host_port: u32::from_le_bytes([h0, h1, h2, h3]), guest_port: u32::from_le_bytes([g0, g1, g2, g3]) }
}

#[cfg(test)]
mod tests;
