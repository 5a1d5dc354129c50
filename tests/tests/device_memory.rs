//! How much memory a guest can make the host hold, the kernel's included. Alone in its process, whose memory it measures.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use rustix::net::{SendFlags, send};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::{BUFFER_BYTES, MAX_CONNECTIONS, SEND_BUFFER_BYTES, memory_bound};
use scx_vsock_tests::cgroup::{Group, resident_bytes};
use scx_vsock_tests::guest_driver::{Connection, Guest, MEMORY, pattern};
use vm_memory::{Bytes, GuestAddress};

/// Bytes that the kernel may have counted for a group before they are used.
const COUNTED_AHEAD: usize = 4 << 20;

/// The guest sends all that it has credit for, and the host reads nothing.
fn fill_host(guest: &mut Guest, connection: &mut Connection, payload: &[u8]) {
    loop {
        let count = payload.len().min(connection.credit() as usize);
        connection.write(guest, &payload[..count]);
        for packet in guest.received() {
            connection.on_packet(&packet.header);
        }
        if connection.credit() == 0 {
            break;
        }
    }
}

/// The host writes all that its socket takes, and the guest, which gives no credit, reads nothing.
fn fill_guest(guest: &mut Guest, connection: &Connection, payload: &[u8]) {
    while send(&connection.stream, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok() {
        guest.received();
    }
}

/// Bytes that this many connections make the host hold when nobody reads.
fn held(connections: usize, payload: &[u8], measure: &impl Fn() -> usize) -> usize {
    let mut guest = Guest::new();
    // All of guest memory is there from the start, and so is not counted.
    for at in (0..MEMORY).step_by(4096).filter(|&at| !(0x10_0000..0x30_0000).contains(&at)) {
        guest.memory().write_obj(0u8, GuestAddress(at as u64)).unwrap();
    }
    let listener = guest.device.handle().listen(1).unwrap();
    let before = measure();
    let mut open: Vec<Connection> = (0..u32::try_from(connections).unwrap())
        .map(|guest_port| {
            let request = Header { buf_alloc: 0, ..Guest::header(Operation::Request, guest_port, 1) };
            guest.send(&request, &[]);
            let response = guest.received().pop().unwrap();
            let mut connection = Connection::new(listener.accept().unwrap(), guest_port, 1);
            connection.buf_alloc = 0;
            connection.on_packet(&response.header);
            connection
        })
        .collect();
    for connection in &mut open {
        fill_host(&mut guest, connection, payload);
        fill_guest(&mut guest, connection, payload);
    }
    assert_eq!(guest.device.connections(), connections);
    let after = measure();
    after.saturating_sub(before)
}

#[test]
fn a_hostile_guest_stays_within_the_memory_bound() {
    let group = Group::enter();
    let measure = || group.as_ref().map_or_else(resident_bytes, Group::bytes);
    let what = if group.is_some() { "with the kernel's memory" } else { "without the kernel's: no control group" };
    // What is in sockets is the kernel's.
    let in_sockets = if group.is_some() { SEND_BUFFER_BYTES } else { 0 };
    for (connections, size) in [(1, 1), (1, 64 * 1024), (64, 1000), (64, 64 * 1024), (MAX_CONNECTIONS, 64 * 1024)] {
        let held = held(connections, &pattern(size), &measure);
        let bound = memory_bound(connections);
        println!("{connections} connections, writes of {size}: {held} bytes held {what}, at most {bound} stated");
        assert!(held <= bound, "{connections} connections hold {held} bytes, and {bound} are stated");
        // That something was measured at all: the smaller part of what was sent, less what the kernel counts ahead.
        let least = (connections * (BUFFER_BYTES as usize / 2 + in_sockets)).saturating_sub(COUNTED_AHEAD);
        assert!(held >= least, "{connections} connections hold only {held} bytes: measured wrongly");
    }
}
