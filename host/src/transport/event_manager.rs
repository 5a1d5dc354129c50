//! Devices in an [`event_manager`], so that one thread serves many guests.
//!
//! The thread that runs the manager calls [`Mmio::service`] for every device that has something to do, a bounded number
//! of packets at a time. It must not wait for a guest, since the guests wait for it.

use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::GuestAddressSpace;

use super::mmio::{self, Interrupt, Mmio};
use crate::vsock::DeviceError;

/// Why a device is not served, or is served no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The manager does not watch the device.
    #[error("the event manager does not watch the vsock device: {0}")]
    NotWatched(event_manager::Error),
    /// The device does not go on.
    #[error(transparent)]
    Device(#[from] mmio::Error),
}

/// A device in an event manager.
///
/// ```
/// use std::sync::Arc;
/// use event_manager::{EventManager, SubscriberOps};
/// use scx_vsock::transport::event_manager::Subscriber;
/// use scx_vsock::transport::mmio::{Mmio, QUEUE_NOTIFY};
/// use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// let mut manager = EventManager::new()?; // one for all guests
/// let device = Arc::new(Mmio::new(Device::new(3)?, memory, || Ok(()))?);
/// manager.add_subscriber(Subscriber::new(Arc::clone(&device), |error| eprintln!("{:#}", anyhow::Error::from(error))));
/// device.write(QUEUE_NOTIFY, &[0; 4]); // the guest notifies a queue
/// assert_eq!(manager.run()?, 1, "it was served");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Subscriber<A, I, F> {
    device: Arc<Mmio<A, I>>,
    on_error: F,
}

impl<A, I, F: FnMut(Error)> Subscriber<A, I, F> {
    /// Returns a subscriber that serves `device`. `on_error` is called on the manager's thread; after
    /// [`mmio::Error::Device`] with a broken queue the device is served on, as its guest may reset it.
    pub fn new(device: Arc<Mmio<A, I>>, on_error: F) -> Self {
        Self { device, on_error }
    }
}

impl<A: GuestAddressSpace, I: Interrupt, F: FnMut(Error)> Subscriber<A, I, F> {
    fn events(&self) -> Events {
        Events::new_raw(self.device.fd().as_raw_fd(), EventSet::IN)
    }
}

impl<A: GuestAddressSpace, I: Interrupt, F: FnMut(Error)> MutEventSubscriber for Subscriber<A, I, F> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(self.events()) {
            (self.on_error)(Error::NotWatched(error));
        }
    }

    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        let Err(error) = self.device.service() else { return };
        // Its descriptor stays readable, so that the thread would never wait.
        if matches!(error, mmio::Error::Device(DeviceError::Host(_)))
            && let Err(error) = ops.remove(self.events())
        {
            (self.on_error)(Error::NotWatched(error));
        }
        (self.on_error)(error.into());
    }
}

impl<A, I, F> fmt::Debug for Subscriber<A, I, F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Subscriber").field("device", &self.device).finish_non_exhaustive()
    }
}
