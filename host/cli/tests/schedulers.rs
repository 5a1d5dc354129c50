//! scx_rusty, scx_lavd and scx_rustland in QEMU guests: what the command and the client make of their stats.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};
use std::time::Duration;

use scx_vsock::guest::Guest;
use scx_vsock::{MissingStatsReason, Sample, SampleSeries, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::bridge::Bridge;
use scx_vsock_tests::guest::{builder, output};
use scx_vsock_tests::real_schedulers::fetched_scheduler;
use serde_json::Value;

/// How long an emulated scheduler may take to serve stats: scx_lavd needs up to 50 s.
const SCHEDULER_STARTS: Duration = Duration::from_secs(240);

/// How long it may take to answer.
const DEADLINE: &str = "60";

/// Makes hundreds of processes, each of which is scheduled at least once.
const WORK: [&str; 3] = ["sh", "-c", "i=0; while [ $i -lt 300 ]; do /bin/busybox true; i=$((i+1)); done"];

/// A guest whose scheduler serves stats, and the socket of its agent.
struct Scheduled {
    guest: Guest,
    bridge: Bridge,
}

impl Scheduled {
    fn by(name: &str) -> Self {
        let guest = builder().scheduler(fetched_scheduler(name), &[]).boot().unwrap();
        if let Err(error) = guest.client().wait_for_scheduler(SCHEDULER_STARTS) {
            panic!("{name}: {error}\nconsole:\n{}", guest.console().text());
        }
        let bridge = Bridge::to(&guest);
        Self { guest, bridge }
    }

    fn client(&self) -> SchedStatsClient {
        self.guest.client().with_deadline(Duration::from_secs(60))
    }

    /// Starts processes that go on until the guest ends.
    fn start_load(&self) {
        output(&self.guest, &["sh", "-c", "while :; do /bin/busybox true; done </dev/null >/dev/null 2>&1 &"]);
    }

    /// Runs a verb, which must succeed, and returns what it printed.
    fn print(&self, verb: &str, options: &[&str]) -> String {
        let output = self.run(verb, options);
        assert!(output.status.success(), "{verb} {options:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn run(&self, verb: &str, options: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
        command.args([verb, &self.uri()]).args(options).output().unwrap()
    }

    fn uri(&self) -> String {
        format!("unix:{}", self.bridge.path().display())
    }

    fn json(&self, options: &[&str]) -> Value {
        serde_json::from_str(&self.print("stats", &[&["--json", "--deadline", DEADLINE], options].concat())).unwrap()
    }

    /// The lines of `meta --fields`, as pairs of a path and a kind.
    fn described(&self) -> Vec<(String, String)> {
        let lines = self.print("meta", &["--fields", "--deadline", DEADLINE]);
        let columns = |line: &str| {
            let mut columns = line.split('\t').map(str::to_owned);
            Some((columns.next()?, columns.next()?))
        };
        lines.lines().filter_map(columns).collect()
    }
}

fn describes(fields: &[(String, String)], path: &str, kind: &str) -> bool {
    fields.iter().any(|(its_path, its_kind)| (its_path.as_str(), its_kind.as_str()) == (path, kind))
}

#[test]
#[ignore = "boots a QEMU guest with scx_rusty; run ci/test schedulers"]
fn rusty_reports_domains_within_nodes() {
    let rusty = Scheduled::by("scx_rusty");
    assert!(output(&rusty.guest, &["cat", "/sys/kernel/sched_ext/root/ops"]).starts_with(b"rusty"));
    let fields = rusty.described();
    assert!(
        describes(&fields, "cpu_busy", "float") && describes(&fields, "nodes.*.doms.*.load", "float"),
        "{fields:?}"
    );

    let stats = rusty.json(&["--over", "1"]);
    // Without load there may be no nodes yet.
    assert!(stats["nodes"].is_object(), "{stats}");
    assert!(stats["total"].is_u64() && stats["direct_greedy_cpus"].is_array(), "{stats}");

    // Its deltas are those of a session: one that began before the work counts it, one that begins after it does not.
    let (before, after) =
        (rusty.client(), SchedStatsClient::builder(rusty.uri().parse::<scx_vsock::Endpoint>().unwrap()));
    before.stats(&[]).unwrap();
    output(&rusty.guest, &WORK);
    let after = after.deadline(Duration::from_secs(60)).build();
    let [counted, new] = [&before, &after].map(|client| client.stats(&[]).unwrap()["total"].as_u64().unwrap());
    assert!(counted >= 300 && new < counted, "{counted} events since the first read, {new} in a new session");
    assert_eq!((before.session(), after.session()), (1, 1));
}

#[test]
#[ignore = "boots a QEMU guest with scx_rusty; run ci/test schedulers"]
fn rusty_is_watched_on_one_session() {
    let rusty = Scheduled::by("scx_rusty");
    rusty.start_load();
    let options = ["--interval", "5", "--samples", "3", "--field", "total", "--field", "nodes.0.doms.0.load"];
    let series = SampleSeries::from_json_lines(&rusty.print("watch", &options)).unwrap();
    assert_eq!(series.samples().len(), 3);
    for sample in series.samples() {
        let stats = sample.stats.as_ref().unwrap();
        assert!(stats["total"].is_u64() && stats["slice_us"].is_null(), "{stats}");
        assert_eq!((sample.session, sample.interval_ms.is_some()), (1, true), "{sample:?}");
    }
    let last = series.samples().last().unwrap().stats.as_ref().unwrap();
    assert!(last["nodes"]["0"]["doms"]["0"]["load"].is_number(), "{last}");
}

#[test]
#[ignore = "boots a QEMU guest with scx_lavd; run ci/test schedulers"]
fn lavd_has_two_tops_and_arguments() {
    let lavd = Scheduled::by("scx_lavd");
    assert!(output(&lavd.guest, &["cat", "/sys/kernel/sched_ext/root/ops"]).starts_with(b"lavd"));
    // The fields of both structs that it marks as top.
    let fields = lavd.described();
    assert!(describes(&fields, "nr_sched", "u64") && describes(&fields, "waker_comm", "string"), "{fields:?}");
    let tree = lavd.print("meta", &["--deadline", DEADLINE]);
    let tops = tree.lines().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(tops, 2, "{tree}");

    let stats = lavd.json(&[]);
    assert!(stats["nr_sched"].is_u64() && stats["power_mode"].is_string(), "{stats}");
    // Something must be scheduled while it takes the samples.
    lavd.start_load();
    for count in [1, 5] {
        let argument = format!("nr_samples={count}");
        let stats = lavd.json(&["--target", "sched_samples", "--arg", &argument]);
        let samples = stats["samples"].as_array().unwrap();
        assert!((1..=count).contains(&samples.len()), "{count}: {stats}");
        assert!(samples.iter().all(|sample| sample["pid"].is_i64() && sample["comm"].is_string()), "{stats}");
    }
    let refused = lavd.run("stats", &["--target", "sched_samples", "--arg", "nr_samples=many", "--deadline", DEADLINE]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(14) && message.contains("invalid digit found in string"), "{message}");
}

#[test]
#[ignore = "boots a QEMU guest with scx_lavd; run ci/test schedulers"]
fn a_second_reader_of_lavd_preempts_the_first() {
    let lavd = Scheduled::by("scx_lavd");
    let (first, second) =
        (lavd.client(), SchedStatsClient::builder(lavd.uri().parse::<scx_vsock::Endpoint>().unwrap()));
    let second = second.deadline(Duration::from_secs(60)).build();
    first.stats(&[]).unwrap();
    second.stats(&[]).unwrap();
    let error = first.stats(&[]).unwrap_err();
    assert!(matches!(&error, SchedStatsError::SchedulerError { errno: 22, .. }), "{error:?}");
    let reason = MissingStatsReason::from(&error).to_string();
    assert!(reason.contains("errno 22") && reason.contains("preempted by another sampler"), "{reason}");
    // Its connection to lavd stays bad for good, so that the session is renewed.
    first.stats(&[]).unwrap();
    assert_eq!((first.session(), second.session()), (2, 1));

    // Two samplers in one watch preempt each other; each sample says so or has stats.
    let lines = lavd.print("watch", &[&lavd.uri(), "--interval", "10", "--samples", "2"]);
    let samples: Vec<Sample> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(samples.len(), 4);
    for sample in &samples {
        let is_preempted = |reason: &MissingStatsReason| reason.to_string().contains("preempted by another sampler");
        assert!(sample.stats.as_ref().err().is_none_or(is_preempted), "{sample:?}");
    }
    assert!(samples.iter().any(|sample| sample.stats.is_err()), "{lines}");
}

#[test]
#[ignore = "boots a QEMU guest with scx_rustland; run ci/test schedulers"]
fn the_watchdogs_ejection_of_a_stopped_rustland_is_named() {
    let rustland = Scheduled::by("scx_rustland");
    // In a guest with nothing to do, scx_rustland 1.1.4 may wait for half a minute to be scheduled itself.
    rustland.start_load();
    let client = rustland.client();
    client.stats(&[]).unwrap();
    // It schedules in user space: while it is stopped nothing else runs there, the agent included.
    output(&rustland.guest, &["sh", "-c", "(kill -STOP $(pidof scx_rustland)) </dev/null >/dev/null 2>&1 &"]);
    let impatient = client.with_deadline(Duration::from_secs(2));
    let error = (0..1_000).find_map(|_| impatient.stats(&[]).err()).unwrap();
    assert!(matches!(error, SchedStatsError::TimedOut { .. }), "{error}");

    output(&rustland.guest, &["sh", "-c", "until grep -q disabled /sys/kernel/sched_ext/state; do :; done"]);
    let log = rustland.client().sched_ext().unwrap().log.unwrap();
    let texts: Vec<&str> = log.iter().map(|message| message.text.as_str()).collect();
    let is_cause = |text: &&str| {
        text.starts_with("sched_ext: BPF scheduler 'rustland") && text.ends_with("disabled (runnable task stall)")
    };
    assert!(texts.iter().any(is_cause), "{texts:?}");
    // Which task did not run, or that the watchdog itself did not.
    assert!(texts.iter().any(|text| text.contains(" failed to run for ") || text.contains(" failed to check in for ")));

    // It was only stopped, so that its socket is there until it ends.
    let end = "kill -KILL $(pidof scx_rustland); while pidof scx_rustland; do :; done";
    output(&rustland.guest, &["sh", "-c", end]);
    let error = (0..2).find_map(|_| rustland.client().stats(&[]).err()).unwrap();
    assert!(matches!(error, SchedStatsError::NoScheduler { .. }), "{error}");
    assert!(error.to_string().contains("the kernel says \"runnable task stall"), "{error}");
}
