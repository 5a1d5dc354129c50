//! Where the guest's serial ports are.

/// The address of a serial port.
#[derive(Clone, Copy, Debug)]
pub(super) struct SerialAddress {
    /// Its first port.
    pub(super) port: u16,
    /// Its interrupt.
    pub(super) irq: u32,
}

impl SerialAddress {
    /// The number of ports that it has.
    pub(super) const PORTS: u8 = 8;

    /// Returns the register at this port, if it is one of its.
    pub(super) fn register(self, port: u16) -> Option<u8> {
        let register = u8::try_from(port.checked_sub(self.port)?).ok()?;
        (register < Self::PORTS).then_some(register)
    }
}

/// The console, which Linux calls `ttyS0`.
pub(super) const CONSOLE: SerialAddress = SerialAddress { port: 0x3f8, irq: 4 };
/// The one for commands, `ttyS1`.
pub(super) const COMMANDS: SerialAddress = SerialAddress { port: 0x2f8, irq: 3 };
