//! A signal from one thread to another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Pid, getpid};

/// A signal that stays from [`notify`](Self::notify) to [`clear`](Self::clear), so that one that comes before its waiter
/// waits is not lost. How a thread waits for it is not said here.
pub(crate) trait Notify: Sized {
    /// # Errors
    ///
    /// If the process has no more descriptors.
    fn new() -> io::Result<Self>;

    /// Wakes the waiters, and those that come before the signal is cleared.
    fn notify(&self);

    /// Clears the signal.
    fn clear(&self);

    /// Whether this process was forked from the one that created the signal, and so shares it with that one.
    fn is_inherited(&self) -> bool {
        false
    }
}

/// An event descriptor, readable while the signal stays.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: OwnedFd,
    creator: Pid,
}

impl Notify for EventFd {
    fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, creator: getpid() })
    }

    fn notify(&self) {
        // The only failure is a full count, which is readable already.
        let _full = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It fails where there was no signal.
        let _empty = rustix::io::read(&self.fd, &mut [0; 8]);
    }

    fn is_inherited(&self) -> bool {
        getpid() != self.creator
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
