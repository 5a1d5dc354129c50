//! A file whose changes are events.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use super::folder_watch::FolderWatch;

/// A file that is written or replaced now and then, also by a rename.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    name: Box<OsStr>,
    folder: FolderWatch,
}

impl FileWatch {
    /// Watches the file's folder.
    ///
    /// # Errors
    ///
    /// If the path has no file name, or the folder cannot be watched.
    pub fn new(path: &Path) -> Result<Self> {
        let name = path.file_name().ok_or_else(|| anyhow!("{} is no file", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self { path: path.to_owned(), name: name.into(), folder: FolderWatch::new(folder)? })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file may have changed since the last call.
    pub fn has_changed(&self) -> bool {
        let changes = self.folder.changes();
        // What a link leads to may have been replaced by any name of the folder.
        let is_link = || fs::symlink_metadata(&self.path).is_ok_and(|file| file.is_symlink());
        let is_named = changes.names.iter().any(|name| **name == *self.name);
        changes.has_more || changes.is_gone || is_named || (!changes.names.is_empty() && is_link())
    }
}

impl AsFd for FileWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
