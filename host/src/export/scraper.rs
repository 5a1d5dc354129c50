//! One connection of a scraper: its request, its wait for the metrics, and its response.

use std::net::{IpAddr, Ipv6Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv, sockopt};

use super::clock::after;
use super::http::{self, MAX_REQUEST, Parsed, Rejection, ScrapeRequest};
use super::page::Page;
use super::stream::ScraperStream;
use crate::io::poll::PollSet;

/// How long a request may take to arrive, the handshake before it included, and how long its password is checked.
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
    stream: ScraperStream,
    host: Option<IpAddr>,
    /// Whether it must say who it is.
    needs_password: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    ReadingRequest {
        received: Vec<u8>,
        deadline: Instant,
    },
    /// It waits for a page, since some targets have no outcome yet.
    Waiting {
        scrape: ScrapeRequest,
        since: Instant,
        /// It sends no more, or is gone: only a write tells which.
        is_half_closed: bool,
        /// Whether it may have the metrics.
        is_granted: bool,
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
    pub(super) fn new(stream: ScraperStream, now: Instant, needs_password: bool) -> Self {
        // Without these the kernel's own bounds apply.
        let _bounded = sockopt::set_socket_send_buffer_size(stream.tcp(), SEND_BUFFER_BYTES);
        let _bounded = sockopt::set_socket_recv_buffer_size(stream.tcp(), RECEIVE_BUFFER_BYTES);
        let (host, deadline) = (host_of(stream.tcp()), after(now, READ_TIMEOUT));
        Self { stream, host, needs_password, state: State::ReadingRequest { received: Vec::new(), deadline } }
    }

    /// Sends a new connection this status at once, and closes it.
    pub(super) fn reject(stream: ScraperStream, status: &'static str, now: Instant) {
        let mut scraper = Self::new(stream, now, false);
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
            State::ReadingRequest { .. } | State::Waiting { is_granted: false, .. } => Some(2),
            State::Responding { read_at, .. } if now >= after(read_at, PAUSE) => Some(3),
            State::Waiting { .. } | State::Responding { .. } => None,
        }
    }

    /// Returns its request, if it waits for the metrics and may have them.
    pub(super) fn waiting(&self) -> Option<&ScrapeRequest> {
        match &self.state {
            State::Waiting { scrape, is_granted: true, .. } => Some(scrape),
            _ => None,
        }
    }

    /// Returns since when it waits to be granted the metrics, and what it says who it is.
    #[cfg(feature = "tls")]
    pub(super) fn ungranted(&self) -> Option<(Instant, Option<&[u8]>)> {
        match &self.state {
            State::Waiting { scrape, since, is_granted: false, .. } => Some((*since, scrape.authorization.as_deref())),
            _ => None,
        }
    }

    /// Grants it the metrics.
    #[cfg(feature = "tls")]
    pub(super) fn grant(&mut self) {
        if let State::Waiting { is_granted, .. } = &mut self.state {
            *is_granted = true;
        }
    }

    /// Responds with this status instead of the metrics.
    #[cfg(feature = "tls")]
    pub(super) fn deny(&mut self, status: &'static str, now: Instant) {
        let State::Waiting { scrape, .. } = &self.state else { return };
        let head_only = scrape.head_only;
        self.refuse(Rejection { status, head_only }, now);
        self.write(now);
    }

    /// Returns the address of its host.
    pub(super) fn host(&self) -> Option<IpAddr> {
        self.host
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
        match &self.state {
            State::Waiting { is_granted: false, since, .. } => Some(after(*since, READ_TIMEOUT)),
            State::Waiting { scrape, since, .. } => scrape.timeout.map(|timeout| after(after(*since, timeout), GRACE)),
            _ => None,
        }
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
        let is_handshaking = matches!(self.state, State::ReadingRequest { .. }) && self.stream.wants_write();
        set.add(self.stream.tcp(), if is_handshaking { events | PollFlags::OUT } else { events });
        deadline.into_iter().for_each(|deadline| set.until(deadline));
    }

    /// Makes progress if its connection is ready or a deadline has passed.
    pub(super) fn on_event(&mut self, event: PollFlags, now: Instant) {
        if event.intersects(PollFlags::HUP | PollFlags::ERR) {
            self.state = State::Closed;
            return;
        }
        let is_overdue = self.is_overdue(now);
        match &mut self.state {
            State::ReadingRequest { .. } if !event.is_empty() => self.read(now),
            State::ReadingRequest { deadline, .. } if now >= *deadline => {
                self.refuse(Rejection::new(http::TIMED_OUT), now);
            }
            State::Waiting { is_half_closed, .. } if event.contains(PollFlags::RDHUP) => *is_half_closed = true,
            State::Waiting { is_granted: false, .. } if is_overdue => {
                self.refuse(Rejection::new(http::BUSY), now);
            }
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
        let State::Waiting { scrape, .. } = &self.state else { return };
        let head_only = scrape.head_only;
        match page {
            Some(page) => {
                let head = http::ok(page.form, page.text.len());
                let page = (!head_only).then(|| Arc::clone(page));
                self.respond(Response { head, page }, now);
            }
            None => self.refuse(Rejection { status: http::FAILED, head_only }, now),
        }
        self.write(now);
    }

    fn read(&mut self, now: Instant) {
        let State::ReadingRequest { received, .. } = &mut self.state else { return };
        // The capacity for a whole request and no more.
        received.reserve_exact(MAX_REQUEST.saturating_sub(received.len()));
        match self.stream.recv(received) {
            Ok(0) => self.state = State::Closed,
            Ok(_) => match http::parse(received) {
                Parsed::Incomplete => {}
                Parsed::Scrape(scrape) => {
                    let is_granted = !self.needs_password;
                    self.state = State::Waiting { scrape, since: now, is_half_closed: false, is_granted };
                }
                Parsed::Rejected(rejection) => self.refuse(rejection, now),
            },
            Err(Errno::AGAIN) => {}
            Err(_) => self.state = State::Closed,
        }
    }

    fn refuse(&mut self, rejection: Rejection, now: Instant) {
        if !self.stream.is_open() {
            self.state = State::Closed;
            return;
        }
        self.respond(Response { head: http::rejection(rejection), page: None }, now);
    }

    fn respond(&mut self, response: Response, now: Instant) {
        self.state = State::Responding { response, sent: 0, deadline: after(now, WRITE_TIMEOUT), read_at: now };
    }

    fn write(&mut self, now: Instant) {
        let State::Responding { response, sent, deadline, read_at } = &mut self.state else { return };
        loop {
            let unsent = response.after(*sent);
            if unsent.is_empty() && !self.stream.wants_write() {
                break;
            }
            match self.stream.send(unsent) {
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
        self.state = match self.stream.shutdown() {
            Ok(()) => State::Lingering { left: LINGER_BYTES, deadline: after(now, LINGER) },
            Err(_) => State::Closed,
        };
    }

    fn discard(&mut self, now: Instant) {
        let State::Lingering { left, deadline } = &mut self.state else { return };
        let mut discarded = [0; 4096];
        let is_over = match retry_on_intr(|| recv(self.stream.tcp(), &mut discarded, RecvFlags::DONTWAIT)) {
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

/// The address of a connection's host; with IPv6 that of its network, since a host may have each address of that.
fn host_of(tcp: &TcpStream) -> Option<IpAddr> {
    match tcp.peer_addr().ok()?.ip().to_canonical() {
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()),
        address @ IpAddr::V4(_) => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::export::exposition::Form;
    use crate::export::page::{Pages, Version};
    use crate::export::target::Target;

    /// A scraper whose request has arrived, and its client.
    fn waiting(now: Instant) -> (Scraper, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut scraper = Scraper::new(ScraperStream::Plain(listener.accept().unwrap().0), now, false);
        let mut request = [0; 4];
        // Until it is there.
        scraper.stream.tcp().peek(&mut request).unwrap();
        scraper.on_event(PollFlags::IN, now);
        assert!(scraper.waiting().is_some());
        (scraper, client)
    }

    /// A page that no socket has room for.
    fn large_page(now: Instant) -> Arc<Page> {
        let name = "n".repeat(1 << 20);
        let mut target = Target::new(name, Endpoint::Unix { path: "/nowhere".into() }, now, false);
        target.missing = (0..16).map(|at| (["a", "b", "c", "d"][at % 4], 1)).collect();
        let targets = [target];
        Pages::default().build(Form::Plain, &targets, Version::of(&targets, 0)).unwrap()
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
        let reading = Scraper::new(waiting(now).0.stream, now, false);
        assert_eq!([scraper.eviction_rank(now), reading.eviction_rank(now)], [Some(1), Some(2)]);
        assert!(scraper.waiting().is_some(), "it may have closed its sending side alone");
    }
}
