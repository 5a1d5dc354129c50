//! A lock on the name of a file, among the processes that use this library.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Stat, flock, fstat};
use rustix::io::{Errno, retry_on_intr};

use super::folder::Folder;

/// How long another process may hold the lock, which it does for a few system calls.
const DEADLINE: Duration = Duration::from_secs(5);

/// Holds the lock until it is dropped. It is a file beside the other one, with `.lock` appended to its name, which exists
/// only meanwhile.
#[derive(Debug)]
pub(super) struct PathLock {
    folder: Folder,
    name: OsString,
    #[allow(dead_code, reason = "holds the lock")]
    file: OwnedFd,
}

impl PathLock {
    /// Takes the lock of a file of this folder, which need not exist.
    ///
    /// # Errors
    ///
    /// The kernel's; `TimedOut` if another process holds the lock for 5 s.
    pub(super) fn take(folder: &Folder, name: &OsStr) -> io::Result<Self> {
        Self::take_within(folder, name, DEADLINE)
    }

    fn take_within(folder: &Folder, name: &OsStr, within: Duration) -> io::Result<Self> {
        let name = [name, OsStr::new(".lock")].into_iter().collect::<OsString>();
        if let Some(lock) = Self::attempt(folder, &name, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(lock);
        }
        // flock(2) has no deadline, so that a thread waits in it. A lock that comes too late is dropped.
        let (sender, taken) = channel();
        let (folder, lock) = (folder.try_clone()?, name.clone());
        thread::Builder::new().name("path-lock".into()).spawn(move || drop(sender.send(Self::wait(&folder, &lock))))?;
        taken.recv_timeout(within).unwrap_or_else(|_| {
            let reason =
                format!("another process holds the file {} beside it; end it, or remove that file", name.display());
            Err(io::Error::new(ErrorKind::TimedOut, reason))
        })
    }

    /// Waits for the lock, however long another process holds it.
    fn wait(folder: &Folder, name: &OsStr) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::attempt(folder, name, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Locks the file, unless another process has it locked, or has removed it meanwhile: then the next process locks
    /// another file.
    fn attempt(folder: &Folder, name: &OsStr, operation: FlockOperation) -> io::Result<Option<Self>> {
        let file = folder.create(name)?;
        match retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let id = |file: &Stat| (file.st_dev, file.st_ino);
        let locked = id(&fstat(&file)?);
        let is_there = folder.stat(name).is_ok_and(|named| id(&named) == locked);
        if !is_there {
            return Ok(None);
        }
        Ok(Some(Self { folder: folder.try_clone()?, name: name.to_owned(), file }))
    }
}

impl Drop for PathLock {
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
    fn a_wait_ends_at_its_deadline_and_keeps_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let (opened, name) = (Folder::of(&folder.path().join("socket")).unwrap(), OsStr::new("socket"));
        let held = PathLock::take(&opened, name).unwrap();
        let late = PathLock::take_within(&opened, name, Duration::ZERO).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        assert!(late.to_string().contains("another process holds"), "{late}");
        drop(held);
        PathLock::take(&opened, name).unwrap();
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
