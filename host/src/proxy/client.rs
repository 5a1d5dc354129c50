//! A client of the proxy and its session with the guest.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::reply;
use super::request_reader::{NextRequest, RequestReader};
use crate::client::decode::{self, Decoded};
use crate::client::{Answer, PollClient};
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// The most reads for one event, so that a line without an end keeps nobody waiting.
const MAX_READS: usize = 8;

/// Called with each reason why the guest did not answer a request.
pub(super) type OnFailure = Box<dyn FnMut(&SchedStatsError) + Send>;

/// Whether a client stays connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// It waits for what [`ProxyClient::wait_in`] adds.
    Open,
    /// It is to be closed.
    Closed,
}

/// A client of the proxy.
pub(super) struct ProxyClient {
    stream: UnixStream,
    requests: RequestReader,
    guest: PollClient,
    state: ClientState,
}

enum ClientState {
    /// No request is complete.
    Reading,
    /// The guest has a request.
    AwaitingGuest,
    /// A reply is on its way to the client.
    Replying(Reply),
}

struct Reply {
    line: Vec<u8>,
    sent: usize,
    deadline: Deadline,
    /// What becomes of the client once the reply is sent.
    then: Connection,
}

impl ProxyClient {
    pub(super) fn new(stream: UnixStream, connect: Arc<dyn Connect>) -> Self {
        let guest = PollClient::new(connect);
        Self { stream, requests: RequestReader::default(), guest, state: ClientState::Reading }
    }

    /// Adds what it waits for: events on its own stream, then on the guest's where it has one.
    pub(super) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        let (events, until) = match &self.state {
            ClientState::Reading => (PollFlags::IN, self.requests.has_unsearched().then(Instant::now)),
            // The end of the stream is always reported.
            ClientState::AwaitingGuest => (PollFlags::empty(), None),
            ClientState::Replying(reply) => (PollFlags::OUT, Some(reply.deadline.at())),
        };
        until.into_iter().for_each(|until| set.until(until));
        set.add(&self.stream, events);
        self.guest.wait_in(set);
    }

    /// Does what can be done without waiting, for at most one request so that clients take turns. `events` begins with
    /// those on the descriptors that [`wait_in`](Self::wait_in) added.
    pub(super) fn on_ready(
        &mut self,
        events: &mut impl Iterator<Item = PollFlags>,
        now: Instant,
        allowed: Duration,
        on_failure: &mut OnFailure,
    ) -> Connection {
        let event = events.next();
        if self.guest.fd().is_some() {
            events.next();
        }
        // Both directions have ended, so that nobody reads a reply. A half-close is not reported by these.
        if event.is_some_and(|event| event.intersects(PollFlags::HUP | PollFlags::ERR)) {
            return Connection::Closed;
        }
        if matches!(self.state, ClientState::Reading)
            && self.read_request(now, allowed, on_failure) == Connection::Closed
        {
            return Connection::Closed;
        }
        if matches!(self.state, ClientState::AwaitingGuest) {
            self.poll_guest(now, allowed, on_failure);
        }
        self.send_reply(now)
    }

    /// Reads until a request is complete, and starts it.
    fn read_request(&mut self, now: Instant, allowed: Duration, on_failure: &mut OnFailure) -> Connection {
        for _ in 0..MAX_READS {
            match self.requests.next_request() {
                NextRequest::Complete(request) => {
                    self.start(request, now, allowed, on_failure);
                    return Connection::Open;
                }
                NextRequest::End => return Connection::Closed,
                NextRequest::Incomplete => {}
            }
            match retry_on_intr(|| recv(&self.stream, spare_capacity(self.requests.room()), RecvFlags::DONTWAIT)) {
                Ok((0, _)) => self.requests.end(),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Connection::Open,
                Err(_) => return Connection::Closed,
            }
        }
        Connection::Open
    }

    /// Sends a request to the guest, unless it is invalid or the session that the client knows has ended.
    fn start(
        &mut self,
        request: Result<RequestLine, SchedStatsError>,
        now: Instant,
        allowed: Duration,
        on_failure: &mut OnFailure,
    ) {
        let deadline = Deadline::after(now, allowed);
        let line = match request {
            Ok(line) => line,
            Err(error) => return self.reply(reply::of(&error), deadline, Connection::Open),
        };
        let session = self.guest.session();
        match self.guest.start(line, deadline) {
            Ok(()) if session > 0 && self.guest.session() != session => {
                self.guest.abandon();
                self.reply(reply::session_ended(), deadline, Connection::Closed);
            }
            Ok(()) => self.state = ClientState::AwaitingGuest,
            Err(error) => {
                on_failure(&error);
                self.reply(reply::of(&error), deadline, Connection::Closed);
            }
        }
    }

    fn poll_guest(&mut self, now: Instant, allowed: Duration, on_failure: &mut OnFailure) {
        let Poll::Ready(outcome) = self.guest.on_ready(now, any_errno) else { return };
        let deadline = Deadline::after(now, allowed);
        match outcome {
            Ok(mut line) => {
                line.push(b'\n');
                self.reply(line, deadline, Connection::Open);
            }
            Err(error) => {
                on_failure(&error);
                let then = if error.keeps_session() { Connection::Open } else { Connection::Closed };
                self.reply(reply::of(&error), deadline, then);
            }
        }
    }

    fn reply(&mut self, line: Vec<u8>, deadline: Deadline, then: Connection) {
        self.state = ClientState::Replying(Reply { line, sent: 0, deadline, then });
    }

    /// Writes as much of a reply as the client's socket takes.
    fn send_reply(&mut self, now: Instant) -> Connection {
        let ClientState::Replying(reply) = &mut self.state else { return Connection::Open };
        while let Some(unsent) = reply.line.get(reply.sent..).filter(|unsent| !unsent.is_empty()) {
            match retry_on_intr(|| send(&self.stream, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => reply.sent += count,
                Err(Errno::AGAIN) if reply.deadline.has_passed(now) => return Connection::Closed,
                Err(Errno::AGAIN) => return Connection::Open,
                Err(_) => return Connection::Closed,
            }
        }
        let then = reply.then;
        self.state = ClientState::Reading;
        then
    }
}

/// Decodes the scheduler's line whatever its errno is: the client judges that, and it does not end the session.
fn any_errno(answer: Answer<'_>) -> Result<Decoded<Vec<u8>>, SchedStatsError> {
    decode::raw(answer).map(|decoded| Decoded { errno: 0, ..decoded })
}
