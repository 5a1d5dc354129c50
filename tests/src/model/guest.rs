//! A guest that does anything, with rings that hold anything: its device never fails, never works without end, never
//! holds more than its bound, does not disturb another guest's, and after a reset serves like any other.

use std::io::Read;
use std::os::unix::net::UnixStream;

use scx_vsock::vsock::Key;
use scx_vsock::vsock::MAX_RESETS;
use scx_vsock::vsock::header::Header;
use scx_vsock::vsock::spec::{HOST_CID, TYPE_STREAM};
use scx_vsock::vsock::{BUFFER_BYTES, DeviceError, Listener, MAX_CONNECTIONS, MAX_HELD_BYTES};
use vm_memory::{Bytes, GuestAddress};

use super::{Script, send, stretch};
use crate::guest_driver::{CID, Guest, NEXT, QUEUE_SIZE, RawDescriptor, TX_BUFFERS, WRITE};

/// Ports that guest and host use: few, so that they meet.
const PORTS: [u32; 4] = [1, 2, 729, u32::MAX];

/// Steps of one script.
const MAX_STEPS: usize = 500;

/// A guest and what its host does meanwhile.
struct World {
    guest: Guest,
    /// Whether the device has stopped, until it is reset.
    stopped: bool,
    listeners: Vec<Listener>,
    streams: Vec<UnixStream>,
    /// Connections that the host asked for.
    asked_for: usize,
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
}

impl World {
    fn new() -> Self {
        let guest = Guest::without_buffers();
        let listeners = PORTS.iter().filter_map(|&port| guest.device.handle().listen(port).ok()).collect();
        Self { guest, stopped: false, listeners, streams: Vec::new(), asked_for: 0 }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 24 {
            0..=5 => self.send_packet(script),
            6 => self.send_many(script),
            7 => self.guest.post_all(script.choose(&[45, 64, 4096, 0x1_0000])),
            8 => drop(self.guest.post(u32::from(script.byte()))),
            9 => self.guest.queue_raw(&raw_chain(script, 0)),
            10 => self.guest.post_raw(&raw_chain(script, WRITE)),
            11 => self.guest.queue_head(script.short()),
            12 => self.guest.jump_available(script.short()),
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
            _ => while self.guest.receive_raw() {},
        }
    }

    /// The device does what there is to do, and is within its bounds.
    fn serve(&mut self) {
        match self.guest.try_service() {
            Ok(()) => {}
            Err(DeviceError::Chain(_) | DeviceError::Ring(_)) => {
                assert!(!self.stopped, "a device that has stopped says so once");
                self.stopped = true;
            }
            Err(other) => panic!("a guest made its device fail otherwise: {other}"),
        }
        assert!(self.guest.device.connections() <= MAX_CONNECTIONS);
        let held = self.guest.device.held_bytes();
        assert!(held <= MAX_HELD_BYTES);
        // More exactly: a spill and a turn for each connection that there is, and resets, of which the host causes one
        // where it gives up what it asked for.
        let connections = self.guest.device.connections();
        let resets = (MAX_RESETS + self.asked_for) * size_of::<Header>();
        assert!(held <= connections * (BUFFER_BYTES as usize + size_of::<Key>()) + resets, "{held} bytes");
    }

    fn restart(&mut self) {
        self.guest.reboot();
        self.stopped = false;
    }

    /// A packet that is honest but for what the script says otherwise.
    fn send_packet(&mut self, script: &mut Script<'_>) {
        let header = header(script, &self.guest);
        let size = script.choose(&[header.len.min(0x4_0000), 0, 1, 100]);
        let bytes = [&header.emit()[..], stretch(0, size as usize)].concat();
        let cut = script.choose(&[Header::BYTES, 1, 43, 45, 100]);
        self.guest.queue_bytes(&bytes, &[cut]);
    }

    /// The same packet until the queue is full.
    fn send_many(&mut self, script: &mut Script<'_>) {
        let bytes = header(script, &self.guest).emit();
        while self.guest.queue_bytes(&bytes, &[]) {}
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

/// A header of the guest's, or nearly.
fn header(script: &mut Script<'_>, guest: &Guest) -> Header {
    // The ports of the connections that the host asked for begin here and count up.
    let near = (1 << 30) + u32::try_from(guest.device.connections()).unwrap_or(0);
    let host_port = match script.byte() % 8 {
        0..=3 => script.choose(&PORTS),
        back => near.wrapping_sub(u32::from(back) - 4),
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
