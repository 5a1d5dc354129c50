//! What a session must do, said a second time: a driver on memory, a host and a scheduler that do what bytes tell them,
//! and the exact bytes that the host must have read.

use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::vec::Vec;

use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::limits::AGENT_LINE_PREFIX;
use scx_vsock_wire::{Envelope, STATS_PREFIX, STATS_SUFFIX, SchedExtLine, Text, Verb, emit};

use super::{Action, KernelReport, Outcome, Peer, Session};

/// The cap of a line of the oracle: the least that there is.
pub const MAX: usize = 1024;

/// The hello of the oracle's agent.
#[must_use]
pub fn hello() -> Vec<u8> {
    Envelope::hello(Text::first_line(b"0.1.0"), Text::first_line(b"an-id"), MAX).emit().to_vec()
}

/// Opens a session whose agent says [`hello`].
pub fn open(session: &mut Session<MAX>) {
    session.open(Text::first_line(b"0.1.0"), Text::first_line(b"an-id\n"));
}

/// A driver on memory: what the host and the scheduler sent, and what they received.
#[derive(Debug)]
pub struct Driver {
    /// Bytes on their way from the host.
    pub from_host: VecDeque<u8>,
    /// Whether the host ended its sending side, after its bytes.
    pub host_ended: bool,
    /// What the host received.
    pub to_host: Vec<u8>,
    /// Bytes on their way from the scheduler.
    pub from_scheduler: VecDeque<u8>,
    /// What the scheduler received.
    pub to_scheduler: Vec<u8>,
    /// Whether the scheduler has closed, after its bytes.
    pub scheduler_closed: bool,
    /// Whether there is a connection to the scheduler.
    pub connected: bool,
    /// Whether the scheduler would accept one.
    pub reachable: bool,
    /// Whether the time to wait for a scheduler is over.
    pub time_is_over: bool,
    /// Whether bytes of the scheduler are only seen when the session reads them: the event comes late.
    pub late_events: bool,
}

/// What a step of the driver was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing could be done.
    Blocked,
    /// Something was done that says nothing about the host's lines.
    Done,
    /// The scheduler was connected.
    Connected,
    /// The scheduler could not be connected.
    Refused,
    /// Unsolicited bytes were reported.
    Unsolicited,
    /// The scheduler's end was reported.
    SchedulerGone,
    /// The end of the host's bytes was reported.
    HostEnded,
}

impl Driver {
    /// Creates a driver whose host has sent these bytes.
    #[must_use]
    pub fn new(from_host: &[u8]) -> Self {
        Self {
            from_host: from_host.iter().copied().collect(),
            host_ended: false,
            to_host: Vec::new(),
            from_scheduler: VecDeque::new(),
            to_scheduler: Vec::new(),
            scheduler_closed: false,
            connected: false,
            reachable: true,
            time_is_over: false,
            late_events: false,
        }
    }

    /// Does one action with at most `most` bytes, after a check of what is unsolicited.
    pub fn step(&mut self, session: &mut Session<MAX>, most: usize) -> Step {
        let scheduler_is_ready =
            self.connected && !self.late_events && (!self.from_scheduler.is_empty() || self.scheduler_closed);
        match session.action(scheduler_is_ready) {
            Action::Read(Peer::Host, buffer) => {
                let count = take(&mut self.from_host, buffer, most);
                return self.host_read(session, count);
            }
            Action::Write(Peer::Host, pieces) => {
                let count = append(&mut self.to_host, &pieces.concat(), most);
                session.done(Outcome::done(saturate(count)));
            }
            Action::Connect { .. } if self.connected || self.reachable => {
                self.connected = true;
                session.done(Outcome::done(0));
                return Step::Connected;
            }
            Action::Connect { timeout_ms: 1.. } if !self.time_is_over => return Step::Blocked,
            Action::Connect { .. } => {
                session.done(Outcome::failed(2));
                return Step::Refused;
            }
            Action::Check => return self.check_scheduler(session),
            Action::Write(Peer::Scheduler, pieces) => {
                let count = append(&mut self.to_scheduler, &pieces.concat(), most);
                session.done(Outcome::done(saturate(count)));
            }
            Action::Read(Peer::Scheduler, buffer) => {
                let count = take(&mut self.from_scheduler, buffer, most);
                return self.scheduler_read(session, count);
            }
            Action::Report(report, buffer) => {
                let length = write_report(report, buffer);
                session.done(Outcome::done(saturate(length)));
            }
            Action::Close => return Step::Blocked,
        }
        Step::Done
    }

    fn host_read(&self, session: &mut Session<MAX>, count: usize) -> Step {
        if count == 0 && !self.host_ended {
            return Step::Blocked;
        }
        session.done(Outcome::done(saturate(count)));
        if count == 0 { Step::HostEnded } else { Step::Done }
    }

    fn scheduler_read(&self, session: &mut Session<MAX>, count: usize) -> Step {
        if count == 0 && !self.scheduler_closed {
            return Step::Blocked;
        }
        session.done(Outcome::done(saturate(count)));
        if count == 0 { Step::SchedulerGone } else { Step::Done }
    }

    fn check_scheduler(&self, session: &mut Session<MAX>) -> Step {
        let (outcome, step) = if !self.from_scheduler.is_empty() {
            (Outcome::done(1), Step::Unsolicited)
        } else if self.scheduler_closed {
            (Outcome::done(0), Step::SchedulerGone)
        } else {
            (Outcome::BLOCKED, Step::Done)
        };
        session.checked(outcome);
        step
    }

    /// Does all that can be done.
    pub fn run(&mut self, session: &mut Session<MAX>) {
        while self.step(session, usize::MAX) != Step::Blocked {}
    }

    /// The lines that the host received.
    #[must_use]
    pub fn host_lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.to_host).lines().map(String::from).collect()
    }
}

/// Writes a report of a kernel that says nothing.
pub(super) fn write_report(report: KernelReport, out: &mut [u8]) -> usize {
    match report {
        KernelReport::SchedExt => {
            let mut line = SchedExtLine::begin(out);
            line.uptime(0);
            line.end(None)
        }
        KernelReport::NoScheduler { errno } => emit::no_scheduler(out, errno, Text::EMPTY, Text::EMPTY, Text::EMPTY),
        KernelReport::SchedulerGone { errno } => emit::scheduler_gone(out, errno, Text::EMPTY),
    }
}

fn take(from: &mut VecDeque<u8>, buffer: &mut [u8], most: usize) -> usize {
    let count = buffer.len().min(from.len()).min(most);
    for (to, byte) in buffer.iter_mut().zip(from.drain(..count)) {
        *to = byte;
    }
    count
}

fn append(to: &mut Vec<u8>, bytes: &[u8], most: usize) -> usize {
    let count = bytes.len().min(most);
    to.extend_from_slice(bytes.get(..count).unwrap_or(&[]));
    count
}

/// A relay error's line.
#[must_use]
pub fn relay_error(body: &str) -> Vec<u8> {
    format!("{{\"relay_error\":{{{body}}}}}\n").into_bytes()
}

/// The verb that this oracle sends.
#[must_use]
pub fn wait_scheduler() -> Vec<u8> {
    Verb::WaitScheduler { timeout_ms: 50 }.emit().to_vec()
}

/// The line of the verb that the agent answers at once, without its LF.
const SCHED_EXT: &[u8] = br#"{"agent":{"sched_ext":{}}}"#;

fn is_wait(line: &[u8]) -> bool {
    wait_scheduler().strip_suffix(b"\n") == Some(line)
}

/// What a line of the host must be answered with, as far as that does not depend on the scheduler.
#[must_use]
pub fn own_answer(line: &[u8]) -> Option<Vec<u8>> {
    let size = line.len() + 1;
    if size > MAX {
        Some(relay_error(&format!("\"request_too_large\":{{\"size\":{size},\"max\":{MAX}}}")))
    } else if line == SCHED_EXT {
        Some(b"{\"agent\":{\"sched_ext\":{\"uptime_us\":0}}}\n".to_vec())
    } else if line.starts_with(AGENT_LINE_PREFIX) && !is_wait(line) {
        Some(relay_error("\"unknown_verb\":{}"))
    } else {
        None
    }
}

/// A host, a scheduler and what the host must read.
struct Oracle {
    driver: Driver,
    /// Complete lines that the host has sent and that have no answer yet, without their LF.
    unanswered: VecDeque<Vec<u8>>,
    /// The line that the host is in.
    unfinished: Vec<u8>,
    /// How much of `to_scheduler` was answered.
    served: usize,
    /// What the scheduler has sent of an answer.
    answer: Vec<u8>,
    /// Whether the scheduler was asked and has not answered.
    asked: bool,
    /// All that the host must read, in order.
    expected: Vec<u8>,
    /// Whether the last of it ends the session.
    over: bool,
}

/// Lets the host and the scheduler do what `input` says, and compares what the host reads with what it must.
///
/// Each pair of bytes is something to do and how much of it.
///
/// # Panics
///
/// When the session does anything else than the oracle.
pub fn check(input: &[u8]) {
    let mut session = std::boxed::Box::new(Session::<MAX>::new());
    open(&mut session);
    let mut oracle = Oracle::new();
    for pair in input.chunks_exact(2) {
        let &[what, much] = pair else { continue };
        oracle.act(&mut session, what, usize::from(much));
    }
    // The rest comes to an end with a scheduler that answers.
    oracle.driver.reachable = true;
    oracle.driver.late_events = false;
    for _ in 0..100_000 {
        if oracle.asked && !oracle.driver.scheduler_closed {
            oracle.scheduler_sends(b"\n");
        }
        if !oracle.step(&mut session, usize::MAX) {
            break;
        }
    }
    assert_eq!(oracle.driver.to_host.len(), oracle.expected.len(), "the host did not receive all: {oracle:?}");
    assert!(oracle.over || oracle.unanswered.is_empty(), "a line has no answer: {oracle:?}");
    assert_eq!(session.is_closed(), oracle.over);
}

impl Oracle {
    fn new() -> Self {
        Self {
            driver: Driver::new(b""),
            unanswered: VecDeque::new(),
            unfinished: Vec::new(),
            served: 0,
            answer: Vec::new(),
            asked: false,
            expected: hello(),
            over: false,
        }
    }

    /// Does one thing.
    fn act(&mut self, session: &mut Session<MAX>, what: u8, much: usize) {
        match what % 16 {
            0 => self.host_sends(&std::vec![b'a' + what / 16; much]),
            // Up to a few bytes around the cap.
            1 => {
                let count = (MAX - 2 + much % 4).saturating_sub(self.unfinished.len());
                self.host_sends(&std::vec![b'z'; count]);
            }
            2 | 3 => self.host_sends(b"\n"),
            4 => self.host_sends(&wait_scheduler()),
            5 if much.is_multiple_of(2) => self.host_sends(b"{\"agent\":{\"?\":{}}}\n"),
            5 => self.host_sends(&[SCHED_EXT, b"\n"].concat()),
            6 => self.scheduler_sends(&std::vec![b'1'; much]),
            7 => {
                let count = (MAX - 2 + much % 4).saturating_sub(self.answer.len());
                self.scheduler_sends(&std::vec![b'2'; count]);
            }
            8 => self.scheduler_sends(b"\n"),
            9 if much < 32 => self.driver.scheduler_closed = self.driver.connected,
            10 => self.driver.reachable = !much.is_multiple_of(4),
            11 => self.driver.time_is_over = !much.is_multiple_of(2),
            12 => self.driver.late_events = !much.is_multiple_of(2),
            13 if much < 16 => self.driver.host_ended = true,
            _ => drop(self.step(session, 1 + much)),
        }
    }

    /// What the host received is what it must, as far as it goes. A line that the agent answers by itself has its
    /// answer when that begins: until then the scheduler can still end the session.
    fn agrees(&mut self) {
        while self.driver.to_host.len() > self.expected.len() {
            let Some(answer) = self.unanswered.pop_front().and_then(|line| own_answer(&line)) else { break };
            self.expect(&answer);
        }
        let got = &self.driver.to_host;
        assert_eq!(Some(got.as_slice()), self.expected.get(..got.len()), "the host received something else: {self:?}");
    }

    fn host_sends(&mut self, bytes: &[u8]) {
        if self.driver.host_ended {
            return;
        }
        self.driver.from_host.extend(bytes);
        for &byte in bytes {
            if byte == b'\n' {
                self.unanswered.push_back(std::mem::take(&mut self.unfinished));
            } else {
                self.unfinished.push(byte);
            }
        }
    }

    fn expect(&mut self, line: &[u8]) {
        if !self.over {
            self.expected.extend_from_slice(line);
        }
    }

    fn end_with(&mut self, body: &str) {
        self.expect(&relay_error(body));
        self.over = true;
    }

    /// The scheduler sends bytes on its connection, asked or not.
    fn scheduler_sends(&mut self, bytes: &[u8]) {
        if self.driver.connected && !self.driver.scheduler_closed {
            self.driver.from_scheduler.extend(bytes);
            if self.asked {
                self.answer.extend_from_slice(bytes);
            }
        }
    }

    /// One action of the session, and what it means for the host; returns whether anything was done.
    fn step(&mut self, session: &mut Session<MAX>, most: usize) -> bool {
        let step = self.driver.step(session, most);
        match step {
            Step::Refused => {
                assert!(self.unanswered.pop_front().is_some(), "nobody asked for a scheduler");
                self.expect(&relay_error(
                    "\"no_scheduler\":{\"errno\":2,\"sched_ext\":\"\",\"ops\":\"\",\"cause\":\"\"}",
                ));
            }
            Step::Connected if self.unanswered.front().is_some_and(|line| is_wait(line)) => {
                self.unanswered.pop_front();
                self.expect(b"{\"agent\":{\"scheduler_ready\":{}}}\n");
            }
            Step::Unsolicited => self.end_with("\"unsolicited_data\":{}"),
            Step::SchedulerGone => self.end_with("\"scheduler_gone\":{\"errno\":0,\"cause\":\"\"}"),
            Step::HostEnded => {
                assert!(self.unanswered.is_empty(), "complete lines are answered before the end");
                self.over = true;
            }
            Step::Blocked | Step::Done | Step::Connected => {}
        }
        self.on_request();
        if self.asked {
            self.on_answer();
        }
        self.agrees();
        step != Step::Blocked
    }

    /// A whole request has reached the scheduler: it is the line at the front.
    fn on_request(&mut self) {
        let Some(line) = self.driver.to_scheduler.get(self.served..).and_then(|rest| rest.strip_suffix(b"\n")) else {
            return;
        };
        assert_eq!(Some(line), self.unanswered.front().map(Vec::as_slice), "another line was forwarded");
        self.served = self.driver.to_scheduler.len();
        self.asked = true;
        // Only what came while the request was written can be here: no relay can tell that from the answer.
        self.answer = self.driver.from_scheduler.iter().copied().collect();
        assert!(self.driver.late_events || self.answer.is_empty(), "what came unsolicited would be the answer");
    }

    /// What the session has read of the answer decides: a whole line, more than one, or more than the cap.
    fn on_answer(&mut self) {
        let read = self.answer.len().saturating_sub(self.driver.from_scheduler.len());
        let answer = self.answer.get(..read).unwrap_or(&[]);
        let line_end = answer.iter().position(|&byte| byte == b'\n');
        let Some(end) = line_end.filter(|&end| end < MAX) else {
            if answer.len() >= MAX {
                self.asked = false;
                let size = MAX + 1;
                self.end_with(&format!("\"response_too_large\":{{\"size\":{size},\"max\":{MAX}}}"));
            }
            return;
        };
        self.asked = false;
        self.unanswered.pop_front();
        let framed = [STATS_PREFIX, answer.get(..end).unwrap_or(&[]), STATS_SUFFIX, b"\n"].concat();
        let followed = answer.len() > end + 1;
        self.expect(&framed);
        if followed {
            self.end_with("\"unsolicited_data\":{}");
        }
    }
}

impl std::fmt::Debug for Oracle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        f.debug_struct("Oracle")
            .field("received", &text(&self.driver.to_host))
            .field("expected", &text(&self.expected))
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
