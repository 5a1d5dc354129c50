//! A client that never waits, for event loops: the machine under every kind of client.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use rustix::process::{Pid, getpid};

use super::agent_message;
use super::decode::Decoded;
use super::session::{Answer, Outcome, Request, Session, StreamEvent};
use crate::endpoint::{Connect, Handshake};
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// What a [`PollClient`] waits for on its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read.
    Read,
    /// Bytes to read, or room to write.
    ReadWrite,
}

impl Interest {
    pub(super) fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::ReadWrite => PollFlags::IN | PollFlags::OUT,
        }
    }
}

/// A client of one agent that never waits: one request at a time, over sessions that it opens as needed.
///
/// A driver can run any number of them on one thread: [`start`](Self::start) a request, then call
/// [`on_ready`](Self::on_ready) at once, whenever [`fd`](Self::fd) is ready for [`interest`](Self::interest), and at
/// [`deadline`](Self::deadline), until it returns the outcome. [`SchedStatsClient`](crate::SchedStatsClient) is the driver
/// that blocks.
///
/// An answer is only ever read from the session that its request was written to: a session whose request was abandoned is
/// closed by the next [`start`](Self::start) or by drop. A process that was forked drops the sessions that it inherited,
/// and never reads or writes them.
///
/// ```no_run
/// use std::task::Poll;
/// use std::time::{Duration, Instant};
/// use scx_vsock::client::{PollClient, decode};
/// use scx_vsock::io::Deadline;
/// use scx_vsock::{Endpoint, StatsRequest};
///
/// # fn wait_for(fd: Option<std::os::fd::BorrowedFd<'_>>, deadline: Option<Deadline>) {}
/// let mut client = PollClient::new("unix:/run/agent.sock".parse::<Endpoint>()?);
/// client.start(StatsRequest::stats(&[]).line()?, Deadline::after(Instant::now(), Duration::from_secs(1)))?;
/// let stats = loop {
///     match client.on_ready(Instant::now(), decode::resp::<serde_json::Value>) {
///         Poll::Ready(outcome) => break outcome?,
///         Poll::Pending => wait_for(client.fd(), client.deadline()),
///     }
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PollClient {
    endpoint: Arc<dyn Connect>,
    traffic: Traffic,
    /// The version of the newest session's agent.
    agent_version: Option<String>,
    /// Of the newest answer.
    interval: Option<Duration>,
    active: Option<ActiveSession>,
    /// A stream that was shut down. To close it takes longer than all else that a call does once it is stopped, so that
    /// this is left to the next request, or the client's end.
    shut_down: Option<OwnedFd>,
}

/// Counters of a [`PollClient`] since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Sessions that were opened.
    pub sessions: u64,
    /// Bytes that were written.
    pub sent: u64,
    /// Bytes that were read.
    pub received: u64,
}

/// A session, its stream, and when the request on it ends.
struct ActiveSession {
    stream: OwnedFd,
    session: Session,
    deadline: Deadline,
    /// The target whose stats the request reads, if it reads any.
    target: Option<String>,
    /// The process that opened it.
    process: Pid,
}

impl fmt::Debug for PollClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollClient")
            .field("endpoint", &format_args!("{}", self.endpoint))
            .field("traffic", &self.traffic)
            .finish_non_exhaustive()
    }
}

impl PollClient {
    /// Creates a client without a session. Does no I/O.
    #[must_use]
    pub fn new(endpoint: impl Connect + 'static) -> Self {
        Self {
            endpoint: Arc::new(endpoint),
            traffic: Traffic::default(),
            agent_version: None,
            interval: None,
            active: None,
            shut_down: None,
        }
    }

    /// Returns the number of the newest session, counted from 1; 0 before the first. A scheduler's deltas are those since
    /// the same session's last read, so that another session means another baseline.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.traffic.sessions
    }

    /// Returns the time since the session's previous read of the same target, of the newest request that has ended: what
    /// its deltas span. `None` where they have a new baseline, and after a request that is no answered read of stats.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.interval
    }

    /// Returns the counters so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Returns the version of the newest session's agent, once its hello was read.
    #[must_use]
    pub fn agent_version(&self) -> Option<&str> {
        self.active.as_ref().and_then(|active| active.session.agent_version()).or(self.agent_version.as_deref())
    }

    /// Begins a request, on the open session if that is idle and has not ended, else on a new one. A request that has no
    /// outcome yet is abandoned.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::AgentUnreachable`] if the agent cannot be connected; [`SchedStatsError::NoScheduler`] if that is
    /// a scheduler without an agent; [`SchedStatsError::RequestTooLarge`] if the session's agent has a smaller buffer.
    pub fn start(&mut self, line: RequestLine, deadline: Deadline) -> Result<(), SchedStatsError> {
        self.begin(Request::Line(line), deadline)
    }

    /// Begins to open a session without a request, unless one is open. The outcome is there once the agent's hello was
    /// read; [`decode::opened`](super::decode::opened) is the function for it. A request that has no outcome yet is
    /// abandoned.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn open(&mut self, deadline: Deadline) -> Result<(), SchedStatsError> {
        self.begin(Request::Open, deadline)
    }

    pub(super) fn begin(&mut self, request: Request, deadline: Deadline) -> Result<(), SchedStatsError> {
        let target = request.target().map(str::to_owned);
        self.shut_down = None;
        self.active = match self.active.take().filter(ActiveSession::is_reusable) {
            Some(mut active) => {
                let checked = active.session.check_request(&request);
                if checked.is_ok() {
                    active.session.request(request);
                    (active.deadline, active.target) = (deadline, target);
                }
                self.active = Some(active);
                return checked;
            }
            None => {
                let handshake = self.endpoint.handshake();
                let stream = self.endpoint.connect().map_err(|error| self.connect_error(handshake, error))?;
                self.traffic.sessions += 1;
                self.agent_version = None;
                let session = Session::open(handshake, request);
                Some(ActiveSession { stream, session, deadline, target, process: getpid() })
            }
        };
        Ok(())
    }

    /// Returns the stream to wait on, or `None` while no request is pending.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pending().map(|active| active.stream.as_fd())
    }

    /// Returns what to wait for on the stream.
    #[must_use]
    pub fn interest(&self) -> Interest {
        match self.pending() {
            Some(active) if !active.session.unsent().is_empty() => Interest::ReadWrite,
            _ => Interest::Read,
        }
    }

    /// Whether the agent of the open session has sent its hello, or there is no agent to send one.
    pub(super) fn is_greeted(&self) -> bool {
        self.endpoint.handshake() == Handshake::Plain
            || self.active.as_ref().is_some_and(|active| active.session.is_greeted())
    }

    /// Returns when the request ends at the latest, or `None` while no request is pending.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.pending().map(|active| active.deadline)
    }

    /// Adds the stream and the deadline of a pending request to `set`.
    pub(crate) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        if let Some(active) = self.pending() {
            set.add(&active.stream, self.interest().flags());
            set.until(active.deadline.at());
        }
    }

    /// Does what can be done without waiting. `decode` is a function of [`decode`](super::decode); it is called at most
    /// once, with the complete answer.
    ///
    /// A complete answer comes before the session's end, and that before the deadline. Returns `Pending` while no request
    /// is pending.
    ///
    /// # Errors
    ///
    /// Why the request has no answer. After the deadline that is how far the request came:
    /// [`SchedStatsError::AgentUnreachable`] without the agent's hello, [`SchedStatsError::NoScheduler`] if the agent was
    /// to wait for a scheduler, [`SchedStatsError::TimedOut`] otherwise.
    pub fn on_ready<T>(
        &mut self,
        now: Instant,
        decode: impl FnOnce(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Poll<Result<T, SchedStatsError>> {
        let Some(active) = self.active.as_mut().filter(|active| active.session.is_pending()) else {
            return Poll::Pending;
        };
        self.interval = None;
        let outcome = match active.transfer(&mut self.traffic) {
            Some(outcome) => outcome.and_then(|()| {
                self.interval = active.target.take().and_then(|target| active.session.record_read(&target, now));
                decode(active.session.answer())
            }),
            None if active.deadline.has_passed(now) => Err(active.deadline_error(&*self.endpoint)),
            None => return Poll::Pending,
        };
        active.session.finish();
        let keep = match &outcome {
            Ok(decoded) => decoded.errno == 0,
            Err(error) => error.keeps_session(),
        };
        if !keep || !active.session.is_idle() {
            self.agent_version = active.session.agent_version().map(str::to_owned);
            self.active = None;
        }
        Poll::Ready(outcome.map(|decoded| decoded.value).map_err(|error| self.with_endpoint(error)))
    }

    /// Abandons the pending request, and closes its session.
    pub fn abandon(&mut self) {
        drop(self.take_pending());
    }

    pub(super) fn endpoint(&self) -> &Arc<dyn Connect> {
        &self.endpoint
    }

    /// Whether a stop of the run comes before this outcome, as it does before the session's end and the deadline.
    pub(super) fn yields_to_stops(&self, error: &SchedStatsError) -> bool {
        match error {
            SchedStatsError::AgentUnreachable { .. } | SchedStatsError::TimedOut { .. } => true,
            // From an agent this is an answer, which keeps the session; the deadline closes it.
            SchedStatsError::NoScheduler { .. } => self.active.is_none(),
            // From an agent this is an answer; without one it is the stream's end.
            SchedStatsError::SchedulerGone { .. } => self.endpoint.handshake() == Handshake::Plain,
            _ => false,
        }
    }

    /// Abandons the pending request of a call whose wait ended with this error. Returns the call's error: at the deadline,
    /// how far the request came.
    pub(super) fn give_up(&mut self, error: SchedStatsError) -> SchedStatsError {
        let error = match (error, self.pending()) {
            (SchedStatsError::TimedOut { .. }, Some(active)) => {
                self.with_endpoint(active.deadline_error(&*self.endpoint))
            }
            (error, _) => error,
        };
        self.end_session();
        error
    }

    /// Abandons the pending request as [`abandon`](Self::abandon) does. The agent sees the same; the descriptor is closed
    /// later where the kernel can end the stream without that.
    fn end_session(&mut self) {
        if let Some(active) = self.take_pending() {
            self.shut_down = active.shut_down();
        }
    }

    fn take_pending(&mut self) -> Option<ActiveSession> {
        self.active.take_if(|active| active.session.is_pending())
    }

    fn pending(&self) -> Option<&ActiveSession> {
        self.active.as_ref().filter(|active| active.session.is_pending())
    }

    fn connect_error(&self, handshake: Handshake, error: io::Error) -> SchedStatsError {
        match handshake {
            Handshake::Plain => SchedStatsError::NoScheduler {
                reason: format!("{}: {}", self.endpoint, agent_message::stats_socket_error(&error)),
            },
            Handshake::Hello | Handshake::Connect { .. } => {
                SchedStatsError::unreachable_by(self.endpoint.to_string(), error)
            }
        }
    }

    fn with_endpoint(&self, error: SchedStatsError) -> SchedStatsError {
        match error {
            SchedStatsError::AgentUnreachable { reason, source } => {
                let missing = self.endpoint.missing_on_host().map(|missing| format!("; {missing}")).unwrap_or_default();
                SchedStatsError::AgentUnreachable { reason: format!("{}: {reason}{missing}", self.endpoint), source }
            }
            // Nothing has shown yet that a scheduler is at this address.
            SchedStatsError::MalformedResponse { reason } if self.endpoint.handshake() == Handshake::Plain => {
                SchedStatsError::MalformedResponse { reason: format!("{}: {reason}", self.endpoint) }
            }
            other => other,
        }
    }
}

impl ActiveSession {
    /// Whether the session is this process's own, idle and silent. On an idle session an agent only sends why it ends.
    fn is_reusable(&self) -> bool {
        !self.is_inherited()
            && self.session.is_idle()
            && matches!(retry_on_intr(|| recv(&self.stream, &mut [0; 1], RecvFlags::DONTWAIT)), Err(Errno::AGAIN))
    }

    /// Ends the session. Returns its stream if it was shut down; otherwise it is closed. One that is still being connected is
    /// closed, and so is another process's.
    fn shut_down(self) -> Option<OwnedFd> {
        let is_connected = self.session.unsent().is_empty() && !self.is_inherited();
        (is_connected && shutdown(&self.stream, Shutdown::Both).is_ok()).then_some(self.stream)
    }

    /// Whether this process was forked from the one that opened the session.
    fn is_inherited(&self) -> bool {
        getpid() != self.process
    }

    /// Writes, then reads, as far as that goes without waiting.
    fn transfer(&mut self, traffic: &mut Traffic) -> Option<Outcome> {
        if self.is_inherited() {
            let reason = "this process was forked during the request, whose answer is the parent's";
            return Some(Err(SchedStatsError::unreachable(reason)));
        }
        if let Some(outcome) = self.session.immediate_outcome() {
            return Some(outcome);
        }
        while !self.session.unsent().is_empty() {
            let sent =
                retry_on_intr(|| send(&self.stream, self.session.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT));
            match sent {
                Ok(count) => {
                    traffic.sent += count as u64;
                    self.session.on_event(StreamEvent::Wrote(count));
                }
                Err(Errno::AGAIN) => break,
                // A read would fail in the same way, and not because the stream has ended.
                Err(Errno::NOTCONN) if self.is_connecting() => return None,
                Err(errno) => {
                    self.session.on_event(StreamEvent::WriteFailed(self.take_error().unwrap_or(errno)));
                    break;
                }
            }
            if self.session.unsent().is_empty() {
                // No answer can be there yet.
                return None;
            }
        }
        self.read(traffic)
    }

    fn read(&mut self, traffic: &mut Traffic) -> Option<Outcome> {
        loop {
            let event =
                match retry_on_intr(|| recv(&self.stream, spare_capacity(self.session.room()), RecvFlags::DONTWAIT)) {
                    Ok((0, _)) => StreamEvent::Ended(None),
                    Ok((count, _)) => {
                        traffic.received += count as u64;
                        StreamEvent::Received
                    }
                    Err(Errno::AGAIN) => return None,
                    Err(Errno::NOTCONN) if self.is_connecting() => return None,
                    Err(errno) => StreamEvent::Ended(Some(self.take_error().unwrap_or(errno))),
                };
            if let Some(outcome) = self.session.on_event(event) {
                return Some(outcome);
            }
        }
    }

    /// Whether a stream that is not connected can still become so. A failed write took the error by which poll(2) tells a
    /// refused stream from one that is being connected.
    fn is_connecting(&self) -> bool {
        if self.session.write_failed() {
            return false;
        }
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let [fd] = fds;
        polled.is_ok() && !fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Returns what the request ends with at its deadline.
    fn deadline_error(&self, endpoint: &dyn Connect) -> SchedStatsError {
        self.session.deadline_error(self.deadline.allowed(), endpoint.progress(self.stream.as_fd()))
    }

    /// Returns the stream's error, which the kernel reports once.
    fn take_error(&self) -> Option<Errno> {
        sockopt::socket_error(&self.stream).ok()?.err()
    }
}

#[cfg(test)]
mod tests;
