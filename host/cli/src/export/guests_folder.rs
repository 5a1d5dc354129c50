//! A folder with the hybrid socket of each guest.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use scx_vsock::{AGENT_PORT, Endpoint};

use super::folder_watch::FolderWatch;
use super::named_guest::Guests;
use crate::error_report::one_line;
use crate::output::eprintln;

/// A folder of sockets, each named after its guest.
#[derive(Debug)]
pub struct GuestsFolder {
    path: PathBuf,
    pub watch: FolderWatch,
}

impl GuestsFolder {
    /// Watches the folder.
    ///
    /// # Errors
    ///
    /// If it cannot be watched.
    pub fn watch(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), watch: FolderWatch::new(path)? })
    }

    /// Returns the guests if one may have come or gone since the last call. If the folder itself is gone, which is reported,
    /// there are none.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn changed(&self) -> Result<Option<Guests>> {
        let changes = self.watch.changes();
        if changes.is_gone {
            let shown = one_line(&self.path.display().to_string());
            eprintln!("scx-vsock: the folder {shown} is gone, and its guests with it; start again when it is back");
            return Ok(Some(Guests::new()));
        }
        (changes.has_more || !changes.names.is_empty()).then(|| self.read()).transpose()
    }

    /// Returns the guests.
    ///
    /// # Errors
    ///
    /// If the folder cannot be read.
    pub fn read(&self) -> Result<Guests> {
        let sockets = self.sockets().with_context(|| format!("cannot read the folder {}", self.path.display()))?;
        let is_guest = |name: &&OsString| !listens_for_guest(name, &sockets);
        let guest = |name: &OsString| {
            let endpoint = Endpoint::Hybrid { path: self.path.join(name), port: AGENT_PORT };
            (shown(name), endpoint)
        };
        Ok(sockets.iter().filter(is_guest).map(guest).collect())
    }

    fn sockets(&self) -> Result<BTreeSet<OsString>> {
        let mut sockets = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            // Also what a link leads to. What is gone meanwhile is none.
            if fs::metadata(self.path.join(&name)).is_ok_and(|file| file.file_type().is_socket()) {
                sockets.insert(name);
            }
        }
        Ok(sockets)
    }
}

/// The name of a guest, after that of its socket. Bytes that are no UTF-8 are escaped, so that two names stay two.
fn shown(name: &OsStr) -> String {
    name.to_str().map_or_else(|| name.as_bytes().escape_ascii().to_string(), str::to_owned)
}

/// Whether this is the socket of a host program that a guest connects to: another socket's name, and the port after it.
fn listens_for_guest(name: &OsStr, sockets: &BTreeSet<OsString>) -> bool {
    let bytes = name.as_bytes();
    let Some(at) = bytes.iter().rposition(|&byte| byte == b'_') else { return false };
    let (guest, port) = bytes.split_at(at);
    let is_port = |port: &[u8]| !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    port.strip_prefix(b"_").is_some_and(is_port) && sockets.contains(OsStr::from_bytes(guest))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn names_that_are_not_utf_8_stay_apart() {
        let folder = tempfile::tempdir().unwrap();
        let names = [&b"a\xff"[..], b"a\xfe"].map(OsStr::from_bytes);
        let _sockets = names.map(|name| UnixListener::bind(folder.path().join(name)).unwrap());
        let guests = GuestsFolder::watch(folder.path()).unwrap().read().unwrap();
        assert_eq!(guests.keys().collect::<Vec<_>>(), ["a\\xfe", "a\\xff"]);
    }

    #[test]
    fn each_hybrid_socket_is_a_guest() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let _sockets = ["web", "web_7290", "db_1", "_2"].map(|name| UnixListener::bind(path(name)).unwrap());
        File::create(path("file")).unwrap();
        std::os::unix::fs::symlink(path("web"), path("link")).unwrap();
        std::os::unix::fs::symlink(path("nothing"), path("broken")).unwrap();
        let guests = GuestsFolder::watch(folder.path()).unwrap().read().unwrap();
        assert_eq!(guests.keys().collect::<Vec<_>>(), ["_2", "db_1", "link", "web"]);
        assert_eq!(guests["web"], Endpoint::Hybrid { path: path("web"), port: AGENT_PORT });
    }
}
