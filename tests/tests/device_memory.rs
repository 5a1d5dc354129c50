//! How much memory a guest can make the host hold, the kernel's included. Alone in its process, whose memory it measures.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{SendFlags, send};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::MEMORY_BYTES;
use scx_vsock::vsock::{
    BUFFER_BYTES, Listener, MAX_CONNECTIONS, RESERVED_CONNECTIONS, SEND_BUFFER_BYTES, memory_bound,
};
use scx_vsock_tests::cgroup::{Group, resident_bytes};
use scx_vsock_tests::guest_driver::{Connection, Guest, pattern};
use tempfile::TempDir;
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

/// A guest all of whose memory is there from the start, and so is not counted.
fn resident_guest() -> Guest {
    let guest = Guest::new();
    for at in (0..MEMORY_BYTES).step_by(4096).filter(|&at| !(0x10_0000..0x30_0000).contains(&at)) {
        guest.memory().write_obj(0u8, GuestAddress(at as u64)).unwrap();
    }
    guest
}

/// Bytes that this many connections of the host make it hold when nobody reads.
fn held(connections: usize, payload: &[u8], measure: &impl Fn() -> usize) -> usize {
    let mut guest = resident_guest();
    let before = measure();
    let mut open: Vec<Connection> = (0..connections)
        .map(|_| {
            let stream = guest.device.handle().connect(1).unwrap();
            let request = guest.received().pop().unwrap();
            let mut connection = Connection::new(stream, 1, request.header.src_port);
            connection.buf_alloc = 0;
            connection.on_packet(&request.header);
            guest.send(&connection.header(Operation::Response), &[]);
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

/// Where the guest's connections end.
enum HostEnd {
    /// Listeners in this process.
    Listeners(Vec<Listener>),
    /// Programs that have a Unix socket, and accept nothing.
    Programs { _folder: TempDir, _programs: Vec<UnixListener> },
}

/// Ports of the host.
const PORTS: u32 = 8;

impl HostEnd {
    fn listeners(guest: &Guest) -> Self {
        Self::Listeners((0..PORTS).map(|port| guest.device.handle().listen(port).unwrap()).collect())
    }

    fn programs(guest: &Guest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        guest.device.handle().set_uds_path(folder.path().join("host"));
        let bind = |port| UnixListener::bind(folder.path().join(format!("host_{port}"))).unwrap();
        let programs = (0..PORTS).map(bind).collect();
        Self::Programs { _folder: folder, _programs: programs }
    }

    /// The host's stream of the connection that was made last, where somebody accepts it.
    fn accept(&self, port: u32) -> Option<UnixStream> {
        match self {
            Self::Listeners(listeners) => listeners[port as usize].accept().ok(),
            Self::Programs { .. } => None,
        }
    }
}

/// What the guest does with a connection on which it has sent all that it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Keeps,
    Resets,
}

/// The guest connects and sends all that it may, over and over, while nobody reads. Returns the bytes that the host holds
/// then, and the places that are taken.
fn held_by_guest(
    end: fn(&Guest) -> HostEnd,
    then: Then,
    payload: &[u8],
    measure: &impl Fn() -> usize,
) -> (usize, usize) {
    let mut guest = resident_guest();
    let end = end(&guest);
    let before = measure();
    let (mut accepted, mut kept) = (Vec::new(), Vec::new());
    for guest_port in 0..2 * u32::try_from(MAX_CONNECTIONS).unwrap() {
        let port = guest_port % PORTS;
        let request = Header { buf_alloc: 0, ..Guest::header(Operation::Request, guest_port, port) };
        guest.send(&request, &[]);
        let answer = guest.received().pop().unwrap();
        if answer.operation() == Operation::Rst {
            continue;
        }
        let stream = end.accept(port);
        // Of a program's connection the device has the only end here.
        let host = stream.as_ref().map_or_else(|| UnixStream::pair().unwrap().0, |stream| stream.try_clone().unwrap());
        let mut connection = Connection::new(host, guest_port, port);
        connection.buf_alloc = 0;
        connection.on_packet(&answer.header);
        fill_host(&mut guest, &mut connection, payload);
        if stream.is_some() {
            fill_guest(&mut guest, &connection, payload);
        }
        match then {
            Then::Resets => guest.send(&connection.header(Operation::Rst), &[]),
            Then::Keeps => kept.push(connection),
        }
        accepted.extend(stream);
    }
    let held = measure().saturating_sub(before);
    (held, guest.device.counters().connections.total())
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
    let ends = [(HostEnd::listeners as fn(&Guest) -> HostEnd, "listeners"), (HostEnd::programs, "programs")];
    for ((end, name), then) in ends.into_iter().flat_map(|end| [(end, Then::Keeps), (end, Then::Resets)]) {
        let (held, places) = held_by_guest(end, then, &pattern(64 * 1024), &measure);
        let bound = memory_bound(MAX_CONNECTIONS);
        println!("{places} connections to {name}, {then:?}: {held} bytes held {what}, at most {bound} stated");
        assert_eq!(places, MAX_CONNECTIONS - RESERVED_CONNECTIONS, "the guest has all that it may have");
        assert!(held <= bound, "connections to {name}, {then:?}, hold {held} bytes, and {bound} are stated");
        let least = (places * in_sockets / 2).saturating_sub(COUNTED_AHEAD);
        assert!(held >= least, "connections to {name}, {then:?}, hold only {held} bytes: measured wrongly");
    }
}
