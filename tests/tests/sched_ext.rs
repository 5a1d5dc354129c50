//! A real sched_ext scheduler in a QEMU guest, seen from the host.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;

use scx_vsock::guest::Guest;
use scx_vsock::stats::SchedExt;
use scx_vsock::{Sample, Sampler, SchedStatsError};
use scx_vsock_tests::agent::repository;
use scx_vsock_tests::guest::{builder, output, wait_for_scheduler};

const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// A guest in which scx_bpfland schedules and serves its stats.
fn with_bpfland() -> Guest {
    let built = Command::new(repository().join("ci/scheduler")).arg("scx_bpfland").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let program = String::from_utf8(built.stdout).unwrap();
    let guest = builder().scheduler(program.trim(), &[]).program(GUEST_PEER, "/bin/guest_peer").boot().unwrap();
    wait_for_scheduler(&guest);
    guest
}

#[test]
#[ignore = "boots a QEMU guest with scx_bpfland; run ci/test sched-ext"]
fn the_host_reads_the_running_schedulers_stats() {
    let guest = with_bpfland();
    assert!(output(&guest, &["cat", "/sys/kernel/sched_ext/state"]).starts_with(b"enabled"));
    assert!(output(&guest, &["cat", "/sys/kernel/sched_ext/root/ops"]).starts_with(b"bpfland"));

    let mut sampler = Sampler::new(Some(guest.client()));
    sampler.prime().unwrap();
    // Each process that the shell makes is dispatched at least once.
    output(&guest, &["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do ls /proc >/dev/null; done"]);
    let sample = sampler.sample("work");
    let stats = sample.stats.unwrap();
    assert_eq!(stats["nr_cpus"], 2);
    let dispatches: u64 = stats
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| name.contains("dispatch"))
        .map(|(_, n)| n.as_u64().unwrap())
        .sum();
    assert!(dispatches >= 8, "{stats}");
    assert!(sample.interval_ms.is_some());
}

#[test]
#[ignore = "boots a QEMU guest with scx_bpfland; run ci/test sched-ext"]
fn meta_is_byte_identical_on_host_and_guest() {
    let guest = with_bpfland();
    let request = r#"{"req":"stats_meta","args":{}}"#;
    let inside = output(&guest, &["guest_peer", "ask", "/var/run/scx/root/stats", request]);
    let mut outside = guest.client().request_raw(request).unwrap();
    assert!(outside.len() > 1_000);
    outside.push(b'\n');
    assert_eq!(outside, inside);
}

#[test]
#[ignore = "boots a QEMU guest with scx_bpfland; run ci/test sched-ext"]
fn later_errors_say_that_the_scheduler_ended() {
    let guest = with_bpfland();
    let client = guest.client();
    client.stats(&[]).unwrap();
    the_kernel_has_enabled_it(&guest, &client.sched_ext().unwrap());
    output(&guest, &["sh", "-c", "guest_peer interrupt $(pidof scx_bpfland)"]);
    // The scheduler's end was seen before this request was written, so that the session is renewed, and finds no scheduler.
    let error = client.stats(&[]).unwrap_err().to_string();
    assert!(error.contains("sched_ext is disabled"), "{error}");
    assert!(error.contains("the kernel says \"unregistered from user space\""), "{error}");
    let said = client.sched_ext().unwrap();
    assert_eq!((said.state.as_deref(), said.ops, said.events), (Some("disabled"), None, None));
    let log = said.log.unwrap();
    assert!(log.last().unwrap().text.ends_with("disabled (unregistered from user space)"), "{log:?}");
    assert!(log.iter().all(|message| !message.text.contains("forged")), "{log:?}");
}

#[test]
#[ignore = "boots a QEMU guest with scx_bpfland; run ci/test sched-ext"]
fn a_stopped_scheduler_times_out_is_ejected_and_loaded_again() {
    let guest = with_bpfland();
    let client = guest.client();
    client.stats(&[]).unwrap();
    the_kernel_has_counted(&guest);
    output(&guest, &["sh", "-c", "kill -STOP $(pidof scx_bpfland)"]);
    let error = client.stats(&[]).unwrap_err();
    assert!(matches!(error, SchedStatsError::TimedOut { .. }), "{error}");
    assert_eq!(client.sched_ext().unwrap().state.as_deref(), Some("enabled"));

    // The kernel's own way to eject a scheduler, whatever became of it.
    let disabled = "until grep -q disabled /sys/kernel/sched_ext/state; do :; done";
    output(&guest, &["sh", "-c", &format!("echo S >/proc/sysrq-trigger; {disabled}")]);
    let said = client.sched_ext().unwrap();
    let last = said.log.unwrap().last().unwrap().text.clone();
    let names_both =
        last.starts_with("sched_ext: BPF scheduler 'bpfland") && last.ends_with("disabled (disabled by sysrq-S)");
    assert!(names_both, "{last}");

    let again = "kill -KILL $(pidof scx_bpfland); while pidof scx_bpfland; do :; done; \
        setsid sh /etc/scx-vsock/scheduler </dev/null >/dev/console 2>&1 &";
    output(&guest, &["sh", "-c", again]);
    wait_for_scheduler(&guest);
    assert!(client.stats(&[]).unwrap()["nr_cpus"] == 2);
    let said = client.sched_ext().unwrap();
    assert_eq!((said.state.as_deref(), said.enable_seq.as_deref()), (Some("enabled"), Some("2")));
}

/// Compares the counters with those of the kernel's file, which was read between two answers.
fn the_kernel_has_counted(guest: &Guest) {
    let said = || guest.client().sched_ext().unwrap().events.unwrap();
    let before = said();
    let file = String::from_utf8(output(guest, &["cat", "/sys/kernel/sched_ext/root/events"])).unwrap();
    let after = said();
    let number = |text: &str| text.parse::<u64>().unwrap();
    for (name, count) in file.lines().map(|line| line.split_once(' ').unwrap()) {
        let bounds = number(&before[name])..=number(&after[name]);
        assert!(bounds.contains(&number(count)), "{name} {count} {bounds:?}");
    }
    assert!(file.lines().count() == before.len() && !before.is_empty(), "{file}");
}

/// Compares what the kernel says with its files, and tries to forge what it says.
fn the_kernel_has_enabled_it(guest: &Guest, said: &SchedExt) {
    let file = |name: &str| {
        let text = output(guest, &["cat", &format!("/sys/kernel/sched_ext/{name}")]);
        String::from_utf8(text).unwrap().trim_end().to_owned()
    };
    assert_eq!(said.state.as_deref(), Some("enabled"));
    assert_eq!(said.ops, Some(file("root/ops")));
    assert_eq!(said.enable_seq, Some(file("enable_seq")));
    assert_eq!(said.switch_all, Some(file("switch_all")));
    let events = file("root/events");
    let names: BTreeSet<&str> = events.lines().filter_map(|line| line.split(' ').next()).collect();
    let said_names: BTreeSet<&str> = said.events.iter().flatten().map(|(name, _)| name.as_str()).collect();
    assert_eq!(said_names, names);
    assert!(said.events.iter().flatten().all(|(_, number)| number.parse::<u64>().is_ok()), "{said:?}");
    assert!(said.log.as_ref().unwrap().last().unwrap().text.ends_with("enabled"), "{said:?}");
    assert!(!said.truncated && said.log_errno.is_none(), "{said:?}");
    let forged = "echo '<3>sched_ext: BPF scheduler \"bpfland\" disabled (forged)' > /dev/kmsg";
    output(guest, &["sh", "-c", forged]);
}

#[test]
#[ignore = "boots a QEMU guest with scx_bpfland; run ci/test sched-ext"]
fn the_demo_shows_its_stats() {
    let mut command = Command::new(repository().join("ci/demo"));
    for name in ["KERNEL", "MODULES", "CONFIG", "SCX_VSOCK_AGENT"] {
        command.env_remove(name);
    }
    let output = command.args(["scx_bpfland", "--jsonl"]).output().unwrap();
    let (printed, messages) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && messages.contains("sched_ext ops bpfland"), "{messages}");
    let samples: Vec<Sample> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(samples.len() >= 3 && samples.iter().all(|sample| sample.stats.as_ref().unwrap()["nr_cpus"] == 2));
}
