//! The agent on Linux: one thread, one epoll, a fixed table of sessions.
//!
//! A [turn](Agent::turn) takes note of every event first and acts only then: sessions before new connections, so
//! that nobody is told `busy` while a slot is freed in the same wake-up; and in each session the scheduler's events
//! before the host's, so that nothing the scheduler sent unasked is taken for an answer.

use core::convert::Infallible;

use heapless::Vec;

use crate::arguments::{Config, MAX_MAPS};
use crate::listener::Listener;
use crate::ready::Ready;
use crate::session::Buffers;
use crate::slot::{self, Slot, Step};
use crate::sys::{EPOLLET, EPOLLIN, Epoll, Event, Fd, NO_EVENT, Peer, Timer, VMADDR_CID_HOST};
use crate::token::Token;

pub use crate::sys::Errno;

/// How long what gives no event waits until it is tried again.
const RETRY_MS: u32 = 20;

/// Connections taken from one listener before sessions get their turn.
const ACCEPTS_A_TURN: usize = 16;

/// Events taken in one wait: with the usual table more than there are sources, so that one wait takes them all.
const EVENTS_A_TURN: usize = 32;

/// The memory of an agent's sessions, of which only touched pages count. `MAX` is the byte cap of a line.
///
/// ```
/// use scx_vsock_agent::Storage;
/// use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};
///
/// static STORAGE: Storage<SESSIONS, MAX_RESPONSE_BYTES> = Storage::new();
/// ```
#[derive(Debug)]
pub struct Storage<const SESSIONS: usize, const MAX: usize> {
    slots: [Buffers<MAX>; SESSIONS],
}

impl<const SESSIONS: usize, const MAX: usize> Storage<SESSIONS, MAX> {
    /// Empty storage, all zero.
    ///
    /// ```
    /// let storage = Box::new(scx_vsock_agent::Storage::<2, 4096>::new()); // two sessions, with lines of up to 4 KiB
    /// ```
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [const { Buffers::new() }; SESSIONS] }
    }
}

impl<const SESSIONS: usize, const MAX: usize> Default for Storage<SESSIONS, MAX> {
    fn default() -> Self {
        Self::new()
    }
}

/// Why an agent cannot serve.
///
/// ```
/// use scx_vsock_agent::agent::Errno;
/// use scx_vsock_agent::{Agent, Config, Error, Storage};
///
/// let mut config = Config::default();
/// config.listeners.push(1000).unwrap(); // which nobody opened
/// let error = Agent::new(&mut Storage::<1, 64>::new(), &config).unwrap_err();
/// assert_eq!(error, Error::Descriptor { number: 1000, errno: Errno::EBADF });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The kernel has no epoll instance or timer for it.
    Events(Errno),
    /// A vsock port cannot be listened on.
    Listen {
        /// The port.
        port: u32,
        /// Why.
        errno: Errno,
    },
    /// An inherited descriptor is not a listening socket.
    Descriptor {
        /// Its number.
        number: i32,
        /// Why it cannot be used.
        errno: Errno,
    },
}

/// Whether an agent has more to do.
///
/// ```
/// # use scx_vsock_agent::{Agent, Error, Turn};
/// fn on_event<const SESSIONS: usize, const MAX: usize>(agent: &mut Agent<'_, SESSIONS, MAX>) -> Result<(), Error> {
///     while agent.turn()? == Turn::More {
///         // ... whatever else of an init waits gets its turn in between
///     }
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing, until its descriptor is readable.
    Idle,
    /// Yes, at once: call [`Agent::turn`] again without waiting.
    More,
}

/// Where the retrying of what gives no event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retries {
    /// The timer is not armed.
    None,
    /// The timer is armed.
    Armed,
    /// The timer went off.
    Due,
}

/// An agent that serves at most `SESSIONS` sessions with lines of at most `MAX` bytes.
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
/// while agent.turn().unwrap() == Turn::More {}
/// let mut hello = [0; 9];
/// host.read_exact(&mut hello)?;
/// assert_eq!(&hello, br#"{"hello":"#);
/// # std::fs::remove_file(&path)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Agent<'a, const SESSIONS: usize, const MAX: usize> {
    epoll: Epoll,
    timer: Timer,
    retries: Retries,
    allow_cid: Option<u32>,
    listeners: Vec<Listener<'a>, MAX_MAPS>,
    ready: Ready,
    slots: [Slot<'a, MAX>; SESSIONS],
}

impl<'a, const SESSIONS: usize, const MAX: usize> Agent<'a, SESSIONS, MAX> {
    /// An agent that listens as `config` says, as soon as that is possible. Takes over the inherited descriptors.
    ///
    /// ```no_run
    /// use scx_vsock_agent::{Agent, Config, Map, Storage};
    ///
    /// # fn main() -> Result<(), scx_vsock_agent::Error> {
    /// let mut config = Config::default();
    /// config.maps.push(Map { port: 730, socket: b"/run/second/stats" }).unwrap(); // beside 729
    /// let mut storage = Box::new(Storage::<8, { 256 * 1024 }>::new());
    /// let mut agent = Agent::new(&mut storage, &config)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`]. A missing vsock module or transport is not one: they are waited for.
    #[inline(never)]
    pub fn new(storage: &'a mut Storage<SESSIONS, MAX>, config: &Config<'a>) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Events)?;
        let timer = Timer::new().map_err(Error::Events)?;
        epoll.add(timer.fd(), EPOLLIN | EPOLLET, Token::Timer.pack()).map_err(Error::Events)?;
        let mut numbers = 0..=u8::MAX;
        let slots = storage.slots.each_mut().map(|buffers| Slot::new(numbers.next().unwrap_or(u8::MAX), buffers));
        let listeners = listeners(&epoll, config)?;
        let ready = if config.listeners.is_empty() { Ready::Wanted } else { Ready::Done };
        let mut agent =
            Self { epoll, timer, retries: Retries::None, allow_cid: config.allow_cid, listeners, ready, slots };
        agent.retry()?;
        agent.arm_timer()?;
        Ok(agent)
    }

    /// The descriptor that is readable while there is something to do in a [`turn`](Self::turn).
    ///
    /// ```no_run
    /// use scx_vsock_agent::{Agent, Config, Storage, Turn};
    ///
    /// # fn wait_for(fd: i32) {}
    /// # fn main() -> Result<(), scx_vsock_agent::Error> {
    /// # let mut storage = Box::new(Storage::<8, { 256 * 1024 }>::new());
    /// let mut agent = Agent::new(&mut storage, &Config::default())?;
    /// loop {
    ///     while agent.turn()? == Turn::More {}
    ///     wait_for(agent.fd()); // ... and for whatever else an init waits for
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.epoll.fd().raw()
    }

    /// Does what there is to do, without waiting.
    ///
    /// ```no_run
    /// # use scx_vsock_agent::{Agent, Config, Storage, Turn};
    /// # fn main() -> Result<(), scx_vsock_agent::Error> {
    /// # let mut storage = Box::new(Storage::<8, { 256 * 1024 }>::new());
    /// # let mut agent = Agent::new(&mut storage, &Config::default())?;
    /// match agent.turn()? {
    ///     Turn::More => {} // ... again, after others
    ///     Turn::Idle => {} // ... again when `agent.fd()` is readable
    /// }
    /// # Ok(())
    /// # }
    /// ```
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
    /// ```no_run
    /// # use scx_vsock_agent::{Agent, Config, Storage};
    /// # let mut storage = Box::new(Storage::<8, { 256 * 1024 }>::new());
    /// let ended = Agent::new(&mut storage, &Config::default()).and_then(|mut agent| agent.run());
    /// eprintln!("the agent cannot serve: {ended:?}");
    /// ```
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
        self.take_note(timeout_ms)?;
        if self.retries == Retries::Due {
            self.retries = Retries::None;
            self.retry()?;
        }
        let sessions = self.step_sessions();
        let connections = self.accept()?;
        self.arm_timer()?;
        Ok(if sessions == Turn::More || connections == Turn::More { Turn::More } else { Turn::Idle })
    }

    /// Takes note of the events that are there, or of the first to come within the time.
    fn take_note(&mut self, timeout_ms: i32) -> Result<(), Error> {
        let mut events = [NO_EVENT; EVENTS_A_TURN];
        for &event in self.epoll.wait(&mut events, timeout_ms).map_err(Error::Events)? {
            self.note(event);
        }
        Ok(())
    }

    fn note(&mut self, event: Event) {
        let (bits, events) = (event.data, event.events);
        match Token::unpack(bits) {
            Token::Timer => self.retries = Retries::Due,
            Token::Ready => self.ready.say_hello(),
            Token::Listener(number) => {
                if let Some(listener) = self.listeners.get_mut(usize::from(number)) {
                    listener.note();
                }
            }
            Token::Host { slot, generation } => {
                if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                    slot.note_host(generation, events);
                }
            }
            Token::Scheduler { slot, generation } => {
                if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                    slot.note_scheduler(generation, events);
                }
            }
        }
    }

    /// Tries what gives no event.
    fn retry(&mut self) -> Result<(), Error> {
        let mut all_open = true;
        for listener in &mut self.listeners {
            let port = listener.map.port;
            all_open &=
                listener.open(&self.epoll, backlog::<SESSIONS>()).map_err(|errno| Error::Listen { port, errno })?;
            if listener.wants_retry() {
                listener.note();
            }
        }
        if all_open {
            self.ready.dial(&self.epoll);
        }
        for slot in &mut self.slots {
            slot.retry();
        }
        Ok(())
    }

    fn step_sessions(&mut self) -> Turn {
        let mut turn = Turn::Idle;
        for slot in &mut self.slots {
            if slot.step(&self.epoll) == Step::More {
                turn = Turn::More;
            }
        }
        turn
    }

    fn accept(&mut self) -> Result<Turn, Error> {
        let mut turn = Turn::Idle;
        for number in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_A_TURN {
                let Some(listener) = self.listeners.get_mut(number).filter(|listener| listener.is_pending()) else {
                    break;
                };
                turn = Turn::More;
                let socket = listener.map.socket;
                if let Some((host, peer)) = listener.accept()
                    && self.may_talk(peer)
                {
                    self.serve(host, socket)?;
                }
            }
        }
        Ok(turn)
    }

    /// Any process of the guest with a vsock loopback could otherwise read a socket that only root may read, or take
    /// every slot.
    fn may_talk(&self, peer: Peer) -> bool {
        match peer {
            Peer::Local | Peer::Vsock(VMADDR_CID_HOST) => true,
            Peer::Vsock(cid) => Some(cid) == self.allow_cid,
        }
    }

    fn serve(&mut self, host: Fd, socket: &'a [u8]) -> Result<(), Error> {
        if !self.slots.iter().any(Slot::is_free) {
            // A session that its host ended before it made this connection is over, so its event comes first.
            self.take_note(0)?;
            let _more_is_seen_later = self.step_sessions();
        }
        match self.slots.iter_mut().find(|slot| slot.is_free()) {
            // Without memory to watch it the connection is closed, which is all that can be said then.
            Some(slot) => drop(slot.open(&self.epoll, host, socket)),
            None => slot::refuse(&host, SESSIONS),
        }
        Ok(())
    }

    fn arm_timer(&mut self) -> Result<(), Error> {
        let wanted = self.ready.is_wanted()
            || self.listeners.iter().any(Listener::wants_retry)
            || self.slots.iter().any(Slot::awaits_timer);
        if wanted && self.retries == Retries::None {
            self.timer.arm(RETRY_MS).map_err(Error::Events)?;
            self.retries = Retries::Armed;
        }
        Ok(())
    }
}

fn listeners<'a>(epoll: &Epoll, config: &Config<'a>) -> Result<Vec<Listener<'a>, MAX_MAPS>, Error> {
    let mut listeners = Vec::new();
    for (number, &map) in (0u8..).zip(&config.maps) {
        let listener = match config.listeners.get(usize::from(number)) {
            Some(&descriptor) => Listener::inherited(epoll, number, map, descriptor)
                .map_err(|errno| Error::Descriptor { number: descriptor, errno })?,
            None => Listener::wanted(number, map),
        };
        let _as_many_as_maps = listeners.push(listener);
    }
    Ok(listeners)
}

/// Twice the sessions: hosts that find every session taken are told so instead of being reset by a full backlog.
fn backlog<const SESSIONS: usize>() -> u32 {
    u32::try_from(SESSIONS.saturating_mul(2)).unwrap_or(u32::MAX)
}
