//! The exporter's loop: targets are read when scrapers wait for them, and scrapers are sent what was read.

use std::cmp::Reverse;
use std::fmt;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Resource, getrlimit};

use super::exposition::Form;
use super::http::{self, ScrapeRequest};
use super::page::{Freshness, Page, Pages};
use super::scraper::Scraper;
use super::target::Target;
use crate::client::DEFAULT_DEADLINE;
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::poll::PollSet;

/// Scrapers that are served at a time, where the process may have that many descriptors.
pub const MAX_SCRAPERS: usize = 256;

/// Connections that are accepted at a time, so that a flood of them delays nobody.
const MAX_ACCEPTS: usize = 32;

/// Descriptors that are left for other parts of the process.
const SPARE_DESCRIPTORS: u64 = 8;

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
    max_scrapers: usize,
    pages: Pages,
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
            max_scrapers: MAX_SCRAPERS,
            pages: Pages::default(),
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

    /// Serves until one of these descriptors is readable or ends, and returns its index. There are at most
    /// [`MAX_SCRAPERS`] scrapers, and fewer if the process could not have a descriptor for each guest besides.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait. No guest and no scraper can be the cause.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.max_scrapers = scrapers_beside(self.targets.len());
        let now = Instant::now();
        for target in self.targets.iter_mut().filter(|target| target.is_new()) {
            target.begin(now, Deadline::after(now, self.deadline));
        }
        loop {
            let mut events = self.wait(until)?.into_iter();
            if let Some(first) = events.by_ref().take(until.len()).position(|event| !event.is_empty()) {
                return Ok(first);
            }
            let now = Instant::now();
            let has_connections = events.next().is_some_and(|event| !event.is_empty()) || self.acceptor.must_retry(now);
            self.on_events(&mut events, now);
            if has_connections {
                self.accept(now)?;
            }
        }
    }

    /// Waits for the descriptors of `until`, then the listener, then each scraper's, then each target's.
    fn wait(&self, until: &[BorrowedFd<'_>]) -> io::Result<Vec<PollFlags>> {
        let mut set = PollSet::default();
        for fd in until {
            set.add(fd, PollFlags::IN);
        }
        self.acceptor.register(&mut set, &self.listener);
        for scraper in &self.scrapers {
            scraper.register(&mut set);
        }
        let wanted = self.newest_wait();
        for target in &self.targets {
            target.register(&mut set);
            wanted.and_then(|since| target.next_read(since)).into_iter().for_each(|due| set.until(due));
        }
        Ok(set.wait()?)
    }

    fn on_events(&mut self, events: &mut impl Iterator<Item = PollFlags>, now: Instant) {
        for scraper in &mut self.scrapers {
            scraper.on_event(events.next().unwrap_or(PollFlags::empty()), now);
        }
        for target in &mut self.targets {
            target.on_events(events, now);
        }
        self.read_targets(now);
        Form::ALL.into_iter().for_each(|form| self.answer(form, now));
        self.scrapers.retain(|scraper| !scraper.is_closed());
    }

    /// Returns since when the scraper waits that came last.
    fn newest_wait(&self) -> Option<Instant> {
        self.scrapers.iter().filter_map(Scraper::waiting).map(|(since, _)| since).max()
    }

    /// Begins to read each target that a scraper waits for. No scraper's own timeout ends that, since it is for others as
    /// well.
    fn read_targets(&mut self, now: Instant) {
        let Some(wanted) = self.newest_wait() else { return };
        for target in &mut self.targets {
            if target.next_read(wanted).is_some_and(|due| due <= now) {
                target.begin(now, Deadline::after(now, self.deadline));
            }
        }
    }

    /// Sends a page to the scrapers that every target was read for, and to those whose own time is over.
    fn answer(&mut self, form: Form, now: Instant) {
        // Which scrapers every target was read for; with no target, all.
        let read = self.targets.iter().map(Target::ended).min().unwrap_or(Some(now));
        let is_complete = |scraper: &Scraper| scraper.waiting().is_some_and(|(since, _)| read >= Some(since));
        self.answer_those(form, Freshness::Complete, now, is_complete);
        self.answer_those(form, Freshness::Recent(now), now, |scraper| scraper.is_overdue(now));
    }

    /// Sends a page to these scrapers, if there are any. Before one is built, readers may be evicted.
    fn answer_those(&mut self, form: Form, freshness: Freshness, now: Instant, to: impl Fn(&Scraper) -> bool) {
        let Some(since) = self.first_wait(form, &to) else { return };
        let newest = self.pages.newest(form, freshness, &self.targets, since);
        let page = newest.or_else(|| {
            self.evict_slow_readers();
            self.pages.build(form, &self.targets, since).ok()
        });
        self.send(form, page.as_ref(), now, to);
    }

    /// Returns since when the first of these scrapers waits.
    fn first_wait(&self, form: Form, of: impl Fn(&Scraper) -> bool) -> Option<Instant> {
        let chosen = self.scrapers.iter().filter(|scraper| of(scraper)).filter_map(Scraper::waiting);
        chosen.filter(|(_, scrape)| scrape.form == form).map(|(since, _)| since).min()
    }

    fn send(&mut self, form: Form, page: Option<&Arc<Page>>, now: Instant, to: impl Fn(&Scraper) -> bool) {
        let wants =
            |scraper: &Scraper| matches!(scraper.waiting(), Some((_, ScrapeRequest { form: its, .. })) if its == form);
        for scraper in self.scrapers.iter_mut().filter(|scraper| wants(scraper) && to(scraper)) {
            scraper.send(page, now);
        }
    }

    /// Closes those that still read the oldest page if there are too many pages.
    fn evict_slow_readers(&mut self) {
        if let Some(oldest) = self.pages.excess() {
            self.scrapers.retain(|scraper| !scraper.is_reading(&oldest));
        }
    }

    fn accept(&mut self, now: Instant) -> io::Result<()> {
        for _ in 0..MAX_ACCEPTS {
            let Some(accepted) = self.acceptor.accept(&self.listener)? else { break };
            match accepted {
                Accepted::Stream(stream) if self.has_room(now) => self.scrapers.push(Scraper::new(stream, now)),
                Accepted::Stream(stream) | Accepted::LastDescriptor(stream) => {
                    Scraper::reject(stream, http::BUSY, now);
                }
            }
        }
        Ok(())
    }

    /// Returns whether one more scraper can be served, if need be instead of one that can be evicted.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.scrapers.len() < self.max_scrapers {
            return true;
        }
        // Of the same rank, the one that came first.
        let ranks =
            self.scrapers.iter().enumerate().filter_map(|(at, scraper)| Some((scraper.eviction_rank(now)?, at)));
        let evicted = ranks.max_by_key(|&rank| Reverse(rank));
        evicted.map(|(_, at)| self.scrapers.remove(at)).is_some()
    }
}

/// Returns how many scrapers the process can have a descriptor for if each target has one.
fn scrapers_beside(targets: usize) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return MAX_SCRAPERS };
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let taken = [open, targets].into_iter().filter_map(|count| u64::try_from(count).ok()).sum::<u64>();
    let left = limit.saturating_sub(taken).saturating_sub(SPARE_DESCRIPTORS);
    usize::try_from(left).unwrap_or(MAX_SCRAPERS).clamp(1, MAX_SCRAPERS)
}
