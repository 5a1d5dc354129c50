//! The agent on Linux: one thread, one epoll, a fixed table of sessions.
//!
//! A [turn](Agent::turn) takes note of every event first and acts only then: sessions before new connections, so
//! that nobody is told `busy` while a slot is freed in the same wake-up; and in each session the scheduler's events
//! before the host's, so that nothing the scheduler sent unasked is taken for an answer.

use heapless::Vec;

use crate::arguments::{Config, MAX_MAPS};
use crate::listener::Listener;
use crate::ready::Ready;
use crate::session::Buffers;
use crate::slot::{self, Slot, Step};
use crate::sys::{self, EPOLLET, EPOLLIN, Epoll, Errno, Event, NO_EVENT, Peer, Timer, VMADDR_CID_HOST};
use crate::token::Token;

/// How long what gives no event waits until it is tried again.
const RETRY_MS: u32 = 20;

/// Events taken in one wait.
const EVENTS_A_TURN: usize = 32;

/// The memory of an agent's sessions, of which only touched pages count. `MAX` is the byte cap of a line.
#[derive(Debug)]
pub struct Storage<const SESSIONS: usize, const MAX: usize> {
    slots: [Buffers<MAX>; SESSIONS],
}

impl<const SESSIONS: usize, const MAX: usize> Storage<SESSIONS, MAX> {
    /// Empty storage, all zero.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Nothing, until its descriptor is readable.
    Idle,
    /// Yes, at once: call [`Agent::turn`] again without waiting.
    More,
}

/// An agent that serves at most `SESSIONS` sessions with lines of at most `MAX` bytes.
#[derive(Debug)]
pub struct Agent<'a, const SESSIONS: usize, const MAX: usize> {
    epoll: Epoll,
    timer: Timer,
    timer_armed: bool,
    allow_cid: Option<u32>,
    listeners: Vec<Listener<'a>, MAX_MAPS>,
    ready: Ready,
    slots: [Slot<'a, MAX>; SESSIONS],
}

impl<'a, const SESSIONS: usize, const MAX: usize> Agent<'a, SESSIONS, MAX> {
    /// An agent that listens as `config` says, as soon as that is possible. Takes over the inherited descriptors.
    ///
    /// # Errors
    ///
    /// See [`Error`]. A missing vsock module or transport is not one: they are waited for.
    pub fn new(storage: &'a mut Storage<SESSIONS, MAX>, config: &Config<'a>) -> Result<Self, Error> {
        let epoll = Epoll::new().map_err(Error::Events)?;
        let timer = Timer::new().map_err(Error::Events)?;
        epoll.add(timer.fd(), EPOLLIN | EPOLLET, Token::Timer.pack()).map_err(Error::Events)?;
        let mut numbers = 0..=u8::MAX;
        let slots = storage.slots.each_mut().map(|buffers| Slot::new(numbers.next().unwrap_or(u8::MAX), buffers));
        let listeners = listeners(&epoll, config)?;
        let ready = if config.listeners.is_empty() { Ready::Wanted } else { Ready::Done };
        let mut agent = Self { epoll, timer, timer_armed: false, allow_cid: config.allow_cid, listeners, ready, slots };
        agent.retry()?;
        agent.arm_timer()?;
        Ok(agent)
    }

    /// The descriptor that is readable while there is something to do in a [`turn`](Self::turn).
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.epoll.fd().raw()
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
    pub fn run(&mut self) -> Result<core::convert::Infallible, Error> {
        let mut timeout_ms = 0;
        loop {
            timeout_ms = match self.turn_within(timeout_ms)? {
                Turn::More => 0,
                Turn::Idle => -1,
            };
        }
    }

    fn turn_within(&mut self, timeout_ms: i32) -> Result<Turn, Error> {
        let mut events = [NO_EVENT; EVENTS_A_TURN];
        let events = self.epoll.wait(&mut events, timeout_ms).map_err(Error::Events)?;
        let mut timer_fired = false;
        for &event in events {
            timer_fired |= note(&mut self.slots, &mut self.listeners, &mut self.ready, event);
        }
        if timer_fired {
            self.timer_armed = false;
            self.retry()?;
        }
        let sessions = self.step_sessions();
        let connections = self.accept();
        self.arm_timer()?;
        Ok(if sessions == Turn::More || connections == Turn::More { Turn::More } else { Turn::Idle })
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

    fn accept(&mut self) -> Turn {
        let mut turn = Turn::Idle;
        for listener in &mut self.listeners {
            let socket = listener.map.socket;
            listener.accept(|host, peer| {
                if let Peer::Vsock(cid) = peer
                    && cid != VMADDR_CID_HOST
                    && Some(cid) != self.allow_cid
                {
                    return;
                }
                turn = Turn::More;
                match self.slots.iter_mut().find(|slot| slot.is_free()) {
                    Some(slot) => {
                        let _no_memory: sys::Result<()> = slot.open(&self.epoll, host, socket);
                    }
                    None => slot::refuse(&host, SESSIONS),
                }
            });
            if listener.is_pending() {
                turn = Turn::More;
            }
        }
        turn
    }

    fn arm_timer(&mut self) -> Result<(), Error> {
        let wanted = self.ready.is_wanted()
            || self.listeners.iter().any(Listener::wants_retry)
            || self.slots.iter().any(Slot::awaits_timer);
        if wanted && !self.timer_armed {
            self.timer.arm(RETRY_MS).map_err(Error::Events)?;
            self.timer_armed = true;
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

/// Takes note of one event; gives whether it was the timer's.
fn note<const MAX: usize>(
    slots: &mut [Slot<'_, MAX>],
    listeners: &mut [Listener<'_>],
    ready: &mut Ready,
    event: Event,
) -> bool {
    let (bits, events) = (event.data, event.events);
    match Token::unpack(bits) {
        Token::Timer => return true,
        Token::Ready => ready.say_hello(),
        Token::Listener(number) => {
            if let Some(listener) = listeners.get_mut(usize::from(number)) {
                listener.note();
            }
        }
        Token::Host { slot, generation } => {
            if let Some(slot) = slots.get_mut(usize::from(slot)) {
                slot.note_host(generation, events);
            }
        }
        Token::Scheduler { slot, generation } => {
            if let Some(slot) = slots.get_mut(usize::from(slot)) {
                slot.note_scheduler(generation, events);
            }
        }
    }
    false
}
