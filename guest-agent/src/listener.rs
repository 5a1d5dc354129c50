//! A port that hosts connect to.

use crate::arguments::Map;
use crate::sys::{self, EPOLLET, EPOLLIN, Epoll, Errno, Fd, Peer};
use crate::token::Token;

/// A port and where it leads.
#[derive(Debug)]
pub struct Listener<'a> {
    number: u8,
    /// The port and the scheduler's socket behind it.
    pub map: Map<'a>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not listening yet.
    Wanted,
    /// The kernel knew nothing of vsock when it was asked.
    Unsupported,
    /// Listening; an event comes with the next connection.
    Quiet(Fd),
    /// Connections may be waiting.
    Pending(Fd),
    /// Connections are waiting that could not be taken for want of memory or descriptors.
    Starved(Fd),
}

impl<'a> Listener<'a> {
    /// A listener that is to be opened with [`open`](Self::open).
    pub fn wanted(number: u8, map: Map<'a>) -> Self {
        Self { number, map, state: State::Wanted }
    }

    /// A listener on a descriptor that was passed to this program.
    pub fn inherited(epoll: &Epoll, number: u8, map: Map<'a>, descriptor: i32) -> sys::Result<Self> {
        let fd = Fd::inherited(descriptor);
        if !sys::is_listening(&fd)? {
            return Err(Errno::EINVAL);
        }
        sys::set_nonblocking(&fd)?;
        let mut listener = Self::wanted(number, map);
        listener.watch(epoll, fd)?;
        Ok(listener)
    }

    /// Listens, if it does not yet; gives whether it does now.
    ///
    /// # Errors
    ///
    /// What no waiting mends: the port is taken, or not permitted.
    pub fn open(&mut self, epoll: &Epoll, backlog: u32) -> sys::Result<bool> {
        match self.state {
            State::Wanted => {}
            // Asking the kernel for a family that it does not know makes it start modprobe: ask only when the module
            // is there, where that can be seen.
            State::Unsupported if sys::exists(c"/sys/module") && !sys::exists(c"/sys/module/vsock") => {
                return Ok(false);
            }
            State::Unsupported => {}
            State::Quiet(_) | State::Pending(_) | State::Starved(_) => return Ok(true),
        }
        match sys::listen_vsock(self.map.port, backlog).and_then(|fd| self.watch(epoll, fd)) {
            Ok(()) => Ok(true),
            Err(Errno::EAFNOSUPPORT) => {
                self.state = State::Unsupported;
                Ok(false)
            }
            Err(errno) if is_shortage(errno) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn watch(&mut self, epoll: &Epoll, fd: Fd) -> sys::Result<()> {
        epoll.add(&fd, EPOLLIN | EPOLLET, Token::Listener(self.number).pack())?;
        self.state = State::Quiet(fd);
        Ok(())
    }

    /// Takes note that connections may be waiting, or that a shortage may be over.
    pub fn note(&mut self) {
        self.state = match core::mem::replace(&mut self.state, State::Wanted) {
            State::Wanted => State::Wanted,
            State::Unsupported => State::Unsupported,
            State::Quiet(fd) | State::Pending(fd) | State::Starved(fd) => State::Pending(fd),
        };
    }

    /// Whether connections may be waiting that can be taken now.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending(_))
    }

    /// Whether something is to be tried again that gives no event.
    pub fn wants_retry(&self) -> bool {
        matches!(self.state, State::Wanted | State::Unsupported | State::Starved(_))
    }

    /// The next connection that is waiting; none once there is no more or it cannot be taken.
    pub fn accept(&mut self) -> Option<(Fd, Peer)> {
        let State::Pending(fd) = &self.state else { return None };
        match sys::accept(fd) {
            Ok(connection) => Some(connection),
            Err(errno) => {
                self.stop_accepting(errno);
                None
            }
        }
    }

    fn stop_accepting(&mut self, errno: Errno) {
        self.state = match core::mem::replace(&mut self.state, State::Wanted) {
            // The connection ended before it was taken; others may be waiting.
            State::Pending(fd) if matches!(errno, Errno::ECONNABORTED | Errno::EINTR) => State::Pending(fd),
            State::Pending(fd) if is_shortage(errno) => State::Starved(fd),
            State::Pending(fd) => State::Quiet(fd),
            state => state,
        };
    }
}

/// Whether memory or descriptors were missing, which may pass without an event.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::ENOSPC)
}
