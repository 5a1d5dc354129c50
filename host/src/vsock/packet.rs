//! The header of a packet: its first 44 bytes (virtio 1.3, 5.10.6).

/// `enum virtio_vsock_op` (5.10.6).
///
/// ```
/// use scx_vsock::vsock::packet::{Header, Operation};
///
/// let request = Header { src_port: 1024, dst_port: 729, op: Operation::Request.number(), ..Header::default() };
/// assert_eq!(Operation::parse(request.op), Some(Operation::Request));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Connect.
    Request,
    /// Connected.
    Response,
    /// Refuse, abort, or confirm that the connection is closed.
    Rst,
    /// Send or receive no more.
    Shutdown,
    /// Payload.
    ReadWrite,
    /// Only the credit fields count.
    CreditUpdate,
    /// Asks for a credit update.
    CreditRequest,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Rst,
        Self::Shutdown,
        Self::ReadWrite,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// Returns the operation with this number, if there is one.
    #[must_use]
    pub fn parse(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.number() == number)
    }

    /// Returns the operation's number.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Rst => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// `struct virtio_vsock_hdr`.
///
/// ```
/// use scx_vsock::vsock::packet::Header;
///
/// let header = Header { src_cid: 2, dst_cid: 3, len: 5, ..Header::default() };
/// assert_eq!(Header::parse(&header.emit()), header);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// CID of the sender.
    pub src_cid: u64,
    /// CID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// Socket type.
    pub socket_type: u16,
    /// Operation.
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// Bytes of the sender's receive buffer.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of its receive buffer, free-running.
    pub fwd_cnt: u32,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 44;

    /// Returns the header in these bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            socket_type: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// Returns how many bytes the packet has, with its payload.
    pub(super) fn packet_bytes(&self) -> usize {
        Self::BYTES.saturating_add(usize::try_from(self.len).unwrap_or(usize::MAX))
    }

    /// Returns the header's bytes, all fields little-endian.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let fields = [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

/// Takes one field after another from a header.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_layout_is_that_of_the_standard() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1122_3344,
            dst_port: 729,
            len: 5,
            socket_type: 1,
            op: 5,
            flags: 3,
            buf_alloc: 0x4_0000,
            fwd_cnt: 0xffff_ffff,
        };
        let bytes = header.emit();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[24..32], [5, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[40..], [0xff; 4]);
    }

    #[test]
    fn operations_are_numbered_from_one_to_seven() {
        assert_eq!(Operation::parse(0), None);
        for number in 1..=7 {
            assert_eq!(Operation::parse(number).unwrap().number(), number);
        }
        assert_eq!(Operation::parse(8), None);
    }

    proptest! {
        #[test]
        fn every_header_survives_its_bytes(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut all = [0; Header::BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::parse(&all).emit(), all);
        }
    }
}
