//! A hybrid socket, as Firecracker and Cloud Hypervisor have it: a guest's vsock ports for programs that know Unix
//! sockets only. [`hybrid`](crate::endpoint::hybrid) describes the protocol.
//!
//! In both directions the program's own socket becomes the device's end of the connection, so that nobody copies bytes
//! in between, and none that were sent after the `CONNECT` line are lost.
//!
//! One thread a guest reads the lines. A program that takes longer than [`CONNECT_TIMEOUT`] for one is dropped; while
//! [`MAX_CONNECTING`] have not sent theirs, others wait in the socket's backlog. One for which the process has no descriptor
//! left reads the end.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, recv};

use super::handle::Handle;
use super::host_side::HostPorts;
use crate::endpoint::hybrid::{MAX_CONNECT_BYTES, listener_path, ok_line, parse_connect};
use crate::io::OwnedUnixListener;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;
use crate::io::poll::PollSet;
use crate::io::unix_stream;

/// How long a program may take to send its `CONNECT` line.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of programs that have not sent their `CONNECT` line.
pub const MAX_CONNECTING: usize = 64;

/// A hybrid socket. Dropping it removes the socket; established connections go on.
///
/// ```
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::vsock::unix_bridge::UnixBridge;
/// use scx_vsock::io::OwnedUnixListener;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("guest1");
///
/// let device = scx_vsock::vsock::Device::new(3)?;
/// let bridge = UnixBridge::start(OwnedUnixListener::bind(&path)?)?;
/// bridge.set_guest(device.handle());
/// let mut program = UnixStream::connect(&path)?;
/// program.write_all(b"CONNECT 729\n")?; // ... is answered `OK 1073741824` once the guest accepts
/// drop(bridge);
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UnixBridge {
    shared: Arc<BridgeShared>,
    thread: Option<JoinHandle<()>>,
}

/// What a bridge and its thread share.
#[derive(Debug)]
struct BridgeShared {
    guest: Mutex<Option<Handle>>,
    wake: EventFd,
    closed: AtomicBool,
}

impl BridgeShared {
    fn guest(&self) -> MutexGuard<'_, Option<Handle>> {
        lock(&self.guest)
    }
}

impl UnixBridge {
    /// Serves programs on `socket`. Their connections end at once until [`set_guest`](Self::set_guest).
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no event descriptor or thread.
    pub fn start(socket: OwnedUnixListener) -> io::Result<Self> {
        Self::start_with(socket, None)
    }

    /// Serves programs on `socket`, those that wait in its backlog among them, and connects them to this guest.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub fn start_for(socket: OwnedUnixListener, guest: Handle) -> io::Result<Self> {
        Self::start_with(socket, Some(guest))
    }

    fn start_with(socket: OwnedUnixListener, guest: Option<Handle>) -> io::Result<Self> {
        socket.listener().set_nonblocking(true)?;
        let (wake, closed) = (EventFd::new()?, AtomicBool::new(false));
        let shared = Arc::new(BridgeShared { guest: Mutex::new(guest), wake, closed });
        let acceptor = Acceptor::new()?;
        let mut programs = Programs { socket, acceptor, shared: Arc::clone(&shared), connecting: Vec::new() };
        let thread = thread::Builder::new().name("unix-bridge".into()).spawn(move || programs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Connects programs to this guest from now on. A program that connects before the guest's driver runs waits for it.
    pub fn set_guest(&self, guest: Handle) {
        *self.shared.guest() = Some(guest);
    }
}

impl Drop for UnixBridge {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.wake.notify();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The programs that listen beside a hybrid socket, at `PATH_PORT`.
#[derive(Debug)]
struct UdsPath(PathBuf);

impl HostPorts for UdsPath {
    fn connect(&self, port: u32) -> Option<UnixStream> {
        unix_stream::connect_trusted(&listener_path(&self.0, port)).ok().map(UnixStream::from)
    }
}

impl Handle {
    /// Connects a guest that connects to port `N` of the host to the Unix socket at `path_N` from now on, where there is
    /// one; else to who [listens](Self::listen) on that port. In a folder where others can create files, only a socket of
    /// this user or of root counts.
    ///
    /// ```
    /// use std::os::unix::net::UnixListener;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let logs = UnixListener::bind(folder.path().join("guest1_5000"))?;
    /// device.handle().set_uds_path(folder.path().join("guest1"));
    /// // Now a program of the guest that connects to port 5000 of the host is accepted from `logs`.
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_uds_path(&self, path: impl Into<PathBuf>) {
        self.set_host_ports(Arc::new(UdsPath(path.into())));
    }
}

/// The programs that connect, as the bridge's thread has them.
struct Programs {
    socket: OwnedUnixListener,
    acceptor: Acceptor,
    shared: Arc<BridgeShared>,
    connecting: Vec<Connecting>,
}

/// A program that has not sent its `CONNECT` line.
struct Connecting {
    stream: UnixStream,
    line: Vec<u8>,
    deadline: Instant,
}

/// How far a program is with its line.
enum LineState {
    /// It asks for this port.
    Port(u32),
    Incomplete,
    Invalid,
}

impl Programs {
    /// Serves programs until the bridge is dropped. No program and no shortage is the cause of an error.
    fn run(&mut self) {
        while !self.shared.closed.load(Ordering::SeqCst) && self.wait().is_ok() {
            let now = Instant::now();
            if self.accept(now).is_err() {
                break;
            }
            self.read_lines(now);
        }
    }

    /// Waits for a program, a part of a line, or a deadline.
    fn wait(&self) -> io::Result<()> {
        let mut set = PollSet::default();
        set.add(&self.shared.wake, PollFlags::IN);
        if self.connecting.len() < MAX_CONNECTING {
            self.acceptor.register(&mut set, &self.socket);
        }
        for program in &self.connecting {
            set.add(&program.stream, PollFlags::IN);
            set.until(program.deadline);
        }
        set.wait()?;
        Ok(())
    }

    fn accept(&mut self, now: Instant) -> io::Result<()> {
        while self.connecting.len() < MAX_CONNECTING {
            match self.acceptor.accept(&self.socket)? {
                Some(Accepted::Stream(stream)) => {
                    let deadline = now + CONNECT_TIMEOUT;
                    self.connecting.push(Connecting { stream: stream.into(), line: Vec::new(), deadline });
                }
                // The program reads the end.
                Some(Accepted::LastDescriptor(stream)) => drop(stream),
                None => break,
            }
        }
        Ok(())
    }

    fn read_lines(&mut self, now: Instant) {
        for mut program in std::mem::take(&mut self.connecting) {
            match program.read_line() {
                LineState::Port(port) => {
                    if let Some(guest) = &*self.shared.guest() {
                        // A guest that is gone, or has too many connections, shows as the stream's end.
                        let _attached = guest.attach(port, program.stream, ok_line);
                    }
                }
                LineState::Incomplete if now < program.deadline => self.connecting.push(program),
                LineState::Incomplete | LineState::Invalid => {}
            }
        }
    }
}

impl Connecting {
    fn read_line(&mut self) -> LineState {
        match self.read() {
            Ok(true) => parse_connect(&self.line).map_or(LineState::Invalid, LineState::Port),
            Ok(false) if self.line.len() < MAX_CONNECT_BYTES => LineState::Incomplete,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                LineState::Incomplete
            }
            Ok(false) | Err(_) => LineState::Invalid,
        }
    }

    /// Reads on, but nothing after the line's end: that is for the guest. Returns whether the line is complete.
    fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; MAX_CONNECT_BYTES];
        let room = bytes.get_mut(self.line.len()..).unwrap_or(&mut []);
        let (seen, _) = recv(&self.stream, &mut *room, RecvFlags::PEEK)?;
        if seen == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let end = room.iter().take(seen).position(|&byte| byte == b'\n');
        let taken = room.get_mut(..end.map_or(seen, |at| at + 1)).unwrap_or(&mut []);
        let (taken_count, _) = recv(&self.stream, &mut *taken, RecvFlags::empty())?;
        self.line.extend(taken.iter().take(taken_count));
        Ok(self.line.ends_with(b"\n"))
    }
}
