//! What a VMM adds to read a guest's scheduler statistics: the device on its bus, a thread that serves it, a client, and a
//! freeze around its pauses. No guest runs in this example.
#![allow(clippy::print_stdout, reason = "an example's output")]

use std::error::Error;
use std::sync::Arc;
use std::{io, thread};

use event_manager::{EventManager, SubscriberOps};
use scx_vsock::transport::event_manager::Subscriber;
use scx_vsock::transport::mmio::{BYTES, Mmio};
use scx_vsock::vm_memory::{GuestAddress, GuestMemoryMmap};
use scx_vsock::vsock::Device;
use scx_vsock::{MissingStatsReason, RunControl, SchedStatsClient};

/// The guest address of the device's registers.
const REGISTERS: u64 = 0xd000_0000;

type Vsock = Mmio<Arc<GuestMemoryMmap>, fn() -> io::Result<()>>;

struct Vmm {
    device: Arc<Vsock>,
    client: SchedStatsClient,
    run: RunControl,
}

impl Vmm {
    fn new(memory: Arc<GuestMemoryMmap>, interrupt: fn() -> io::Result<()>) -> Result<Self, Box<dyn Error>> {
        let device = Arc::new(Mmio::new(Device::new(3)?, memory, interrupt)?);
        let run = RunControl::new();
        let agent = device.handle().agent();
        let client = SchedStatsClient::builder(agent).control(&run).build();
        let served = Arc::clone(&device);
        thread::spawn(move || {
            let mut manager = EventManager::new()?; // one for all guests
            manager.add_subscriber(Subscriber::new(served, |error| {
                println!("the device stopped: {:#}", anyhow::Error::from(error));
            }));
            while manager.run().is_ok() {}
            Ok::<(), event_manager::Error>(())
        });
        Ok(Self { device, client, run })
    }

    /// A processor's exit: the guest read from its bus, or wrote to it.
    fn on_read(&self, address: u64, data: &mut [u8]) {
        match offset(address) {
            Some(offset) => self.device.read(offset, data),
            None => data.fill(0xff), // ... or another device
        }
    }

    fn on_write(&self, address: u64, data: &[u8]) {
        offset(address).into_iter().for_each(|offset| self.device.write(offset, data));
    }

    /// Pauses the guest and saves it. Calls that wait for its statistics end at once.
    fn save(&self) -> Result<String, Box<dyn Error>> {
        let _frozen = self.run.freeze(); // first, until all goes on again; then the processors are stopped
        self.device.pause();
        let state = serde_json::to_string(&self.device.snapshot()?)?;
        // ... memory is written out beside the state, for `Mmio::restore`,
        self.device.resume()?; // ... and the processors go on.
        Ok(state)
    }
}

fn offset(address: u64) -> Option<u64> {
    address.checked_sub(REGISTERS).filter(|&offset| offset < BYTES)
}

fn main() -> Result<(), Box<dyn Error>> {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)])?);
    let vmm = Vmm::new(memory, || Ok(()))?; // ... the guest's interrupt
    let mut status = [0; 4];
    vmm.on_write(REGISTERS + 0x70, &[1, 0, 0, 0]);
    vmm.on_read(REGISTERS + 0x70, &mut status);
    println!("the driver is at {status:?}, saved as {}", vmm.save()?);
    let _frozen = vmm.run.freeze();
    println!("no stats: {:?}", vmm.client.stats(&[]).map_err(MissingStatsReason::from));
    Ok(())
}
