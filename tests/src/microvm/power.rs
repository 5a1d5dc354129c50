//! The registers by which the guest ends itself (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use super::exit_reason::ExitReason;

/// The sleep control register's port.
pub const SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register's port.
pub const SLEEP_STATUS: u16 = 0x601;
/// The reset register's port.
pub const RESET: u16 = 0x602;

/// The value that resets when written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep state of a guest that is turned off.
pub const OFF: u8 = 5;

/// Begins to sleep.
const ENABLE: u8 = 1 << 5;
const STATE_SHIFT: u8 = 2;

/// Returns why the guest's write to a port ends it, if it does.
#[must_use]
pub fn on_write(port: u16, value: u8) -> Option<ExitReason> {
    match port {
        SLEEP_CONTROL if value == OFF << STATE_SHIFT | ENABLE => Some(ExitReason::PoweredOff),
        RESET if value == RESET_VALUE => Some(ExitReason::Reset),
        _ => None,
    }
}
