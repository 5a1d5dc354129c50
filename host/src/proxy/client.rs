//! One client of a proxy and its session with the guest.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::line_reader::{LineReader, Next};
use super::reply;
use crate::client::decode::{self, Decoded};
use crate::client::{Answer, PollClient};
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::poll::PollSet;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// Reads in one turn.
const READS: usize = 8;

/// How a client's turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It waits for what [`Client::wait_in`] says.
    Open,
    /// It is to be closed.
    Over,
}

pub(super) struct Client {
    stream: UnixStream,
    inbox: LineReader,
    conversation: PollClient,
    state: State,
}

enum State {
    /// Nothing is asked.
    Listening,
    /// The guest was asked.
    Asking,
    /// The client is being answered.
    Answering(Reply),
}

/// An answer on its way to the client.
struct Reply {
    line: Vec<u8>,
    sent: usize,
    deadline: Deadline,
    then: Turn,
}

impl Client {
    pub(super) fn new(stream: UnixStream, connect: Arc<dyn Connect>) -> Self {
        Self { stream, inbox: LineReader::default(), conversation: PollClient::new(connect), state: State::Listening }
    }

    /// What it waits for: events on the client's stream, and then on the guest's while that is asked.
    pub(super) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        let (events, until) = match &self.state {
            State::Listening => (PollFlags::IN, self.inbox.has_more().then(Instant::now)),
            // Its end, which is always told.
            State::Asking => (PollFlags::empty(), None),
            State::Answering(reply) => (PollFlags::OUT, Some(reply.deadline.at())),
        };
        until.into_iter().for_each(|until| set.until(until));
        set.add(&self.stream, events);
        self.conversation.wait_in(set);
    }

    /// Does what can be done without waiting, for one request at most so that no client keeps others from their turn.
    /// `events` begins with what happened on the descriptors that it waited for.
    pub(super) fn turn(
        &mut self,
        events: &mut impl Iterator<Item = PollFlags>,
        now: Instant,
        allowed: Duration,
    ) -> Turn {
        let event = events.next();
        if self.conversation.fd().is_some() {
            events.next();
        }
        // With both directions ended there is nobody to read an answer. A half-close is not that.
        if event.is_some_and(|event| event.intersects(PollFlags::HUP | PollFlags::ERR)) {
            return Turn::Over;
        }
        if matches!(self.state, State::Listening) && self.listen(now, allowed) == Turn::Over {
            return Turn::Over;
        }
        if matches!(self.state, State::Asking) {
            self.ask(now, allowed);
        }
        self.answer(now)
    }

    /// Reads until a request is complete, and begins it. A line without an end may come faster than it is read, so that
    /// this ends after some reads.
    fn listen(&mut self, now: Instant, allowed: Duration) -> Turn {
        for _ in 0..READS {
            match self.inbox.next() {
                Next::Request(request) => {
                    self.begin(request, now, allowed);
                    return Turn::Open;
                }
                Next::End => return Turn::Over,
                Next::Receive => {}
            }
            match retry_on_intr(|| recv(&self.stream, spare_capacity(self.inbox.spare()), RecvFlags::DONTWAIT)) {
                Ok((0, _)) => self.inbox.end(),
                Ok(_) => {}
                Err(Errno::AGAIN) => return Turn::Open,
                Err(_) => return Turn::Over,
            }
        }
        Turn::Open
    }

    fn begin(&mut self, request: Result<RequestLine, SchedStatsError>, now: Instant, allowed: Duration) {
        let deadline = Deadline::after(now, allowed);
        let line = match request {
            Ok(line) => line,
            Err(error) => return self.reply(reply::of(&error), deadline, Turn::Open),
        };
        let session = self.conversation.session();
        match self.conversation.start(line, deadline) {
            Ok(()) if session > 0 && self.conversation.session() != session => {
                self.conversation.abandon();
                self.reply(reply::session_ended(), deadline, Turn::Over);
            }
            Ok(()) => self.state = State::Asking,
            Err(error) => self.reply(reply::of(&error), deadline, Turn::Over),
        }
    }

    fn ask(&mut self, now: Instant, allowed: Duration) {
        let Poll::Ready(outcome) = self.conversation.on_ready(now, as_it_came) else { return };
        let deadline = Deadline::after(now, allowed);
        match outcome {
            Ok(mut line) => {
                line.push(b'\n');
                self.reply(line, deadline, Turn::Open);
            }
            Err(error) => {
                let then = if error.keeps_session() { Turn::Open } else { Turn::Over };
                self.reply(reply::of(&error), deadline, then);
            }
        }
    }

    fn reply(&mut self, line: Vec<u8>, deadline: Deadline, then: Turn) {
        self.state = State::Answering(Reply { line, sent: 0, deadline, then });
    }

    /// Writes as much of an answer as the client takes.
    fn answer(&mut self, now: Instant) -> Turn {
        let State::Answering(reply) = &mut self.state else { return Turn::Open };
        while let Some(unsent) = reply.line.get(reply.sent..).filter(|unsent| !unsent.is_empty()) {
            match retry_on_intr(|| send(&self.stream, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => reply.sent += count,
                Err(Errno::AGAIN) if reply.deadline.has_passed(now) => return Turn::Over,
                Err(Errno::AGAIN) => return Turn::Open,
                Err(_) => return Turn::Over,
            }
        }
        let then = reply.then;
        self.state = State::Listening;
        then
    }
}

/// The scheduler's line. Its errno is for the client to judge, and no reason to end the session, as with a server.
fn as_it_came(answer: Answer<'_>) -> Result<Decoded<Vec<u8>>, SchedStatsError> {
    decode::raw(answer).map(|decoded| Decoded { errno: 0, ..decoded })
}
