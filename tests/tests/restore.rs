//! Pause, snapshot and restore of a device, with a driver that goes on as if nothing had happened.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use proptest::prelude::*;
use scx_vsock::SchedStatsClient;
use scx_vsock::transport::mmio::{Error, Mmio, MmioSnapshot};
use scx_vsock::vsock::packet::Operation;
use scx_vsock::vsock::spec::{EVENT_BYTES, EVENT_TRANSPORT_RESET};
use scx_vsock::vsock::test_util::{MEMORY_BYTES, Packet};
use scx_vsock::vsock::{Device, DeviceError};
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::device_thread::DeviceThread;
use scx_vsock_tests::guest_driver::{CID, Connection, Guest};
use scx_vsock_tests::mmio_driver::{NEEDS_RESET, Registers};
use scx_vsock_tests::peer::Peer;
use serde_json::{Value, json};

const PORT: u32 = 729;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;
const STATUS: u64 = 0x70;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const END: u64 = MEMORY_BYTES as u64;

/// A guest that was saved and restored, and whose driver is through with the reset.
fn restored(guest: Guest<Registers>) -> Guest<Registers> {
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    guest.take_transport_reset();
    guest
}

fn serves(guest: &mut Guest<Registers>) {
    let mut connection = guest.connect_from_host(PORT);
    assert_eq!(connection.transfer_to_host(guest, b"answer", 6), b"answer");
    assert_eq!(connection.transfer_to_guest(guest, b"request"), b"request");
}

#[test]
fn a_restored_guest_is_reached_from_another_port() {
    let mut guest = Guest::behind_registers();
    let mut before = guest.connect_from_host(PORT);
    let mut guest = restored(guest);
    assert!(before.host_reads_end());
    let after = guest.connect_from_host(PORT);
    assert!(after.host_port > before.host_port, "the driver may still know of the port {}", before.host_port);
    serves(&mut guest);
    // Once more, as long as it lives.
    let mut guest = restored(guest);
    serves(&mut guest);
}

#[test]
fn no_request_is_sent_before_the_reset_is_handled() {
    let guest = Guest::behind_registers();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    let _stream = guest.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), []);
    assert_eq!(guest.take_event(), Some(Some(0)));
    // The driver knows, and has not come to its connections yet.
    assert_eq!(guest.operations(), []);
    guest.post_event(EVENT_BYTES);
    assert_eq!(guest.operations(), [Operation::Request]);
    assert_eq!(guest.take_event(), None, "the event comes once");
}

/// Linux takes nothing more while as many of its answers as its receive queue has entries wait to be sent, which they
/// do behind all that its connections of before had still to send.
#[test]
fn a_busy_sender_is_reached_after_a_restore() {
    let mut guest = Guest::without_buffers();
    let state = guest.device.state();
    guest.restore(&state).unwrap();
    guest.post_events();
    guest.take_transport_reset();
    let _stream = guest.handle().connect(PORT).unwrap();
    let before = [10, 11, 12, 13].map(|port| Guest::header(Operation::ReadWrite, port, 50_000));
    for packet in before.iter().cycle().take(5000) {
        if !guest.queue_bytes(&packet.emit(), &[]) {
            guest.service();
            assert!(guest.queue_bytes(&packet.emit(), &[]), "nothing more is taken");
        }
    }
    guest.service();
    assert_eq!(guest.device.used()[1], 5000, "all of it is taken");
    guest.post_all(4096);
    let got: Vec<_> = guest.received().iter().map(|packet| (packet.operation(), packet.header.dst_port)).collect();
    // The host asked first, and takes its turn.
    let resets = before.map(|packet| (Operation::Rst, packet.src_port));
    assert_eq!(got, [&[(Operation::Request, PORT)], &resets[..]].concat());
}

#[test]
fn the_guest_is_interrupted_for_the_reset() {
    let guest = Guest::behind_registers();
    guest.ask_for_interrupts();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    guest.service();
    assert_eq!(guest.device.take_interrupt(), 1);
}

#[test]
fn the_event_waits_for_a_buffer() {
    let mut guest = Guest::behind_registers();
    guest.restart_without_events();
    let addresses = guest.addresses();
    guest.device.initialise(&addresses);
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    let _stream = guest.handle().connect(PORT).unwrap();
    assert_eq!(guest.operations(), []);
    // One that is too short for it goes back.
    guest.post_event(EVENT_BYTES - 1);
    guest.service();
    assert_eq!(guest.take_event(), Some(None));
    guest.post_event(EVENT_BYTES);
    guest.take_transport_reset();
    assert_eq!(guest.operations(), [Operation::Request]);
}

#[test]
fn available_packets_are_taken_once() {
    let mut guest = Guest::behind_registers();
    guest.service();
    // A request that the device has not come to, and whose kick is lost with its process.
    let request = Guest::header(Operation::Request, 50_000, 7290);
    assert!(guest.queue_bytes(&request.emit(), &[]));
    let mut guest = guest.saved_and_restored();
    let listener = guest.handle().listen(7290).unwrap();
    guest.device.mmio.resume().unwrap();
    guest.take_transport_reset();
    assert_eq!(guest.operations(), [Operation::Response]);
    let _stream = listener.accept().unwrap();
    assert!(listener.accept().is_err());
    assert_eq!(guest.operations(), []);
}

#[test]
fn used_packets_are_there_once() {
    let mut guest = Guest::behind_registers();
    let connection = guest.connect_from_host(PORT);
    let mut stream = &connection.stream;
    stream.write_all(b"before").unwrap();
    guest.service();
    let mut guest = guest.saved_and_restored();
    assert_eq!(guest.receive().unwrap().payload, b"before");
    assert!(guest.receive().is_none());
    guest.device.mmio.resume().unwrap();
    // The driver has not come to the reset yet, and goes on with its connection.
    guest.send(&connection.header(Operation::CreditUpdate), &[]);
    guest.take_transport_reset();
    assert_eq!(guest.operations(), [Operation::Rst]);
    serves(&mut guest);
}

#[test]
fn a_paused_device_leaves_memory_alone() {
    let mut guest = Guest::behind_registers();
    let mut connection = guest.connect_from_host(PORT);
    guest.device.mmio.pause();
    let mut stream = &connection.stream;
    stream.write_all(b"meanwhile").unwrap();
    let _another = guest.handle().connect(PORT).unwrap();
    connection.write(&mut guest, b"from the guest");
    assert!(guest.receive().is_none());
    assert_eq!(connection.read_host(), b"");
    guest.device.mmio.resume().unwrap();
    // No kick: what is there is looked at.
    let packets = guest.received();
    assert!(packets.iter().any(|packet| packet.payload == b"meanwhile"));
    assert!(packets.iter().any(|packet| packet.operation() == Operation::Request));
    assert_eq!(connection.read_host(), b"from the guest");
}

#[test]
fn an_unseen_interrupt_is_raised_again() {
    let mut guest = Guest::behind_registers();
    let _reasons = guest.device.take_interrupt();
    guest.ask_for_interrupts();
    let _stream = guest.handle().connect(PORT).unwrap();
    guest.service();
    let guest = guest.saved_and_restored();
    assert_eq!(guest.device.take_interrupt(), 0);
    guest.device.mmio.resume().unwrap();
    assert_eq!(guest.device.take_interrupt(), 1);
}

#[test]
fn a_rebooted_guest_gets_no_event() {
    let guest = Guest::behind_registers();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    guest.boot();
    serves(&mut guest);
    assert_eq!(guest.take_event(), None);
}

#[test]
fn two_restores_are_two_events() {
    let guest = Guest::behind_registers();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    guest.service();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    guest.service();
    assert_eq!((guest.take_event(), guest.take_event()), (Some(Some(0)), Some(Some(0))));
    guest.post_event(EVENT_BYTES);
    serves(&mut guest);
}

/// A guest whose driver has come to choosing its features.
fn still_choosing() -> Guest<Registers> {
    let mut guest = Guest::behind_registers();
    guest.device.reset();
    guest.restart();
    guest.device.write(STATUS, 1);
    guest.device.write(STATUS, 3);
    guest
}

#[test]
fn an_initialising_driver_goes_on() {
    let guest = still_choosing();
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    assert_eq!(guest.device.status(), 3);
    let addresses = guest.addresses();
    guest.device.go_on_from_driver(&addresses);
    serves(&mut guest);
    assert_eq!(guest.take_event(), None);
}

#[test]
fn a_guest_may_come_back_with_another_cid() {
    let guest = Guest::behind_registers();
    let generation = guest.device.read(CONFIG_GENERATION);
    guest.device.mmio.pause();
    let state = guest.device.mmio.snapshot().unwrap();
    let memory = Arc::new(guest.memory().clone());
    let device = Device::new(CID + 1).unwrap();
    let restored = Registers::of(|line| Mmio::restore(device, memory, line, &state)).unwrap();
    assert_eq!(restored.read(CONFIG), 4);
    assert_ne!(restored.read(CONFIG_GENERATION), generation);
    assert_eq!(restored.mmio.handle().guest_cid(), CID + 1);
}

#[test]
fn a_device_that_goes_on_gives_no_snapshot() {
    let guest = Guest::behind_registers();
    assert!(matches!(guest.device.mmio.snapshot(), Err(Error::NotPaused)));
    guest.device.mmio.pause();
    assert!(guest.device.mmio.snapshot().is_ok());
    guest.device.mmio.resume().unwrap();
    assert!(matches!(guest.device.mmio.snapshot(), Err(Error::NotPaused)));
}

#[test]
fn a_negotiating_driver_loses_nothing() {
    let guest = still_choosing();
    // Half of its choice, which by itself means no stream sockets.
    guest.device.write(DRIVER_FEATURES_SEL, 0);
    guest.device.write(DRIVER_FEATURES, 1 << 2);
    let mut guest = guest.saved_and_restored();
    guest.device.mmio.resume().unwrap();
    let mut waiting = guest.handle().connect(PORT).unwrap();
    guest.service();
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let addresses = guest.addresses();
    guest.device.go_on_from_driver(&addresses);
    assert_eq!(guest.operations(), [Operation::Request]);
    drop(waiting);
    assert_eq!(guest.operations(), [Operation::Rst]);
    serves(&mut guest);
}

/// A guest that is connected and whose device is paused, with its state.
fn saved() -> (Guest<Registers>, Connection, Value) {
    let mut guest = Guest::behind_registers();
    let connection = guest.connect_from_host(PORT);
    let _reasons = guest.device.take_interrupt();
    guest.device.mmio.pause();
    let state = serde_json::to_value(guest.device.mmio.snapshot().unwrap()).unwrap();
    (guest, connection, state)
}

/// The state with one value of it changed.
fn with(state: &Value, pointer: &str, value: &Value) -> Value {
    let mut changed = state.clone();
    *changed.pointer_mut(pointer).unwrap() = value.clone();
    changed
}

/// The device whose snapshot was corrupted serves on, and another snapshot of it is restored.
fn serves_all_the_same(mut guest: Guest<Registers>, mut connection: Connection) {
    guest.device.mmio.resume().unwrap();
    assert_eq!(connection.transfer_to_host(&mut guest, b"still", 5), b"still");
    let mut guest = restored(guest);
    assert!(connection.host_reads_end());
    serves(&mut guest);
}

/// States that no driver can bring a device into: the field, its value, and the error.
fn impossible_fields() -> Vec<(String, u64, String)> {
    let statuses =
        [2, 8, 13, 11 | 64, 0x10f, u64::from(u32::MAX)].map(|bits| impossible("/status", "status", bits, bits));
    // Features are chosen already.
    let early = [0, 1].map(|status| impossible("/status", "driver features", status, Device::FEATURES));
    // The receive queue is ready, or has gone on.
    let not_running = [3, 11].map(|status| ("/status", status, impossible_queue(0)));
    let features = [0, 1, 1 << 32 | 2, 1 << 63 | 1 << 32, u64::MAX]
        .map(|bits| impossible("/features", "driver features", bits, bits));
    let reasons = [4, 0x8000_0000, u64::from(u32::MAX)]
        .map(|bits| impossible("/interrupt_status", "interrupt status", bits, bits));
    let cids = [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX].map(|cid| {
        ("/device/guest_cid", cid, format!("{SAVED} has the guest CID {cid}, which is reserved: {INVALID}"))
    });
    let ports = [0, 729, (1 << 30) - 1, 1 << 31, u64::from(u32::MAX)].map(|port| {
        ("/device/next_port", port, format!("{SAVED} has the next port {port}, which no device uses: {INVALID}"))
    });
    let fields = statuses.into_iter().chain(early).chain(not_running).chain(features);
    let fields = fields.chain(reasons).chain(cids).chain(ports);
    fields.map(|(field, value, error)| (field.to_owned(), value, error)).chain(impossible_queues()).collect()
}

const SAVED: &str = "the saved vsock device";
const INVALID: &str = "the snapshot is invalid";

fn impossible<'f>(field: &'f str, register: &str, value: u64, found: u64) -> (&'f str, u64, String) {
    (field, value, format!("{SAVED} has {register} {found:#x}, which no device can have: {INVALID}"))
}

fn impossible_queue(index: usize) -> String {
    format!("{SAVED}'s queue {index} is impossible: {INVALID}")
}

fn impossible_queues() -> impl Iterator<Item = (String, u64, String)> {
    let sizes = [0, 3, 257, 512, 0x1_0080, u64::from(u32::MAX)].map(|size| ("size", size));
    let addresses = [("descriptors", 8), ("driver", 1), ("device", 2), ("device", u64::MAX)];
    let fields: Vec<_> = sizes.into_iter().chain(addresses).collect();
    (0..3).flat_map(move |index| {
        let of_queue = |&(part, value)| (format!("/queues/{index}/layout/{part}"), value, impossible_queue(index));
        fields.iter().map(of_queue).collect::<Vec<_>>()
    })
}

#[test]
fn impossible_fields_are_refused_by_name() {
    let (guest, connection, state) = saved();
    for (pointer, value, expected) in impossible_fields() {
        let read = serde_json::from_value(with(&state, &pointer, &json!(value))).unwrap();
        let error = Registers::restored(guest.memory(), &read).err().unwrap();
        assert_eq!(error.to_string(), expected, "{pointer} is {value}");
        assert!(matches!(error, Error::Snapshot(_)), "{pointer} is {value}: {error:?}");
    }
    serves_all_the_same(guest, connection);
}

#[test]
fn another_version_is_refused_by_its_number() {
    let (guest, connection, state) = saved();
    for version in [0, 2, u32::MAX] {
        let mut newer = with(&state, "/version", &json!(version));
        for is_larger in [false, true] {
            if is_larger {
                newer["zone"] = json!(0);
            }
            let error = serde_json::from_value::<MmioSnapshot>(newer.clone()).unwrap_err().to_string();
            assert_eq!(error, format!("{SAVED} has version {version}, and this library restores version 1 only"));
        }
    }
    serves_all_the_same(guest, connection);
}

#[test]
fn a_snapshot_of_another_form_is_refused() {
    let (guest, connection, state) = saved();
    let text = state.to_string();
    let other = |pointer: &str, value: Value| with(&state, pointer, &value).to_string();
    let without = |pointer: &str, key: &str| {
        let mut other = state.clone();
        other.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key).unwrap();
        other.to_string()
    };
    let with_key = |key: &str| text.replacen('{', &format!("{{\"{key}\":15,"), 1);
    let queue = &state["queues"][0];
    for (corrupt, expected) in [
        (without("", "version"), "missing field `version`"),
        (without("", "device"), "missing field `device`"),
        (without("/device", "next_port"), "missing field `next_port`"),
        (without("/queues/1", "next"), "missing field `next`"),
        (without("/queues/1/layout", "driver"), "missing field `driver`"),
        (without("/selected", "queue"), "missing field `queue`"),
        (with_key("status"), "duplicate field `status`"),
        (with_key("owner"), "unknown field `owner`"),
        (other("/status", json!("15")), "invalid type: string"),
        (other("/status", json!(-1)), "invalid value: integer `-1`, expected u32"),
        (other("/status", json!(1u64 << 32)), "invalid value: integer `4294967296`, expected u32"),
        (other("/status", json!(15.0)), "invalid type: floating point `15.0`, expected u32"),
        (other("/queues/0/next", json!(65_536)), "invalid value: integer `65536`, expected u16"),
        (other("/queues/0/ready", json!(1)), "invalid type: integer `1`, expected a boolean"),
        (other("/queues", json!([queue, queue])), "invalid length 2, expected an array of length 3"),
        (other("/queues", json!([queue, queue, queue, queue])), "trailing characters"),
        (other("/device", json!(null)), "invalid type: null"),
        (text[..text.len() - 1].to_owned(), "EOF while parsing"),
        (format!("{text}{text}"), "trailing characters"),
        (String::new(), "EOF while parsing"),
        ("[".repeat(100_000), "invalid type: sequence, expected u32"),
    ] {
        let error = serde_json::from_str::<MmioSnapshot>(&corrupt).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, and not {expected}: {corrupt}");
    }
    serves_all_the_same(guest, connection);
}

#[test]
fn queues_unlike_memory_stop_the_device() {
    let jump = virtio_queue::Error::InvalidAvailRingIndex.to_string();
    for (pointer, value, expected) in
        [("/queues/0/next", 0x8000, &jump), ("/queues/1/next", 0x8000, &jump), ("/queues/2/next", 0x8000, &jump)]
    {
        let (mut guest, mut connection, state) = saved();
        let state = serde_json::from_value(with(&state, pointer, &json!(value))).unwrap();
        guest.device = Registers::restored(guest.memory(), &state).unwrap();
        assert!(connection.host_reads_end());
        guest.device.mmio.resume().unwrap();
        let _waiting = guest.handle().connect(PORT).unwrap();
        assert!(guest.queue_bytes(&Guest::header(Operation::Request, 50_000, 1).emit(), &[]));
        let error = guest.try_service().err().unwrap_or_else(|| {
            // The event queue is sound: it comes before the others.
            assert_eq!(guest.take_event(), Some(Some(EVENT_TRANSPORT_RESET)));
            guest.post_event(EVENT_BYTES);
            guest.try_service().unwrap_err()
        });
        let said = match error {
            DeviceError::Chain(error) => error.to_string(),
            DeviceError::Ring(error) => error.to_string(),
            other => other.to_string(),
        };
        assert_eq!((&said, guest.device.status()), (expected, 15 | NEEDS_RESET), "{pointer} is {value:#x}");
        guest.boot();
        serves(&mut guest);
    }
}

#[test]
fn queues_outside_memory_are_refused() {
    let (guest, connection, state) = saved();
    for index in 0..3 {
        for (part, value) in [("descriptors", END), ("driver", END), ("driver", u64::MAX - 1), ("device", END)] {
            let pointer = format!("/queues/{index}/layout/{part}");
            let read = serde_json::from_value(with(&state, &pointer, &json!(value))).unwrap();
            let error = Registers::restored(guest.memory(), &read).err().unwrap();
            let expected =
                format!("{SAVED}'s queue {index} is outside of guest memory: restore it with the memory of that time");
            assert_eq!(error.to_string(), expected, "{pointer} is {value:#x}");
        }
    }
    serves_all_the_same(guest, connection);
}

/// The part of a guest's kernel that an agent needs: connections to its port, which are sockets.
struct Kernel {
    guest: Guest<Registers>,
    agent: PathBuf,
    sessions: HashMap<u32, (Peer, Connection)>,
}

impl Kernel {
    /// Serves the guest until a request of the host's was answered.
    fn serve_request(&mut self) {
        loop {
            let packet = self.guest.packet();
            let host_port = packet.header.src_port;
            match packet.operation() {
                Operation::Request => self.connect(&packet),
                Operation::ReadWrite => {
                    let (peer, connection) = self.sessions.get_mut(&host_port).unwrap();
                    peer.send(&packet.payload);
                    if packet.payload.ends_with(b"\n") {
                        return relay_line(&mut self.guest, peer, connection);
                    }
                }
                _ => {}
            }
        }
    }

    fn connect(&mut self, request: &Packet) {
        let host_port = request.header.src_port;
        let (stream, _) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(stream, PORT, host_port);
        connection.on_packet(&request.header);
        self.guest.send(&connection.header(Operation::Response), &[]);
        let mut peer = Peer::connect(&self.agent);
        relay_line(&mut self.guest, &mut peer, &mut connection);
        self.sessions.insert(host_port, (peer, connection));
    }

    /// The guest receives the event of the transport's reset: every connection ends.
    fn take_transport_reset(&mut self) {
        assert_eq!(self.guest.event(), EVENT_TRANSPORT_RESET);
        self.sessions.clear();
        self.guest.post_event(EVENT_BYTES);
        self.guest.service();
    }
}

/// Passes a line of the agent on to the host.
fn relay_line(guest: &mut Guest<Registers>, peer: &mut Peer, connection: &mut Connection) {
    let line = peer.line();
    connection.write(guest, &line);
}

#[test]
fn an_agent_is_reached_after_a_restore() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let scheduler = thread::spawn(move || {
        for number in [1, 2] {
            let mut session = Peer::accept(&listener);
            session.expect(r#"{"req":"stats","args":{}}"#);
            session.send(format!("{{\"errno\":0,\"args\":{{\"resp\":{number}}}}}\n"));
            session.expect_end();
        }
    });
    let guest = Guest::behind_registers();
    let mut kernel = Kernel { guest, agent: agent.host_path(0), sessions: HashMap::new() };
    let mut before = None;
    for number in [1, 2] {
        let served = DeviceThread::serving(std::slice::from_mut(&mut kernel.guest));
        if number > 1 {
            kernel.guest.device.mmio.resume().unwrap();
            kernel.take_transport_reset();
        }
        let client = SchedStatsClient::builder(kernel.guest.handle().agent()).build();
        let stats = thread::scope(|scope| {
            let stats = scope.spawn(|| client.stats(&[]));
            kernel.serve_request();
            stats.join().unwrap().unwrap()
        });
        assert_eq!(stats, number);
        // The session is open when the guest is saved: after the restore its client gets an error.
        before = Some(client);
        drop(served);
        kernel.guest = kernel.guest.saved_and_restored();
    }
    assert!(before.unwrap().stats(&[]).is_err());
    kernel.sessions.clear();
    scheduler.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn a_corrupt_snapshot_harms_nobody(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789{}\",:".to_vec())), 1..4),
    ) {
        let guest = Guest::behind_registers();
        guest.device.mmio.pause();
        let mut text = serde_json::to_vec(&guest.device.mmio.snapshot().unwrap()).unwrap();
        for (at, byte) in changes {
            let at = at.index(text.len());
            text[at] = byte;
        }
        let Ok(state) = serde_json::from_slice::<MmioSnapshot>(&text) else { return Ok(()) };
        let memory = Arc::new(guest.memory().clone());
        let device = Device::new(CID).unwrap();
        if let Ok(mmio) = Mmio::restore(device, memory, || Ok(()), &state) {
            mmio.resume().unwrap();
            // The rings may be elsewhere, and then the driver seems to have broken them.
            let _broken = mmio.service();
            prop_assert!(mmio.service().is_ok());
        }
    }
}
