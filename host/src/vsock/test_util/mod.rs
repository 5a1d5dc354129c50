//! A simulated driver, with which a VMM's unit tests drive the device without a guest.
//!
//! [`SimulatedDriver`] has the three virtqueues of a driver in guest memory, and does with them what a driver does: it
//! posts buffers, sends packets and takes what was used. It has no connections: a test writes the
//! [header](super::packet::Header) of each packet, or answers one with [`Packet::reply`].
//!
//! ```
//! use std::io::Read;
//! use scx_vsock::vsock::Device;
//! use scx_vsock::vsock::packet::{Header, Operation};
//! use scx_vsock::vsock::test_util::{SimulatedDriver, guest_memory};
//!
//! let mut driver = SimulatedDriver::new(guest_memory());
//! driver.post_all_buffers();
//! let [mut rx, mut tx, mut event] = driver.queues();
//! let mut device = Device::new(3)?;
//! let mut host = device.handle().connect(729)?;
//!
//! // The device asks the guest for the connection, and the guest accepts it and sends.
//! let _interrupts = device.service(driver.memory(), &mut rx, &mut tx, Some(&mut event))?;
//! let request = driver.receive().expect("the host connects");
//! assert_eq!((request.operation(), request.header.dst_port), (Operation::Request, 729));
//! driver.queue_packet(&request.reply(Operation::Response), b"");
//! driver.queue_packet(&Header { len: 5, ..request.reply(Operation::ReadWrite) }, b"hello");
//! let interrupts = device.service(driver.memory(), &mut rx, &mut tx, Some(&mut event))?;
//! assert!(interrupts.tx, "it has taken packets");
//!
//! let mut bytes = [0; 5];
//! host.read_exact(&mut bytes)?;
//! assert_eq!(&bytes, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Behind virtio-mmio, [`mmio_initialisation`] returns the driver's writes of registers; behind another transport,
//! [`SimulatedDriver::addresses`] says where the queues are. [`SimulatedDriver::take_notifications`] says which queues to
//! notify.
//!
//! # Limits
//!
//! Guest memory is [`MEMORY_BYTES`] from address 0. Each queue has [`QUEUE_SIZE`] entries, and features are those of
//! [`Device::FEATURES`](super::Device::FEATURES). A packet in the transmit queue has at most [`MAX_PACKET_BYTES`], header
//! included. What a driver cannot do, such as to post a buffer without a free descriptor, is a return value; what a device
//! must not do, such as to write more than a buffer has, is a panic.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "for tests, which a panic fails; guest memory is as large as the module's documentation says"
)]

mod driver_queue;
mod initialisation;
mod simulated_driver;

pub use driver_queue::QueueAddresses;
pub use initialisation::mmio_initialisation;
pub use simulated_driver::{Packet, SimulatedDriver, guest_memory};

/// Bytes of guest memory, from address 0: 128 MiB.
pub const MEMORY_BYTES: usize = 128 << 20;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 128;

/// Bytes of a receive buffer, as Linux posts them.
pub const RX_BUFFER_BYTES: u32 = 4096;

/// The guest's `buf_alloc` in a [reply](Packet::reply), in bytes, as Linux has it.
pub const GUEST_BUFFER_BYTES: u32 = 256 * 1024;

/// Bytes of the longest packet in the transmit queue: 512 KiB.
pub const MAX_PACKET_BYTES: usize = 0x8_0000;

/// The guest address from which the buffers of the receive queue are.
pub const RX_BUFFERS: u64 = 0x100_0000;

/// The guest address from which the buffers of the transmit queue are.
pub const TX_BUFFERS: u64 = 0x200_0000;
