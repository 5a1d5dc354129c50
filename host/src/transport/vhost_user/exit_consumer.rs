//! The framework takes the descriptor out of the exit event that it is given, and never closes it.
#![allow(unsafe_code, reason = "only a raw descriptor is left of what the framework leaks")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
