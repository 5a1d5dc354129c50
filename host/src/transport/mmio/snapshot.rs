//! The registers and queues of a paused device, to be saved.

use serde::{Deserialize, Serialize};

use super::selected::Selected;
use crate::transport::virtio::snapshot::{QueueState, read_version};
use crate::transport::virtio::{QUEUES, VirtioSnapshot};
use crate::vsock::DeviceState;

/// The registers and queues of a paused device.
///
/// Each released version is read for ever, and a newer one is refused by its number when it is read, as a
/// [`VirtioSnapshot`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmioSnapshot {
    #[serde(deserialize_with = "read_version")]
    version: u32,
    status: u32,
    features: u64,
    selected: Selected,
    interrupt_status: u32,
    config_generation: u32,
    queues: [QueueState; QUEUES],
    device: DeviceState,
}

impl MmioSnapshot {
    pub(super) fn new(virtio: VirtioSnapshot, selected: Selected) -> Self {
        let VirtioSnapshot { version, status, features, interrupt_status, config_generation, queues, device } = virtio;
        Self { version, status, features, selected, interrupt_status, config_generation, queues, device }
    }

    /// Returns it as two: what any transport has, and what the driver has selected.
    pub(super) fn parts(&self) -> (VirtioSnapshot, Selected) {
        let Self { version, status, features, selected, interrupt_status, config_generation, queues, device } = *self;
        let virtio = VirtioSnapshot { version, status, features, interrupt_status, config_generation, queues, device };
        (virtio, selected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 0.1.0 wrote it. Never to be changed.
    const VERSION_1: &str = include_str!("snapshot_version_1.json");

    #[test]
    fn version_1_is_read_for_ever() {
        let read: MmioSnapshot = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), VERSION_1.trim_end());
        let (virtio, selected) = read.parts();
        assert_eq!((selected.driver_features, selected.queue), (1, 2));
        assert_eq!(MmioSnapshot::new(virtio, selected), read);
    }

    #[test]
    fn a_newer_version_is_refused_by_its_number() {
        let newer = VERSION_1.replace(r#""version":1,"#, r#""version":2,"speed":9,"#);
        let error = serde_json::from_str::<MmioSnapshot>(&newer).unwrap_err().to_string();
        assert!(
            error.starts_with("the saved vsock device has version 2, and this library restores version 1 only"),
            "{error}"
        );
    }
}
