//! The resets that wait for receive buffers.
//!
//! A guest whose connections are gone may have thousands of their packets under way, and Linux takes nothing more
//! while as many of its own answers as its receive queue has entries wait behind these. Were each packet owed a reset
//! of its own, both sides would wait for each other for ever. A connection is reset once: whatever else comes of it
//! while its reset waits is answered by that.

use std::collections::VecDeque;

use super::connection::Key;
use super::packet::{Header, Operation};
use super::spec::TYPE_STREAM;

/// Resets that wait for receive buffers, beside one for each connection that there is: as many as a driver can have
/// connections to a device that is restored and knows of none. With so many waiting, a packet that may add another waits
/// too, and the transmit queue behind it (virtio 1.3, 5.10.6.1: as long as additional resources last).
pub const MAX_RESETS: usize = super::MAX_CONNECTIONS;

/// Resets over that maximum: none, but for the fault that is planted for the fuzz targets.
const TOO_MANY: usize = if cfg!(planted_off_by_one) { 1 } else { 0 };

/// What is reset. Open for its size alone.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    key: Key,
    socket_type: u16,
}

impl Reset {
    /// Of a connection.
    #[must_use]
    pub fn of(key: Key) -> Self {
        Self { key, socket_type: TYPE_STREAM }
    }

    /// The answer to a guest's packet of no connection, whose type may be any.
    #[must_use]
    pub fn answering(packet: &Header) -> Self {
        Self { key: Key::of(packet), socket_type: packet.socket_type }
    }

    fn packet(self, guest_cid: u64) -> Header {
        Header { socket_type: self.socket_type, ..self.key.packet(guest_cid, Operation::Reset) }
    }
}

/// The resets that wait, each for something else, in order.
#[derive(Debug, Default)]
pub struct Resets(VecDeque<Reset>);

impl Resets {
    /// Adds one, unless it waits already.
    pub fn push(&mut self, reset: Reset) {
        if !self.contains(&reset) {
            self.0.push_back(reset);
        }
    }

    /// Whether this one waits.
    #[must_use]
    pub fn contains(&self, reset: &Reset) -> bool {
        self.0.contains(reset)
    }

    /// Takes one back, if it waits.
    pub fn withdraw(&mut self, reset: &Reset) {
        self.0.retain(|other| other != reset);
    }

    /// Takes the next one's packet.
    pub fn pop(&mut self, guest_cid: u64) -> Option<Header> {
        self.0.pop_front().map(|reset| reset.packet(guest_cid))
    }

    /// Whether packets that may add another must wait.
    #[must_use]
    pub fn are_full(&self) -> bool {
        self.0.len() >= MAX_RESETS + TOO_MANY
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that hold them.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.0.len() * size_of::<Reset>()
    }

    /// Forgets all.
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
    fn a_reset_that_waits_is_not_added_again_and_one_that_was_taken_is() {
        let mut resets = Resets::default();
        for port in [7, 8, 7, 8, 7] {
            resets.push(Reset::of(key(port)));
        }
        let ports = |resets: &mut Resets| resets.pop(CID).map(|packet| packet.dst_port);
        assert_eq!([ports(&mut resets), ports(&mut resets), ports(&mut resets)], [Some(7), Some(8), None]);
        resets.push(Reset::of(key(7)));
        assert_eq!(ports(&mut resets), Some(7));
    }

    #[test]
    fn a_reset_that_is_withdrawn_is_not_sent_and_the_others_are() {
        let mut resets = Resets::default();
        (7..10).for_each(|port| resets.push(Reset::of(key(port))));
        [8, 8, 11].iter().for_each(|&port| resets.withdraw(&Reset::of(key(port))));
        assert!(!resets.contains(&Reset::of(key(8))) && resets.contains(&Reset::of(key(9))));
        let ports: Vec<_> = std::iter::from_fn(|| resets.pop(CID)).map(|packet| packet.dst_port).collect();
        assert_eq!(ports, [7, 9]);
    }

    #[test]
    fn the_same_ports_of_another_type_are_reset_as_themselves() {
        let packet = |socket_type| Header { src_port: 7, dst_port: 1, socket_type, ..Header::default() };
        let mut resets = Resets::default();
        for socket_type in [TYPE_STREAM, 2, 2, 9] {
            resets.push(Reset::answering(&packet(socket_type)));
        }
        resets.push(Reset::of(key(7)));
        let types: Vec<_> = std::iter::from_fn(|| resets.pop(CID)).map(|packet| packet.socket_type).collect();
        assert_eq!(types, [TYPE_STREAM, 2, 9]);
    }

    #[test]
    fn a_reset_goes_from_the_host_to_the_guests_port() {
        let mut resets = Resets::default();
        resets.push(Reset::of(key(7)));
        let expected = Header {
            src_cid: HOST_CID,
            dst_cid: CID,
            src_port: 1,
            dst_port: 7,
            socket_type: TYPE_STREAM,
            op: Operation::Reset.number(),
            ..Header::default()
        };
        assert_eq!(resets.pop(CID), Some(expected));
    }

    #[test]
    fn with_as_many_as_there_may_be_connections_they_are_full() {
        let mut resets = Resets::default();
        for port in 0..1024 {
            assert!(!resets.are_full());
            resets.push(Reset::of(key(port)));
        }
        assert!(resets.are_full());
        assert_eq!(resets.held_bytes(), 1024 * 12);
        resets.pop(CID);
        assert!(!resets.are_full());
        resets.clear();
        assert!(resets.is_empty());
    }
}
