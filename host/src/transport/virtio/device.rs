//! The device and what its driver has set up, as a transport's registers and threads see them.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};

use vm_memory::GuestAddressSpace;

use super::error::Error;
use super::interrupt::{Causes, Interrupt};
use super::queue::QueueLayout;
use super::setup::Setup;
use super::snapshot::{InvalidVirtioSnapshot, VirtioSnapshot};
use super::status::{Change, Step};
use crate::io::lock::lock;
use crate::vsock::{Device, DeviceError, Handle, Interrupts};

/// A virtio-vsock device for a guest whose memory is `A` and whose interrupts are `I`: everything but registers.
///
/// Whatever thread runs a virtual processor calls the methods that registers need, which never do the device's work; one
/// thread calls [`service`](Self::service) when [`fd`](Self::fd) is readable.
///
/// ```
/// use std::sync::Arc;
/// use scx_vsock::transport::virtio::{QueueLayout, VirtioDevice};
/// use scx_vsock::vsock::Device;
/// use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let device = VirtioDevice::new(Device::new(3)?, memory, |_causes| Ok(()))?;
/// // What a driver does, through registers of any kind:
/// device.write_status(1 | 2); // ACKNOWLEDGE, DRIVER
/// device.set_driver_features(device.device_features());
/// device.write_status(1 | 2 | 8); // FEATURES_OK
/// for queue in 0..3 {
///     let at = 0x1_0000 * (1 + queue as u64);
///     let layout = QueueLayout { size: 128, descriptors: at, driver: at + 0x1000, device: at + 0x2000 };
///     device.lay_out_queue(queue, |queue| *queue = layout);
///     device.start_queue(queue);
///     assert!(device.is_queue_ready(queue));
/// }
/// device.write_status(1 | 2 | 8 | 4); // DRIVER_OK
/// device.service()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VirtioDevice<A, I> {
    memory: A,
    interrupt: I,
    /// Why the guest was interrupted, as far as the driver has not acknowledged it.
    interrupt_status: AtomicU32,
    handle: Handle,
    fd: OwnedFd,
    inner: Mutex<Inner>,
}

/// What is accessed under a lock.
#[derive(Debug)]
struct Inner {
    setup: Setup,
    device: Device,
    paused: bool,
}

impl<A: GuestAddressSpace, I: Interrupt> VirtioDevice<A, I> {
    /// Returns `device`, which no driver has initialised.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Host`] if the host's kernel has no descriptor left.
    pub fn new(device: Device, memory: A, interrupt: I) -> Result<Self, Error> {
        let setup = Setup::new().map_err(DeviceError::from)?;
        Self::with(Inner { setup, device, paused: false }, memory, interrupt, 0)
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

    /// Returns `device` as it was when `snapshot` was taken, with the `memory` of that time. The device may have another
    /// CID than the one then. It is paused.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if no device can have been in this state, or a queue is outside of `memory`;
    /// [`DeviceError::Host`] if the host's kernel has no descriptor left.
    pub fn restore(mut device: Device, memory: A, interrupt: I, snapshot: &VirtioSnapshot) -> Result<Self, Error> {
        let mut setup = snapshot.setup(&*memory.memory())?;
        device.restore(&snapshot.device).map_err(InvalidVirtioSnapshot::from)?;
        if device.state().guest_cid != snapshot.device.guest_cid {
            setup.on_config_change();
        }
        // A driver has chosen its features only once it runs.
        if setup.status.step() == Step::DriverOk {
            device.negotiate(setup.driver_features);
        }
        if setup.status.runs() {
            device.reset_transport();
        }
        Self::with(Inner { setup, device, paused: true }, memory, interrupt, snapshot.interrupt_status)
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
        // An interrupt that had not reached the guest is not part of a snapshot, nor for which queue it was.
        let unacknowledged = self.interrupt_status.load(Ordering::SeqCst);
        let causes = Causes::all_of(unacknowledged);
        if causes == Causes::default() { Ok(()) } else { self.interrupt.trigger(causes).map_err(Error::Interrupt) }
    }

    /// Returns the state of the paused device, to be saved with guest memory.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`].
    pub fn snapshot(&self) -> Result<VirtioSnapshot, Error> {
        let inner = self.lock();
        if !inner.paused {
            return Err(Error::NotPaused);
        }
        let interrupt_status = self.interrupt_status.load(Ordering::SeqCst);
        Ok(VirtioSnapshot::of(&inner.setup, inner.device.state(), interrupt_status))
    }

    /// Starts a queue from its beginning. Nothing happens before `FEATURES_OK`, after `DRIVER_OK`, if it runs, or if its
    /// layout is invalid or outside guest memory: a driver that reads whether the queue is ready finds that it is not.
    pub fn start_queue(&self, queue: usize) {
        self.lock().setup.start_queue(queue, &*self.memory.memory());
    }

    /// Serves the guest and the host, without waiting. To be called when [`fd`](Self::fd) is readable.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] once when the guest's driver broke a queue: the driver finds that the device needs a reset, and
    /// the host's side may be used on, so that the device is to be served on. [`Error::Interrupt`].
    pub fn service(&self) -> Result<(), Error> {
        let (causes, served) = self.service_queues();
        let triggered = if causes == Causes::default() { Ok(()) } else { self.interrupt.trigger(causes) };
        served?;
        triggered.map_err(Error::Interrupt)
    }

    /// Returns what the guest is to be interrupted for.
    fn service_queues(&self) -> (Causes, Result<(), DeviceError>) {
        let mut inner = self.lock();
        let (causes, served) = match inner.service(&self.memory) {
            Ok(queues) => (Causes { queues, config: false }, Ok(())),
            Err(error) => (inner.stop(&error), Err(error)),
        };
        // Under the lock, so that a reset clears them.
        self.interrupt_status.fetch_or(causes.bits(), Ordering::SeqCst);
        (causes, served)
    }
}

impl<A, I> VirtioDevice<A, I> {
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

    /// Returns the event descriptor of queue notifications, for all queues. Signalling it, as the kernel does for an
    /// ioeventfd, is the same as [`notify`](Self::notify).
    #[must_use]
    pub fn notify_fd(&self) -> BorrowedFd<'_> {
        self.handle.wake_fd()
    }

    /// The driver notifies a queue. Takes no lock.
    pub fn notify(&self) {
        self.handle.wake();
    }

    /// Returns why the guest was interrupted, as far as the driver has not acknowledged it: bits of
    /// [`USED_BUFFER`](super::USED_BUFFER) and [`CONFIG_CHANGE`](super::CONFIG_CHANGE). Takes no lock.
    #[must_use]
    pub fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges these bits of the interrupt status. Returns the status before. Takes no lock.
    pub fn acknowledge_interrupts(&self, bits: u32) -> u32 {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst)
    }

    /// Returns the configuration space (5.10.4).
    #[must_use]
    pub fn config(&self) -> [u8; 8] {
        self.lock().device.config()
    }

    /// Returns a number that changes with the configuration space.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.lock().setup.generation
    }

    /// Returns the features that the device offers.
    #[must_use]
    pub fn device_features(&self) -> u64 {
        Device::FEATURES
    }

    /// Returns the features that the driver has chosen so far.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        self.lock().setup.driver_features
    }

    /// Takes the driver's choice of features, after `DRIVER` and before `FEATURES_OK`; at another time nothing happens.
    /// Features that the device does not offer keep it from `FEATURES_OK`.
    pub fn set_driver_features(&self, features: u64) {
        self.lock().setup.set_driver_features(features);
    }

    /// Returns the device status (2.1).
    #[must_use]
    pub fn status(&self) -> u32 {
        self.lock().setup.status.bits()
    }

    /// Takes a write of the device status. 0 resets the device, and a transport's own registers are to be reset then, too.
    /// A step that is not the driver's next one changes nothing (3.1.1).
    pub fn write_status(&self, bits: u32) {
        let mut inner = self.lock();
        match inner.setup.write_status(bits) {
            Change::None => {}
            Change::Reset => {
                inner.device.reset();
                inner.device.negotiate(0);
                self.interrupt_status.store(0, Ordering::SeqCst);
            }
            Change::Run => {
                let driver_features = inner.setup.driver_features;
                inner.device.negotiate(driver_features);
                inner.device.wake();
            }
        }
    }

    /// Returns what the driver has written of a queue's layout; `None` if there is no such queue.
    #[must_use]
    pub fn queue_layout(&self, queue: usize) -> Option<QueueLayout> {
        self.lock().setup.queues.get(queue).map(super::queue::QueueSetup::layout)
    }

    /// Changes a queue's layout, after `FEATURES_OK` and before `DRIVER_OK`; at another time, or while the queue runs,
    /// nothing happens.
    pub fn lay_out_queue(&self, queue: usize, change: impl FnOnce(&mut QueueLayout)) {
        self.lock().setup.lay_out_queue(queue, change);
    }

    /// Whether a queue runs.
    #[must_use]
    pub fn is_queue_ready(&self, queue: usize) -> bool {
        self.lock().setup.queues.get(queue).is_some_and(super::queue::QueueSetup::is_ready)
    }

    /// Stops a queue: it is not accessed any more once this returns.
    pub fn stop_queue(&self, queue: usize) {
        self.lock().setup.stop_queue(queue);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// Returns the queues of which a buffer was used.
    fn service<A: GuestAddressSpace>(&mut self, memory: &A) -> Result<Interrupts, DeviceError> {
        if self.paused || !self.setup.status.runs() {
            self.device.service_host()?;
            return Ok(Interrupts::default());
        }
        let [rx, tx, event] = self.setup.queues();
        self.device.service(&*memory.memory(), rx, tx, Some(event))
    }

    /// Stops the device. Returns what the guest is to be interrupted for.
    fn stop(&mut self, error: &DeviceError) -> Causes {
        let broken = matches!(error, DeviceError::Chain(_) | DeviceError::Ring(_));
        if broken {
            self.setup.status.set_needs_reset();
        }
        Causes { config: broken, ..Causes::default() }
    }
}

impl<A, I> AsFd for VirtioDevice<A, I> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<A, I> fmt::Debug for VirtioDevice<A, I> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("VirtioDevice")
            .field("handle", &self.handle)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
