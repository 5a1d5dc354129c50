//! A guest in this process, and its options.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::bus::{Bus, VsockMmio};
use super::device_thread::DeviceThread;
use super::error::Error;
use super::gate::Gate;
use super::kernel::{self, BootImage};
use super::kick::{self, Kick};
use super::layout::{REGISTERS, VSOCK_IRQ};
use super::outcome::{Outcome, VcpuPosition};
use super::place::Place;
use super::serial_address::{COMMANDS, CONSOLE};
use super::vcpu::{SavedVcpu, Vcpu};
use super::vcpu_time::host_cycles;
use super::vm::{Vm, check_vcpus, open_kvm};
use super::{acpi, cpuid};
use crate::guest::topology::Topology;
use crate::io::lock::lock;
use crate::transport::kvm::{Irq, register_ioeventfds, unregister_ioeventfds};
use crate::transport::mmio::{Mmio, MmioSnapshot};
use crate::vsock::{Device, Handle};

/// How long the vCPUs may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The options of a [`Microvm`]. Only the kernel is required.
///
/// ```no_run
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::guest::microvm::Microvm;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_host, commands) = UnixStream::pair()?; // the guest's /dev/ttyS1
/// let microvm = Microvm::builder("/boot/vmlinuz-7.2.0")
///     .initramfs(std::fs::read("initramfs")?)
///     .command_line("console=ttyS0 panic=-1")
///     .memory_mib(512)
///     .vcpus(4)
///     .build(Box::new(std::io::stdout()), commands)?;
/// let vsock = microvm.handle();
/// microvm.resume()?; // it begins paused, so that listeners are there before the guest
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct MicrovmBuilder {
    image: BootImage,
    memory_mib: Option<u32>,
    vcpus: Option<u32>,
    topology: Option<Topology>,
    cid: u64,
}

impl MicrovmBuilder {
    /// Sets the initramfs' bytes. By default it is empty.
    pub fn initramfs(mut self, bytes: Vec<u8>) -> Self {
        self.image.initramfs = bytes;
        self
    }

    /// Sets the kernel's command line: at most 2,047 bytes. By default it is empty.
    pub fn command_line(mut self, line: impl Into<String>) -> Self {
        self.image.command_line = line.into();
        self
    }

    /// Sets the guest's memory in MiB. The default is that of the topology's nodes, or 1,024.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// Sets the number of vCPUs, from 1 to 64. The default is that of the topology, or 1.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = Some(vcpus);
        self
    }

    /// Sets how the vCPUs are arranged. By default they are cores of one socket, which share one last-level cache.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = Some(topology);
        self
    }

    /// Sets the guest's CID. The default is 3: each guest has a device of its own, so that all can have the same.
    pub fn cid(mut self, cid: u64) -> Self {
        self.cid = cid;
        self
    }

    /// Returns the guest, paused before its first instruction. What it prints on its console goes to `console`, which must
    /// not block: a pause waits for it. Its second serial port is the other end of that of `commands`.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn build(&self, console: Box<dyn Write + Send>, commands: UnixStream) -> Result<Microvm, Error> {
        let kvm = open_kvm()?;
        let asked = self.topology.as_ref();
        let vcpus = self.vcpus.or(asked.map(Topology::cpus)).unwrap_or(1);
        let memory_mib = Topology::guest_memory_mib(self.memory_mib, asked);
        check_vcpus(&kvm, vcpus)?;
        let topology = &self.topology.clone().unwrap_or_else(|| Topology::plain(vcpus));
        topology.check_cpus(vcpus)?;
        let nodes = topology.divide_memory(memory_mib)?;
        kick::prepare()?;
        let vm = Vm::new(&kvm, u64::from(memory_mib) << 20)?;
        let entry = kernel::load(vm.memory(), &self.image)?;
        acpi::write(vm.memory(), topology, &nodes).map_err(io::Error::other)?;
        let create = |(number, place): (u32, Place)| {
            let features = cpuid::features(&kvm, topology, place)?;
            Vcpu::new(&vm, (number, place.apic_id), &features, (number == 0).then_some(entry))
        };
        let threads = (0..).zip(Place::all(topology)).map(create).collect::<Result<Vec<_>, _>>()?;
        let vsock =
            connect(&vm, |interrupt| Ok(Mmio::new(Device::new(self.cid)?, Arc::clone(vm.memory()), interrupt)?))?;
        let input = commands.try_clone()?;
        let bus = Arc::new(Bus::new(console, commands, connect_serial_ports(&vm)?, vsock)?);
        let microvm = Microvm::with(vm, bus, input, Phase::New)?;
        microvm.add_vcpus(threads, kvm_state_bytes(&kvm)?)?;
        Ok(microvm)
    }
}

pub(super) fn kvm_state_bytes(kvm: &Kvm) -> Result<usize, Error> {
    kvm.get_vcpu_mmap_size().map_err(Error::kvm("to map a vCPU's state"))
}

/// Returns the interrupts of console and commands.
pub(super) fn connect_serial_ports(vm: &Vm) -> Result<[Irq; 2], Error> {
    let [of_console, of_commands] = [CONSOLE, COMMANDS].map(|port| Irq::connect(vm.fd(), port.irq));
    Ok([of_console?, of_commands?])
}

/// Returns a device that KVM's interrupt and ioeventfd are connected to.
pub(super) fn connect(
    vm: &Vm,
    make: impl FnOnce(Irq) -> Result<VsockMmio<Irq>, Error>,
) -> Result<Arc<VsockMmio<Irq>>, Error> {
    let vsock = make(Irq::connect(vm.fd(), VSOCK_IRQ)?)?;
    register_ioeventfds(vm.fd(), REGISTERS.into(), &vsock)?;
    Ok(Arc::new(vsock))
}

/// A guest in this process. It ends when this is dropped.
///
/// Its descriptor is readable once it has ended.
#[derive(Debug)]
pub struct Microvm {
    gate: Arc<Gate<SavedVcpu>>,
    bus: Arc<Bus<Irq>>,
    vm: Vm,
    run: Mutex<Run>,
    /// Reads what the host sends to the second serial port.
    typist: Option<JoinHandle<()>>,
}

/// Whether the guest runs.
#[derive(Debug)]
struct Run {
    phase: Phase,
    device_thread: DeviceThread,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// No instruction has run.
    New,
    Running,
    Paused(Moment),
}

/// When a guest was paused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// The clock that KVM shows to the guest.
    clock: u64,
    /// The counter of the host's processor.
    cycles: u64,
}

impl Microvm {
    /// Returns the options of a guest with this kernel: a bzImage for x86_64, or a vmlinux with a PVH entry point.
    pub fn builder(kernel: impl Into<PathBuf>) -> MicrovmBuilder {
        let image = BootImage { kernel: kernel.into(), ..BootImage::default() };
        MicrovmBuilder { image, memory_mib: None, vcpus: None, topology: None, cid: 3 }
    }

    pub(super) fn with(vm: Vm, bus: Arc<Bus<Irq>>, input: UnixStream, phase: Phase) -> Result<Self, Error> {
        let gate = Arc::new(Gate::new()?);
        let device_thread = serve(&gate, bus.vsock())?;
        let typing = Arc::clone(&bus);
        let typist = thread::Builder::new().name("guest-input".into()).spawn(move || type_in(input, &typing))?;
        let run = Mutex::new(Run { phase, device_thread });
        Ok(Self { gate, bus, vm, run, typist: Some(typist) })
    }

    /// Starts a thread for each vCPU, and waits until all of them are about to enter the guest.
    pub(super) fn add_vcpus(&self, vcpus: Vec<Vcpu>, state_bytes: usize) -> Result<(), Error> {
        for (number, vcpu) in vcpus.into_iter().enumerate() {
            let (gate, bus) = (Arc::clone(&self.gate), Arc::clone(&self.bus));
            self.gate.add(|| {
                let control = vcpu.control(state_bytes)?;
                let thread = thread::Builder::new().name(format!("vcpu{number}"));
                Ok::<_, Error>(Kick::new(thread.spawn(move || vcpu.run(&gate, &bus))?, control))
            })?;
        }
        self.gate.wait_until_parked();
        Ok(())
    }

    /// Returns a handle of the guest's vsock device: any port, both ways.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.bus.vsock().handle()
    }

    /// Stops the guest, if it runs: first the vCPUs, then the device. No thread enters the guest from the return of this
    /// call on, the device leaves guest memory alone, and the guest's time stands still: KVM's clock and the time stamp
    /// counters.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`]; [`Error::NotStopped`] after 10 s, after which the guest runs on.
    pub fn pause(&self) -> Result<(), Error> {
        let mut run = lock(&self.run);
        if let Phase::Running = run.phase {
            if !self.gate.pause(STOP_TIMEOUT) {
                return Err(Error::NotStopped { within_s: STOP_TIMEOUT.as_secs() });
            }
            self.check_has_not_ended()?;
            self.bus.vsock().pause();
            run.phase = Phase::Paused(Moment { clock: self.vm.clock()?, cycles: host_cycles() });
        }
        self.check_has_not_ended()
    }

    /// Lets the guest run, if it is paused: first the device, then the vCPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Ended`]; [`Error::Registers`] and [`Error::Kvm`], after which it is still paused.
    pub fn resume(&self) -> Result<(), Error> {
        self.check_has_not_ended()?;
        let mut run = lock(&self.run);
        let cycles = match run.phase {
            Phase::Running => return Ok(()),
            Phase::New => 0,
            Phase::Paused(moment) => {
                self.bus.vsock().resume()?;
                self.vm.set_clock(moment.clock)?;
                host_cycles().wrapping_sub(moment.cycles).max(1)
            }
        };
        run.phase = Phase::Running;
        self.gate.resume(cycles);
        Ok(())
    }

    /// Whether the guest is paused, after it has run.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        matches!(lock(&self.run).phase, Phase::Paused(_))
    }

    /// Calls `save` with the parts of the paused guest: KVM's, the devices, the vCPUs' states and the moment of the pause.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`], [`Error::Ended`]; those of `save`.
    pub(super) fn save<T>(
        &self,
        save: impl FnOnce(&Vm, &Bus<Irq>, Vec<SavedVcpu>, Moment) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let run = lock(&self.run);
        self.check_has_not_ended()?;
        let Phase::Paused(moment) = run.phase else { return Err(Error::NotPaused) };
        let Some(vcpus) = self.gate.save()? else { return Err(self.ended().unwrap_or(Error::NotPaused)) };
        save(&self.vm, &self.bus, vcpus, moment)
    }

    /// Returns the paused device's state.
    ///
    /// # Errors
    ///
    /// [`Error::Registers`] if the guest runs.
    pub fn device_snapshot(&self) -> Result<MmioSnapshot, Error> {
        Ok(self.bus.vsock().snapshot()?)
    }

    /// Replaces the paused guest's device by one with this state and this CID, as after a restore of the guest. Connections
    /// of the other device end, and its handles are dead: take new ones.
    ///
    /// # Errors
    ///
    /// [`Error::NotPaused`]; what the new device needs and the host lacks, after which the guest has none.
    pub fn restore_device(&self, snapshot: &MmioSnapshot, cid: u64) -> Result<(), Error> {
        let mut run = lock(&self.run);
        let Phase::Paused(_) = run.phase else { return Err(Error::NotPaused) };
        unregister_ioeventfds(self.vm.fd(), REGISTERS.into(), &self.bus.vsock())?;
        let vsock = connect(&self.vm, |interrupt| {
            Ok(Mmio::restore(Device::new(cid)?, Arc::clone(self.vm.memory()), interrupt, snapshot)?)
        })?;
        run.device_thread = serve(&self.gate, Arc::clone(&vsock))?;
        self.bus.replace_vsock(vsock);
        Ok(())
    }

    /// Returns how many queue notifications came as exits of a vCPU, instead of through an ioeventfd.
    #[must_use]
    pub fn notify_exits(&self) -> u64 {
        self.bus.notify_exits()
    }

    /// Returns why the guest has ended; `None` while it runs or is paused.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.gate.outcome()
    }

    /// Waits for the guest's end, for at most this long. Returns why it has ended.
    ///
    /// # Errors
    ///
    /// The host's kernel's.
    pub fn wait(&self, within: Duration) -> io::Result<Option<Outcome>> {
        let timeout = Timespec::try_from(within).ok();
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref()))?;
        Ok(self.outcome())
    }

    /// Ends the guest, unless it has ended. Returns why it did, and where its vCPUs were then.
    #[must_use]
    pub fn end(self) -> (Outcome, Vec<VcpuPosition>) {
        self.gate.end(Outcome::Stopped);
        (self.outcome().unwrap_or(Outcome::Stopped), self.gate.join(STOP_TIMEOUT))
    }

    fn check_has_not_ended(&self) -> Result<(), Error> {
        self.ended().map_or(Ok(()), Err)
    }

    fn ended(&self) -> Option<Error> {
        self.outcome().map(Error::Ended)
    }
}

/// Readable once the guest has ended.
impl AsFd for Microvm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gate.ended_fd()
    }
}

impl Drop for Microvm {
    fn drop(&mut self) {
        self.gate.end(Outcome::Stopped);
        self.bus.hang_up();
        let _positions = self.gate.join(STOP_TIMEOUT);
        if let Some(typist) = self.typist.take() {
            let _panicked = typist.join();
        }
    }
}

/// Serves the device; what fails there ends the guest.
fn serve(gate: &Arc<Gate<SavedVcpu>>, vsock: Arc<VsockMmio<Irq>>) -> io::Result<DeviceThread> {
    let gate = Arc::clone(gate);
    DeviceThread::start(vsock, move |reason| gate.end(Outcome::HostFailed { reason }))
}

/// Sends all bytes from a stream to the second serial port, until either ends.
fn type_in(mut input: UnixStream, bus: &Bus<Irq>) {
    let mut chunk = [0; 256];
    loop {
        match input.read(&mut chunk) {
            Ok(count @ 1..) => {
                if !matches!(bus.type_in(chunk.get(..count).unwrap_or_default()), Ok(true)) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let _interrupted = poll(&mut [PollFd::new(&input, PollFlags::IN)], None);
            }
            _ => return,
        }
    }
}
