//! `scx-vsock serve`: the vsock device of guests whose QEMU somebody else starts.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use scx_vsock::READY_PORT;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::transport::vhost_user::Server;
use scx_vsock::vsock::Listener;
use scx_vsock::vsock::says_hello;
use scx_vsock::vsock::unix_bridge::UnixBridge;

use crate::signals::Signals;

/// The first guest's CID where none is given; the next ones follow it.
const FIRST_CID: u32 = 3;

/// How long who says to be ready may take for it.
const HELLO_WITHIN: Duration = Duration::from_secs(1);

/// Be the vsock device of a QEMU that you start yourself
///
/// A guest's device is at --socket, for QEMU (or another monitor that speaks vhost-user). Programs of the host reach
/// the guest through a second socket, of the kind that Firecracker has: they connect to it and send "CONNECT port". A
/// guest that connects to the host's port N reaches the Unix socket with _N behind that path. QEMU may end and come
/// again. Ctrl-C ends all.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock serve --socket /tmp/g1.sock
  qemu-system-x86_64 -kernel vmlinuz -initrd initrd $(scx-vsock serve --socket /tmp/g1.sock --print-qemu-args)
  scx-vsock stats hybrid:/tmp/g1.sock.hybrid

  scx-vsock serve --socket /tmp/g1.sock --socket /tmp/g2.sock
  vng --qemu-opts=\"$(scx-vsock serve --socket /tmp/g1.sock --print-qemu-args --device-only)\"")]
pub struct Serve {
    /// Where QEMU connects to a guest's device; once for each guest
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,

    /// Where programs of the host connect to a guest, in the order of --socket; without it that path and .hybrid
    #[arg(long = "hybrid", value_name = "PATH")]
    hybrids: Vec<PathBuf>,

    /// A guest's CID, in the order of --socket; without it 3 and so on
    #[arg(long = "cid", value_name = "CID", value_parser = clap::value_parser!(u32).range(3..0xffff_ffff))]
    cids: Vec<u32>,

    /// Print QEMU's arguments for the device, a line for each guest, and end
    #[arg(long)]
    print_qemu_args: bool,

    /// The guest's memory in MiB in what is printed; the device needs it to be shared
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "print_qemu_args", value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,

    /// Print the device alone, for a QEMU that shares the guest's memory already
    #[arg(long, requires = "print_qemu_args")]
    device_only: bool,
}

/// One guest, as it was asked for.
struct Wanted<'a> {
    socket: &'a Path,
    hybrid: PathBuf,
    cid: u32,
}

impl Serve {
    /// Prints arguments, or serves until a signal.
    pub fn run(&self) -> Result<ExitCode> {
        let guests = self.guests()?;
        if self.print_qemu_args {
            for guest in &guests {
                io::stdout().write_all(self.qemu_arguments(guest.socket)?.as_bytes())?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        // Nobody reads them, so that all who wait see that there is one.
        let stop = Signals::take(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM])?;
        let guests: Vec<Guest<'_>> = guests.iter().map(Guest::listen).collect::<Result<_>>()?;
        let outcome = thread::scope(|scope| {
            let threads: Vec<_> = guests.iter().map(|guest| scope.spawn(|| guest.serve(stop.as_fd()))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a guest's thread ended")))
        });
        outcome.map(|()| ExitCode::SUCCESS)
    }

    fn guests(&self) -> Result<Vec<Wanted<'_>>> {
        let count = self.sockets.len();
        for (name, given) in [("--hybrid", self.hybrids.len()), ("--cid", self.cids.len())] {
            if given > 0 && given != count {
                bail!("{count} times --socket and {given} times {name}: give it once for each guest, or never");
            }
        }
        let hybrids = self.sockets.iter().map(|socket| with_suffix(socket, ".hybrid")).enumerate();
        let hybrids = hybrids.map(|(n, default)| self.hybrids.get(n).cloned().unwrap_or(default));
        let cids =
            (FIRST_CID..).zip(0..).map(|(default, n): (u32, usize)| self.cids.get(n).copied().unwrap_or(default));
        let guests = self.sockets.iter().zip(hybrids).zip(cids);
        Ok(guests.map(|((socket, hybrid), cid)| Wanted { socket, hybrid, cid }).collect())
    }

    /// A line for a shell's command line, unquoted.
    fn qemu_arguments(&self, socket: &Path) -> Result<String> {
        let socket = std::path::absolute(socket)?;
        let path =
            socket.to_str().filter(|path| !path.contains(|c: char| c.is_whitespace() || "'\"\\$`*?[".contains(c)));
        let Some(path) = path else {
            bail!("{} cannot stand in a command line unquoted: choose a path without spaces", socket.display());
        };
        // QEMU's way to write a comma inside a value.
        let path = path.replace(',', ",,");
        let device = format!("-chardev socket,id=scx-vsock,path={path} -device vhost-user-vsock-pci,chardev=scx-vsock");
        let memory = self.memory;
        Ok(if self.device_only {
            format!("{device}\n")
        } else {
            format!(
                "-m {memory}M -object memory-backend-memfd,id=scx-vsock-memory,size={memory}M,share=on \
                 -numa node,memdev=scx-vsock-memory {device}\n"
            )
        })
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(path);
    path.push(suffix);
    path.into()
}

/// One guest that is served.
struct Guest<'a> {
    wanted: &'a Wanted<'a>,
    socket: OwnedUnixListener,
    hybrid: UnixBridge,
}

/// What happened to a guest.
enum News {
    Stop,
    Ready,
    Broken,
    Gone,
}

impl<'a> Guest<'a> {
    fn listen(wanted: &'a Wanted<'a>) -> Result<Self> {
        let socket = OwnedUnixListener::bind(wanted.socket)?;
        let hybrid = UnixBridge::start(OwnedUnixListener::bind(&wanted.hybrid)?)?;
        Ok(Self { wanted, socket, hybrid })
    }

    /// Serves one QEMU after the other.
    fn serve(&self, stop: BorrowedFd<'_>) -> Result<()> {
        let hybrid = self.wanted.hybrid.display();
        self.say(&format!("waiting for QEMU; then scx-vsock stats hybrid:{hybrid}"));
        loop {
            let listener = self.socket.listener().try_clone()?;
            let server = Server::start(listener, self.wanted.cid.into()).context("cannot serve the guest")?;
            let handle = server.handle();
            let mut ready = Some(handle.listen(READY_PORT)?);
            handle.set_uds_path(&self.wanted.hybrid);
            self.hybrid.set_guest(handle);
            loop {
                match news(&server, ready.as_ref(), stop)? {
                    News::Stop => return Ok(()),
                    // Said once: any process of the guest can say it.
                    News::Ready => {
                        if ready.as_ref().is_some_and(agent_is_ready) {
                            ready = None;
                            self.say("the guest's agent is ready");
                        }
                    }
                    News::Broken => {
                        if let Some(error) = server.take_error() {
                            self.say(&format!("{:#}; it is served again when it reboots", anyhow::Error::new(error)));
                        }
                    }
                    News::Gone => break,
                }
            }
            self.say("QEMU is gone; waiting for the next one");
        }
    }

    fn say(&self, what: &str) {
        eprintln!("scx-vsock: {}: {what}", self.wanted.socket.display());
    }
}

fn agent_is_ready(listener: &Listener) -> bool {
    listener.accept().is_ok_and(|stream| says_hello(&stream, HELLO_WITHIN))
}

/// Waits for what happens next.
fn news(server: &Server, ready: Option<&Listener>, stop: BorrowedFd<'_>) -> io::Result<News> {
    let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
    fds.extend(ready.map(|listener| PollFd::new(listener, PollFlags::IN)));
    loop {
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        match events[..] {
            [stop, ..] if !stop.is_empty() => return Ok(News::Stop),
            [_, server, ..] if server.contains(PollFlags::IN) => return Ok(News::Broken),
            [_, server, ..] if !server.is_empty() => return Ok(News::Gone),
            [_, _, ready] if !ready.is_empty() => return Ok(News::Ready),
            _ => {}
        }
    }
}
