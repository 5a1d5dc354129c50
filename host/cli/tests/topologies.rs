//! Guests with a topology under QEMU: what their kernel sees of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use scx_vsock::guest::GuestBuilder;
use scx_vsock_tests::guest::{builder, output};
use scx_vsock_tests::numa_nodes::{self, assert_nodes_have_mib};

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
