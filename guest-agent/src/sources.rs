//! What an agent watches beside its sessions: the ports that hosts connect to, the one connection by which the host learns
//! that the agent listens, and a timer for what causes no event.

use scx_vsock_wire::limits::{MAX_AGENT_ENVELOPE_BYTES, MAX_NAME_BYTES};
use scx_vsock_wire::line::up_to;
use scx_vsock_wire::{READY_PORT, Text, emit};

use crate::arguments::{Config, MAX_MAPS};
use crate::error::{Error, Problem};
use crate::hello::{boot_id, version};
use crate::source::{Source, WATCH_INPUT};
use crate::sys::{
    self, EAFNOSUPPORT, EAGAIN, ECONNABORTED, EINTR, EPOLLET, EPOLLOUT, Fd, UnixAddress, VMADDR_CID_HOST,
};

/// Milliseconds until what causes no event is tried again.
const RETRY_MS: u32 = 20;

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
    /// The timer, the Ready connection and the listeners, at their tokens.
    pub watched: [Source; SOURCES],
    /// Whether the timer will fire.
    is_armed: bool,
    /// Whether the host is still to be notified that the agent listens.
    announces: bool,
    /// A vsock CID beside the host's that is served; the host's where there is none.
    allow_cid: u32,
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
    fn listen(&mut self, backlog: u32) -> i32 {
        // Asking the kernel for a family that it does not know makes it start modprobe: ask only when the module is there,
        // where that can be seen.
        if self.is_unsupported
            && sys::exists(b"/sys/module", Text::EMPTY)
            && !sys::exists(b"/sys/module/vsock", Text::EMPTY)
        {
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
        watched: [Source::NONE; SOURCES],
        is_armed: false,
        announces: false,
        allow_cid: 0,
        maps: 0,
        ports: [Port::NONE; MAX_MAPS],
    };

    /// Begins as `config` says, with what it inherits.
    pub fn start(&mut self, config: &Config<'_>, backlog: u32) -> Result<(), Error> {
        *self = Self::NONE;
        let epoll = sys::create_epoll();
        Problem::Events.check(epoll)?;
        self.epoll = Fd::new(epoll);
        self.allow_cid = config.allow_cid.unwrap_or(VMADDR_CID_HOST);
        self.announces = config.listeners.is_empty();
        self.maps = config.maps.len();
        let [timer, _, listeners @ ..] = &mut self.watched;
        Problem::Events.check(timer.open(self.epoll, sys::create_timer(), WATCH_INPUT, TIMER))?;
        let mut inherited = config.listeners.iter();
        for (((port, map), listener), token) in self.ports.iter_mut().zip(&config.maps).zip(listeners).zip(LISTENERS..)
        {
            port.number = map.port;
            port.scheduler.set(map.socket);
            if let Some(&number) = inherited.next() {
                let socket = Fd::new(number);
                let mut outcome = sys::listen(socket, backlog);
                if outcome >= 0 {
                    sys::set_nonblocking(socket);
                    outcome = listener.open(self.epoll, number, WATCH_INPUT, token);
                }
                Problem::Descriptor { number }.check(outcome)?;
            }
        }
        self.open(backlog)
    }

    /// Does what the timer fires for; returns whether it fired.
    pub fn on_timer(&mut self, backlog: u32) -> Result<bool, Error> {
        let [timer, ..] = &mut self.watched;
        if !timer.is_ready() {
            return Ok(false);
        }
        timer.set_idle();
        self.is_armed = false;
        self.open(backlog)?;
        Ok(true)
    }

    /// Listens, as far as that is still to be done and possible, and then connects to the host.
    fn open(&mut self, backlog: u32) -> Result<(), Error> {
        let [_, ready, listeners @ ..] = &mut self.watched;
        let mut is_complete = true;
        for ((port, listener), token) in self.ports.iter_mut().zip(listeners).zip(LISTENERS..).take(self.maps) {
            if listener.is_open() {
                // A shortage may be over.
                listener.on_event(sys::EPOLLIN);
                continue;
            }
            let outcome = listener.open(self.epoll, port.listen(backlog), WATCH_INPUT, token);
            if outcome < 0 {
                is_complete = false;
                if !sys::may_pass(outcome) {
                    return Problem::Listen { port: port.number }.check(outcome);
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
        Ok(())
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
    /// effort, once.
    pub fn announce(&mut self, max_line_bytes: u32) {
        let [_, ready, ..] = &mut self.watched;
        if ready.has_event() {
            let mut line = [0; MAX_AGENT_ENVELOPE_BYTES];
            let length = emit::hello(&mut line, version(), boot_id(&mut [0; MAX_NAME_BYTES]), max_line_bytes);
            sys::send(ready.fd(), up_to(&line, length));
            ready.close();
        }
    }

    /// Accepts the next connection of a listener, if there is one of a peer that may be served. Any process of the guest
    /// with a vsock loopback could otherwise read a socket that only root may read, or take every slot.
    pub fn accept(&mut self, map: usize) -> Option<i32> {
        let [_, _, listeners @ ..] = &mut self.watched;
        let listener = listeners.get_mut(map)?;
        if !listener.is_ready() {
            return None;
        }
        let (connection, cid) = sys::accept(listener.fd());
        match connection {
            0.. if cid == VMADDR_CID_HOST || cid == self.allow_cid => return Some(connection),
            0.. => Fd::new(connection).close(),
            // It ended before it was accepted; others may be there.
            ECONNABORTED | EINTR => {}
            EAGAIN => listener.set_idle(),
            // A shortage.
            _ => {
                listener.set_idle();
                self.retry();
            }
        }
        None
    }

    /// Whether connections may be there that can be accepted now.
    pub fn may_accept(&self) -> bool {
        let [_, _, listeners @ ..] = &self.watched;
        listeners.iter().any(Source::is_ready)
    }

    /// Closes everything.
    pub fn close(&mut self) {
        self.watched.iter_mut().for_each(Source::close);
        self.epoll.close();
        self.epoll = Fd::NONE;
    }
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
}
