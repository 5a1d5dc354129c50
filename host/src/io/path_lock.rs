//! A lock on the name of a file, among the processes that use this library.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Stat, flock, fstat};
use rustix::io::Errno;

use super::folder::Folder;

/// How long another process may hold the lock, which it does for a few system calls.
const DEADLINE: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt.
const RETRY: Duration = Duration::from_millis(1);

/// Holds the lock until it is dropped. It is a file beside the other one, with `.lock` appended to its name, which exists
/// only meanwhile.
#[derive(Debug)]
pub(super) struct PathLock<'a> {
    folder: &'a Folder,
    name: OsString,
    #[allow(dead_code, reason = "holds the lock")]
    file: OwnedFd,
}

impl<'a> PathLock<'a> {
    /// Takes the lock of a file of this folder, which need not exist.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut` if another process holds the lock for 5 s.
    pub(super) fn take(folder: &'a Folder, name: &OsStr) -> io::Result<Self> {
        let name = [name, OsStr::new(".lock")].into_iter().collect::<OsString>();
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(file) = try_lock(folder, &name)? {
                return Ok(Self { folder, name, file });
            }
            if Instant::now() >= until {
                return Err(io::Error::new(
                    ErrorKind::TimedOut,
                    format!("another process holds the file {} beside it; end it, or remove that file", name.display()),
                ));
            }
            thread::sleep(RETRY);
        }
    }
}

/// Locks the file, unless another process has it locked, or has removed it meanwhile: then the next process locks another
/// file.
fn try_lock(folder: &Folder, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let file = folder.create(name)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let id = |file: &Stat| (file.st_dev, file.st_ino);
    let locked = id(&fstat(&file)?);
    let is_there = folder.stat(name).is_ok_and(|named| id(&named) == locked);
    Ok(is_there.then_some(file))
}

impl Drop for PathLock<'_> {
    fn drop(&mut self) {
        // Before it is unlocked, so that nobody locks a file that is about to go.
        let _gone_already = self.folder.remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn take(path: &Path) -> io::Result<()> {
        PathLock::take(&Folder::of(path)?, path.file_name().unwrap()).map(drop)
    }

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
        assert!(take(&folder.path().join("socket")).is_err());
    }

    #[test]
    fn one_at_a_time_holds_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let opened = Folder::of(&folder.path().join("socket")).unwrap();
        let holders = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _lock = PathLock::take(&opened, OsStr::new("socket")).unwrap();
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
        take(&path).unwrap_err();
        assert!(!folder.path().join("elsewhere").exists());
    }
}
