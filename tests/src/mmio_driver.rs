//! A simulated driver that reaches its device through virtio-mmio registers, as a kernel does.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use scx_vsock::transport::mmio::{Error, Mmio, MmioSnapshot};
use scx_vsock::vsock::{Device, DeviceError, Handle};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::guest_driver::{Attached, CID, Guest, is_readable};
use crate::peer::DEADLINE;
use scx_vsock::vsock::test_util::{
    MEMORY_BYTES, Packet, QUEUE_SIZE, QueueAddresses, SimulatedDriver, guest_memory, mmio_initialisation,
};

/// Register offsets (virtio 1.3, 4.2.2).
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;

/// Status bits (2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
/// The device cannot go on.
pub const NEEDS_RESET: u32 = 64;

/// The writes up to `DRIVER`: a reset, and two steps of the status.
const UP_TO_DRIVER: usize = 3;

/// The transport of these tests.
pub type VsockMmio = Mmio<Arc<GuestMemoryMmap>, Line>;
type Line = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A device's registers and its interrupt.
#[derive(Clone)]
pub struct Registers {
    /// The device under test.
    pub mmio: Arc<VsockMmio>,
    /// Whether another thread calls the device when its descriptor says so.
    pub served_elsewhere: bool,
    interrupt: Arc<OwnedFd>,
}

impl Registers {
    /// Makes a transport with an interrupt of its own.
    ///
    /// # Errors
    ///
    /// As `make`.
    pub fn of(make: impl FnOnce(Line) -> Result<VsockMmio, Error>) -> Result<Self, Error> {
        let interrupt = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("a descriptor"));
        let line = Arc::clone(&interrupt);
        let raise = move || {
            rustix::io::write(&line, &1u64.to_ne_bytes())?;
            Ok(())
        };
        Ok(Self { mmio: Arc::new(make(Box::new(raise))?), served_elsewhere: false, interrupt })
    }

    /// A device as it was when `state` was taken, paused, over `memory`.
    ///
    /// # Errors
    ///
    /// The transport's, about the snapshot.
    pub fn restored(memory: &GuestMemoryMmap, state: &MmioSnapshot) -> Result<Self, Error> {
        let device = Device::new(CID).expect("a device");
        Self::of(|line| Mmio::restore(device, Arc::new(memory.clone()), line, state))
    }

    /// The register at `offset`.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0xff; 4];
        self.mmio.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes the register at `offset`.
    pub fn write(&self, offset: u64, value: u32) {
        self.mmio.write(offset, &value.to_le_bytes());
    }

    /// The device's status.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.read(STATUS)
    }

    /// Resets the device.
    pub fn reset(&self) {
        self.write(STATUS, 0);
        assert_eq!(self.status(), 0);
    }

    /// Initialises the device as the standard says, with all the features that it has.
    pub fn initialise(&self, queues: &[QueueAddresses]) {
        self.initialise_with(queues, self.features());
    }

    /// Initialises the device with these features.
    pub fn initialise_with(&self, queues: &[QueueAddresses], features: u64) {
        self.follow(&mmio_initialisation(queues, features), queues);
    }

    /// The steps of the initialisation after `DRIVER`.
    pub fn go_on_from_driver(&self, queues: &[QueueAddresses]) {
        let writes = mmio_initialisation(queues, self.features()).split_off(UP_TO_DRIVER);
        self.follow(&writes, queues);
    }

    fn follow(&self, writes: &[(u64, u32)], queues: &[QueueAddresses]) {
        for &(offset, value) in writes {
            self.write(offset, value);
        }
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        for (queue, _) in (0..).zip(queues) {
            self.write(QUEUE_SEL, queue);
            assert_eq!(self.read(QUEUE_READY), 1);
            assert!(self.read(QUEUE_NUM_MAX) >= QUEUE_SIZE.into());
        }
    }

    fn features(&self) -> u64 {
        [1, 0].into_iter().fold(0, |features, word| {
            self.write(DEVICE_FEATURES_SEL, word);
            features << 32 | u64::from(self.read(DEVICE_FEATURES))
        })
    }

    /// Notifies the queues that are to be notified.
    pub fn notify(&self, driver: &mut SimulatedDriver) {
        for (queue, notified) in (0..).zip(driver.take_notifications()) {
            if notified {
                self.write(QUEUE_NOTIFY, queue);
            }
        }
    }

    /// Why the device interrupted the guest, if it did: reads, and acknowledges.
    #[must_use]
    pub fn take_interrupt(&self) -> u32 {
        if rustix::io::read(&self.interrupt, &mut [0; 8]).is_err() {
            return 0;
        }
        let reasons = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACK, reasons);
        reasons
    }

    /// Waits until the device has used a buffer of `driver`, notified by an interrupt, or `other` is readable.
    pub fn wait_or(&self, driver: &SimulatedDriver, other: impl AsFd) {
        driver.ask_for_interrupts();
        if driver.has_used() {
            return;
        }
        let within = Timespec::try_from(DEADLINE).expect("a short deadline");
        let mut fds = [PollFd::new(&self.interrupt, PollFlags::IN), PollFd::new(&other, PollFlags::IN)];
        assert!(poll(&mut fds, Some(&within)).expect("poll works") > 0, "no interrupt within {DEADLINE:?}");
        let _reasons = self.take_interrupt();
    }

    /// Waits until the device has used a buffer of `driver` for which `is_it` holds, notified by an interrupt.
    fn wait(&self, driver: &SimulatedDriver, is_it: impl Fn(&SimulatedDriver) -> bool) {
        loop {
            driver.ask_for_interrupts();
            if is_it(driver) {
                return;
            }
            assert!(is_readable(&self.interrupt, DEADLINE), "no interrupt within {DEADLINE:?}");
            let _reasons = self.take_interrupt();
        }
    }
}

impl Attached for Registers {
    /// Does what the device's own thread would: nothing that it is not woken for.
    fn service(&mut self, driver: &mut SimulatedDriver) -> Result<(), DeviceError> {
        self.notify(driver);
        while !self.served_elsewhere && is_readable(&self.mmio, Duration::ZERO) {
            match self.mmio.service() {
                Ok(()) => {}
                Err(Error::Device(error)) => return Err(error),
                Err(error) => panic!("{error}"),
            }
        }
        Ok(())
    }

    fn handle(&self) -> Handle {
        self.mmio.handle()
    }
}

impl Guest<Registers> {
    /// A guest whose driver runs and has posted all its buffers.
    #[must_use]
    pub fn behind_registers() -> Self {
        let driver = SimulatedDriver::new(guest_memory());
        let memory = Arc::new(driver.memory().clone());
        let device = Device::new(CID).expect("a device");
        let registers = Registers::of(|line| Mmio::new(device, memory, line)).expect("a transport");
        let mut guest = Self::attached(registers, driver);
        guest.boot();
        guest
    }

    /// The guest is saved and restored as another process would do it: what is left of this one is the state as text and
    /// the bytes of its memory. Its device is paused.
    #[must_use]
    pub fn saved_and_restored(self) -> Self {
        self.device.mmio.pause();
        let saved = serde_json::to_string(&self.device.mmio.snapshot().expect("a paused device")).expect("plain data");
        let driver = self.into_driver();
        let memory = copy_of(driver.memory());
        let state = serde_json::from_str(&saved).expect("what was written");
        let restored = Registers::restored(&memory, &state).expect("a state of before");
        Self::attached(restored, driver.moved_to(memory))
    }

    /// The next packet; waits for it.
    pub fn packet(&mut self) -> Packet {
        loop {
            self.take_sent();
            if let Some(packet) = self.receive() {
                self.service();
                return packet;
            }
            self.device.wait(self, SimulatedDriver::has_packet);
        }
    }

    /// The next event, whose buffer is not posted again yet; waits for it.
    pub fn event(&mut self) -> u32 {
        loop {
            if let Some(event) = self.take_event() {
                return event.expect("a buffer with room for an event");
            }
            self.device.wait(self, SimulatedDriver::has_event);
        }
    }

    /// The driver starts anew: it resets the device, and initialises it.
    pub fn boot(&mut self) {
        self.device.reset();
        self.restart();
        self.device.initialise(&self.addresses());
        self.service();
    }
}

/// Other memory with the same bytes.
fn copy_of(from: &GuestMemoryMmap) -> GuestMemoryMmap {
    const STEP: usize = 1 << 16;
    let to = guest_memory();
    let mut bytes = vec![0; STEP];
    for at in (0..MEMORY_BYTES).step_by(STEP) {
        let at = GuestAddress(at as u64);
        from.read_slice(&mut bytes, at).expect("memory");
        // What was never touched stays untouched.
        if bytes.iter().any(|&byte| byte != 0) {
            to.write_slice(&bytes, at).expect("memory");
        }
    }
    to
}
