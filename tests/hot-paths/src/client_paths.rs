//! A request of the client, the agent's envelopes, and the decoding of a large answer.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use scx_vsock::client::{Answer, PollClient, decode};
use scx_vsock::io::Deadline;
use scx_vsock::{Connect, MAX_RESPONSE_BYTES, StatsRequest};
use scx_vsock_wire::{Envelope, RelayError, Text};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::measured::{HotPath, measured, repeat};

/// The paths of this module.
pub const ALL: &[HotPath] = &[
    HotPath { name: "request", times: 51, run: requests },
    HotPath { name: "envelope", times: 51, run: envelopes },
    HotPath { name: "decode-typed", times: 3, run: decode_typed },
    HotPath { name: "decode-value", times: 3, run: decode_value },
];

/// The host's end of one stream.
struct OneStream(Mutex<Option<OwnedFd>>);

impl fmt::Display for OneStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a socket pair")
    }
}

impl Connect for OneStream {
    fn connect(&self) -> io::Result<OwnedFd> {
        let stream = self.0.lock().ok().and_then(|mut stream| stream.take());
        stream.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// Returns layers with a mix of whole numbers, fractions and arrays, as scx_layered has them.
fn layers(count: u32) -> BTreeMap<String, Layer> {
    (0..count).map(|number| (format!("layer-{number}"), Layer::example(number))).collect()
}

#[derive(Deserialize, Serialize)]
struct Layer {
    util: f64,
    load: f64,
    tasks: u32,
    total: u64,
    min_exec_us: u64,
    cpus: Vec<u64>,
}

impl Layer {
    fn example(number: u32) -> Self {
        let part = f64::from(number % 1_000) / 10.0;
        let total = u64::from(number) * 1_000;
        Self { util: part, load: part / 7.0, tasks: number, total, min_exec_us: 20_000, cpus: vec![0xff, 0xf0] }
    }
}

#[derive(Deserialize)]
struct Layers {
    layers: BTreeMap<String, Layer>,
}

fn answer(layers: &BTreeMap<String, Layer>) -> String {
    json!({ "errno": 0, "args": { "resp": { "layers": layers } } }).to_string()
}

/// Requests on one session: what the client does until it waits for the answer, and once the answer is there.
fn requests(times: usize) -> anyhow::Result<()> {
    let (host, mut agent) = UnixStream::pair()?;
    host.set_nonblocking(true)?;
    agent.write_all(&Envelope::hello(Text::EMPTY, Text::EMPTY, MAX_RESPONSE_BYTES).emit())?;
    let envelope = format!("{{\"stats\":{}}}\n", answer(&layers(6)));
    let mut lines = BufReader::new(agent.try_clone()?);
    let mut client = PollClient::new(OneStream(Mutex::new(Some(host.into()))));
    // A session's first request opens it.
    request(&mut client, || exchange(&mut lines, &mut agent, &envelope), |work| work())?;
    repeat(times, || request(&mut client, || exchange(&mut lines, &mut agent, &envelope), measured))
}

/// The agent reads a request and answers it.
fn exchange(lines: &mut impl BufRead, agent: &mut UnixStream, envelope: &str) -> anyhow::Result<()> {
    lines.read_line(&mut String::new())?;
    Ok(agent.write_all(envelope.as_bytes())?)
}

fn request(
    client: &mut PollClient,
    exchange: impl FnOnce() -> anyhow::Result<()>,
    counted: fn(&mut dyn FnMut()),
) -> anyhow::Result<()> {
    let now = Instant::now();
    let deadline = Deadline::after(now, Duration::from_secs(3600));
    let mut started = Ok(());
    let mut outcome = Poll::Pending;
    counted(&mut || {
        started = StatsRequest::stats(&[]).line().and_then(|line| client.start(line, deadline));
        outcome = client.on_ready(now, decode::resp::<Value>);
    });
    started?;
    if outcome.is_ready() {
        bail!("no answer comes before the request is read");
    }
    exchange()?;
    counted(&mut || outcome = client.on_ready(now, decode::resp::<Value>));
    let Poll::Ready(stats) = outcome else { bail!("an answer of one write is read at once") };
    stats?.get("layers").map(drop).context("the answer has the layers")
}

/// The agent writes the envelopes without a scheduler's answer, and the host reads them.
fn envelopes(times: usize) -> anyhow::Result<()> {
    let boot_id = Text::first_line(b"0b1fd2a7-9d7c-4d5e-a4a3-3c8e1d2f4b5a");
    let hello = Envelope::hello(Text::first_line(b"0.1.0"), boot_id, MAX_RESPONSE_BYTES);
    let [sched_ext, ops] = [&b"disabled"[..], b"bpfland_1.1.4"].map(Text::first_line);
    let cause = Text::first_line(b"sched_ext: BPF scheduler \"bpfland_1.1.4\" disabled (unregistered from user space)");
    let gone = Envelope::RelayError(RelayError::NoScheduler { errno: 2, sched_ext, ops, cause });
    repeat(times, || {
        for envelope in [&hello, &gone] {
            let mut read: serde_json::Result<Envelope<String>> = Ok(Envelope::RelayError(RelayError::UnknownVerb {}));
            measured(&mut || read = serde_json::from_slice(&envelope.emit()));
            black_box(read?);
        }
        Ok(())
    })
}

/// Layers whose answer is of nearly the greatest length.
const MANY_LAYERS: u32 = 2_000;

fn decode_typed(times: usize) -> anyhow::Result<()> {
    decode_large::<Layers>(times, |stats| stats.layers.len())
}

fn decode_value(times: usize) -> anyhow::Result<()> {
    decode_large::<Value>(times, |stats| stats.get("layers").and_then(Value::as_object).map_or(0, serde_json::Map::len))
}

/// What is decoded is dropped as well.
fn decode_large<T: DeserializeOwned>(times: usize, layers_of: fn(&T) -> usize) -> anyhow::Result<()> {
    let line = answer(&layers(MANY_LAYERS));
    let nearly = MAX_RESPONSE_BYTES * 8 / 10..MAX_RESPONSE_BYTES;
    anyhow::ensure!(nearly.contains(&line.len()), "the answer has {} bytes", line.len());
    let expected = layers(MANY_LAYERS).len();
    repeat(times, || {
        let mut decoded = Ok(0);
        measured(&mut || {
            let stats = decode::resp::<T>(Answer::Scheduler(line.as_bytes()));
            decoded = stats.map(|stats| layers_of(&stats.value));
        });
        anyhow::ensure!(decoded? == expected, "all layers are decoded");
        Ok(())
    })
}
