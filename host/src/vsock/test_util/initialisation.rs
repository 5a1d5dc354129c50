//! The register writes of a driver that initialises a virtio-mmio device.

use super::{QUEUE_SIZE, QueueAddresses};

/// Register offsets (virtio 1.3, 4.2.2).
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];

/// Status bits (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Returns the writes of virtio-mmio registers with which a driver initialises its device (virtio 1.3, 3.1.1 and 4.2.3.2):
/// offsets from the first register, and values of 32 bits. They begin with a reset, and are about `queues`, each of
/// [`QUEUE_SIZE`] entries, and `features`.
///
/// ```
/// use std::sync::Arc;
/// use scx_vsock::transport::mmio::Mmio;
/// use scx_vsock::vsock::Device;
/// use scx_vsock::vsock::test_util::{SimulatedDriver, guest_memory, mmio_initialisation};
///
/// let driver = SimulatedDriver::new(guest_memory());
/// let device = Mmio::new(Device::new(3)?, Arc::new(driver.memory().clone()), || Ok(()))?;
/// for (offset, value) in mmio_initialisation(&driver.addresses(), Device::FEATURES) {
///     device.write(offset, &value.to_le_bytes());
/// }
/// let mut status = [0; 4];
/// device.read(0x70, &mut status);
/// assert_eq!(status, [1 | 2 | 4 | 8, 0, 0, 0], "DRIVER_OK, and no reset is needed");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub fn mmio_initialisation(queues: &[QueueAddresses], features: u64) -> Vec<(u64, u32)> {
    let mut writes = vec![(STATUS, 0), (STATUS, ACKNOWLEDGE), (STATUS, ACKNOWLEDGE | DRIVER)];
    for (word, value) in (0..).zip(halves(features)) {
        writes.extend([(DRIVER_FEATURES_SEL, word), (DRIVER_FEATURES, value)]);
    }
    writes.push((STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK));
    for (index, queue) in (0..).zip(queues) {
        writes.extend([(QUEUE_SEL, index), (QUEUE_NUM, QUEUE_SIZE.into())]);
        for (offset, address) in QUEUE_ADDRESSES.into_iter().zip([queue.descriptors, queue.available, queue.used]) {
            let [low, high] = halves(address);
            writes.extend([(offset, low), (offset + 4, high)]);
        }
        writes.push((QUEUE_READY, 1));
    }
    writes.push((STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK));
    writes
}

/// Returns the low and the high word of a number.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
