//! The header of an entry in a newc archive (Linux, `driver-api/early-userspace/buffer-format.rst`).
//!
//! Paths are bytes for a kernel, in whatever encoding, so that the reader of a crate that wants UTF-8 does not do.

use std::io::{self, Read};

use rustix::fs::FileType;

const HEADER_BYTES: usize = 110;

/// The most bytes of a path in an archive, its NUL included, as for the kernel.
const MAX_PATH_BYTES: u32 = 4096;

/// The header of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    inode: u32,
    pub(super) mode: u32,
    links: u32,
    /// The bytes of its content.
    pub(super) size: u32,
    device: (u32, u32),
    /// The device that a special file is.
    pub(super) number: (u32, u32),
    path_size: u32,
    /// The sum of its content's bytes, in archives that have it.
    pub(super) checksum: Option<u32>,
}

/// What a kernel compares to find the other names of a file: inode, device and kind.
pub(super) type LinkKey = (u32, (u32, u32), u32);

impl Header {
    pub(super) fn read(archive: &mut impl Read) -> io::Result<Self> {
        let mut bytes = [0; HEADER_BYTES];
        archive.read_exact(&mut bytes)?;
        Self::parse(&bytes).ok_or_else(|| invalid("an entry's header is malformed"))
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, digits) = bytes.split_first_chunk::<6>()?;
        let mut fields = [0; 13];
        for (field, digits) in fields.iter_mut().zip(digits.chunks_exact(8)) {
            *field = hexadecimal(digits)?;
        }
        let [inode, mode, _, _, links, _, size, major, minor, special_major, special_minor, path_size, sum] = fields;
        let checksum = match magic {
            b"070701" => None,
            b"070702" => Some(sum),
            _ => return None,
        };
        let (device, number) = ((major, minor), (special_major, special_minor));
        Some(Self { inode, mode, links, size, device, number, path_size, checksum })
    }

    /// Reads the path after the header, to its first NUL as a kernel does.
    pub(super) fn read_path(&self, archive: &mut impl Read) -> io::Result<Vec<u8>> {
        if self.path_size > MAX_PATH_BYTES {
            return Err(invalid("an entry's path is longer than a path can be"));
        }
        let size = usize::try_from(self.path_size).unwrap_or(0);
        let mut path = vec![0; size];
        archive.read_exact(&mut path)?;
        if path.last() != Some(&0) {
            return Err(invalid("an entry's path does not end in a NUL"));
        }
        skip_padding(HEADER_BYTES + size, archive)?;
        path.truncate(path.iter().position(|byte| *byte == 0).unwrap_or(0));
        Ok(path)
    }

    /// Skips the padding after the content.
    pub(super) fn skip_padding(&self, archive: &mut impl Read) -> io::Result<()> {
        skip_padding(usize::try_from(self.size % 4).unwrap_or(0), archive)
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// What its other names have in common with it, if it may have others.
    pub(super) fn link_key(&self) -> Option<LinkKey> {
        (self.links >= 2).then_some((self.inode, self.device, self.mode & 0o170_000))
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some((number << 4) | char::from(*digit).to_digit(16)?))
}

fn skip_padding(size: usize, archive: &mut impl Read) -> io::Result<()> {
    let mut padding = [0; 4];
    archive.read_exact(padding.get_mut(..size.next_multiple_of(4) - size).unwrap_or_default())
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
