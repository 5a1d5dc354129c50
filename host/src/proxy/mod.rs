//! A guest's scheduler as a plain scx_stats server on this host.
//!
//! [`Proxy`] serves any number of scx_stats clients on one thread, each with a session of its own, and so with a delta
//! baseline of its own. A request reader splits what a client sends into requests, a
//! [`PollClient`](crate::client::PollClient) sends them to the guest, and the scheduler's answer is passed on byte for
//! byte. Where there is none, [`reply`] has an error with an errno.
//!
//! | | bound |
//! | --- | --- |
//! | clients at a time | [`MAX_CLIENTS`]; one more is rejected with an error |
//! | a request line | [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES); a longer one is read to its end, dropped, and answered with EMSGSIZE |
//! | an answer from the guest | the proxy's deadline, then the reply is ETIMEDOUT |
//! | a client that does not read its reply | the proxy's deadline, then it is closed |
//!
//! A client's requests are served one after another, in order. A line without LF is served when the client shuts down its
//! sending side, as scx_stats servers do: a truncated request is not a JSON object, so it is never taken for a whole one.
//! A client that closes both directions is dropped with its request.
//!
//! A client's connection ends with its session, as a scheduler's would: after the error that says why, or instead of an
//! answer that would span another interval than the client believes. A new connection has a new baseline.

mod client;
pub mod reply;
mod request_reader;

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
use crate::stats::SchedStatsError;
use client::{Connection, OnFailure, ProxyClient};

/// The most clients that are served at a time.
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
    clients: Vec<ProxyClient>,
    acceptor: Acceptor,
    on_failure: OnFailure,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("endpoint", &format_args!("{}", self.connect))
            .field("listeners", &self.listeners)
            .field("clients", &self.clients.len())
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// Returns a proxy of the agent at `connect`. It connects at the first request.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn new(connect: impl Connect + 'static) -> io::Result<Self> {
        Ok(Self {
            connect: Arc::new(connect),
            deadline: DEFAULT_DEADLINE,
            listeners: Vec::new(),
            clients: Vec::new(),
            acceptor: Acceptor::new()?,
            on_failure: Box::new(|_| ()),
        })
    }

    /// Sets how long the guest may take to answer a request, and a client to read its reply. The default is
    /// [`DEFAULT_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets what is called with each reason why the guest did not answer a request, which the client gets as an errno and
    /// a text.
    #[must_use]
    pub fn on_failure(mut self, report: impl FnMut(&SchedStatsError) + Send + 'static) -> Self {
        self.on_failure = Box::new(report);
        self
    }

    /// Adds a socket whose clients are served.
    ///
    /// # Errors
    ///
    /// If the listener cannot be made non-blocking.
    pub fn listen(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.listeners.push(listener);
        Ok(())
    }

    /// Serves until one of these descriptors is readable or at its end, and returns its index. Clients stay connected for
    /// the next run.
    ///
    /// # Errors
    ///
    /// What `poll` or `accept` failed with: a listener is not a listening socket. No client and no shortage of
    /// descriptors or memory can cause one.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        loop {
            let mut events = self.wait(until)?.into_iter();
            if let Some(first) = events.by_ref().take(until.len()).position(|event| !event.is_empty()) {
                return Ok(first);
            }
            let now = Instant::now();
            let must_retry = self.acceptor.must_retry(now);
            let ready: Vec<bool> =
                events.by_ref().take(self.listeners.len()).map(|event| must_retry || !event.is_empty()).collect();
            self.clients.retain_mut(|client| {
                client.on_ready(&mut events, now, self.deadline, &mut self.on_failure) == Connection::Open
            });
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
            self.acceptor.register(&mut set, listener);
        }
        for client in &self.clients {
            client.wait_in(&mut set);
        }
        Ok(set.wait()?)
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        let Some(listener) = self.listeners.get(listener) else { return Ok(()) };
        // Bounded, so that the clients that are served take their turns.
        for _ in 0..MAX_CLIENTS {
            match self.acceptor.accept(listener)? {
                Some(Accepted::Stream(stream)) if self.clients.len() < MAX_CLIENTS => {
                    self.clients.push(ProxyClient::new(stream.into(), Arc::clone(&self.connect)));
                }
                Some(Accepted::Stream(stream)) => {
                    reject(
                        &stream,
                        &format!("{MAX_CLIENTS} clients are served already; close one, or start another proxy"),
                    );
                }
                Some(Accepted::LastDescriptor(stream)) => {
                    reject(&stream, "this host has no descriptor left for it; raise the limit (ulimit -n)");
                }
                None => break,
            }
        }
        Ok(())
    }
}

/// Sends an error to a client that cannot be served.
fn reject(stream: &OwnedFd, reason: &str) {
    // A new socket has room for it, unless its client has gone.
    let _sent = send(stream, &reply::line(Errno::BUSY, reason), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}
