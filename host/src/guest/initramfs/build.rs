//! Builds an initramfs in memory, in the newc format (Linux, `driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use cpio::newc::{Builder, trailer};

use crate::guest::error::Error;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An initramfs under construction.
///
/// Paths are without a leading slash. The folders above an entry are added with it; of two entries with one path the
/// first stays.
///
/// ```
/// use scx_vsock::guest::initramfs::build::InitramfsBuilder;
///
/// let mut initramfs = InitramfsBuilder::new()?;
/// initramfs.program("init", b"#!/bin/sh\nexec sh\n")?;
/// initramfs.link("bin/sh", "busybox")?;
/// initramfs.file("etc/hostname", b"guest\n")?;
/// assert!(initramfs.paths().eq(["bin", "bin/sh", "dev", "dev/console", "etc", "etc/hostname", "init"]));
/// assert!(initramfs.finish()?.starts_with(b"070701"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct InitramfsBuilder {
    bytes: Vec<u8>,
    paths: BTreeSet<String>,
}

impl InitramfsBuilder {
    /// Returns an initramfs with `/dev/console`, which the kernel opens for its first process. One without it is the
    /// [`Default`].
    ///
    /// # Errors
    ///
    /// None in practice: it is written to memory.
    pub fn new() -> io::Result<Self> {
        let mut initramfs = Self::default();
        initramfs.character_device("dev/console", 0o600, 5, 1)?;
        Ok(initramfs)
    }

    /// Adds a character device with these permissions and numbers.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> io::Result<()> {
        let mode = CHARACTER_DEVICE | permissions & 0o777;
        let device = Builder::new(path).mode(mode).rdev_major(major).rdev_minor(minor);
        self.add_first(path, device, &[])
    }

    /// Adds a folder.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() {
            return Ok(());
        }
        self.add_first(path, Builder::new(path).mode(FOLDER), &[])
    }

    /// Adds an executable file with these bytes.
    ///
    /// # Errors
    ///
    /// If the file has 4 GiB or more.
    pub fn program(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.add_first(path, Builder::new(path).mode(PROGRAM), bytes)
    }

    /// Adds a file with these bytes.
    ///
    /// # Errors
    ///
    /// As [`program`](Self::program).
    pub fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.add_first(path, Builder::new(path).mode(FILE), bytes)
    }

    /// Adds a symbolic link. Its target is any bytes, as for the kernel.
    ///
    /// # Errors
    ///
    /// As [`program`](Self::program).
    pub fn link(&mut self, path: &str, target: impl AsRef<[u8]>) -> io::Result<()> {
        self.add_first(path, Builder::new(path).mode(LINK), target.as_ref())
    }

    /// Removes what a base has at a path. A kernel replaces an entry of the same kind only by this detour: by a link,
    /// which the entry that is added next replaces.
    pub(super) fn remove(&mut self, path: &str) -> io::Result<()> {
        self.add(path, Builder::new(path).mode(LINK), b"/")?;
        self.paths.remove(path);
        Ok(())
    }

    /// Takes a folder as one that the base has, and that is not added.
    pub(super) fn assume_folder(&mut self, path: &str) {
        self.paths.insert(path.to_owned());
    }

    /// Adds a file of the host as an executable file. `what` names it in the error; a leading slash of `to` is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be read.
    pub fn copy_program(&mut self, what: &'static str, from: &Path, to: &str) -> Result<(), Error> {
        let bytes = fs::read(from).map_err(Error::unreadable(what, from))?;
        Ok(self.program(to.trim_start_matches('/'), &bytes)?)
    }

    /// Adds an entry and the folders above it, unless its path is taken.
    fn add_first(&mut self, path: &str, entry: Builder, content: &[u8]) -> io::Result<()> {
        if self.paths.contains(path) {
            return Ok(());
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent)?;
        }
        self.add(path, entry, content)
    }

    fn add(&mut self, path: &str, entry: Builder, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let inode = u32::try_from(self.paths.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut writer = entry.ino(inode).nlink(1).write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        self.paths.insert(path.to_owned());
        Ok(())
    }

    /// Returns the paths of all entries in alphabetical order.
    pub fn paths(&self) -> impl Iterator<Item = &str> + Clone {
        self.paths.iter().map(String::as_str)
    }

    /// Returns the bytes of the initramfs.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn finish(self) -> io::Result<Vec<u8>> {
        trailer(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn an_initramfs_reads_back_with_all_folders() {
        let mut initramfs = InitramfsBuilder::new().unwrap();
        initramfs.program("init", b"#!/bin/sh\n").unwrap();
        initramfs.file("etc/deep/file", b"one").unwrap();
        initramfs.file("etc/deep/file", b"two").unwrap();
        initramfs.link("var/run", "/run").unwrap();
        let bytes = initramfs.finish().unwrap();
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            seen.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
        let expected = [
            ("dev", FOLDER, ""),
            ("dev/console", CHARACTER_DEVICE | 0o600, ""),
            ("init", PROGRAM, "#!/bin/sh\n"),
            ("etc", FOLDER, ""),
            ("etc/deep", FOLDER, ""),
            ("etc/deep/file", FILE, "one"),
            ("var", FOLDER, ""),
            ("var/run", LINK, "/run"),
        ];
        assert_eq!(seen, expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_owned())));
    }

    #[test]
    fn a_missing_host_file_is_named() {
        let mut initramfs = InitramfsBuilder::new().unwrap();
        initramfs.copy_program("the shell", "/bin/sh".as_ref(), "/bin/sh").unwrap();
        assert!(initramfs.paths().any(|path| path == "bin/sh"));
        let error = initramfs.copy_program("the tool", "/no/such/tool".as_ref(), "/bin/tool").unwrap_err();
        assert!(error.to_string().starts_with("cannot read the tool /no/such/tool"));
    }

    #[test]
    fn devices_are_entries_like_files() {
        let mut initramfs = InitramfsBuilder::new().unwrap();
        initramfs.character_device("dev/null", 0o666, 1, 3).unwrap();
        initramfs.folder("sys/fs/bpf").unwrap();
        assert!(initramfs.paths().eq(["dev", "dev/console", "dev/null", "sys", "sys/fs", "sys/fs/bpf"]));
    }
}
