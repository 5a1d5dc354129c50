//! What the driver of a paused device has set up, to be saved.
//!
//! A snapshot comes from a file that anybody may have written to, so that nothing in it is trusted: it is restored only
//! if a driver could have brought a device into that state.
//!
//! A version that was released is read for ever, and its form never changes: `snapshot_version_1.json` has it. A newer one
//! is refused by its number.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use virtio_queue::Error as QueueError;
use vm_memory::GuestMemory;

use super::interrupt::{CONFIG_CHANGE, USED_BUFFER};
use super::queue::{QueueLayout, QueueSetup};
use super::setup::{QUEUES, Setup};
use super::status::{Status, Step};
use crate::vsock::{DeviceState, InvalidSnapshot, features, spec};

/// The version of this form.
pub(in crate::transport) const VERSION: u32 = 1;

/// What the driver of a paused device has set up.
///
/// A snapshot of a newer version is refused when it is read:
///
/// ```
/// use scx_vsock::transport::virtio::{VirtioDevice, VirtioSnapshot};
/// # use scx_vsock::vsock::Device;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
///
/// # let memory = std::sync::Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// # let device = VirtioDevice::new(Device::new(3)?, memory, |_| Ok(()))?;
/// device.pause();
/// let saved = serde_json::to_string(&device.snapshot()?)?;
/// let newer = saved.replace(r#""version":1,"#, r#""version":2,"speed":9,"#);
/// let error = serde_json::from_str::<VirtioSnapshot>(&newer).unwrap_err().to_string();
/// assert!(error.starts_with("the saved vsock device has version 2, and this library restores version 1 only"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioSnapshot {
    #[serde(deserialize_with = "read_version")]
    pub(in crate::transport) version: u32,
    pub(in crate::transport) status: u32,
    pub(in crate::transport) features: u64,
    pub(in crate::transport) interrupt_status: u32,
    pub(in crate::transport) config_generation: u32,
    pub(in crate::transport) queues: [QueueState; QUEUES],
    pub(in crate::transport) device: DeviceState,
}

/// Reads the version, which is the first value of a snapshot, so that the fields of a newer one are not found unknown
/// before.
pub(in crate::transport) fn read_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    if version == VERSION {
        return Ok(version);
    }
    Err(D::Error::custom(format_args!(
        "the saved vsock device has version {version}, and this library restores version {VERSION} only"
    )))
}

/// One queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::transport) struct QueueState {
    layout: QueueLayout,
    ready: bool,
    /// The index of the next chain to take, which is that of the next to use too: none is in between.
    next: u16,
}

/// Why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidVirtioSnapshot {
    /// No device can have this register.
    #[error("the saved vsock device has {register} {value:#x}, which no device can have: the snapshot is invalid")]
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
    /// A queue that runs is outside of guest memory.
    #[error(
        "the saved vsock device's queue {index} is outside of guest memory: restore it with the memory of that time"
    )]
    OutsideMemory {
        /// The queue's number.
        index: usize,
    },
    /// No device can have been in this state.
    #[error(transparent)]
    Device(#[from] InvalidSnapshot),
}

impl VirtioSnapshot {
    pub(super) fn of(setup: &Setup, device: DeviceState, interrupt_status: u32) -> Self {
        Self {
            version: VERSION,
            status: setup.status.bits(),
            features: setup.driver_features,
            interrupt_status,
            config_generation: setup.generation,
            queues: setup.queues.each_ref().map(QueueState::of),
            device,
        }
    }

    /// Returns what the driver had set up.
    pub(super) fn setup<M: GuestMemory>(&self, memory: &M) -> Result<Setup, InvalidVirtioSnapshot> {
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
        let queue = |index, queue: &QueueState| {
            let setup = queue.setup(index, status.step(), self.features)?;
            let is_inside = !queue.ready || queue.layout.is_in(memory);
            if is_inside { Ok(setup) } else { Err(InvalidVirtioSnapshot::OutsideMemory { index }) }
        };
        Ok(Setup {
            status,
            driver_features: self.features,
            generation: self.config_generation,
            queues: [queue(spec::RX_QUEUE, rx)?, queue(spec::TX_QUEUE, tx)?, queue(spec::EVENT_QUEUE, event)?],
        })
    }
}

fn invalid(register: &'static str, value: u64) -> InvalidVirtioSnapshot {
    InvalidVirtioSnapshot::Register { register, value }
}

impl QueueState {
    fn of(setup: &QueueSetup) -> Self {
        let ready = setup.is_ready();
        Self { layout: setup.layout(), ready, next: if ready { setup.next() } else { 0 } }
    }

    fn setup(&self, index: usize, step: Step, driver_features: u64) -> Result<QueueSetup, InvalidVirtioSnapshot> {
        let possible = match step {
            Step::DriverOk => self.ready || self.next == 0,
            Step::FeaturesOk => self.next == 0,
            Step::Reset | Step::Acknowledge | Step::Driver => *self == Self::default(),
        };
        if !possible {
            return Err(InvalidVirtioSnapshot::Queue { index, source: None });
        }
        let setup = if self.ready {
            QueueSetup::running(self.layout, driver_features & spec::F_EVENT_IDX != 0, self.next)
        } else {
            QueueSetup::laid_out(self.layout)
        };
        setup.map_err(|error| InvalidVirtioSnapshot::Queue { index, source: Some(error) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    /// As 0.1.0 wrote it. Never to be changed.
    const VERSION_1: &str = include_str!("snapshot_version_1.json");

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// A device whose driver has come to this status, with all queues as soon as there may be any.
    fn setup(status: u32) -> Setup {
        let mut setup = Setup::new().unwrap();
        setup.write_status(status & 3);
        setup.set_driver_features(1 << 32);
        setup.write_status(status & 11);
        for (queue, at) in [(0, 0x1000), (1, 0x2000), (2, 0x3000)] {
            setup.lay_out_queue(queue, |layout| {
                *layout = QueueLayout { size: 64, descriptors: at, driver: at, device: at };
            });
            setup.start_queue(queue, &memory());
        }
        setup.write_status(status);
        assert_eq!(setup.status.bits(), status);
        setup
    }

    fn state(status: u32) -> VirtioSnapshot {
        VirtioSnapshot::of(&setup(status), DeviceState { guest_cid: 3, next_port: 1 << 30 }, u32::from(status == 15))
    }

    fn restored(state: &VirtioSnapshot) -> Result<Setup, InvalidVirtioSnapshot> {
        state.setup(&memory())
    }

    /// What comes of the running device's state with one value of it changed.
    fn changed(pointer: &str, value: Value) -> Result<Setup, InvalidVirtioSnapshot> {
        let mut json = serde_json::to_value(state(15)).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        restored(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn every_status_survives_a_restore() {
        for status in [0, 1, 3, 11, 15] {
            let saved = serde_json::to_string(&state(status)).unwrap();
            let read: VirtioSnapshot = serde_json::from_str(&saved).unwrap();
            assert_eq!(read, state(status));
            let again = VirtioSnapshot::of(&restored(&read).unwrap(), read.device, read.interrupt_status);
            assert_eq!(again, read, "status {status}");
        }
    }

    #[test]
    fn version_1_is_read_for_ever() {
        let read: VirtioSnapshot = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!(read, state(15));
        assert!(restored(&read).unwrap().status.runs());
        assert_eq!(serde_json::to_string(&read).unwrap(), VERSION_1.trim_end());
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let refused = |pointer, value| changed(pointer, value).unwrap_err().to_string();
        assert!(refused("/status", json!(13)).contains("device has status 0xd, which"));
        assert!(refused("/features", json!(1)).contains("device has driver features 0x1, which"));
        assert!(refused("/interrupt_status", json!(4)).contains("device has interrupt status 0x4, which"));
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
    fn a_queue_outside_guest_memory_is_refused() {
        for part in ["descriptors", "driver", "device"] {
            for address in [(1u64 << 20) - 16, 1 << 20, 1 << 40, u64::MAX - 15] {
                let error = changed(&format!("/queues/1/layout/{part}"), json!(address)).unwrap_err();
                assert!(matches!(error, InvalidVirtioSnapshot::OutsideMemory { index: 1 }), "{part}: {error}");
            }
        }
    }

    #[test]
    fn an_early_queue_is_refused() {
        for status in [0, 1, 3] {
            let mut early = state(status);
            early.queues = state(15).queues;
            assert!(matches!(restored(&early), Err(InvalidVirtioSnapshot::Queue { index: 0, source: None })));
        }
        let mut early = state(11);
        early.queues[1].next = 1;
        assert!(matches!(restored(&early), Err(InvalidVirtioSnapshot::Queue { index: 1, source: None })));
    }

    #[test]
    fn early_driver_state_is_refused() {
        for status in [0, 1] {
            let early = VirtioSnapshot { features: 1, ..state(status) };
            assert!(matches!(
                restored(&early),
                Err(InvalidVirtioSnapshot::Register { register: "driver features", value: 1 })
            ));
        }
        for status in [0, 1, 3, 11] {
            let early = VirtioSnapshot { interrupt_status: 1, ..state(status) };
            assert!(matches!(
                restored(&early),
                Err(InvalidVirtioSnapshot::Register { register: "interrupt status", value: 1 })
            ));
            let stopped = VirtioSnapshot { status: status | 64, ..state(status) };
            assert!(matches!(restored(&stopped), Err(InvalidVirtioSnapshot::Register { register: "status", .. })));
        }
        let stopped = VirtioSnapshot { status: 15 | 64, ..state(15) };
        assert!(!restored(&stopped).unwrap().status.runs());
    }

    proptest! {
        #[test]
        fn restored_snapshots_can_be_saved(
            status in prop::sample::select(vec![0u32, 1, 3, 11, 15, 15 | 64, 15 | 128, 7]),
            features: u64,
            sizes in prop::array::uniform3(prop::sample::select(vec![0u32, 1, 64, 100, 256, 512, u32::MAX])),
            addresses in prop::array::uniform3(prop_oneof![any::<u64>(), 0u64..1 << 20]),
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
                    layout: QueueLayout { size: sizes[index], descriptors: address, driver: address, device: address },
                    ready: ready[index],
                    next: next[index],
                };
            }
            if let Ok(setup) = restored(&state) {
                prop_assert_eq!(VirtioSnapshot::of(&setup, state.device, state.interrupt_status), state);
            }
        }
    }
}
