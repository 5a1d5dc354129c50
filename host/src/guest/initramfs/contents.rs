//! What an existing initramfs contains, as far as adding to it depends on that.

use std::io::{self, BufRead, BufReader, Read};

use cpio::newc::Reader;
use rustix::fs::FileType;

use super::error::InitramfsError;

/// The most bytes of an init. It is held in memory.
pub const MAX_INIT_BYTES: u32 = 64 << 20;

/// The most bytes of a path in an archive, as for the kernel.
const MAX_PATH_BYTES: u32 = 4096;

pub(super) const HEADER_BYTES: usize = 110;
/// Where a header has the size of the entry's path, in hexadecimal digits.
pub(super) const PATH_SIZE: std::ops::Range<usize> = 94..102;

/// Shells that can interpret a start script, by preference: the path, and the interpreter line of a script.
const SHELLS: [(&str, &str); 4] = [
    ("bin/sh", "/bin/sh"),
    ("usr/bin/sh", "/usr/bin/sh"),
    ("bin/busybox", "/bin/busybox sh"),
    ("usr/bin/busybox", "/usr/bin/busybox sh"),
];

/// An init with other names. Writing to it, or to a later one over it, would change all of them.
const HARD_LINK: &str = "a hard link";

/// The most memory for unpacking xz: what `xz -9` needs, and some more.
const MAX_XZ_BYTES: u64 = 256 << 20;

/// Magic numbers of compressions that kernels may know but that are not supported here, and the programs that unpack them.
const UNSUPPORTED: [(&[u8], &str); 5] = [
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO", "lzop"),
    (b"\x5d\0\0", "lzma"),
];

/// What an initramfs contains.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The last `/init`, which replaces those before.
    pub(super) init: Option<Init>,
    /// Whether it has a `/dev/null`.
    pub(super) has_null: bool,
    /// The index in [`SHELLS`] of the best shell.
    shell: Option<usize>,
}

/// The `/init` that the kernel runs.
#[derive(Debug)]
pub(super) enum Init {
    /// A program's bytes.
    Program(Vec<u8>),
    /// A link's target as an absolute path.
    Link(String),
    /// Something that cannot be moved.
    Unusable(&'static str),
}

impl Contents {
    /// Reads all archives of an initramfs.
    ///
    /// # Errors
    ///
    /// What a kernel would not unpack, or what is not supported here.
    pub(super) fn read(base: &[u8]) -> Result<Self, InitramfsError> {
        let mut contents = Self::default();
        let (mut rest, mut was_archive) = (base, false);
        loop {
            rest = strip_padding(rest);
            if rest.is_empty() {
                return Ok(contents);
            }
            let at = base.len() - rest.len();
            let is_archive = rest.starts_with(b"0707");
            if (is_archive || was_archive) && !at.is_multiple_of(4) {
                return Err(InitramfsError::Misaligned { at });
            }
            was_archive = is_archive;
            let next = contents.read_segment(rest).map_err(|source| InitramfsError::InvalidArchive { at, source })?;
            rest = next.ok_or_else(|| unknown(rest, at))?;
        }
    }

    /// Reads one plain archive, or compressed ones; returns what follows. `None` if it is neither.
    fn read_segment<'a>(&mut self, segment: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        let rest = match segment {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => {
                let mut rest = segment;
                self.read_archive(&mut rest)?;
                rest
            }
            [0x1f, 0x8b, ..] => self.read_archives(flate2::bufread::GzDecoder::new(segment))?.into_inner(),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_BYTES, 0).map_err(io::Error::other)?;
                self.read_archives(liblzma::bufread::XzDecoder::new_stream(segment, stream))?.into_inner()
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let frame = ruzstd::decoding::StreamingDecoder::new(segment).map_err(io::Error::other)?;
                self.read_archives(frame)?.into_inner()
            }
            _ => return Ok(None),
        };
        Ok(Some(rest))
    }

    /// Reads archives to the end of what a decoder unpacks, and returns the decoder.
    fn read_archives<R: Read>(&mut self, decoder: R) -> io::Result<R> {
        let mut unpacked = BufReader::new(decoder);
        // An archive's size is a multiple of 4.
        let mut padding = 0;
        loop {
            let available = unpacked.fill_buf()?;
            let zeros = available.len() - strip_padding(available).len();
            if available.is_empty() {
                return Ok(unpacked.into_inner());
            }
            if zeros > 0 {
                unpacked.consume(zeros);
                padding = (padding + zeros) % 4;
            } else if padding == 0 {
                self.read_archive(&mut unpacked)?;
            } else {
                return Err(invalid("an archive in it does not begin at a multiple of 4"));
            }
        }
    }

    /// Reads one archive, through its trailer.
    fn read_archive(&mut self, archive: &mut impl BufRead) -> io::Result<()> {
        loop {
            let mut header = [0; HEADER_BYTES];
            archive.read_exact(&mut header)?;
            if path_size(&header).is_none_or(|size| size > MAX_PATH_BYTES) {
                return Err(invalid("an entry's path is longer than a path can be"));
            }
            let mut entry = Reader::new(header.chain(&mut *archive))?;
            let ends = entry.entry().is_trailer();
            if ends && entry.entry().file_size() > 0 {
                return Err(invalid("an archive's trailer has content"));
            }
            self.on_entry(&mut entry)?;
            entry.finish()?;
            if ends {
                return Ok(());
            }
        }
    }

    fn on_entry(&mut self, entry: &mut Reader<impl Read>) -> io::Result<()> {
        // A kernel reads a path to its first NUL.
        let path = entry.entry().name().split('\0').next().unwrap_or_default();
        let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
        if path == "init" && !matches!(self.init, Some(Init::Unusable(HARD_LINK))) {
            self.init = Some(Init::read(entry)?);
        }
        self.has_null |= path == "dev/null";
        let shell = SHELLS.iter().position(|(shell, _)| path == *shell);
        self.shell = self.shell.into_iter().chain(shell).min();
        Ok(())
    }

    /// The interpreter line of its best shell.
    pub(super) fn shell(&self) -> Option<&'static str> {
        self.shell.and_then(|shell| SHELLS.get(shell)).map(|&(_, line)| line)
    }
}

impl Init {
    fn read(entry: &mut Reader<impl Read>) -> io::Result<Self> {
        let (kind, links) = (FileType::from_raw_mode(entry.entry().mode()), entry.entry().nlink());
        let size = entry.entry().file_size();
        if size > MAX_INIT_BYTES {
            return Ok(Self::Unusable("larger than 64 MiB"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok(match kind {
            FileType::RegularFile if links > 1 => Self::Unusable(HARD_LINK),
            FileType::RegularFile => Self::Program(bytes),
            FileType::Symlink => {
                String::from_utf8(bytes).map_or(Self::Unusable("a link to a path that is not UTF-8"), |target| {
                    let below_root = target.trim_start_matches('/');
                    Self::Link(format!("/{below_root}"))
                })
            }
            _ => Self::Unusable("not a file"),
        })
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn path_size(header: &[u8; HEADER_BYTES]) -> Option<u32> {
    let digits = std::str::from_utf8(header.get(PATH_SIZE)?).ok()?;
    u32::from_str_radix(digits, 16).ok()
}

fn unknown(rest: &[u8], at: usize) -> InitramfsError {
    match UNSUPPORTED.iter().find(|(beginning, _)| rest.starts_with(beginning)) {
        Some(&(_, by)) => InitramfsError::Compression { at, by },
        None => InitramfsError::Unknown { at },
    }
}

/// Skips the zeros that pad archives.
pub(super) fn strip_padding(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}
