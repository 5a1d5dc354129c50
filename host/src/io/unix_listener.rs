//! Unix sockets that this program listens on: created at a free path, and removed when dropped.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, Stat, fchmod};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::folder::{Folder, Others, name_of};
use super::path_lock::PathLock;
use super::unix_stream::unix_address;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket cannot be created. Each message names the path and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A process listens there.
    #[error("{} is in use: end the program that listens on it, or choose another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something other than a socket is there.
    #[error("{} exists and is not a socket: move it away, or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The folder does not exist.
    #[error("the folder of {} does not exist: create it, or choose another path", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// Other users can replace the socket by one of their own.
    #[error("others can write the folder of {}, and so replace the socket: set its sticky bit (chmod +t), or choose a folder of your own, such as $XDG_RUNTIME_DIR", path.display())]
    SharedFolder {
        /// The path.
        path: PathBuf,
    },
    /// This process may not create it.
    #[error("permission denied to create the socket {}: choose a folder of your own, such as $XDG_RUNTIME_DIR", path.display())]
    NoPermission {
        /// The path.
        path: PathBuf,
    },
    /// Another reason of the kernel.
    #[error("cannot listen on {}", path.display())]
    Other {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BindError {
    fn new(path: &Path, error: impl Into<io::Error>) -> Self {
        let (path, source) = (path.to_owned(), error.into());
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { path },
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NoFolder { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::NoPermission { path },
            _ => Self::Other { path, source },
        }
    }
}

/// A listening Unix socket. Its file is removed on drop, unless it was replaced meanwhile.
///
/// ```
/// use scx_vsock::io::OwnedUnixListener;
/// # let folder = std::env::temp_dir().join(format!("scx-vsock-doc-struct-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
///
/// let socket = OwnedUnixListener::bind(folder.join("stats"))?;
/// assert!(OwnedUnixListener::bind(folder.join("stats")).unwrap_err().to_string().contains("is in use"));
/// drop(socket);
/// assert!(!folder.join("stats").exists());
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct OwnedUnixListener {
    listener: UnixListener,
    path: PathBuf,
    folder: Folder,
    name: OsString,
    file: FileId,
}

/// Distinguishes a file from a later one of the same name.
type FileId = (u64, u64);

fn file_id(file: &Stat) -> FileId {
    (file.st_dev, file.st_ino)
}

impl OwnedUnixListener {
    /// Listens at `path`, and replaces a socket that nobody listens on any more. Of several that do so at once, one succeeds.
    /// Where others can write the folder, it must be sticky, as `/tmp` is, so that they cannot replace the socket.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, BindError> {
        Self::bind_by(path.into(), |path| UnixListener::bind(path))
    }

    /// Listens as [`bind`](Self::bind) does, and only this user may connect, whatever the umask of the process is.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind_privately(path: impl Into<PathBuf>) -> Result<Self, BindError> {
        Self::bind_by(path.into(), listen_privately)
    }

    fn bind_by(path: PathBuf, listen: impl FnOnce(&Path) -> io::Result<UnixListener>) -> Result<Self, BindError> {
        let fail = |error| BindError::new(&path, error);
        unix_address(&path).map_err(fail)?;
        let (folder, name) = (Folder::of(&path).map_err(fail)?, name_of(&path).map_err(fail)?);
        if folder.others().map_err(fail)? == Others::Replace {
            return Err(BindError::SharedFolder { path });
        }
        let (listener, file) = {
            // So that nobody replaces the socket that another process has just put in the place of a stale one.
            let _lock = PathLock::take(&folder, &name).map_err(fail)?;
            remove_stale(&path, &folder, &name)?;
            let listener = listen(&path).map_err(fail)?;
            (listener, file_id(&folder.stat(&name).map_err(fail)?))
        };
        Ok(Self { listener, path, folder, name, file })
    }

    /// Returns the path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the listener, to accept connections.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl AsFd for OwnedUnixListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for OwnedUnixListener {
    fn drop(&mut self) {
        // Nobody that uses this library replaces it before it is closed.
        if self.folder.stat(&self.name).is_ok_and(|file| file_id(&file) == self.file) {
            let _gone_already = self.folder.remove(&self.name);
        }
    }
}

/// Creates a socket that only its owner can connect to: its name has the mode of the descriptor from the beginning on. A
/// name that is taken, by a link or anything else, is an error.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &unix_address(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// Removes the socket of a program that has ended.
fn remove_stale(path: &Path, folder: &Folder, name: &OsStr) -> Result<(), BindError> {
    match folder.stat(name) {
        Ok(file) if FileType::from_raw_mode(file.st_mode) != FileType::Socket => {
            return Err(BindError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::new(path, error)),
    }
    match is_alive(path) {
        Ok(true) => Err(BindError::InUse { path: path.into() }),
        Ok(false) => folder.remove(name).map_err(|error| BindError::new(path, error)),
        Err(error) => Err(BindError::new(path, error)),
    }
}

/// Whether a process listens on the socket. It is not disturbed by a connection: the kernel refuses a datagram socket at a
/// stream listener with an error of its own.
fn is_alive(path: &Path) -> io::Result<bool> {
    let address = unix_address(path)?;
    let probe = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    match connect(&probe, &address) {
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::fs;
    use std::iter;
    use std::mem::MaybeUninit;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::sync::Barrier;
    use std::thread;

    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

    fn bind_error(path: &Path) -> String {
        OwnedUnixListener::bind(path).unwrap_err().to_string()
    }

    #[test]
    fn a_socket_exists_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = OwnedUnixListener::bind(&path).unwrap();
        assert_eq!(socket.path(), path);
        UnixStream::connect(&path).unwrap();
        socket.listener().accept().unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_private_socket_has_mode_600() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _socket = OwnedUnixListener::bind_privately(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_private_sockets_mode_is_never_changed() {
        let folder = tempfile::tempdir().unwrap();
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, folder.path(), WatchFlags::CREATE | WatchFlags::ATTRIB).unwrap();
        let _socket = OwnedUnixListener::bind_privately(folder.path().join("socket")).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        let events =
            iter::from_fn(|| reader.next().ok().map(|event| (event.file_name().map(CStr::to_owned), event.events())));
        let of_socket: Vec<_> =
            events.filter(|(name, _)| name.as_deref() == Some(c"socket")).map(|(_, event)| event).collect();
        assert_eq!(of_socket, [ReadFlags::CREATE]);
    }

    #[test]
    fn a_link_is_neither_followed_nor_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("socket"), folder.path().join("file"));
        fs::write(&file, "kept").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        for target in [&file, &folder.path().join("nothing")] {
            symlink(target, &path).unwrap();
            for error in [OwnedUnixListener::bind(&path), OwnedUnixListener::bind_privately(&path)] {
                assert!(matches!(error, Err(BindError::NotASocket { .. })), "{error:?}");
            }
            // As if the link had come after that check.
            assert_eq!(listen_privately(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_folder_in_which_others_replace_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for (mode, is_refused) in [(0o777, true), (0o1777, false), (0o775, false), (0o703, true), (0o755, false)] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            let outcome = OwnedUnixListener::bind(&path);
            assert_eq!(matches!(outcome, Err(BindError::SharedFolder { .. })), is_refused, "{mode:o}: {outcome:?}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_live_socket_is_refused_and_not_disturbed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let expected =
            format!("{} is in use: end the program that listens on it, or choose another path", path.display());
        assert_eq!(bind_error(&path), expected);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let datagrams = folder.path().join("datagrams");
        let _bound = UnixDatagram::bind(&datagrams).unwrap();
        assert!(bind_error(&datagrams).contains("is in use"));
    }

    #[test]
    fn a_socket_whose_program_ended_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        OwnedUnixListener::bind(&path).unwrap();
    }

    #[test]
    fn one_of_many_replaces_a_stale_socket() {
        const ROUNDS: usize = 500;
        const THREADS: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for round in 0..ROUNDS {
            drop(UnixListener::bind(&path).unwrap());
            let together = Barrier::new(THREADS);
            let bind = || {
                together.wait();
                OwnedUnixListener::bind(&path)
            };
            let outcomes: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (bound, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
            assert!(refused.iter().all(|error| matches!(error, Err(BindError::InUse { .. }))), "{refused:?}");
            let [Ok(socket)] = &bound[..] else { panic!("{} at once, in round {round}", bound.len()) };
            UnixStream::connect(&path).unwrap();
            socket.listener().accept().unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            drop(bound);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_replaced_socket_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = OwnedUnixListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn an_error_names_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(bind_error(&file).ends_with("exists and is not a socket: move it away, or choose another path"));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        assert!(
            bind_error(&folder.path().join("nowhere/socket"))
                .contains("does not exist: create it, or choose another path")
        );
        assert!(bind_error(&file.join("socket")).contains("does not exist: create it, or choose another path"));
        let error = OwnedUnixListener::bind(folder.path().join("x".repeat(200))).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.ends_with("a Unix socket's at most 107; choose a shorter one"), "{source}");
    }
}
