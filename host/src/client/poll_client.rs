//! Talking to one agent without ever waiting: the machine under every kind of client.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use super::agent_message;
use super::decode::Decoded;
use super::session::{Answer, Event, Outcome, Session};
use super::wait::Deadline;
use crate::endpoint::{Connect, Greeting};
use crate::io::poll::PollSet;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// What a conversation waits for on its stream.
///
/// ```
/// # use std::time::{Duration, Instant};
/// # use scx_vsock::client::{PollClient, Deadline, Interest};
/// # use scx_vsock::{Endpoint, StatsRequest};
/// let mut conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
/// assert_eq!(conversation.interest(), Interest::Read);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read.
    Read,
    /// Bytes to read, or room to write.
    ReadWrite,
}

/// A conversation with one agent: one request at a time, over sessions that it opens as it needs them.
///
/// It does I/O but never waits, so a driver can run any number of them on one thread: [`start`](Self::start) a request,
/// then call [`on_ready`](Self::on_ready) now, whenever [`fd`](Self::fd) is ready for [`interest`](Self::interest), and
/// at [`deadline`](Self::deadline), until it gives the outcome. [`SchedStatsClient`](crate::SchedStatsClient) is the
/// driver that blocks.
///
/// An answer is only ever read from the session that its request was written to: starting another request, or dropping
/// the conversation, closes a session whose request was abandoned.
///
/// ```no_run
/// use std::task::Poll;
/// use std::time::{Duration, Instant};
/// use scx_vsock::client::{PollClient, Deadline, decode};
/// use scx_vsock::{Endpoint, StatsRequest};
///
/// # fn wait_for(fd: Option<std::os::fd::BorrowedFd<'_>>, deadline: Option<Deadline>) {}
/// let mut conversation = PollClient::new("unix:/run/agent.sock".parse::<Endpoint>()?);
/// conversation.start(StatsRequest::stats(&[]).line()?, Deadline::after(Instant::now(), Duration::from_secs(1)))?;
/// let stats = loop {
///     match conversation.on_ready(Instant::now(), decode::resp::<serde_json::Value>) {
///         Poll::Ready(outcome) => break outcome?,
///         Poll::Pending => wait_for(conversation.fd(), conversation.deadline()),
///     }
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PollClient {
    connect: Arc<dyn Connect>,
    traffic: Traffic,
    /// The version of the newest session's agent.
    agent: Option<String>,
    link: Option<Link>,
}

/// What a conversation has moved since it began.
///
/// ```
/// let traffic = scx_vsock::client::Traffic::default();
/// assert_eq!((traffic.sessions, traffic.sent, traffic.received), (0, 0, 0));
/// ```
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
struct Link {
    stream: OwnedFd,
    session: Session,
    deadline: Deadline,
}

impl fmt::Debug for PollClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollClient")
            .field("place", &format_args!("{}", self.connect))
            .field("traffic", &self.traffic)
            .finish_non_exhaustive()
    }
}

impl PollClient {
    /// A conversation that has no session yet. Does no I/O.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn new(connect: impl Connect + 'static) -> Self {
        Self { connect: Arc::new(connect), traffic: Traffic::default(), agent: None, link: None }
    }

    /// The number of the newest session, counted from 1; 0 before the first. A scheduler's deltas span the time since
    /// the same session's last read, so another number means another baseline.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// assert_eq!(conversation.session(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn session(&self) -> u64 {
        self.traffic.sessions
    }

    /// What was moved so far.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, client::{PollClient, Traffic}};
    /// let conversation = PollClient::new("unix:/run/agent.sock".parse::<Endpoint>()?);
    /// assert_eq!(conversation.traffic(), Traffic::default());
    /// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
    /// ```
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The version of the newest session's agent, once its hello was read and understood.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, client::PollClient};
    /// let conversation = PollClient::new("unix:/run/agent.sock".parse::<Endpoint>()?);
    /// assert_eq!(conversation.agent(), None);
    /// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
    /// ```
    #[must_use]
    pub fn agent(&self) -> Option<&str> {
        self.link.as_ref().and_then(|link| link.session.agent()).or(self.agent.as_deref())
    }

    /// Begins a request, on the open session where it is still good, else on a new one. A request that has no outcome
    /// yet is abandoned.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let mut conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// let line = StatsRequest::stats(&[]).line()?;
    /// let started = conversation.start(line, Deadline::after(Instant::now(), Duration::from_secs(1)));
    /// assert_eq!(started.unwrap_err().kind(), "agent_unreachable");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::AgentUnreachable`] where it is known at once that there is no way to the agent;
    /// [`SchedStatsError::NoScheduler`] where there should be a scheduler without an agent;
    /// [`SchedStatsError::RequestTooLarge`] where this session's agent has a smaller buffer.
    pub fn start(&mut self, line: RequestLine, deadline: Deadline) -> Result<(), SchedStatsError> {
        self.link = match self.link.take().filter(Link::is_good) {
            Some(mut link) => {
                let admitted = link.session.admits(&line);
                if admitted.is_ok() {
                    link.session.ask(line);
                    link.deadline = deadline;
                }
                self.link = Some(link);
                return admitted;
            }
            None => {
                let greeting = self.connect.greeting();
                let stream = self.connect.connect().map_err(|error| self.no_way(greeting, error))?;
                self.traffic.sessions += 1;
                self.agent = None;
                Some(Link { stream, session: Session::open(greeting, line), deadline })
            }
        };
        Ok(())
    }

    /// The stream to wait on; none while nothing is asked.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// assert!(conversation.fd().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.asked().map(|link| link.stream.as_fd())
    }

    /// What to wait for on it.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// assert_eq!(conversation.interest(), Interest::Read);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn interest(&self) -> Interest {
        match self.asked() {
            Some(link) if !link.session.unsent().is_empty() => Interest::ReadWrite,
            _ => Interest::Read,
        }
    }

    /// When the request ends at the latest; none while nothing is asked.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// assert_eq!(conversation.deadline(), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.asked().map(|link| link.deadline)
    }

    /// Waits in `set` for what it waits for, if something is asked.
    pub(crate) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        if let Some(link) = self.asked() {
            set.add(&link.stream, self.interest().flags());
            set.until(link.deadline.at());
        }
    }

    /// Does what can be done without waiting. `decode` is one of [`answer`](super::answer)'s functions; it is called at
    /// most once, with the complete answer.
    ///
    /// A complete answer comes before the session's end, and that before the deadline. `Pending` while nothing is
    /// asked.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let mut conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// let nothing = conversation.on_ready(Instant::now(), scx_vsock::client::decode::raw);
    /// assert!(nothing.is_pending(), "nothing is asked");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Why the request has no answer.
    pub fn on_ready<T>(
        &mut self,
        now: Instant,
        decode: impl FnOnce(Answer<'_>) -> Result<Decoded<T>, SchedStatsError>,
    ) -> Poll<Result<T, SchedStatsError>> {
        let Some(link) = self.link.as_mut().filter(|link| link.session.is_asked()) else { return Poll::Pending };
        let outcome = match link.turn(&mut self.traffic) {
            Some(outcome) => outcome.and_then(|()| decode(link.session.answer())),
            None if link.deadline.has_passed(now) => Err(link.deadline.timed_out()),
            None => return Poll::Pending,
        };
        link.session.rest();
        let keep = match &outcome {
            Ok(decoded) => decoded.errno == 0,
            Err(error) => error.keeps_session(),
        };
        if !keep || !link.session.is_idle() {
            self.agent = link.session.agent().map(str::to_owned);
            self.link = None;
        }
        Poll::Ready(outcome.map(|decoded| decoded.value).map_err(|error| self.at_this_place(error)))
    }

    /// Gives up the request that has no outcome yet, and its session with it.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use scx_vsock::client::{PollClient, Deadline, Interest};
    /// # use scx_vsock::{Endpoint, StatsRequest};
    /// let mut conversation = PollClient::new("unix:/run/no-agent.sock".parse::<Endpoint>()?);
    /// conversation.abandon();
    /// assert!(conversation.fd().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn abandon(&mut self) {
        if self.asked().is_some() {
            self.link = None;
        }
    }

    /// Whether a stop of the run comes before this outcome: the session's end and the deadline are no answers.
    pub(super) fn yields_to_stops(&self, error: &SchedStatsError) -> bool {
        match error {
            SchedStatsError::AgentUnreachable { .. } | SchedStatsError::TimedOut { .. } => true,
            // An agent says so; without one it is the stream's end.
            SchedStatsError::SchedulerGone { .. } => self.connect.greeting() == Greeting::Plain,
            _ => false,
        }
    }

    fn asked(&self) -> Option<&Link> {
        self.link.as_ref().filter(|link| link.session.is_asked())
    }

    fn no_way(&self, greeting: Greeting, error: io::Error) -> SchedStatsError {
        match greeting {
            Greeting::Plain => SchedStatsError::NoScheduler {
                reason: format!("{}: {}", self.connect, agent_message::no_socket(&error)),
            },
            Greeting::Hello | Greeting::Dial { .. } => {
                SchedStatsError::unreachable_by(format!("{}: cannot connect", self.connect), error)
            }
        }
    }

    fn at_this_place(&self, error: SchedStatsError) -> SchedStatsError {
        match error {
            SchedStatsError::AgentUnreachable { reason, source } => {
                SchedStatsError::AgentUnreachable { reason: format!("{}: {reason}", self.connect), source }
            }
            other => other,
        }
    }
}

impl Link {
    /// Whether the session is idle and its stream silent. An agent speaks on an idle session only to end it.
    fn is_good(&self) -> bool {
        self.session.is_idle()
            && matches!(retried(|| recv(&self.stream, &mut [0; 1], RecvFlags::DONTWAIT)), Err(Errno::AGAIN))
    }

    /// Writes, then reads, as far as that goes without waiting.
    fn turn(&mut self, traffic: &mut Traffic) -> Option<Outcome> {
        if let Some(outcome) = self.session.known_outcome() {
            return Some(outcome);
        }
        while !self.session.unsent().is_empty() {
            let sent = retried(|| send(&self.stream, self.session.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT));
            match sent {
                Ok(count) => {
                    traffic.sent += count as u64;
                    self.session.process(Event::Wrote(count));
                }
                Err(Errno::AGAIN) => break,
                // Reading would say the same, which is no end.
                Err(Errno::NOTCONN) if self.is_connecting() => return None,
                Err(errno) => {
                    self.session.process(Event::WriteFailed(self.error().unwrap_or(errno)));
                    break;
                }
            }
            if self.session.unsent().is_empty() {
                // No agent has answered yet what it was sent a moment ago.
                return None;
            }
        }
        self.read(traffic)
    }

    fn read(&mut self, traffic: &mut Traffic) -> Option<Outcome> {
        loop {
            let event = match retried(|| recv(&self.stream, spare_capacity(self.session.spare()), RecvFlags::DONTWAIT))
            {
                Ok((0, _)) => Event::Ended(None),
                Ok((count, _)) => {
                    traffic.received += count as u64;
                    Event::Received
                }
                Err(Errno::AGAIN) => return None,
                Err(errno) => Event::Ended(Some(errno)),
            };
            if let Some(outcome) = self.session.process(event) {
                return Some(outcome);
            }
        }
    }

    /// Whether a stream that is not connected still may become so.
    fn is_connecting(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
        let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let [fd] = fds;
        polled.is_ok() && !fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// What the stream failed with, which the kernel tells once.
    fn error(&self) -> Option<Errno> {
        sockopt::socket_error(&self.stream).ok()?.err()
    }
}

fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
