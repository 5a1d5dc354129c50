//! Snapshots of whole guests on nested KVM, in a QEMU guest that emulates an AMD processor.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use scx_vsock_tests::nested_guest::{OUTER_MODULES, outer_guest};
use scx_vsock_tests::program;

const GUEST_SNAPSHOTS: &str = env!("CARGO_BIN_EXE_guest_snapshots");
const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// How long the program may take: several times what it needs on an idle machine, since others may be at work.
const ENDS: Duration = Duration::from_secs(900);

#[test]
#[ignore = "boots a QEMU guest; run ci/test microvm"]
fn guests_begin_many_times_with_a_loaded_scheduler() {
    let outer = outer_guest().program(GUEST_SNAPSHOTS, "/bin/guest_snapshots").program(GUEST_PEER, "/bin/guest_peer");
    let outer = outer.program(program::built("procsched"), "/bin/procsched").boot().unwrap();
    let command = ["guest_snapshots", "/microvm/vmlinuz", OUTER_MODULES, "procsched"];
    let output = outer.run_within(&command, ENDS).unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    println!("{stdout}{stderr}");
    assert_eq!(output.status, 0, "{}", outer.console().text());
    assert_eq!(stdout.matches("\nrestore: ").count(), 10, "{stdout}");
}
