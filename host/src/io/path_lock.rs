//! A lock on the name of a file, among the processes that use this library.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::{Errno, retry_on_intr};

/// How long another process may hold the lock, which it does for a few system calls.
const DEADLINE: Duration = Duration::from_secs(5);

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
        Self::take_within(path, DEADLINE)
    }

    fn take_within(path: &Path, within: Duration) -> io::Result<Self> {
        let mut name = OsString::from(path);
        name.push(".lock");
        let path = PathBuf::from(name);
        if let Some(lock) = Self::attempt(&path, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(lock);
        }
        // flock(2) has no deadline, so that a thread waits in it. A lock that comes too late is dropped.
        let (sender, taken) = channel();
        let waits_at = path.clone();
        thread::Builder::new().name("path-lock".into()).spawn(move || drop(sender.send(Self::wait(&waits_at))))?;
        taken.recv_timeout(within).unwrap_or_else(|_| {
            let reason = format!("another process holds {}; end it, or remove that file", path.display());
            Err(io::Error::new(ErrorKind::TimedOut, reason))
        })
    }

    /// Waits for the lock, however long another process holds it.
    fn wait(path: &Path) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::attempt(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Locks the file, unless another process has it locked, or has removed it meanwhile: then the next process locks
    /// another file.
    fn attempt(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        // A FIFO of this name, which another user may have created, must not be waited for.
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)?;
        match retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let id = |file: fs::Metadata| (file.dev(), file.ino());
        let locked = id(file.metadata()?);
        let is_there = fs::symlink_metadata(path).is_ok_and(|named| id(named) == locked);
        Ok(is_there.then(|| Self { path: path.into(), file }))
    }
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
    fn a_wait_ends_at_its_deadline_and_keeps_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let held = PathLock::take(&path).unwrap();
        let late = PathLock::take_within(&path, Duration::ZERO).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        assert!(late.to_string().contains("another process holds"), "{late}");
        drop(held);
        PathLock::take(&path).unwrap();
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
