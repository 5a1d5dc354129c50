//! The device behind virtio-mmio registers (virtio 1.3, 4.2), for a VMM's own bus.
//!
//! A VMM reserves [`BYTES`] of guest address space at an address of its choice, tells the guest of it and of an
//! interrupt, and passes every access there to [`Mmio::read`] or [`Mmio::write`]. `register` names the registers,
//! `selected` is what the driver selected, `device` makes calls of a [`VirtioDevice`](super::virtio::VirtioDevice) of
//! accesses, and `snapshot` saves all of it. A kernel without ACPI and without a device tree learns of the device from its
//! command line: `virtio_mmio.device=512@0xd0000000:5`, the bytes, the address and the interrupt.
//!
//! # Threads
//!
//! Whatever thread runs a virtual processor calls `read` and `write`. They never do the device's work: a queue
//! notification makes [`Mmio::fd`] readable, and one thread, which may be that of many guests, calls [`Mmio::service`]
//! then. Registers that a driver uses while it runs (notify, interrupt status and acknowledge) take no lock; the others
//! wait for a call of `service` to end, which is bounded in packets.
//!
//! [`Interrupt::trigger`] is called on the thread of `service` or `resume`, and under no lock of this library: it may
//! take the VMM's. The thread that calls `service` must not wait for the guest: no request of a client, no read from a
//! blocking stream.
//!
//! # Pause, snapshot, restore
//!
//! Processors first, then the device: after [`Mmio::pause`] nothing touches guest memory until [`Mmio::resume`], and no
//! connection is lost. A paused device returns an [`MmioSnapshot`] to be saved with guest memory; [`Mmio::restore`]
//! makes a paused device of both, in this process or another. Its connections are gone: the driver is sent
//! TRANSPORT_RESET, the agent serves on, and connections that the host asks for wait until the driver has handled that.
//! Freeze a run's [`RunControl`](crate::RunControl) around all of this, so that no request times out meanwhile.

mod device;
mod interrupt;
mod register;
mod selected;
mod snapshot;

pub use super::virtio::{Error, InvalidVirtioSnapshot as InvalidMmioSnapshot};
pub use device::Mmio;
pub use interrupt::Interrupt;
pub use register::{BYTES, QUEUE_NOTIFY};
pub use snapshot::MmioSnapshot;
