//! A group of processes that does not outlive this process, however this one ends.

use std::io::{self, PipeWriter};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

/// Reads until its input ends, which is when this process has ended, and then kills its own group.
const GUARD: &str = "read -r _; kill -9 0";

/// A process group. Its leader is a shell that kills the group when this process ends: the kernel tells a child of its
/// parent's end, but not a child's own children, such as the QEMU that a wrapper starts. All are killed on drop.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    guard: Child,
    /// Closed by the kernel when this process ends.
    _lifeline: PipeWriter,
}

impl ProcessGroup {
    /// Creates a group in which nothing but its guard runs.
    ///
    /// # Errors
    ///
    /// What starting the shell failed with.
    pub(super) fn new() -> io::Result<Self> {
        let (input, lifeline) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD]).stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        Ok(Self { guard: command.spawn()?, _lifeline: lifeline })
    }

    /// Has the command's child run in this group.
    pub(super) fn add(&self, command: &mut Command) {
        command.process_group(Pid::from_child(&self.guard).as_raw_nonzero().get());
    }

    /// Kills all of the group.
    pub(super) fn kill(&mut self) {
        // The group's number is not used again before the guard was waited for.
        let _ended_already = kill_process_group(Pid::from_child(&self.guard), Signal::KILL);
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
        let _status = self.guard.wait();
    }
}
