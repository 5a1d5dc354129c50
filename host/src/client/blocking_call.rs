//! What ends a blocking call, and how it waits: for its stream or for the session, until its deadline or a stop.

use std::iter;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::fair_mutex::Block;
use crate::control::{InFlightCall, RunControl};
use crate::io::Deadline;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::poll::timespec;
use crate::stats::SchedStatsError;

/// One call of a blocking client.
#[derive(Debug)]
pub(super) struct BlockingCall {
    deadline: Deadline,
    in_flight: InFlightCall,
    /// The same call in the run of its caller, where it has one besides the client's.
    in_callers_run: Option<InFlightCall>,
}

impl BlockingCall {
    /// Begins a call now that is allowed this long.
    ///
    /// # Errors
    ///
    /// If the run is frozen or cancelled.
    pub(super) fn begin(control: &RunControl, allowed: Duration) -> Result<Self, SchedStatsError> {
        let deadline = Deadline::after(Instant::now(), allowed);
        Ok(Self { deadline, in_flight: control.begin_call()?, in_callers_run: None })
    }

    /// Lets another run stop the call as well.
    pub(super) fn also_in(mut self, run: Option<&RunControl>) -> Result<Self, SchedStatsError> {
        self.in_callers_run = run.map(RunControl::begin_call).transpose()?;
        Ok(self)
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Checks that no run was stopped since this call began.
    pub(super) fn check_stops(&self) -> Result<(), SchedStatsError> {
        self.in_runs().try_for_each(InFlightCall::check)
    }

    /// Waits until `stream` is ready, the call is stopped, or the deadline has passed. Returns false if the call was
    /// stopped and `stream` was not ready by then.
    pub(super) fn wait_for(&self, stream: Option<(BorrowedFd<'_>, PollFlags)>) -> Result<bool, SchedStatsError> {
        self.poll(stream.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)))
    }

    fn in_runs(&self) -> impl Iterator<Item = &InFlightCall> {
        iter::once(&self.in_flight).chain(&self.in_callers_run)
    }

    fn poll(&self, other: Option<PollFd<'_>>) -> Result<bool, SchedStatsError> {
        let mut fds: heapless::Vec<_, 3> =
            self.in_runs().map(|call| PollFd::new(call.signal(), PollFlags::IN)).chain(other).collect();
        match poll(&mut fds, Some(&timespec(self.deadline.left(Instant::now())))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(SchedStatsError::unreachable(format!("cannot wait for the stream: {error}"))),
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let mut stopped = false;
        for (call, _) in self.in_runs().zip(&fds).filter(|(_, fd)| is_ready(fd)) {
            call.on_signal();
            stopped |= call.check().is_err();
        }
        // The kernel polls them in order, so a stream that was ready before the stop is seen.
        Ok(!stopped || fds.last().is_some_and(is_ready))
    }
}

impl Block<EventFd> for BlockingCall {
    fn block(&self, unlocked: &EventFd) -> Result<(), SchedStatsError> {
        self.poll(Some(PollFd::new(unlocked, PollFlags::IN)))?;
        unlocked.clear();
        Ok(())
    }

    fn check(&self) -> Result<(), SchedStatsError> {
        self.check_stops()?;
        if self.deadline.has_passed(Instant::now()) {
            Err(SchedStatsError::timed_out(self.deadline.allowed()))
        } else {
            Ok(())
        }
    }
}
