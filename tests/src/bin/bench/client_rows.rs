//! The host's client against a client that reuses sessions, bare eventfds and untyped JSON.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle, Thread};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use scx_vsock::client::{Answer, decode};
use scx_vsock::{Endpoint, MAX_RESPONSE_BYTES, RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::abandonment;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::measure::{Bench, Measure, micros};
use crate::row::{Goal, Row, quantile};

/// The rows of this module.
pub const ALL: &[Measure] = &[
    Measure {
        name: "wrong-answers",
        is_quick: false,
        bound: "None are possible: an answer is only read from the session that its request was written to, and an abandoned \
                request closes its session.",
        rows: wrong_answers,
    },
    Measure { name: "freeze", is_quick: true, bound: WAKE_BOUND, rows: freeze },
    Measure { name: "cancel", is_quick: true, bound: WAKE_BOUND, rows: cancel },
    Measure {
        name: "decode",
        is_quick: true,
        bound: "Parsing of numbers and keys. An untyped value allocates each key and a node of a tree for it.",
        rows: typed_decode,
    },
];

const WAKE_BOUND: &str =
    "The kernel wakes 64 threads, one after another, and its scheduler decides when each of them runs.";

/// The number of calls that wait at the same time.
const WAITING: usize = 64;

/// Wrong answers in a million requests of which about half are abandoned. The reference is a client that keeps its session,
/// extrapolated to as many requests.
fn wrong_answers(_: &Bench) -> Vec<Row> {
    const REQUESTS: u64 = 1_000_000;
    const REFERENCE_REQUESTS: u64 = 20_000;
    let tally = abandonment::of_clients(REQUESTS);
    eprintln!("bench: of {REQUESTS} requests: {tally:?}");
    let other = abandonment::of_a_client_that_keeps_sessions(REFERENCE_REQUESTS);
    let extrapolated = other.wrong * (REQUESTS / REFERENCE_REQUESTS);
    let name = "wrong answers in 1,000,000 / a client that keeps its session";
    vec![Row::exact(name, tally.wrong as f64, extrapolated as f64, Goal::Ours(0.0))]
}

fn freeze(bench: &Bench) -> Vec<Row> {
    let name = "freeze() to the return of 64 waiting calls, p99 / bare, us";
    wake_times(bench, name, |control| drop(control.freeze()))
}

fn cancel(bench: &Bench) -> Vec<Row> {
    wake_times(bench, "cancel() to the return of 64 waiting calls, p99 / bare, us", RunControl::cancel)
}

/// The medians of the 99th percentiles of some runs.
fn wake_times(bench: &Bench, name: &'static str, stop: impl Fn(&RunControl)) -> Vec<Row> {
    const RUNS: usize = 7;
    const ROUNDS: usize = 16;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(RUNS) {
        let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.extend(call_returns(&stop));
            of_bare.extend(eventfd_wakes());
        }
        ours.push(p99(of_ours));
        bare.push(p99(of_bare));
    }
    vec![Row::median(name, &mut ours, &mut bare, Goal::Ratio(1.5))]
}

fn p99(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    quantile(&times, 0.99)
}

/// Returns the microseconds from `stop` to the return of each of 64 calls, which all wait for their answer. Each call is of
/// a client of its own.
fn call_returns(stop: impl Fn(&RunControl)) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Unix { path: folder.path().join("agent") };
    let listener = UnixListener::bind(folder.path().join("agent")).unwrap();
    let control = RunControl::new();
    let finish = Finish::new();
    thread::scope(|scope| {
        let calls: Vec<_> = (0..WAITING)
            .map(|_| {
                let finish = &finish;
                let builder = SchedStatsClient::builder(endpoint.clone()).control(&control);
                let client = builder.deadline(Duration::from_secs(60)).build();
                scope.spawn(move || {
                    let error = client.stats(&[]).unwrap_err();
                    let returned = Instant::now();
                    finish.park();
                    assert!(matches!(error, SchedStatsError::DuringFreeze | SchedStatsError::Cancelled), "{error}");
                    returned
                })
            })
            .collect();
        // A call whose request has been read waits for its answer only.
        let sessions: Vec<_> = (0..WAITING)
            .map(|_| {
                let mut lines = BufReader::new(listener.accept().unwrap().0);
                lines.read_line(&mut String::new()).unwrap();
                lines
            })
            .collect();
        let stopped = Instant::now();
        stop(&control);
        finish.wait_for(&calls);
        let times = calls.into_iter().map(|call| micros(call.join().unwrap().duration_since(stopped))).collect();
        drop(sessions);
        times
    })
}

/// The floor: threads that poll one eventfd each, all written to in turn.
fn eventfd_wakes() -> Vec<f64> {
    let descriptors: Vec<_> = (0..WAITING).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let (ready, finish) = (Barrier::new(WAITING + 1), Finish::new());
    thread::scope(|scope| {
        let threads: Vec<_> = descriptors
            .iter()
            .map(|descriptor| {
                let (ready, finish) = (&ready, &finish);
                scope.spawn(move || {
                    ready.wait();
                    poll(&mut [PollFd::new(descriptor, PollFlags::IN)], None).unwrap();
                    let woken = Instant::now();
                    finish.park();
                    woken
                })
            })
            .collect();
        ready.wait();
        let started = Instant::now();
        for descriptor in &descriptors {
            rustix::io::write(descriptor, &1u64.to_ne_bytes()).unwrap();
        }
        finish.wait_for(&threads);
        threads.into_iter().map(|thread| micros(thread.join().unwrap().duration_since(started))).collect()
    })
}

/// Where woken threads park, so that none ends or wakes another while others are still being woken.
struct Finish {
    parked: AtomicUsize,
    over: AtomicBool,
    /// The thread that waits for all.
    waiter: Thread,
}

impl Finish {
    /// Called by the thread that will wait.
    fn new() -> Self {
        Self { parked: AtomicUsize::new(0), over: AtomicBool::new(false), waiter: thread::current() }
    }

    fn park(&self) {
        if self.parked.fetch_add(1, Ordering::SeqCst) + 1 == WAITING {
            self.waiter.unpark();
        }
        while !self.over.load(Ordering::SeqCst) {
            thread::park();
        }
    }

    fn wait_for<T>(&self, threads: &[ScopedJoinHandle<'_, T>]) {
        while self.parked.load(Ordering::SeqCst) < WAITING {
            thread::park();
        }
        self.over.store(true, Ordering::SeqCst);
        threads.iter().for_each(|thread| thread.thread().unpark());
    }
}

#[derive(Deserialize)]
struct Stats {
    layers: HashMap<String, Layer>,
}

/// A layer's stats, with the types and number of fields of scx_layered.
#[derive(Deserialize, Serialize)]
struct Layer {
    util: f64,
    util_frac: f64,
    load: f64,
    load_frac: f64,
    tasks: u32,
    total: u64,
    sel_local: f64,
    enq_wakeup: f64,
    enq_expire: f64,
    enq_last: f64,
    enq_reenq: f64,
    min_exec: f64,
    min_exec_us: u64,
    open_idle: f64,
    preempt: f64,
    preempt_idle: f64,
    affn_viol: f64,
    keep: f64,
    keep_fail_max_exec: f64,
    excl_wakeup: f64,
    migration: f64,
    cpus: Vec<u64>,
    cur_nr_cpus: u32,
    min_nr_cpus: u32,
    max_nr_cpus: u32,
}

impl Layer {
    fn example(n: u32) -> Self {
        let part = f64::from(n % 1_000) / 10.0;
        Self {
            util: part,
            util_frac: part / 4.0,
            load: part * 3.0,
            load_frac: part / 7.0,
            tasks: n,
            total: u64::from(n) * 1_000,
            sel_local: part,
            enq_wakeup: part / 3.0,
            enq_expire: 0.0,
            enq_last: 0.5,
            enq_reenq: 0.0,
            min_exec: part,
            min_exec_us: 20_000,
            open_idle: 12.5,
            preempt: part,
            preempt_idle: 0.0,
            affn_viol: 0.0,
            keep: part,
            keep_fail_max_exec: 0.25,
            excl_wakeup: 0.0,
            migration: part / 2.0,
            cpus: vec![0xff, 0xf0],
            cur_nr_cpus: n % 64,
            min_nr_cpus: 0,
            max_nr_cpus: 64,
        }
    }
}

/// An answer of nearly the maximal size, decoded as the type of its stats and as any value.
fn typed_decode(bench: &Bench) -> Vec<Row> {
    const TIMES: usize = 200;
    const LAYERS: u32 = 540;
    let layers: HashMap<String, Layer> = (0..LAYERS).map(|n| (format!("layer-{n}"), Layer::example(n))).collect();
    let line = json!({ "errno": 0, "args": { "resp": { "layers": layers } } }).to_string();
    assert!((MAX_RESPONSE_BYTES * 9 / 10..MAX_RESPONSE_BYTES).contains(&line.len()), "{} bytes", line.len());
    let decoded: Stats = decode(&line);
    assert_eq!(json!(decoded.layers["layer-7"]), json!(Layer::example(7)));
    let (mut typed, mut untyped) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs(TIMES) {
        typed.push(decode_time::<Stats>(&line));
        untyped.push(decode_time::<Value>(&line));
    }
    vec![Row::median("typed decode of a 256 KiB answer / untyped, us", &mut typed, &mut untyped, Goal::Ratio(0.5))]
}

fn decode<T: DeserializeOwned>(line: &str) -> T {
    decode::resp(Answer::Scheduler(line.as_bytes())).unwrap().value
}

fn decode_time<T: DeserializeOwned>(line: &str) -> f64 {
    let started = Instant::now();
    let value: T = decode(line);
    let time = micros(started.elapsed());
    black_box(value);
    time
}
