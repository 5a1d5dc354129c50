//! Connections and credit against what a guest can know: each packet gets the answer that its connection's state asks
//! for, bytes arrive in order and whole, and neither side gets more than it has room for. After a restore there is no
//! connection, and what the guest sent before is answered once.
//!
//! Whatever the guest floods the device with, everybody has their turn, the host has places of its own, and no port has
//! more connections than it may, those included that are over and whose program has not read them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use scx_vsock::vsock::{BUFFER_BYTES, Listener, MAX_CONNECTIONS, MAX_PORT_CONNECTIONS};

use super::{Script, all_have_ended, send, stretch};
use crate::guest_driver::Guest;
use scx_vsock::vsock::test_util::{Packet, QUEUE_SIZE};

/// Steps of one script.
const MAX_STEPS: usize = 300;

/// The host's port that is listened on, and one that is not.
const HOST_PORTS: [u32; 2] = [1, 2];

/// The host's port whose programs have a Unix socket.
const PROGRAM_PORT: u32 = 3;

/// Ports of the guest.
const GUEST_PORTS: u32 = 4;

/// Where the ports of the guest begin that it floods the device from.
const FLOOD_PORTS: u32 = 1 << 16;

/// Packets that the device takes before it sends.
const BATCH: usize = 16;

/// Events of the host's streams that the device takes in one call.
const EVENTS: usize = 64;

/// REQUEST packets that the device has not been answered: it sends no more.
const MAX_UNANSWERED: usize = 64;

/// Where the sequence of bytes begins that goes to the guest, so that the two ways differ.
const TO_GUEST: u64 = 1000;

/// Bytes of the largest read.
const MAX_READ: usize = 1 << 16;

/// The guest's port and the host's.
type Key = (u32, u32);

/// Where a connection stands, as the guest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host asked, the guest has not answered.
    ConnectSent,
    Established,
    /// The device has said that the host closed.
    Closing,
}

/// One connection, as both of its ends know it.
#[derive(Debug)]
struct Connection {
    state: State,
    /// The host's end, until it closes.
    stream: Option<UnixStream>,
    /// Bytes that the guest sent and the device accepted; that the host read.
    to_host: (u64, u64),
    /// Bytes that the host wrote; that the guest received.
    to_guest: (u64, u64),
    /// The guest's credit fields, as it last sent them.
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Shutdown flags that the guest sent.
    shutdown: u32,
    /// The device's credit fields, as it last sent them.
    host_buffer: u32,
    host_forwarded: u32,
}

struct World {
    guest: Guest,
    listener: Listener,
    connections: BTreeMap<Key, Connection>,
    /// Connections that there were.
    over: BTreeSet<Key>,
    /// Host ends of connections that the device has yet to ask the guest for.
    asked_for: Vec<(u32, UnixStream)>,
    /// The host's port of the last connection that the guest was asked for.
    last_port: u32,
    /// Ports of the guest that it flooded the device from.
    flooded_from: u32,
    /// Whether the guest has opened all that it can: once is enough for a script.
    has_crowded: bool,
    has_flooded_program: bool,
}

/// Who takes turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Sender {
    Connection(Key),
    Resets,
}

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.receive();
    }
    world.drain();
    drop(world.listener);
    world.connections.clear();
    world.guest.reboot();
    world.guest.serves_on();
}

impl World {
    fn new() -> Self {
        let guest = Guest::new();
        let listener = guest.device.handle().listen(HOST_PORTS[0]).expect("a free port");
        Self {
            guest,
            listener,
            connections: BTreeMap::new(),
            over: BTreeSet::new(),
            asked_for: Vec::new(),
            last_port: 0,
            flooded_from: FLOOD_PORTS,
            has_crowded: false,
            has_flooded_program: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let step = script.byte();
        match step % 21 {
            0 => self.host_connects(1 + u32::from(script.byte()) % GUEST_PORTS),
            1 => self.guest_requests(script),
            16 => self.restore(script),
            17 => self.guest_floods(script),
            18 => self.guest_crowds(script),
            19 => self.guest_floods_program(script),
            step => {
                if let Some(key) = self.any_key(script) {
                    self.step_of(key, step, script);
                }
            }
        }
    }

    /// A connection that there is.
    fn any_key(&self, script: &mut Script<'_>) -> Option<Key> {
        self.connections.keys().nth(script.below(self.connections.len())).copied()
    }

    fn step_of(&mut self, key: Key, step: u8, script: &mut Script<'_>) {
        match step {
            2 => self.guest_says(key, Operation::Response, 0),
            3..=5 => self.guest_writes(key, size(script)),
            6 => self.guest_gives_credit(key, script),
            7 => self.guest_says(key, Operation::CreditRequest, 0),
            8 => self.guest_says(key, Operation::Shutdown, u32::from(script.byte() % 4)),
            9 => self.guest_says(key, Operation::Rst, 0),
            10 | 11 => self.host_reads(key, size(script)),
            12 | 13 => self.host_writes(key, size(script)),
            14 => self.host_half_closes(key),
            20 => self.both_send(key, script),
            _ => self.host_closes(key),
        }
    }

    fn host_connects(&mut self, guest_port: u32) {
        let stream = self.guest.device.handle().connect(guest_port).expect("a device");
        self.asked_for.push((guest_port, stream));
    }

    /// The guest asks for a connection: taken where there is a listener and no such connection, else reset, which ends
    /// the one that there was.
    fn guest_requests(&mut self, script: &mut Script<'_>) {
        let key = (100 + u32::from(script.byte()) % GUEST_PORTS, script.choose(&HOST_PORTS));
        let request = Guest::header(Operation::Request, key.0, key.1);
        self.guest.send(&request, &[]);
        let taken = !self.connections.contains_key(&key) && key.1 == HOST_PORTS[0];
        let answer = if taken { Operation::Response } else { Operation::Rst };
        let stream = self.listener.accept().ok();
        assert_eq!(stream.is_some(), taken, "{key:?}");
        if let Some(stream) = stream {
            self.connections.insert(key, Connection::new(State::Established, stream, &request));
        }
        self.expect(key, answer);
        if !taken {
            self.over(key);
        }
    }

    /// The device is saved and restored while a packet of the guest is in flight, or payload in many. It takes them once,
    /// when the driver has handled the event; until then, what the host asks for waits.
    fn restore(&mut self, script: &mut Script<'_>) {
        let key = self.any_key(script).unwrap_or((100, script.choose(&HOST_PORTS)));
        let operation = script.choose(&[
            Operation::Request,
            Operation::Response,
            Operation::Rst,
            Operation::Shutdown,
            Operation::ReadWrite,
            Operation::CreditRequest,
        ]);
        let under_way = Guest::header(operation, key.0, key.1);
        let packets = if operation == Operation::ReadWrite { 1 + script.below(usize::from(QUEUE_SIZE)) } else { 1 };
        for _ in 0..packets {
            assert!(self.guest.queue_bytes(&under_way.emit(), &[]), "the device took all that was sent");
        }
        self.forget();
        self.host_connects(1 + u32::from(script.byte()) % GUEST_PORTS);
        assert_eq!(self.guest.received(), []);
        assert_eq!(self.guest.take_event(), Some(Some(EVENT_TRANSPORT_RESET)));
        assert_eq!(self.guest.received(), []);
        self.guest.post_event(EVENT_BYTES);
        let (answers, others): (Vec<Packet>, Vec<Packet>) =
            self.guest.received().into_iter().partition(|packet| key_of(packet) == key);
        let answers: Vec<Operation> = answers.iter().map(Packet::operation).collect();
        let stream = self.listener.accept().ok();
        assert_eq!(stream.is_some(), operation == Operation::Request && key.1 == HOST_PORTS[0], "{key:?}");
        match stream {
            Some(stream) => {
                assert_eq!(answers, [Operation::Response], "{key:?}");
                let mut connection = Connection::new(State::Established, stream, &under_way);
                connection.host_buffer = BUFFER_BYTES;
                self.connections.insert(key, connection);
            }
            None if operation == Operation::Rst => assert_eq!(answers, [], "{key:?}"),
            // One for each batch of packets that the device takes before it sends.
            None => {
                assert!(answers.iter().all(|&answer| answer == Operation::Rst), "{key:?}");
                assert!((1..=packets.div_ceil(BATCH)).contains(&answers.len()), "{key:?}: {answers:?}");
            }
        }
        others.iter().for_each(|packet| self.on_packet(packet));
        self.all_is_asked_for();
    }

    /// The guest is asked for all that waits, as far as it has answered.
    fn all_is_asked_for(&self) {
        let unanswered = self.connections.values().filter(|connection| connection.state == State::ConnectSent).count();
        assert!(unanswered <= MAX_UNANSWERED, "{unanswered}");
        assert!(self.asked_for.is_empty() || unanswered == MAX_UNANSWERED, "the guest is asked for what waited");
    }

    /// A port of the guest that was never used.
    fn flood_port(&mut self) -> u32 {
        self.flooded_from += 1;
        self.flooded_from
    }

    /// The guest asks for connections to a closed port in a loop, each time that it is refused, while the host writes.
    fn guest_floods(&mut self, script: &mut Script<'_>) {
        self.receive();
        let writers: Vec<Key> = self.connections.keys().copied().take(8).collect();
        let count = size(script);
        writers.into_iter().for_each(|key| self.host_writes(key, count));
        let mut requests = 1 + script.below(3 * usize::from(QUEUE_SIZE));
        let mut unanswered = 0;
        while requests > 0 || unanswered > 0 {
            while requests > 0 && self.floods_once() {
                requests -= 1;
                unanswered += 1;
            }
            let before = self.ready();
            let packets = self.guest.received();
            assert!(!packets.is_empty(), "{unanswered} requests have no answer");
            let senders: Vec<Sender> = packets.iter().map(sender_of).collect();
            for packet in packets {
                if sender_of(&packet) == Sender::Resets {
                    unanswered -= 1;
                } else {
                    self.on_packet(&packet);
                }
            }
            take_turns(&senders, &self.ready().intersection(&before).copied().collect());
        }
    }

    fn floods_once(&mut self) -> bool {
        let port = self.flooded_from + 1;
        let queued = self.guest.queue_bytes(&Guest::header(Operation::Request, port, HOST_PORTS[1]).emit(), &[]);
        self.flooded_from += u32::from(queued);
        queued
    }

    /// The guest and the host send at the same time: neither direction waits for more than a batch of the other.
    fn both_send(&mut self, key: Key, script: &mut Script<'_>) {
        self.receive();
        self.host_reads_all(key);
        let connection = self.connection(key);
        if connection.state != State::Established || connection.shutdown != 0 || connection.stream.is_none() {
            return;
        }
        connection.buf_alloc = 0x4_0000;
        connection.fwd_cnt = u32::try_from(connection.to_guest.1).expect("a short stream");
        self.guest_says(key, Operation::CreditUpdate, 0);
        self.host_writes(key, size(script));
        let before = self.connection(key).to_host.0;
        self.queue_single_bytes(key, script.below(usize::from(QUEUE_SIZE)));
        for (place, packet) in self.guest.received().iter().enumerate() {
            // Each packet says how many of the guest's bytes were taken before it was sent.
            if key_of(packet) == key && packet.operation() == Operation::ReadWrite {
                let taken = u64::from(packet.header.fwd_cnt) - before;
                let most = BATCH * (1 + place / BATCH);
                assert!(taken <= most as u64, "{taken} packets were taken before packet {place} was sent");
            }
            self.on_packet(packet);
        }
    }

    /// The guest makes packets of one byte available, as many as it has credit for, without a notification.
    fn queue_single_bytes(&mut self, key: Key, count: usize) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let count = u64::from(connection.credit()).min(count as u64);
        let header = Header { len: 1, ..connection.header(key, Operation::ReadWrite) };
        for _ in 0..count {
            let packet = [&header.emit()[..], stretch(connection.to_host.0, 1)].concat();
            assert!(self.guest.queue_bytes(&packet, &[]), "the device took all that was sent");
            connection.to_host.0 += 1;
        }
    }

    /// The connections that the device has payload for, and credit.
    fn ready(&self) -> BTreeSet<Sender> {
        let ready = self.connections.iter().filter(|(_, connection)| connection.owes_guest());
        ready.map(|(&key, _)| Sender::Connection(key)).collect()
    }

    /// The guest opens all that it can to one port; the host is connected all the same.
    fn guest_crowds(&mut self, script: &mut Script<'_>) {
        if std::mem::replace(&mut self.has_crowded, true) {
            return;
        }
        self.receive();
        let wanted = MAX_CONNECTIONS + script.below(100);
        let mut streams = Vec::new();
        let mut ports = Vec::new();
        for _ in 0..wanted {
            let port = self.flood_port();
            self.guest.send(&Guest::header(Operation::Request, port, HOST_PORTS[0]), &[]);
            if let Ok(stream) = self.listener.accept() {
                streams.push(stream);
                ports.push(port);
            }
            let (answers, others): (Vec<Packet>, Vec<Packet>) =
                self.guest.received().into_iter().partition(|packet| packet.header.dst_port == port);
            assert_eq!(answers.len(), 1, "{answers:?}");
            others.iter().for_each(|packet| self.on_packet(packet));
        }
        // Those of before that were not evicted count, too.
        let before = self.connections.keys().filter(|(_, port)| *port == HOST_PORTS[0]).count();
        assert!(before + ports.len() <= MAX_PORT_CONNECTIONS, "{before} and {} connections to a port", ports.len());
        self.host_connects(1);
        self.receive();
        self.all_is_asked_for();
        drop(streams);
        for port in ports {
            self.guest.send(&Guest::header(Operation::Rst, port, HOST_PORTS[0]), &[]);
            let others: Vec<Packet> =
                self.guest.received().into_iter().filter(|packet| packet.header.dst_port < FLOOD_PORTS).collect();
            others.iter().for_each(|packet| self.on_packet(packet));
        }
        self.no_place_is_lost();
    }

    /// The guest connects to a program, sends and resets in a loop, while the program accepts nothing. Then the program
    /// reads all of it, or ends.
    fn guest_floods_program(&mut self, script: &mut Script<'_>) {
        if std::mem::replace(&mut self.has_flooded_program, true) {
            return;
        }
        self.receive();
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("host");
        self.guest.device.handle().set_uds_path(&path);
        let program = UnixListener::bind(folder.path().join(format!("host_{PROGRAM_PORT}"))).expect("a socket");
        let payload = stretch(0, script.below(200));
        let mut connected = 0;
        for _ in 0..2 * MAX_PORT_CONNECTIONS {
            let port = self.flood_port();
            for operation in [Operation::Request, Operation::ReadWrite, Operation::Rst] {
                let bytes = if operation == Operation::ReadWrite { payload } else { &[] };
                let len = u32::try_from(bytes.len()).expect("a small payload");
                self.guest.send(&Header { len, ..Guest::header(operation, port, PROGRAM_PORT) }, bytes);
            }
            let (answers, others): (Vec<Packet>, Vec<Packet>) =
                self.guest.received().into_iter().partition(|packet| packet.header.dst_port == port);
            connected += usize::from(answers.iter().any(|packet| packet.operation() == Operation::Response));
            others.iter().for_each(|packet| self.on_packet(packet));
        }
        assert!(connected <= MAX_PORT_CONNECTIONS, "{connected} connections, which nobody has accepted");
        let accepts = script.byte().is_multiple_of(2);
        for _ in 0..if accepts { connected } else { 0 } {
            let (mut stream, _) = program.accept().expect("one that waits");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("all that was sent, and the end");
            assert!(got == payload, "{} of {} bytes", got.len(), payload.len());
        }
        drop(program);
        self.no_place_is_lost();
    }

    /// What is over and read by the host's programs has given its place back.
    fn no_place_is_lost(&mut self) {
        // Some events are taken at a time.
        for _ in 0..2 * MAX_PORT_CONNECTIONS / EVENTS {
            self.receive();
        }
        assert_eq!(self.guest.device.counters().connections.unread, 0, "all was read, or closed");
    }

    /// Another device takes this one's place, which has forgotten all connections: each host reads what had entered its
    /// stream, and the end.
    fn forget(&mut self) {
        let before = self.guest.device.handle();
        let saved = serde_json::to_string(&self.guest.device.state()).expect("plain data");
        let state = serde_json::from_str(&saved).expect("what was written");
        self.guest.restore(&state).expect("a state of before");
        let listener = self.guest.device.handle().listen(HOST_PORTS[0]).expect("a free port");
        let listener = std::mem::replace(&mut self.listener, listener);
        let asked_for = std::mem::take(&mut self.asked_for).into_iter().map(|(_, stream)| stream).collect();
        all_have_ended(&before, vec![listener], asked_for);
        for connection in std::mem::take(&mut self.connections).into_values() {
            connection.reads_to_the_end();
        }
    }

    /// The guest sends a packet without payload; what its connection's state makes of it is known.
    fn guest_says(&mut self, key: Key, operation: Operation, flags: u32) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let header = Header { flags, ..connection.header(key, operation) };
        let before = connection.state;
        // A reset closes, as both flags do.
        let flags = if operation == Operation::Rst { SHUTDOWN_BOTH } else { flags };
        connection.shutdown |= if before == State::Established { flags } else { 0 };
        let closes = connection.shutdown & SHUTDOWN_BOTH == SHUTDOWN_BOTH;
        self.guest.send(&header, &[]);
        match (before, operation) {
            (State::Established, Operation::Rst) => self.closed(key, false),
            (_, Operation::Rst) => self.over(key),
            (State::ConnectSent, Operation::Response) => self.connection(key).state = State::Established,
            (State::Established, Operation::Shutdown) if !closes => {}
            (State::Established, Operation::Shutdown) => self.closed(key, true),
            (State::Closing, Operation::Shutdown) if flags != SHUTDOWN_BOTH => {}
            (State::Established | State::Closing, Operation::CreditRequest) => {
                self.expect(key, Operation::CreditUpdate)
            }
            (State::Established | State::Closing, Operation::CreditUpdate) => {}
            _ => self.broken(key),
        }
    }

    /// The guest sends payload, with or without credit for it.
    fn guest_writes(&mut self, key: Key, count: usize) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let len = u32::try_from(count).expect("a small payload");
        let header = Header { len, ..connection.header(key, Operation::ReadWrite) };
        let payload = stretch(connection.to_host.0, count);
        let sends = connection.shutdown & SHUTDOWN_SEND == 0;
        let (state, credit) = (connection.state, connection.credit());
        // What the device can have taken out of its buffer is at most all that was sent.
        let never = len > BUFFER_BYTES;
        self.guest.send(&header, payload);
        let accepted = match state {
            State::Closing => return,
            State::Established if sends && len <= credit => true,
            // The device may have sent the guest less credit than there is by now.
            State::Established if sends && !never => self.is_there(key),
            State::Established | State::ConnectSent => return self.broken(key),
        };
        if accepted {
            self.connection(key).to_host.0 += u64::from(len);
        }
    }

    /// Whether the device still has the connection. It is over if the device resets it.
    fn is_there(&mut self, key: Key) -> bool {
        let packets = self.guest.received();
        let reset = packets.iter().any(|packet| key_of(packet) == key && packet.operation() == Operation::Rst);
        for packet in packets.iter().filter(|packet| !(reset && key_of(packet) == key)) {
            self.on_packet(packet);
        }
        if reset {
            self.over(key);
        }
        !reset
    }

    fn guest_gives_credit(&mut self, key: Key, script: &mut Script<'_>) {
        let connection = self.connections.get_mut(&key).expect("a connection");
        let taken = u64::from(script.byte()) * connection.to_guest.1 / 255;
        connection.fwd_cnt = u32::try_from(taken).expect("a short stream");
        connection.buf_alloc = script.choose(&[0, 1, 10, 4096, 0x4_0000]);
        self.guest_says(key, Operation::CreditUpdate, 0);
    }

    fn host_reads(&mut self, key: Key, count: usize) {
        let connection = self.connection(key);
        let mut bytes = vec![0; count];
        let Some(stream) = connection.stream.as_mut() else { return };
        match stream.read(&mut bytes) {
            Ok(0) => assert!(count == 0 || connection.shutdown & SHUTDOWN_SEND != 0, "{connection:?}"),
            Ok(got) => {
                assert!(bytes[..got] == *stretch(connection.to_host.1, got), "{connection:?}");
                connection.to_host.1 += got as u64;
                assert!(connection.to_host.1 <= connection.to_host.0, "{connection:?}");
            }
            // What the host wrote in vain makes the end an error.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{connection:?}"),
        }
    }

    fn host_writes(&mut self, key: Key, count: usize) {
        let connection = self.connection(key);
        let bytes = stretch(TO_GUEST + connection.to_guest.0, count);
        let Some(stream) = connection.stream.as_ref() else { return };
        if let Ok(sent) = send(stream, bytes) {
            connection.to_guest.0 += sent as u64;
        }
    }

    fn host_half_closes(&mut self, key: Key) {
        if let Some(stream) = &self.connection(key).stream {
            let _closed_already = stream.shutdown(Shutdown::Write);
        }
    }

    /// The host closes its end; a connection that the guest has not answered is taken back.
    fn host_closes(&mut self, key: Key) {
        let connection = self.connection(key);
        let requested = connection.state == State::ConnectSent;
        if connection.stream.take().is_some() && requested {
            self.expect(key, Operation::Rst);
            self.over(key);
        }
    }

    /// Takes what the device sends.
    fn receive(&mut self) {
        for packet in self.guest.received() {
            self.on_packet(&packet);
        }
    }

    /// Takes what the device sends, among which is this.
    fn expect(&mut self, key: Key, operation: Operation) {
        let mut found = false;
        for packet in self.guest.received() {
            if key_of(&packet) == key && packet.operation() == operation {
                found = true;
            }
            if operation != Operation::Rst || key_of(&packet) != key {
                self.on_packet(&packet);
            }
        }
        // Any packet carries the credit that is asked for.
        assert!(found || operation == Operation::CreditUpdate, "{key:?} got no {operation:?}");
    }

    fn on_packet(&mut self, packet: &Packet) {
        let key = key_of(packet);
        if packet.operation() == Operation::Request {
            let at = self.asked_for.iter().position(|&(guest_port, _)| guest_port == key.0).expect("the host asked");
            let (_, stream) = self.asked_for.remove(at);
            assert!(key.1 > self.last_port, "the port {} is used again", key.1);
            self.last_port = key.1;
            let header = Guest::header(Operation::Request, key.0, key.1);
            let mut connection = Connection::new(State::ConnectSent, stream, &header);
            connection.on_packet(&packet.header);
            assert!(self.connections.insert(key, connection).is_none(), "{key:?} is asked for twice");
            return;
        }
        // Packets that were on their way are answered after the connection's own RST, once for each batch of them.
        let is_late = packet.operation() == Operation::Rst && self.over.contains(&key);
        if is_late && !self.connections.contains_key(&key) {
            return;
        }
        let connection = self.connections.get_mut(&key).unwrap_or_else(|| panic!("{packet:?} is of no connection"));
        connection.on_packet(&packet.header);
        match packet.operation() {
            Operation::ReadWrite => connection.receive(&packet.payload),
            Operation::Shutdown if packet.header.flags == SHUTDOWN_BOTH => connection.state = State::Closing,
            Operation::Shutdown | Operation::CreditUpdate | Operation::CreditRequest => {}
            Operation::Response => assert_eq!(connection.state, State::Established, "{key:?}"),
            // Evicted, when the guest has opened all that it can: its host is gone, or only the guest's confirmation of the
            // close is missing.
            Operation::Rst
                if self.has_crowded && (connection.stream.is_none() || connection.state == State::Closing) =>
            {
                self.over(key);
            }
            Operation::Rst | Operation::Request => panic!("{key:?} got an unexpected {:?}", packet.operation()),
        }
    }

    /// The guest broke the rules of its connection, which is reset.
    fn broken(&mut self, key: Key) {
        self.expect(key, Operation::Rst);
        self.over(key);
    }

    /// The guest has closed. The host gets all that was accepted, and then the end; then the device confirms the close,
    /// if that is `expected`.
    fn closed(&mut self, key: Key, expected: bool) {
        let mut confirmed = false;
        loop {
            for packet in self.guest.received() {
                let confirms = key_of(&packet) == key && packet.operation() == Operation::Rst;
                confirmed |= confirms;
                if !confirms {
                    self.on_packet(&packet);
                }
            }
            let connection = self.connection(key);
            let before = connection.to_host.1;
            self.host_reads(key, MAX_READ);
            if self.connection(key).to_host.1 == before {
                break;
            }
        }
        assert_eq!(confirmed, expected, "{key:?}");
        let connection = self.connection(key);
        assert!(connection.stream.is_none() || connection.to_host.0 == connection.to_host.1, "{connection:?}");
        self.over(key);
    }

    /// The connection is over for both sides.
    fn over(&mut self, key: Key) {
        self.over.insert(key);
        self.connections.remove(&key);
    }

    fn connection(&mut self, key: Key) -> &mut Connection {
        self.connections.get_mut(&key).expect("a connection")
    }

    /// All that was accepted on what is still open arrives.
    fn drain(&mut self) {
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        keys.into_iter().for_each(|key| self.host_reads_all(key));
    }

    /// The host reads all that was accepted on a connection that is open.
    fn host_reads_all(&mut self, key: Key) {
        while self.connection(key).owes_host() {
            self.host_reads(key, MAX_READ);
            self.receive();
        }
    }
}

impl Connection {
    fn new(state: State, stream: UnixStream, request: &Header) -> Self {
        Self {
            state,
            stream: Some(stream),
            to_host: (0, 0),
            to_guest: (0, 0),
            buf_alloc: request.buf_alloc,
            fwd_cnt: request.fwd_cnt,
            shutdown: 0,
            host_buffer: 0,
            host_forwarded: 0,
        }
    }

    fn header(&self, (guest_port, host_port): Key, operation: Operation) -> Header {
        Header { buf_alloc: self.buf_alloc, fwd_cnt: self.fwd_cnt, ..Guest::header(operation, guest_port, host_port) }
    }

    /// Takes the device's credit fields: it cannot have taken out more than it was sent.
    fn on_packet(&mut self, header: &Header) {
        if header.op == Operation::Rst.number() {
            return;
        }
        assert_eq!(header.buf_alloc, BUFFER_BYTES);
        assert!(header.fwd_cnt >= self.host_forwarded, "{self:?}");
        assert!(u64::from(header.fwd_cnt) <= self.to_host.0 + u64::from(BUFFER_BYTES), "{self:?}");
        (self.host_buffer, self.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
    }

    /// Bytes that the guest may send for sure.
    fn credit(&self) -> u32 {
        let sent = u32::try_from(self.to_host.0).expect("a short stream");
        self.host_buffer.saturating_sub(sent.saturating_sub(self.host_forwarded))
    }

    /// Payload of the host: the next of its bytes, and no more than the guest has said that it has room for.
    fn receive(&mut self, payload: &[u8]) {
        let held = self.to_guest.1 - u64::from(self.fwd_cnt);
        assert!(self.shutdown & SHUTDOWN_RECEIVE == 0, "{self:?}");
        assert!(
            held + payload.len() as u64 <= u64::from(self.buf_alloc),
            "{} bytes are too much: {self:?}",
            payload.len()
        );
        assert!(*payload == *stretch(TO_GUEST + self.to_guest.1, payload.len()), "{self:?}");
        self.to_guest.1 += payload.len() as u64;
        assert!(self.to_guest.1 <= self.to_guest.0, "{self:?}");
    }

    /// The device is gone: its host reads what had entered the stream, and the end.
    fn reads_to_the_end(mut self) {
        let mut got = Vec::new();
        let end = self.stream.as_mut().map_or(Ok(0), |stream| stream.read_to_end(&mut got));
        if let Err(error) = end {
            // What the host wrote in vain makes the end an error.
            assert_eq!(
                (error.kind(), self.to_guest.0 > self.to_guest.1),
                (ErrorKind::ConnectionReset, true),
                "{self:?}"
            );
        }
        let (accepted, read) = self.to_host;
        assert!(got == *stretch(read, got.len()) && read + got.len() as u64 <= accepted, "{self:?}");
    }

    /// Whether the device has payload for the guest, which has room for it.
    fn owes_guest(&self) -> bool {
        let held = self.to_guest.1 - u64::from(self.fwd_cnt);
        self.state == State::Established
            && self.shutdown & SHUTDOWN_RECEIVE == 0
            && self.to_guest.1 < self.to_guest.0
            && held < u64::from(self.buf_alloc)
    }

    /// Whether bytes that the device accepted are in flight to a host that reads.
    fn owes_host(&self) -> bool {
        self.state == State::Established && self.stream.is_some() && self.to_host.1 < self.to_host.0
    }
}

fn sender_of(packet: &Packet) -> Sender {
    let key = key_of(packet);
    if key.0 >= FLOOD_PORTS { Sender::Resets } else { Sender::Connection(key) }
}

/// Between two packets of one sender every other one that was ready has one: those that have one later, and those that
/// are `still_ready`.
fn take_turns(senders: &[Sender], still_ready: &BTreeSet<Sender>) {
    let all: BTreeSet<Sender> = senders.iter().chain(still_ready).copied().collect();
    for waits in all {
        let mut went = BTreeSet::new();
        let last = senders.iter().rposition(|&sender| sender == waits);
        let until = if still_ready.contains(&waits) { senders.len() } else { last.unwrap_or(0) };
        for &sender in &senders[..until] {
            if sender == waits {
                went.clear();
            } else {
                assert!(went.insert(sender), "{sender:?} goes twice while {waits:?} waits: {senders:?}");
            }
        }
    }
}

fn key_of(packet: &Packet) -> Key {
    (packet.header.dst_port, packet.header.src_port)
}

fn size(script: &mut Script<'_>) -> usize {
    let size = usize::from(script.short());
    if script.byte().is_multiple_of(8) { size * 5 } else { size % 6000 }
}
