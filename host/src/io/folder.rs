//! The folder of a file that is created, removed or trusted by its name.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

#[cfg(any(test, feature = "device"))]
use rustix::fs::stat;
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, open, openat, statat, unlinkat};
use rustix::process::getegid;

/// Permission bits of a folder: any user may write, its group may, and only the owner of a file may replace that.
const ANYONE_WRITES: u32 = 0o002;
const GROUP_WRITES: u32 = 0o020;
const STICKY: u32 = 0o1000;

/// An open folder. A file of it is named without its path, so that nobody can lead a name elsewhere by a link meanwhile.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

/// Who besides this user and root can create files in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// Nobody, but for the folder's owner.
    Nobody,
    /// Others, who can replace only files of their own.
    Create,
    /// Others, who can replace any file.
    Replace,
}

impl Folder {
    /// Opens the folder of the file at `path`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(open(parent(path), flags, Mode::empty())?))
    }

    /// Returns another handle of the same folder.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Returns who besides this user can create files in it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn others(&self) -> io::Result<Others> {
        Ok(Others::of(&fstat(&self.0)?))
    }

    /// Returns what a name stands for; a link stands for itself.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn stat(&self, name: &OsStr) -> io::Result<Stat> {
        Ok(statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Opens a file for writing, which is created with mode 600 if it is not there. A link is an error, and a FIFO is not
    /// waited for.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn create(&self, name: &OsStr) -> io::Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?)
    }

    /// Removes a name.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn remove(&self, name: &OsStr) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, AtFlags::empty())?)
    }
}

impl Others {
    /// Returns who besides this user can create files in the folder of the file at `path`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    #[cfg(any(test, feature = "device"))]
    pub(crate) fn beside(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&stat(parent(path))?))
    }

    /// A group of one's own does not count: many systems give each user one, and let it write by default.
    fn of(folder: &Stat) -> Self {
        let by_group = folder.st_mode & GROUP_WRITES != 0 && folder.st_gid != getegid().as_raw();
        match (folder.st_mode & ANYONE_WRITES != 0 || by_group, folder.st_mode & STICKY != 0) {
            (false, _) => Self::Nobody,
            (true, true) => Self::Create,
            (true, false) => Self::Replace,
        }
    }
}

/// Returns the name of the file at `path`.
///
/// # Errors
///
/// `InvalidInput`, if it ends in `..`.
pub(super) fn name_of(path: &Path) -> io::Result<OsString> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no name of a file");
    path.file_name().map(OsStr::to_owned).ok_or_else(no_name)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a user's files can be trusted like this user's own: it is this user, or root.
#[cfg(any(test, feature = "device"))]
pub(crate) fn is_trusted(user: rustix::process::Uid) -> bool {
    user.is_root() || user == rustix::process::geteuid()
}
