//! A folder whose changes are events.

use std::ffi::{CStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// Bytes that are read at a time, and reads before what is left waits for the next call.
const READ_BYTES: usize = 4096;
const MAX_READS: usize = 256;

/// Reports which names in a folder have changed. What is written counts once it is closed.
#[derive(Debug)]
pub struct FolderWatch(OwnedFd);

/// What has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// The names of what came, went, or was written.
    pub names: Vec<OsString>,
    /// Whether more has changed than the kernel has kept.
    pub has_more: bool,
    /// Whether the folder itself is gone, so that there will be no further changes.
    pub is_gone: bool,
}

impl FolderWatch {
    /// Watches a folder from now on.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn new(folder: &Path) -> Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("cannot watch folders")?;
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&watch, folder, events)
            .with_context(|| format!("cannot watch the folder {}", folder.display()))?;
        Ok(Self(watch))
    }

    /// Returns what has changed since the last call.
    pub fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        let mut reads = 0;
        while let Ok(event) = reader.next() {
            let flags = event.events();
            changes.has_more |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            changes.is_gone |= flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED);
            // A file that was created is read once it has been written; sockets are not.
            changes.names.extend(event.file_name().map(CStr::to_bytes).map(|name| OsString::from_vec(name.to_vec())));
            reads += usize::from(reader.is_buffer_empty());
            if reads == MAX_READS {
                changes.has_more = true;
                break;
            }
        }
        changes
    }
}

impl AsFd for FolderWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
