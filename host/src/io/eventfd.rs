//! A signal that one thread gives and another waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::stats::SchedStatsError;

/// A signal that stays from [`notify`](Self::notify) to [`clear`](Self::clear), so that one that comes before its waiter
/// waits is not lost. What waits for it is the waiter's own business.
pub(crate) trait Notify: Sized {
    /// # Errors
    ///
    /// What the kernel says if it has none.
    fn new() -> io::Result<Self>;

    /// Wakes who waits, or their next wait.
    fn notify(&self);

    /// Takes the signal back.
    fn clear(&self);
}

/// What a call returns that has no signal to wait for.
pub(crate) fn no_descriptor(error: io::Error) -> SchedStatsError {
    SchedStatsError::unreachable_by("no descriptor to wait with", error)
}

/// A descriptor that is readable while the signal stays.
#[derive(Debug)]
pub(crate) struct EventFd(OwnedFd);

impl Notify for EventFd {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn notify(&self) {
        // The only failure is a count that is full, and then it is readable already.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It fails where nothing was signalled, which is what it is for.
        let _empty = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
