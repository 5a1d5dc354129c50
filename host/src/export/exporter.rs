//! The exporter's loop: targets are read at an interval, and scrapers are sent what was read.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Resource, getrlimit};

use super::access::Access;
use super::clock::{MIN_INTERVAL, after};
use super::exposition::Form;
use super::http;
use super::page::{Page, Pages, Version};
use super::scraper::Scraper;
use super::target::Target;
#[cfg(feature = "tls")]
use super::web_config::WebConfig;
use crate::client::DEFAULT_DEADLINE;
use crate::endpoint::Connect;
use crate::io::Deadline;
use crate::io::accept::{Accepted, Acceptor};
use crate::io::poll::PollSet;

/// Scrapers that are served at a time, where the process may have that many descriptors.
pub const MAX_SCRAPERS: usize = 256;

/// Scrapers that are served at a time however many descriptors guests take.
const RESERVED_SCRAPERS: usize = 3;

/// Connections that are accepted at a time, so that a flood of them delays nobody.
const MAX_ACCEPTS: usize = 32;

/// The time from one read of a guest to the next, unless it is set.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

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
    access: Access,
    deadline: Duration,
    interval: Duration,
    asks_kernel: bool,
    targets: Vec<Target>,
    /// The number of times that targets were added or removed.
    changes: u64,
    /// The process' descriptors beside those of guests and scrapers, counted when it runs first.
    others: Option<usize>,
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
            acceptor: Acceptor::with_reserve(RESERVED_SCRAPERS)?,
            access: Access::default(),
            deadline: DEFAULT_DEADLINE,
            interval: DEFAULT_INTERVAL,
            asks_kernel: false,
            targets: Vec::new(),
            changes: 0,
            others: None,
            scrapers: Vec::new(),
            max_scrapers: MAX_SCRAPERS,
            pages: Pages::default(),
        })
    }

    /// Sets how long a guest may take for a read, instead of [`DEFAULT_DEADLINE`].
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Reads what each guest's kernel says about sched_ext as well. Guests that are added before are not asked.
    ///
    /// An agent that does not know the request is asked once until it fails, since it costs the session's delta baseline.
    #[must_use]
    pub fn kernel(mut self) -> Self {
        self.asks_kernel = true;
        self
    }

    /// Sets the time from one read of a guest to the next, instead of [`DEFAULT_INTERVAL`]: [`MIN_INTERVAL`] at least.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(MIN_INTERVAL);
        self
    }

    /// Serves new scrapers as a web configuration says, from now on.
    ///
    /// # Errors
    ///
    /// What the kernel says if there is no thread or descriptor to check passwords with.
    #[cfg(feature = "tls")]
    pub fn set_web_config(&mut self, config: WebConfig) -> io::Result<()> {
        self.access = Access::new(config)?;
        Ok(())
    }

    /// Adds a guest whose series have this name in their label `guest`. No two should have the same. Scrapers wait for the
    /// first read of guests that are added before [`run`](Self::run), and for no others.
    pub fn add(&mut self, name: impl Into<String>, connect: impl Connect + 'static) {
        self.changes = self.changes.wrapping_add(1);
        let handshake = connect.handshake();
        let mut target = Target::new(name.into(), connect, Instant::now(), self.others.is_none());
        if self.asks_kernel {
            target.ask_kernel(handshake);
        }
        self.targets.push(target);
    }

    /// Removes each guest with this name: its session ends, and the next page has none of its series.
    pub fn remove(&mut self, name: &str) {
        self.retain(|other| other != name);
    }

    /// Removes each guest whose name is not to be kept, as [`remove`](Self::remove) does one, in the time that one takes.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&str) -> bool) {
        self.changes = self.changes.wrapping_add(1);
        self.targets.retain(|target| is_kept(&target.name));
    }

    /// Serves until one of these descriptors is readable or ends, and returns its index. It can be called again, after
    /// guests were added or removed, and goes on where it was: before it returns, it serves everybody once. There are at
    /// most [`MAX_SCRAPERS`] scrapers, and fewer if the process could not have a descriptor for each guest besides.
    ///
    /// # Errors
    ///
    /// What the kernel says if it cannot wait. No guest and no scraper can be the cause.
    pub fn run(&mut self, until: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let others = *self.others.get_or_insert_with(|| fs::read_dir("/proc/self/fd").map_or(0, Iterator::count));
        self.max_scrapers = scrapers_beside(self.targets.len(), others);
        loop {
            self.read_targets(Instant::now());
            let events = self.wait(until)?;
            let (ends, events) = events.split_at_checked(until.len()).unwrap_or_default();
            let now = Instant::now();
            let mut events = events.iter().copied();
            let has_connections = events.next().is_some_and(|event| !event.is_empty()) || self.acceptor.must_retry(now);
            self.on_events(&mut events, now);
            if has_connections {
                self.accept(now)?;
            }
            if let Some(first) = ends.iter().position(|event| !event.is_empty()) {
                return Ok(first);
            }
        }
    }

    /// Waits for the descriptors of `until`, then the listener, then that of passwords, then each scraper's, then each
    /// target's.
    fn wait(&self, until: &[BorrowedFd<'_>]) -> io::Result<Vec<PollFlags>> {
        let mut set = PollSet::default();
        for fd in until {
            set.add(fd, PollFlags::IN);
        }
        self.acceptor.register(&mut set, &self.listener);
        self.access.register(&mut set);
        for scraper in &self.scrapers {
            scraper.register(&mut set);
        }
        for target in &self.targets {
            target.register(&mut set);
            target.next_read().into_iter().for_each(|due| set.until(due));
        }
        Ok(set.wait()?)
    }

    fn on_events(&mut self, events: &mut impl Iterator<Item = PollFlags>, now: Instant) {
        self.access.on_events(events);
        for scraper in &mut self.scrapers {
            scraper.on_event(events.next().unwrap_or(PollFlags::empty()), now);
        }
        for target in &mut self.targets {
            target.on_events(events, now);
        }
        self.access.decide(&mut self.scrapers, now);
        Form::ALL.into_iter().for_each(|form| self.answer(form, now));
        self.scrapers.retain(|scraper| !scraper.is_closed());
        // Before guests take their descriptors.
        self.acceptor.restore_reserve();
    }

    /// Begins to read each target whose time has come.
    fn read_targets(&mut self, now: Instant) {
        for target in &mut self.targets {
            if target.next_read().is_some_and(|due| due <= now) {
                target.begin(now, Deadline::after(now, self.deadline), after(now, self.interval));
            }
        }
    }

    /// Sends a page to the scrapers that want this form: all of them once no target keeps them, and before that those whose
    /// own time is over. Before a page is built, readers may be evicted.
    fn answer(&mut self, form: Form, now: Instant) {
        let wants = |scraper: &Scraper| scraper.waiting().is_some_and(|scrape| scrape.form == form);
        if !self.scrapers.iter().any(wants) {
            return;
        }
        let is_kept = self.targets.iter().any(Target::keeps_scrapers);
        let is_due = |scraper: &Scraper| wants(scraper) && (!is_kept || scraper.is_overdue(now));
        if !self.scrapers.iter().any(is_due) {
            return;
        }
        let page = self.page(form, now);
        for scraper in self.scrapers.iter_mut().filter(|scraper| is_due(scraper)) {
            scraper.send(page.as_ref(), now);
        }
    }

    fn page(&mut self, form: Form, now: Instant) -> Option<Arc<Page>> {
        let version = Version::of(&self.targets, self.changes);
        self.pages.current(form, version, now).or_else(|| {
            self.evict_slow_readers();
            self.pages.build(form, &self.targets, version).ok()
        })
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
            let (connection, is_last) = match accepted {
                Accepted::Stream(connection) => (connection, false),
                Accepted::LastDescriptor(connection) => (connection, true),
            };
            let Some(stream) = self.access.stream(connection) else { continue };
            if !is_last && self.has_room(now) {
                self.scrapers.push(Scraper::new(stream, now, self.access.needs_password()));
            } else {
                Scraper::reject(stream, http::BUSY, now);
            }
        }
        Ok(())
    }

    /// Returns whether one more scraper can be served, if need be instead of one that can be evicted.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.scrapers.len() < self.max_scrapers {
            return true;
        }
        let candidates = self.scrapers.iter().map(|scraper| Some((scraper.eviction_rank(now)?, scraper.host())));
        evicted(candidates).map(|at| self.scrapers.remove(at)).is_some()
    }
}

/// Returns which scraper is closed for another one, of those that have a rank: one of the host that has most of these, so
/// that no host takes the turn of others; there, of the least rank, the one that came first.
fn evicted(candidates: impl Iterator<Item = Option<(u8, Option<IpAddr>)>>) -> Option<usize> {
    let candidates: Vec<_> =
        candidates.enumerate().filter_map(|(at, candidate)| candidate.map(|(rank, host)| (host, rank, at))).collect();
    let mut counts: HashMap<Option<IpAddr>, usize> = HashMap::new();
    for (host, ..) in &candidates {
        *counts.entry(*host).or_default() += 1;
    }
    let first = candidates.into_iter().min_by_key(|&(host, rank, at)| (Reverse(counts.get(&host).copied()), rank, at));
    first.map(|(.., at)| at)
}

/// Returns how many scrapers the process can have a descriptor for if each target has one, and there are so many others.
fn scrapers_beside(targets: usize, others: usize) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return MAX_SCRAPERS };
    let taken = [others, targets].into_iter().filter_map(|count| u64::try_from(count).ok()).sum::<u64>();
    let left = limit.saturating_sub(taken).saturating_sub(SPARE_DESCRIPTORS);
    usize::try_from(left).unwrap_or(MAX_SCRAPERS).clamp(RESERVED_SCRAPERS, MAX_SCRAPERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_with_most_scrapers_loses_one_of_them() {
        let [few, many] = [1, 2].map(|host| Some(IpAddr::from([127, 0, 0, host])));
        assert_eq!(evicted([None, Some((3, many)), Some((2, few)), Some((3, many))].into_iter()), Some(1));
        assert_eq!(evicted([Some((2, many)), Some((1, many)), Some((1, many))].into_iter()), Some(1));
        assert_eq!(evicted([Some((2, many)), Some((1, few))].into_iter()), Some(1));
        assert_eq!(evicted([None, None].into_iter()), None);
    }
}
