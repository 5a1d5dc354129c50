//! A file that is written whole or not at all.

use std::fs::{self, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

/// Signals that end this program by default, and would leave a part of the file.
const INTERRUPTS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Writes a file whole, or leaves what was there. Nobody may read or write it who may not do that with `source`, which
/// its content comes from. A file that is replaced keeps its owner where that is allowed, and gets no more permissions
/// than it had. A device or a pipe is written to, not replaced.
///
/// # Errors
///
/// The file cannot be written. No part of it is left then.
pub fn write(path: &Path, bytes: &[u8], source: &Metadata) -> io::Result<()> {
    // Beyond the limit on a file's size, the write fails instead of killing this process.
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    let interrupts: SigSet = INTERRUPTS.into_iter().collect();
    interrupts.thread_block()?;
    let outcome = write_uninterrupted(path, bytes, source);
    interrupts.thread_unblock()?;
    outcome
}

fn write_uninterrupted(path: &Path, bytes: &[u8], source: &Metadata) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let old = fs::metadata(path).ok();
    if old.as_ref().is_some_and(|old| !old.is_file()) {
        return fs::write(path, bytes);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The umask applies to these.
    let mode = Permissions::from_mode(allowed_mode(source, None));
    let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(folder)?;
    if let Some(old) = old {
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
