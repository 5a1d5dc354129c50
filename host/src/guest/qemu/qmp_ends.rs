//! Both ends of a QMP connection, as a QEMU that is to be started inherits them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use command_fds::FdMapping;

use super::process_group::Leaver;

/// The numbers under which QEMU inherits them.
const SERVER_FD: i32 = 23;
const CLIENT_FD: i32 = 24;

/// What ends QEMU, whatever was sent before it. Where the first command was sent already, QEMU answers it with an error.
const QUIT: &str = "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n";

/// Both ends of a QMP connection.
#[derive(Debug)]
pub(super) struct QmpEnds {
    server: OwnedFd,
    /// QEMU keeps it open and does not use it. Without it, QEMU before 9.0 ignores the last command of a client that has
    /// ended: it sees the hang-up first.
    client: OwnedFd,
}

impl QmpEnds {
    /// Returns the client's end of a new connection, and what QEMU inherits.
    ///
    /// # Errors
    ///
    /// The kernel's, if no descriptor is left.
    pub(super) fn pair() -> io::Result<(UnixStream, Self)> {
        let (client, server) = UnixStream::pair()?;
        let ends = Self { server: server.into(), client: client.try_clone()?.into() };
        Ok((client, ends))
    }

    /// Returns how QEMU is asked to end.
    ///
    /// # Errors
    ///
    /// As [`pair`](Self::pair).
    pub(super) fn leaver(&self) -> io::Result<Leaver> {
        Ok(Leaver { stream: self.client.try_clone()?, request: QUIT })
    }

    /// Returns QEMU's arguments for the connection.
    pub(super) fn arguments() -> [String; 4] {
        let chardev = format!("socket,id=qmp,fd={SERVER_FD}");
        ["-chardev".into(), chardev, "-mon".into(), "chardev=qmp,mode=control".into()]
    }

    /// Returns under which numbers QEMU inherits what.
    pub(super) fn mappings(self) -> [FdMapping; 2] {
        [
            FdMapping { parent_fd: self.server, child_fd: SERVER_FD },
            FdMapping { parent_fd: self.client, child_fd: CLIENT_FD },
        ]
    }
}
