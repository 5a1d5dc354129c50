//! The thread that serves the devices of guests, as a VMM has one.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use rustix::thread::{Pid, gettid};
use scx_vsock::transport::event_manager::{Error, Subscriber};
use scx_vsock::transport::mmio::{Interrupt, Mmio};
use vm_memory::GuestMemoryMmap;

use crate::agent::time_of;
use crate::guest_driver::Guest;
use crate::mmio_driver::Registers;

/// A thread that runs an event manager until this is dropped.
#[derive(Debug)]
pub struct DeviceThread {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    id: Pid,
    /// What goes wrong, with the guest's number.
    pub errors: Receiver<(usize, Error)>,
}

impl DeviceThread {
    /// Serves the devices of these simulated guests.
    pub fn serving(guests: &mut [Guest<Registers>]) -> Self {
        let devices = guests.iter_mut().map(|guest| {
            guest.device.served_elsewhere = true;
            Arc::clone(&guest.device.mmio)
        });
        Self::serving_mmio(devices.collect())
    }

    /// Serves these devices.
    pub fn serving_mmio<I: Interrupt + Send + Sync + 'static>(devices: Vec<Arc<VsockMmio<I>>>) -> Self {
        let (stop, stopped) = UnixStream::pair().expect("it works");
        let (sender, errors) = channel();
        let (say, said) = channel();
        let thread = thread::spawn(move || {
            say.send(gettid()).expect("who started it waits");
            run(devices, stopped, &sender);
        });
        let id = said.recv().expect("it works");
        Self { stop: Some(stop), thread: Some(thread), id, errors }
    }

    /// How long the thread has run.
    #[must_use]
    pub fn processor_time(&self) -> Duration {
        time_of(&format!("/proc/self/task/{}/schedstat", self.id))
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().expect("it works").join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

/// A device in this process' memory.
type VsockMmio<I> = Mmio<Arc<GuestMemoryMmap>, I>;

fn run<I: Interrupt + Send + Sync + 'static>(
    devices: Vec<Arc<VsockMmio<I>>>,
    stopped: UnixStream,
    errors: &Sender<(usize, Error)>,
) {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new().expect("it works");
    for (index, device) in devices.into_iter().enumerate() {
        let errors = errors.clone();
        manager.add_subscriber(Box::new(Subscriber::new(device, move |error| {
            errors.send((index, error)).expect("it works")
        })));
    }
    let ended = Rc::new(Cell::new(false));
    manager.add_subscriber(Box::new(Stop { stopped, ended: Rc::clone(&ended) }));
    while !ended.get() {
        manager.run().expect("it works");
    }
}

/// Ends the loop when the other end of its stream is gone.
struct Stop {
    stopped: UnixStream,
    ended: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Stop {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new_raw(self.stopped.as_fd().as_raw_fd(), EventSet::IN)).expect("it works");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        self.ended.set(true);
    }
}
