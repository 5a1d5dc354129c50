//! The epoll instance of a device: which host streams have something to read, or room for more. A transport whose thread
//! waits for it alone adds what else that thread is woken by.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use super::key::Key;

/// Events of one [`Poller::poll`].
pub const MAX_EVENTS: usize = 64;

/// What came in one [`wait`]. It is on the stack: a wait allocates nothing.
pub type HostEvents = heapless::Vec<HostEvent, MAX_EVENTS>;

/// The host port of tokens that are of no connection: nobody listens on the port that means any.
const NO_PORT: u32 = u32::MAX;

/// The token of the host side's wake-up.
const WAKE: u64 = u64::MAX;

/// The token of the timer.
const TIMER: u64 = u64::MAX - 1;

/// The token of the transport's own descriptor.
#[cfg(feature = "vhost-user")]
const TRANSPORT: u64 = u64::MAX - 2;

/// The tokens of queue notifications.
#[cfg(feature = "vhost-user")]
const NOTIFICATIONS: [u64; 3] = [u64::MAX - 3, u64::MAX - 4, u64::MAX - 5];

/// The host's end may have something to read, if only its end.
const READABLE: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);

/// The host's end is closed.
const HUNG_UP: EventFlags = EventFlags::HUP.union(EventFlags::ERR);

/// What a stream is watched for. Each event is reported once (`EPOLLET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes of the host, and its end.
    Read,
    /// Room in the socket, too.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        let read = READABLE.union(EventFlags::ET);
        match self {
            Self::Read => read,
            Self::ReadWrite => read.union(EventFlags::OUT),
        }
    }
}

/// What happened to a host stream. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The socket may have room.
    Writable,
    /// A read may return something.
    Readable,
    /// The host sends no more.
    Ended,
    /// The host closed its end.
    HungUp,
}

impl StreamEvent {
    fn of(flags: EventFlags) -> Self {
        if flags.intersects(HUNG_UP) {
            Self::HungUp
        } else if flags.intersects(EventFlags::RDHUP) {
            Self::Ended
        } else if flags.intersects(EventFlags::IN) {
            Self::Readable
        } else {
            Self::Writable
        }
    }
}

/// An event of the device's host side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A handle woke the device.
    Wake,
    /// The time of [`Poller::wake_after`] is over.
    Timer,
    /// The driver has notified the queue of this number.
    #[cfg(feature = "vhost-user")]
    Notification(usize),
    /// The transport has something else to do.
    #[cfg(feature = "vhost-user")]
    Transport,
    /// Something happened to a stream.
    Stream(Token, StreamEvent),
}

impl HostEvent {
    fn of(event: &Event) -> Self {
        let Event { flags, data } = *event;
        match data.u64() {
            WAKE => Self::Wake,
            TIMER => Self::Timer,
            #[cfg(feature = "vhost-user")]
            TRANSPORT => Self::Transport,
            #[cfg(feature = "vhost-user")]
            number if let Some(queue) = NOTIFICATIONS.iter().position(|&token| token == number) => {
                Self::Notification(queue)
            }
            number => Self::Stream(Token::of(key(number)), StreamEvent::of(flags)),
        }
    }
}

/// Whose stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// This connection's.
    Connection(Key),
    /// One with this number, of a connection that is over for the guest.
    Unread(u32),
}

impl Token {
    /// The last number of such a stream.
    pub const LAST_UNREAD: u32 = u32::MAX - 6;

    fn key(self) -> Key {
        match self {
            Self::Connection(key) => key,
            Self::Unread(number) => Key { host_port: NO_PORT, guest_port: number },
        }
    }

    fn of(key: Key) -> Self {
        if key.host_port == NO_PORT { Self::Unread(key.guest_port) } else { Self::Connection(key) }
    }
}

/// The epoll instance of a device.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    /// Made when it is needed, which most guests never cause.
    timer: Option<OwnedFd>,
}

impl Poller {
    /// Watches `wake`, the descriptor by which handles wake the device.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no epoll instance.
    pub fn new(wake: BorrowedFd<'_>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // Each wake-up is reported once, so that nobody has to clear it.
        epoll::add(&epoll, wake, EventData::new_u64(WAKE), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, timer: None })
    }

    /// Watches a stream, for [`Interest::Read`].
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no memory or watches for it.
    pub fn add(&self, key: Key, socket: impl AsFd) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number(key)), Interest::Read.flags())?)
    }

    /// Changes what a stream is watched for.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn modify(&self, token: Token, socket: impl AsFd, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number(token.key())), interest.flags())?)
    }

    /// Makes the descriptor readable when this time is over, which is not zero. The last call counts.
    ///
    /// # Errors
    ///
    /// The kernel's, if it has no timer or watch for it.
    pub fn wake_after(&mut self, time: Duration) -> io::Result<()> {
        let it_value = Timespec::try_from(time).map_err(io::Error::other)?;
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        let timer = match &self.timer {
            Some(timer) => timer,
            None => self.timer.insert(self.new_timer()?),
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn new_timer(&self) -> io::Result<OwnedFd> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        // Each expiry is reported once, so that nobody has to read it.
        epoll::add(&self.epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(timer)
    }

    /// Returns what has happened, at most [`MAX_EVENTS`], without waiting.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn poll(&self) -> io::Result<HostEvents> {
        wait(&self.epoll, Some(Duration::ZERO))
    }
}

/// Waits until something happens at a device's epoll instance, or this time is over. Returns what has happened, at most
/// [`MAX_EVENTS`]. What is returned is to be handed to the device: streams report each event once.
///
/// # Errors
///
/// The kernel's.
pub fn wait(epoll: impl AsFd, within: Option<Duration>) -> io::Result<HostEvents> {
    let within = within.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); MAX_EVENTS];
    match epoll::wait(epoll, &mut space, within.as_ref()) {
        Ok((events, _)) => Ok(events.iter().map(HostEvent::of).collect()),
        Err(Errno::INTR) => Ok(HostEvents::new()),
        Err(errno) => Err(errno.into()),
    }
}

/// Adds the event descriptor of a queue's notifications to a device's epoll instance. Each is reported once
/// ([`HostEvent::Notification`]), so that nobody has to read it.
///
/// # Errors
///
/// The kernel's, if it has no memory or watches for it, or `InvalidInput` if a device has no queue of this number.
#[cfg(feature = "vhost-user")]
pub fn add_notifications(epoll: impl AsFd, queue: usize, event: impl AsFd) -> io::Result<()> {
    let token = *NOTIFICATIONS.get(queue).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(epoll::add(epoll, event, EventData::new_u64(token), EventFlags::IN | EventFlags::ET)?)
}

/// Removes what [`add_notifications`] added.
#[cfg(feature = "vhost-user")]
pub fn remove_notifications(epoll: impl AsFd, event: impl AsFd) {
    let _was_there = epoll::delete(epoll, event);
}

/// Adds a descriptor of the transport, which is reported ([`HostEvent::Transport`]) as long as it is readable.
///
/// # Errors
///
/// The kernel's.
#[cfg(feature = "vhost-user")]
pub fn add_transport(epoll: impl AsFd, fd: impl AsFd) -> io::Result<()> {
    Ok(epoll::add(epoll, fd, EventData::new_u64(TRANSPORT), EventFlags::IN)?)
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn number(key: Key) -> u64 {
    let ([g0, g1, g2, g3], [h0, h1, h2, h3]) = (key.guest_port.to_le_bytes(), key.host_port.to_le_bytes());
    u64::from_le_bytes([g0, g1, g2, g3, h0, h1, h2, h3])
}

fn key(number: u64) -> Key {
    let [g0, g1, g2, g3, h0, h1, h2, h3] = number.to_le_bytes();
    Key { host_port: u32::from_le_bytes([h0, h1, h2, h3]), guest_port: u32::from_le_bytes([g0, g1, g2, g3]) }
}
