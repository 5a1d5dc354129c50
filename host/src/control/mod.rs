//! What stops the calls of a run: freezes, cancel, watchdog.
//!
//! [`RunControl`] is what a VMM's own code holds; a client that was built with one ends its calls when it is frozen or
//! cancelled. Its state is a few atomic numbers, and all waiting calls are woken by one descriptor, so that a stop takes
//! no lock and its cost hardly depends on how many calls there are.

mod in_flight;
mod run_control;
mod wait_queue;
mod watchdog;

#[cfg(all(test, shuttle))]
pub(crate) use in_flight::InFlight;
pub(crate) use in_flight::InFlightCall;
pub use run_control::{FreezeGuard, RunControl};
pub use watchdog::Watchdog;
