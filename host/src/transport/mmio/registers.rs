//! What the registers hold, without I/O: features, queues and the driver's progress.

use serde::{Deserialize, Serialize};
use virtio_queue::{Error, Queue};

use super::queue::{MAX_QUEUE_SIZE, QueueRegisters};
use super::register::{Half, MAGIC, Register, VENDOR, VERSION};
use super::status::{Change, Status, Step};
use crate::vsock::spec::{DEVICE_ID, F_EVENT_IDX};
use crate::vsock::{Device, features};

/// Queues of a vsock device (5.10.2).
pub const QUEUES: usize = 3;

/// The registers' contents.
#[derive(Debug)]
pub struct Registers {
    pub(super) status: Status,
    /// The features that the driver has chosen so far.
    pub(super) chosen: u64,
    pub(super) selected: Selected,
    /// Changes with the configuration space.
    pub(super) generation: u32,
    pub(super) queues: [QueueRegisters; QUEUES],
}

/// What the driver has selected for its next accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selected {
    /// `DeviceFeaturesSel`.
    pub device_features: u32,
    /// `DriverFeaturesSel`.
    pub driver_features: u32,
    /// `QueueSel`.
    pub queue: u32,
}

impl Registers {
    /// A device that no driver has noticed.
    ///
    /// # Errors
    ///
    /// As [`QueueRegisters::new`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            status: Status::default(),
            chosen: 0,
            selected: Selected::default(),
            generation: 0,
            queues: [QueueRegisters::new()?, QueueRegisters::new()?, QueueRegisters::new()?],
        })
    }

    /// How far the driver is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// The device cannot go on until it is reset.
    pub fn set_needs_reset(&mut self) {
        self.status.set_needs_reset();
    }

    /// The configuration space is another one than before.
    pub fn note_new_config(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The features that the driver has chosen.
    #[must_use]
    pub fn chosen(&self) -> u64 {
        self.chosen
    }

    /// The receive, transmit and event queue, whether they are ready or not.
    pub fn queues(&mut self) -> [&mut Queue; QUEUES] {
        self.queues.each_mut().map(QueueRegisters::queue)
    }

    /// The value of a register; 0 where it can only be written.
    #[must_use]
    pub fn read(&self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => DEVICE_ID,
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => {
                Half::selected(self.selected.device_features).map_or(0, |half| half.of(Device::FEATURES))
            }
            Register::QueueNumMax => self.selected_queue().map_or(0, |_| MAX_QUEUE_SIZE.into()),
            Register::QueueReady => self.selected_queue().map_or(0, |queue| queue.is_ready().into()),
            Register::Status => self.status.bits(),
            Register::SharedMemory => u32::MAX,
            Register::ConfigGeneration => self.generation,
            _ => 0,
        }
    }

    /// Takes a write, as far as the driver's progress allows it (3.1.1): features are chosen after `DRIVER` and before
    /// `FEATURES_OK`, queues set up after that and before `DRIVER_OK`. What comes at another time changes nothing.
    pub fn write(&mut self, register: Register, value: u32) -> Change {
        match register {
            Register::DeviceFeaturesSel => self.selected.device_features = value,
            Register::DriverFeaturesSel => self.selected.driver_features = value,
            Register::QueueSel => self.selected.queue = value,
            Register::DriverFeatures => self.choose(value),
            Register::QueueNum => self.set_up(|queue, _| queue.set_size(value)),
            Register::QueueAddress(part, half) => self.set_up(|queue, _| queue.set_address(part, half, value)),
            Register::QueueReady if value == 1 => self.set_up(QueueRegisters::make_ready),
            Register::QueueReady => self.stop(),
            Register::Status => return self.write_status(value),
            _ => {}
        }
        Change::None
    }

    fn choose(&mut self, word: u32) {
        if self.status.step() == Step::Driven
            && let Some(half) = Half::selected(self.selected.driver_features)
        {
            self.chosen = half.replaced(self.chosen, word);
        }
    }

    fn set_up(&mut self, change: impl FnOnce(&mut QueueRegisters, bool)) {
        let event_idx = self.chosen & F_EVENT_IDX != 0;
        if self.status.step() == Step::Negotiated
            && let Some(queue) = self.selected_queue_mut()
        {
            change(queue, event_idx);
        }
    }

    fn stop(&mut self) {
        if let Some(queue) = self.selected_queue_mut() {
            queue.stop();
        }
    }

    fn write_status(&mut self, value: u32) -> Change {
        let chosen = self.chosen;
        let change = self.status.write(value, || features::accepts(chosen));
        if change == Change::Reset {
            self.reset();
        }
        change
    }

    fn reset(&mut self) {
        self.chosen = 0;
        self.selected = Selected::default();
        self.queues.iter_mut().for_each(QueueRegisters::reset);
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.selected.queue).ok()?)
    }

    fn selected_queue_mut(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::try_from(self.selected.queue).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::register::Part;
    use super::*;
    use crate::vsock::spec::F_VERSION_1;

    fn write_all(transport: &mut Registers, writes: &[(Register, u32)]) {
        for &(register, value) in writes {
            transport.write(register, value);
        }
    }

    fn negotiated() -> Registers {
        let mut transport = Registers::new().unwrap();
        let features = Half::High.of(F_VERSION_1);
        write_all(
            &mut transport,
            &[
                (Register::Status, 3),
                (Register::DriverFeaturesSel, 1),
                (Register::DriverFeatures, features),
                (Register::Status, 11),
            ],
        );
        assert_eq!(transport.read(Register::Status), 11);
        transport
    }

    fn lay_out(transport: &mut Registers, queue: u32) {
        let at = |part| Register::QueueAddress(part, Half::Low);
        write_all(
            transport,
            &[
                (Register::QueueSel, queue),
                (Register::QueueNum, 16),
                (at(Part::Descriptors), 0x1000),
                (at(Part::Driver), 0x2000),
                (at(Part::Device), 0x3000),
            ],
        );
    }

    #[test]
    fn it_is_a_vsock_device_of_the_modern_kind() {
        let transport = Registers::new().unwrap();
        let read = |register| transport.read(register);
        assert_eq!((read(Register::MagicValue), read(Register::Version)), (0x7472_6976, 2));
        assert_eq!((read(Register::DeviceId), read(Register::Status)), (19, 0));
    }

    #[test]
    fn features_are_read_a_word_at_a_time() {
        let mut transport = Registers::new().unwrap();
        let mut word = |selected| {
            transport.write(Register::DeviceFeaturesSel, selected);
            transport.read(Register::DeviceFeatures)
        };
        assert_eq!((word(0), word(1), word(2), word(u32::MAX)), (1 << 29 | 0b101, 1, 0, 0));
    }

    #[test]
    fn features_are_chosen_between_driver_and_features_ok_only() {
        let mut transport = negotiated();
        transport.write(Register::DriverFeatures, 0);
        assert_eq!(transport.chosen, F_VERSION_1);
        let mut transport = Registers::new().unwrap();
        write_all(&mut transport, &[(Register::DriverFeaturesSel, 1), (Register::DriverFeatures, 1)]);
        assert_eq!(transport.chosen, 0);
        transport.write(Register::Status, 11);
        assert_eq!(transport.read(Register::Status), 3, "without version 1 there is no agreement");
    }

    #[test]
    fn a_selector_beyond_what_there_is_selects_nothing() {
        let mut transport = negotiated();
        for queue in [3, 100, u32::MAX] {
            lay_out(&mut transport, queue);
            transport.write(Register::QueueReady, 1);
            assert_eq!((transport.read(Register::QueueNumMax), transport.read(Register::QueueReady)), (0, 0));
        }
        let mut transport = Registers::new().unwrap();
        write_all(&mut transport, &[(Register::Status, 3), (Register::DriverFeaturesSel, 2)]);
        transport.write(Register::DriverFeatures, u32::MAX);
        assert_eq!(transport.chosen, 0);
    }

    #[test]
    fn queues_are_set_up_between_features_ok_and_driver_ok_only() {
        let mut early = Registers::new().unwrap();
        lay_out(&mut early, 0);
        early.write(Register::QueueReady, 1);
        assert_eq!(early.read(Register::QueueReady), 0);
        let mut transport = negotiated();
        lay_out(&mut transport, 0);
        transport.write(Register::QueueReady, 1);
        assert_eq!(transport.read(Register::QueueReady), 1);
        transport.write(Register::Status, 15);
        lay_out(&mut transport, 1);
        transport.write(Register::QueueReady, 1);
        assert_eq!(transport.read(Register::QueueReady), 0);
    }

    #[test]
    fn a_queue_that_runs_is_stopped_for_good_and_never_changed() {
        let mut transport = negotiated();
        lay_out(&mut transport, 1);
        transport.write(Register::QueueReady, 1);
        transport.write(Register::Status, 15);
        write_all(&mut transport, &[(Register::QueueNum, 256), (Register::QueueReady, 1)]);
        let [_, tx, _] = transport.queues();
        assert_eq!(virtio_queue::QueueT::size(tx), 16);
        write_all(&mut transport, &[(Register::QueueReady, 0), (Register::QueueNum, 256), (Register::QueueReady, 1)]);
        assert_eq!(transport.read(Register::QueueReady), 0);
    }

    #[test]
    fn a_reset_puts_everything_back() {
        let mut transport = negotiated();
        lay_out(&mut transport, 2);
        transport.write(Register::QueueReady, 1);
        assert_eq!(transport.write(Register::Status, 0), Change::Reset);
        assert_eq!((transport.read(Register::Status), transport.chosen), (0, 0));
        transport.write(Register::QueueSel, 2);
        assert_eq!(transport.read(Register::QueueReady), 0);
    }

    #[test]
    fn there_is_no_shared_memory() {
        assert_eq!(Registers::new().unwrap().read(Register::SharedMemory), u32::MAX);
    }
}
