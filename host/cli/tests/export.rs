//! `scx-vsock export` as a process: several guests with several schedulers, and scrapers of every kind.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock::export::MAX_SCRAPERS;
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::exporter::{Exporter, Metrics, get, response};
use scx_vsock_tests::fake_agent::{FakeAgent, framed};
use scx_vsock_tests::meta_scheduler::{answer, meta, scheduler, stats};
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::program;
use scx_vsock_tests::scheduler_shapes::scheduler_shapes;
use scx_vsock_tests::scripted_scheduler::{Event, Script, ScriptedScheduler};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn export() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg("export");
    command
}

/// An exporter that reads these guests as often as it can.
fn exporter(guests: &[(&str, &Path)], deadline: u32) -> Exporter {
    Exporter::start(export_of(guests, deadline, "100ms"))
}

/// An exporter that reads these guests once.
fn exporter_once(guests: &[(&str, &Path)], deadline: u32) -> Exporter {
    Exporter::start(export_of(guests, deadline, "1000"))
}

fn export_of(guests: &[(&str, &Path)], deadline: u32, interval: &str) -> Command {
    let mut command = export();
    command.args(["--deadline", &deadline.to_string(), "--interval", interval]);
    for (name, path) in guests {
        command.arg(format!("{name}=unix:{}", path.display()));
    }
    command
}

/// An agent with a symbolic link to the scheduler's socket.
fn agent_of(scheduler: &ScriptedScheduler) -> Agent {
    let agent = Agent::start();
    symlink(scheduler.path(), agent.scheduler_path(0)).unwrap();
    agent
}

/// A process that serves a machine's own counters. Killed on drop.
struct Procsched(Child);

impl Procsched {
    fn at(socket: &Path) -> Self {
        let mut child = Command::new(program::built("procsched"))
            .arg("--socket")
            .arg(socket)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut said).unwrap();
        assert!(said.contains("listening"), "{said}");
        Self(child)
    }
}

impl Drop for Procsched {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// An address whose agent can be replaced.
struct Address {
    folder: TempDir,
}

impl Address {
    fn of(agent: &Agent) -> Self {
        let address = Self { folder: tempfile::tempdir().unwrap() };
        address.set_guest(agent);
        address
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    fn set_guest(&self, agent: &Agent) {
        let _was_there = fs::remove_file(self.path());
        symlink(agent.host_path(0), self.path()).unwrap();
    }
}

fn all_are_up(page: &Metrics) {
    assert!(["layered", "proc", "simple"].iter().all(|guest| page.is_up(guest)), "{page:?}");
    assert_eq!(page.get("scx_l_util{guest=\"layered\",layer_name=\"batch\"}"), Some("150.25"));
    assert_eq!(page.get("scx_l_cpus{guest=\"layered\",layer_name=\"batch\",index=\"1\"}"), Some("3"));
    assert_eq!(page.help.get("scx_l_util").unwrap(), "CPU utilization (100% means one full CPU)");
    assert_eq!(page.get("scx_nr_queued{guest=\"simple\"}"), Some("3"));
    let switches = page.get("scx_totals_ctxt{guest=\"proc\"}").map(|n| n.parse::<u64>().unwrap());
    assert!(switches.unwrap() > 0);
    assert!(page.get("scx_totals_cpus_user{guest=\"proc\",cpu=\"0\"}").is_some(), "{page:?}");
}

#[test]
fn restarted_guests_come_back_by_themselves() {
    let layered = scheduler(&meta(), &stats());
    let simple = json!({ "S": { "top": "true", "fields": { "nr_queued": { "datum": "u64", "desc": "queued" } } } });
    let simple = scheduler(&simple, &json!({ "nr_queued": 3 }));
    let (first, second, third) = (agent_of(&layered), Agent::start(), agent_of(&simple));
    let proc = Procsched::at(&second.scheduler_path(0));
    let address = Address::of(&first);
    let paths = [address.path(), second.host_path(0), third.host_path(0)];
    let guests: Vec<(&str, &Path)> =
        ["layered", "proc", "simple"].into_iter().zip(paths.iter().map(|path| &**path)).collect();
    let exporter = exporter(&guests, 10);

    let proc_is_measured =
        |page: &Metrics| page.is_up("proc") && page.get("scx_vsock_interval_seconds{guest=\"proc\"}").is_some();
    all_are_up(&exporter.scrape_until(proc_is_measured));

    // One guest is killed, another's scheduler ends.
    drop((first, proc));
    let page = exporter.scrape_until(|page| !page.is_up("layered") && !page.is_up("proc"));
    assert!(page.is_up("simple"), "{page:?}");
    let missing = [("layered", "agent_unreachable"), ("proc", "no_scheduler")];
    let page = exporter.scrape_until(|page| missing.iter().all(|(guest, reason)| page.missing(guest, reason) > 0));
    assert!(
        page.values.keys().all(|series| series.starts_with("scx_vsock_") || series.contains("\"simple\"")),
        "{page:?}"
    );

    // They come back.
    let again = agent_of(&layered);
    address.set_guest(&again);
    fs::remove_file(second.scheduler_path(0)).unwrap();
    let _proc = Procsched::at(&second.scheduler_path(0));
    let page = exporter.scrape_until(|page| ["layered", "proc", "simple"].iter().all(|guest| page.is_up(guest)));
    assert!(page.number("scx_vsock_session{guest=\"layered\"}") > Some(1.0), "its deltas have a new baseline");
    assert_eq!(page.get("scx_vsock_session{guest=\"simple\"}"), Some("1"));
}

#[test]
fn another_scheduler_on_the_same_guest_has_its_own_metrics() {
    let layered = scheduler(&meta(), &stats());
    let agent = agent_of(&layered);
    let exporter = exporter(&[("guest", &agent.host_path(0))], 10);
    assert_eq!(exporter.scrape().get("scx_total_value{guest=\"guest\"}"), Some("12345"));
    drop(layered);
    fs::remove_file(agent.scheduler_path(0)).unwrap();
    let _proc = Procsched::at(&agent.scheduler_path(0));
    let page = exporter.scrape_until(|page| page.get("scx_totals_ctxt{guest=\"guest\"}").is_some());
    assert!(page.is_up("guest") && page.get("scx_total_value{guest=\"guest\"}").is_none(), "{page:?}");
}

/// The sessions of an agent whose scheduler describes itself, answers once, stalls, and then answers again and again.
fn stalls_once() -> Script {
    let [meta, stats] = [answer(&meta()), answer(&stats())].map(|line| framed(line.trim_end()));
    let again = Script::new().line().send(&stats);
    Script::agent().line().send(&meta).line().send(&stats).line().stall().send(&stats).forever(again)
}

#[test]
fn a_slow_guest_delays_nobody() {
    let fine = scheduler(&meta(), &stats());
    let slow = FakeAgent::start([stalls_once()]);
    let agent = agent_of(&fine);
    let exporter = exporter(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 1_000);
    assert!(exporter.scrape().is_up("slow"));
    slow.wait_for(&Event::Stalled(0));
    // It is being read, which nothing but this test ends, and has what it had.
    let before = exporter.scrape();
    assert!(before.is_up("fine") && before.is_up("slow"), "{before:?}");
    let reads = |page: &Metrics| page.number("scx_total_value_accumulated_total{guest=\"fine\"}");
    exporter.scrape_until(|page| reads(page) > reads(&before));
    slow.release();
    let spans = "scx_vsock_read_duration_seconds{guest=\"slow\"}";
    exporter.scrape_until(|page| page.number(spans) != before.number(spans));
}

#[test]
fn a_guest_that_does_not_answer_in_time_is_tried_again() {
    let stalls = Script::agent().line().stall();
    let [meta, stats] = [answer(&meta()), answer(&stats())].map(|line| framed(line.trim_end()));
    let answers = Script::agent().line().send(meta).forever(Script::new().line().send(stats));
    let slow = FakeAgent::start([stalls.clone(), stalls, answers]);
    let exporter = exporter(&[("slow", &slow.path())], 1);
    let page = exporter.scrape();
    assert!(!page.is_up("slow") && page.missing("slow", "timed_out") == 1, "{page:?}");
    assert!(page.number("scx_vsock_read_duration_seconds{guest=\"slow\"}") >= Some(1.0), "{page:?}");
    let page = exporter.scrape_until(|page| page.is_up("slow"));
    assert_eq!(page.missing("slow", "timed_out"), 2);
    slow.release();
    slow.release();
}

#[test]
fn a_guest_whose_agent_sends_no_hello_is_unreachable() {
    let silent = FakeAgent::start([Script::new().stall()]);
    let exporter = exporter_once(&[("silent", &silent.path())], 1);
    let page = exporter.scrape();
    assert!(page.missing("silent", "agent_unreachable") == 1 && page.missing("silent", "timed_out") == 0, "{page:?}");
    silent.release();
}

#[test]
fn a_scraper_waits_for_first_reads_within_its_own_timeout() {
    let fine = scheduler(&meta(), &stats());
    let slow = FakeAgent::start([Script::agent().line().stall()]);
    let agent = agent_of(&fine);
    let exporter = exporter(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 1_000);
    slow.wait_for(&Event::Stalled(0));
    let headers = "Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.5\r\n";
    let page = Metrics::parse(&get(exporter.at(), "/metrics", headers).body);
    assert!(page.is_up("fine") && !page.is_up("slow"), "{page:?}");
    assert_eq!(page.missing("slow", "timed_out"), 0, "it is still being read, for others");
    let waited = page.number("scx_vsock_read_duration_seconds{guest=\"slow\"}").unwrap();
    assert!((0.3..20.0).contains(&waited), "{waited}");
    slow.release();
}

#[test]
fn a_huge_timeout_of_a_scraper_is_harmless() {
    let fine = scheduler(&meta(), &stats());
    let slow = FakeAgent::start([Script::agent().line().stall()]);
    let agent = agent_of(&fine);
    let exporter = exporter_once(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 2);
    slow.wait_for(&Event::Stalled(0));
    let scrape = |seconds: &str| {
        let headers =
            format!("Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: {seconds}\r\n");
        assert!(Metrics::parse(&get(exporter.at(), "/metrics", &headers).body).is_up("fine"), "{seconds}");
    };
    // All of them wait for the slow guest's first read.
    thread::scope(|scope| {
        for seconds in ["10248191152060854272", "18446744073709551615", "1e300", "inf"] {
            scope.spawn(move || scrape(seconds));
        }
    });
    slow.release();
}

/// Sends a request for the metrics and reads nothing. It may be rejected before that has been sent.
fn request(exporter: &Exporter) -> TcpStream {
    let mut stream = exporter.connect();
    let _sent = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
    stream
}

#[test]
fn an_impatient_scraper_takes_nobodys_numbers() {
    let slow = FakeAgent::start([stalls_once()]);
    let exporter = exporter(&[("slow", &slow.path())], 1_000);
    assert!(exporter.scrape().is_up("slow"));
    slow.wait_for(&Event::Stalled(0));
    for _ in 0..5 {
        let response = get(exporter.at(), "/metrics", "X-Prometheus-Scrape-Timeout-Seconds: 0\r\n");
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
    }
    assert!(exporter.scrape().is_up("slow"));
    slow.release();
    let is_measured = |page: &Metrics| page.get("scx_vsock_interval_seconds{guest=\"slow\"}").is_some();
    assert_eq!(exporter.scrape_until(is_measured).get("scx_vsock_session{guest=\"slow\"}"), Some("1"));
}

/// A scheduler whose answers have the number of lines that it has read.
fn counting_scheduler() -> ScriptedScheduler {
    let meta = json!({ "T": { "top": "true", "fields": { "n": { "datum": "u64" } } } });
    let again = Script::new().line().send_number(r#"{"errno":0,"args":{"resp":{"n":"#, "}}}\n");
    let session = Script::new().line().send(answer(&meta)).forever(again);
    ScriptedScheduler::start(std::iter::repeat(session))
}

#[test]
fn a_second_scraper_does_not_change_the_numbers_of_the_first() {
    let scheduler = counting_scheduler();
    let agent = agent_of(&scheduler);
    let exporter = exporter_once(&[("guest", &agent.host_path(0))], 10);
    let first = exporter.scrape();
    assert_eq!(first.get("scx_n{guest=\"guest\"}"), Some("2"), "the description and the stats were read");
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10).for_each(|_| assert!(exporter.scrape().is_up("guest"))));
        }
    });
    assert_eq!(exporter.scrape().values, first.values, "no scrape reads the guest");
}

#[test]
fn counts_add_up_across_restarts_of_a_scheduler() {
    let (accumulated, session) =
        ("scx_nr_nodes_accumulated_total{guest=\"guest\"}", "scx_vsock_session{guest=\"guest\"}");
    let sum = |page: &Metrics| page.number(accumulated).unwrap_or(0.0);
    let first = scheduler(&meta(), &stats());
    let agent = agent_of(&first);
    let exporter = exporter(&[("guest", &agent.host_path(0))], 10);
    let before = exporter.scrape_until(|page| sum(page) >= 4.0);
    drop(first);
    exporter.scrape_until(|page| !page.is_up("guest"));
    let second = scheduler(&meta(), &stats());
    fs::remove_file(agent.scheduler_path(0)).unwrap();
    symlink(second.path(), agent.scheduler_path(0)).unwrap();
    let after = exporter.scrape_until(|page| page.is_up("guest"));
    assert!(after.number(session) > before.number(session) && sum(&after) >= sum(&before), "{before:?} {after:?}");
    // Each read has 2 nodes.
    let later = exporter.scrape_until(|page| sum(page) > sum(&after));
    assert_eq!((sum(&later) - sum(&before)) % 2.0, 0.0, "{later:?}");
}

#[test]
fn the_answer_decides_which_of_two_structs_it_is() {
    let meta = json!({
        "A": { "top": "true", "user": { "_om_prefix": "s_" }, "fields": { "n": { "datum": "u64" } } },
        "B": { "top": "true", "fields": { "n": { "datum": "u64" }, "m": { "datum": "u64" } } },
    });
    let page = page_of(&meta, &json!({ "n": 1, "m": 2, "x": 3 }));
    let value = |name: &str| page.get(&format!("{name}{{guest=\"guest\"}}"));
    assert_eq!((value("scx_n"), value("scx_m"), value("scx_s_n")), (Some("1"), Some("2"), None));
    assert_eq!(value("scx_vsock_undescribed_fields"), Some("1"));
}

#[test]
fn no_field_of_a_known_scheduler_is_lost() {
    let shapes = scheduler_shapes();
    let guests: Vec<(ScriptedScheduler, Agent)> = shapes
        .iter()
        .map(|shape| {
            let scheduler = scheduler(&shape.meta, &shape.answer);
            let agent = agent_of(&scheduler);
            (scheduler, agent)
        })
        .collect();
    let paths: Vec<PathBuf> = guests.iter().map(|(_, agent)| agent.host_path(0)).collect();
    let named: Vec<(&str, &Path)> = shapes.iter().zip(&paths).map(|(shape, path)| (&*shape.name, &**path)).collect();
    let page = exporter_once(&named, 10).scrape();
    for shape in &shapes {
        let name = &shape.name;
        assert_eq!(page.get(&format!("scx_vsock_undescribed_fields{{guest=\"{name}\"}}")), Some("0"));
        assert_eq!(page.get(&format!("scx_vsock_unusable_values{{guest=\"{name}\"}}")), Some("0"));
        let of_guest =
            |series: &&String| series.contains(&format!("guest=\"{name}\"")) && !series.contains("_accumulated_total{");
        let values: Vec<&String> =
            page.values.iter().filter(|(series, _)| of_guest(series)).map(|(_, value)| value).collect();
        let times = |number: &String| values.iter().filter(|value| **value == number).count();
        assert!(shape.numbers.iter().all(|number| times(number) == 1), "{name}: {page:?}");
        assert!(shape.skipped.iter().all(|number| times(number) == 0), "{name}: {page:?}");
        let is_label = |text: &String| {
            page.values.keys().filter(of_guest).any(|series| series.contains(&format!("=\"{text}\"}}")))
        };
        assert!(shape.texts.iter().all(is_label), "{name}: {page:?}");
    }
}

#[test]
fn texts_are_labels_and_histograms_add_up() {
    let cells = json!({ "dict": { "key": "u64", "datum": { "struct": "Cell" } } });
    let meta = json!({
        "Cell": { "top": "true", "user": { "_om_prefix": "c_" }, "fields": {
            "cgroup_path": { "datum": "string", "user": { "_om_skip": "true" } } } },
        "T": { "top": "true", "fields": {
            "cells": cells,
            "waits": { "array": "u64", "desc": "Waits", "user": { "_om_histogram": "log2_us" } },
            "plain": { "array": "u64" } } },
    });
    let stats = json!({ "cells": { "3": { "cgroup_path": "/a \"b\"" } }, "waits": [1, 0, 2], "plain": [7, 8] });
    let scheduler = scheduler(&meta, &stats);
    let agent = agent_of(&scheduler);
    let exporter = exporter(&[("guest", &agent.host_path(0))], 10);
    let count = "scx_waits_distribution_seconds_count{guest=\"guest\"}";
    let page = exporter.scrape_until(|page| page.number(count) > Some(0.0));
    let path = "scx_c_cgroup_path_info{guest=\"guest\",key=\"3\",cgroup_path=\"/a \\\"b\\\"\"}";
    assert_eq!(page.get(path), Some("1"), "{page:?}");
    let bucket =
        |bound: &str| page.number(&format!("scx_waits_distribution_seconds_bucket{{le=\"{bound}\",guest=\"guest\"}}"));
    let reads = page.number(count).unwrap() / 3.0;
    assert_eq!(
        (bucket("0.000002"), bucket("0.000004"), bucket("+Inf")),
        (Some(reads), Some(reads), Some(3.0 * reads)),
        "{page:?}"
    );
    assert_eq!(page.get("scx_plain{guest=\"guest\",index=\"1\"}"), Some("8"));
}

#[test]
fn the_example_dashboard_shows_what_every_guest_has() {
    let fine = scheduler(&meta(), &stats());
    let agent = agent_of(&fine);
    let exporter = exporter(&[("fine", &agent.host_path(0)), ("nobody", Path::new("/nowhere"))], 10);
    let is_measured = |page: &Metrics| page.get("scx_vsock_interval_seconds{guest=\"fine\"}").is_some();
    let page = exporter.scrape_until(is_measured);
    let output = export().args(["--print", "dashboard"]).output().unwrap();
    let dashboard: Value = serde_json::from_slice(&output.stdout).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 8);
    for panel in panels {
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let words = query.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
            let metrics: Vec<&str> = words.filter(|word| word.starts_with("scx_vsock_")).collect();
            let is_exported =
                |metric: &&str| page.values.keys().any(|series| series.starts_with(&format!("{metric}{{")));
            assert!(metrics.iter().all(is_exported), "{query}");
            assert!(!metrics.is_empty() || query.contains("_accumulated_total"), "{query}");
        }
    }
}

fn make_fifo(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap();
}

fn remove_file(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn make_folder(path: &Path) {
    fs::create_dir(path).unwrap();
}

fn remove_folder(path: &Path) {
    fs::remove_dir(path).unwrap();
}

/// Replaces a file by another one of its folder.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

fn has_series_of(page: &Metrics, guest: &str) -> bool {
    page.values.keys().any(|series| series.contains(&format!("guest=\"{guest}\"")))
}

#[test]
fn guests_come_and_go_with_a_file() {
    let fine = scheduler(&meta(), &stats());
    let agent = agent_of(&fine);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guests");
    let line = |name: &str| format!("{name}=unix:{}\n", agent.host_path(0).display());
    fs::write(&file, format!("# fleet\n\n{}", line("a"))).unwrap();
    let mut command = export();
    command.args(["--interval", "100ms", "--guests"]).arg(&file);
    let exporter = Exporter::start(command);
    assert!(exporter.scrape().is_up("a"));

    fs::write(&file, line("a") + &line("b")).unwrap();
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 2 guests");
    let page = exporter.scrape_until(|page| page.is_up("b"));
    assert_eq!(page.get("scx_vsock_session{guest=\"a\"}"), Some("1"), "it stays as it was");

    replace(&file, &line("b"));
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 1 guest");
    assert!(!has_series_of(&exporter.scrape(), "a"), "its series end at once");

    for (text, problem) in [
        (line("b") + "c=nowhere\n", format!("{}:2: \"nowhere\" is not the URI of an agent", file.display())),
        (line("b") + &line("b"), format!("{}:2: another line names \"b\"", file.display())),
    ] {
        replace(&file, &text);
        let message = exporter.message();
        let kept = "; the guests stay as they were";
        assert!(message.starts_with(&format!("scx-vsock: {problem}")) && message.ends_with(kept), "{message}");
        assert!(exporter.scrape().is_up("b"));
    }
    fs::remove_file(&file).unwrap();
    assert!(exporter.message().contains("cannot read the guests from "), "it is gone");
    assert!(exporter.scrape().is_up("b"));
    let others: [[fn(&Path); 2]; 2] = [[make_fifo, remove_file], [make_folder, remove_folder]];
    for [create, remove] in others {
        create(&file);
        assert!(exporter.message().contains("it is not a regular file; the guests stay as they were"));
        assert!(exporter.scrape().is_up("b"));
        remove(&file);
        assert!(exporter.message().contains("cannot read the guests from "), "it is gone");
    }
    replace(&file, &(line("b") + &line("c")));
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 2 guests");
}

#[test]
fn a_fleet_that_leaves_at_once_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guests");
    fs::write(&file, (0..30_000).map(|at| format!("guest{at}=scx:/nowhere\n")).collect::<String>()).unwrap();
    let mut command = export();
    command.args(["--interval", "1000", "--guests"]).arg(&file);
    let exporter = Exporter::start(command);
    replace(&file, "guest1=scx:/nowhere\n");
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 1 guest");
    assert_eq!(exporter.scrape().get("scx_vsock_up{guest=\"guest1\"}"), Some("0"));
}

/// A socket that a VMM would have: it answers CONNECT, and then is an agent.
fn hybrid_socket(path: &Path) -> FakeAgent {
    let [meta, stats] = [answer(&meta()), answer(&stats())].map(|line| framed(line.trim_end()));
    let again = Script::new().line().send(stats);
    let session =
        Script::new().expect("CONNECT 729").send("OK 1024\n").and(Script::agent().line().send(meta).forever(again));
    let guest = FakeAgent::start(std::iter::repeat(session));
    // A name that appears at once, as that of a socket does.
    symlink(guest.path(), path).unwrap();
    guest
}

#[test]
fn guests_come_and_go_with_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = hybrid_socket(&folder.path().join("first"));
    let mut command = export();
    command.args(["--interval", "100ms", "--guests-dir"]).arg(folder.path());
    let exporter = Exporter::start(command);
    assert!(exporter.scrape().is_up("first"));
    let _second = hybrid_socket(&folder.path().join("second"));
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 2 guests");
    exporter.scrape_until(|page| page.is_up("second"));
    fs::remove_file(folder.path().join("first")).unwrap();
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 1 guest");
    let page = exporter.scrape();
    assert!(!has_series_of(&page, "first") && page.is_up("second"), "{page:?}");
    fs::remove_dir_all(folder.path()).unwrap();
    assert!((0..2).any(|_| exporter.message().contains("is gone")), "it reports the folder");
}

#[test]
fn wrong_guest_sources_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guests");
    fs::write(&file, "a=unix:/x\nb\n").unwrap();
    let shown = file.display().to_string();
    for (arguments, expected) in [
        (vec!["--guests", &shown], format!("{shown}:2: \"b\" is not the URI of an agent: it has no scheme")),
        (vec!["--guests", "/nowhere/guests"], "cannot watch the folder /nowhere".to_owned()),
        (vec!["--guests-dir", &shown], format!("cannot watch the folder {shown}")),
    ] {
        let output = export().args(&arguments).args(["--listen", "127.0.0.1:0"]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(&expected), "{arguments:?}: {stderr}");
    }
}

#[test]
fn scrapers_that_have_closed_keep_no_slot() {
    let slow = FakeAgent::start([Script::agent().line().stall()]);
    let exporter = exporter(&[("slow", &slow.path())], 1_000);
    slow.wait_for(&Event::Stalled(0));
    for _ in 0..2 * MAX_SCRAPERS {
        drop(request(&exporter));
    }
    let headers = "Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.5\r\n";
    let response = get(exporter.at(), "/metrics", headers);
    assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
    slow.release();
}

#[test]
fn readers_that_read_nothing_keep_nobody_out() {
    let keys: Map<String, Value> = (0..1_900).map(|at| (format!("{at:0>120}"), json!(at))).collect();
    let meta = json!({ "T": { "top": true, "fields": { "d": { "dict": { "key": "string", "datum": "u64" } } } } });
    let scheduler = scheduler(&meta, &json!({ "d": keys }));
    let agent = agent_of(&scheduler);
    let exporter = exporter(&[("large", &agent.host_path(0))], 10);
    let _unread: Vec<TcpStream> = (0..2 * MAX_SCRAPERS).map(|_| request(&exporter)).collect();
    // Those that have their slots lose them when they have read nothing for a while.
    let deadline = Instant::now() + DEADLINE;
    let is_served = || {
        let mut response = [0; 15];
        request(&exporter).read_exact(&mut response).is_ok() && response == *b"HTTP/1.1 200 OK"
    };
    assert!(std::iter::repeat_with(is_served).take_while(|_| Instant::now() < deadline).any(|served| served));
}

#[test]
fn a_flood_of_connections_at_few_descriptors_ends_nothing() {
    let fine = scheduler(&meta(), &stats());
    let agent = agent_of(&fine);
    let guest = format!("fine=unix:{}", agent.host_path(0).display());
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 24 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_scx-vsock"), "export", &guest]);
    let exporter = Exporter::start(command);
    let flood: Vec<TcpStream> = (0..200).map(|_| exporter.connect()).collect();
    drop(flood);
    let _flood: Vec<TcpStream> = (0..50).map(|_| exporter.connect()).collect();
    assert!(exporter.scrape().is_up("fine"));
}

#[test]
fn guests_leave_scrapers_their_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("stats");
    // Those that are connected keep their descriptors, since nobody answers; the others try it again and again.
    let _silent = UnixListener::bind(&socket).unwrap();
    let guests = (0..60).map(|at| format!("guest{at}=scx:{}", socket.display()));
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 32 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_scx-vsock"), "export"]).args(guests);
    command.args(["--interval", "100ms", "--deadline", "1000"]);
    let exporter = Exporter::start(command);
    let headers = "Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.3\r\n";
    for _ in 0..5 {
        let response = get(exporter.at(), "/metrics", headers);
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
        assert!(Metrics::parse(&response.body).missing("guest59", "no_scheduler") > 0, "{}", response.body);
    }
}

#[test]
fn a_kernel_without_memory_for_connections_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guests");
    fs::write(&file, "a=unix:/nowhere\n").unwrap();
    let mut command = Command::new(program::built("limited"));
    // ENOMEM.
    command.args(["accept4=12", env!("CARGO_BIN_EXE_scx-vsock"), "export", "--guests"]).arg(&file);
    let exporter = Exporter::start(command);
    let _waiting = exporter.connect();
    // What it prints after a change shows that it has tried to accept before.
    fs::write(&file, "a=unix:/nowhere\nb=unix:/nowhere\n").unwrap();
    assert_eq!(exporter.message(), "scx-vsock: serving the stats of 2 guests");
}

/// The exposition of a scheduler with this description and these stats.
fn page_of(meta: &Value, stats: &Value) -> Metrics {
    let scheduler = scheduler(meta, stats);
    let agent = agent_of(&scheduler);
    exporter(&[("guest", &agent.host_path(0))], 10).scrape()
}

#[test]
fn a_hostile_scheduler_cannot_break_the_exposition() {
    let evil = "x\n# EOF\n\"} 1 {\\";
    let meta = json!({
        evil: { "top": "true", "fields": {
            evil: { "datum": "u64", "desc": evil },
            "vsock_up": { "datum": "u64", "desc": "a lie" },
            "d": { "dict": { "key": "string", "datum": { "struct": "D" } }, "desc": evil },
            "text": { "datum": "float" },
            "waits": { "dict": { "key": "string", "datum": { "struct": "W" } } },
            "zz_many": { "array": "u64" },
        } },
        "D": { "user": { "_om_label": "__name__", "_om_prefix": evil }, "fields": { "guest": { "datum": "i64" } } },
        "W": { "user": { "_om_label": "le" }, "fields": {
            "w": { "array": "u64", "user": { "_om_histogram": "log2_us" } } } },
    });
    let many: Vec<u32> = (0..20_000).collect();
    let stats = json!({ evil: 1, "vsock_up": 0, "d": { evil: { "guest": -5 } }, "text": "NaN",
        "waits": { evil: { "w": [1, 2] } }, "zz_many": many });
    let page = page_of(&meta, &stats);
    assert!(page.is_up("guest"), "{page:?}");
    assert_eq!(page.get("scx_guest_vsock_up{guest=\"guest\"}"), Some("0"));
    let key = "x\\n# EOF\\n\\\"} 1 {\\\\";
    assert_eq!(page.get(&format!("scx_x___EOF____1___guest{{guest=\"guest\",name__=\"{key}\"}}")), Some("-5"));
    assert_eq!(page.get("scx_vsock_series_truncated{guest=\"guest\"}"), Some("1"));
    // Each with its counter.
    assert!(page.values.len() < 10_020, "{}", page.values.len());
}

#[test]
fn malformed_descriptions_are_counted_as_reasons() {
    for (meta, stats) in [(json!([1]), json!({})), (json!({ "T": 1 }), json!({}))] {
        let scheduler = scheduler(&meta, &stats);
        let agent = agent_of(&scheduler);
        let page = exporter(&[("guest", &agent.host_path(0))], 10).scrape();
        assert!(!page.is_up("guest") && page.missing("guest", "malformed_response") >= 1, "{page:?}");
    }
    let page = page_of(&json!({}), &json!([[[]]]));
    assert!(page.is_up("guest") && page.get("scx_vsock_unusable_values{guest=\"guest\"}") == Some("1"), "{page:?}");
}

#[test]
fn a_description_that_explodes_costs_little_time() {
    let structs = (0..60).map(|n| {
        let next = json!({ "dict": { "key": "string", "datum": { "struct": format!("S{}", (n + 1) % 60) } } });
        (format!("S{n}"), json!({ "top": n == 0, "fields": { "a": next, "b": next, "c": next } }))
    });
    let mut stats = json!(1);
    for _ in 0..40 {
        stats = json!({ "a": { "k": stats } });
    }
    let started = Instant::now();
    let page = page_of(&Value::Object(structs.collect::<Map<String, Value>>()), &stats);
    assert!(page.is_up("guest") && started.elapsed() < DEADLINE, "{page:?}");
    assert_eq!(page.get("scx_vsock_series_truncated{guest=\"guest\"}"), Some("1"));
}

#[test]
fn idle_scrapers_are_evicted_and_wrong_ones_rejected() {
    let fine = scheduler(&meta(), &stats());
    let agent = agent_of(&fine);
    let exporter = exporter(&[("fine", &agent.host_path(0))], 10);
    // More that begin a request than are served at a time.
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = exporter.connect();
            stream.write_all(b"GET /metr").unwrap();
            stream
        })
        .collect();
    assert!(exporter.scrape().is_up("fine"));
    drop(slow);
    for (request, status) in [
        (&b"HEAD / HTTP/1.1\r\n\r\n"[..], "404 Not Found"),
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "404 Not Found"),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\x16\x03\x01 no HTTP\r\n\r\n", "400 Bad Request"),
        (
            &[b"GET /metrics HTTP/1.1\r\nCookie: ".to_vec(), vec![b'x'; 100_000]].concat(),
            "431 Request Header Fields Too Large",
        ),
    ] {
        let mut stream = exporter.connect();
        // It may be rejected before it has sent all.
        let _sent = stream.write_all(request);
        let _ended = stream.shutdown(Shutdown::Write);
        assert!(response(&mut stream).head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{status}");
    }
    assert!(exporter.scrape().is_up("fine"));
}

#[test]
fn a_request_that_never_ends_times_out() {
    let exporter = exporter(&[("nobody", Path::new("/nowhere"))], 1);
    let mut stream = exporter.connect();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let started = Instant::now();
    assert!(response(&mut stream).head.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
    assert!(started.elapsed() >= Duration::from_secs(4));
}

#[test]
fn without_open_metrics_the_older_text_is_served() {
    let exporter = exporter(&[("nobody", Path::new("/nowhere"))], 1);
    let response = get(exporter.at(), "/metrics", "");
    assert!(
        response.head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{}",
        response.head
    );
    assert!(response.body.contains("# TYPE scx_vsock_missing_stats_total counter\n"), "{}", response.body);
    assert!(!response.body.contains("# EOF"), "{}", response.body);
}

#[test]
fn it_listens_on_names_and_on_every_address() {
    for listen in ["localhost:0", ":0"] {
        let exporter = Exporter::start_at(export_of_nobody(), listen);
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, exporter.at().port()));
        let reachable = if exporter.at().ip().is_unspecified() { at } else { exporter.at() };
        assert!(get(reachable, "/metrics", "").head.starts_with("HTTP/1.1 200 OK\r\n"), "{listen}");
    }
}

fn export_of_nobody() -> Command {
    let mut command = export();
    command.arg("nobody=unix:/nowhere");
    command
}

#[test]
fn wrong_arguments_are_named() {
    for (arguments, named) in [
        (&[][..], "[NAME=]URI"),
        (&["guest"], "it has no scheme"),
        (&["web=guest"], "it has no scheme"),
        (&["unix:/x", "--listen", "nowhere"], "--listen"),
        (&["unix:/x", "--deadline", "0"], "--deadline"),
        (&["unix:/x", "--interval", "99ms"], "the least is 100 ms"),
    ] {
        let output = export().args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(named), "{arguments:?}: {stderr}");
    }
    for listen in ["127.0.0.1", "127.0.0.1:http", ":65536", ""] {
        let output = export().args(["unix:/x", "--listen", listen]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains("write HOST:PORT or :PORT"), "{listen}: {stderr}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let output = export().args(["unix:/x", "--listen", &at]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = ": Address already in use (os error 98); choose another --listen HOST:PORT";
    assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr}");
}
