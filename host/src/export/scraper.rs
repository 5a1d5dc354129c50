//! One connection of a scraper: its request, its wait for the metrics, and its response.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};

use super::clock::after;
use super::http::{self, MAX_REQUEST, Parsed, Rejection, ScrapeRequest};
use super::page::Page;
use crate::io::poll::PollSet;

/// How long a request may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a response may take to be read, and how long its reader may read nothing.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a reader reads nothing before it may be closed for another scraper.
const PAUSE: Duration = Duration::from_millis(100);

/// The time after its own deadline at which a scraper is sent what there is: a guest that was asked in time has answered
/// before that.
const GRACE: Duration = Duration::from_millis(20);

/// How long, and for how many bytes, input is discarded after the response, so that closing does not reset the
/// connection before the response is read.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// Bytes of a response that the kernel holds for a scraper that does not read, and of what it sends unread. The kernel
/// doubles what it is given.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
const RECEIVE_BUFFER_BYTES: usize = 16 * 1024;

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
    /// Targets are being read, or soon will be.
    Waiting {
        scrape: ScrapeRequest,
        since: Instant,
        /// It sends no more, or is gone: only a write tells which.
        is_half_closed: bool,
    },
    Responding {
        response: Response,
        sent: usize,
        /// When all must be read.
        deadline: Instant,
        /// When something was read last.
        read_at: Instant,
    },
    /// The response is sent and the sending side shut down; input is discarded.
    Lingering {
        left: usize,
        deadline: Instant,
    },
    Closed,
}

/// A head and the page after it, which other scrapers share.
#[derive(Debug)]
struct Response {
    head: String,
    page: Option<Arc<Page>>,
}

impl Response {
    fn after(&self, sent: usize) -> &[u8] {
        let page = self.page.as_ref().map_or(&[][..], |page| page.text.as_bytes());
        let rest = self.head.as_bytes().get(sent..).filter(|rest| !rest.is_empty());
        rest.or_else(|| page.get(sent.saturating_sub(self.head.len())..)).unwrap_or(&[])
    }
}

impl Scraper {
    pub(super) fn new(stream: OwnedFd, now: Instant) -> Self {
        // Without these the kernel's own bounds apply.
        let _bounded = sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
        let _bounded = sockopt::set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER_BYTES);
        let deadline = after(now, READ_TIMEOUT);
        Self { stream: stream.into(), state: State::ReadingRequest { received: Vec::new(), deadline } }
    }

    /// Sends a new connection this status at once, and closes it.
    pub(super) fn reject(stream: OwnedFd, status: &'static str, now: Instant) {
        let mut scraper = Self::new(stream, now);
        scraper.refuse(Rejection::new(status), now);
        scraper.write(now);
        scraper.discard(now);
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Returns how readily it is closed for another one: the least first. `None` for one that has its turn.
    pub(super) fn eviction_rank(&self, now: Instant) -> Option<u8> {
        match self.state {
            State::Closed | State::Lingering { .. } => Some(0),
            State::Waiting { is_half_closed: true, .. } => Some(1),
            State::ReadingRequest { .. } => Some(2),
            State::Responding { read_at, .. } if now >= after(read_at, PAUSE) => Some(3),
            State::Waiting { .. } | State::Responding { .. } => None,
        }
    }

    /// Returns since when it waits for the metrics, and its request.
    pub(super) fn waiting(&self) -> Option<(Instant, ScrapeRequest)> {
        match self.state {
            State::Waiting { scrape, since, .. } => Some((since, scrape)),
            _ => None,
        }
    }

    /// Whether it waits, and its own time is over.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Whether it is reading this page.
    pub(super) fn is_reading(&self, page: &Arc<Page>) -> bool {
        matches!(&self.state, State::Responding { response: Response { page: Some(its), .. }, .. } if Arc::ptr_eq(its, page))
    }

    /// Returns when its own time is over, if it waits for the metrics and has a timeout.
    fn deadline(&self) -> Option<Instant> {
        let (since, scrape) = self.waiting()?;
        scrape.timeout.map(|timeout| after(after(since, timeout), GRACE))
    }

    pub(super) fn register<'a>(&'a self, set: &mut PollSet<'a>) {
        let (events, deadline) = match &self.state {
            State::ReadingRequest { deadline, .. } | State::Lingering { deadline, .. } => {
                (PollFlags::IN, Some(*deadline))
            }
            State::Waiting { is_half_closed, .. } => {
                (if *is_half_closed { PollFlags::empty() } else { PollFlags::RDHUP }, self.deadline())
            }
            State::Responding { deadline, read_at, .. } => {
                (PollFlags::OUT, Some(after(*read_at, STALL_TIMEOUT).min(*deadline)))
            }
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
        match &mut self.state {
            State::ReadingRequest { .. } if !event.is_empty() => self.read(now),
            State::ReadingRequest { deadline, .. } if now >= *deadline => {
                self.refuse(Rejection::new(http::TIMED_OUT), now);
            }
            State::Waiting { is_half_closed, .. } if event.contains(PollFlags::RDHUP) => *is_half_closed = true,
            _ => {}
        }
        if matches!(self.state, State::Responding { .. }) {
            self.write(now);
        }
        if matches!(self.state, State::Lingering { .. }) {
            self.discard(now);
        }
    }

    /// Sends a scraper that waits the metrics, or a failure if there are none.
    pub(super) fn send(&mut self, page: Option<&Arc<Page>>, now: Instant) {
        let State::Waiting { scrape, .. } = self.state else { return };
        match page {
            Some(page) => {
                let head = http::ok(page.form, page.text.len());
                let page = (!scrape.head_only).then(|| Arc::clone(page));
                self.respond(Response { head, page }, now);
            }
            None => self.refuse(Rejection { status: http::FAILED, head_only: scrape.head_only }, now),
        }
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
                Parsed::Scrape(scrape) => {
                    self.state = State::Waiting { scrape, since: now, is_half_closed: false };
                }
                Parsed::Rejected(rejection) => self.refuse(rejection, now),
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.state = State::Closed,
        }
    }

    fn refuse(&mut self, rejection: Rejection, now: Instant) {
        self.respond(Response { head: http::rejection(rejection), page: None }, now);
    }

    fn respond(&mut self, response: Response, now: Instant) {
        self.state = State::Responding { response, sent: 0, deadline: after(now, WRITE_TIMEOUT), read_at: now };
    }

    fn write(&mut self, now: Instant) {
        let State::Responding { response, sent, deadline, read_at } = &mut self.state else { return };
        loop {
            let unsent = response.after(*sent);
            if unsent.is_empty() {
                break;
            }
            match retry_on_intr(|| send(&self.stream, unsent, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
                Ok(count) => {
                    *sent += count;
                    *read_at = now;
                }
                Err(Errno::AGAIN) if now < *deadline && now < after(*read_at, STALL_TIMEOUT) => return,
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::export::exposition::Form;
    use crate::export::page::Pages;
    use crate::export::target::Target;

    /// A scraper whose request has arrived, and its client.
    fn waiting(now: Instant) -> (Scraper, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut scraper = Scraper::new(listener.accept().unwrap().0.into(), now);
        let mut request = [0; 4];
        // Until it is there.
        scraper.stream.peek(&mut request).unwrap();
        scraper.on_event(PollFlags::IN, now);
        assert!(scraper.waiting().is_some());
        (scraper, client)
    }

    /// A page that no socket has room for.
    fn large_page(now: Instant) -> Arc<Page> {
        let name = "n".repeat(1 << 20);
        let mut target = Target::new(name, Endpoint::Unix { path: "/nowhere".into() });
        target.missing = (0..16).map(|at| (["a", "b", "c", "d"][at % 4], 1)).collect();
        Pages::default().build(Form::Plain, &[target], now).unwrap()
    }

    #[test]
    fn a_reader_that_reads_nothing_is_evictable_and_then_closed() {
        let now = Instant::now();
        let (mut scraper, _client) = waiting(now);
        scraper.send(Some(&large_page(now)), now);
        assert_eq!((scraper.eviction_rank(now), scraper.is_closed()), (None, false));
        let paused = after(now, PAUSE);
        scraper.on_event(PollFlags::empty(), paused);
        assert!(scraper.eviction_rank(paused).is_some() && !scraper.is_closed());
        scraper.on_event(PollFlags::empty(), after(now, STALL_TIMEOUT));
        assert!(scraper.is_closed());
    }

    #[test]
    fn a_client_that_closed_is_evicted_first() {
        let now = Instant::now();
        let (mut scraper, client) = waiting(now);
        assert_eq!(scraper.eviction_rank(now), None);
        drop(client);
        scraper.on_event(PollFlags::RDHUP, now);
        assert!(scraper.eviction_rank(now) < Scraper::new(waiting(now).0.stream.into(), now).eviction_rank(now));
        assert!(scraper.waiting().is_some(), "it may have closed its sending side alone");
    }
}
