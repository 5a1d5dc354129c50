//! `scx-vsock proxy`: a guest's scheduler as a scx_stats server of this host.

mod mount_namespace;

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args};
use nix::sys::signal::Signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use scx_vsock::Endpoint;
use scx_vsock::io::OwnedUnixListener;

use crate::duration;
use crate::signals::Signals;

/// The signals that end a proxy without a command.
const END: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// The signals that a command is sent in the proxy's place.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// What a command's exit code is if it cannot be found or run, as shells have it.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// Serve a guest's scheduler on this host, to any scx_stats client
///
/// The clients of PATH, or CMD, find a plain scx_stats server: each has a session of its own with the guest, and so
/// deltas of its own. What the guest cannot answer is answered with an errno and a text that says why.
///
/// CMD sees the guest's scheduler where schedulers have their socket, /var/run/scx/root/stats, and the rest of the file
/// system as it is; nobody else sees that. It needs no root. Signals are passed on to CMD, and its exit code becomes
/// this command's (128 and the signal's number if a signal ended it, 127 if there is no such program, 126 if it is none).
#[derive(Args)]
#[command(group(ArgGroup::new("clients").args(["socket", "command"]).required(true).multiple(true)))]
#[command(after_long_help = "\
Examples:
  scx-vsock proxy vsock://3 -- scx_bpfland --monitor 1
  scx-vsock proxy hybrid:/run/guest1/v.sock --socket /tmp/guest1.stats
  echo '{\"req\":\"stats\"}' | socat -t5 - UNIX-CONNECT:/tmp/guest1.stats")]
pub struct Proxy {
    /// The guest's agent: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(value_name = "URI")]
    uri: Endpoint,

    /// Where to listen, for this user alone
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The time within which the guest must answer, and a client take the answer, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// A command that is to find the guest's scheduler
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Proxy {
    /// Serves until a signal or the command's end.
    pub fn run(&self) -> Result<ExitCode> {
        // Before there is a socket to be removed and a command to pass them on to.
        let signals = Signals::take(if self.command.is_empty() { &END } else { &PASSED_ON })?;
        let mut proxy = scx_vsock::proxy::Proxy::new(self.uri.clone())?.deadline(self.deadline);
        let _socket = self.listen(&mut proxy)?;
        match self.command.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments);
                run_command(&mut proxy, command, &signals)
            }
            None => {
                proxy.run(&[signals.as_fd()])?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn listen(&self, proxy: &mut scx_vsock::proxy::Proxy) -> Result<Option<OwnedUnixListener>> {
        let Some(path) = &self.socket else { return Ok(None) };
        let socket = OwnedUnixListener::bind_privately(path)?;
        proxy.listen(socket.listener().try_clone()?)?;
        eprintln!("scx-vsock: {} is served at {}", self.uri, path.display());
        Ok(Some(socket))
    }
}

/// Serves the command until it ends.
fn run_command(proxy: &mut scx_vsock::proxy::Proxy, command: Command, signals: &Signals) -> Result<ExitCode> {
    let program = command.get_program().to_owned();
    let (mut running, listener) = match mount_namespace::spawn(command)? {
        Ok((child, listener)) => (Running::new(child)?, listener),
        Err(error) => {
            eprintln!("scx-vsock: cannot run {}: {error}", program.display());
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN }));
        }
    };
    proxy.listen(listener)?;
    while proxy.run(&[running.pidfd.as_fd(), signals.as_fd()])? != 0 {
        while let Some(signal) = signals.next()? {
            if !signal.from_terminal {
                running.signal(signal.number);
            }
        }
    }
    Ok(exit_code(running.child.wait()?))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// The running command. Killed and waited for on drop.
struct Running {
    child: Child,
    pidfd: OwnedFd,
}

impl Running {
    fn new(mut child: Child) -> Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let opened = pid
            .ok_or_else(|| io::Error::other("no process id"))
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
        match opened {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error).context("cannot watch the command")
            }
        }
    }

    fn signal(&self, number: i32) {
        if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
            // It may have ended by now, which the next turn tells.
            let _sent = pidfd_send_signal(&self.pidfd, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}
