//! The muxer packet for packet, between a guest that is written here and the host's ends of its streams.

use std::array;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::endpoint::hybrid::ok_line;
use crate::vsock::chain::{Direction, gather};
use crate::vsock::connecting::ConnectError;
use crate::vsock::connection::CLOSE_TIMEOUT;
use crate::vsock::device::allow_all_descriptors;
use crate::vsock::handle::Handle;
use crate::vsock::limits::{MAX_PORT_CONNECTIONS, SEND_BUFFER_BYTES};
use crate::vsock::listener::{Listener, MAX_BACKLOG};
use crate::vsock::policy::GuestPolicy;
use crate::vsock::poller::MAX_EVENTS;
use crate::vsock::schedule::MAX_UNANSWERED;
use crate::vsock::spec::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

const CID: u64 = 3;
/// The guest's port where the host connects, and its buffer.
const PORT: u32 = 729;
const GUEST_BUFFER: u32 = 256 * 1024;
/// The host's port where the guest connects.
const HOST_PORT: u32 = 7290;
/// Payload that a receive buffer has room for.
const ROOM: usize = 4096;

const MEMORY: usize = 1 << 20;
const RING: GuestAddress = GuestAddress(0x1_0000);
const BUFFER: GuestAddress = GuestAddress(0x2_0000);
const PAYLOAD: GuestAddress = GuestAddress(BUFFER.0 + 44);
const WRITE: u16 = 2;

/// A muxer between both sides.
struct Bench {
    memory: GuestMemoryMmap<()>,
    muxer: Muxer,
    handle: Handle,
}

impl Bench {
    fn new() -> Self {
        let host_side = Arc::new(HostSide::new().unwrap());
        host_side.set_policy(unpaced());
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            muxer: Muxer::new(CID, Arc::clone(&host_side)).unwrap(),
            handle: Handle::new(host_side, CID),
        }
    }

    /// The guest sends a packet, in a chain that has room for this payload.
    fn send(&mut self, packet: &Header, payload: &[u8]) {
        self.memory.write_slice(payload, PAYLOAD).unwrap();
        with_chain(&self.memory, payload.len(), Direction::Readable, |chain| {
            self.muxer.process(&[GuestPacket { head: 0, header: *packet, chain }]);
        });
    }

    fn send_control(&mut self, key: Key, operation: Operation) {
        self.send(&packet(key, operation), &[]);
    }

    /// The guest sends no more, receives no more, or both.
    fn shut_down(&mut self, key: Key, flags: u32) {
        self.send(&Header { flags, ..packet(key, Operation::Shutdown) }, &[]);
    }

    fn send_payload(&mut self, key: Key, payload: &[u8]) {
        self.send(&payload_packet(key, payload.len()), payload);
    }

    /// The next packet that the guest is owed, with its payload.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let packets = with_chain(&self.memory, ROOM, Direction::Writable, |chain| self.muxer.dispatch(&[chain]));
        let packet = *packets.first()?;
        let mut payload = vec![0; usize::try_from(packet.len).unwrap()];
        self.memory.read_slice(&mut payload, PAYLOAD).unwrap();
        Some((packet, payload))
    }

    /// All packets that the guest is owed, of which there are not too many.
    fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let packets: Vec<_> = std::iter::from_fn(|| self.receive()).take(MAX_CONNECTIONS * 2).collect();
        assert!(!self.muxer.has_packets());
        packets
    }

    /// The one packet that the guest is owed.
    fn only(&mut self) -> (Header, Vec<u8>) {
        let mut received = self.received();
        assert_eq!(received.len(), 1, "{received:?}");
        received.remove(0)
    }

    /// What those packets are, and of which connections.
    fn sent(&mut self) -> Vec<(Operation, Key)> {
        self.received().iter().map(|(packet, _)| (operation(packet), key_of(packet))).collect()
    }

    /// Their payloads.
    fn sent_payload(&mut self) -> Vec<u8> {
        self.received().into_iter().flat_map(|(_, payload)| payload).collect()
    }

    fn poll(&mut self) {
        self.muxer.poll().unwrap();
    }

    /// Takes all events of a full device.
    fn poll_all(&mut self) {
        (0..=MAX_CONNECTIONS / MAX_EVENTS).for_each(|_| self.poll());
    }

    /// The connection that the guest is asked for, and for nothing else.
    fn requested(&mut self) -> Key {
        let (request, _) = self.only();
        assert_eq!(operation(&request), Operation::Request);
        key_of(&request)
    }

    /// The host asks for a connection, and the guest has not answered.
    fn request(&mut self, port: u32) -> (UnixStream, Key) {
        let stream = self.handle.connect(port).unwrap();
        self.poll();
        let key = self.requested();
        assert_eq!(key.guest_port, port);
        (stream, key)
    }

    /// A program asks for a connection, and the guest has not answered.
    fn attach(&mut self) -> (UnixStream, Key) {
        let (program, device) = UnixStream::pair().unwrap();
        program.set_nonblocking(true).unwrap();
        self.handle.attach(PORT, device, ok_line).unwrap();
        self.poll();
        (program, self.requested())
    }

    /// A connection that the host asked for.
    fn connect(&mut self, port: u32) -> (UnixStream, Key) {
        let (stream, key) = self.request(port);
        self.send_control(key, Operation::Response);
        assert_eq!(self.sent(), []);
        (stream, key)
    }

    fn listen(&self) -> Listener {
        self.handle.listen(HOST_PORT).unwrap()
    }

    /// A connection that the guest asked for.
    fn accept(&mut self, listener: &Listener, key: Key) -> UnixStream {
        self.send_control(key, Operation::Request);
        assert_eq!(self.sent(), [(Operation::Response, key)]);
        listener.accept().unwrap()
    }

    /// A connection whose guest has sent all that it may, more than the host's socket has room for, in a chain that is
    /// longer still.
    fn fill_tx_buf(&mut self) -> (UnixStream, Key) {
        let (stream, key) = self.connect(PORT);
        self.send(&payload_packet(key, pattern().len()), &[pattern(), vec![0xff; 100]].concat());
        assert_eq!(self.muxer.held_bytes() - self.muxer.schedule.ready().len() * size_of::<Key>(), pattern().len());
        assert_eq!(self.sent(), [(Operation::CreditUpdate, key)]);
        (stream, key)
    }

    /// A connection whose SHUTDOWN the guest was sent, and when its RST is overdue.
    fn closing(&mut self, port: u32) -> (Key, Instant) {
        let (stream, key) = self.connect(port);
        drop(stream);
        self.poll();
        let before = Instant::now();
        assert_eq!(self.sent(), [(Operation::Shutdown, key)]);
        let overdue_at = self.muxer.connections[&key].connection.deadline().unwrap();
        assert!((before + CLOSE_TIMEOUT..=Instant::now() + CLOSE_TIMEOUT).contains(&overdue_at));
        (key, overdue_at)
    }

    /// A device without a place for one more connection, and the host's ends: first those of all that the guest may have
    /// to a port.
    fn full() -> (Self, Vec<UnixStream>) {
        allow_all_descriptors();
        let mut bench = Self::new();
        let listener = bench.listen();
        let of_port = u32::try_from(MAX_PORT_CONNECTIONS).unwrap();
        let mut streams: Vec<_> =
            (0..of_port).map(|guest_port| bench.accept(&listener, from_guest(guest_port))).collect();
        streams.extend((MAX_PORT_CONNECTIONS..MAX_CONNECTIONS).map(|_| bench.connect(PORT).0));
        assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
        (bench, streams)
    }
}

/// Runs `check` with a chain of a header and so many bytes of payload.
fn with_chain<T>(
    memory: &GuestMemoryMmap<()>,
    payload: usize,
    direction: Direction,
    check: impl FnOnce(Chain<'_, ()>) -> T,
) -> T {
    let ring = MockSplitQueue::create(memory, RING, 16);
    let flags = if direction == Direction::Writable { WRITE } else { 0 };
    let len = u32::try_from(Header::BYTES + payload).unwrap();
    ring.desc_table().store(0, RawDescriptor::from(Descriptor::new(BUFFER.0, len, flags, 0))).unwrap();
    let queue: Queue = ring.create_queue().unwrap();
    check(gather(memory, &queue, 0, direction).unwrap())
}

/// The connection that the guest's port asks for.
fn from_guest(guest_port: u32) -> Key {
    Key { host_port: HOST_PORT, guest_port }
}

/// The connection that a packet to the guest is about.
/// The default policy, without a pace of refusals.
fn unpaced() -> GuestPolicy {
    GuestPolicy::default().refusals_per_second(u32::MAX)
}

fn key_of(packet: &Header) -> Key {
    Key { host_port: packet.src_port, guest_port: packet.dst_port }
}

fn operation(packet: &Header) -> Operation {
    Operation::parse(packet.op).unwrap()
}

/// A packet of the guest.
fn packet(key: Key, operation: Operation) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: key.guest_port,
        dst_port: key.host_port,
        socket_type: TYPE_STREAM,
        op: operation.number(),
        buf_alloc: GUEST_BUFFER,
        ..Header::default()
    }
}

fn payload_packet(key: Key, len: usize) -> Header {
    Header { len: u32::try_from(len).unwrap(), ..packet(key, Operation::ReadWrite) }
}

/// All bytes that a guest may send to a host that reads none.
fn pattern() -> Vec<u8> {
    (0..BUFFER_BYTES).map(|index| (index % 251) as u8).collect()
}

fn write(mut stream: &UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

/// The host cannot write, since the guest's side takes nothing any more.
fn is_broken(mut stream: &UnixStream) -> bool {
    stream.write(b"x").is_err_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// What is there for the host to read, and whether the end is.
fn read(mut stream: &UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => (bytes, false),
        Err(error) => panic!("{error}"),
    }
}

fn has_ended(stream: &UnixStream) -> bool {
    read(stream) == (Vec::new(), true)
}

fn is_open_and_silent(stream: &UnixStream) -> bool {
    read(stream) == (Vec::new(), false)
}

#[test]
fn host_ports_ascend_and_wrap() {
    let mut bench = Bench::new();
    assert_eq!(bench.muxer.next_port(), 0x4000_0000);
    let open: [_; 2] = array::from_fn(|_| bench.connect(PORT));
    assert_eq!(open.each_ref().map(|(_, key)| key.host_port), [0x4000_0000, 0x4000_0001]);
    assert!(bench.muxer.set_next_port(0x7fff_fffe));
    // The first ones are taken still.
    let further: [_; 3] = array::from_fn(|_| bench.connect(PORT));
    assert_eq!(further.each_ref().map(|(_, key)| key.host_port), [0x7fff_fffe, 0x7fff_ffff, 0x4000_0002]);
    assert_eq!(bench.muxer.next_port(), 0x4000_0003);
}

#[test]
fn a_host_port_is_taken_per_guest_port() {
    let mut bench = Bench::new();
    let (_one, key) = bench.connect(PORT);
    assert!(bench.muxer.set_next_port(key.host_port));
    let (_other, other) = bench.connect(PORT + 1);
    assert_eq!(other, Key { guest_port: PORT + 1, ..key });
}

#[test]
fn other_next_ports_are_refused() {
    let mut bench = Bench::new();
    for port in [0, 0x3fff_ffff, 0x8000_0000, u32::MAX] {
        assert!(!bench.muxer.set_next_port(port));
    }
    assert_eq!(bench.muxer.next_port(), 0x4000_0000);
}

#[test]
fn packets_have_the_ports_of_their_connection() {
    let mut bench = Bench::new();
    let listener = bench.handle.listen(0x8123_4567).unwrap();
    let asked_for = Key { host_port: 0x8123_4567, guest_port: 0x89ab_cdef };
    let connections = [
        bench.connect(0),
        bench.connect(0xfedc_ba98),
        bench.connect(u32::MAX),
        (bench.accept(&listener, asked_for), asked_for),
    ];
    for (stream, key) in &connections {
        write(stream, b"to the guest");
        bench.poll();
        let (packet, payload) = bench.only();
        assert_eq!(
            (operation(&packet), key_of(&packet), payload),
            (Operation::ReadWrite, *key, b"to the guest".to_vec())
        );
        bench.send_payload(*key, b"to the host");
        assert_eq!(read(stream), (b"to the host".to_vec(), false));
    }
}

#[test]
fn ready_connections_take_turns() {
    let mut bench = Bench::new();
    let connections: [_; 3] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, &[1; 3 * ROOM]);
    }
    bench.poll();
    assert_eq!(bench.muxer.schedule.ready().len(), 3);
    let sent = bench.sent();
    let round = connections.each_ref().map(|&(_, key)| (Operation::ReadWrite, key));
    assert_eq!(sent, [round, round, round].concat());
}

#[test]
fn a_connection_is_queued_once() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for _ in 0..3 {
        write(&stream, b"x");
        bench.poll();
        bench.send_control(key, Operation::CreditRequest);
        assert_eq!(bench.muxer.schedule.ready(), &[key]);
    }
    assert_eq!(bench.sent(), [(Operation::CreditUpdate, key), (Operation::ReadWrite, key)]);
}

#[test]
fn resets_take_turns_with_connections() {
    let mut bench = Bench::new();
    let connections: [_; 2] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, &[1; 2 * ROOM]);
    }
    bench.poll();
    (1..=3).for_each(|port| bench.send_control(from_guest(port), Operation::ReadWrite));
    let [one, other] = connections.each_ref().map(|&(_, key)| (Operation::ReadWrite, key));
    let [first, second, third] = [1, 2, 3].map(|port| (Operation::Rst, from_guest(port)));
    assert_eq!(bench.sent(), [one, other, first, one, other, second, third]);
}

/// A process of the guest connects to closed ports, and each RST makes it connect again.
#[test]
fn a_flood_of_refused_connects_delays_no_payload() {
    for outstanding in [1, 128, 1500] {
        let mut bench = Bench::new();
        let (stream, key) = bench.connect(PORT);
        let mut next = 0..;
        let mut ask = |bench: &mut Bench| {
            let request = packet(from_guest(next.next().unwrap()), Operation::Request);
            if bench.muxer.has_room_for(&request) {
                bench.send(&request, &[]);
            }
        };
        (0..outstanding).for_each(|_| ask(&mut bench));
        write(&stream, &[1; 20 * ROOM]);
        bench.poll();
        let mut since_payload = 0;
        let mut payloads = 0;
        while payloads < 20 {
            let (packet, _) = bench.receive().unwrap();
            if operation(&packet) == Operation::Rst {
                since_payload += 1;
                assert!(since_payload <= 1, "{outstanding}: more than a turn");
                ask(&mut bench);
            } else {
                assert_eq!(key_of(&packet), key);
                (since_payload, payloads) = (0, payloads + 1);
            }
        }
    }
}

#[test]
fn a_removed_connection_does_not_delay_an_rst() {
    let mut bench = Bench::new();
    let connections: [_; 3] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, &[1; 3 * ROOM]);
    }
    bench.poll();
    bench.send_control(from_guest(1), Operation::ReadWrite);
    let [first, second, third] = connections.each_ref().map(|&(_, key)| key);
    bench.send_control(first, Operation::Rst);
    let sent: Vec<_> = bench.sent().into_iter().take(3).collect();
    assert_eq!(sent, [(Operation::ReadWrite, second), (Operation::ReadWrite, third), (Operation::Rst, from_guest(1))]);
}

#[test]
fn requests_wait_for_the_answers_to_64_others() {
    let mut bench = Bench::new();
    let mut streams: Vec<_> = (0..MAX_UNANSWERED + 2).map(|_| bench.handle.connect(PORT).unwrap()).collect();
    bench.poll();
    let requests = bench.sent();
    assert_eq!(requests.len(), MAX_UNANSWERED);
    // Other work goes on.
    bench.send_control(from_guest(1), Operation::ReadWrite);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(1))]);
    let next = |key: Key, ahead| (Operation::Request, Key { host_port: key.host_port + ahead, ..key });
    let last = requests[MAX_UNANSWERED - 1].1;
    bench.send_control(requests[0].1, Operation::Response);
    assert_eq!(bench.sent(), [next(last, 1)]);
    // One that waits can be taken back.
    streams.pop();
    bench.poll();
    bench.send_control(requests[1].1, Operation::Rst);
    assert_eq!((bench.sent(), bench.muxer.has_packets()), (vec![], false));
    assert_eq!(bench.muxer.counters().connections.total(), MAX_UNANSWERED);
}

#[test]
fn held_requests_survive_a_reset() {
    let mut bench = Bench::new();
    let _streams: Vec<_> = (0..MAX_UNANSWERED + 2).map(|_| bench.handle.connect(PORT).unwrap()).collect();
    bench.poll();
    assert_eq!(bench.sent().len(), MAX_UNANSWERED);
    bench.muxer.reset();
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn has_packets_means_rst_or_ready() {
    let mut bench = Bench::new();
    assert_eq!((bench.muxer.has_packets(), bench.receive()), (false, None));
    bench.send_control(from_guest(1), Operation::Request);
    assert!(bench.muxer.has_packets());
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(1))]);
    let (stream, key) = bench.connect(PORT);
    write(&stream, b"x");
    bench.poll();
    assert!(bench.muxer.has_packets());
    assert_eq!(bench.sent(), [(Operation::ReadWrite, key)]);
    bench.send_payload(key, b"nothing owed");
    bench.poll();
    assert!(!bench.muxer.has_packets());
}

#[test]
fn payload_fits_buffer_and_credit() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    let credit = ROOM + 100;
    let gives = |bytes: usize| Header { buf_alloc: u32::try_from(bytes).unwrap(), ..packet(key, Operation::Response) };
    bench.send(&gives(credit), &[]);
    write(&stream, &[7; 3 * ROOM]);
    bench.poll();
    let lengths: Vec<_> = bench.received().iter().map(|(packet, _)| (operation(packet), packet.len)).collect();
    let payload = |len: usize| (Operation::ReadWrite, u32::try_from(len).unwrap());
    assert_eq!(lengths, [payload(ROOM), payload(100), (Operation::CreditRequest, 0)]);
    // The guest was asked: it is not asked again until it has given some.
    bench.send(&Header { op: Operation::CreditUpdate.number(), ..gives(credit) }, &[]);
    assert_eq!(bench.sent(), []);
    bench.send(&Header { op: Operation::CreditUpdate.number(), ..gives(4 * ROOM) }, &[]);
    assert_eq!(bench.sent_payload(), [7; 2 * ROOM - 100]);
}

#[test]
fn held_bytes_counts_buffers_and_queues() {
    let mut bench = Bench::new();
    assert_eq!(bench.muxer.held_bytes(), 0);
    let (_stream, _) = bench.fill_tx_buf();
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024);
    let _wanted: [_; 2] = array::from_fn(|_| bench.handle.connect(PORT).unwrap());
    bench.poll();
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024 + 2 * size_of::<Key>());
    for port in 0..3 {
        bench.send_control(from_guest(port), Operation::Request);
    }
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024 + 2 * size_of::<Key>() + 3 * size_of::<Rst>());
}

#[test]
fn packets_of_another_cid_are_ignored() {
    let mut bench = Bench::new();
    let _listener = bench.listen();
    let (stream, key) = bench.connect(PORT);
    for cids in [(CID + 1, HOST_CID), (CID, HOST_CID + 1), (HOST_CID, CID)] {
        for packet in [packet(from_guest(1), Operation::Request), packet(key, Operation::Rst)] {
            bench.send(&Header { src_cid: cids.0, dst_cid: cids.1, ..packet }, &[]);
        }
    }
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.muxer.connections(), 1);
    assert!(is_open_and_silent(&stream));
}

#[test]
fn another_socket_type_is_refused_alone() {
    let mut bench = Bench::new();
    let _listener = bench.listen();
    let (stream, key) = bench.connect(PORT);
    for (key, operation) in [(from_guest(1), Operation::Request), (key, Operation::Shutdown)] {
        bench.send(&Header { socket_type: 2, ..packet(key, operation) }, &[]);
        let (reset, _) = bench.only();
        assert_eq!((reset.op, reset.socket_type, key_of(&reset)), (Operation::Rst.number(), 2, key));
    }
    // No reset answers a reset.
    bench.send(&Header { socket_type: 2, ..packet(key, Operation::Rst) }, &[]);
    assert_eq!(bench.sent(), []);
    bench.send_payload(key, b"goes on");
    assert_eq!(read(&stream), (b"goes on".to_vec(), false));
}

#[test]
fn an_unknown_operation_resets_its_stream() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for (key, op) in [(from_guest(1), 0), (from_guest(1), 8), (key, 8)] {
        bench.send(&Header { op, ..packet(key, Operation::ReadWrite) }, &[]);
        assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    }
    assert!(has_ended(&stream));
}

#[test]
fn packets_of_no_connection_are_answered_by_rst() {
    let mut bench = Bench::new();
    for number in 1..=7 {
        let operation = Operation::parse(number).unwrap();
        bench.send_control(from_guest(1), operation);
        let expected = if operation == Operation::Rst { vec![] } else { vec![(Operation::Rst, from_guest(1))] };
        assert_eq!(bench.sent(), expected, "{operation:?}");
    }
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn payload_is_no_longer_than_its_chain() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send(&payload_packet(key, 6), b"packet");
    bench.send(&payload_packet(key, 2), b", its chain");
    bench.send(&payload_packet(key, 0), b"not this");
    assert_eq!(bench.sent(), []);
    // A length is nothing where there is no payload.
    bench.send(&Header { len: 1, ..packet(key, Operation::CreditUpdate) }, &[]);
    assert_eq!(bench.sent(), []);
    bench.send(&payload_packet(key, 7), b"packet");
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    assert_eq!(read(&stream), (b"packet, ".to_vec(), true));
}

#[test]
fn a_violation_ends_its_connection_alone() {
    let mut bench = Bench::new();
    let (breaks, key) = bench.connect(PORT);
    let (goes_on, other) = bench.connect(PORT);
    bench.send_control(other, Operation::CreditRequest);
    bench.send_control(key, Operation::CreditRequest);
    bench.send_control(key, Operation::Request);
    assert!(has_ended(&breaks) && is_open_and_silent(&goes_on));
    assert_eq!(bench.sent(), [(Operation::CreditUpdate, other), (Operation::Rst, key)]);
    assert_eq!(bench.muxer.connections(), 1);
}

#[test]
fn a_full_device_refuses_both_sides() {
    let (mut bench, _streams) = Bench::full();
    let key = from_guest(1 << 20);
    bench.send_control(key, Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    let stream = bench.handle.connect(PORT).unwrap();
    bench.poll();
    assert!(has_ended(&stream));
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
}

#[test]
fn closing_connections_are_evicted_first() {
    let (mut bench, mut streams) = Bench::full();
    let [closing, gone] = [from_guest(200), from_guest(100)];
    drop(streams.remove(200));
    bench.poll();
    assert_eq!(bench.sent(), [(Operation::Shutdown, closing)]);
    drop(streams.remove(100));
    bench.poll();
    let connections: [_; 3] = array::from_fn(|_| bench.handle.connect(PORT).unwrap());
    bench.poll();
    assert_eq!(connections.each_ref().map(has_ended), [false, false, true]);
    let before = u32::try_from(MAX_CONNECTIONS - MAX_PORT_CONNECTIONS).unwrap();
    let [one, other] =
        [0x4000_0000 + before, 0x4000_0001 + before].map(|host_port| Key { host_port, guest_port: PORT });
    let requests = [one, other].map(|key| (Operation::Request, key));
    assert_eq!(bench.sent(), [&[(Operation::Rst, closing)], &requests[..], &[(Operation::Rst, gone)]].concat());
    assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
    assert!(streams.iter().all(is_open_and_silent));
}

#[test]
fn a_connection_with_unsent_bytes_is_kept() {
    let (mut bench, mut streams) = Bench::full();
    let key = from_guest(100);
    let gone = streams.remove(100);
    write(&gone, b"answer");
    drop(gone);
    bench.poll();
    let refused = bench.handle.connect(PORT).unwrap();
    bench.poll();
    assert!(has_ended(&refused));
    bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::CreditUpdate) }, &[]);
    let taken = bench.handle.connect(PORT).unwrap();
    bench.poll();
    assert!(is_open_and_silent(&taken));
    assert!(bench.sent().contains(&(Operation::Rst, key)));
}

#[test]
fn a_full_rst_queue_blocks_new_answers() {
    let mut bench = Bench::new();
    for port in 0..1024 {
        assert!(bench.muxer.has_room_for(&packet(from_guest(1024), Operation::Request)));
        bench.send_control(from_guest(port), Operation::Request);
    }
    let has_room = |bench: &Bench, port, operation| bench.muxer.has_room_for(&packet(from_guest(port), operation));
    assert!(!has_room(&bench, 1024, Operation::Request) && !has_room(&bench, 1024, Operation::ReadWrite));
    assert!(has_room(&bench, 1024, Operation::Rst) && has_room(&bench, 1023, Operation::ReadWrite));
    assert_eq!(bench.receive().map(|(packet, _)| key_of(&packet)), Some(from_guest(0)));
    assert!(has_room(&bench, 1024, Operation::Request));
}

#[test]
fn a_queued_rst_spares_a_newer_connection() {
    let mut bench = Bench::new();
    bench.send_control(from_guest(1), Operation::ReadWrite);
    let listener = bench.listen();
    bench.send_control(from_guest(1), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Response, from_guest(1))]);
    assert!(is_open_and_silent(&listener.accept().unwrap()));
}

#[test]
fn a_connection_is_reset_once() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send_control(key, Operation::Request);
    for number in 1..=7 {
        bench.send_control(key, Operation::parse(number).unwrap());
        bench.send_control(from_guest(1), Operation::ReadWrite);
    }
    assert!(has_ended(&stream));
    assert_eq!(bench.sent(), [(Operation::Rst, key), (Operation::Rst, from_guest(1))]);
    bench.send_control(key, Operation::ReadWrite);
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
}

#[test]
fn overdue_closes_are_reset_each_in_time() {
    let mut bench = Bench::new();
    let (first, first_at) = bench.closing(PORT);
    let (second, second_at) = bench.closing(PORT);
    let (_open, _) = bench.connect(PORT);
    assert!(first_at < second_at);
    let moment = Duration::from_nanos(1);
    let mut reset_by = |now: Instant| {
        bench.muxer.reset_overdue(now);
        bench.sent()
    };
    assert_eq!(reset_by(first_at - moment), []);
    assert_eq!(reset_by(first_at), [(Operation::Rst, first)]);
    assert_eq!(reset_by(second_at - moment), []);
    assert_eq!(reset_by(second_at + moment), [(Operation::Rst, second)]);
    assert_eq!(reset_by(second_at + CLOSE_TIMEOUT), []);
    assert_eq!(bench.muxer.connections(), 1);
    // And so are later ones.
    let (third, third_at) = bench.closing(PORT);
    bench.muxer.reset_overdue(third_at);
    assert_eq!(bench.sent(), [(Operation::Rst, third)]);
}

#[test]
fn a_credit_request_does_not_delay_the_deadline() {
    let mut bench = Bench::new();
    let (key, overdue_at) = bench.closing(PORT);
    bench.send_control(key, Operation::CreditRequest);
    assert_eq!(bench.sent(), [(Operation::CreditUpdate, key)]);
    bench.muxer.reset_overdue(overdue_at);
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_confirmed_close_is_removed() {
    let mut bench = Bench::new();
    let (key, overdue_at) = bench.closing(PORT);
    bench.send_control(key, Operation::Rst);
    assert_eq!(bench.muxer.connections(), 0);
    bench.muxer.reset_overdue(overdue_at);
    assert_eq!(bench.sent(), []);
}

#[test]
fn a_poll_resets_what_is_overdue() {
    let mut bench = Bench::new();
    let (key, _) = bench.closing(PORT);
    bench.poll();
    assert_eq!(bench.sent(), []);
    // As if that had been sent that long ago.
    let past = Instant::now();
    bench.muxer.connections.get_mut(&key).unwrap().connection.set_deadline(past);
    bench.muxer.schedule.set_next_deadline(Some(past));
    bench.poll();
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
}

#[test]
fn a_reset_keeps_pending_connects_only() {
    let mut bench = Bench::new();
    let (requested, _) = bench.request(PORT);
    let (established, _) = bench.connect(PORT);
    write(&established, b"unread");
    let wanted = bench.handle.connect(PORT).unwrap();
    bench.poll();
    bench.send_control(from_guest(1), Operation::Request);
    bench.muxer.reset();
    assert!(has_ended(&requested) && is_open_and_silent(&wanted));
    assert!(is_broken(&established));
    assert_eq!((bench.muxer.connections(), bench.muxer.schedule.ready().len()), (1, 1));
    assert_eq!(bench.sent().iter().map(|&(operation, _)| operation).collect::<Vec<_>>(), [Operation::Request]);
}

#[test]
fn clear_ends_all_connections() {
    let mut bench = Bench::new();
    let (established, _) = bench.connect(PORT);
    let wanted = bench.handle.connect(PORT).unwrap();
    bench.poll();
    bench.send_control(from_guest(1), Operation::Request);
    bench.muxer.clear();
    assert!(has_ended(&established) && has_ended(&wanted));
    assert_eq!((bench.muxer.connections(), bench.muxer.held_bytes()), (0, 0));
}

#[test]
fn a_driver_without_streams_has_no_connections() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    let (stream, _) = bench.connect(PORT);
    bench.muxer.set_streams(true);
    assert!(is_open_and_silent(&stream));
    bench.muxer.set_streams(false);
    assert!(has_ended(&stream));
    let refused = bench.handle.connect(PORT).unwrap();
    bench.poll();
    assert!(has_ended(&refused));
    bench.send_control(from_guest(1), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(1))]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    bench.muxer.set_streams(true);
    bench.accept(&listener, from_guest(1));
}

#[test]
fn a_program_reads_its_reply_first() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    assert!(is_open_and_silent(&program));
    bench.send_control(key, Operation::Response);
    bench.send_payload(key, b"payload");
    bench.send_control(key, Operation::CreditUpdate);
    assert_eq!(read(&program), (b"OK 1073741824\npayload".to_vec(), false));
}

#[test]
fn a_refused_program_reads_the_end() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    bench.send_control(key, Operation::Rst);
    assert!(has_ended(&program));
    assert_eq!(bench.sent(), []);
}

#[test]
fn a_program_that_reads_no_reply_can_still_send() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    program.shutdown(Shutdown::Read).unwrap();
    bench.poll();
    bench.send_control(key, Operation::Response);
    let (shutdown, _) = bench.only();
    assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    write(&program, b"to the guest");
    bench.poll();
    assert_eq!(bench.sent_payload(), b"to the guest");
}

#[test]
fn what_a_program_wrote_before_it_closed_reaches_the_guest() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    write(&program, b"hasty");
    drop(program);
    bench.poll();
    assert_eq!(bench.sent(), []);
    bench.send_control(key, Operation::Response);
    assert_eq!(bench.sent_payload(), b"hasty");
    assert_eq!(bench.muxer.connections(), 1);
    bench.send_control(key, Operation::Rst);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_closed_program_waits_for_the_guest_for_so_long() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    write(&program, b"hasty");
    drop(program);
    bench.poll();
    let deadline = bench.muxer.connections[&key].connection.deadline().unwrap();
    bench.muxer.reset_overdue(deadline);
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn an_accepted_connection_of_a_closed_program_has_no_deadline() {
    let mut bench = Bench::new();
    let (program, key) = bench.attach();
    write(&program, b"hasty");
    drop(program);
    bench.poll();
    bench.send_control(key, Operation::Response);
    assert_eq!(bench.muxer.connections[&key].connection.deadline(), None);
}

#[test]
fn a_connect_cancelled_early_leaves_nothing() {
    let mut bench = Bench::new();
    let stream = bench.handle.connect(PORT).unwrap();
    bench.poll();
    drop(stream);
    bench.poll();
    assert_eq!((bench.muxer.connections(), bench.muxer.has_packets()), (0, false));
}

#[test]
fn a_connect_cancelled_late_is_reset() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    drop(stream);
    bench.poll();
    assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn early_bytes_wait_for_the_response() {
    let mut bench = Bench::new();
    let stream = bench.handle.connect(PORT).unwrap();
    bench.poll();
    write(&stream, b"before the request, ");
    bench.poll();
    let key = bench.requested();
    write(&stream, b"before the response");
    stream.shutdown(Shutdown::Write).unwrap();
    bench.poll();
    assert_eq!(bench.sent(), []);
    bench.send_control(key, Operation::Response);
    let received = bench.received();
    let [(_, payload), (shutdown, _)] = &*received else { panic!("{received:?}") };
    assert_eq!(payload, b"before the request, before the response");
    assert_eq!((operation(shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_SEND));
}

#[test]
fn a_hosts_end_follows_its_last_byte() {
    for (closes_wholly, flags) in [(false, SHUTDOWN_SEND), (true, SHUTDOWN_BOTH)] {
        let mut bench = Bench::new();
        let (stream, key) = bench.connect(PORT);
        write(&stream, &[1; ROOM + 1]);
        stream.shutdown(Shutdown::Write).unwrap();
        let kept = (!closes_wholly).then_some(stream);
        bench.poll();
        let packets: Vec<_> =
            bench.received().iter().map(|(packet, _)| (operation(packet), packet.len, packet.flags)).collect();
        let room = u32::try_from(ROOM).unwrap();
        let payload = |len| (Operation::ReadWrite, len, 0);
        assert_eq!(packets, [payload(room), payload(1), (Operation::Shutdown, 0, flags)]);
        assert_eq!(bench.muxer.connections[&key].connection.deadline().is_some(), closes_wholly);
        drop(kept);
    }
}

#[test]
fn a_hosts_end_needs_no_credit() {
    for (closes_wholly, flags) in [(false, SHUTDOWN_SEND), (true, SHUTDOWN_BOTH)] {
        for unread in [&b""[..], b"unread"] {
            let mut bench = Bench::new();
            let (stream, key) = bench.request(PORT);
            bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::Response) }, &[]);
            bench.send(&Header { buf_alloc: 0, ..payload_packet(key, unread.len()) }, unread);
            bench.sent();
            stream.shutdown(Shutdown::Write).unwrap();
            let kept = (!closes_wholly).then_some(stream);
            bench.poll();
            let (shutdown, _) = bench.only();
            assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, flags));
            drop(kept);
        }
    }
}

#[test]
fn a_host_that_reads_no_more_is_announced() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    stream.shutdown(Shutdown::Read).unwrap();
    bench.poll();
    bench.send_payload(key, b"finds nobody");
    let (shutdown, _) = bench.only();
    assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    write(&stream, b"writes on");
    bench.poll();
    assert_eq!(bench.sent_payload(), b"writes on");
}

#[test]
fn buffered_bytes_enter_when_there_is_room() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    write(&stream, b"while there is none");
    bench.poll();
    let (packet, _) = bench.only();
    let (mut bytes, _) = read(&stream);
    assert_eq!(usize::try_from(packet.fwd_cnt).unwrap(), bytes.len());
    assert!(bytes.len() < pattern().len());
    bench.poll();
    bytes.extend(read(&stream).0);
    assert!(bytes == pattern());
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.muxer.held_bytes(), 0);
    bench.send_control(key, Operation::CreditRequest);
    let (update, _) = bench.only();
    assert_eq!((operation(&update), update.fwd_cnt), (Operation::CreditUpdate, BUFFER_BYTES));
    bench.send_payload(key, &pattern());
    assert_eq!(bench.sent(), [(Operation::CreditUpdate, key)]);
}

#[test]
fn packets_wait_in_order_without_room() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for packet in pattern().chunks(1024) {
        bench.send_payload(key, packet);
    }
    let (mut bytes, _) = read(&stream);
    assert!(bytes.len() < pattern().len());
    while bytes.len() < pattern().len() {
        bench.poll();
        let (more, _) = read(&stream);
        assert!(!more.is_empty());
        bytes.extend(more);
    }
    assert!(bytes == pattern());
}

#[test]
fn buffered_bytes_for_nobody_are_dropped() {
    let mut bench = Bench::new();
    let (stream, _) = bench.fill_tx_buf();
    stream.shutdown(Shutdown::Read).unwrap();
    write(&stream, b"x");
    bench.poll();
    let received = bench.received();
    let [(shutdown, _), (payload, _)] = &*received else { panic!("{received:?}") };
    assert_eq!((operation(shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    assert_eq!((operation(payload), payload.fwd_cnt), (Operation::ReadWrite, BUFFER_BYTES));
    assert_eq!(bench.muxer.held_bytes(), 0);
}

#[test]
fn dispatch_finds_the_end_before_the_poll() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    bench.send_control(key, Operation::Response);
    bench.send_payload(key, b"unread");
    drop(stream);
    for flags in [SHUTDOWN_SEND, SHUTDOWN_BOTH] {
        let (shutdown, _) = bench.only();
        assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, flags));
        bench.poll();
    }
}

#[test]
fn a_close_is_confirmed_after_the_last_byte() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    bench.shut_down(key, SHUTDOWN_BOTH);
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![], 1));
    let (mut bytes, ended) = read(&stream);
    assert!(!ended);
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![(Operation::Rst, key)], 0));
    let (rest, ended) = read(&stream);
    bytes.extend(rest);
    assert!(bytes == pattern() && ended);
}

#[test]
fn packets_after_a_close_lose_no_bytes() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    bench.shut_down(key, SHUTDOWN_BOTH);
    bench.shut_down(key, SHUTDOWN_SEND);
    assert_eq!(bench.sent(), []);
    for operation in [Operation::Request, Operation::ReadWrite] {
        bench.send_control(key, operation);
        assert_eq!((bench.sent(), bench.muxer.connections()), (vec![(Operation::Rst, key)], 1), "{operation:?}");
    }
    let (mut bytes, _) = read(&stream);
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![(Operation::Rst, key)], 0));
    bytes.extend(read(&stream).0);
    assert!(bytes == pattern() && has_ended(&stream));
}

#[test]
fn bytes_before_an_rst_reach_the_host() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    write(&stream, b"comes too late");
    bench.poll();
    assert_eq!(bench.muxer.schedule.ready(), &[key]);
    bench.send_control(key, Operation::Rst);
    assert_eq!(bench.sent(), []);
    write(&stream, b", as this does");
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![], 1));
    let (mut bytes, _) = read(&stream);
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![], 0));
    bytes.extend(rest_of(&stream));
    assert!(bytes == pattern());
}

/// What is left for the host to read on a stream whose other end went without reading all of the host's.
fn rest_of(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let error = stream.read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    bytes
}

#[test]
fn a_hung_up_host_frees_its_buffer() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    bench.send_control(key, Operation::Rst);
    drop(stream);
    bench.poll();
    assert_eq!((bench.sent(), bench.muxer.connections(), bench.muxer.held_bytes()), (vec![], 0, 0));
}

#[test]
fn an_unbuffered_close_is_confirmed_at_once() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send_payload(key, b"the last");
    bench.shut_down(key, SHUTDOWN_BOTH);
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![(Operation::Rst, key)], 0));
    assert_eq!(read(&stream), (b"the last".to_vec(), true));
}

#[test]
fn a_guest_that_sends_no_more_receives_on() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send_payload(key, b"the last");
    assert_eq!(read(&stream), (b"the last".to_vec(), false));
    bench.shut_down(key, SHUTDOWN_SEND);
    assert!(has_ended(&stream));
    bench.poll();
    write(&stream, b"to the guest");
    bench.poll();
    assert_eq!(bench.sent_payload(), b"to the guest");
    bench.shut_down(key, SHUTDOWN_RECEIVE);
    assert_eq!((bench.sent(), bench.muxer.connections()), (vec![(Operation::Rst, key)], 0));
}

#[test]
fn credit_that_comes_with_a_half_close_is_used() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::Response) }, &[]);
    write(&stream, b"waits for credit");
    bench.poll();
    assert_eq!(bench.sent(), [(Operation::CreditRequest, key)]);
    bench.shut_down(key, SHUTDOWN_SEND);
    assert_eq!(bench.sent_payload(), b"waits for credit");
}

#[test]
fn the_end_follows_buffered_bytes() {
    let mut bench = Bench::new();
    let (stream, key) = bench.fill_tx_buf();
    bench.shut_down(key, SHUTDOWN_SEND);
    let (mut bytes, ended) = read(&stream);
    assert!(!ended);
    bench.poll();
    let (rest, ended) = read(&stream);
    bytes.extend(rest);
    assert!(bytes == pattern() && ended);
}

#[test]
fn a_guest_that_receives_no_more_sends_on() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.shut_down(key, SHUTDOWN_RECEIVE);
    assert!(is_broken(&stream));
    bench.send_payload(key, b"to the host");
    assert_eq!(read(&stream), (b"to the host".to_vec(), false));
    // The host can send no more, of which the guest is notified.
    bench.poll();
    let (shutdown, _) = bench.only();
    assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_SEND));
}

#[test]
fn programs_take_precedence_over_listeners() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let listener = bench.listen();
    bench.handle.set_uds_path(folder.path().join("port"));
    let [in_process, forwarded, nobody] =
        [from_guest(1), from_guest(2), Key { host_port: HOST_PORT + 1, guest_port: 3 }];
    drop(bench.accept(&listener, in_process));
    let program = UnixListener::bind(folder.path().join(format!("port_{HOST_PORT}"))).unwrap();
    program.set_nonblocking(true).unwrap();
    bench.send_control(forwarded, Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Response, forwarded)]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let (stream, _) = program.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    bench.send_payload(forwarded, b"to the program");
    assert_eq!(read(&stream), (b"to the program".to_vec(), false));
    bench.send_control(nobody, Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, nobody)]);
}

#[test]
fn nobody_listens_on_the_any_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.handle.set_uds_path(folder.path().join("port"));
    let _program = UnixListener::bind(folder.path().join("port_4294967295")).unwrap();
    for guest_port in [1, u32::MAX] {
        let key = Key { host_port: u32::MAX, guest_port };
        bench.send_control(key, Operation::Request);
        assert_eq!(bench.sent(), [(Operation::Rst, key)]);
    }
}

#[test]
fn a_full_backlog_refuses() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    let last = u32::try_from(MAX_BACKLOG).unwrap();
    for port in 0..last {
        bench.send_control(from_guest(port), Operation::Request);
        assert_eq!(bench.sent(), [(Operation::Response, from_guest(port))]);
    }
    bench.send_control(from_guest(last), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(last))]);
    listener.accept().unwrap();
    bench.send_control(from_guest(last), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Response, from_guest(last))]);
}

#[test]
fn a_poll_takes_64_events_at_most() {
    let mut bench = Bench::new();
    let connections: [_; MAX_EVENTS + 1] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, b"x");
    }
    let has_more = |muxer: &Muxer| {
        let mut descriptor = [rustix::event::PollFd::from_borrowed_fd(muxer.fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut descriptor, Some(&rustix::event::Timespec::default())).unwrap() == 1
    };
    bench.poll();
    assert_eq!((bench.muxer.schedule.ready().len(), has_more(&bench.muxer)), (MAX_EVENTS, true));
    bench.poll();
    assert_eq!((bench.muxer.schedule.ready().len(), has_more(&bench.muxer)), (MAX_EVENTS + 1, false));
}

#[test]
fn turns_of_removed_connections_are_dropped() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    for _ in 0..1000 {
        bench.send_control(from_guest(1), Operation::Request);
        assert_eq!(bench.muxer.schedule.ready().len(), 1);
        bench.send_control(from_guest(1), Operation::Rst);
        assert_eq!(bench.muxer.schedule.ready().len(), 0);
        listener.accept().unwrap();
        bench.poll();
    }
    assert!(bench.muxer.connections.is_empty() && !bench.muxer.has_packets());
}

#[test]
fn a_guest_cannot_take_the_hosts_places() {
    allow_all_descriptors();
    let mut bench = Bench::new();
    let listeners: Vec<_> = (0..5).map(|port| bench.handle.listen(port).unwrap()).collect();
    let mut streams = Vec::new();
    let mut refused = 0;
    for guest_port in 0..2000 {
        let host_port = guest_port / 400;
        let listener = &listeners[usize::try_from(host_port).unwrap()];
        let key = Key { host_port, guest_port };
        bench.send_control(key, Operation::Request);
        refused += bench.sent().iter().filter(|(operation, _)| *operation == Operation::Rst).count();
        streams.extend(listener.accept());
    }
    assert_eq!((streams.len(), refused), (960, 1040));
    let hosts: Vec<_> = (0..64).map(|_| bench.connect(PORT)).collect();
    assert!(hosts.iter().all(|(stream, _)| is_open_and_silent(stream)));
    let refusals = bench.muxer.counters().refused;
    assert_eq!((refusals.port_full, refusals.guest_full), (3 * 144, 208 + 400));
    assert_eq!(bench.muxer.counters().connections.established, 1024);
}

#[test]
fn a_port_has_256_connections_of_a_guest() {
    allow_all_descriptors();
    let mut bench = Bench::new();
    let (one, other) = (bench.listen(), bench.handle.listen(HOST_PORT + 1).unwrap());
    let _streams: Vec<_> = (0..256).map(|guest_port| bench.accept(&one, from_guest(guest_port))).collect();
    bench.send_control(from_guest(256), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(256))]);
    let key = Key { host_port: HOST_PORT + 1, guest_port: 256 };
    bench.accept(&other, key);
}

#[test]
fn draining_connections_of_the_host_are_evicted_for_another() {
    allow_all_descriptors();
    let mut bench = Bench::new();
    let (unread, key) = bench.fill_tx_buf();
    let _others: Vec<_> = (1..MAX_CONNECTIONS).map(|_| bench.connect(PORT)).collect();
    bench.send_control(key, Operation::Rst);
    assert_eq!(bench.muxer.counters().connections.draining, 1);
    let (stream, _) = bench.request(PORT);
    assert!(is_open_and_silent(&stream));
    let counters = bench.muxer.counters();
    assert_eq!((counters.evictions, counters.connections.draining), (1, 0));
    // What did not fit into its socket is lost, and that is counted.
    let (got, ended) = read(&unread);
    assert!(ended && counters.lost_bytes > 0);
    assert_eq!(got.len() + usize::try_from(counters.lost_bytes).unwrap(), pattern().len());
}

/// What the kernel keeps for a program that reads slowly takes the place of a connection.
#[test]
fn unread_bytes_of_ended_connections_keep_their_place() {
    allow_all_descriptors();
    let mut bench = Bench::new();
    let listener = bench.listen();
    let mut streams = Vec::new();
    for guest_port in 0..256 {
        streams.push(bench.accept(&listener, from_guest(guest_port)));
        bench.send_payload(from_guest(guest_port), b"unread");
        bench.send_control(from_guest(guest_port), Operation::Rst);
    }
    assert_eq!((bench.muxer.connections(), bench.muxer.counters().connections.unread), (0, 256));
    bench.send_control(from_guest(256), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(256))]);
    // A reset of the device makes no room, since the bytes are still there.
    bench.muxer.reset();
    bench.send_control(from_guest(256), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, from_guest(256))]);
    // Reading all does, and so does closing.
    assert_eq!(read(&streams[0]), (b"unread".to_vec(), true));
    drop(streams.pop());
    bench.poll_all();
    assert_eq!(bench.muxer.counters().connections.unread, 254);
    (256..258).for_each(|guest_port| drop(bench.accept(&listener, from_guest(guest_port))));
}

#[test]
fn a_program_that_accepts_slowly_bounds_its_guest() {
    allow_all_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.handle.set_uds_path(folder.path().join("port"));
    let program = UnixListener::bind(folder.path().join(format!("port_{HOST_PORT}"))).unwrap();
    program.set_nonblocking(true).unwrap();
    let mut connected = 0;
    for guest_port in 0..600 {
        bench.send_control(from_guest(guest_port), Operation::Request);
        connected += bench.sent().iter().filter(|(operation, _)| *operation == Operation::Response).count();
        bench.send_payload(from_guest(guest_port), if guest_port % 2 == 0 { b"unread" } else { b"" });
        bench.send_control(from_guest(guest_port), Operation::Rst);
        bench.poll();
        bench.sent();
    }
    assert!(connected <= MAX_PORT_CONNECTIONS, "{connected}");
    assert_eq!(bench.muxer.counters().connections.unread, connected);
    // Each that the program comes to makes room, whether anything was sent on it or not.
    for _ in 0..connected {
        let (mut stream, _) = program.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == b"unread" || got.is_empty());
    }
    bench.poll_all();
    assert_eq!(bench.muxer.counters().connections.unread, 0);
    bench.send_control(from_guest(1), Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Response, from_guest(1))]);
}

#[test]
fn sockets_that_the_device_takes_over_have_a_bounded_send_buffer() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.handle.set_uds_path(folder.path().join("port"));
    let program = UnixListener::bind(folder.path().join(format!("port_{HOST_PORT}"))).unwrap();
    bench.send_control(from_guest(1), Operation::Request);
    let (forwarded, _) = program.accept().unwrap();
    let (attached, end) = UnixStream::pair().unwrap();
    // As where the system's default is large.
    rustix::net::sockopt::set_socket_send_buffer_size(&end, 1 << 20).unwrap();
    bench.handle.attach(PORT, end, ok_line).unwrap();
    bench.poll();
    let key = bench.received().iter().map(|(packet, _)| key_of(packet)).find(|key| key.guest_port == PORT).unwrap();
    bench.send_control(key, Operation::Response);
    for (stream, key) in [(forwarded, from_guest(1)), (attached, key)] {
        stream.set_nonblocking(true).unwrap();
        for chunk in pattern().chunks(1000) {
            bench.send_payload(key, chunk);
        }
        let got = read(&stream).0.len();
        assert!(got <= SEND_BUFFER_BYTES, "{got} bytes were in the kernel");
    }
}

#[test]
fn a_policy_refuses_by_port_number_and_rate() {
    let mut bench = Bench::new();
    let (listener, other) = (bench.listen(), bench.handle.listen(HOST_PORT + 1).unwrap());
    let policy = GuestPolicy::default().ports([HOST_PORT]).connections_per_port(2).connects_per_second(5);
    bench.handle.set_guest_policy(policy);
    let denied = Key { host_port: HOST_PORT + 1, guest_port: 1 };
    bench.send_control(denied, Operation::Request);
    assert_eq!(bench.sent(), [(Operation::Rst, denied)]);
    assert!(other.accept().is_err());
    let _streams: [_; 2] = [0, 1].map(|guest_port| bench.accept(&listener, from_guest(guest_port)));
    for guest_port in 2..20 {
        bench.send_control(from_guest(guest_port), Operation::Request);
        assert_eq!(bench.sent(), [(Operation::Rst, from_guest(guest_port))]);
    }
    let refused = bench.muxer.counters().refused;
    assert_eq!((refused.not_allowed, refused.port_full + refused.too_fast), (1, 18));
    assert!(refused.port_full >= 3 && refused.too_fast > 0, "{refused:?}");
}

#[test]
fn counters_count_each_way_and_each_state() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    write(&stream, b"to the guest");
    bench.poll();
    bench.sent();
    bench.send_payload(key, b"to the host");
    bench.send(&Header { src_cid: CID + 1, ..packet(key, Operation::ReadWrite) }, &[]);
    bench.send_control(from_guest(1), Operation::Request);
    bench.sent();
    bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::CreditUpdate) }, &[]);
    write(&stream, b"stalls");
    bench.poll();
    bench.sent();
    let (_requested, refused) = bench.request(PORT);
    let counters = bench.muxer.counters();
    assert_eq!((counters.from_guest.packets, counters.from_guest.bytes), (5, 11));
    // Two requests, payload, RST, and both kinds of credit packet.
    assert_eq!((counters.to_guest.packets, counters.to_guest.bytes), (6, 12));
    assert_eq!((counters.resets_sent, counters.resets_received, counters.dropped_packets), (1, 0, 1));
    assert_eq!((counters.credit_stalls, counters.refused.no_listener), (1, 1));
    assert_eq!((counters.connections.established, counters.connections.connect_sent), (1, 1));
    bench.send_control(refused, Operation::Rst);
    bench.muxer.publish_counters();
    let counters = bench.handle.counters();
    assert_eq!((counters.refused.by_guest, counters.resets_received, counters.connections.total()), (1, 1, 1));
}

#[test]
fn a_connect_learns_how_it_ended() {
    let mut bench = Bench::new();
    let start = |bench: &mut Bench| {
        let connecting = bench.handle.start_connect(PORT).unwrap();
        bench.poll();
        (connecting, bench.requested())
    };
    let (accepted, key) = start(&mut bench);
    bench.send_control(key, Operation::Response);
    let _accepted = accepted.wait(Duration::ZERO).unwrap();
    let (refused, key) = start(&mut bench);
    bench.send_control(key, Operation::Rst);
    assert!(matches!(refused.wait(Duration::ZERO), Err(ConnectError::Refused)));
    let (reset, _) = start(&mut bench);
    bench.muxer.reset();
    assert!(matches!(reset.wait(Duration::ZERO), Err(ConnectError::Reset)));
    let (unanswered, _) = start(&mut bench);
    assert!(matches!(unanswered.wait(Duration::ZERO), Err(ConnectError::NoAnswer)));
    bench.poll();
    bench.sent();
    let no_driver = bench.handle.start_connect(PORT).unwrap();
    assert!(matches!(no_driver.wait(Duration::ZERO), Err(ConnectError::NoDriver)));
    let (mut full, _streams) = Bench::full();
    let connecting = full.handle.start_connect(PORT).unwrap();
    full.poll();
    assert!(matches!(connecting.wait(Duration::ZERO), Err(ConnectError::TableFull)));
}

/// Sends bytes with a descriptor, behind which the kernel ends a read.
fn write_with_descriptor(stream: &UnixStream, bytes: &[u8]) {
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn bytes_behind_a_descriptor_reach_the_guest() {
    let mut bench = Bench::new();
    let (stream, _) = bench.connect(PORT);
    write_with_descriptor(&stream, b"first");
    write(&stream, b"second");
    bench.poll();
    assert_eq!(bench.sent_payload(), b"firstsecond");
}

#[test]
fn refusals_go_out_at_the_policys_pace() {
    const REFUSED: u32 = 40;
    let mut bench = Bench::new();
    bench.handle.set_guest_policy(GuestPolicy::default().refusals_per_second(1000));
    let started = Instant::now();
    (0..REFUSED).for_each(|port| bench.send_control(from_guest(port), Operation::Request));
    let mut sent = bench.sent();
    assert_eq!(sent, [(Operation::Rst, from_guest(0))]);
    while sent.len() < REFUSED as usize {
        bench.muxer.arm_timer();
        let woken = rustix::event::poll(
            &mut [PollFd::new(&bench.muxer.fd(), PollFlags::IN)],
            Some(&Timespec { tv_sec: 60, tv_nsec: 0 }),
        );
        assert_eq!(woken, Ok(1), "the timer wakes the device");
        bench.poll();
        sent.extend(bench.sent());
    }
    assert_eq!(sent, (0..REFUSED).map(|port| (Operation::Rst, from_guest(port))).collect::<Vec<_>>());
    assert!(started.elapsed() >= Duration::from_millis(u64::from(REFUSED) - 1));
}
