//! How a server's owner learns of what happens to a guest, and of the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};

use rustix::pipe::{PipeFlags, pipe_with};

use super::error::Error;
use crate::io::lock::lock;

/// What happened to a guest.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A front end has connected.
    Connected,
    /// The guest's driver has set its queues up, and the device serves them: after a boot, and after a pause.
    Running,
    /// The device stopped, or the session is ended.
    Error(Error),
}

/// The latest event of each kind, with a pipe that is readable while there is one and hung up once the front end is gone.
#[derive(Debug)]
pub(super) struct Events {
    reader: OwnedFd,
    pending: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    connected: bool,
    running: bool,
    error: Option<Error>,
    writer: Option<OwnedFd>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        !self.connected && !self.running && self.error.is_none()
    }
}

impl Events {
    /// # Errors
    ///
    /// The kernel's, if it has no pipe.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let pending = Pending { connected: false, running: false, error: None, writer: Some(writer) };
        Ok(Self { reader, pending: Mutex::new(pending) })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    /// Adds an event, in the place of an earlier one of its kind.
    pub(super) fn report(&self, event: Event) {
        let mut pending = self.pending();
        let readable = !pending.is_empty();
        match event {
            Event::Connected => pending.connected = true,
            Event::Running => pending.running = true,
            Event::Error(error) => pending.error = Some(error),
        }
        if let Some(writer) = &pending.writer
            && !readable
        {
            let _written = rustix::io::write(writer, &[0]);
        }
    }

    /// Takes the next event, in the order in which they happen.
    pub(super) fn take(&self) -> Option<Event> {
        let mut pending = self.pending();
        let event = if std::mem::take(&mut pending.connected) {
            Some(Event::Connected)
        } else if std::mem::take(&mut pending.running) {
            Some(Event::Running)
        } else {
            pending.error.take().map(Event::Error)
        };
        if pending.is_empty() {
            let _drained = rustix::io::read(&self.reader, &mut [0; 8]);
        }
        event
    }

    /// Hangs up: there are no more events but those that are pending.
    pub(super) fn close(&self) {
        self.pending().writer = None;
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_once() {
        let events = Events::new().unwrap();
        events.report(Event::Connected);
        events.report(Event::Running);
        events.report(Event::Running);
        assert!(matches!(events.take(), Some(Event::Connected)));
        assert!(matches!(events.take(), Some(Event::Running)));
        assert!(events.take().is_none());
    }

    #[test]
    fn an_error_outlives_the_session() {
        let events = Events::new().unwrap();
        events.report(Event::Error(Error::FrontEnd { reason: "invalid message".into() }));
        events.close();
        assert!(matches!(events.take(), Some(Event::Error(Error::FrontEnd { .. }))));
        assert!(events.take().is_none());
    }
}
