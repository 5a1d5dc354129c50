//! `scx-vsock proxy`: a guest's scheduler as a scx_stats server of this host.

mod mount_namespace;
mod running_command;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use nix::sys::signal::Signal;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::{Endpoint, MissingStatsReason, SchedStatsError};

use crate::duration;
use crate::output::eprintln;
use crate::signals::Signals;
use crate::target::{uri_help, uri_parser};
use running_command::RunningCommand;

/// The signals that end a proxy without a command.
const TERMINATION_SIGNALS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// The signals that are forwarded to a command.
const FORWARDED_SIGNALS: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// The exit code if the command is not found, as shells have it.
const NOT_FOUND: u8 = 127;

/// The exit code if the command cannot be run, as shells have it.
const CANNOT_RUN: u8 = 126;

/// Let scx_stats clients on this host read a guest's scheduler
///
/// The proxy is a plain scx_stats server, for clients of the socket at PATH and for CMD. Each client has a session of its
/// own with the guest, and so deltas of its own. If the guest cannot answer, the response has an errno and a text that
/// says why; the first such text is also printed.
///
/// CMD finds the guest's scheduler where a local one would be, at /var/run/scx/root/stats. It runs in a mount namespace of
/// its own, so that no other process sees this socket; all other files are those of the host. Root is not needed. Where
/// there is no /var/run/scx, root creates it; for another user CMD has a read-only copy of /var, with the host's folders in
/// it. Signals are forwarded to CMD.
///
/// The exit code is that of CMD; 128 plus the signal's number if a signal ended it; 127 if CMD is not found, 126 if it
/// cannot be run.
#[derive(Args)]
#[command(group(ArgGroup::new("clients").args(["socket", "command"]).required(true).multiple(true)))]
#[command(override_usage = "\
scx-vsock proxy [OPTIONS] <URI> --socket <PATH>
       scx-vsock proxy [OPTIONS] <URI> -- <CMD>...")]
#[command(after_long_help = "\
Examples:
  scx-vsock proxy vsock://3 -- scx_bpfland --monitor 1
  scx-vsock proxy hybrid:/run/guest1/v.sock --socket /tmp/guest1.stats
  echo '{\"req\":\"stats\"}' | socat -t5 - UNIX-CONNECT:/tmp/guest1.stats")]
pub struct Proxy {
    #[arg(value_name = "URI", help = uri_help(), value_parser = uri_parser())]
    uri: Endpoint,

    /// The socket to create, which only this user may connect to
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// How long the guest may take to answer, and a client to read the answer, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// A command to run, which finds the guest's scheduler at /var/run/scx/root/stats
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Proxy {
    /// Serves until a signal asks it to end, or the command ends.
    pub fn run(&self) -> Result<ExitCode> {
        // Before the socket, which must be removed, and before the command, to which they are forwarded.
        let signals = Signals::block(if self.command.is_empty() { &TERMINATION_SIGNALS } else { &FORWARDED_SIGNALS })?;
        let proxy = scx_vsock::proxy::Proxy::new(self.uri.clone())?;
        let mut proxy = proxy.deadline(self.deadline).on_failure(print_first());
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
        eprintln!("scx-vsock: serving {} at {}", self.uri, path.display());
        Ok(Some(socket))
    }
}

/// Prints the first error. A client may show an errno only, or nothing; repeated requests may fail for hours.
fn print_first() -> impl FnMut(&SchedStatsError) + Send + 'static {
    let mut is_first = true;
    move |error| {
        if std::mem::take(&mut is_first) {
            eprintln!("scx-vsock: {}", MissingStatsReason::from(error));
        }
    }
}

/// Serves the command until it ends.
fn run_command(proxy: &mut scx_vsock::proxy::Proxy, command: Command, signals: &Signals) -> Result<ExitCode> {
    let program = command.get_program().to_owned();
    let (mut running, listener) = match mount_namespace::spawn(command)? {
        Ok((child, listener)) => (RunningCommand::new(child)?, listener),
        Err(error) => {
            eprintln!("scx-vsock: cannot run {}: {error}", program.display());
            return Ok(ExitCode::from(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }));
        }
    };
    proxy.listen(listener)?;
    while proxy.run(&[running.as_fd(), signals.as_fd()])? != 0 {
        while let Some(signal) = signals.next()? {
            // The terminal has sent its signals to the command, too.
            if !signal.from_terminal {
                running.signal(signal.number);
            }
        }
    }
    running.wait()
}
