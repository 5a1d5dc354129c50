//! Whose turn it is to send.
//!
//! Connections that may have something to send, and the RSTs that are owed, are one ring: between two packets of one
//! connection every other ready connection sends one, and one RST is sent, if its time has come. A connection's control packets and its payload
//! are its own packets, so that a guest which asks for credit or connects in a loop delays nobody for more than a round.
//!
//! # Why nobody waits for ever
//!
//! While [`MAX_RSTS`](super::rst_queue::MAX_RSTS) are queued, packets that may add another wait in the transmit queue, and
//! those after them. Linux goes on to take what it receives until as many replies as its receive queue has entries wait
//! there, too. While more than half as many are queued, none waits for its time. Of what the device sends, REQUEST is what Linux replies to, so that at most [`MAX_UNANSWERED`] of these are
//! sent before it has: fewer than a receive queue has entries. So Linux takes packets, a full round of which includes an
//! RST; and rounds end, since without what waits in the transmit queue connections get no further credit.

use std::collections::VecDeque;
use std::time::Instant;

use super::admission::Origin;
use super::connecting::ConnectReport;
use super::connection::Connection;
use super::counters::{ConnectionCounts, Stage};
use super::key::Key;
use super::packet::Header;
use super::rst_queue::{Rst, RstQueue};

/// REQUEST packets that the guest has not answered. Further ones wait. Linux has 128 entries in its receive queue.
pub const MAX_UNANSWERED: usize = 64;

/// A connection in the muxer's table.
#[derive(Debug)]
pub struct Slot {
    pub connection: Connection,
    pub origin: Origin,
    /// Who waits for the guest's answer.
    pub report: Option<ConnectReport>,
    /// Whether it is in the queue of those that may have something to send.
    pub is_queued: bool,
    /// The state that it is counted in.
    stage: Stage,
}

impl Slot {
    pub fn new(connection: Connection, origin: Origin, report: Option<ConnectReport>) -> Self {
        let stage = connection.stage();
        Self { connection, origin, report, is_queued: false, stage }
    }

    /// Whether nothing is left of it once it is removed.
    pub fn gives_its_place_back(&self) -> bool {
        self.origin == Origin::Host || self.connection.is_hung_up()
    }

    /// The state before the packet or event that is being dealt with.
    pub fn stage(&self) -> Stage {
        self.stage
    }
}

/// Who sends next.
#[derive(Debug)]
pub enum Turn {
    /// This RST is sent.
    Rst(Header),
    /// This connection may have a packet.
    Connection(Key),
}

/// Who sends next, and when somebody's time is over.
#[derive(Debug, Default)]
pub struct Schedule {
    /// Connections that may have something to send, for one turn each.
    ready: VecDeque<Key>,
    rst_queue: RstQueue,
    /// How many of the ready connections send before the next RST.
    before_rst: usize,
    /// Connections whose REQUEST waits for answers to others.
    held: VecDeque<Key>,
    counts: ConnectionCounts,
    /// No connection's deadline is before this.
    next_deadline: Option<Instant>,
}

impl Schedule {
    /// Adds a connection, which has a packet to send.
    pub fn add(&mut self, key: Key, slot: &mut Slot) {
        *self.counts.of(slot.stage) += 1;
        slot.is_queued = true;
        self.ready.push_back(key);
    }

    /// Queues a connection that may have something to send, after a packet or an event.
    pub fn update(&mut self, key: Key, slot: &mut Slot) {
        self.next_deadline = [self.next_deadline, slot.connection.deadline()].into_iter().flatten().min();
        let stage = slot.connection.stage();
        if stage != slot.stage {
            self.leave(slot.stage);
            slot.stage = stage;
            *self.counts.of(stage) += 1;
            if let Some(report) = &slot.report {
                report.follow(stage);
            }
        }
        if !slot.is_queued && slot.connection.is_ready() {
            slot.is_queued = true;
            self.ready.push_back(key);
        }
    }

    /// Forgets a removed connection, with its turn: a guest that takes no packets could otherwise accumulate turns.
    pub fn forget(&mut self, key: Key, slot: &Slot) {
        self.leave(slot.stage);
        if !slot.is_queued {
            return;
        }
        if let Some(at) = self.ready.iter().position(|&other| other == key) {
            self.ready.remove(at);
            if at < self.before_rst {
                self.before_rst -= 1;
            }
        } else {
            self.held.retain(|&other| other != key);
        }
    }

    /// One connection leaves a state. An answered REQUEST makes room for another.
    fn leave(&mut self, stage: Stage) {
        let count = self.counts.of(stage);
        *count = count.saturating_sub(1);
        if stage == Stage::ConnectSent {
            self.ready.extend(self.held.pop_front());
        }
    }

    /// Returns the connection whose turn comes next and again, since nothing else has something to send.
    pub fn only(&self) -> Option<Key> {
        let mut ready = self.ready.iter();
        match (ready.next(), ready.next()) {
            (Some(&key), None) if !self.rst_queue.has_next() => Some(key),
            _ => None,
        }
    }

    /// Takes the next turn.
    pub fn next(&mut self, guest_cid: u64) -> Option<Turn> {
        if self.before_rst == 0
            && let Some(rst) = self.rst_queue.pop(guest_cid)
        {
            self.before_rst = self.ready.len();
            return Some(Turn::Rst(rst));
        }
        let key = self.ready.pop_front()?;
        self.before_rst = self.before_rst.saturating_sub(1);
        Some(Turn::Connection(key))
    }

    /// Whether a connection's REQUEST must wait for the answers to others.
    pub fn must_hold(&self, slot: &Slot) -> bool {
        slot.stage == Stage::ConnectPending && self.counts.connect_sent >= MAX_UNANSWERED
    }

    /// Makes a connection wait whose turn it was, and which stays queued.
    pub fn hold(&mut self, key: Key) {
        self.held.push_back(key);
    }

    /// Queues the RST of a connection that has ended, unless it is queued already.
    pub fn push_rst(&mut self, rst: Rst) {
        self.begin_round();
        self.rst_queue.push(rst);
    }

    /// Queues the answer to a packet of no connection, unless it is queued already.
    pub fn push_refusal(&mut self, rst: Rst) {
        self.begin_round();
        self.rst_queue.push_refusal(rst);
    }

    /// Gives those that are ready their turn before the first RST.
    fn begin_round(&mut self) {
        if !self.rst_queue.has_next() {
            self.before_rst = self.ready.len();
        }
    }

    /// Allows the refusals of the time that has passed.
    pub fn allow_refusals(&mut self, per_second: u32, now: Instant) {
        self.rst_queue.allow(per_second, now);
    }

    /// Whether there are refusals.
    pub fn has_refusals(&self) -> bool {
        self.rst_queue.has_refusals()
    }

    /// Whether refusals wait for their time, and no other RST is queued.
    pub fn holds_refusals(&self) -> bool {
        self.rst_queue.is_held()
    }

    /// Removes an RST, if it is queued.
    pub fn withdraw_rst(&mut self, rst: &Rst) {
        self.rst_queue.withdraw(rst);
    }

    /// Removes all RSTs.
    pub fn clear_rsts(&mut self) {
        self.rst_queue.clear();
    }

    /// Whether this RST can be queued before the guest has received some.
    pub fn has_room_for(&self, rst: &Rst) -> bool {
        !self.rst_queue.is_full() || self.rst_queue.contains(rst)
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || self.rst_queue.has_next()
    }

    /// Bytes of memory of the turns.
    pub fn held_bytes(&self) -> usize {
        (self.ready.len() + self.held.len()) * size_of::<Key>() + self.rst_queue.held_bytes()
    }

    /// Returns the connections by state.
    pub fn counts(&self) -> ConnectionCounts {
        self.counts
    }

    /// Whether a connection may be overdue.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.next_deadline.is_some_and(|next| next <= now)
    }

    /// Sets when the first connection is overdue.
    pub fn set_next_deadline(&mut self, deadline: Option<Instant>) {
        self.next_deadline = deadline;
    }

    /// The connections that may have something to send.
    #[cfg(test)]
    pub fn ready(&self) -> &VecDeque<Key> {
        &self.ready
    }
}
