//! One session with an agent as a machine without I/O: bytes and ends go in, one outcome a request comes out.
//!
//! ```text
//! Dialling { Part -> Whole } -> Asked { Part -> Whole, Hello -> Answer } -> outcome -> Idle -> Asked { .., Answer } -> ...
//!              `-> Broken                 `-> Broken: what the agent still said is read before the outcome
//! ```
//!
//! How a session begins is its [`Greeting`]: dialling is for a monitor's hybrid socket alone, and a scheduler without an
//! agent says no hello and frames no answer.
//!
//! The driver writes [`unsent`](Session::unsent), reads into [`spare`](Session::spare) and reports each with
//! [`process`](Session::process). A session that has not come back to `Idle` carries no other request: the driver
//! drops it, and with it whatever answer may still come.

use rustix::io::Errno;
use scx_vsock_wire::limits::{MAX_AGENT_ENVELOPE_BYTES, MIN_PROTOCOL, PROTOCOL};
use scx_vsock_wire::{
    AgentAnswer, Envelope, Hello, MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX,
};

use super::agent_message;
use crate::endpoint::{Greeting, hybrid};
use crate::stats::PeerText;
use crate::stats::RequestLine;
use crate::stats::SchedStatsError;

/// Bytes within which the first line must end. Today's hello has 113; the rest is room for versions to come.
const MAX_HELLO_BYTES: usize = 4096;

/// The least that a read has room for.
const MIN_READ: usize = 4096;

/// Bytes of buffer that an idle session keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// Bytes behind an answer that nobody asked for and that are overlooked: none, but for the fault that is planted for the
/// fuzz targets.
const OVERLOOKED: usize = if cfg!(planted_off_by_one) { 1 } else { 0 };

/// What a request was answered with.
///
/// ```
/// use scx_vsock::client::{Answer, decode};
///
/// let decoded = decode::resp::<u32>(Answer::Scheduler(br#"{"errno":0,"args":{"resp":7}}"#))?;
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
    /// A monitor is asked for the agent's port; the request waits for its answer.
    Dialling { line: RequestLine, dial: Dial, sent: Sent },
    /// A request was begun.
    Asked { line: RequestLine, sent: Sent, expects: Expects },
    /// The answer is the first line of what was received, of this length with its LF; 0 where there is no line to it.
    Answered { kind: Kind, length: usize },
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

/// The line to a monitor.
#[derive(Debug)]
struct Dial {
    port: u32,
    line: String,
}

impl Dial {
    fn new(port: u32) -> Self {
        Self { port, line: hybrid::connect_line(port) }
    }
}

/// Who frames the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// The agent, in envelopes.
    Envelope,
    /// Nobody: they are the scheduler's own lines.
    Plain,
}

/// Bytes that a frame adds to an answer.
const FRAME_BYTES: usize = MAX_ENVELOPE_BYTES - MAX_RESPONSE_BYTES;

#[derive(Debug)]
pub(super) struct Session {
    frame: Frame,
    /// The agent's hello, once it was read: its version, the guest's boot id and its caps.
    hello: Option<Hello<String>>,
    state: State,
    received: Vec<u8>,
    /// Bytes at the front of `received` that are known to have no LF.
    searched: usize,
}

impl Session {
    /// A session whose stream was just opened and begins like this, and its first request.
    pub(super) fn open(greeting: Greeting, line: RequestLine) -> Self {
        let sent = Sent::Part(0);
        let (frame, state) = match greeting {
            Greeting::Hello => (Frame::Envelope, State::Asked { line, sent, expects: Expects::Hello }),
            Greeting::Dial { port } => (Frame::Envelope, State::Dialling { line, dial: Dial::new(port), sent }),
            Greeting::Plain => (Frame::Plain, State::Asked { line, sent, expects: Expects::Answer }),
        };
        Self { frame, hello: None, state, received: Vec::new(), searched: 0 }
    }

    /// The agent's own version, as its hello has it.
    pub(super) fn agent(&self) -> Option<&str> {
        self.hello.as_ref().map(|hello| hello.agent.as_str())
    }

    /// The guest's boot id, as the agent's hello has it; empty where the guest's kernel has none.
    #[allow(dead_code, reason = "samples will carry it")]
    pub(super) fn boot_id(&self) -> Option<&str> {
        self.hello.as_ref().map(|hello| hello.boot_id.as_str())
    }

    /// Whether the agent forwards a line as long as this.
    pub(super) fn admits(&self, line: &RequestLine) -> Result<(), SchedStatsError> {
        let size = line.as_bytes().len();
        match self.hello.as_ref().and_then(|hello| usize::try_from(hello.max_request_bytes).ok()) {
            Some(max) if size > max => Err(SchedStatsError::RequestTooLarge { size, max }),
            _ => Ok(()),
        }
    }

    /// The longest answer that the agent forwards, its LF counted.
    fn max_response_bytes(&self) -> usize {
        let agents = self.hello.as_ref().and_then(|hello| usize::try_from(hello.max_response_bytes).ok());
        agents.map_or(MAX_RESPONSE_BYTES, |max| max.min(MAX_RESPONSE_BYTES))
    }

    /// The longest line, its LF counted.
    fn max_line_bytes(&self) -> usize {
        match self.frame {
            Frame::Envelope => (self.max_response_bytes() + FRAME_BYTES).max(MAX_AGENT_ENVELOPE_BYTES),
            Frame::Plain => MAX_RESPONSE_BYTES,
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
        matches!(self.state, State::Dialling { .. } | State::Asked { .. })
    }

    /// The outcome of a request that needs no stream: where no agent is to wait for the scheduler, that the stream was
    /// connected is the answer.
    pub(super) fn known_outcome(&mut self) -> Option<Outcome> {
        match (&self.state, self.frame) {
            (State::Asked { line, .. }, Frame::Plain) if line.is_for_the_agent() => {
                self.state = State::Answered { kind: Kind::SchedulerReady, length: 0 };
                Some(Ok(()))
            }
            _ => None,
        }
    }

    /// What is left to write.
    pub(super) fn unsent(&self) -> &[u8] {
        let (bytes, sent) = match &self.state {
            State::Dialling { dial, sent, .. } => (dial.line.as_bytes(), *sent),
            State::Asked { line, sent, .. } => (line.as_bytes(), *sent),
            State::Idle | State::Answered { .. } | State::Over => return &[],
        };
        match sent {
            Sent::Part(sent) => bytes.get(sent..).unwrap_or(&[]),
            Sent::Whole | Sent::Broken(_) => &[],
        }
    }

    /// Where to read to, with room behind its bytes. The room grows by need, up to the longest line.
    pub(super) fn spare(&mut self) -> &mut Vec<u8> {
        let length = self.received.len();
        if length == self.received.capacity() {
            let most = self.max_line_bytes().saturating_sub(length);
            self.received.reserve_exact(length.max(MIN_READ).min(most));
        }
        &mut self.received
    }

    /// Takes an event in; gives the request's outcome when that is known.
    pub(super) fn process(&mut self, event: Event) -> Option<Outcome> {
        let (length, sent) = match &mut self.state {
            State::Dialling { dial, sent, .. } => (dial.line.len(), sent),
            State::Asked { line, sent, .. } => (line.as_bytes().len(), sent),
            State::Idle | State::Answered { .. } | State::Over => return None,
        };
        match (*sent, event) {
            (Sent::Part(before), Event::Wrote(count)) => {
                let after = before.saturating_add(count);
                *sent = if after < length { Sent::Part(after) } else { Sent::Whole };
                None
            }
            (Sent::Part(_), Event::WriteFailed(errno)) => {
                *sent = Sent::Broken(errno);
                None
            }
            (Sent::Whole | Sent::Broken(_), Event::Wrote(_) | Event::WriteFailed(_)) => None,
            (_, Event::Received) => self.read(),
            (sent, Event::Ended(errno)) => {
                let error = self.ended(sent, errno);
                self.over(error)
            }
        }
    }

    /// The answer whose outcome was a success, until [`rest`](Self::rest).
    pub(super) fn answer(&self) -> Answer<'_> {
        match self.state {
            State::Answered { kind: Kind::Scheduler, length } => {
                let line = self.received.get(..length.saturating_sub(1)).unwrap_or(&[]);
                Answer::Scheduler(match self.frame {
                    Frame::Envelope => unframed(line).unwrap_or(&[]),
                    Frame::Plain => line,
                })
            }
            State::Answered { kind: Kind::SchedulerReady, .. } => Answer::SchedulerReady,
            State::Idle | State::Dialling { .. } | State::Asked { .. } | State::Over => Answer::Scheduler(&[]),
        }
    }

    /// Forgets the answer and is idle, unless the agent sent more than the answer: nobody asked for that.
    pub(super) fn rest(&mut self) {
        if let State::Answered { length, .. } = self.state {
            let is_all = self.received.len() <= length + OVERLOOKED;
            self.state = if is_all { State::Idle } else { State::Over };
        }
        self.received.clear();
        self.received.shrink_to(KEPT_BYTES);
        self.searched = 0;
    }

    /// Looks for complete lines in what was received: at most a monitor's, hello, then the answer.
    fn read(&mut self) -> Option<Outcome> {
        loop {
            let Some(end) = self.line_end() else { return self.unfinished() };
            let line = self.received.get(..end).unwrap_or(&[]);
            match &mut self.state {
                State::Dialling { dial, sent, .. } => match dialled(line, dial.port, *sent) {
                    Ok(()) => self.reached(),
                    Err(error) => return self.over(error),
                },
                State::Asked { expects: expects @ Expects::Hello, .. } => match hello(line) {
                    Ok(hello) => {
                        *expects = Expects::Answer;
                        self.hello = Some(hello);
                    }
                    Err(error) => return self.over(error),
                },
                State::Asked { expects: Expects::Answer, sent, .. } => {
                    let read = read_answer(line, self.frame, *sent);
                    return self.answered(end + 1, read);
                }
                State::Idle | State::Answered { .. } | State::Over => return None,
            }
            self.received.drain(..=end);
            self.searched = 0;
        }
    }

    /// The monitor's stream leads to the agent from here on.
    fn reached(&mut self) {
        if let State::Dialling { line, .. } = std::mem::replace(&mut self.state, State::Over) {
            self.state = State::Asked { line, sent: Sent::Part(0), expects: Expects::Hello };
        }
    }

    /// Where the first LF is, among the bytes that a line can have.
    fn line_end(&mut self) -> Option<usize> {
        let received = self.received.get(..self.received.len().min(self.max_line_bytes()))?;
        let end = received.get(self.searched..)?.iter().position(|&byte| byte == b'\n').map(|at| self.searched + at);
        self.searched = received.len();
        end
    }

    fn answered(&mut self, length: usize, read: Result<Kind, SchedStatsError>) -> Option<Outcome> {
        match read {
            Ok(kind) => {
                self.state = State::Answered { kind, length };
                Some(Ok(()))
            }
            Err(error) if error.keeps_session() => {
                self.state = State::Answered { kind: Kind::SchedulerReady, length };
                self.rest();
                Some(Err(error))
            }
            Err(error) => self.over(error),
        }
    }

    /// Judges bytes that have no end yet.
    fn unfinished(&mut self) -> Option<Outcome> {
        let size = self.received.len();
        let error = match self.state {
            State::Dialling { .. } if size >= hybrid::MAX_REPLY_BYTES => not_dialled(&self.received),
            State::Asked { expects: Expects::Hello, .. } if size >= MAX_HELLO_BYTES => {
                let quoted = quoted(&self.received);
                SchedStatsError::unreachable(format!("the first {size} bytes are no hello: {quoted}"))
            }
            State::Asked { expects: Expects::Answer, .. } if size >= self.max_line_bytes() => {
                let max = self.max_response_bytes();
                SchedStatsError::ResponseTooLarge { size: max + 1, max }
            }
            State::Dialling { .. } | State::Asked { .. } | State::Idle | State::Answered { .. } | State::Over => {
                return None;
            }
        };
        self.over(error)
    }

    fn over(&mut self, error: SchedStatsError) -> Option<Outcome> {
        self.state = State::Over;
        Some(Err(error))
    }

    /// What a stream that ended too early means. Behind an agent a scheduler's end is never guessed: its agent says so.
    fn ended(&self, sent: Sent, errno: Option<Errno>) -> SchedStatsError {
        let errno = match (errno, sent) {
            // That it is not connected is no reason where the write has told one.
            (None | Some(Errno::NOTCONN), Sent::Broken(errno)) | (Some(errno), _) => Some(errno),
            (None, Sent::Part(_) | Sent::Whole) => None,
        };
        let (when, hint) = match &self.state {
            State::Asked { expects: Expects::Answer, .. } if self.frame == Frame::Plain => {
                let errno = errno.map_or(0, Errno::raw_os_error);
                return SchedStatsError::SchedulerGone { errno, cause: String::new() };
            }
            State::Dialling { dial, .. } => (
                "before OK".to_owned(),
                format!("does the guest listen on port {}: is it up, and its agent started?", dial.port),
            ),
            State::Asked { expects: Expects::Hello, .. } => {
                ("before its hello".to_owned(), "is the guest up, and its agent started?".to_owned())
            }
            _ => (
                "before the answer was complete".to_owned(),
                "was the guest or its vsock device reset, or the agent killed?".to_owned(),
            ),
        };
        let cause = match errno {
            Some(errno) => format!("the stream failed {when}: {errno}"),
            None => format!("the stream ended {when}"),
        };
        let torn = match self.received.len() {
            0 => String::new(),
            torn => format!(", {torn} bytes into a line"),
        };
        SchedStatsError::unreachable(format!("{cause}{torn}; {hint}"))
    }
}

/// Judges a monitor's answer to the line that dials: `OK` and the port that it gave this end.
fn dialled(line: &[u8], port: u32, sent: Sent) -> Result<(), SchedStatsError> {
    match (hybrid::is_ok(line), sent) {
        (true, Sent::Whole) => Ok(()),
        (true, Sent::Part(_) | Sent::Broken(_)) => {
            Err(SchedStatsError::unreachable(format!("OK came before CONNECT {port} was written")))
        }
        (false, _) => Err(not_dialled(line)),
    }
}

fn not_dialled(said: &[u8]) -> SchedStatsError {
    let said = quoted(said);
    SchedStatsError::unreachable(format!("OK was expected of the monitor, not {said}: is this its hybrid socket?"))
}

/// What stands in the frame of a `stats` envelope.
fn unframed(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(STATS_PREFIX)?.strip_suffix(STATS_SUFFIX)
}

/// Judges the first line of a session; returns the hello.
fn hello(line: &[u8]) -> Result<Hello<String>, SchedStatsError> {
    match agent_message::parse(line) {
        Ok(Envelope::Hello(hello)) => {
            same_protocol(&hello)?;
            Ok(Hello { agent: PeerText::line(&hello.agent).to_string(), boot_id: PeerText::line(&hello.boot_id).to_string(), ..hello })
        }
        Ok(Envelope::RelayError(error)) => Err(agent_message::error(&error)),
        Ok(Envelope::Agent(_)) | Err(_) => {
            Err(SchedStatsError::unreachable(format!("the first line is no hello: {}", quoted(line))))
        }
    }
}

fn same_protocol(hello: &Hello<String>) -> Result<(), SchedStatsError> {
    if hello.min_protocol <= PROTOCOL && MIN_PROTOCOL <= hello.protocol {
        return Ok(());
    }
    let (agent, oldest, newest) = (PeerText::line(&hello.agent).to_string(), hello.min_protocol, hello.protocol);
    Err(SchedStatsError::unreachable(format!(
        "agent {agent} speaks protocol {oldest} to {newest}, this host {MIN_PROTOCOL} to {PROTOCOL}; \
         update the older of the two"
    )))
}

/// Judges the line that stands where the answer must be.
fn read_answer(line: &[u8], frame: Frame, sent: Sent) -> Result<Kind, SchedStatsError> {
    let kind = if frame == Frame::Plain || unframed(line).is_some() {
        Kind::Scheduler
    } else {
        match agent_message::parse(line)? {
            Envelope::Agent(AgentAnswer::SchedulerReady {}) => Kind::SchedulerReady,
            Envelope::RelayError(error) => return Err(agent_message::error(&error)),
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

/// The beginning of what a peer sent, for a message.
fn quoted(bytes: &[u8]) -> String {
    let beginning = String::from_utf8_lossy(bytes.get(..bytes.len().min(80)).unwrap_or(&[]));
    format!("{:?}", PeerText::line(&beginning))
}

#[cfg(test)]
mod tests;
