//! how a virtio device is attached to a VMM.

#[cfg(feature = "event-manager")]
pub mod event_manager;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod mmio;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
pub mod virtio;
