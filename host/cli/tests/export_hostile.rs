//! `scx-vsock export` among hostile guests and scrapers of every kind, all at the same time.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::exporter::{Exporter, Metrics, response};
use scx_vsock_tests::fake_agent::{FakeAgent, framed};
use scx_vsock_tests::meta_scheduler::{answer, meta, scheduler, stats};
use scx_vsock_tests::scripted_scheduler::{Script, ScriptedScheduler};
use serde_json::{Map, Value, json};

/// How long the mix goes on.
const DURATION: Duration = Duration::from_secs(60);

/// Guests with an ordinary scheduler.
const HONEST: usize = 30;

/// The scrape timeout of an honest scraper, as is Prometheus' default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// KiB that the process may have at most: 32 MiB of its own and of honest guests, and of two hostile guests what the module
/// `export` states, with eight pages.
const MAX_KIB: u64 = (32 + 2 * (10 + 8 * 6)) * 1024;

/// A guest whose scheduler has another description each time, of a thousand deep fields that all have one name, and ends
/// each session after its answer.
fn endless_descriptions() -> FakeAgent {
    FakeAgent::start((0u64..).map(|number| {
        // Names that differ where metrics' names are truncated or have an underscore.
        let names = (0..1_000).map(|n| format!("{}{}{}", "n".repeat(100), if n % 2 == 0 { "." } else { "-" }, n));
        let fields: Map<String, Value> = names.clone().map(|name| (name, json!({ "datum": "u64" }))).collect();
        let meta = json!({ "T": { "top": "true", "desc": number.to_string(), "fields": fields } });
        let stats: Map<String, Value> = names.map(|name| (name, json!(number))).collect();
        Script::agent()
            .line()
            .send(framed(answer(&meta).trim_end()))
            .line()
            .send(framed(answer(&Value::Object(stats)).trim_end()))
            .close()
    }))
}

/// A guest that accepts every session, sends a part of an answer, and no more.
fn never_answers() -> FakeAgent {
    FakeAgent::start(std::iter::repeat_with(|| Script::agent().line().send(r#"{"stats":{"errno":0,"#)))
}

/// Connects, sends a request with this header, and returns the stream; `None` if that failed.
fn request(at: SocketAddr, header: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(at).ok()?;
    write!(stream, "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n{header}\r\n").ok()?;
    Some(stream)
}

fn impatient(at: SocketAddr) {
    if let Some(mut stream) = request(at, "X-Prometheus-Scrape-Timeout-Seconds: 0\r\n") {
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _may_be_refused = stream.read_to_end(&mut Vec::new());
    }
}

fn closes_at_once(at: SocketAddr) {
    (0..4).for_each(|_| drop(request(at, "")));
    thread::sleep(Duration::from_millis(125));
}

fn reads_nothing(at: SocketAddr) {
    let unread: Vec<_> = (0..32).map(|_| request(at, "")).collect();
    thread::sleep(Duration::from_secs(1));
    drop(unread);
}

fn floods(at: SocketAddr) {
    let flood: Vec<_> = (0..200).map(|_| TcpStream::connect(at)).collect();
    thread::sleep(Duration::from_millis(100));
    drop(flood);
}

/// A scrape of Prometheus, which must be answered in its time.
fn scrape(exporter: &Exporter) -> Metrics {
    let timeout = format!("X-Prometheus-Scrape-Timeout-Seconds: {}\r\n", TIMEOUT.as_secs());
    let mut stream = request(exporter.at(), &timeout).expect("it listens");
    let sent = Instant::now();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let response = response(&mut stream);
    assert!(sent.elapsed() < TIMEOUT, "it took {:?}", sent.elapsed());
    assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
    Metrics::parse(&response.body)
}

fn descriptors(exporter: &Exporter) -> usize {
    fs::read_dir(format!("/proc/{}/fd", exporter.id())).unwrap().count()
}

/// The most memory that the process had so far.
fn peak_kib(exporter: &Exporter) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", exporter.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

struct Fleet {
    /// Dropped first: what breaks in their scripts when the exporter ends is no fault.
    _hostile: [FakeAgent; 2],
    exporter: Exporter,
    _scheduler: ScriptedScheduler,
    _honest: Vec<Agent>,
}

fn fleet() -> Fleet {
    let scheduler = scheduler(&meta(), &stats());
    let honest: Vec<Agent> = (0..HONEST)
        .map(|_| {
            let agent = Agent::start();
            symlink(scheduler.path(), agent.scheduler_path(0)).unwrap();
            agent
        })
        .collect();
    let hostile = [endless_descriptions(), never_answers()];
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["export", "--interval", "1", "--deadline", "5"]);
    for (at, agent) in honest.iter().enumerate() {
        command.arg(format!("honest{at}=unix:{}", agent.host_path(0).display()));
    }
    for (at, agent) in hostile.iter().enumerate() {
        command.arg(format!("hostile{at}=unix:{}", agent.path().display()));
    }
    Fleet { exporter: Exporter::start(command), _scheduler: scheduler, _honest: honest, _hostile: hostile }
}

#[test]
#[ignore = "takes a minute; run ci/test fleet"]
fn honest_scrapers_have_honest_guests_all_the_time() {
    let fleet = fleet();
    let exporter = &fleet.exporter;
    let is_complete = |page: &Metrics| (0..HONEST).all(|at| page.is_up(&format!("honest{at}")));
    assert!(is_complete(&scrape(exporter)));
    let (before, is_over) = (descriptors(exporter), AtomicBool::new(false));
    thread::scope(|scope| {
        for attack in [impatient, closes_at_once, reads_nothing, floods] {
            let (at, is_over) = (exporter.at(), &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    attack(at);
                }
            });
        }
        let started = Instant::now();
        let mut scrapes = 0;
        while started.elapsed() < DURATION {
            let page = scrape(exporter);
            assert!(is_complete(&page), "after {scrapes} scrapes: {page:?}");
            scrapes += 1;
            thread::sleep(Duration::from_secs(1));
        }
        is_over.store(true, Ordering::Relaxed);
        eprintln!("{scrapes} scrapes, at most {} KiB", peak_kib(exporter));
    });
    assert!(peak_kib(exporter) < MAX_KIB, "{} KiB", peak_kib(exporter));
    // Those of the hostile guests come and go.
    exporter.scrape_until(|_| descriptors(exporter) <= before);
}
