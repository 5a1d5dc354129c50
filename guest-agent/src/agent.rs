//! The agent on Linux: one thread, one epoll, a fixed table of sessions.
//!
//! A [turn](Agent::turn) takes in every event first and acts only then: sessions before new connections, so
//! that no host is refused while a slot becomes free in the same wake-up; and in each session the scheduler's events
//! before the host's. What causes no event (a module or a transport that appears, a scheduler that a host waits for,
//! a shortage that ends) is tried again every 20 ms, by one timer that runs only while there is such a thing.

use core::convert::Infallible;
use core::fmt;

use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::line::up_to;
use scx_vsock_wire::{Text, template};

use crate::arguments::{Config, MAX_MAPS};
use crate::listener::Listener;
use crate::ready::Ready;
use crate::slot::{self, Slot, Step};
use crate::sys::{EPOLLET, EPOLLIN, Epoll, Event, Fd, NO_EVENT, Peer, Timer, VMADDR_CID_HOST};
use crate::token::{Source, Token};

pub use crate::sys::Errno;

/// Milliseconds until what causes no event is tried again.
const RETRY_MS: u32 = 20;

/// Events taken in one wait: with the usual table more than there are sources, so that one wait takes them all.
const EVENTS_A_TURN: usize = 32;

/// Sessions that an event can name.
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
    /// Creates empty storage, all zero.
    #[must_use]
    pub const fn new() -> Self {
        const { assert!(SESSIONS >= 1, "an agent without sessions serves nobody") };
        const { assert!(SESSIONS <= MAX_SESSIONS, "events cannot name more sessions than 256") };
        Self { sources: Sources::NONE, slots: [const { Slot::new() }; SESSIONS] }
    }
}

/// What there is of an agent beside its sessions. All zero before it is started, and first in its memory (`repr(C)`),
/// which keeps the code that uses it short.
#[derive(Debug)]
#[repr(C)]
struct Sources {
    epoll: Epoll,
    timer: Timer,
    retry: Retry,
    /// Whether a session waits for the timer.
    sessions_wait: bool,
    allow_cid: Option<u32>,
    ready: Ready,
    maps: usize,
    listeners: [Listener; MAX_MAPS],
}

impl Sources {
    const NONE: Self = Self {
        epoll: Epoll::NONE,
        timer: Timer::NONE,
        retry: Retry::Disarmed,
        sessions_wait: false,
        allow_cid: None,
        ready: Ready::Pending,
        maps: 0,
        listeners: [Listener::NONE; MAX_MAPS],
    };

    fn listeners(&mut self) -> &mut [Listener] {
        self.listeners.split_at_mut(self.maps.min(MAX_MAPS)).0
    }

    fn listen(&mut self, config: &Config<'_>) -> Result<(), Error> {
        let timer = Token::of(Source::Timer, 0).pack();
        self.epoll.add(self.timer.fd(), EPOLLIN | EPOLLET, timer).map_err(Problem::Events.with())?;
        let mut inherited = config.listeners.iter();
        for ((index, listener), map) in (0..).zip(&mut self.listeners).zip(&config.maps) {
            *listener = Listener::new(map);
            if let Some(&number) = inherited.next() {
                let listening = listener.inherit(self.epoll, index, Fd::inherited(number));
                listening.map_err(Problem::Descriptor { number }.with())?;
            }
        }
        Ok(())
    }

    /// Tries again what causes no event.
    fn open(&mut self, backlog: u32) -> Result<(), Error> {
        self.retry = Retry::Disarmed;
        let epoll = self.epoll;
        let mut all_listen = true;
        for (number, listener) in (0..).zip(self.listeners()) {
            listener.on_timer();
            let problem = Problem::Listen { port: listener.port };
            all_listen &= listener.open(epoll, number, backlog).map_err(problem.with())?;
        }
        if all_listen {
            self.ready.connect(epoll);
        }
        Ok(())
    }

    /// Whether this peer may be served. Any process of the guest with a vsock loopback could otherwise read a socket
    /// that only root may read, or take every slot.
    fn allows(&self, peer: Peer) -> bool {
        match peer {
            Peer::Local | Peer::Vsock(VMADDR_CID_HOST) => true,
            Peer::Vsock(cid) => Some(cid) == self.allow_cid,
        }
    }

    fn arm_timer(&mut self) -> Result<(), Error> {
        let is_needed =
            self.sessions_wait || self.ready.is_pending() || self.listeners().iter().any(Listener::needs_timer);
        if is_needed && self.retry == Retry::Disarmed {
            self.timer.arm(RETRY_MS).map_err(Problem::Events.with())?;
            self.retry = Retry::Armed;
        }
        Ok(())
    }

    fn close(&mut self) {
        self.listeners().iter_mut().for_each(Listener::close);
        self.ready.close();
        self.timer.fd().close();
        self.epoll.fd().close();
    }
}

impl<const SESSIONS: usize, const MAX: usize> Default for Storage<SESSIONS, MAX> {
    fn default() -> Self {
        Self::new()
    }
}

/// Why an agent cannot serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What failed.
    pub problem: Problem,
    /// What it failed with.
    pub errno: Errno,
}

/// What an agent cannot serve without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The kernel has no epoll instance or timer for it.
    Events,
    /// A vsock port cannot be listened on.
    Listen {
        /// The port.
        port: u32,
    },
    /// An inherited descriptor is not a listening socket.
    Descriptor {
        /// Its number.
        number: i32,
    },
}

impl Error {
    /// What is impossible, why and what to do, as a [template](scx_vsock_wire::template) and its numbers.
    pub(crate) fn message(self) -> (&'static [u8], [u64; 2]) {
        let errno = self.errno.into_raw().unsigned_abs().into();
        match self.problem {
            Problem::Events => (b"cannot create an epoll instance or timer: errno #", [errno, 0]),
            Problem::Listen { port } if self.errno == Errno::EADDRINUSE => {
                (b"cannot listen on vsock port #: errno #; is another agent running?", [port.into(), errno])
            }
            Problem::Listen { port } => {
                (b"cannot listen on vsock port #: errno #; ports below 1024 need root", [port.into(), errno])
            }
            Problem::Descriptor { number } => {
                (b"descriptor # is not a listening socket: errno #", [number.unsigned_abs().into(), errno])
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 128];
        let (template, numbers) = self.message();
        let length = template::fill(&mut text, template, &numbers, &[]);
        Text::first_line(up_to(&text, length)).fmt(formatter)
    }
}

impl core::error::Error for Error {}

impl Problem {
    fn with(self) -> impl FnOnce(Errno) -> Error {
        move |errno| Error { problem: self, errno }
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

/// Where the retry timer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Retry {
    Disarmed,
    Armed,
    Due,
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
    /// Connections that can wait, for all ports: a host that finds every session taken is refused with an envelope
    /// instead of being reset by a full backlog.
    const BACKLOG: u32 = saturate(2 * SESSIONS);

    /// Creates an agent that listens as `config` says, as soon as that is possible. Takes over the inherited
    /// descriptors.
    ///
    /// # Errors
    ///
    /// See [`Error`]. A missing vsock module or transport is not one: the agent waits for them.
    pub fn new(storage: &'a mut Storage<SESSIONS, MAX>, config: &Config<'_>) -> Result<Self, Error> {
        let sources = &mut storage.sources;
        sources.epoll = Epoll::new().map_err(Problem::Events.with())?;
        let epoll = sources.epoll.fd();
        sources.timer = Timer::new().inspect_err(|_| epoll.close()).map_err(Problem::Events.with())?;
        sources.maps = config.maps.len();
        sources.allow_cid = config.allow_cid;
        sources.ready = if config.listeners.is_empty() { Ready::Pending } else { Ready::Done };
        let agent = Self { storage };
        let sources = &mut agent.storage.sources;
        sources.listen(config)?;
        sources.open(Self::BACKLOG)?;
        sources.arm_timer()?;
        Ok(agent)
    }

    /// Returns the descriptor that is readable while there is something to do in a [`turn`](Self::turn).
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.storage.sources.epoll.fd().raw()
    }

    /// Does what there is to do, without waiting.
    ///
    /// # Errors
    ///
    /// A port that could not be tried before (the vsock module came later) is taken or not permitted, or the
    /// kernel's event calls fail.
    pub fn turn(&mut self) -> Result<Turn, Error> {
        self.turn_within(0)
    }

    /// Serves without end.
    ///
    /// # Errors
    ///
    /// As [`turn`](Self::turn).
    pub fn run(&mut self) -> Result<Infallible, Error> {
        let mut timeout_ms = 0;
        loop {
            timeout_ms = match self.turn_within(timeout_ms)? {
                Turn::More => 0,
                Turn::Idle => -1,
            };
        }
    }

    #[inline(never)]
    fn turn_within(&mut self, timeout_ms: i32) -> Result<Turn, Error> {
        self.take_events(timeout_ms)?;
        let timer_fired = self.storage.sources.retry == Retry::Due;
        if timer_fired {
            self.storage.sources.open(Self::BACKLOG)?;
        }
        let mut turn = self.step_sessions(timer_fired);
        if self.accept()? {
            turn = Turn::More;
        }
        self.storage.sources.arm_timer()?;
        Ok(turn)
    }

    /// Takes in the events that are there, or the first to come within the time.
    fn take_events(&mut self, timeout_ms: i32) -> Result<(), Error> {
        let mut events = [NO_EVENT; EVENTS_A_TURN];
        let epoll = self.storage.sources.epoll;
        for &event in epoll.wait(&mut events, timeout_ms).map_err(Problem::Events.with())? {
            self.on_event(event);
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) {
        let Storage { sources, slots } = &mut *self.storage;
        let (token, events) = (Token::unpack(event.data), event.events);
        let index = usize::from(token.index);
        match token.source {
            Source::Timer => sources.retry = Retry::Due,
            Source::Ready => sources.ready.on_event(saturate(MAX)),
            Source::Listener => {
                if let Some(listener) = sources.listeners.get_mut(index) {
                    listener.on_event();
                }
            }
            Source::Host | Source::Scheduler => {
                if let Some(slot) = slots.get_mut(index) {
                    slot.on_event(token, events);
                }
            }
        }
    }

    fn step_sessions(&mut self, timer_fired: bool) -> Turn {
        let Storage { sources, slots } = &mut *self.storage;
        let mut turn = Turn::Idle;
        sources.sessions_wait = false;
        for slot in slots {
            let Some(listener) = sources.listeners.get(usize::from(slot.map)) else { continue };
            match slot.step(sources.epoll, &listener.scheduler, timer_fired) {
                Step::More => turn = Turn::More,
                Step::Wait => sources.sessions_wait = true,
                Step::Idle => {}
            }
        }
        turn
    }

    /// Accepts one connection of each port; returns whether more may follow.
    fn accept(&mut self) -> Result<bool, Error> {
        let mut more_follow = false;
        for map in 0..MAX_MAPS {
            let sources = &mut self.storage.sources;
            let Some(listener) = sources.listeners.get_mut(map) else { break };
            let connection = listener.accept();
            more_follow |= listener.is_pending();
            match connection {
                Some((host, peer)) if sources.allows(peer) => self.serve(host, map)?,
                Some((host, _)) => host.close(),
                None => {}
            }
        }
        Ok(more_follow)
    }

    fn serve(&mut self, host: Fd, map: usize) -> Result<(), Error> {
        if !self.storage.slots.iter().any(Slot::is_free) {
            // A session that its host closed before it made this connection is over, so its event comes first.
            self.take_events(0).inspect_err(|_| host.close())?;
            let _more_follows = self.step_sessions(false);
        }
        let Storage { sources, slots } = &mut *self.storage;
        match (0..).zip(slots).find(|(_, slot)| slot.is_free()) {
            // Without memory to watch it the connection is closed, which is all that can be said then.
            Some((number, slot)) => drop(slot.open(sources.epoll, host, number, map)),
            None => slot::refuse(host, saturate(SESSIONS)),
        }
        Ok(())
    }
}

impl<const SESSIONS: usize, const MAX: usize> Drop for Agent<'_, SESSIONS, MAX> {
    fn drop(&mut self) {
        self.storage.slots.iter_mut().for_each(Slot::close);
        self.storage.sources.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_failed_and_what_to_do() {
        let text = |problem, errno| format!("{}", Error { problem, errno });
        assert_eq!(text(Problem::Events, Errno::EMFILE), "cannot create an epoll instance or timer: errno 24");
        assert_eq!(
            text(Problem::Listen { port: 729 }, Errno::EADDRINUSE),
            "cannot listen on vsock port 729: errno 98; is another agent running?"
        );
        assert_eq!(
            text(Problem::Listen { port: 729 }, Errno::EACCES),
            "cannot listen on vsock port 729: errno 13; ports below 1024 need root"
        );
        assert_eq!(
            text(Problem::Descriptor { number: 3 }, Errno::EBADF),
            "descriptor 3 is not a listening socket: errno 9"
        );
    }
}
