//! What an agent watches beside its sessions: the ports that hosts connect to, the one connection by which the host learns
//! that the agent listens, and a timer for what causes no event.

use scx_vsock_wire::READY_PORT;
use scx_vsock_wire::emit::{self, Notice};
use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::limits::MAX_AGENT_ENVELOPE_BYTES;
use scx_vsock_wire::line::up_to;

use crate::arguments::{Config, MAX_MAPS};
use crate::error::Problem;
use crate::hello::hello;
use crate::source::{MAX_PEEKED, Source, WATCH_INPUT};
use crate::sys::{self, EAFNOSUPPORT, EAGAIN, EPOLLET, EPOLLOUT, Fd, UnixAddress, VMADDR_CID_HOST};

/// Milliseconds until what causes no event is tried again.
const RETRY_MS: u32 = 20;

/// How often it is tried again to notify the host that the agent listens. A host that does not listen for that refuses at once.
const MAX_FAILED_ANNOUNCEMENTS: u8 = 3;

const TIMER: u32 = 0;
const READY: u32 = 1;
const LISTENERS: u32 = 2;

/// How many sources there are beside those of sessions.
pub const SOURCES: usize = 2 + MAX_MAPS;

/// The epoll instance and what it watches. All zero before the agent is started.
#[derive(Debug)]
#[repr(C)]
pub struct Sources {
    pub epoll: Fd,
    /// What the latest system call was for whose failure ends the agent.
    pub problem: Problem,
    /// The timer, the Ready connection and the listeners, at their tokens.
    pub watched: [Source; SOURCES],
    /// Whether the timer will fire.
    is_armed: bool,
    /// Whether the host is still to be notified that the agent listens.
    announces: bool,
    /// How often that was tried in vain.
    failed_announcements: u8,
    /// A vsock CID beside the host's that is served; the host's where there is none.
    allow_cid: u32,
    /// [`MAX_PEEKED`] if the latest connection that was accepted is a vsock's, else 0.
    pub most_peeked: i32,
    maps: usize,
    /// The scheduler of each listener.
    pub ports: [Port; MAX_MAPS],
}

/// A vsock port, and the scheduler's socket that its hosts reach.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Port {
    number: u32,
    /// Whether the kernel had no vsock when it was asked.
    is_unsupported: bool,
    /// The scheduler's socket.
    pub scheduler: UnixAddress,
}

impl Port {
    const NONE: Self = Self { number: 0, is_unsupported: false, scheduler: UnixAddress::NONE };

    /// Creates a listener; returns its descriptor.
    #[inline(never)]
    fn listen(&mut self, backlog: u32) -> i32 {
        // Asking the kernel for a family that it does not know makes it start modprobe: ask only when the module is there,
        // where that can be seen.
        if self.is_unsupported && sys::exists(b"/sys/module\0") && !sys::exists(b"/sys/module/vsock\0") {
            return EAFNOSUPPORT;
        }
        let listener = sys::listen_vsock(self.number, backlog);
        self.is_unsupported = listener == EAFNOSUPPORT;
        listener
    }
}

impl Sources {
    pub const NONE: Self = Self {
        epoll: Fd::NONE,
        problem: Problem::Events,
        watched: [Source::NONE; SOURCES],
        is_armed: false,
        announces: false,
        failed_announcements: 0,
        allow_cid: 0,
        most_peeked: 0,
        maps: 0,
        ports: [Port::NONE; MAX_MAPS],
    };

    /// Begins as `config` says, with what it inherits. Returns a negative error number if that is impossible.
    pub fn start(&mut self, config: &Config<'_>, backlog: u32) -> i32 {
        *self = Self::NONE;
        let epoll = sys::create_epoll();
        if epoll < 0 {
            return epoll;
        }
        self.epoll = Fd::new(epoll);
        self.allow_cid = config.allow_cid.unwrap_or(VMADDR_CID_HOST);
        self.announces = config.listeners.is_empty();
        self.maps = config.maps.len();
        let [timer, _, listeners @ ..] = &mut self.watched;
        let outcome = timer.open(self.epoll, sys::create_timer(), WATCH_INPUT, TIMER);
        if outcome < 0 {
            return outcome;
        }
        let mut inherited = config.listeners.iter();
        for (index, (port, map)) in self.ports.iter_mut().zip(&config.maps).enumerate() {
            let Some(listener) = listeners.get_mut(index) else { break };
            let token = LISTENERS + saturate(index);
            port.number = map.port;
            port.scheduler.set(map.socket);
            if let Some(&number) = inherited.next() {
                self.problem = Problem::Descriptor { number };
                let mut outcome = sys::take_listener(number);
                if outcome >= 0 {
                    outcome = listener.open(self.epoll, number, WATCH_INPUT, token);
                }
                if outcome < 0 {
                    return outcome;
                }
            }
        }
        self.open(backlog)
    }

    /// Listens, as far as that is still to be done and possible, and then connects to the host. Returns a negative error
    /// number where it is impossible.
    #[inline(never)]
    fn open(&mut self, backlog: u32) -> i32 {
        let [_, ready, listeners @ ..] = &mut self.watched;
        let mut is_complete = true;
        for map in 0..self.maps {
            let (Some(port), Some(listener)) = (self.ports.get_mut(map), listeners.get_mut(map)) else { break };
            let token = LISTENERS + saturate(map);
            if listener.is_open() {
                // A shortage may be over.
                listener.on_event(sys::EPOLLIN);
                continue;
            }
            let outcome = listener.open(self.epoll, port.listen(backlog), WATCH_INPUT, token);
            if outcome < 0 {
                is_complete = false;
                if !sys::may_pass(outcome) {
                    self.problem = Problem::Listen { port: port.number };
                    return outcome;
                }
            }
        }
        if is_complete && self.announces {
            let connection = sys::connect_vsock(VMADDR_CID_HOST, READY_PORT);
            let outcome = ready.open(self.epoll, connection, EPOLLOUT | EPOLLET, READY);
            self.announces = sys::may_pass(outcome);
        }
        if !is_complete || self.announces {
            self.retry();
        }
        0
    }

    /// Does what the timer fires for, if it did; returns a negative error number where that is impossible.
    pub fn on_timer(&mut self, timer_fired: bool, backlog: u32) -> i32 {
        if !timer_fired {
            return 0;
        }
        self.is_armed = false;
        self.open(backlog)
    }

    /// Returns whether the timer fired since the last call.
    pub fn timer_fired(&mut self) -> bool {
        let [timer, ..] = &mut self.watched;
        let fired = timer.has_event();
        timer.set_idle();
        fired
    }

    /// Has the timer fire soon.
    pub fn retry(&mut self) {
        if !self.is_armed {
            let [timer, ..] = &self.watched;
            sys::arm(timer.fd(), RETRY_MS);
            self.is_armed = true;
        }
    }

    /// Says hello on the Ready connection once it is made or has failed, which fails after a failure, and closes it. Best
    /// effort, and once; a failure is tried again a few times. While its transport is being set up, Linux can ask for a
    /// connection in the name of no CID, which no device answers.
    pub fn announce(&mut self, max_line_bytes: u32) {
        let [_, ready, ..] = &mut self.watched;
        if ready.has_event() {
            let connection = ready.take();
            if say_and_close(connection, max_line_bytes, hello) < 0 {
                self.announces = self.failed_announcements < MAX_FAILED_ANNOUNCEMENTS;
                self.failed_announcements += 1;
                self.retry();
            }
        }
    }

    /// Accepts the next connection of a listener, if there is one of a peer that may be served. Any process of the guest
    /// with a vsock loopback could otherwise read a socket that only root may read, or take every slot.
    #[inline(never)]
    pub fn accept(&mut self, map: usize) -> i32 {
        let [_, _, listeners @ ..] = &mut self.watched;
        let Some(listener) = listeners.get_mut(map).filter(|listener| listener.is_ready()) else { return EAGAIN };
        let accepted = sys::accept(listener.fd());
        self.most_peeked = if accepted.cid.is_some() { MAX_PEEKED } else { 0 };
        match accepted.stream {
            0.. if accepted.cid.is_none_or(|cid| cid == VMADDR_CID_HOST || cid == self.allow_cid) => {
                return accepted.stream;
            }
            0.. => Fd::new(accepted.stream).close(),
            EAGAIN => listener.set_idle(),
            // A shortage, or the connection ended before it was accepted.
            _ => {
                listener.set_idle();
                self.retry();
            }
        }
        EAGAIN
    }

    /// Closes everything.
    pub fn close(&mut self) {
        self.watched.iter_mut().for_each(Source::close);
        self.epoll.close();
        self.epoll = Fd::NONE;
    }
}

/// Reports to a host that every session is taken, as far as that goes without waiting, and closes its connection.
pub fn refuse(host: i32, sessions: u32) {
    let _best_effort =
        say_and_close(Fd::new(host), sessions, |out, sessions| emit::notice(out, Notice::Busy, sessions, 0));
}

fn say_and_close(connection: Fd, number: u32, write: fn(&mut [u8], u32) -> usize) -> i32 {
    let mut line = [0; MAX_AGENT_ENVELOPE_BYTES];
    let length = write(&mut line, number);
    let outcome = sys::send(connection, up_to(&line, length));
    connection.close();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn hello_is_sent_once() {
        let (mut host, agent) = UnixStream::pair().unwrap();
        let mut sources = Sources::NONE;
        sources.epoll = Fd::new(sys::create_epoll());
        let [_, ready, ..] = &mut sources.watched;
        assert!(ready.open(sources.epoll, agent.into_raw_fd(), EPOLLOUT | EPOLLET, READY) >= 0);
        sources.announce(4096);
        host.set_nonblocking(true).unwrap();
        assert!(host.read(&mut [0]).is_err(), "nothing is sent before the connection is made");
        let [_, ready, ..] = &mut sources.watched;
        ready.on_event(EPOLLOUT);
        sources.announce(4096);
        sources.announce(4096);
        let mut hello = String::new();
        host.read_to_string(&mut hello).unwrap();
        assert!(hello.starts_with("{\"hello\":{\"protocol\":1,") && hello.lines().count() == 1, "{hello}");
        sources.close();
    }

    #[test]
    fn a_hello_that_fails_is_tried_again_a_few_times() {
        let mut sources = Sources::NONE;
        sources.epoll = Fd::new(sys::create_epoll());
        for failures in 1..=MAX_FAILED_ANNOUNCEMENTS + 1 {
            let (_, agent) = UnixStream::pair().unwrap();
            let [_, ready, ..] = &mut sources.watched;
            assert!(ready.open(sources.epoll, agent.into_raw_fd(), EPOLLOUT | EPOLLET, READY) >= 0);
            ready.on_event(EPOLLOUT);
            sources.announce(4096);
            assert_eq!(sources.announces, failures <= MAX_FAILED_ANNOUNCEMENTS);
        }
        sources.close();
    }
}
