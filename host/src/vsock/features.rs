//! Feature bits: what the device offers, and what follows from the driver's choice (virtio 1.3, 5.10.3).

use super::spec::{F_EVENT_IDX, F_NO_IMPLIED_STREAM, F_STREAM, F_VERSION_1};

/// The feature bits that the device offers.
pub const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | F_STREAM | F_NO_IMPLIED_STREAM;

/// Whether a driver may choose these: all of them are offered, and version 1 is among them.
#[must_use]
pub fn accepts(driver_features: u64) -> bool {
    driver_features & !OFFERED == 0 && driver_features & F_VERSION_1 != 0
}

/// Whether this choice has stream sockets. It has, unless the driver chose that they are not implied.
#[must_use]
pub fn has_streams(driver_features: u64) -> bool {
    driver_features & F_STREAM != 0 || driver_features & F_NO_IMPLIED_STREAM == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_chooses_version_1_and_nothing_that_is_not_offered() {
        assert!(accepts(OFFERED));
        assert!(accepts(F_VERSION_1));
        assert!(!accepts(0));
        assert!(!accepts(F_EVENT_IDX | F_STREAM));
        assert!(!accepts(F_VERSION_1 | 1 << 1), "seqpacket sockets are not offered");
        assert!(!accepts(F_VERSION_1 | 1 << 63));
    }

    #[test]
    fn streams_are_implied_unless_the_driver_says_that_they_are_not() {
        assert!(has_streams(F_VERSION_1));
        assert!(has_streams(F_VERSION_1 | F_STREAM));
        assert!(has_streams(OFFERED));
        assert!(!has_streams(F_VERSION_1 | F_NO_IMPLIED_STREAM));
    }
}
