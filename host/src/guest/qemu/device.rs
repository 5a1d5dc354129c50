//! The guest's vsock device: a vhost-user back end in this process, connected to the QEMU that is to be started.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use crate::guest::error::Error;
use crate::transport::vhost_user::Server;

/// The guest's CID. Each guest has a device of its own, so that all of them can have the same.
const CID: u64 = 3;

/// Starts a back end; returns it, and QEMU's end of its socket.
///
/// The socket has a path in a private folder below `temporary` until both ends are connected.
pub(super) fn start_device(temporary: &Path) -> Result<(Server, UnixStream), Error> {
    let no_folder = |source| Error::TemporaryFolder { folder: temporary.into(), source };
    let folder = tempfile::tempdir_in(temporary).map_err(no_folder)?;
    // A path through the descriptor is short, however long that of the folder is.
    let descriptor: OwnedFd =
        open(folder.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| no_folder(errno.into()))?;
    let path = format!("/proc/self/fd/{}/vsock", descriptor.as_raw_fd());
    let listener = UnixListener::bind(&path).map_err(no_folder)?;
    let qemu_end = UnixStream::connect(&path)?;
    folder.close()?;
    Ok((Server::start(listener, CID)?, qemu_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_temporary_folder_works() {
        let temporary = tempfile::tempdir().unwrap();
        let long = temporary.path().join("x".repeat(200));
        std::fs::create_dir(&long).unwrap();
        drop(start_device(&long).unwrap());
        assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_temporary_folder_is_named() {
        let error = start_device("/no/such/folder".as_ref()).unwrap_err();
        assert!(matches!(error, Error::TemporaryFolder { .. }), "{error}");
        assert!(error.to_string().starts_with("cannot create a temporary folder in /no/such/folder"), "{error}");
    }
}
