//! A stream socket under edge-triggered watch, and what is known of its readiness.

use crate::sys::{self, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, Epoll, Errno, Fd};

const ENDED: u32 = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
const QUIET: u32 = EPOLLIN | EPOLLRDHUP | EPOLLET;

/// What came of an attempt to read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes; none means the stream's end.
    Done(usize),
    /// Nothing now; an event comes when there is more to do.
    Blocked,
    /// The stream failed.
    Failed(Errno),
}

/// A connected stream. Writability is only watched for after a write found no room, since the peer's every read
/// would be an event otherwise.
#[derive(Debug)]
pub struct Watched {
    fd: Fd,
    token: u64,
    readable: bool,
    ended: bool,
    writable: bool,
    watching_writable: bool,
}

impl Watched {
    /// Starts to watch `fd`; what is already there is reported as an event.
    pub fn new(epoll: &Epoll, fd: Fd, token: u64) -> sys::Result<Self> {
        epoll.add(&fd, QUIET, token)?;
        Ok(Self { fd, token, readable: false, ended: false, writable: true, watching_writable: false })
    }

    /// Takes note of an event.
    pub fn note(&mut self, events: u32) {
        self.readable |= events & (EPOLLIN | ENDED) != 0;
        self.writable |= events & (EPOLLOUT | ENDED) != 0;
        self.ended |= events & ENDED != 0;
    }

    /// Whether a read may give something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether the peer ended its sending side or the connection.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads into `buffer`. A short read of a stream that has not ended means that it is drained, which saves the
    /// read that would only say so.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Transfer {
        if !self.readable {
            return Transfer::Blocked;
        }
        match sys::receive(&self.fd, buffer) {
            Ok(count) => {
                self.readable = self.ended || count == buffer.len();
                Transfer::Done(count)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.readable = false;
                Transfer::Blocked
            }
            Err(errno) => Transfer::Failed(errno),
        }
    }

    /// Writes of `pieces` what there is room for.
    pub fn send(&mut self, epoll: &Epoll, pieces: [&[u8]; 3]) -> Transfer {
        if !self.writable {
            return Transfer::Blocked;
        }
        match sys::send_pieces(&self.fd, pieces) {
            Ok(count) => self.watch_writable(epoll, false).map_or_else(Transfer::Failed, |()| Transfer::Done(count)),
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.writable = false;
                self.watch_writable(epoll, true).map_or_else(Transfer::Failed, |()| Transfer::Blocked)
            }
            Err(errno) => Transfer::Failed(errno),
        }
    }

    fn watch_writable(&mut self, epoll: &Epoll, wanted: bool) -> sys::Result<()> {
        if self.watching_writable != wanted {
            let events = if wanted { QUIET | EPOLLOUT } else { QUIET };
            epoll.modify(&self.fd, events, self.token)?;
            self.watching_writable = wanted;
        }
        Ok(())
    }
}
