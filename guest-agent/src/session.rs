//! The session machine: one host connection and at most one scheduler connection, without I/O and without a clock.
//!
//! [`Session::action`] returns what is to be done next; the driver does it on its descriptors and reports the outcome.
//! One [`LineBuffer`] serves the request, the answer and the agent's own envelopes, since they alternate; a small
//! read-ahead keeps what a host sends after its request until the answer is out. State changes only on a report, so a
//! driver may ask for the action as often as it likes.
//!
//! ```text
//! Sending(hello) -> Request -> Connecting -> Checking -> Forwarding -> Answer -> Sending(stats) -> Request
//!                      |            `-> Reporting -> Sending(no_scheduler) -> Request
//!                      |-> Discarding -> Sending(request_too_large) -> Request
//!                      |-> Waiting -> Sending(scheduler_ready) -> Request
//!                      |      `-> Reporting -> Sending(no_scheduler) -> Request
//!                      `-> Reporting -> Sending(sched_ext) -> Request
//! ```
//!
//! A host that closes ends the session in every state. One that only ends its sending side has every complete line
//! answered first: the end is read after them. The scheduler's end ends the session with an envelope that says so.

use scx_vsock_wire::emit;
use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::limits::{AGENT_LINE_PREFIX, MAX_AGENT_ENVELOPE_BYTES};
use scx_vsock_wire::line::{after, copy_prefix, up_to};
use scx_vsock_wire::{Fill, LineBuffer, STATS_PREFIX, STATS_SUFFIX, Text, Verb};

/// Bytes of one read from the host, and so of what can stand after a request in the read-ahead.
pub const READ_AHEAD: usize = 4096;

/// What a host sent after the request that is being served.
#[derive(Debug)]
#[repr(C)]
struct ReadAhead {
    start: usize,
    end: usize,
    bytes: [u8; READ_AHEAD],
}

impl ReadAhead {
    fn bytes(&self) -> &[u8] {
        after(up_to(&self.bytes, self.end), self.start)
    }

    fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Keeps `bytes`, which are no more than one read.
    fn keep(&mut self, bytes: &[u8]) {
        self.start = 0;
        self.end = copy_prefix(&mut self.bytes, bytes);
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'s> {
    /// Read from the host into this buffer; report with [`Session::transferred`] or [`Session::failed`].
    ReadHost(&'s mut [u8]),
    /// Write these pieces to the host, in order; report in the same way.
    WriteHost([&'s [u8]; 3]),
    /// Connect to the scheduler, unless that is done; report with [`Session::scheduler_connected`] or
    /// [`Session::no_scheduler`].
    ConnectScheduler,
    /// As [`ConnectScheduler`](Self::ConnectScheduler), but try again while that fails, until this time is over.
    AwaitScheduler {
        /// Milliseconds from the first time that this action was returned.
        timeout_ms: u32,
    },
    /// Read one byte from the scheduler without waiting, as the last thing before the request is written. Report with
    /// [`Session::scheduler_silent`] where none is there, else with [`Session::unsolicited_data`] or
    /// [`Session::scheduler_gone`].
    CheckScheduler,
    /// Write this to the scheduler; report with [`Session::transferred`] or [`Session::failed`].
    WriteScheduler(&'s [u8]),
    /// Read from the scheduler into this buffer; report in the same way.
    ReadScheduler(&'s mut [u8]),
    /// Write the envelope of this report, which has what the guest's kernel says, to the beginning of this buffer; report
    /// the length of its line with [`Session::transferred`]. [`emit`] has the functions.
    Report(KernelReport, &'s mut [u8]),
    /// Close both connections. Nothing follows.
    Close,
}

/// An envelope with what the guest's kernel says about sched_ext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelReport {
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
            Self::SchedExt | Self::NoScheduler { .. } => Next::Request,
            Self::SchedulerGone { .. } => Next::Close,
        }
    }
}

/// Where a session is. `repr(u8)` makes `Closed` zero, see [`Session::new`].
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum State {
    Closed,
    /// The buffer's line is on its way to the host.
    Sending {
        frame: Frame,
        sent: usize,
        next: Next,
    },
    /// A request line is being read from the host.
    Request,
    /// A request line over the cap is being read and dropped.
    Discarding {
        size: u32,
    },
    /// A request line is complete and needs a scheduler.
    Connecting,
    /// The host waits for a scheduler that accepts a connection.
    Waiting {
        timeout_ms: u32,
    },
    /// The request is to be forwarded if the scheduler has sent nothing.
    Checking,
    /// The request line is on its way to the scheduler.
    Forwarding {
        sent: usize,
    },
    /// The scheduler's line is being read.
    Answer,
    /// The buffer is to hold an envelope with what the kernel says.
    Reporting(KernelReport),
}

/// What stands around a line that is sent to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Nothing: it is an envelope.
    None,
    /// The frame of a scheduler's answer.
    Stats,
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

/// What follows a line that is sent to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Request,
    Close,
    /// Bytes stood after the scheduler's line: report them, then close.
    ReportUnsolicited,
}

/// One session, with buffers for lines of at most `MAX` bytes, which are at least [`MAX_AGENT_ENVELOPE_BYTES`].
///
/// ```
/// use scx_vsock_agent::session::{Action, Session};
/// use scx_vsock_wire::Text;
///
/// let mut session = Session::<4096>::new();
/// session.open(Text::first_line(b"0.1.0"), Text::EMPTY);
/// let Action::WriteHost(hello) = session.action() else { unreachable!() };
/// let count = hello.concat().len(); // ... are written
/// session.transferred(count);
/// let Action::ReadHost(buffer) = session.action() else { unreachable!() };
/// buffer[..16].copy_from_slice(b"{\"req\":\"stats\"}\n");
/// session.transferred(16);
/// assert_eq!(session.action(), Action::ConnectScheduler);
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
        let ahead = ReadAhead { bytes: [0; READ_AHEAD], start: 0, end: 0 };
        Self { line: LineBuffer::new(), ahead, state: State::Closed }
    }

    /// Begins with hello after a host has connected: with the agent's own version and the kernel's boot id.
    pub fn open(&mut self, version: Text<'_>, boot_id: Text<'_>) {
        self.ahead.clear();
        self.send(Next::Request, |out| emit::hello(out, version, boot_id, saturate(MAX)));
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether bytes of the scheduler would be unsolicited now. The driver then reads from the scheduler's connection,
    /// where something may be there, before it does anything else.
    #[must_use]
    pub fn expects_no_answer(&self) -> bool {
        matches!(
            self.state,
            State::Request
                | State::Discarding { .. }
                | State::Connecting
                | State::Waiting { .. }
                | State::Checking
                | State::Forwarding { .. }
        )
    }

    /// Whether the host waits for a scheduler that accepts a connection.
    #[must_use]
    pub fn awaits_scheduler(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Returns what is to be done next.
    pub fn action(&mut self) -> Action<'_> {
        self.take_read_ahead();
        match self.state {
            State::Closed => Action::Close,
            State::Sending { frame, sent, .. } => Action::WriteHost(unsent(&self.line, frame, sent)),
            State::Request | State::Discarding { .. } => {
                let spare = self.line.spare();
                let count = spare.len().min(READ_AHEAD);
                Action::ReadHost(spare.split_at_mut(count).0)
            }
            State::Connecting => Action::ConnectScheduler,
            State::Waiting { timeout_ms } => Action::AwaitScheduler { timeout_ms },
            State::Checking => Action::CheckScheduler,
            State::Forwarding { sent } => Action::WriteScheduler(after(self.line.line(), sent)),
            State::Answer => Action::ReadScheduler(self.line.spare()),
            State::Reporting(report) => Action::Report(report, self.line.spare()),
        }
    }

    /// Reports that the read or write of [`action`](Self::action) moved `count` bytes, or that its report has so many; none
    /// of a read means that the peer ended its sending side.
    pub fn transferred(&mut self, count: usize) {
        match self.state {
            State::Sending { .. } => self.host_wrote(count),
            State::Request | State::Discarding { .. } => self.host_read(count),
            State::Forwarding { .. } => self.scheduler_wrote(count),
            State::Answer => self.scheduler_read(count),
            State::Reporting(report) => self.begin_sending(count, report.next()),
            State::Closed | State::Connecting | State::Waiting { .. } | State::Checking => {}
        }
    }

    /// Reports that the read or write of [`action`](Self::action) failed, and with it the connection.
    pub fn failed(&mut self, errno: i32) {
        match self.state {
            State::Sending { .. } | State::Request | State::Discarding { .. } => self.host_closed(),
            _ => self.scheduler_gone(errno),
        }
    }

    fn host_read(&mut self, count: usize) {
        if count == 0 {
            return self.host_closed();
        }
        let fill = self.line.fill(count);
        if let Fill::Line { after: 1.. } = fill {
            self.ahead.keep(self.line.rest());
        }
        self.request_filled(fill);
    }

    /// Reports that the host closed its connection, or that it failed: so does the session.
    pub fn host_closed(&mut self) {
        self.state = State::Closed;
    }

    fn host_wrote(&mut self, count: usize) {
        if let State::Sending { frame, sent, next } = &mut self.state {
            *sent = sent.saturating_add(count);
            if *sent >= frame.bytes() + self.line.line().len() {
                let next = *next;
                self.proceed(next);
            }
        }
    }

    /// Reports that the scheduler is connected.
    pub fn scheduler_connected(&mut self) {
        match self.state {
            State::Connecting => self.state = State::Checking,
            State::Waiting { .. } => self.send(Next::Request, emit::scheduler_ready),
            _ => {}
        }
    }

    /// Reports that the scheduler could not be connected, within the time if the host waits for it.
    pub fn no_scheduler(&mut self, errno: i32) {
        if let State::Connecting | State::Waiting { .. } = self.state {
            self.report(KernelReport::NoScheduler { errno });
        }
    }

    /// Reports that the scheduler has sent nothing, see [`Action::CheckScheduler`].
    pub fn scheduler_silent(&mut self) {
        if let State::Checking = self.state {
            self.state = State::Forwarding { sent: 0 };
        }
    }

    fn scheduler_wrote(&mut self, count: usize) {
        if let State::Forwarding { sent } = &mut self.state {
            *sent = sent.saturating_add(count);
            if *sent >= self.line.line().len() {
                self.line.clear();
                self.state = State::Answer;
            }
        }
    }

    fn scheduler_read(&mut self, count: usize) {
        if count == 0 {
            return self.scheduler_gone(0);
        }
        if let State::Answer = self.state {
            let next = match self.line.fill(count) {
                Fill::Partial => return,
                Fill::Line { after: 0 } => Next::Request,
                Fill::Line { .. } => Next::ReportUnsolicited,
                Fill::Over => {
                    let max = saturate(MAX);
                    return self.send(Next::Close, |out| emit::response_too_large(out, max.saturating_add(1), max));
                }
            };
            self.state = State::Sending { frame: Frame::Stats, sent: 0, next };
        }
    }

    /// Reports that the scheduler closed its connection (errno 0) or that it failed.
    pub fn scheduler_gone(&mut self, errno: i32) {
        if !self.is_closed() {
            self.report(KernelReport::SchedulerGone { errno });
        }
    }

    /// Reports bytes of the scheduler although [`expects_no_answer`](Self::expects_no_answer).
    pub fn unsolicited_data(&mut self) {
        if !self.is_closed() {
            self.send(Next::Close, emit::unsolicited_data);
        }
    }

    /// Gives up the buffer's line for an envelope that needs the kernel.
    fn report(&mut self, report: KernelReport) {
        self.line.clear();
        self.state = State::Reporting(report);
    }

    /// Sends an envelope that `emit` writes.
    fn send(&mut self, next: Next, emit: impl FnOnce(&mut [u8]) -> usize) {
        self.line.clear();
        let length = emit(self.line.spare());
        self.begin_sending(length, next);
    }

    // One copy for all envelopes.
    #[inline(never)]
    fn begin_sending(&mut self, length: usize, next: Next) {
        self.line.fill(length);
        self.state = State::Sending { frame: Frame::None, sent: 0, next };
    }

    fn proceed(&mut self, next: Next) {
        match next {
            Next::Request => {
                self.line.clear();
                self.state = State::Request;
            }
            Next::Close => self.state = State::Closed,
            Next::ReportUnsolicited => self.unsolicited_data(),
        }
    }

    /// Serves what the host sent ahead before more is read from it.
    fn take_read_ahead(&mut self) {
        while let (State::Request | State::Discarding { .. }, false) = (self.state, self.ahead.bytes().is_empty()) {
            let (taken, fill) = self.line.take_line(self.ahead.bytes());
            self.ahead.consume(taken);
            self.request_filled(fill);
        }
    }

    fn request_filled(&mut self, fill: Fill) {
        match (self.state, fill) {
            (State::Request, Fill::Line { .. }) => self.route(),
            (State::Request, Fill::Over) => self.discard(0),
            (State::Discarding { size }, Fill::Line { .. }) => {
                let size = size.saturating_add(saturate(self.line.line().len()));
                self.send(Next::Request, |out| emit::request_too_large(out, size, saturate(MAX)));
            }
            (State::Discarding { size }, Fill::Partial | Fill::Over) => self.discard(size),
            _ => {}
        }
    }

    fn discard(&mut self, before: u32) {
        let size = before.saturating_add(saturate(self.line.len()));
        self.line.clear();
        self.state = State::Discarding { size };
    }

    /// Decides who a complete request line is for.
    fn route(&mut self) {
        match self.line.line().strip_prefix(AGENT_LINE_PREFIX).map(Verb::parse) {
            None => self.state = State::Connecting,
            Some(Some(Verb::WaitScheduler { timeout_ms })) => self.state = State::Waiting { timeout_ms },
            Some(Some(Verb::SchedExt {})) => self.report(KernelReport::SchedExt),
            Some(None) => self.send(Next::Request, emit::unknown_verb),
        }
    }
}

/// What stands after the answer in its frame: the suffix and the line's end.
const FRAME_END: &[u8] = b"}\n";
const _: () = assert!(FRAME_END.len() == STATS_SUFFIX.len() + 1);

/// The line in its frame, without the first `sent` bytes.
fn unsent<const MAX: usize>(line: &LineBuffer<MAX>, frame: Frame, sent: usize) -> [&[u8]; 3] {
    let mut skip = sent;
    let pieces = match frame {
        Frame::None => [line.line(), &[], &[]],
        Frame::Stats => [STATS_PREFIX, line.content(), FRAME_END],
    };
    pieces.map(|piece| {
        let rest = after(piece, skip);
        skip = skip.saturating_sub(piece.len());
        rest
    })
}

#[cfg(any(test, fuzzing))]
pub mod oracle;

#[cfg(test)]
mod tests;
