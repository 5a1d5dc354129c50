//! Streams to Unix sockets, and the addresses of these.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

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

    #[test]
    fn a_path_that_is_too_long_is_refused_with_the_limit() {
        let path = format!("/tmp/{}", "x".repeat(103));
        let reason = connect(Path::new(&path)).unwrap_err().to_string();
        assert_eq!(reason, "the path has 108 bytes and a Unix socket's at most 107; choose a shorter one");
        let longest = Path::new(path.get(..107).unwrap());
        assert_eq!(connect(longest).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
