//! `scx-vsock export` as a process: several guests with several schedulers, and scrapers of every kind.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
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
use scx_vsock_tests::scripted_scheduler::{Event, Script, ScriptedScheduler};
use scx_vsock_wire::RelayError;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// The agent's envelope for a scheduler that ended, before it ends the session.
const GONE: RelayError<&str> = RelayError::SchedulerGone { errno: 0, cause: "" };

fn export() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg("export");
    command
}

fn exporter(guests: &[(&str, &Path)], timeout: u32) -> Exporter {
    let mut command = export();
    command.args(["--deadline", &timeout.to_string()]);
    for (name, path) in guests {
        command.arg(format!("{name}=unix:{}", path.display()));
    }
    Exporter::start(command)
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
    assert!(page.get("scx_vsock_interval_seconds{guest=\"proc\"}").is_some(), "the guest was not read before");
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

    // The first scrape may share the round before it.
    assert!(exporter.scrape().is_up("proc"));
    all_are_up(&exporter.scrape());

    // One guest is killed, another's scheduler ends.
    drop((first, proc));
    let page = exporter.scrape();
    assert!(!page.is_up("layered") && !page.is_up("proc") && page.is_up("simple"), "{page:?}");
    assert_eq!((page.missing("layered", "agent_unreachable"), page.missing("proc", "no_scheduler")), (1, 1));
    assert!(
        page.values.keys().all(|series| series.starts_with("scx_vsock_") || series.contains("\"simple\"")),
        "{page:?}"
    );

    // They come back.
    let again = agent_of(&layered);
    address.set_guest(&again);
    fs::remove_file(second.scheduler_path(0)).unwrap();
    let _proc = Procsched::at(&second.scheduler_path(0));
    let page = exporter.scrape();
    assert!(page.is_up("layered") && page.is_up("proc") && page.is_up("simple"), "{page:?}");
    assert_eq!(page.missing("layered", "agent_unreachable"), 1);
    assert_eq!(page.get("scx_vsock_interval_seconds{guest=\"layered\"}"), None, "its deltas have a new baseline");
    assert_eq!(page.get("scx_vsock_session{guest=\"simple\"}"), Some("1"));
    assert!(exporter.scrape().get("scx_vsock_interval_seconds{guest=\"layered\"}").is_some());
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
    let page = exporter.scrape();
    assert!(page.is_up("guest") && page.get("scx_total_value{guest=\"guest\"}").is_none(), "{page:?}");
    assert!(page.get("scx_totals_ctxt{guest=\"guest\"}").is_some(), "{page:?}");
}

#[test]
fn a_slow_guest_delays_nobody_beyond_the_deadline() {
    let fine = scheduler(&meta(), &stats());
    let stalls = Script::agent().line().stall();
    let answers = Script::agent()
        .line()
        .send(framed(answer(&meta()).trim_end()))
        .line()
        .send(framed(answer(&stats()).trim_end()));
    let slow = FakeAgent::start([stalls.clone(), stalls, answers]);
    let agent = agent_of(&fine);
    let exporter = exporter(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 1);
    slow.wait_for(&Event::Stalled(0));
    // It joins the round before the first scrape.
    let joined = exporter.scrape();
    assert!(joined.is_up("fine") && joined.missing("slow", "timed_out") == 1, "{joined:?}");
    let started = Instant::now();
    let page = exporter.scrape();
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(1) && took < DEADLINE, "{took:?}");
    assert!(page.is_up("fine") && !page.is_up("slow"), "{page:?}");
    assert_eq!(page.missing("slow", "timed_out"), 2);
    let waited: f64 = page.get("scx_vsock_scrape_duration_seconds{guest=\"slow\"}").unwrap().parse().unwrap();
    let fine: f64 = page.get("scx_vsock_scrape_duration_seconds{guest=\"fine\"}").unwrap().parse().unwrap();
    assert!(waited >= 1.0 && fine < waited, "{waited} {fine}");
    slow.release();
    slow.release();
    assert!(exporter.scrape().is_up("slow"));
}

#[test]
fn a_guest_whose_agent_sends_no_hello_is_unreachable() {
    let silent = FakeAgent::start(std::iter::repeat_with(|| Script::new().stall()));
    let exporter = exporter(&[("silent", &silent.path())], 1);
    let page = exporter.scrape();
    assert!(page.missing("silent", "agent_unreachable") >= 1 && page.missing("silent", "timed_out") == 0, "{page:?}");
    silent.release();
}

#[test]
fn a_scraper_is_answered_within_its_own_timeout() {
    // The round before the first scrape is over at once, and only then the guest stalls.
    let slow = FakeAgent::start([Script::agent().line().relay_error(GONE), Script::agent().line().stall()]);
    let exporter = exporter(&[("slow", &slow.path())], 1_000);
    slow.wait_for(&Event::Connected(0));
    slow.wait_for(&Event::Ended(0, 0));
    let headers = "Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.5\r\n";
    let page = Metrics::parse(&get(exporter.at(), "/metrics", headers).body);
    assert!(!page.is_up("slow"), "{page:?}");
    // The guest is still being read, for others.
    assert_eq!((page.missing("slow", "scheduler_gone"), page.missing("slow", "timed_out")), (1, 0));
    let waited: f64 = page.get("scx_vsock_scrape_duration_seconds{guest=\"slow\"}").unwrap().parse().unwrap();
    // Its time counts from the request on, also while that waits for the next round.
    assert!((0.3..20.0).contains(&waited), "{waited}");
    slow.release();
}

#[test]
fn a_huge_timeout_of_a_scraper_is_harmless() {
    let fine = scheduler(&meta(), &stats());
    // Each round opens a session, since the request of the one before timed out.
    let slow = FakeAgent::start(std::iter::repeat_with(|| Script::agent().line().stall()));
    let agent = agent_of(&fine);
    let exporter = exporter(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 1);
    slow.wait_for(&Event::Stalled(0));
    for seconds in ["10248191152060854272", "18446744073709551615", "1e300", "inf"] {
        let headers =
            format!("Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: {seconds}\r\n");
        assert!(Metrics::parse(&get(exporter.at(), "/metrics", &headers).body).is_up("fine"), "{seconds}");
    }
    slow.release();
}

#[test]
fn a_scraper_in_a_longer_round_is_answered_in_time() {
    let fine = scheduler(&meta(), &stats());
    let slow = FakeAgent::start([Script::agent().line().stall()]);
    let agent = agent_of(&fine);
    let exporter = exporter(&[("slow", &slow.path()), ("fine", &agent.host_path(0))], 1_000);
    slow.wait_for(&Event::Stalled(0));
    let headers = "Accept: application/openmetrics-text\r\nX-Prometheus-Scrape-Timeout-Seconds: 0.5\r\n";
    let page = Metrics::parse(&get(exporter.at(), "/metrics", headers).body);
    assert!(page.is_up("fine") && !page.is_up("slow"), "{page:?}");
    assert_eq!(page.missing("slow", "timed_out"), 0, "its own time is not over");
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
    let [meta, stats] = [answer(&meta()), answer(&stats())].map(|line| framed(line.trim_end()));
    let again = Script::new().line().send(&stats);
    let script = Script::agent().line().send(&meta).line().send(&stats).line().stall().send(&stats).forever(again);
    let slow = FakeAgent::start([script]);
    let exporter = exporter(&[("slow", &slow.path())], 1_000);
    let impatient = || {
        let response = get(exporter.at(), "/metrics", "X-Prometheus-Scrape-Timeout-Seconds: 0\r\n");
        assert!(response.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", response.head);
    };
    // The first may share the read before it; the second begins one that the guest does not answer in its time.
    for _ in 0..2 {
        impatient();
    }
    slow.wait_for(&Event::Stalled(0));
    thread::scope(|scope| {
        let patient = scope.spawn(|| exporter.scrape());
        for _ in 0..5 {
            impatient();
        }
        slow.release();
        let page = patient.join().unwrap();
        assert!(page.is_up("slow"), "{page:?}");
        assert_eq!(page.get("scx_vsock_session{guest=\"slow\"}"), Some("1"));
    });
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
    let keys: Map<String, Value> = (0..5_000).map(|at| (format!("{at:0>120}"), json!(at))).collect();
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
            "zz_many": { "array": "u64" },
        } },
        "D": { "user": { "_om_label": "__name__", "_om_prefix": evil }, "fields": { "guest": { "datum": "i64" } } },
    });
    let many: Vec<u32> = (0..20_000).collect();
    let stats = json!({ evil: 1, "vsock_up": 0, "d": { evil: { "guest": -5 } }, "text": "NaN", "zz_many": many });
    let page = page_of(&meta, &stats);
    assert!(page.is_up("guest"), "{page:?}");
    assert_eq!(page.get("scx_guest_vsock_up{guest=\"guest\"}"), Some("0"));
    let key = "x\\n# EOF\\n\\\"} 1 {\\\\";
    assert_eq!(page.get(&format!("scx_x___EOF____1___guest{{guest=\"guest\",name__=\"{key}\"}}")), Some("-5"));
    assert_eq!(page.get("scx_vsock_series_truncated{guest=\"guest\"}"), Some("1"));
    assert!(page.values.len() < 5_020, "{}", page.values.len());
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
    assert!(page.is_up("guest") && page.get("scx_vsock_unusable_values{guest=\"guest\"}") == Some("0"), "{page:?}");
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
