//! A hybrid socket, as Firecracker and Cloud Hypervisor have it: a guest's vsock ports for programs that know Unix
//! sockets only. [`hybrid`](crate::endpoint::hybrid) describes the protocol.
//!
//! In both directions the program's own socket becomes the device's end of the connection, so that nobody copies bytes
//! in between, and none that were sent after the `CONNECT` line are lost.
//!
//! One thread a guest reads the lines. A program that takes longer than [`CONNECT_TIMEOUT`] for one is dropped; while
//! [`MAX_CONNECTING`] have not sent theirs, others wait in the socket's backlog.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::handle::Handle;
use super::host_side::HostPorts;
use crate::endpoint::hybrid::{MAX_CONNECT_BYTES, listener_path, ok_line, parse_connect};
use crate::io::OwnedUnixListener;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;
use crate::io::unix_stream;

/// How long a program may take to send its `CONNECT` line.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The number of programs that have not sent their `CONNECT` line.
pub const MAX_CONNECTING: usize = 64;

/// How long no program is accepted after the kernel had no descriptor for one.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

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
        socket.listener().set_nonblocking(true)?;
        let shared =
            Arc::new(BridgeShared { guest: Mutex::default(), wake: EventFd::new()?, closed: AtomicBool::new(false) });
        let mut acceptor = Acceptor { socket, shared: Arc::clone(&shared), connecting: Vec::new(), retry_at: None };
        let thread = thread::Builder::new().name("unix-bridge".into()).spawn(move || acceptor.run())?;
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

/// What the bridge's thread does.
struct Acceptor {
    socket: OwnedUnixListener,
    shared: Arc<BridgeShared>,
    connecting: Vec<Connecting>,
    /// When programs are accepted again, after the kernel had no descriptor.
    retry_at: Option<Instant>,
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

impl Acceptor {
    fn run(&mut self) {
        while !self.shared.closed.load(Ordering::SeqCst) && self.wait().is_ok() {
            let now = Instant::now();
            self.accept(now);
            self.read_lines(now);
        }
    }

    /// Waits for a program, a part of a line, or a deadline.
    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if self.retry_at.is_none() && self.connecting.len() < MAX_CONNECTING {
            fds.push(PollFd::new(&self.socket, PollFlags::IN));
        }
        fds.extend(self.connecting.iter().map(|program| PollFd::new(&program.stream, PollFlags::IN)));
        let next = self.connecting.iter().map(|program| program.deadline).chain(self.retry_at).min();
        let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn accept(&mut self, now: Instant) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        while self.retry_at.is_none() && self.connecting.len() < MAX_CONNECTING {
            let accepted = self.socket.listener().accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => {
                    self.connecting.push(Connecting { stream, line: Vec::new(), deadline: now + CONNECT_TIMEOUT });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                // No descriptor is left; the program waits in the backlog.
                Err(_) => self.retry_at = Some(now + ACCEPT_RETRY_DELAY),
            }
        }
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
