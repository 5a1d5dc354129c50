//! What an event loop over many descriptors waits for.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{self, Errno};

/// How many descriptors the kernel can wait for whatever it is short of: it needs memory for more (ENOMEM), and lets a
/// process wait for no more than it may have (EINVAL), which may be fewer than it has.
const FEW: usize = 4;

/// How long these are waited for alone: nothing tells when the kernel can wait for all again.
const RETRY_DELAY: Duration = Duration::from_millis(100);

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

    /// Waits, and returns the events of each descriptor, in the order in which they were added. Where the kernel cannot wait
    /// for so many, those added first are waited for alone, and the others have no event, so that the loop goes on and
    /// tries again.
    ///
    /// # Errors
    ///
    /// If the kernel cannot wait. No peer and no shortage can be the cause.
    pub(crate) fn wait(mut self) -> io::Result<Vec<PollFlags>> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        match wait_for(&mut self.fds, left) {
            Err(Errno::NOMEM | Errno::INVAL) if self.fds.len() > FEW => {
                let few = self.fds.get_mut(..FEW).unwrap_or_default();
                wait_for(few, Some(left.map_or(RETRY_DELAY, |left| left.min(RETRY_DELAY))))
            }
            outcome => outcome,
        }?;
        Ok(self.fds.iter().map(PollFd::revents).collect())
    }
}

/// Waits for one of these descriptors, at most for this time.
fn wait_for(fds: &mut [PollFd<'_>], left: Option<Duration>) -> io::Result<()> {
    match poll(fds, left.map(timespec).as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Returns a time to wait, which the kernel rounds up to the resolution of its timers.
pub(crate) fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
}
