//! Streams to Unix sockets, and the addresses of these.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
#[cfg(any(test, feature = "device"))]
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

#[cfg(any(test, feature = "device"))]
use super::descriptors::may_keep;
#[cfg(any(test, feature = "device"))]
use super::folder::{Others, is_trusted};

/// Bytes of the longest path of a Unix socket (unix(7)), without its NUL.
const MAX_UNIX_PATH: usize = 107;

/// Connects to a Unix socket, which needs no waiting, and returns a non-blocking stream.
pub(crate) fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = unix_address(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&stream, &address) {
        Ok(()) => Ok(stream),
        // The kernel sends no event when the queue has room again, so there is nothing to wait for.
        Err(Errno::AGAIN) => {
            let reason = "the socket's queue of connections is full; its program does not accept them";
            Err(io::Error::new(io::ErrorKind::WouldBlock, reason))
        }
        Err(error) => Err(error.into()),
    }
}

/// Connects to a Unix socket as [`connect`] does. In a folder where others can create files, only to one of this user or of
/// root.
#[cfg(any(test, feature = "device"))]
pub(crate) fn connect_trusted(path: &Path) -> io::Result<OwnedFd> {
    let is_shared = Others::beside(path)? != Others::Nobody;
    let stream = connect(path)?;
    may_keep(&stream)?;
    // The kernel keeps who listened, so that no change of the name can matter.
    if is_shared && !is_trusted(socket_peercred(&stream)?.uid) {
        let reason = "the socket is another user's, in a folder where others can create files";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    Ok(stream)
}

/// Returns the address of the Unix socket at `path`. For one that is too long, the error has its length and the limit.
pub(crate) fn unix_address(path: &Path) -> io::Result<SocketAddrUnix> {
    let bytes = path.as_os_str().len();
    if bytes > MAX_UNIX_PATH {
        let reason =
            format!("the path has {bytes} bytes and a Unix socket's at most {MAX_UNIX_PATH}; choose a shorter one");
        return Err(io::Error::new(io::ErrorKind::InvalidFilename, reason));
    }
    Ok(SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Uid, geteuid};
    use rustix::thread::set_thread_res_uid;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::thread;

    #[test]
    fn another_users_socket_is_not_trusted_beside_others() {
        if !geteuid().is_root() {
            // Only root can have another user's socket.
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let set_mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        set_mode(0o1777);
        let listen_as = |user| {
            // Of this thread only.
            set_thread_res_uid(user, user, user).unwrap();
            UnixListener::bind(&path).unwrap()
        };
        let nobody = Uid::from_raw(65_534);
        let _listener = thread::scope(|scope| scope.spawn(|| listen_as(nobody)).join().unwrap());
        assert_eq!(connect_trusted(&path).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        connect(&path).unwrap();
        set_mode(0o755);
        connect_trusted(&path).unwrap();
        fs::remove_file(&path).unwrap();
        set_mode(0o1777);
        let _listener = listen_as(Uid::ROOT);
        connect_trusted(&path).unwrap();
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_with_the_limit() {
        let path = format!("/tmp/{}", "x".repeat(103));
        let reason = connect(Path::new(&path)).unwrap_err().to_string();
        assert_eq!(reason, "the path has 108 bytes and a Unix socket's at most 107; choose a shorter one");
        let longest = Path::new(path.get(..107).unwrap());
        assert_eq!(connect(longest).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
