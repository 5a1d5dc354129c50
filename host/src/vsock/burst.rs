//! Packets of the guest that are taken together: payload of one connection that came in a row enters the host's socket by one
//! call, so that the host's program is woken once for it.

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::chain::Chain;
use super::key::Key;
use super::packet::{Header, Operation};
use super::transfer::MAX_SLICES;

/// Bytes of payload after which a burst ends, so that a program can read them while the device takes the next ones.
const BURST_BYTES: usize = 64 * 1024;

/// Packets of a burst.
const BURST_PACKETS: usize = 16;

/// A packet of the guest: a copy of its header, and the chain that it is in.
#[derive(Debug)]
pub struct GuestPacket<'m, B: BitmapSlice> {
    /// The chain's first descriptor.
    pub head: u16,
    /// The copy that counts: the guest can change its memory at any time.
    pub header: Header,
    /// Header and payload.
    pub chain: Chain<'m, B>,
}

impl<'m, B: BitmapSlice> GuestPacket<'m, B> {
    /// The length that the header gives the payload, in bytes.
    pub fn payload_bytes(&self) -> usize {
        usize::try_from(self.header.len).unwrap_or(usize::MAX)
    }

    /// Whether the chain has all of the payload.
    pub fn is_whole(&self) -> bool {
        self.payload_bytes() <= self.chain.len().saturating_sub(Header::BYTES)
    }

    /// The payload, or as much of it as there is.
    pub fn payload(&self) -> impl Iterator<Item = VolatileSlice<'m, B>> {
        self.chain.slices_of(Header::BYTES, self.payload_bytes())
    }

    /// Whether it is for payload.
    pub fn is_payload(&self) -> bool {
        self.header.op == Operation::ReadWrite.number()
    }

    fn is_whole_payload(&self) -> bool {
        self.is_payload() && self.is_whole()
    }

    /// Whether both are of the same connection, whether it exists or not.
    fn has_connection_of(&self, other: &Self) -> bool {
        let connection = |header: &Header| (header.src_cid, header.dst_cid, header.socket_type, Key::of(header));
        connection(&self.header) == connection(&other.header)
    }
}

/// One packet, or several with payload of the same connection. The burst itself allocates nothing.
#[derive(Debug)]
pub struct Burst<'m, B: BitmapSlice> {
    packets: heapless::Vec<GuestPacket<'m, B>, BURST_PACKETS>,
    bytes: usize,
    slices: usize,
}

impl<'m, B: BitmapSlice> Burst<'m, B> {
    /// Returns one without packets.
    pub fn new() -> Self {
        Self { packets: heapless::Vec::new(), bytes: 0, slices: 0 }
    }

    /// Whether a packet can be part of it.
    pub fn can_take(&self, packet: &GuestPacket<'m, B>) -> bool {
        self.packets.first().is_none_or(|first| {
            self.bytes < BURST_BYTES
                && self.slices + packet.chain.slices() <= MAX_SLICES
                && !self.packets.is_full()
                && first.is_whole_payload()
                && packet.is_whole_payload()
                && packet.has_connection_of(first)
        })
    }

    /// Adds a packet that it can take.
    pub fn push(&mut self, packet: GuestPacket<'m, B>) {
        self.bytes = self.bytes.saturating_add(packet.payload_bytes());
        self.slices += packet.chain.slices();
        let taken = self.packets.push(packet);
        debug_assert!(taken.is_ok(), "a full burst takes no packet");
    }

    /// The packets, in the order that they came in.
    pub fn packets(&self) -> &[GuestPacket<'m, B>] {
        &self.packets
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.bytes = 0;
        self.slices = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::spec::{HOST_CID, TYPE_STREAM};

    const CID: u64 = 3;
    const PAYLOAD: Header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 729,
        dst_port: 1 << 30,
        len: 5,
        socket_type: TYPE_STREAM,
        op: Operation::ReadWrite.number(),
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    };

    /// A packet whose chain has so many bytes.
    fn packet<'m>(bytes: &'m mut [u8], header: Header) -> GuestPacket<'m, ()> {
        GuestPacket { head: 0, header, chain: Chain::of(VolatileSlice::from(bytes)) }
    }

    #[test]
    fn payload_of_one_connection_is_taken_together() {
        let mut bytes = [[0; Header::BYTES + 5]; 8];
        let [first, second, bytes @ ..] = &mut bytes;
        let mut burst = Burst::new();
        let others = [
            Header { src_port: 730, ..PAYLOAD },
            Header { dst_port: 1, ..PAYLOAD },
            Header { src_cid: CID + 1, ..PAYLOAD },
            Header { socket_type: 2, ..PAYLOAD },
            Header { op: Operation::Shutdown.number(), ..PAYLOAD },
            Header { len: 6, ..PAYLOAD },
        ];
        assert!(burst.can_take(&packet(&mut [0; 44], others[4])), "anything may be alone");
        burst.push(packet(first, PAYLOAD));
        assert!(burst.can_take(&packet(second, Header { fwd_cnt: 7, ..PAYLOAD })));
        for (bytes, other) in bytes.iter_mut().zip(others) {
            assert!(!burst.can_take(&packet(bytes, other)), "{other:?}");
        }
    }

    #[test]
    fn nothing_joins_what_is_no_payload() {
        let mut bytes = [[0; Header::BYTES + 5]; 4];
        for first in [Header { op: Operation::CreditUpdate.number(), ..PAYLOAD }, Header { len: 6, ..PAYLOAD }] {
            let [one, other, ..] = &mut bytes;
            let mut burst = Burst::new();
            burst.push(packet(one, first));
            assert!(!burst.can_take(&packet(other, PAYLOAD)), "{first:?}");
            burst.clear();
            assert!(burst.can_take(&packet(other, PAYLOAD)));
        }
    }

    #[test]
    fn a_burst_has_a_bounded_number_of_packets() {
        let mut bytes = [[0; Header::BYTES + 5]; BURST_PACKETS + 1];
        let mut burst = Burst::new();
        let could_take = bytes.iter_mut().map(|bytes| {
            let packet = packet(bytes, PAYLOAD);
            let can_take = burst.can_take(&packet);
            if can_take {
                burst.push(packet);
            }
            can_take
        });
        assert_eq!(could_take.filter(|&could| could).count(), BURST_PACKETS);
    }

    #[test]
    fn a_burst_ends_with_the_packet_that_makes_it_long() {
        let mut bytes = vec![0; Header::BYTES + BURST_BYTES];
        let (mut short, mut other) = ([0; Header::BYTES + 5], [0; Header::BYTES + 5]);
        let mut burst = Burst::new();
        burst.push(packet(&mut short, PAYLOAD));
        let len = u32::try_from(BURST_BYTES).unwrap();
        let long = packet(&mut bytes, Header { len, ..PAYLOAD });
        assert!(burst.can_take(&long));
        burst.push(long);
        assert!(!burst.can_take(&packet(&mut other, PAYLOAD)));
    }
}
