//! The command that a proxy runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A running command, whose descriptor can be read once it has ended. Killed and waited for on drop.
pub struct RunningCommand {
    child: Child,
    pidfd: OwnedFd,
}

impl RunningCommand {
    /// Opens a descriptor of the child process.
    ///
    /// # Errors
    ///
    /// The kernel has no descriptor for it. The child is killed.
    pub fn new(mut child: Child) -> Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let opened = pid
            .ok_or_else(|| io::Error::other("no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match opened {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error).context("cannot open a pidfd of the command")
            }
        }
    }

    /// Sends a signal by its number.
    pub fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            // It fails if the command has ended, which the descriptor reports.
            let _sent = pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Waits for the end of the command, and returns its exit code as shells have it.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn wait(&mut self) -> Result<ExitCode> {
        Ok(exit_code(self.child.wait()?))
    }
}

impl AsFd for RunningCommand {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}
