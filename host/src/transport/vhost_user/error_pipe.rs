//! How a server's owner learns of errors, and of the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::pipe::{PipeFlags, pipe_with};

use crate::vsock::DeviceError;

/// The latest error, with a pipe that is readable while there is one and hung up once the front end is gone.
#[derive(Debug)]
pub(super) struct ErrorPipe {
    reader: OwnedFd,
    latest: Mutex<Latest>,
}

#[derive(Debug)]
struct Latest {
    error: Option<DeviceError>,
    writer: Option<OwnedFd>,
}

impl ErrorPipe {
    /// # Errors
    ///
    /// The kernel's, if it has no pipe.
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { reader, latest: Mutex::new(Latest { error: None, writer: Some(writer) }) })
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        // Whole at every point where a thread could panic.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the latest error.
    pub(super) fn report(&self, error: DeviceError) {
        let mut latest = self.latest();
        latest.error = Some(error);
        if let Some(writer) = &latest.writer {
            // A pipe that is full is readable already.
            let _written = rustix::io::write(writer, &[0]);
        }
    }

    /// Takes the latest error.
    pub(super) fn take(&self) -> Option<DeviceError> {
        let mut latest = self.latest();
        let _drained = rustix::io::read(&self.reader, &mut [0; 64]);
        latest.error.take()
    }

    /// Hangs up: there are no more errors.
    pub(super) fn close(&self) {
        self.latest().writer = None;
    }
}

impl AsFd for ErrorPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
