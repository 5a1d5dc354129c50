//! What a client needs of an agent's address.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::getpeername;

/// The address of one agent. Its `Display` names it in error texts.
///
/// [`Endpoint`](crate::Endpoint) has the usual ones; a VMM with a vsock device of its own implements this for it.
///
/// ```
/// use std::os::fd::{AsFd, OwnedFd};
/// use scx_vsock::Connect;
///
/// /// One end of a socket pair, as a VMM's own vsock device may hand it out.
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
    /// Starts to connect a stream to the agent, and returns at once.
    ///
    /// The descriptor is a non-blocking stream socket that can be polled. It may still be connecting: a peer that
    /// cannot be reached then shows as an end or an error at the first read.
    ///
    /// # Errors
    ///
    /// Whatever is known at once to prevent the connection.
    fn connect(&self) -> io::Result<OwnedFd>;

    /// Returns how each stream begins; by default with the agent's hello.
    fn handshake(&self) -> Handshake {
        Handshake::Hello
    }

    /// Returns how far a stream of [`connect`](Self::connect) has come; by default what the kernel knows of its peer. Where
    /// no hello comes in time, this is part of the reason.
    fn progress(&self, stream: BorrowedFd<'_>) -> ConnectProgress {
        if getpeername(stream).is_ok() { ConnectProgress::Connected } else { ConnectProgress::Connecting }
    }

    /// Returns what this host lacks to reach the agent, as far as this can be seen: part of the message where the agent
    /// cannot be reached; by default nothing.
    fn missing_on_host(&self) -> Option<String> {
        None
    }

    /// Starts to listen for agents that come up, where the guest's agents can be heard.
    ///
    /// # Errors
    ///
    /// Why nobody can listen: most often another program does.
    fn listen_for_agent(&self) -> io::Result<Option<Box<dyn AgentListener>>> {
        Ok(None)
    }
}

/// How far a stream to an agent has come.
///
/// ```
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::endpoint::ConnectProgress;
/// use scx_vsock::{Connect, Endpoint};
///
/// let agent: Endpoint = "unix:/run/agent.sock".parse()?;
/// let (stream, _agent) = UnixStream::pair()?;
/// assert_eq!(agent.progress(stream.as_fd()), ConnectProgress::Connected);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectProgress {
    /// No vsock driver of the guest has taken the request.
    NoDriver,
    /// The guest has not answered.
    Connecting,
    /// The stream has a peer.
    Connected,
}

/// Hears of agents that come up: each connects to [`READY_PORT`](crate::READY_PORT) of the host then.
///
/// Any process of the guest can connect there. A connection only says when to try again: the session that is opened then
/// reads the agent's hello, so nothing is read from the connection itself.
///
/// Its descriptor is readable when there is a connection.
pub trait AgentListener: AsFd + Send + Sync {
    /// Accepts a connection without waiting; returns whether there was one.
    ///
    /// # Errors
    ///
    /// If no agent can be heard any more.
    fn accept(&self) -> io::Result<bool>;
}

/// How a stream to an agent begins.
///
/// ```
/// use scx_vsock::endpoint::Handshake;
/// use scx_vsock::{Connect, Endpoint};
///
/// let guest: Endpoint = "hybrid:/run/vm.sock?port=730".parse()?;
/// assert_eq!(guest.handshake(), Handshake::Connect { port: 730 });
/// # Ok::<(), scx_vsock::endpoint::ParseEndpointError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handshake {
    /// With the agent's hello.
    Hello,
    /// With `CONNECT port` to a VMM's [hybrid](super::hybrid) socket and its reply, and then the agent's hello.
    Connect {
        /// The agent's port in the guest.
        port: u32,
    },
    /// With the first request: at the other end is a scheduler, or a proxy of one, which sends no hello and whose answers
    /// have no envelope.
    Plain,
}

impl<C: Connect + ?Sized> Connect for Arc<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }

    fn handshake(&self) -> Handshake {
        (**self).handshake()
    }

    fn progress(&self, stream: BorrowedFd<'_>) -> ConnectProgress {
        (**self).progress(stream)
    }

    fn missing_on_host(&self) -> Option<String> {
        (**self).missing_on_host()
    }

    fn listen_for_agent(&self) -> io::Result<Option<Box<dyn AgentListener>>> {
        (**self).listen_for_agent()
    }
}

impl<C: Connect + ?Sized> Connect for Box<C> {
    fn connect(&self) -> io::Result<OwnedFd> {
        (**self).connect()
    }

    fn handshake(&self) -> Handshake {
        (**self).handshake()
    }

    fn progress(&self, stream: BorrowedFd<'_>) -> ConnectProgress {
        (**self).progress(stream)
    }

    fn missing_on_host(&self) -> Option<String> {
        (**self).missing_on_host()
    }

    fn listen_for_agent(&self) -> io::Result<Option<Box<dyn AgentListener>>> {
        (**self).listen_for_agent()
    }
}
