//! The exporter's loop: rounds of reading all guests, and the scrapers that wait for them.

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::exposition::Exposition;
use super::http;
use super::scraper::Scraper;
use super::target::Target;
use crate::client::DEFAULT_DEADLINE;
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::poll::PollSet;

/// The least time from one round's beginning to the next.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Scrapers that are served at a time.
pub const MAX_SCRAPERS: usize = 32;

/// Serves many guests' stats as metrics.
///
/// ```no_run
/// use std::net::TcpListener;
/// use std::os::fd::AsFd;
/// use std::os::unix::net::UnixStream;
/// use scx_vsock::Endpoint;
/// use scx_vsock::export::Exporter;
///
/// let (stop, stopped) = UnixStream::pair()?;
/// let mut exporter = Exporter::new(TcpListener::bind("127.0.0.1:9729")?)?;
/// exporter.add("web", "vsock://3".parse::<Endpoint>()?);
/// exporter.add("database", "vsock://4".parse::<Endpoint>()?);
/// exporter.run(&[stopped.as_fd()])?; // until something is written to `stop`, or it is closed
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Exporter {
    listener: TcpListener,
    acceptor: Acceptor,
    deadline: Duration,
    targets: Vec<Target>,
    scrapers: Vec<Scraper>,
    round: Round,
}

/// Reading all targets once, and when that began.
#[derive(Clone, Copy, Debug)]
enum Round {
    NeverBegun,
    Running(Instant),
    Ended(Instant),
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("listener", &self.listener)
            .field("targets", &self.targets.len())
            .field("scrapers", &self.scrapers.len())
            .finish_non_exhaustive()
    }
}

impl Exporter {
    /// Returns an exporter without guests.
    ///
    /// # Errors
    ///
    /// What the kernel says if the listener cannot be made non-blocking or there is no descriptor left.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            acceptor: Acceptor::new()?,
            deadline: DEFAULT_DEADLINE,
            targets: Vec::new(),
            scrapers: Vec::new(),
            round: Round::NeverBegun,
        })
    }

    /// Sets how long guests may take for a scrape, instead of [`DEFAULT_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds a guest whose series have this name in their label `guest`. No two should have the same.
    pub fn add(&mut self, name: impl Into<String>, connect: impl Connect + 'static) {
        self.targets.push(Target::new(name.into(), connect));
    }

    /// Serves until one of these descriptors is readable or ends, and returns its index.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait, or other parts of this process have taken the last descriptor. No guest
    /// and no scraper can be the cause.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        if let Round::NeverBegun = self.round {
            self.begin_round(Instant::now(), self.deadline);
        }
        loop {
            let mut events = self.wait(until)?.into_iter();
            if let Some(first) = events.by_ref().take(until.len()).position(|event| !event.is_empty()) {
                return Ok(first);
            }
            let has_connections = events.next().is_some_and(|event| !event.is_empty());
            self.on_events(&mut events);
            if has_connections {
                self.accept()?;
            }
        }
    }

    /// Waits for the descriptors of `until`, then the listener, then each scraper's, then each target's.
    fn wait(&self, until: &[BorrowedFd<'_>]) -> io::Result<Vec<PollFlags>> {
        let mut set = PollSet::default();
        for fd in until {
            set.add(fd, PollFlags::IN);
        }
        set.add(&self.listener, PollFlags::IN);
        for scraper in &self.scrapers {
            scraper.register(&mut set);
        }
        for target in &self.targets {
            target.register(&mut set);
        }
        self.next_round().into_iter().for_each(|due| set.until(due));
        Ok(set.wait()?)
    }

    fn on_events(&mut self, events: &mut impl Iterator<Item = PollFlags>) {
        let now = Instant::now();
        for scraper in &mut self.scrapers {
            scraper.on_event(events.next().unwrap_or(PollFlags::empty()), now);
        }
        for target in &mut self.targets {
            target.on_events(events, now);
        }
        self.end_round();
        if self.next_round().is_some_and(|due| due <= now) {
            let deadline = self.scrapers.iter().filter_map(Scraper::deadline).min();
            let least = |deadline: Instant| deadline.saturating_duration_since(now).max(http::MIN_TIMEOUT);
            self.begin_round(now, deadline.map_or(self.deadline, least).min(self.deadline));
        }
        if self.scrapers.iter().any(|scraper| scraper.is_overdue(now)) {
            self.send(now, |scraper| scraper.is_overdue(now));
        }
        self.scrapers.retain(|scraper| !scraper.is_closed());
    }

    /// Returns when the next round may begin, if a scraper waits for it.
    fn next_round(&self) -> Option<Instant> {
        match self.round {
            Round::Ended(began) if self.scrapers.iter().any(Scraper::is_waiting) => {
                Some(began.checked_add(MIN_INTERVAL).unwrap_or(began))
            }
            Round::NeverBegun | Round::Running(_) | Round::Ended(_) => None,
        }
    }

    fn begin_round(&mut self, now: Instant, timeout: Duration) {
        self.round = Round::Running(now);
        for target in &mut self.targets {
            target.begin(now, Deadline::after(now, timeout));
        }
        // Each may have failed already.
        self.end_round();
    }

    /// Sends the scrapers that wait the metrics, once every target has an outcome.
    fn end_round(&mut self) {
        let Round::Running(began) = self.round else { return };
        if self.targets.iter().any(Target::is_pending) {
            return;
        }
        self.round = Round::Ended(began);
        if self.scrapers.iter().any(Scraper::is_waiting) {
            self.send(Instant::now(), Scraper::is_waiting);
        }
    }

    /// Sends these scrapers the outcomes so far.
    fn send(&mut self, now: Instant, to: impl Fn(&Scraper) -> bool) {
        // Writing to a text cannot fail because of a guest.
        let exposition = Exposition::new(&self.targets, now).ok();
        for scraper in self.scrapers.iter_mut().filter(|scraper| to(scraper)) {
            scraper.send(exposition.as_ref(), now);
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        // Bounded, so that a flood of connections delays nobody.
        for _ in 0..MAX_SCRAPERS {
            let Some(accepted) = self.acceptor.accept(&self.listener)? else { break };
            let now = Instant::now();
            match accepted {
                Accepted::Stream(stream) if self.has_room() => self.scrapers.push(Scraper::new(stream, now)),
                Accepted::Stream(stream) | Accepted::LastDescriptor(stream) => {
                    Scraper::reject(stream, http::BUSY, now);
                }
            }
        }
        Ok(())
    }

    /// Returns whether one more scraper can be served, if need be instead of the oldest evictable one.
    fn has_room(&mut self) -> bool {
        if self.scrapers.len() < MAX_SCRAPERS {
            return true;
        }
        let evicted = self.scrapers.iter().position(Scraper::is_evictable);
        evicted.map(|at| self.scrapers.remove(at)).is_some()
    }
}
