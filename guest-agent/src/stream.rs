//! A connected stream under edge-triggered watch, and what is known of its readiness.

use crate::sys::{self, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, Epoll, Errno, Fd};

const ENDED: u32 = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
const WATCH_INPUT: u32 = EPOLLIN | EPOLLRDHUP | EPOLLET;

/// The outcome of an attempt to read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes; none means the stream's end.
    Done(u32),
    /// Nothing now; an event comes when there is more to do.
    Blocked,
    /// The stream failed.
    Failed(Errno),
}

/// What is known of the peer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// None are there; an event comes with the next.
    Drained,
    /// Some may be there.
    Pending,
    /// The peer ended its sending side, so that reads never block again.
    Ended,
    /// The peer reads nothing any more either.
    Closed,
}

/// What is known of the room for writes. The kernel is asked to report room only after a write found none: otherwise
/// the peer's every read would be an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// There may be room.
    Open,
    /// There is none; an event comes with it.
    Blocked,
    /// There may be room again, and the kernel still reports it.
    Unblocked,
}

/// One connection of a session, if there is one.
///
/// All zero without a connection (hence `repr(C)`), so that a static table of them takes no space in a program file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub enum Stream {
    /// There is no connection.
    None,
    /// There is one.
    Open(Connection),
}

/// An open connection.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    fd: Fd,
    token: u64,
    input: Input,
    output: Output,
}

impl Stream {
    /// Starts to watch `fd`, whose present state is reported as an event. Closes it where that fails.
    pub fn open(&mut self, epoll: Epoll, fd: Fd, token: u64) -> sys::Result<()> {
        if let Err(errno) = epoll.add(fd, WATCH_INPUT, token) {
            fd.close();
            return Err(errno);
        }
        *self = Self::Open(Connection { fd, token, input: Input::Drained, output: Output::Open });
        Ok(())
    }

    /// Closes the connection, if there is one.
    pub fn close(&mut self) {
        if let Self::Open(connection) = self {
            connection.fd.close();
            *self = Self::None;
        }
    }

    /// Takes in an event of the connection.
    pub fn on_event(&mut self, events: u32) {
        if let Self::Open(connection) = self {
            connection.on_event(events);
        }
    }
}

impl Connection {
    fn on_event(&mut self, events: u32) {
        if events & ENDED != 0 {
            let still_reads = sys::send(self.fd, &[]).is_ok();
            self.input = if still_reads { Input::Ended } else { Input::Closed };
        } else if events & EPOLLIN != 0 {
            self.input = Input::Pending;
        }
        if events & (EPOLLOUT | ENDED) != 0 && self.output == Output::Blocked {
            self.output = Output::Unblocked;
        }
    }

    /// Whether a read may return something.
    pub fn is_readable(&self) -> bool {
        self.input != Input::Drained
    }

    /// Whether the peer has closed the connection, not only its sending side.
    pub fn is_closed(&self) -> bool {
        self.input == Input::Closed
    }

    /// Reads into `buffer`, if something may be there.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Transfer {
        if self.is_readable() { self.receive_now(buffer) } else { Transfer::Blocked }
    }

    /// Reads into `buffer`. A short read of a stream that has not ended means that it is drained, which saves the
    /// read that would only say so.
    pub fn receive_now(&mut self, buffer: &mut [u8]) -> Transfer {
        let outcome = sys::receive(self.fd, buffer);
        let is_full = matches!(outcome, Ok(count) if count as usize == buffer.len());
        if self.input == Input::Pending && !is_full {
            self.input = Input::Drained;
        }
        transfer(outcome)
    }

    /// Writes what there is room for of `pieces`.
    pub fn send(&mut self, epoll: Epoll, pieces: [&[u8]; 3]) -> Transfer {
        if self.output == Output::Blocked {
            return Transfer::Blocked;
        }
        let outcome = transfer(sys::send_pieces(self.fd, pieces));
        let (output, watch) = match (outcome, self.output) {
            (Transfer::Blocked, Output::Open) => (Output::Blocked, WATCH_INPUT | EPOLLOUT),
            (Transfer::Blocked, _) => {
                self.output = Output::Blocked;
                return outcome;
            }
            (Transfer::Done(_), Output::Unblocked) => (Output::Open, WATCH_INPUT),
            _ => return outcome,
        };
        self.output = output;
        epoll.modify(self.fd, watch, self.token).map_or_else(Transfer::Failed, |()| outcome)
    }
}

fn transfer(outcome: sys::Result<u32>) -> Transfer {
    match outcome {
        Ok(count) => Transfer::Done(count),
        Err(Errno::EAGAIN | Errno::EINTR) => Transfer::Blocked,
        Err(errno) => Transfer::Failed(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_connection_that_cannot_be_watched_is_closed() {
        let (mut peer, watched) = UnixStream::pair().unwrap();
        let mut stream = Stream::None;
        let opened = stream.open(Epoll::NONE, Fd::inherited(watched.into_raw_fd()), 0);
        assert!(opened.is_err() && matches!(stream, Stream::None));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
