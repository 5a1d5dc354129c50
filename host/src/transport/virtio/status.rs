//! The device status (virtio 1.3, 2.1 and 3.1.1): how far the driver's initialisation is.

/// The driver has found the device.
pub const ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive it.
pub const DRIVER: u32 = 2;
/// The driver is ready, and drives it.
pub const DRIVER_OK: u32 = 4;
/// The driver has chosen its features, and the device accepts them.
pub const FEATURES_OK: u32 = 8;
/// The device has stopped, and must be reset.
pub const DEVICE_NEEDS_RESET: u32 = 64;
/// The driver has given up.
pub const FAILED: u32 = 128;

/// A step of the driver's initialisation. Each follows the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// None since the last reset.
    #[default]
    Reset,
    /// [`ACKNOWLEDGE`].
    Acknowledge,
    /// [`DRIVER`]: features are chosen now.
    Driver,
    /// [`FEATURES_OK`]: queues are set up now.
    FeaturesOk,
    /// [`DRIVER_OK`]: the queues run.
    DriverOk,
}

impl Step {
    /// Returns the step after this one, and the bit that the driver sets for it.
    fn next(self) -> Option<(u32, Self)> {
        Some(match self {
            Self::Reset => (ACKNOWLEDGE, Self::Acknowledge),
            Self::Acknowledge => (DRIVER, Self::Driver),
            Self::Driver => (FEATURES_OK, Self::FeaturesOk),
            Self::FeaturesOk => (DRIVER_OK, Self::DriverOk),
            Self::DriverOk => return None,
        })
    }

    /// Returns the bits that the driver has set.
    fn bits(self) -> u32 {
        match self {
            Self::Reset => 0,
            Self::Acknowledge => ACKNOWLEDGE,
            Self::Driver => ACKNOWLEDGE | DRIVER,
            Self::FeaturesOk => ACKNOWLEDGE | DRIVER | FEATURES_OK,
            Self::DriverOk => ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        }
    }
}

/// What follows from a write of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing of consequence.
    None,
    /// The device is reset.
    Reset,
    /// The queues are to run.
    Run,
}

/// The device status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    step: Step,
    failed: bool,
    needs_reset: bool,
}

impl Status {
    /// Returns the status with these bits, if there is one.
    #[must_use]
    pub fn parse(bits: u32) -> Option<Self> {
        let steps = [Step::Reset, Step::Acknowledge, Step::Driver, Step::FeaturesOk, Step::DriverOk];
        let step = steps.into_iter().find(|step| step.bits() == bits & !(FAILED | DEVICE_NEEDS_RESET))?;
        let needs_reset = bits & DEVICE_NEEDS_RESET != 0;
        // What did not run cannot have stopped.
        let possible = step == Step::DriverOk || !needs_reset;
        possible.then_some(Self { step, failed: bits & FAILED != 0, needs_reset })
    }

    /// Returns the status as the register has it.
    #[must_use]
    pub fn bits(self) -> u32 {
        let failed = if self.failed { FAILED } else { 0 };
        let needs_reset = if self.needs_reset { DEVICE_NEEDS_RESET } else { 0 };
        self.step.bits() | failed | needs_reset
    }

    /// Returns the driver's last step.
    #[must_use]
    pub fn step(self) -> Step {
        self.step
    }

    /// Whether the queues run.
    #[must_use]
    pub fn runs(self) -> bool {
        self.step == Step::DriverOk && !self.failed && !self.needs_reset
    }

    /// Takes a write of the driver. It may take several steps at a time but skips none, and goes back only by a reset.
    /// `accepts` returns whether the features that it chose are accepted.
    pub fn write(&mut self, bits: u32, accepts: impl FnOnce() -> bool) -> Change {
        if bits == 0 {
            *self = Self::default();
            return Change::Reset;
        }
        self.failed |= bits & FAILED != 0;
        let before = self.step;
        if bits & before.bits() == before.bits() {
            self.advance(bits, accepts);
        }
        if before < Step::DriverOk && self.runs() { Change::Run } else { Change::None }
    }

    fn advance(&mut self, bits: u32, accepts: impl FnOnce() -> bool) {
        let mut accepts = Some(accepts);
        while let Some((bit, next)) = self.step.next()
            && bits & bit != 0
            && (next != Step::FeaturesOk || accepts.take().is_some_and(|accepts| accepts()))
        {
            self.step = next;
        }
    }

    /// Makes the device stop until it is reset.
    pub fn set_needs_reset(&mut self) {
        self.needs_reset = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(writes: &[u32]) -> Status {
        let mut status = Status::default();
        for &bits in writes {
            status.write(bits, || true);
        }
        status
    }

    #[test]
    fn a_driver_that_takes_each_step_runs() {
        let mut status = Status::default();
        assert_eq!(status.write(1, || true), Change::None);
        assert_eq!(status.write(3, || true), Change::None);
        assert_eq!(status.write(11, || true), Change::None);
        assert_eq!(status.write(15, || true), Change::Run);
        assert_eq!((status.bits(), status.runs()), (15, true));
        assert_eq!(status.write(15, || true), Change::None, "it runs once");
    }

    #[test]
    fn no_step_can_be_skipped() {
        assert_eq!(after(&[DRIVER]).bits(), 0);
        assert_eq!(after(&[1, 3, 7]).bits(), 3);
        assert_eq!(after(&[15]).bits(), 15, "several steps at a time are steps all the same");
    }

    #[test]
    fn refused_features_stop_the_driver() {
        let mut status = after(&[3]);
        status.write(15, || false);
        assert_eq!(status.bits(), 3);
        status.write(11, || true);
        assert_eq!(status.bits(), 11);
    }

    #[test]
    fn only_a_reset_takes_steps_back() {
        assert_eq!(after(&[15, 3]).bits(), 15);
        assert_eq!(after(&[11, 4]).bits(), 11, "a write that takes steps back takes none forward");
        assert_eq!(after(&[15, 0]), Status::default());
    }

    #[test]
    fn a_failed_driver_or_device_does_not_run() {
        assert_eq!(after(&[15, FAILED | 15]).bits(), FAILED | 15);
        assert!(!after(&[15, FAILED | 15]).runs());
        let mut status = after(&[15]);
        status.set_needs_reset();
        assert_eq!((status.bits(), status.runs()), (DEVICE_NEEDS_RESET | 15, false));
        assert!(!after(&[DEVICE_NEEDS_RESET | 15]).needs_reset, "that bit is the device's");
    }

    #[test]
    fn parsed_bits_are_the_same_bits() {
        for bits in 0..256 {
            if let Some(status) = Status::parse(bits) {
                assert_eq!(status.bits(), bits);
            }
        }
        assert_eq!((0..=u32::from(u16::MAX)).filter(|&bits| Status::parse(bits).is_some()).count(), 5 * 2 + 2);
    }

    proptest! {
        #[test]
        fn steps_stay_in_order(writes in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..50)) {
            let mut status = Status::default();
            for (bits, accepted) in writes {
                let before = status;
                let change = status.write(bits, || accepted);
                prop_assert!(Status::parse(status.bits()).is_some());
                prop_assert!(bits == 0 || status.step() >= before.step());
                prop_assert_eq!(change == Change::Run, status.runs() && before.step() < Step::DriverOk);
            }
        }
    }
}
