//! A descriptor that one thread signals and another waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// A descriptor that is readable from [`wake`](Self::wake) to [`clear`](Self::clear).
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// # Errors
    ///
    /// What the kernel says if it has no event descriptor.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes who waits, or their next wait.
    pub(crate) fn wake(&self) {
        // The only failure is a count that is full, and then it is readable already.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Takes the signal back.
    pub(crate) fn clear(&self) {
        // It fails where nothing was signalled, which is what it is for.
        let _empty = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
