//! Why a guest is not served.

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
    /// There is no device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The vhost-user framework failed.
    #[error("the vhost-user back end failed: {reason}")]
    Backend {
        /// The framework's message. Its error itself cannot be shared between threads.
        reason: String,
    },
    /// The host's kernel has no descriptors, memory or threads for the back end.
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
