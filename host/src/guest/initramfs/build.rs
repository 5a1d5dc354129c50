//! The guest's initramfs, put together in memory (newc, as the kernel's `buffer-format` document has it).

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

/// An initramfs that is being put together.
///
/// ```no_run
/// use scx_vsock::guest::initramfs::build::Image;
///
/// let mut image = Image::new()?;
/// image.program("bin/busybox", &std::fs::read("/bin/busybox")?)?;
/// image.link("bin/sh", "busybox")?;
/// image.program("init", b"#!/bin/sh\nexec sh\n")?;
/// std::fs::write("initrd", image.finish()?)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Image {
    bytes: Vec<u8>,
    entries: BTreeSet<String>,
}

impl Image {
    /// An image with the console that the kernel opens for its first process.
    ///
    /// ```
    /// let image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// assert!(image.names().eq(["dev", "dev/console"]));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// None in practice: it is written to memory.
    pub fn new() -> io::Result<Self> {
        let mut image = Self::default();
        image.character_device("dev/console", 0o600, 5, 1)?;
        Ok(image)
    }

    /// Adds a character device with these permissions and numbers. The first file of a name stays.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.character_device("dev/null", 0o666, 1, 3)?;
    /// assert!(image.names().any(|name| name == "dev/null"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> io::Result<()> {
        let mode = CHARACTER_DEVICE | permissions & 0o777;
        let device = Builder::new(path).mode(mode).rdev_major(major).rdev_minor(minor);
        self.first_of_its_name(path, device, &[])
    }

    /// Adds a folder and those above it.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.folder("sys/fs/bpf")?;
    /// assert!(image.names().any(|name| name == "sys/fs"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.entries.contains(path) {
            return Ok(());
        }
        self.folders_above(path)?;
        self.entry(path, Builder::new(path).mode(FOLDER), &[])
    }

    fn folders_above(&mut self, path: &str) -> io::Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(above, _)| self.folder(above))
    }

    /// Adds a program with these bytes. The first file of a name stays.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.program("init", b"#!/bin/sh\nexec sh\n")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the file is larger than the format has room for.
    pub fn program(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.with_mode(path, PROGRAM, bytes)
    }

    /// Adds a file with these bytes. The first file of a name stays.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.file("etc/hostname", b"guest\n")?;
    /// image.file("etc/hostname", b"other\n")?; // changes nothing
    /// let bytes = image.finish()?;
    /// assert!(bytes.windows(6).any(|bytes| bytes == b"guest\n"));
    /// assert!(!bytes.windows(6).any(|bytes| bytes == b"other\n"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`program`](Self::program).
    pub fn file(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.with_mode(path, FILE, bytes)
    }

    /// Adds a symbolic link.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.link("var/run", "/run")?;
    /// assert!(image.names().any(|name| name == "var/run"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`program`](Self::program).
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.with_mode(path, LINK, target.as_bytes())
    }

    /// Adds a file of the host as a program.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.copy_program("the shell", "/bin/sh".as_ref(), "/bin/sh")?;
    /// let error = image.copy_program("the tool", "/no/such/tool".as_ref(), "/bin/tool").unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read the tool /no/such/tool"));
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be read.
    pub fn copy_program(&mut self, what: &'static str, from: &Path, to: &str) -> Result<(), Error> {
        let bytes = fs::read(from).map_err(Error::unreadable(what, from))?;
        Ok(self.program(to.trim_start_matches('/'), &bytes)?)
    }

    fn with_mode(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.first_of_its_name(path, Builder::new(path).mode(mode), bytes)
    }

    fn first_of_its_name(&mut self, path: &str, builder: Builder, bytes: &[u8]) -> io::Result<()> {
        if self.entries.contains(path) {
            return Ok(());
        }
        self.folders_above(path)?;
        self.entry(path, builder, bytes)
    }

    fn entry(&mut self, path: &str, builder: Builder, bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let inode = u32::try_from(self.entries.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut writer = builder.ino(inode).nlink(1).write(&mut self.bytes, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        self.entries.insert(path.to_owned());
        Ok(())
    }

    /// The names of all entries, in order.
    ///
    /// ```
    /// # let mut image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// image.file("etc/hostname", b"guest\n")?;
    /// assert!(image.names().eq(["dev", "dev/console", "etc", "etc/hostname"]));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.iter().map(String::as_str)
    }

    /// The image's bytes.
    ///
    /// ```
    /// # let image = scx_vsock::guest::initramfs::build::Image::new()?;
    /// let initrd = image.finish()?;
    /// assert!(initrd.starts_with(b"070701"), "newc");
    /// # Ok::<(), std::io::Error>(())
    /// ```
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
    fn an_image_reads_back_with_the_folders_above_each_file() {
        let mut image = Image::new().unwrap();
        image.program("init", b"#!/bin/sh\n").unwrap();
        image.file("etc/deep/file", b"one").unwrap();
        image.file("etc/deep/file", b"two").unwrap();
        image.link("var/run", "/run").unwrap();
        let bytes = image.finish().unwrap();
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
}
