//! The device behind virtio-mmio registers (virtio 1.3, 4.2), for a monitor's own bus.
//!
//! A monitor puts [`BYTES`] of guest address space at an address of its choice, tells the guest of it and of an
//! interrupt, and gives every access there to [`Mmio::read`] or [`Mmio::write`]. `register` names the registers,
//! `status` follows the driver's steps, `queue` holds what it says of its queues, `transport` is all of them
//! together; the queues' contents are the [`Device`]'s.
//!
//! # Threads
//!
//! Whatever thread runs a virtual processor calls `read` and `write`. They never do the device's work: a kick makes
//! [`Mmio::fd`] readable, and one thread, which may be that of many guests, calls [`Mmio::service`] then. Registers
//! that a driver uses while it runs (notify, interrupt status and acknowledge) take no lock; the others wait for a call
//! of `service` to end, which does a bounded number of packets.
//!
//! [`Interrupt::trigger`] is called on the thread of `service` or `resume`, and under no lock of this library: it may
//! take the monitor's. What must not be done on the thread that calls `service` is to wait for the guest: no request of
//! a client, no reading from a blocking stream.
//!
//! # Pause, snapshot, restore
//!
//! Processors first, then the device: after [`Mmio::pause`] nothing touches guest memory until [`Mmio::resume`], and
//! no connection is lost. A paused device gives a [`State`] to save beside guest memory; [`Mmio::restore`] makes a
//! paused device of both, in this process or another. Its connections are gone: the driver is told so by a transport
//! reset, the agent serves on, and what the host asks for waits until the driver is through with that. A run's
//! [`RunControl`](crate::RunControl) is to be frozen around all of this, so that no request times out meanwhile.

mod queue;
mod register;
mod registers;
pub mod snapshot;
mod status;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;

pub use register::{BYTES, QUEUE_NOTIFY};
pub use snapshot::{State, StateError};

use crate::vsock::{Device, DeviceError, Handle};
use register::{CONFIG, CONFIG_CHANGE, Register, USED_BUFFER};
use registers::Registers;
use status::{Change, Step};

/// How the guest's interrupt is raised: an edge, as each call stands for a new event.
///
/// ```
/// use std::io;
/// use std::sync::mpsc::{Sender, channel};
/// use scx_vsock::transport::mmio::Interrupt;
///
/// struct Line(Sender<u32>);
///
/// impl Interrupt for Line {
///     fn trigger(&self) -> io::Result<()> {
///         self.0.send(5).map_err(io::Error::other)
///     }
/// }
///
/// let (line, raised) = channel();
/// Line(line).trigger()?;
/// assert_eq!(raised.recv(), Ok(5));
/// # Ok::<(), io::Error>(())
/// ```
pub trait Interrupt {
    /// Raises it.
    ///
    /// # Errors
    ///
    /// What keeps the interrupt from the guest.
    fn trigger(&self) -> io::Result<()>;
}

impl<F: Fn() -> io::Result<()>> Interrupt for F {
    fn trigger(&self) -> io::Result<()> {
        self()
    }
}

/// Bytes of the configuration space that are left out: none, but for the fault that is planted for the fuzz targets.
const SKIPPED: usize = if cfg!(planted_off_by_one) { 1 } else { 0 };

/// Why a device does not go on.
///
/// ```
/// use scx_vsock::transport::mmio::{Error, Mmio, StateError};
/// # use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
/// assert!(matches!(device.snapshot(), Err(Error::State(StateError::NotPaused))));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device stopped. Where the guest's driver broke a queue, the guest was told, and may reset it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no snapshot, or it cannot be restored.
    #[error(transparent)]
    State(#[from] StateError),
    /// The monitor could not raise the guest's interrupt.
    #[error("the guest's interrupt cannot be raised")]
    Interrupt(#[source] io::Error),
}

/// A virtio-vsock device behind registers, for a guest whose memory is `A` and whose interrupt is `I`.
///
/// ```
/// use std::sync::Arc;
/// use scx_vsock::transport::mmio::Mmio;
/// use scx_vsock::vsock::Device;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?; // ... the guest's interrupt
/// let mut magic = [0; 4];
/// device.read(0, &mut magic); // a processor's exit
/// assert_eq!(magic, *b"virt");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mmio<A, I> {
    memory: A,
    interrupt: I,
    /// Why the interrupt was raised, as far as the driver has not acknowledged it.
    reasons: AtomicU32,
    handle: Handle,
    fd: OwnedFd,
    state: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Registers,
    device: Device,
    paused: bool,
}

impl<A: GuestAddressSpace, I: Interrupt> Mmio<A, I> {
    /// Puts registers in front of `device`.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// let (raise, raised) = std::sync::mpsc::channel();
    /// let interrupt = move || raise.send(5).map_err(std::io::Error::other);
    /// let device = Mmio::new(Device::new(3)?, memory, interrupt)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`DeviceError::Host`] if the host's kernel has no descriptor left.
    pub fn new(device: Device, memory: A, interrupt: I) -> Result<Self, Error> {
        let transport = Registers::new().map_err(DeviceError::from)?;
        Self::with(Inner { transport, device, paused: false }, memory, interrupt, 0)
    }

    fn with(inner: Inner, memory: A, interrupt: I, reasons: u32) -> Result<Self, Error> {
        Ok(Self {
            memory,
            interrupt,
            reasons: AtomicU32::new(reasons),
            handle: inner.device.handle(),
            fd: inner.device.fd().try_clone_to_owned().map_err(DeviceError::from)?,
            state: Mutex::new(inner),
        })
    }

    /// Puts registers in front of `device` as they were when `state` was taken, with the `memory` of that time. The
    /// device may have another CID than the one then. It is paused.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::{Mmio, State}, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let before = Mmio::new(Device::new(3)?, memory.clone(), || Ok(()))?;
    /// # before.pause();
    /// # let saved = serde_json::to_string(&before.snapshot()?)?;
    /// let state: State = serde_json::from_str(&saved)?;
    /// let device = Mmio::restore(Device::new(4)?, memory, || Ok(()), &state)?;
    /// // ... the guest's interrupts work again, then:
    /// device.resume()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::State`] if no device was ever in this state, [`DeviceError::Host`] if the host's kernel has no
    /// descriptor left.
    pub fn restore(mut device: Device, memory: A, interrupt: I, state: &State) -> Result<Self, Error> {
        let mut transport = state.transport()?;
        device.restore(&state.device).map_err(StateError::from)?;
        if device.state().guest_cid != state.device.guest_cid {
            transport.note_new_config();
        }
        // A driver that is not through with its choice has not chosen.
        if transport.status().step() == Step::Running {
            device.negotiate(transport.chosen());
        }
        if transport.status().runs() {
            device.reset_transport();
        }
        Self::with(Inner { transport, device, paused: true }, memory, interrupt, state.interrupt_status)
    }

    /// Leaves guest memory alone from the return of this call on. The host's side may go on, and waits.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// device.pause(); // after the processors
    /// // ... guest memory is saved ...
    /// let waiting = device.handle().connect(8080)?; // connected once the guest goes on
    /// device.resume()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Goes on, with all that was made available meanwhile. To be called once the guest's interrupts work.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// device.pause();
    /// device.resume()?;
    /// assert!(device.snapshot().is_err(), "it goes on");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Interrupt`].
    pub fn resume(&self) -> Result<(), Error> {
        self.lock().paused = false;
        self.handle.wake();
        // An interrupt on its way to the guest is not part of a snapshot.
        let unseen = self.reasons.load(Ordering::SeqCst) != 0;
        if unseen { self.interrupt.trigger().map_err(Error::Interrupt) } else { Ok(()) }
    }

    /// The state of the paused device, to be saved with guest memory.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// device.pause();
    /// let saved = serde_json::to_string(&device.snapshot()?)?;
    /// assert!(saved.starts_with(r#"{"version":1,"#));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`StateError::NotPaused`].
    pub fn snapshot(&self) -> Result<State, Error> {
        let inner = self.lock();
        if !inner.paused {
            return Err(StateError::NotPaused.into());
        }
        Ok(State::of(&inner.transport, inner.device.state(), self.reasons.load(Ordering::SeqCst)))
    }

    /// The device's host side.
    ///
    /// ```
    /// # use scx_vsock::{SchedStatsClient, transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// let client = SchedStatsClient::builder(device.handle().agent()).build();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A descriptor that is readable when [`service`](Self::service) is to be called.
    ///
    /// ```
    /// use rustix::event::{PollFd, PollFlags, poll};
    /// # use scx_vsock::{transport::mmio::{Mmio, QUEUE_NOTIFY}, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    ///
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// device.write(QUEUE_NOTIFY, &[1, 0, 0, 0]); // the guest kicks
    /// assert_eq!(poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], None)?, 1);
    /// device.service()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The event that a kick of the guest is: whoever signals it instead of writing to `QueueNotify` saves the way
    /// through [`write`](Self::write).
    ///
    /// ```
    /// use rustix::event::{PollFd, PollFlags, poll};
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    ///
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// rustix::io::write(device.notify_fd(), &1u64.to_ne_bytes())?; // what the kernel does for an ioeventfd
    /// assert_eq!(poll(&mut [PollFd::new(&device.fd(), PollFlags::IN)], None)?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.handle.wake_fd()
    }

    /// The guest reads `data.len()` bytes at `offset` from the first register. Where nothing is to be read, zeros are.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// let mut cid = [0; 8];
    /// device.read(0x100, &mut cid); // the configuration space
    /// assert_eq!(u64::from_le_bytes(cid), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        let from = usize::try_from(offset).unwrap_or(usize::MAX).saturating_add(SKIPPED);
        for (to, from) in data.iter_mut().zip(config.get(from..).unwrap_or_default()) {
            *to = *from;
        }
    }

    fn read_register(&self, register: Register) -> u32 {
        match register {
            Register::InterruptStatus => self.reasons.load(Ordering::SeqCst),
            register => self.lock().transport.read(register),
        }
    }

    /// The guest writes `data` at `offset` from the first register. Control registers are four bytes wide; other
    /// widths, offsets in between, and the configuration space change nothing.
    ///
    /// ```
    /// # use scx_vsock::{transport::mmio::Mmio, vsock::Device};
    /// # use vm_memory::{GuestAddress, GuestMemoryMmap};
    /// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    /// # let device = Mmio::new(Device::new(3)?, memory, || Ok(()))?;
    /// device.write(0x70, &[1, 0, 0, 0]); // `Status`: a driver has noticed the device
    /// let mut status = [0; 4];
    /// device.read(0x70, &mut status);
    /// assert_eq!(status, [1, 0, 0, 0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(&self, offset: u64, data: &[u8]) {
        let (Some(register), Ok(data)) = (Register::parse(offset), <[u8; 4]>::try_from(data)) else { return };
        let value = u32::from_le_bytes(data);
        match register {
            Register::QueueNotify => self.handle.wake(),
            Register::InterruptAck => drop(self.reasons.fetch_and(!value, Ordering::SeqCst)),
            register => self.write_register(register, value),
        }
    }

    fn write_register(&self, register: Register, value: u32) {
        let mut state = self.lock();
        match state.transport.write(register, value) {
            Change::None => {}
            Change::Reset => {
                state.device.reset();
                state.device.negotiate(0);
                self.reasons.store(0, Ordering::SeqCst);
            }
            Change::Run => {
                let chosen = state.transport.chosen();
                state.device.negotiate(chosen);
                state.device.wake();
            }
        }
    }

    /// Does what there is to do, for the guest and for the host, without waiting. To be called when
    /// [`fd`](Self::fd) is readable.
    ///
    /// ```no_run
    /// # use std::io;
    /// # use rustix::event::{PollFd, PollFlags, poll};
    /// # use scx_vsock::transport::mmio::{Error, Interrupt, Mmio};
    /// # use scx_vsock::vsock::DeviceError;
    /// # fn serve<A: vm_memory::GuestAddressSpace, I: Interrupt>(device: &Mmio<A, I>) -> io::Result<()> {
    /// loop {
    ///     poll(&mut [PollFd::new(device, PollFlags::IN)], None)?;
    ///     match device.service() {
    ///         Ok(()) => {}
    ///         Err(Error::Device(DeviceError::Chain(_) | DeviceError::Ring(_))) => {} // until the driver resets it
    ///         Err(error) => return Err(io::Error::other(error)),
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Device`] once when the guest's driver broke a queue: the driver finds that the device needs a reset,
    /// and the host's side may be used on. [`Error::Interrupt`].
    pub fn service(&self) -> Result<(), Error> {
        let (reasons, served) = self.service_queues();
        let triggered = if reasons == 0 { Ok(()) } else { self.interrupt.trigger() };
        served?;
        triggered.map_err(Error::Interrupt)
    }

    /// Gives why the guest is to be interrupted.
    fn service_queues(&self) -> (u32, Result<(), DeviceError>) {
        let mut state = self.lock();
        let (reasons, served) = match state.service(&self.memory) {
            Ok(used) => (if used { USED_BUFFER } else { 0 }, Ok(())),
            Err(error) => (state.stop(&error), Err(error)),
        };
        // Under the lock, so that a reset clears them.
        self.reasons.fetch_or(reasons, Ordering::SeqCst);
        (reasons, served)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole at every point where a thread could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Gives whether a buffer was used that the guest is to be told of.
    fn service<A: GuestAddressSpace>(&mut self, memory: &A) -> Result<bool, DeviceError> {
        if self.paused || !self.transport.status().runs() {
            self.device.service_host()?;
            return Ok(false);
        }
        let [rx, tx, event] = self.transport.queues();
        let interrupts = self.device.service(&*memory.memory(), rx, tx, Some(event))?;
        Ok(interrupts.any())
    }

    /// The device cannot go on; gives why the guest is to be interrupted.
    fn stop(&mut self, error: &DeviceError) -> u32 {
        match error {
            DeviceError::Chain(_) | DeviceError::Ring(_) => {
                self.transport.set_needs_reset();
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
        formatter.debug_struct("Mmio").field("handle", &self.handle).field("state", &self.state).finish_non_exhaustive()
    }
}
