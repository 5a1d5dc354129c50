//! `scx-vsock proxy` and `scx-vsock export` with real guests, and a real scheduler in some of them.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use scx_vsock::guest::Guest;
use scx_vsock_tests::agent::repository;
use scx_vsock_tests::bridge::Bridge;
use scx_vsock_tests::exporter::{Exporter, Metrics};
use scx_vsock_tests::guest::{builder, output, wait_for_scheduler};
use scx_vsock_tests::program;

/// How long a guest may take to boot beside others, emulated.
const BOOT: Duration = Duration::from_secs(300);

fn scx_vsock(verb: &str) -> Command {
    let mut command = program::with_all_signals(env!("CARGO_BIN_EXE_scx-vsock"));
    command.arg(verb);
    command
}

/// The real scheduler's program.
fn bpfland() -> PathBuf {
    let built = Command::new(repository().join("ci/scheduler")).arg("scx_bpfland").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// A guest whose scheduler serves stats.
fn guest_with(scheduler: PathBuf, cpus: u32) -> Guest {
    let peer = program::built("guest_peer");
    let guest = builder().scheduler(scheduler, &[]).program(peer, "/bin/guest_peer").cpus(cpus).deadline(BOOT);
    let guest = guest.boot().unwrap();
    wait_for_scheduler(&guest);
    guest
}

/// The scheduler's own monitor of a guest.
fn scx_monitor(bridge: &Bridge) -> (Child, BufReader<ChildStdout>) {
    let mut command = scx_vsock("proxy");
    command.arg(format!("unix:{}", bridge.path().display())).arg("--").arg(bpfland()).args(["--monitor", "1"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

/// The number of processors in the next line of an scx_bpfland --monitor: `[bpfland] tasks -> r:  1/2  | dispatch -> ...`.
fn cpus(output: &mut impl BufRead) -> u32 {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let cpus = line.split(" | ").next().and_then(|tasks| tasks.rsplit('/').next());
    cpus.and_then(|cpus| cpus.trim().parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

#[test]
#[ignore = "boots QEMU guests with scx_bpfland; run ci/test sched-ext"]
fn the_schedulers_monitor_reads_two_guests_at_once() {
    // They differ by their processors.
    let guests = [1, 2].map(|cpus| guest_with(bpfland(), cpus));
    let bridges = guests.each_ref().map(Bridge::to);
    let mut scx_monitors = bridges.each_ref().map(scx_monitor);
    for _ in 0..3 {
        assert_eq!(scx_monitors.each_mut().map(|(_, output)| cpus(output)), [1, 2]);
    }
    for (child, _) in &mut scx_monitors {
        kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::INT).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

/// Whether of these guests exactly those that are up have series of their schedulers.
fn are_shown(page: &Metrics, guests: &[&str], up: &[&str]) -> bool {
    let is_of =
        |series: &str, guest: &str| series.contains(&format!("guest=\"{guest}\"")) && !series.starts_with("scx_vsock_");
    guests.iter().all(|guest| {
        let has_series = page.values.keys().any(|series| is_of(series, guest));
        has_series == up.contains(guest) && page.is_up(guest) == up.contains(guest)
    })
}

#[test]
#[ignore = "boots QEMU guests with scx_bpfland; run ci/test sched-ext"]
fn one_export_has_three_guests_and_their_failures() {
    const NAMES: [&str; 3] = ["bpfland", "proc", "layers"];
    let [bpf, proc, layers] =
        [bpfland(), program::built("procsched"), program::built("layersched")].map(|program| guest_with(program, 1));
    let bridges = [&bpf, &proc, &layers].map(Bridge::to);
    let mut command = scx_vsock("export");
    command.args(["--deadline", "20", "--interval", "1"]);
    for (name, bridge) in NAMES.iter().zip(&bridges) {
        command.arg(format!("{name}=unix:{}", bridge.path().display()));
    }
    let exporter = Exporter::start(command);

    let page = exporter.scrape_until(|page| are_shown(page, &NAMES, &NAMES));
    assert_eq!(page.get("scx_nr_cpus{guest=\"bpfland\"}"), Some("1"));
    assert_eq!(page.help.get("scx_nr_cpus").unwrap(), "Number of online CPUs");
    assert!(page.get("scx_totals_cpus_user{guest=\"proc\",cpu=\"0\"}").is_some(), "{page:?}");
    assert_eq!(page.get("scx_l_util{guest=\"layers\",layer_name=\"batch\"}"), Some("150.25"));

    // One guest is killed, another's scheduler ends.
    drop(bpf);
    output(&proc, &["sh", "-c", "guest_peer kill $(pidof procsched)"]);
    let page = exporter.scrape_until(|page| are_shown(page, &NAMES, &["layers"]));
    let missing = [("bpfland", "agent_unreachable"), ("proc", "no_scheduler")];
    assert!(missing.iter().all(|(guest, reason)| page.missing(guest, reason) > 0), "{page:?}");

    // They come back.
    output(&proc, &["sh", "-c", "procsched </dev/null >/dev/console 2>&1 &"]);
    wait_for_scheduler(&proc);
    let again = guest_with(bpfland(), 1);
    let [first, ..] = &bridges;
    first.set_guest(&again);
    let page = exporter.scrape_until(|page| are_shown(page, &NAMES, &NAMES));
    assert_eq!(page.get("scx_vsock_session{guest=\"layers\"}"), Some("1"), "{page:?}");
}
