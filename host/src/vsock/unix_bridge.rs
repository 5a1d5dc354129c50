//! A guest's hybrid socket, as Firecracker and Cloud Hypervisor have it: vsock for programs that know Unix sockets.
//!
//! A program of the host connects to the socket at `PATH` and sends `CONNECT port`; once the guest accepts it is
//! answered `OK port`, with the port of this end, and from then on its stream is the connection. A guest that connects
//! to the host's port `N` reaches the Unix socket at `PATH_N`. In both directions the program's own socket becomes the
//! device's end of the connection, so that nobody copies bytes in between, and none that were sent behind `CONNECT` are
//! lost.
//!
//! One thread a guest reads the lines; a program that takes longer than [`DIAL_WITHIN`] for one is dropped.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use crate::endpoint::hybrid::{MAX_CONNECT_BYTES, parse_connect};
use crate::io::OwnedUnixListener;
use crate::io::eventfd::{EventFd, Notify};
use crate::vsock::Handle;

/// How long a program may take to say which port it wants.
pub const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// Programs that have not said yet which port they want. Others wait until the kernel lets them in.
pub const MAX_DIALLING: usize = 64;

/// How long the kernel is left alone after it had no descriptor for a program.
const REST: Duration = Duration::from_millis(100);

/// A hybrid socket. Dropping it removes the socket; connections that were made go on.
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
/// let hybrid = UnixBridge::start(OwnedUnixListener::bind(&path)?)?;
/// hybrid.set_guest(device.handle());
/// let mut program = UnixStream::connect(&path)?;
/// program.write_all(b"CONNECT 729\n")?; // ... is answered `OK 1073741824` once the guest accepts
/// drop(hybrid);
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UnixBridge {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    guest: Mutex<Option<Handle>>,
    wake: EventFd,
    closed: AtomicBool,
}

impl Shared {
    fn guest(&self) -> MutexGuard<'_, Option<Handle>> {
        // Whole at every point where a thread could panic.
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnixBridge {
    /// Serves programs on `socket`. It leads nowhere until [`set_guest`](Self::set_guest).
    ///
    /// ```
    /// # use scx_vsock::{vsock::unix_bridge::UnixBridge, io::OwnedUnixListener};
    /// # let folder = tempfile::tempdir()?;
    /// let hybrid = UnixBridge::start(OwnedUnixListener::bind_privately(folder.path().join("guest1"))?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the kernel says if it has no event descriptor or thread.
    pub fn start(socket: OwnedUnixListener) -> io::Result<Self> {
        socket.listener().set_nonblocking(true)?;
        let shared =
            Arc::new(Shared { guest: Mutex::default(), wake: EventFd::new()?, closed: AtomicBool::new(false) });
        let mut acceptor = Acceptor { socket, shared: Arc::clone(&shared), dialling: Vec::new(), rests_until: None };
        let keeper = thread::Builder::new().name("hybrid-socket".into()).spawn(move || acceptor.run())?;
        Ok(Self { shared, keeper: Some(keeper) })
    }

    /// From now on programs are connected to this guest. One that connects before the guest's driver runs waits for it.
    ///
    /// ```
    /// # use scx_vsock::{Endpoint, SchedStatsClient, vsock::unix_bridge::UnixBridge, io::OwnedUnixListener, vsock::Device};
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("guest1");
    /// # let device = Device::new(3)?;
    /// # let hybrid = UnixBridge::start(OwnedUnixListener::bind(&path)?)?;
    /// hybrid.set_guest(device.handle());
    /// let guest = Endpoint::Hybrid { path, port: scx_vsock::AGENT_PORT };
    /// let client = SchedStatsClient::builder(guest).build(); // in this process or another
    /// # drop(device);
    /// assert_eq!(client.stats(&[]).unwrap_err().kind(), "agent_unreachable", "here is no guest");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_guest(&self, guest: Handle) {
        *self.shared.guest() = Some(guest);
    }
}

impl Drop for UnixBridge {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.wake.notify();
        if let Some(keeper) = self.keeper.take() {
            let _ended = keeper.join();
        }
    }
}

struct Acceptor {
    socket: OwnedUnixListener,
    shared: Arc<Shared>,
    dialling: Vec<Dialling>,
    rests_until: Option<Instant>,
}

/// A program that has not said yet which port it wants.
struct Dialling {
    stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

/// What came of a program's turn.
enum Dialled {
    Port(u32),
    NotYet,
    Never,
}

impl Acceptor {
    fn run(&mut self) {
        while !self.shared.closed.load(Ordering::SeqCst) && self.wait().is_ok() {
            let now = Instant::now();
            self.accept(now);
            self.serve(now);
        }
    }

    /// Waits for whatever comes first.
    fn wait(&self) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.shared.wake, PollFlags::IN)];
        if self.rests_until.is_none() && self.dialling.len() < MAX_DIALLING {
            fds.push(PollFd::new(&self.socket, PollFlags::IN));
        }
        fds.extend(self.dialling.iter().map(|program| PollFd::new(&program.stream, PollFlags::IN)));
        let next = self.dialling.iter().map(|program| program.until).chain(self.rests_until).min();
        let timeout = next.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn accept(&mut self, now: Instant) {
        self.rests_until = self.rests_until.filter(|until| now < *until);
        while self.rests_until.is_none() && self.dialling.len() < MAX_DIALLING {
            let accepted = self.socket.listener().accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => self.dialling.push(Dialling { stream, line: Vec::new(), until: now + DIAL_WITHIN }),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                // No descriptor is left; the program waits where it is.
                Err(_) => self.rests_until = Some(now + REST),
            }
        }
    }

    fn serve(&mut self, now: Instant) {
        for mut program in std::mem::take(&mut self.dialling) {
            match program.turn() {
                Dialled::Port(port) => {
                    if let Some(guest) = &*self.shared.guest() {
                        // A guest that is gone, or has too many connections, shows as the stream's end.
                        let _joined = guest.join(port, program.stream);
                    }
                }
                Dialled::NotYet if now < program.until => self.dialling.push(program),
                Dialled::NotYet | Dialled::Never => {}
            }
        }
    }
}

impl Dialling {
    fn turn(&mut self) -> Dialled {
        match self.read() {
            Ok(true) => parse_connect(&self.line).map_or(Dialled::Never, Dialled::Port),
            Ok(false) if self.line.len() < MAX_CONNECT_BYTES => Dialled::NotYet,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Dialled::NotYet,
            Ok(false) | Err(_) => Dialled::Never,
        }
    }

    /// Reads on, but nothing behind the line's end: that is for the guest. Gives whether the line is complete.
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
