//! A guest that runs, and one that is paused.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::READY_PORT;
use scx_vsock::guest::{Commands, Console, Output};
use scx_vsock::transport::kvm::Irq;
use scx_vsock::vsock::{Handle, Listener};

use super::bus::Bus;
use super::machine::Machine;
use super::processor::{End, Processor, Running};
use super::serial::{COMMANDS, CONSOLE, SerialPort};
use super::{acpi, kernel};
use crate::agent::{HELLO, is_hello};
use crate::device_thread::DeviceThread;

/// What of a guest outlives its pauses.
#[derive(Debug)]
struct Kept {
    machine: Machine,
    served: DeviceThread,
    shell: Shell,
}

/// Runs commands in a guest, for any thread, one at a time; while the guest is paused they wait.
#[derive(Clone, Debug)]
pub struct Shell(Arc<Mutex<Commands>>);

impl Shell {
    /// Runs a command to its end or at most this long.
    ///
    /// # Errors
    ///
    /// As [`Commands::run`].
    pub fn run(&self, arguments: &[&str], within: Duration) -> Result<Output> {
        let mut commands = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        commands.run(arguments, within).with_context(|| format!("{arguments:?} in the guest"))
    }

    /// What a command prints, which must succeed.
    ///
    /// # Errors
    ///
    /// As [`Commands::run`], and if it fails, with what it printed.
    pub fn output(&self, arguments: &[&str], within: Duration) -> Result<String> {
        let output = self.run(arguments, within)?;
        let [said, complaints] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        ensure!(output.status == 0, "{arguments:?} in the guest: {said}{complaints}");
        Ok(said)
    }
}

/// A guest that runs. It ends when this is dropped.
#[derive(Debug)]
pub struct Guest {
    // The processor stops before what it uses goes.
    running: Running,
    vsock: Handle,
    kept: Kept,
}

/// A guest whose processor and device stand still.
#[derive(Debug)]
pub struct Paused {
    processor: Processor,
    bus: Bus,
    kept: Kept,
}

impl Guest {
    /// Boots an image whose first process takes commands on the second serial port, on a machine with this many bytes
    /// of memory, and waits until its agent is ready. What it prints goes to `console`.
    ///
    /// # Errors
    ///
    /// What KVM refuses, or why the agent is not ready `within` this time.
    pub fn boot(
        kvm: &Kvm,
        bytes: usize,
        image: &kernel::Image<'_>,
        console: &Console,
        within: Duration,
    ) -> Result<Self> {
        let machine = Machine::new(kvm, bytes)?;
        acpi::write(&machine.memory)?;
        let entry = kernel::load(&machine.memory, image)?;
        let processor = Processor::new(kvm, &machine.vm, &machine.memory, entry)?;
        let (commands, typed) = UnixStream::pair()?;
        let port = SerialPort::new(Irq::connect(&machine.vm, COMMANDS.irq)?, typed.try_clone()?);
        let vsock = machine.vsock(None)?;
        let ready = vsock.handle().listen(READY_PORT)?;
        let bus = Bus {
            console: SerialPort::new(Irq::connect(&machine.vm, CONSOLE.irq)?, console.clone()),
            commands: Arc::new(port),
            vsock,
            kick_exits: 0,
        };
        type_in(typed, Arc::clone(&bus.commands));
        let served = Machine::serve(&bus.vsock);
        let kept = Kept { machine, served, shell: Shell(Arc::new(Mutex::new(Commands::new(commands)))) };
        let guest = Paused { processor, bus, kept }.start()?;
        guest.wait_until_ready(&ready, within)?;
        Ok(guest)
    }

    /// Waits for the agent's Ready, the guest's end or the deadline, whatever comes first.
    fn wait_until_ready(&self, ready: &Listener, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match ready.accept() {
                Ok(stream) => return says_hello(stream, left),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
            let mut fds = [PollFd::new(ready, PollFlags::IN), PollFd::new(&self.running, PollFlags::IN)];
            if poll(&mut fds, Some(&Timespec::try_from(left)?))? == 0 {
                bail!("the guest's agent is not ready after {} s", within.as_secs());
            }
            if !fds[1].revents().is_empty() {
                bail!("the guest ended before its agent was ready");
            }
        }
    }

    /// The guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.vsock.clone()
    }

    /// Runs commands in it.
    #[must_use]
    pub fn shell(&self) -> Shell {
        self.kept.shell.clone()
    }

    /// How the guest ends, which it must within this time.
    ///
    /// # Errors
    ///
    /// If it does not end, or its processor could not go on.
    pub fn wait_for_end(self, within: Duration) -> Result<End> {
        let timeout = Timespec::try_from(within)?;
        ensure!(poll(&mut [PollFd::new(&self.running, PollFlags::IN)], Some(&timeout))? > 0, "the guest does not end");
        self.running.end()
    }

    /// InFlight the processor, then the device.
    ///
    /// # Errors
    ///
    /// If the guest has ended by itself.
    pub fn pause(self) -> Result<Paused> {
        let (processor, bus) = self.running.stop()?;
        bus.vsock.pause();
        Ok(Paused { processor, bus, kept: self.kept })
    }
}

impl Paused {
    fn start(self) -> Result<Guest> {
        let vsock = self.bus.vsock.handle();
        Ok(Guest { running: self.processor.start(self.bus)?, vsock, kept: self.kept })
    }

    /// Goes on: the device, then the processor.
    ///
    /// # Errors
    ///
    /// What the interrupt or the host's kernel refuses.
    pub fn resume(self) -> Result<Guest> {
        self.bus.vsock.resume()?;
        self.start()
    }

    /// What is saved of the device.
    ///
    /// # Errors
    ///
    /// As `Mmio::snapshot`.
    pub fn saved(&self) -> Result<String> {
        Ok(serde_json::to_string(&self.bus.vsock.snapshot()?)?)
    }

    /// Saves the device, ends it, and restores another one from that.
    ///
    /// # Errors
    ///
    /// What went wrong with the device before, or why there is no other one.
    pub fn restored(self) -> Result<Self> {
        let saved = self.saved()?;
        let Self { processor, bus, kept: Kept { machine, served, shell } } = self;
        machine.end_vsock(bus.vsock, served)?;
        let vsock = machine.vsock(Some(&saved))?;
        let served = Machine::serve(&vsock);
        Ok(Self { processor, bus: Bus { vsock, ..bus }, kept: Kept { machine, served, shell } })
    }

    /// The guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.bus.vsock.handle()
    }

    /// How many kicks came as exits, past KVM.
    #[must_use]
    pub fn kick_exits(&self) -> usize {
        self.bus.kick_exits
    }
}

/// The agent's Ready begins as its sessions do.
fn says_hello(mut stream: UnixStream, within: Duration) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
    let mut hello = [0; HELLO.len()];
    stream.read_exact(&mut hello).context("the agent's hello")?;
    ensure!(is_hello(&hello), "{:?} is not the agent's hello", String::from_utf8_lossy(&hello));
    Ok(())
}

/// Types what comes at a serial port, until its end.
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
