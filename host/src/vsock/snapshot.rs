//! The state of a device that outlives its process: what its driver would otherwise notice.

use serde::{Deserialize, Serialize};

/// The state of a device, without connections: a transport reset ends those.
///
/// ```
/// use scx_vsock::vsock::{Device, DeviceState};
///
/// let saved = serde_json::to_string(&Device::new(3)?.state())?;
/// let state: DeviceState = serde_json::from_str(&saved)?;
/// Device::new(3)?.restore(&state)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// The CID that the guest had.
    pub guest_cid: u64,
    /// The host port of the next connection into the guest. Ports are not reused soon, since the driver may still know of
    /// the connections that had them.
    pub next_port: u32,
}

/// Why a state is not restored: no device can have been in it.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// The CID is no guest's.
    #[error("the saved vsock device has the guest CID {0}, which is reserved: the snapshot is invalid")]
    GuestCid(u64),
    /// No device uses this port next.
    #[error("the saved vsock device has the next port {0}, which no device uses: the snapshot is invalid")]
    NextPort(u32),
}
