//! Where an agent is reached.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

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

impl<C: Connect + ?Sized> Connect for Arc<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }
}

impl<C: Connect + ?Sized> Connect for Box<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }
}

/// An agent's place, as it is written in a URI.
///
/// | URI | agent |
/// | --- | --- |
/// | `unix:PATH` | on a Unix socket of this host |
///
/// ```
/// use scx_vsock::Endpoint;
///
/// let endpoint: Endpoint = "unix:/run/guest1/agent.sock".parse()?;
/// assert_eq!(endpoint.to_string(), "unix:/run/guest1/agent.sock");
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An agent on a Unix socket of this host.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no place of an agent: {problem}; the forms are unix:PATH")]
pub struct ParseEndpointError {
    uri: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(uri: &str) -> Result<Self, ParseEndpointError> {
        let problem = match uri.split_once(':') {
            Some(("unix", "")) => "the path is missing",
            Some(("unix", path)) => return Ok(Self::Unix { path: path.into() }),
            Some(_) => "the scheme is unknown",
            None => "there is no scheme",
        };
        Err(ParseEndpointError { uri: uri.to_owned(), problem })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Connect for Endpoint {
    fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix { path } => connect_unix(&SocketAddrUnix::new(path)?),
        }
    }
}

fn connect_unix(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&stream, address) {
        Ok(()) => Ok(stream),
        // A Unix socket gives no event when its queue has room again, so there is nothing to wait for.
        Err(Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::WouldBlock, "its queue of connections is full")),
        Err(error) => Err(error.into()),
    }
}
