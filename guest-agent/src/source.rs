//! A descriptor under edge-triggered watch, and what is known of its readiness.

use crate::session::Outcome;
use crate::sys::{
    self, EAGAIN, EINTR, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, Fd,
};

/// What a listener and a timer are watched for.
pub const WATCH_INPUT: u32 = EPOLLIN | EPOLLET;
/// What a stream is watched for.
pub const WATCH_STREAM: u32 = WATCH_INPUT | EPOLLRDHUP;

/// The peer ended its sending side, or more than that.
const ENDED: u32 = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
/// It did, and its end was looked at: reads never block again. No event has this bit.
const ENDED_BEFORE: u32 = 1 << 16;
/// A write found no room, and the kernel was asked to report it. No event has this bit.
const NO_ROOM: u32 = 1 << 17;

/// A descriptor that epoll watches, if there is one.
///
/// Events are hints. One that comes late, for a former descriptor of the same source, costs one system call.
///
/// All zero without a descriptor, so that a static table of them takes no space in a program file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Source {
    fd: Fd,
    /// The events that were reported and not yet acted on, and the bits above. `EPOLLIN` stands for what may be there to
    /// read, to accept or to do.
    events: u32,
    pub token: u32,
}

impl Source {
    /// No descriptor.
    pub const NONE: Self = Self { fd: Fd::NONE, events: 0, token: 0 };

    /// Starts to watch the descriptor of this number for `events`, which are reported with `token`; what is there at this
    /// time is reported as well. A number that is negative is a failure to make one, which is returned. Closes the
    /// descriptor where it cannot be watched.
    pub fn open(&mut self, epoll: Fd, number: i32, events: u32, token: u32) -> i32 {
        if number < 0 {
            return number;
        }
        let fd = Fd::new(number);
        let outcome = sys::watch(epoll, EPOLL_CTL_ADD, fd, events, token);
        if outcome < 0 {
            fd.close();
        } else {
            *self = Self { fd, events: 0, token };
        }
        outcome
    }

    /// Closes the descriptor, if there is one.
    pub fn close(&mut self) {
        if self.is_open() {
            self.fd.close();
        }
        (self.fd, self.events) = (Fd::NONE, 0);
    }

    /// Whether there is a descriptor.
    pub fn is_open(&self) -> bool {
        self.fd.is_open()
    }

    /// Returns the descriptor.
    pub fn fd(&self) -> Fd {
        self.fd
    }

    /// Takes in events.
    pub fn on_event(&mut self, events: u32) {
        self.events |= events;
    }

    /// Whether any event came.
    pub fn has_event(&self) -> bool {
        self.events != 0
    }

    /// Whether something may be there.
    pub fn is_ready(&self) -> bool {
        self.events & (EPOLLIN | ENDED | ENDED_BEFORE) != 0
    }

    /// Says that nothing is there until the next event.
    pub fn set_idle(&mut self) {
        self.events = 0;
    }

    /// Whether the peer has closed the connection, not only its sending side.
    pub fn is_closed(&mut self) -> bool {
        if self.events & ENDED == 0 {
            return false;
        }
        self.events = self.events & !ENDED | ENDED_BEFORE | EPOLLOUT;
        sys::send(self.fd, &[]) < 0
    }

    /// Reads into `buffer`, if something may be there.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Outcome {
        if self.is_ready() { self.receive_now(buffer) } else { Outcome::BLOCKED }
    }

    /// Reads into `buffer`. A short read of a stream that has not ended means that it is drained, which saves the
    /// read that would only say so.
    pub fn receive_now(&mut self, buffer: &mut [u8]) -> Outcome {
        let outcome = outcome(sys::receive(self.fd, buffer));
        if outcome.bytes().is_none_or(|count| count < buffer.len()) {
            self.events &= !EPOLLIN;
        }
        outcome
    }

    /// Writes what there is room for of `pieces`.
    ///
    /// The kernel is asked to report room only after a write found none: otherwise the peer's every read would be an event.
    pub fn send(&mut self, epoll: Fd, pieces: &[&[u8]; 3]) -> Outcome {
        if self.events & (NO_ROOM | EPOLLOUT | ENDED) == NO_ROOM {
            return Outcome::BLOCKED;
        }
        let mut outcome = outcome(sys::send_pieces(self.fd, pieces));
        let before = self.events;
        self.events &= !(NO_ROOM | EPOLLOUT);
        let mut watch = WATCH_STREAM;
        if outcome == Outcome::BLOCKED {
            self.events |= NO_ROOM;
            watch |= EPOLLOUT;
        }
        if (before ^ self.events) & NO_ROOM != 0 {
            let watched = sys::watch(epoll, EPOLL_CTL_MOD, self.fd, watch, self.token);
            if watched < 0 {
                outcome = Outcome::failed(-watched);
            }
        }
        outcome
    }
}

fn outcome(outcome: i32) -> Outcome {
    match outcome {
        EAGAIN | EINTR => Outcome::BLOCKED,
        _ => Outcome::failed(-outcome),
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
        let mut source = Source::NONE;
        assert!(source.open(Fd::NONE, watched.into_raw_fd(), WATCH_STREAM, 0) < 0);
        assert!(!source.is_open());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}
