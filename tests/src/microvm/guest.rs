//! A running guest, and a paused one.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::guest::{CommandChannel, CommandOutput, Console};
use scx_vsock::transport::kvm::Irq;
use scx_vsock::vsock::{Handle, ReadyListener, ReadyWait};

use super::bus::Bus;
use super::exit_reason::ExitReason;
use super::machine::Machine;
use super::processor::{Processor, Running};
use super::serial::{COMMANDS, CONSOLE, SerialPort};
use super::{acpi, kernel};
use crate::device_thread::DeviceThread;

/// The parts of a guest that outlive its pauses.
#[derive(Debug)]
struct Parts {
    machine: Machine,
    device_thread: DeviceThread,
    shell: Shell,
}

/// Runs commands in a guest from any thread, one at a time. They wait while the guest is paused.
#[derive(Clone, Debug)]
pub struct Shell(Arc<Mutex<CommandChannel>>);

impl Shell {
    /// Runs a command to its end or at most this long.
    ///
    /// # Errors
    ///
    /// As [`CommandChannel::run`].
    pub fn run(&self, arguments: &[&str], within: Duration) -> Result<CommandOutput> {
        let mut commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commands.run(arguments, within).with_context(|| format!("{arguments:?} in the guest"))
    }

    /// Returns what a command prints, which must succeed.
    ///
    /// # Errors
    ///
    /// As [`CommandChannel::run`], and if it fails, with what it printed.
    pub fn output(&self, arguments: &[&str], within: Duration) -> Result<String> {
        let output = self.run(arguments, within)?;
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status == 0, "{arguments:?} in the guest: {stdout}{stderr}");
        Ok(stdout)
    }
}

/// A running guest. It ends when this is dropped.
#[derive(Debug)]
pub struct Guest {
    // Dropped first, since the processor uses the rest.
    running: Running,
    vsock: Handle,
    parts: Parts,
}

/// A guest whose processor and device are stopped.
#[derive(Debug)]
pub struct PausedGuest {
    processor: Processor,
    bus: Bus,
    parts: Parts,
}

impl Guest {
    /// Boots an image whose first process reads commands from the second serial port, on a machine with this many bytes
    /// of memory, and waits until its agent is ready. The guest's output goes to `console`.
    ///
    /// # Errors
    ///
    /// What KVM failed with, or why the agent is not ready `within` this time.
    pub fn boot(
        kvm: &Kvm,
        bytes: usize,
        image: &kernel::GuestImage<'_>,
        console: &Console,
        within: Duration,
    ) -> Result<Self> {
        let machine = Machine::new(kvm, bytes)?;
        acpi::write(&machine.memory)?;
        let entry = kernel::load(&machine.memory, image)?;
        let processor = Processor::new(kvm, &machine.vm, &machine.memory, entry)?;
        let (commands, typed) = UnixStream::pair()?;
        let port = SerialPort::new(Irq::connect(&machine.vm, COMMANDS.irq)?, typed.try_clone()?);
        let vsock = machine.attach_vsock(None)?;
        let mut ready = ReadyListener::listen(&vsock.handle())?;
        let bus = Bus {
            console: SerialPort::new(Irq::connect(&machine.vm, CONSOLE.irq)?, console.clone()),
            commands: Arc::new(port),
            vsock,
            notify_exits: 0,
        };
        type_in(typed, Arc::clone(&bus.commands));
        let device_thread = Machine::serve(&bus.vsock);
        let shell = Shell(Arc::new(Mutex::new(CommandChannel::new(commands)?)));
        let parts = Parts { machine, device_thread, shell };
        let guest = PausedGuest { processor, bus, parts }.start()?;
        guest.wait_until_ready(&mut ready, within)?;
        Ok(guest)
    }

    /// Waits for the agent's Ready, the guest's end or the deadline, whatever comes first.
    fn wait_until_ready(&self, ready: &mut ReadyListener, within: Duration) -> Result<()> {
        match ready.wait(Instant::now() + within, &self.running)? {
            ReadyWait::Ready => Ok(()),
            ReadyWait::TimedOut => bail!("the guest's agent is not ready after {} s", within.as_secs()),
            ReadyWait::Interrupted => bail!("the guest ended before its agent was ready"),
        }
    }

    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.vsock.clone()
    }

    /// Returns a shell in the guest.
    #[must_use]
    pub fn shell(&self) -> Shell {
        self.parts.shell.clone()
    }

    /// Waits for the guest to end by itself, within this time, and returns why it did.
    ///
    /// # Errors
    ///
    /// If it does not end, or its processor could not run any further.
    pub fn wait_for_end(self, within: Duration) -> Result<ExitReason> {
        let timeout = Timespec::try_from(within)?;
        ensure!(poll(&mut [PollFd::new(&self.running, PollFlags::IN)], Some(&timeout))? > 0, "the guest does not end");
        self.running.end()
    }

    /// Stops the processor, then the device.
    ///
    /// # Errors
    ///
    /// If the guest has ended by itself.
    pub fn pause(self) -> Result<PausedGuest> {
        let (processor, bus) = self.running.stop()?;
        bus.vsock.pause();
        Ok(PausedGuest { processor, bus, parts: self.parts })
    }
}

impl PausedGuest {
    fn start(self) -> Result<Guest> {
        let vsock = self.bus.vsock.handle();
        Ok(Guest { running: self.processor.start(self.bus)?, vsock, parts: self.parts })
    }

    /// Resumes the device, then the processor.
    ///
    /// # Errors
    ///
    /// What the interrupt or the host's kernel failed with.
    pub fn resume(self) -> Result<Guest> {
        self.bus.vsock.resume()?;
        self.start()
    }

    /// Returns a snapshot of the device, as JSON.
    ///
    /// # Errors
    ///
    /// As `Mmio::snapshot`.
    pub fn snapshot(&self) -> Result<String> {
        Ok(serde_json::to_string(&self.bus.vsock.snapshot()?)?)
    }

    /// Replaces the device by one that is restored from its snapshot.
    ///
    /// # Errors
    ///
    /// What the old device failed with before, or the restore.
    pub fn restore_device(self) -> Result<Self> {
        let snapshot = self.snapshot()?;
        let Self { processor, bus, parts: Parts { machine, device_thread, shell } } = self;
        machine.detach_vsock(bus.vsock, device_thread)?;
        let vsock = machine.attach_vsock(Some(&snapshot))?;
        let device_thread = Machine::serve(&vsock);
        Ok(Self { processor, bus: Bus { vsock, ..bus }, parts: Parts { machine, device_thread, shell } })
    }

    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.bus.vsock.handle()
    }

    /// Returns how many queue notifications came as exits instead of through an ioeventfd.
    #[must_use]
    pub fn notify_exits(&self) -> usize {
        self.bus.notify_exits
    }
}

/// Sends all bytes from a stream to a serial port, until the stream ends.
fn type_in(mut from: UnixStream, port: Arc<SerialPort<UnixStream>>) {
    thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            if port.type_in(&chunk[..count]).is_err() {
                break;
            }
        }
    });
}
