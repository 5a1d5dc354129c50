//! One connection of a scraper: its request, its wait for the metrics, and its response.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::exposition::{Exposition, OPEN_METRICS, PLAIN};
use super::http::{self, MAX_REQUEST, Parsed, ScrapeRequest};
use crate::io::poll::PollSet;

/// How long a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a response may take to be read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The time after its own deadline at which a scraper is sent what there is: a round that it began ends before that.
const GRACE: Duration = Duration::from_millis(20);

/// How long, and for how many bytes, input is discarded after the response, so that closing does not reset the
/// connection before the response is read.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Scraper {
    stream: TcpStream,
    state: State,
}

#[derive(Debug)]
enum State {
    ReadingRequest {
        received: Vec<u8>,
        deadline: Instant,
    },
    /// Targets are being scraped, or soon will be.
    Waiting {
        scrape: ScrapeRequest,
        since: Instant,
    },
    Responding {
        response: Vec<u8>,
        sent: usize,
        deadline: Instant,
    },
    /// The response is sent and the sending side shut down; input is discarded.
    Lingering {
        left: usize,
        deadline: Instant,
    },
    Closed,
}

impl Scraper {
    pub(super) fn new(stream: OwnedFd, now: Instant) -> Self {
        let deadline = after(now, READ_TIMEOUT);
        Self { stream: stream.into(), state: State::ReadingRequest { received: Vec::new(), deadline } }
    }

    /// Sends a new connection this status at once, and closes it.
    pub(super) fn reject(stream: OwnedFd, status: &str, now: Instant) {
        let mut scraper = Self::new(stream, now);
        scraper.respond(http::status(status), now);
        scraper.write(now);
        scraper.discard(now);
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether it may be closed for another one: its request has not arrived, or its response is sent.
    pub(super) fn is_evictable(&self) -> bool {
        matches!(self.state, State::ReadingRequest { .. } | State::Lingering { .. })
    }

    /// Whether it waits for the metrics.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Returns when the targets' time is over, if it waits for them and has a timeout.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { scrape: ScrapeRequest { timeout: Some(timeout), .. }, since } => {
                Some(after(since, timeout))
            }
            _ => None,
        }
    }

    /// Whether it waits for a round that takes longer than its own time.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= after(deadline, GRACE))
    }

    pub(super) fn register<'a>(&'a self, set: &mut PollSet<'a>) {
        let (events, deadline) = match &self.state {
            State::ReadingRequest { deadline, .. } | State::Lingering { deadline, .. } => {
                (PollFlags::IN, Some(*deadline))
            }
            State::Waiting { .. } => (PollFlags::empty(), self.deadline().map(|deadline| after(deadline, GRACE))),
            State::Responding { deadline, .. } => (PollFlags::OUT, Some(*deadline)),
            State::Closed => (PollFlags::empty(), None),
        };
        set.add(&self.stream, events);
        deadline.into_iter().for_each(|deadline| set.until(deadline));
    }

    /// Makes progress if its connection is ready or a deadline has passed.
    pub(super) fn on_event(&mut self, event: PollFlags, now: Instant) {
        if event.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.state = State::Closed;
            return;
        }
        if let State::ReadingRequest { deadline, .. } = self.state {
            if !event.is_empty() {
                self.read(now);
            } else if now >= deadline {
                self.respond(http::status(http::TIMED_OUT), now);
            }
        }
        if matches!(self.state, State::Responding { .. }) {
            self.write(now);
        }
        if matches!(self.state, State::Lingering { .. }) {
            self.discard(now);
        }
    }

    /// Sends a scraper that waits the metrics, or a failure if there are none.
    pub(super) fn send(&mut self, exposition: Option<&Exposition>, now: Instant) {
        let State::Waiting { scrape, .. } = self.state else { return };
        let response = match exposition {
            Some(metrics) if scrape.open_metrics => http::ok(OPEN_METRICS, &metrics.open_metrics, scrape.head_only),
            Some(metrics) => http::ok(PLAIN, &metrics.plain, scrape.head_only),
            None => http::status(http::FAILED),
        };
        self.respond(response, now);
        self.write(now);
    }

    fn read(&mut self, now: Instant) {
        let State::ReadingRequest { received, .. } = &mut self.state else { return };
        // The capacity for a whole request and no more.
        received.reserve_exact(MAX_REQUEST.saturating_sub(received.len()));
        match retry_on_intr(|| recv(&self.stream, spare_capacity(received), RecvFlags::DONTWAIT)) {
            Ok((0, _)) => self.state = State::Closed,
            Ok(_) => match http::parse(received) {
                Parsed::Incomplete => {}
                Parsed::Scrape(scrape) => self.state = State::Waiting { scrape, since: now },
                Parsed::Rejected(status) => self.respond(http::status(status), now),
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.state = State::Closed,
        }
    }

    fn respond(&mut self, response: Vec<u8>, now: Instant) {
        self.state = State::Responding { response, sent: 0, deadline: after(now, WRITE_TIMEOUT) };
    }

    fn write(&mut self, now: Instant) {
        let State::Responding { response, sent, deadline } = &mut self.state else { return };
        while let Some(unsent) = response.get(*sent..).filter(|unsent| !unsent.is_empty()) {
            match retry_on_intr(|| send(&self.stream, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => *sent += count,
                Err(Errno::AGAIN) if now < *deadline => return,
                Err(_) => {
                    self.state = State::Closed;
                    return;
                }
            }
        }
        self.state = match shutdown(&self.stream, Shutdown::Write) {
            Ok(()) => State::Lingering { left: LINGER_BYTES, deadline: after(now, LINGER) },
            Err(_) => State::Closed,
        };
    }

    fn discard(&mut self, now: Instant) {
        let State::Lingering { left, deadline } = &mut self.state else { return };
        let mut discarded = [0; 4096];
        let is_over = match retry_on_intr(|| recv(&self.stream, &mut discarded, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => true,
            Ok((count, _)) => {
                *left = left.saturating_sub(count);
                *left == 0
            }
            Err(Errno::AGAIN) => now >= *deadline,
            Err(_) => true,
        };
        if is_over {
            self.state = State::Closed;
        }
    }
}

/// A moment that is `duration` later, or the same one beyond the clock's range.
fn after(moment: Instant, duration: Duration) -> Instant {
    moment.checked_add(duration).unwrap_or(moment)
}
