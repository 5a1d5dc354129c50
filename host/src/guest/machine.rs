//! What runs a guest: QEMU, or a microVM in this process.

use std::os::fd::{AsFd, BorrowedFd};
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use std::os::unix::net::UnixStream;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use std::path::Path;

#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use super::console::Console;
use super::error::Error;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use super::machine_options::MachineOptions;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use super::microvm::{Microvm, MicrovmBuilder};
use super::qemu::machine::QemuMachine;
use crate::vsock::Handle;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
use crate::vsock::ReadyListener;

/// What runs a guest. The guest ends when this is dropped.
#[derive(Debug)]
pub(super) enum Machine {
    Qemu(QemuMachine),
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    Microvm(Box<Microvm>),
}

impl Machine {
    /// Starts a microVM with this kernel and initramfs.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    pub(super) fn start_microvm(
        options: &MachineOptions,
        kernel: &Path,
        initramfs: Vec<u8>,
        commands: UnixStream,
        console: Console,
    ) -> Result<(Self, ReadyListener), Error> {
        let builder = Microvm::builder(kernel)
            .initramfs(initramfs)
            .command_line(options.kernel_command_line("ttyS0", &[]))
            .memory_mib(options.memory_mib())
            .vcpus(options.cpus());
        let builder = options.topology.iter().cloned().fold(builder, MicrovmBuilder::topology);
        let microvm = builder.build(Box::new(console), commands)?;
        let ready = ReadyListener::listen(&microvm.handle())?;
        microvm.resume()?;
        Ok((Self::Microvm(Box::new(microvm)), ready))
    }

    pub(super) fn handle(&self) -> Handle {
        match self {
            Self::Qemu(qemu) => qemu.handle(),
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(microvm) => microvm.handle(),
        }
    }

    /// Stops the guest's processors, if they run.
    pub(super) fn pause(&self) -> Result<(), Error> {
        match self {
            Self::Qemu(qemu) => qemu.pause(),
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(microvm) => Ok(microvm.pause()?),
        }
    }

    /// Resumes the guest's processors, if they are stopped.
    pub(super) fn resume(&self) -> Result<(), Error> {
        match self {
            Self::Qemu(qemu) => qemu.resume(),
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(microvm) => Ok(microvm.resume()?),
        }
    }

    /// Returns the microVM, which can be saved.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    pub(super) fn microvm(&self) -> Result<&Microvm, Error> {
        match self {
            Self::Qemu(_) => Err(Error::NoSnapshot),
            Self::Microvm(microvm) => Ok(microvm),
        }
    }

    /// Returns QEMU, which has a reset button.
    pub(super) fn with_reset_button(&self) -> Result<&QemuMachine, Error> {
        match self {
            Self::Qemu(qemu) => Ok(qemu),
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(_) => Err(Error::NoResetButton),
        }
    }

    /// Ends the guest, which has ended or soon will, so that the console has all output. Returns how it ended, if that is
    /// known.
    pub(super) fn end(&mut self) -> Option<String> {
        match self {
            Self::Qemu(qemu) => {
                qemu.end();
                None
            }
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(microvm) => microvm.outcome().map(|outcome| outcome.to_string()),
        }
    }
}

/// Readable once the guest has ended.
impl AsFd for Machine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Qemu(qemu) => qemu.as_fd(),
            #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
            Self::Microvm(microvm) => microvm.as_fd(),
        }
    }
}
