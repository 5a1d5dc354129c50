//! Accepting connections, also where descriptors run out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::io::eventfd::{EventFd, Notify};

/// Accepts connections and keeps one descriptor back: a connection that stays in the queue since there is none left
/// for it would make its listener ready for ever.
#[derive(Debug)]
pub(crate) struct Acceptor {
    spare: Option<EventFd>,
}

/// A connection, non-blocking.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It can be served.
    Stream(OwnedFd),
    /// It has the last descriptor, and is to be turned away at once.
    LastDescriptor(OwnedFd),
}

impl Acceptor {
    /// # Errors
    ///
    /// What the kernel says if there is no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { spare: Some(EventFd::new()?) })
    }

    /// The next connection; none if nobody waits.
    ///
    /// # Errors
    ///
    /// If the listener is none, or other parts of this process have taken the last descriptor. No peer can be the cause.
    pub(crate) fn accept(&mut self, listener: &impl AsFd) -> io::Result<Option<Accepted>> {
        self.keep_one();
        loop {
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) if self.keep_one() => return Ok(Some(Accepted::Stream(stream))),
                Ok(stream) => return Ok(Some(Accepted::LastDescriptor(stream))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::MFILE | Errno::NFILE) if self.spare.take().is_some() => {}
                // What is wrong with one connection that waited.
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

    /// Takes a descriptor back, if there is one.
    fn keep_one(&mut self) -> bool {
        if self.spare.is_none() {
            self.spare = EventFd::new().ok();
        }
        self.spare.is_some()
    }
}
