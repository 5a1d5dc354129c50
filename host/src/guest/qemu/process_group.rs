//! A group of processes that does not outlive this process, however this one ends.

use std::io::{self, PipeWriter};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::net::{SendFlags, send};
use rustix::process::{Pid, Signal, kill_process_group};

/// Reads until its input ends, which is when this process has ended. Then writes its first argument, and kills its own
/// group.
const GUARD: &str = r#"read -r _; printf %s "$1"; kill -9 0"#;

/// A process group. Its leader is a shell that kills the group when this process ends: the kernel tells a child of its
/// parent's end, but not a child's own children, such as the QEMU that a wrapper starts. All are killed on drop.
///
/// A process that left the group, such as the QEMU of a wrapper that calls `setsid`, is asked to end instead.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    guard: Child,
    /// Closed by the kernel when this process ends.
    _lifeline: PipeWriter,
    leaver: Leaver,
}

/// Who may leave a group, and how it is asked to end.
#[derive(Debug)]
pub(super) struct Leaver {
    /// A connection to it.
    pub(super) stream: OwnedFd,
    /// What to send there.
    pub(super) request: &'static str,
}

impl ProcessGroup {
    /// Creates a group in which nothing but its guard runs.
    ///
    /// # Errors
    ///
    /// What starting the shell failed with.
    pub(super) fn new(leaver: Leaver) -> io::Result<Self> {
        let (input, lifeline) = io::pipe()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD, "guard", leaver.request]).stdin(input).stderr(Stdio::null());
        let guard = command.stdout(leaver.stream.try_clone()?).process_group(0).spawn()?;
        Ok(Self { guard, _lifeline: lifeline, leaver })
    }

    /// Has the command's child run in this group.
    pub(super) fn add(&self, command: &mut Command) {
        command.process_group(Pid::from_child(&self.guard).as_raw_nonzero().get());
    }

    /// Kills all of the group, and asks who left it to end.
    pub(super) fn kill(&mut self) {
        // It fails if nobody reads the stream any more.
        let _asked =
            send(&self.leaver.stream, self.leaver.request.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
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
