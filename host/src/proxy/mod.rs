//! A guest's scheduler as a plain scx_stats server on this host.
//!
//! [`Proxy`] serves any number of scx_stats clients on one thread, each with a session of its own, and so with a delta
//! baseline of its own. What clients ask is split into lines by an inbox, asked by the client's
//! [`PollClient`](crate::client::PollClient), and answered byte for byte; what the guest cannot answer is answered
//! in the scheduler's place, with an errno from [`reply`].
//!
//! | | bound |
//! | --- | --- |
//! | clients at a time | [`MAX_CLIENTS`]; one more is told so and closed |
//! | a request line | [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES); a longer one is read to its end, dropped, and answered with EMSGSIZE |
//! | an answer from the guest | the proxy's deadline, then it is answered with ETIMEDOUT |
//! | a client that does not take its answer | the proxy's deadline, then it is closed |
//!
//! A client's requests are served one after the other, in order, and nothing is read ahead of the one that is served
//! but what one buffer holds. A line without an end is executed when the client ends its sending, as scx_stats servers
//! do: a request that is cut short is no JSON object, so no part of one can be taken for a whole. A client that closes
//! altogether is dropped with what it asked.
//!
//! The client's connection ends when its session does, as a scheduler's would: behind the error that says why, or in
//! place of an answer that would span another time than the client believes. Whoever connects again has a new baseline.

mod client;
mod line_reader;
pub mod reply;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::client::DEFAULT_DEADLINE;
use crate::endpoint::Connect;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::poll::PollSet;
use client::{Client, Turn};

/// Clients that are served at a time.
///
/// ```
/// assert_eq!(scx_vsock::proxy::MAX_CLIENTS, 64);
/// ```
pub const MAX_CLIENTS: usize = 64;

/// Serves a guest's scheduler to scx_stats clients of this host.
///
/// ```no_run
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::Endpoint;
/// use scx_vsock::proxy::Proxy;
/// use scx_vsock::io::OwnedUnixListener;
///
/// let socket = OwnedUnixListener::bind_privately("/run/guest1/stats")?;
/// let (stop, stopped) = UnixStream::pair()?;
/// let mut proxy = Proxy::new("vsock://3".parse::<Endpoint>()?)?;
/// proxy.listen(socket.listener().try_clone()?)?;
/// proxy.run(&[stopped.as_fd()])?; // until something is written to `stop`, or it is dropped
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Proxy {
    connect: Arc<dyn Connect>,
    deadline: Duration,
    listeners: Vec<UnixListener>,
    clients: Vec<Client>,
    acceptor: Acceptor,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("place", &format_args!("{}", self.connect))
            .field("listeners", &self.listeners)
            .field("clients", &self.clients.len())
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy of the agent that `connect` leads to. Does not connect before a client asks.
    ///
    /// ```
    /// use scx_vsock::Endpoint;
    /// use scx_vsock::proxy::Proxy;
    ///
    /// let proxy = Proxy::new("vsock://3".parse::<Endpoint>()?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the kernel says if there is no descriptor left.
    pub fn new(connect: impl Connect + 'static) -> io::Result<Self> {
        Ok(Self {
            connect: Arc::new(connect),
            deadline: DEFAULT_DEADLINE,
            listeners: Vec::new(),
            clients: Vec::new(),
            acceptor: Acceptor::new()?,
        })
    }

    /// How long the guest may take to answer a request, and a client to take its answer; [`DEFAULT_DEADLINE`] where
    /// this is left out.
    ///
    /// ```
    /// use scx_vsock::Endpoint;
    /// use scx_vsock::proxy::Proxy;
    ///
    /// let proxy = Proxy::new("vsock://3".parse::<Endpoint>()?)?.deadline(std::time::Duration::from_secs(1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Serves the clients of one more socket.
    ///
    /// ```no_run
    /// use scx_vsock::Endpoint;
    /// use scx_vsock::proxy::Proxy;
    ///
    /// let mut proxy = Proxy::new("vsock://3".parse::<Endpoint>()?)?;
    /// proxy.listen(std::os::unix::net::UnixListener::bind("/run/guest1/stats")?)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking.
    pub fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Serves until one of these descriptors is readable or ends, and gives which. Clients are kept for the next run.
    ///
    /// ```
    /// use std::os::fd::AsFd;
    /// use std::os::unix::net::UnixStream;
    /// use scx_vsock::Endpoint;
    /// use scx_vsock::proxy::Proxy;
    ///
    /// let mut proxy = Proxy::new("vsock://3".parse::<Endpoint>()?)?;
    /// let (stop, stopped) = UnixStream::pair()?;
    /// drop(stop);
    /// assert_eq!(proxy.run(&[stopped.as_fd()])?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait, if a listener is none, or if other parts of this process have taken the
    /// last descriptor. No client can be the cause.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        loop {
            let mut events = self.wait(until)?.into_iter();
            if let Some(first) = events.by_ref().take(until.len()).position(|event| !event.is_empty()) {
                return Ok(first);
            }
            let ready: Vec<bool> = events.by_ref().take(self.listeners.len()).map(|event| !event.is_empty()).collect();
            let now = Instant::now();
            self.clients.retain_mut(|client| client.turn(&mut events, now, self.deadline) == Turn::Open);
            for (at, _) in ready.into_iter().enumerate().filter(|(_, ready)| *ready) {
                self.accept(at)?;
            }
        }
    }

    /// Waits for the descriptors of `until`, then the listeners, then each client's own.
    fn wait(&self, until: &[BorrowedFd<'_>]) -> io::Result<Vec<PollFlags>> {
        let mut set = PollSet::default();
        for fd in until {
            set.add(fd, PollFlags::IN);
        }
        for listener in &self.listeners {
            set.add(listener, PollFlags::IN);
        }
        for client in &self.clients {
            client.wait_in(&mut set);
        }
        Ok(set.wait()?)
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        let Some(listener) = self.listeners.get(listener) else { return Ok(()) };
        // Not without end: those who are served have their turn.
        for _ in 0..MAX_CLIENTS {
            match self.acceptor.accept(listener)? {
                Some(Accepted::Stream(stream)) if self.clients.len() < MAX_CLIENTS => {
                    self.clients.push(Client::new(stream.into(), Arc::clone(&self.connect)));
                }
                Some(Accepted::Stream(stream)) => {
                    turn_away(
                        &stream,
                        &format!("{MAX_CLIENTS} clients are served already; close one, or start another proxy"),
                    );
                }
                Some(Accepted::LastDescriptor(stream)) => {
                    turn_away(&stream, "this host has no descriptor left for it; raise the limit (ulimit -n)");
                }
                None => break,
            }
        }
        Ok(())
    }
}

fn turn_away(stream: &OwnedFd, why: &str) {
    // A new socket takes so few bytes at once, unless its client has gone.
    let _heard = send(stream, &reply::line(Errno::BUSY, why), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
