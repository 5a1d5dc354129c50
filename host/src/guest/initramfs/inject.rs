//! The agent, and its start, in an initramfs of somebody else's.
//!
//! The kernel unpacks archives that stand behind one another, compressed or not, each over the ones before (its document
//! `buffer-format`). So nothing of the base is changed: behind it comes an archive with the agent, the base's own init
//! under another name, and an init that starts both.

use std::io::{self, BufRead, BufReader, Read};

use cpio::newc::Reader;
use rustix::fs::FileType;

use super::build::Image;

/// Where the agent is in the guest. The folder is its own: one that the base has as a link would lose what is behind it.
pub const AGENT: &str = "scx-vsock/agent";

/// Where the base's own init is in the guest.
pub const INIT: &str = "scx-vsock/init";

/// The most bytes of an init. It is held in memory, whatever an archive says of its size.
pub const MAX_INIT_BYTES: u32 = 64 << 20;

/// The most bytes of a path in an archive, as the kernel has it.
const MAX_PATH_BYTES: u32 = 4096;

const HEADER_BYTES: usize = 110;
/// Where a header has the size of the entry's path, in hexadecimal digits.
const PATH_SIZE: std::ops::Range<usize> = 94..102;

/// What can interpret the start, the best first: a path, and the line with which a script names it.
const SHELLS: [(&str, &str); 4] = [
    ("bin/sh", "/bin/sh"),
    ("usr/bin/sh", "/usr/bin/sh"),
    ("bin/busybox", "/bin/busybox sh"),
    ("usr/bin/busybox", "/usr/bin/busybox sh"),
];

/// What an init is that has other names: what is written to it, or to a later one over it, is in all of them.
const HARD_LINK: &str = "a hard link";

/// The most memory that unpacking may take: what `xz -9` needs, and some more.
const MAX_XZ_BYTES: u64 = 256 << 20;

/// How other compressed data that a kernel may know begins, and what unpacks it.
const OTHERS: [(&[u8], &str); 5] = [
    (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x89LZO", "lzop"),
    (b"\x5d\0\0", "lzma"),
];

/// Why the agent cannot be put into an initramfs.
///
/// ```
/// use scx_vsock::guest::initramfs::inject::{InitramfsError, add_agent};
///
/// let error = add_agent(b"text", b"agent", &[]).unwrap_err();
/// assert!(matches!(error, InitramfsError::Unknown { at: 0 }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitramfsError {
    /// There is something else in it.
    #[error("byte {at} begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs")]
    Unknown {
        /// Where, counted from 0.
        at: usize,
    },
    /// Something compressed it that is not known here.
    #[error("byte {at} begins data of {by}: unpack it first")]
    Compression {
        /// Where, counted from 0.
        at: usize,
        /// The program that unpacks it.
        by: &'static str,
    },
    /// An archive or its compression cannot be read.
    #[error("what begins at byte {at} cannot be read")]
    Damaged {
        /// Where, counted from 0.
        at: usize,
        /// How.
        source: io::Error,
    },
    /// A kernel finds no archive there.
    #[error(
        "byte {at} begins an archive, or what is behind one, at no multiple of 4, where kernels stop: pad what is before it"
    )]
    Misaligned {
        /// Where, counted from 0.
        at: usize,
    },
    /// Nothing in it would be started.
    #[error(
        "it has no /init, before which the agent could be started: add one, or start the agent where the image ends up"
    )]
    NoInit,
    /// The init is something that cannot be put elsewhere.
    #[error("its /init is {what}: make it a file of its own, or a link to a file")]
    UnfitInit {
        /// What it is.
        what: &'static str,
    },
    /// Nothing in it can start the agent.
    #[error(
        "it has neither sh nor busybox in /bin or /usr/bin, to start the agent with: start it from the init itself"
    )]
    NoShell,
    /// The archive cannot be put together.
    #[error("the agent does not fit")]
    TooLarge(#[from] io::Error),
}

/// Puts the agent's file behind an initramfs (newc, as it is or compressed by gzip, xz or zstd), with a start that runs it
/// with these arguments beside the image's own init. In one that has an agent already, that one is replaced.
///
/// The guest must live in its initramfs: an init that goes on to another root leaves the agent behind.
///
/// ```
/// use scx_vsock::guest::initramfs::build::Image;
/// use scx_vsock::guest::initramfs::inject::add_agent;
///
/// let mut image = Image::new()?;
/// image.program("bin/sh", b"a shell")?;
/// image.program("init", b"#!/bin/sh\necho hello\n")?;
/// let base = image.finish()?;
/// let whole = add_agent(&base, b"the agent", &["--map", "729=/run/stats"])?;
/// assert!(whole.starts_with(&base));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`InitramfsError`].
pub fn add_agent(base: &[u8], agent: &[u8], arguments: &[&str]) -> Result<Vec<u8>, InitramfsError> {
    let contents = Contents::read(base)?;
    let shell = contents.shell().ok_or(InitramfsError::NoShell)?;
    let mut image = Image::default();
    if !contents.has_null {
        // A shell has what it starts in the background read it.
        image.character_device("dev/null", 0o666, 1, 3)?;
    }
    image.program(AGENT, agent)?;
    match contents.init.ok_or(InitramfsError::NoInit)? {
        Init::Program(bytes) if is_start(&bytes) => {}
        Init::Program(bytes) => image.program(INIT, &bytes)?,
        Init::Link(target) => image.link(INIT, &target)?,
        Init::Unfit(what) => return Err(InitramfsError::UnfitInit { what }),
    }
    image.program("init", start(shell, arguments).as_bytes())?;
    let mut whole = base.to_vec();
    // Where the kernel looks for an archive.
    whole.resize(base.len().next_multiple_of(4), 0);
    whole.extend(image.finish()?);
    Ok(whole)
}

/// The init that starts the agent and becomes the base's own.
fn start(shell: &str, arguments: &[&str]) -> String {
    let quoted = |argument: &&str| format!(" '{}'", argument.replace('\'', r"'\''"));
    let arguments: String = arguments.iter().map(quoted).collect();
    format!("#!{shell}\n/{AGENT}{arguments} &\n{}", to_init())
}

/// The last line of a [`start`].
fn to_init() -> String {
    format!("exec /{INIT} \"$@\"\n")
}

/// Whether this init is a [`start`], so that the base's own is under its other name already.
fn is_start(init: &[u8]) -> bool {
    init.ends_with(to_init().as_bytes())
}

/// What is known of an initramfs.
#[derive(Debug, Default)]
struct Contents {
    /// The last one: it is over those before.
    init: Option<Init>,
    has_null: bool,
    /// Which of [`SHELLS`] is the first that is there.
    shell: Option<usize>,
}

/// The program that the kernel runs.
#[derive(Debug)]
enum Init {
    Program(Vec<u8>),
    /// Where it leads, as an absolute path.
    Link(String),
    /// What cannot be put elsewhere.
    Unfit(&'static str),
}

impl Contents {
    /// Reads all archives of an initramfs.
    fn read(base: &[u8]) -> Result<Self, InitramfsError> {
        let mut contents = Self::default();
        let (mut rest, mut was_archive) = (base, false);
        loop {
            rest = without_padding(rest);
            if rest.is_empty() {
                return Ok(contents);
            }
            let at = base.len() - rest.len();
            let is_archive = rest.starts_with(b"0707");
            if (is_archive || was_archive) && !at.is_multiple_of(4) {
                return Err(InitramfsError::Misaligned { at });
            }
            was_archive = is_archive;
            let read = contents.read_part(rest).map_err(|source| InitramfsError::Damaged { at, source })?;
            rest = read.ok_or_else(|| unknown(rest, at))?;
        }
    }

    /// Reads an archive, or what some compression holds; gives what is behind. `None` if it is neither.
    fn read_part<'a>(&mut self, part: &'a [u8]) -> io::Result<Option<&'a [u8]>> {
        let rest = match part {
            [b'0', b'7', b'0', b'7', b'0', b'1' | b'2', ..] => {
                let mut rest = part;
                self.read_archive(&mut rest)?;
                rest
            }
            [0x1f, 0x8b, ..] => self.read_archives(flate2::bufread::GzDecoder::new(part))?.into_inner(),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
                let stream = liblzma::stream::Stream::new_stream_decoder(MAX_XZ_BYTES, 0).map_err(io::Error::other)?;
                self.read_archives(liblzma::bufread::XzDecoder::new_stream(part, stream))?.into_inner()
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let frame = ruzstd::decoding::StreamingDecoder::new(part).map_err(io::Error::other)?;
                self.read_archives(frame)?.into_inner()
            }
            _ => return Ok(None),
        };
        Ok(Some(rest))
    }

    /// Reads archives to the end of what a decoder gives, and gives it back.
    fn read_archives<R: Read>(&mut self, decoder: R) -> io::Result<R> {
        let mut unpacked = BufReader::new(decoder);
        // An archive's size is a multiple of 4.
        let mut padding = 0;
        loop {
            let available = unpacked.fill_buf()?;
            let zeros = available.len() - without_padding(available).len();
            if available.is_empty() {
                return Ok(unpacked.into_inner());
            }
            if zeros > 0 {
                unpacked.consume(zeros);
                padding = (padding + zeros) % 4;
            } else if padding == 0 {
                self.read_archive(&mut unpacked)?;
            } else {
                return Err(invalid("an archive in it begins at no multiple of 4"));
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
                return Err(invalid("an archive's trailer has a content"));
            }
            self.note(&mut entry)?;
            entry.finish()?;
            if ends {
                return Ok(());
            }
        }
    }

    fn note(&mut self, entry: &mut Reader<impl Read>) -> io::Result<()> {
        // A kernel reads a path to its first NUL.
        let path = entry.entry().name().split('\0').next().unwrap_or_default();
        let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
        if path == "init" && !matches!(self.init, Some(Init::Unfit(HARD_LINK))) {
            self.init = Some(Init::read(entry)?);
        }
        self.has_null |= path == "dev/null";
        let shell = SHELLS.iter().position(|(shell, _)| path == *shell);
        self.shell = self.shell.into_iter().chain(shell).min();
        Ok(())
    }

    fn shell(&self) -> Option<&'static str> {
        self.shell.and_then(|shell| SHELLS.get(shell)).map(|&(_, line)| line)
    }
}

impl Init {
    fn read(entry: &mut Reader<impl Read>) -> io::Result<Self> {
        let (kind, links) = (FileType::from_raw_mode(entry.entry().mode()), entry.entry().nlink());
        let size = entry.entry().file_size();
        if size > MAX_INIT_BYTES {
            return Ok(Self::Unfit("larger than 64 MiB"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        Ok(match kind {
            FileType::RegularFile if links > 1 => Self::Unfit(HARD_LINK),
            FileType::RegularFile => Self::Program(bytes),
            FileType::Symlink => {
                String::from_utf8(bytes).map_or(Self::Unfit("a link to a path that is no UTF-8"), |target| {
                    let below_root = target.trim_start_matches('/');
                    Self::Link(format!("/{below_root}"))
                })
            }
            _ => Self::Unfit("no file"),
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
    match OTHERS.iter().find(|(beginning, _)| rest.starts_with(beginning)) {
        Some(&(_, by)) => InitramfsError::Compression { at, by },
        None => InitramfsError::Unknown { at },
    }
}

/// What is behind the zeros that pad archives.
fn without_padding(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cpio::newc::{Builder, trailer};
    use proptest::prelude::*;

    use super::*;

    const OWN: &[u8] = b"#!/bin/sh\nexec sh\n";

    fn archive(entries: &[(&str, u32, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (path, mode, links, content) in entries {
            let mut writer =
                Builder::new(path).mode(*mode).nlink(*links).write(&mut bytes, content.len().try_into().unwrap());
            io::Write::write_all(&mut writer, content).unwrap();
            writer.finish().unwrap();
        }
        trailer(bytes).unwrap()
    }

    fn base() -> Vec<u8> {
        archive(&[(".", 0o040_755, 2, b""), ("./bin/sh", 0o120_777, 1, b"busybox"), ("init", 0o100_755, 1, OWN)])
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        flate2::read::GzEncoder::new(bytes, flate2::Compression::fast()).read_to_end(&mut packed).unwrap();
        packed
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        liblzma::read::XzEncoder::new(bytes, 1).read_to_end(&mut packed).unwrap();
        packed
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    /// What a kernel has after it unpacked the last archive, which is not compressed.
    fn last_archive(whole: &[u8], base: usize) -> BTreeMap<String, (u32, String)> {
        let mut rest = without_padding(&whole[base..]);
        assert_eq!((whole.len() - rest.len()) % 4, 0, "a kernel looks for it at a multiple of 4");
        let mut files = BTreeMap::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return files;
            }
            let (path, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            files.insert(path, (mode, content));
            rest = reader.finish().unwrap();
        }
    }

    fn error(base: &[u8]) -> String {
        add_agent(base, b"agent", &[]).unwrap_err().to_string()
    }

    #[test]
    fn behind_the_base_come_the_agent_its_start_and_the_bases_own_init() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let whole = add_agent(&base, b"agent", &["--map", "729=/run/it's"]).unwrap();
            assert!(whole.starts_with(&base));
            let files = last_archive(&whole, base.len());
            assert_eq!(files["scx-vsock/agent"], (0o100_755, "agent".into()));
            assert_eq!(files["scx-vsock/init"], (0o100_755, String::from_utf8(OWN.to_vec()).unwrap()));
            let start = "#!/bin/sh\n/scx-vsock/agent '--map' '729=/run/it'\\''s' &\nexec /scx-vsock/init \"$@\"\n";
            assert_eq!(files["init"], (0o100_755, start.into()));
            assert_eq!(files["dev/null"].0, 0o020_666);
            assert!(!files.contains_key("dev/console"));
        }
    }

    #[test]
    fn the_init_that_a_kernel_runs_is_in_the_last_archive_that_has_one() {
        let microcode = archive(&[
            ("kernel/x86/microcode/AuthenticAMD.bin", 0o100_644, 1, b"code"),
            ("init", 0o100_755, 1, b"old"),
        ]);
        let whole = [microcode, vec![0; 508], gzip(&base()), vec![0; 3], zstd(&archive(&[]))].concat();
        let files = last_archive(&add_agent(&whole, b"agent", &[]).unwrap(), whole.len());
        assert_eq!(files["scx-vsock/init"].1.as_bytes(), OWN);
    }

    #[test]
    fn an_agent_that_is_there_is_replaced_and_the_own_init_stays() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let once = add_agent(&base, b"old agent", &["--old"]).unwrap();
            let files = last_archive(&add_agent(&once, b"new agent", &[]).unwrap(), once.len());
            assert_eq!(files["scx-vsock/agent"].1, "new agent");
            assert!(!files.contains_key("scx-vsock/init") && !files["init"].1.contains("old"));
        }
    }

    #[test]
    fn an_init_that_was_added_behind_the_agent_is_the_own_one() {
        let once = add_agent(&base(), b"agent", &[]).unwrap();
        let other = [once, archive(&[("init", 0o100_755, 1, b"of another tool")])].concat();
        let files = last_archive(&add_agent(&other, b"agent", &[]).unwrap(), other.len());
        assert_eq!(files["scx-vsock/init"].1, "of another tool");
    }

    #[test]
    fn an_init_that_is_a_link_leads_to_the_same_file_from_its_other_place() {
        for (target, leads_to) in
            [("sbin/init", "/sbin/init"), ("/usr/lib/systemd/systemd", "/usr/lib/systemd/systemd")]
        {
            let base = archive(&[("bin/busybox", 0o100_755, 1, b"b"), ("/init", 0o120_777, 1, target.as_bytes())]);
            let files = last_archive(&add_agent(&base, b"agent", &[]).unwrap(), base.len());
            assert_eq!(files["scx-vsock/init"], (0o120_777, leads_to.into()));
            assert!(files["init"].1.starts_with("#!/bin/busybox sh\n"));
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_with_what_mends_it() {
        assert_eq!(
            error(b"\x7fELF"),
            "byte 0 begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs"
        );
        assert_eq!(
            error(&[&base()[..], b"\x02\x21\x4c\x18"].concat()),
            format!("byte {} begins data of lz4: unpack it first", base().len())
        );
        let shell: (&str, u32, u32, &[u8]) = ("bin/sh", 0o100_755, 1, b"s");
        assert!(error(&[]).starts_with("it has neither sh nor busybox"));
        assert!(error(&archive(&[("init", 0o100_755, 1, OWN)])).starts_with("it has neither sh nor busybox"));
        assert!(error(&archive(&[shell])).starts_with("it has no /init, before which"));
        assert!(
            error(&archive(&[shell, ("init", 0o100_755, 2, b"")])).starts_with("its /init is a hard link: make it")
        );
        assert!(error(&archive(&[shell, ("init", 0o040_755, 2, b"")])).starts_with("its /init is no file: make it"));
    }

    #[test]
    fn an_image_that_is_cut_short_or_damaged_is_said_to_be() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let cut = base.len() / 2;
            let error = add_agent(&base[..cut], b"agent", &[]).unwrap_err();
            assert!(matches!(error, InitramfsError::Damaged { at: 0, .. }), "{error}");
        }
        let mut long = base();
        long[PATH_SIZE].copy_from_slice(b"ffffffff");
        assert!(matches!(add_agent(&long, b"agent", &[]).unwrap_err(), InitramfsError::Damaged { at: 0, .. }));
        let mut no_text = gzip(b"no archive");
        no_text.splice(0..0, [0; 4]);
        assert!(matches!(add_agent(&no_text, b"agent", &[]).unwrap_err(), InitramfsError::Damaged { at: 4, .. }));
    }

    #[test]
    fn an_archive_that_kernels_do_not_find_is_refused() {
        let mut packed = gzip(&base());
        while packed.len() % 4 != 1 {
            packed.push(0);
        }
        let refused = |parts: &[&[u8]]| add_agent(&parts.concat(), b"agent", &[]).unwrap_err();
        let error = refused(&[&packed, &base()]);
        assert!(matches!(error, InitramfsError::Misaligned { at } if at == packed.len()), "{error}");
        let error = refused(&[&base(), &[0], &packed]);
        assert!(matches!(error, InitramfsError::Misaligned { at } if at == base().len() + 1), "{error}");
        let error = refused(&[&gzip(&[&base()[..], &[0, 0], &base()].concat())]);
        assert!(matches!(error, InitramfsError::Damaged { at: 0, .. }), "{error}");
        add_agent(&gzip(&[&base()[..], &[0; 512], &base()].concat()), b"agent", &[]).unwrap();
    }

    #[test]
    fn a_trailer_that_would_swallow_what_is_behind_it_is_refused() {
        let mut whole = base();
        let name = whole.windows(10).position(|bytes| bytes == b"TRAILER!!!").unwrap();
        whole[name - HEADER_BYTES + 54..][..8].copy_from_slice(b"00002000");
        assert!(matches!(add_agent(&whole, b"agent", &[]).unwrap_err(), InitramfsError::Damaged { at: 0, .. }));
    }

    #[test]
    fn an_init_that_ever_had_another_name_is_not_written_over() {
        let linked = archive(&[("sbin/init", 0o100_755, 2, b""), ("init", 0o100_755, 2, OWN)]);
        assert!(error(&[linked, base()].concat()).starts_with("its /init is a hard link"));
    }

    #[test]
    fn devices_of_the_base_stay_as_they_are() {
        let base = [base(), archive(&[("./dev/null", 0o020_666, 1, b"")])].concat();
        let files = last_archive(&add_agent(&base, b"agent", &[]).unwrap(), base.len());
        assert!(files.keys().eq(["init", "scx-vsock", "scx-vsock/agent", "scx-vsock/init"]));
    }

    proptest! {
        #[test]
        fn no_image_makes_it_panic(changes in prop::collection::vec((0usize..4096, any::<u8>()), 0..8), kind in 0..4, end in 0usize..4096) {
            let mut base = match kind { 0 => base(), 1 => gzip(&base()), 2 => xz(&base()), _ => zstd(&base()) };
            for (at, byte) in changes {
                let at = at % base.len();
                base[at] = byte;
            }
            base.truncate(end.max(1));
            drop(add_agent(&base, b"agent", &[]));
        }
    }
}
