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
//! | `schedule` | round robin over the connections and the RSTs that are owed |
//! | `rst_queue` | RST packets that wait for receive buffers, or for their time |
//! | `admission`, `policy` | which connections of the guest have a place |
//! | `unread` | what the host has yet to read of connections that are over for the guest |
//! | `counters` | what was done so far, in numbers |
//! | `event_queue` | tells a running driver that its connections are gone (TRANSPORT_RESET) |
//! | `host_side`, `handle`, `listener` | what threads of the host use: [`Handle::connect`], [`Listener::accept`] |
//! | `connecting` | how a connect of the host ended |
//! | `unix_bridge` | the same for programs of the host, by Unix sockets |
//! | `ready` | waits for an agent to come up |
//! | `test_util` | a driver without a guest, for tests (feature `test-util`) |
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
//! There are at most [`MAX_CONNECTIONS`] connections, each with one descriptor at either end. Of these
//! [`RESERVED_CONNECTIONS`] are for connections that the host asks for, and a guest has at most [`MAX_PORT_CONNECTIONS`]
//! to one port of the host, or what its [`GuestPolicy`] says. A connection of the guest keeps its place after its end
//! until the host's program has read or closed its stream: what the guest sent is still there to be read, in the kernel's
//! memory. So the connections that wait in the backlog of a listener, at most [`MAX_BACKLOG`], and those that a program at
//! a Unix socket has not accepted, are among them. Where all places are taken, the host gets one of a connection that it
//! asked for before and whose guest has closed, with the bytes that did not fit into its stream ([`Counters::lost_bytes`]).
//!
//! # Turns
//!
//! Between two packets of one connection every other connection that has something to send sends one, and so does the
//! queue of RSTs, whatever the guest floods the device with. The answers to packets of no connection have a pace
//! ([`GuestPolicy::refusals_per_second`]): the rings are queues, in which a process that connects to a closed port in a loop
//! would else stand before everybody with as many packets as it likes. A call of [`Device::service`] is bounded in packets, bytes and
//! time. It takes and sends packets in turn, a batch of each, between which it sees what the host's streams have, and ends
//! where the driver waits for an interrupt.
//!
//! # Threads
//!
//! The device belongs to one thread, which must not block for long outside [`Device::service`]: it serves every
//! connection of the guest. A [`Handle`] may be used from any thread, that one included, since its calls never wait for
//! the device; waiting for a stream's bytes on the device's own thread waits for ever.

// Public for the models of guests that the tests and fuzz targets share; nothing else should build on it.
mod admission;
mod burst;
#[doc(hidden)]
pub mod chain;
mod connecting;
mod connection;
mod counters;
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
mod long_reads;
mod muxer;
pub mod packet;
mod policy;
mod poller;
mod protocol;
pub mod ready;
mod rst_queue;
mod schedule;
mod snapshot;
pub mod spec;
mod stream;
#[cfg(feature = "test-util")]
pub mod test_util;
mod token_bucket;
mod transfer;
pub mod unix_bridge;
mod unread;

pub use chain::ChainError;
pub use connecting::{ConnectError, Connecting};
pub use counters::{ConnectionCounts, Counters, Refusals, Traffic};
#[cfg(feature = "vhost-user")]
pub(crate) use device::Notifications;
pub use device::{Device, Interrupts};
pub use error::DeviceError;
pub use handle::{Handle, Port};
pub use key::Key;
pub use limits::{
    BUFFER_BYTES, MAX_CONNECTIONS, MAX_PORT_CONNECTIONS, RESERVED_CONNECTIONS, SEND_BUFFER_BYTES, memory_bound,
};
pub use listener::{Listener, MAX_BACKLOG, MAX_LISTENERS};
pub use muxer::MAX_HELD_BYTES;
pub use policy::GuestPolicy;
#[cfg(feature = "vhost-user")]
pub(crate) use poller::{HostEvent, HostEvents, add_notifications, add_transport, remove_notifications, wait};
pub use protocol::Preamble;
pub use ready::{ReadyListener, ReadyWait};
pub use rst_queue::{MAX_RSTS, Rst};
pub use snapshot::{DeviceState, InvalidSnapshot};
