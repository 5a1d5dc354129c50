//! The session machine: one host connection and at most one scheduler connection, without I/O.
//!
//! [`Session::action`] says what is to be done next; the driver does it on its descriptors and reports what came of
//! it. One [`LineBuffer`] serves the request and the answer, since they alternate; a small read-ahead keeps what a
//! host sends behind its request until the answer is out. State changes only on a report, so a driver may ask for
//! the action as often as it likes.
//!
//! ```text
//! Notice(hello) -> Request -> Connecting -> Forwarding -> Answering -> Answer -> Request
//!                     |           `-> Notice(no_scheduler) -> Request
//!                     |-> Dropping -> Notice(request_too_large) -> Request
//!                     `-> Waiting -> Notice(scheduler_ready) -> Request
//! ```
//!
//! The end of the host's stream closes the session from every state; the scheduler's end closes it behind an
//! envelope that says so.

use scx_vsock_wire::envelope::{Notice, saturate};
use scx_vsock_wire::limits::{AGENT_LINE_PREFIX, WAIT_SCHEDULER};
use scx_vsock_wire::line::copy_front;
use scx_vsock_wire::{AgentEvent, Envelope, Fill, LineBuffer, RelayError, STATS_PREFIX, STATS_SUFFIX, Text};

/// Bytes of one read from the host, and so of what can stand behind a request in the read-ahead.
pub const READ_AHEAD: usize = 4096;

/// The memory of one session. All zero when new, so that a static one costs no space in a program file, and pages
/// that no line has reached cost no memory.
///
/// ```
/// use scx_vsock_agent::session::{Buffers, Session};
///
/// let mut buffers = Buffers::<4096>::new(); // for lines of up to 4 KiB
/// let mut session = Session::new(&mut buffers);
/// session.open("0.1.0");
/// assert!(!session.is_closed());
/// ```
#[derive(Debug)]
pub struct Buffers<const MAX: usize> {
    line: LineBuffer<MAX>,
    ahead: ReadAhead,
}

impl<const MAX: usize> Buffers<MAX> {
    /// Empty buffers.
    ///
    /// ```
    /// use scx_vsock_agent::session::Buffers;
    ///
    /// static BUFFERS: [Buffers<4096>; 2] = [const { Buffers::new() }; 2];
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self { line: LineBuffer::new(), ahead: ReadAhead::new() }
    }
}

impl<const MAX: usize> Default for Buffers<MAX> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a host sent behind the request that is being served.
#[derive(Debug)]
struct ReadAhead {
    bytes: [u8; READ_AHEAD],
    start: usize,
    end: usize,
}

impl ReadAhead {
    const fn new() -> Self {
        Self { bytes: [0; READ_AHEAD], start: 0, end: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Keeps `bytes`, which are no more than one read.
    fn keep(&mut self, bytes: &[u8]) {
        self.start = 0;
        self.end = copy_front(&mut self.bytes, bytes);
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }
}

/// What is to be done next.
///
/// ```
/// use scx_vsock_agent::session::{Action, Session};
///
/// fn drive<const MAX: usize>(session: &mut Session<'_, MAX>, host: &mut Vec<u8>) {
///     match session.action() {
///         Action::WriteHost(pieces) => {
///             let bytes = pieces.concat();
///             host.extend(&bytes);
///             session.host_wrote(bytes.len());
///         }
///         Action::ReadHost(_buffer) => { /* ... read, and `session.host_read(count)` */ }
///         // ... and so on
///         _ => {}
///     }
/// }
/// # let mut buffers = scx_vsock_agent::session::Buffers::<64>::new();
/// # let mut session = Session::new(&mut buffers);
/// # session.open("0.1.0");
/// # let mut host = Vec::new();
/// # drive(&mut session, &mut host);
/// # assert!(host.ends_with(b"}}\n"));
/// ```
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'s> {
    /// Read from the host into this buffer; report with [`Session::host_read`].
    ReadHost(&'s mut [u8]),
    /// Write these pieces to the host, in order; report with [`Session::host_wrote`].
    WriteHost([&'s [u8]; 3]),
    /// See to it that the scheduler is connected; report with [`Session::scheduler_connected`] or
    /// [`Session::scheduler_refused`].
    ConnectScheduler,
    /// See to it that the scheduler is connected, and try again later while it cannot be; report with
    /// [`Session::scheduler_connected`].
    AwaitScheduler,
    /// Write this to the scheduler; report with [`Session::scheduler_wrote`].
    WriteScheduler(&'s [u8]),
    /// Read from the scheduler into this buffer; report with [`Session::scheduler_read`].
    ReadScheduler(&'s mut [u8]),
    /// Close both connections. Nothing follows.
    Close,
}

#[derive(Debug)]
enum State {
    Closed,
    /// An envelope in the agent's own name, kept beside the state, is on its way to the host.
    Notice {
        sent: usize,
        then: Then,
    },
    /// A request line is being read from the host.
    Request,
    /// A request line over the cap is being read and dropped.
    Dropping {
        size: u32,
    },
    /// A request line is complete and wants a scheduler.
    Connecting,
    /// The host asked to be told when the scheduler accepts a connection.
    Waiting,
    /// The request line is on its way to the scheduler.
    Forwarding {
        sent: usize,
    },
    /// The scheduler's line is being read.
    Answering,
    /// The scheduler's line, in its frame, is on its way to the host.
    Answer {
        sent: usize,
        then: Then,
    },
}

/// What follows an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    ReadRequest,
    Close,
    /// Bytes stood behind the scheduler's line: say so, then close.
    SayUnasked,
}

/// One session.
///
/// ```
/// use scx_vsock_agent::session::{Action, Buffers, Session};
///
/// let mut buffers = Buffers::<4096>::new();
/// let mut session = Session::new(&mut buffers);
/// session.open("0.1.0");
/// let Action::WriteHost(hello) = session.action() else { unreachable!() };
/// let count = hello.concat().len(); // ... are written
/// session.host_wrote(count);
/// let Action::ReadHost(buffer) = session.action() else { unreachable!() };
/// buffer[..16].copy_from_slice(b"{\"req\":\"stats\"}\n");
/// session.host_read(16);
/// assert_eq!(session.action(), Action::ConnectScheduler);
/// ```
#[derive(Debug)]
pub struct Session<'a, const MAX: usize> {
    line: &'a mut LineBuffer<MAX>,
    ahead: &'a mut ReadAhead,
    notice: Notice,
    state: State,
}

impl<'a, const MAX: usize> Session<'a, MAX> {
    /// A closed session on `buffers`.
    ///
    /// ```
    /// use scx_vsock_agent::session::{Buffers, Session};
    ///
    /// let mut buffers = Buffers::<4096>::new();
    /// assert!(Session::new(&mut buffers).is_closed());
    /// ```
    #[must_use]
    pub fn new(buffers: &'a mut Buffers<MAX>) -> Self {
        Self { line: &mut buffers.line, ahead: &mut buffers.ahead, notice: Notice::new(), state: State::Closed }
    }

    /// A host has connected: begins with hello. `version` is the agent's.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// session.open("0.1.0");
    /// let Action::WriteHost([hello, ..]) = session.action() else { unreachable!() };
    /// assert!(hello.starts_with(br#"{"hello":{"protocol":1,"#));
    /// ```
    pub fn open(&mut self, version: &str) {
        self.line.clear();
        self.ahead.clear();
        self.notice(&Envelope::hello(version), Then::ReadRequest);
    }

    /// Whether the session is over.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// session.open("0.1.0");
    /// assert!(!session.is_closed());
    /// session.host_ended();
    /// assert!(session.is_closed());
    /// ```
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether bytes of the scheduler would be unasked now. The driver then looks at the scheduler's connection
    /// before it does anything else.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// assert!(matches!(session.action(), Action::ReadHost(_)) && session.awaits_no_answer());
    /// ```
    #[must_use]
    pub fn awaits_no_answer(&self) -> bool {
        match self.state {
            State::Request | State::Dropping { .. } | State::Connecting | State::Waiting | State::Forwarding { .. } => {
                true
            }
            State::Closed | State::Notice { .. } | State::Answering | State::Answer { .. } => false,
        }
    }

    /// Whether the host asked to be told when the scheduler accepts a connection, and was not told yet.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// let line = b"{\"agent\":\"wait_scheduler\"}\n";
    /// let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// buffer[..line.len()].copy_from_slice(line);
    /// session.host_read(line.len());
    /// assert!(session.awaits_scheduler());
    /// ```
    #[must_use]
    pub fn awaits_scheduler(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// What is to be done next.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// assert_eq!(session.action(), Action::Close, "it is not open yet");
    /// session.open("0.1.0");
    /// assert!(matches!(session.action(), Action::WriteHost(_)));
    /// assert!(matches!(session.action(), Action::WriteHost(_)), "nothing was reported in between");
    /// ```
    pub fn action(&mut self) -> Action<'_> {
        self.take_read_ahead();
        match &self.state {
            State::Closed => Action::Close,
            State::Notice { sent, .. } => Action::WriteHost([self.notice.get(*sent..).unwrap_or(&[]), &[], &[]]),
            State::Request | State::Dropping { .. } => {
                let spare = self.line.spare();
                let count = spare.len().min(READ_AHEAD);
                Action::ReadHost(spare.get_mut(..count).unwrap_or(&mut []))
            }
            State::Connecting => Action::ConnectScheduler,
            State::Waiting => Action::AwaitScheduler,
            State::Forwarding { sent } => Action::WriteScheduler(self.line.line().get(*sent..).unwrap_or(&[])),
            State::Answering => Action::ReadScheduler(self.line.spare()),
            State::Answer { sent, .. } => Action::WriteHost(framed(self.line.content(), *sent)),
        }
    }

    /// The host's stream gave `count` bytes; none means that it ended.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// buffer[..4].copy_from_slice(b"{}\n{");
    /// session.host_read(4);
    /// assert_eq!(session.action(), Action::ConnectScheduler, "a whole line is there");
    /// ```
    pub fn host_read(&mut self, count: usize) {
        if count == 0 {
            return self.host_ended();
        }
        let fill = self.line.fill(count);
        if let Fill::Line { behind: 1.. } = fill {
            self.ahead.keep(self.line.behind());
        }
        self.request_filled(fill);
    }

    /// The host's stream ended, wholly or for sending, or failed: so does the session.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// session.open("0.1.0");
    /// session.host_ended();
    /// assert_eq!(session.action(), Action::Close);
    /// ```
    pub fn host_ended(&mut self) {
        self.state = State::Closed;
    }

    /// The host's stream took `count` bytes.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// session.host_wrote(10); // the rest of the hello had no room
    /// let Action::WriteHost([rest, ..]) = session.action() else { unreachable!() };
    /// assert!(rest.starts_with(br#""protocol":1"#));
    /// ```
    pub fn host_wrote(&mut self, count: usize) {
        match &mut self.state {
            State::Notice { sent, then } => {
                *sent = sent.saturating_add(count);
                if *sent >= self.notice.len() {
                    let then = *then;
                    self.go_on(then);
                }
            }
            State::Answer { sent, then } => {
                *sent = sent.saturating_add(count);
                if *sent >= framed_length(self.line.content()) {
                    let then = *then;
                    self.go_on(then);
                }
            }
            _ => {}
        }
    }

    /// The scheduler is connected.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// # let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// # buffer[..3].copy_from_slice(b"{}\n");
    /// # session.host_read(3);
    /// assert_eq!(session.action(), Action::ConnectScheduler);
    /// session.scheduler_connected();
    /// assert_eq!(session.action(), Action::WriteScheduler(b"{}\n"));
    /// ```
    pub fn scheduler_connected(&mut self) {
        match self.state {
            State::Connecting => self.state = State::Forwarding { sent: 0 },
            State::Waiting => self.notice(&Envelope::Agent(AgentEvent::SchedulerReady), Then::ReadRequest),
            _ => {}
        }
    }

    /// The scheduler could not be connected; `sched_ext` and `ops` are what the guest's kernel says of sched_ext.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # use scx_vsock_wire::Text;
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// # let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// # buffer[..3].copy_from_slice(b"{}\n");
    /// # session.host_read(3);
    /// session.scheduler_refused(2, Text::first_line(b"disabled\n"), Text::default());
    /// let Action::WriteHost([error, ..]) = session.action() else { unreachable!() };
    /// assert!(error.starts_with(br#"{"relay_error":{"no_scheduler":{"errno":2,"sched_ext":"disabled""#));
    /// ```
    pub fn scheduler_refused(&mut self, errno: i32, sched_ext: Text, ops: Text) {
        if let State::Connecting = self.state {
            self.relay_error(RelayError::NoScheduler { errno, sched_ext, ops });
        }
    }

    /// The scheduler's stream took `count` bytes.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// # let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// # buffer[..3].copy_from_slice(b"{}\n");
    /// # session.host_read(3);
    /// # session.scheduler_connected();
    /// session.scheduler_wrote(2);
    /// assert_eq!(session.action(), Action::WriteScheduler(b"\n"));
    /// session.scheduler_wrote(1);
    /// assert!(matches!(session.action(), Action::ReadScheduler(_)));
    /// ```
    pub fn scheduler_wrote(&mut self, count: usize) {
        if let State::Forwarding { sent } = &mut self.state {
            *sent = sent.saturating_add(count);
            if *sent >= self.line.line().len() {
                self.line.clear();
                self.state = State::Answering;
            }
        }
    }

    /// The scheduler's stream gave `count` bytes into the buffer of [`Action::ReadScheduler`]; none means that it
    /// ended.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// # let Action::ReadHost(buffer) = session.action() else { unreachable!() };
    /// # buffer[..3].copy_from_slice(b"{}\n");
    /// # session.host_read(3);
    /// # session.scheduler_connected();
    /// # session.scheduler_wrote(3);
    /// let Action::ReadScheduler(buffer) = session.action() else { unreachable!() };
    /// buffer[..12].copy_from_slice(b"{\"errno\":0}\n");
    /// session.scheduler_read(12);
    /// let Action::WriteHost(pieces) = session.action() else { unreachable!() };
    /// assert_eq!(pieces.concat(), b"{\"stats\":{\"errno\":0}}\n");
    /// ```
    pub fn scheduler_read(&mut self, count: usize) {
        if count == 0 {
            return self.scheduler_ended(0);
        }
        if let State::Answering = self.state {
            match self.line.fill(count) {
                Fill::Partial => {}
                Fill::Line { behind: 0 } => self.state = State::Answer { sent: 0, then: Then::ReadRequest },
                Fill::Line { .. } => self.state = State::Answer { sent: 0, then: Then::SayUnasked },
                Fill::Over => {
                    let max = saturate(MAX);
                    self.relay_error(RelayError::ResponseTooLarge { size: max.saturating_add(1), max });
                }
            }
        }
    }

    /// The scheduler's stream ended (errno 0) or failed.
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// session.scheduler_ended(0);
    /// let Action::WriteHost([error, ..]) = session.action() else { unreachable!() };
    /// assert_eq!(error, b"{\"relay_error\":{\"scheduler_gone\":{\"errno\":0}}}\n");
    /// let count = error.len();
    /// session.host_wrote(count);
    /// assert_eq!(session.action(), Action::Close);
    /// ```
    pub fn scheduler_ended(&mut self, errno: i32) {
        if !self.is_closed() {
            self.relay_error(RelayError::SchedulerGone { errno });
        }
    }

    /// Bytes came from the scheduler although [`awaits_no_answer`](Self::awaits_no_answer).
    ///
    /// ```
    /// # use scx_vsock_agent::session::{Action, Buffers, Session};
    /// # let mut buffers = Buffers::<64>::new();
    /// # let mut session = Session::new(&mut buffers);
    /// # session.open("0.1.0");
    /// # session.host_wrote(usize::MAX); // the hello
    /// session.scheduler_unasked();
    /// let Action::WriteHost([error, ..]) = session.action() else { unreachable!() };
    /// assert_eq!(error, b"{\"relay_error\":{\"scheduler_unasked\":{}}}\n");
    /// ```
    pub fn scheduler_unasked(&mut self) {
        if !self.is_closed() {
            self.relay_error(RelayError::SchedulerUnasked {});
        }
    }

    fn notice(&mut self, envelope: &Envelope<Text>, then: Then) {
        envelope.emit_into(&mut self.notice);
        self.state = State::Notice { sent: 0, then };
    }

    fn relay_error(&mut self, error: RelayError<Text>) {
        let then = if error.ends_session() { Then::Close } else { Then::ReadRequest };
        self.notice(&Envelope::RelayError(error), then);
    }

    fn go_on(&mut self, then: Then) {
        match then {
            Then::ReadRequest => {
                self.line.clear();
                self.state = State::Request;
            }
            Then::Close => self.state = State::Closed,
            Then::SayUnasked => self.relay_error(RelayError::SchedulerUnasked {}),
        }
    }

    /// Serves what the host sent ahead before more is read from it.
    fn take_read_ahead(&mut self) {
        while let (State::Request | State::Dropping { .. }, false) = (&self.state, self.ahead.bytes().is_empty()) {
            let (taken, fill) = self.line.take_line(self.ahead.bytes());
            self.ahead.consume(taken);
            self.request_filled(fill);
        }
    }

    fn request_filled(&mut self, fill: Fill) {
        match (&self.state, fill) {
            (State::Request, Fill::Line { .. }) => self.route(),
            (State::Request, Fill::Over) => self.drop_more(0),
            (State::Dropping { size }, Fill::Line { .. }) => {
                let size = size.saturating_add(saturate(self.line.line().len()));
                self.relay_error(RelayError::RequestTooLarge { size, max: saturate(MAX) });
            }
            (State::Dropping { size }, Fill::Partial | Fill::Over) => self.drop_more(*size),
            _ => {}
        }
    }

    fn drop_more(&mut self, before: u32) {
        let size = before.saturating_add(saturate(self.line.len()));
        self.line.clear();
        self.state = State::Dropping { size };
    }

    /// A request line is complete.
    fn route(&mut self) {
        let content = self.line.content();
        if content == WAIT_SCHEDULER {
            self.state = State::Waiting;
        } else if content.starts_with(AGENT_LINE_PREFIX) {
            self.relay_error(RelayError::UnknownVerb {});
        } else {
            self.state = State::Connecting;
        }
    }
}

/// What is behind the answer in its frame: the suffix and the line's end.
const FRAME_END: &[u8] = b"}\n";
const _: () = assert!(FRAME_END.len() == STATS_SUFFIX.len() + 1);

fn framed_length(content: &[u8]) -> usize {
    STATS_PREFIX.len() + content.len() + FRAME_END.len()
}

/// The answer in its frame, without the first `sent` bytes.
fn framed(content: &[u8], sent: usize) -> [&[u8]; 3] {
    let mut skip = sent;
    [STATS_PREFIX, content, FRAME_END].map(|piece| {
        let rest = piece.get(skip..).unwrap_or(&[]);
        skip = skip.saturating_sub(piece.len());
        rest
    })
}

#[cfg(any(test, fuzzing))]
pub mod model;

#[cfg(test)]
mod tests;
