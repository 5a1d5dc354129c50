//! `scx-vsock export` with promtool and a real Prometheus, and its example alerts and dashboard.
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
use scx_vsock_tests::scheduler_shapes::scheduler_shape;
use scx_vsock_tests::scripted_scheduler::ScriptedScheduler;
use scx_vsock_tests::tls_client::pem;
use serde_json::{Value, json};
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
    command.args(["export", "--deadline", "2", "--interval", "250ms"]);
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
        Self::with(exporter, "")
    }

    /// One whose job has this besides.
    fn with(exporter: &Exporter, job: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
             scrape_configs: [{{job_name: scx-vsock, static_configs: [{{targets: ['{}']}}]{job}}}]\n",
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
    is_accepted(&page);
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn promtool_accepts_texts_and_histograms() {
    let meta = json!({ "T": { "top": "true", "fields": {
        "mode": { "datum": "string" },
        "waits": { "array": "u64", "user": { "_om_histogram": "log2_us" } },
    } } });
    let scheduler = scheduler(&meta, &json!({ "mode": "a \"b\"\n\\", "waits": [3, 2, 1] }));
    let agent = agent_of(&scheduler);
    let exporter = exporter(&[("guest", &agent.host_path(0))]);
    let page = get(exporter.at(), "/metrics", "").body;
    assert!(page.contains("scx_mode_info{") && page.contains("scx_waits_distribution_seconds_bucket{"), "{page}");
    is_accepted(&page);
}

/// Whether promtool has nothing to say about a page in the older text.
fn is_accepted(page: &str) {
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

/// Runs promtool in a folder with these files.
fn promtool(arguments: &[&str], files: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
    let output = Command::new("promtool").args(arguments).current_dir(&folder).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
}

fn example(name: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_scx-vsock")).args(["export", "--print", name]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn promtool_accepts_the_example_alerts() {
    let alerts = example("alerts");
    promtool(&["check", "rules", "alerts.yml"], &[("alerts.yml", &alerts)]);
    let tests = include_str!("../../../tests/data/alerts_test.yml");
    promtool(&["test", "rules", "tests.yml"], &[("alerts.yml", &alerts), ("tests.yml", tests)]);
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn promtool_accepts_the_queries_of_the_example_dashboard() {
    let dashboard: Value = serde_json::from_str(&example("dashboard")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let rules: Vec<Value> = (0..)
        .zip(queries)
        .map(|(at, target)| {
            let query = target["expr"].as_str().unwrap().replace("$guest", ".*");
            let query = query.replace("$__rate_interval", "1m").replace("$__range", "1h");
            json!({ "record": format!("query:{at}"), "expr": query })
        })
        .collect();
    assert!(rules.len() >= panels.len());
    // JSON is YAML.
    let rules = json!({ "groups": [{ "name": "queries", "rules": rules }] }).to_string();
    promtool(&["check", "rules", "rules.yml"], &[("rules.yml", &rules)]);
}

/// A scheduler of this shape, and its agent.
fn shaped(name: &str) -> (ScriptedScheduler, Agent) {
    let shape = scheduler_shape(name);
    let scheduler = scheduler(&shape.meta, &shape.answer);
    let agent = agent_of(&scheduler);
    (scheduler, agent)
}

#[test]
#[ignore = "needs prometheus; run ci/test peers"]
fn prometheus_scrapes_under_tls_while_guests_come_and_go() {
    let guests = ["scx_lavd", "scx_mitosis", "scx_layered"].map(|name| (name, shaped(name)));
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let set_guests = |names: &[&str]| {
        let named = guests.iter().filter(|(name, _)| names.contains(name));
        let lines = named.map(|(name, (_, agent))| format!("{name}=unix:{}\n", agent.host_path(0).display()));
        fs::write(path("new"), lines.collect::<String>()).unwrap();
        fs::rename(path("new"), path("guests")).unwrap();
    };
    set_guests(&["scx_lavd", "scx_mitosis"]);
    let (certificate, key) = (pem("server.crt"), pem("server.key"));
    let web = json!({
        "tls_server_config": { "cert_file": certificate, "key_file": key, "min_version": "TLS13" },
        "basic_auth_users": { "alice": "$2y$10$abcdefghijklmnopqrstuuqflPDzB6gcMhKa1rZqKiun2YGL5sa2u" },
    });
    fs::write(path("web.yml"), web.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["export", "--interval", "250ms", "--guests"]).arg(path("guests"));
    command.arg("--web.config.file").arg(path("web.yml"));
    let exporter = Exporter::start(command);
    let job = format!(
        ", scheme: https, tls_config: {{ca_file: '{}', server_name: localhost}}, \
         basic_auth: {{username: alice, password: secret}}",
        certificate.display()
    );
    let prometheus = Prometheus::with(&exporter, &job);

    prometheus.wait_for("scx_power_mode_info{guest=\"scx_lavd\"}", is("1"));
    prometheus.wait_for("scx_c_cgroup_path_info{guest=\"scx_mitosis\",key=\"1\"}", is("1"));
    prometheus.wait_for("increase(scx_nr_sched_accumulated_total{guest=\"scx_lavd\"}[10s]) > bool 0", is("1"));
    set_guests(&["scx_mitosis", "scx_layered"]);
    prometheus.wait_for("count(scx_l_l_runq_lat_hist{guest=\"scx_layered\",layer_name=\"key 0\"})", is("2"));
    prometheus.wait_for("{guest=\"scx_lavd\"}", <[Value]>::is_empty);
    prometheus.wait_for("sum(scx_vsock_undescribed_fields + scx_vsock_unusable_values)", is("0"));
    prometheus.wait_for("up{job=\"scx-vsock\"}", is("1"));
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
