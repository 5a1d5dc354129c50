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
use crate::guest::error::Error;
use crate::guest::machine_options::MachineOptions;

/// The numbers under which QEMU inherits descriptors.
const VSOCK_FD: i32 = 20;
const COMMANDS_FD: i32 = 21;
const INITRAMFS_FD: i32 = 22;

/// What QEMU runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct QemuCommand<'a> {
    pub(super) machine: &'a MachineOptions,
    pub(super) kernel: &'a Path,
    pub(super) architecture: Architecture,
    pub(super) accelerator: Accelerator,
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

impl QemuCommand<'_> {
    /// Returns the command that runs the program `qemu`.
    pub(super) fn build(self, qemu: &OsStr, inherited: Inherited) -> Result<Command, Error> {
        let Self { machine, kernel, architecture, accelerator } = self;
        let platform = Platform::of(architecture);
        let mut command = Command::new(qemu);
        let nodes = machine.nodes()?;
        let kernel_arguments = machine.kernel_command_line(platform.console, platform.kernel_arguments);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", platform.machine])
            .args(accelerator.arguments(architecture))
            .args(["-smp", &processors(machine), "-m", &format!("{}M", machine.memory_mib())])
            .args(memory(&nodes, machine.cpus()))
            .args(["-chardev", &format!("socket,id=vsock,fd={VSOCK_FD}")])
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-chardev", &format!("socket,id=commands,fd={COMMANDS_FD}")])
            .args(platform.command_port)
            .args(QmpEnds::arguments())
            .args(["-initrd", &format!("/proc/self/fd/{INITRAMFS_FD}"), "-append", &kernel_arguments])
            .arg("-kernel")
            .arg(kernel);
        command.fd_mappings(inherited.mappings()).map_err(io::Error::other)?;
        Ok(command)
    }
}

/// Returns the arrangement of the processors, as `-smp` takes it.
fn processors(machine: &MachineOptions) -> String {
    let cpus = machine.cpus();
    machine.topology.as_ref().map_or_else(
        || cpus.to_string(),
        |it| format!("{cpus},sockets={},cores={},threads={}", it.sockets(), it.cores(), it.threads()),
    )
}

/// Returns the arguments of shared memory, and of the NUMA nodes that have it and equally many processors.
fn memory(nodes: &[u32], cpus: u32) -> Vec<String> {
    let cpus_of_node = cpus / u32::try_from(nodes.len()).unwrap_or(1);
    let node = |(node, mib): (u32, &u32)| {
        let (first, last) = (node * cpus_of_node, (node + 1) * cpus_of_node - 1);
        let memory = format!("memory-backend-memfd,id=memory{node},size={mib}M,share=on");
        let node = format!("node,nodeid={node},cpus={first}-{last},memdev=memory{node}");
        ["-object".to_owned(), memory, "-numa".to_owned(), node]
    };
    (0..).zip(nodes).flat_map(node).collect()
}

impl Inherited {
    fn mappings(self) -> Vec<FdMapping> {
        let Self { vsock, commands, initramfs, qmp } = self;
        let others = [(vsock, VSOCK_FD), (commands, COMMANDS_FD), (initramfs, INITRAMFS_FD)];
        let others = others.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        others.chain(qmp.mappings()).collect()
    }
}
