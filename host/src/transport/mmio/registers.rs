//! The contents of the registers, without I/O: features, queues and the driver's progress.

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
    pub(super) driver_features: u64,
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
    /// Returns the registers of a device that no driver has found.
    ///
    /// # Errors
    ///
    /// As [`QueueRegisters::new`].
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            status: Status::default(),
            driver_features: 0,
            selected: Selected::default(),
            generation: 0,
            queues: [QueueRegisters::new()?, QueueRegisters::new()?, QueueRegisters::new()?],
        })
    }

    /// Returns the device status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// Makes the device stop until it is reset.
    pub fn set_needs_reset(&mut self) {
        self.status.set_needs_reset();
    }

    /// Makes the driver read the configuration space again: it has changed.
    pub fn on_config_change(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Returns the features that the driver has chosen.
    #[must_use]
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Returns the receive, transmit and event queue, ready or not.
    pub fn queues(&mut self) -> [&mut Queue; QUEUES] {
        self.queues.each_mut().map(QueueRegisters::queue)
    }

    /// Returns the value of a register; 0 where it can only be written.
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
    /// `FEATURES_OK`, queues set up after that and before `DRIVER_OK`. A write at another time changes nothing.
    pub fn write(&mut self, register: Register, value: u32) -> Change {
        match register {
            Register::DeviceFeaturesSel => self.selected.device_features = value,
            Register::DriverFeaturesSel => self.selected.driver_features = value,
            Register::QueueSel => self.selected.queue = value,
            Register::DriverFeatures => self.write_driver_features(value),
            Register::QueueNum => self.configure_queue(|queue, _| queue.set_size(value)),
            Register::QueueAddress(part, half) => self.configure_queue(|queue, _| queue.set_address(part, half, value)),
            Register::QueueReady if value == 1 => self.configure_queue(QueueRegisters::make_ready),
            Register::QueueReady => self.stop_queue(),
            Register::Status => return self.write_status(value),
            _ => {}
        }
        Change::None
    }

    fn write_driver_features(&mut self, word: u32) {
        if self.status.step() == Step::Driver
            && let Some(half) = Half::selected(self.selected.driver_features)
        {
            self.driver_features = half.replaced(self.driver_features, word);
        }
    }

    fn configure_queue(&mut self, change: impl FnOnce(&mut QueueRegisters, bool)) {
        let event_idx = self.driver_features & F_EVENT_IDX != 0;
        if self.status.step() == Step::FeaturesOk
            && let Some(queue) = self.selected_queue_mut()
        {
            change(queue, event_idx);
        }
    }

    fn stop_queue(&mut self) {
        if let Some(queue) = self.selected_queue_mut() {
            queue.stop();
        }
    }

    fn write_status(&mut self, value: u32) -> Change {
        let driver_features = self.driver_features;
        let change = self.status.write(value, || features::accepts(driver_features));
        if change == Change::Reset {
            self.reset();
        }
        change
    }

    fn reset(&mut self) {
        self.driver_features = 0;
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

    fn write_all(registers: &mut Registers, writes: &[(Register, u32)]) {
        for &(register, value) in writes {
            registers.write(register, value);
        }
    }

    fn negotiated() -> Registers {
        let mut registers = Registers::new().unwrap();
        let features = Half::High.of(F_VERSION_1);
        write_all(
            &mut registers,
            &[
                (Register::Status, 3),
                (Register::DriverFeaturesSel, 1),
                (Register::DriverFeatures, features),
                (Register::Status, 11),
            ],
        );
        assert_eq!(registers.read(Register::Status), 11);
        registers
    }

    fn lay_out(registers: &mut Registers, queue: u32) {
        let at = |part| Register::QueueAddress(part, Half::Low);
        write_all(
            registers,
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
    fn it_is_a_modern_vsock_device() {
        let registers = Registers::new().unwrap();
        let read = |register| registers.read(register);
        assert_eq!((read(Register::MagicValue), read(Register::Version)), (0x7472_6976, 2));
        assert_eq!((read(Register::DeviceId), read(Register::Status)), (19, 0));
    }

    #[test]
    fn features_are_read_a_word_at_a_time() {
        let mut registers = Registers::new().unwrap();
        let mut word = |selected| {
            registers.write(Register::DeviceFeaturesSel, selected);
            registers.read(Register::DeviceFeatures)
        };
        assert_eq!((word(0), word(1), word(2), word(u32::MAX)), (1 << 29 | 0b101, 1, 0, 0));
    }

    #[test]
    fn features_are_chosen_before_features_ok() {
        let mut registers = negotiated();
        registers.write(Register::DriverFeatures, 0);
        assert_eq!(registers.driver_features, F_VERSION_1);
        let mut registers = Registers::new().unwrap();
        write_all(&mut registers, &[(Register::DriverFeaturesSel, 1), (Register::DriverFeatures, 1)]);
        assert_eq!(registers.driver_features, 0);
        registers.write(Register::Status, 11);
        assert_eq!(registers.read(Register::Status), 3, "without version 1 there is no agreement");
    }

    #[test]
    fn an_unknown_selector_selects_nothing() {
        let mut registers = negotiated();
        for queue in [3, 100, u32::MAX] {
            lay_out(&mut registers, queue);
            registers.write(Register::QueueReady, 1);
            assert_eq!((registers.read(Register::QueueNumMax), registers.read(Register::QueueReady)), (0, 0));
        }
        let mut registers = Registers::new().unwrap();
        write_all(&mut registers, &[(Register::Status, 3), (Register::DriverFeaturesSel, 2)]);
        registers.write(Register::DriverFeatures, u32::MAX);
        assert_eq!(registers.driver_features, 0);
    }

    #[test]
    fn queues_are_set_up_before_driver_ok() {
        let mut early = Registers::new().unwrap();
        lay_out(&mut early, 0);
        early.write(Register::QueueReady, 1);
        assert_eq!(early.read(Register::QueueReady), 0);
        let mut registers = negotiated();
        lay_out(&mut registers, 0);
        registers.write(Register::QueueReady, 1);
        assert_eq!(registers.read(Register::QueueReady), 1);
        registers.write(Register::Status, 15);
        lay_out(&mut registers, 1);
        registers.write(Register::QueueReady, 1);
        assert_eq!(registers.read(Register::QueueReady), 0);
    }

    #[test]
    fn a_running_queue_can_only_be_stopped() {
        let mut registers = negotiated();
        lay_out(&mut registers, 1);
        registers.write(Register::QueueReady, 1);
        registers.write(Register::Status, 15);
        write_all(&mut registers, &[(Register::QueueNum, 256), (Register::QueueReady, 1)]);
        let [_, tx, _] = registers.queues();
        assert_eq!(virtio_queue::QueueT::size(tx), 16);
        write_all(&mut registers, &[(Register::QueueReady, 0), (Register::QueueNum, 256), (Register::QueueReady, 1)]);
        assert_eq!(registers.read(Register::QueueReady), 0);
    }

    #[test]
    fn a_reset_clears_everything() {
        let mut registers = negotiated();
        lay_out(&mut registers, 2);
        registers.write(Register::QueueReady, 1);
        assert_eq!(registers.write(Register::Status, 0), Change::Reset);
        assert_eq!((registers.read(Register::Status), registers.driver_features), (0, 0));
        registers.write(Register::QueueSel, 2);
        assert_eq!(registers.read(Register::QueueReady), 0);
    }

    #[test]
    fn there_is_no_shared_memory() {
        assert_eq!(Registers::new().unwrap().read(Register::SharedMemory), u32::MAX);
    }
}
