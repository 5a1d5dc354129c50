//! What a driver has set up, without I/O: its progress, its features and its queues.

use virtio_queue::{Error, Queue};
use vm_memory::GuestMemory;

use super::queue::{QueueLayout, QueueSetup};
use super::status::{Change, Status, Step};
use crate::vsock::features;
use crate::vsock::spec::F_EVENT_IDX;

/// Queues of a vsock device (5.10.2).
pub const QUEUES: usize = 3;

/// What a driver has set up.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) status: Status,
    /// The features that the driver has chosen so far.
    pub(super) driver_features: u64,
    /// Changes with the configuration space.
    pub(super) generation: u32,
    pub(super) queues: [QueueSetup; QUEUES],
}

impl Setup {
    /// Returns the state of a device that no driver has found.
    ///
    /// # Errors
    ///
    /// As [`QueueSetup::new`].
    pub(super) fn new() -> Result<Self, Error> {
        Ok(Self {
            status: Status::default(),
            driver_features: 0,
            generation: 0,
            queues: [QueueSetup::new()?, QueueSetup::new()?, QueueSetup::new()?],
        })
    }

    /// Makes the driver read the configuration space again: it has changed.
    pub(super) fn on_config_change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Returns the receive, transmit and event queue, ready or not.
    pub(super) fn queues(&mut self) -> [&mut Queue; QUEUES] {
        self.queues.each_mut().map(QueueSetup::queue)
    }

    /// Takes the driver's choice of features, after `DRIVER` and before `FEATURES_OK` (3.1.1).
    pub(super) fn set_driver_features(&mut self, features: u64) {
        if self.status.step() == Step::Driver {
            self.driver_features = features;
        }
    }

    /// Changes a queue's layout, after `FEATURES_OK` and before `DRIVER_OK`, unless the queue runs.
    pub(super) fn lay_out_queue(&mut self, queue: usize, change: impl FnOnce(&mut QueueLayout)) {
        if let Some(queue) = self.configurable(queue) {
            queue.lay_out(change);
        }
    }

    /// Starts a queue, after `FEATURES_OK` and before `DRIVER_OK`.
    pub(super) fn start_queue<M: GuestMemory>(&mut self, queue: usize, memory: &M) {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        if let Some(queue) = self.configurable(queue) {
            queue.start(event_idx, memory);
        }
    }

    fn configurable(&mut self, queue: usize) -> Option<&mut QueueSetup> {
        if self.status.step() == Step::FeaturesOk { self.queues.get_mut(queue) } else { None }
    }

    /// Stops a queue.
    pub(super) fn stop_queue(&mut self, queue: usize) {
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.stop();
        }
    }

    /// Takes a write of the device status.
    pub(super) fn write_status(&mut self, bits: u32) -> Change {
        let driver_features = self.driver_features;
        let change = self.status.write(bits, || features::accepts(driver_features));
        if change == Change::Reset {
            self.driver_features = 0;
            self.queues.iter_mut().for_each(QueueSetup::reset);
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::spec::F_VERSION_1;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    const LAYOUT: QueueLayout = QueueLayout { size: 16, descriptors: 0x1000, driver: 0x2000, device: 0x3000 };

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn negotiated() -> Setup {
        let mut setup = Setup::new().unwrap();
        setup.write_status(3);
        setup.set_driver_features(F_VERSION_1);
        setup.write_status(11);
        assert_eq!(setup.status.bits(), 11);
        setup
    }

    fn start(setup: &mut Setup, queue: usize) {
        setup.lay_out_queue(queue, |layout| *layout = LAYOUT);
        setup.start_queue(queue, &memory());
    }

    #[test]
    fn features_are_chosen_before_features_ok() {
        let mut setup = negotiated();
        setup.set_driver_features(0);
        assert_eq!(setup.driver_features, F_VERSION_1);
        let mut setup = Setup::new().unwrap();
        setup.set_driver_features(F_VERSION_1);
        assert_eq!(setup.driver_features, 0);
        setup.write_status(11);
        assert_eq!(setup.status.bits(), 3, "without version 1 there is no agreement");
    }

    #[test]
    fn queues_are_set_up_before_driver_ok() {
        let mut early = Setup::new().unwrap();
        start(&mut early, 0);
        assert!(!early.queues[0].is_ready());
        let mut setup = negotiated();
        start(&mut setup, 0);
        assert!(setup.queues[0].is_ready());
        setup.write_status(15);
        start(&mut setup, 1);
        assert!(!setup.queues[1].is_ready());
    }

    #[test]
    fn there_is_no_fourth_queue() {
        let mut setup = negotiated();
        for queue in [3, 100, usize::MAX] {
            start(&mut setup, queue);
            setup.stop_queue(queue);
        }
        assert!(setup.queues.iter().all(|queue| queue.layout() == QueueLayout::default()));
    }

    #[test]
    fn a_running_queue_can_only_be_stopped() {
        let mut setup = negotiated();
        start(&mut setup, 1);
        setup.write_status(15);
        setup.lay_out_queue(1, |layout| layout.size = 256);
        assert_eq!(virtio_queue::QueueT::size(setup.queues()[1]), 16);
        setup.stop_queue(1);
        start(&mut setup, 1);
        assert!(!setup.queues[1].is_ready());
    }

    #[test]
    fn a_reset_clears_everything() {
        let mut setup = negotiated();
        start(&mut setup, 2);
        assert_eq!(setup.write_status(0), Change::Reset);
        assert_eq!((setup.status.bits(), setup.driver_features), (0, 0));
        assert!(!setup.queues[2].is_ready());
    }
}
