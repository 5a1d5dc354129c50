//! RST packets that wait for receive buffers.
//!
//! A guest whose connections are gone may have thousands of their packets in flight, and Linux takes nothing more while
//! as many of its own answers as its receive queue has entries wait after these. If each packet were answered by an RST
//! of its own, both sides would wait for each other for ever. So a connection is reset once: whatever else comes of it
//! while its RST is queued is answered by that.

use std::collections::VecDeque;
use std::time::Instant;

use super::key::Key;
use super::limits::MAX_CONNECTIONS;
use super::packet::{Header, Operation};
use super::spec::TYPE_STREAM;
use super::token_bucket::TokenBucket;

/// RST packets that wait for receive buffers, not counting one for each connection: as many as a driver can have
/// connections to a device that is restored and knows of none. While the queue is full, a packet that may add another
/// waits in the transmit queue, and those after it (virtio 1.3, 5.10.6.1: as long as additional resources last).
pub const MAX_RSTS: usize = MAX_CONNECTIONS;

/// An RST packet. Public for its size alone.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rst {
    key: Key,
    socket_type: u16,
}

impl Rst {
    /// Returns the RST of a connection.
    #[must_use]
    pub fn of(key: Key) -> Self {
        Self { key, socket_type: TYPE_STREAM }
    }

    /// Returns the answer to a packet of no connection, whose type may be any.
    #[must_use]
    pub fn answering(packet: &Header) -> Self {
        Self { key: Key::of(packet), socket_type: packet.socket_type }
    }

    fn packet(self, guest_cid: u64) -> Header {
        Header { socket_type: self.socket_type, ..self.key.packet(guest_cid, Operation::Rst) }
    }
}

/// The queued RST packets, no two of them equal: those of connections that ended, and answers to packets of no
/// connection, which are refusals. Both are sent in turn, and each in order.
///
/// Refusals are paced, as network stacks limit their answers about closed ports: a process that connects to one in a loop
/// gets as many as cost the rest of the guest little, rather than as many as it can ask for. Once
/// [`MAX_HELD_REFUSALS`] wait, the first is sent at once, so that the transmit queue does not stop for the pace.
#[derive(Debug, Default)]
pub struct RstQueue {
    of_connections: VecDeque<Rst>,
    refusals: VecDeque<Rst>,
    /// Refusals that may be sent now.
    allowed: TokenBucket,
    /// Whose turn it is, where both have some.
    refuses_next: bool,
}

/// Refusals that wait for their time. Further ones make the first of them be sent at once.
pub const MAX_HELD_REFUSALS: usize = MAX_RSTS / 2;

/// The part of a second's refusals that may come at once.
const BURSTS_PER_SECOND: u32 = 1024;

impl RstQueue {
    /// Adds that of a connection, unless it is queued already.
    pub fn push(&mut self, rst: Rst) {
        if !self.contains(&rst) {
            self.of_connections.push_back(rst);
        }
    }

    /// Adds the answer to a packet of no connection, unless it is queued already.
    pub fn push_refusal(&mut self, rst: Rst) {
        if !self.contains(&rst) {
            self.refusals.push_back(rst);
        }
    }

    /// Allows the refusals of the time that has passed.
    pub fn allow(&mut self, per_second: u32, now: Instant) {
        self.allowed.refill(per_second, per_second.div_ceil(BURSTS_PER_SECOND).max(1), now);
    }

    /// Whether this one is queued.
    #[must_use]
    pub fn contains(&self, rst: &Rst) -> bool {
        self.of_connections.contains(rst) || self.refusals.contains(rst)
    }

    /// Removes one, if it is queued.
    pub fn withdraw(&mut self, rst: &Rst) {
        self.of_connections.retain(|other| other != rst);
        self.refusals.retain(|other| other != rst);
    }

    /// Removes the next one that may be sent, and returns its packet.
    pub fn pop(&mut self, guest_cid: u64) -> Option<Header> {
        let refuses = self.may_refuse() && (self.of_connections.is_empty() || self.refuses_next);
        let rst = if refuses { self.refusals.pop_front() } else { self.of_connections.pop_front() }?;
        if refuses {
            let _none_if_too_many_wait = self.allowed.take();
        }
        self.refuses_next = !refuses;
        Some(rst.packet(guest_cid))
    }

    /// Whether there is a refusal whose time has come.
    fn may_refuse(&self) -> bool {
        let is_allowed = self.allowed.has_one() || self.refusals.len() > MAX_HELD_REFUSALS;
        is_allowed && !self.refusals.is_empty()
    }

    /// Whether [`pop`](Self::pop) returns one.
    #[must_use]
    pub fn has_next(&self) -> bool {
        !self.of_connections.is_empty() || self.may_refuse()
    }

    /// Whether there are refusals.
    #[must_use]
    pub fn has_refusals(&self) -> bool {
        !self.refusals.is_empty()
    }

    /// Whether refusals wait for their time, and nothing else is queued.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.has_refusals() && !self.has_next()
    }

    /// Whether packets that may add another must wait: see [`MAX_RSTS`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= MAX_RSTS
    }

    fn len(&self) -> usize {
        self.of_connections.len() + self.refusals.len()
    }

    /// Bytes of memory of the queued packets.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.len() * size_of::<Rst>()
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.of_connections.clear();
        self.refusals.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::vsock::spec::HOST_CID;

    const CID: u64 = 3;

    fn key(guest_port: u32) -> Key {
        Key { host_port: 1, guest_port }
    }

    #[test]
    fn a_queued_rst_is_not_added_again() {
        let mut queue = RstQueue::default();
        for port in [7, 8, 7, 8, 7] {
            queue.push(Rst::of(key(port)));
        }
        let ports = |queue: &mut RstQueue| queue.pop(CID).map(|packet| packet.dst_port);
        assert_eq!([ports(&mut queue), ports(&mut queue), ports(&mut queue)], [Some(7), Some(8), None]);
        queue.push(Rst::of(key(7)));
        assert_eq!(ports(&mut queue), Some(7));
    }

    #[test]
    fn a_withdrawn_rst_is_not_sent() {
        let mut queue = RstQueue::default();
        (7..10).for_each(|port| queue.push(Rst::of(key(port))));
        [8, 8, 11].iter().for_each(|&port| queue.withdraw(&Rst::of(key(port))));
        assert!(!queue.contains(&Rst::of(key(8))) && queue.contains(&Rst::of(key(9))));
        let ports: Vec<_> = std::iter::from_fn(|| queue.pop(CID)).map(|packet| packet.dst_port).collect();
        assert_eq!(ports, [7, 9]);
    }

    #[test]
    fn another_socket_type_has_its_own_rst() {
        let packet = |socket_type| Header { src_port: 7, dst_port: 1, socket_type, ..Header::default() };
        let mut queue = RstQueue::default();
        for socket_type in [TYPE_STREAM, 2, 2, 9] {
            queue.push(Rst::answering(&packet(socket_type)));
        }
        queue.push(Rst::of(key(7)));
        let types: Vec<_> = std::iter::from_fn(|| queue.pop(CID)).map(|packet| packet.socket_type).collect();
        assert_eq!(types, [TYPE_STREAM, 2, 9]);
    }

    #[test]
    fn an_rst_has_the_connections_addresses() {
        let mut queue = RstQueue::default();
        queue.push(Rst::of(key(7)));
        let expected = Header {
            src_cid: HOST_CID,
            dst_cid: CID,
            src_port: 1,
            dst_port: 7,
            socket_type: TYPE_STREAM,
            op: Operation::Rst.number(),
            ..Header::default()
        };
        assert_eq!(queue.pop(CID), Some(expected));
    }

    #[test]
    fn with_as_many_as_there_may_be_connections_they_is_full() {
        let mut queue = RstQueue::default();
        for port in 0..1024 {
            assert!(!queue.is_full());
            queue.push(Rst::of(key(port)));
        }
        assert!(queue.is_full());
        assert_eq!(queue.held_bytes(), 1024 * 12);
        queue.pop(CID);
        assert!(!queue.is_full());
        queue.clear();
        assert!(!queue.has_next() && !queue.has_refusals());
    }

    /// A queue with refusals to these ports, of which eight are allowed now.
    fn refusing(ports: std::ops::Range<u32>, now: Instant) -> RstQueue {
        let mut queue = RstQueue::default();
        queue.allow(8 * BURSTS_PER_SECOND, now);
        ports.for_each(|port| queue.push_refusal(Rst::of(key(port))));
        queue
    }

    fn popped(queue: &mut RstQueue) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop(CID)).map(|packet| packet.dst_port).collect()
    }

    #[test]
    fn refusals_wait_for_their_time() {
        let now = Instant::now();
        let mut queue = refusing(0..20, now);
        assert!(!queue.is_held());
        assert_eq!(popped(&mut queue), (0..8).collect::<Vec<_>>());
        assert!(queue.is_held() && !queue.has_next());
        queue.allow(8 * BURSTS_PER_SECOND, now + Duration::from_micros(500));
        assert_eq!(popped(&mut queue), (8..12).collect::<Vec<_>>());
        queue.allow(8 * BURSTS_PER_SECOND, now + Duration::from_secs(500));
        assert_eq!(popped(&mut queue), (12..20).collect::<Vec<_>>());
        assert!(!queue.is_held() && !queue.has_refusals());
    }

    #[test]
    fn refusals_that_are_too_many_wait_for_nothing() {
        let most = u32::try_from(MAX_HELD_REFUSALS).unwrap();
        let mut queue = refusing(0..most + 100, Instant::now());
        assert_eq!(popped(&mut queue).len(), 100);
        assert!(queue.is_held());
    }

    #[test]
    fn the_rst_of_a_connection_waits_for_no_refusal() {
        let mut queue = refusing(0..20, Instant::now());
        assert_eq!(popped(&mut queue).len(), 8);
        (100..103).for_each(|port| queue.push(Rst::of(key(port))));
        assert!(!queue.is_held());
        assert_eq!(popped(&mut queue), [100, 101, 102]);
        assert!(queue.is_held());
    }

    #[test]
    fn refusals_and_other_rsts_take_turns() {
        let mut queue = refusing(0..3, Instant::now());
        (100..105).for_each(|port| queue.push(Rst::of(key(port))));
        assert_eq!(popped(&mut queue), [100, 0, 101, 1, 102, 2, 103, 104]);
    }

    #[test]
    fn one_refusal_a_second_is_the_least() {
        let mut queue = refusing(0..0, Instant::now());
        queue.allow(1, Instant::now());
        queue.push_refusal(Rst::of(key(1)));
        queue.push_refusal(Rst::of(key(2)));
        assert_eq!(popped(&mut queue), [1]);
    }
}
