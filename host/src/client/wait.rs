//! How a blocking call waits: for a stream or for its own wake descriptor, until its deadline.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::conversation::Interest;
use crate::error::SchedStatsError;

/// The longest time that a call can be allowed. More would leave the range of some system's clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// When a call ends at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    allowed: Duration,
}

impl Deadline {
    /// `allowed` from `now` on; a year where it is more than that.
    #[must_use]
    pub fn after(now: Instant, allowed: Duration) -> Self {
        let allowed = allowed.min(LONGEST);
        Self { at: now.checked_add(allowed).unwrap_or(now), allowed }
    }

    /// The moment.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Whether it is over.
    #[must_use]
    pub fn has_passed(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// What a call that was ended by it returns.
    #[must_use]
    pub fn timed_out(&self) -> SchedStatsError {
        SchedStatsError::TimedOut { after_ms: u64::try_from(self.allowed.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// A descriptor that wakes one waiter.
#[derive(Debug)]
pub(super) struct Wake(OwnedFd);

impl Wake {
    fn new() -> Result<Self, SchedStatsError> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Self)
            .map_err(|error| SchedStatsError::unreachable(format!("no descriptor to wait with: {error}")))
    }

    /// Wakes the waiter, or its next wait.
    pub(super) fn wake(&self) {
        // The only failure is a count that is full, and then the waiter is woken already.
        let _full = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        // It fails where nothing was signalled, which is what it is for.
        let _empty = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// The waiting of one call.
#[derive(Debug)]
pub(super) struct Wait {
    deadline: Deadline,
    /// Made when somebody has to be able to wake this call.
    wake: OnceCell<Arc<Wake>>,
}

impl Wait {
    pub(super) fn new(deadline: Deadline) -> Self {
        Self { deadline, wake: OnceCell::new() }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The descriptor that wakes this call.
    pub(super) fn wake(&self) -> Result<&Arc<Wake>, SchedStatsError> {
        if self.wake.get().is_none() {
            let _set = self.wake.set(Arc::new(Wake::new()?));
        }
        self.wake.get().ok_or_else(|| SchedStatsError::unreachable("no descriptor to wait with"))
    }

    /// Whether something other than the answer ends this call: here, its deadline.
    pub(super) fn interrupted(&self) -> Result<(), SchedStatsError> {
        if self.deadline.has_passed(Instant::now()) { Err(self.deadline.timed_out()) } else { Ok(()) }
    }

    /// Waits until `stream` is ready, this call is woken, or the deadline has passed; what it was is for the caller to
    /// find out.
    pub(super) fn sleep(&self, stream: Option<(BorrowedFd<'_>, Interest)>) -> Result<(), SchedStatsError> {
        let wake = self.wake.get().map(|wake| PollFd::from_borrowed_fd(wake.0.as_fd(), PollFlags::IN));
        let stream = stream.map(|(fd, interest)| PollFd::from_borrowed_fd(fd, interest.flags()));
        let timeout = self.timeout();
        let polled = match (stream, wake) {
            (Some(stream), Some(wake)) => poll(&mut [stream, wake], Some(&timeout)),
            (Some(only), None) | (None, Some(only)) => poll(&mut [only], Some(&timeout)),
            (None, None) => poll(&mut [], Some(&timeout)),
        };
        match polled {
            Ok(_) | Err(Errno::INTR) => {
                if let Some(wake) = self.wake.get() {
                    wake.clear();
                }
                Ok(())
            }
            Err(error) => Err(SchedStatsError::unreachable(format!("waiting failed: {error}"))),
        }
    }

    /// What is left, rounded up by the kernel to what its timers can do.
    fn timeout(&self) -> Timespec {
        let left = self.deadline.at.saturating_duration_since(Instant::now());
        Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
    }
}

impl Interest {
    fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::ReadWrite => PollFlags::IN | PollFlags::OUT,
        }
    }
}
