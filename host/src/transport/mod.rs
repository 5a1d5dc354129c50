//! How the device is attached to a monitor.

#[cfg(feature = "event-manager")]
pub mod event_manager;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod mmio;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
