//! How the worker interrupts the guest: by event descriptors that a hostile front end may make it wait for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::front_end_event::FrontEndEvent;
use crate::io::lock::lock;

/// How long a front end has that fills its counter again, until it is cleared again.
const REFILLED: Duration = Duration::from_millis(1);

/// The one interrupt that is being raised, so that the end of a session does not wait for it.
#[derive(Debug, Default)]
pub(super) struct InterruptGate {
    state: Mutex<GateState>,
    returned: Condvar,
}

#[derive(Debug, Default)]
enum GateState {
    /// None is being raised.
    #[default]
    Open,
    /// The worker is inside a write.
    Raising(Arc<FrontEndEvent>),
    /// The worker is inside a write, and is to make no other.
    Closing(Arc<FrontEndEvent>),
    /// There are no more interrupts.
    Closed,
}

impl InterruptGate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }

    /// Raises an interrupt, unless interrupts are closed. To be called by one thread, which holds no lock that others need.
    pub(super) fn raise(&self, event: &Arc<FrontEndEvent>) {
        {
            let mut state = self.state();
            if !matches!(*state, GateState::Open) {
                return;
            }
            *state = GateState::Raising(Arc::clone(event));
        }
        event.signal();
        let mut state = self.state();
        let closing = matches!(*state, GateState::Closing(_));
        *state = if closing { GateState::Closed } else { GateState::Open };
        if closing {
            self.returned.notify_all();
        }
    }

    /// Ends interrupts. A write that waits for room in the counter is given it.
    pub(super) fn close(&self) {
        let mut state = self.state();
        *state = match std::mem::take(&mut *state) {
            GateState::Open | GateState::Closed => GateState::Closed,
            GateState::Raising(event) | GateState::Closing(event) => GateState::Closing(event),
        };
        while let GateState::Closing(event) = &*state {
            let _empty = event.clear();
            state = self.returned.wait_timeout(state, REFILLED).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_setfl};
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn a_write_that_waits_ends_with_the_session() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let event = Arc::new(FrontEndEvent::new(fd.try_clone().unwrap()).unwrap().unwrap());
        // What a hostile front end does once the descriptor was accepted.
        fcntl_setfl(&fd, OFlags::empty()).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let interrupts = Arc::new(InterruptGate::default());
        let (entered, entering) = channel();
        let worker = thread::spawn({
            let (interrupts, event) = (Arc::clone(&interrupts), Arc::clone(&event));
            move || {
                entered.send(()).unwrap();
                interrupts.raise(&event);
                interrupts.raise(&event);
            }
        });
        entering.recv().unwrap();
        interrupts.close();
        worker.join().unwrap();
        interrupts.raise(&event);
    }
}
