//! QEMU's command line.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};

use super::accelerator::Accelerator;
use super::platform::Platform;
use super::qmp_ends::QmpEnds;
use crate::guest::architecture::Architecture;

/// The numbers under which QEMU inherits descriptors.
const VSOCK_FD: i32 = 20;
const COMMANDS_FD: i32 = 21;
const INITRAMFS_FD: i32 = 22;

/// The guest's machine.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    /// Arguments of the kernel in addition to those that every guest has.
    pub(super) kernel_arguments: Vec<String>,
}

/// Descriptors that QEMU inherits.
#[derive(Debug)]
pub(super) struct Inherited {
    /// The front end's end of the vhost-user socket.
    pub(super) vsock: OwnedFd,
    /// The other end of the second serial port.
    pub(super) commands: OwnedFd,
    /// A file with the initramfs.
    pub(super) initramfs: OwnedFd,
    /// The QMP connection.
    pub(super) qmp: QmpEnds,
}

impl Machine {
    /// Returns the command that runs `qemu` with this machine and a kernel of this architecture.
    pub(super) fn command(
        &self,
        qemu: &OsStr,
        kernel: &Path,
        architecture: Architecture,
        inherited: Inherited,
    ) -> io::Result<Command> {
        let platform = Platform::of(architecture);
        let mut command = Command::new(qemu);
        let memory = self.memory_mib;
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", platform.machine])
            .args(Accelerator::find(qemu, kernel).arguments(architecture))
            .args(["-smp", &self.cpus.to_string(), "-m", &format!("{memory}M")])
            .args(["-object", &format!("memory-backend-memfd,id=memory,size={memory}M,share=on")])
            .args(["-numa", "node,memdev=memory"])
            .args(["-chardev", &format!("socket,id=vsock,fd={VSOCK_FD}")])
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=commands,fd={COMMANDS_FD}")])
            .args(platform.command_port)
            .args(QmpEnds::arguments())
            .args(["-initrd", &format!("/proc/self/fd/{INITRAMFS_FD}"), "-append", &self.kernel_command_line(platform)])
            .arg("-kernel")
            .arg(kernel);
        command.fd_mappings(inherited.mappings()).map_err(io::Error::other)?;
        Ok(command)
    }

    fn kernel_command_line(&self, platform: &Platform) -> String {
        let console = format!("console={}", platform.console);
        let usual = [console.as_str(), "quiet", "panic=-1", "rdinit=/init"].into_iter();
        usual
            .chain(platform.kernel_arguments.iter().copied())
            .chain(self.kernel_arguments.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Inherited {
    fn mappings(self) -> Vec<FdMapping> {
        let Self { vsock, commands, initramfs, qmp } = self;
        let others = [(vsock, VSOCK_FD), (commands, COMMANDS_FD), (initramfs, INITRAMFS_FD)];
        let others = others.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        others.chain(qmp.mappings()).collect()
    }
}
