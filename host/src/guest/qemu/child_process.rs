//! A child process, such as QEMU, that does not outlive this one.
#![allow(unsafe_code, reason = "the child asks the kernel between fork and exec to be killed with its parent")]

use std::io::{self, PipeReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};

use super::process_group::{Leaver, ProcessGroup};
use crate::guest::console::Console;
use crate::io::Deadline;

/// How long what the child started may take to end once it was asked to. It has the console's pipe open until then.
const LEAVER_TIMEOUT: Duration = Duration::from_secs(10);

/// A running child whose output goes to a console. It is killed and waited for on drop, and what it started in its process
/// group is killed with it.
#[derive(Debug)]
pub(super) struct ChildProcess {
    group: ProcessGroup,
    pidfd: OwnedFd,
    reaper: Option<Reaper>,
}

/// The thread that started the child and waits for it.
#[derive(Debug)]
struct Reaper {
    thread: JoinHandle<()>,
    /// At its end once the thread is.
    ended: PipeReader,
}

impl ChildProcess {
    /// Starts `command`, of which `leaver` may leave the process group.
    ///
    /// A thread of its own starts the child and waits for it: the kernel kills the child when the thread that started it
    /// ends, so that thread must live as long as the child.
    ///
    /// # Errors
    ///
    /// What starting the command failed with.
    pub(super) fn start(mut command: Command, console: Console, leaver: Leaver) -> io::Result<Self> {
        let (output, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let group = ProcessGroup::new(leaver)?;
        group.add(&mut command);
        die_with(getpid(), &mut command);
        let (started, result) = mpsc::sync_channel(1);
        let (ended, end) = io::pipe()?;
        let thread = thread::Builder::new().name("qemu".into()).spawn(move || {
            let _end = end;
            let child = command.spawn();
            // The command holds this process's ends of what the child inherited.
            drop(command);
            match child.and_then(|child| Ok((open_pidfd(&child)?, child))) {
                Ok((pidfd, mut child)) => {
                    let _waiting = started.send(Ok(pidfd));
                    console.capture(output);
                    let _status = child.wait();
                }
                Err(error) => {
                    let _waiting = started.send(Err(error));
                }
            }
        })?;
        let pidfd = result.recv().map_err(|_| io::Error::other("the thread that starts QEMU ended"))??;
        Ok(Self { group, pidfd, reaper: Some(Reaper { thread, ended }) })
    }

    /// Waits for the child to exit by itself; returns whether it did within this time.
    pub(super) fn exits_within(&self, within: Duration) -> bool {
        has_event_within(&self.pidfd, within)
    }

    /// Kills the child and its group, and waits until all its output is in the console. What left the group and does not end
    /// within [`LEAVER_TIMEOUT`] is left alone, with the thread that reads its output.
    pub(super) fn kill(&mut self) {
        // What the child started has the console's pipe open.
        self.group.kill();
        let _already_exited = pidfd_send_signal(&self.pidfd, Signal::KILL);
        if let Some(Reaper { thread, ended }) = self.reaper.take()
            && has_event_within(&ended, LEAVER_TIMEOUT)
        {
            let _ended = thread.join();
        }
    }
}

/// Waits until a descriptor is readable or at its end; returns whether it was within this time.
fn has_event_within(descriptor: &impl AsFd, within: Duration) -> bool {
    let deadline = Deadline::after(Instant::now(), within);
    let ready = retry_on_intr(|| {
        let left = deadline.left(Instant::now());
        poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Timespec::try_from(left).ok().as_ref())
    });
    ready.is_ok_and(|ready| ready > 0)
}

/// Has the kernel kill the command's child when `parent` ends. Signals that this process blocks are not blocked in the child.
fn die_with(parent: Pid, command: &mut Command) {
    let die_with_parent = move || {
        unblock_signals();
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // A parent that ended before this call sends no signal.
        if getppid() == Some(parent) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: the closure makes three system calls, allocates nothing and touches no memory of the parent.
    unsafe { command.pre_exec(die_with_parent) };
}

fn unblock_signals() {
    let mut none = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `none` has room for a set, which it is after the call.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: `none` is a set, and a null pointer asks for no copy of the old one.
    let _cannot_fail = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
}

fn open_pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Readable once the child has exited.
impl AsFd for ChildProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use command_fds::{CommandFdExt, FdMapping};
    use std::os::unix::net::UnixStream;

    /// A child of this shell script, whose descriptor 9 is a stream on which it is asked to end.
    fn child(script: &str, console: &Console) -> ChildProcess {
        let (stream, asked) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command.fd_mappings(vec![FdMapping { parent_fd: asked.into(), child_fd: 9 }]).unwrap();
        ChildProcess::start(command, console.clone(), Leaver { stream: stream.into(), request: "end\n" }).unwrap()
    }

    /// Drops a child of this script once it has printed the id of a process; that must end with it.
    fn assert_ends_what_it_started(script: &str) {
        let console = Console::default();
        let child = child(script, &console);
        console.wait_for("\n", Duration::from_secs(60));
        let started = console.text().trim().parse().unwrap();
        let started = pidfd_open(Pid::from_raw(started).unwrap(), PidfdFlags::empty()).unwrap();
        drop(child);
        let within = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&started, PollFlags::IN)], Some(&within)).unwrap(), 1);
    }

    #[test]
    fn the_output_is_complete_after_the_exit() {
        let console = Console::default();
        let mut child = child("echo out; echo err >&2", &console);
        assert!(child.exits_within(Duration::from_secs(60)));
        child.kill();
        assert_eq!(console.text(), "out\nerr\n");
    }

    #[test]
    fn what_a_child_started_ends_with_it() {
        assert_ends_what_it_started("sleep 1000 & echo $!; wait");
    }

    #[test]
    fn what_left_the_group_is_asked_to_end() {
        assert_ends_what_it_started("setsid sh -c 'echo $$; read -r line <&9; [ $line = end ] || sleep 1000' & wait");
    }

    #[test]
    fn a_child_without_its_parent_never_starts() {
        let mut command = Command::new("true");
        die_with(Pid::INIT, &mut command);
        assert_eq!(command.spawn().unwrap_err().raw_os_error(), Some(Errno::SRCH.raw_os_error()));
        let mut command = Command::new("true");
        die_with(getpid(), &mut command);
        assert!(command.status().unwrap().success());
    }
}
