//! The thread that serves the guest's vsock device.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};

use super::bus::VsockMmio;
use crate::io::eventfd::{EventFd, Notify};
use crate::transport::event_manager::{Error, Subscriber};
use crate::transport::kvm::Irq;
use crate::transport::mmio;
use crate::vsock::DeviceError;

/// Serves a device until this is dropped.
#[derive(Debug)]
pub(super) struct DeviceThread {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts the thread. `on_failure` is called once there with why the device is not served any more.
    ///
    /// # Errors
    ///
    /// The host has no descriptor or thread.
    pub(super) fn start(
        device: Arc<VsockMmio<Irq>>,
        on_failure: impl Fn(String) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(EventFd::new()?);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("vsock-device".into()).spawn(move || {
            if let Err(error) = serve(device, stopped, on_failure.clone()) {
                on_failure(format!("{:#}", anyhow::Error::from(error)));
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.stop.notify();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn serve(
    device: Arc<VsockMmio<Irq>>,
    stop: Arc<EventFd>,
    on_failure: impl Fn(String) + 'static,
) -> Result<(), event_manager::Error> {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
    manager.add_subscriber(Box::new(Subscriber::new(device, move |error| {
        // A guest may break its queues, and reset the device.
        if !is_the_guests(&error) {
            on_failure(format!("{:#}", anyhow::Error::from(error)));
        }
    })));
    let stopped = Rc::new(Cell::new(false));
    manager.add_subscriber(Box::new(Stop { stop, stopped: Rc::clone(&stopped) }));
    while !stopped.get() {
        manager.run()?;
    }
    Ok(())
}

fn is_the_guests(error: &Error) -> bool {
    matches!(error, Error::Device(mmio::Error::Device(error)) if !matches!(error, DeviceError::Host(_)))
}

/// Ends the loop.
struct Stop {
    stop: Arc<EventFd>,
    stopped: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Stop {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Without it the loop could not be ended.
        let watched = ops.add(Events::new_raw(self.stop.as_fd().as_raw_fd(), EventSet::IN));
        self.stopped.set(watched.is_err());
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.stopped.set(true);
    }
}
