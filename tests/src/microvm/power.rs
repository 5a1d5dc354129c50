//! The registers by which the guest ends itself (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use super::processor::End;

/// The sleep control register's port.
pub const SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register's port. It says that the guest does not wake up.
pub const SLEEP_STATUS: u16 = 0x601;
/// The reset register's port.
pub const RESET: u16 = 0x602;

/// What a write to the reset register means a reset by.
pub const RESET_VALUE: u8 = 1;
/// The state that a guest which is turned off sleeps in.
pub const OFF: u8 = 5;

/// Begins to sleep.
const ENABLE: u8 = 1 << 5;
const STATE_SHIFT: u8 = 2;

/// What the guest's write to a port ends it by, if it does.
#[must_use]
pub fn written(port: u16, value: u8) -> Option<End> {
    match port {
        SLEEP_CONTROL if value == OFF << STATE_SHIFT | ENABLE => Some(End::PoweredOff),
        RESET if value == RESET_VALUE => Some(End::Reset),
        _ => None,
    }
}
