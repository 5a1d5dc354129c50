//! `scx-vsock serve`: the vsock device of guests whose QEMU somebody else starts.

mod message_limit;
mod messages;
mod qemu_arguments;
mod served_guest;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Result, anyhow, bail};
use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::descriptor_limit;
use crate::error_report::wrong_arguments;
use crate::output;
use crate::output::eprintln;
use crate::sandbox;
use crate::signals::Signals;
use qemu_arguments::QemuArguments;
use served_guest::{GuestConfig, ServedGuest};

/// The CID of the first guest where none is given; the others follow it.
const FIRST_CID: u32 = 3;

/// Run the vsock device of a QEMU that you start
///
/// QEMU, or another VMM with vhost-user, connects to --socket. It may exit and connect again. Both sockets have mode 600:
/// for a QEMU of another user, change the owner or mode of --socket once it is there.
///
/// Programs on the host reach the guest through a second socket, --hybrid, with Firecracker's protocol: they connect to it
/// and send "CONNECT PORT". A connection of the guest to port N of the host goes to the Unix socket at the path of --hybrid
/// with _N appended. Press Ctrl-C to stop. SIGUSR1 prints what each device has done so far.
///
/// Once the sockets are there, the process keeps only the system calls that it needs: another one ends it, with a message.
///
/// --print-qemu-args quotes an argument where a shell needs that, such as a path with spaces. In $(...) a shell does not
/// interpret these quotes: use eval, as in the last example.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock serve --socket /tmp/g1.sock
  qemu-system-x86_64 -kernel vmlinuz -initrd initrd \\
    $(scx-vsock serve --socket /tmp/g1.sock --print-qemu-args)
  scx-vsock stats hybrid:/tmp/g1.sock.hybrid

  scx-vsock serve --socket /tmp/g1.sock --socket /tmp/g2.sock
  vng --qemu-opts=\"$(scx-vsock serve --socket /tmp/g1.sock --print-qemu-args --device-only)\"

  eval \"qemu-system-x86_64 $(scx-vsock serve --socket '/tmp/a b.sock' --print-qemu-args)\"")]
pub struct Serve {
    /// The socket that QEMU connects to; repeat it for each guest
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,

    /// The socket for programs on the host; repeat it in the order of --socket; by default --socket's path with .hybrid appended
    #[arg(long = "hybrid", value_name = "PATH")]
    hybrids: Vec<PathBuf>,

    /// The guest's CID; repeat it in the order of --socket; by default 3, 4 and so on
    #[arg(long = "cid", value_name = "CID", value_parser = clap::value_parser!(u32).range(3..0xffff_ffff))]
    cids: Vec<u32>,

    /// Print the arguments that QEMU needs, a line for each guest, and exit
    #[arg(long)]
    print_qemu_args: bool,

    /// The guest's memory in MiB, for --print-qemu-args, which makes it shared, as the device needs
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "print_qemu_args", value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,

    /// Print the arguments of the device only, for a QEMU whose memory is shared already
    #[arg(long, requires = "print_qemu_args")]
    device_only: bool,

    /// Keep all system calls, for a debugger
    #[arg(long)]
    no_sandbox: bool,
}

impl Serve {
    /// Prints QEMU's arguments, or serves until a signal asks it to end.
    pub fn run(&self) -> Result<ExitCode> {
        let guests = self.guests()?;
        if self.print_qemu_args {
            self.print_arguments()?;
            return Ok(ExitCode::SUCCESS);
        }
        descriptor_limit::raise();
        // The signal is never read, so that every thread sees that there is one.
        let stop = Signals::block(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM])?;
        let requests = Signals::block(&[Signal::SIGUSR1])?;
        let guests: Vec<ServedGuest<'_>> = guests.iter().map(ServedGuest::listen).collect::<Result<_>>()?;
        if !self.no_sandbox {
            sandbox::enter()?;
        }
        serve_all(&guests, &stop, &requests)?;
        Ok(ExitCode::SUCCESS)
    }

    fn guests(&self) -> Result<Vec<GuestConfig<'_>>> {
        self.check_counts()?;
        let hybrids = self.sockets.iter().map(|socket| with_suffix(socket, ".hybrid")).enumerate();
        let hybrids = hybrids.map(|(n, default)| self.hybrids.get(n).cloned().unwrap_or(default));
        let cids =
            (FIRST_CID..).zip(0..).map(|(default, n): (u32, usize)| self.cids.get(n).copied().unwrap_or(default));
        let guests = self.sockets.iter().zip(hybrids).zip(cids);
        let guests: Vec<_> = guests.map(|((socket, hybrid), cid)| GuestConfig { socket, hybrid, cid }).collect();
        check_paths(&guests)?;
        Ok(guests)
    }

    fn check_counts(&self) -> Result<()> {
        let count = self.sockets.len();
        for (name, given) in [("--hybrid", self.hybrids.len()), ("--cid", self.cids.len())] {
            if given > 0 && given != count {
                return Err(wrong_arguments(format_args!(
                    "--socket is given {count} times and {name} {given} times; give {name} for every guest or for none"
                )));
            }
        }
        Ok(())
    }

    fn print_arguments(&self) -> Result<()> {
        let memory_mib = (!self.device_only).then_some(self.memory);
        for socket in &self.sockets {
            let arguments = QemuArguments::new(socket, memory_mib)?;
            let mut line = arguments.line()?;
            if arguments.need_quotes() {
                eprintln!("scx-vsock: the arguments for {} have quotes; use them with eval", socket.display());
            }
            line.push(b'\n');
            output::print_bytes(&line)?;
        }
        Ok(())
    }
}

/// Serves all guests until `stop`, and prints their counters for each of the `requests` meanwhile.
fn serve_all(guests: &[ServedGuest<'_>], stop: &Signals, requests: &Signals) -> Result<()> {
    // It hangs up once no guest is served.
    let (served, serving) = pipe_with(PipeFlags::CLOEXEC)?;
    thread::scope(|scope| {
        let threads: Vec<_> = guests.iter().map(|guest| scope.spawn(|| guest.serve(stop.as_fd()))).collect();
        let printing = scope.spawn(|| print_counters(guests, requests, served.as_fd()));
        let ended =
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a guest's thread panicked")));
        drop(serving);
        let printed = printing.join().unwrap_or_else(|_| bail!("the thread of the counters panicked"));
        ended.and(printed)
    })
}

/// Prints the counters of all guests for each request, until `end` hangs up.
fn print_counters(guests: &[ServedGuest<'_>], requests: &Signals, end: BorrowedFd<'_>) -> Result<()> {
    loop {
        let mut fds = [PollFd::new(requests, PollFlags::IN), PollFd::from_borrowed_fd(end, PollFlags::IN)];
        retry_on_intr(|| poll(&mut fds, None))?;
        if fds.get(1).is_some_and(|end| !end.revents().is_empty()) {
            return Ok(());
        }
        while requests.next()?.is_some() {
            guests.iter().try_for_each(ServedGuest::print_counters)?;
        }
    }
}

fn check_paths(guests: &[GuestConfig<'_>]) -> Result<()> {
    let mut paths = BTreeSet::new();
    for path in guests.iter().flat_map(|guest| [guest.socket, &guest.hybrid]) {
        if !paths.insert(path) {
            let path = path.display();
            return Err(wrong_arguments(format_args!("{path} is given for two sockets; give each a path of its own")));
        }
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}
