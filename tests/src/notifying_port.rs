//! A port of a guest that notifies of each connect.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use scx_vsock::Connect;
use scx_vsock::vsock::Port;

/// A port of a guest that sends on a channel when a client has connected.
#[derive(Debug)]
pub struct NotifyingPort {
    port: Port,
    connects: Sender<()>,
}

impl NotifyingPort {
    /// Wraps a port. The receiver gets a value after each successful connect.
    #[must_use]
    pub fn new(port: Port) -> (Self, Receiver<()>) {
        let (connects, connected) = channel();
        (Self { port, connects }, connected)
    }
}

impl Connect for NotifyingPort {
    fn connect(&self) -> io::Result<OwnedFd> {
        let stream = self.port.connect()?;
        let _receiver_dropped = self.connects.send(());
        Ok(stream)
    }
}

impl fmt::Display for NotifyingPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.port.fmt(formatter)
    }
}
