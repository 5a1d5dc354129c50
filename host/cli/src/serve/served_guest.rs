//! One guest whose device is served.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::transport::vhost_user::Server;
use scx_vsock::vsock::ReadyListener;
use scx_vsock::vsock::unix_bridge::UnixBridge;

/// The sockets and the CID of one guest.
pub struct GuestConfig<'a> {
    /// Where QEMU connects.
    pub socket: &'a Path,
    /// Where programs of the host connect.
    pub hybrid: PathBuf,
    /// The guest's CID.
    pub cid: u32,
}

/// One guest whose device is served.
pub struct ServedGuest<'a> {
    config: &'a GuestConfig<'a>,
    socket: OwnedUnixListener,
    bridge: UnixBridge,
}

enum Event {
    Stop,
    ReadyBytes,
    DeviceError,
    Disconnected,
}

impl<'a> ServedGuest<'a> {
    /// Creates the sockets.
    ///
    /// # Errors
    ///
    /// A socket cannot be created.
    pub fn listen(config: &'a GuestConfig<'a>) -> Result<Self> {
        let socket = OwnedUnixListener::bind(config.socket)?;
        let bridge = UnixBridge::start(OwnedUnixListener::bind(&config.hybrid)?)?;
        Ok(Self { config, socket, bridge })
    }

    /// Serves one QEMU after the other, until `stop` can be read.
    ///
    /// # Errors
    ///
    /// The device cannot be served.
    pub fn serve(&self, stop: BorrowedFd<'_>) -> Result<()> {
        let hybrid = self.config.hybrid.display();
        self.print(&format!("waiting for QEMU to connect; read stats with: scx-vsock stats hybrid:{hybrid}"));
        loop {
            let listener = self.socket.listener().try_clone()?;
            let server = Server::start(listener, self.config.cid.into()).context("cannot serve the guest")?;
            if let Event::Stop = self.serve_one(&server, stop)? {
                return Ok(());
            }
            self.print("QEMU disconnected; waiting for the next one to connect");
        }
    }

    /// Serves until QEMU disconnects or `stop` can be read.
    fn serve_one(&self, server: &Server, stop: BorrowedFd<'_>) -> Result<Event> {
        let handle = server.handle();
        let mut ready = Some(ReadyListener::listen(&handle)?);
        handle.set_uds_path(&self.config.hybrid);
        self.bridge.set_guest(handle);
        loop {
            match wait(server, ready.as_ref(), stop)? {
                end @ (Event::Stop | Event::Disconnected) => return Ok(end),
                Event::ReadyBytes => ready = ready.and_then(|listener| self.poll_ready(listener)),
                Event::DeviceError => {
                    if let Some(error) = server.take_error() {
                        self.print(&format!("{:#}; the device works again after a reboot", anyhow::Error::new(error)));
                    }
                }
            }
        }
    }

    /// Reads what has arrived on the Ready port. Returns the listener while the agent is not up: that it is ready is
    /// printed once, since any process of the guest can connect to this port.
    fn poll_ready(&self, mut listener: ReadyListener) -> Option<ReadyListener> {
        match listener.poll() {
            Ok(false) => return Some(listener),
            Ok(true) => self.print("the guest's agent is ready"),
            // The device is gone, which the server reports.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => self.print(&format!("cannot wait for the guest's agent: {error}")),
        }
        None
    }

    fn print(&self, message: &str) {
        eprintln!("scx-vsock: {}: {message}", self.config.socket.display());
    }
}

fn wait(server: &Server, ready: Option<&ReadyListener>, stop: BorrowedFd<'_>) -> io::Result<Event> {
    let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
    fds.extend(ready.map(|listener| PollFd::new(listener, PollFlags::IN)));
    loop {
        retry_on_intr(|| poll(&mut fds, None))?;
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        match events[..] {
            [stop, ..] if !stop.is_empty() => return Ok(Event::Stop),
            [_, server, ..] if server.contains(PollFlags::IN) => return Ok(Event::DeviceError),
            [_, server, ..] if !server.is_empty() => return Ok(Event::Disconnected),
            [_, _, ready] if !ready.is_empty() => return Ok(Event::ReadyBytes),
            _ => {}
        }
    }
}
