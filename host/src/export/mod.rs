//! Many guests' stats for Prometheus: OpenMetrics over HTTP, all of it on one thread.
//!
//! A scrape asks every guest at the same time, each on a session of its own that lasts from scrape to scrape, and is
//! answered when all have answered or its time is over. A guest that has no stats by then has no series of its
//! scheduler's in that scrape; its `scx_vsock_up` is 0 and `scx_vsock_missing_stats_total` counts the reason. It
//! delays nobody else's numbers beyond that time. Scrapes that come while guests are being asked share the outcome, or
//! have what there is when their own time is over.
//!
//! Metrics are made of what the scheduler says that its stats mean, once a session: the name from the struct's
//! `_om_prefix` and the field, or from all names on the way to a nested field; the help from the field's description; a
//! label for the key of each dict (the struct's `_om_label`, else `key`) and the index of each array. Fields with
//! `_om_skip` and texts are left out. All are gauges, since stats say nothing about that; a name that ends as those of
//! other types do, such as `_total`, has `_value` behind it.
//!
//! | | bound |
//! | --- | --- |
//! | series of a guest | [`MAX_SERIES`], of at most [`MAX_METRICS`] metrics, and 2 MiB of names and labels; `scx_vsock_series_cut` is 1 where some are left out |
//! | a key that becomes a label's value | 128 bytes; a longer one counts in `scx_vsock_unusable_values`, as does what is no number |
//! | a scrape | the exporter's deadline, or 9/10 of what the scraper says that it waits, but 100 ms at least |
//! | rounds of asking guests | one in 100 ms; a scrape waits for the next |
//! | scrapers at a time | [`MAX_SCRAPERS`]; the oldest that has not asked yet gives way, else one more is told 503 |
//! | a request | 8 KiB, 64 headers and 5 s |
//! | a scraper that does not take its response | 5 s, then it is closed |
//!
//! Schedulers report many numbers as deltas since the session's last read, which is the last round, whoever's scrape it
//! was for. `scx_vsock_span_seconds` says how long ago that was; it is missing where a session is new. So that the first
//! scrape's deltas span some time, guests are asked once before.

mod exposition;
mod guest;
mod http;
mod metrics;
mod names;
mod scraper;
mod values;

use std::fmt;
use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::client::{DEFAULT_DEADLINE, Deadline};
use crate::endpoint::Connect;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::poll::PollSet;
use exposition::Page;
use guest::Guest;
use scraper::Scraper;

pub use metrics::MAX_METRICS;
pub use values::MAX_SERIES;

/// The least time from one round's beginning to the next.
const BETWEEN: Duration = Duration::from_millis(100);

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
/// exporter.run(&[stopped.as_fd()])?; // until something is written to `stop`, or it is dropped
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Exporter {
    listener: TcpListener,
    acceptor: Acceptor,
    deadline: Duration,
    guests: Vec<Guest>,
    scrapers: Vec<Scraper>,
    round: Round,
}

/// Whether guests are being asked, and when the round began.
#[derive(Clone, Copy, Debug)]
enum Round {
    /// They never were.
    Unasked,
    Runs(Instant),
    Rests(Instant),
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter")
            .field("listener", &self.listener)
            .field("guests", &self.guests.len())
            .field("scrapers", &self.scrapers.len())
            .finish_non_exhaustive()
    }
}

impl Exporter {
    /// An exporter that has no guests yet.
    ///
    /// ```
    /// use scx_vsock::export::Exporter;
    ///
    /// let exporter = Exporter::new(std::net::TcpListener::bind("127.0.0.1:0")?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
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
            guests: Vec::new(),
            scrapers: Vec::new(),
            round: Round::Unasked,
        })
    }

    /// How long guests may take for a scrape; [`DEFAULT_DEADLINE`] where this is left out.
    ///
    /// ```
    /// # use scx_vsock::export::Exporter;
    /// # let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let exporter = Exporter::new(listener)?.deadline(std::time::Duration::from_secs(2));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Adds a guest whose series have this name in their label `guest`. No two should have the same.
    ///
    /// ```
    /// # use std::io::{Read, Write};
    /// # use std::net::{TcpListener, TcpStream};
    /// # use scx_vsock::{Endpoint, export::Exporter};
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let mut scraper = TcpStream::connect(listener.local_addr()?)?;
    /// let mut exporter = Exporter::new(listener)?;
    /// exporter.add("web", "unix:/no/agent".parse::<Endpoint>()?);
    /// # std::thread::spawn(move || exporter.run(&[]));
    /// scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
    /// # let mut page = String::new();
    /// scraper.read_to_string(&mut page)?;
    /// assert!(page.contains("\nscx_vsock_up{guest=\"web\"} 0\n"), "{page}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add(&mut self, name: impl Into<String>, connect: impl Connect + 'static) {
        self.guests.push(Guest::new(name.into(), connect));
    }

    /// Serves until one of these descriptors is readable or ends, and gives which.
    ///
    /// ```
    /// use std::os::fd::AsFd;
    /// # use scx_vsock::export::Exporter;
    ///
    /// # let mut exporter = Exporter::new(std::net::TcpListener::bind("127.0.0.1:0")?)?;
    /// let (stop, stopped) = std::os::unix::net::UnixStream::pair()?;
    /// let serving = std::thread::spawn(move || exporter.run(&[stopped.as_fd()]));
    /// drop(stop);
    /// assert_eq!(serving.join().unwrap()?, 0, "the first of the descriptors");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait, or other parts of this process have taken the last descriptor. No guest
    /// and no scraper can be the cause.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        if let Round::Unasked = self.round {
            self.begin_round(Instant::now(), self.deadline);
        }
        loop {
            let mut events = self.wait(until)?.into_iter();
            if let Some(first) = events.by_ref().take(until.len()).position(|event| !event.is_empty()) {
                return Ok(first);
            }
            let waiting = events.next().is_some_and(|event| !event.is_empty());
            self.turn(&mut events);
            if waiting {
                self.accept()?;
            }
        }
    }

    /// Waits for the descriptors of `until`, then the listener, then each scraper's, then each guest's.
    fn wait(&self, until: &[BorrowedFd<'_>]) -> io::Result<Vec<PollFlags>> {
        let mut set = PollSet::default();
        for fd in until {
            set.add(fd, PollFlags::IN);
        }
        set.add(&self.listener, PollFlags::IN);
        for scraper in &self.scrapers {
            scraper.wait_in(&mut set);
        }
        for guest in &self.guests {
            guest.wait_in(&mut set);
        }
        self.next_round().into_iter().for_each(|due| set.until(due));
        Ok(set.wait()?)
    }

    fn turn(&mut self, events: &mut impl Iterator<Item = PollFlags>) {
        let now = Instant::now();
        for scraper in &mut self.scrapers {
            scraper.turn(events.next().unwrap_or(PollFlags::empty()), now);
        }
        for guest in &mut self.guests {
            guest.turn(events, now);
        }
        self.end_round();
        if self.next_round().is_some_and(|due| due <= now) {
            let until = self.scrapers.iter().filter_map(Scraper::due).min();
            let within = until.map_or(self.deadline, |until| until.saturating_duration_since(now).max(http::LEAST));
            self.begin_round(now, within.min(self.deadline));
        }
        if self.scrapers.iter().any(|scraper| scraper.is_overdue(now)) {
            self.give_page(now, |scraper| scraper.is_overdue(now));
        }
        self.scrapers.retain(|scraper| !scraper.is_over());
    }

    /// When the next round may begin, if somebody waits for it.
    fn next_round(&self) -> Option<Instant> {
        match self.round {
            Round::Rests(began) if self.scrapers.iter().any(Scraper::waits) => Some(began + BETWEEN),
            Round::Unasked | Round::Runs(_) | Round::Rests(_) => None,
        }
    }

    fn begin_round(&mut self, now: Instant, within: Duration) {
        self.round = Round::Runs(now);
        for guest in &mut self.guests {
            guest.begin(now, Deadline::after(now, within));
        }
        // Each may have failed already.
        self.end_round();
    }

    /// Gives those who wait the page, once every guest has an outcome.
    fn end_round(&mut self) {
        let Round::Runs(began) = self.round else { return };
        if self.guests.iter().any(Guest::is_asked) {
            return;
        }
        self.round = Round::Rests(began);
        if self.scrapers.iter().any(Scraper::waits) {
            self.give_page(Instant::now(), Scraper::waits);
        }
    }

    /// Gives these scrapers what there is by now.
    fn give_page(&mut self, now: Instant, to: impl Fn(&Scraper) -> bool) {
        // Writing to a text fails for no reason of a guest's.
        let page = Page::of(&self.guests, now).ok();
        for scraper in self.scrapers.iter_mut().filter(|scraper| to(scraper)) {
            scraper.give(page.as_ref(), now);
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        // Not without end: those who are served have their turn.
        for _ in 0..MAX_SCRAPERS {
            let Some(accepted) = self.acceptor.accept(&self.listener)? else { break };
            let now = Instant::now();
            match accepted {
                Accepted::Stream(stream) if self.has_room() => self.scrapers.push(Scraper::new(stream, now)),
                Accepted::Stream(stream) | Accepted::LastDescriptor(stream) => {
                    // It is told in one go or not at all.
                    Scraper::told(stream, http::BUSY, now).turn(PollFlags::OUT, now);
                }
            }
        }
        Ok(())
    }

    /// Whether one more can be served, if need be in place of one that has not asked yet.
    fn has_room(&mut self) -> bool {
        if self.scrapers.len() < MAX_SCRAPERS {
            return true;
        }
        let goes = self.scrapers.iter().position(Scraper::may_go);
        goes.map(|at| self.scrapers.remove(at)).is_some()
    }
}
