//! Why a guest is not served.

use std::fmt;
use std::io;

use crate::vsock::DeviceError;

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
    /// There is no device, or it stopped.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vhost-user framework failed.
    #[error("the vhost-user back end failed: {reason}")]
    Backend {
        /// The framework's message. Its error itself cannot be shared between threads.
        reason: String,
    },
    /// The front end sent a message that it may not send. Its session is ended.
    #[error("the front end broke the vhost-user protocol: {reason}")]
    FrontEnd {
        /// The framework's message, as in [`Backend`](Self::Backend).
        reason: String,
    },
    /// The front end sent something other than an event descriptor (eventfd). Its session is ended.
    #[error("the front end's {purpose} descriptor of queue {queue} is no eventfd")]
    NotAnEvent {
        /// What it is for.
        purpose: EventPurpose,
        /// The queue's number.
        queue: usize,
    },
    /// The host's kernel has no descriptors, memory or threads for the back end, or no `/proc`.
    #[error("the host's kernel refuses the vhost-user back end what it needs")]
    Host(#[from] io::Error),
}

/// What a front end sends an event descriptor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventPurpose {
    /// The driver notifies the queue.
    Kick,
    /// The device interrupts the guest.
    Call,
}

impl fmt::Display for EventPurpose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kick => "kick",
            Self::Call => "call",
        })
    }
}

impl Error {
    /// Why a session ended, unless the front end only left.
    pub(super) fn of_session(error: vhost_user_backend::Error) -> Option<Self> {
        use vhost::vhost_user::Error as Protocol;
        match error {
            vhost_user_backend::Error::HandleRequest(
                Protocol::Disconnected | Protocol::PartialMessage | Protocol::SocketBroken(_),
            ) => None,
            vhost_user_backend::Error::HandleRequest(error) => Some(Self::FrontEnd { reason: error.to_string() }),
            other => Some(other.into()),
        }
    }
}

impl From<vhost_user_backend::Error> for Error {
    fn from(error: vhost_user_backend::Error) -> Self {
        match error {
            vhost_user_backend::Error::StartDaemon(error) => Self::Host(error),
            other => Self::Backend { reason: other.to_string() },
        }
    }
}
