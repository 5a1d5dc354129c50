//! Event descriptors that a front end sent.
//!
//! Both ends share such a descriptor, its flags and its counter included: whatever this end sets or checks, a hostile
//! front end may change a moment later. So no call here relies on `O_NONBLOCK` alone.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, readlink};
use rustix::io::{Errno, ReadWriteFlags, preadv2, read, write};

/// What the kernel calls an event descriptor.
const EVENT: &[u8] = b"anon_inode:[eventfd]";

/// The offset of a file that has none.
const NO_OFFSET: u64 = u64::MAX;

/// An event descriptor.
#[derive(Debug)]
pub(super) struct FrontEndEvent {
    fd: OwnedFd,
    /// It had no `O_NONBLOCK` when it came.
    blocks: bool,
}

impl FrontEndEvent {
    /// Returns the event of a descriptor, or `None` if it is something else, such as a pipe, whose reader and writer could
    /// be made to wait for ever.
    ///
    /// # Errors
    ///
    /// The kernel's, if it does not say what the descriptor is: `/proc` is not mounted.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Option<Self>> {
        let link = readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if link.as_bytes() != EVENT {
            return Ok(None);
        }
        let blocks = !fcntl_getfl(&fd)?.contains(OFlags::NONBLOCK);
        Ok(Some(Self { fd, blocks }))
    }

    /// Sets the counter to 0, without waiting. Returns what it was: how often the front end has signalled.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn clear(&self) -> io::Result<u64> {
        let mut counter = [0; 8];
        match preadv2(&self.fd, &mut [IoSliceMut::new(&mut counter)], NO_OFFSET, ReadWriteFlags::NOWAIT) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            // Kernels before 5.8.
            Err(Errno::OPNOTSUPP) if self.is_ready(PollFlags::IN) => drop(read(&self.fd, &mut counter)?),
            Err(Errno::OPNOTSUPP) => return Ok(0),
            Err(errno) => return Err(errno.into()),
        }
        Ok(u64::from_ne_bytes(counter))
    }

    /// Adds 1 to the counter, unless it is full: then it is signalled already. Waits only if the front end fills the
    /// counter at this moment, until somebody [clears](Self::clear) it.
    pub(super) fn signal(&self) {
        if !self.blocks || self.is_ready(PollFlags::OUT) {
            let _full = write(&self.fd, &1u64.to_ne_bytes());
        }
    }

    fn is_ready(&self, events: PollFlags) -> bool {
        poll(&mut [PollFd::new(&self.fd, events)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for FrontEndEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::pipe;
    use std::fs::File;

    /// A blocking descriptor with this counter.
    fn event(counter: u64) -> (OwnedFd, FrontEndEvent) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        write(&fd, &counter.to_ne_bytes()).unwrap();
        let event = FrontEndEvent::new(fd.try_clone().unwrap()).unwrap().unwrap();
        (fd, event)
    }

    fn counter(fd: &OwnedFd) -> u64 {
        let mut counter = [0; 8];
        read(fd, &mut counter).unwrap();
        u64::from_ne_bytes(counter)
    }

    #[test]
    fn a_full_counter_is_signalled_already() {
        let (fd, event) = event(u64::MAX - 1);
        event.signal();
        assert_eq!(counter(&fd), u64::MAX - 1);
        event.signal();
        event.signal();
        assert_eq!(counter(&fd), 2);
    }

    #[test]
    fn an_empty_counter_is_cleared_without_waiting() {
        let (_fd, event) = event(7);
        assert_eq!(event.clear().unwrap(), 7);
        assert_eq!(event.clear().unwrap(), 0);
    }

    #[test]
    fn other_descriptors_are_no_events() {
        let (reader, writer) = pipe().unwrap();
        for fd in [reader, writer, File::open("/dev/null").unwrap().into(), tempfile::tempfile().unwrap().into()] {
            assert!(FrontEndEvent::new(fd).unwrap().is_none());
        }
    }
}
