//! QEMU as a child that does not outlive this process.
#![allow(unsafe_code, reason = "asking the kernel to end the child with its parent happens between fork and exec")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal};

use crate::guest::console::Console;

/// A running child, whose output goes to a console. Killed and waited for on drop.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`.
    ///
    /// The child is started and waited for by a thread of its own: the kernel ends the child when the thread that
    /// started it ends, so that thread must live as long as the child.
    ///
    /// # Errors
    ///
    /// What starting the command failed with.
    pub fn start(mut command: Command, console: Console) -> io::Result<Self> {
        let (output, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let die_with_parent = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: the closure makes one system call and touches no memory of the parent.
        unsafe { command.pre_exec(die_with_parent) };
        let (started, result) = mpsc::sync_channel(1);
        let keeper = thread::Builder::new().name("qemu".into()).spawn(move || {
            let child = command.spawn();
            // The command holds this process's ends of what the child inherited.
            drop(command);
            match child.and_then(|child| Ok((open_pidfd(&child)?, child))) {
                Ok((pidfd, mut child)) => {
                    let _waits = started.send(Ok(pidfd));
                    console.capture(output);
                    let _status = child.wait();
                }
                Err(error) => {
                    let _waits = started.send(Err(error));
                }
            }
        })?;
        let pidfd = result.recv().map_err(|_| io::Error::other("the thread that starts QEMU ended"))??;
        Ok(Self { pidfd, keeper: Some(keeper) })
    }

    /// Waits for the child to end by itself; gives whether it did within this time.
    pub fn ends_within(&self, within: Duration) -> bool {
        let timeout = Timespec::try_from(within).ok();
        poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref()).is_ok_and(|ended| ended > 0)
    }

    /// Ends the child if it has not ended by itself, and waits for all that it printed.
    pub fn end(&mut self) {
        let _ended_already = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Some(keeper) = self.keeper.take() {
            let _ended = keeper.join();
        }
    }
}

fn open_pidfd(child: &std::process::Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Readable once the child has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
