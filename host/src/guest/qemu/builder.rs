//! What a guest is made of.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, memfd_create};

use super::accelerator::Accelerator;
use super::guest::Guest;
use super::process::Process;
use super::qmp::Qmp;
use crate::guest::commands::{Commands, quote};
use crate::guest::console::Console;
use crate::guest::error::Error;
use crate::guest::initramfs::build::Image;
use crate::guest::initramfs::libraries::add_program;
use crate::guest::initramfs::modules::{Modules, VSOCK};
use crate::transport::vhost_user::Server;

/// The first process of a guest.
const INIT: &[u8] = include_bytes!("init.sh");

/// How long a guest may take until its agent is ready where nothing else is said. Emulation on a busy machine is slow.
const DEADLINE: Duration = Duration::from_secs(120);

/// The guest's CID. Each guest's device is its own, so that all can have the same.
const CID: u64 = 3;

/// Descriptors under which QEMU finds what it inherits.
const VSOCK_FD: i32 = 20;
const COMMANDS_FD: i32 = 21;
const IMAGE_FD: i32 = 22;
const MONITOR_FD: i32 = 23;

/// A scheduler and its arguments.
type Program = (PathBuf, Vec<String>);

/// What a [`Guest`] is made of.
///
/// ```no_run
/// use scx_vsock::guest::qemu::{Guest, GuestBuilder};
///
/// let usual: GuestBuilder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
/// let small = usual.clone().cpus(1).boot()?;
/// let large = usual.cpus(8).memory_mib(4096).boot()?;
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it boots"]
pub struct GuestBuilder {
    kernel: Option<PathBuf>,
    modules: Option<PathBuf>,
    config: Option<PathBuf>,
    agent: Option<PathBuf>,
    agent_arguments: Vec<String>,
    scheduler: Option<Program>,
    programs: Vec<(PathBuf, String)>,
    files: Vec<(PathBuf, String)>,
    more_modules: Vec<String>,
    kernel_arguments: Vec<String>,
    memory_mib: u32,
    cpus: u32,
    deadline: Duration,
    qemu: Option<String>,
}

impl Default for GuestBuilder {
    fn default() -> Self {
        Self {
            kernel: None,
            modules: None,
            config: None,
            agent: None,
            agent_arguments: Vec::new(),
            scheduler: None,
            programs: Vec::new(),
            files: Vec::new(),
            more_modules: Vec::new(),
            kernel_arguments: Vec::new(),
            memory_mib: 1024,
            cpus: 2,
            deadline: DEADLINE,
            qemu: None,
        }
    }
}

impl GuestBuilder {
    /// The kernel's bzImage. Needed.
    ///
    /// ```
    /// # use scx_vsock::guest::qemu::Guest;
    /// let error = Guest::builder().kernel("/no/such/vmlinuz").boot().unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read the kernel /no/such/vmlinuz"));
    /// ```
    pub fn kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// The folder with this kernel's modules; without it the kernel must have vsock built in.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// let guest = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0").boot()?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn modules(mut self, folder: impl Into<PathBuf>) -> Self {
        self.modules = Some(folder.into());
        self
    }

    /// The kernel's configuration, which libbpf looks for in the guest's `/boot`.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.config("/boot/config-7.2.0").scheduler("scx_bpfland", &[]).boot()?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.config = Some(path.into());
        self
    }

    /// The agent's file. Without it the one that `SCX_VSOCK_AGENT` names, else `scx-vsock-agent` beside this program.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.agent("target/x86_64-unknown-linux-gnu/agent/scx-vsock-agent").boot()?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn agent(mut self, path: impl Into<PathBuf>) -> Self {
        self.agent = Some(path.into());
        self
    }

    /// An argument for the agent.
    ///
    /// ```no_run
    /// # use scx_vsock::{SchedStatsClient, guest::qemu::Guest};
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.agent_argument("--map").agent_argument("730=/run/second/stats").boot()?;
    /// let second = SchedStatsClient::builder(guest.handle().port(730)).build();
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn agent_argument(mut self, argument: impl Into<String>) -> Self {
        self.agent_arguments.push(argument.into());
        self
    }

    /// The scheduler, a program of this host that is started in the guest with these arguments. A name without a
    /// slash is looked for in `PATH`.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.scheduler("./target/debug/scx_mine", &["--slice-us", "500"]).boot()?;
    /// guest.client().wait_for_scheduler(std::time::Duration::from_secs(60))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn scheduler(mut self, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        self.scheduler = Some((program.into(), arguments.iter().map(|&argument| argument.to_owned()).collect()));
        self
    }

    /// A program of this host that is to be in the guest at this path, with its libraries.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.program("/usr/bin/stress-ng", "/usr/bin/stress-ng").boot()?;
    /// guest.run(&["stress-ng", "--cpu", "2", "--timeout", "5"])?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn program(mut self, program: impl Into<PathBuf>, guest_path: impl Into<String>) -> Self {
        self.programs.push((program.into(), guest_path.into()));
        self
    }

    /// A file of this host that is to be in the guest at this path, as it is.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), scx_vsock::guest::Error> {
    /// let builder = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").file("work.json", "/etc/work.json");
    /// builder.boot()?.run(&["cat", "/etc/work.json"])?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn file(mut self, file: impl Into<PathBuf>, guest_path: impl Into<String>) -> Self {
        self.files.push((file.into(), guest_path.into()));
        self
    }

    /// A kernel module that is to be loaded beside those for vsock.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.module("vsock_loopback").boot()?;
    /// assert_eq!(guest.run(&["grep", "vsock_loopback", "/proc/modules"])?.status, 0);
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn module(mut self, name: impl Into<String>) -> Self {
        self.more_modules.push(name.into());
        self
    }

    /// An argument for the kernel's command line.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.kernel_argument("isolcpus=1").boot()?;
    /// assert!(guest.run(&["cat", "/proc/cmdline"])?.stdout.ends_with(b"isolcpus=1\n"));
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn kernel_argument(mut self, argument: impl Into<String>) -> Self {
        self.kernel_arguments.push(argument.into());
        self
    }

    /// The guest's memory, in MiB (1,024).
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.memory_mib(4096).boot()?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// The guest's processors (2).
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.cpus(4).boot()?;
    /// assert_eq!(guest.run(&["nproc"])?.stdout, b"4\n");
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// How long the guest may take until its agent is ready (two minutes: emulation is slow).
    ///
    /// ```no_run
    /// # use scx_vsock::guest::{Error, qemu::Guest};
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let error = builder.deadline(std::time::Duration::from_millis(1)).boot().unwrap_err();
    /// assert!(matches!(error, Error::NotReady { .. }));
    /// ```
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The QEMU program. Without it the one that `QEMU` names in the environment, else `qemu-system-x86_64`.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// # let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
    /// let guest = builder.qemu("/opt/qemu/bin/qemu-system-x86_64").boot()?;
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    pub fn qemu(mut self, program: impl Into<String>) -> Self {
        self.qemu = Some(program.into());
        self
    }

    /// The guest's initramfs alone, for a QEMU that somebody else starts. Its first process takes commands on a second
    /// serial port, and ends the guest when that ends: `-serial null` is one that never does.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::qemu::Guest;
    /// let guest = Guest::builder().modules("/lib/modules/7.2.0").scheduler("scx_bpfland", &[]);
    /// std::fs::write("initrd", guest.initramfs()?)?; // for `-initrd initrd -append rdinit=/init`
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn initramfs(&self) -> Result<Vec<u8>, Error> {
        Ok(self.image()?.finish()?)
    }

    /// Boots the guest and waits until its agent is ready.
    ///
    /// ```
    /// use scx_vsock::guest::{Error, qemu::Guest};
    ///
    /// assert!(matches!(Guest::builder().boot(), Err(Error::NoKernel)));
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`]. Nothing is left running then, and no file.
    pub fn boot(&self) -> Result<Guest, Error> {
        let kernel = self.kernel.as_deref().ok_or(Error::NoKernel)?;
        File::open(kernel).map_err(Error::unreadable("the kernel", kernel))?;
        let qemu = qemu_program(self.qemu.as_deref());
        find_program(&qemu).map_err(|source| Error::NoQemu { program: qemu.clone(), source })?;
        let image = memory_file("initramfs", &self.initramfs()?)?;
        let (server, qemu_end) = serve()?;
        let ready = server.handle().listen(crate::READY_PORT)?;
        let (commands, guest_commands) = UnixStream::pair()?;
        let (monitor, qemu_monitor) = UnixStream::pair()?;
        let inherited = [qemu_end.into(), guest_commands.into(), image, qemu_monitor.into()];
        let command = self.command(&qemu, kernel, inherited)?;
        let console = Console::default();
        let process =
            Process::start(command, console.clone()).map_err(|source| Error::NoQemu { program: qemu, source })?;
        let mut guest = Guest::new(process, console, server, Commands::new(commands), Qmp::new(monitor));
        guest.wait_until_ready(&ready, self.deadline)?;
        Ok(guest)
    }

    fn command(&self, qemu: &str, kernel: &Path, inherited: [OwnedFd; 4]) -> Result<Command, Error> {
        let mut command = Command::new(qemu);
        let memory = self.memory_mib;
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc"])
            .args(Accelerator::find(qemu, kernel).arguments())
            .args(["-smp", &self.cpus.to_string(), "-m", &format!("{memory}M")])
            .args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")])
            .args(["-numa", "node,memdev=memory"])
            .args(["-chardev", &format!("socket,id=vsock,fd={VSOCK_FD}")])
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=commands,fd={COMMANDS_FD}"), "-serial", "chardev:commands"])
            .args(["-chardev", &format!("socket,id=monitor,fd={MONITOR_FD}"), "-mon", "chardev=monitor,mode=control"])
            .args(["-initrd", &format!("/proc/self/fd/{IMAGE_FD}"), "-append", &self.kernel_command_line(), "-kernel"])
            .arg(kernel);
        let mappings = inherited.into_iter().zip([VSOCK_FD, COMMANDS_FD, IMAGE_FD, MONITOR_FD]);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        command.fd_mappings(mappings).map_err(io::Error::other)?;
        Ok(command)
    }

    fn kernel_command_line(&self) -> String {
        // On a busy machine an emulated timer misses the ticks that the kernel's check of it counts, and the guest panics
        // ("IO-APIC + timer doesn't work"). Under KVM the kernel leaves that check out by itself.
        let usual = ["console=ttyS0", "quiet", "panic=-1", "no_timer_check", "rdinit=/init"].map(str::to_owned);
        usual.iter().chain(&self.kernel_arguments).cloned().collect::<Vec<_>>().join(" ")
    }

    fn image(&self) -> Result<Image, Error> {
        let mut image = Image::new()?;
        image.program("init", INIT)?;
        for folder in ["proc", "sys", "run", "tmp", "root", "var", "boot"] {
            image.folder(folder)?;
        }
        image.link("var/run", "/run")?;
        let busybox = find_program("busybox").map_err(|source| Error::File {
            what: "busybox",
            path: "busybox".into(),
            mend: "install it, Debian's package busybox-static",
            source,
        })?;
        add_program(&mut image, "busybox", &busybox, "bin/busybox")?;
        image.link("bin/sh", "busybox")?;
        self.add_modules(&mut image)?;
        self.add_agent(&mut image)?;
        self.add_scheduler(&mut image)?;
        for (program, guest_path) in &self.programs {
            add_program(&mut image, "the program", program, guest_path)?;
        }
        for (file, guest_path) in &self.files {
            image.copy_program("the file", file, guest_path)?;
        }
        Ok(image)
    }

    fn add_modules(&self, image: &mut Image) -> Result<(), Error> {
        let mut list = String::new();
        if let Some(folder) = &self.modules {
            let modules = Modules::read(folder)?;
            let names: Vec<&str> = VSOCK.iter().copied().chain(self.more_modules.iter().map(String::as_str)).collect();
            for path in modules.in_load_order(&names)? {
                let file = path.rsplit('/').next().unwrap_or(path);
                let name = file.split(".ko").next().unwrap_or(file);
                image.file(&format!("lib/modules/{name}.ko"), &modules.load(path)?)?;
                list += &format!("/lib/modules/{name}.ko\n");
            }
        }
        if let (Some(config), Some(folder)) = (&self.config, &self.modules) {
            let release = folder.file_name().unwrap_or_default().to_string_lossy();
            image.copy_program("the kernel's configuration", config, &format!("boot/config-{release}"))?;
        }
        Ok(image.file("etc/scx-vsock/modules", list.as_bytes())?)
    }

    fn add_agent(&self, image: &mut Image) -> Result<(), Error> {
        let agent = find_agent(self.agent.as_deref()).ok_or(Error::NoAgent)?;
        add_program(image, "the agent", &agent, "bin/scx-vsock-agent")?;
        let arguments = self.agent_arguments.iter().map(String::as_str);
        let line = command_line("/bin/scx-vsock-agent", arguments);
        Ok(image.file("etc/scx-vsock/agent", line.as_bytes())?)
    }

    fn add_scheduler(&self, image: &mut Image) -> Result<(), Error> {
        let Some((program, arguments)) = &self.scheduler else { return Ok(()) };
        let file = find_program(&program.to_string_lossy()).map_err(|source| Error::File {
            what: "the scheduler",
            path: program.clone(),
            mend: "name the scheduler's file, or put its folder into PATH",
            source,
        })?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let guest_path = format!("/usr/bin/{name}");
        add_program(image, "the scheduler", &file, &guest_path)?;
        let line = command_line(&guest_path, arguments.iter().map(String::as_str));
        Ok(image.file("etc/scx-vsock/scheduler", line.as_bytes())?)
    }
}

/// A shell's line that replaces the shell by a program.
fn command_line<'a>(program: &'a str, arguments: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = [program].into_iter().chain(arguments).map(quote).collect();
    format!("exec {}\n", words.join(" "))
}

/// The QEMU program: this one, the one that `QEMU` names in the environment, or `qemu-system-x86_64`.
///
/// ```
/// use scx_vsock::guest::qemu::qemu_program;
///
/// assert_eq!(qemu_program(Some("/opt/qemu")), "/opt/qemu");
/// println!("without a name it is {}", qemu_program(None));
/// ```
#[must_use]
pub fn qemu_program(named: Option<&str>) -> String {
    let named = named.map(str::to_owned).or_else(|| env::var("QEMU").ok().filter(|name| !name.is_empty()));
    named.unwrap_or_else(|| "qemu-system-x86_64".into())
}

/// The agent's file: this one, the one that `SCX_VSOCK_AGENT` names in the environment, or `scx-vsock-agent` beside this
/// program if it is there.
///
/// ```
/// use std::path::Path;
/// use scx_vsock::guest::qemu::find_agent;
///
/// assert_eq!(find_agent(Some(Path::new("agent"))).as_deref(), Some(Path::new("agent")));
/// if find_agent(None).is_none() {
///     println!("build it with ci/build-agent");
/// }
/// ```
#[must_use]
pub fn find_agent(named: Option<&Path>) -> Option<PathBuf> {
    let variable = || env::var_os("SCX_VSOCK_AGENT").filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named.map(Path::to_owned).or_else(variable) {
        return Some(path);
    }
    let beside = env::current_exe().ok()?.with_file_name("scx-vsock-agent");
    beside.is_file().then_some(beside)
}

/// A program by its path, or by its name in `PATH`.
fn find_program(name: &str) -> io::Result<PathBuf> {
    if name.contains('/') {
        return File::open(name).map(|_| name.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not in PATH"))
}

/// A file without a name, so that nothing is left behind.
fn memory_file(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// A device, and the connected end of its socket for QEMU. The socket's name is gone before anybody else could use it.
fn serve() -> Result<(Server, UnixStream), Error> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("vsock");
    let listener = UnixListener::bind(&path)?;
    let qemu_end = UnixStream::connect(&path)?;
    folder.close()?;
    Ok((Server::start(listener, CID)?, qemu_end))
}
