//! Why there is no device, or why it stopped.

use std::io;

use super::chain::ChainError;

/// Why there is no device, or why it stopped.
///
/// ```
/// use scx_vsock::vsock::{Device, DeviceError};
///
/// let error = Device::new(2).unwrap_err();
/// assert!(matches!(error, DeviceError::ReservedCid(2)));
/// assert_eq!(error.to_string(), "2 cannot be a guest's CID: use one from 3 to 4294967294");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The CID is reserved (5.10.4).
    #[error("{0} cannot be a guest's CID: use one from 3 to 4294967294")]
    ReservedCid(u64),
    /// The host's kernel has no descriptors or memory for the device.
    #[error("the host's kernel refuses the vsock device what it needs")]
    Host(#[from] io::Error),
    /// A descriptor chain is broken. The device stops until it is reset.
    #[error("the guest's driver broke a vsock queue")]
    Chain(#[from] ChainError),
    /// The file that shares guest memory was truncated. The device stops until it is given other memory.
    #[error("guest memory is gone: the process that shares it truncated its file")]
    MemoryGone,
    /// A ring is broken. The device stops until it is reset.
    #[error("the guest's driver broke a vsock queue")]
    Ring(#[from] virtio_queue::Error),
}
