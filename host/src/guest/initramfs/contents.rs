//! What an existing initramfs contains, as far as adding to it depends on that.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};

use rustix::fs::FileType;

use super::entry::{Header, invalid};
use super::error::InitramfsError;
use super::modules::{VSOCK_TRANSPORT, module_name};
use super::root_fs::{Node, Opened, RootFs};
use super::start_script::{AGENT, INIT, is_start_script};
use crate::guest::architecture::ElfMachine;

/// The most bytes of an init. It is held in memory.
pub const MAX_INIT_BYTES: u32 = 64 << 20;

/// The most bytes of a `modules.builtin` that are read.
const MAX_INDEX_BYTES: u32 = 1 << 20;

/// The most bytes that compressed archives may unpack to. A kernel unpacks them into memory.
const MAX_UNPACKED_BYTES: u64 = 16 << 30;

/// The most memory for the names of files.
const MAX_NAMES_BYTES: usize = 256 << 20;

/// The most bytes of a link's target, as for the kernel.
const MAX_TARGET_BYTES: u32 = 4096;

/// The most memory for unpacking xz: what `xz -9` needs, and some more.
const MAX_XZ_BYTES: u64 = 256 << 20;

/// Shells that can interpret a start script, by preference: the path, and the interpreter line of a script.
const SHELLS: [(&str, &str); 4] = [
    ("bin/sh", "/bin/sh"),
    ("usr/bin/sh", "/usr/bin/sh"),
    ("bin/busybox", "/bin/busybox sh"),
    ("usr/bin/busybox", "/usr/bin/busybox sh"),
];

/// The device that is `/dev/null`.
const NULL: (u32, u32) = (1, 3);

/// The paths of an archive that holds an agent and nothing of the base.
const PATHS_WITH_AGENT: [&str; 7] = ["dev", "dev/null", "scx-vsock", AGENT, INIT, "init", TRAILER];

/// How many bytes of each file are read as the header of a program.
const BEGINNING_BYTES: usize = 20;

const TRAILER: &str = "TRAILER!!!";

/// Magic numbers of compressions that kernels may know but that are not supported here, and the programs that unpack them.
const UNSUPPORTED: [(&[u8], &str); 5] = [
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO", "lzop"),
    (b"\x5d\0\0", "lzma"),
];

/// What an initramfs contains.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) root: RootFs,
    /// What was last written to `/init`, with its inode.
    init: Option<(u64, Written)>,
    built_in: Vec<&'static str>,
    /// The machine of each program, by its inode.
    machines: HashMap<u64, ElfMachine>,
    /// How many bytes compressed archives may still unpack to.
    unpackable: u64,
    /// The last archive, or the last compressed ones.
    segment: Segment,
}

/// The content of a file.
#[derive(Debug)]
enum Written {
    Bytes(Vec<u8>),
    TooLarge,
}

/// An archive, or compressed ones.
#[derive(Debug)]
struct Segment {
    at: usize,
    /// Whether it has no other paths than an archive with an agent has.
    is_like_agents: bool,
    has_agent: bool,
}

/// The `/init` that the kernel runs.
#[derive(Debug)]
pub(super) enum Init {
    /// A start script.
    StartScript,
    /// A program's bytes.
    Program(Vec<u8>),
    /// A link's target, and the inode that it leads to.
    Link(Vec<u8>, u64),
}

/// A shell, as the interpreter line of a script and as the inode of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shell {
    pub(super) line: &'static str,
    pub(super) inode: u64,
}

impl Contents {
    /// Reads all archives of an initramfs.
    ///
    /// # Errors
    ///
    /// What a kernel would not unpack, or what is not supported here.
    pub(super) fn read(base: &[u8]) -> Result<Self, InitramfsError> {
        let mut contents = Self {
            root: RootFs::new(),
            init: None,
            built_in: Vec::new(),
            machines: HashMap::new(),
            unpackable: MAX_UNPACKED_BYTES,
            segment: Segment::at(0),
        };
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
            contents.segment = Segment::at(at);
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
        let mut unpacked = BufReader::new(decoder.take(self.unpackable));
        loop {
            skip_zeros(&mut unpacked)?;
            if unpacked.fill_buf()?.is_empty() {
                self.unpackable = unpacked.get_ref().limit();
                return Ok(unpacked.into_inner().into_inner());
            }
            let outcome = self.read_archive(&mut unpacked);
            if unpacked.get_ref().limit() == 0 {
                return Err(invalid("it unpacks to more than 16 GiB"));
            }
            outcome?;
        }
    }

    /// Reads one archive, through its trailer.
    pub(super) fn read_archive(&mut self, archive: &mut impl BufRead) -> io::Result<()> {
        loop {
            let header = Header::read(archive)?;
            let path = header.read_path(archive)?;
            self.segment.add(&path);
            let ends = path == TRAILER.as_bytes() && header.kind() != FileType::Symlink;
            if ends && header.size > 0 {
                return Err(invalid("an archive's trailer has content"));
            }
            if ends {
                self.root.end_archive();
                return Ok(());
            }
            self.read_entry(&header, &path, archive)?;
            header.skip_padding(archive)?;
            if self.root.bytes() > MAX_NAMES_BYTES {
                return Err(invalid("its names need more than 256 MiB"));
            }
            skip_zeros(archive)?;
        }
    }

    fn read_entry(&mut self, header: &Header, path: &[u8], archive: &mut impl BufRead) -> io::Result<()> {
        match header.kind() {
            FileType::RegularFile => return self.read_file(header, path, archive),
            FileType::Symlink if header.size <= MAX_TARGET_BYTES => {
                let mut target = read_content(header.size, MAX_TARGET_BYTES, archive)?.kept;
                target.truncate(target.iter().position(|byte| *byte == 0).unwrap_or(target.len()));
                self.root.add_link(path, target);
                return Ok(());
            }
            // A kernel skips what has no content but a size.
            FileType::Directory if header.size == 0 => self.root.add_folder(path),
            kind if header.size == 0 && is_special(kind) => {
                self.root.add_special(path, kind, header.number, header.link_key());
            }
            _ => {}
        }
        read_content(header.size, 0, archive).map(drop)
    }

    fn read_file(&mut self, header: &Header, path: &[u8], archive: &mut impl BufRead) -> io::Result<()> {
        let opened = self.root.open(path, header.mode, header.link_key());
        let kept = opened.as_ref().map_or(0, |opened| kept_bytes(&opened.place));
        let content = read_content(header.size, kept, archive)?;
        let Some(opened) = opened else { return Ok(()) };
        if header.checksum.is_some_and(|sum| sum != content.sum) {
            return Err(invalid("a file's checksum is wrong"));
        }
        if header.size > 0 || !opened.is_shared {
            self.on_written(&opened, header.size, content);
        }
        Ok(())
    }

    fn on_written(&mut self, opened: &Opened, size: u32, content: Content) {
        let Content { kept, beginning, .. } = content;
        match ElfMachine::read(&beginning) {
            Some(machine) => self.machines.insert(opened.inode, machine),
            None => self.machines.remove(&opened.inode),
        };
        if is_index(&opened.place) {
            let text = String::from_utf8_lossy(&kept);
            let is_listed = |name: &&str| text.lines().any(|path| module_name(path) == **name);
            self.built_in.extend(VSOCK_TRANSPORT.iter().filter(|name| is_listed(name)));
        }
        if opened.place == b"init" {
            let content = if size > MAX_INIT_BYTES { Written::TooLarge } else { Written::Bytes(kept) };
            self.init = Some((opened.inode, content));
        } else if matches!(self.init, Some((inode, _)) if inode == opened.inode) {
            self.init = None;
        }
    }

    /// Returns where the last segment begins, if it is an agent that was added before and nothing else.
    pub(super) fn last_agent(&self) -> Option<usize> {
        let is_start = matches!(&self.init, Some((_, Written::Bytes(init))) if is_start_script(init));
        (self.segment.is_like_agents && self.segment.has_agent && is_start).then_some(self.segment.at)
    }

    /// Returns the init.
    pub(super) fn init(&self) -> Result<Init, InitramfsError> {
        let unusable = |what| Err(InitramfsError::UnusableInit { what });
        match (self.root.entry(b"init"), self.root.program(b"init")) {
            (None, _) => Err(InitramfsError::NoInit),
            (Some(Node::Folder), _) => unusable("a folder"),
            (Some(Node::Special(..)), _) => unusable("a device, a pipe or a socket"),
            (Some(Node::Link(_)), None) => unusable("a link that leads to no program"),
            (Some(Node::Link(_)), Some(inode)) if self.root.program(INIT.as_bytes()) == Some(inode) => {
                Ok(Init::StartScript)
            }
            (Some(Node::Link(target)), Some(inode)) => Ok(Init::Link(target.clone(), inode)),
            (Some(Node::File(file)), _) if self.root.is_shared(file.inode) => unusable("a hard link"),
            (Some(Node::File(file)), _) => match &self.init {
                Some((inode, Written::Bytes(init))) if *inode == file.inode && is_start_script(init) => {
                    Ok(Init::StartScript)
                }
                Some((inode, Written::Bytes(init))) if *inode == file.inode => Ok(Init::Program(init.clone())),
                Some((inode, Written::TooLarge)) if *inode == file.inode => unusable("larger than 64 MiB"),
                _ => unusable("a hard link"),
            },
        }
    }

    /// Returns its best shell.
    pub(super) fn shell(&self) -> Option<Shell> {
        SHELLS.iter().find_map(|(path, line)| Some(Shell { line, inode: self.root.program(path.as_bytes())? }))
    }

    /// Returns the machine that a shell is for; `None` if the file is no program.
    pub(super) fn machine_of(&self, shell: Shell) -> Option<ElfMachine> {
        self.machines.get(&shell.inode).copied()
    }

    /// Whether it has a `/dev/null`.
    pub(super) fn has_null(&self) -> bool {
        matches!(self.root.target(b"dev/null"), Some(Node::Special(FileType::CharacterDevice, NULL)))
    }

    /// Returns the modules of the virtio-vsock transport that it does not have and that its kernel is not known to have.
    pub(super) fn missing_modules(&self) -> Vec<&'static str> {
        let names: Vec<String> = self.root.file_names().filter_map(name_of_module).collect();
        let is_there = |name: &&str| self.built_in.contains(name) || names.iter().any(|there| there == name);
        VSOCK_TRANSPORT.iter().filter(|name| !is_there(name)).copied().collect()
    }
}

impl Segment {
    fn at(at: usize) -> Self {
        Self { at, is_like_agents: true, has_agent: false }
    }

    fn add(&mut self, path: &[u8]) {
        self.is_like_agents &= PATHS_WITH_AGENT.iter().any(|known| known.as_bytes() == path);
        self.has_agent |= path == AGENT.as_bytes();
    }
}

/// A file's content as far as it is kept, its first bytes, and the sum of all its bytes.
struct Content {
    kept: Vec<u8>,
    beginning: Vec<u8>,
    sum: u32,
}

/// Reads the content of an entry. It is kept if it has at most `kept` bytes.
fn read_content(size: u32, kept: u32, archive: &mut impl BufRead) -> io::Result<Content> {
    let mut content = Content { kept: Vec::new(), beginning: Vec::new(), sum: 0 };
    let mut left = usize::try_from(size).unwrap_or(usize::MAX);
    while left > 0 {
        let available = archive.fill_buf()?;
        let piece = available.get(..left.min(available.len())).unwrap_or_default();
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        content.sum = piece.iter().fold(content.sum, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        let missing = BEGINNING_BYTES.saturating_sub(content.beginning.len());
        content.beginning.extend_from_slice(piece.get(..missing).unwrap_or(piece));
        if size <= kept {
            content.kept.extend_from_slice(piece);
        }
        let read = piece.len();
        archive.consume(read);
        left -= read;
    }
    Ok(content)
}

/// Returns how many bytes of a file are kept.
fn kept_bytes(place: &[u8]) -> u32 {
    match place {
        b"init" => MAX_INIT_BYTES,
        _ if is_index(place) => MAX_INDEX_BYTES,
        _ => 0,
    }
}

/// Whether this is the list of a kernel's built-in modules.
fn is_index(place: &[u8]) -> bool {
    place.ends_with(b"/modules.builtin")
}

fn name_of_module(file: &[u8]) -> Option<String> {
    let file = std::str::from_utf8(file).ok()?;
    file.contains(".ko").then(|| module_name(file))
}

fn is_special(kind: FileType) -> bool {
    matches!(kind, FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo | FileType::Socket)
}

/// Skips zeros before an entry or an archive, which begin at multiples of 4.
fn skip_zeros(archive: &mut impl BufRead) -> io::Result<()> {
    let mut skipped = 0;
    loop {
        let available = archive.fill_buf()?;
        let (zeros, ends) = (available.len() - strip_padding(available).len(), available.is_empty());
        let goes_on = zeros > 0 && zeros == available.len();
        archive.consume(zeros);
        skipped = (skipped + zeros) % 4;
        if ends || !goes_on && skipped == 0 {
            return Ok(());
        } else if !goes_on {
            return Err(invalid("an archive or an entry in it does not begin at a multiple of 4"));
        }
    }
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
