//! The whole path in a QEMU guest: stand-in scheduler, agent, the kernel's vsock, vhost-user device, client.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;

use scx_vsock::guest::Guest;
use scx_vsock::{MissingStatsReason, StatsRequest};
use scx_vsock_tests::agent;
use scx_vsock_tests::guest::{Kernel, builder, exchange_traffic, output, wait_for_scheduler};
use scx_vsock_tests::program;
use scx_vsock_tests::traffic::LANES;
use serde_json::Value;

const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

fn with_procsched() -> Guest {
    let guest =
        builder().scheduler(program::built("procsched"), &[]).program(GUEST_PEER, "/bin/guest_peer").boot().unwrap();
    wait_for_scheduler(&guest);
    guest
}

/// Context switches, processes, and user, system and idle time of all processors, from the guest's `/proc/stat`.
fn proc_stat(guest: &Guest) -> Vec<u64> {
    let text = String::from_utf8(output(guest, &["cat", "/proc/stat"])).unwrap();
    let numbers = |name| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name)).unwrap();
        line.split_ascii_whitespace().skip(1).map(|word| word.parse().unwrap()).collect::<Vec<u64>>()
    };
    let cpu = numbers("cpu");
    vec![numbers("ctxt")[0], numbers("processes")[0], cpu[0], cpu[2], cpu[3]]
}

fn totals(stats: &Value) -> Vec<u64> {
    let number = |path| stats.pointer(path).and_then(Value::as_u64).unwrap();
    ["/totals/ctxt", "/totals/processes", "/totals/cpu/user", "/totals/cpu/system", "/totals/cpu/idle"]
        .map(number)
        .to_vec()
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn stats_match_the_guests_proc_stat() {
    let guest = with_procsched();
    assert_eq!(output(&guest, &["uname", "-r"]), format!("{}\n", Kernel::of_this_run().release()).into_bytes());
    let client = guest.client();
    for _ in 0..5 {
        let before = proc_stat(&guest);
        let stats = totals(&client.stats(&[]).unwrap());
        let after = proc_stat(&guest);
        let between = before.iter().zip(&stats).zip(&after).all(|((before, at), after)| before <= at && at <= after);
        assert!(between, "{before:?} {stats:?} {after:?}");
        assert!(before[0] < after[0], "a guest that runs commands switches contexts");
    }
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn meta_is_byte_identical_on_host_and_guest() {
    let guest = with_procsched();
    let request = r#"{"req":"stats_meta","args":{}}"#;
    let inside = output(&guest, &["guest_peer", "ask", "/var/run/scx/root/stats", request]);
    let mut outside = guest.client().request_raw(request).unwrap();
    assert!(outside.len() > 500);
    outside.push(b'\n');
    assert_eq!(outside, inside);
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_guest_runs_the_built_agent() {
    let guest = builder().boot().unwrap();
    assert_eq!(output(&guest, &["cat", "/bin/scx-vsock-agent"]), fs::read(agent::file()).unwrap());
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn large_transfers_survive_connection_churn() {
    const BYTES: u64 = (64 << 20) / (2 * LANES as u64);
    let guest = builder().program(GUEST_PEER, "/bin/guest_peer").boot().unwrap();
    let [outside, inside] = exchange_traffic(&guest, BYTES);
    println!("{outside} connections from the host and {inside} from the guest were opened and closed");
    assert!(inside.min(outside) >= 8, "{inside} and {outside}: each way twice");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_guest_without_scheduler_says_why() {
    let guest = builder().boot().unwrap();
    let error = guest.client().request(&StatsRequest::stats(&[])).unwrap_err();
    let MissingStatsReason::NoScheduler { reason } = MissingStatsReason::from(&error) else {
        panic!("{error}");
    };
    assert!(!reason.is_empty());
}
