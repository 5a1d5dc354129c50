//! What any virtio transport needs (virtio 1.3, 2 and 3): feature negotiation, the device status, queues, interrupts for
//! each queue and for the configuration, pause and snapshot.
//!
//! [`mmio`](super::mmio) is built on it, and the author of another transport, such as virtio-pci, writes registers and
//! nothing else: a register's access becomes a call of [`VirtioDevice`]. The guide for
//! [VMMs](crate::guide::vmms) has one as an example.
//!
//! `setup` follows what the driver sets up, without I/O: `status` its progress, `queue` a queue's layout. `device` joins it
//! with the [`Device`](crate::vsock::Device), which serves the queues; `interrupt` is how the guest hears of that, and
//! `snapshot` saves it all.
//!
//! # Threads
//!
//! Methods that registers need are called by whatever thread runs a virtual processor. Those that a driver uses while it
//! runs (notify, interrupt status and acknowledge) take no lock; the others wait for a call of
//! [`service`](VirtioDevice::service) to end, which is bounded in packets. [`Interrupt::trigger`] is called on the thread
//! of `service` or `resume`, under no lock of this library: it may take the VMM's.
//!
//! # Pause, snapshot, restore
//!
//! Processors first, then the device: after [`VirtioDevice::pause`] nothing touches guest memory until
//! [`VirtioDevice::resume`], and no connection is lost. A paused device returns a [`VirtioSnapshot`] to be saved with guest
//! memory and the transport's own registers; [`VirtioDevice::restore`] makes a paused device of them, in this process or
//! another. Its connections are gone: the driver is sent TRANSPORT_RESET, the agent serves on, and connections that the
//! host asks for wait until the driver has handled that.
//!
//! # Versions
//!
//! Guest memory is that of `vm-memory` 0.18, which the crate re-exports as [`vm_memory`].

mod device;
mod error;
mod interrupt;
mod queue;
mod setup;
pub(super) mod snapshot;
mod status;

pub use device::VirtioDevice;
pub use error::Error;
pub use interrupt::{CONFIG_CHANGE, Causes, Interrupt, USED_BUFFER};
pub use queue::{MAX_QUEUE_SIZE, QueueLayout};
pub use setup::QUEUES;
pub use snapshot::{InvalidVirtioSnapshot, VirtioSnapshot};
