//! How the device is attached to a monitor.

pub mod mmio;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
