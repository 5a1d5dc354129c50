//! Where an agent is reached.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

/// A way to one agent. Its `Display` names the place in error texts.
pub trait Connect: fmt::Display + Send + Sync {
    /// Starts a stream to the agent and returns at once.
    ///
    /// The descriptor is a non-blocking stream socket that can be polled. It may still be connecting: a peer that
    /// cannot be reached then shows as an end or an error at the first read.
    ///
    /// # Errors
    ///
    /// Whatever is known at once to prevent the connection.
    fn connect(&self) -> io::Result<OwnedFd>;
}
