//! The device's host side, for any thread: connect into the guest, listen for it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fd::{AsFd, BorrowedFd};
use scx_vsock_wire::AGENT_PORT;

use super::listener::{Listener, Listeners};
use super::muxer::MAX_CONNECTIONS;
use super::stream::pair;
use crate::Connect;
use crate::endpoint::hybrid::listener_path;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::unix_stream;

/// What handles and their device share.
#[derive(Debug)]
pub struct Shared {
    /// The ports that are listened on.
    pub listeners: Arc<Listeners>,
    wanted: Mutex<Wanted>,
    /// Where ports of the host lead that nobody in this process listens on.
    forward: Mutex<Option<PathBuf>>,
    wake: EventFd,
}

/// A connection that the host wants.
#[derive(Debug)]
pub struct WantedConnection {
    /// The guest's port.
    pub guest_port: u32,
    /// The device's end of the host's stream.
    pub socket: UnixStream,
    /// Whether the host's side is to be told that the guest accepted.
    pub wants_ok: bool,
}

#[derive(Debug, Default)]
struct Wanted {
    connections: Vec<WantedConnection>,
    closed: bool,
}

impl Shared {
    /// # Errors
    ///
    /// What the kernel says if it has no event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            listeners: Arc::default(),
            wanted: Mutex::default(),
            forward: Mutex::default(),
            wake: EventFd::new()?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        // Whole at every point where a thread could panic.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the device's thread look.
    pub fn wake(&self) {
        self.wake.notify();
    }

    /// The descriptor that is readable after [`wake`](Self::wake).
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// A stream to the program behind a port of the host, if there is one.
    pub fn forwarded(&self, port: u32) -> Option<UnixStream> {
        // Whole at every point where a thread could panic.
        let prefix = self.forward.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        unix_stream::connect(&listener_path(&prefix, port)).ok().map(UnixStream::from)
    }

    /// Takes what was asked for since the last time.
    pub fn take_wanted(&self) -> Vec<WantedConnection> {
        self.wake.clear();
        std::mem::take(&mut self.lock().connections)
    }

    /// The device is gone.
    pub fn close(&self) {
        let mut wanted = self.lock();
        wanted.closed = true;
        wanted.connections.clear();
        drop(wanted);
        self.listeners.close();
    }
}

/// A way into one guest, for any thread. Cheap to clone.
///
/// ```
/// use scx_vsock::vsock::{Device, Handle};
///
/// let device = Device::new(3)?;
/// let guest: Handle = device.handle();
/// let connecting = std::thread::spawn(move || guest.connect(8080));
/// let stream = connecting.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    guest_cid: u64,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, guest_cid: u64) -> Self {
        Self { shared, guest_cid }
    }

    /// Starts a connection to a port of the guest and returns at once with a non-blocking stream.
    ///
    /// Bytes may be written right away. A guest that refuses the connection, or is reset, shows as the stream's end.
    /// While no driver runs the connection waits for one; dropping the stream gives it up.
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let mut stream = device.handle().connect(8080)?;
    /// assert!(stream.read(&mut [0; 8]).is_err(), "no guest has answered yet, and the stream does not block");
    /// drop(device);
    /// assert_eq!(stream.read(&mut [0; 8])?, 0, "its end: the guest is gone");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `NotConnected` if the device is gone, `WouldBlock` if as many connections as the device can have are waiting,
    /// or what the kernel says if it has no socket pair.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (host, device) = pair()?;
        self.want(WantedConnection { guest_port: port, socket: device, wants_ok: false })?;
        Ok(host)
    }

    /// Makes the stream of a host's program, whose other end this is, a connection to a port of the guest.
    ///
    /// Once the guest accepts, the program is sent `OK port` and a LF, with the port that this end has; what it reads
    /// and writes after that is the connection. A guest that refuses shows to it as the stream's end.
    ///
    /// ```
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let (mut program, end) = UnixStream::pair()?;
    /// device.handle().join(8080, end)?;
    /// drop(device); // ... before a guest accepted, or the program would have read `OK 1073741824`
    /// assert_eq!(program.read(&mut [0; 32])?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn join(&self, port: u32, stream: UnixStream) -> io::Result<()> {
        self.want(WantedConnection { guest_port: port, socket: stream, wants_ok: true })
    }

    fn want(&self, connection: WantedConnection) -> io::Result<()> {
        connection.socket.set_nonblocking(true)?;
        let mut wanted = self.shared.lock();
        if wanted.closed {
            return Err(io::Error::new(ErrorKind::NotConnected, "the vsock device is gone"));
        }
        if wanted.connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::new(ErrorKind::WouldBlock, "too many connections wait for the vsock device"));
        }
        wanted.connections.push(connection);
        drop(wanted);
        self.shared.wake();
        Ok(())
    }

    /// From now on a guest that connects to the host's port `N` reaches the Unix socket at `prefix_N`, where there is
    /// one; else whoever [listens](Self::listen) on the port.
    ///
    /// ```
    /// use std::os::unix::net::UnixListener;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let logs = UnixListener::bind(folder.path().join("guest1_5000"))?;
    /// device.handle().set_uds_path(folder.path().join("guest1"));
    /// // Now a program of the guest that connects to the host's port 5000 is accepted from `logs`.
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_uds_path(&self, prefix: impl Into<PathBuf>) {
        *self.shared.forward.lock().unwrap_or_else(PoisonError::into_inner) = Some(prefix.into());
    }

    /// Listens on a port of the host for this guest.
    ///
    /// ```
    /// use std::io::ErrorKind;
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let listener = device.handle().listen(5000)?;
    /// assert_eq!(device.handle().listen(5000).unwrap_err().kind(), ErrorKind::AddrInUse);
    /// assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "no guest has connected");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `AddrInUse` if the port is listened on already; `NotConnected` if the device is gone.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        if self.shared.lock().closed {
            return Err(io::Error::new(ErrorKind::NotConnected, "the vsock device is gone"));
        }
        self.shared.listeners.listen(port)
    }

    /// Makes the device's thread look.
    pub(crate) fn wake(&self) {
        self.shared.wake();
    }

    /// The event descriptor behind [`wake`](Self::wake).
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake_fd()
    }

    /// The agent's usual port, for a client.
    ///
    /// ```
    /// # let device = scx_vsock::vsock::Device::new(3)?;
    /// let agent = device.handle().agent();
    /// assert_eq!(agent.to_string(), "port 729 of the guest with CID 3");
    /// let client = scx_vsock::SchedStatsClient::builder(agent).build();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn agent(&self) -> Port {
        self.port(AGENT_PORT)
    }

    /// A port of the guest, for a client.
    ///
    /// ```
    /// # let device = scx_vsock::vsock::Device::new(3)?;
    /// let second = device.handle().port(730); // the agent's `--map 730=/run/second/stats`
    /// let client = scx_vsock::SchedStatsClient::builder(second).build();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn port(&self, port: u32) -> Port {
        Port { handle: self.clone(), port }
    }

    /// The guest's CID.
    ///
    /// ```
    /// let device = scx_vsock::vsock::Device::new(42)?;
    /// assert_eq!(device.handle().guest_cid(), 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }
}

/// One port of a guest.
///
/// ```
/// use scx_vsock::vsock::{Device, Port};
/// use scx_vsock::{Connect, SchedStatsClient};
///
/// let device = Device::new(3)?;
/// let agent: Port = device.handle().agent();
/// let stream = agent.connect()?; // what a client does for each session
/// let client = SchedStatsClient::builder(agent).build();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Port {
    handle: Handle,
    port: u32,
}

impl Connect for Port {
    fn connect(&self) -> io::Result<OwnedFd> {
        self.handle.connect(self.port).map(OwnedFd::from)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "port {} of the guest with CID {}", self.port, self.handle.guest_cid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::allow_all_descriptors;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::Read;

    const PORT: u32 = 7290;

    fn handle() -> Handle {
        Handle::new(Arc::new(Shared::new().unwrap()), 3)
    }

    fn is_woken(handle: &Handle) -> bool {
        poll(&mut [PollFd::new(&handle.wake_fd(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn the_device_is_woken_for_what_is_wanted_until_it_takes_that() {
        let handle = handle();
        assert!(!is_woken(&handle));
        let (_program, device) = UnixStream::pair().unwrap();
        let _stream = handle.connect(PORT).unwrap();
        assert!(is_woken(&handle));
        handle.join(PORT + 1, device).unwrap();
        let wanted = handle.shared.take_wanted();
        let wanted: Vec<_> = wanted.iter().map(|wanted| (wanted.guest_port, wanted.wants_ok)).collect();
        assert_eq!(wanted, [(PORT, false), (PORT + 1, true)]);
        assert!(!is_woken(&handle) && handle.shared.take_wanted().is_empty());
        handle.wake();
        assert!(is_woken(&handle));
    }

    #[test]
    fn no_more_connections_wait_for_the_device_than_it_can_have() {
        allow_all_descriptors();
        let handle = handle();
        let _streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| handle.connect(PORT).unwrap()).collect();
        assert_eq!(handle.connect(PORT).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(handle.shared.take_wanted().len(), MAX_CONNECTIONS);
        handle.connect(PORT).unwrap();
    }

    #[test]
    fn what_waits_for_a_device_that_goes_ends_and_nothing_waits_for_it_any_more() {
        let handle = handle();
        let mut stream = handle.connect(PORT).unwrap();
        handle.shared.close();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let (_program, device) = UnixStream::pair().unwrap();
        let errors = [
            handle.connect(PORT).unwrap_err(),
            handle.join(PORT, device).unwrap_err(),
            handle.listen(PORT).unwrap_err(),
        ];
        assert_eq!(errors.map(|error| error.kind()), [ErrorKind::NotConnected; 3]);
        assert!(handle.shared.take_wanted().is_empty());
    }

    #[test]
    fn a_port_of_a_guest_names_it_and_leads_there() {
        let handle = handle();
        for (port, number) in [(handle.agent(), AGENT_PORT), (handle.port(PORT), PORT)] {
            assert_eq!(port.to_string(), format!("port {number} of the guest with CID {}", handle.guest_cid()));
            let _stream = Connect::connect(&port).unwrap();
            assert_eq!(handle.shared.take_wanted().pop().unwrap().guest_port, number);
        }
        assert_eq!(handle.guest_cid(), 3);
    }
}
