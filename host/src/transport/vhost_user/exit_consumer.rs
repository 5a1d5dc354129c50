//! What is left of the framework's descriptors as raw numbers: it takes the one out of the exit event that it is given, and
//! never closes it, and it names the one that its worker waits for.
#![allow(unsafe_code, reason = "the framework has only raw descriptors to give")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::vsock::add_transport;

/// Closes the exit event's descriptor on drop.
pub(super) struct ExitConsumer(#[allow(dead_code, reason = "held to be closed")] OwnedFd);

impl ExitConsumer {
    /// To be made once the framework has taken the consumer that has this descriptor, and dropped after the framework's
    /// threads have ended.
    pub(super) fn of(consumer: RawFd) -> Self {
        // SAFETY: the framework called `into_raw_fd` on the consumer, so nothing else owns the descriptor, and nothing
        // else closes it.
        Self(unsafe { OwnedFd::from_raw_fd(consumer) })
    }
}

/// Adds what the framework's worker waits for to a device's epoll instance.
///
/// # Errors
///
/// The kernel's.
pub(super) fn watch_worker(epoll: impl AsFd, worker: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the worker owns the descriptor, and is borrowed through the call.
    let waited_for = unsafe { BorrowedFd::borrow_raw(worker.as_raw_fd()) };
    add_transport(epoll, waited_for)
}
