//! The address of an agent, as a URI.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use scx_vsock_wire::AGENT_PORT;

use super::connect::{AgentListener, Connect, Handshake};
use super::hybrid_ready::HybridReady;
use super::vsock;
use crate::io::unix_stream;

/// The address of an agent, as it is written in a URI.
///
/// | URI | agent |
/// | --- | --- |
/// | `vsock://CID[:PORT]` | in the guest with that context id, over this kernel's AF_VSOCK |
/// | `hybrid:PATH[?port=N]` | behind a VMM's Unix socket: Firecracker, Cloud Hypervisor, Kata, vhost-device-vsock, `scx-vsock serve` |
/// | `unix:PATH` | on a Unix socket of this host |
/// | `scx:PATH` | none: a scheduler of this host, or a proxy, on its own Unix socket |
///
/// The port is 729 by default.
///
/// ```
/// use scx_vsock::Endpoint;
///
/// let endpoint: Endpoint = "vsock://3".parse()?;
/// assert_eq!(endpoint, Endpoint::Vsock { cid: 3, port: 729 });
/// let endpoint: Endpoint = "hybrid:/run/guest1/v.sock?port=730".parse()?;
/// assert_eq!(endpoint.to_string(), "hybrid:/run/guest1/v.sock?port=730");
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
    /// An agent in a guest whose VMM has a [hybrid](super::hybrid) socket.
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

/// The kernel's device for the vsock of guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// The forms that a URI can have.
pub const FORMS: &str = "vsock://CID[:PORT], hybrid:PATH[?port=N], unix:PATH or scx:PATH";

/// Why a text is not an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{uri:?} is not the URI of an agent: {problem}; write {FORMS}")]
pub struct ParseEndpointError {
    uri: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(uri: &str) -> Result<Self, ParseEndpointError> {
        Self::try_from(OsStr::new(uri))
    }
}

/// Reads a URI whose path need not be UTF-8.
///
/// ```
/// use std::ffi::OsStr;
/// use std::os::unix::ffi::OsStrExt;
/// use scx_vsock::Endpoint;
///
/// let path = OsStr::from_bytes(b"/run/caf\xe9");
/// let uri = OsStr::from_bytes(b"unix:/run/caf\xe9");
/// assert_eq!(Endpoint::try_from(uri)?, Endpoint::Unix { path: path.into() });
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
impl TryFrom<&OsStr> for Endpoint {
    type Error = ParseEndpointError;

    fn try_from(uri: &OsStr) -> Result<Self, ParseEndpointError> {
        let error = |problem| ParseEndpointError { uri: uri.to_string_lossy().into_owned(), problem };
        parse(uri.as_bytes()).map_err(error)
    }
}

fn parse(uri: &[u8]) -> Result<Endpoint, &'static str> {
    let (scheme, rest) = split_at(uri, uri.iter().position(|&byte| byte == b':')).ok_or("it has no scheme")?;
    match scheme {
        b"vsock" => parse_vsock(&String::from_utf8_lossy(rest)),
        b"hybrid" => parse_hybrid(rest),
        b"unix" => Ok(Endpoint::Unix { path: parse_path(rest)? }),
        b"scx" => Ok(Endpoint::Scx { path: parse_path(rest)? }),
        _ => Err("its scheme is unknown"),
    }
}

/// Returns what is before and after the byte at a position.
fn split_at(bytes: &[u8], position: Option<usize>) -> Option<(&[u8], &[u8])> {
    let (before, from) = bytes.split_at_checked(position?)?;
    Some((before, from.get(1..)?))
}

fn parse_vsock(rest: &str) -> Result<Endpoint, &'static str> {
    let address = rest.strip_prefix("//").ok_or("// must follow vsock:")?;
    let (cid, port) = match address.split_once(':') {
        Some((cid, port)) => (cid, parse_port(port)?),
        None => (address, AGENT_PORT),
    };
    match parse_number(cid).ok_or("the context id must be a number below 2^32")? {
        // The hypervisor's, and any.
        0 | u32::MAX => Err("it is no guest's context id; use one from 3 to 4294967294"),
        cid => Ok(Endpoint::Vsock { cid, port }),
    }
}

/// The port is after the last question mark, so that the path can contain question marks if the port is written.
fn parse_hybrid(rest: &[u8]) -> Result<Endpoint, &'static str> {
    let (path, port) = match split_at(rest, rest.iter().rposition(|&byte| byte == b'?')) {
        Some((path, option)) => {
            let port = option.strip_prefix(b"port=").ok_or("only port=N can follow ?")?;
            (path, parse_port(&String::from_utf8_lossy(port))?)
        }
        None => (rest, AGENT_PORT),
    };
    Ok(Endpoint::Hybrid { path: parse_path(path)?, port })
}

fn parse_path(path: &[u8]) -> Result<PathBuf, &'static str> {
    if path.is_empty() { Err("it has no path") } else { Ok(OsStr::from_bytes(path).into()) }
}

fn parse_port(port: &str) -> Result<u32, &'static str> {
    parse_number(port).ok_or("the port must be a number below 2^32")
}

/// Reads digits without a sign.
fn parse_number(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|_| !digits.starts_with('+'))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port: AGENT_PORT } => write!(f, "vsock://{cid}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            // Without a port, what follows a question mark in the path would be read as one.
            Self::Hybrid { path, port: AGENT_PORT } if !path.as_os_str().as_encoded_bytes().contains(&b'?') => {
                write!(f, "hybrid:{}", path.display())
            }
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
            Self::Hybrid { path, .. } => connect_unix(path).map_err(|error| explain(error, "VMM")),
            Self::Unix { path } => connect_unix(path).map_err(|error| explain(error, "agent")),
            Self::Scx { path } => connect_unix(path),
        }
    }

    fn handshake(&self) -> Handshake {
        match self {
            Self::Vsock { .. } | Self::Unix { .. } => Handshake::Hello,
            Self::Hybrid { port, .. } => Handshake::Connect { port: *port },
            Self::Scx { .. } => Handshake::Plain,
        }
    }

    fn missing_on_host(&self) -> Option<String> {
        match self {
            Self::Vsock { cid, .. } => missing_device(*cid, Path::new(VHOST_VSOCK)),
            Self::Hybrid { .. } | Self::Unix { .. } | Self::Scx { .. } => None,
        }
    }

    fn listen_for_agent(&self) -> io::Result<Option<Box<dyn AgentListener>>> {
        match self {
            Self::Hybrid { path, .. } => Ok(Some(Box::new(HybridReady::bind(path)?))),
            Self::Vsock { .. } | Self::Unix { .. } | Self::Scx { .. } => Ok(None),
        }
    }
}

/// Connects to a Unix socket. The kernel refuses a connection to a file of another kind as it does to a socket whose
/// program has exited.
fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    unix_stream::connect(path).map_err(|error| {
        let is_socket = || fs::metadata(path).map_or(true, |metadata| metadata.file_type().is_socket());
        if error.kind() != io::ErrorKind::ConnectionRefused || is_socket() {
            return error;
        }
        io::Error::new(io::ErrorKind::InvalidInput, "a file or folder is there, and no socket; correct the path")
    })
}

/// Returns what this host lacks for connections to a guest with this CID. 1 and 2 are this host itself, and the host of
/// the VM that this program runs in.
fn missing_device(cid: u32, device: &Path) -> Option<String> {
    let needs_device = cid >= 3;
    (needs_device && !device.exists())
        .then(|| format!("this host has no {}; run: modprobe vhost_vsock", device.display()))
}

/// Says what to do about a Unix socket that cannot be connected. `owner` is the program that creates it.
fn explain(error: io::Error, owner: &str) -> io::Error {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => format!("there is no such socket; start the {owner}, or correct the path"),
        io::ErrorKind::ConnectionRefused => {
            format!("connection refused: the {owner} that created the socket has exited")
        }
        io::ErrorKind::PermissionDenied => {
            format!("permission denied; run as the user whose {owner} created the socket")
        }
        _ => return error,
    };
    io::Error::new(error.kind(), reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_back_as_itself() {
        for uri in [
            "vsock://3",
            "vsock://3:730",
            "vsock://4294967294:0",
            "hybrid:/v.sock",
            "hybrid:/run/a?b.sock?port=5000",
            "hybrid:/run/a?b.sock?port=729",
            "unix:/run/a:b.sock?",
            "unix:relative",
            "scx:/var/run/scx/root/stats",
        ] {
            assert_eq!(uri.parse::<Endpoint>().unwrap().to_string(), uri);
        }
        assert_eq!("hybrid:/v.sock?port=729".parse::<Endpoint>().unwrap().to_string(), "hybrid:/v.sock");
        assert_eq!("vsock://3:729".parse::<Endpoint>().unwrap().to_string(), "vsock://3");
    }

    #[test]
    fn a_path_need_not_be_text() {
        let path = PathBuf::from(OsStr::from_bytes(b"/\xff?\xfe"));
        for (uri, endpoint) in [
            (&b"unix:/\xff?\xfe"[..], Endpoint::Unix { path: path.clone() }),
            (b"scx:/\xff?\xfe", Endpoint::Scx { path: path.clone() }),
            (b"hybrid:/\xff?\xfe?port=5", Endpoint::Hybrid { path, port: 5 }),
        ] {
            assert_eq!(Endpoint::try_from(OsStr::from_bytes(uri)), Ok(endpoint));
        }
        Endpoint::try_from(OsStr::from_bytes(b"vsock://\xff")).unwrap_err();
    }

    #[test]
    fn a_wrong_uri_is_answered_with_the_forms() {
        for (uri, problem) in [
            ("", "it has no scheme"),
            ("/run/agent.sock", "it has no scheme"),
            ("http://guest", "its scheme is unknown"),
            ("unix:", "it has no path"),
            ("scx:", "it has no path"),
            ("hybrid:", "it has no path"),
            ("hybrid:?port=1", "it has no path"),
            ("hybrid:/v.sock?5000", "only port=N can follow ?"),
            ("hybrid:/a?b", "only port=N can follow ?"),
            ("hybrid:/v.sock?port=", "the port must be a number below 2^32"),
            ("hybrid:/v.sock?port=x", "the port must be a number below 2^32"),
            ("vsock://+3", "the context id must be a number below 2^32"),
            ("vsock:3", "// must follow vsock:"),
            ("vsock://", "the context id must be a number below 2^32"),
            ("vsock://-1", "the context id must be a number below 2^32"),
            ("vsock://4294967296", "the context id must be a number below 2^32"),
            ("vsock://0", "it is no guest's context id; use one from 3 to 4294967294"),
            ("vsock://4294967295:1", "it is no guest's context id; use one from 3 to 4294967294"),
            ("vsock://3:", "the port must be a number below 2^32"),
            ("vsock://3:729/x", "the port must be a number below 2^32"),
        ] {
            let error = uri.parse::<Endpoint>().unwrap_err().to_string();
            assert_eq!(error, format!("{uri:?} is not the URI of an agent: {problem}; write {FORMS}"));
        }
    }

    #[test]
    fn a_missing_socket_says_what_to_start() {
        let error = Endpoint::Hybrid { path: "/run/no-vmm.sock".into(), port: AGENT_PORT }.connect().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(error.to_string(), "there is no such socket; start the VMM, or correct the path");
    }

    #[test]
    fn a_file_that_is_no_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.md");
        fs::write(&file, "text").unwrap();
        for path in [file, folder.path().to_owned()] {
            let endpoints = [
                Endpoint::Hybrid { path: path.clone(), port: 1 },
                Endpoint::Unix { path: path.clone() },
                Endpoint::Scx { path },
            ];
            for endpoint in endpoints {
                let error = endpoint.connect().unwrap_err();
                let expected = "a file or folder is there, and no socket; correct the path";
                assert_eq!(error.to_string(), expected, "{endpoint}");
            }
        }
    }

    #[test]
    fn a_missing_device_is_named_where_it_is_needed() {
        let missing = Path::new("/no/such/vhost-vsock");
        let expected = "this host has no /no/such/vhost-vsock; run: modprobe vhost_vsock";
        assert_eq!(missing_device(3, missing).as_deref(), Some(expected));
        assert_eq!([missing_device(1, missing), missing_device(2, missing)], [None, None]);
        assert_eq!(missing_device(3, Path::new("/dev/null")), None);
    }
}
