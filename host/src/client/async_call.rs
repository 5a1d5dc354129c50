//! What ends a call of the async client, and how its task waits: for its stream or for the session, until its deadline or a
//! stop.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::unix::AsyncFd;
use tokio::time::timeout_at;

use super::poll_client::Interest;
use crate::control::{InFlightCall, RunControl};
use crate::io::Deadline;
use crate::stats::SchedStatsError;

/// One call of the async client.
pub(super) struct AsyncCall {
    deadline: Deadline,
    in_flight: InFlightCall,
    /// A descriptor of its own for the signal of a stop, which other calls of the same run watch as well.
    signal: AsyncFd<OwnedFd>,
}

impl AsyncCall {
    /// Begins a call now that is allowed this long.
    ///
    /// # Errors
    ///
    /// If the run is frozen or cancelled, or no descriptor is left.
    pub(super) fn begin(control: &RunControl, allowed: Duration) -> Result<Self, SchedStatsError> {
        let deadline = Deadline::after(Instant::now(), allowed);
        let in_flight = control.begin_call()?;
        let signal = in_flight.signal().as_fd().try_clone_to_owned().map_err(SchedStatsError::no_descriptor)?;
        let signal = watch(signal, tokio::io::Interest::READABLE)?;
        Ok(Self { deadline, in_flight, signal })
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Checks that the run was not stopped since this call began.
    pub(super) fn check_stops(&self) -> Result<(), SchedStatsError> {
        self.in_flight.check()
    }

    /// Checks that nothing ends the call yet.
    pub(super) fn check(&self) -> Result<(), SchedStatsError> {
        self.check_stops()?;
        if self.deadline.has_passed(Instant::now()) {
            Err(SchedStatsError::timed_out(self.deadline.allowed()))
        } else {
            Ok(())
        }
    }

    /// Waits until a stream is ready, the call is stopped, or the deadline has passed.
    pub(super) async fn wait_for(&self, stream: BorrowedFd<'_>, interest: Interest) -> Result<(), SchedStatsError> {
        let interest = match interest {
            Interest::Read => tokio::io::Interest::READABLE,
            Interest::ReadWrite => tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE,
        };
        // Watched for one wait only: a session may close its stream between two waits.
        let stream = watch(stream, interest)?;
        match self.first(stream.ready(interest)).await {
            Some(Err(error)) => Err(cannot_wait(error)),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// Returns what `event` returns, unless the call is stopped or its deadline passes first.
    pub(super) async fn first<T>(&self, event: impl Future<Output = T>) -> Option<T> {
        let (mut event, mut stopped) = (pin!(event), pin!(self.stopped()));
        let either = poll_fn(|context| match event.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => stopped.as_mut().poll(context).map(|()| None),
        });
        timeout_at(self.deadline.at().into(), either).await.unwrap_or(None)
    }

    /// Returns once the run was stopped. Also returns where the runtime is ending, which ends the call.
    async fn stopped(&self) {
        while let Ok(mut ready) = self.signal.readable().await {
            self.in_flight.on_signal();
            if self.check_stops().is_err() {
                return;
            }
            // It was for calls before this one.
            ready.clear_ready();
        }
    }
}

/// A descriptor that stays open and the same while this lives.
trait Open: AsRawFd {}

impl Open for OwnedFd {}
impl Open for BorrowedFd<'_> {}

/// Watches a descriptor until what this returns is dropped.
fn watch<F: Open>(fd: F, interest: tokio::io::Interest) -> Result<AsyncFd<F>, SchedStatsError> {
    // SAFETY: what is `Open` stays open and the same until the `AsyncFd` that holds it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| cannot_wait(error.into()))
}

fn cannot_wait(error: io::Error) -> SchedStatsError {
    SchedStatsError::unreachable_by("cannot wait for the stream", error)
}
