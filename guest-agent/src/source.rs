//! A descriptor under edge-triggered watch, and what is known of its readiness.
//!
//! Linux (6.8 and later, and stable kernels before) sends the peer of a vsock a packet of its own whenever a read empties the
//! socket's queue, to give credit that the next answer gives as well. So what a host sent stays in the kernel's queue when it
//! is read, and is taken out of it many requests at a time.

use core::mem::replace;

use crate::session::{Outcome, READ_AHEAD};
use crate::sys::{
    self, EAGAIN, EINTR, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, Fd,
    MAX_SKIPPED, MSG_PEEK,
};

/// What a listener and a timer are watched for.
pub const WATCH_INPUT: u32 = EPOLLIN | EPOLLET;
/// What a stream is watched for.
pub const WATCH_STREAM: u32 = WATCH_INPUT | EPOLLRDHUP;

/// The peer ended its sending side, or more than that.
const ENDED: u32 = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
/// It did, and its end was looked at: reads never block again. No event has this bit.
const ENDED_BEFORE: u32 = 1 << 5;
/// A write found no room, and the kernel was asked to report it. No event has this bit.
const NO_ROOM: u32 = 1 << 6;

/// Bytes that were read, from which on they are taken out of the kernel's queue. There they take credit from the host.
pub const MAX_PEEKED: i32 = 1024;
const _: () = assert!(MAX_PEEKED as usize + READ_AHEAD <= MAX_SKIPPED);

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
    /// Bytes that were read, and are at the front of the kernel's queue.
    peeked: i32,
    /// Reads leave bytes in that queue while it has fewer of them: [`MAX_PEEKED`], or 0 for a stream that is no vsock. Such
    /// reads are of at most [`READ_AHEAD`] bytes.
    pub most_peeked: i32,
}

impl Source {
    /// No descriptor.
    pub const NONE: Self = Self { fd: Fd::NONE, events: 0, token: 0, peeked: 0, most_peeked: 0 };

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
            *self = Self { fd, token, ..Self::NONE };
        }
        outcome
    }

    /// Closes the descriptor, if there is one.
    pub fn close(&mut self) {
        if self.is_open() {
            self.take().close();
        }
    }

    /// Returns the descriptor, which is no longer this source's.
    pub fn take(&mut self) -> Fd {
        let fd = self.fd;
        (self.fd, self.events) = (Fd::NONE, 0);
        fd
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
        let mut flags = if self.peeked < self.most_peeked { MSG_PEEK } else { 0 };
        let count = loop {
            let there = sys::receive(self.fd, self.peeked, buffer, flags);
            let count = there - self.peeked;
            if flags == 0 {
                let before = replace(&mut self.peeked, 0);
                if before == 0 || count != 0 {
                    break count;
                }
            } else if count > 0 {
                self.peeked = there;
                break count;
            }
            // There is nothing new, or only the end; or the kernel is one of those that cannot peek into a packet of which a
            // part was taken.
            flags = 0;
        };
        if (count as isize) < buffer.len().cast_signed() {
            self.events &= !EPOLLIN;
        }
        outcome(count)
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
                outcome = Outcome(watched);
            }
        }
        outcome
    }
}

fn outcome(outcome: i32) -> Outcome {
    match outcome {
        EAGAIN | EINTR => Outcome::BLOCKED,
        _ => Outcome(outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::vec::Vec;

    #[test]
    fn a_connection_that_cannot_be_watched_is_closed() {
        let (mut peer, watched) = UnixStream::pair().unwrap();
        let mut source = Source::NONE;
        assert!(source.open(Fd::NONE, watched.into_raw_fd(), WATCH_STREAM, 0) < 0);
        assert!(!source.is_open());
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }

    /// A stream and a source that peeks at it.
    fn peeking() -> (UnixStream, Source) {
        let (peer, watched) = UnixStream::pair().unwrap();
        let fd = Fd::new(watched.into_raw_fd());
        (peer, Source { fd, most_peeked: MAX_PEEKED, ..Source::NONE })
    }

    /// What a read returns: bytes, or that there are none now.
    fn read(source: &mut Source, most: usize) -> Option<Vec<u8>> {
        let mut buffer = [0; READ_AHEAD];
        let count = source.receive_now(&mut buffer[..most]).bytes()?;
        Some(buffer[..count].to_vec())
    }

    /// Bytes in the kernel's queue.
    fn queued(source: &Source) -> usize {
        usize::try_from(sys::receive(source.fd, 0, &mut [0; 2 * READ_AHEAD], MSG_PEEK)).unwrap_or(0)
    }

    #[test]
    fn what_was_read_stays_in_the_queue_and_is_not_read_again() {
        let (mut peer, mut source) = peeking();
        for line in ["one\n", "two\n"] {
            peer.write_all(line.as_bytes()).unwrap();
            assert_eq!(read(&mut source, READ_AHEAD).unwrap(), line.as_bytes());
        }
        assert_eq!(queued(&source), 8);
        assert_eq!(read(&mut source, READ_AHEAD), None);
        source.close();
    }

    #[test]
    fn the_queue_does_not_grow_without_bound() {
        let (mut peer, mut source) = peeking();
        let most = usize::try_from(MAX_PEEKED).unwrap();
        for _ in 0..10 * most / 100 {
            peer.write_all(&[7; 100]).unwrap();
            assert_eq!(read(&mut source, READ_AHEAD).unwrap(), [7; 100]);
            assert!(queued(&source) < most + 100);
        }
        source.close();
    }

    #[test]
    fn the_end_is_read_after_what_was_peeked() {
        let (mut peer, mut source) = peeking();
        peer.write_all(b"last\n").unwrap();
        drop(peer);
        assert_eq!(read(&mut source, READ_AHEAD).unwrap(), b"last\n");
        assert_eq!(read(&mut source, READ_AHEAD).unwrap(), b"");
        source.close();
    }

    proptest! {
        #[test]
        fn bytes_are_read_once_and_in_order(steps in vec((0..3 * READ_AHEAD, 1..=READ_AHEAD), 1..60), peeks in any::<bool>()) {
            let (mut peer, mut source) = peeking();
            source.most_peeked = if peeks { MAX_PEEKED } else { 0 };
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for (write, most) in steps {
                let bytes: Vec<u8> = (sent.len()..sent.len() + write).map(|at| u8::try_from(at % 251).unwrap()).collect();
                peer.write_all(&bytes).unwrap();
                sent.extend(bytes);
                while received.len() < sent.len() {
                    received.extend(read(&mut source, most).unwrap());
                }
                prop_assert_eq!(read(&mut source, most), None);
            }
            drop(peer);
            prop_assert_eq!(read(&mut source, 1).unwrap(), b"");
            prop_assert_eq!(received, sent);
            source.close();
        }
    }
}
