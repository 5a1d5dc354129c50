//! How a blocking call waits: for a stream or for its turn, until it is stopped or its deadline.

use std::iter;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::fair_mutex::Waiting;
use super::poll_client::Interest;
use crate::control::{Entry, RunControl};
use crate::io::eventfd::{EventFd, Notify};
use crate::io::poll::timespec;
use crate::stats::SchedStatsError;

/// The longest time that a call can be allowed. More would leave the range of some system's clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When a call ends at the latest.
///
/// ```
/// use std::time::{Duration, Instant};
/// use scx_vsock::client::Deadline;
///
/// let now = Instant::now();
/// let deadline = Deadline::after(now, Duration::from_millis(50));
/// assert!(!deadline.has_passed(now) && deadline.has_passed(now + Duration::from_secs(1)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// `allowed` from `now` on; a year where it is more than that.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use scx_vsock::client::Deadline;
    ///
    /// let now = Instant::now();
    /// let deadline = Deadline::after(now, Duration::from_millis(50));
    /// assert_eq!(deadline.at(), now + Duration::from_millis(50));
    /// ```
    #[must_use]
    pub fn after(now: Instant, allowed: Duration) -> Self {
        let allowed = allowed.min(LONGEST);
        Self { at: now.checked_add(allowed).unwrap_or(now), allowed }
    }

    /// The moment.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use scx_vsock::client::Deadline;
    ///
    /// let now = Instant::now();
    /// let deadline = Deadline::after(now, Duration::from_millis(50));
    /// assert_eq!(deadline.at() - now, Duration::from_millis(50));
    /// ```
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Whether it is over.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use scx_vsock::client::Deadline;
    ///
    /// let now = Instant::now();
    /// let deadline = Deadline::after(now, Duration::from_millis(50));
    /// assert!(deadline.has_passed(deadline.at()));
    /// ```
    #[must_use]
    pub fn has_passed(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// What a call that was ended by it returns.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use scx_vsock::client::Deadline;
    ///
    /// let now = Instant::now();
    /// let deadline = Deadline::after(now, Duration::from_millis(50));
    /// assert_eq!(deadline.timed_out(), scx_vsock::SchedStatsError::TimedOut { after_ms: 50 });
    /// ```
    #[must_use]
    pub fn timed_out(&self) -> SchedStatsError {
        SchedStatsError::TimedOut { after_ms: u64::try_from(self.allowed.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// The waiting of one call.
#[derive(Debug)]
pub(super) struct Wait {
    deadline: Deadline,
    entry: Entry,
    /// What ends this call beside the run.
    beside: Option<Entry>,
}

impl Wait {
    /// The waiting of a call that begins now.
    pub(super) fn new(control: &RunControl, allowed: Duration) -> Result<Self, SchedStatsError> {
        let deadline = Deadline::after(Instant::now(), allowed);
        Ok(Self { deadline, entry: control.enter()?, beside: None })
    }

    /// The same, ended by another stop as well.
    pub(super) fn or_by(mut self, stop: Option<&RunControl>) -> Result<Self, SchedStatsError> {
        self.beside = stop.map(RunControl::enter).transpose()?;
        Ok(self)
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Whether the run was stopped since this call began.
    pub(super) fn stopped(&self) -> Result<(), SchedStatsError> {
        self.entry.stopped()?;
        self.beside.as_ref().map_or(Ok(()), Entry::stopped)
    }

    /// Waits until `stream` is ready, this call is stopped, or the deadline has passed; false if a stop came and `stream`
    /// had nothing until then.
    pub(super) fn sleep_beside(&self, stream: Option<(BorrowedFd<'_>, Interest)>) -> Result<bool, SchedStatsError> {
        self.sleep_for(stream.map(|(fd, interest)| PollFd::from_borrowed_fd(fd, interest.flags())))
    }

    fn sleep_for(&self, other: Option<PollFd<'_>>) -> Result<bool, SchedStatsError> {
        let entries = || iter::once(&self.entry).chain(&self.beside);
        let mut fds: heapless::Vec<_, 3> =
            entries().map(|entry| PollFd::new(entry.wake(), PollFlags::IN)).chain(other).collect();
        let timeout = timespec(self.deadline.at.saturating_duration_since(Instant::now()));
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(SchedStatsError::unreachable_by("waiting failed", error.into())),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut stopped = false;
        for (entry, _) in entries().zip(&fds).filter(|(_, fd)| is_ready(fd)) {
            entry.woken();
            stopped |= entry.stopped().is_err();
        }
        // The kernel looks at them in their order.
        Ok(!stopped || fds.last().is_some_and(is_ready))
    }
}

impl Waiting<EventFd> for Wait {
    fn sleep(&self, turn: &EventFd) -> Result<(), SchedStatsError> {
        self.sleep_for(Some(PollFd::new(turn, PollFlags::IN)))?;
        turn.clear();
        Ok(())
    }

    fn interrupted(&self) -> Result<(), SchedStatsError> {
        self.stopped()?;
        if self.deadline.has_passed(Instant::now()) { Err(self.deadline.timed_out()) } else { Ok(()) }
    }
}

impl Interest {
    pub(super) fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::ReadWrite => PollFlags::IN | PollFlags::OUT,
        }
    }
}
