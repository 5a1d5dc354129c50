//! RST packets that wait for receive buffers.
//!
//! A guest whose connections are gone may have thousands of their packets in flight, and Linux takes nothing more while
//! as many of its own answers as its receive queue has entries wait after these. If each packet were answered by an RST
//! of its own, both sides would wait for each other for ever. So a connection is reset once: whatever else comes of it
//! while its RST is queued is answered by that.

use std::collections::VecDeque;

use super::key::Key;
use super::limits::MAX_CONNECTIONS;
use super::packet::{Header, Operation};
use super::spec::TYPE_STREAM;

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

/// The queued RST packets, no two of them equal, in order.
#[derive(Debug, Default)]
pub struct RstQueue(VecDeque<Rst>);

impl RstQueue {
    /// Adds one, unless it is queued already.
    pub fn push(&mut self, rst: Rst) {
        if !self.contains(&rst) {
            self.0.push_back(rst);
        }
    }

    /// Whether this one is queued.
    #[must_use]
    pub fn contains(&self, rst: &Rst) -> bool {
        self.0.contains(rst)
    }

    /// Removes one, if it is queued.
    pub fn withdraw(&mut self, rst: &Rst) {
        self.0.retain(|other| other != rst);
    }

    /// Removes the next one and returns its packet.
    pub fn pop(&mut self, guest_cid: u64) -> Option<Header> {
        self.0.pop_front().map(|rst| rst.packet(guest_cid))
    }

    /// Whether packets that may add another must wait: see [`MAX_RSTS`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.len() >= MAX_RSTS
    }

    /// Whether the queue is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of memory of the queued packets.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.0.len() * size_of::<Rst>()
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
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
        assert!(queue.is_empty());
    }
}
