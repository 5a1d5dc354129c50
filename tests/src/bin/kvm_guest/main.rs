//! A guest on KVM that drives the vsock device: it initialises it, handles its interrupts, notifies its queues, and echoes
//! what the host sends. This program is VMM, guest and host in one, so that it runs wherever KVM does.
//!
//! ```text
//! kvm_guest [ROUNDS]
//! ```
//!
//! It exits with 77 where there is no KVM.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program's messages")]

mod machine;
mod program;

use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use event_manager::{EventManager, SubscriberOps};
use kvm_ioctls::{VcpuExit, VmFd};
use scx_vsock::transport::event_manager::Subscriber;
use scx_vsock::transport::kvm::{Irq, register_ioeventfds, unregister_ioeventfds};
use scx_vsock::transport::mmio::{BYTES, Mmio, QUEUE_NOTIFY};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::test_util::{Packet, SimulatedDriver, guest_memory, mmio_initialisation};
use scx_vsock::vsock::{Device, Handle};
use scx_vsock_tests::guest_driver::{CID, Guest, pattern};
use vm_memory::GuestMemoryMmap;

use machine::Machine;
use program::{DONE_PORT, IRQ, REGISTERS};

/// The exit code of a test program that cannot run.
const SKIPPED: u8 = 77;
/// How long a round may take, emulated on two levels.
const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u32 = 729;

type KvmMmio = Mmio<Arc<GuestMemoryMmap>, Irq>;

fn main() -> ExitCode {
    let rounds = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    let vm = match machine::on_kvm() {
        Ok(vm) => vm,
        Err(error) => {
            eprintln!("kvm_guest: there is no KVM here: {error}");
            return SKIPPED.into();
        }
    };
    match run(vm, rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvm_guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(vm: VmFd, rounds: usize) -> Result<()> {
    let mut driver = SimulatedDriver::new(guest_memory());
    driver.restart();
    program::load(driver.memory(), &mmio_initialisation(&driver.addresses(), Device::FEATURES))?;
    let machine = Machine::new(vm, driver.memory())?;
    let interrupt = Irq::connect(&machine.vm, IRQ)?;
    let device = Arc::new(Mmio::new(Device::new(CID)?, Arc::new(driver.memory().clone()), interrupt)?);
    // An ioeventfd can be registered again once it was unregistered.
    register_ioeventfds(&machine.vm, REGISTERS, &device)?;
    unregister_ioeventfds(&machine.vm, REGISTERS, &device)?;
    register_ioeventfds(&machine.vm, REGISTERS, &device)?;
    let (failed, failures) = channel();
    serve(Arc::clone(&device), failed.clone());
    let handle = device.handle();
    let memory = driver.memory().clone();
    let (report, reports) = channel();
    thread::spawn(move || {
        let mut processor = Processor { machine, device, driver, counters: Counters::default(), report };
        if let Err(error) = processor.run() {
            // The receiver may be gone.
            let _gone = failed.send(error);
        }
    });
    // A processor that waits for an interrupt does so in KVM until this program ends.
    echo(&handle, rounds).map_err(|error| failures.try_recv().unwrap_or(error))?;
    finish(&reports, &memory, rounds)
}

/// Serves the device on a thread with an event manager.
fn serve(device: Arc<KvmMmio>, failed: Sender<Error>) {
    thread::spawn(move || {
        let failures = failed.clone();
        let subscriber = Subscriber::new(device, move |error| drop(failures.send(error.into())));
        let served = EventManager::new().and_then(|mut manager| {
            manager.add_subscriber(subscriber);
            loop {
                manager.run()?;
            }
        });
        let Err::<(), _>(error) = served else { return };
        // The receiver may be gone.
        let _gone = failed.send(error.into());
    });
}

/// The host's side: sends payloads to the guest, and checks that each comes back.
fn echo(handle: &Handle, rounds: usize) -> Result<()> {
    let mut stream = handle.connect(PORT)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    for round in 0..rounds {
        let payload = pattern(1 + 97 * round % 8_000);
        stream.write_all(&payload)?;
        let mut back = vec![0; payload.len()];
        stream.read_exact(&mut back).with_context(|| format!("round {round}"))?;
        ensure!(back == payload, "round {round} came back changed");
    }
    Ok(())
}

/// What the processor's thread counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Queue notifications by the guest.
    notifications: usize,
    /// Those that came as exits instead of through an ioeventfd.
    notify_exits: usize,
    /// The guest closed its connection.
    closed: bool,
}

fn finish(reports: &Receiver<Counters>, memory: &GuestMemoryMmap, rounds: usize) -> Result<()> {
    let counters = loop {
        let counters = reports.recv_timeout(DEADLINE).context("the guest does not confirm the connection's end")?;
        if counters.closed {
            break counters;
        }
    };
    let interrupts = program::interrupts(memory)?;
    let Counters { notifications, notify_exits, .. } = counters;
    println!(
        "{rounds} echoes, {interrupts} interrupts, {notifications} notifications, {notify_exits} of them as exits"
    );
    let through_kvm = interrupts > 0 && notifications > 0 && notify_exits == 0;
    ensure!(through_kvm, "interrupts and queue notifications do not go through KVM");
    Ok(())
}

/// The guest's processor, and the part of its driver that its program lacks.
struct Processor {
    machine: Machine,
    device: Arc<KvmMmio>,
    driver: SimulatedDriver,
    counters: Counters,
    report: Sender<Counters>,
}

impl Processor {
    /// Runs the guest's program until the host's side ends.
    fn run(&mut self) -> Result<()> {
        loop {
            match self.machine.processor.run()? {
                VcpuExit::MmioRead(address, data) => match offset(address) {
                    Some(offset) => self.device.read(offset, data),
                    None => bail!("the guest read {address:#x}"),
                },
                VcpuExit::MmioWrite(address, data) => match offset(address) {
                    Some(offset) => {
                        self.counters.notify_exits += usize::from(offset == QUEUE_NOTIFY);
                        self.device.write(offset, data);
                    }
                    None => bail!("the guest wrote {address:#x}"),
                },
                VcpuExit::IoOut(DONE_PORT, _) => {
                    if self.drive().is_err() {
                        return Ok(());
                    }
                }
                exit => {
                    let exit = format!("{exit:?}");
                    let at = self.machine.processor.get_regs()?.rip;
                    bail!("the guest stopped at {at:#x}: {exit}");
                }
            }
        }
    }

    /// Does the driver's work after an interrupt. An error is the end of the host's side.
    fn drive(&mut self) -> Result<()> {
        loop {
            self.driver.take_sent();
            while let Some(packet) = self.driver.receive() {
                self.answer(&packet);
            }
            self.driver.ask_for_interrupts();
            if !self.driver.has_used() {
                break;
            }
        }
        let queues = self.driver.take_notifications();
        self.counters.notifications += queues.into_iter().filter(|&notify| notify).count();
        program::notify(self.machine.memory(), queues)?;
        Ok(self.report.send(self.counters)?)
    }

    fn answer(&mut self, packet: &Packet) {
        let header = |operation| Guest::header(operation, packet.header.dst_port, packet.header.src_port);
        let answer = match packet.operation() {
            Operation::Request => header(Operation::Response),
            // All bytes are sent back, so that credit for a huge buffer is as good as an exact one.
            Operation::ReadWrite => Header { len: packet.header.len, ..header(Operation::ReadWrite) },
            Operation::Shutdown => {
                self.counters.closed = true;
                header(Operation::Rst)
            }
            _ => return,
        };
        let answer = Header { buf_alloc: u32::MAX, ..answer };
        self.driver.queue_bytes(&[&answer.emit()[..], &packet.payload].concat(), &[Header::BYTES]);
    }
}

/// Returns the offset of a register of the device.
fn offset(address: u64) -> Option<u64> {
    address.checked_sub(REGISTERS).filter(|&offset| offset < BYTES)
}
