//! What the driver has selected for its next accesses.

use serde::{Deserialize, Serialize};

use super::register::Half;

/// What the driver has selected for its next accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selected {
    /// `DeviceFeaturesSel`.
    pub device_features: u32,
    /// `DriverFeaturesSel`.
    pub driver_features: u32,
    /// `QueueSel`.
    pub queue: u32,
}

impl Selected {
    /// Returns the queue that the registers of queues are about. There may be none of this number.
    #[must_use]
    pub fn queue(self) -> usize {
        usize::try_from(self.queue).unwrap_or(usize::MAX)
    }

    /// Returns the half of the driver's features that is selected, if any.
    #[must_use]
    pub fn driver_half(self) -> Option<Half> {
        Half::selected(self.driver_features)
    }

    /// Returns the half of the device's features that is selected, if any.
    #[must_use]
    pub fn device_half(self) -> Option<Half> {
        Half::selected(self.device_features)
    }
}
