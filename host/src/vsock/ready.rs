//! Waiting for an agent to come up: its Ready, a connection to [`READY_PORT`] that begins with its
//! hello.
//!
//! Any process of the guest can connect to that port. One that sends nothing, or something else, delays nobody: the
//! connections are read side by side, each for at most [`HELLO_TIMEOUT`], and at most [`MAX_CANDIDATES`] are kept.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock_wire::{HELLO_PREFIX, READY_PORT};

use super::handle::Handle;
use super::listener::Listener;

/// How long a connection may take to send the beginning of a hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of connections that have not sent it. A further one replaces the oldest.
pub const MAX_CANDIDATES: usize = 64;

/// How a wait for the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWait {
    /// The agent is up.
    Ready,
    /// The other descriptor was ready first.
    Interrupted,
    /// The deadline passed.
    TimedOut,
}

/// Listens for the agent's Ready.
///
/// Its descriptor is readable when [`poll`](Self::poll) is to be called.
///
/// ```
/// use std::time::{Duration, Instant};
/// use scx_vsock::vsock::{Device, ReadyListener, ReadyWait};
///
/// let device = Device::new(3)?;
/// let mut ready = ReadyListener::listen(&device.handle())?;
/// // ... the guest boots, and the wait ends early where it ends:
/// let (guest, _running) = std::os::unix::net::UnixStream::pair()?;
/// let outcome = ready.wait(Instant::now() + Duration::from_millis(1), &guest)?;
/// assert_eq!(outcome, ReadyWait::TimedOut, "there is no guest");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ReadyListener {
    listener: Listener,
    epoll: OwnedFd,
    candidates: VecDeque<Candidate>,
}

/// A connection whose hello is not complete.
#[derive(Debug)]
struct Candidate {
    stream: UnixStream,
    /// Bytes of the hello's beginning that were read.
    matched: usize,
    deadline: Instant,
    watch: Watch,
}

/// Whether the arrival of a connection's bytes is an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Watched,
    /// The kernel had no memory for it, so that each poll reads it and tries again.
    Unwatched,
}

/// The beginning of a connection.
enum Hello {
    Complete,
    Incomplete,
    Invalid,
}

impl ReadyListener {
    /// Listens on [`READY_PORT`] of a guest's device.
    ///
    /// # Errors
    ///
    /// As for [`Handle::listen`]; the kernel's, if it has no epoll instance.
    pub fn listen(guest: &Handle) -> io::Result<Self> {
        Self::new(guest.listen(READY_PORT)?)
    }

    fn new(listener: Listener) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(0), EventFlags::IN)?;
        Ok(Self { listener, epoll, candidates: VecDeque::new() })
    }

    /// Reads what has arrived, without waiting. Returns whether the agent is up; another call may return that again,
    /// since an agent may be restarted and any process may send a hello.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the device is gone; the kernel's, if it has no descriptor for a connection, or no memory to watch
    /// one, which is kept and tried again by the next call.
    pub fn poll(&mut self) -> io::Result<bool> {
        let accepted = self.accept_all().and(self.watch_all());
        let now = Instant::now();
        let mut is_ready = false;
        self.candidates.retain_mut(|candidate| match candidate.read() {
            Hello::Complete => {
                is_ready = true;
                false
            }
            Hello::Incomplete => now < candidate.deadline,
            Hello::Invalid => false,
        });
        let excess = self.candidates.len().saturating_sub(MAX_CANDIDATES);
        self.candidates.drain(..excess);
        if is_ready { Ok(true) } else { accepted.map(|()| false) }
    }

    /// Accepts at most [`MAX_CANDIDATES`] connections.
    fn accept_all(&mut self) -> io::Result<()> {
        for _ in 0..MAX_CANDIDATES {
            match self.listener.accept() {
                Ok(stream) => {
                    let deadline = Instant::now() + HELLO_TIMEOUT;
                    self.candidates.push_back(Candidate { stream, matched: 0, deadline, watch: Watch::Unwatched });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Watches the connections that are not watched yet.
    fn watch_all(&mut self) -> io::Result<()> {
        for candidate in self.candidates.iter_mut().filter(|candidate| candidate.watch == Watch::Unwatched) {
            epoll::add(&self.epoll, &candidate.stream, EventData::new_u64(1), EventFlags::IN)?;
            candidate.watch = Watch::Watched;
        }
        Ok(())
    }

    /// Waits for the agent, until `deadline` or until `interrupt` is readable or hung up.
    ///
    /// # Errors
    ///
    /// As for [`poll`](Self::poll).
    pub fn wait(&mut self, deadline: Instant, interrupt: impl AsFd) -> io::Result<ReadyWait> {
        loop {
            if self.poll()? {
                return Ok(ReadyWait::Ready);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(ReadyWait::TimedOut);
            }
            let mut fds = [PollFd::new(&self.epoll, PollFlags::IN), PollFd::new(&interrupt, PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [_, interrupted] = &fds;
            if !interrupted.revents().is_empty() {
                return Ok(ReadyWait::Interrupted);
            }
        }
    }
}

impl AsFd for ReadyListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Candidate {
    fn read(&mut self) -> Hello {
        let mut bytes = [0; HELLO_PREFIX.len()];
        loop {
            let expected = HELLO_PREFIX.get(self.matched..).unwrap_or_default();
            if expected.is_empty() {
                return Hello::Complete;
            }
            let room = bytes.get_mut(..expected.len()).unwrap_or_default();
            match self.stream.read(room) {
                Ok(count @ 1..) if room.get(..count) == expected.get(..count) => self.matched += count,
                Ok(_) => return Hello::Invalid,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Hello::Incomplete,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Hello::Invalid,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    use super::super::listener::{Backlog, Listeners};

    const LONG: Duration = Duration::from_secs(20);

    struct Bench {
        backlog: Arc<Backlog>,
        ready: ReadyListener,
        _device: Arc<Listeners>,
    }

    impl Bench {
        fn new() -> Self {
            let device = Arc::<Listeners>::default();
            let ready = ReadyListener::new(device.listen(READY_PORT).unwrap()).unwrap();
            Self { backlog: device.with_room(READY_PORT).unwrap(), ready, _device: device }
        }

        fn process(&self, bytes: &[u8]) -> UnixStream {
            let (mut guest, host) = UnixStream::pair().unwrap();
            host.set_nonblocking(true).unwrap();
            self.backlog.push(host);
            guest.write_all(bytes).unwrap();
            guest
        }
    }

    #[test]
    fn a_hello_may_come_in_pieces() {
        let mut bench = Bench::new();
        let mut agent = bench.process(b"");
        for byte in &HELLO_PREFIX[..HELLO_PREFIX.len() - 1] {
            agent.write_all(&[*byte]).unwrap();
            assert!(!bench.ready.poll().unwrap());
        }
        agent.write_all(&HELLO_PREFIX[HELLO_PREFIX.len() - 1..]).unwrap();
        assert!(bench.ready.poll().unwrap());
        assert!(!bench.ready.poll().unwrap());
    }

    #[test]
    fn an_agent_that_has_closed_is_ready() {
        let mut bench = Bench::new();
        drop(bench.process(&[HELLO_PREFIX, b"more"].concat()));
        assert!(bench.ready.poll().unwrap());
    }

    #[test]
    fn other_beginnings_are_dropped() {
        let mut bench = Bench::new();
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"{\"hallo\"", b"{"] {
            drop(bench.process(bytes));
            assert!(!bench.ready.poll().unwrap());
            assert!(bench.ready.candidates.is_empty());
        }
    }

    #[test]
    fn silent_processes_do_not_delay_the_agent() {
        let mut bench = Bench::new();
        let silent: Vec<_> = (0..MAX_CANDIDATES + 1).map(|_| bench.process(b"")).collect();
        assert!(!bench.ready.poll().unwrap());
        assert!(!bench.ready.poll().unwrap());
        assert_eq!(bench.ready.candidates.len(), MAX_CANDIDATES);
        let _agent = bench.process(HELLO_PREFIX);
        let (guest, _running) = UnixStream::pair().unwrap();
        let began = Instant::now();
        assert_eq!(bench.ready.wait(began + LONG, &guest).unwrap(), ReadyWait::Ready);
        assert!(began.elapsed() < HELLO_TIMEOUT);
        drop(silent);
    }

    #[test]
    fn a_silent_process_has_its_time_and_no_more() {
        let mut bench = Bench::new();
        let _silent = bench.process(b"{");
        assert!(!bench.ready.poll().unwrap());
        bench.ready.candidates[0].deadline = Instant::now();
        assert!(!bench.ready.poll().unwrap());
        assert!(bench.ready.candidates.is_empty());
    }

    #[test]
    fn a_connection_that_cannot_be_watched_is_kept() {
        let mut bench = Bench::new();
        let (no_epoll, _) = UnixStream::pair().unwrap();
        let epoll = std::mem::replace(&mut bench.ready.epoll, no_epoll.into());
        let mut agent = bench.process(b"");
        assert!(bench.ready.poll().is_err() && bench.ready.poll().is_err());
        agent.write_all(HELLO_PREFIX).unwrap();
        assert!(bench.ready.poll().unwrap(), "what has arrived is read");
        let mut agent = bench.process(b"");
        assert!(bench.ready.poll().is_err());
        bench.ready.epoll = epoll;
        assert!(!bench.ready.poll().unwrap());
        agent.write_all(HELLO_PREFIX).unwrap();
        let (guest, _running) = UnixStream::pair().unwrap();
        assert_eq!(bench.ready.wait(Instant::now() + LONG, &guest).unwrap(), ReadyWait::Ready);
    }

    #[test]
    fn a_wait_ends_with_the_guest_or_the_deadline() {
        let mut bench = Bench::new();
        let (guest, running) = UnixStream::pair().unwrap();
        assert_eq!(bench.ready.wait(Instant::now(), &guest).unwrap(), ReadyWait::TimedOut);
        drop(running);
        assert_eq!(bench.ready.wait(Instant::now() + LONG, &guest).unwrap(), ReadyWait::Interrupted);
    }
}
