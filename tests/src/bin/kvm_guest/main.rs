//! A guest on KVM that drives the vsock device: it initialises it, takes its interrupts and kicks its queues, and echoes
//! what the host sends. This program is monitor, guest and host in one, so that it can be run wherever KVM may be.
//!
//! ```text
//! kvm_guest [ROUNDS]
//! ```
//!
//! It ends with 77 where there is no KVM.
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a program's messages")]

mod machine;
mod program;

use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use kvm_ioctls::{VcpuExit, VmFd};
use scx_vsock::transport::event_manager::Subscriber;
use scx_vsock::transport::kvm::{Irq, register_ioeventfds, unregister_ioeventfds};
use scx_vsock::transport::mmio::{BYTES, Mmio, QUEUE_NOTIFY};
use scx_vsock::vsock::packet::{Header, Operation};
use scx_vsock::vsock::{Device, Handle};
use scx_vsock_tests::guest_driver::{CID, Driver, Guest, Packet, memory, pattern};
use scx_vsock_tests::mmio_driver::initialisation;
use vm_memory::GuestMemoryMmap;

use machine::Machine;
use program::{DONE_PORT, IRQ, REGISTERS};

/// There is no KVM: what test programs say when they cannot run.
const SKIPPED: u8 = 77;
/// How long a round may take, where two levels of emulation lie below.
const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u32 = 729;

type Front = Mmio<Arc<GuestMemoryMmap>, Irq>;
type Failure = Box<dyn Error + Send + Sync>;

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
            eprintln!("kvm_guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(vm: VmFd, rounds: usize) -> Result<(), Failure> {
    let mut driver = Driver::new(memory());
    driver.restart();
    program::load(driver.memory(), &initialisation(&driver.addresses(), Device::FEATURES))?;
    let machine = Machine::new(vm, driver.memory())?;
    let interrupt = Irq::connect(&machine.vm, IRQ)?;
    let device = Arc::new(Mmio::new(Device::new(CID)?, Arc::new(driver.memory().clone()), interrupt)?);
    // A place that is watched cannot be watched again, unless that is undone.
    register_ioeventfds(&machine.vm, REGISTERS, &device)?;
    unregister_ioeventfds(&machine.vm, REGISTERS, &device)?;
    register_ioeventfds(&machine.vm, REGISTERS, &device)?;
    let (failed, failures) = channel();
    serve(Arc::clone(&device), failed.clone());
    let handle = device.handle();
    let memory = driver.memory().clone();
    let (report, reports) = channel();
    thread::spawn(move || {
        let mut processor = Processor { machine, device, driver, seen: Seen::default(), report };
        if let Err(error) = processor.run() {
            // Whoever is gone needs no reason.
            let _gone = failed.send(error);
        }
    });
    // A processor that waits for its interrupt does so in KVM, so that the program's end is what ends it.
    echo(&handle, rounds).map_err(|error| failures.try_recv().unwrap_or(error))?;
    finish(&reports, &memory, rounds)
}

/// Serves the device on a thread with an event manager.
fn serve(device: Arc<Front>, failed: Sender<Failure>) {
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
        // Whoever is gone needs no reason.
        let _gone = failed.send(error.into());
    });
}

/// The host's side: sends to the guest, and has it back.
fn echo(handle: &Handle, rounds: usize) -> Result<(), Failure> {
    let mut stream = handle.connect(PORT)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    for round in 0..rounds {
        let payload = pattern(1 + 97 * round % 8_000);
        stream.write_all(&payload)?;
        let mut back = vec![0; payload.len()];
        stream.read_exact(&mut back).map_err(|error| format!("round {round}: {error}"))?;
        if back != payload {
            return Err(format!("round {round} came back changed").into());
        }
    }
    Ok(())
}

/// What the processor's thread has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Kicks that the guest was told to give.
    kicks: usize,
    /// Kicks that came as exits, past KVM.
    kick_exits: usize,
    /// The guest closed its connection.
    closed: bool,
}

fn finish(reports: &Receiver<Seen>, memory: &GuestMemoryMmap, rounds: usize) -> Result<(), Failure> {
    let seen = loop {
        let seen = reports.recv_timeout(DEADLINE).map_err(|_| "the guest does not confirm the connection's end")?;
        if seen.closed {
            break seen;
        }
    };
    let interrupts = program::interrupts(memory)?;
    println!("{rounds} echoes, {interrupts} interrupts, {} kicks, {} of them as exits", seen.kicks, seen.kick_exits);
    if interrupts == 0 || seen.kicks == 0 || seen.kick_exits > 0 {
        return Err("interrupts and kicks do not go through KVM".into());
    }
    Ok(())
}

/// The guest's processor, and the part of its driver that is not in its program.
struct Processor {
    machine: Machine,
    device: Arc<Front>,
    driver: Driver,
    seen: Seen,
    report: Sender<Seen>,
}

impl Processor {
    /// Runs the guest's program until the host's side has enough.
    fn run(&mut self) -> Result<(), Failure> {
        loop {
            match self.machine.processor.run()? {
                VcpuExit::MmioRead(address, data) => match offset(address) {
                    Some(offset) => self.device.read(offset, data),
                    None => return Err(format!("the guest read {address:#x}").into()),
                },
                VcpuExit::MmioWrite(address, data) => match offset(address) {
                    Some(offset) => {
                        self.seen.kick_exits += usize::from(offset == QUEUE_NOTIFY);
                        self.device.write(offset, data);
                    }
                    None => return Err(format!("the guest wrote {address:#x}").into()),
                },
                VcpuExit::IoOut(DONE_PORT, _) => {
                    if self.drive().is_err() {
                        return Ok(());
                    }
                }
                exit => {
                    let exit = format!("{exit:?}");
                    let at = self.machine.processor.get_regs()?.rip;
                    return Err(format!("the guest stopped at {at:#x}: {exit}").into());
                }
            }
        }
    }

    /// The driver's work after an interrupt. An error is the end of the host's side.
    fn drive(&mut self) -> Result<(), Failure> {
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
        let kicks = self.driver.take_kicks();
        self.seen.kicks += kicks.into_iter().filter(|&kick| kick).count();
        program::kick(self.machine.memory(), kicks)?;
        Ok(self.report.send(self.seen)?)
    }

    fn answer(&mut self, packet: &Packet) {
        let header = |operation| Guest::header(operation, packet.header.dst_port, packet.header.src_port);
        let answer = match packet.operation() {
            Operation::Request => header(Operation::Response),
            // All that comes is sent back, so that a great buffer is as good as one that is accounted for.
            Operation::ReadWrite => Header { len: packet.header.len, ..header(Operation::ReadWrite) },
            Operation::Shutdown => {
                self.seen.closed = true;
                header(Operation::Reset)
            }
            _ => return,
        };
        let answer = Header { buf_alloc: u32::MAX, ..answer };
        self.driver.queue_bytes(&[&answer.emit()[..], &packet.payload].concat(), &[Header::BYTES]);
    }
}

/// The offset of a register of the device.
fn offset(address: u64) -> Option<u64> {
    address.checked_sub(REGISTERS).filter(|&offset| offset < BYTES)
}
