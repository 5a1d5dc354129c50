//! One session with an agent as a state machine without I/O: stream events go in, one outcome a request comes out.
//!
//! ```text
//! Connecting { Partly -> Fully } -> Pending { Partly -> Fully, Hello -> Answer } -> outcome -> Idle -> Pending { .., Answer } -> ...
//!               `-> Failed                     `-> Failed: what the agent has still sent is read before the outcome
//! ```
//!
//! How a session begins is its [`Handshake`]: only a VMM's hybrid socket is asked to connect, and a scheduler without an
//! agent sends no hello and no envelopes.
//!
//! The driver writes [`unsent`](Session::unsent), reads into [`read_buf`](Session::read_buf) and reports each with
//! [`on_event`](Session::on_event). A session that has not come back to `Idle` carries no other request: the driver
//! drops it, and with it whatever answer may still come.

use rustix::io::Errno;
use scx_vsock_wire::limits::{MAX_AGENT_ENVELOPE_BYTES, MIN_PROTOCOL, PROTOCOL};
use scx_vsock_wire::{
    AgentAnswer, Envelope, Hello, MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX,
};

use super::agent_message;
use crate::endpoint::{Handshake, hybrid};
use crate::stats::{PeerText, RequestLine, SchedStatsError};

/// Bytes within which the first line must end. The rest beyond today's hello is for later versions of the protocol.
const MAX_HELLO_BYTES: usize = 4096;

/// Bytes that a read has room for at least.
const MIN_READ: usize = 4096;

/// Bytes of buffer that an idle session keeps.
const KEPT_BYTES: usize = 16 * 1024;

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
    /// The session is open; no request was sent.
    Opened,
}

/// What a session is to do.
#[derive(Debug)]
pub(super) enum Request {
    /// To open, up to the agent's hello.
    Open,
    /// To send a line and read its answer.
    Line(RequestLine),
}

impl Request {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Open => &[],
            Self::Line(line) => line.as_bytes(),
        }
    }
}

/// An event on the stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    /// This many bytes of [`Session::unsent`] were written.
    Wrote(usize),
    /// A write failed.
    WriteFailed(Errno),
    /// More bytes are in [`Session::read_buf`].
    Received,
    /// The stream ended, by a shutdown of the peer or by an error.
    Ended(Option<Errno>),
}

/// What a request ended with; the answer itself is [`Session::answer`].
pub(super) type Outcome = Result<(), SchedStatsError>;

#[derive(Debug)]
enum SessionState {
    /// Hello was read and no request is pending.
    Idle,
    /// A VMM is asked to connect to the agent's port; the request waits for its reply.
    Connecting { request: Request, connect: ConnectLine, written: Written },
    /// A request was begun.
    Pending { request: Request, written: Written, expects: Expected },
    /// The answer is the first line of what was received, of this length with its LF; 0 where it has no line.
    Answered { kind: AnswerKind, length: usize },
    /// The session carries no further request.
    Closed,
}

/// How much of a line was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Partly(usize),
    Fully,
    Failed(Errno),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Hello,
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AnswerKind {
    Scheduler,
    SchedulerReady,
    Opened,
}

/// The `CONNECT` line to a VMM.
#[derive(Debug)]
struct ConnectLine {
    port: u32,
    line: String,
}

impl ConnectLine {
    fn new(port: u32) -> Self {
        Self { port, line: hybrid::connect_line(port) }
    }
}

/// What a line of the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// An envelope of the agent.
    Envelope,
    /// A line of the scheduler.
    Plain,
}

/// Bytes that an envelope adds to an answer.
const ENVELOPE_BYTES: usize = MAX_ENVELOPE_BYTES - MAX_RESPONSE_BYTES;

#[derive(Debug)]
pub(super) struct Session {
    framing: Framing,
    /// The agent's hello, once it was read: its version, the guest's boot id and its caps.
    hello: Option<Hello<String>>,
    state: SessionState,
    received: Vec<u8>,
    /// Bytes at the start of `received` that are known to have no LF.
    searched: usize,
}

impl Session {
    /// Begins a session and its first request on a stream that was just opened.
    pub(super) fn open(handshake: Handshake, request: Request) -> Self {
        let written = Written::Partly(0);
        let (framing, state) = match handshake {
            Handshake::Hello => {
                (Framing::Envelope, SessionState::Pending { request, written, expects: Expected::Hello })
            }
            Handshake::Connect { port } => {
                (Framing::Envelope, SessionState::Connecting { request, connect: ConnectLine::new(port), written })
            }
            Handshake::Plain => (Framing::Plain, SessionState::Pending { request, written, expects: Expected::Answer }),
        };
        Self { framing, hello: None, state, received: Vec::new(), searched: 0 }
    }

    /// Returns the agent's version, as its hello has it.
    pub(super) fn agent_version(&self) -> Option<&str> {
        self.hello.as_ref().map(|hello| hello.agent.as_str())
    }

    /// Checks that the agent's buffer has room for a request, as far as its hello was read.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] with the agent's cap.
    pub(super) fn check_request(&self, request: &Request) -> Result<(), SchedStatsError> {
        let size = request.as_bytes().len();
        match self.hello.as_ref().and_then(|hello| usize::try_from(hello.max_request_bytes).ok()) {
            Some(max) if size > max => Err(SchedStatsError::RequestTooLarge { size, max }),
            _ => Ok(()),
        }
    }

    /// Returns the length of the longest answer that the agent forwards, its LF counted.
    fn max_response_bytes(&self) -> usize {
        let agents = self.hello.as_ref().and_then(|hello| usize::try_from(hello.max_response_bytes).ok());
        agents.map_or(MAX_RESPONSE_BYTES, |max| max.min(MAX_RESPONSE_BYTES))
    }

    /// Returns the length of the longest line, its LF counted.
    fn max_line_bytes(&self) -> usize {
        match self.framing {
            Framing::Envelope => (self.max_response_bytes() + ENVELOPE_BYTES).max(MAX_AGENT_ENVELOPE_BYTES),
            Framing::Plain => MAX_RESPONSE_BYTES,
        }
    }

    /// Whether the session can carry a request.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, SessionState::Idle)
    }

    /// Begins the next request of an idle session.
    pub(super) fn request(&mut self, request: Request) {
        self.state = SessionState::Pending { request, written: Written::Partly(0), expects: Expected::Answer };
    }

    /// Whether a request was begun that has no outcome yet.
    pub(super) fn is_pending(&self) -> bool {
        matches!(self.state, SessionState::Connecting { .. } | SessionState::Pending { .. })
    }

    /// Whether the request could not be written, so that the stream is not one that is still being connected.
    pub(super) fn write_failed(&self) -> bool {
        matches!(
            self.state,
            SessionState::Connecting { written: Written::Failed(_), .. }
                | SessionState::Pending { written: Written::Failed(_), .. }
        )
    }

    /// Returns the outcome of a request that needs no answer: an open session need not be opened, and without an agent
    /// that could wait for the scheduler, a connected stream says that the scheduler is ready.
    pub(super) fn immediate_outcome(&mut self) -> Option<Outcome> {
        let SessionState::Pending { request, expects: Expected::Answer, .. } = &self.state else { return None };
        let kind = match (request, self.framing) {
            (Request::Open, _) => AnswerKind::Opened,
            (Request::Line(line), Framing::Plain) if line.is_for_the_agent() => AnswerKind::SchedulerReady,
            (Request::Line(_), _) => return None,
        };
        self.state = SessionState::Answered { kind, length: 0 };
        Some(Ok(()))
    }

    /// Returns the bytes that are left to write.
    pub(super) fn unsent(&self) -> &[u8] {
        let (bytes, written) = match &self.state {
            SessionState::Connecting { connect, written, .. } => (connect.line.as_bytes(), *written),
            SessionState::Pending { request, written, .. } => (request.as_bytes(), *written),
            SessionState::Idle | SessionState::Answered { .. } | SessionState::Closed => return &[],
        };
        match written {
            Written::Partly(count) => bytes.get(count..).unwrap_or(&[]),
            Written::Fully | Written::Failed(_) => &[],
        }
    }

    /// Returns the buffer to append to what is read. Its room grows by need, up to the longest line.
    pub(super) fn read_buf(&mut self) -> &mut Vec<u8> {
        let length = self.received.len();
        if length == self.received.capacity() {
            let most = self.max_line_bytes().saturating_sub(length);
            self.received.reserve_exact(length.max(MIN_READ).min(most));
        }
        &mut self.received
    }

    /// Takes an event in, and returns the request's outcome once that is known.
    pub(super) fn on_event(&mut self, event: StreamEvent) -> Option<Outcome> {
        let (length, written) = match &mut self.state {
            SessionState::Connecting { connect, written, .. } => (connect.line.len(), written),
            SessionState::Pending { request, written, .. } => (request.as_bytes().len(), written),
            SessionState::Idle | SessionState::Answered { .. } | SessionState::Closed => return None,
        };
        match (*written, event) {
            (Written::Partly(before), StreamEvent::Wrote(count)) => {
                let after = before.saturating_add(count);
                *written = if after < length { Written::Partly(after) } else { Written::Fully };
                None
            }
            (Written::Partly(_), StreamEvent::WriteFailed(errno)) => {
                *written = Written::Failed(errno);
                None
            }
            (Written::Fully | Written::Failed(_), StreamEvent::Wrote(_) | StreamEvent::WriteFailed(_)) => None,
            (_, StreamEvent::Received) => self.read(),
            (written, StreamEvent::Ended(errno)) => {
                let error = self.end_error(written, errno);
                self.close(error)
            }
        }
    }

    /// Returns the answer whose outcome was a success, until [`finish`](Self::finish).
    pub(super) fn answer(&self) -> Answer<'_> {
        match self.state {
            SessionState::Answered { kind: AnswerKind::Scheduler, length } => {
                let line = self.received.get(..length.saturating_sub(1)).unwrap_or(&[]);
                Answer::Scheduler(match self.framing {
                    Framing::Envelope => strip_envelope(line).unwrap_or(&[]),
                    Framing::Plain => line,
                })
            }
            SessionState::Answered { kind: AnswerKind::SchedulerReady, .. } => Answer::SchedulerReady,
            SessionState::Answered { kind: AnswerKind::Opened, .. } => Answer::Opened,
            SessionState::Idle
            | SessionState::Connecting { .. }
            | SessionState::Pending { .. }
            | SessionState::Closed => Answer::Scheduler(&[]),
        }
    }

    /// Drops the answer. The session is idle then, unless bytes came after the answer, which are unsolicited.
    pub(super) fn finish(&mut self) {
        if let SessionState::Answered { length, .. } = self.state {
            let is_all = self.received.len() <= length;
            self.state = if is_all { SessionState::Idle } else { SessionState::Closed };
        }
        self.received.clear();
        self.received.shrink_to(KEPT_BYTES);
        self.searched = 0;
    }

    /// Reads the complete lines that were received: at most a VMM's reply, hello, and the answer.
    fn read(&mut self) -> Option<Outcome> {
        loop {
            let Some(end) = self.line_end() else { return self.check_size() };
            let line = self.received.get(..end).unwrap_or(&[]);
            match &mut self.state {
                SessionState::Connecting { connect, written, .. } => match check_ok(line, connect.port, *written) {
                    Ok(()) => self.on_connected(),
                    Err(error) => return self.close(error),
                },
                SessionState::Pending { expects: expects @ Expected::Hello, request, .. } => match read_hello(line) {
                    Ok(hello) => {
                        *expects = Expected::Answer;
                        let is_answer = matches!(request, Request::Open);
                        self.hello = Some(hello);
                        if is_answer {
                            return self.answered(end + 1, Ok(AnswerKind::Opened));
                        }
                    }
                    Err(error) => return self.close(error),
                },
                SessionState::Pending { expects: Expected::Answer, written, .. } => {
                    let read = read_answer(line, self.framing, *written);
                    return self.answered(end + 1, read);
                }
                SessionState::Idle | SessionState::Answered { .. } | SessionState::Closed => return None,
            }
            self.received.drain(..=end);
            self.searched = 0;
        }
    }

    /// From here on the VMM forwards the stream to the agent.
    fn on_connected(&mut self) {
        if let SessionState::Connecting { request, .. } = std::mem::replace(&mut self.state, SessionState::Closed) {
            self.state = SessionState::Pending { request, written: Written::Partly(0), expects: Expected::Hello };
        }
    }

    /// Returns where the first LF is, among the bytes that a line can have.
    fn line_end(&mut self) -> Option<usize> {
        let received = self.received.get(..self.received.len().min(self.max_line_bytes()))?;
        let end = received.get(self.searched..)?.iter().position(|&byte| byte == b'\n').map(|at| self.searched + at);
        self.searched = received.len();
        end
    }

    fn answered(&mut self, length: usize, read: Result<AnswerKind, SchedStatsError>) -> Option<Outcome> {
        match read {
            Ok(kind) => {
                self.state = SessionState::Answered { kind, length };
                Some(Ok(()))
            }
            Err(error) if error.keeps_session() => {
                self.state = SessionState::Answered { kind: AnswerKind::SchedulerReady, length };
                self.finish();
                Some(Err(error))
            }
            Err(error) => self.close(error),
        }
    }

    /// Checks that a line without an end is not too long yet.
    fn check_size(&mut self) -> Option<Outcome> {
        let size = self.received.len();
        let error = match self.state {
            SessionState::Connecting { .. } if size >= hybrid::MAX_REPLY_BYTES => not_ok(&self.received),
            SessionState::Pending { expects: Expected::Hello, .. } if size >= MAX_HELLO_BYTES => {
                let quoted = quoted(&self.received);
                SchedStatsError::unreachable(format!("the first {size} bytes are not an agent's hello: {quoted}"))
            }
            SessionState::Pending { expects: Expected::Answer, .. } if size >= self.max_line_bytes() => {
                let max = self.max_response_bytes();
                SchedStatsError::ResponseTooLarge { size: max + 1, max }
            }
            SessionState::Connecting { .. }
            | SessionState::Pending { .. }
            | SessionState::Idle
            | SessionState::Answered { .. }
            | SessionState::Closed => {
                return None;
            }
        };
        self.close(error)
    }

    fn close(&mut self, error: SchedStatsError) -> Option<Outcome> {
        self.state = SessionState::Closed;
        Some(Err(error))
    }

    /// Returns what a stream that ended too early means. An agent says when its scheduler is gone, so that this is never
    /// guessed.
    fn end_error(&self, written: Written, errno: Option<Errno>) -> SchedStatsError {
        let errno = match (errno, written) {
            // That the stream is not connected is no reason where the write had one.
            (None | Some(Errno::NOTCONN), Written::Failed(errno)) | (Some(errno), _) => Some(errno),
            (None, Written::Partly(_) | Written::Fully) => None,
        };
        let (when, hint) = match &self.state {
            SessionState::Pending { expects: Expected::Answer, .. } if self.framing == Framing::Plain => {
                let errno = errno.map_or(0, Errno::raw_os_error);
                return SchedStatsError::SchedulerGone { errno, cause: String::new() };
            }
            SessionState::Connecting { connect, .. } => (
                "before the VMM replied OK",
                format!("is the guest up, and its agent started on port {}?", connect.port),
            ),
            SessionState::Pending { expects: Expected::Hello, .. } => {
                ("before the agent's hello", "is the guest up, and its agent started?".to_owned())
            }
            _ => (
                "before the answer was complete",
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

/// Checks a VMM's reply to `CONNECT`.
fn check_ok(line: &[u8], port: u32, written: Written) -> Result<(), SchedStatsError> {
    match (hybrid::is_ok(line), written) {
        (true, Written::Fully) => Ok(()),
        (true, Written::Partly(_) | Written::Failed(_)) => {
            Err(SchedStatsError::unreachable(format!("the VMM replied OK before CONNECT {port} was written")))
        }
        (false, _) => Err(not_ok(line)),
    }
}

fn not_ok(reply: &[u8]) -> SchedStatsError {
    let reply = quoted(reply);
    SchedStatsError::unreachable(format!("the VMM replied {reply} instead of OK: is this its hybrid vsock socket?"))
}

/// Returns the scheduler's line inside a `stats` envelope.
fn strip_envelope(line: &[u8]) -> Option<&[u8]> {
    line.strip_prefix(STATS_PREFIX)?.strip_suffix(STATS_SUFFIX)
}

/// Reads the first line of a session, which must be a hello.
fn read_hello(line: &[u8]) -> Result<Hello<String>, SchedStatsError> {
    match agent_message::parse(line) {
        Ok(Envelope::Hello(hello)) => {
            check_protocol(&hello)?;
            Ok(Hello { agent: PeerText::line(&hello.agent).to_string(), ..hello })
        }
        Ok(Envelope::RelayError(error)) => Err(agent_message::error(&error)),
        Ok(Envelope::Agent(_)) | Err(_) => {
            Err(SchedStatsError::unreachable(format!("the first line is not an agent's hello: {}", quoted(line))))
        }
    }
}

fn check_protocol(hello: &Hello<String>) -> Result<(), SchedStatsError> {
    if hello.min_protocol <= PROTOCOL && MIN_PROTOCOL <= hello.protocol {
        return Ok(());
    }
    let (agent, oldest, newest) = (PeerText::line(&hello.agent), hello.min_protocol, hello.protocol);
    Err(SchedStatsError::unreachable(format!(
        "agent {agent} speaks protocol {oldest} to {newest}, this host {MIN_PROTOCOL} to {PROTOCOL}; \
         update the older of the two"
    )))
}

/// Reads the line that must be the answer.
fn read_answer(line: &[u8], framing: Framing, written: Written) -> Result<AnswerKind, SchedStatsError> {
    let kind = if framing == Framing::Plain || strip_envelope(line).is_some() {
        AnswerKind::Scheduler
    } else {
        match agent_message::parse(line)? {
            Envelope::Agent(AgentAnswer::SchedulerReady {}) => AnswerKind::SchedulerReady,
            Envelope::RelayError(error) => return Err(agent_message::error(&error)),
            Envelope::Hello(_) => return Err(SchedStatsError::malformed("the agent sent hello twice")),
        }
    };
    match written {
        Written::Fully => Ok(kind),
        Written::Partly(_) | Written::Failed(_) => {
            Err(SchedStatsError::malformed("the answer came before the request was written"))
        }
    }
}

/// Returns the start of what a peer sent, for a message.
fn quoted(bytes: &[u8]) -> String {
    let beginning = String::from_utf8_lossy(bytes.get(..bytes.len().min(80)).unwrap_or(&[]));
    format!("{:?}", PeerText::line(&beginning))
}

#[cfg(test)]
mod tests;
