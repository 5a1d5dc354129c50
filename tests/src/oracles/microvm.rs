//! A microVM's devices whose guest reads and writes any port and any address without memory.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use scx_vsock::guest::microvm::{Bus, Outcome, PortWrite};
use scx_vsock::transport::mmio::{BYTES, Mmio};
use scx_vsock::vsock::Device;
use scx_vsock::vsock::test_util::guest_memory;

use super::Script;

/// Ports that something is likely at, so that scripts find them.
const PORTS: [u16; 10] = [0x3f8, 0x3fd, 0x3ff, 0x400, 0x2f8, 0x2ff, 0x600, 0x602, 0x64, 0xcf8];

/// Where the device's registers are.
const REGISTERS: u64 = 0xd000_0000;

type NoInterrupt = fn() -> io::Result<()>;

/// Runs a script.
///
/// # Panics
///
/// If the devices do what they must not.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let interrupt: NoInterrupt = || Ok(());
    let device = Device::new(3).expect("it works");
    let vsock = Arc::new(Mmio::new(device, Arc::new(guest_memory()), interrupt).expect("it works"));
    let (commands, host) = UnixStream::pair().expect("it works");
    let bus = Bus::new(Box::new(io::sink()), commands, [interrupt; 2], vsock).expect("it works");
    // Its reader is gone, so that a script never waits for it.
    drop(host);
    while !script.is_over() {
        step(&bus, &mut script);
    }
}

fn step(bus: &Bus<NoInterrupt>, script: &mut Script<'_>) {
    let kind = script.byte();
    let width = 1 << (kind >> 2 & 3);
    match kind & 3 {
        0 => write_port(bus, port(script), script.bytes(width)),
        1 => {
            let (port, mut data) = (port(script), [0; 8]);
            bus.read_port(port, &mut data[..width]).expect("no interrupt fails");
            assert!(width == 1 || data[..width].iter().all(|&byte| byte == 0xff), "a register of {width} bytes");
        }
        2 => bus.write(address(script), script.bytes(width)),
        _ => {
            let (address, mut data) = (address(script), [0; 8]);
            bus.read(address, &mut data[..width]);
            let is_device = (REGISTERS..REGISTERS + BYTES).contains(&address);
            assert!(is_device || data[..width].iter().all(|&byte| byte == 0xff), "there is nothing at {address:#x}");
        }
    }
}

fn write_port(bus: &Bus<NoInterrupt>, port: u16, data: &[u8]) {
    let ends = matches!((port, data), (0x600, [0x34]) | (0x602, [1]) | (0x64, [0xfe]));
    match bus.write_port(port, data) {
        PortWrite::Done => assert!(!ends, "{data:?} to port {port:#x} ends the guest"),
        PortWrite::Ended(Outcome::PoweredOff | Outcome::Reset | Outcome::Panicked { .. }) => {
            assert!(ends, "{data:?} to port {port:#x} does not end the guest");
        }
        other => panic!("{data:?} to port {port:#x}: {other:?}"),
    }
}

fn port(script: &mut Script<'_>) -> u16 {
    let choice = script.byte();
    match PORTS.get(usize::from(choice)) {
        Some(&port) => port,
        None => u16::from_le_bytes([choice, script.byte()]),
    }
}

fn address(script: &mut Script<'_>) -> u64 {
    let offset = u64::from(script.byte()) << 8 | u64::from(script.byte());
    // Around the registers, where most mistakes are.
    REGISTERS - 0x100 + offset
}
