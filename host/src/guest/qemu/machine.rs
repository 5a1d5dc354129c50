//! A running QEMU with a guest's vsock device in this process.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};

use super::accelerator::Accelerator;
use super::child_process::ChildProcess;
use super::command_line::{Inherited, QemuCommand};
use super::device::start_device;
use super::qmp::{Qmp, QmpCommand};
use super::qmp_ends::QmpEnds;
use crate::guest::architecture::Architecture;
use crate::guest::console::Console;
use crate::guest::error::Error;
use crate::guest::machine_options::MachineOptions;
use crate::guest::topology::TopologyError;
use crate::io::lock::lock;
use crate::transport::vhost_user::Server;
use crate::vsock::{Handle, ReadyListener};

/// How long QEMU may take to exit once its device is gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// A running QEMU. It is killed when this is dropped.
#[derive(Debug)]
pub(in crate::guest) struct QemuMachine {
    // QEMU is killed before the back end that it is connected to goes.
    process: ChildProcess,
    server: Server,
    qmp: Mutex<Qmp>,
}

/// What QEMU runs, and how.
#[derive(Clone, Copy, Debug)]
pub(in crate::guest) struct QemuOptions<'a> {
    pub(in crate::guest) program: &'a OsStr,
    pub(in crate::guest) machine: &'a MachineOptions,
    pub(in crate::guest) kernel: &'a Path,
    pub(in crate::guest) architecture: Architecture,
    pub(in crate::guest) accelerator: Accelerator,
}

impl QemuMachine {
    /// Starts QEMU, with the other end of `commands` as its guest's second serial port.
    pub(in crate::guest) fn start(
        options: QemuOptions<'_>,
        initramfs: &[u8],
        commands: UnixStream,
        console: Console,
    ) -> Result<(Self, ReadyListener), Error> {
        check_topology(options)?;
        let initramfs = memory_file("initramfs", initramfs)?;
        let (server, vsock) = start_device(&env::temp_dir())?;
        let ready = ReadyListener::listen(&server.handle())?;
        let (qmp, qemu_qmp) = QmpEnds::pair()?;
        let leaver = qemu_qmp.leaver()?;
        let inherited = Inherited { vsock: vsock.into(), commands: commands.into(), initramfs, qmp: qemu_qmp };
        let QemuOptions { program, machine, kernel, architecture, accelerator } = options;
        let command = QemuCommand { machine, kernel, architecture, accelerator }.build(program, inherited)?;
        let process = ChildProcess::start(command, console, leaver)
            .map_err(|source| Error::NoQemu { program: program.to_string_lossy().into_owned(), source })?;
        Ok((Self { process, server, qmp: Mutex::new(Qmp::new(qmp)) }, ready))
    }

    pub(in crate::guest) fn handle(&self) -> Handle {
        self.server.handle()
    }

    pub(in crate::guest) fn pause(&self) -> Result<(), Error> {
        self.execute(QmpCommand::Stop)
    }

    pub(in crate::guest) fn resume(&self) -> Result<(), Error> {
        self.execute(QmpCommand::Cont)
    }

    /// Presses the reset button. A reset does not end the guest from here on.
    pub(in crate::guest) fn reset(&self) -> Result<(), Error> {
        self.execute(QmpCommand::RebootResets)?;
        self.execute(QmpCommand::SystemReset)
    }

    /// A reset ends the guest from here on.
    pub(in crate::guest) fn end_at_reset(&self) -> Result<(), Error> {
        self.execute(QmpCommand::RebootShutsDown)
    }

    fn execute(&self, command: QmpCommand) -> Result<(), Error> {
        lock(&self.qmp).execute(command)
    }

    /// Ends QEMU, which exits soon if its guest has ended or its device is gone. From here on the console has all output.
    pub(in crate::guest) fn end(&mut self) {
        let _exited = self.process.exits_within(EXIT_TIMEOUT);
        self.process.kill();
    }
}

/// Readable once QEMU has exited.
impl AsFd for QemuMachine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }
}

/// Refuses what QEMU would show as another topology: all cores of a socket share its last-level cache.
fn check_topology(options: QemuOptions<'_>) -> Result<(), Error> {
    let Some(topology) = &options.machine.topology else { return Ok(()) };
    if topology.llcs() > 1 {
        let what = "several LLC domains of a socket (llcs)";
        return Err(TopologyError::NotShown { vmm: "QEMU", what }.into());
    }
    Ok(())
}

/// Returns a file without a path, so that nothing is left of it.
fn memory_file(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}
