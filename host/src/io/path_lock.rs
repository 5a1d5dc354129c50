//! A lock on the name of a file, among the processes that use this library.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// How long another process may hold the lock, which it does for a few system calls.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt.
const RETRY: Duration = Duration::from_millis(1);

/// Holds the lock until it is dropped. It is a file beside the other one, with `.lock` appended to its name, which exists
/// only meanwhile.
#[derive(Debug)]
pub(super) struct PathLock {
    path: PathBuf,
    #[allow(dead_code, reason = "holds the lock")]
    file: File,
}

impl PathLock {
    /// Takes the lock of the file at `path`, which need not exist.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut` if another process holds the lock for 5 s.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        let mut name = OsString::from(path);
        name.push(".lock");
        let path = PathBuf::from(name);
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(file) = try_lock(&path)? {
                return Ok(Self { path, file });
            }
            if Instant::now() >= until {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    format!("another process holds {}; end it, or remove that file", path.display()),
                ));
            }
            thread::sleep(RETRY);
        }
    }
}

/// Locks the file, unless another process has it locked, or has removed it meanwhile: then the next process locks another
/// file.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // A FIFO of this name, which another user may have created, must not be waited for.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let id = |file: fs::Metadata| (file.dev(), file.ino());
    let locked = id(file.metadata()?);
    let is_there = fs::symlink_metadata(path).is_ok_and(|named| id(named) == locked);
    Ok(is_there.then_some(file))
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // Before it is unlocked, so that nobody locks a file that is about to go.
        let _gone_already = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_fifo_in_its_place_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("socket.lock"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(PathLock::take(&folder.path().join("socket")).is_err());
    }

    #[test]
    fn one_at_a_time_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let holders = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _lock = PathLock::take(&path).unwrap();
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        holders.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), folder.path().join("socket.lock")).unwrap();
        PathLock::take(&path).unwrap_err();
        assert!(!folder.path().join("elsewhere").exists());
    }
}
