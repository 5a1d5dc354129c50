//! Where an agent is reached.

pub mod hybrid;
mod vsock;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use scx_vsock_wire::AGENT_PORT;

/// A way to one agent. Its `Display` names the place in error texts.
///
/// ```
/// use std::os::fd::OwnedFd;
/// use scx_vsock::Connect;
/// use scx_vsock::endpoint::Greeting;
///
/// /// One end of a pair, as a monitor's own vsock may give it.
/// struct Guest;
///
/// impl std::fmt::Display for Guest {
///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
///         f.write_str("my guest")
///     }
/// }
///
/// impl Connect for Guest {
///     fn connect(&self) -> std::io::Result<OwnedFd> {
///         let (host, _guest) = std::os::unix::net::UnixStream::pair()?;
///         host.set_nonblocking(true)?;
///         Ok(host.into())
///     }
/// }
///
/// let client = scx_vsock::SchedStatsClient::builder(Guest).build();
/// assert_eq!(client.stats(&[]).unwrap_err().kind(), "agent_unreachable");
/// ```
pub trait Connect: fmt::Display + Send + Sync {
    /// Starts a stream to the agent and returns at once.
    ///
    /// The descriptor is a non-blocking stream socket that can be polled. It may still be connecting: a peer that
    /// cannot be reached then shows as an end or an error at the first read.
    ///
    /// ```
    /// use scx_vsock::{Connect, Endpoint};
    ///
    /// let error = Endpoint::Unix { path: "/run/no-agent.sock".into() }.connect().unwrap_err();
    /// assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    /// ```
    ///
    /// # Errors
    ///
    /// Whatever is known at once to prevent the connection.
    fn connect(&self) -> io::Result<OwnedFd>;

    /// How each stream begins. Where nothing else is said it leads straight to the agent.
    ///
    /// ```
    /// use scx_vsock::endpoint::Greeting;
    /// use scx_vsock::{Connect, Endpoint};
    ///
    /// let monitor: Endpoint = "hybrid:/run/vm.sock?port=730".parse()?;
    /// assert_eq!(monitor.greeting(), Greeting::Dial { port: 730 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn greeting(&self) -> Greeting {
        Greeting::Hello
    }
}

/// How a stream to an agent begins.
///
/// ```
/// use scx_vsock::endpoint::Greeting;
/// use scx_vsock::{Connect, Endpoint};
///
/// let monitor: Endpoint = "hybrid:/run/vm.sock?port=730".parse()?;
/// assert_eq!(monitor.greeting(), Greeting::Dial { port: 730 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Greeting {
    /// With the agent's hello.
    Hello,
    /// At a monitor, which is sent `CONNECT port` and answers `OK port`; then comes the agent's hello.
    Dial {
        /// The agent's port in the guest.
        port: u32,
    },
    /// With the first request: the stream leads to a scheduler, or to a proxy of one, which says no hello and whose
    /// answers stand in no envelope.
    Plain,
}

impl<C: Connect + ?Sized> Connect for Arc<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }

    fn greeting(&self) -> Greeting {
        (**self).greeting()
    }
}

impl<C: Connect + ?Sized> Connect for Box<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }

    fn greeting(&self) -> Greeting {
        (**self).greeting()
    }
}

/// An agent's place, as it is written in a URI.
///
/// | URI | agent |
/// | --- | --- |
/// | `vsock://CID[:PORT]` | in the guest with that context id, over this kernel's AF_VSOCK; port 729 if left out |
/// | `hybrid:PATH[?port=N]` | behind a monitor's Unix socket: Firecracker, Cloud Hypervisor, vhost-device-vsock, `scx-vsock serve`; port 729 if left out |
/// | `unix:PATH` | on a Unix socket of this host |
/// | `scx:PATH` | none: a scheduler of this host, or a proxy, on its own Unix socket |
///
/// ```
/// use scx_vsock::Endpoint;
///
/// let endpoint: Endpoint = "vsock://3".parse()?;
/// assert_eq!(endpoint, Endpoint::Vsock { cid: 3, port: 729 });
/// assert_eq!(endpoint.to_string(), "vsock://3:729");
/// let endpoint: Endpoint = "hybrid:/run/guest1/v.sock".parse()?;
/// assert_eq!(endpoint.to_string(), "hybrid:/run/guest1/v.sock?port=729");
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
    /// An agent in a guest whose monitor has a hybrid socket.
    Hybrid {
        /// The socket's path.
        path: PathBuf,
        /// The agent's port in the guest.
        port: u32,
    },
    /// An agent on a Unix socket of this host.
    Unix {
        /// The socket's path.
        path: PathBuf,
    },
    /// A scheduler on a Unix socket of this host, without an agent.
    Scx {
        /// The socket's path.
        path: PathBuf,
    },
}

/// The forms that a URI can have.
///
/// ```
/// assert!(scx_vsock::endpoint::FORMS.contains("hybrid:PATH[?port=N]"));
/// ```
pub const FORMS: &str = "vsock://CID[:PORT], hybrid:PATH[?port=N], unix:PATH and scx:PATH";

/// A text that is no [`Endpoint`].
///
/// ```
/// let error = "vsock:3".parse::<scx_vsock::Endpoint>().unwrap_err();
/// assert!(error.to_string().contains("the // behind vsock: is missing"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is no place of an agent: {problem}; the forms are {FORMS}")]
pub struct ParseEndpointError {
    uri: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(uri: &str) -> Result<Self, ParseEndpointError> {
        parse(uri).map_err(|problem| ParseEndpointError { uri: uri.to_owned(), problem })
    }
}

fn parse(uri: &str) -> Result<Endpoint, &'static str> {
    let (scheme, rest) = uri.split_once(':').ok_or("there is no scheme")?;
    match scheme {
        "vsock" => parse_vsock(rest),
        "hybrid" => parse_hybrid(rest),
        "unix" => Ok(Endpoint::Unix { path: parse_path(rest)? }),
        "scx" => Ok(Endpoint::Scx { path: parse_path(rest)? }),
        _ => Err("the scheme is unknown"),
    }
}

fn parse_vsock(rest: &str) -> Result<Endpoint, &'static str> {
    let place = rest.strip_prefix("//").ok_or("the // behind vsock: is missing")?;
    let (cid, port) = match place.split_once(':') {
        Some((cid, port)) => (cid, parse_port(port)?),
        None => (place, AGENT_PORT),
    };
    let cid = parse_number(cid).ok_or("the context id is no number below 2^32")?;
    Ok(Endpoint::Vsock { cid, port })
}

/// The port stands behind the last question mark, so that a path may have some of its own where the port is written.
fn parse_hybrid(rest: &str) -> Result<Endpoint, &'static str> {
    let (path, port) = match rest.rsplit_once('?') {
        Some((path, option)) => (path, parse_port(option.strip_prefix("port=").ok_or("behind ? only port=N can be")?)?),
        None => (rest, AGENT_PORT),
    };
    Ok(Endpoint::Hybrid { path: parse_path(path)?, port })
}

fn parse_path(path: &str) -> Result<PathBuf, &'static str> {
    if path.is_empty() { Err("the path is missing") } else { Ok(path.into()) }
}

fn parse_port(port: &str) -> Result<u32, &'static str> {
    parse_number(port).ok_or("the port is no number below 2^32")
}

/// Digits alone: no sign.
fn parse_number(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|_| !digits.starts_with('+'))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "hybrid:{}?port={port}", path.display()),
            Self::Unix { path } => write!(f, "unix:{}", path.display()),
            Self::Scx { path } => write!(f, "scx:{}", path.display()),
        }
    }
}

impl Connect for Endpoint {
    fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Vsock { cid, port } => vsock::start_stream(*cid, *port),
            Self::Hybrid { path, .. } | Self::Unix { path } | Self::Scx { path } => connect_unix(path),
        }
    }

    fn greeting(&self) -> Greeting {
        match self {
            Self::Vsock { .. } | Self::Unix { .. } => Greeting::Hello,
            Self::Hybrid { port, .. } => Greeting::Dial { port: *port },
            Self::Scx { .. } => Greeting::Plain,
        }
    }
}

/// Starts a stream to a Unix socket, which needs no waiting.
pub(crate) fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    let address = unix_address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&stream, &address) {
        Ok(()) => Ok(stream),
        // A Unix socket gives no event when its queue has room again, so there is nothing to wait for.
        Err(Errno::AGAIN) => Err(io::Error::new(io::ErrorKind::WouldBlock, "its queue of connections is full")),
        Err(error) => Err(error.into()),
    }
}

/// The address of a Unix socket at this path. Where it is too long for one, the error says by how much.
pub(crate) fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_UNIX_PATH {
        let said =
            format!("the path has {bytes} bytes and a Unix socket's at most {MAX_UNIX_PATH}; choose a shorter one");
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, said));
    }
    Ok(SocketAddrUnix::new(path)?)
}

/// Bytes of the longest path of a Unix socket (unix(7)), without its NUL.
const MAX_UNIX_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_as_itself() {
        for uri in [
            "vsock://3:729",
            "vsock://4294967295:0",
            "hybrid:/run/a?b.sock?port=5000",
            "unix:/run/a:b.sock?",
            "unix:relative",
            "scx:/var/run/scx/root/stats",
        ] {
            assert_eq!(uri.parse::<Endpoint>().unwrap().to_string(), uri);
        }
        assert_eq!("hybrid:/v.sock".parse::<Endpoint>().unwrap().to_string(), "hybrid:/v.sock?port=729");
    }

    #[test]
    fn what_is_no_place_is_told_the_forms() {
        for (uri, problem) in [
            ("", "there is no scheme"),
            ("/run/agent.sock", "there is no scheme"),
            ("http://guest", "the scheme is unknown"),
            ("unix:", "the path is missing"),
            ("scx:", "the path is missing"),
            ("hybrid:", "the path is missing"),
            ("hybrid:?port=1", "the path is missing"),
            ("hybrid:/v.sock?5000", "behind ? only port=N can be"),
            ("hybrid:/a?b", "behind ? only port=N can be"),
            ("hybrid:/v.sock?port=", "the port is no number below 2^32"),
            ("hybrid:/v.sock?port=x", "the port is no number below 2^32"),
            ("vsock://+3", "the context id is no number below 2^32"),
            ("vsock:3", "the // behind vsock: is missing"),
            ("vsock://", "the context id is no number below 2^32"),
            ("vsock://-1", "the context id is no number below 2^32"),
            ("vsock://4294967296", "the context id is no number below 2^32"),
            ("vsock://3:", "the port is no number below 2^32"),
            ("vsock://3:729/x", "the port is no number below 2^32"),
        ] {
            let error = uri.parse::<Endpoint>().unwrap_err().to_string();
            let forms = "the forms are vsock://CID[:PORT], hybrid:PATH[?port=N], unix:PATH and scx:PATH";
            assert_eq!(error, format!("{uri:?} is no place of an agent: {problem}; {forms}"));
        }
    }

    #[test]
    fn a_path_that_is_too_long_is_told_the_bounds() {
        let path = format!("/tmp/{}", "x".repeat(103));
        let said = Endpoint::Unix { path: path.clone().into() }.connect().unwrap_err().to_string();
        assert_eq!(said, "the path has 108 bytes and a Unix socket's at most 107; choose a shorter one");
        let path = path.get(..107).unwrap().into();
        assert_eq!(Endpoint::Unix { path }.connect().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
