//! One guest whose device is served.

use std::io;
use std::mem;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::transport::vhost_user::{Error, Event, Server};
use scx_vsock::vsock::unix_bridge::UnixBridge;
use scx_vsock::vsock::{DeviceError, Handle, ReadyListener};

use super::messages::Messages;
use crate::output::eprintln;

/// How long to wait before a guest that could not be served is served again: nothing tells when there is a descriptor.
const RETRY_DELAY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

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
    /// The device of the present QEMU, or of the next one.
    device: Mutex<Option<Handle>>,
}

/// How the service of one QEMU ended.
enum End {
    /// The command is to end.
    Stop,
    /// QEMU left, or its session was ended.
    Disconnected,
}

/// What a guest's thread is woken for.
enum Wake {
    Stop,
    ReadyBytes,
    ServerEvent,
    Disconnected,
}

impl<'a> ServedGuest<'a> {
    /// Creates the sockets, which only this user may connect to.
    ///
    /// # Errors
    ///
    /// A socket cannot be created.
    pub fn listen(config: &'a GuestConfig<'a>) -> Result<Self> {
        let socket = OwnedUnixListener::bind_privately(config.socket)?;
        let bridge = UnixBridge::start(OwnedUnixListener::bind_privately(&config.hybrid)?)?;
        Ok(Self { config, socket, bridge, device: Mutex::default() })
    }

    fn device(&self) -> MutexGuard<'_, Option<Handle>> {
        // Whole at every point where a thread could panic.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints what the device has done for the present QEMU, as JSON.
    ///
    /// # Errors
    ///
    /// None: counters are plain data.
    pub fn print_counters(&self) -> Result<()> {
        if let Some(device) = &*self.device() {
            let counters = serde_json::to_string(&device.counters())?;
            eprintln!("scx-vsock: {}: {counters}", self.config.socket.display());
        }
        Ok(())
    }

    /// Serves one QEMU after the other, until `stop` can be read. What it needs and does not have is reported, and tried
    /// again.
    pub fn serve(&self, stop: BorrowedFd<'_>) {
        let mut messages = Messages::new(self.config.socket);
        let hybrid = self.config.hybrid.display();
        messages.print(&format!("waiting for QEMU to connect; read stats with: scx-vsock stats hybrid:{hybrid}"));
        let mut is_failing = false;
        loop {
            match self.serve_one(stop, &mut messages) {
                Ok(End::Stop) => return,
                Ok(End::Disconnected) => {
                    is_failing = false;
                    messages.print("QEMU disconnected; waiting for the next one to connect");
                }
                Err(error) => {
                    if !mem::replace(&mut is_failing, true) {
                        messages.print(&format!("{error:#}; trying again until it works"));
                    }
                    if stops_meanwhile(stop) {
                        return;
                    }
                }
            }
        }
    }

    /// Serves the next QEMU until it disconnects or `stop` can be read.
    ///
    /// # Errors
    ///
    /// No QEMU can be served, most often for want of descriptors.
    fn serve_one(&self, stop: BorrowedFd<'_>, messages: &mut Messages<'_>) -> Result<End> {
        const FAILED: &str = "cannot serve the guest";
        let listener = self.socket.listener().try_clone().context(FAILED)?;
        let server = Server::start(listener, self.config.cid.into()).context(FAILED)?;
        let handle = server.handle();
        let mut ready = Some(ReadyListener::listen(&handle).context(FAILED)?);
        handle.set_uds_path(&self.config.hybrid);
        *self.device() = Some(handle.clone());
        self.bridge.set_guest(handle);
        let mut has_connected = false;
        loop {
            match wait(&server, ready.as_ref(), stop).context(FAILED)? {
                Wake::Stop => return Ok(End::Stop),
                Wake::Disconnected => return Ok(End::Disconnected),
                Wake::ReadyBytes => ready = ready.and_then(|listener| poll_ready(listener, messages)),
                Wake::ServerEvent => {
                    while let Some(event) = server.take_event() {
                        match event {
                            // QEMU could not be accepted.
                            Event::Error(error) if !has_connected => return Err(error).context(FAILED),
                            Event::Connected => has_connected = true,
                            _ => {}
                        }
                        messages.print(&text_of(event));
                    }
                }
            }
        }
    }
}

/// Waits before the next attempt; returns whether `stop` can be read by then.
fn stops_meanwhile(stop: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stop, PollFlags::IN)];
    retry_on_intr(|| poll(&mut fds, Some(&RETRY_DELAY))).is_ok_and(|ready| ready > 0)
}

fn text_of(event: Event) -> String {
    match event {
        Event::Connected => "QEMU connected".to_owned(),
        Event::Running => "the guest's driver is up".to_owned(),
        Event::Error(Error::Device(error @ (DeviceError::Chain(_) | DeviceError::Ring(_)))) => {
            format!("{:#}; the device works again after a reboot", anyhow::Error::new(error))
        }
        Event::Error(error) => format!("{:#}", anyhow::Error::new(error)),
        other => format!("{other:?}"),
    }
}

/// Reads what has arrived on the Ready port. Returns the listener while the agent is not up: that it is ready is printed
/// once, since any process of the guest can connect to this port.
fn poll_ready(mut listener: ReadyListener, messages: &mut Messages<'_>) -> Option<ReadyListener> {
    match listener.poll() {
        Ok(false) => return Some(listener),
        Ok(true) => messages.print("the guest's agent is ready"),
        // The device is gone, which the server reports.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
        Err(error) => messages.print(&format!("cannot wait for the guest's agent: {error}")),
    }
    None
}

fn wait(server: &Server, ready: Option<&ReadyListener>, stop: BorrowedFd<'_>) -> io::Result<Wake> {
    let mut fds = vec![PollFd::from_borrowed_fd(stop, PollFlags::IN), PollFd::new(server, PollFlags::IN)];
    fds.extend(ready.map(|listener| PollFd::new(listener, PollFlags::IN)));
    loop {
        retry_on_intr(|| poll(&mut fds, None))?;
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        match events[..] {
            [stop, ..] if !stop.is_empty() => return Ok(Wake::Stop),
            [_, server, ..] if server.contains(PollFlags::IN) => return Ok(Wake::ServerEvent),
            [_, server, ..] if !server.is_empty() => return Ok(Wake::Disconnected),
            [_, _, ready] if !ready.is_empty() => return Ok(Wake::ReadyBytes),
            _ => {}
        }
    }
}
