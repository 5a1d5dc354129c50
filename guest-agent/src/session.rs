//! The session machine: one host connection and at most one scheduler connection, without I/O and without a clock.
//!
//! [`Session::action`] returns what is to be done next; the driver does it on its descriptors and reports the outcome.
//! One [`LineBuffer`] serves the request, the answer and the agent's own envelopes, since they alternate; a small
//! read-ahead keeps what a host sends after its request until the answer is out. State changes only on a report, so a
//! driver may ask for the action as often as it likes.
//!
//! ```text
//! Reporting -> Sending(hello) -> Request
//! Request -> Connecting -> Checking -> Sending(request) -> Answer -> Sending(stats) -> Request
//!    |          |   `-> Reporting -> Sending(no_scheduler) -> Request
//!    |          `-> Sending(scheduler_ready) -> Request
//!    |-> Sending(request_too_large) -> Request
//!    `-> Reporting -> Sending(sched_ext) -> Request
//! ```
//!
//! A host that closes ends the session in every state. One that only ends its sending side has every complete line
//! answered first: the end is read after them. The scheduler's end ends the session with an envelope that says so.

use scx_vsock_wire::emit::{self, Notice};
use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::limits::{AGENT_LINE_PREFIX, MAX_AGENT_ENVELOPE_BYTES};
use scx_vsock_wire::line::{after, copy_prefix, up_to};
use scx_vsock_wire::{Fill, LineBuffer, STATS_PREFIX, STATS_SUFFIX, Verb};

/// Bytes of one read from the host, and so of what can stand after a request in the read-ahead.
pub const READ_AHEAD: usize = 2048;

/// What a host sent after the request that is being served: no more than one read.
#[derive(Debug)]
#[repr(C)]
struct ReadAhead {
    length: usize,
    bytes: [u8; READ_AHEAD],
}

/// A session's peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The host.
    Host,
    /// The scheduler.
    Scheduler,
}

/// What is to be done next. Its outcome is reported with [`Session::done`].
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'s> {
    /// Read from the peer into this buffer. No bytes mean that the peer ended its sending side.
    Read(Peer, &'s mut [u8]),
    /// Write these pieces to the peer, in order.
    Write(Peer, [&'s [u8]; 3]),
    /// Connect to the scheduler, unless that is done. Try again while that fails, until the time is over; a failure is the
    /// last one's.
    Connect {
        /// Milliseconds from the first time that this action was returned.
        timeout_ms: u32,
    },
    /// Read one byte from the scheduler without waiting, where none should be; report the outcome with
    /// [`Session::checked`]. It is done before anything else, and as the last thing before the request is written.
    Check,
    /// Write the envelope of this report, which has what the guest's kernel says, to the beginning of this buffer; the
    /// outcome is the length of its line. [`emit`] has the functions.
    Report(KernelReport, &'s mut [u8]),
    /// Close both connections. Nothing follows.
    Close,
}

/// The outcome of an [`Action`]: how many bytes it moved, or an error number.
///
/// One word, as system calls have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome(pub(crate) i32);

impl Outcome {
    /// Nothing can be done now.
    pub const BLOCKED: Self = Self(i32::MIN);

    /// The action is done, and moved so many bytes.
    #[must_use]
    pub fn done(bytes: usize) -> Self {
        Self(i32::try_from(bytes).unwrap_or(i32::MAX))
    }

    /// The connection failed with this error number, which is positive.
    #[must_use]
    pub const fn failed(errno: i32) -> Self {
        Self(-errno)
    }

    /// Returns how many bytes it moved, if it is done.
    #[must_use]
    pub fn bytes(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }
}

/// An envelope with what the guest's kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelReport {
    /// The hello, with the kernel's boot id and the length of the buffer as the cap of lines.
    Hello,
    /// The answer `sched_ext`.
    SchedExt,
    /// The relay error `no_scheduler`.
    NoScheduler {
        /// What `connect` failed with.
        errno: i32,
    },
    /// The relay error `scheduler_gone`.
    SchedulerGone {
        /// What the connection failed with; 0 for an orderly end.
        errno: i32,
    },
}

impl KernelReport {
    fn next(self) -> Next {
        match self {
            Self::Hello | Self::SchedExt | Self::NoScheduler { .. } => Next::Request,
            Self::SchedulerGone { .. } => Next::Close,
        }
    }
}

/// Where a session is. `repr(u8)` makes `Closed` zero, see [`Session::new`].
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum State {
    Closed,
    /// A request line is being read from the host.
    Request {
        /// Bytes of the line that were dropped, since it is over the cap.
        dropped: u32,
    },
    /// A scheduler is needed.
    Connecting {
        timeout_ms: u32,
        next: Connected,
    },
    /// The request is to be forwarded if the scheduler has sent nothing.
    Checking,
    /// The scheduler's line is being read.
    Answer,
    /// The buffer is to hold an envelope with what the kernel says.
    Reporting(KernelReport),
    /// The buffer's line is on its way.
    Sending {
        frame: Frame,
        next: Next,
        sent: usize,
    },
}

/// What a scheduler is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connected {
    /// The request in the buffer.
    Forward,
    /// The host waits for it.
    Announce,
}

/// What stands around a line that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Nothing: it is a request, or an envelope.
    None,
    /// The frame of a scheduler's answer.
    Stats,
}

/// What follows a line that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The scheduler's answer: the line is for the scheduler.
    Answer,
    Request,
    Close,
    /// Bytes stood after the scheduler's line: report them, then close.
    ReportUnsolicited,
}

/// One session, with buffers for lines of at most `MAX` bytes, which are at least [`MAX_AGENT_ENVELOPE_BYTES`].
///
/// ```
/// use scx_vsock_agent::session::{Action, KernelReport, Outcome, Peer, Session};
/// use scx_vsock_wire::{Text, emit};
///
/// let mut session = Session::<4096>::new();
/// session.open();
/// let Action::Report(KernelReport::Hello, buffer) = session.action(false) else { unreachable!() };
/// let length = emit::hello(buffer, Text::line(b"0.1.0"), Text::EMPTY, 4096);
/// session.done(Outcome::done(length));
/// let Action::Write(Peer::Host, hello) = session.action(false) else { unreachable!() };
/// let count = hello.concat().len(); // ... are written
/// session.done(Outcome::done(count));
/// let Action::Read(Peer::Host, buffer) = session.action(false) else { unreachable!() };
/// buffer[..16].copy_from_slice(b"{\"req\":\"stats\"}\n");
/// session.done(Outcome::done(16));
/// assert_eq!(session.action(false), Action::Connect { timeout_ms: 0 });
/// ```
///
/// ```compile_fail
/// // A buffer that cannot hold the agent's own envelopes.
/// let session = scx_vsock_agent::Session::<512>::new();
/// ```
#[derive(Debug)]
#[repr(C)]
pub struct Session<const MAX: usize> {
    state: State,
    line: LineBuffer<MAX>,
    ahead: ReadAhead,
}

impl<const MAX: usize> Default for Session<MAX> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const MAX: usize> Session<MAX> {
    /// Creates a closed session. All its bytes are zero, so that a static one takes no space in a program file, and
    /// pages that no line has reached take no memory.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(MAX >= MAX_AGENT_ENVELOPE_BYTES, "the agent's own envelopes do not fit into this buffer") };
        let ahead = ReadAhead { length: 0, bytes: [0; READ_AHEAD] };
        Self { line: LineBuffer::new(), ahead, state: State::Closed }
    }

    /// Begins with hello after a host has connected.
    pub fn open(&mut self) {
        self.ahead.length = 0;
        self.report(KernelReport::Hello);
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether the host waits for a scheduler that accepts a connection.
    #[must_use]
    pub fn awaits_scheduler(&self) -> bool {
        matches!(self.state, State::Connecting { next: Connected::Announce, .. })
    }

    /// Whether bytes of the scheduler would be unsolicited now.
    fn expects_no_answer(&self) -> bool {
        matches!(
            self.state,
            State::Request { .. }
                | State::Connecting { .. }
                | State::Checking
                | State::Sending { next: Next::Answer, .. }
        )
    }

    /// Returns what is to be done next. `scheduler_is_ready` is whether the scheduler's connection may have something to
    /// read; where that would be unsolicited it is checked first.
    pub fn action(&mut self, scheduler_is_ready: bool) -> Action<'_> {
        self.take_read_ahead();
        if scheduler_is_ready && self.expects_no_answer() {
            return Action::Check;
        }
        match self.state {
            State::Closed => Action::Close,
            State::Request { .. } => {
                let spare = self.line.spare();
                let count = spare.len().min(READ_AHEAD);
                Action::Read(Peer::Host, spare.split_at_mut(count).0)
            }
            State::Connecting { timeout_ms, .. } => Action::Connect { timeout_ms },
            State::Checking => Action::Check,
            State::Answer => Action::Read(Peer::Scheduler, self.line.spare()),
            State::Reporting(report) => Action::Report(report, self.line.spare()),
            State::Sending { frame, next, sent } => {
                let peer = if next == Next::Answer { Peer::Scheduler } else { Peer::Host };
                Action::Write(peer, unsent(&self.line, frame, sent))
            }
        }
    }

    /// Reports the outcome of [`action`](Self::action).
    pub fn done(&mut self, outcome: Outcome) {
        match outcome.bytes() {
            Some(count) => self.transferred(count),
            None if outcome == Outcome::BLOCKED => {}
            None => self.failed(-outcome.0),
        }
    }

    /// Reports the outcome of [`Action::Check`].
    pub fn checked(&mut self, outcome: Outcome) {
        if !self.expects_no_answer() {
            return;
        }
        match outcome {
            Outcome(1..) => self.send(Next::Close, Notice::UnsolicitedData, 0),
            Outcome::BLOCKED => {
                if let State::Checking = self.state {
                    self.state = State::Sending { frame: Frame::None, next: Next::Answer, sent: 0 };
                }
            }
            Outcome(errno) => self.scheduler_gone(-errno),
        }
    }

    /// Reports that the host closed its connection: so does the session.
    pub fn host_closed(&mut self) {
        self.state = State::Closed;
    }

    fn transferred(&mut self, count: usize) {
        match self.state {
            State::Request { .. } | State::Answer if count == 0 => self.failed(0),
            State::Request { dropped } => self.host_read(count, dropped),
            State::Connecting { next: Connected::Forward, .. } => self.state = State::Checking,
            State::Connecting { next: Connected::Announce, .. } => self.send(Next::Request, Notice::SchedulerReady, 0),
            State::Answer => self.scheduler_read(count),
            State::Reporting(report) => self.send_envelope(count, report.next()),
            State::Sending { frame, next, sent } => self.wrote(frame, next, sent + count),
            State::Closed | State::Checking => {}
        }
    }

    fn failed(&mut self, errno: i32) {
        match self.state {
            State::Connecting { .. } => self.report(KernelReport::NoScheduler { errno }),
            State::Sending { next: Next::Answer, .. } | State::Answer => self.scheduler_gone(errno),
            _ => self.host_closed(),
        }
    }

    fn host_read(&mut self, count: usize, dropped: u32) {
        let fill = self.line.fill(count);
        self.ahead.length = copy_prefix(&mut self.ahead.bytes, self.line.rest());
        self.request_filled(fill, dropped);
    }

    #[inline(never)]
    fn scheduler_read(&mut self, count: usize) {
        let next = match self.line.fill(count) {
            Fill::Partial => return,
            Fill::Line { after: 0 } => Next::Request,
            Fill::Line { .. } => Next::ReportUnsolicited,
            Fill::Over => return self.send(Next::Close, Notice::ResponseTooLarge, saturate(MAX + 1)),
        };
        self.state = State::Sending { frame: Frame::Stats, next, sent: 0 };
    }

    fn wrote(&mut self, frame: Frame, next: Next, sent: usize) {
        self.state = State::Sending { frame, next, sent };
        if sent < frame.bytes() + self.line.line().len() {
            return;
        }
        self.line.clear();
        self.state = match next {
            Next::Answer => State::Answer,
            Next::Request => State::Request { dropped: 0 },
            Next::Close => State::Closed,
            Next::ReportUnsolicited => return self.send(Next::Close, Notice::UnsolicitedData, 0),
        };
    }

    fn scheduler_gone(&mut self, errno: i32) {
        self.report(KernelReport::SchedulerGone { errno });
    }

    /// Gives up the buffer's line for an envelope that needs the kernel.
    #[inline(never)]
    fn report(&mut self, report: KernelReport) {
        self.line.clear();
        self.state = State::Reporting(report);
    }

    /// Gives up the buffer's line for an envelope without texts.
    #[inline(never)]
    fn send(&mut self, next: Next, notice: Notice, number: u32) {
        self.line.clear();
        let length = emit::notice(self.line.spare(), notice, number, saturate(MAX));
        self.send_envelope(length, next);
    }

    /// Sends the envelope that was written to the buffer.
    fn send_envelope(&mut self, length: usize, next: Next) {
        self.line.fill(length);
        self.state = State::Sending { frame: Frame::None, next, sent: 0 };
    }

    /// Serves what the host sent ahead before more is read from it. The line's buffer is empty then, and holds all of it.
    fn take_read_ahead(&mut self) {
        while let State::Request { dropped } = self.state
            && self.ahead.length > 0
        {
            let count = copy_prefix(self.line.spare(), up_to(&self.ahead.bytes, self.ahead.length));
            self.host_read(count, dropped);
        }
    }

    fn request_filled(&mut self, fill: Fill, dropped: u32) {
        let length = if let Fill::Line { .. } = fill { self.line.line().len() } else { self.line.len() };
        let size = saturate(dropped as usize + length);
        match fill {
            Fill::Partial => {}
            Fill::Over => {
                self.line.clear();
                self.state = State::Request { dropped: size };
            }
            Fill::Line { .. } if dropped > 0 => self.send(Next::Request, Notice::RequestTooLarge, size),
            Fill::Line { .. } => self.route(),
        }
    }

    /// Decides who a complete request line is for.
    fn route(&mut self) {
        self.state = match self.line.line().strip_prefix(AGENT_LINE_PREFIX).map(Verb::parse) {
            None => State::Connecting { timeout_ms: 0, next: Connected::Forward },
            Some(Some(Verb::WaitScheduler { timeout_ms })) => {
                State::Connecting { timeout_ms, next: Connected::Announce }
            }
            Some(Some(Verb::SchedExt {})) => return self.report(KernelReport::SchedExt),
            Some(None) => return self.send(Next::Request, Notice::UnknownVerb, 0),
        };
    }
}

impl Frame {
    /// Bytes that it adds to the line.
    fn bytes(self) -> usize {
        match self {
            Self::None => 0,
            Self::Stats => STATS_PREFIX.len() + STATS_SUFFIX.len(),
        }
    }
}

/// What stands after the answer in its frame: the suffix and the line's end.
const FRAME_END: &[u8] = b"}\n";
const _: () = assert!(FRAME_END.len() == STATS_SUFFIX.len() + 1);

/// The line in its frame, without the first `sent` bytes.
fn unsent<const MAX: usize>(line: &LineBuffer<MAX>, frame: Frame, sent: usize) -> [&[u8]; 3] {
    let (prefix, line, end): (&[u8], &[u8], &[u8]) = match frame {
        Frame::None => (&[], line.line(), &[]),
        Frame::Stats => (STATS_PREFIX, line.content(), FRAME_END),
    };
    let sent_of_line = sent.saturating_sub(prefix.len());
    let sent_of_end = sent_of_line.saturating_sub(line.len());
    [after(prefix, sent), after(line, sent_of_line), after(end, sent_of_end)]
}

#[cfg(any(test, fuzzing))]
pub mod oracle;

#[cfg(test)]
mod tests;
