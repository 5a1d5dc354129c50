//! The register layout (virtio 1.3, 4.2.2).

/// `MagicValue`: "virt".
pub const MAGIC: u32 = 0x7472_6976;
/// `Version` of devices that are not legacy ones.
pub const VERSION: u32 = 2;
/// `VendorID`: this library's.
pub const VENDOR: u32 = u32::from_le_bytes(*b"scxv");

/// Where the device's configuration space begins.
pub const CONFIG: u64 = 0x100;
/// Bytes of guest address space of the registers, the configuration space included.
pub const BYTES: u64 = 0x200;
/// Where `QueueNotify` is, for a VMM that registers an ioeventfd there.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// A control register, with the access that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Read.
    MagicValue,
    /// Read.
    Version,
    /// Read.
    DeviceId,
    /// Read.
    VendorId,
    /// Read: the word of the device's features that is selected.
    DeviceFeatures,
    /// Written.
    DeviceFeaturesSel,
    /// Written: the word of the driver's features that is selected.
    DriverFeatures,
    /// Written.
    DriverFeaturesSel,
    /// Written: the queue that the registers of queues are about.
    QueueSel,
    /// Read.
    QueueNumMax,
    /// Written.
    QueueNum,
    /// Read and written.
    QueueReady,
    /// Written.
    QueueNotify,
    /// Read.
    InterruptStatus,
    /// Written.
    InterruptAck,
    /// Read and written.
    Status,
    /// Written: half of the address of one of the queue's three parts.
    QueueAddress(Part, Half),
    /// Read: a length or base of the selected shared memory region. There is none.
    SharedMemory,
    /// Read.
    ConfigGeneration,
}

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The descriptor table.
    Descriptors,
    /// The available ring.
    Driver,
    /// The used ring.
    Device,
}

/// Half of a 64-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

impl Half {
    /// Returns this half of `number`.
    #[must_use]
    pub fn of(self, number: u64) -> u32 {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        match self {
            Self::Low => u32::from_le_bytes([a, b, c, d]),
            Self::High => u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// Returns `number` with this half replaced.
    #[must_use]
    pub fn replaced(self, number: u64, half: u32) -> u64 {
        match self {
            Self::Low => number & !u64::from(u32::MAX) | u64::from(half),
            Self::High => number & u64::from(u32::MAX) | u64::from(half) << 32,
        }
    }

    /// Returns the half that a selector register selects, if any.
    #[must_use]
    pub fn selected(selector: u32) -> Option<Self> {
        match selector {
            0 => Some(Self::Low),
            1 => Some(Self::High),
            _ => None,
        }
    }
}

impl Register {
    /// Returns the register at this offset, if there is one.
    #[must_use]
    pub fn parse(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueNumMax,
            0x038 => Self::QueueNum,
            0x044 => Self::QueueReady,
            QUEUE_NOTIFY => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueAddress(Part::Descriptors, Half::Low),
            0x084 => Self::QueueAddress(Part::Descriptors, Half::High),
            0x090 => Self::QueueAddress(Part::Driver, Half::Low),
            0x094 => Self::QueueAddress(Part::Driver, Half::High),
            0x0a0 => Self::QueueAddress(Part::Device, Half::Low),
            0x0a4 => Self::QueueAddress(Part::Device, Half::High),
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => Self::SharedMemory,
            0x0fc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_offsets_are_no_registers() {
        let named = (0..CONFIG).filter(|&offset| Register::parse(offset).is_some()).count();
        assert_eq!(named, 27);
        assert_eq!(Register::parse(0x01), None);
        assert_eq!(Register::parse(0x40), None, "a register of legacy devices");
        assert_eq!(Register::parse(CONFIG), None);
    }

    #[test]
    fn halves_make_up_a_number() {
        let number = Half::High.replaced(Half::Low.replaced(u64::MAX, 0x89ab_cdef), 0x0123_4567);
        assert_eq!(number, 0x0123_4567_89ab_cdef);
        assert_eq!((Half::High.of(number), Half::Low.of(number)), (0x0123_4567, 0x89ab_cdef));
    }
}
