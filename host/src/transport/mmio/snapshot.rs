//! The registers and queues of a paused device, to be saved.
//!
//! A snapshot comes from a file that anybody may have written to, so that nothing in it is trusted: it is restored only
//! if a driver could have brought a device into that state.

use serde::{Deserialize, Serialize};
use virtio_queue::Error as QueueError;

use super::queue::{Layout, QueueRegisters};
use super::register::{CONFIG_CHANGE, USED_BUFFER};
use super::registers::{QUEUES, Registers, Selected};
use super::status::{Status, Step};
use crate::vsock::{DeviceState, InvalidSnapshot, features, spec};

/// The version of this form.
const VERSION: u32 = 1;

/// The registers and queues of a paused device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmioSnapshot {
    version: u32,
    status: u32,
    features: u64,
    selected: Selected,
    pub(super) interrupt_status: u32,
    config_generation: u32,
    queues: [QueueState; QUEUES],
    pub(super) device: DeviceState,
}

/// One queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueState {
    layout: Layout,
    ready: bool,
    /// The index of the next chain to take, which is that of the next to use too: none is in between.
    next: u16,
}

/// Why a snapshot cannot be restored.
///
/// ```
/// use scx_vsock::transport::mmio::Mmio;
/// # use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// # let before = Mmio::new(Device::new(3)?, memory.clone(), || Ok(()))?;
/// # before.pause();
/// # let saved = serde_json::to_string(&before.snapshot()?)?;
/// let newer = serde_json::from_str(&saved.replace(r#""version":1"#, r#""version":2"#))?;
/// let error = Mmio::restore(Device::new(3)?, memory, || Ok(()), &newer).unwrap_err();
/// assert_eq!(error.to_string(), "the saved vsock device has version 2, and this library restores version 1 only");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMmioSnapshot {
    /// It is of another version.
    #[error("the saved vsock device has version {0}, and this library restores version {VERSION} only")]
    Version(u32),
    /// No device can have this register.
    #[error("the saved vsock device's {register} is {value:#x}, which is impossible: the snapshot is invalid")]
    Register {
        /// The register.
        register: &'static str,
        /// Its value.
        value: u64,
    },
    /// No device can have this queue.
    #[error("the saved vsock device's queue {index} is impossible: the snapshot is invalid")]
    Queue {
        /// The queue's number.
        index: usize,
        /// What is wrong with it, where it is the layout.
        #[source]
        source: Option<QueueError>,
    },
    /// No device can have been in this state.
    #[error(transparent)]
    Device(#[from] InvalidSnapshot),
}

impl MmioSnapshot {
    pub(super) fn of(registers: &Registers, device: DeviceState, interrupt_status: u32) -> Self {
        Self {
            version: VERSION,
            status: registers.status.bits(),
            features: registers.driver_features,
            selected: registers.selected,
            interrupt_status,
            config_generation: registers.generation,
            queues: registers.queues.each_ref().map(QueueState::of),
            device,
        }
    }

    /// Returns the registers in this state.
    pub(super) fn registers(&self) -> Result<Registers, InvalidMmioSnapshot> {
        if self.version != VERSION {
            return Err(InvalidMmioSnapshot::Version(self.version));
        }
        let status = Status::parse(self.status).ok_or(invalid("status", self.status.into()))?;
        let (may_be_chosen, reasons) = match status.step() {
            Step::Reset | Step::Acknowledge => (self.features == 0, 0),
            Step::Driver => (true, 0),
            Step::FeaturesOk => (features::accepts(self.features), 0),
            Step::DriverOk => (features::accepts(self.features), USED_BUFFER | CONFIG_CHANGE),
        };
        if !may_be_chosen {
            return Err(invalid("driver features", self.features));
        }
        if self.interrupt_status & !reasons != 0 {
            return Err(invalid("interrupt status", self.interrupt_status.into()));
        }
        let [rx, tx, event] = &self.queues;
        let queue = |index, queue: &QueueState| queue.registers(index, status.step(), self.features);
        Ok(Registers {
            status,
            driver_features: self.features,
            selected: self.selected,
            generation: self.config_generation,
            queues: [queue(spec::RX_QUEUE, rx)?, queue(spec::TX_QUEUE, tx)?, queue(spec::EVENT_QUEUE, event)?],
        })
    }
}

fn invalid(register: &'static str, value: u64) -> InvalidMmioSnapshot {
    InvalidMmioSnapshot::Register { register, value }
}

impl QueueState {
    fn of(registers: &QueueRegisters) -> Self {
        let ready = registers.is_ready();
        Self { layout: registers.layout(), ready, next: if ready { registers.next() } else { 0 } }
    }

    fn registers(&self, index: usize, step: Step, driver_features: u64) -> Result<QueueRegisters, InvalidMmioSnapshot> {
        let possible = match step {
            Step::DriverOk => self.ready || self.next == 0,
            Step::FeaturesOk => self.next == 0,
            Step::Reset | Step::Acknowledge | Step::Driver => *self == Self::default(),
        };
        if !possible {
            return Err(InvalidMmioSnapshot::Queue { index, source: None });
        }
        let registers = if self.ready {
            QueueRegisters::running(self.layout, driver_features & spec::F_EVENT_IDX != 0, self.next)
        } else {
            QueueRegisters::laid_out(self.layout)
        };
        registers.map_err(|error| InvalidMmioSnapshot::Queue { index, source: Some(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::transport::mmio::register::{Half, Part, Register};

    /// A device whose driver has come to this status, with all queues as soon as there may be any.
    fn registers(status: u32) -> Registers {
        let mut registers = Registers::new().unwrap();
        for (register, value) in [
            (Register::Status, status & 3),
            (Register::DriverFeaturesSel, 1),
            (Register::DriverFeatures, 1),
            (Register::Status, status & 11),
        ] {
            registers.write(register, value);
        }
        for queue in 0..3 {
            registers.write(Register::QueueSel, queue);
            registers.write(Register::QueueNum, 64);
            for part in [Part::Descriptors, Part::Driver, Part::Device] {
                registers.write(Register::QueueAddress(part, Half::Low), 0x1000 * (queue + 1));
            }
            registers.write(Register::QueueReady, 1);
        }
        registers.write(Register::Status, status);
        assert_eq!(registers.read(Register::Status), status);
        registers
    }

    fn state(status: u32) -> MmioSnapshot {
        MmioSnapshot::of(&registers(status), DeviceState { guest_cid: 3, next_port: 1 << 30 }, u32::from(status == 15))
    }

    /// What comes of the running device's state with one value of it changed.
    fn changed(pointer: &str, value: Value) -> Result<Registers, InvalidMmioSnapshot> {
        let mut json = serde_json::to_value(state(15)).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        serde_json::from_value::<MmioSnapshot>(json).unwrap().registers()
    }

    #[test]
    fn every_status_survives_a_restore() {
        for status in [0, 1, 3, 11, 15] {
            let saved = serde_json::to_string(&state(status)).unwrap();
            let restored: MmioSnapshot = serde_json::from_str(&saved).unwrap();
            assert_eq!(restored, state(status));
            let again = MmioSnapshot::of(&restored.registers().unwrap(), restored.device, restored.interrupt_status);
            assert_eq!(again, restored, "status {status}");
        }
    }

    #[test]
    fn the_form_is_that_of_version_1() {
        let queue = |address: u64| {
            let layout = json!({"size": 64, "descriptors": address, "driver": address, "device": address});
            json!({"layout": layout, "ready": true, "next": 0})
        };
        let golden = json!({
            "version": 1,
            "status": 15,
            "features": 1u64 << 32,
            "selected": {"device_features": 0, "driver_features": 1, "queue": 2},
            "interrupt_status": 1,
            "config_generation": 0,
            "queues": [queue(0x1000), queue(0x2000), queue(0x3000)],
            "device": {"guest_cid": 3, "next_port": 1 << 30},
        });
        assert_eq!(serde_json::to_value(state(15)).unwrap(), golden);
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let refused = |pointer, value| changed(pointer, value).unwrap_err().to_string();
        assert!(refused("/version", json!(2)).contains("version 2"));
        assert!(refused("/status", json!(13)).contains("status is 0xd"));
        assert!(refused("/features", json!(1)).contains("driver features is 0x1"));
        assert!(refused("/interrupt_status", json!(4)).contains("interrupt status is 0x4"));
        for (pointer, value) in [
            ("/queues/1/layout/size", json!(100)),
            ("/queues/1/layout/size", json!(512)),
            ("/queues/1/layout/descriptors", json!(0x1008)),
            ("/queues/1/layout/driver", json!(0x1001)),
            ("/queues/1/layout/device", json!(0x1002)),
        ] {
            assert!(refused(pointer, value).contains("queue 1 is impossible"), "{pointer}");
        }
        assert!(changed("/queues/2/ready", json!(false)).is_ok());
    }

    #[test]
    fn an_early_queue_is_refused() {
        for status in [0, 1, 3] {
            let mut early = state(status);
            early.queues = state(15).queues;
            assert!(matches!(early.registers(), Err(InvalidMmioSnapshot::Queue { index: 0, source: None })));
        }
        let mut early = state(11);
        early.queues[1].next = 1;
        assert!(matches!(early.registers(), Err(InvalidMmioSnapshot::Queue { index: 1, source: None })));
    }

    #[test]
    fn early_driver_state_is_refused() {
        for status in [0, 1] {
            let early = MmioSnapshot { features: 1, ..state(status) };
            assert!(matches!(
                early.registers(),
                Err(InvalidMmioSnapshot::Register { register: "driver features", value: 1 })
            ));
        }
        for status in [0, 1, 3, 11] {
            let early = MmioSnapshot { interrupt_status: 1, ..state(status) };
            assert!(matches!(
                early.registers(),
                Err(InvalidMmioSnapshot::Register { register: "interrupt status", value: 1 })
            ));
            let stopped = MmioSnapshot { status: status | 64, ..state(status) };
            assert!(matches!(stopped.registers(), Err(InvalidMmioSnapshot::Register { register: "status", .. })));
        }
        let stopped = MmioSnapshot { status: 15 | 64, ..state(15) };
        assert!(!stopped.registers().unwrap().status().runs());
    }

    proptest! {
        #[test]
        fn restored_snapshots_can_be_saved(
            status in prop::sample::select(vec![0u32, 1, 3, 11, 15, 15 | 64, 15 | 128, 7]),
            features: u64,
            sizes in prop::array::uniform3(prop::sample::select(vec![0u32, 1, 64, 100, 256, 512, u32::MAX])),
            addresses in prop::array::uniform3(any::<u64>()),
            aligned: bool,
            ready in prop::array::uniform3(any::<bool>()),
            next in prop::array::uniform3(any::<u16>()),
        ) {
            let mut state = state(15);
            state.status = status;
            state.features = [0, 1 << 32, features][(features % 3) as usize];
            state.interrupt_status = u32::from(status & 15 == 15);
            for index in 0..QUEUES {
                let address = addresses[index] & if aligned { !0xf } else { u64::MAX };
                state.queues[index] = QueueState {
                    layout: Layout { size: sizes[index], descriptors: address, driver: address, device: address },
                    ready: ready[index],
                    next: next[index],
                };
            }
            if let Ok(registers) = state.registers() {
                prop_assert_eq!(MmioSnapshot::of(&registers, state.device, state.interrupt_status), state);
            }
        }
    }
}
