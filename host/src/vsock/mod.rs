//! The virtio-vsock device.
