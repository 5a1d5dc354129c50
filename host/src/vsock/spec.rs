//! Constants of virtio 1.3, section 5.10 (socket device).

/// Device ID (5.10.1).
pub const DEVICE_ID: u32 = 19;

/// The receive queue: device to driver (5.10.2).
pub const RX_QUEUE: usize = 0;
/// The transmit queue: driver to device (5.10.2).
pub const TX_QUEUE: usize = 1;
/// The event queue: device to driver (5.10.2).
pub const EVENT_QUEUE: usize = 2;

/// Stream sockets are supported (5.10.3). No feature bit of this section negotiated means the same.
pub const F_STREAM: u64 = 1 << 0;
/// Stream support is not implied by the absence of other bits (5.10.3).
pub const F_NO_IMPLIED_STREAM: u64 = 1 << 2;
/// The device follows version 1 of the standard (6).
pub const F_VERSION_1: u64 = 1 << 32;
/// Notifications are suppressed by index (2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;

/// The host's CID (5.10.4).
pub const HOST_CID: u64 = 2;

/// CIDs that no guest has (5.10.4): reserved ones, the host's, and the wildcard.
pub const RESERVED_CIDS: [u64; 5] = [0, 1, HOST_CID, 0xffff_ffff, u64::MAX];

/// Stream sockets (5.10.6).
pub const TYPE_STREAM: u16 = 1;

/// The peer will receive no more (5.10.6.5, flags of `VIRTIO_VSOCK_OP_SHUTDOWN`).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The peer will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Communication was interrupted (5.10.6.7, `id` of `struct virtio_vsock_event`).
pub const EVENT_TRANSPORT_RESET: u32 = 0;
/// Bytes of `struct virtio_vsock_event` (5.10.6.7).
pub const EVENT_BYTES: u32 = 4;
