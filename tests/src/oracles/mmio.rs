//! A driver that reads and writes any register at any time, and is saved at any moment and restored from any state: its
//! device stays within its bounds, is honest about its configuration space, disturbs no other, and serves after the
//! next sound initialisation.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use scx_vsock::transport::mmio::{Error, MmioSnapshot};
use scx_vsock::vsock::DeviceError;
use scx_vsock::vsock::spec::EVENT_BYTES;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

use super::corrupt_state::Saved;
use super::transport_reset::{Queues, TransportReset};
use super::{Script, all_have_ended};
use crate::guest_driver::{CID, Connection, Guest, RawRings, WRITE};
use crate::mmio_driver::Registers;
use scx_vsock::vsock::test_util::TX_BUFFERS;

/// Steps of one script.
const MAX_STEPS: usize = 300;

/// Where the configuration space begins.
const CONFIG: u64 = 0x100;

/// Registers that a driver writes (virtio 1.3, 4.2.2).
const WRITTEN: [u64; 16] =
    [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xc0];

/// Values that mean something in one of them or another.
const VALUES: [u32; 16] = [0, 1, 2, 3, 7, 11, 15, 64, 128, 100, 1024, 1025, 0x8000, 0x10_0000, 0x20_0000, u32::MAX];

/// The status of a device whose driver runs.
const RUNNING: u64 = 15;

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new();
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.serve();
    }
    world.ends();
}

/// A guest with its device, what its host asked for, and another guest of the process.
struct World {
    guest: Guest<Registers>,
    streams: Vec<UnixStream>,
    other: Guest<Registers>,
    untouched: Connection,
}

impl World {
    fn new() -> Self {
        let mut other = Guest::behind_registers();
        let untouched = other.connect_from_host(1);
        Self { guest: Guest::behind_registers(), streams: Vec::new(), other, untouched }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let guest = &mut self.guest;
        match script.byte() % 16 {
            0..=4 => guest.device.write(script.choose(&WRITTEN), script.choose(&VALUES)),
            5 => guest.device.write(u64::from(script.short()), script.word()),
            6 => {
                let width = script.below(10);
                guest.device.mmio.write(script.choose(&WRITTEN), script.bytes(width));
            }
            7 => reads_config(guest, u64::from(script.byte() % 12), script.below(10)),
            8 => {
                let _any = guest.device.read(u64::from(script.short() % 0x200));
            }
            9 => guest.queue_raw(&[(TX_BUFFERS + u64::from(script.byte()), script.word(), script.short() % 8, 0)]),
            10 => self.streams.extend(guest.handle().connect(u32::from(script.byte()))),
            11 => {
                let _state = self.save();
                self.go_on();
            }
            12 | 13 => self.restore(script),
            14 => drop(guest.post_event(script.choose(&[EVENT_BYTES, 0, EVENT_BYTES - 1, 100]))),
            _ => guest.post_event_raw(&[(TX_BUFFERS + u64::from(script.byte()), script.word(), WRITE, 0)]),
        }
    }

    /// Serves the device. A driver that broke a queue is notified.
    fn serve(&mut self) {
        match self.guest.try_service() {
            Ok(()) | Err(DeviceError::Chain(_) | DeviceError::Ring(_)) => {}
            Err(other) => panic!("a guest made its device fail otherwise: {other}"),
        }
        let _reasons = self.guest.device.take_interrupt();
    }

    /// The state of the device, which is paused from now on.
    fn save(&self) -> MmioSnapshot {
        self.guest.device.mmio.pause();
        let state = self.guest.device.mmio.snapshot().expect("a paused device");
        let saved = serde_json::to_string(&state).expect("plain data");
        assert!(saved.len() < 10_000, "{saved}");
        state
    }

    fn go_on(&self) {
        self.guest.device.mmio.resume().expect("an interrupt");
    }

    /// Another device takes this one's place, over the same memory: in the state that was saved, or in what somebody has
    /// made of it. A state that is refused is refused for what is in it, and this device goes on.
    fn restore(&mut self, script: &mut Script<'_>) {
        let state = json_of(&self.save());
        let saved = Saved::corrupt(&state, script);
        let read = serde_json::from_str::<MmioSnapshot>(&saved.text);
        assert!(!(saved.is_malformed && read.is_ok()), "{}", saved.text);
        match read.map(|read| (Registers::restored(self.guest.memory(), &read), read)) {
            Ok((Ok(restored), read)) => self.begin_restored(restored, json_of(&read)),
            Ok((Err(Error::Snapshot(_)), _)) | Err(_) => {
                assert!(!saved.is_intact, "{}", saved.text);
                self.go_on();
            }
            Ok((Err(other), _)) => panic!("a state made its device fail otherwise: {other}"),
        }
    }

    /// A restored device is in its state and nothing else: what its driver made available is as far as it was, and
    /// connections are gone. It leaves memory alone until it goes on, and packets until its driver knows.
    fn begin_restored(&mut self, restored: Registers, mut state: Value) {
        let before = self.guest.handle();
        self.guest.device = restored;
        all_have_ended(&before, Vec::new(), std::mem::take(&mut self.streams));
        if state["device"]["guest_cid"] != CID {
            state["device"]["guest_cid"] = CID.into();
            let generation = state["config_generation"].as_u64().and_then(|before| u32::try_from(before).ok());
            state["config_generation"] = generation.expect("a register").wrapping_add(1).into();
        }
        assert_eq!(json_of(&self.save()), state);
        self.guest.device.mmio.service().expect("a paused device breaks nothing");
        assert_eq!(json_of(&self.save()), state);
        let waiting = self.guest.handle().connect(1).expect("a device");
        self.first_turn(&state);
        // Before a driver runs, nobody knows what it will choose.
        if state["status"].as_u64().is_some_and(|status| status & RUNNING != RUNNING) {
            let waits = (&waiting).read(&mut [0]).expect_err("no driver has ended it");
            assert_eq!(waits.kind(), ErrorKind::WouldBlock);
        }
        self.streams.push(waiting);
    }

    /// The restored device goes on for the first time.
    fn first_turn(&mut self, state: &Value) {
        let is_pending = state["status"] == RUNNING && state["queues"][2]["ready"] == true;
        let mut transport_reset = if is_pending { TransportReset::Pending } else { TransportReset::Idle };
        let before = self.queues(state);
        self.go_on();
        self.serve();
        let after = self.queues(&json_of(&self.save()));
        self.go_on();
        if is_pending {
            transport_reset.follow(&before, &after, EVENT_BYTES);
        }
    }

    fn queues(&self, state: &Value) -> Queues {
        let number = |queue: usize, pointer| {
            let number = state["queues"][queue].pointer(pointer).and_then(Value::as_u64);
            number.expect("what a state has")
        };
        let used = [0, 1, 2].map(|queue| u16::try_from(number(queue, "/next")).expect("an index"));
        let ring = GuestAddress(number(2, "/layout/driver").wrapping_add(2));
        Queues { used, events: self.guest.memory().read_obj(ring).unwrap_or(0) }
    }

    /// Whatever was before, the next driver is served, also when it is saved and restored; and the other guest was not
    /// disturbed.
    fn ends(mut self) {
        self.streams.clear();
        self.guest.boot();
        self.guest.serves_on();
        let state = self.save();
        self.guest.device = Registers::restored(self.guest.memory(), &state).expect("a state of before");
        self.go_on();
        self.guest.take_transport_reset();
        self.guest.serves_on();
        assert_eq!(self.untouched.transfer_to_host(&mut self.other, b"other", 5), b"other");
        assert_eq!(self.untouched.transfer_to_guest(&mut self.other, b"guest"), b"guest");
    }
}

fn json_of(state: &MmioSnapshot) -> Value {
    serde_json::to_value(state).expect("plain data")
}

/// A part of the configuration space, which is the guest's CID and zeros.
fn reads_config(guest: &Guest<Registers>, offset: u64, width: usize) {
    let mut bytes = vec![0xff; width];
    guest.device.mmio.read(CONFIG + offset, &mut bytes);
    let all = [&CID.to_le_bytes()[..], &[0; 32]].concat();
    let from = usize::try_from(offset).expect("a small offset");
    assert_eq!(bytes, all[from..from + width], "{width} bytes at {offset}");
}
