//! The device as a vhost-user back end, for QEMU and other monitors that run as processes of their own.
//!
//! [`Server`] serves one front end with two threads of its own: one reads the front end's messages, the other runs the
//! device. Neither calls into the user's code, so a [`Handle`] may be used from anywhere.
//!
//! What QEMU's `vhost-user-vsock` device does not do, no back end can: it keeps the event queue to itself, so that
//! there is no transport reset, snapshot or migration; and it does not connect again after the back end is gone.
//!
//! A front end cannot end this process by cutting guest memory short: the first server installs a handler of SIGBUS for
//! the process, which passes on what is not about guest memory. A program that installs one of its own later must do the
//! same.

mod shared_memory;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use crate::io::eventfd::{EventFd, Notify};
use crate::vsock::spec::{RX_QUEUE, TX_QUEUE};
use crate::vsock::{Device, DeviceError, Handle};

use shared_memory::Watch;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Vring = VringRwLock<Memory>;

/// The receive and the transmit queue; the front end keeps the event queue.
const QUEUES: usize = 2;

/// Entries of the largest queue that a driver may set up.
const MAX_QUEUE_SIZE: usize = 1024;

/// Bytes of the configuration space that are left out: none, but for the fault that is planted for the fuzz targets.
const SKIPPED: usize = if cfg!(planted_off_by_one) { 1 } else { 0 };

/// The event of the device's own descriptor. Numbers up to that of the queues belong to the framework.
const HOST_EVENT: u16 = 3;

/// Why a guest is not served.
///
/// ```
/// use std::os::unix::net::UnixListener;
/// use scx_vsock::transport::vhost_user::{Error, Server};
///
/// # let folder = tempfile::tempdir()?;
/// let error = Server::start(UnixListener::bind(folder.path().join("vsock"))?, 2).unwrap_err();
/// assert!(matches!(error, Error::Device(_)));
/// assert_eq!(error.to_string(), "2 cannot be a guest's CID: use one from 3 to 4294967294");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vhost-user framework failed.
    #[error("the vhost-user back end failed: {reason}")]
    Backend {
        /// What the framework says. Its own error cannot be shared between threads.
        reason: String,
    },
    /// The host's kernel has no descriptors, memory or threads for it.
    #[error("the host's kernel refuses the vhost-user back end what it needs")]
    Host(#[from] io::Error),
}

impl From<vhost_user_backend::Error> for Error {
    fn from(error: vhost_user_backend::Error) -> Self {
        match error {
            vhost_user_backend::Error::StartDaemon(error) => Self::Host(error),
            other => Self::Backend { reason: other.to_string() },
        }
    }
}

/// What the framework drives.
struct Backend {
    state: Mutex<State>,
    memory: Mutex<Option<Arc<Mapped>>>,
    exit: Mutex<Option<(EventConsumer, EventNotifier)>>,
    news: Mutex<News>,
}

/// Guest memory, and whether the front end left it whole.
struct Mapped {
    memory: Arc<GuestMemoryMmap>,
    watch: Watch,
}

/// What the server's owner is told: a byte for an error, the end when the front end is gone.
#[derive(Default)]
struct News {
    error: Option<DeviceError>,
    writer: Option<OwnedFd>,
}

impl News {
    fn tell(&mut self, error: DeviceError) {
        self.error = Some(error);
        if let Some(writer) = &self.writer {
            // A pipe that is full is readable already.
            let _told = rustix::io::write(writer, &[0]);
        }
    }
}

struct State {
    device: Device,
    /// Which rings were stopped since both last ran. A front end stops rings to pause a guest and to reset it; only
    /// where they start again tells which it was.
    stopped: [bool; QUEUES],
}

/// A lock whose data is whole at every point where a thread could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    fn service(&self, rx: &Vring, tx: &Vring) -> Result<(), DeviceError> {
        let mut state = lock(&self.state);
        let Some(mapped) = lock(&self.memory).clone() else {
            return state.device.service_host();
        };
        let mut rx = rx.get_mut();
        let mut tx = tx.get_mut();
        if mapped.watch.is_gone() {
            return state.device.service_host();
        }
        if !rx.is_enabled() || !tx.is_enabled() || !rx.get_queue().ready() || !tx.get_queue().ready() {
            return state.device.service_host();
        }
        state.start(rx.get_queue().next_avail(), tx.get_queue().next_avail());
        let served = state.device.service(&*mapped.memory, rx.get_queue_mut(), tx.get_queue_mut(), None);
        if mapped.watch.is_gone() {
            return Err(DeviceError::MemoryGone);
        }
        let interrupts = served?;
        drop(state);
        // A front end that closed its interrupt is gone, which its own thread sees.
        if interrupts.rx {
            let _signalled = rx.signal_used_queue();
        }
        if interrupts.tx {
            let _signalled = tx.signal_used_queue();
        }
        Ok(())
    }
}

impl State {
    /// Both rings run. A guest that was reset starts both at 0, and then knows of no connection.
    fn start(&mut self, rx: u16, tx: u16) {
        if self.stopped.contains(&true) {
            if rx == 0 && tx == 0 {
                self.device.reset();
            }
            self.stopped = [false; QUEUES];
        }
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        Device::FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        lock(&self.state).device.negotiate(features);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&self) {
        lock(&self.state).device.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The framework sets its queues up.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = lock(&self.state).device.config();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        config
            .get(from.saturating_add(SKIPPED)..)
            .and_then(|rest| rest.get(..size))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let memory = memory.memory().into_inner();
        let watch = Watch::new(&memory)?;
        *lock(&self.memory) = Some(Arc::new(Mapped { memory, watch }));
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        lock(&self.exit).take()
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        // Taking the lock waits for work on the ring to end.
        let mut state = lock(&self.state);
        if let Some(stopped) = usize::try_from(queue).ok().and_then(|queue| state.stopped.get_mut(queue)) {
            *stopped = true;
        }
        Ok(())
    }

    fn handle_event(&self, _event: u16, _set: EventSet, vrings: &[Vring], _thread: usize) -> io::Result<()> {
        let (Some(rx), Some(tx)) = (vrings.get(RX_QUEUE), vrings.get(TX_QUEUE)) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        // An error here would end the thread, and with it the service after a reset.
        if let Err(error) = self.service(rx, tx) {
            lock(&self.news).tell(error);
        }
        Ok(())
    }
}

/// A vhost-user back end that serves one front end. Dropping it ends the device, and with it every connection.
///
/// ```no_run
/// use std::os::unix::net::UnixListener;
/// use scx_vsock::SchedStatsClient;
/// use scx_vsock::transport::vhost_user::Server;
///
/// let server = Server::start(UnixListener::bind("/run/guest1")?, 3)?;
/// // ... QEMU is started, with shared memory and these arguments:
/// // -chardev socket,id=vsock,path=/run/guest1 -device vhost-user-vsock-pci,chardev=vsock
/// let client = SchedStatsClient::builder(server.handle().agent()).build();
/// client.wait_for_scheduler(std::time::Duration::from_secs(60))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Server {
    handle: Handle,
    backend: Arc<Backend>,
    end: Arc<End>,
    news: OwnedFd,
    waiter: Option<JoinHandle<()>>,
}

/// How the server's owner ends it, whether a front end has come or not.
#[derive(Debug)]
struct End {
    state: Mutex<EndState>,
    wake: EventFd,
}

enum EndState {
    /// No front end has come.
    Waiting,
    /// One is served.
    Serving(ShutdownHandle),
    /// The owner wants no more.
    Wanted,
}

impl std::fmt::Debug for EndState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Waiting => "Waiting",
            Self::Serving(_) => "Serving",
            Self::Wanted => "Wanted",
        })
    }
}

impl End {
    /// Waits for a front end; false if the owner wanted the end first.
    fn wait_for_front_end(&self, listener: &UnixListener) -> io::Result<bool> {
        loop {
            let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => return Ok(!matches!(*lock(&self.state), EndState::Wanted)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// A front end has come. One that comes together with the end is sent away.
    fn serve(&self, shutdown: Option<ShutdownHandle>) {
        let Some(shutdown) = shutdown else { return };
        let mut state = lock(&self.state);
        match *state {
            EndState::Wanted => shutdown.shutdown(),
            EndState::Waiting | EndState::Serving(_) => *state = EndState::Serving(shutdown),
        }
    }

    fn want(&self) {
        let before = std::mem::replace(&mut *lock(&self.state), EndState::Wanted);
        if let EndState::Serving(shutdown) = before {
            shutdown.shutdown();
        }
        self.wake.notify();
    }
}

impl Server {
    /// Serves the first front end that connects to `listener`, and does not wait for it. What is asked of the handle
    /// before waits for the guest's driver.
    ///
    /// ```
    /// use std::os::unix::net::UnixListener;
    /// use scx_vsock::transport::vhost_user::Server;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("vsock");
    /// let server = Server::start(UnixListener::bind(path)?, 3)?;
    /// drop(server); // although no front end has come
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start(listener: UnixListener, guest_cid: u64) -> Result<Self, Error> {
        let device = Device::new(guest_cid)?;
        let handle = device.handle();
        let host_events = device.fd().try_clone_to_owned()?;
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)?;
        let exit_consumer = exit.0.as_raw_fd();
        let (news, news_writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(io::Error::from)?;
        let backend = Arc::new(Backend {
            state: Mutex::new(State { device, stopped: [true; QUEUES] }),
            memory: Mutex::default(),
            exit: Mutex::new(Some(exit)),
            news: Mutex::new(News { error: None, writer: Some(news_writer) }),
        });
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vhost-user-vsock".into(), Arc::clone(&backend), memory)?;
        let leaked = leaked::ExitConsumer::of(exit_consumer);
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(host_events.as_raw_fd(), EventSet::IN, HOST_EVENT.into())?;
        }
        let end = Arc::new(End { state: Mutex::new(EndState::Waiting), wake: EventFd::new()? });
        let (served, ends) = (Arc::clone(&backend), Arc::clone(&end));
        let waiter = thread::Builder::new().name("vhost-user-wait".into()).spawn(move || {
            // The end is the same whatever ended it: the front end is gone, or none has come.
            if ends.wait_for_front_end(&listener).unwrap_or(false) && daemon.start(&mut listener.into()).is_ok() {
                ends.serve(daemon.shutdown_handle());
                let _ended = daemon.wait();
            }
            drop(daemon);
            lock(&served.state).device.close();
            lock(&served.news).writer = None;
            drop((leaked, host_events));
        })?;
        Ok(Self { handle, backend, end, news, waiter: Some(waiter) })
    }

    /// The guest's device, for any thread.
    ///
    /// ```
    /// # use std::os::unix::net::UnixListener;
    /// # use scx_vsock::transport::vhost_user::Server;
    /// # let folder = tempfile::tempdir()?;
    /// # let server = Server::start(UnixListener::bind(folder.path().join("vsock"))?, 3)?;
    /// let ready = server.handle().listen(scx_vsock::READY_PORT)?;
    /// // ... QEMU is started, and then `ready` accepts once the agent is there.
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Why the device stopped, if the guest's driver broke it since this was last asked.
    ///
    /// ```
    /// # use std::os::unix::net::UnixListener;
    /// # use scx_vsock::transport::vhost_user::Server;
    /// # let folder = tempfile::tempdir()?;
    /// # let server = Server::start(UnixListener::bind(folder.path().join("vsock"))?, 3)?;
    /// assert!(server.take_error().is_none(), "no guest has broken anything");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn take_error(&self) -> Option<DeviceError> {
        let mut news = lock(&self.backend.news);
        let _drained = rustix::io::read(&self.news, &mut [0; 64]);
        news.error.take()
    }
}

/// Readable when there is an error to [take](Server::take_error), hung up once the front end is gone.
impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.want();
        if let Some(waiter) = self.waiter.take() {
            let _ended = waiter.join();
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Server").field("handle", &self.handle).finish_non_exhaustive()
    }
}

mod leaked {
    //! The framework takes the descriptor out of the exit event that it is given, and never closes it.
    #![allow(unsafe_code, reason = "only a raw descriptor is left of what the framework leaks")]

    use std::os::fd::{FromRawFd, OwnedFd, RawFd};

    /// Closes the exit event's descriptor on drop.
    pub struct ExitConsumer(#[allow(dead_code, reason = "held to be closed")] OwnedFd);

    impl ExitConsumer {
        /// To be made once the framework has taken the consumer that has this descriptor, and dropped after the
        /// framework's threads have ended.
        pub fn of(consumer: RawFd) -> Self {
            // SAFETY: the framework called `into_raw_fd` on the consumer, so nothing else owns the descriptor, and
            // nothing else closes it.
            Self(unsafe { OwnedFd::from_raw_fd(consumer) })
        }
    }
}
