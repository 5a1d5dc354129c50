//! A host port that guests connect to.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::io::lock::lock;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// The backlog of a listener: connections that the host has not accepted. A further one is refused.
pub const MAX_BACKLOG: usize = 64;

/// The number of ports that are listened on at a time.
pub const MAX_LISTENERS: usize = 1024;

/// The port that means any (`VMADDR_PORT_ANY`), which nobody listens on.
pub(super) const ANY_PORT: u32 = u32::MAX;

/// Each read takes one connection off the count, and never waits.
const COUNTER: EventfdFlags = EventfdFlags::SEMAPHORE.union(EventfdFlags::NONBLOCK).union(EventfdFlags::CLOEXEC);

/// The ports that are listened on.
#[derive(Debug, Default)]
pub struct Listeners {
    ports: Mutex<HashMap<u32, Arc<Backlog>>>,
}

/// The connections to a port that are not accepted yet.
#[derive(Debug)]
pub struct Backlog {
    pending: Mutex<Pending>,
    /// A semaphore that counts them, so that it can be polled.
    event: OwnedFd,
}

#[derive(Debug, Default)]
struct Pending {
    streams: VecDeque<UnixStream>,
    closed: bool,
}

impl Listeners {
    /// Listens on a port.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for [`ANY_PORT`]; `AddrInUse` if the port is listened on already, or [`MAX_LISTENERS`] are; the
    /// kernel's, if it has no event descriptor.
    pub fn listen(self: &Arc<Self>, port: u32) -> io::Result<Listener> {
        if port == ANY_PORT {
            let message = format!("{ANY_PORT} means any port and cannot be listened on");
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let mut ports = lock(&self.ports);
        if ports.contains_key(&port) {
            return Err(io::Error::new(ErrorKind::AddrInUse, format!("host port {port} is listened on already")));
        }
        if ports.len() >= MAX_LISTENERS {
            return Err(io::Error::new(ErrorKind::AddrInUse, format!("{MAX_LISTENERS} ports are listened on already")));
        }
        let event = eventfd(0, COUNTER)?;
        let backlog = Arc::new(Backlog { pending: Mutex::default(), event });
        ports.insert(port, Arc::clone(&backlog));
        Ok(Listener { port, backlog, listeners: Arc::clone(self) })
    }

    /// Returns the backlog of a port that is listened on, if it has room for one more.
    #[must_use]
    pub fn with_room(&self, port: u32) -> Option<Arc<Backlog>> {
        let backlog = Arc::clone(lock(&self.ports).get(&port)?);
        let has_room = lock(&backlog.pending).streams.len() < MAX_BACKLOG;
        has_room.then_some(backlog)
    }

    /// Ends every listener, with an error for who waits: the device is gone.
    pub fn close(&self) {
        for (_, backlog) in lock(&self.ports).drain() {
            lock(&backlog.pending).closed = true;
            backlog.count_one();
        }
    }
}

impl Backlog {
    /// Adds a connection.
    pub fn push(&self, stream: UnixStream) {
        lock(&self.pending).streams.push_back(stream);
        self.count_one();
    }

    fn count_one(&self) {
        // Cannot fail: the count stays far below its maximum.
        let _counted = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

/// A host port that guests connect to. Dropping it closes the port.
///
/// Its descriptor is readable while a connection waits to be accepted.
///
/// ```no_run
/// use std::time::Duration;
/// use scx_vsock::vsock::{Device, Listener};
///
/// let device = Device::new(3)?;
/// let logs: Listener = device.handle().listen(5000)?;
/// // ... a program of the guest connects to port 5000 of the host:
/// let stream = logs.accept_within(Duration::from_secs(60))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Listener {
    port: u32,
    backlog: Arc<Backlog>,
    listeners: Arc<Listeners>,
}

impl Listener {
    /// Accepts the next connection, as a non-blocking stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if none waits; `NotConnected` if the device is gone.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let mut pending = lock(&self.backlog.pending);
        if let Some(stream) = pending.streams.pop_front() {
            let _counted = rustix::io::read(&self.backlog.event, &mut [0; 8]);
            return Ok(stream);
        }
        Err(if pending.closed {
            io::Error::new(ErrorKind::NotConnected, "the vsock device is gone")
        } else {
            ErrorKind::WouldBlock.into()
        })
    }

    /// Waits at most `within` for the next connection and accepts it, as a non-blocking stream.
    ///
    /// # Errors
    ///
    /// `TimedOut` if none comes; `NotConnected` if the device is gone.
    pub fn accept_within(&self, within: Duration) -> io::Result<UnixStream> {
        // A moment too far away to be represented never comes.
        let deadline = Instant::now().checked_add(within);
        loop {
            match self.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(ErrorKind::TimedOut.into());
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.backlog.event, PollFlags::IN)], timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backlog.event.as_fd()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Listener").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut ports = lock(&self.listeners.ports);
        if ports.get(&self.port).is_some_and(|backlog| Arc::ptr_eq(backlog, &self.backlog)) {
            ports.remove(&self.port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vsock::device::allow_all_descriptors;
    use std::thread;

    const PORT: u32 = 729;
    const LONG: Duration = Duration::from_secs(20);

    fn listen() -> (Arc<Listeners>, Listener) {
        let listeners = Arc::<Listeners>::default();
        let listener = listeners.listen(PORT).unwrap();
        (listeners, listener)
    }

    fn push(listeners: &Listeners) {
        listeners.with_room(PORT).unwrap().push(UnixStream::pair().unwrap().0);
    }

    fn is_readable(listener: &Listener) -> bool {
        poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn a_listener_is_readable_while_a_connection_waits() {
        let (listeners, listener) = listen();
        assert!(!is_readable(&listener));
        push(&listeners);
        push(&listeners);
        for _ in 0..2 {
            assert!(is_readable(&listener));
            listener.accept().unwrap();
        }
        assert!(!is_readable(&listener));
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }

    #[test]
    fn a_listener_is_shown_by_its_port() {
        assert_eq!(format!("{:?}", listen().1), "Listener { port: 729, .. }");
    }

    #[test]
    fn a_connection_that_comes_in_time_is_accepted() {
        let (listeners, listener) = listen();
        thread::scope(|scope| {
            let waits = scope.spawn(|| listener.accept_within(LONG));
            push(&listeners);
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn accept_within_times_out() {
        let (_listeners, listener) = listen();
        let within = Duration::from_millis(50);
        let began = Instant::now();
        assert_eq!(listener.accept_within(within).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!((within..LONG).contains(&began.elapsed()));
    }

    #[test]
    fn closing_leaves_the_backlog_and_wakes_waiters() {
        let (listeners, listener) = listen();
        push(&listeners);
        thread::scope(|scope| {
            let waits = scope.spawn(|| (listener.accept_within(LONG), listener.accept_within(LONG)));
            listeners.close();
            let (first, second) = waits.join().unwrap();
            first.unwrap();
            assert_eq!(second.unwrap_err().kind(), ErrorKind::NotConnected);
        });
        assert!(listeners.with_room(PORT).is_none());
    }

    #[test]
    fn a_port_has_one_listener_at_a_time() {
        let (listeners, listener) = listen();
        assert_eq!(listeners.listen(PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
        listeners.close();
        let next = listeners.listen(PORT).unwrap();
        drop(listener);
        assert_eq!(listeners.listen(PORT).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(next);
        listeners.listen(PORT).unwrap();
    }

    #[test]
    fn the_any_port_cannot_be_listened_on() {
        let (listeners, _listener) = listen();
        assert_eq!(listeners.listen(u32::MAX).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn the_number_of_listeners_is_bounded() {
        allow_all_descriptors();
        let listeners = Arc::<Listeners>::default();
        let mut all: Vec<_> = (0u32..).take(MAX_LISTENERS).map(|port| listeners.listen(port).unwrap()).collect();
        assert_eq!(listeners.listen(u32::MAX - 1).unwrap_err().kind(), ErrorKind::AddrInUse);
        all.pop();
        listeners.listen(u32::MAX - 1).unwrap();
    }

    #[test]
    fn a_backlog_is_bounded() {
        let (listeners, listener) = listen();
        (0..MAX_BACKLOG).for_each(|_| push(&listeners));
        assert!(listeners.with_room(PORT).is_none());
        listener.accept().unwrap();
        push(&listeners);
    }

    #[test]
    fn an_endless_accept_ends_with_the_device() {
        let (listeners, listener) = listen();
        listeners.close();
        assert_eq!(listener.accept_within(Duration::MAX).unwrap_err().kind(), ErrorKind::NotConnected);
    }
}
