//! A file that is written whole or not at all.

use std::fs::{self, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;

/// Signals that end this program by default, and would leave a part of the file.
const INTERRUPTS: [Signal; 9] = [
    Signal::SIGALRM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGPIPE,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
];

/// The most links that lead to a file, as for the kernel.
const MAX_LINKS: usize = 40;

/// Who may use a file that is written.
#[derive(Clone, Copy)]
pub enum Access<'a> {
    /// Nobody may read or write it who may not do that with the file that its content comes from. A file that is replaced
    /// keeps its owner where that is allowed, and gets no more permissions than it had.
    As(&'a Metadata),
    /// It is a program for everybody, as far as the umask allows.
    Program,
}

/// Writes a file whole, or leaves what was there. A device or a pipe is written to, not replaced. A link is followed, also
/// to a file that is not there.
///
/// # Errors
///
/// The file cannot be written. No part of it is left then.
pub fn write(path: &Path, bytes: &[u8], access: Access<'_>) -> io::Result<()> {
    // Beyond the limit on a file's size, the write fails instead of killing this process.
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    let path = match fs::metadata(path) {
        // A reader may never come, and then only a signal ends this.
        Ok(old) if !old.is_file() => return fs::write(path, bytes),
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => unlinked(path)?,
    };
    let interrupts: SigSet = INTERRUPTS.into_iter().collect();
    interrupts.thread_block()?;
    let outcome = replace(&path, bytes, access);
    interrupts.thread_unblock()?;
    outcome
}

/// Returns where the links of a path lead that leads to no file.
fn unlinked(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { return Ok(path) };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(Errno::LOOP.into())
}

fn replace(path: &Path, bytes: &[u8], access: Access<'_>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The umask applies to these.
    let mode = match access {
        Access::As(source) => allowed_mode(source, None),
        Access::Program => 0o755,
    };
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    if let (Access::As(source), Ok(old)) = (access, fs::metadata(path)) {
        if old.uid() == source.uid() || allowed_mode(source, None) & 0o004 != 0 {
            let _may_be_forbidden = fchown(&file, Some(old.uid()), Some(old.gid()));
        }
        let group = file.as_file().metadata()?.gid();
        let mode = old.mode() & allowed_mode(source, Some(group));
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    file.as_file_mut().write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// The permissions that a file of this group may have: members of another group than that of `source` are others to it.
fn allowed_mode(source: &Metadata, group: Option<u32>) -> u32 {
    let (owner, others) = (source.mode() & 0o600, source.mode() & 0o006);
    let group = if group == Some(source.gid()) { source.mode() & 0o060 } else { others << 3 };
    owner | group | others
}
