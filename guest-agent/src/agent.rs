//! The agent on Linux: one thread, one epoll, a fixed table of sessions.
//!
//! A [turn](Agent::turn) takes in every event first and acts only then: sessions before new connections, so
//! that no host is refused while a slot becomes free in the same wake-up; and in each session the scheduler's events
//! before the host's. What causes no event (a module or a transport that appears, a scheduler that a host waits for,
//! a shortage that ends) is tried again every 20 ms, by one timer that runs only while there is such a thing.

use core::convert::Infallible;

use scx_vsock_wire::envelope::saturate;

use crate::arguments::{Config, MAX_MAPS};
use crate::session::Peer;
use crate::slot::Slot;
use crate::source::Source;
use crate::sources::{SOURCES, Sources, refuse};
use crate::sys;

pub use crate::error::{Error, Problem};
pub use crate::sys::Errno;

/// The most sessions of an agent.
const MAX_SESSIONS: usize = 256;

/// The memory of an agent, of which only touched pages count: `SESSIONS` sessions (1 to 256) for lines of at most `MAX`
/// bytes (1,024 at least).
///
/// ```
/// use scx_vsock_agent::Storage;
/// use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};
///
/// static STORAGE: Storage<SESSIONS, MAX_RESPONSE_BYTES> = Storage::new();
/// ```
///
/// ```compile_fail
/// let no_sessions = Box::new(scx_vsock_agent::Storage::<0, 4096>::new());
/// ```
///
/// ```compile_fail
/// let too_many = Box::new(scx_vsock_agent::Storage::<257, 4096>::new());
/// ```
#[derive(Debug)]
#[repr(C)]
pub struct Storage<const SESSIONS: usize, const MAX: usize> {
    sources: Sources,
    slots: [Slot<MAX>; SESSIONS],
}

impl<const SESSIONS: usize, const MAX: usize> Storage<SESSIONS, MAX> {
    /// Connections that can wait, for each port: a host that finds every session taken is refused with an envelope
    /// instead of being reset by a full backlog.
    const BACKLOG: u32 = saturate(2 * SESSIONS);

    /// Creates empty storage, all zero.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(SESSIONS >= 1, "an agent without sessions serves nobody") };
        const { assert!(SESSIONS <= MAX_SESSIONS, "this is an agent for one guest") };
        Self { sources: Sources::NONE, slots: [const { Slot::new() }; SESSIONS] }
    }

    /// Starts an agent in this memory.
    pub(crate) fn start(&mut self, config: &Config<'_>) -> Result<i32, Error> {
        let outcome = self.sources.start(config, Self::BACKLOG);
        self.result(outcome)
    }

    /// Serves without end.
    pub(crate) fn run(&mut self) -> Result<Infallible, Error> {
        let mut is_idle = 0;
        loop {
            is_idle = self.turn(-is_idle);
            self.result(is_idle)?;
        }
    }

    /// Returns an outcome, or the error that a negative one is.
    fn result(&self, outcome: i32) -> Result<i32, Error> {
        let problem = self.sources.problem;
        if outcome < 0 { Err(Error { problem, errno: Errno::new(-outcome) }) } else { Ok(outcome) }
    }

    /// Does what there is to do, or the first to come within the time. Returns a negative error number, 0 if there is more
    /// to do at once, else 1.
    fn turn(&mut self, timeout_ms: i32) -> i32 {
        let outcome = self.take_events(timeout_ms);
        if outcome < 0 {
            return outcome;
        }
        let timer_fired = self.sources.timer_fired();
        let outcome = self.sources.on_timer(timer_fired, Self::BACKLOG);
        if outcome < 0 {
            return outcome;
        }
        self.sources.announce(saturate(MAX));
        let mut more_to_do = self.step_sessions(timer_fired);
        for map in 0..MAX_MAPS {
            let host = self.sources.accept(map);
            if host >= 0 {
                more_to_do = true;
                self.serve(host, map);
            }
        }
        i32::from(!more_to_do)
    }

    /// Takes in the events that are there, or the first to come within the time; returns a negative error number where the
    /// kernel has none.
    fn take_events(&mut self, timeout_ms: i32) -> i32 {
        let Self { sources, slots } = self;
        sources.problem = Problem::Events;
        let outcome = sys::wait(sources.epoll, timeout_ms, |token, events| {
            if let Some(source) = source(&mut sources.watched, slots, token) {
                source.on_event(events);
            }
        });
        if outcome == sys::EINTR { 0 } else { outcome }
    }

    /// Returns whether there is more to do at once.
    #[inline(never)]
    fn step_sessions(&mut self, timer_fired: bool) -> bool {
        let mut more_to_do = false;
        for slot in &mut self.slots {
            more_to_do |= slot.step(&mut self.sources, timer_fired);
        }
        more_to_do
    }

    #[inline(never)]
    fn serve(&mut self, host: i32, map: usize) {
        let mut number = self.free_slot();
        if number == SESSIONS {
            // A session that its host closed before it made this connection is over, so its event comes first.
            self.take_events(0);
            self.step_sessions(false);
            number = self.free_slot();
        }
        match self.slots.get_mut(number) {
            Some(slot) => slot.open(&self.sources, host, saturate(SOURCES + 2 * number), map),
            None => refuse(host, saturate(SESSIONS)),
        }
    }

    /// Returns the number of a free slot; that of the slots where there is none.
    #[inline(never)]
    fn free_slot(&self) -> usize {
        self.slots.iter().take_while(|slot| !slot.is_free()).count()
    }

    /// Closes all connections and everything else.
    fn close(&mut self) {
        self.slots.iter_mut().for_each(Slot::close);
        self.sources.close();
    }
}

/// Returns the source with this token: those beside the sessions, then the two of each session.
fn source<'s, const MAX: usize>(
    watched: &'s mut [Source; SOURCES],
    slots: &'s mut [Slot<MAX>],
    token: u64,
) -> Option<&'s mut Source> {
    let token = usize::try_from(token).ok()?;
    match token.checked_sub(SOURCES) {
        None => watched.get_mut(token),
        Some(stream) => {
            let peer = if stream % 2 == 0 { Peer::Host } else { Peer::Scheduler };
            Some(slots.get_mut(stream / 2)?.stream(peer))
        }
    }
}

impl<const SESSIONS: usize, const MAX: usize> Default for Storage<SESSIONS, MAX> {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether an agent has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing, until its descriptor is readable.
    Idle,
    /// Yes, at once: call [`Agent::turn`] again without waiting.
    More,
}

/// An agent that serves at most `SESSIONS` sessions with lines of at most `MAX` bytes. Closes all its descriptors when
/// it is dropped.
///
/// ```
/// use std::io::Read;
/// use std::os::fd::IntoRawFd;
/// use std::os::unix::net::{UnixListener, UnixStream};
/// use scx_vsock_agent::{Agent, Config, Storage, Turn};
///
/// # let path = std::env::temp_dir().join(format!("scx-vsock-agent-doc-{}", std::process::id()));
/// let listener = UnixListener::bind(&path)?; // in a guest the agent listens on vsock by itself
/// let mut host = UnixStream::connect(&path)?;
/// let mut config = Config::default();
/// config.listeners.push(listener.into_raw_fd()).unwrap();
/// let mut storage = Box::new(Storage::<2, 4096>::new());
/// let mut agent = Agent::new(&mut storage, &config).unwrap();
/// while agent.turn().unwrap() == Turn::More {} // ... and again whenever `agent.fd()` is readable
/// let mut hello = [0; 9];
/// host.read_exact(&mut hello)?;
/// assert_eq!(&hello, br#"{"hello":"#);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Agent<'a, const SESSIONS: usize, const MAX: usize> {
    storage: &'a mut Storage<SESSIONS, MAX>,
}

impl<'a, const SESSIONS: usize, const MAX: usize> Agent<'a, SESSIONS, MAX> {
    /// Creates an agent that listens as `config` says, as soon as that is possible. Takes over the inherited
    /// descriptors.
    ///
    /// # Errors
    ///
    /// See [`Error`]. A missing vsock module or transport is not one: the agent waits for them.
    pub fn new(storage: &'a mut Storage<SESSIONS, MAX>, config: &Config<'_>) -> Result<Self, Error> {
        match storage.start(config) {
            Ok(_) => Ok(Self { storage }),
            Err(error) => {
                storage.close();
                Err(error)
            }
        }
    }

    /// Returns the descriptor that is readable while there is something to do in a [`turn`](Self::turn).
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.storage.sources.epoll.number()
    }

    /// Does what there is to do, without waiting.
    ///
    /// # Errors
    ///
    /// A port that could not be tried before (the vsock module came later) is taken or not permitted, or the
    /// kernel's event calls fail.
    pub fn turn(&mut self) -> Result<Turn, Error> {
        let outcome = self.storage.turn(0);
        Ok(if self.storage.result(outcome)? == 0 { Turn::More } else { Turn::Idle })
    }

    /// Serves without end.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn run(&mut self) -> Result<Infallible, Error> {
        self.storage.run()
    }
}

impl<const SESSIONS: usize, const MAX: usize> Drop for Agent<'_, SESSIONS, MAX> {
    fn drop(&mut self) {
        self.storage.close();
    }
}
