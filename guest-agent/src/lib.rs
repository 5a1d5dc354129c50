//! The guest's side of scx-vsock: a relay between vsock and a sched_ext scheduler's statistics socket.
//!
//! The path of one sample through this crate: [`agent`] accepts a host's connection on one of its `sources` and assigns it a
//! `slot`; the slot's [`session`] machine, which does no I/O, says what to do next; the slot does it on its two
//! `source`s with the calls of `sys`; the request goes to the scheduler when its whole line is there, and the
//! scheduler's line comes back inside `{"stats":...}`. What the guest's kernel says about sched_ext is read by `kernel` and
//! `kernel_log`.
//!
//! Use it as the static program of the same name (`scx-vsock agent FILE` writes it), or link it into an init of your own:
//!
//! ```no_run
//! use scx_vsock_agent::{Agent, Config, Storage};
//! use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};
//!
//! # fn main() -> Result<(), scx_vsock_agent::Error> {
//! let mut storage = Box::new(Storage::<SESSIONS, MAX_RESPONSE_BYTES>::new());
//! let mut agent = Agent::new(&mut storage, &Config::default())?;
//! // Or watch `agent.fd()` in an epoll of your own, and call `agent.turn()` when it is readable.
//! agent.run()?;
//! # Ok(())
//! # }
//! ```
//!
//! The [`session`] machine alone serves guests that are not Linux.
#![cfg_attr(not(any(test, fuzzing)), no_std)]

#[cfg(target_os = "linux")]
pub mod agent;
pub mod arguments;
#[cfg(target_os = "linux")]
mod error;
#[cfg(target_os = "linux")]
mod hello;
#[cfg(target_os = "linux")]
mod kernel;
#[cfg(target_os = "linux")]
mod kernel_log;
// Public for the program of the same name and its counterpart with std in tests.
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod program;
pub mod session;
#[cfg(target_os = "linux")]
mod slot;
#[cfg(target_os = "linux")]
mod source;
#[cfg(target_os = "linux")]
mod sources;
// Public for the program of the same name and for tests; nothing else should build on it.
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub mod sys;

#[cfg(target_os = "linux")]
pub use agent::{Agent, Error, Problem, Storage, Turn};
pub use arguments::{Config, Map};
pub use session::Session;
