//! Requests of which about half are abandoned at random moments, to see whether any gets the answer of another.
//!
//! The real agent relays to a scheduler that answers each request with the request's own number, so that an answer
//! shows whose it is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock::{Endpoint, RunControl, Sample, Sampler, SchedStatsClient, SchedStatsError, StatsRequest};
use serde::Deserialize;

use crate::agent::Agent;

/// Threads with a client of their own, and as many with a clone of one more client.
const THREADS: usize = 4;

/// Long enough for any answer that comes.
const LONG: Duration = Duration::from_secs(60);

/// The outcomes of all requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Answers that were those of their requests.
    pub right: u64,
    /// Answers that were another request's.
    pub wrong: u64,
    /// Requests that were ended by deadline, freeze or cancel.
    pub abandoned: u64,
    /// Requests that ended otherwise, by kind.
    pub failed: BTreeMap<String, u64>,
}

impl Outcomes {
    /// Returns the number of requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.right + self.wrong + self.abandoned + self.failed.values().sum::<u64>()
    }

    fn record(&mut self, number: u64, outcome: Result<String, SchedStatsError>) {
        match outcome {
            Ok(answer) if answer == number.to_string() => self.right += 1,
            Ok(_) => self.wrong += 1,
            Err(SchedStatsError::TimedOut { .. } | SchedStatsError::DuringFreeze | SchedStatsError::Cancelled) => {
                self.abandoned += 1
            }
            // The deadline of a new session that came before its hello.
            Err(SchedStatsError::AgentUnreachable { reason, .. }) if reason.contains(" no hello within ") => {
                self.abandoned += 1
            }
            Err(error) => *self.failed.entry(format!("{:#}", anyhow::Error::from(error))).or_default() += 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.abandoned += other.abandoned;
        for (error, count) in other.failed {
            *self.failed.entry(error).or_default() += count;
        }
    }
}

/// Sends `requests` requests in all, with 4 clients and 4 clones of another one, each from a thread of its own.
#[must_use]
pub fn of_clients(requests: u64) -> Outcomes {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let endpoint = Endpoint::Unix { path: agent.host_path(0) };
    let next = AtomicU64::new(0);
    let (stops, due) = mpsc::channel();
    let run = Run::default();
    let shared = run.client(endpoint.clone());
    thread::scope(|scope| {
        thread::spawn(move || echo(&listener));
        scope.spawn(move || stop_when_due(&due));
        let own = (0..THREADS).map(|_| Requester::with_own_client(endpoint.clone(), stops.clone()));
        let clones = (0..THREADS).map(|_| Requester::with_clone(shared.clone(), run.clone(), stops.clone()));
        let threads: Vec<_> = own
            .chain(clones)
            .map(|mut requester| {
                let next = &next;
                scope.spawn(move || {
                    let mut outcomes = Outcomes::default();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= requests {
                            return outcomes;
                        }
                        let outcome = requester.request(number);
                        outcomes.record(number, outcome);
                    }
                })
            })
            .collect();
        drop(stops);
        let mut all = Outcomes::default();
        threads.into_iter().for_each(|thread| all.add(thread.join().unwrap()));
        all
    })
}

/// The same with one client that goes on reading a session whose request it abandoned, as a client without sessions does.
#[must_use]
pub fn of_a_client_that_keeps_sessions(requests: u64) -> Outcomes {
    let agent = Agent::start();
    let listener = agent.scheduler();
    thread::spawn(move || echo(&listener));
    let stream = UnixStream::connect(agent.host_path(0)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut lines = BufReader::new(&stream);
    let mut line = Vec::new();
    lines.read_until(b'\n', &mut line).unwrap();
    line.clear();
    let mut patience = Patience::new();
    let mut outcomes = Outcomes::default();
    for number in 0..requests {
        (&stream).write_all(request(number).line().unwrap().as_bytes()).unwrap();
        stream.set_read_timeout(Some(patience.draw())).unwrap();
        let outcome = match lines.read_until(b'\n', &mut line) {
            Ok(_) => Ok(number_in(&std::mem::take(&mut line))),
            Err(_) => Err(SchedStatsError::TimedOut { after_ms: 0 }),
        };
        patience.adjust(outcome.is_err());
        outcomes.record(number, outcome);
    }
    outcomes
}

fn request(number: u64) -> StatsRequest {
    StatsRequest::stats(&[("number", &number.to_string())])
}

/// The number in an envelope.
fn number_in(envelope: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Envelope {
        stats: Stats,
    }
    #[derive(Deserialize)]
    struct Stats {
        args: Args,
    }
    #[derive(Deserialize)]
    struct Args {
        resp: String,
    }
    serde_json::from_slice::<Envelope>(envelope).unwrap().stats.args.resp
}

/// How long to wait for an answer, at random, so that about half of the requests are abandoned.
struct Patience {
    limit: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { limit: Duration::from_micros(300) }
    }

    fn draw(&self) -> Duration {
        // The time-out of a stream cannot be 0.
        Duration::from_nanos(fastrand::u64(1_000..=u64::try_from(self.limit.as_nanos()).unwrap()))
    }

    fn adjust(&mut self, abandoned: bool) {
        let limit = if abandoned { self.limit.mul_f64(1.02) } else { self.limit.mul_f64(1.0 / 1.02) };
        self.limit = limit.clamp(Duration::from_micros(2), Duration::from_millis(50));
    }
}

/// A run that others freeze and cancel.
#[derive(Clone, Default)]
struct Run {
    control: RunControl,
    /// Locked during a freeze, when a request could not even begin.
    frozen: Arc<Mutex<()>>,
}

impl Run {
    fn client(&self, endpoint: Endpoint) -> SchedStatsClient {
        SchedStatsClient::builder(endpoint).control(&self.control).deadline(LONG).build()
    }

    fn freeze(&self) {
        let _frozen = self.frozen.lock().unwrap();
        drop(self.control.freeze());
    }

    fn wait_for_thaw(&self) {
        drop(self.frozen.lock().unwrap());
    }
}

/// One thread's client.
struct Requester {
    client: SchedStatsClient,
    run: Run,
    /// The endpoint of a client that is this thread's own: its run may be cancelled, and then it is built again.
    own: Option<Endpoint>,
    patience: Patience,
    stops: Sender<Stop>,
}

impl Requester {
    fn with_own_client(endpoint: Endpoint, stops: Sender<Stop>) -> Self {
        let run = Run::default();
        Self { client: run.client(endpoint.clone()), run, own: Some(endpoint), patience: Patience::new(), stops }
    }

    fn with_clone(client: SchedStatsClient, run: Run, stops: Sender<Stop>) -> Self {
        Self { client, run, own: None, patience: Patience::new(), stops }
    }

    fn request(&mut self, number: u64) -> Result<String, SchedStatsError> {
        let patience = self.patience.draw();
        // A freeze of clones ends the requests of all of them, so it is rarer there.
        let how = match (fastrand::u8(0..16), &self.own) {
            (0, None) | (0..4, Some(_)) => Some(How::Freeze),
            (4..8, Some(_)) => Some(How::Cancel),
            _ => None,
        };
        let mut client = self.client.clone();
        match how {
            Some(how) => {
                let stop = Stop { due: Instant::now() + patience, how, run: self.run.clone() };
                self.stops.send(stop).unwrap();
            }
            None => client = client.with_deadline(patience),
        }
        let text = number.to_string();
        self.run.wait_for_thaw();
        let outcome = client.stats_as(&[("number", &text)]);
        if let (Err(SchedStatsError::Cancelled), Some(endpoint)) = (&outcome, &self.own) {
            let patience = std::mem::replace(&mut self.patience, Patience::new());
            *self = Self { patience, ..Self::with_own_client(endpoint.clone(), self.stops.clone()) };
        }
        if how.is_none() && outcome != Err(SchedStatsError::DuringFreeze) {
            self.patience.adjust(outcome.is_err());
        }
        outcome
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Freeze,
    Cancel,
}

/// A stop of a run, and when it is due.
struct Stop {
    due: Instant,
    how: How,
    run: Run,
}

impl Stop {
    fn perform(self) {
        match self.how {
            How::Freeze => self.run.freeze(),
            How::Cancel => self.run.control.cancel(),
        }
    }
}

impl PartialEq for Stop {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Stop {}

impl PartialOrd for Stop {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stop {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}

/// Stops each run at its time, until all requests are done.
fn stop_when_due(stops: &Receiver<Stop>) {
    let mut waiting = BinaryHeap::<Reverse<Stop>>::new();
    loop {
        let left = waiting.peek().map_or(LONG, |Reverse(next)| next.due.saturating_duration_since(Instant::now()));
        match stops.recv_timeout(left) {
            Ok(stop) => waiting.push(Reverse(stop)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while waiting.peek().is_some_and(|Reverse(next)| next.due <= Instant::now()) {
            waiting.pop().into_iter().for_each(|Reverse(stop)| stop.perform());
        }
    }
}

/// The samples of one client whose clones abandon requests, checked against what the scheduler says of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// Answers that were checked, of samples and of the clones that abandon others.
    pub answers: u64,
    /// Requests of the clones that were abandoned.
    pub abandoned: u64,
    /// Answers with the number of another session than the one that they came on.
    pub wrong_sessions: u64,
    /// Answers with an interval though their target was not read before on their session, or without though it was.
    pub wrong_intervals: u64,
    /// Samples without stats, by kind.
    pub failed: BTreeMap<String, u64>,
    /// The scheduler's connection of each session.
    connections: BTreeMap<u64, u64>,
}

/// What the scheduler says of an answer.
#[derive(Deserialize)]
struct Read {
    /// The number of its connection.
    connection: u64,
    /// How often this target was read on it, this time counted.
    reads: u64,
}

impl Samples {
    fn check(&mut self, read: &Read, session: u64, has_interval: bool) {
        self.answers += 1;
        let connection = *self.connections.entry(session).or_insert(read.connection);
        self.wrong_sessions += u64::from(connection != read.connection);
        self.wrong_intervals += u64::from(has_interval != (read.reads > 1));
    }

    fn check_sample(&mut self, sample: Sample) {
        match sample.stats {
            Ok(stats) => {
                let read = serde_json::from_value(stats).unwrap();
                self.check(&read, sample.session, sample.interval_ms.is_some());
            }
            Err(reason) => *self.failed.entry(reason.to_string()).or_default() += 1,
        }
    }
}

/// Takes `samples` samples with two samplers of one client, while two clones read the same target and another one, and
/// abandon about half of that.
#[must_use]
pub fn of_samplers(samples: u64) -> Samples {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let client = Run::default().client(Endpoint::Unix { path: agent.host_path(0) });
    let all = Mutex::new(Samples::default());
    let left = AtomicU64::new(samples);
    let take_one = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    thread::spawn(move || count_reads(&listener));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut sampler = Sampler::new(Some(client.clone()));
                while take_one() {
                    let sample = sampler.sample("");
                    all.lock().unwrap().check_sample(sample);
                }
            });
        }
        for target in ["top", "cpus"] {
            let (client, all, left) = (client.clone(), &all, &left);
            scope.spawn(move || {
                let mut patience = Patience::new();
                while left.load(Ordering::Relaxed) > 0 {
                    let reading = client.with_deadline(patience.draw()).read(&[("target", target)]);
                    patience.adjust(reading.is_err());
                    let mut all = all.lock().unwrap();
                    match reading {
                        Ok(reading) => all.check(&reading.value, reading.session, reading.interval.is_some()),
                        Err(_) => all.abandoned += 1,
                    }
                }
            });
        }
    });
    all.into_inner().unwrap()
}

/// A scheduler that answers with the number of its connection and how often the target was read on it, for as long as
/// the process lives.
fn count_reads(listener: &UnixListener) {
    for (connection, stream) in (0u64..).zip(listener.incoming()) {
        let Ok(stream) = stream else { return };
        thread::spawn(move || {
            let mut reads = BTreeMap::<String, u64>::new();
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let request: StatsRequest = serde_json::from_str(&line).unwrap();
                let target = request.args.get("target").cloned().unwrap_or_else(|| "top".to_owned());
                let reads = reads.entry(target).or_default();
                *reads += 1;
                let answer = serde_json::json!({ "args": { "resp": { "connection": connection, "reads": *reads } } });
                if (&stream).write_all(format!("{answer}\n").as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}

/// A scheduler that answers each request with its number, for as long as the process lives.
fn echo(listener: &UnixListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        thread::spawn(move || {
            let lines = BufReader::new(&stream).lines();
            for line in lines.map_while(Result::ok) {
                let request: StatsRequest = serde_json::from_str(&line).unwrap();
                let answer = format!(r#"{{"errno":0,"args":{{"resp":"{}"}}}}{}"#, request.args["number"], '\n');
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
    }
}
