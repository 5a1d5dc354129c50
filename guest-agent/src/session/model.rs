//! What a session must do, said a second time: a driver on memory, a host and a scheduler that do what bytes tell them,
//! and the exact bytes that the host must have read.

use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::vec::Vec;

use scx_vsock_wire::limits::{AGENT_LINE_PREFIX, WAIT_SCHEDULER};
use scx_vsock_wire::{Envelope, STATS_PREFIX, STATS_SUFFIX, Text};

use super::{Action, Buffers, Session};

/// The cap of a line in a model: above the longest line for the agent, and soon reached.
pub const MAX: usize = 32;

/// The version that the model's agent says.
pub const VERSION: &str = "0.1.0";

/// A driver on memory: what the host and the scheduler sent, and what they got.
#[derive(Debug)]
pub struct Driver {
    /// Bytes on their way from the host.
    pub from_host: VecDeque<u8>,
    /// What the host got.
    pub to_host: Vec<u8>,
    /// Bytes on their way from the scheduler.
    pub from_scheduler: VecDeque<u8>,
    /// What the scheduler got.
    pub to_scheduler: Vec<u8>,
    /// Whether the scheduler has closed, behind its bytes.
    pub scheduler_closed: bool,
    /// Whether there is a connection to the scheduler.
    pub connected: bool,
    /// Whether the scheduler would accept one.
    pub reachable: bool,
}

/// What a step of the driver was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing could be done.
    Blocked,
    /// Something was done that needs no note.
    Done,
    /// The scheduler was connected.
    Connected,
    /// The scheduler could not be connected.
    Refused,
    /// Bytes that nobody had asked for were reported.
    Unasked,
    /// The scheduler's end was reported.
    SchedulerEnded,
}

impl Driver {
    /// A driver whose host has sent these bytes.
    #[must_use]
    pub fn new(from_host: &[u8]) -> Self {
        Self {
            from_host: from_host.iter().copied().collect(),
            to_host: Vec::new(),
            from_scheduler: VecDeque::new(),
            to_scheduler: Vec::new(),
            scheduler_closed: false,
            connected: false,
            reachable: true,
        }
    }

    /// Looks at the scheduler first, then does one action with at most `most` bytes.
    pub fn step(&mut self, session: &mut Session<'_, MAX>, most: usize) -> Step {
        if session.awaits_no_answer() && self.connected {
            if !self.from_scheduler.is_empty() {
                session.scheduler_unasked();
                return Step::Unasked;
            }
            if self.scheduler_closed {
                session.scheduler_ended(0);
                return Step::SchedulerEnded;
            }
        }
        match session.action() {
            Action::ReadHost(buffer) => {
                let count = take(&mut self.from_host, buffer, most);
                if count == 0 {
                    return Step::Blocked;
                }
                session.host_read(count);
            }
            Action::WriteHost(pieces) => {
                let count = give(&mut self.to_host, &pieces.concat(), most);
                session.host_wrote(count);
            }
            Action::ConnectScheduler | Action::AwaitScheduler if self.connected || self.reachable => {
                self.connected = true;
                session.scheduler_connected();
                return Step::Connected;
            }
            Action::ConnectScheduler => {
                session.scheduler_refused(2, Text::default(), Text::default());
                return Step::Refused;
            }
            Action::WriteScheduler(line) => {
                let count = give(&mut self.to_scheduler, line, most);
                session.scheduler_wrote(count);
            }
            Action::ReadScheduler(buffer) => {
                let count = take(&mut self.from_scheduler, buffer, most);
                if count == 0 && !self.scheduler_closed {
                    return Step::Blocked;
                }
                session.scheduler_read(count);
                return if count == 0 { Step::SchedulerEnded } else { Step::Done };
            }
            Action::AwaitScheduler | Action::Close => return Step::Blocked,
        }
        Step::Done
    }

    /// Does all that can be done.
    pub fn run(&mut self, session: &mut Session<'_, MAX>) {
        while self.step(session, usize::MAX) != Step::Blocked {}
    }

    /// The lines that the host got.
    #[must_use]
    pub fn host_lines(&self) -> Vec<String> {
        String::from_utf8_lossy(&self.to_host).lines().map(String::from).collect()
    }
}

fn take(from: &mut VecDeque<u8>, buffer: &mut [u8], most: usize) -> usize {
    let count = buffer.len().min(from.len()).min(most);
    for (to, byte) in buffer.iter_mut().zip(from.drain(..count)) {
        *to = byte;
    }
    count
}

fn give(to: &mut Vec<u8>, bytes: &[u8], most: usize) -> usize {
    let count = bytes.len().min(most);
    to.extend_from_slice(bytes.get(..count).unwrap_or(&[]));
    count
}

/// A relay error's line.
#[must_use]
pub fn relay_error(body: &str) -> Vec<u8> {
    format!("{{\"relay_error\":{{{body}}}}}\n").into_bytes()
}

/// What a line of the host must be answered with, as far as that does not depend on the scheduler.
#[must_use]
pub fn own_answer(line: &[u8]) -> Option<Vec<u8>> {
    let size = line.len() + 1;
    if size > MAX {
        Some(relay_error(&format!("\"request_too_large\":{{\"size\":{size},\"max\":{MAX}}}")))
    } else if line != WAIT_SCHEDULER && line.starts_with(AGENT_LINE_PREFIX) {
        Some(relay_error("\"unknown_verb\":{}"))
    } else {
        None
    }
}

/// A host, a scheduler and what the host must read.
struct Model {
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
/// When the session does anything else than the model.
pub fn check(input: &[u8]) {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = Session::new(&mut buffers);
    session.open(VERSION);
    let mut model = Model::new();
    for pair in input.chunks_exact(2) {
        let &[what, much] = pair else { continue };
        let much = usize::from(much);
        match what % 12 {
            0 | 1 => model.host_sends(&std::vec![b'a' + what % 16; much % (2 * MAX)]),
            2 | 3 => model.host_sends(b"\n"),
            4 => model.host_sends(&[WAIT_SCHEDULER, b"\n"].concat()),
            5 => model.host_sends(b"{\"agent\":\"?\"}\n"),
            6 => model.scheduler_sends(&std::vec![b'1'; much % (2 * MAX)]),
            7 => model.scheduler_sends(b"\n"),
            8 if much < 32 => model.driver.scheduler_closed = model.driver.connected,
            9 => model.driver.reachable = much % 4 != 0,
            _ => drop(model.step(&mut session, 1 + much)),
        }
    }
    // The rest comes to an end with a scheduler that answers.
    model.driver.reachable = true;
    for _ in 0..100_000 {
        if model.asked && !model.driver.scheduler_closed {
            model.scheduler_sends(b"\n");
        }
        if !model.step(&mut session, usize::MAX) {
            break;
        }
    }
    assert_eq!(model.driver.to_host.len(), model.expected.len(), "the host did not get all: {model:?}");
    assert!(model.over || model.unanswered.is_empty(), "a line got no answer: {model:?}");
    assert_eq!(session.is_closed(), model.over);
}

impl Model {
    fn new() -> Self {
        Self {
            driver: Driver::new(b""),
            unanswered: VecDeque::new(),
            unfinished: Vec::new(),
            served: 0,
            answer: Vec::new(),
            asked: false,
            expected: Envelope::hello(VERSION).emit().to_vec(),
            over: false,
        }
    }

    /// What the host got is what it must get, as far as it goes. A line that the agent answers by itself has its
    /// answer when that begins: until then the scheduler can still end the session.
    fn agrees(&mut self) {
        while self.driver.to_host.len() > self.expected.len() {
            let Some(answer) = self.unanswered.pop_front().and_then(|line| own_answer(&line)) else { break };
            self.expect(&answer);
        }
        let got = &self.driver.to_host;
        assert_eq!(Some(got.as_slice()), self.expected.get(..got.len()), "the host got something else: {self:?}");
    }
}

impl Model {
    fn host_sends(&mut self, bytes: &[u8]) {
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

    /// One action of the session, and what it means for the host; gives whether anything was done.
    fn step(&mut self, session: &mut Session<'_, MAX>, most: usize) -> bool {
        let step = self.driver.step(session, most);
        match step {
            Step::Refused => {
                let refused = self.unanswered.pop_front();
                assert!(refused.is_some(), "nobody asked for a scheduler");
                self.expect(&relay_error("\"no_scheduler\":{\"errno\":2,\"sched_ext\":\"\",\"ops\":\"\"}"));
            }
            Step::Connected if self.unanswered.front().is_some_and(|line| line == WAIT_SCHEDULER) => {
                self.unanswered.pop_front();
                self.expect(b"{\"agent\":\"scheduler_ready\"}\n");
            }
            Step::Unasked => self.end_with("\"scheduler_unasked\":{}"),
            Step::SchedulerEnded => self.end_with("\"scheduler_gone\":{\"errno\":0}"),
            Step::Blocked | Step::Done | Step::Connected => {}
        }
        self.note_request();
        if self.asked {
            self.note_answer();
        }
        self.agrees();
        step != Step::Blocked
    }

    /// A whole request has reached the scheduler: it is the line at the front.
    fn note_request(&mut self) {
        let Some(line) = self.driver.to_scheduler.get(self.served..).and_then(|rest| rest.strip_suffix(b"\n")) else {
            return;
        };
        assert_eq!(Some(line), self.unanswered.front().map(Vec::as_slice), "another line was forwarded");
        assert!(self.driver.from_scheduler.is_empty(), "what came unasked would be taken for the answer");
        self.served = self.driver.to_scheduler.len();
        self.asked = true;
        self.answer.clear();
    }

    /// What the session has read of the answer decides: a whole line, more than one, or more than the cap.
    fn note_answer(&mut self) {
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
            self.end_with("\"scheduler_unasked\":{}");
        }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        f.debug_struct("Model")
            .field("got", &text(&self.driver.to_host))
            .field("expected", &text(&self.expected))
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
