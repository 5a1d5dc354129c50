//! The contents of a guest's initramfs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use shlex::try_join;

use super::agent_file::{AgentFile, check_architecture};
use super::architecture::Architecture;
use super::error::Error;
use super::initramfs::build::InitramfsBuilder;
use super::initramfs::libraries::add_program;
use super::initramfs::modules::{Modules, VSOCK};
use super::kernel_config::{self, ForMicrovm};
use super::kernel_image;
use super::qemu::find_busybox;
use super::qemu::platform::Platform;
use super::qemu::programs::find_program;

/// The first process of a guest.
const INIT: &[u8] = include_bytes!("init.sh");

/// Where the first process looks for what it starts and loads, as shell commands and a list of paths.
const AGENT_COMMAND: &str = "etc/scx-vsock/agent";
const SCHEDULER_COMMAND: &str = "etc/scx-vsock/scheduler";
/// The device that the host's commands come from.
const COMMAND_DEVICE: &str = "etc/scx-vsock/commands";
const MODULE_LIST: &str = "etc/scx-vsock/modules";

/// The module of a microVM's transport of virtio.
pub(super) const MMIO: &str = "virtio_mmio";

const AGENT: &str = "bin/scx-vsock-agent";

/// What a guest's initramfs is to contain.
#[derive(Clone, Debug, Default)]
pub(super) struct GuestImage {
    /// The folder with the kernel's modules.
    pub(super) modules: Option<PathBuf>,
    /// The kernel's configuration.
    pub(super) config: Option<PathBuf>,
    /// The agent's file, unless it is to be looked for.
    pub(super) agent: Option<PathBuf>,
    /// The busybox, unless it is to be looked for.
    pub(super) busybox: Option<PathBuf>,
    pub(super) agent_arguments: Vec<String>,
    /// The scheduler and its arguments.
    pub(super) scheduler: Option<(PathBuf, Vec<String>)>,
    /// Programs of the host, each with its path in the guest.
    pub(super) programs: Vec<(PathBuf, String)>,
    /// Files of the host, each with its path in the guest.
    pub(super) files: Vec<(PathBuf, String)>,
    /// Modules to load in addition to those of vsock.
    pub(super) extra_modules: Vec<String>,
}

impl GuestImage {
    /// Returns the scheduler's name.
    pub(super) fn scheduler_name(&self) -> Option<String> {
        let (program, _) = self.scheduler.as_ref()?;
        Some(program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned())
    }

    /// Returns the configuration of this kernel, and its path in the guest. Where it is not given it is looked for.
    pub(super) fn config_of(&self, kernel: Option<&Path>) -> Option<(PathBuf, String)> {
        let release = kernel_config::release(kernel, self.modules.as_deref())?;
        let found = || kernel_config::find_config(kernel?, &release);
        Some((self.config.clone().or_else(found)?, format!("boot/config-{release}")))
    }

    /// Returns why this kernel is none for a microVM. Where nothing says what it has, that is a reason only if `is_doubted`.
    pub(super) fn obstacle_to_microvm(&self, kernel: &Path, is_doubted: bool) -> Option<String> {
        let config = self.config_of(Some(kernel)).map(|(config, _)| config);
        let has_module = || self.modules.as_ref().map(|folder| has_module(folder, MMIO));
        match (kernel_config::for_microvm(config.as_deref()), has_module()) {
            (ForMicrovm::Lacks(option), _) => Some(format!("the kernel's configuration does not set {option}")),
            (ForMicrovm::HasAll, _) | (ForMicrovm::NeedsModule | ForMicrovm::Unknown, Some(true)) => None,
            (ForMicrovm::NeedsModule, None) => {
                Some(format!("the folder with the kernel's module {MMIO} was not named"))
            }
            (_, Some(false)) => Some(format!("the kernel's module {MMIO} is not in the folder that was named")),
            (ForMicrovm::Unknown, None) => {
                is_doubted.then(|| "neither the kernel's configuration nor its modules are known".into())
            }
        }
    }

    /// Reads all that it contains from the host, and the modules that the machine's transport of vsock needs.
    pub(super) fn build(&self, kernel: Option<&Path>, transport: &[&str]) -> Result<Vec<u8>, Error> {
        let architecture = kernel.map_or(Ok(Architecture::NATIVE), kernel_image::architecture)?;
        let mut initramfs = InitramfsBuilder::new()?;
        add_system(&mut initramfs, architecture)?;
        self.add_busybox(&mut initramfs, architecture)?;
        self.add_modules(&mut initramfs, transport)?;
        if let Some((config, guest_path)) = self.config_of(kernel) {
            initramfs.copy_program("the kernel's configuration", &config, &guest_path)?;
        }
        self.add_agent(&mut initramfs, architecture)?;
        self.add_scheduler(&mut initramfs, architecture)?;
        for (program, guest_path) in &self.programs {
            add_guest_program(&mut initramfs, "the program", program, guest_path, architecture)?;
        }
        for (file, guest_path) in &self.files {
            initramfs.copy_program("the file", file, guest_path)?;
        }
        Ok(initramfs.finish()?)
    }

    fn add_busybox(&self, initramfs: &mut InitramfsBuilder, architecture: Architecture) -> Result<(), Error> {
        let busybox = self.busybox.clone().map_or_else(find_busybox, Ok)?;
        add_guest_program(initramfs, "busybox", &busybox, "bin/busybox", architecture)?;
        Ok(initramfs.link("bin/sh", "busybox")?)
    }

    fn add_modules(&self, initramfs: &mut InitramfsBuilder, transport: &[&str]) -> Result<(), Error> {
        let mut list = String::new();
        if let Some(folder) = &self.modules {
            let modules = Modules::read(folder)?;
            let names = transport.iter().chain(VSOCK).copied();
            let names: Vec<&str> = names.chain(self.extra_modules.iter().map(String::as_str)).collect();
            for path in modules.in_load_order(&names)? {
                let file = path.rsplit('/').next().unwrap_or(path);
                let name = file.split(".ko").next().unwrap_or(file);
                initramfs.file(&format!("lib/modules/{name}.ko"), &modules.load(path)?)?;
                list += &format!("/lib/modules/{name}.ko\n");
            }
        }
        Ok(initramfs.file(MODULE_LIST, list.as_bytes())?)
    }

    fn add_agent(&self, initramfs: &mut InitramfsBuilder, architecture: Architecture) -> Result<(), Error> {
        match AgentFile::find(self.agent.as_deref(), architecture)? {
            AgentFile::Named(file) => add_guest_program(initramfs, "the agent", &file, AGENT, architecture)?,
            carried => initramfs.program(AGENT, &carried.read()?)?,
        }
        Ok(initramfs.file(AGENT_COMMAND, exec_command(AGENT, &self.agent_arguments)?.as_bytes())?)
    }

    fn add_scheduler(&self, initramfs: &mut InitramfsBuilder, architecture: Architecture) -> Result<(), Error> {
        let Some((program, arguments)) = &self.scheduler else { return Ok(()) };
        let fix = "name the scheduler's file, or put its folder into PATH";
        let file = find_program("the scheduler", program, fix)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let guest_path = format!("usr/bin/{name}");
        add_guest_program(initramfs, "the scheduler", &file, &guest_path, architecture)?;
        Ok(initramfs.file(SCHEDULER_COMMAND, exec_command(&guest_path, arguments)?.as_bytes())?)
    }
}

/// Whether a folder has a kernel's module, or knows it as built in. One that cannot be read is an error of the image.
fn has_module(folder: &Path, name: &str) -> bool {
    Modules::read(folder).map_or(true, |modules| modules.in_load_order(&[name]).is_ok())
}

/// Adds a program with its libraries, unless it is for another architecture than the guest.
fn add_guest_program(
    initramfs: &mut InitramfsBuilder,
    what: &'static str,
    program: &Path,
    guest_path: &str,
    architecture: Architecture,
) -> Result<(), Error> {
    let mut beginning = [0; 64];
    let read = File::open(program).and_then(|mut file| file.read(&mut beginning));
    let read = read.map_err(Error::unreadable(what, program))?;
    let beginning = beginning.get(..read).unwrap_or_default();
    check_architecture(what, &program.display().to_string(), beginning, architecture)?;
    add_program(initramfs, what, program, guest_path)
}

/// Adds the first process and what it needs to run.
fn add_system(initramfs: &mut InitramfsBuilder, architecture: Architecture) -> io::Result<()> {
    initramfs.program("init", INIT)?;
    for folder in ["proc", "sys", "run", "tmp", "root", "var", "boot"] {
        initramfs.folder(folder)?;
    }
    initramfs.link("var/run", "/run")?;
    initramfs.file(COMMAND_DEVICE, Platform::of(architecture).command_device.as_bytes())
}

/// Returns a shell's command that replaces the shell by a program.
fn exec_command(guest_path: &str, arguments: &[String]) -> Result<String, Error> {
    let program = format!("/{guest_path}");
    let words = || [program.as_str()].into_iter().chain(arguments.iter().map(String::as_str));
    let nul = || words().find(|word| word.contains('\0')).unwrap_or_default().to_owned();
    let command = try_join(words()).map_err(|_| Error::NulInArgument { argument: nul() })?;
    Ok(format!("exec {command}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_for_the_shell() {
        let command = exec_command("bin/echo", &["two words".into(), "it's".into(), "two\nlines".into()]).unwrap();
        let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "two words it's two\nlines\n");
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let error = exec_command("bin/true", &["a".into(), "b\0".into()]).unwrap_err();
        assert!(matches!(&error, Error::NulInArgument { argument } if argument == "b\0"), "{error}");
    }

    #[test]
    fn what_speaks_against_a_microvm_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (config, modules) = (folder.path().join("config"), folder.path().join("6.1.0"));
        let kernel = Path::new("/no/such/vmlinuz");
        let unknown = GuestImage::default();
        assert_eq!(unknown.obstacle_to_microvm(kernel, false), None);
        assert!(unknown.obstacle_to_microvm(kernel, true).unwrap().starts_with("neither "));
        std::fs::write(&config, "CONFIG_ACPI=y\nCONFIG_SERIAL_8250_CONSOLE=y\nCONFIG_VIRTIO_MMIO=m\n").unwrap();
        std::fs::create_dir(&modules).unwrap();
        let known = GuestImage { modules: Some(modules.clone()), config: Some(config), ..GuestImage::default() };
        let obstacle_with = |index: &str| {
            std::fs::write(modules.join("modules.dep"), index).unwrap();
            known.obstacle_to_microvm(kernel, true)
        };
        assert_eq!(obstacle_with("kernel/drivers/virtio/virtio_mmio.ko.xz:\n"), None);
        assert!(obstacle_with("").unwrap().contains("virtio_mmio is not in the folder"));
    }
}
