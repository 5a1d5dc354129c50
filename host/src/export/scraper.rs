//! One connection of a scraper: its request, its wait for the round's end, and its response.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::exposition::{OPEN_METRICS, PLAIN, Page};
use super::http::{self, MAX_REQUEST, Parsed, Wanted};
use crate::io::poll::PollSet;

/// How long a request may take to arrive, and a response to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much later than it is due a scraper is given what there is: a round of its own ends on time.
const OVERDUE: Duration = Duration::from_millis(20);

/// How long, and for how many bytes, what nobody wants is read, so that the response is not lost with it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Scraper {
    stream: TcpStream,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Its request arrives.
    Asking { received: Vec<u8>, until: Instant },
    /// It waits for the round's end.
    Waiting { wanted: Wanted, since: Instant },
    /// It takes its response.
    Taking { response: Vec<u8>, sent: usize, until: Instant },
    /// It was told everything, and is read to its end.
    Leaving { left: usize, until: Instant },
    /// It is to be closed.
    Over,
}

impl Scraper {
    pub(super) fn new(stream: OwnedFd, now: Instant) -> Self {
        Self { stream: stream.into(), state: State::Asking { received: Vec::new(), until: now + PATIENCE } }
    }

    /// One that is told this status and nothing else.
    pub(super) fn told(stream: OwnedFd, status: &str, now: Instant) -> Self {
        let mut scraper = Self::new(stream, now);
        scraper.respond(http::status(status), now);
        scraper
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Whether it may give way to another: its request is not there yet, or it has its response.
    pub(super) fn may_go(&self) -> bool {
        matches!(self.state, State::Asking { .. } | State::Leaving { .. })
    }

    /// Whether it waits for the round that runs, or the next.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// When the round that it waits for should end, if it says so.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { wanted: Wanted { within: Some(within), .. }, since } => since.checked_add(within),
            _ => None,
        }
    }

    /// Whether it waits for a round that took longer.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| now >= due + OVERDUE)
    }

    pub(super) fn wait_in<'a>(&'a self, set: &mut PollSet<'a>) {
        let (events, until) = match &self.state {
            State::Asking { until, .. } | State::Leaving { until, .. } => (PollFlags::IN, Some(*until)),
            State::Waiting { .. } => (PollFlags::empty(), self.due().map(|due| due + OVERDUE)),
            State::Over => (PollFlags::empty(), None),
            State::Taking { until, .. } => (PollFlags::OUT, Some(*until)),
        };
        set.add(&self.stream, events);
        until.into_iter().for_each(|until| set.until(until));
    }

    /// Goes on where something happened on its connection, or its time is over.
    pub(super) fn turn(&mut self, event: PollFlags, now: Instant) {
        if event.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.state = State::Over;
            return;
        }
        if let State::Asking { until, .. } = self.state {
            if !event.is_empty() {
                self.read(now);
            } else if now >= until {
                self.respond(http::status(http::TIMED_OUT), now);
            }
        }
        if matches!(self.state, State::Taking { .. }) {
            self.write(now);
        }
        if matches!(self.state, State::Leaving { .. }) {
            self.drain(now);
        }
    }

    /// Gives a scraper that waits the page, or says that there is none.
    pub(super) fn give(&mut self, page: Option<&Page>, now: Instant) {
        let State::Waiting { wanted, .. } = self.state else { return };
        let response = match page {
            Some(page) if wanted.open_metrics => http::page(OPEN_METRICS, &page.open_metrics, wanted.head_only),
            Some(page) => http::page(PLAIN, &page.plain, wanted.head_only),
            None => http::status(http::FAILED),
        };
        self.respond(response, now);
        self.write(now);
    }

    fn read(&mut self, now: Instant) {
        let State::Asking { received, .. } = &mut self.state else { return };
        // The room for a whole request and no more.
        received.reserve_exact(MAX_REQUEST.saturating_sub(received.len()));
        match retry_on_intr(|| recv(&self.stream, spare_capacity(received), RecvFlags::DONTWAIT)) {
            Ok((0, _)) => self.state = State::Over,
            Ok(_) => match http::parse(received) {
                Parsed::Part => {}
                Parsed::Scrape(wanted) => self.state = State::Waiting { wanted, since: now },
                Parsed::Refused(status) => self.respond(http::status(status), now),
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.state = State::Over,
        }
    }

    fn respond(&mut self, response: Vec<u8>, now: Instant) {
        self.state = State::Taking { response, sent: 0, until: now + PATIENCE };
    }

    fn write(&mut self, now: Instant) {
        let State::Taking { response, sent, until } = &mut self.state else { return };
        while let Some(unsent) = response.get(*sent..).filter(|unsent| !unsent.is_empty()) {
            match retry_on_intr(|| send(&self.stream, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => *sent += count,
                Err(Errno::AGAIN) if now < *until => return,
                Err(_) => {
                    self.state = State::Over;
                    return;
                }
            }
        }
        self.state = match shutdown(&self.stream, Shutdown::Write) {
            Ok(()) => State::Leaving { left: LINGER_BYTES, until: now + LINGER },
            Err(_) => State::Over,
        };
    }

    fn drain(&mut self, now: Instant) {
        let State::Leaving { left, until } = &mut self.state else { return };
        let mut nobodys = [0; 4096];
        let over = match retry_on_intr(|| recv(&self.stream, &mut nobodys, RecvFlags::DONTWAIT)) {
            Ok((0, _)) => true,
            Ok((count, _)) => {
                *left = left.saturating_sub(count);
                *left == 0
            }
            Err(Errno::AGAIN) => now >= *until,
            Err(_) => true,
        };
        if over {
            self.state = State::Over;
        }
    }
}
