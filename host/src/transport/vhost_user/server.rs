//! The life cycle of a back end: it waits for a front end, serves it, and ends.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::back_end::BackEnd;
use super::error::Error;
use super::error_pipe::ErrorPipe;
use super::exit_consumer::ExitConsumer;
use super::shutdown::Shutdown;
use crate::vsock::{Device, DeviceError, Handle};

/// The event of the device's own descriptor. Numbers up to that of the queues belong to the framework.
const HOST_EVENT: u64 = 3;

/// A vhost-user back end that serves one front end. Dropping it ends the device, and with it every connection.
///
/// Its descriptor is readable while there is an error to [take](Self::take_error), and hung up once the front end is
/// gone.
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
    errors: Arc<ErrorPipe>,
    shutdown: Arc<Shutdown>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the first front end that connects to `listener`, without waiting for it. Connections that the host asks
    /// for before wait for the guest's driver.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn start(listener: UnixListener, guest_cid: u64) -> Result<Self, Error> {
        let device = Device::new(guest_cid)?;
        let handle = device.handle();
        let host_events = device.fd().try_clone_to_owned()?;
        let errors = Arc::new(ErrorPipe::new()?);
        let (back_end, exit_consumer) = BackEnd::new(device, Arc::clone(&errors))?;
        let back_end = Arc::new(back_end);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vhost-user-vsock".into(), Arc::clone(&back_end), memory)?;
        let exit_consumer = ExitConsumer::of(exit_consumer);
        for handler in daemon.get_epoll_handlers() {
            handler.register_listener(host_events.as_raw_fd(), EventSet::IN, HOST_EVENT)?;
        }
        let shutdown = Arc::new(Shutdown::new()?);
        let requested = Arc::clone(&shutdown);
        let thread = thread::Builder::new().name("vhost-user-wait".into()).spawn(move || {
            // The end is the same whatever the cause: the front end is gone, or none has connected.
            if requested.wait_for_front_end(&listener).unwrap_or(false) && daemon.start(&mut listener.into()).is_ok() {
                requested.on_front_end(daemon.shutdown_handle());
                let _ended = daemon.wait();
            }
            drop(daemon);
            back_end.close();
            drop((exit_consumer, host_events));
        })?;
        Ok(Self { handle, errors, shutdown, thread: Some(thread) })
    }

    /// Returns the host side of the guest's device.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns why the device stopped, if the guest's driver broke it since the last call.
    #[must_use]
    pub fn take_error(&self) -> Option<DeviceError> {
        self.errors.take()
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.errors.as_fd()
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
