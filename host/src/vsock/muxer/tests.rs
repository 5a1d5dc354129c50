//! The muxer packet for packet, between a guest that is written here and the host's ends of its streams.

use std::array;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;

use virtio_queue::Queue;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::vsock::chain::{Direction, gather};
use crate::vsock::handle::Handle;
use crate::vsock::listener::{Listener, MAX_BACKLOG};
use crate::vsock::{BUFFER_BYTES, allow_all_descriptors};

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
        let shared = Arc::new(Shared::new().unwrap());
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            muxer: Muxer::new(CID, Arc::clone(&shared)).unwrap(),
            handle: Handle::new(shared, CID),
        }
    }

    /// The guest sends a packet, in a chain that has room for this payload.
    fn send(&mut self, packet: &Header, payload: &[u8]) {
        self.memory.write_slice(payload, PAYLOAD).unwrap();
        with_chain(&self.memory, payload.len(), Direction::Readable, |chain| self.muxer.process(packet, chain));
    }

    fn say(&mut self, key: Key, operation: Operation) {
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
        let packet = with_chain(&self.memory, ROOM, Direction::Writable, |chain| self.muxer.dispatch(chain))?;
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
    fn told(&mut self) -> Vec<(Operation, Key)> {
        self.received().iter().map(|(packet, _)| (operation(packet), key_of(packet))).collect()
    }

    /// Their payloads.
    fn given(&mut self) -> Vec<u8> {
        self.received().into_iter().flat_map(|(_, payload)| payload).collect()
    }

    fn look(&mut self) {
        self.muxer.look().unwrap();
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
        self.look();
        let key = self.requested();
        assert_eq!(key.guest_port, port);
        (stream, key)
    }

    /// A program asks for a connection, and the guest has not answered.
    fn join(&mut self) -> (UnixStream, Key) {
        let (program, device) = UnixStream::pair().unwrap();
        program.set_nonblocking(true).unwrap();
        self.handle.join(PORT, device).unwrap();
        self.look();
        (program, self.requested())
    }

    /// A connection that the host asked for.
    fn connect(&mut self, port: u32) -> (UnixStream, Key) {
        let (stream, key) = self.request(port);
        self.say(key, Operation::Response);
        assert_eq!(self.told(), []);
        (stream, key)
    }

    fn listen(&self) -> Listener {
        self.handle.listen(HOST_PORT).unwrap()
    }

    /// A connection that the guest asked for.
    fn accept(&mut self, listener: &Listener, key: Key) -> UnixStream {
        self.say(key, Operation::Request);
        assert_eq!(self.told(), [(Operation::Response, key)]);
        listener.accept().unwrap()
    }

    /// A connection whose guest has sent all that it may, more than the host's socket has room for, in a chain that is
    /// longer still.
    fn spill(&mut self) -> (UnixStream, Key) {
        let (stream, key) = self.connect(PORT);
        self.send(&payload_packet(key, pattern().len()), &[pattern(), vec![0xff; 100]].concat());
        assert_eq!(self.muxer.held_bytes() - self.muxer.turns.len() * size_of::<Key>(), pattern().len());
        assert_eq!(self.told(), [(Operation::CreditUpdate, key)]);
        (stream, key)
    }

    /// A connection whose close the guest was told, and when it is overdue.
    fn closing(&mut self, port: u32) -> (Key, Instant) {
        let (stream, key) = self.connect(port);
        drop(stream);
        self.look();
        let before = Instant::now();
        assert_eq!(self.told(), [(Operation::Shutdown, key)]);
        let overdue_at = self.muxer.entries[&key].overdue_at.unwrap();
        assert!((before + CLOSE_WITHIN..=Instant::now() + CLOSE_WITHIN).contains(&overdue_at));
        (key, overdue_at)
    }

    /// A device without a place for one more connection, and the host's ends.
    fn full() -> (Self, Vec<UnixStream>) {
        allow_all_descriptors();
        let mut bench = Self::new();
        let listener = bench.listen();
        let places = u32::try_from(MAX_CONNECTIONS).unwrap();
        let streams = (0..places).map(|guest_port| bench.accept(&listener, from_guest(guest_port))).collect();
        assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
        (bench, streams)
    }
}

/// Runs `check` with a chain of a header and so many bytes of payload.
fn with_chain<T>(
    memory: &GuestMemoryMmap<()>,
    payload: usize,
    direction: Direction,
    check: impl FnOnce(&Chain<'_, ()>) -> T,
) -> T {
    let ring = MockSplitQueue::create(memory, RING, 16);
    let flags = if direction == Direction::Writable { WRITE } else { 0 };
    let len = u32::try_from(Header::BYTES + payload).unwrap();
    ring.desc_table().store(0, RawDescriptor::from(Descriptor::new(BUFFER.0, len, flags, 0))).unwrap();
    let queue: Queue = ring.create_queue().unwrap();
    check(&gather(memory, &queue, 0, direction).unwrap())
}

/// The connection that the guest's port asks for.
fn from_guest(guest_port: u32) -> Key {
    Key { host_port: HOST_PORT, guest_port }
}

/// The connection that a packet to the guest is about.
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
fn the_hosts_connections_take_their_ports_in_turn_and_the_first_after_the_last() {
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
fn a_port_is_taken_only_toward_the_same_port_of_the_guest() {
    let mut bench = Bench::new();
    let (_one, key) = bench.connect(PORT);
    assert!(bench.muxer.set_next_port(key.host_port));
    let (_other, other) = bench.connect(PORT + 1);
    assert_eq!(other, Key { guest_port: PORT + 1, ..key });
}

#[test]
fn the_host_does_not_go_on_with_a_port_beyond_its_own() {
    let mut bench = Bench::new();
    for port in [0, 0x3fff_ffff, 0x8000_0000, u32::MAX] {
        assert!(!bench.muxer.set_next_port(port));
    }
    assert_eq!(bench.muxer.next_port(), 0x4000_0000);
}

#[test]
fn what_a_host_writes_goes_out_under_the_ports_of_its_connection_whatever_they_are() {
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
        bench.look();
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
fn connections_with_much_to_send_have_one_packet_each_in_turn() {
    let mut bench = Bench::new();
    let connections: [_; 3] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, &[1; 3 * ROOM]);
    }
    bench.look();
    assert_eq!(bench.muxer.turns.len(), 3);
    let told = bench.told();
    let round = connections.each_ref().map(|&(_, key)| (Operation::ReadWrite, key));
    assert_eq!(told, [round, round, round].concat());
}

#[test]
fn a_connection_has_one_turn_however_often_it_has_something_new() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for _ in 0..3 {
        write(&stream, b"x");
        bench.look();
        bench.say(key, Operation::CreditRequest);
        assert_eq!(bench.muxer.turns, [key]);
    }
    assert_eq!(bench.told(), [(Operation::CreditUpdate, key), (Operation::ReadWrite, key)]);
}

#[test]
fn a_reset_goes_before_what_connections_have_to_send() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    write(&stream, b"x");
    bench.look();
    bench.say(from_guest(1), Operation::ReadWrite);
    assert_eq!(bench.told(), [(Operation::Reset, from_guest(1)), (Operation::ReadWrite, key)]);
}

#[test]
fn there_are_packets_as_long_as_a_reset_waits_or_a_connection_has_something_to_send() {
    let mut bench = Bench::new();
    assert_eq!((bench.muxer.has_packets(), bench.receive()), (false, None));
    bench.say(from_guest(1), Operation::Request);
    assert!(bench.muxer.has_packets());
    assert_eq!(bench.told(), [(Operation::Reset, from_guest(1))]);
    let (stream, key) = bench.connect(PORT);
    write(&stream, b"x");
    bench.look();
    assert!(bench.muxer.has_packets());
    assert_eq!(bench.told(), [(Operation::ReadWrite, key)]);
    bench.send_payload(key, b"nothing owed");
    bench.look();
    assert!(!bench.muxer.has_packets());
}

#[test]
fn payload_is_as_long_as_the_buffer_the_credit_and_what_is_there_allow() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    let credit = ROOM + 100;
    let gives = |bytes: usize| Header { buf_alloc: u32::try_from(bytes).unwrap(), ..packet(key, Operation::Response) };
    bench.send(&gives(credit), &[]);
    write(&stream, &[7; 3 * ROOM]);
    bench.look();
    let lengths: Vec<_> = bench.received().iter().map(|(packet, _)| (operation(packet), packet.len)).collect();
    let payload = |len: usize| (Operation::ReadWrite, u32::try_from(len).unwrap());
    assert_eq!(lengths, [payload(ROOM), payload(100), (Operation::CreditRequest, 0)]);
    // The guest was asked: it is not asked again until it has given some.
    bench.send(&Header { op: Operation::CreditUpdate.number(), ..gives(credit) }, &[]);
    assert_eq!(bench.told(), []);
    bench.send(&Header { op: Operation::CreditUpdate.number(), ..gives(4 * ROOM) }, &[]);
    assert_eq!(bench.given(), [7; 2 * ROOM - 100]);
}

#[test]
fn what_is_held_are_spills_turns_and_resets() {
    let mut bench = Bench::new();
    assert_eq!(bench.muxer.held_bytes(), 0);
    let (_spills, _) = bench.spill();
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024);
    let _wanted: [_; 2] = array::from_fn(|_| bench.handle.connect(PORT).unwrap());
    bench.look();
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024 + 2 * size_of::<Key>());
    for port in 0..3 {
        bench.say(from_guest(port), Operation::Request);
    }
    assert_eq!(bench.muxer.held_bytes(), 256 * 1024 + 2 * size_of::<Key>() + 3 * size_of::<Reset>());
}

#[test]
fn packets_from_or_to_another_cid_are_nothing() {
    let mut bench = Bench::new();
    let _listener = bench.listen();
    let (stream, key) = bench.connect(PORT);
    for cids in [(CID + 1, HOST_CID), (CID, HOST_CID + 1), (HOST_CID, CID)] {
        for packet in [packet(from_guest(1), Operation::Request), packet(key, Operation::Reset)] {
            bench.send(&Header { src_cid: cids.0, dst_cid: cids.1, ..packet }, &[]);
        }
    }
    assert_eq!(bench.told(), []);
    assert_eq!(bench.muxer.connections(), 1);
    assert!(is_open_and_silent(&stream));
}

#[test]
fn packets_of_another_type_are_reset_as_that_and_leave_the_stream_of_the_same_ports_alone() {
    let mut bench = Bench::new();
    let _listener = bench.listen();
    let (stream, key) = bench.connect(PORT);
    for (key, operation) in [(from_guest(1), Operation::Request), (key, Operation::Shutdown)] {
        bench.send(&Header { socket_type: 2, ..packet(key, operation) }, &[]);
        let (reset, _) = bench.only();
        assert_eq!((reset.op, reset.socket_type, key_of(&reset)), (Operation::Reset.number(), 2, key));
    }
    // No reset answers a reset.
    bench.send(&Header { socket_type: 2, ..packet(key, Operation::Reset) }, &[]);
    assert_eq!(bench.told(), []);
    bench.send_payload(key, b"goes on");
    assert_eq!(read(&stream), (b"goes on".to_vec(), false));
}

#[test]
fn an_unknown_operation_is_reset_with_the_stream_that_it_names() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for (key, op) in [(from_guest(1), 0), (from_guest(1), 8), (key, 8)] {
        bench.send(&Header { op, ..packet(key, Operation::ReadWrite) }, &[]);
        assert_eq!(bench.told(), [(Operation::Reset, key)]);
    }
    assert!(has_ended(&stream));
}

#[test]
fn packets_of_no_connection_are_reset_unless_they_are_resets() {
    let mut bench = Bench::new();
    for number in 1..=7 {
        let operation = Operation::parse(number).unwrap();
        bench.say(from_guest(1), operation);
        let expected = if operation == Operation::Reset { vec![] } else { vec![(Operation::Reset, from_guest(1))] };
        assert_eq!(bench.told(), expected, "{operation:?}");
    }
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_payload_may_be_shorter_than_its_chain_and_not_longer() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send(&payload_packet(key, 6), b"packet");
    bench.send(&payload_packet(key, 2), b", its chain");
    bench.send(&payload_packet(key, 0), b"not this");
    assert_eq!(bench.told(), []);
    // A length is nothing where there is no payload.
    bench.send(&Header { len: 1, ..packet(key, Operation::CreditUpdate) }, &[]);
    assert_eq!(bench.told(), []);
    bench.send(&payload_packet(key, 7), b"packet");
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
    assert_eq!(read(&stream), (b"packet, ".to_vec(), true));
}

#[test]
fn a_packet_that_breaks_the_rules_ends_its_connection_and_no_other() {
    let mut bench = Bench::new();
    let (breaks, key) = bench.connect(PORT);
    let (goes_on, other) = bench.connect(PORT);
    bench.say(other, Operation::CreditRequest);
    bench.say(key, Operation::CreditRequest);
    bench.say(key, Operation::Request);
    assert!(has_ended(&breaks) && is_open_and_silent(&goes_on));
    assert_eq!(bench.told(), [(Operation::Reset, key), (Operation::CreditUpdate, other)]);
    assert_eq!(bench.muxer.connections(), 1);
}

#[test]
fn a_device_without_a_place_refuses_the_guest_and_the_host() {
    let (mut bench, _streams) = Bench::full();
    let key = from_guest(1 << 20);
    bench.say(key, Operation::Request);
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
    let stream = bench.handle.connect(PORT).unwrap();
    bench.look();
    assert!(has_ended(&stream));
    assert_eq!(bench.told(), []);
    assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
}

#[test]
fn a_connection_whose_close_is_told_gives_its_place_away_and_then_one_whose_host_is_gone() {
    let (mut bench, mut streams) = Bench::full();
    let [closing, gone] = [from_guest(200), from_guest(100)];
    drop(streams.remove(200));
    bench.look();
    assert_eq!(bench.told(), [(Operation::Shutdown, closing)]);
    drop(streams.remove(100));
    bench.look();
    let connections: [_; 3] = array::from_fn(|_| bench.handle.connect(PORT).unwrap());
    bench.look();
    assert_eq!(connections.each_ref().map(has_ended), [false, false, true]);
    let [one, other] = [0x4000_0000, 0x4000_0001].map(|host_port| Key { host_port, guest_port: PORT });
    let resets = [(Operation::Reset, closing), (Operation::Reset, gone)];
    assert_eq!(bench.told(), [resets, [(Operation::Request, one), (Operation::Request, other)]].concat());
    assert_eq!(bench.muxer.connections(), MAX_CONNECTIONS);
    assert!(streams.iter().all(is_open_and_silent));
}

#[test]
fn a_connection_whose_host_is_gone_keeps_its_place_while_the_guest_has_credit_for_what_is_left() {
    let (mut bench, mut streams) = Bench::full();
    let key = from_guest(100);
    let gone = streams.remove(100);
    write(&gone, b"answer");
    drop(gone);
    bench.look();
    let refused = bench.handle.connect(PORT).unwrap();
    bench.look();
    assert!(has_ended(&refused));
    bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::CreditUpdate) }, &[]);
    let taken = bench.handle.connect(PORT).unwrap();
    bench.look();
    assert!(is_open_and_silent(&taken));
    assert_eq!(bench.told()[0], (Operation::Reset, key));
}

#[test]
fn with_as_many_resets_waiting_as_there_may_be_connections_only_what_adds_none_is_taken() {
    let mut bench = Bench::new();
    for port in 0..1024 {
        assert!(bench.muxer.has_room_for(&packet(from_guest(1024), Operation::Request)));
        bench.say(from_guest(port), Operation::Request);
    }
    let has_room = |bench: &Bench, port, operation| bench.muxer.has_room_for(&packet(from_guest(port), operation));
    assert!(!has_room(&bench, 1024, Operation::Request) && !has_room(&bench, 1024, Operation::ReadWrite));
    assert!(has_room(&bench, 1024, Operation::Reset) && has_room(&bench, 1023, Operation::ReadWrite));
    assert_eq!(bench.receive().map(|(packet, _)| key_of(&packet)), Some(from_guest(0)));
    assert!(has_room(&bench, 1024, Operation::Request));
}

#[test]
fn a_reset_that_waits_does_not_end_a_newer_connection_of_the_same_ports() {
    let mut bench = Bench::new();
    bench.say(from_guest(1), Operation::ReadWrite);
    let listener = bench.listen();
    bench.say(from_guest(1), Operation::Request);
    assert_eq!(bench.told(), [(Operation::Response, from_guest(1))]);
    assert!(is_open_and_silent(&listener.accept().unwrap()));
}

#[test]
fn whatever_comes_of_a_connection_whose_reset_waits_is_answered_by_that() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.say(key, Operation::Request);
    for number in 1..=7 {
        bench.say(key, Operation::parse(number).unwrap());
        bench.say(from_guest(1), Operation::ReadWrite);
    }
    assert!(has_ended(&stream));
    assert_eq!(bench.told(), [(Operation::Reset, key), (Operation::Reset, from_guest(1))]);
    bench.say(key, Operation::ReadWrite);
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
}

#[test]
fn closes_that_the_guest_does_not_confirm_in_time_are_reset_each_at_its_own_time() {
    let mut bench = Bench::new();
    let (first, first_at) = bench.closing(PORT);
    let (second, second_at) = bench.closing(PORT);
    let (_open, _) = bench.connect(PORT);
    assert!(first_at < second_at);
    let moment = Duration::from_nanos(1);
    let mut reset_by = |now: Instant| {
        bench.muxer.reset_overdue(now);
        bench.told()
    };
    assert_eq!(reset_by(first_at - moment), []);
    assert_eq!(reset_by(first_at), [(Operation::Reset, first)]);
    assert_eq!(reset_by(second_at - moment), []);
    assert_eq!(reset_by(second_at + moment), [(Operation::Reset, second)]);
    assert_eq!(reset_by(second_at + CLOSE_WITHIN), []);
    assert_eq!(bench.muxer.connections(), 1);
    // And so are later ones.
    let (third, third_at) = bench.closing(PORT);
    bench.muxer.reset_overdue(third_at);
    assert_eq!(bench.told(), [(Operation::Reset, third)]);
}

#[test]
fn a_guest_that_asks_for_credit_instead_of_confirming_a_close_gets_no_more_time() {
    let mut bench = Bench::new();
    let (key, overdue_at) = bench.closing(PORT);
    bench.say(key, Operation::CreditRequest);
    assert_eq!(bench.told(), [(Operation::CreditUpdate, key)]);
    bench.muxer.reset_overdue(overdue_at);
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_close_that_the_guest_confirms_is_over() {
    let mut bench = Bench::new();
    let (key, overdue_at) = bench.closing(PORT);
    bench.say(key, Operation::Reset);
    assert_eq!(bench.muxer.connections(), 0);
    bench.muxer.reset_overdue(overdue_at);
    assert_eq!(bench.told(), []);
}

#[test]
fn a_look_resets_what_is_overdue() {
    let mut bench = Bench::new();
    let (key, _) = bench.closing(PORT);
    bench.look();
    assert_eq!(bench.told(), []);
    // As if it had been told that long ago.
    let past = Some(Instant::now());
    bench.muxer.entries.get_mut(&key).unwrap().overdue_at = past;
    bench.muxer.overdue_from = past;
    bench.look();
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
}

#[test]
fn a_reset_of_the_driver_forgets_all_but_the_connections_that_it_was_not_asked_for() {
    let mut bench = Bench::new();
    let (requested, _) = bench.request(PORT);
    let (established, _) = bench.connect(PORT);
    write(&established, b"unread");
    let wanted = bench.handle.connect(PORT).unwrap();
    bench.look();
    bench.say(from_guest(1), Operation::Request);
    bench.muxer.reset();
    assert!(has_ended(&requested) && is_open_and_silent(&wanted));
    assert!(is_broken(&established));
    assert_eq!((bench.muxer.connections(), bench.muxer.turns.len()), (1, 1));
    assert_eq!(bench.told().iter().map(|&(operation, _)| operation).collect::<Vec<_>>(), [Operation::Request]);
}

#[test]
fn all_connections_end_when_the_device_is_cleared() {
    let mut bench = Bench::new();
    let (established, _) = bench.connect(PORT);
    let wanted = bench.handle.connect(PORT).unwrap();
    bench.look();
    bench.say(from_guest(1), Operation::Request);
    bench.muxer.clear();
    assert!(has_ended(&established) && has_ended(&wanted));
    assert_eq!((bench.muxer.connections(), bench.muxer.held_bytes()), (0, 0));
}

#[test]
fn a_driver_without_streams_has_no_connections_until_another_has_them() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    let (stream, _) = bench.connect(PORT);
    bench.muxer.set_streams(true);
    assert!(is_open_and_silent(&stream));
    bench.muxer.set_streams(false);
    assert!(has_ended(&stream));
    let refused = bench.handle.connect(PORT).unwrap();
    bench.look();
    assert!(has_ended(&refused));
    bench.say(from_guest(1), Operation::Request);
    assert_eq!(bench.told(), [(Operation::Reset, from_guest(1))]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    bench.muxer.set_streams(true);
    bench.accept(&listener, from_guest(1));
}

#[test]
fn a_program_that_asked_for_its_connection_reads_ok_and_the_port_once_before_all_else() {
    let mut bench = Bench::new();
    let (program, key) = bench.join();
    assert!(is_open_and_silent(&program));
    bench.say(key, Operation::Response);
    bench.send_payload(key, b"payload");
    bench.say(key, Operation::CreditUpdate);
    assert_eq!(read(&program), (b"OK 1073741824\npayload".to_vec(), false));
}

#[test]
fn a_program_that_the_guest_refuses_reads_the_end_alone() {
    let mut bench = Bench::new();
    let (program, key) = bench.join();
    bench.say(key, Operation::Reset);
    assert!(has_ended(&program));
    assert_eq!(bench.told(), []);
}

#[test]
fn a_program_that_does_not_listen_to_its_ok_is_no_connection() {
    let mut bench = Bench::new();
    let (program, key) = bench.join();
    program.shutdown(Shutdown::Read).unwrap();
    bench.say(key, Operation::Response);
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn a_connection_that_the_host_gives_up_before_the_guest_is_asked_leaves_nothing() {
    let mut bench = Bench::new();
    let stream = bench.handle.connect(PORT).unwrap();
    bench.look();
    drop(stream);
    bench.look();
    assert_eq!((bench.muxer.connections(), bench.muxer.has_packets()), (0, false));
}

#[test]
fn a_connection_that_the_host_gives_up_before_the_guest_answers_is_reset() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    drop(stream);
    bench.look();
    assert_eq!(bench.told(), [(Operation::Reset, key)]);
    assert_eq!(bench.muxer.connections(), 0);
}

#[test]
fn what_a_host_writes_before_the_guest_answers_waits_for_that() {
    let mut bench = Bench::new();
    let stream = bench.handle.connect(PORT).unwrap();
    bench.look();
    write(&stream, b"before the request, ");
    bench.look();
    let key = bench.requested();
    write(&stream, b"before the response");
    stream.shutdown(Shutdown::Write).unwrap();
    bench.look();
    assert_eq!(bench.told(), []);
    bench.say(key, Operation::Response);
    let received = bench.received();
    let [(_, payload), (shutdown, _)] = &*received else { panic!("{received:?}") };
    assert_eq!(payload, b"before the request, before the response");
    assert_eq!((operation(shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_SEND));
}

#[test]
fn a_hosts_end_comes_behind_its_last_byte() {
    for (closes_wholly, flags) in [(false, SHUTDOWN_SEND), (true, SHUTDOWN_BOTH)] {
        let mut bench = Bench::new();
        let (stream, key) = bench.connect(PORT);
        write(&stream, &[1; ROOM + 1]);
        stream.shutdown(Shutdown::Write).unwrap();
        let kept = (!closes_wholly).then_some(stream);
        bench.look();
        let told: Vec<_> =
            bench.received().iter().map(|(packet, _)| (operation(packet), packet.len, packet.flags)).collect();
        let room = u32::try_from(ROOM).unwrap();
        let payload = |len| (Operation::ReadWrite, len, 0);
        assert_eq!(told, [payload(room), payload(1), (Operation::Shutdown, 0, flags)]);
        assert_eq!(bench.muxer.entries[&key].overdue_at.is_some(), closes_wholly);
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
            bench.told();
            stream.shutdown(Shutdown::Write).unwrap();
            let kept = (!closes_wholly).then_some(stream);
            bench.look();
            let (shutdown, _) = bench.only();
            assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, flags));
            drop(kept);
        }
    }
}

#[test]
fn a_guest_is_told_when_the_host_reads_no_more() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    stream.shutdown(Shutdown::Read).unwrap();
    bench.look();
    bench.send_payload(key, b"finds nobody");
    let (shutdown, _) = bench.only();
    assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    write(&stream, b"writes on");
    bench.look();
    assert_eq!(bench.given(), b"writes on");
}

#[test]
fn what_the_hosts_socket_has_no_room_for_enters_it_when_there_is_some() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    write(&stream, b"while there is none");
    bench.look();
    let (packet, _) = bench.only();
    let (mut bytes, _) = read(&stream);
    assert_eq!(usize::try_from(packet.fwd_cnt).unwrap(), bytes.len());
    assert!(bytes.len() < pattern().len());
    bench.look();
    bytes.extend(read(&stream).0);
    assert!(bytes == pattern());
    assert_eq!(bench.told(), []);
    assert_eq!(bench.muxer.held_bytes(), 0);
    bench.say(key, Operation::CreditRequest);
    let (update, _) = bench.only();
    assert_eq!((operation(&update), update.fwd_cnt), (Operation::CreditUpdate, BUFFER_BYTES));
    bench.send_payload(key, &pattern());
    assert_eq!(bench.told(), [(Operation::CreditUpdate, key)]);
}

#[test]
fn a_packet_that_finds_no_room_at_all_waits_as_one_that_finds_some() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    for packet in pattern().chunks(1024) {
        bench.send_payload(key, packet);
    }
    let (mut bytes, _) = read(&stream);
    assert!(bytes.len() < pattern().len());
    while bytes.len() < pattern().len() {
        bench.look();
        let (more, _) = read(&stream);
        assert!(!more.is_empty());
        bytes.extend(more);
    }
    assert!(bytes == pattern());
}

#[test]
fn what_waits_for_a_host_that_reads_no_more_is_let_go() {
    let mut bench = Bench::new();
    let (stream, _) = bench.spill();
    stream.shutdown(Shutdown::Read).unwrap();
    write(&stream, b"x");
    bench.look();
    let received = bench.received();
    let [(shutdown, _), (payload, _)] = &*received else { panic!("{received:?}") };
    assert_eq!((operation(shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_RECEIVE));
    assert_eq!((operation(payload), payload.fwd_cnt), (Operation::ReadWrite, BUFFER_BYTES));
    assert_eq!(bench.muxer.held_bytes(), 0);
}

#[test]
fn a_turn_that_comes_before_the_look_finds_the_end_of_a_host_that_has_not_read_all() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    bench.say(key, Operation::Response);
    bench.send_payload(key, b"unread");
    drop(stream);
    for flags in [SHUTDOWN_SEND, SHUTDOWN_BOTH] {
        let (shutdown, _) = bench.only();
        assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, flags));
        bench.look();
    }
}

#[test]
fn a_guests_close_is_confirmed_once_the_host_has_room_for_all_that_it_sent() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    bench.shut_down(key, SHUTDOWN_BOTH);
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![], 1));
    let (mut bytes, ended) = read(&stream);
    assert!(!ended);
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![(Operation::Reset, key)], 0));
    let (rest, ended) = read(&stream);
    bytes.extend(rest);
    assert!(bytes == pattern() && ended);
}

#[test]
fn nothing_that_a_guest_says_after_its_close_takes_away_what_waits_for_the_host() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    bench.shut_down(key, SHUTDOWN_BOTH);
    bench.shut_down(key, SHUTDOWN_SEND);
    assert_eq!(bench.told(), []);
    for operation in [Operation::Request, Operation::ReadWrite] {
        bench.say(key, operation);
        assert_eq!((bench.told(), bench.muxer.connections()), (vec![(Operation::Reset, key)], 1), "{operation:?}");
    }
    let (mut bytes, _) = read(&stream);
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![(Operation::Reset, key)], 0));
    bytes.extend(read(&stream).0);
    assert!(bytes == pattern() && has_ended(&stream));
}

#[test]
fn a_guest_that_resets_its_connection_gets_nothing_of_it_any_more_while_its_bytes_reach_the_host() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    write(&stream, b"comes too late");
    bench.look();
    assert_eq!(bench.muxer.turns, [key]);
    bench.say(key, Operation::Reset);
    assert_eq!(bench.told(), []);
    write(&stream, b", as this does");
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![], 1));
    let (mut bytes, _) = read(&stream);
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![], 0));
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
fn a_host_that_goes_while_the_guests_bytes_wait_leaves_nothing_of_them() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    bench.say(key, Operation::Reset);
    drop(stream);
    bench.look();
    assert_eq!((bench.told(), bench.muxer.connections(), bench.muxer.held_bytes()), (vec![], 0, 0));
}

#[test]
fn a_guests_close_is_confirmed_at_once_where_nothing_waits() {
    let mut bench = Bench::new();
    let (stream, key) = bench.connect(PORT);
    bench.send_payload(key, b"the last");
    bench.shut_down(key, SHUTDOWN_BOTH);
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![(Operation::Reset, key)], 0));
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
    bench.look();
    write(&stream, b"to the guest");
    bench.look();
    assert_eq!(bench.given(), b"to the guest");
    bench.shut_down(key, SHUTDOWN_RECEIVE);
    assert_eq!((bench.told(), bench.muxer.connections()), (vec![(Operation::Reset, key)], 0));
}

#[test]
fn credit_that_comes_with_a_half_close_is_used() {
    let mut bench = Bench::new();
    let (stream, key) = bench.request(PORT);
    bench.send(&Header { buf_alloc: 0, ..packet(key, Operation::Response) }, &[]);
    write(&stream, b"waits for credit");
    bench.look();
    assert_eq!(bench.told(), [(Operation::CreditRequest, key)]);
    bench.shut_down(key, SHUTDOWN_SEND);
    assert_eq!(bench.given(), b"waits for credit");
}

#[test]
fn the_end_of_what_a_guest_sends_is_behind_what_waits() {
    let mut bench = Bench::new();
    let (stream, key) = bench.spill();
    bench.shut_down(key, SHUTDOWN_SEND);
    let (mut bytes, ended) = read(&stream);
    assert!(!ended);
    bench.look();
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
    // The host can send no more, which the guest is told.
    bench.look();
    let (shutdown, _) = bench.only();
    assert_eq!((operation(&shutdown), shutdown.flags), (Operation::Shutdown, SHUTDOWN_SEND));
}

#[test]
fn a_program_behind_a_port_comes_before_who_listens_on_it_and_not_without_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let listener = bench.listen();
    bench.handle.set_uds_path(folder.path().join("port"));
    let [in_process, forwarded, nobody] =
        [from_guest(1), from_guest(2), Key { host_port: HOST_PORT + 1, guest_port: 3 }];
    drop(bench.accept(&listener, in_process));
    let program = UnixListener::bind(folder.path().join(format!("port_{HOST_PORT}"))).unwrap();
    program.set_nonblocking(true).unwrap();
    bench.say(forwarded, Operation::Request);
    assert_eq!(bench.told(), [(Operation::Response, forwarded)]);
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let (stream, _) = program.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    bench.send_payload(forwarded, b"to the program");
    assert_eq!(read(&stream), (b"to the program".to_vec(), false));
    bench.say(nobody, Operation::Request);
    assert_eq!(bench.told(), [(Operation::Reset, nobody)]);
}

#[test]
fn nobody_is_at_the_port_that_means_any() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    bench.handle.set_uds_path(folder.path().join("port"));
    let _program = UnixListener::bind(folder.path().join("port_4294967295")).unwrap();
    for guest_port in [1, u32::MAX] {
        let key = Key { host_port: u32::MAX, guest_port };
        bench.say(key, Operation::Request);
        assert_eq!(bench.told(), [(Operation::Reset, key)]);
    }
}

#[test]
fn a_request_that_finds_the_backlog_full_is_refused() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    let last = u32::try_from(MAX_BACKLOG).unwrap();
    for port in 0..last {
        bench.say(from_guest(port), Operation::Request);
        assert_eq!(bench.told(), [(Operation::Response, from_guest(port))]);
    }
    bench.say(from_guest(last), Operation::Request);
    assert_eq!(bench.told(), [(Operation::Reset, from_guest(last))]);
    listener.accept().unwrap();
    bench.say(from_guest(last), Operation::Request);
    assert_eq!(bench.told(), [(Operation::Response, from_guest(last))]);
}

#[test]
fn a_look_takes_64_events_and_says_that_there_are_more() {
    let mut bench = Bench::new();
    let connections: [_; EVENTS_A_LOOK + 1] = array::from_fn(|_| bench.connect(PORT));
    for (stream, _) in &connections {
        write(stream, b"x");
    }
    let has_more = |muxer: &Muxer| {
        let mut descriptor = [rustix::event::PollFd::new(muxer.fd(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut descriptor, Some(&rustix::event::Timespec::default())).unwrap() == 1
    };
    bench.look();
    assert_eq!((bench.muxer.turns.len(), has_more(&bench.muxer)), (EVENTS_A_LOOK, true));
    bench.look();
    assert_eq!((bench.muxer.turns.len(), has_more(&bench.muxer)), (EVENTS_A_LOOK + 1, false));
}

#[test]
fn turns_of_connections_that_are_over_are_not_kept_though_the_guest_takes_no_packets() {
    let mut bench = Bench::new();
    let listener = bench.listen();
    for _ in 0..1000 {
        bench.say(from_guest(1), Operation::Request);
        assert_eq!(bench.muxer.turns.len(), 1);
        bench.say(from_guest(1), Operation::Reset);
        assert_eq!(bench.muxer.turns.len(), 0);
        listener.accept().unwrap();
    }
    assert!(bench.muxer.entries.is_empty() && bench.muxer.resets.is_empty());
}
