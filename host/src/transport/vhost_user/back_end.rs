//! What the vhost-user framework calls: the rings, guest memory and configuration of one front end.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::error_pipe::ErrorPipe;
use super::shared_memory::Watch;
use crate::vsock::spec::{RX_QUEUE, TX_QUEUE};
use crate::vsock::{Device, DeviceError};

/// The type of guest memory that the framework keeps.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringRwLock<Memory>;

/// The receive and the transmit queue; the front end keeps the event queue.
const QUEUES: usize = 2;

/// Entries of the largest queue that a driver may set up.
const MAX_QUEUE_SIZE: usize = 1024;

/// The back end of one device.
pub(super) struct BackEnd {
    rings: Mutex<DeviceRings>,
    memory: Mutex<Option<Arc<WatchedMemory>>>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
    errors: Arc<ErrorPipe>,
}

/// Guest memory, which the front end may truncate at any time.
struct WatchedMemory {
    /// Dropped first: memory stays mapped as long as it is watched.
    watch: Watch,
    memory: Arc<GuestMemoryMmap>,
}

/// The device, and which of its rings were stopped since both last ran. A front end stops rings to pause a guest and to
/// reset it; only where they start again shows which it was.
struct DeviceRings {
    device: Device,
    stopped: [bool; QUEUES],
}

impl DeviceRings {
    /// Both rings run. A guest that was reset starts both at 0, and then knows of no connection.
    fn start(&mut self, rx: u16, tx: u16) {
        if self.stopped.contains(&true) {
            if rx == 0 && tx == 0 {
                self.device.reset();
            }
            self.stopped = [false; QUEUES];
        }
    }
}

/// A lock whose data is whole at every point where a thread could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BackEnd {
    /// Returns a back end that reports errors to `errors`, and the raw descriptor of its exit event's consumer.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no event descriptor.
    pub(super) fn new(device: Device, errors: Arc<ErrorPipe>) -> io::Result<(Self, RawFd)> {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        let exit_consumer = exit.0.as_raw_fd();
        let back_end = Self {
            rings: Mutex::new(DeviceRings { device, stopped: [true; QUEUES] }),
            memory: Mutex::default(),
            exit: Mutex::new(Some(exit)),
            errors,
        };
        Ok((back_end, exit_consumer))
    }

    /// Ends the device: the front end is gone.
    pub(super) fn close(&self) {
        lock(&self.rings).device.close();
        self.errors.close();
    }

    fn service(&self, rx: &Vring, tx: &Vring) -> Result<(), DeviceError> {
        let mut rings = lock(&self.rings);
        let Some(watched) = lock(&self.memory).clone() else {
            return rings.device.service_host();
        };
        let mut rx = rx.get_mut();
        let mut tx = tx.get_mut();
        if watched.watch.is_gone() {
            return rings.device.service_host();
        }
        if !rx.is_enabled() || !tx.is_enabled() || !rx.get_queue().ready() || !tx.get_queue().ready() {
            return rings.device.service_host();
        }
        rings.start(rx.get_queue().next_avail(), tx.get_queue().next_avail());
        let served = rings.device.service(&*watched.memory, rx.get_queue_mut(), tx.get_queue_mut(), None);
        if watched.watch.is_gone() {
            return Err(DeviceError::MemoryGone);
        }
        let interrupts = served?;
        drop(rings);
        // A front end that closed its interrupt is gone, which its own thread finds.
        if interrupts.rx {
            let _signalled = rx.signal_used_queue();
        }
        if interrupts.tx {
            let _signalled = tx.signal_used_queue();
        }
        Ok(())
    }
}

impl VhostUserBackend for BackEnd {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        Device::FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        lock(&self.rings).device.negotiate(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&self) {
        lock(&self.rings).device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The framework sets its queues up.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = lock(&self.rings).device.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        config.get(from..).and_then(|rest| rest.get(..size)).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        let watch = Watch::new(&memory)?;
        *lock(&self.memory) = Some(Arc::new(WatchedMemory { watch, memory }));
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        lock(&self.exit).take()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // Taking the lock waits for work on the ring to end.
        let mut rings = lock(&self.rings);
        if let Some(stopped) = usize::try_from(queue).ok().and_then(|queue| rings.stopped.get_mut(queue)) {
            *stopped = true;
        }
        Ok(())
    }

    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let (Some(rx), Some(tx)) = (vrings.get(RX_QUEUE), vrings.get(TX_QUEUE)) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        // An error here would end the thread, and with it the service after a reset.
        if let Err(error) = self.service(rx, tx) {
            self.errors.report(error);
        }
        Ok(())
    }
}
