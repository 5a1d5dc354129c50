//! One place in the agent's table: a session machine and the connections that it drives.

use crate::kernel;
use crate::session::{Action, Outcome, Peer, Session};
use crate::source::{Source, WATCH_STREAM};
use crate::sources::Sources;
use crate::sys;

/// Actions of one session before the others have their turn.
const ACTIONS_A_TURN: usize = 16;

/// One place in the table. All zero when new, see [`Session::new`].
///
/// `repr(C)` keeps what is used at every step together, before the buffers.
#[derive(Debug)]
#[repr(C)]
pub struct Slot<const MAX: usize> {
    host: Source,
    scheduler: Source,
    /// The number of the map whose scheduler is served.
    map: usize,
    /// When to try to connect the scheduler for the last time, in microseconds; 0 where nothing was tried yet.
    until_us: u64,
    /// When the scheduler was connected last, in microseconds.
    connected_us: u64,
    session: Session<MAX>,
}

impl<const MAX: usize> Slot<MAX> {
    /// Creates a free slot.
    pub const fn new() -> Self {
        Self {
            session: Session::new(),
            map: 0,
            until_us: 0,
            connected_us: 0,
            host: Source::NONE,
            scheduler: Source::NONE,
        }
    }

    /// Whether no session is open here.
    pub fn is_free(&self) -> bool {
        !self.host.is_open()
    }

    /// Starts a session with the host of this connection, the latest that was accepted, for the scheduler of `map`; its
    /// streams have `token` and the next one. Closes the connection where that fails.
    pub fn open(&mut self, sources: &Sources, host: i32, token: u32, map: usize) {
        self.map = map;
        self.scheduler.token = token + 1;
        if self.host.open(sources.epoll, host, WATCH_STREAM, token) >= 0 {
            self.host.most_peeked = sources.most_peeked;
            self.session.open();
        }
    }

    /// Returns the connection with this peer.
    pub fn stream(&mut self, peer: Peer) -> &mut Source {
        match peer {
            Peer::Host => &mut self.host,
            Peer::Scheduler => &mut self.scheduler,
        }
    }

    /// Does the session's actions until it has to wait, or its turn is over; returns whether there is more to do at once.
    pub fn step(&mut self, sources: &mut Sources, timer_fired: bool) -> bool {
        !self.is_free() && (0..ACTIONS_A_TURN).all(|_| self.act(sources, timer_fired))
    }

    /// Does one action; returns whether the session can do more now.
    fn act(&mut self, sources: &mut Sources, timer_fired: bool) -> bool {
        if self.host.is_closed() {
            self.session.host_closed();
        }
        let outcome = match self.session.action(self.scheduler.is_ready()) {
            Action::Read(peer, buffer) => {
                let stream = if peer == Peer::Host { &mut self.host } else { &mut self.scheduler };
                stream.receive(buffer)
            }
            Action::Write(peer, pieces) => {
                let stream = if peer == Peer::Host { &mut self.host } else { &mut self.scheduler };
                stream.send(sources.epoll, &pieces)
            }
            Action::Connect { timeout_ms } => self.connect(sources, timeout_ms, timer_fired),
            Action::Check => {
                let outcome = self.scheduler.receive_now(&mut [0]);
                self.session.checked(outcome);
                return true;
            }
            Action::Report(report, buffer) => Outcome::done(kernel::report(report, buffer, self.connected_us)),
            Action::Close => {
                self.close();
                return false;
            }
        };
        self.session.done(outcome);
        outcome != Outcome::BLOCKED
    }

    /// Connects the scheduler, unless that is done. Where it fails and its time is not over it is tried again when the timer
    /// fires.
    fn connect(&mut self, sources: &mut Sources, timeout_ms: u32, timer_fired: bool) -> Outcome {
        if self.scheduler.is_open() {
            return Outcome::done(0);
        }
        if self.until_us != 0 && !timer_fired {
            return Outcome::BLOCKED;
        }
        let Some(port) = sources.ports.get(self.map) else { return Outcome::BLOCKED };
        let now_us = sys::now_us();
        let connection = sys::connect_unix(&port.scheduler);
        let outcome = self.scheduler.open(sources.epoll, connection, WATCH_STREAM, self.scheduler.token);
        if outcome >= 0 {
            self.connected_us = now_us;
            self.until_us = 0;
            return Outcome::done(0);
        }
        if self.until_us == 0 {
            self.until_us = now_us + u64::from(timeout_ms) * 1_000;
        }
        if now_us < self.until_us {
            sources.retry();
            return Outcome::BLOCKED;
        }
        self.until_us = 0;
        Outcome(outcome)
    }

    /// Closes both connections.
    pub fn close(&mut self) {
        self.host.close();
        self.scheduler.close();
        self.until_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use crate::sys::{EPOLLIN, Fd};

    #[test]
    fn a_new_slot_is_free() {
        assert!(Slot::<1024>::new().is_free());
    }

    #[test]
    fn a_host_that_cannot_be_watched_is_closed_and_takes_no_slot() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let mut slot = Slot::<1024>::new();
        slot.open(&Sources::NONE, agent.into_raw_fd(), 0, 0);
        assert!(slot.is_free());
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    /// A session of a host and a scheduler, which is notified of events by hand.
    struct Fixture {
        sources: Sources,
        slot: Slot<1024>,
        host: UnixStream,
        scheduler: UnixStream,
    }

    impl Fixture {
        fn new() -> Self {
            let mut sources = Sources::NONE;
            sources.epoll = Fd::new(sys::create_epoll());
            let mut slot = Slot::new();
            let (host, agent) = UnixStream::pair().unwrap();
            // All that a step sends is there at its end.
            host.set_nonblocking(true).unwrap();
            slot.open(&sources, agent.into_raw_fd(), 0, 0);
            let (scheduler, agent) = UnixStream::pair().unwrap();
            assert!(slot.scheduler.open(sources.epoll, agent.into_raw_fd(), WATCH_STREAM, 1) >= 0);
            Self { sources, slot, host, scheduler }
        }

        fn host_sends(&mut self, bytes: &[u8]) {
            self.host.write_all(bytes).unwrap();
            self.on_event(Peer::Host);
        }

        fn scheduler_sends(&mut self, bytes: &[u8]) {
            self.scheduler.write_all(bytes).unwrap();
            self.on_event(Peer::Scheduler);
        }

        fn on_event(&mut self, peer: Peer) {
            self.slot.stream(peer).on_event(EPOLLIN);
            while self.slot.step(&mut self.sources, false) {}
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
