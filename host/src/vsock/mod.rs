//! The virtio-vsock device (virtio 1.3, 5.10), for any VMM.
//!
//! # The path of a packet
//!
//! A [transport](crate::transport) calls [`Device::service`] when the guest notified a queue or [`Device::fd`] is
//! readable.
//!
//! | file | what happens there |
//! | --- | --- |
//! | `device` | takes descriptor chains from the transmit queue and puts packets into the receive queue |
//! | `chain` | makes one sequence of bytes of a descriptor chain |
//! | `packet` | reads and writes the 44 bytes of a header |
//! | `muxer` | finds the connection of a packet, and decides whose turn it is to send |
//! | `connection` | owns one connection: `protocol` and `credit` are its guest's side, `stream` its host's side |
//! | `transfer` | moves payload between guest memory and a socket without a copy in user space |
//! | `poller` | waits for the sockets of all connections |
//! | `rst_queue` | RST packets that wait for receive buffers |
//! | `event_queue` | tells a running driver that its connections are gone (TRANSPORT_RESET) |
//! | `host_side`, `handle`, `listener` | what threads of the host use: [`Handle::connect`], [`Listener::accept`] |
//! | `unix_bridge` | the same for programs of the host, by Unix sockets |
//! | `ready` | waits for an agent to come up |
//!
//! The host's side of a connection is one end of a socket pair, or a program's own Unix socket.
//!
//! # Bounds
//!
//! A guest can make the host hold at most [`memory_bound`] bytes, the kernel's memory included: for each connection a
//! `tx_buf` of [`BUFFER_BYTES`] and what the kernel buffers in both directions of a socket pair, which is
//! [`SEND_BUFFER_BYTES`] and at most half as much again; and for the device a constant, with [`MAX_RSTS`] and one for
//! each connection small packets. An idle connection holds no `tx_buf`.
//!
//! There are at most [`MAX_CONNECTIONS`] connections, each with one descriptor at either end. In addition, each of at
//! most [`MAX_LISTENERS`] ports has a backlog of at most [`MAX_BACKLOG`] streams that the host has not accepted, which
//! count as connections even after the guest has ended theirs: what it sent is still there to be read.
//!
//! # Threads
//!
//! The device belongs to one thread, which must not block for long outside [`Device::service`]: it serves every
//! connection of the guest. A [`Handle`] may be used from any thread, that one included, since its calls never wait for
//! the device; waiting for a stream's bytes on the device's own thread waits for ever.

// Public for the models of guests that the tests and fuzz targets share; nothing else should build on it.
#[doc(hidden)]
pub mod chain;
mod connection;
mod credit;
mod device;
mod error;
mod event_queue;
pub(crate) mod features;
mod handle;
mod host_side;
mod key;
mod limits;
mod listener;
mod muxer;
pub mod packet;
mod poller;
mod protocol;
pub mod ready;
mod rst_queue;
mod snapshot;
pub mod spec;
mod stream;
mod transfer;
pub mod unix_bridge;

pub use chain::ChainError;
pub use device::{Device, Interrupts};
pub use error::DeviceError;
pub use handle::{Handle, Port};
pub use key::Key;
pub use limits::{BUFFER_BYTES, MAX_CONNECTIONS, SEND_BUFFER_BYTES, memory_bound};
pub use listener::{Listener, MAX_BACKLOG, MAX_LISTENERS};
pub use muxer::MAX_HELD_BYTES;
pub use protocol::Preamble;
pub use ready::{ReadyListener, ReadyWait};
pub use rst_queue::{MAX_RSTS, Rst};
pub use snapshot::{DeviceState, InvalidSnapshot};
