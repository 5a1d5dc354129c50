//! How the device is attached to a monitor.

pub mod vhost_user;
