//! A port that hosts connect to.

use crate::arguments::Map;
use crate::sys::{self, EPOLLET, EPOLLIN, Epoll, Errno, Fd, Peer, UnixAddress};
use crate::token::{Source, Token};

/// A port, and the scheduler's socket that its hosts reach. All zero when new.
#[derive(Clone, Copy, Debug)]
pub struct Listener {
    /// The port.
    pub port: u32,
    /// The scheduler's socket.
    pub scheduler: UnixAddress,
    state: State,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
enum State {
    /// Not listening yet.
    Closed,
    /// The kernel had no vsock when it was asked.
    Unsupported,
    /// Listening; an event comes with the next connection.
    Idle(Fd),
    /// Connections may be there.
    Pending(Fd),
    /// Connections are there that could not be accepted for lack of memory or descriptors.
    Exhausted(Fd),
}

impl Listener {
    /// No listener.
    pub const NONE: Self = Self { port: 0, scheduler: UnixAddress::NONE, state: State::Closed };

    /// Creates a listener that is to be opened with [`open`](Self::open).
    pub fn new(map: &Map<'_>) -> Self {
        Self { port: map.port, scheduler: UnixAddress::new(map.socket), state: State::Closed }
    }

    /// Listens on an inherited descriptor, as the listener of this number.
    pub fn inherit(&mut self, epoll: Epoll, number: u8, fd: Fd) -> sys::Result<()> {
        if !sys::is_listening(fd)? {
            return Err(Errno::EINVAL);
        }
        sys::set_nonblocking(fd)?;
        self.watch(epoll, number, fd)
    }

    /// Listens as the listener of this number, if it does not yet; returns whether it does now.
    ///
    /// # Errors
    ///
    /// What no waiting changes: the port is taken, or not permitted.
    pub fn open(&mut self, epoll: Epoll, number: u8, backlog: u32) -> sys::Result<bool> {
        match self.state {
            State::Closed => {}
            // Asking the kernel for a family that it does not know makes it start modprobe: ask only when the module
            // is there, where that can be seen.
            State::Unsupported if sys::exists(c"/sys/module") && !sys::exists(c"/sys/module/vsock") => {
                return Ok(false);
            }
            State::Unsupported => {}
            State::Idle(_) | State::Pending(_) | State::Exhausted(_) => return Ok(true),
        }
        let listening = sys::listen_vsock(self.port, backlog)
            .and_then(|fd| self.watch(epoll, number, fd).inspect_err(|_| fd.close()));
        match listening {
            Ok(()) => Ok(true),
            Err(Errno::EAFNOSUPPORT) => {
                self.state = State::Unsupported;
                Ok(false)
            }
            Err(errno) if is_shortage(errno) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn watch(&mut self, epoll: Epoll, number: u8, fd: Fd) -> sys::Result<()> {
        epoll.add(fd, EPOLLIN | EPOLLET, Token::of(Source::Listener, number).pack())?;
        self.state = State::Idle(fd);
        Ok(())
    }

    /// Takes in that connections may be there.
    pub fn on_event(&mut self) {
        if let State::Idle(fd) | State::Exhausted(fd) = self.state {
            self.state = State::Pending(fd);
        }
    }

    /// Takes in that a shortage may be over.
    pub fn on_timer(&mut self) {
        if let State::Exhausted(fd) = self.state {
            self.state = State::Pending(fd);
        }
    }

    /// Whether something is to be tried again that causes no event.
    pub fn needs_timer(&self) -> bool {
        matches!(self.state, State::Closed | State::Unsupported | State::Exhausted(_))
    }

    /// Returns the next connection; `None` once there is no more or it cannot be accepted.
    pub fn accept(&mut self) -> Option<(Fd, Peer)> {
        let State::Pending(fd) = self.state else { return None };
        match sys::accept(fd) {
            Ok(connection) => return Some(connection),
            // The connection ended before it was accepted; others may be there.
            Err(Errno::ECONNABORTED | Errno::EINTR) => {}
            Err(errno) if is_shortage(errno) => self.state = State::Exhausted(fd),
            Err(_) => self.state = State::Idle(fd),
        }
        None
    }

    /// Whether connections may be there that can be accepted now.
    pub fn is_pending(&self) -> bool {
        matches!(self.state, State::Pending(_))
    }

    /// Stops listening.
    pub fn close(&mut self) {
        if let State::Idle(fd) | State::Pending(fd) | State::Exhausted(fd) = self.state {
            fd.close();
            self.state = State::Closed;
        }
    }
}

/// Whether memory or descriptors were missing, which may pass without an event.
pub fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS | Errno::ENOSPC)
}
