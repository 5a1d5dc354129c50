//! `scx-vsock export` with promtool and a real Prometheus.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::exporter::{Exporter, get};
use scx_vsock_tests::meta_scheduler::{meta, scheduler, stats};
use scx_vsock_tests::scripted_scheduler::ScriptedScheduler;
use serde_json::Value;
use tempfile::TempDir;

/// How long Prometheus may take until it has what it must have. It starts in a few seconds and scrapes every second.
const WITHIN: Duration = Duration::from_secs(60);

fn agent_of(scheduler: &ScriptedScheduler) -> Agent {
    let agent = Agent::start();
    symlink(scheduler.path(), agent.scheduler_path(0)).unwrap();
    agent
}

fn exporter(guests: &[(&str, &Path)]) -> Exporter {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["export", "--deadline", "2"]);
    for (name, path) in guests {
        command.arg(format!("{name}=unix:{}", path.display()));
    }
    Exporter::start(command)
}

/// A Prometheus that scrapes one exporter. Killed on drop.
struct Prometheus {
    child: Child,
    at: SocketAddr,
    folder: TempDir,
}

impl Prometheus {
    fn of(exporter: &Exporter) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
             scrape_configs: [{{job_name: scx-vsock, static_configs: [{{targets: ['{}']}}]}}]\n",
            exporter.at()
        );
        fs::write(path("config"), config).unwrap();
        // It does not report a free port that it takes, so it is given one.
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path("config")))
            .arg(format!("--storage.tsdb.path={}", path("data")))
            .arg(format!("--web.listen-address={at}"))
            .stderr(File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, at, folder }
    }

    /// Waits until a query has this result. It is polled, since Prometheus does not report that it has scraped.
    fn wait_for(&self, query: &str, wanted: impl Fn(&[Value]) -> bool) {
        let until = Instant::now() + WITHIN;
        loop {
            let answer = self.query(query);
            if answer.as_deref().is_some_and(&wanted) {
                return;
            }
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(Instant::now() < until, "{query} is {answer:?}; Prometheus said {}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Returns the series of a query; `None` before Prometheus listens.
    fn query(&self, query: &str) -> Option<Vec<Value>> {
        TcpStream::connect(self.at).ok()?;
        let escape = |byte: u8| {
            if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02x}") }
        };
        let query: String = query.bytes().map(escape).collect();
        let response = get(self.at, &format!("/api/v1/query?query={query}"), "");
        let answer: Value = serde_json::from_str(&response.body).ok()?;
        Some(answer.pointer("/data/result")?.as_array()?.clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Whether there is one series, and this is its value.
fn is(value: &'static str) -> impl Fn(&[Value]) -> bool {
    move |result| matches!(result, [one] if one.pointer("/value/1").and_then(Value::as_str) == Some(value))
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn promtool_accepts_the_exposition() {
    let layered = scheduler(&meta(), &stats());
    let agent = agent_of(&layered);
    let exporter = exporter(&[("layered", &agent.host_path(0)), ("nobody", Path::new("/nowhere"))]);
    let page = get(exporter.at(), "/metrics", "").body;
    assert!(page.contains("scx_l_util{guest=\"layered\",layer_name=\"normal \\\"x\\\"\"} 0"), "{page}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{page}", String::from_utf8_lossy(&said));
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn prometheus_has_numbers_and_reasons() {
    let layered = scheduler(&meta(), &stats());
    let agent = agent_of(&layered);
    let exporter = exporter(&[("layered", &agent.host_path(0)), ("nobody", Path::new("/nowhere"))]);
    let prometheus = Prometheus::of(&exporter);
    prometheus.wait_for("scx_l_util{guest=\"layered\",layer_name=\"batch\"}", is("150.25"));
    prometheus.wait_for("scx_l_util{layer_name=\"normal \\\"x\\\"\"}", is("0"));
    prometheus.wait_for("scx_vsock_up{guest=\"nobody\"}", is("0"));
    prometheus
        .wait_for("scx_vsock_missing_stats_total{guest=\"nobody\",reason=\"agent_unreachable\"} > bool 2", is("1"));
    // Every line is OpenMetrics to Prometheus' own parser: it takes a page as a whole or not at all.
    prometheus.wait_for("up{job=\"scx-vsock\"}", is("1"));

    // A scheduler that ends has no series any more, but its reason.
    drop(layered);
    prometheus.wait_for("scx_vsock_up{guest=\"layered\"}", is("0"));
    prometheus.wait_for("scx_l_util", <[Value]>::is_empty);
    prometheus.wait_for("sum(scx_vsock_missing_stats_total{guest=\"layered\"}) > bool 0", is("1"));
}
