//! What a hostile guest tries, one by one: what follows is exact, another guest of the process does not notice, and the
//! same device serves an honest connection afterwards.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::io::{ErrorKind, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{
    EVENT_BYTES, EVENT_QUEUE, EVENT_TRANSPORT_RESET, HOST_CID, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TX_QUEUE,
};
use scx_vsock::vsock::test_util::{GUEST_BUFFER_BYTES, MEMORY_BYTES, QUEUE_SIZE, TX_BUFFERS};
use scx_vsock::vsock::{
    BUFFER_BYTES, ChainError, DeviceError, Key, Listener, MAX_BACKLOG, MAX_CONNECTIONS, MAX_RSTS, Rst,
};
use scx_vsock_tests::guest_driver::{CID, Connection, Guest, INDIRECT, NEXT, RawDescriptor, RawRings, WRITE, pattern};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PORT: u32 = 729;

/// A guest that the host is connected to.
fn connected() -> (Guest, Connection) {
    let mut guest = Guest::new();
    let connection = guest.connect_from_host(PORT);
    (guest, connection)
}

/// A guest that is connected to the host's port 1.
fn connected_to_host() -> (Guest, Listener, Connection) {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    let connection = guest.connect_from_guest(&listener, 50_000, 1);
    (guest, listener, connection)
}

/// The reset that a packet of the guest must get.
fn reset_of(packet: &Header) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: CID,
        src_port: packet.dst_port,
        dst_port: packet.src_port,
        socket_type: packet.socket_type,
        op: Operation::Rst.number(),
        ..Header::default()
    }
}

fn headers(guest: &mut Guest) -> Vec<Header> {
    guest.received().iter().map(|packet| packet.header).collect()
}

/// The guest breaks a ring while connections are open on this device and another: this one stops with exactly this
/// error, the other goes on, and this one serves again after a reset.
fn stops_with(what: &str, break_it: impl FnOnce(&mut Guest), expected: &str) {
    let (mut other, mut untouched) = connected();
    let (mut guest, mut connection) = connected();
    break_it(&mut guest);
    assert_eq!(error_of(&mut guest), expected, "{what}");
    guest.service();
    assert!(guest.receive().is_none(), "{what}: a stopped device does nothing");
    assert_eq!(untouched.transfer_to_host(&mut other, b"other", 5), b"other", "{what}");
    guest.reboot();
    assert!(connection.host_reads_end(), "{what}");
    guest.serves_on();
}

/// What the device says of its driver.
fn error_of(guest: &mut Guest) -> String {
    match guest.try_service().unwrap_err() {
        DeviceError::Chain(error) => error.to_string(),
        DeviceError::Ring(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn breaks_transmit_queue(what: &str, descriptors: &[RawDescriptor], expected: ChainError) {
    stops_with(what, |guest| guest.queue_raw(descriptors), &expected.to_string());
}

const AT: u64 = TX_BUFFERS;
const END: u64 = MEMORY_BYTES as u64;

#[test]
fn chains_that_do_not_end_stop_the_device() {
    breaks_transmit_queue("a loop of two", &[(AT, 44, NEXT, 1), (AT, 44, NEXT, 0)], ChainError::Endless);
    breaks_transmit_queue("a loop of one", &[(AT, 44, NEXT, 0)], ChainError::Endless);
    breaks_transmit_queue("a loop without bytes", &[(AT, 0, NEXT, 0)], ChainError::Endless);
}

#[test]
fn chains_that_leave_their_table_stop_the_device() {
    let index = |index| ChainError::Index { index };
    breaks_transmit_queue("a next descriptor that is not", &[(AT, 44, NEXT, QUEUE_SIZE)], index(QUEUE_SIZE));
    stops_with("a head that is not", |guest| guest.make_available(TX_QUEUE, 60_000), &index(60_000).to_string());
}

#[test]
fn indirect_descriptors_stop_the_device() {
    let indirect = ChainError::Indirect { address: AT };
    breaks_transmit_queue("an indirect chain", &[(AT, 16, INDIRECT, 0)], indirect);
    breaks_transmit_queue("an indirect end", &[(AT, 44, NEXT, 1), (AT, 16, INDIRECT, 0)], indirect);
    breaks_transmit_queue("an indirect table of 64 Ki", &[(AT, 0xf_fff0, INDIRECT | NEXT, 0)], indirect);
}

#[test]
fn buffers_that_leave_memory_stop_the_device() {
    let outside = |address, len| ChainError::Outside { address, len };
    breaks_transmit_queue("a header over the end", &[(END - 43, 44, 0, 0)], outside(END - 43, 44));
    breaks_transmit_queue("a payload over the end", &[(AT, 44, NEXT, 1), (END - 1, 2, 0, 0)], outside(END - 1, 2));
    breaks_transmit_queue("an address that wraps", &[(u64::MAX, 2, 0, 0)], outside(u64::MAX, 2));
    breaks_transmit_queue("all that can be asked for", &[(0, u32::MAX, 0, 0)], outside(0, u32::MAX));
}

#[test]
fn buffers_of_the_wrong_direction_stop_the_device() {
    let direction = ChainError::Direction { address: AT };
    breaks_transmit_queue("a writable header", &[(AT, 44, WRITE, 0)], direction);
    breaks_transmit_queue("a writable payload", &[(AT + 100, 44, NEXT, 1), (AT, 10, WRITE, 0)], direction);
    let mut guest = Guest::without_buffers();
    guest.post_raw(&[(AT, 4096, 0, 0)]);
    let _stream = guest.device.handle().connect(PORT).unwrap();
    assert_eq!(error_of(&mut guest), direction.to_string());
    guest.reboot();
    guest.serves_on();
}

#[test]
fn a_jump_of_the_available_index_stops_the_device() {
    let expected = virtio_queue::Error::InvalidAvailRingIndex.to_string();
    for count in [QUEUE_SIZE + 1, 0x8000, 0xffff] {
        stops_with("a jump", |guest| guest.skip_available(TX_QUEUE, count), &expected);
    }
}

/// The guest breaks its event queue, which the device looks at when there is an event.
fn breaks_event_queue(what: &str, break_it: impl FnOnce(&mut Guest), expected: &str) {
    let break_it = |guest: &mut Guest| {
        break_it(guest);
        guest.service();
        guest.device.reset_transport();
    };
    stops_with(what, break_it, expected);
}

#[test]
fn a_broken_event_queue_matters_with_an_event() {
    let outside = ChainError::Outside { address: END - 3, len: EVENT_BYTES };
    // The first buffer that is available names descriptor 0, too.
    for (what, descriptors, expected) in [
        ("a loop", [(AT, 1, NEXT | WRITE, 0)], ChainError::Endless),
        ("a descriptor that is not", [(AT, 1, NEXT | WRITE, QUEUE_SIZE)], ChainError::Index { index: QUEUE_SIZE }),
        ("an indirect table", [(AT, 16, INDIRECT, 0)], ChainError::Indirect { address: AT }),
        ("a buffer over the end", [(END - 3, EVENT_BYTES, WRITE, 0)], outside),
        ("a readable buffer", [(AT, EVENT_BYTES, 0, 0)], ChainError::Direction { address: AT }),
    ] {
        breaks_event_queue(what, |guest| guest.post_event_raw(&descriptors), &expected.to_string());
    }
    let jump = virtio_queue::Error::InvalidAvailRingIndex.to_string();
    breaks_event_queue("a jump", |guest| guest.skip_available(EVENT_QUEUE, QUEUE_SIZE), &jump);
}

/// A guest that has posted receive buffers and none for events.
fn without_event_buffers() -> Guest {
    let mut guest = Guest::without_buffers();
    guest.post_all(4096);
    guest
}

#[test]
fn without_an_event_no_event_buffer_is_needed() {
    let mut guest = without_event_buffers();
    guest.serves_on();
    assert_eq!(guest.take_event(), None);
}

#[test]
fn an_event_without_a_buffer_blocks_until_reset() {
    let mut guest = without_event_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    let mut connection = guest.connect_from_host(PORT);
    let before = guest.device.used();
    guest.device.reset_transport();
    assert!(connection.host_reads_end());
    let request = Guest::header(Operation::Request, 50_000, 1).emit();
    while guest.queue_bytes(&request, &[]) {}
    let mut waiting: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.device.handle().connect(PORT).unwrap()).collect();
    assert_eq!(headers(&mut guest), []);
    let mut refused = guest.device.handle().connect(PORT).unwrap();
    assert_eq!(headers(&mut guest), []);
    assert_eq!(refused.read(&mut [0]).unwrap(), 0, "there are as many as there may be");
    assert_eq!(guest.device.used(), before);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(guest.device.held_bytes(), MAX_CONNECTIONS * size_of::<Key>(), "the turns of those who wait");
    let wait_on = waiting.iter_mut().all(|stream| stream.read(&mut [0]).unwrap_err().kind() == ErrorKind::WouldBlock);
    assert!(wait_on);
    drop(waiting);
    while guest.device.connections() > 0 {
        guest.service();
    }
    guest.reboot();
    assert_eq!(guest.operations(), []);
    guest.serves_on();
}

#[test]
fn a_late_event_buffer_gets_one_event() {
    let mut guest = without_event_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    guest.device.reset_transport();
    let request = Guest::header(Operation::Request, 50_000, 1);
    guest.send(&request, &[]);
    assert_eq!((guest.take_event(), headers(&mut guest)), (None, vec![]));
    guest.post_event(EVENT_BYTES);
    guest.service();
    assert_eq!((guest.take_event(), headers(&mut guest)), (Some(Some(EVENT_TRANSPORT_RESET)), vec![]));
    // Another packet, and a kick, are no event buffer.
    guest.send(&Guest::header(Operation::CreditRequest, 50_000, 1), &[]);
    assert_eq!((guest.take_event(), headers(&mut guest)), (None, vec![]));
    guest.post_event(EVENT_BYTES);
    assert_eq!(guest.operations(), [Operation::Response]);
    let _stream = listener.accept().unwrap();
    assert_eq!(guest.take_event(), None);
    guest.serves_on();
}

#[test]
fn short_event_buffers_are_returned_unused() {
    let mut guest = without_event_buffers();
    guest.device.reset_transport();
    let _waiting = guest.device.handle().connect(PORT).unwrap();
    for size in 0..EVENT_BYTES {
        let mut posted = 0;
        while guest.post_event(size) {
            posted += 1;
        }
        assert_eq!(headers(&mut guest), [], "buffers of {size} bytes");
        let events: Vec<_> = std::iter::from_fn(|| guest.take_event()).collect();
        assert_eq!((posted, events), (QUEUE_SIZE, vec![None; usize::from(QUEUE_SIZE)]), "buffers of {size} bytes");
    }
    guest.post_event(EVENT_BYTES);
    guest.take_transport_reset();
    assert_eq!(guest.operations(), [Operation::Request]);
    guest.serves_on();
}

#[test]
fn unwritten_available_entries_name_descriptor_0() {
    let mut guest = Guest::new();
    // All name descriptor 0, which is empty: packets too short for a header.
    guest.skip_available(TX_QUEUE, QUEUE_SIZE);
    assert_eq!(guest.operations(), []);
    guest.reboot();
    guest.serves_on();
}

#[test]
fn empty_chains_are_returned_unused() {
    let mut guest = Guest::without_buffers();
    guest.queue_raw(&[(AT, 0, NEXT, 1), (u64::MAX, 0, NEXT, 2), (0, 0, 0, 0)]);
    guest.post_raw(&[(AT, 0, NEXT | WRITE, 1), (AT, 0, WRITE, 0)]);
    let _stream = guest.device.handle().connect(PORT).unwrap();
    guest.service();
    assert!(guest.receive().is_none(), "nothing was written");
    guest.reboot();
    guest.serves_on();
}

#[test]
fn a_chain_may_cross_regions_but_no_hole() {
    const MIB: usize = 1 << 20;
    let hole = MEMORY_BYTES as u64 + MIB as u64;
    let memory = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), MEMORY_BYTES),
        (GuestAddress(END), MIB),
        (GuestAddress(hole + MIB as u64), MIB),
    ])
    .unwrap();
    let mut guest = Guest::in_memory(memory);
    guest.post_all(4096);
    let mut connection = guest.connect_from_host(PORT);
    let data = pattern(1000);
    let len = 1000;
    let header = Header { len, ..connection.header(Operation::ReadWrite) };
    let bytes = [&header.emit()[..], &data].concat();
    for before in [1, 43, 44, 45, 500] {
        guest.memory().write_slice(&bytes, GuestAddress(END - before)).unwrap();
        guest.queue_raw(&[(END - before, 44 + len, 0, 0)]);
        guest.service();
        assert_eq!(connection.read_host(), data, "{before} bytes in the first region");
    }
    guest.memory().write_slice(&bytes[..50], GuestAddress(hole - 50)).unwrap();
    guest.queue_raw(&[(hole - 50, 51, 0, 0)]);
    let expected = ChainError::Outside { address: hole - 50, len: 51 };
    assert_eq!(error_of(&mut guest), expected.to_string());
    guest.reboot();
    guest.serves_on();
}

#[test]
fn a_payload_may_use_all_descriptors() {
    let (mut guest, mut connection) = connected();
    let data = pattern(usize::from(QUEUE_SIZE) - 1);
    let header = Header { len: u32::from(QUEUE_SIZE) - 1, ..connection.header(Operation::ReadWrite) };
    let cuts: Vec<usize> = (Header::BYTES..Header::BYTES + data.len()).collect();
    assert!(guest.queue_bytes(&[&header.emit()[..], &data].concat(), &cuts));
    guest.service();
    assert_eq!(connection.read_host(), data);
    guest.serves_on();
}

#[test]
fn a_header_may_be_split_at_every_byte() {
    let mut guest = Guest::new();
    let packet = Guest::header(Operation::Request, 77, 78);
    let cuts: Vec<usize> = (1..Header::BYTES).collect();
    assert!(guest.queue_bytes(&packet.emit(), &cuts));
    assert_eq!(headers(&mut guest), [reset_of(&packet)]);
    assert!(guest.queue_bytes(&packet.emit()[..Header::BYTES - 1], &cuts));
    assert_eq!(headers(&mut guest), []);
    guest.serves_on();
}

#[test]
fn a_length_beyond_the_chain_is_reset() {
    for len in [6, 100, BUFFER_BYTES, u32::MAX] {
        let (mut guest, mut connection) = connected();
        let lie = Header { len, ..connection.header(Operation::ReadWrite) };
        guest.send(&lie, b"short");
        assert_eq!(headers(&mut guest), [reset_of(&lie)], "{len} bytes");
        assert_eq!(connection.read_host(), b"", "{len} bytes");
        assert!(connection.host_reads_end());
        guest.serves_on();
    }
}

#[test]
fn payload_before_the_response_is_reset() {
    let mut guest = Guest::new();
    let mut stream = guest.device.handle().connect(PORT).unwrap();
    let request = headers(&mut guest).pop().unwrap();
    let payload = Header { len: 1, ..Guest::header(Operation::ReadWrite, PORT, request.src_port) };
    guest.send(&payload, b"x");
    assert_eq!(headers(&mut guest), [reset_of(&payload)]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    // Too late.
    let response = Guest::header(Operation::Response, PORT, request.src_port);
    guest.send(&response, &[]);
    assert_eq!(headers(&mut guest), [reset_of(&response)]);
    guest.serves_on();
}

/// Takes no more than its share of a long transmit queue in one call, and sends what there is to send meanwhile.
#[test]
fn a_busy_transmit_queue_delays_no_payload() {
    let (mut guest, connection) = connected();
    let header = Header { len: BUFFER_BYTES, ..Guest::header(Operation::ReadWrite, 77, 78) };
    let bytes = [&header.emit()[..], &pattern(BUFFER_BYTES as usize)].concat();
    let mut queued = 0;
    while guest.queue_bytes(&bytes, &[Header::BYTES]) {
        queued += 1;
    }
    (&connection.stream).write_all(b"payload").unwrap();
    let [_, before, _] = guest.device.used();
    let _interrupts = guest.service_once();
    let taken = guest.device.used()[1].wrapping_sub(before);
    assert!(taken < queued, "{taken} packets of {BUFFER_BYTES} bytes in one call");
    let packets: Vec<_> = std::iter::from_fn(|| guest.receive()).collect();
    assert!(packets.iter().any(|packet| packet.payload == b"payload"), "{packets:?}");
    // What is left wakes the device.
    while guest.device.used()[1].wrapping_sub(before) < queued {
        let is_woken = poll(&mut [PollFd::new(&guest.device.fd(), PollFlags::IN)], Some(&Timespec::default())).unwrap();
        assert_eq!(is_woken, 1);
        guest.received();
    }
    guest.serves_on();
}

#[test]
fn without_receive_buffers_the_rst_queue_fills() {
    let mut guest = Guest::without_buffers();
    let mut sent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        loop {
            let packet = Guest::header(Operation::Request, 77 + u32::try_from(sent.len()).unwrap(), 78);
            if !guest.queue_bytes(&packet.emit(), &[]) {
                break;
            }
            sent.push(packet);
        }
        guest.service();
    }
    let [_, taken, _] = guest.device.used().map(usize::from);
    assert_eq!((taken, sent.len()), (MAX_RSTS, MAX_RSTS + usize::from(QUEUE_SIZE)));
    assert_eq!(guest.device.held_bytes(), MAX_RSTS * size_of::<Rst>());
    assert_eq!(headers(&mut guest), [], "it rests");
    guest.post_all(4096);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let more = headers(&mut guest);
        assert!(!more.is_empty(), "{} of {} are answered", got.len(), sent.len());
        got.extend(more);
    }
    assert_eq!(got, sent.iter().map(reset_of).collect::<Vec<_>>());
    assert_eq!(headers(&mut guest), []);
    guest.serves_on();
}

#[test]
fn without_receive_buffers_each_is_reset_once() {
    let mut guest = Guest::without_buffers();
    let packets = [77, 78, 79].map(|port| Guest::header(Operation::ReadWrite, port, 80));
    let mut sent = 0;
    for _ in 0..100 {
        while guest.queue_bytes(&packets[sent % packets.len()].emit(), &[]) {
            sent += 1;
        }
        // A turn may end by its time.
        while usize::from(guest.device.used()[1]) < sent {
            guest.service();
        }
    }
    assert_eq!(sent, 100 * usize::from(QUEUE_SIZE));
    assert_eq!(guest.device.held_bytes(), packets.len() * size_of::<Rst>());
    guest.post_all(4096);
    assert_eq!(headers(&mut guest), packets.map(|packet| reset_of(&packet)));
    guest.serves_on();
}

#[test]
fn packets_of_no_connection_get_one_rst() {
    let mut guest = Guest::new();
    for operation in [
        Operation::Response,
        Operation::Shutdown,
        Operation::ReadWrite,
        Operation::CreditUpdate,
        Operation::CreditRequest,
        Operation::Request,
    ] {
        let packet = Guest::header(operation, 77, 78);
        guest.send(&packet, &[]);
        assert_eq!(headers(&mut guest), [reset_of(&packet)], "{operation:?}");
    }
    guest.send(&Guest::header(Operation::Rst, 77, 78), &[]);
    assert_eq!(headers(&mut guest), []);
    guest.serves_on();
}

#[test]
fn other_socket_types_leave_streams_alone() {
    let (mut guest, mut connection) = connected();
    for socket_type in [0, 2, 3, 0xffff] {
        for op in [1, 2, 4, 5, 6, 7, 0, 8, 0xffff] {
            let packet = Header { socket_type, op, ..connection.header(Operation::Request) };
            guest.send(&packet, &[]);
            assert_eq!(headers(&mut guest), [reset_of(&packet)], "type {socket_type}, operation {op}");
        }
        guest.send(&Header { socket_type, ..connection.header(Operation::Rst) }, &[]);
        assert_eq!(headers(&mut guest), [], "a reset is never answered");
    }
    assert_eq!(connection.transfer_to_host(&mut guest, b"still", 5), b"still");
    guest.serves_on();
}

#[test]
fn every_unknown_operation_ends_its_stream() {
    for op in [0, 8, 0xffff] {
        let (mut guest, mut connection) = connected();
        let packet = Header { op, ..connection.header(Operation::Request) };
        guest.send(&packet, &[]);
        assert_eq!(headers(&mut guest), [reset_of(&packet)], "operation {op}");
        assert!(connection.host_reads_end());
        guest.serves_on();
    }
}

#[test]
fn wrong_cids_are_dropped_without_a_word() {
    let (mut guest, mut connection) = connected();
    let honest = Header { len: 1, ..connection.header(Operation::ReadWrite) };
    let wrong = [0, 1, u64::from(u32::MAX), u64::MAX, CID + 1, CID | 1 << 32];
    let sources = wrong.iter().chain(&[HOST_CID]).map(|&src_cid| Header { src_cid, ..honest });
    let destinations = wrong.iter().chain(&[CID]).map(|&dst_cid| Header { dst_cid, ..honest });
    for packet in sources.chain(destinations) {
        guest.send(&packet, b"x");
        assert_eq!(headers(&mut guest), [], "{packet:?}");
    }
    assert_eq!(connection.read_host(), b"");
    guest.serves_on();
}

#[test]
fn a_request_for_a_connection_that_is_there_ends_it() {
    let (mut guest, listener, mut connection) = connected_to_host();
    let request = connection.header(Operation::Request);
    guest.send(&request, &[]);
    assert_eq!(headers(&mut guest), [reset_of(&request)]);
    assert!(connection.host_reads_end());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    guest.serves_on();
}

#[test]
fn payload_after_a_shutdown_is_judged_by_direction() {
    for (flags, sends) in [(SHUTDOWN_SEND, false), (SHUTDOWN_RECEIVE, true), (0, true), (!SHUTDOWN_SEND, true)] {
        let (mut guest, _listener, mut connection) = connected_to_host();
        let shutdown = Header { flags, ..connection.header(Operation::Shutdown) };
        guest.send(&shutdown, &[]);
        // What the guest will not receive, the host will not send.
        let received: Vec<u32> = headers(&mut guest).iter().map(|header| header.flags).collect();
        let expected: &[u32] = if flags & SHUTDOWN_RECEIVE == 0 { &[] } else { &[SHUTDOWN_SEND] };
        assert_eq!(received, expected, "flags {flags:#x}");
        connection.write(&mut guest, b"x");
        let expected: &[Header] = if sends { &[] } else { &[reset_of(&shutdown)] };
        assert_eq!(headers(&mut guest), expected, "flags {flags:#x}");
        assert_eq!(connection.read_host(), if sends { &b"x"[..] } else { b"" }, "flags {flags:#x}");
        guest.serves_on();
    }
}

#[test]
fn payload_after_a_draining_close_is_reset() {
    let (mut guest, _listener, mut connection) = connected_to_host();
    fill(&mut guest, &mut connection);
    let sent = connection.sent as usize;
    let shutdown = Header { flags: SHUTDOWN_BOTH, ..connection.header(Operation::Shutdown) };
    for _ in 0..2 {
        guest.send(&shutdown, &[]);
        assert_eq!(headers(&mut guest), [], "a program may shut down again what it shut down");
    }
    guest.send(&Header { len: 1, ..connection.header(Operation::ReadWrite) }, b"x");
    assert_eq!(headers(&mut guest), [reset_of(&shutdown)]);
    let mut got = 0;
    while guest.device.connections() > 0 {
        let more = connection.read_host().len();
        assert!(more > 0, "{got} of {sent} bytes");
        got += more;
        guest.service();
    }
    got += connection.read_host().len();
    assert!(got == sent && connection.host_reads_end(), "{got} of {sent} bytes");
    assert_eq!(headers(&mut guest), [reset_of(&shutdown)]);
    guest.serves_on();
}

/// The guest sends while the host reads nothing, until it has no credit and gets none when it asks.
fn fill(guest: &mut Guest, connection: &mut Connection) {
    loop {
        let data = pattern((connection.credit() as usize).min(60_000));
        connection.write(guest, &data);
        guest.send(&connection.header(Operation::CreditRequest), &[]);
        for packet in guest.received() {
            connection.on_packet(&packet.header);
        }
        if connection.credit() == 0 {
            break;
        }
    }
}

#[test]
fn payload_over_credit_is_reset() {
    for len in [1, BUFFER_BYTES, u32::MAX] {
        let (mut guest, _listener, mut connection) = connected_to_host();
        fill(&mut guest, &mut connection);
        let packet = Header { len, ..connection.header(Operation::ReadWrite) };
        let payload = pattern(len.min(BUFFER_BYTES) as usize);
        guest.send(&packet, &payload);
        assert_eq!(headers(&mut guest), [reset_of(&packet)], "{len} bytes");
        guest.serves_on();
    }
}

#[test]
fn a_guest_without_a_buffer_gets_no_byte() {
    let (mut guest, _listener, mut connection) = connected_to_host();
    connection.buf_alloc = 0;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    connection.stream.write_all(b"waits").unwrap();
    assert_eq!(guest.operations(), [Operation::CreditRequest]);
    for _ in 0..100 {
        guest.send(&connection.header(Operation::CreditUpdate), &[]);
        assert_eq!(guest.operations(), []);
    }
    connection.buf_alloc = 5;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    assert_eq!(guest.received()[0].payload, b"waits");
    guest.serves_on();
}

#[test]
fn a_buffer_below_bytes_in_flight_is_no_credit() {
    let (mut guest, _listener, mut connection) = connected_to_host();
    connection.stream.write_all(&pattern(1000)).unwrap();
    guest.received();
    for buf_alloc in [999, 1, 0, 1000] {
        connection.buf_alloc = buf_alloc;
        guest.send(&connection.header(Operation::CreditUpdate), &[]);
        connection.stream.write_all(b"x").unwrap();
        assert!(guest.received().iter().all(|packet| packet.payload.is_empty()), "a buffer of {buf_alloc}");
    }
    connection.buf_alloc = 1004;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    assert_eq!(guest.received()[0].payload, b"xxxx");
    guest.serves_on();
}

#[test]
fn a_huge_guest_buffer_costs_nothing() {
    let mut guest = Guest::without_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    let request = Header { buf_alloc: u32::MAX, ..Guest::header(Operation::Request, 50_000, 1) };
    guest.send(&request, &[]);
    let mut stream = listener.accept().unwrap();
    // The guest reads nothing: the host's own socket is all that takes its bytes, and then its writes block.
    let mut written = 0;
    let chunk = pattern(64 * 1024);
    let error = loop {
        match stream.write(&chunk) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
        guest.service();
        assert!(written < 1 << 20, "somebody else holds what was written");
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(stream);
    guest.post_all(4096);
    guest.serves_on();
}

#[test]
fn an_impossible_fwd_cnt_is_no_credit() {
    let (mut guest, _listener, mut connection) = connected_to_host();
    for ahead in [1, 1000, 1 << 31, u32::MAX - GUEST_BUFFER_BYTES] {
        connection.fwd_cnt = ahead;
        guest.send(&connection.header(Operation::CreditUpdate), &[]);
        connection.stream.write_all(b"x").unwrap();
        assert!(guest.received().iter().all(|packet| packet.payload.is_empty()), "{ahead} bytes ahead");
    }
    connection.fwd_cnt = 0;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    assert_eq!(guest.received()[0].payload, b"xxxx");
    guest.serves_on();
}

#[test]
fn unsent_credit_updates_are_one() {
    let mut guest = Guest::without_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    guest.send(&Guest::header(Operation::Request, 50_000, 1), &[]);
    let stream = listener.accept().unwrap();
    let request = Guest::header(Operation::CreditRequest, 50_000, 1).emit();
    for _ in 0..100 {
        while guest.queue_bytes(&request, &[]) {}
        guest.service();
    }
    guest.post_all(4096);
    assert_eq!(guest.operations(), [Operation::Response], "which carries the credit");
    guest.send(&Guest::header(Operation::CreditRequest, 50_000, 1), &[]);
    assert_eq!(guest.operations(), [Operation::CreditUpdate]);
    drop(stream);
    guest.serves_on();
}

#[test]
fn withdrawn_requests_leave_no_packet() {
    let mut guest = Guest::without_buffers();
    let listener = guest.device.handle().listen(1).unwrap();
    for _ in 0..10_000 {
        guest.send(&Guest::header(Operation::Request, 50_000, 1), &[]);
        guest.send(&Guest::header(Operation::Rst, 50_000, 1), &[]);
        assert_eq!(listener.accept().unwrap().read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(guest.device.connections(), 0);
    guest.post_all(4096);
    assert_eq!(guest.operations(), []);
    guest.serves_on();
}

#[test]
fn a_backlog_of_ended_connections_is_bounded() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    let mut refused = 0;
    for guest_port in 0..200 {
        guest.send(&Guest::header(Operation::Request, guest_port, 1), &[]);
        let payload = Header { len: 4, ..Guest::header(Operation::ReadWrite, guest_port, 1) };
        guest.send(&payload, &guest_port.to_le_bytes());
        guest.send(&Guest::header(Operation::Rst, guest_port, 1), &[]);
        refused += guest.operations().iter().filter(|&&operation| operation == Operation::Rst).count();
    }
    assert_eq!(guest.device.connections(), 0);
    let accepted: Vec<_> = std::iter::from_fn(|| listener.accept().ok()).collect();
    assert_eq!(accepted.len(), MAX_BACKLOG);
    // The request and the payload behind it.
    assert_eq!(refused, 2 * (200 - MAX_BACKLOG));
    for (guest_port, mut stream) in (0u32..).zip(accepted) {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, guest_port.to_le_bytes());
    }
    guest.serves_on();
}

#[test]
fn unconfirmed_closes_are_evicted() {
    let mut guest = Guest::new();
    let streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.connect_from_host(PORT).stream).collect();
    drop(streams);
    while !guest.received().is_empty() {}
    assert_eq!(guest.device.connections(), MAX_CONNECTIONS);
    let _stream = guest.device.handle().connect(PORT).unwrap();
    let operations = guest.operations();
    assert_eq!(operations, [Operation::Rst, Operation::Request]);
    assert_eq!(guest.device.connections(), MAX_CONNECTIONS);
    guest.serves_on();
}

#[test]
fn a_full_table_refuses_host_and_guest() {
    let mut guest = Guest::new();
    let listener = guest.device.handle().listen(1).unwrap();
    let mut connections: Vec<Connection> = (0..MAX_CONNECTIONS).map(|_| guest.connect_from_host(PORT)).collect();
    let request = Guest::header(Operation::Request, 50_000, 1);
    guest.send(&request, &[]);
    assert_eq!(headers(&mut guest), [reset_of(&request)]);
    assert!(listener.accept().is_err());
    let mut stream = guest.device.handle().connect(PORT).unwrap();
    assert_eq!(headers(&mut guest), []);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    let last = connections.last_mut().unwrap();
    assert_eq!(last.transfer_to_host(&mut guest, b"still", 5), b"still");
    drop(connections);
    while !guest.received().is_empty() {}
    guest.serves_on();
}

/// More than the counters hold.
const ROUND_AND_MORE: u64 = (1 << 32) + (1 << 20);

#[test]
fn counters_to_the_host_may_wrap() {
    let (mut guest, _listener, mut connection) = connected_to_host();
    let payload = pattern(200_000);
    let mut left = ROUND_AND_MORE;
    while left > 0 {
        let most = (connection.credit() as usize).min(payload.len()).min(usize::try_from(left).unwrap());
        connection.write(&mut guest, &payload[..most]);
        left -= most as u64;
        let got = connection.read_host();
        assert!(got == payload[..most], "{left} bytes before the end");
        for packet in guest.received() {
            assert_eq!(packet.operation(), Operation::CreditUpdate);
            connection.on_packet(&packet.header);
        }
    }
    assert_eq!(u64::from(connection.sent) + (1 << 32), ROUND_AND_MORE);
    // To the last byte of credit, and not one more.
    fill(&mut guest, &mut connection);
    connection.write(&mut guest, b"x");
    assert_eq!(guest.operations(), [Operation::Rst]);
    guest.serves_on();
}

#[test]
fn counters_to_the_guest_may_wrap() {
    let mut guest = Guest::without_buffers();
    guest.post_all(0x1_0000);
    let mut connection = guest.connect_from_host(PORT);
    let chunk = pattern(200_000);
    let mut left = ROUND_AND_MORE;
    while left > 0 {
        let most = left.min(chunk.len() as u64);
        connection.stream.write_all(&chunk[..usize::try_from(most).unwrap()]).unwrap();
        let sizes = guest.received().iter().map(|packet| packet.header.len).sum::<u32>();
        assert_eq!(u64::from(sizes), most, "{left} bytes before the end");
        left -= most;
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(sizes);
        guest.send(&connection.header(Operation::CreditUpdate), &[]);
    }
    assert_eq!(u64::from(connection.fwd_cnt) + (1 << 32), ROUND_AND_MORE);
    connection.buf_alloc = 10;
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    connection.stream.write_all(&chunk[..11]).unwrap();
    let packets = guest.received();
    assert_eq!(packets[0].payload, chunk[..10]);
    assert_eq!(packets[1].operation(), Operation::CreditRequest);
    guest.serves_on();
}
