//! The one connection that tells the host that the agent listens.

use scx_vsock_wire::{Envelope, READY_PORT};

use crate::listener::is_shortage;
use crate::sys::{self, EPOLLET, EPOLLOUT, Epoll, Errno, Fd, VMADDR_CID_HOST};
use crate::token::Token;

/// How far telling the host is.
#[derive(Debug)]
pub enum Ready {
    /// The host is to be dialled.
    Wanted,
    /// The connection is being made.
    Dialling(Fd),
    /// The host was told, or does not want to know.
    Done,
}

impl Ready {
    /// Dials the host, if that is still to be done. Where no transport is there yet it stays to be done.
    pub fn dial(&mut self, epoll: &Epoll) {
        if let Self::Wanted = self {
            let dialled = sys::dial_vsock(VMADDR_CID_HOST, READY_PORT)
                .and_then(|fd| epoll.add(&fd, EPOLLOUT | EPOLLET, Token::Ready.pack()).map(|()| fd));
            *self = match dialled {
                Ok(fd) => Self::Dialling(fd),
                Err(Errno::ENODEV | Errno::EAFNOSUPPORT) => Self::Wanted,
                Err(errno) if is_shortage(errno) => Self::Wanted,
                Err(_) => Self::Done,
            };
        }
    }

    /// The connection is made or has failed: says hello and closes. Best effort, once.
    pub fn say_hello(&mut self) {
        if let Self::Dialling(fd) = self {
            if sys::take_error(fd).is_ok() {
                let _told = sys::send(fd, &Envelope::hello(env!("CARGO_PKG_VERSION")).emit());
            }
            *self = Self::Done;
        }
    }

    /// Whether dialling is still to be done.
    pub fn is_wanted(&self) -> bool {
        matches!(self, Self::Wanted)
    }
}
