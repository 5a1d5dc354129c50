//! The agent's size, memory, system calls and latency in the guest, against a relay written with std.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock_tests::agent::{self, Agent};
use scx_vsock_tests::peer::Peer;
use scx_vsock_wire::MAX_RESPONSE_BYTES;

use crate::measure::{Bench, Measure};
use crate::row::{Goal, Row, quantile};
use crate::system_calls;

/// The rows of this module.
pub const ALL: &[Measure] = &[
    Measure {
        name: "file-size",
        is_quick: true,
        bound: "Code of the session machine, the texts of help and errors, and the file's headers. There is no C library, no \
                formatter and no unwinding in it.",
        rows: file_size,
    },
    Measure {
        name: "idle-memory",
        is_quick: true,
        bound: "Pages of 4 KiB that were written: the stack, the table of sessions and the part of a buffer that a request and \
                its answer have touched. The file's own pages count as far as they are private.",
        rows: idle_memory,
    },
    Measure {
        name: "full-memory",
        is_quick: true,
        bound: "One buffer of 256 KiB, which an answer of the greatest length fills.",
        rows: full_memory,
    },
    Measure {
        name: "system-calls",
        is_quick: true,
        bound: "Three reads, of which one makes sure that nothing unsolicited waits, two writes and two waits. On a vsock one more \
                after each KiB of requests, which takes them out of the kernel's queue: see request-counts.",
        rows: system_calls_per_request,
    },
    Measure {
        name: "start",
        is_quick: true,
        bound: "The kernel's time to start a process and to accept a connection.",
        rows: start,
    },
    Measure {
        name: "isolation",
        is_quick: true,
        bound: "One thread that serves the sessions that are ready, each in bounded pieces.",
        rows: isolation,
    },
];

const REQUEST: &[u8] = b"{\"req\":\"stats\",\"args\":{}}\n";

fn relay(program: &Path) -> Agent {
    let program = program.to_owned();
    Agent::with(1, |command| {
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        *command = Command::new(program);
        command.args(arguments);
    })
}

/// A session whose first request has been answered.
struct Session {
    host: Peer,
    scheduler: Peer,
    _listener: UnixListener,
}

impl Session {
    /// Opens a session and answers its first request with a line of `answer` bytes.
    fn new(agent: &Agent, answer: usize) -> Self {
        let listener = agent.scheduler();
        let mut host = agent.silent_host();
        host.line();
        host.send(REQUEST);
        let scheduler = Peer::accept(&listener);
        let mut session = Self { host, scheduler, _listener: listener };
        session.answer(answer);
        session
    }

    fn answer(&mut self, size: usize) {
        self.scheduler.line();
        let mut line = vec![b'1'; size];
        line[size - 1] = b'\n';
        self.scheduler.send(&line);
        assert_eq!(self.host.line().len(), size + 10);
    }

    fn ask(&mut self, size: usize) {
        self.host.send(REQUEST);
        self.answer(size);
    }
}

fn file_size(bench: &Bench) -> Vec<Row> {
    let bytes = |path: &Path| fs::metadata(path).unwrap().len() as f64;
    let (ours, theirs) = (bytes(agent::file()), bytes(&bench.relay));
    vec![Row::exact("agent file / std static relay, bytes", ours, theirs, Goal::Ours(12_288.0))]
}

/// Returns the private memory of the agent's process in KiB, pages of its file included.
fn private_kib(agent: &Agent) -> f64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.id())).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()).sum()
}

fn memory(name: &'static str, bench: &Bench, answer: usize, goal: Goal) -> Vec<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(5) {
        ours.push(memory_with_session(&Agent::start(), answer));
        theirs.push(memory_with_session(&relay(&bench.relay), answer));
    }
    vec![Row::median(name, &mut ours, &mut theirs, goal)]
}

fn memory_with_session(agent: &Agent, answer: usize) -> f64 {
    let _session = Session::new(agent, answer);
    private_kib(agent)
}

fn idle_memory(bench: &Bench) -> Vec<Row> {
    memory("agent, 1 idle session / std relay, private KiB", bench, 600, Goal::Ours(40.0))
}

fn full_memory(bench: &Bench) -> Vec<Row> {
    let name = "agent after a 256 KiB answer / std relay, private KiB";
    memory(name, bench, MAX_RESPONSE_BYTES, Goal::Ours(320.0))
}

fn system_calls_per_request(bench: &Bench) -> Vec<Row> {
    const REQUESTS: usize = 500;
    let count = |agent: &Agent| {
        let mut session = Session::new(agent, 600);
        let calls = system_calls::during(agent.id(), || (0..REQUESTS).for_each(|_| session.ask(600)));
        (calls / REQUESTS as f64 * 10.0).round() / 10.0
    };
    let (ours, theirs) = (count(&Agent::start()), count(&relay(&bench.relay)));
    vec![Row::exact("agent / std relay, system calls per request", ours, theirs, Goal::Ours(7.0))]
}

/// The time from the start of the process to its hello for a host that connects at once.
fn start(bench: &Bench) -> Vec<Row> {
    let time = |start: &dyn Fn() -> Agent| {
        let before = Instant::now();
        let agent = start();
        agent.silent_host().line();
        before.elapsed().as_secs_f64() * 1e6
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(100) {
        ours.push(time(&Agent::start));
        theirs.push(time(&|| relay(&bench.relay)));
    }
    vec![Row::median("agent / std relay, start to first hello, us", &mut ours, &mut theirs, Goal::Ratio(1.0))]
}

/// The 99th percentile of the round trips of five sessions beside three that misbehave, against the same sessions alone.
fn isolation(bench: &Bench) -> Vec<Row> {
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(9) {
        alone.push(p99_of_five(&Agent::start(), |_| ()));
        beside.push(p99_of_five(&Agent::start(), Misbehaving::new));
    }
    let name = "agent, p99 of 5 sessions beside 3 misbehaving / alone, us";
    vec![Row::median(name, &mut beside, &mut alone, Goal::Ratio(1.5))]
}

fn p99_of_five<C>(agent: &Agent, others: impl FnOnce(&Agent) -> C) -> f64 {
    const ROUNDS: usize = 1_000;
    let others = others(agent);
    let mut sessions: Vec<Session> = (0..5)
        .map(|_| {
            let _free = fs::remove_file(agent.scheduler_path(0));
            Session::new(agent, 600)
        })
        .collect();
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        for session in &mut sessions {
            let before = Instant::now();
            session.ask(600);
            times.push(before.elapsed().as_secs_f64() * 1e6);
        }
    }
    drop(others);
    times.sort_by(f64::total_cmp);
    quantile(&times, 0.99)
}

/// Three sessions: one with a scheduler that never answers, one whose host never reads, and one whose host sends a request
/// one byte a millisecond.
struct Misbehaving {
    sending: Arc<AtomicBool>,
    slow_sender: Option<thread::JoinHandle<()>>,
    _sessions: Vec<Peer>,
}

impl Misbehaving {
    fn new(agent: &Agent) -> Self {
        let listener = agent.scheduler();
        let requested = || {
            let mut host = agent.host();
            host.send(REQUEST);
            let mut scheduler = Peer::accept(&listener);
            scheduler.line();
            (host, scheduler)
        };
        let stuck = requested();
        let (unread, mut answering) = requested();
        let mut longest = vec![b'1'; MAX_RESPONSE_BYTES];
        longest[MAX_RESPONSE_BYTES - 1] = b'\n';
        answering.send(longest);
        let mut slow = agent.host();
        let sending = Arc::new(AtomicBool::new(true));
        let goes_on = Arc::clone(&sending);
        let slow_sender = thread::spawn(move || {
            while goes_on.load(Ordering::Relaxed) {
                slow.send("x");
                // The rate at which it sends, not a wait for anything.
                thread::sleep(Duration::from_millis(1));
            }
        });
        let sessions = vec![stuck.0, stuck.1, unread, answering];
        Self { sending, slow_sender: Some(slow_sender), _sessions: sessions }
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.sending.store(false, Ordering::Relaxed);
        let _ended = self.slow_sender.take().map(thread::JoinHandle::join);
    }
}
