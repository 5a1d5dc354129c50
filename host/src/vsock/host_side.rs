//! What a device and its handles share: connections that the host asks for, and the ports that it serves.

use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::connecting::ConnectReport;
use super::counters::Counters;
use super::limits::MAX_CONNECTIONS;
use super::listener::{Listener, Listeners};
use super::policy::GuestPolicy;
use super::protocol::Preamble;
use super::stream::bound_send_buffer;
use crate::io::eventfd::{EventFd, Notify};
use crate::io::lock::lock;

/// Programs at ports of the host that nobody in this process listens on.
pub trait HostPorts: fmt::Debug + Send + Sync {
    /// Connects to the program at a port, without waiting; `None` if there is none.
    fn connect(&self, port: u32) -> Option<UnixStream>;
}

/// A connection that the host asks for.
#[derive(Debug)]
pub struct ConnectRequest {
    /// The guest's port.
    pub guest_port: u32,
    /// The device's end of the host's stream.
    pub socket: UnixStream,
    /// What the host's side reads first, once the guest has accepted.
    pub preamble: Option<Preamble>,
    /// Who waits for the guest's answer.
    pub report: Option<ConnectReport>,
}

#[derive(Debug, Default)]
struct Requests {
    pending: Vec<ConnectRequest>,
    closed: bool,
}

/// What a device and its handles share.
#[derive(Debug)]
pub struct HostSide {
    listeners: Arc<Listeners>,
    requests: Mutex<Requests>,
    host_ports: Mutex<Option<Arc<dyn HostPorts>>>,
    policy: Mutex<Arc<GuestPolicy>>,
    counters: Mutex<Counters>,
    wake: EventFd,
}

fn gone() -> io::Error {
    io::Error::new(ErrorKind::NotConnected, "the vsock device is gone")
}

impl HostSide {
    /// Returns the host side of a new device.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            listeners: Arc::default(),
            requests: Mutex::default(),
            host_ports: Mutex::default(),
            policy: Mutex::default(),
            counters: Mutex::default(),
            wake: EventFd::new()?,
        })
    }

    /// Wakes the device's thread.
    pub fn wake(&self) {
        self.wake.notify();
    }

    /// Returns the descriptor that is readable after [`wake`](Self::wake).
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Asks the device for a connection.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the device is gone; `WouldBlock` if [`MAX_CONNECTIONS`] are pending.
    pub fn request(&self, request: ConnectRequest) -> io::Result<()> {
        request.socket.set_nonblocking(true)?;
        bound_send_buffer(&request.socket)?;
        let mut requests = lock(&self.requests);
        if requests.closed {
            return Err(gone());
        }
        if requests.pending.len() >= MAX_CONNECTIONS {
            return Err(io::Error::new(ErrorKind::WouldBlock, "too many connections wait for the vsock device"));
        }
        requests.pending.push(request);
        drop(requests);
        self.wake();
        Ok(())
    }

    /// Takes the connections that were asked for since the last call.
    pub fn take_requests(&self) -> Vec<ConnectRequest> {
        std::mem::take(&mut lock(&self.requests).pending)
    }

    /// Listens on a port of the host.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the device is gone; see [`Listeners::listen`].
    pub fn listen(&self, port: u32) -> io::Result<Listener> {
        if lock(&self.requests).closed {
            return Err(gone());
        }
        self.listeners.listen(port)
    }

    /// Returns the ports that are listened on.
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Replaces the programs at other ports.
    pub fn set_host_ports(&self, host_ports: Arc<dyn HostPorts>) {
        *lock(&self.host_ports) = Some(host_ports);
    }

    /// Connects to the program at a port; `None` if there is none.
    pub fn connect_host_port(&self, port: u32) -> Option<UnixStream> {
        let host_ports = lock(&self.host_ports).clone()?;
        let program = host_ports.connect(port)?;
        bound_send_buffer(&program).is_ok().then_some(program)
    }

    /// Replaces what the guest may connect to.
    pub fn set_policy(&self, policy: GuestPolicy) {
        *lock(&self.policy) = Arc::new(policy);
    }

    /// Returns what the guest may connect to.
    pub fn policy(&self) -> Arc<GuestPolicy> {
        Arc::clone(&lock(&self.policy))
    }

    /// Replaces the numbers that handles read.
    pub fn publish(&self, counters: Counters) {
        *lock(&self.counters) = counters;
    }

    /// Returns the numbers of the last call of the device.
    pub fn counters(&self) -> Counters {
        *lock(&self.counters)
    }

    /// Ends all that waits for the device, which is gone.
    pub fn close(&self) {
        let mut requests = lock(&self.requests);
        requests.closed = true;
        requests.pending.clear();
        drop(requests);
        self.listeners.close();
    }
}
