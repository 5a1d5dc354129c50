//! What an event loop over many descriptors waits for.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};

/// Descriptors and a moment, whichever comes first. Built for each iteration of the loop.
#[derive(Debug, Default)]
pub(crate) struct PollSet<'a> {
    fds: Vec<PollFd<'a>>,
    until: Option<Instant>,
}

impl<'a> PollSet<'a> {
    /// Adds a descriptor and the events to wait for; its end is always one.
    pub(crate) fn add(&mut self, fd: &'a impl AsFd, events: PollFlags) {
        self.fds.push(PollFd::new(fd, events));
    }

    /// Limits the wait to this moment.
    pub(crate) fn until(&mut self, moment: Instant) {
        self.until = Some(self.until.map_or(moment, |earlier| earlier.min(moment)));
    }

    /// Waits, and returns the events of each descriptor, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// If the kernel cannot wait.
    pub(crate) fn wait(mut self) -> io::Result<Vec<PollFlags>> {
        let left = self.until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut self.fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(self.fds.iter().map(PollFd::revents).collect()),
            Err(errno) => Err(errno),
        }
    }
}

/// Returns a time to wait, which the kernel rounds up to the resolution of its timers.
pub(crate) fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
}
