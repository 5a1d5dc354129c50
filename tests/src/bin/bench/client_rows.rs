//! What the host's client promises, against a client without sessions, bare descriptors and untyped JSON.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Barrier;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use scx_vsock::client::{Answer, answer};
use scx_vsock::{Endpoint, MAX_RESPONSE_BYTES, RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::abandonment;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::row::{Goal, Row, at};

/// Measurements.
pub const ALL: &[fn(&Path) -> Row] = &[wrong_answers, freeze_wakes, cancel_wakes, typed_decode];

/// Calls that wait at the same time.
const WAITING: usize = 64;

/// Wrong answers in a million requests of which about half are abandoned; of a client that keeps its session, in as
/// many by extrapolation.
fn wrong_answers(_: &Path) -> Row {
    const REQUESTS: u64 = 1_000_000;
    const OF_THE_OTHER: u64 = 20_000;
    let tally = abandonment::of_clients(REQUESTS);
    eprintln!("bench: of {REQUESTS} requests: {tally:?}");
    let other = abandonment::of_a_client_that_keeps_its_session(OF_THE_OTHER);
    let of_as_many = other.wrong * (REQUESTS / OF_THE_OTHER);
    let name = "wrong answers in 1,000,000 / of a client that keeps sessions";
    Row::exact(name, tally.wrong as f64, of_as_many as f64, Goal::Ours(0.0))
}

fn freeze_wakes(_: &Path) -> Row {
    wakes("freeze() to the return of 64 waiting calls, p99 / bare, us", |control| drop(control.freeze()))
}

fn cancel_wakes(_: &Path) -> Row {
    wakes("cancel() to the return of 64 waiting calls, p99 / bare, us", RunControl::cancel)
}

fn wakes(name: &'static str, stop: impl Fn(&RunControl)) -> Row {
    const ROUNDS: usize = 100;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.extend(calls_end(&stop));
        bare.extend(descriptors_wake());
    }
    ours.sort_by(f64::total_cmp);
    bare.sort_by(f64::total_cmp);
    Row::exact(name, at(&ours, 0.99), at(&bare, 0.99), Goal::Ours(1_000.0))
}

/// Microseconds from the stop to the return of each of 64 calls of as many clients, which all wait for their answer.
fn calls_end(stop: impl Fn(&RunControl)) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Unix { path: folder.path().join("agent") };
    let listener = UnixListener::bind(folder.path().join("agent")).unwrap();
    let control = RunControl::new();
    thread::scope(|scope| {
        let calls: Vec<_> = (0..WAITING)
            .map(|_| {
                let builder = SchedStatsClient::builder(endpoint.clone()).control(&control);
                let client = builder.deadline(Duration::from_secs(60)).build();
                scope.spawn(move || {
                    let error = client.stats(&[]).unwrap_err();
                    let returned = Instant::now();
                    assert!(matches!(error, SchedStatsError::DuringFreeze | SchedStatsError::Cancelled), "{error}");
                    returned
                })
            })
            .collect();
        // Whose request has been read waits for nothing but the answer.
        let asked: Vec<_> = (0..WAITING)
            .map(|_| {
                let mut lines = BufReader::new(listener.accept().unwrap().0);
                lines.read_line(&mut String::new()).unwrap();
                lines
            })
            .collect();
        let stopped = Instant::now();
        stop(&control);
        let times = calls.into_iter().map(|call| micros(call.join().unwrap().duration_since(stopped))).collect();
        drop(asked);
        times
    })
}

/// The floor: threads that poll a descriptor each, which are written to one after the other.
fn descriptors_wake() -> Vec<f64> {
    let descriptors: Vec<_> = (0..WAITING).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let ready = Barrier::new(WAITING + 1);
    thread::scope(|scope| {
        let (woken, times) = mpsc::channel();
        for descriptor in &descriptors {
            let (ready, woken) = (&ready, woken.clone());
            scope.spawn(move || {
                ready.wait();
                poll(&mut [PollFd::new(descriptor, PollFlags::IN)], None).unwrap();
                woken.send(Instant::now()).unwrap();
            });
        }
        drop(woken);
        ready.wait();
        let started = Instant::now();
        for descriptor in &descriptors {
            rustix::io::write(descriptor, &1u64.to_ne_bytes()).unwrap();
        }
        times.into_iter().map(|woken| micros(woken.duration_since(started))).collect()
    })
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[derive(Deserialize)]
struct Stats {
    layers: HashMap<String, Layer>,
}

#[derive(Deserialize)]
struct Layer {
    util: f64,
    load: f64,
    nr_tasks: u64,
    nr_exec: u64,
    cpus: Vec<u32>,
}

/// An answer of almost the longest line there can be, decoded as the type of its stats or as any value.
fn typed_decode(_: &Path) -> Row {
    const TIMES: usize = 200;
    let layer = json!({
        "util": 12.345_678, "load": 0.987_654_321, "nr_tasks": 123, "nr_exec": 123_456_789, "cpus": [0, 1, 2, 3, 4, 5, 6, 7],
    });
    let layers: HashMap<String, Value> = (0..2_200).map(|n| (format!("layer-{n}"), layer.clone())).collect();
    let line = json!({ "errno": 0, "args": { "resp": { "layers": layers } } }).to_string();
    assert!((MAX_RESPONSE_BYTES * 9 / 10..MAX_RESPONSE_BYTES).contains(&line.len()), "{} bytes", line.len());
    let checked: Stats = decode(&line);
    let layer = &checked.layers["layer-0"];
    let sum = layer.util + layer.load + (layer.nr_tasks + layer.nr_exec) as f64 + f64::from(layer.cpus[7]);
    assert!(checked.layers.len() == 2_200 && sum > 0.0);
    let (mut typed, mut untyped) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        typed.push(decode_time::<Stats>(&line));
        untyped.push(decode_time::<Value>(&line));
    }
    Row::of("typed decode of a 256 KiB answer / untyped, us", &mut typed, &mut untyped, Goal::Ratio(0.5))
}

fn decode<T: DeserializeOwned>(line: &str) -> T {
    answer::resp(Answer::Scheduler(line.as_bytes())).unwrap().value
}

fn decode_time<T: DeserializeOwned>(line: &str) -> f64 {
    let started = Instant::now();
    let value: T = decode(line);
    let time = micros(started.elapsed());
    black_box(value);
    time
}
