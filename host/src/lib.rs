//! Read a guest's sched_ext scheduler statistics on the host, or the one typed reason why there are none.

pub mod endpoint;

#[cfg(feature = "device")]
pub mod vsock;

#[cfg(feature = "vhost-user")]
pub mod front;

#[cfg(feature = "qemu")]
pub mod qemu;

pub use endpoint::Connect;
pub use scx_vsock_wire::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};
