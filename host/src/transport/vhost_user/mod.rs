//! The device as a vhost-user back end, for QEMU and other VMMs in processes of their own.
//!
//! [`Server`] serves one front end on two threads of its own: one reads the front end's messages, the other runs the
//! device. Neither calls into the user's code, so a [`Handle`](crate::vsock::Handle) may be used from anywhere.
//!
//! `server` has the life cycle of a back end, `back_end` what the vhost-user framework calls; `busy_poll` says how long it
//! looks for more work before it waits, `kick_count` when kicks are counted. `vring`, `front_end_event`
//! and `interrupt_gate` keep a front end from making a thread wait by the descriptors that it sends, `shared_memory` survives
//! one that truncates guest memory.
//!
//! # Limits
//!
//! The back end has three queues. crosvm sets all of them up; QEMU's `vhost-user-vsock` device keeps the event queue to
//! itself, so that there is no transport reset, snapshot or migration; and it does not connect again after the back end is
//! gone. A guest whose rings a front end starts in the middle, because another device served it before, is sent
//! TRANSPORT_RESET where the back end has its event queue.
//!
//! Kicks and calls must be event descriptors (eventfd), as they are in every front end on Linux, and `/proc` be mounted so
//! that this can be seen. Anything else ends the session, with [`Error::NotAnEvent`].
//!
//! Descriptors that a front end sends are lost without a word where the process may not have more. So as long as there is
//! a server, connections through hybrid sockets and to the host leave it enough of them, and a front end is not accepted
//! before there are. If there are none all the same, as when the limit is lowered, its session ends with [`Error::Host`].
//!
//! A front end cannot end this process by truncating guest memory: the first server installs a handler of SIGBUS for
//! the process, which passes on what is not about guest memory. A program that installs one of its own later must do the
//! same.

mod back_end;
mod busy_poll;
mod error;
mod events;
mod exit_consumer;
mod front_end_event;
mod interrupt_gate;
mod kick_count;
mod server;
mod shared_memory;
mod shutdown;
mod vring;

pub use error::{Error, EventPurpose};
pub use events::Event;
pub use server::Server;
