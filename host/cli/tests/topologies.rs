//! Guests with a topology under QEMU: what their kernel sees of it, and what scx_rusty and scx_lavd make of it.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use scx_vsock::guest::GuestBuilder;
use scx_vsock_tests::guest::{builder, output};
use scx_vsock_tests::numa_nodes::{self, assert_nodes_have_mib};
use scx_vsock_tests::real_schedulers::{LAVD_SHOWS_DOMAINS, fetched_scheduler, lavd_domains, rusty_domains};

/// How long an emulated scheduler may take to serve stats: scx_lavd needs up to 50 s.
const SCHEDULER_STARTS: Duration = Duration::from_secs(240);

fn guest(topology: &str) -> GuestBuilder {
    builder().topology(topology.parse().unwrap())
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test schedulers"]
fn qemu_shows_sockets_and_nodes() {
    let guest = guest("sockets=2,cores=1,threads=2,nodes=2,memory=192+320").boot().unwrap();
    let show = "cd /sys/devices/system/cpu; for cpu in cpu[0-9]*; do echo $cpu $(cat $cpu/topology/physical_package_id \
                $cpu/topology/thread_siblings_list); done";
    let seen = String::from_utf8(output(&guest, &["sh", "-c", &format!("{show}; {}", numa_nodes::SHOW)])).unwrap();
    for line in ["cpu0 0 0-1", "cpu1 0 0-1", "cpu2 1 2-3", "cpu3 1 2-3", "0-1", "2-3"] {
        assert!(seen.lines().any(|printed| printed == line), "{line}: {seen}");
    }
    assert_nodes_have_mib(&seen, [(96, 192), (256, 320)]);
}

/// Returns what a scheduler has printed by the time that it serves stats, in a guest with this topology.
fn log_of(scheduler: &str, arguments: &[&str], topology: &str) -> String {
    let guest = guest(topology).scheduler(fetched_scheduler(scheduler), arguments).boot().unwrap();
    if let Err(error) = guest.client().wait_for_scheduler(SCHEDULER_STARTS) {
        panic!("{scheduler}: {error}\nconsole:\n{}", guest.console().text());
    }
    guest.console().text()
}

/// One socket with all processors, and two sockets with half of them each, each of which has a last-level cache.
const TOPOLOGIES: [&str; 2] = ["sockets=1,cores=4", "sockets=2,cores=2"];

#[test]
#[ignore = "boots QEMU guests with scx_rusty; run ci/test schedulers"]
fn rusty_has_a_domain_for_each_llc() {
    let domains = TOPOLOGIES.map(|topology| rusty_domains(&log_of("scx_rusty", &[], topology)));
    assert_eq!(domains, [vec![0b1111], vec![0b0011, 0b1100]]);
}

#[test]
#[ignore = "boots QEMU guests with scx_lavd; run ci/test schedulers"]
fn lavd_has_a_compute_domain_for_each_llc() {
    let domains = TOPOLOGIES.map(|topology| lavd_domains(&log_of("scx_lavd", &LAVD_SHOWS_DOMAINS, topology)));
    assert_eq!(domains, [1, 2]);
}
