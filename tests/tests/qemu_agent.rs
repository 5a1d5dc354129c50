//! The agent in a QEMU guest: it listens on the kernel's vsock, reports to the host that it is ready, and checks its peers.
#![allow(clippy::unwrap_used, reason = "tests")]

use scx_vsock::READY_PORT;
use scx_vsock::guest::Guest;
use scx_vsock_tests::agent;
use scx_vsock_tests::coverage_guest::{self, CoverageGuest};
use scx_vsock_tests::guest::{builder, output, wait_for_scheduler};
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::program;

const GUEST_PEER: &str = env!("CARGO_BIN_EXE_guest_peer");

/// The CID under which a guest reaches itself.
const LOOPBACK: &str = "1";

fn with_procsched() -> CoverageGuest {
    let guest = coverage_guest::boot(
        builder().scheduler(program::built("procsched"), &[]).program(GUEST_PEER, "/bin/guest_peer"),
    );
    wait_for_scheduler(&guest);
    guest
}

fn end_agent(guest: &Guest) {
    output(guest, &["sh", "-c", "guest_peer kill $(pidof scx-vsock-agent)"]);
}

/// Starts an agent and waits until it sleeps: then it has tried to listen and to connect to the host.
fn start_agent(guest: &Guest, arguments: &str) {
    let start = format!(
        "/bin/scx-vsock-agent {arguments} </dev/null >/dev/console 2>&1 & \
         until grep -q '^State:.S' /proc/$(pidof scx-vsock-agent)/status; do usleep 20000; done"
    );
    output(guest, &["sh", "-c", &start]);
}

/// Packets of both directions so far.
fn packets(guest: &Guest) -> u64 {
    let counters = guest.handle().counters();
    counters.from_guest.packets + counters.to_guest.packets
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_request_is_one_packet_each_way() {
    const REQUESTS: u64 = 20;
    let guest = with_procsched();
    let client = guest.client();
    client.stats(&[]).unwrap();
    let before = packets(&guest);
    for _ in 0..REQUESTS {
        client.stats(&[]).unwrap();
    }
    let sent = packets(&guest) - before;
    // What the device had not counted before is among them.
    assert!(sent <= 2 * REQUESTS + 4, "{sent} packets of {REQUESTS} requests");
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn requests_of_every_size_are_answered_in_order() {
    let guest = with_procsched();
    let client = guest.client();
    for size in [1, 100, 500, 1_023, 1_024, 2_047, 2_048, 2_049, 5_000, 100_000, 3, 200, 262_000] {
        let request =
            format!("{{\"req\":\"stats\",\"args\":{{\"target\":\"top\",\"padding\":\"{}\"}}}}", "x".repeat(size));
        let answer = client.request_raw(request.as_bytes()).unwrap();
        assert!(answer.starts_with(b"{\"errno\":0,"), "{size}: {}", String::from_utf8_lossy(&answer));
    }
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn the_agent_survives_reloading_the_transport() {
    let guest = with_procsched();
    guest.client().stats(&[]).unwrap();
    for _ in 0..3 {
        // A connection that is still closing keeps the module in use, and the kernel reports no event for its end.
        output(&guest, &["sh", "-c", "until rmmod vmw_vsock_virtio_transport; do usleep 20000; done"]);
        output(&guest, &["insmod", "/lib/modules/vmw_vsock_virtio_transport.ko"]);
        guest.client().stats(&[]).unwrap();
    }
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn an_agent_started_before_vsock_reports_ready() {
    let guest = with_procsched();
    let unload = "for module in vmw_vsock_virtio_transport vmw_vsock_virtio_transport_common vsock; do \
                  until rmmod $module; do usleep 20000; done; done";
    end_agent(&guest);
    output(&guest, &["sh", "-c", unload]);
    start_agent(&guest, "");
    let ready = guest.handle().listen(READY_PORT).unwrap();
    for module in ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"] {
        assert!(!output(&guest, &["pidof", "scx-vsock-agent"]).is_empty());
        output(&guest, &["insmod", &format!("/lib/modules/{module}.ko")]);
    }
    let accepted = ready.accept_within(DEADLINE);
    assert!(accepted.is_ok(), "{accepted:?}: {:?}; {}", guest.handle().counters(), guest.console().text());
    drop(accepted);
    guest.client().stats(&[]).unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn a_second_agent_on_the_port_exits() {
    let guest = coverage_guest::boot(builder());
    let second = guest.run(&["/bin/scx-vsock-agent"]).unwrap();
    let message = "scx-vsock-agent: cannot listen on vsock port 729: errno 98; is another agent running?\n";
    assert_eq!((second.status, String::from_utf8_lossy(&second.stderr).as_ref()), (1, message));
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn socket_activation_passes_a_vsock_listener() {
    let guest = with_procsched();
    end_agent(&guest);
    // The listener exists once the first line is printed.
    let activated = "mkfifo /tmp/listens; guest_peer activate 729 /bin/scx-vsock-agent </dev/null >/tmp/listens 2>&1 & \
                     read -r line </tmp/listens";
    output(&guest, &["sh", "-c", activated]);
    guest.client().stats(&[]).unwrap();
}

#[test]
#[ignore = "boots a QEMU guest; run ci/test qemu"]
fn only_allowed_cids_are_served() {
    let guest = coverage_guest::boot(builder().module("vsock_loopback").program(GUEST_PEER, "/bin/guest_peer"));
    assert_eq!(output(&guest, &["guest_peer", "hello", LOOPBACK, "729"]), b"");
    end_agent(&guest);
    start_agent(&guest, &format!("--allow-cid {LOOPBACK}"));
    let hello = output(&guest, &["guest_peer", "hello", LOOPBACK, "729"]);
    assert!(agent::is_hello(hello.trim_ascii_end()), "{}", String::from_utf8_lossy(&hello));
}
