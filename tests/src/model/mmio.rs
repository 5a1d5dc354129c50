//! A driver that reads and writes any register at any time: its device stays within its bounds, tells the truth about its
//! configuration space, survives being saved at any moment, and serves after the next sound initialisation.

use scx_vsock::vsock::DeviceError;

use super::Script;
use crate::guest_driver::{CID, Guest, TX_BUFFERS};
use crate::mmio_driver::Registers;

/// Steps of one script.
const MAX_STEPS: usize = 300;

/// Where the configuration space begins.
const CONFIG: u64 = 0x100;

/// Registers that a driver writes (virtio 1.3, 4.2.2).
const WRITTEN: [u64; 16] =
    [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xc0];

/// Values that mean something in one of them or another.
const VALUES: [u32; 16] = [0, 1, 2, 3, 7, 11, 15, 64, 128, 100, 1024, 1025, 0x8000, 0x10_0000, 0x20_0000, u32::MAX];

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut guest = Guest::behind_registers();
    let mut streams = Vec::new();
    for _ in 0..MAX_STEPS {
        if script.is_over() {
            break;
        }
        match script.byte() % 12 {
            0..=4 => guest.device.write(script.choose(&WRITTEN), script.choose(&VALUES)),
            5 => guest.device.write(u64::from(script.short()), script.word()),
            6 => {
                let width = script.below(10);
                guest.device.mmio.write(script.choose(&WRITTEN), script.bytes(width));
            }
            7 => reads_config(&guest, u64::from(script.byte() % 12), script.below(10)),
            8 => {
                let _any = guest.device.read(u64::from(script.short() % 0x200));
            }
            9 => guest.queue_raw(&[(TX_BUFFERS + u64::from(script.byte()), script.word(), script.short() % 8, 0)]),
            10 => streams.extend(guest.handle().connect(u32::from(script.byte()))),
            _ => is_saved(&guest),
        }
        serve(&mut guest);
    }
    streams.clear();
    guest.boot();
    guest.serves_on();
}

/// The device does what there is to do. A driver that broke a queue is told.
fn serve(guest: &mut Guest<Registers>) {
    match guest.try_service() {
        Ok(()) | Err(DeviceError::Chain(_) | DeviceError::Ring(_)) => {}
        Err(other) => panic!("a guest made its device fail otherwise: {other}"),
    }
    let _reasons = guest.device.take_interrupt();
}

/// A part of the configuration space, which is the guest's CID and zeros.
fn reads_config(guest: &Guest<Registers>, offset: u64, width: usize) {
    let mut bytes = vec![0xff; width];
    guest.device.mmio.read(CONFIG + offset, &mut bytes);
    let all = [&CID.to_le_bytes()[..], &[0; 32]].concat();
    let from = usize::try_from(offset).expect("a small offset");
    assert_eq!(bytes, all[from..from + width], "{width} bytes at {offset}");
}

/// The device is saved between two steps, and goes on.
fn is_saved(guest: &Guest<Registers>) {
    guest.device.mmio.pause();
    let state = guest.device.mmio.snapshot().expect("a paused device");
    let saved = serde_json::to_string(&state).expect("plain data");
    assert!(saved.len() < 10_000, "{saved}");
    guest.device.mmio.resume().expect("an interrupt");
}
