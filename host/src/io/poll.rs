//! What one turn of a loop over many descriptors waits for.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};

/// Descriptors and a moment, whichever comes first. Made anew for each turn.
#[derive(Debug, Default)]
pub(crate) struct PollSet<'a> {
    fds: Vec<PollFd<'a>>,
    until: Option<Instant>,
}

impl<'a> PollSet<'a> {
    /// Waits for these events on a descriptor, and always for its end.
    pub(crate) fn add(&mut self, fd: &'a impl AsFd, events: PollFlags) {
        self.fds.push(PollFd::new(fd, events));
    }

    /// Waits no longer than to this moment.
    pub(crate) fn until(&mut self, moment: Instant) {
        self.until = Some(self.until.map_or(moment, |earlier| earlier.min(moment)));
    }

    /// Waits; gives what happened on each descriptor, in the order in which they were added.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait.
    pub(crate) fn wait(mut self) -> io::Result<Vec<PollFlags>> {
        let left = self.until.map(|until| timespec(until.saturating_duration_since(Instant::now())));
        match poll(&mut self.fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(self.fds.iter().map(PollFd::revents).collect()),
            Err(errno) => Err(errno),
        }
    }
}

/// A time to wait, rounded up by the kernel to what its timers can do.
pub(crate) fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
}
