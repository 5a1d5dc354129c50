//! Agents that come up behind a VMM's hybrid socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use scx_vsock_wire::READY_PORT;

use super::connect::AgentListener;
use super::hybrid::listener_path;
use crate::io::OwnedUnixListener;

/// Listens at the path to which the VMM connects a guest's connections to [`READY_PORT`].
#[derive(Debug)]
pub(super) struct HybridReady(OwnedUnixListener);

impl HybridReady {
    /// Listens beside the VMM's socket, which need not be there yet.
    pub(super) fn bind(socket: &Path) -> io::Result<Self> {
        let listener = OwnedUnixListener::bind(listener_path(socket, READY_PORT)).map_err(io::Error::other)?;
        listener.listener().set_nonblocking(true)?;
        Ok(Self(listener))
    }
}

impl AgentListener for HybridReady {
    fn accept(&self) -> io::Result<bool> {
        match self.0.listener().accept() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for HybridReady {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
