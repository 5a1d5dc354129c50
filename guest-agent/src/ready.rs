//! The one connection by which the host learns that the agent listens.

use scx_vsock_wire::limits::{MAX_AGENT_ENVELOPE_BYTES, MAX_NAME_BYTES};
use scx_vsock_wire::line::up_to;
use scx_vsock_wire::{READY_PORT, emit};

use crate::listener::is_shortage;
use crate::slot::{boot_id, version};
use crate::sys::{self, EPOLLET, EPOLLOUT, Epoll, Errno, Fd, VMADDR_CID_HOST};
use crate::token::{Source, Token};

/// How far that connection is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Ready {
    /// The host is to be connected.
    Pending,
    /// The connection is being made.
    Connecting(Fd),
    /// Hello was sent, or no host listens.
    Done,
}

impl Ready {
    /// Connects to the host, if that is still to be done. Where no transport is there yet it stays to be done.
    pub fn connect(&mut self, epoll: Epoll) {
        if let Self::Pending = self {
            *self = match sys::connect_vsock(VMADDR_CID_HOST, READY_PORT) {
                Ok(fd) => Self::watch(epoll, fd),
                Err(errno) => Self::after(errno),
            };
        }
    }

    fn watch(epoll: Epoll, fd: Fd) -> Self {
        match epoll.add(fd, EPOLLOUT | EPOLLET, Token::of(Source::Ready, 0).pack()) {
            Ok(()) => Self::Connecting(fd),
            Err(errno) => {
                fd.close();
                Self::after(errno)
            }
        }
    }

    fn after(errno: Errno) -> Self {
        match errno {
            Errno::ENODEV | Errno::EAFNOSUPPORT => Self::Pending,
            errno if is_shortage(errno) => Self::Pending,
            _ => Self::Done,
        }
    }

    /// Takes in that the connection is made or has failed: sends hello, which fails after a failure, and closes. Best
    /// effort, once.
    pub fn on_event(&mut self, max_line_bytes: u32) {
        if let Self::Connecting(fd) = *self {
            let (mut line, mut id) = ([0; MAX_AGENT_ENVELOPE_BYTES], [0; MAX_NAME_BYTES]);
            let length = emit::hello(&mut line, version(), boot_id(&mut id), max_line_bytes);
            let _best_effort = sys::send(fd, up_to(&line, length));
            self.close();
        }
    }

    /// Whether the connection is still to be made.
    pub fn is_pending(&self) -> bool {
        matches!(self, Self::Pending)
    }

    /// Closes the connection, if there is one.
    pub fn close(&mut self) {
        if let Self::Connecting(fd) = *self {
            fd.close();
        }
        *self = Self::Done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_passes_is_tried_again() {
        for errno in [Errno::ENODEV, Errno::EAFNOSUPPORT, Errno::EMFILE, Errno::ENOMEM, Errno::ENOSPC] {
            assert!(Ready::after(errno).is_pending(), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EPERM, Errno::ECONNRESET] {
            assert!(matches!(Ready::after(errno), Ready::Done), "{errno}");
        }
    }

    #[test]
    fn a_connection_that_cannot_be_watched_is_closed() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let ready = Ready::watch(Epoll::NONE, Fd::inherited(agent.into_raw_fd()));
        assert!(matches!(ready, Ready::Done), "no waiting changes that this is no epoll instance");
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn hello_is_sent_once() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let mut ready = Ready::Connecting(Fd::inherited(agent.into_raw_fd()));
        ready.on_event(4096);
        ready.on_event(4096);
        let mut hello = String::new();
        host.read_to_string(&mut hello).unwrap();
        assert!(hello.starts_with("{\"hello\":{\"protocol\":1,") && hello.lines().count() == 1, "{hello}");
        assert!(!ready.is_pending());
    }
}
