//! Snapshots, pauses and kills of whole guests on nested KVM, in a QEMU guest that emulates an AMD processor.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use scx_vsock::guest::GuestBuilder;
use scx_vsock_tests::guest::Kernel;
use scx_vsock_tests::nested_guest::{OUTER_MODULES, outer_guest, run_printing};
use scx_vsock_tests::program;
use scx_vsock_tests::real_schedulers::fetched_scheduler;

const GUEST_SNAPSHOTS: &str = env!("CARGO_BIN_EXE_guest_snapshots");
const GUEST_KILLS: &str = env!("CARGO_BIN_EXE_guest_kills");
const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// How long the program may take: several times what it needs on an idle machine, since others may be at work.
const ENDS: Duration = Duration::from_secs(900);

/// Runs the program in this guest, and returns what it printed.
fn run_in(outer: &GuestBuilder, arguments: &[&str]) -> String {
    let outer = outer.clone().program(GUEST_SNAPSHOTS, "/bin/guest_snapshots").program(GUEST_PEER, "/bin/guest_peer");
    run(&outer, &[&["guest_snapshots", "/microvm/vmlinuz", OUTER_MODULES], arguments].concat())
}

/// Runs a command in this guest, and returns what it printed.
fn run(outer: &GuestBuilder, command: &[&str]) -> String {
    let outer = outer.boot().unwrap();
    let [printed, _] = run_printing(&outer, command, ENDS);
    printed
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn guests_begin_many_times_with_a_loaded_scheduler() {
    let outer = outer_guest().program(program::built("procsched"), "/bin/procsched");
    let printed = run_in(&outer, &["256", "10", "procsched"]);
    assert_eq!(printed.matches("\nrestore: ").count(), 10, "{printed}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn the_kernel_still_uses_its_scheduler_after_a_restore() {
    let outer = outer_guest().program(fetched_scheduler("scx_bpfland"), "/bin/scx_bpfland").memory_mib(2048);
    let outer = outer.file(&Kernel::of_this_run().config, "/microvm/config");
    let printed = run_in(&outer, &["512", "1", "scx_bpfland", "/microvm/config"]);
    assert!(printed.lines().any(|line| line.starts_with("it runs: ") && line.ends_with(" enabled")), "{printed}");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn killed_guests_leave_nothing() {
    let outer = outer_guest().program(GUEST_KILLS, "/bin/guest_kills");
    let printed = run(&outer, &["guest_kills", "/microvm/vmlinuz", OUTER_MODULES]);
    assert!(printed.ends_with("20 guests were killed, and nothing is left of them\n"), "{printed}");
}
