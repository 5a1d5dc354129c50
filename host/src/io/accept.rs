//! Accepting connections, even when descriptors or memory run out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::io::descriptors::may_keep;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::poll::PollSet;

/// How long nothing is accepted after the kernel had no descriptor or memory for a connection, which stays in the queue
/// meanwhile: nothing tells when there is some again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Accepts connections and keeps descriptors in reserve: with the last one a connection can be refused when there is no
/// other, and those before it are for connections.
#[derive(Debug)]
pub(crate) struct Acceptor {
    reserve: Vec<EventFd>,
    /// The descriptors that are to be in reserve.
    size: usize,
    retry_at: Option<Instant>,
}

/// A connection, non-blocking.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// It can be served.
    Stream(OwnedFd),
    /// It has the last descriptor that a connection may have, and must be closed at once.
    LastDescriptor(OwnedFd),
}

/// What an error of `accept` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// No connection waits.
    NoConnection,
    /// One connection, which is gone.
    Connection,
    /// The process or the host has no descriptor left.
    Descriptors,
    /// The descriptor is no listening socket.
    Listener,
    /// The host, for now.
    Host,
}

fn cause(errno: Errno) -> Cause {
    match errno {
        Errno::AGAIN => Cause::NoConnection,
        Errno::MFILE | Errno::NFILE => Cause::Descriptors,
        Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP | Errno::FAULT => Cause::Listener,
        Errno::INTR
        | Errno::CONNABORTED
        | Errno::PROTO
        | Errno::NETDOWN
        | Errno::NOPROTOOPT
        | Errno::HOSTDOWN
        | Errno::NONET
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::PERM => Cause::Connection,
        _ => Cause::Host,
    }
}

impl Acceptor {
    /// An acceptor that can refuse connections when there are no descriptors.
    ///
    /// # Errors
    ///
    /// If no descriptor is left.
    pub(crate) fn new() -> io::Result<Self> {
        Self::with_reserve(0)
    }

    /// An acceptor that can accept so many connections, and refuse others, when there are no other descriptors.
    ///
    /// # Errors
    ///
    /// If so many descriptors are not left.
    pub(crate) fn with_reserve(connections: usize) -> io::Result<Self> {
        let size = connections + 1;
        let reserve = (0..size).map(|_| EventFd::new()).collect::<io::Result<_>>()?;
        Ok(Self { reserve, size, retry_at: None })
    }

    /// Adds the listener to what is waited for, or the time until the next try.
    pub(crate) fn register<'a>(&self, set: &mut PollSet<'a>, listener: &'a impl AsFd) {
        set.add(listener, if self.retry_at.is_none() { PollFlags::IN } else { PollFlags::empty() });
        self.retry_at.into_iter().for_each(|at| set.until(at));
    }

    /// Whether to accept although the listener had no event: the time until the next try is over.
    pub(crate) fn must_retry(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }

    /// Returns the next connection, or `None` if none waits or the kernel has nothing left for one.
    ///
    /// # Errors
    ///
    /// If this is not a listener. No peer and no shortage can cause it.
    pub(crate) fn accept(&mut self, listener: &impl AsFd) -> io::Result<Option<Accepted>> {
        self.retry_at = None;
        self.restore_reserve();
        loop {
            let errno = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) if self.restore_reserve() && may_keep(&stream).is_ok() => {
                    return Ok(Some(Accepted::Stream(stream)));
                }
                Ok(stream) => return Ok(Some(Accepted::LastDescriptor(stream))),
                Err(errno) => errno,
            };
            match cause(errno) {
                Cause::Connection => {}
                Cause::Descriptors if self.reserve.pop().is_some() => {}
                Cause::NoConnection => return Ok(None),
                Cause::Descriptors | Cause::Host => {
                    self.retry_at = Instant::now().checked_add(RETRY_DELAY);
                    return Ok(None);
                }
                Cause::Listener => return Err(errno.into()),
            }
        }
    }

    /// Takes what the reserve lacks, as far as there are descriptors; returns whether it has one. To be called when one may
    /// be free, before others take it.
    pub(crate) fn restore_reserve(&mut self) -> bool {
        let missing = (self.reserve.len()..self.size).map_while(|_| EventFd::new().ok());
        self.reserve.extend(missing);
        !self.reserve.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn no_shortage_ends_a_server() {
        for errno in [Errno::NOMEM, Errno::NOBUFS, Errno::NOSR, Errno::MFILE, Errno::NFILE, Errno::IO] {
            assert!(matches!(cause(errno), Cause::Host | Cause::Descriptors), "{errno}");
        }
        for errno in [Errno::CONNABORTED, Errno::PERM, Errno::INTR] {
            assert_eq!(cause(errno), Cause::Connection, "{errno}");
        }
    }

    #[test]
    fn what_is_no_listener_is_an_error() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(Acceptor::new().unwrap().accept(&stream).is_err());
    }

    #[test]
    fn a_connection_is_accepted_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut acceptor = Acceptor::new().unwrap();
        assert!(acceptor.accept(&listener).unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(acceptor.accept(&listener).unwrap(), Some(Accepted::Stream(_))));
        assert!(acceptor.accept(&listener).unwrap().is_none() && !acceptor.must_retry(Instant::now()));
    }
}
