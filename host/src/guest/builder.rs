//! The options of a guest, and its boot.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::architecture::Architecture;
use super::command_channel::CommandChannel;
use super::console::Console;
use super::error::Error;
use super::guest::{Guest, StartedScheduler};
use super::guest_events::GuestEvents;
use super::guest_image::GuestImage;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use super::guest_image::MMIO;
use super::kernel_image;
use super::machine::Machine;
use super::machine_options::MachineOptions;
use super::qemu::machine::{QemuMachine, QemuOptions};
use super::qemu::programs::check_qemu;
use super::qemu::{Accelerator, qemu_program};
use super::topology::Topology;
use super::vmm::{Choice, ChosenVmm, Circumstances, RunningVmm, Vmm, probe_kvm};
use crate::vsock::ReadyListener;

/// How long a guest may take by default until its agent is ready. Emulation on a busy machine is slow.
const DEADLINE: Duration = Duration::from_secs(120);

/// What was started: the machine, the listener for its agent, and why this VMM.
type Started = (Machine, ReadyListener, ChosenVmm);

/// The options of a [`Guest`]. Only the kernel is required.
///
/// ```no_run
/// use scx_vsock::guest::{Guest, GuestBuilder};
///
/// let builder: GuestBuilder = Guest::builder()
///     .kernel("/boot/vmlinuz-7.2.0")
///     .modules("/lib/modules/7.2.0")
///     .config("/boot/config-7.2.0")
///     .scheduler("./target/debug/scx_mine", &["--slice-us", "500"])
///     .program("/usr/bin/stress-ng", "/usr/bin/stress-ng")
///     .kernel_argument("isolcpus=1");
/// let small = builder.clone().cpus(1).boot()?;
/// let large = builder.cpus(8).memory_mib(4096).boot()?;
/// large.run(&["stress-ng", "--cpu", "8", "--timeout", "5"])?;
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it boots"]
pub struct GuestBuilder {
    kernel: Option<PathBuf>,
    vmm: Vmm,
    qemu: Option<OsString>,
    deadline: Duration,
    machine: MachineOptions,
    image: GuestImage,
    console_file: Option<PathBuf>,
}

impl Guest {
    /// Returns the options of a guest, which boots by [`GuestBuilder::boot`].
    pub fn builder() -> GuestBuilder {
        GuestBuilder::default()
    }
}

impl Default for GuestBuilder {
    fn default() -> Self {
        Self {
            kernel: None,
            vmm: Vmm::Auto,
            qemu: None,
            deadline: DEADLINE,
            machine: MachineOptions { memory_mib: None, cpus: None, topology: None, kernel_arguments: Vec::new() },
            image: GuestImage::default(),
            console_file: None,
        }
    }
}

impl GuestBuilder {
    /// Sets the kernel: a bzImage, or an arm64 Image, for which the guest is emulated on an x86_64 host. Required.
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// Sets the folder with this kernel's modules. Without it the kernel must have vsock built in.
    pub fn modules(mut self, folder: impl Into<PathBuf>) -> Self {
        self.image.modules = Some(folder.into());
        self
    }

    /// Sets the kernel's configuration, which libbpf reads from the guest's `/boot`. By default it is looked for beside the
    /// kernel, as `config-RELEASE` or `config`, and as `/boot/config-RELEASE`.
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.image.config = Some(path.into());
        self
    }

    /// Sets the agent's file. By default it is the one that `SCX_VSOCK_AGENT` names, else the program that this library
    /// carries for the kernel's architecture.
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.image.agent = Some(path.into());
        self
    }

    /// Adds an argument for the agent.
    pub fn agent_argument(mut self, argument: impl Into<String>) -> Self {
        self.image.agent_arguments.push(argument.into());
        self
    }

    /// Sets the busybox, whose programs the guest has. By default it is the one in `PATH`; a guest of another architecture
    /// needs one of its own, statically linked.
    pub fn busybox(mut self, path: impl Into<PathBuf>) -> Self {
        self.image.busybox = Some(path.into());
        self
    }

    /// Sets the scheduler: a program of this host that is started in the guest with these arguments. A name without a
    /// slash is searched in `PATH`.
    pub fn scheduler(mut self, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        self.image.scheduler = Some((program.into(), arguments.iter().map(|&argument| argument.to_owned()).collect()));
        self
    }

    /// Adds a program of this host, with its libraries, at this path in the guest.
    pub fn program(mut self, program: impl Into<PathBuf>, guest_path: impl Into<String>) -> Self {
        self.image.programs.push((program.into(), guest_path.into()));
        self
    }

    /// Adds a file of this host at this path in the guest.
    pub fn file(mut self, file: impl Into<PathBuf>, guest_path: impl Into<String>) -> Self {
        self.image.files.push((file.into(), guest_path.into()));
        self
    }

    /// Adds a kernel module to those that are loaded at boot. It needs [`modules`](Self::modules).
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.image.extra_modules.push(name.into());
        self
    }

    /// Adds an argument to the kernel's command line.
    pub fn kernel_argument(mut self, argument: impl Into<String>) -> Self {
        self.machine.kernel_arguments.push(argument.into());
        self
    }

    /// Sets the guest's memory in MiB. The default is that of the topology's nodes, or 1,024.
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.machine.memory_mib = Some(mib);
        self
    }

    /// Sets the number of the guest's processors. The default is that of the topology, or 2.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.machine.cpus = Some(cpus);
        self
    }

    /// Sets how the guest's processors and its memory are arranged. QEMU shows one LLC domain for each socket; a topology
    /// with more needs a microVM.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.machine.topology = Some(topology);
        self
    }

    /// Sets how long the guest may take until its agent is ready. The default is 120 s, since emulation is slow.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Has the guest's console written to this file as well, from its first byte on.
    pub fn console_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.console_file = Some(path.into());
        self
    }

    /// Sets the VMM that runs the guest. The default is [`Vmm::Auto`].
    pub fn vmm(mut self, vmm: Vmm) -> Self {
        self.vmm = vmm;
        self
    }

    /// Sets the QEMU program, with which the guest runs unless a microVM is asked for. By default it is the one that `QEMU`
    /// names in the environment, else `qemu-system-x86_64` or, for an arm64 kernel, `qemu-system-aarch64`.
    pub fn qemu(mut self, program: impl Into<OsString>) -> Self {
        self.qemu = Some(program.into());
        self
    }

    /// Returns the guest's initramfs, for a QEMU that somebody else starts (`-initrd FILE -append rdinit=/init`). Its first
    /// process reads commands from the second serial port (for an arm64 kernel from the first `pci-serial`), and ends the
    /// guest at the end of that: `-serial null` has none. Without a kernel the guest is of this host's architecture.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn initramfs(&self) -> Result<Vec<u8>, Error> {
        self.image.build(self.kernel.as_deref(), &[])
    }

    /// Boots the guest and waits until its agent is ready.
    ///
    /// # Errors
    ///
    /// See [`Error`]. After one, no process and no file is left.
    pub fn boot(&self) -> Result<Guest, Error> {
        let kernel = self.kernel.as_deref().ok_or(Error::NoKernel)?;
        let architecture = kernel_image::architecture(kernel)?;
        self.machine.nodes()?;
        let (commands, guest_commands) = UnixStream::pair()?;
        let console = Console::with_copy(self.create_console_file()?);
        let events = GuestEvents::new()?;
        let (machine, mut ready, vmm) = match self.choose(kernel, architecture) {
            Choice::Microvm(reason) => self.start_microvm(kernel, reason, guest_commands, console.clone())?,
            Choice::Qemu { reason, without_kvm } => {
                let accelerator = without_kvm.then_some(Accelerator::Tcg);
                self.start_qemu(kernel, architecture, (accelerator, reason), guest_commands, console.clone())?
            }
            Choice::Refused(reason) => return Err(Error::NoMicrovm { reason }),
        };
        let commands = Mutex::new(CommandChannel::with_events(commands, events.clone())?);
        let mut guest = Guest { machine, vmm, console, commands, events, scheduler: self.scheduler_of(kernel) };
        guest.wait_until_ready(&mut ready, self.deadline)?;
        Ok(guest)
    }

    fn choose(&self, kernel: &Path, architecture: Architecture) -> Choice {
        let accelerator_named = env::var_os("SCX_VSOCK_ACCELERATOR").is_some_and(|value| !value.is_empty());
        let only_qemu_has = match () {
            () if self.vmm == Vmm::Microvm => None,
            () if self.qemu.is_some() => Some("a QEMU program was named"),
            () if accelerator_named => Some("SCX_VSOCK_ACCELERATOR is set"),
            () => None,
        };
        let kernel_lacks = self.image.obstacle_to_microvm(kernel, self.vmm == Vmm::Auto);
        Circumstances { wanted: self.vmm, architecture, only_qemu_has, kernel_lacks }.choose(probe_kvm)
    }

    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    fn start_microvm(
        &self,
        kernel: &Path,
        reason: String,
        commands: UnixStream,
        console: Console,
    ) -> Result<Started, Error> {
        let initramfs = self.image.build(Some(kernel), &[MMIO])?;
        let (machine, ready) = Machine::start_microvm(&self.machine, kernel, initramfs, commands, console)?;
        Ok((machine, ready, ChosenVmm::new(RunningVmm::Microvm, reason)))
    }

    #[cfg(not(all(feature = "microvm", target_arch = "x86_64")))]
    fn start_microvm(&self, _: &Path, reason: String, _: UnixStream, _: Console) -> Result<Started, Error> {
        Err(Error::NoMicrovm { reason })
    }

    fn start_qemu(
        &self,
        kernel: &Path,
        architecture: Architecture,
        (accelerator, reason): (Option<Accelerator>, String),
        commands: UnixStream,
        console: Console,
    ) -> Result<Started, Error> {
        let program = &qemu_program(self.qemu.as_deref(), architecture);
        check_qemu(program)?;
        let initramfs = self.initramfs()?;
        let accelerator = accelerator.unwrap_or_else(|| Accelerator::find(program, kernel));
        let options = QemuOptions { program, machine: &self.machine, kernel, architecture, accelerator };
        let (qemu, ready) = QemuMachine::start(options, &initramfs, commands, console)?;
        Ok((Machine::Qemu(qemu), ready, ChosenVmm::new(RunningVmm::Qemu(accelerator), reason)))
    }

    fn create_console_file(&self) -> Result<Option<File>, Error> {
        let create =
            |path: &PathBuf| File::create(path).map_err(|source| Error::ConsoleFile { path: path.clone(), source });
        self.console_file.as_ref().map(create).transpose()
    }

    fn scheduler_of(&self, kernel: &Path) -> Option<StartedScheduler> {
        let name = self.image.scheduler_name()?;
        let lacks_config = name.starts_with("scx_") && self.image.config_of(Some(kernel)).is_none();
        Some(StartedScheduler { name, lacks_config })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_required() {
        assert!(matches!(Guest::builder().boot(), Err(Error::NoKernel)));
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let error = Guest::builder().kernel("/no/such/vmlinuz").boot().unwrap_err();
        assert!(error.to_string().starts_with("cannot read the kernel /no/such/vmlinuz"), "{error}");
    }
    #[test]
    fn a_scheduler_that_needs_a_configuration_is_known() {
        let kernel = Path::new("/no/such/vmlinuz");
        let lacks_config = |builder: &GuestBuilder| builder.scheduler_of(kernel).unwrap().lacks_config;
        let builder = Guest::builder().modules("/lib/modules/0.0.0-none").scheduler("/opt/scx_a", &[]);
        assert!(lacks_config(&builder));
        assert!(!lacks_config(&builder.clone().config("/etc/config")));
        assert!(!lacks_config(&builder.scheduler("other", &[])));
        assert!(Guest::builder().scheduler_of(kernel).is_none());
    }
}
