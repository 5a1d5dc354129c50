//! What of a device outlives its process: what its driver would notice if it were forgotten.

use serde::{Deserialize, Serialize};

/// A device's state, without connections: these end with a transport reset.
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
    /// The host port of the next connection into the guest, so that those before are not used again soon: the driver
    /// may still know of them.
    pub next_port: u32,
}

/// What no device had of which it is saved.
///
/// ```
/// use scx_vsock::vsock::{InvalidSnapshot, Device, DeviceState};
///
/// let damaged = DeviceState { guest_cid: 3, next_port: 729 };
/// assert_eq!(Device::new(3)?.restore(&damaged), Err(InvalidSnapshot::NextPort(729)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSnapshot {
    /// This CID.
    #[error(
        "the saved vsock device's guest had the CID {0}, which no guest has: the state is damaged, start without it"
    )]
    GuestCid(u64),
    /// This next port.
    #[error("the saved vsock device's next port is {0}, which no device uses: the state is damaged, start without it")]
    NextPort(u32),
}
