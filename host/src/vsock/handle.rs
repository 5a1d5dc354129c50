//! The device's host side, for any thread: connect into the guest, listen for it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::fd::BorrowedFd;
use scx_vsock_wire::AGENT_PORT;

use super::connecting::{ConnectError, ConnectWatch, Connecting};
use super::counters::Counters;
use super::host_side::{ConnectRequest, HostPorts, HostSide};
use super::listener::Listener;
use super::policy::GuestPolicy;
use super::protocol::Preamble;
use super::stream::pair;
use crate::Connect;
use crate::endpoint::ConnectProgress;

/// The host side of one guest's device, for any thread. Cheap to clone.
///
/// ```
/// use std::io::{ErrorKind, Read};
/// use scx_vsock::vsock::{Device, Handle};
///
/// let device = Device::new(3)?;
/// let guest: Handle = device.handle();
/// let mut stream = guest.connect(8080)?;
/// assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "no guest has answered yet");
/// drop(device);
/// assert_eq!(stream.read(&mut [0; 8])?, 0, "the end: the guest is gone");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle {
    host_side: Arc<HostSide>,
    guest_cid: u64,
}

impl Handle {
    pub(super) fn new(host_side: Arc<HostSide>, guest_cid: u64) -> Self {
        Self { host_side, guest_cid }
    }

    /// Starts a connection to a port of the guest and returns at once with a non-blocking stream.
    ///
    /// Bytes may be written right away. A guest that refuses the connection, or is reset, shows as the stream's end.
    /// While no driver runs the connection waits for one; dropping the stream cancels it.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the device is gone; `WouldBlock` if [`MAX_CONNECTIONS`](super::MAX_CONNECTIONS) are pending;
    /// the kernel's, if it has no socket pair.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (host, device) = pair()?;
        self.host_side.request(ConnectRequest { guest_port: port, socket: device, preamble: None, report: None })?;
        Ok(host)
    }

    /// Starts a connection to a port of the guest, whose end [`Connecting::wait`] waits for.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn start_connect(&self, port: u32) -> io::Result<Connecting> {
        let (host, device) = pair()?;
        let (connecting, report) = Connecting::new(host);
        let report = Some(report);
        self.host_side.request(ConnectRequest { guest_port: port, socket: device, preamble: None, report })?;
        Ok(connecting)
    }

    /// Connects to a port of the guest and waits at most `within` until the guest has accepted. Returns a non-blocking
    /// stream. Not for the device's own thread.
    ///
    /// ```
    /// use std::time::Duration;
    /// use scx_vsock::vsock::{ConnectError, Device};
    ///
    /// let device = Device::new(3)?;
    /// let error = device.handle().connect_within(8080, Duration::from_millis(1)).unwrap_err();
    /// assert!(matches!(error, ConnectError::NoDriver), "there is no guest");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn connect_within(&self, port: u32, within: Duration) -> Result<UnixStream, ConnectError> {
        self.start_connect(port)?.wait(within)
    }

    /// Connects the stream of a program of the host, whose other end this is, to a port of the guest.
    ///
    /// Once the guest accepts, the program reads what `preamble` returns for the host port of the connection; all that
    /// it reads and writes after that is the connection. A guest that refuses shows as the stream's end. What the program
    /// wrote before it closed still reaches a guest that accepts within 8 s.
    ///
    /// ```
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let device = scx_vsock::vsock::Device::new(3)?;
    /// let (mut program, end) = UnixStream::pair()?;
    /// device.handle().attach(8080, end, |host_port| format!("OK {host_port}\n"))?;
    /// drop(device); // ... before a guest accepted, or the program would have read `OK 1073741824`
    /// assert_eq!(program.read(&mut [0; 32])?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn attach(&self, port: u32, stream: UnixStream, preamble: Preamble) -> io::Result<()> {
        self.host_side.request(ConnectRequest {
            guest_port: port,
            socket: stream,
            preamble: Some(preamble),
            report: None,
        })
    }

    /// Replaces the programs at ports of the host. They take precedence over [listeners](Self::listen).
    pub(super) fn set_host_ports(&self, host_ports: Arc<dyn HostPorts>) {
        self.host_side.set_host_ports(host_ports);
    }

    /// Listens on a port of the host for this guest.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for port 4294967295, which means any; `AddrInUse` if the port is listened on already, or
    /// [`MAX_LISTENERS`](super::MAX_LISTENERS) are; `NotConnected` if the device is gone; the kernel's, if it has no
    /// event descriptor.
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        self.host_side.listen(port)
    }

    /// Replaces what the guest may connect to on the host. Connections that there are stay.
    pub fn set_guest_policy(&self, policy: GuestPolicy) {
        self.host_side.set_policy(policy);
    }

    /// Returns the device's numbers as of its last call of [`service`](super::Device::service).
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.host_side.counters()
    }

    /// Wakes the device's thread.
    pub(crate) fn wake(&self) {
        self.host_side.wake();
    }

    /// Returns the event descriptor of [`wake`](Self::wake).
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.host_side.wake_fd()
    }

    /// Returns the agent's default port, 729, for a client.
    #[must_use]
    pub fn agent(&self) -> Port {
        self.port(AGENT_PORT)
    }

    /// Returns a port of the guest, for a client.
    #[must_use]
    pub fn port(&self, port: u32) -> Port {
        Port { handle: self.clone(), port, connects: Arc::default() }
    }

    /// Returns the guest's CID.
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
/// assert_eq!(agent.to_string(), "port 729 of the guest with CID 3");
/// let stream = agent.connect()?; // what a client does for each session
/// let client = SchedStatsClient::builder(agent).build();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Port {
    handle: Handle,
    port: u32,
    connects: Arc<ConnectWatch>,
}

impl Connect for Port {
    fn connect(&self) -> io::Result<OwnedFd> {
        let connecting = self.handle.start_connect(self.port)?;
        self.connects.watch(connecting).map(OwnedFd::from)
    }

    fn progress(&self, stream: BorrowedFd<'_>) -> ConnectProgress {
        self.connects.progress(stream)
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
    use crate::vsock::MAX_CONNECTIONS;
    use crate::vsock::device::allow_all_descriptors;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::io::{ErrorKind, Read};

    const PORT: u32 = 7290;

    fn preamble(host_port: u32) -> String {
        host_port.to_string()
    }

    fn handle() -> Handle {
        Handle::new(Arc::new(HostSide::new().unwrap()), 3)
    }

    fn is_woken(handle: &Handle) -> bool {
        poll(&mut [PollFd::new(&handle.wake_fd(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_request_wakes_the_device() {
        let handle = handle();
        assert!(!is_woken(&handle));
        let (_program, device) = UnixStream::pair().unwrap();
        let _stream = handle.connect(PORT).unwrap();
        assert!(is_woken(&handle));
        handle.attach(PORT + 1, device, preamble).unwrap();
        let requests = handle.host_side.take_requests();
        let requests: Vec<_> =
            requests.iter().map(|request| (request.guest_port, request.preamble.is_some())).collect();
        assert_eq!(requests, [(PORT, false), (PORT + 1, true)]);
        assert!(handle.host_side.take_requests().is_empty());
    }

    #[test]
    fn pending_connections_are_bounded() {
        allow_all_descriptors();
        let handle = handle();
        let _streams: Vec<_> = (0..MAX_CONNECTIONS).map(|_| handle.connect(PORT).unwrap()).collect();
        assert_eq!(handle.connect(PORT).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(handle.host_side.take_requests().len(), MAX_CONNECTIONS);
        handle.connect(PORT).unwrap();
    }

    #[test]
    fn closing_ends_all_that_is_pending() {
        let handle = handle();
        let mut stream = handle.connect(PORT).unwrap();
        handle.host_side.close();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        let (_program, device) = UnixStream::pair().unwrap();
        let errors = [
            handle.connect(PORT).unwrap_err(),
            handle.attach(PORT, device, preamble).unwrap_err(),
            handle.listen(PORT).unwrap_err(),
        ];
        assert_eq!(errors.map(|error| error.kind()), [ErrorKind::NotConnected; 3]);
        assert!(handle.host_side.take_requests().is_empty());
    }

    #[test]
    fn a_port_names_and_connects_its_guest() {
        let handle = handle();
        for (port, number) in [(handle.agent(), AGENT_PORT), (handle.port(PORT), PORT)] {
            assert_eq!(port.to_string(), format!("port {number} of the guest with CID {}", handle.guest_cid()));
            let _stream = Connect::connect(&port).unwrap();
            assert_eq!(handle.host_side.take_requests().pop().unwrap().guest_port, number);
        }
        assert_eq!(handle.guest_cid(), 3);
    }
}
