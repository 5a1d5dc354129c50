//! Where an agent is reached.

mod vm_sockets;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use scx_vsock_wire::AGENT_PORT;

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
/// | `vsock://CID[:PORT]` | in the guest with that context id, over this kernel's AF_VSOCK; port 729 if left out |
/// | `unix:PATH` | on a Unix socket of this host |
///
/// ```
/// use scx_vsock::Endpoint;
///
/// let endpoint: Endpoint = "vsock://3".parse()?;
/// assert_eq!(endpoint, Endpoint::Vsock { cid: 3, port: 729 });
/// assert_eq!(endpoint.to_string(), "vsock://3:729");
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// An agent in a guest, over this kernel's AF_VSOCK.
    Vsock {
        /// The guest's context id.
        cid: u32,
        /// The agent's port.
        port: u32,
    },
    /// An agent on a Unix socket of this host.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
}

/// A text that is no [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no place of an agent: {problem}; the forms are vsock://CID[:PORT] and unix:PATH")]
pub struct ParseEndpointError {
    uri: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(uri: &str) -> Result<Self, ParseEndpointError> {
        let parsed = match uri.split_once(':') {
            Some(("vsock", rest)) => parse_vsock(rest),
            Some(("unix", "")) => Err("the path is missing"),
            Some(("unix", path)) => Ok(Self::Unix { path: path.into() }),
            Some(_) => Err("the scheme is unknown"),
            None => Err("there is no scheme"),
        };
        parsed.map_err(|problem| ParseEndpointError { uri: uri.to_owned(), problem })
    }
}

fn parse_vsock(rest: &str) -> Result<Endpoint, &'static str> {
    let place = rest.strip_prefix("//").ok_or("the // behind vsock: is missing")?;
    let (cid, port) = match place.split_once(':') {
        Some((cid, port)) => (cid, port.parse().map_err(|_| "the port is no number below 2^32")?),
        None => (place, AGENT_PORT),
    };
    let cid = cid.parse().map_err(|_| "the context id is no number below 2^32")?;
    Ok(Endpoint::Vsock { cid, port })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Connect for Endpoint {
    fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock { cid, port } => vm_sockets::start_stream(*cid, *port),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_itself() {
        for uri in ["vsock://3:729", "vsock://4294967295:0", "unix:/run/a:b.sock", "unix:relative"] {
            assert_eq!(uri.parse::<Endpoint>().unwrap().to_string(), uri);
        }
    }

    #[test]
    fn what_is_no_place_is_told_the_forms() {
        for (uri, problem) in [
            ("", "there is no scheme"),
            ("/run/agent.sock", "there is no scheme"),
            ("http://guest", "the scheme is unknown"),
            ("unix:", "the path is missing"),
            ("vsock:3", "the // behind vsock: is missing"),
            ("vsock://", "the context id is no number below 2^32"),
            ("vsock://-1", "the context id is no number below 2^32"),
            ("vsock://4294967296", "the context id is no number below 2^32"),
            ("vsock://3:", "the port is no number below 2^32"),
            ("vsock://3:729/x", "the port is no number below 2^32"),
        ] {
            let error = uri.parse::<Endpoint>().unwrap_err().to_string();
            let forms = "the forms are vsock://CID[:PORT] and unix:PATH";
            assert_eq!(error, format!("{uri:?} is no place of an agent: {problem}; {forms}"));
        }
    }
}
