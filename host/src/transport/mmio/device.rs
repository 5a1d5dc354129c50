//! The device's registers, as the VMM's bus and threads see them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard};

use vm_memory::GuestAddressSpace;

use super::interrupt::{Interrupt, Line};
use super::register::{CONFIG, Half, MAGIC, Part, Register, VENDOR, VERSION};
use super::selected::Selected;
use super::snapshot::MmioSnapshot;
use crate::io::lock::lock;
use crate::transport::virtio::{Error, MAX_QUEUE_SIZE, VirtioDevice};
use crate::vsock::spec::DEVICE_ID;
use crate::vsock::{Device, Handle};

/// A virtio-vsock device behind registers, for a guest whose memory is `A` and whose interrupt is `I`.
///
/// ```
/// use std::sync::Arc;
/// use rustix::event::{PollFd, PollFlags, poll};
/// use scx_vsock::transport::mmio::{Mmio, QUEUE_NOTIFY};
/// use scx_vsock::vsock::Device;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let interrupt = || Ok(()); // ... the guest's
/// let device = Mmio::new(Device::new(3)?, Arc::clone(&memory), interrupt)?;
/// // A virtual processor's exit:
/// let mut magic = [0; 4];
/// device.read(0, &mut magic);
/// assert_eq!(magic, *b"virt");
/// device.write(QUEUE_NOTIFY, &[1, 0, 0, 0]);
/// // The thread that serves the device:
/// assert_eq!(poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], None)?, 1);
/// device.service()?;
/// // A snapshot, and another device that goes on from it:
/// device.pause();
/// let saved = serde_json::to_string(&device.snapshot()?)?;
/// let restored = Mmio::restore(Device::new(4)?, memory, interrupt, &serde_json::from_str(&saved)?)?;
/// restored.resume()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mmio<A, I> {
    virtio: VirtioDevice<A, Line<I>>,
    selected: Mutex<Selected>,
}

impl<A: GuestAddressSpace, I: Interrupt> Mmio<A, I> {
    /// Returns the registers of `device`, which no driver has initialised.
    ///
    /// # Errors
    ///
    /// As [`VirtioDevice::new`].
    pub fn new(device: Device, memory: A, interrupt: I) -> Result<Self, Error> {
        let virtio = VirtioDevice::new(device, memory, Line(interrupt))?;
        Ok(Self { virtio, selected: Mutex::default() })
    }

    /// Returns the registers of `device` as they were when `snapshot` was taken, with the `memory` of that time. The
    /// device may have another CID than the one then. It is paused.
    ///
    /// # Errors
    ///
    /// As [`VirtioDevice::restore`].
    pub fn restore(device: Device, memory: A, interrupt: I, snapshot: &MmioSnapshot) -> Result<Self, Error> {
        let (virtio, selected) = snapshot.parts();
        let virtio = VirtioDevice::restore(device, memory, Line(interrupt), &virtio)?;
        Ok(Self { virtio, selected: Mutex::new(selected) })
    }

    /// Leaves guest memory alone from the return of this call on. Connections that the host asks for meanwhile wait.
    pub fn pause(&self) {
        self.virtio.pause();
    }

    /// Goes on, with all that was made available meanwhile. To be called once the guest's interrupts work.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupt`].
    pub fn resume(&self) -> Result<(), Error> {
        self.virtio.resume()
    }

    /// Returns the state of the paused device, to be saved with guest memory.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`].
    pub fn snapshot(&self) -> Result<MmioSnapshot, Error> {
        Ok(MmioSnapshot::new(self.virtio.snapshot()?, *self.selected()))
    }

    /// Reads `data.len()` bytes at `offset` from the first register, for the guest. Where there is nothing to be read,
    /// zeros are.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.read_config(offset, data);
        } else if let (Some(register), Ok(data)) = (Register::parse(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(register).to_le_bytes();
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.virtio.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.get(from..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Returns the value of a register; 0 where it can only be written.
    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => DEVICE_ID,
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => {
                self.selected().device_half().map_or(0, |half| half.of(self.virtio.device_features()))
            }
            Register::QueueNumMax => {
                self.virtio.queue_layout(self.selected().queue()).map_or(0, |_| MAX_QUEUE_SIZE.into())
            }
            Register::QueueReady => self.virtio.is_queue_ready(self.selected().queue()).into(),
            Register::InterruptStatus => self.virtio.interrupt_status(),
            Register::Status => self.virtio.status(),
            Register::SharedMemory => u32::MAX,
            Register::ConfigGeneration => self.virtio.config_generation(),
            _ => 0,
        }
    }

    /// Writes `data` at `offset` from the first register, for the guest. Control registers are four bytes wide; other
    /// widths, offsets in between, and the configuration space change nothing.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let (Some(register), Ok(data)) = (Register::parse(offset), <[u8; 4]>::try_from(data)) else { return };
        let value = u32::from_le_bytes(data);
        match register {
            Register::QueueNotify => self.virtio.notify(),
            Register::InterruptAck => drop(self.virtio.acknowledge_interrupts(value)),
            register => self.write_register(register, value),
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        let mut selected = self.selected();
        let queue = selected.queue();
        match register {
            Register::DeviceFeaturesSel => selected.device_features = value,
            Register::DriverFeaturesSel => selected.driver_features = value,
            Register::QueueSel => selected.queue = value,
            Register::DriverFeatures => self.write_driver_features(selected.driver_half(), value),
            Register::QueueNum => self.virtio.lay_out_queue(queue, |layout| layout.size = value),
            Register::QueueAddress(part, half) => self.write_address(queue, part, half, value),
            Register::QueueReady if value == 1 => self.virtio.start_queue(queue),
            Register::QueueReady => self.virtio.stop_queue(queue),
            Register::Status => {
                self.virtio.write_status(value);
                if value == 0 {
                    *selected = Selected::default();
                }
            }
            _ => {}
        }
    }

    fn write_driver_features(&self, half: Option<Half>, word: u32) {
        if let Some(half) = half {
            self.virtio.set_driver_features(half.replaced(self.virtio.driver_features(), word));
        }
    }

    fn write_address(&self, queue: usize, part: Part, half: Half, value: u32) {
        self.virtio.lay_out_queue(queue, |layout| {
            let address = match part {
                Part::Descriptors => &mut layout.descriptors,
                Part::Driver => &mut layout.driver,
                Part::Device => &mut layout.device,
            };
            *address = half.replaced(*address, value);
        });
    }

    /// Serves the guest and the host, without waiting. To be called when [`fd`](Self::fd) is readable.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] once when the guest's driver broke a queue: the driver finds that the device needs a reset, and
    /// the host's side may be used on, so that the device is to be served on. [`Error::Interrupt`].
    pub fn service(&self) -> Result<(), Error> {
        self.virtio.service()
    }
}

impl<A, I> Mmio<A, I> {
    /// Returns the device's host side.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.virtio.handle()
    }

    /// Returns a descriptor that is readable when [`service`](Self::service) is to be called.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.virtio.fd()
    }

    /// Returns the event descriptor of queue notifications. Signalling it, as the kernel does for an ioeventfd, is the
    /// same as writing to `QueueNotify`.
    #[must_use]
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.virtio.notify_fd()
    }

    fn selected(&self) -> MutexGuard<'_, Selected> {
        lock(&self.selected)
    }
}

impl<A, I> AsFd for Mmio<A, I> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

impl<A, I> fmt::Debug for Mmio<A, I> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mmio").field("virtio", &self.virtio).field("selected", &self.selected).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn device() -> Mmio<std::sync::Arc<GuestMemoryMmap>, impl Fn() -> io::Result<()>> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        Mmio::new(Device::new(3).unwrap(), memory.into(), || Ok(())).unwrap()
    }

    fn read<I: Interrupt>(device: &Mmio<std::sync::Arc<GuestMemoryMmap>, I>, register: Register) -> u32 {
        device.read_register(register)
    }

    fn write_all<I: Interrupt>(device: &Mmio<std::sync::Arc<GuestMemoryMmap>, I>, writes: &[(Register, u32)]) {
        for &(register, value) in writes {
            device.write_register(register, value);
        }
    }

    #[test]
    fn it_is_a_modern_vsock_device() {
        let device = device();
        assert_eq!((read(&device, Register::MagicValue), read(&device, Register::Version)), (0x7472_6976, 2));
        assert_eq!((read(&device, Register::DeviceId), read(&device, Register::Status)), (19, 0));
    }

    #[test]
    fn features_are_read_a_word_at_a_time() {
        let device = device();
        let word = |selected| {
            device.write_register(Register::DeviceFeaturesSel, selected);
            read(&device, Register::DeviceFeatures)
        };
        assert_eq!((word(0), word(1), word(2), word(u32::MAX)), (1 << 29 | 0b101, 1, 0, 0));
    }

    #[test]
    fn an_unknown_selector_selects_nothing() {
        let device = device();
        write_all(&device, &[(Register::Status, 3), (Register::DriverFeaturesSel, 2)]);
        device.write_register(Register::DriverFeatures, u32::MAX);
        assert_eq!(device.virtio.driver_features(), 0);
        write_all(&device, &[(Register::DriverFeaturesSel, 1), (Register::DriverFeatures, 1), (Register::Status, 11)]);
        assert_eq!(read(&device, Register::Status), 11);
        for queue in [3, 100, u32::MAX] {
            write_all(&device, &[(Register::QueueSel, queue), (Register::QueueNum, 16), (Register::QueueReady, 1)]);
            assert_eq!((read(&device, Register::QueueNumMax), read(&device, Register::QueueReady)), (0, 0));
        }
    }

    #[test]
    fn a_queue_starts_with_what_was_written_in_halves() {
        let device = device();
        write_all(&device, &[(Register::Status, 3), (Register::DriverFeaturesSel, 1), (Register::DriverFeatures, 1)]);
        write_all(&device, &[(Register::Status, 11), (Register::QueueSel, 1), (Register::QueueNum, 16)]);
        for (part, address) in [(Part::Descriptors, 0x1000), (Part::Driver, 0x2000), (Part::Device, 0x3000)] {
            write_all(&device, &[(Register::QueueAddress(part, Half::High), 1)]);
            write_all(&device, &[(Register::QueueAddress(part, Half::Low), address)]);
        }
        write_all(&device, &[(Register::QueueReady, 1)]);
        assert_eq!(read(&device, Register::QueueReady), 0, "it is outside of guest memory");
        for part in [Part::Descriptors, Part::Driver, Part::Device] {
            write_all(&device, &[(Register::QueueAddress(part, Half::High), 0)]);
        }
        write_all(&device, &[(Register::QueueReady, 1)]);
        assert_eq!(read(&device, Register::QueueReady), 1);
        let layout = device.virtio.queue_layout(1).unwrap();
        assert_eq!((layout.size, layout.driver), (16, 0x2000));
    }

    #[test]
    fn a_reset_clears_what_was_selected() {
        let device = device();
        write_all(&device, &[(Register::QueueSel, 2), (Register::DriverFeaturesSel, 1), (Register::Status, 0)]);
        assert_eq!(*device.selected(), Selected::default());
    }

    #[test]
    fn there_is_no_shared_memory() {
        assert_eq!(read(&device(), Register::SharedMemory), u32::MAX);
    }
}
