//! The life cycle of a back end: it waits for a front end, serves it, and ends.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::back_end::{BackEnd, QUEUES};
use super::error::Error;
use super::events::{Event, Events};
use super::exit_consumer::{ExitConsumer, watch_worker};
use super::shutdown::Shutdown;
use crate::io::descriptors::Reservation;
use crate::vsock::{Device, Handle};

/// The event by which the framework's worker hands its thread over. Numbers up to that of the queues, included, belong to the
/// framework.
const HAND_OVER: u64 = QUEUES as u64 + 1;

/// Descriptors that a front end takes: those of 8 memory regions, also while it replaces them, and of each queue a kick, what
/// the framework watches in its place, a call, and one for errors.
const FRONT_END_DESCRIPTORS: u64 = 2 * 8 + 4 * QUEUES as u64;

/// A vhost-user back end that serves one front end. Dropping it ends the device, and with it every connection.
///
/// Its descriptor is readable while there is an event to [take](Self::take_event), and hung up once the front end is gone.
///
/// ```no_run
/// use std::os::unix::net::UnixListener;
/// use scx_vsock::SchedStatsClient;
/// use scx_vsock::transport::vhost_user::Server;
///
/// let server = Server::start(UnixListener::bind("/run/guest1")?, 3)?;
/// // ... QEMU is started, with shared memory and these arguments:
/// // -chardev socket,id=vsock,path=/run/guest1 -device vhost-user-vsock-pci,chardev=vsock
/// // ... its agent comes up, for which a `vsock::ReadyListener` waits, and then:
/// let client = SchedStatsClient::builder(server.handle().agent()).build();
/// client.wait_for_scheduler(std::time::Duration::from_secs(60))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    handle: Handle,
    events: Arc<Events>,
    shutdown: Arc<Shutdown>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the first front end that connects to `listener`, without waiting for it. A program that connects and leaves,
    /// or sends something other than vhost-user, is none. Connections that the host asks for before wait for the guest's
    /// driver.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start(listener: UnixListener, guest_cid: u64) -> Result<Self, Error> {
        let device = Device::new(guest_cid)?;
        let handle = device.handle();
        let events = Arc::new(Events::new()?);
        let shutdown = Arc::new(Shutdown::new()?);
        let (back_end, exit_consumer) = BackEnd::new(device, Arc::clone(&events), Arc::clone(&shutdown))?;
        let back_end = Arc::new(back_end);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let daemon = VhostUserDaemon::new("vhost-user-vsock".into(), Arc::clone(&back_end), memory)?;
        let exit_consumer = ExitConsumer::of(exit_consumer);
        for worker in daemon.get_epoll_handlers() {
            watch_worker(back_end.epoll(), &*worker)?;
            worker.register_listener(back_end.hand_over().as_fd().as_raw_fd(), EventSet::IN, HAND_OVER)?;
        }
        let (owned_shutdown, reserved) = (Arc::clone(&shutdown), Reservation::new(FRONT_END_DESCRIPTORS));
        let mut session = Session { back_end, daemon, shutdown: owned_shutdown, events: Arc::clone(&events), reserved };
        let thread = thread::Builder::new().name("vhost-user-wait".into()).spawn(move || {
            if let Err(error) = session.run(listener) {
                session.events.report(Event::Error(error));
            }
            session.end();
            drop(exit_consumer);
        })?;
        Ok(Self { handle, events, shutdown, thread: Some(thread) })
    }

    /// Returns the host side of the guest's device.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes the next event. Events of a kind that were not taken are one, the latest. Those that came before the front end
    /// went can be taken afterwards.
    #[must_use]
    pub fn take_event(&self) -> Option<Event> {
        self.events.take()
    }
}

/// The front end's session, as the thread that waits for its end has it.
struct Session {
    back_end: Arc<BackEnd>,
    daemon: VhostUserDaemon<Arc<BackEnd>>,
    shutdown: Arc<Shutdown>,
    events: Arc<Events>,
    reserved: Reservation,
}

impl Session {
    /// Serves the first front end, until it or the server ends.
    ///
    /// # Errors
    ///
    /// The front end's fault, or the kernel's.
    fn run(&mut self, listener: UnixListener) -> Result<(), Error> {
        let mut connections = Listener::from(listener.try_clone()?);
        while self.shutdown.wait_for_front_end(&listener)? {
            // One that is lost would leave the guest a dead device.
            self.reserved.check()?;
            self.daemon.start(&mut connections)?;
            self.shutdown.on_front_end(self.daemon.shutdown_handle());
            let ended = self.daemon.wait();
            if self.back_end.has_front_end() {
                return self.outcome(ended);
            }
            if !self.shutdown.wait_again() {
                break;
            }
        }
        Ok(())
    }

    /// Returns why the front end's session ended, unless the front end only left.
    fn outcome(&self, ended: Result<(), vhost_user_backend::Error>) -> Result<(), Error> {
        let Some(error) = ended.err().and_then(Error::of_session) else { return Ok(()) };
        // The framework drops the head of a message whose descriptors are lost, and takes what follows for a head.
        if matches!(error, Error::FrontEnd { .. }) {
            self.reserved.check()?;
        }
        Err(error)
    }

    fn end(self) {
        self.back_end.close_interrupts();
        // Waits for the worker.
        drop(self.daemon);
        self.back_end.close();
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.request();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Server").field("handle", &self.handle).finish_non_exhaustive()
    }
}
