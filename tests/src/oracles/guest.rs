//! A guest that does anything, with rings that hold anything, and that is saved and restored at any moment, from any state:
//! its device never fails, never works without end, never holds more than its bound, does not disturb another guest's, and
//! after a reset serves like any other.

use std::io::Read;
use std::os::unix::net::UnixStream;

use scx_vsock::vsock::packet::Header;
use scx_vsock::vsock::spec::{EVENT_BYTES, EVENT_QUEUE, HOST_CID, TX_QUEUE, TYPE_STREAM};
use scx_vsock::vsock::{
    BUFFER_BYTES, DeviceError, DeviceState, InvalidSnapshot, Key, Listener, MAX_CONNECTIONS, MAX_HELD_BYTES, MAX_RSTS,
    Rst,
};
use vm_memory::{Bytes, GuestAddress};

use super::corrupt_state::Saved;
use super::transport_reset::{Queues, TransportReset};
use super::{Script, all_have_ended, send, stretch};
use crate::guest_driver::{CID, Guest, NEXT, RawDescriptor, RawRings, WRITE};
use scx_vsock::vsock::test_util::{QUEUE_SIZE, TX_BUFFERS};

/// Ports that guest and host use: few, so that they meet.
const PORTS: [u32; 4] = [1, 2, 729, u32::MAX];

/// Where the host's ports begin of the connections that it asks for, and how many there are.
const FIRST_PORT: u32 = 1 << 30;
const ALL_PORTS: u32 = 1 << 30;

/// Steps of one script.
const MAX_STEPS: usize = 500;

/// A guest and what its host does meanwhile.
struct World {
    guest: Guest,
    /// Whether the device has stopped, until it is reset.
    stopped: bool,
    /// Whether the driver wrote into its rings what a driver should, since it began.
    honest_rings: bool,
    transport_reset: TransportReset,
    /// Whether the device sees what the driver did last only after what it does next.
    unseen: bool,
    listeners: Vec<Listener>,
    streams: Vec<UnixStream>,
    /// Connections that the host asked this device for.
    asked_for: usize,
    /// The next of the host's ports when this device began.
    first_port: u32,
    /// Ports of the guest that it flooded the device from.
    flooded_from: u32,
}

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut other = Guest::new();
    let mut untouched = other.connect_from_host(PORTS[0]);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.serve();
    }
    assert_eq!(untouched.transfer_to_host(&mut other, b"other", 5), b"other");
    assert_eq!(untouched.transfer_to_guest(&mut other, b"guest"), b"guest");
    world.streams.clear();
    world.listeners.clear();
    world.restart();
    world.guest.serves_on();
    let state = world.guest.device.state();
    world.guest.restore(&state).expect("a state of before");
    world.guest.take_transport_reset();
    world.guest.serves_on();
}

impl World {
    fn new() -> Self {
        let guest = Guest::without_buffers();
        let first_port = guest.device.state().next_port;
        let mut world = Self {
            guest,
            stopped: false,
            honest_rings: true,
            transport_reset: TransportReset::Idle,
            unseen: false,
            listeners: Vec::new(),
            streams: Vec::new(),
            asked_for: 0,
            first_port,
            flooded_from: 0,
        };
        world.listen();
        world
    }

    fn listen(&mut self) {
        self.listeners.extend(PORTS.iter().filter_map(|&port| self.guest.device.handle().listen(port).ok()));
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let step = script.byte() % 30;
        self.honest_rings &= !matches!(step, 9..=13 | 27..=28);
        match step {
            0..=5 => self.send_packet(script),
            6 => self.send_many(script),
            7 => self.guest.post_all(script.choose(&[45, 64, 4096, 0x1_0000])),
            8 => drop(self.guest.post(u32::from(script.byte()))),
            9 => self.guest.queue_raw(&raw_chain(script, 0)),
            10 => self.guest.post_raw(&raw_chain(script, WRITE)),
            11 => self.guest.make_available(TX_QUEUE, script.short()),
            12 => self.guest.skip_available(TX_QUEUE, script.short()),
            13 => self.scribble(script),
            14 => {
                self.asked_for += 1;
                self.streams.extend(self.guest.device.handle().connect(script.choose(&PORTS)));
            }
            15 => self.streams.extend(self.listeners.iter().filter_map(|listener| listener.accept().ok())),
            16..=18 => self.use_stream(script),
            19 => drop(self.listeners.pop()),
            20 => self.listeners.extend(self.guest.device.handle().listen(script.choose(&PORTS))),
            21 => self.restart(),
            22 => self.guest.reposts = script.byte().is_multiple_of(2),
            23 => while self.guest.discard_received() {},
            24 => self.restore(script),
            25 => drop(self.guest.post_event(script.choose(&[EVENT_BYTES, 0, EVENT_BYTES - 1, 100]))),
            26 => while self.guest.take_event().is_some() {},
            27 => self.guest.post_event_raw(&raw_chain(script, WRITE)),
            28 => self.guest.skip_available(EVENT_QUEUE, script.short()),
            _ => {
                self.send_packet(script);
                self.unseen = true;
            }
        }
    }

    /// The device does what there is to do, and is within its bounds.
    fn serve(&mut self) {
        if std::mem::take(&mut self.unseen) {
            return;
        }
        let before = self.queues();
        match self.guest.try_service() {
            Ok(()) => {}
            Err(DeviceError::Chain(_) | DeviceError::Ring(_)) => {
                assert!(!self.stopped, "a device that has stopped says so once");
                assert!(!self.honest_rings, "rings that are whole are no driver's fault");
                self.stopped = true;
            }
            Err(other) => panic!("a guest made its device fail otherwise: {other}"),
        }
        self.follow_queues(&before);
        self.is_within_bounds();
    }

    fn queues(&self) -> Queues {
        let [_, _, events] = self.guest.available();
        Queues { used: self.guest.device.used(), events }
    }

    /// Chains come back once each, in their order, from before a restore too; a transport reset goes before packets.
    fn follow_queues(&mut self, before: &Queues) {
        let after = self.queues();
        let last_event = self.guest.event_length(after.used[2].wrapping_sub(1));
        self.transport_reset.follow(before, &after, last_event);
        if self.honest_rings {
            assert!(self.guest.has_used_each_once(before.used, after.used), "{before:?} {after:?}");
            // Of a driver that has a buffer for it, the event waits no longer.
            assert!(self.transport_reset != TransportReset::Pending || after.used[2] == after.events, "{after:?}");
        }
    }

    fn is_within_bounds(&self) {
        assert!(self.guest.device.connections() <= MAX_CONNECTIONS);
        let held = self.guest.device.held_bytes();
        assert!(held <= MAX_HELD_BYTES);
        // More exactly: a `tx_buf` and a turn for each connection that there is, and RSTs, of which the host causes one
        // where it gives up what it asked for.
        let connections = self.guest.device.connections();
        let resets = (MAX_RSTS + self.asked_for) * size_of::<Rst>();
        assert!(held <= connections * (BUFFER_BYTES as usize + size_of::<Key>()) + resets, "{held} bytes");
        // Each connection has a port of its own, none of which was used before.
        let next_port = self.guest.device.state().next_port;
        let ports = next_port.wrapping_sub(self.first_port) % ALL_PORTS;
        assert!(is_port_of_device(next_port) && ports as usize <= self.asked_for, "the next port is {next_port}");
    }

    fn restart(&mut self) {
        self.guest.reboot();
        self.stopped = false;
        self.honest_rings = true;
        self.transport_reset = TransportReset::Idle;
    }

    /// Another device takes this one's place: in the state that was saved, or in what somebody has made of it.
    fn restore(&mut self, script: &mut Script<'_>) {
        // A transport lets no device go on that has stopped.
        if self.stopped {
            return;
        }
        let before = self.guest.device.handle();
        let state = serde_json::to_value(self.guest.device.state()).expect("plain data");
        let saved = Saved::corrupt(&state, script);
        let Ok(state) = serde_json::from_str::<DeviceState>(&saved.text) else {
            assert!(!saved.is_intact, "{}", saved.text);
            return;
        };
        assert!(!saved.is_malformed, "{}", saved.text);
        let restored = self.guest.restore(&state);
        assert_eq!(restored, is_of_device(&state), "{}", saved.text);
        if restored.is_ok() {
            all_have_ended(&before, std::mem::take(&mut self.listeners), std::mem::take(&mut self.streams));
            self.begin_restored(&state);
        }
    }

    /// The device has forgotten everything but what was saved, and owes a transport reset.
    fn begin_restored(&mut self, state: &DeviceState) {
        let device = &self.guest.device;
        assert_eq!(device.state(), DeviceState { guest_cid: CID, ..*state });
        assert_eq!((device.connections(), device.held_bytes()), (0, 0));
        self.transport_reset = TransportReset::Pending;
        (self.asked_for, self.first_port) = (0, state.next_port);
        self.listen();
    }

    /// A packet that is honest but for what the script says otherwise.
    fn send_packet(&mut self, script: &mut Script<'_>) {
        let header = header(script, &self.guest);
        let size = script.choose(&[header.len.min(0x4_0000), 0, 1, 100]);
        let bytes = [&header.emit()[..], stretch(0, size as usize)].concat();
        let cut = script.choose(&[Header::BYTES, 1, 43, 45, 100]);
        self.guest.queue_bytes(&bytes, &[cut]);
    }

    /// Packets until the queue is full, each from a port of its own.
    fn send_many(&mut self, script: &mut Script<'_>) {
        let mut header = header(script, &self.guest);
        header.src_port = header.src_port.wrapping_add(self.flooded_from);
        while self.guest.queue_bytes(&header.emit(), &[]) {
            header.src_port = header.src_port.wrapping_add(1);
            self.flooded_from += 1;
        }
    }

    /// Any bytes anywhere in the rings.
    fn scribble(&mut self, script: &mut Script<'_>) {
        let [rx, tx, event] = self.guest.addresses();
        let ring = script.choose(&[rx, tx, event]);
        let part = script.choose(&[ring.descriptors, ring.available, ring.used]);
        let offset = u64::from(script.short() % (16 * QUEUE_SIZE));
        let count = script.below(32);
        self.guest.memory().write_slice(script.bytes(count), GuestAddress(part + offset)).expect("a ring in memory");
    }

    /// The host reads, writes, half-closes or closes one of its streams.
    fn use_stream(&mut self, script: &mut Script<'_>) {
        if self.streams.is_empty() {
            return;
        }
        let index = script.below(self.streams.len());
        let stream = &mut self.streams[index];
        match script.byte() % 8 {
            0..=2 => drop(send(stream, stretch(0, usize::from(script.short())))),
            3..=5 => drop(stream.read(&mut vec![0; usize::from(script.short())])),
            6 => drop(stream.shutdown(script.choose(&[std::net::Shutdown::Write, std::net::Shutdown::Read]))),
            _ => drop(self.streams.swap_remove(index)),
        }
    }
}

/// Whether a device may have been in this state.
fn is_of_device(state: &DeviceState) -> Result<(), InvalidSnapshot> {
    match *state {
        DeviceState { guest_cid: guest_cid @ (..=2 | 0xffff_ffff..), .. } => Err(InvalidSnapshot::GuestCid(guest_cid)),
        DeviceState { next_port, .. } if !is_port_of_device(next_port) => Err(InvalidSnapshot::NextPort(next_port)),
        _ => Ok(()),
    }
}

/// Whether a device may go on with this port.
fn is_port_of_device(port: u32) -> bool {
    (FIRST_PORT..FIRST_PORT + ALL_PORTS).contains(&port)
}

/// A header of the guest's, or nearly.
fn header(script: &mut Script<'_>, guest: &Guest) -> Header {
    // The ports of the connections that the host asked for are those before this one.
    let next_port = guest.device.state().next_port;
    let host_port = match script.byte() % 8 {
        0..=3 => script.choose(&PORTS),
        back => next_port.wrapping_sub(u32::from(back) - 3),
    };
    Header {
        src_cid: if script.byte() == 0 { script.long() } else { CID },
        dst_cid: if script.byte() == 0 { script.long() } else { HOST_CID },
        src_port: script.choose(&PORTS),
        dst_port: host_port,
        len: script.choose(&[0, 1, 100, 0x1_0000, 0x4_0000, 0x4_0001, u32::MAX]),
        socket_type: if script.byte() == 0 { script.short() } else { TYPE_STREAM },
        op: u16::from(script.byte() % 9),
        flags: u32::from(script.byte() % 5),
        buf_alloc: script.choose(&[0x4_0000, 0, 1, 1000, u32::MAX]),
        fwd_cnt: script.choose(&[0, 1, 1000, u32::MAX]),
    }
}

/// A few descriptors that may be anything, most of them with these flags.
fn raw_chain(script: &mut Script<'_>, flags: u16) -> Vec<RawDescriptor> {
    let count = 1 + script.below(6);
    (0..count)
        .map(|_| {
            let kind = script.byte();
            let address = if kind.is_multiple_of(8) { script.long() } else { TX_BUFFERS + u64::from(script.short()) };
            let len = if kind % 16 == 1 { script.word() } else { u32::from(script.byte()) };
            let next = if kind.is_multiple_of(4) { 0 } else { NEXT };
            let flags = if kind % 32 == 2 { script.short() } else { flags | next };
            (address, len, flags, script.short() % (2 * QUEUE_SIZE))
        })
        .collect()
}
