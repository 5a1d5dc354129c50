//! The device and its registers, as the VMM's bus and threads see them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;

use super::error::Error;
use super::interrupt::Interrupt;
use super::register::{CONFIG, CONFIG_CHANGE, Register, USED_BUFFER};
use super::registers::Registers;
use super::snapshot::{InvalidMmioSnapshot, MmioSnapshot};
use super::status::{Change, Step};
use crate::vsock::{Device, DeviceError, Handle};

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
    memory: A,
    interrupt: I,
    /// `InterruptStatus`: why the guest was interrupted, as far as the driver has not acknowledged it.
    interrupt_status: AtomicU32,
    handle: Handle,
    fd: OwnedFd,
    inner: Mutex<Inner>,
}

/// What is accessed under a lock.
#[derive(Debug)]
struct Inner {
    registers: Registers,
    device: Device,
    paused: bool,
}

impl<A: GuestAddressSpace, I: Interrupt> Mmio<A, I> {
    /// Returns the registers of `device`, which no driver has initialised.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Host`] if the host's kernel has no descriptor left.
    pub fn new(device: Device, memory: A, interrupt: I) -> Result<Self, Error> {
        let registers = Registers::new().map_err(DeviceError::from)?;
        Self::with(Inner { registers, device, paused: false }, memory, interrupt, 0)
    }

    fn with(inner: Inner, memory: A, interrupt: I, interrupt_status: u32) -> Result<Self, Error> {
        Ok(Self {
            memory,
            interrupt,
            interrupt_status: AtomicU32::new(interrupt_status),
            handle: inner.device.handle(),
            fd: inner.device.fd().try_clone_to_owned().map_err(DeviceError::from)?,
            inner: Mutex::new(inner),
        })
    }

    /// Returns the registers of `device` as they were when `snapshot` was taken, with the `memory` of that time. The
    /// device may have another CID than the one then. It is paused.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if no device can have been in this state; [`DeviceError::Host`] if the host's kernel has no
    /// descriptor left.
    pub fn restore(mut device: Device, memory: A, interrupt: I, snapshot: &MmioSnapshot) -> Result<Self, Error> {
        let mut registers = snapshot.registers()?;
        device.restore(&snapshot.device).map_err(InvalidMmioSnapshot::from)?;
        if device.state().guest_cid != snapshot.device.guest_cid {
            registers.on_config_change();
        }
        // A driver has chosen its features only once it runs.
        if registers.status().step() == Step::DriverOk {
            device.negotiate(registers.driver_features());
        }
        if registers.status().runs() {
            device.reset_transport();
        }
        Self::with(Inner { registers, device, paused: true }, memory, interrupt, snapshot.interrupt_status)
    }

    /// Leaves guest memory alone from the return of this call on. Connections that the host asks for meanwhile wait.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Goes on, with all that was made available meanwhile. To be called once the guest's interrupts work.
    ///
    /// # Errors
    ///
    /// [`Error::Interrupt`].
    pub fn resume(&self) -> Result<(), Error> {
        self.lock().paused = false;
        self.handle.wake();
        // An interrupt that had not reached the guest is not part of a snapshot.
        let unacknowledged = self.interrupt_status.load(Ordering::SeqCst) != 0;
        if unacknowledged { self.interrupt.trigger().map_err(Error::Interrupt) } else { Ok(()) }
    }

    /// Returns the state of the paused device, to be saved with guest memory.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`].
    pub fn snapshot(&self) -> Result<MmioSnapshot, Error> {
        let inner = self.lock();
        if !inner.paused {
            return Err(Error::NotPaused);
        }
        let interrupt_status = self.interrupt_status.load(Ordering::SeqCst);
        Ok(MmioSnapshot::of(&inner.registers, inner.device.state(), interrupt_status))
    }

    /// Returns the device's host side.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns a descriptor that is readable when [`service`](Self::service) is to be called.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Returns the event descriptor of queue notifications. Signalling it, as the kernel does for an ioeventfd, is the
    /// same as writing to `QueueNotify`.
    #[must_use]
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.handle.wake_fd()
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
        let config = self.lock().device.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(config.get(from..).unwrap_or_default()) {
            *to = *from;
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::InterruptStatus => self.interrupt_status.load(Ordering::SeqCst),
            register => self.lock().registers.read(register),
        }
    }

    /// Writes `data` at `offset` from the first register, for the guest. Control registers are four bytes wide; other
    /// widths, offsets in between, and the configuration space change nothing.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let (Some(register), Ok(data)) = (Register::parse(offset), <[u8; 4]>::try_from(data)) else { return };
        let value = u32::from_le_bytes(data);
        match register {
            Register::QueueNotify => self.handle.wake(),
            Register::InterruptAck => drop(self.interrupt_status.fetch_and(!value, Ordering::SeqCst)),
            register => self.write_register(register, value),
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        let mut inner = self.lock();
        match inner.registers.write(register, value) {
            Change::None => {}
            Change::Reset => {
                inner.device.reset();
                inner.device.negotiate(0);
                self.interrupt_status.store(0, Ordering::SeqCst);
            }
            Change::Run => {
                let driver_features = inner.registers.driver_features();
                inner.device.negotiate(driver_features);
                inner.device.wake();
            }
        }
    }

    /// Serves the guest and the host, without waiting. To be called when [`fd`](Self::fd) is readable.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] once when the guest's driver broke a queue: the driver finds that the device needs a reset, and
    /// the host's side may be used on, so that the device is to be served on. [`Error::Interrupt`].
    pub fn service(&self) -> Result<(), Error> {
        let (reasons, served) = self.service_queues();
        let triggered = if reasons == 0 { Ok(()) } else { self.interrupt.trigger() };
        served?;
        triggered.map_err(Error::Interrupt)
    }

    /// Returns the bits of `InterruptStatus` for which the guest is to be interrupted.
    fn service_queues(&self) -> (u32, Result<(), DeviceError>) {
        let mut inner = self.lock();
        let (reasons, served) = match inner.service(&self.memory) {
            Ok(used) => (if used { USED_BUFFER } else { 0 }, Ok(())),
            Err(error) => (inner.stop(&error), Err(error)),
        };
        // Under the lock, so that a reset clears them.
        self.interrupt_status.fetch_or(reasons, Ordering::SeqCst);
        (reasons, served)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole at every point where a thread could panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Returns whether the guest is to be interrupted for a used buffer.
    fn service<A: GuestAddressSpace>(&mut self, memory: &A) -> Result<bool, DeviceError> {
        if self.paused || !self.registers.status().runs() {
            self.device.service_host()?;
            return Ok(false);
        }
        let [rx, tx, event] = self.registers.queues();
        let interrupts = self.device.service(&*memory.memory(), rx, tx, Some(event))?;
        Ok(interrupts.any())
    }

    /// Stops the device. Returns the bits of `InterruptStatus` for which the guest is to be interrupted.
    fn stop(&mut self, error: &DeviceError) -> u32 {
        match error {
            DeviceError::Chain(_) | DeviceError::Ring(_) => {
                self.registers.set_needs_reset();
                CONFIG_CHANGE
            }
            DeviceError::Host(_) | DeviceError::MemoryGone | DeviceError::ReservedCid(_) => 0,
        }
    }
}

impl<A, I> AsFd for Mmio<A, I> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<A, I> fmt::Debug for Mmio<A, I> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Mmio").field("handle", &self.handle).field("inner", &self.inner).finish_non_exhaustive()
    }
}
