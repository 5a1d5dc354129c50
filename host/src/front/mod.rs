//! How the device is attached to a monitor.

#[cfg(feature = "event-manager")]
pub mod event_loop;
pub mod hybrid;
#[cfg(feature = "kvm")]
pub mod kvm;
pub mod mmio;
#[cfg(feature = "vhost-user")]
mod shared_memory;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;
