//! What identifies a connection.

use super::packet::{Header, Operation};
use super::spec::{HOST_CID, TYPE_STREAM};

/// The ports of a connection. The CIDs of guest and host are those of the device. Public for its size alone.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Port of the host's side.
    pub host_port: u32,
    /// Port of the guest's side.
    pub guest_port: u32,
}

impl Key {
    /// Returns the connection that a packet of the guest belongs to.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self { host_port: header.dst_port, guest_port: header.src_port }
    }

    /// Returns a packet to the guest's side of this connection, without credit.
    #[must_use]
    pub fn packet(self, guest_cid: u64, operation: Operation) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            socket_type: TYPE_STREAM,
            op: operation.number(),
            ..Header::default()
        }
    }
}
