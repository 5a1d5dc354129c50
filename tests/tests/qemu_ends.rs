//! The ways in which guests end, one after another in a process of their own, and what they leave behind.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use scx_vsock::guest::Error;
use scx_vsock::{MissingStatsReason, SchedStatsError};
use scx_vsock_tests::guest::builder;
use scx_vsock_tests::peer::DEADLINE;

#[test]
#[ignore = "boots QEMU guests; run ci/test qemu"]
fn a_guest_leaves_nothing_behind() {
    let before = left_behind();
    for end in [
        panics,
        panics_later,
        never_gets_ready,
        has_an_agent_that_ends,
        is_dropped,
        has_a_missing_kernel,
        has_a_missing_program,
    ] {
        end();
        assert_eq!(left_behind(), before);
    }
}

fn panics() {
    let error = builder().kernel_argument("rdinit=/nowhere").boot().unwrap_err();
    let Error::Ended { console, .. } = &error else { panic!("{error}") };
    assert!(console.contains("panic"), "{console}");
}

fn panics_later() {
    let guest = builder().boot().unwrap();
    let client = guest.client().with_deadline(DEADLINE);
    let waits = thread::spawn(move || client.wait_for_scheduler(DEADLINE).unwrap_err());
    guest.run(&["sh", "-c", "echo c >/proc/sysrq-trigger"]).unwrap_err();
    let error = waits.join().unwrap();
    assert!(matches!(error, SchedStatsError::AgentUnreachable { .. }), "{error}");
    assert!(guest.handle().connect(729).is_err() && guest.handle().listen(1).is_err());
}

fn never_gets_ready() {
    let error = builder().kernel_argument("rdinit=/bin/sh").deadline(Duration::from_secs(5)).boot().unwrap_err();
    assert!(matches!(error, Error::NotReady { .. }), "{error}");
}

fn has_an_agent_that_ends() {
    let error = builder().agent_argument("--port").agent_argument("x").deadline(Duration::MAX).boot().unwrap_err();
    let Error::AgentEnded { status: 2, console } = &error else { panic!("{error}") };
    assert!(console.contains("a port is a number"), "{console}");
}

fn is_dropped() {
    let guest = builder().boot().unwrap();
    // QEMU, and the guard of its process group.
    assert_eq!(left_behind().children, 2);
    let client = guest.client();
    drop(guest);
    let error = client.stats(&[]).unwrap_err();
    assert!(matches!(MissingStatsReason::from(&error), MissingStatsReason::AgentUnreachable { .. }), "{error}");
}

fn has_a_missing_kernel() {
    let error = builder().kernel("/nowhere/vmlinuz").boot().unwrap_err().to_string();
    assert!(error.contains("/nowhere/vmlinuz"), "{error}");
}

fn has_a_missing_program() {
    let error = builder().qemu("/nowhere/qemu").boot().unwrap_err().to_string();
    assert!(error.contains("cannot run /nowhere/qemu"), "{error}");
}

/// What this process has that a guest could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct LeftBehind {
    children: usize,
    threads: usize,
    descriptors: usize,
    temporary_files: usize,
}

fn left_behind() -> LeftBehind {
    let count = |folder: &Path| fs::read_dir(folder).unwrap().count();
    let of_thread = |thread: &Path| fs::read_to_string(thread.join("children")).unwrap_or_default();
    let threads = fs::read_dir("/proc/self/task").unwrap();
    LeftBehind {
        children: threads.map(|thread| of_thread(&thread.unwrap().path()).split_whitespace().count()).sum(),
        threads: count(Path::new("/proc/self/task")),
        descriptors: count(Path::new("/proc/self/fd")),
        temporary_files: count(&std::env::temp_dir()),
    }
}
