//! The registers by which the guest ends itself (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use super::outcome::Outcome;

/// The sleep control register's port.
pub(super) const SLEEP_CONTROL: u16 = 0x600;
/// The sleep status register's port.
pub(super) const SLEEP_STATUS: u16 = 0x601;
/// The reset register's port.
pub(super) const RESET: u16 = 0x602;

/// The value that resets when written to the reset register.
pub(super) const RESET_VALUE: u8 = 1;
/// The sleep state of a guest that is turned off.
pub(super) const OFF: u8 = 5;

/// Begins to sleep.
const ENABLE: u8 = 1 << 5;
const STATE_SHIFT: u8 = 2;

/// The keyboard controller's command port and its command to reset, by which kernels try it if ACPI did not.
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// Returns why the guest's write to a port ends it, if it does.
pub(super) fn on_write(port: u16, value: u8) -> Option<Outcome> {
    match (port, value) {
        (SLEEP_CONTROL, value) if value == OFF << STATE_SHIFT | ENABLE => Some(Outcome::PoweredOff),
        (RESET, RESET_VALUE) | (KEYBOARD_COMMAND, KEYBOARD_RESET) => Some(Outcome::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_writes_end_the_guest() {
        let all = (0..=u16::MAX).flat_map(|port| (0..=u8::MAX).map(move |value| (port, value)));
        let ends: Vec<_> = all.filter_map(|(port, value)| Some((port, value, on_write(port, value)?))).collect();
        let expected = [(0x64, 0xfe, Outcome::Reset), (0x600, 0x34, Outcome::PoweredOff), (0x602, 1, Outcome::Reset)];
        assert_eq!(ends, expected);
    }
}
