//! The devices that the guest reaches through ports and through addresses without memory.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::Result;
use scx_vsock::guest::Console;
use scx_vsock::transport::kvm::Irq;
use scx_vsock::transport::mmio::{BYTES, Mmio, QUEUE_NOTIFY};
use vm_memory::GuestMemoryMmap;

use super::exit_reason::ExitReason;
use super::memory_map::REGISTERS;
use super::power;
use super::serial::{COMMANDS, CONSOLE, SerialPort};

/// The vsock device of a guest on KVM.
pub type KvmMmio = Mmio<Arc<GuestMemoryMmap>, Irq>;

/// The guest's devices.
#[derive(Debug)]
pub struct Bus {
    /// The guest's console.
    pub console: SerialPort<Console>,
    /// The guest's port for commands.
    pub commands: Arc<SerialPort<UnixStream>>,
    /// The device under test.
    pub vsock: Arc<KvmMmio>,
    /// Queue notifications that came as exits instead of through an ioeventfd.
    pub notify_exits: usize,
}

impl Bus {
    /// The guest reads from a port. A port without a device reads as all ones.
    pub fn read_port(&self, port: u16, data: &mut [u8]) -> Result<()> {
        data.fill(0xff);
        if let [byte] = data {
            if let Some(register) = CONSOLE.register(port) {
                *byte = self.console.read(register)?;
            } else if let Some(register) = COMMANDS.register(port) {
                *byte = self.commands.read(register)?;
            }
        }
        Ok(())
    }

    /// The guest writes to a port. Returns why the guest ends, if the write ends it.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Result<Option<ExitReason>> {
        let &[byte] = data else { return Ok(None) };
        if let Some(register) = CONSOLE.register(port) {
            self.console.write(register, byte)?;
        } else if let Some(register) = COMMANDS.register(port) {
            self.commands.write(register, byte)?;
        }
        Ok(power::on_write(port, byte))
    }

    /// The guest reads where there is no memory.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match offset(address) {
            Some(offset) => self.vsock.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes where there is no memory.
    pub fn write(&mut self, address: u64, data: &[u8]) {
        if let Some(offset) = offset(address) {
            self.notify_exits += usize::from(offset == QUEUE_NOTIFY);
            self.vsock.write(offset, data);
        }
    }
}

/// Returns the offset of a register of the vsock device.
fn offset(address: u64) -> Option<u64> {
    address.checked_sub(REGISTERS).filter(|&offset| offset < BYTES)
}
