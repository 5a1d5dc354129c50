//! One place in the agent's table: a session machine and the connections that it drives.

use scx_vsock_wire::limits::MAX_NAME_BYTES;
use scx_vsock_wire::line::up_to;
use scx_vsock_wire::{Text, emit};

use crate::kernel;
use crate::session::{Action, Session};
use crate::stream::{Connection, Stream, Transfer};
use crate::sys::{self, Epoll, Errno, Fd, UnixAddress};
use crate::token::{Source, Token};

/// This program's version.
pub fn version() -> Text<'static> {
    Text::first_line(env!("CARGO_PKG_VERSION").as_bytes())
}

/// Actions of one session before the others have their turn.
const ACTIONS_A_TURN: usize = 16;

/// How a session stands after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is more to do at once.
    More,
    /// An event will come.
    Idle,
    /// It waits for the timer.
    Wait,
}

/// Where the waiting for a scheduler is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
enum Wait {
    /// Nothing was tried yet.
    NotBegun,
    /// There is another attempt whenever the timer fires, the last at this time.
    Until { end_ms: u64 },
}

/// One place in the table. All zero when new, see [`Session::new`].
///
/// `repr(C)` keeps what is used at every step together, before the buffers.
#[derive(Debug)]
#[repr(C)]
pub struct Slot<const MAX: usize> {
    generation: u32,
    number: u8,
    /// The number of the map whose scheduler is served.
    pub map: u8,
    wait: Wait,
    /// When the scheduler was connected last, in microseconds.
    connected_us: u64,
    host: Stream,
    scheduler: Stream,
    session: Session<MAX>,
}

impl<const MAX: usize> Slot<MAX> {
    /// Creates a free slot.
    pub const fn new() -> Self {
        Self {
            session: Session::new(),
            generation: 0,
            number: 0,
            map: 0,
            wait: Wait::NotBegun,
            connected_us: 0,
            host: Stream::None,
            scheduler: Stream::None,
        }
    }

    /// Whether no session is open here.
    pub fn is_free(&self) -> bool {
        matches!(self.host, Stream::None)
    }

    /// Starts a session with a host for the scheduler of `map`, as slot `number`. Closes the connection where that
    /// fails.
    pub fn open(&mut self, epoll: Epoll, host: Fd, number: usize, map: usize) -> sys::Result<()> {
        // The table and the maps are never longer.
        self.number = u8::try_from(number).unwrap_or(u8::MAX);
        self.map = u8::try_from(map).unwrap_or(u8::MAX);
        self.wait = Wait::NotBegun;
        self.host.open(epoll, host, self.token(Source::Host))?;
        self.session.open(version(), boot_id(&mut [0; MAX_NAME_BYTES]));
        Ok(())
    }

    fn token(&self, source: Source) -> u64 {
        Token { source, index: self.number, generation: self.generation }.pack()
    }

    /// Takes in an event of one of the connections, unless it is a former session's.
    pub fn on_event(&mut self, token: Token, events: u32) {
        if token.generation == self.generation {
            match token.source {
                Source::Host => self.host.on_event(events),
                _ => self.scheduler.on_event(events),
            }
        }
    }

    /// Does the session's actions until it has to wait, or its turn is over.
    pub fn step(&mut self, epoll: Epoll, scheduler: &UnixAddress, timer_fired: bool) -> Step {
        for _ in 0..ACTIONS_A_TURN {
            self.check_peers();
            if let Some(step) = self.act(epoll, scheduler, timer_fired) {
                return step;
            }
        }
        Step::More
    }

    /// What decides before any action: that the host closed, and what the scheduler sends unsolicited.
    fn check_peers(&mut self) {
        if let Stream::Open(host) = &self.host
            && host.is_closed()
        {
            self.session.host_closed();
        }
        if let Stream::Open(scheduler) = &mut self.scheduler
            && scheduler.is_readable()
            && self.session.expects_no_answer()
        {
            check(&mut self.session, scheduler);
        }
    }

    /// Does one action; returns how the session stands where it can do no more now.
    fn act(&mut self, epoll: Epoll, address: &UnixAddress, timer_fired: bool) -> Option<Step> {
        let Stream::Open(host) = &mut self.host else { return Some(Step::Idle) };
        let session = &mut self.session;
        let transfer = match (session.action(), &mut self.scheduler) {
            (Action::ReadHost(buffer), _) => host.receive(buffer),
            (Action::WriteHost(pieces), _) => host.send(epoll, pieces),
            (Action::WriteScheduler(line), Stream::Open(scheduler)) => scheduler.send(epoll, [line, &[], &[]]),
            (Action::ReadScheduler(buffer), Stream::Open(scheduler)) => scheduler.receive(buffer),
            (Action::CheckScheduler, Stream::Open(scheduler)) => {
                check(session, scheduler);
                return None;
            }
            (Action::ConnectScheduler | Action::AwaitScheduler { .. }, Stream::Open(_)) => {
                session.scheduler_connected();
                return None;
            }
            (Action::ConnectScheduler, Stream::None) => {
                self.connect(epoll, address);
                return None;
            }
            (Action::AwaitScheduler { timeout_ms }, Stream::None) => {
                return self.wait(epoll, address, timeout_ms, timer_fired);
            }
            // Without a scheduler there is nothing to write to or read from: its end was reported before.
            (Action::CheckScheduler | Action::WriteScheduler(_) | Action::ReadScheduler(_), Stream::None) => {
                Transfer::Failed(Errno::ENOTCONN)
            }
            (Action::Report(report, buffer), _) => {
                let length = kernel::report(report, buffer, self.connected_us);
                session.transferred(length);
                return None;
            }
            (Action::Close, _) => {
                self.close();
                return Some(Step::Idle);
            }
        };
        match transfer {
            Transfer::Done(count) => session.transferred(count as usize),
            Transfer::Failed(errno) => session.failed(errno.into_raw()),
            Transfer::Blocked => return Some(Step::Idle),
        }
        None
    }

    fn try_connect(&mut self, epoll: Epoll, address: &UnixAddress) -> sys::Result<()> {
        let fd = sys::connect_unix(address)?;
        let token = self.token(Source::Scheduler);
        self.scheduler.open(epoll, fd, token)?;
        self.connected_us = sys::now_us();
        self.session.scheduler_connected();
        Ok(())
    }

    fn connect(&mut self, epoll: Epoll, address: &UnixAddress) {
        if let Err(errno) = self.try_connect(epoll, address) {
            self.session.no_scheduler(errno.into_raw());
        }
    }

    fn wait(&mut self, epoll: Epoll, address: &UnixAddress, timeout_ms: u32, timer_fired: bool) -> Option<Step> {
        let end_ms = match self.wait {
            Wait::NotBegun => sys::now_ms().saturating_add(timeout_ms.into()),
            Wait::Until { .. } if !timer_fired => return Some(Step::Wait),
            Wait::Until { end_ms } => end_ms,
        };
        self.wait = Wait::NotBegun;
        if let Err(errno) = self.try_connect(epoll, address) {
            if sys::now_ms() < end_ms {
                self.wait = Wait::Until { end_ms };
                return Some(Step::Wait);
            }
            self.session.no_scheduler(errno.into_raw());
        }
        None
    }

    /// Closes both connections.
    pub fn close(&mut self) {
        self.host.close();
        self.scheduler.close();
        self.wait = Wait::NotBegun;
        self.generation = self.generation.wrapping_add(1);
    }
}

/// Reads from a scheduler that should be silent.
fn check<const MAX: usize>(session: &mut Session<MAX>, scheduler: &mut Connection) {
    match scheduler.receive_now(&mut [0]) {
        Transfer::Done(0) => session.scheduler_gone(0),
        Transfer::Done(_) => session.unsolicited_data(),
        Transfer::Failed(errno) => session.scheduler_gone(errno.into_raw()),
        Transfer::Blocked => session.scheduler_silent(),
    }
}

/// The kernel's boot id.
pub fn boot_id(buffer: &mut [u8; MAX_NAME_BYTES]) -> Text<'_> {
    Text::first_line(sys::read_file(c"/proc/sys/kernel/random/boot_id", buffer))
}

/// Reports to a host that every session is taken, as far as that goes without waiting, and closes its connection.
pub fn refuse(host: Fd, sessions: u32) {
    let mut line = [0; 64];
    let length = emit::busy(&mut line, sessions);
    let _best_effort = sys::send(host, up_to(&line, length));
    host.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use crate::sys::EPOLLIN;

    #[test]
    fn a_new_slot_is_free() {
        assert!(Slot::<1024>::new().is_free());
    }

    #[test]
    fn a_host_that_cannot_be_watched_is_closed_and_takes_no_slot() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let mut slot = Slot::<1024>::new();
        assert!(slot.open(Epoll::NONE, Fd::inherited(agent.into_raw_fd()), 0, 0).is_err());
        assert!(slot.is_free());
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    /// A session of a host and a scheduler, which is notified of events by hand.
    struct Fixture {
        epoll: Epoll,
        slot: Slot<1024>,
        host: UnixStream,
        scheduler: UnixStream,
    }

    impl Fixture {
        fn new() -> Self {
            let epoll = Epoll::new().unwrap();
            let mut slot = Slot::new();
            let (host, agent) = UnixStream::pair().unwrap();
            // All that a step sends is there at its end.
            host.set_nonblocking(true).unwrap();
            slot.open(epoll, Fd::inherited(agent.into_raw_fd()), 0, 0).unwrap();
            let (scheduler, agent) = UnixStream::pair().unwrap();
            let token = slot.token(Source::Scheduler);
            slot.scheduler.open(epoll, Fd::inherited(agent.into_raw_fd()), token).unwrap();
            Self { epoll, slot, host, scheduler }
        }

        fn host_sends(&mut self, bytes: &[u8]) {
            self.host.write_all(bytes).unwrap();
            self.on_event(Source::Host);
        }

        fn scheduler_sends(&mut self, bytes: &[u8]) {
            self.scheduler.write_all(bytes).unwrap();
            self.on_event(Source::Scheduler);
        }

        fn on_event(&mut self, source: Source) {
            let token = Token { source, index: 0, generation: self.slot.generation };
            self.slot.on_event(token, EPOLLIN);
            let nowhere = UnixAddress::new(b"/nowhere");
            while self.slot.step(self.epoll, &nowhere, false) == Step::More {}
        }

        /// What is there to read for the host.
        fn host_has(&mut self) -> String {
            let mut buffer = [0; 1024];
            let count = self.host.read(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..count]).into_owned()
        }
    }

    #[test]
    fn bytes_of_the_scheduler_whose_event_is_still_to_come_are_not_the_next_answer() {
        let mut session = Fixture::new();
        session.host_sends(b"one\n");
        session.scheduler_sends(b"1\n");
        assert!(session.host_has().ends_with("{\"stats\":1}\n"));
        session.scheduler.write_all(b"stale\n").unwrap();
        session.host_sends(b"two\n");
        assert_eq!(session.host_has(), "{\"relay_error\":{\"unsolicited_data\":{}}}\n");
    }
}
