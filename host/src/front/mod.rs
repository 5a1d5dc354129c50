//! How the device is attached to a monitor.

#[cfg(feature = "vhost-user")]
pub mod vhost_user;
