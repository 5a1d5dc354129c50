//! Accepting connections, even when descriptors run out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::io::eventfd::{EventFd, Notify};

/// Accepts connections and keeps one descriptor in reserve: a connection that stays in the queue for want of a descriptor
/// would keep its listener ready for ever.
#[derive(Debug)]
pub(crate) struct Acceptor {
    reserve: Option<EventFd>,
}

/// A connection, non-blocking.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It can be served.
    Stream(OwnedFd),
    /// It has the last descriptor, and must be closed at once.
    LastDescriptor(OwnedFd),
}

impl Acceptor {
    /// # Errors
    ///
    /// If no descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { reserve: Some(EventFd::new()?) })
    }

    /// Returns the next connection, or `None` if none waits.
    ///
    /// # Errors
    ///
    /// If this is not a listener, or other parts of this process have taken the last descriptor. No peer can cause it.
    pub(crate) fn accept(&mut self, listener: &impl AsFd) -> io::Result<Option<Accepted>> {
        self.restore_reserve();
        loop {
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) if self.restore_reserve() => return Ok(Some(Accepted::Stream(stream))),
                Ok(stream) => return Ok(Some(Accepted::LastDescriptor(stream))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::MFILE | Errno::NFILE) if self.reserve.take().is_some() => {}
                // Errors of the connection, not of the listener.
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::NONET
                    | Errno::HOSTUNREACH
                    | Errno::NETUNREACH
                    | Errno::PERM,
                ) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Creates the reserve unless it is there; returns whether it is.
    fn restore_reserve(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = EventFd::new().ok();
        }
        self.reserve.is_some()
    }
}
