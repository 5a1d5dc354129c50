//! Why a device does not go on.

use std::io;

use super::snapshot::InvalidVirtioSnapshot;
use crate::vsock::DeviceError;

/// Why a device does not go on.
///
/// ```
/// use scx_vsock::transport::virtio::{Error, VirtioDevice};
/// # use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let device = VirtioDevice::new(Device::new(3)?, memory, |_| Ok(()))?;
/// assert!(matches!(device.snapshot(), Err(Error::NotPaused)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device stopped. If the guest's driver broke a queue, the guest was notified and may reset the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A running device has no snapshot.
    #[error("the vsock device is not paused: pause it before taking its snapshot")]
    NotPaused,
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Snapshot(#[from] InvalidVirtioSnapshot),
    /// The VMM could not raise the guest's interrupt.
    #[error("the guest's interrupt cannot be raised")]
    Interrupt(#[source] io::Error),
}
