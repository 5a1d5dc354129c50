//! The device as a vhost-user back end, for QEMU and other VMMs in processes of their own.
//!
//! [`Server`] serves one front end on two threads of its own: one reads the front end's messages, the other runs the
//! device. Neither calls into the user's code, so a [`Handle`](crate::vsock::Handle) may be used from anywhere.
//!
//! `server` has the life cycle of a back end, `back_end` what the vhost-user framework calls, `shared_memory` survives a
//! front end that truncates guest memory.
//!
//! # Limits
//!
//! QEMU's `vhost-user-vsock` device keeps the event queue to itself, so that there is no transport reset, snapshot or
//! migration; and it does not connect again after the back end is gone.
//!
//! A front end cannot end this process by truncating guest memory: the first server installs a handler of SIGBUS for
//! the process, which passes on what is not about guest memory. A program that installs one of its own later must do the
//! same.

mod back_end;
mod error;
mod error_pipe;
mod exit_consumer;
mod server;
mod shared_memory;
mod shutdown;

pub use error::Error;
pub use server::Server;
