//! The device between a simulated guest driver and the host's streams.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use scx_vsock::vsock::BUFFER_BYTES;
use scx_vsock::vsock::MAX_BACKLOG;
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{
    HOST_CID, RX_QUEUE, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TX_QUEUE, TYPE_STREAM,
};
use scx_vsock::vsock::test_util::{MEMORY_BYTES, QUEUE_SIZE, SimulatedDriver, guest_memory};
use scx_vsock::vsock::{Device, DeviceError};
use scx_vsock::vsock::{MAX_CONNECTIONS, MAX_PORT_CONNECTIONS};
use scx_vsock_tests::guest_driver::{CID, Connection, Guest, RawRings, interesting_sizes, is_readable, pattern};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

const PORT: u32 = 729;

/// A guest that the host is connected to.
fn connected() -> (Guest, Connection) {
    let mut guest = Guest::new();
    let connection = guest.connect_from_host(PORT);
    (guest, connection)
}

#[test]
fn the_host_connects_and_bytes_go_both_ways() {
    let (mut guest, mut connection) = connected();
    assert_eq!(connection.transfer_to_guest(&mut guest, b"request\n"), b"request\n");
    assert_eq!(connection.transfer_to_host(&mut guest, b"answer\n", 7), b"answer\n");
}

#[test]
fn the_guest_connects_to_a_port_that_is_listened_on() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(7290).unwrap();
    let mut connection = guest.connect_from_guest(&listener, 50_000, 7290);
    assert_eq!(connection.transfer_to_host(&mut guest, b"ready\n", 6), b"ready\n");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_port_that_nobody_listens_on_is_refused() {
    let mut guest = Guest::new();
    guest.send(&Guest::header(Operation::Request, 50_000, 7290), &[]);
    let reset = guest.received().pop().unwrap();
    assert_eq!(reset.operation(), Operation::Rst);
    assert_eq!((reset.header.src_port, reset.header.dst_port), (7290, 50_000));
    guest.serves_on();
}

#[test]
fn interrupts_that_the_driver_asks_for_are_counted() {
    let (mut guest, mut connection) = connected();
    let before = guest.device.counters().interrupts;
    guest.ask_for_interrupts();
    for _ in 0..2 {
        connection.stream.write_all(b"x").unwrap();
        let _due = guest.service_once();
        // The second packet comes before the driver asks again.
        assert_eq!(guest.device.counters().interrupts, before + 1);
    }
}

#[test]
fn a_listener_that_is_dropped_frees_its_port() {
    let guest = Guest::new();
    let handle = guest.device.handle();
    let listener = handle.listen(1).unwrap();
    assert_eq!(handle.listen(1).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(listener);
    handle.listen(1).unwrap();
}

#[test]
fn a_refused_connection_ends_at_the_host() {
    let mut guest = Guest::new();
    let stream = guest.device.handle().connect(PORT).unwrap();
    let request = guest.received().pop().unwrap().header;
    guest.send(&Guest::header(Operation::Rst, PORT, request.src_port), &[]);
    let mut byte = [0];
    assert_eq!(std::io::Read::read(&mut &stream, &mut byte).unwrap(), 0);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn data_of_every_interesting_size_arrives_both_ways() {
    for size in interesting_sizes() {
        let (mut guest, mut connection) = connected();
        let data = pattern(size);
        assert!(connection.transfer_to_host(&mut guest, &data, 64 << 10) == data, "{size} bytes to the host");
        assert!(connection.transfer_to_guest(&mut guest, &data) == data, "{size} bytes to the guest");
    }
}

#[test]
fn many_megabytes_arrive_in_packets_of_any_size() {
    let data = pattern(8 << 20);
    for most in [1000, 4096, 65_536, 262_144] {
        let (mut guest, mut connection) = connected();
        assert!(connection.transfer_to_host(&mut guest, &data, most) == data, "packets of {most}");
    }
    let (mut guest, mut connection) = connected();
    assert!(connection.transfer_to_guest(&mut guest, &data) == data);
}

#[test]
fn a_header_split_anywhere_is_the_same_packet() {
    for cut in 1..60 {
        let (mut guest, mut connection) = connected();
        let header = Header { len: 20, ..connection.header(Operation::ReadWrite) };
        let bytes = [&header.emit()[..], b"twenty bytes of data"].concat();
        assert!(guest.queue_bytes(&bytes, &[cut]));
        guest.service();
        assert_eq!(connection.read_host(), b"twenty bytes of data", "cut at {cut}");
    }
    let (mut guest, mut connection) = connected();
    let header = Header { len: 20, ..connection.header(Operation::ReadWrite) };
    let bytes = [&header.emit()[..], b"twenty bytes of data"].concat();
    let every_byte: Vec<usize> = (1..bytes.len()).collect();
    assert!(guest.queue_bytes(&bytes, &every_byte));
    guest.service();
    assert_eq!(connection.read_host(), b"twenty bytes of data");
}

#[test]
fn a_guest_may_use_all_its_credit_and_more_is_reset() {
    let (mut guest, mut connection) = connected();
    let buffer = pattern(BUFFER_BYTES as usize);
    // The host reads nothing: what its socket has no room for waits, and the guest has no credit left for the rest.
    connection.write(&mut guest, &buffer);
    let mut used = buffer.len();
    loop {
        for packet in guest.received() {
            connection.on_packet(&packet.header);
        }
        let credit = connection.credit() as usize;
        if credit == 0 {
            break;
        }
        connection.write(&mut guest, &buffer[..credit]);
        used += credit;
    }
    connection.write(&mut guest, b"x");
    assert_eq!(guest.operations(), [Operation::Rst]);
    // What was sent before, as far as it had entered the socket, is there.
    let got = connection.read_host();
    assert!(!got.is_empty() && got.len() <= used);
    guest.serves_on();
}

#[test]
fn packets_that_wait_together_arrive_whole_and_in_order() {
    let (mut guest, mut first) = connected();
    let mut second = guest.connect_from_host(PORT + 1);
    // Runs of one connection's packets, longer than a call takes together, and more than a socket has room for.
    let runs = [(1, 700), (3, 5), (16, 3_000), (1, 60_000), (2, 40_000), (1, 60_000), (7, 1)];
    let mut sent = [Vec::new(), Vec::new()];
    for (count, size) in runs {
        for (connection, sent) in [&mut first, &mut second].into_iter().zip(&mut sent) {
            for number in 0..count {
                let payload = vec![number; size];
                let len = u32::try_from(size).unwrap();
                let header = Header { len, ..connection.header(Operation::ReadWrite) };
                assert!(guest.queue_packet(&header, &payload));
                connection.sent = connection.sent.wrapping_add(header.len);
                sent.extend(payload);
            }
        }
    }
    guest.service();
    assert!(guest.device.held_bytes() > 0, "part of it waits for room");
    for (mut connection, sent) in [first, second].into_iter().zip(sent) {
        let mut got = Vec::new();
        for _ in 0..100 {
            got.extend(connection.read_host());
            guest.service();
        }
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }
    assert_eq!(guest.device.used()[TX_QUEUE], guest.available()[TX_QUEUE]);
    guest.serves_on();
}

#[test]
fn what_was_sent_before_a_violation_arrives() {
    let (mut guest, mut connection) = connected();
    let data = pattern(BUFFER_BYTES as usize);
    for payload in [b"before", b"always", &data[..]] {
        let len = u32::try_from(payload.len()).unwrap();
        let header = Header { len, ..connection.header(Operation::ReadWrite) };
        assert!(guest.queue_packet(&header, payload));
    }
    guest.service();
    assert_eq!(guest.operations(), [Operation::Rst]);
    assert_eq!(connection.read_host(), b"beforealways");
    guest.serves_on();
}

#[test]
fn payload_whose_buffer_cannot_be_given_back_is_sent_once() {
    let mut device = Device::new(CID).unwrap();
    let mut driver = SimulatedDriver::new(guest_memory());
    driver.restart();
    let [mut rx, mut tx, _] = driver.queues();
    // The used ring has one entry in memory, and the next one is outside.
    let used_ring = u64::try_from(MEMORY_BYTES).unwrap() - 12;
    tx.try_set_used_ring_address(GuestAddress(used_ring)).unwrap();
    tx.set_event_idx(false);
    let mut host = device.handle().connect(729).unwrap();
    let _interrupts = device.service(driver.memory(), &mut rx, &mut tx, None).unwrap();
    let request = driver.receive().unwrap().header;
    let answer = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: request.dst_port,
        dst_port: request.src_port,
        socket_type: TYPE_STREAM,
        op: Operation::Response.number(),
        ..Header::default()
    };
    assert!(driver.queue_packet(&answer, &[]));
    let _interrupts = device.service(driver.memory(), &mut rx, &mut tx, None).unwrap();
    let payload = Header { op: Operation::ReadWrite.number(), len: 1, ..answer };
    assert!(driver.queue_packet(&payload, b"x") && driver.queue_packet(&payload, b"y"));
    assert!(device.service(driver.memory(), &mut rx, &mut tx, None).is_err());
    let mut got = [0; 8];
    assert_eq!(host.read(&mut got).unwrap(), 2);
    assert_eq!(&got[..2], b"xy");
}

#[test]
fn credit_comes_back_when_the_host_reads() {
    let (mut guest, mut connection) = connected();
    let data = pattern(4 << 20);
    assert!(connection.transfer_to_host(&mut guest, &data, 64 << 10) == data);
    assert!(connection.credit() >= BUFFER_BYTES / 2);
}

#[test]
fn the_host_obeys_credit_and_asks_once() {
    let (mut guest, mut connection) = connected();
    connection.buf_alloc = 1000;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    connection.stream.write_all(&pattern(3000)).unwrap();
    let packets = guest.received();
    let sent: usize = packets.iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(sent, 1000);
    assert_eq!(packets.last().unwrap().operation(), Operation::CreditRequest);
    assert_eq!(guest.operations(), []);
    connection.fwd_cnt = 600;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    let sent: usize = guest.received().iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(sent, 600);
}

#[test]
fn a_guests_buffer_may_shrink_and_grow() {
    let (mut guest, mut connection) = connected();
    assert_eq!(connection.transfer_to_guest(&mut guest, &pattern(1000)).len(), 1000);
    connection.fwd_cnt = 0;
    connection.buf_alloc = 10;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    connection.stream.write_all(b"later").unwrap();
    assert!(guest.received().iter().all(|packet| packet.payload.is_empty()));
    connection.buf_alloc = 2000;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    assert_eq!(guest.received().pop().unwrap().payload, b"later");
}

#[test]
fn a_credit_request_is_answered() {
    let (mut guest, connection) = connected();
    guest.send(&connection.header(Operation::CreditRequest), &[]);
    let update = guest.received().pop().unwrap();
    assert_eq!(update.operation(), Operation::CreditUpdate);
    assert_eq!((update.header.buf_alloc, update.header.fwd_cnt), (BUFFER_BYTES, 0));
}

#[test]
fn credit_requests_share_one_update() {
    let (mut guest, connection) = connected();
    let bytes = connection.header(Operation::CreditRequest).emit();
    for _ in 0..20 {
        while guest.queue_bytes(&bytes, &[]) {}
        assert!(guest.operations().len() <= usize::from(QUEUE_SIZE));
    }
    guest.serves_on();
}

#[test]
fn transmit_goes_on_without_receive_buffers() {
    let mut guest = Guest::without_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    guest.send(&Guest::header(Operation::Request, 50_000, 1), &[]);
    let mut stream = listener.accept().unwrap();
    let payload = Header { len: 4, ..Guest::header(Operation::ReadWrite, 50_000, 1) };
    guest.send(&payload, b"data");
    let mut got = [0; 4];
    std::io::Read::read_exact(&mut stream, &mut got).unwrap();
    assert_eq!(&got, b"data");
    guest.post_all(4096);
    assert_eq!(guest.operations(), [Operation::Response]);
}

#[test]
fn packets_wait_for_receive_buffers() {
    let mut guest = Guest::without_buffers();
    guest.reposts = false;
    let mut stream = guest.device.handle().connect(PORT).unwrap();
    guest.service();
    assert!(guest.receive().is_none());
    guest.post(64);
    let request = guest.received().pop().unwrap().header;
    guest.send(&Guest::header(Operation::Response, PORT, request.src_port), &[]);
    stream.write_all(&pattern(100)).unwrap();
    let mut got = Vec::new();
    for _ in 0..5 {
        assert!(guest.received().is_empty(), "without a buffer there is no packet");
        guest.post(64);
        got.extend(guest.received().pop().unwrap().payload);
    }
    assert_eq!(got, pattern(100));
}

#[test]
fn a_short_receive_buffer_is_returned_unused() {
    let mut guest = Guest::without_buffers();
    guest.post(44);
    guest.post(20);
    guest.post(4096);
    let _stream = guest.device.handle().connect(PORT).unwrap();
    guest.service();
    assert!(guest.receive().is_none());
    assert!(guest.receive().is_none());
    assert_eq!(guest.receive().unwrap().operation(), Operation::Request);
}

/// A guest whose host writes more at a time than a buffer has room for, and which has no receive buffers now.
fn with_long_writes() -> (Guest, Connection) {
    let mut guest = Guest::without_buffers();
    guest.reposts = false;
    guest.post(4096);
    let mut connection = guest.connect_from_host(PORT);
    for _ in 0..2 {
        connection.stream.write_all(&pattern(100)).unwrap();
        guest.post(64);
        guest.post(4096);
        assert_eq!(guest.received().len(), 2);
    }
    (guest, connection)
}

#[test]
fn one_write_fills_buffers_of_any_size_in_their_order() {
    let (mut guest, mut connection) = with_long_writes();
    let sizes = [45, 64, 4096, 44, 1000, 20, 300, 4096, 4096];
    for size in sizes {
        assert!(guest.post(size));
    }
    let data = pattern(6000);
    connection.stream.write_all(&data).unwrap();
    guest.service();
    let lengths = [1, 20, 4052, 956, 256, 715].map(Some);
    let [a, b, c, d, e, f] = lengths;
    let mut got = Vec::new();
    for expected in [a, b, c, None, d, None, e, f, None] {
        let packet = guest.receive();
        assert_eq!(packet.as_ref().map(|packet| packet.payload.len()), expected);
        got.extend(packet.into_iter().flat_map(|packet| packet.payload));
    }
    assert!(got == data);
    guest.post_all_buffers();
    guest.serves_on();
}

#[test]
fn a_broken_buffer_costs_nothing_of_those_before_it() {
    let (mut guest, mut connection) = with_long_writes();
    guest.post(64);
    guest.post(64);
    let ring = guest.addresses()[RX_QUEUE];
    let newest = (guest.available()[RX_QUEUE] - 1) % QUEUE_SIZE;
    let head: u16 = guest.memory().read_obj(GuestAddress(ring.available + 4 + 2 * u64::from(newest))).unwrap();
    guest.memory().write_obj(u64::MAX, GuestAddress(ring.descriptors + 16 * u64::from(head))).unwrap();
    connection.stream.write_all(&pattern(100)).unwrap();
    assert!(guest.try_service().is_err());
    assert_eq!(guest.receive().unwrap().payload, pattern(20));
}

#[test]
fn the_guest_confirms_the_hosts_close() {
    let (mut guest, connection) = connected();
    let header = connection.header(Operation::Rst);
    drop(connection);
    let shutdown = guest.received().pop().unwrap();
    assert_eq!((shutdown.operation(), shutdown.header.flags), (Operation::Shutdown, SHUTDOWN_BOTH));
    assert_eq!(guest.device.connections(), 1);
    guest.send(&header, &[]);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn a_host_closes_without_credit() {
    let (mut guest, mut connection) = connected();
    connection.buf_alloc = 0;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    assert!(guest.operations().len() <= 1, "it is asked for credit at the most once");
    connection.stream.shutdown(Shutdown::Write).unwrap();
    let shutdown = guest.received().pop().unwrap();
    assert_eq!((shutdown.operation(), shutdown.header.flags), (Operation::Shutdown, SHUTDOWN_SEND));
    drop(connection);
    let shutdown = guest.received().pop().unwrap();
    assert_eq!((shutdown.operation(), shutdown.header.flags), (Operation::Shutdown, SHUTDOWN_BOTH));
}

#[test]
fn the_hosts_last_bytes_arrive_before_its_close() {
    let (mut guest, mut connection) = connected();
    connection.stream.write_all(&pattern(100_000)).unwrap();
    drop(connection);
    let packets = guest.received();
    let payload: Vec<u8> = packets.iter().flat_map(|packet| packet.payload.clone()).collect();
    assert!(payload == pattern(100_000));
    assert_eq!(packets.last().unwrap().header.flags, SHUTDOWN_BOTH);
}

#[test]
fn the_hosts_half_close_leaves_the_other_way_open() {
    let (mut guest, mut connection) = connected();
    connection.stream.shutdown(Shutdown::Write).unwrap();
    let shutdown = guest.received().pop().unwrap();
    assert_eq!((shutdown.operation(), shutdown.header.flags), (Operation::Shutdown, SHUTDOWN_SEND));
    assert_eq!(connection.transfer_to_host(&mut guest, b"still", 5), b"still");
    drop(connection);
    let shutdown = guest.received().pop().unwrap();
    assert_eq!((shutdown.operation(), shutdown.header.flags), (Operation::Shutdown, SHUTDOWN_BOTH));
}

#[test]
fn the_guests_last_bytes_arrive_before_its_close() {
    let (mut guest, mut connection) = connected();
    connection.write(&mut guest, b"last");
    let shutdown = Header { flags: SHUTDOWN_BOTH, ..connection.header(Operation::Shutdown) };
    guest.send(&shutdown, &[]);
    assert_eq!(guest.operations(), [Operation::Rst]);
    assert_eq!(guest.device.connections(), 0);
    assert_eq!(connection.read_host(), b"last");
    assert!(connection.host_reads_end());
}

#[test]
fn the_guests_half_close_leaves_the_other_way_open() {
    let (mut guest, mut connection) = connected();
    connection.write(&mut guest, b"last");
    let shutdown = Header { flags: SHUTDOWN_SEND, ..connection.header(Operation::Shutdown) };
    guest.send(&shutdown, &[]);
    assert_eq!(connection.read_host(), b"last");
    assert!(connection.host_reads_end());
    assert_eq!(connection.transfer_to_guest(&mut guest, b"more"), b"more");
    // Shutdown is for good: payload behind it breaks the rules.
    connection.write(&mut guest, b"x");
    assert_eq!(guest.operations(), [Operation::Rst]);
}

#[test]
fn host_writes_fail_after_a_guests_shutdown() {
    let (mut guest, mut connection) = connected();
    let shutdown = Header { flags: SHUTDOWN_RECEIVE, ..connection.header(Operation::Shutdown) };
    guest.send(&shutdown, &[]);
    assert_eq!(connection.stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(connection.transfer_to_host(&mut guest, b"still", 5), b"still");
}

/// Payload that the host's socket has no room for: sends as much as credit allows while the host reads nothing.
fn fill_tx_buf(guest: &mut Guest, connection: &mut Connection) -> Vec<u8> {
    let data = pattern(1 << 20);
    let mut sent = 0;
    loop {
        let count = (connection.credit() as usize).min(10_000);
        if count == 0 {
            return data[..sent].to_vec();
        }
        connection.write(guest, &data[sent..sent + count]);
        sent += count;
        for packet in guest.received() {
            connection.on_packet(&packet.header);
        }
    }
}

#[test]
fn a_guests_rst_discards_nothing_accepted() {
    for operation in [Operation::Rst, Operation::Shutdown] {
        let (mut guest, mut connection) = connected();
        let sent = fill_tx_buf(&mut guest, &mut connection);
        assert!(sent.len() >= BUFFER_BYTES as usize);
        let end = Header { flags: SHUTDOWN_BOTH, ..connection.header(operation) };
        guest.send(&end, &[]);
        let mut got = Vec::new();
        while guest.device.connections() > 0 {
            got.extend(connection.read_host());
            guest.service();
        }
        got.extend(connection.read_host());
        assert!(got == sent, "{operation:?}: {} of {} bytes arrived", got.len(), sent.len());
        let confirmed = if operation == Operation::Shutdown { &[Operation::Rst][..] } else { &[] };
        assert_eq!(guest.operations(), confirmed);
    }
}

#[test]
fn a_tuple_is_not_reused_before_its_close_is_done() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    let mut connection = guest.connect_from_guest(&listener, 50_000, 1);
    fill_tx_buf(&mut guest, &mut connection);
    guest.send(&Header { flags: SHUTDOWN_BOTH, ..connection.header(Operation::Shutdown) }, &[]);
    guest.send(&Guest::header(Operation::Request, 50_000, 1), &[]);
    assert_eq!(guest.operations(), [Operation::Rst]);
    assert!(listener.accept().is_err());
}

#[test]
fn a_thousand_connections_open_and_close() {
    let mut guest = Guest::new();
    for round in 0..1000u32 {
        let mut connection = guest.connect_from_host(PORT);
        assert_eq!(connection.transfer_to_host(&mut guest, &round.to_le_bytes(), 4), round.to_le_bytes());
        let reset = connection.header(Operation::Rst);
        drop(connection);
        assert_eq!(guest.operations(), [Operation::Shutdown]);
        guest.send(&reset, &[]);
    }
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn a_thousand_connections_are_open_at_once() {
    let mut guest = Guest::new();
    let mut connections: Vec<Connection> = (0..1000).map(|_| guest.connect_from_host(PORT)).collect();
    for (round, connection) in (0u32..).zip(&mut connections) {
        assert_eq!(connection.transfer_to_guest(&mut guest, &round.to_le_bytes()), round.to_le_bytes());
        assert_eq!(connection.transfer_to_host(&mut guest, &round.to_le_bytes(), 4), round.to_le_bytes());
    }
    let ports: std::collections::HashSet<u32> = connections.iter().map(|connection| connection.host_port).collect();
    assert_eq!(ports.len(), 1000);
}

#[test]
fn connections_take_turns_whatever_the_others_send() {
    let mut guest = Guest::new();
    let mut connections: Vec<Connection> = (0..3).map(|_| guest.connect_from_host(PORT)).collect();
    for connection in &mut connections {
        connection.stream.write_all(&pattern(100_000)).unwrap();
    }
    let ports: Vec<u32> = guest.received().iter().map(|packet| packet.header.src_port).take(60).collect();
    assert_eq!(ports.len(), 60);
    for turn in ports.chunks(3) {
        let different: std::collections::HashSet<&u32> = turn.iter().collect();
        assert_eq!(different.len(), 3, "{ports:?}");
    }
}

#[test]
fn a_flood_of_requests_gets_a_bounded_table() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    let mut streams = Vec::new();
    let mut reset = 0;
    for guest_port in 0..2000 {
        guest.send(&Guest::header(Operation::Request, guest_port, 1), &[]);
        streams.extend(listener.accept());
        reset += guest.operations().iter().filter(|&&operation| operation == Operation::Rst).count();
    }
    assert_eq!(streams.len(), MAX_PORT_CONNECTIONS);
    assert_eq!(reset, 2000 - MAX_PORT_CONNECTIONS);
    // Closed ones that the guest does not confirm give way.
    streams.clear();
    while !guest.received().is_empty() {}
    guest.serves_on();
}

#[test]
fn unsendable_last_bytes_are_evicted() {
    let mut guest = Guest::new();
    let mut connections: Vec<Connection> = (0..MAX_CONNECTIONS).map(|_| guest.connect_from_host(PORT)).collect();
    for connection in &mut connections {
        connection.buf_alloc = 0;
        guest.send(&connection.header(Operation::CreditUpdate), &[]);
        connection.stream.write_all(b"last").unwrap();
    }
    let asked = std::iter::from_fn(|| Some(guest.operations()).filter(|operations| !operations.is_empty())).flatten();
    assert!(asked.eq([Operation::CreditRequest; MAX_CONNECTIONS]));
    // One that the host still holds does not.
    let kept = connections.swap_remove(0);
    drop(connections);
    // The device processes some at a time.
    (0..MAX_CONNECTIONS).for_each(|_| assert_eq!(guest.operations(), []));
    assert_eq!(guest.device.connections(), MAX_CONNECTIONS);
    let mut streams = Vec::new();
    for _ in 1..MAX_CONNECTIONS {
        streams.push(guest.device.handle().connect(PORT).unwrap());
        let packets = guest.received();
        let [reset, request] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!((reset.operation(), request.operation()), (Operation::Rst, Operation::Request));
        assert_ne!(reset.header.src_port, kept.host_port);
        // No more than some are asked for before the guest answers.
        guest.send(&Guest::header(Operation::Response, PORT, request.header.src_port), &[]);
    }
    let mut refused = guest.device.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), []);
    assert_eq!(refused.read(&mut [0]).unwrap(), 0);
    drop(streams);
    while !guest.operations().is_empty() {}
    guest.serves_on();
}

#[test]
fn a_backlog_that_nobody_accepts_is_bounded() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    for guest_port in 0..200 {
        guest.send(&Guest::header(Operation::Request, guest_port, 1), &[]);
        guest.received();
    }
    let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
    assert_eq!(accepted, MAX_BACKLOG);
}

#[test]
fn violations_are_reset() {
    for operation in [Operation::Request, Operation::Response] {
        let (mut guest, connection) = connected();
        guest.send(&connection.header(operation), &[]);
        assert_eq!(guest.operations(), [Operation::Rst], "{operation:?}");
        guest.serves_on();
    }
}

#[test]
fn payload_before_the_response_is_reset() {
    let mut guest = Guest::new();
    let _stream = guest.device.handle().connect(PORT).unwrap();
    let request = guest.received().pop().unwrap().header;
    let payload = Header { len: 1, ..Guest::header(Operation::ReadWrite, PORT, request.src_port) };
    guest.send(&payload, b"x");
    assert_eq!(guest.operations(), [Operation::Rst]);
    guest.serves_on();
}

#[test]
fn a_length_beyond_the_chain_is_reset() {
    let (mut guest, mut connection) = connected();
    let lie = Header { len: 100, ..connection.header(Operation::ReadWrite) };
    guest.send(&lie, b"short");
    assert_eq!(guest.operations(), [Operation::Rst]);
    assert_eq!(connection.read_host(), b"");
    guest.serves_on();
}

#[test]
fn unknown_packets_are_answered_by_rst() {
    let mut guest = Guest::new();
    let odd = Header { socket_type: 2, ..Guest::header(Operation::Request, 1, 1) };
    guest.send(&odd, &[]);
    let reset = guest.received().pop().unwrap();
    assert_eq!((reset.operation(), reset.header.socket_type), (Operation::Rst, 2));
    guest.send(&Header { op: 99, ..Guest::header(Operation::Request, 1, 1) }, &[]);
    assert_eq!(guest.operations(), [Operation::Rst]);
    guest.send(&Header { socket_type: 2, ..Guest::header(Operation::Rst, 1, 1) }, &[]);
    guest.send(&Guest::header(Operation::Rst, 1, 1), &[]);
    assert_eq!(guest.operations(), []);
    guest.serves_on();
}

#[test]
fn packets_with_wrong_cids_are_dropped() {
    let (mut guest, mut connection) = connected();
    let honest = Header { len: 1, ..connection.header(Operation::ReadWrite) };
    for (src_cid, dst_cid) in [(CID + 1, HOST_CID), (CID, CID), (CID, 1), (HOST_CID, CID), (CID | 1 << 32, HOST_CID)] {
        guest.send(&Header { src_cid, dst_cid, ..honest }, b"x");
    }
    assert_eq!(guest.operations(), []);
    assert_eq!(connection.read_host(), b"");
    guest.serves_on();
}

#[test]
fn a_packet_shorter_than_a_header_is_dropped() {
    let mut guest = Guest::new();
    assert!(guest.queue_bytes(&[0; 43], &[]));
    assert_eq!(guest.operations(), []);
    guest.serves_on();
}

#[test]
fn an_empty_payload_is_nothing() {
    let (mut guest, mut connection) = connected();
    connection.write(&mut guest, b"");
    assert_eq!(connection.transfer_to_host(&mut guest, b"on", 2), b"on");
}

#[test]
fn a_broken_chain_stops_the_device_until_its_reset() {
    let (mut guest, mut connection) = connected();
    // Two descriptors that point at each other.
    guest.queue_raw(&[(0x200_0000, 44, 1, 1), (0x200_0000, 44, 1, 0)]);
    assert!(matches!(guest.try_service(), Err(DeviceError::Chain(_))));
    guest.service();
    assert!(guest.receive().is_none(), "a stopped device does nothing");
    guest.reboot();
    assert!(connection.host_reads_end());
    guest.serves_on();
}

#[test]
fn a_jumping_available_index_stops_the_device() {
    let mut guest = Guest::new();
    guest.skip_available(TX_QUEUE, QUEUE_SIZE + 1);
    assert!(matches!(guest.try_service(), Err(DeviceError::Ring(_))));
    guest.reboot();
    guest.serves_on();
}

#[test]
fn a_driver_that_waits_is_interrupted_after_a_batch() {
    const BATCH: u16 = 16;
    let mut guest = Guest::new();
    guest.received();
    guest.ask_for_interrupts();
    let before = guest.device.used();
    for guest_port in 0..u32::from(QUEUE_SIZE) {
        assert!(guest.queue_bytes(&Guest::header(Operation::Request, guest_port, 5).emit(), &[]));
    }
    let interrupts = guest.service_once();
    assert!(interrupts.rx && interrupts.tx, "{interrupts:?}");
    let after = guest.device.used();
    assert_eq!([after[0].wrapping_sub(before[0]), after[1].wrapping_sub(before[1])], [BATCH; 2]);
    // What is left wakes the device, and the driver, which does not wait any more, is not interrupted.
    assert!(is_readable(guest.device.fd(), Duration::ZERO));
    assert!(!guest.service_once().any());
}

#[test]
fn a_reset_keeps_connections_for_the_next_driver() {
    let (mut guest, mut connection) = connected();
    let handle = guest.device.handle();
    let listener = handle.listen(1).unwrap();
    guest.device.reset();
    let _waiting = handle.connect(PORT).unwrap();
    guest.device.service_host().unwrap();
    guest.reboot();
    assert!(connection.host_reads_end());
    assert_eq!(guest.operations(), [Operation::Request]);
    let mut connection = guest.connect_from_guest(&listener, 50_000, 1);
    assert_eq!(connection.transfer_to_host(&mut guest, b"again", 5), b"again");
}

#[test]
fn a_connect_cancelled_early_is_never_sent() {
    let mut guest = Guest::without_buffers();
    drop(guest.device.handle().connect(PORT).unwrap());
    guest.service();
    guest.post_all(4096);
    assert_eq!(guest.operations(), []);
    assert_eq!(guest.device.connections(), 0);
}

#[test]
fn a_connect_cancelled_late_is_reset() {
    let mut guest = Guest::new();
    let stream = guest.device.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), [Operation::Request]);
    drop(stream);
    assert_eq!(guest.operations(), [Operation::Rst]);
}

#[test]
fn a_device_that_is_gone_says_so_everywhere() {
    let guest = Guest::new();
    let handle = guest.device.handle();
    let listener = handle.listen(1).unwrap();
    let mut stream = handle.connect(PORT).unwrap();
    drop(guest);
    assert_eq!(handle.connect(PORT).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(handle.listen(2).unwrap_err().kind(), ErrorKind::NotConnected);
    let soon = std::time::Duration::from_secs(10);
    assert_eq!(listener.accept_within(soon).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
}

#[test]
fn reserved_cids_are_refused() {
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32, u64::MAX] {
        assert!(matches!(Device::new(cid), Err(DeviceError::ReservedCid(refused)) if refused == cid));
    }
}
