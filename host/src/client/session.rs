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
//! The driver writes [`unsent`](Session::unsent), reads into [`room`](Session::room) and reports each with
//! [`on_event`](Session::on_event). A session that has not come back to `Idle` carries no other request: the driver
//! drops it, and with it whatever answer may still come.

use std::ops::Range;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use scx_vsock_wire::limits::{MAX_AGENT_ENVELOPE_BYTES, MIN_PROTOCOL, PROTOCOL};
use scx_vsock_wire::{Envelope, Hello, MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES, STATS_PREFIX, STATS_SUFFIX, Verb};

use super::agent_message;
use super::baselines::Baselines;
use crate::endpoint::{ConnectProgress, Handshake, hybrid};
use crate::io::line_reader::LineReader;
use crate::stats::{PeerText, RequestLine, SchedExt, SchedStatsError};

/// Bytes within which the first line must end. The rest beyond today's hello is for later versions of the protocol.
const MAX_HELLO_BYTES: usize = 4096;

/// Bytes of buffer that an idle session keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// What an agent answers itself.
pub type AgentAnswer = scx_vsock_wire::AgentAnswer<SchedExt>;

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
    /// What the agent answers itself.
    Agent(&'a AgentAnswer),
    /// The session is open; no request was sent.
    Opened,
}

/// An answer that was received.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// The scheduler's line is this part of what was read.
    Scheduler(Range<usize>),
    Agent(Box<AgentAnswer>),
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

    /// Returns the target whose stats it reads; `None` if it reads none.
    pub(super) fn target(&self) -> Option<&str> {
        match self {
            Self::Open => None,
            Self::Line(line) => line.target(),
        }
    }

    /// Whether it waits for a scheduler.
    pub(super) fn awaits_scheduler(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Line(line) => matches!(line.verb(), Some(Verb::WaitScheduler { .. })),
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
    /// More bytes are in [`Session::room`].
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
    /// The request was answered.
    Answered(Received),
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
    lines: LineReader,
    baselines: Baselines,
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
        Self { framing, hello: None, state, lines: LineReader::default(), baselines: Baselines::default() }
    }

    /// Whether the agent has sent its hello.
    pub(super) fn is_greeted(&self) -> bool {
        self.hello.is_some()
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

    /// Returns the outcome of a request that needs no answer: an open session need not be opened, and a scheduler without
    /// an agent gets no line that is for one. A connected stream says that it is ready.
    pub(super) fn immediate_outcome(&mut self) -> Option<Outcome> {
        let SessionState::Pending { request, expects: Expected::Answer, .. } = &self.state else { return None };
        let received = match request {
            Request::Open => Received::Opened,
            Request::Line(line) if self.framing == Framing::Plain && line.is_for_the_agent() => match line.verb() {
                Some(Verb::WaitScheduler { .. }) => Received::Agent(Box::new(AgentAnswer::SchedulerReady {})),
                Some(Verb::SchedExt {}) | None => {
                    let error = without_an_agent(line);
                    return self.close(error);
                }
            },
            Request::Line(_) => return None,
        };
        self.state = SessionState::Answered(received);
        Some(Ok(()))
    }

    /// Returns what a pending request ends with that was `allowed` so long: how far it came by then.
    pub(super) fn deadline_error(&self, allowed: Duration, progress: ConnectProgress) -> SchedStatsError {
        let ms = allowed.as_millis();
        match &self.state {
            SessionState::Connecting { connect, .. } => SchedStatsError::unreachable(format!(
                "the VMM has not replied to CONNECT {} within {ms} ms: the guest's vsock driver is not up yet, or the \
                 guest is paused",
                connect.port
            )),
            SessionState::Pending { expects: Expected::Hello, .. } => {
                SchedStatsError::unreachable(no_hello(ms, progress))
            }
            SessionState::Pending { request, .. } if request.awaits_scheduler() => SchedStatsError::NoScheduler {
                reason: format!("the agent has seen none within {ms} ms, and then no longer answered"),
            },
            SessionState::Pending { .. } | SessionState::Idle | SessionState::Answered(_) | SessionState::Closed => {
                SchedStatsError::timed_out(allowed)
            }
        }
    }

    /// Returns the bytes that are left to write.
    pub(super) fn unsent(&self) -> &[u8] {
        let (bytes, written) = match &self.state {
            SessionState::Connecting { connect, written, .. } => (connect.line.as_bytes(), *written),
            SessionState::Pending { request, written, .. } => (request.as_bytes(), *written),
            SessionState::Idle | SessionState::Answered(_) | SessionState::Closed => return &[],
        };
        match written {
            Written::Partly(count) => bytes.get(count..).unwrap_or(&[]),
            Written::Fully | Written::Failed(_) => &[],
        }
    }

    /// Returns the buffer to append what is read to.
    pub(super) fn room(&mut self) -> &mut Vec<u8> {
        let max = self.max_line_bytes();
        self.lines.room(max)
    }

    /// Takes an event in, and returns the request's outcome once that is known.
    pub(super) fn on_event(&mut self, event: StreamEvent) -> Option<Outcome> {
        let (length, written) = match &mut self.state {
            SessionState::Connecting { connect, written, .. } => (connect.line.len(), written),
            SessionState::Pending { request, written, .. } => (request.as_bytes().len(), written),
            SessionState::Idle | SessionState::Answered(_) | SessionState::Closed => return None,
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
        match &self.state {
            SessionState::Answered(Received::Scheduler(line)) => Answer::Scheduler(self.lines.get(line.clone())),
            SessionState::Answered(Received::Agent(answer)) => Answer::Agent(answer),
            SessionState::Answered(Received::Opened) => Answer::Opened,
            SessionState::Idle
            | SessionState::Connecting { .. }
            | SessionState::Pending { .. }
            | SessionState::Closed => Answer::Scheduler(&[]),
        }
    }

    /// Records when a request for stats of `target` was answered, and returns the time since the session's previous read of
    /// the same target.
    pub(super) fn record_read(&mut self, target: &str, now: Instant) -> Option<Duration> {
        match self.answer() {
            Answer::Scheduler(_) => self.baselines.read(target, now),
            Answer::Agent(_) | Answer::Opened => None,
        }
    }

    /// Drops the answer. The session is idle then, unless bytes came after the answer, which are unsolicited.
    pub(super) fn finish(&mut self) {
        if let SessionState::Answered(_) = self.state {
            self.become_idle();
        }
        self.lines.clear(KEPT_BYTES);
    }

    fn become_idle(&mut self) {
        self.state = if self.lines.rest().is_empty() { SessionState::Idle } else { SessionState::Closed };
    }

    /// Reads the complete lines that were received: at most a VMM's reply, hello, and the answer.
    fn read(&mut self) -> Option<Outcome> {
        while let Some(line) = self.lines.next_line(self.max_line_bytes()) {
            if let Some(outcome) = self.on_line(line.start..line.end.saturating_sub(1)) {
                return Some(outcome);
            }
        }
        self.check_size()
    }

    /// Takes in a line without its LF.
    fn on_line(&mut self, at: Range<usize>) -> Option<Outcome> {
        let line = self.lines.get(at.clone());
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
                        return self.answered(Ok(Received::Opened));
                    }
                }
                Err(error) => return self.close(error),
            },
            SessionState::Pending { expects: Expected::Answer, written, .. } => {
                let read = read_answer(line, at.start, self.framing, *written);
                return self.answered(read);
            }
            SessionState::Idle | SessionState::Answered(_) | SessionState::Closed => {}
        }
        None
    }

    /// From here on the VMM forwards the stream to the agent.
    fn on_connected(&mut self) {
        if let SessionState::Connecting { request, .. } = std::mem::replace(&mut self.state, SessionState::Closed) {
            self.state = SessionState::Pending { request, written: Written::Partly(0), expects: Expected::Hello };
        }
    }

    fn answered(&mut self, read: Result<Received, SchedStatsError>) -> Option<Outcome> {
        match read {
            Ok(received) => {
                self.state = SessionState::Answered(received);
                Some(Ok(()))
            }
            Err(error) if error.keeps_session() => {
                if let SchedStatsError::NoScheduler { .. } = error {
                    // The next answer comes over another connection of the agent's.
                    self.baselines.clear();
                }
                self.become_idle();
                self.lines.clear(KEPT_BYTES);
                Some(Err(error))
            }
            Err(error) => self.close(error),
        }
    }

    /// Checks that a line without an end is not too long yet.
    fn check_size(&mut self) -> Option<Outcome> {
        let rest = self.lines.rest();
        let size = rest.len();
        let error = match self.state {
            SessionState::Connecting { .. } if size >= hybrid::MAX_REPLY_BYTES => not_ok(rest),
            SessionState::Pending { expects: Expected::Hello, .. } if size >= MAX_HELLO_BYTES => {
                let quoted = quoted(rest);
                SchedStatsError::unreachable(format!("the first {size} bytes are not an agent's hello: {quoted}"))
            }
            SessionState::Pending { expects: Expected::Answer, .. } if size >= self.max_line_bytes() => {
                let max = self.max_response_bytes();
                SchedStatsError::ResponseTooLarge { size: max + 1, max }
            }
            SessionState::Connecting { .. }
            | SessionState::Pending { .. }
            | SessionState::Idle
            | SessionState::Answered(_)
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
        let torn = match self.lines.rest().len() {
            0 => String::new(),
            torn => format!(", {torn} bytes into a line"),
        };
        SchedStatsError::unreachable(format!("{cause}{torn}; {hint}"))
    }
}

/// Returns why there is no hello of an agent's after `ms` milliseconds.
fn no_hello(ms: u128, progress: ConnectProgress) -> String {
    match progress {
        ConnectProgress::NoDriver => format!(
            "no driver yet: no vsock driver of the guest has taken the request within {ms} ms; is the guest up, and has \
             it the module vmw_vsock_virtio_transport?"
        ),
        ConnectProgress::Connecting => {
            format!("no connection within {ms} ms: the guest's vsock driver is not up yet, or the guest is paused")
        }
        ConnectProgress::Connected => format!(
            "connected, but no hello within {ms} ms: the guest is paused or overloaded, or another program is there"
        ),
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
        Ok(Envelope::Agent(_)) | Err(_) if hybrid::is_ok(line) => Err(SchedStatsError::unreachable(format!(
            "the first line is not an agent's hello: {} (a VMM's socket is named hybrid:PATH)",
            quoted(line)
        ))),
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

/// Reads the line that must be the answer, and begins at `start` of what was read.
fn read_answer(line: &[u8], start: usize, framing: Framing, written: Written) -> Result<Received, SchedStatsError> {
    let received = match framing {
        Framing::Plain => Received::Scheduler(start..start + line.len()),
        Framing::Envelope => match strip_envelope(line) {
            Some(inner) => {
                let start = start + STATS_PREFIX.len();
                Received::Scheduler(start..start + inner.len())
            }
            None => read_agents_answer(line)?,
        },
    };
    match written {
        Written::Fully => Ok(received),
        Written::Partly(_) | Written::Failed(_) => {
            Err(SchedStatsError::malformed("the answer came before the request was written"))
        }
    }
}

/// Reads an answer of the agent's own.
fn read_agents_answer(line: &[u8]) -> Result<Received, SchedStatsError> {
    match agent_message::parse(line)? {
        Envelope::Agent(answer) => Ok(Received::Agent(Box::new(answer))),
        Envelope::RelayError(error) => Err(agent_message::error(&error)),
        Envelope::Hello(_) => Err(SchedStatsError::malformed("the agent sent hello twice")),
    }
}

/// Returns the error of a request to a scheduler without an agent that only an agent can answer.
fn without_an_agent(line: &RequestLine) -> SchedStatsError {
    let line = quoted(line.as_bytes());
    SchedStatsError::InvalidRequest {
        reason: format!("there is no agent at a scheduler's own socket to answer {line}"),
    }
}

/// Returns the start of what a peer sent, for a message.
fn quoted(bytes: &[u8]) -> String {
    let beginning = String::from_utf8_lossy(bytes.get(..bytes.len().min(80)).unwrap_or(&[]));
    format!("{:?}", PeerText::line(&beginning))
}

#[cfg(test)]
mod tests;
