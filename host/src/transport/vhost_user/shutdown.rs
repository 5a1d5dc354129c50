//! How a server is ended, by its owner or by a fault of the front end, whether one has connected or not.

use std::fmt;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::{Mutex, MutexGuard};

use rustix::event::{PollFd, PollFlags, poll};
use vhost_user_backend::ShutdownHandle;

use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;

/// The end of a server.
#[derive(Debug)]
pub(super) struct Shutdown {
    state: Mutex<ShutdownState>,
    wake: EventFd,
}

enum ShutdownState {
    /// No front end has connected.
    Waiting,
    /// One is served.
    Serving(ShutdownHandle),
    /// Its session is to end; as soon as there is a handle to it.
    Ending,
    /// The owner ended the server.
    Requested,
}

impl fmt::Debug for ShutdownState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Waiting => "Waiting",
            Self::Serving(_) => "Serving",
            Self::Ending => "Ending",
            Self::Requested => "Requested",
        })
    }
}

impl Shutdown {
    /// # Errors
    ///
    /// The kernel's, if it has no event descriptor.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::new(ShutdownState::Waiting), wake: EventFd::new()? })
    }

    fn state(&self) -> MutexGuard<'_, ShutdownState> {
        lock(&self.state)
    }

    /// Waits for a front end. Returns false if the owner ended the server first.
    ///
    /// # Errors
    ///
    /// The kernel's, if it cannot wait.
    pub(super) fn wait_for_front_end(&self, listener: &UnixListener) -> io::Result<bool> {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => return Ok(!matches!(*self.state(), ShutdownState::Requested)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// A front end has connected. If its session is to end already, it is disconnected.
    pub(super) fn on_front_end(&self, shutdown: Option<ShutdownHandle>) {
        let Some(shutdown) = shutdown else { return };
        let mut state = self.state();
        match *state {
            ShutdownState::Requested | ShutdownState::Ending => shutdown.shutdown(),
            ShutdownState::Waiting | ShutdownState::Serving(_) => *state = ShutdownState::Serving(shutdown),
        }
    }

    /// The front end has gone, and another may connect. Returns false if the owner ended the server meanwhile.
    pub(super) fn wait_again(&self) -> bool {
        let mut state = self.state();
        let requested = matches!(*state, ShutdownState::Requested);
        if !requested {
            *state = ShutdownState::Waiting;
        }
        !requested
    }

    /// Disconnects the front end.
    pub(super) fn end_session(&self) {
        let mut state = self.state();
        match &*state {
            ShutdownState::Waiting => *state = ShutdownState::Ending,
            ShutdownState::Serving(shutdown) => shutdown.shutdown(),
            ShutdownState::Ending | ShutdownState::Requested => {}
        }
    }

    /// Ends the server.
    pub(super) fn request(&self) {
        let before = std::mem::replace(&mut *self.state(), ShutdownState::Requested);
        if let ShutdownState::Serving(shutdown) = before {
            shutdown.shutdown();
        }
        self.wake.notify();
    }
}
