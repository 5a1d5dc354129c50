//! One session with an agent as a machine without I/O: bytes and ends go in, one outcome a request comes out.
//!
//! ```text
//! Asked { Part -> Whole, Hello -> Answer } -> outcome -> Idle -> Asked { Part -> Whole, Answer } -> ...
//!          `-> Broken: what the agent still said is read before the outcome
//! ```
//!
//! The driver writes [`unsent`](Session::unsent), reads into [`spare`](Session::spare) and reports each with
//! [`process`](Session::process). A session that has not come back to `Idle` carries no other request: the driver
//! drops it, and with it whatever answer may still come.

use rustix::io::Errno;
use scx_vsock_wire::limits::{MIN_PROTOCOL, PROTOCOL};
use scx_vsock_wire::{AgentEvent, Envelope, Hello, MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX};

use super::notice;
use crate::error::SchedStatsError;
use crate::reason::excerpt;
use crate::request::RequestLine;

/// Bytes within which the first line must end. Today's hello has 113; the rest is room for versions to come.
const MAX_HELLO_BYTES: usize = 4096;

/// The least that a read has room for.
const MIN_READ: usize = 4096;

/// Bytes of buffer that an idle session keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// What a request was answered with.
///
/// ```
/// use scx_vsock::client::{Answer, answer};
///
/// let decoded = answer::resp::<u32>(Answer::Scheduler(br#"{"errno":0,"args":{"resp":7}}"#))?;
/// assert_eq!(decoded.value, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// The scheduler's line without its LF, as it came.
    Scheduler(&'a [u8]),
    /// The scheduler accepts connections.
    SchedulerReady,
}

/// What happened on the stream.
#[derive(Debug)]
pub(super) enum Event {
    /// So many bytes of [`Session::unsent`] were written.
    Wrote(usize),
    /// A write failed.
    WriteFailed(Errno),
    /// More bytes are in [`Session::spare`].
    Received,
    /// The stream ended, orderly or not.
    Ended(Option<Errno>),
}

/// What a request ended with; the answer itself is [`Session::answer`].
pub(super) type Outcome = Result<(), SchedStatsError>;

#[derive(Debug)]
enum State {
    /// Hello was read and nothing is asked.
    Idle,
    /// A request was begun.
    Asked { line: RequestLine, sent: Sent, expects: Expects },
    /// The answer is the first line of what was received.
    Answered { kind: Kind, end: usize },
    /// Nothing may be asked of this session any more.
    Over,
}

/// How much of the request was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Part(usize),
    Whole,
    Broken(Errno),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    Hello,
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scheduler,
    SchedulerReady,
}

#[derive(Debug)]
pub(super) struct Session {
    state: State,
    received: Vec<u8>,
    /// Bytes at the front of `received` that are known to have no LF.
    searched: usize,
}

impl Session {
    /// A session whose stream was just opened, and its first request.
    pub(super) fn open(line: RequestLine) -> Self {
        Self {
            state: State::Asked { line, sent: Sent::Part(0), expects: Expects::Hello },
            received: Vec::new(),
            searched: 0,
        }
    }

    /// Whether it can carry a request.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// Begins the next request of an idle session.
    pub(super) fn ask(&mut self, line: RequestLine) {
        self.state = State::Asked { line, sent: Sent::Part(0), expects: Expects::Answer };
    }

    /// Whether a request was begun that has no outcome yet.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked { .. })
    }

    /// What is left to write.
    pub(super) fn unsent(&self) -> &[u8] {
        match &self.state {
            State::Asked { line, sent: Sent::Part(sent), .. } => line.as_bytes().get(*sent..).unwrap_or(&[]),
            State::Asked { .. } | State::Idle | State::Answered { .. } | State::Over => &[],
        }
    }

    /// Where to read to, with room behind its bytes. The room grows by need, up to the longest envelope.
    pub(super) fn spare(&mut self) -> &mut Vec<u8> {
        let length = self.received.len();
        if length == self.received.capacity() {
            self.received.reserve_exact(length.max(MIN_READ).min(MAX_ENVELOPE_BYTES.saturating_sub(length)));
        }
        &mut self.received
    }

    /// Takes an event in; gives the request's outcome when that is known.
    pub(super) fn process(&mut self, event: Event) -> Option<Outcome> {
        let State::Asked { line, sent, expects } = &mut self.state else { return None };
        match (*sent, event) {
            (Sent::Part(before), Event::Wrote(count)) => {
                let after = before.saturating_add(count);
                *sent = if after < line.as_bytes().len() { Sent::Part(after) } else { Sent::Whole };
                None
            }
            (Sent::Part(_), Event::WriteFailed(errno)) => {
                *sent = Sent::Broken(errno);
                None
            }
            (Sent::Whole | Sent::Broken(_), Event::Wrote(_) | Event::WriteFailed(_)) => None,
            (_, Event::Received) => self.read(),
            (sent, Event::Ended(errno)) => {
                let error = ended(*expects, sent, errno, self.received.len());
                self.over(error)
            }
        }
    }

    /// The answer whose outcome was a success, until [`rest`](Self::rest).
    pub(super) fn answer(&self) -> Answer<'_> {
        match self.state {
            State::Answered { kind: Kind::Scheduler, end } => {
                let framed = self.received.get(..end.saturating_sub(STATS_SUFFIX.len())).unwrap_or(&[]);
                Answer::Scheduler(framed.get(STATS_PREFIX.len()..).unwrap_or(&[]))
            }
            State::Answered { kind: Kind::SchedulerReady, .. } => Answer::SchedulerReady,
            State::Idle | State::Asked { .. } | State::Over => Answer::Scheduler(&[]),
        }
    }

    /// Forgets the answer and is idle, unless the agent sent more than the answer: nobody asked for that.
    pub(super) fn rest(&mut self) {
        if let State::Answered { end, .. } = self.state {
            self.state = if self.received.len() == end + 1 { State::Idle } else { State::Over };
        }
        self.received.clear();
        self.received.shrink_to(KEPT_BYTES);
        self.searched = 0;
    }

    /// Looks for complete lines in what was received: at most hello, then the answer.
    fn read(&mut self) -> Option<Outcome> {
        loop {
            let State::Asked { sent, expects, .. } = &mut self.state else { return None };
            let Some(end) = line_end(&self.received, &mut self.searched) else { return self.unfinished() };
            let line = self.received.get(..end).unwrap_or(&[]);
            match (*expects, *sent) {
                (Expects::Hello, _) => match hello(line) {
                    Ok(()) => *expects = Expects::Answer,
                    Err(error) => return self.over(error),
                },
                (Expects::Answer, sent) => {
                    let read = read_answer(line, sent);
                    return self.answered(end, read);
                }
            }
            self.received.drain(..=end);
            self.searched = 0;
        }
    }

    fn answered(&mut self, end: usize, read: Result<Kind, SchedStatsError>) -> Option<Outcome> {
        match read {
            Ok(kind) => {
                self.state = State::Answered { kind, end };
                Some(Ok(()))
            }
            Err(error) if error.keeps_session() => {
                self.state = State::Answered { kind: Kind::SchedulerReady, end };
                self.rest();
                Some(Err(error))
            }
            Err(error) => self.over(error),
        }
    }

    /// Judges bytes that have no end yet.
    fn unfinished(&mut self) -> Option<Outcome> {
        let State::Asked { expects, .. } = self.state else { return None };
        let size = self.received.len();
        match expects {
            Expects::Hello if size >= MAX_HELLO_BYTES => {
                let error = format!("the first {size} bytes are no hello: {}", quoted(&self.received));
                self.over(SchedStatsError::AgentUnreachable { reason: error })
            }
            Expects::Answer if size >= MAX_ENVELOPE_BYTES => {
                let max = MAX_RESPONSE_BYTES;
                self.over(SchedStatsError::ResponseTooLarge { size: max + 1, max })
            }
            Expects::Hello | Expects::Answer => None,
        }
    }

    fn over(&mut self, error: SchedStatsError) -> Option<Outcome> {
        self.state = State::Over;
        Some(Err(error))
    }
}

/// Where the first LF is, among the bytes that an envelope can have.
fn line_end(received: &[u8], searched: &mut usize) -> Option<usize> {
    let received = received.get(..received.len().min(MAX_ENVELOPE_BYTES))?;
    let end = received.get(*searched..)?.iter().position(|&byte| byte == b'\n').map(|at| *searched + at);
    *searched = received.len();
    end
}

/// Judges the first line of a session.
fn hello(line: &[u8]) -> Result<(), SchedStatsError> {
    match notice::parse(line) {
        Ok(Envelope::Hello(hello)) => same_protocol(&hello),
        Ok(Envelope::RelayError(error)) => Err(notice::error(&error)),
        Ok(Envelope::Agent(_)) | Err(_) => {
            Err(SchedStatsError::AgentUnreachable { reason: format!("the first line is no hello: {}", quoted(line)) })
        }
    }
}

fn same_protocol(hello: &Hello<String>) -> Result<(), SchedStatsError> {
    if hello.min_protocol <= PROTOCOL && MIN_PROTOCOL <= hello.protocol {
        return Ok(());
    }
    let (agent, oldest, newest) = (excerpt(&hello.agent), hello.min_protocol, hello.protocol);
    Err(SchedStatsError::AgentUnreachable {
        reason: format!(
            "agent {agent} speaks protocol {oldest} to {newest}, this host {MIN_PROTOCOL} to {PROTOCOL}; \
             update the older of the two"
        ),
    })
}

/// Judges the line that stands where the answer must be.
fn read_answer(line: &[u8], sent: Sent) -> Result<Kind, SchedStatsError> {
    let framed = line.starts_with(STATS_PREFIX) && line.ends_with(STATS_SUFFIX);
    let kind = if framed {
        Kind::Scheduler
    } else {
        match notice::parse(line)? {
            Envelope::Agent(AgentEvent::SchedulerReady) => Kind::SchedulerReady,
            Envelope::RelayError(error) => return Err(notice::error(&error)),
            Envelope::Hello(_) => return Err(SchedStatsError::malformed("a second hello")),
        }
    };
    match sent {
        Sent::Whole => Ok(kind),
        Sent::Part(_) | Sent::Broken(_) => {
            Err(SchedStatsError::malformed("an answer came before the request was written"))
        }
    }
}

/// What a stream that ended too early means. A scheduler's end is never guessed: its agent says so.
fn ended(expects: Expects, sent: Sent, errno: Option<Errno>, torn: usize) -> SchedStatsError {
    let when = match expects {
        Expects::Hello => "before its hello",
        Expects::Answer => "before the answer was complete",
    };
    let cause = match (errno, sent) {
        (Some(errno), _) | (None, Sent::Broken(errno)) => format!("the stream failed {when}: {errno}"),
        (None, Sent::Part(_) | Sent::Whole) => format!("the stream ended {when}"),
    };
    let torn = if torn == 0 { String::new() } else { format!(", {torn} bytes into a line") };
    let hint = match expects {
        Expects::Hello => "is the guest up, and its agent started?",
        Expects::Answer => "was the guest or its vsock device reset, or the agent killed?",
    };
    SchedStatsError::AgentUnreachable { reason: format!("{cause}{torn}; {hint}") }
}

/// The beginning of what a peer sent, for a message.
fn quoted(bytes: &[u8]) -> String {
    let beginning = String::from_utf8_lossy(bytes.get(..bytes.len().min(80)).unwrap_or(&[]));
    format!("{:?}", excerpt(beginning.trim_end()))
}

#[cfg(test)]
mod tests;
