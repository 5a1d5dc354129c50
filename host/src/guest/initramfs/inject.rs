//! Adds the agent, and a start script for it, to an existing initramfs.
//!
//! The kernel unpacks archives that follow each other, compressed or not, each over the ones before (Linux,
//! `driver-api/early-userspace/buffer-format.rst`). So the base stays as it is. After it comes an archive with the agent,
//! the base's own init under another name, and an init that starts both. A boot configuration stays the last.
//!
//! What the base contains is what a kernel makes of it: entries that a kernel drops are not there, and later ones replace
//! earlier ones.

pub use super::contents::MAX_INIT_BYTES;
pub use super::error::InitramfsError;
pub use super::start_script::{AGENT, INIT};

use super::bootconfig;
use super::build::InitramfsBuilder;
use super::contents::{Contents, Init, Shell, strip_padding};
use super::root_fs::Node;
use super::start_script::start_script;
use crate::guest::architecture::Architecture;

/// An initramfs with an agent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InitramfsWithAgent {
    /// The bytes of the initramfs.
    pub bytes: Vec<u8>,
    /// The modules of the virtio-vsock transport that the base does not contain and that its `modules.builtin` does not
    /// name. The guest needs them from its kernel.
    pub missing_modules: Vec<&'static str>,
}

/// Appends the agent's file to an initramfs (newc, plain or compressed by gzip, xz or zstd), with an init that starts the
/// agent with these arguments and becomes the base's own init. An agent that was added before is replaced.
///
/// The guest must live in its initramfs: an init that switches to another root loses the agent.
///
/// ```
/// use scx_vsock::guest::initramfs::build::InitramfsBuilder;
/// use scx_vsock::guest::initramfs::inject::add_agent;
///
/// let mut base = InitramfsBuilder::new()?;
/// base.program("bin/sh", b"a shell")?;
/// base.program("init", b"#!/bin/sh\necho hello\n")?;
/// let base = base.finish()?;
/// let initramfs = add_agent(&base, b"the agent", &["--map", "729=/run/stats"])?;
/// assert!(initramfs.bytes.starts_with(&base));
/// assert!(initramfs.missing_modules.contains(&"vmw_vsock_virtio_transport"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`InitramfsError`].
pub fn add_agent(base: &[u8], agent: &[u8], arguments: &[&str]) -> Result<InitramfsWithAgent, InitramfsError> {
    BaseInitramfs::read(base)?.add_agent(agent, arguments)
}

/// An initramfs that an agent can be added to, by [`add_agent`] in two steps: the agent may depend on the architecture.
#[derive(Debug)]
pub struct BaseInitramfs<'a> {
    /// The archives without an agent that was added before.
    archives: &'a [u8],
    bootconfig: &'a [u8],
    contents: Contents,
    init: Init,
    shell: Shell,
}

impl<'a> BaseInitramfs<'a> {
    /// Reads an initramfs.
    ///
    /// # Errors
    ///
    /// See [`InitramfsError`].
    pub fn read(base: &'a [u8]) -> Result<Self, InitramfsError> {
        let (archives, bootconfig) = bootconfig::split(base)?;
        if strip_padding(archives).is_empty() {
            return Err(InitramfsError::Empty { bytes: archives.len() });
        }
        let (archives, contents) = without_agent(archives)?;
        let init = contents.init()?;
        let shell = contents.shell().ok_or(InitramfsError::NoShell)?;
        Ok(Self { archives, bootconfig, contents, init, shell })
    }

    /// Returns the architecture that its shell is for; `None` if the shell is no program of a known kind.
    ///
    /// # Errors
    ///
    /// [`InitramfsError::Architecture`] if there is no agent for it.
    pub fn architecture(&self) -> Result<Option<Architecture>, InitramfsError> {
        let Some(machine) = self.contents.machine_of(self.shell) else { return Ok(None) };
        let unknown = || InitramfsError::Architecture { machine: machine.to_string() };
        machine.architecture().map(Some).ok_or_else(unknown)
    }

    /// Appends the agent, as [`add_agent`].
    ///
    /// # Errors
    ///
    /// See [`InitramfsError`].
    pub fn add_agent(mut self, agent: &[u8], arguments: &[&str]) -> Result<InitramfsWithAgent, InitramfsError> {
        let script = start_script(self.shell.line, arguments)?;
        let added = archive_with_agent(&self.contents, &self.init, agent, &script)?;
        let missing_modules = self.contents.missing_modules();
        self.contents.read_archive(&mut &added[..])?;
        check(&self.contents, &self.init, self.shell)?;
        Ok(InitramfsWithAgent { bytes: joined(self.archives, &added, self.bootconfig), missing_modules })
    }
}

/// Returns the archives without those at their end that are an agent of before, and what they contain.
fn without_agent(archives: &[u8]) -> Result<(&[u8], Contents), InitramfsError> {
    let mut base = archives;
    loop {
        let contents = Contents::read(base)?;
        let Some((before, _)) = contents.last_agent().and_then(|at| base.split_at_checked(at)) else {
            return Ok((base, contents));
        };
        base = before;
    }
}

/// Returns the archive that goes over the base.
fn archive_with_agent(base: &Contents, init: &Init, agent: &[u8], script: &str) -> Result<Vec<u8>, InitramfsError> {
    let mut added = InitramfsBuilder::default();
    if !base.has_null() {
        // A shell redirects the input of a background process to it.
        add_null(&mut added, base)?;
    }
    added.program(AGENT, agent)?;
    match init {
        Init::StartScript => {}
        Init::Program(bytes) => added.program(INIT, bytes)?,
        // It was in the root folder, and is not there now.
        Init::Link(target, _) if !target.starts_with(b"/") => added.link(INIT, [b"/", &target[..]].concat())?,
        Init::Link(target, _) => added.link(INIT, target)?,
    }
    added.program("init", script.as_bytes())?;
    Ok(added.finish()?)
}

fn add_null(added: &mut InitramfsBuilder, base: &Contents) -> Result<(), InitramfsError> {
    if matches!(base.root.target(b"dev"), Some(Node::Folder)) {
        added.assume_folder("dev");
    }
    if base.root.entry(b"dev/null").is_some() {
        added.remove("dev/null")?;
    }
    Ok(added.character_device("dev/null", 0o666, 1, 3)?)
}

/// Checks that what was added over the base is what a kernel runs.
fn check(whole: &Contents, init: &Init, shell: Shell) -> Result<(), InitramfsError> {
    let (agent, start) = (added_file(whole, AGENT)?, added_file(whole, "init")?);
    let is_replaced = |inode: u64| [agent, start].contains(&inode);
    if !whole.has_null() {
        return Err(InitramfsError::Occupied { path: "dev/null" });
    }
    let own = whole.root.program(INIT.as_bytes()).filter(|inode| !is_replaced(*inode));
    match init {
        Init::Link(_, inode) if own != Some(*inode) => {
            Err(InitramfsError::UnusableInit { what: "a link to what the agent replaces" })
        }
        _ if own.is_none() => Err(InitramfsError::UnusableInit { what: "only the start of an agent" }),
        _ if is_replaced(shell.inode) || whole.shell().is_none_or(|now| now.inode != shell.inode) => {
            Err(InitramfsError::NoShell)
        }
        _ => Ok(()),
    }
}

/// Returns the inode of a file that was added.
fn added_file(whole: &Contents, path: &'static str) -> Result<u64, InitramfsError> {
    match whole.root.entry(path.as_bytes()) {
        Some(Node::File(file)) => Ok(file.inode),
        _ => Err(InitramfsError::Occupied { path }),
    }
}

/// Returns the whole initramfs. Kernels look for an archive at multiples of 4, and boot loaders pad to them.
fn joined(base: &[u8], added: &[u8], bootconfig: &[u8]) -> Vec<u8> {
    let mut initramfs = base.to_vec();
    initramfs.resize(base.len().next_multiple_of(4), 0);
    initramfs.extend(added);
    let aligned = (initramfs.len() + bootconfig.len()).next_multiple_of(4) - bootconfig.len();
    initramfs.resize(aligned, 0);
    initramfs.extend(bootconfig);
    initramfs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{self, Read};

    use cpio::newc::{Builder, Reader, trailer};
    use proptest::prelude::*;

    use super::*;

    const HEADER_BYTES: usize = 110;
    /// Where a header has the size of the entry's path.
    const PATH_SIZE: std::ops::Range<usize> = 94..102;
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;
    const LINK: u32 = 0o120_777;
    const DEVICE: u32 = 0o020_666;

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

    type Entry<'a> = (&'a str, u32, u32, &'a [u8]);

    const SHELL: [Entry<'static>; 3] =
        [("bin", FOLDER, 2, b""), ("bin/busybox", PROGRAM, 1, b"busybox"), ("./bin/sh", LINK, 1, b"busybox")];

    fn base() -> Vec<u8> {
        with_shell(&[("init", PROGRAM, 1, OWN)])
    }

    /// An archive with a shell and these entries.
    fn with_shell(entries: &[Entry<'_>]) -> Vec<u8> {
        archive(&[&[(".", FOLDER, 2, &b""[..])], &SHELL[..], entries].concat())
    }

    fn added(base: &[u8], agent: &[u8], arguments: &[&str]) -> Vec<u8> {
        add_agent(base, agent, arguments).unwrap().bytes
    }

    /// The files of what is appended to a base.
    fn files_over(base: &[u8]) -> BTreeMap<String, (u32, String)> {
        last_archive(&added(base, b"agent", &[]), base.len())
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

    /// The files of the last archive, which is not compressed.
    fn last_archive(whole: &[u8], base: usize) -> BTreeMap<String, (u32, String)> {
        let mut rest = strip_padding(&whole[base..]);
        assert_eq!((whole.len() - rest.len()) % 4, 0, "kernels look for it at a multiple of 4");
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
    fn the_architecture_is_that_of_the_shell() {
        let of = |shell: &[u8]| {
            let folders = [(".", FOLDER, 2, &b""[..]), ("bin", FOLDER, 2, b"")];
            let base = archive(&[&folders[..], &[("bin/sh", PROGRAM, 1, shell), ("init", PROGRAM, 1, OWN)]].concat());
            BaseInitramfs::read(&base).unwrap().architecture()
        };
        let elf = |machine: u8| [b"\x7fELF".as_slice(), &[0; 14], &[machine, 0, 1]].concat();
        assert_eq!(of(&elf(62)).unwrap(), Some(Architecture::X86_64));
        assert_eq!(of(&elf(183)).unwrap(), Some(Architecture::Aarch64));
        assert_eq!(of(b"a shell").unwrap(), None);
        let error = of(&elf(243)).unwrap_err().to_string();
        assert!(error.starts_with("its shell is for another architecture (ELF machine 243)"), "{error}");
    }

    #[test]
    fn the_agent_follows_the_base() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let whole = added(&base, b"agent", &["--map", "729=/run/it's"]);
            assert!(whole.starts_with(&base));
            let files = last_archive(&whole, base.len());
            assert_eq!(files["scx-vsock/agent"], (0o100_755, "agent".into()));
            assert_eq!(files["scx-vsock/init"], (0o100_755, String::from_utf8(OWN.to_vec()).unwrap()));
            let start = "#!/bin/sh\n/scx-vsock/agent --map \"729=/run/it's\" &\nexec /scx-vsock/init \"$@\"\n";
            assert_eq!(files["init"], (0o100_755, start.into()));
            assert_eq!(files["dev/null"].0, 0o020_666);
            assert!(!files.contains_key("dev/console"));
        }
    }

    #[test]
    fn the_last_init_is_the_one_kept() {
        let microcode = archive(&[
            ("kernel/x86/microcode/AuthenticAMD.bin", 0o100_644, 1, b"code"),
            ("init", 0o100_755, 1, b"old"),
        ]);
        let whole = [microcode, vec![0; 508], gzip(&base()), vec![0; 3], zstd(&archive(&[]))].concat();
        let files = files_over(&whole);
        assert_eq!(files["scx-vsock/init"].1.as_bytes(), OWN);
    }

    #[test]
    fn an_agent_added_before_is_replaced() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let mut once = added(&base, b"old agent", &["--old"]);
            let fresh = added(&base, b"new agent", &[]);
            assert_eq!(added(&once, b"new agent", &[]), fresh);
            let agent = once.split_off(base.len().next_multiple_of(4));
            for packed in [gzip(&agent), xz(&agent), zstd(&agent), [&agent[..], &[0; 512], &gzip(&agent)].concat()] {
                assert_eq!(added(&[&once[..], &packed].concat(), b"new agent", &[]), fresh);
            }
        }
    }

    #[test]
    fn an_agent_packed_with_the_base_is_replaced() {
        let once = added(&base(), b"old agent", &["--old"]);
        let other = archive(&[("etc", FOLDER, 2, b"")]);
        for packed in [gzip(&once), xz(&once), zstd(&once), [once, other].concat()] {
            let twice = added(&packed, b"new agent", &[]);
            let files = last_archive(&twice, packed.len());
            assert_eq!(files["scx-vsock/agent"].1, "new agent");
            assert!(!files.contains_key("scx-vsock/init") && !files["init"].1.contains("old"));
            assert_eq!(added(&twice, b"new agent", &[]), twice, "it is not added each time");
        }
    }

    #[test]
    fn an_init_added_after_the_agent_is_kept() {
        let once = added(&base(), b"agent", &[]);
        let other = [once, archive(&[("init", PROGRAM, 1, b"of another tool")])].concat();
        assert_eq!(files_over(&other)["scx-vsock/init"].1, "of another tool");
    }

    #[test]
    fn a_moved_link_points_to_the_same_file() {
        for (target, leads_to) in [("bin/busybox", "/bin/busybox"), ("/bin/../sbin", "/bin/../sbin")] {
            let base = with_shell(&[("sbin", PROGRAM, 1, b"i"), ("/init", LINK, 1, target.as_bytes())]);
            let files = files_over(&base);
            assert_eq!(files["scx-vsock/init"], (LINK, leads_to.into()));
            assert!(files["init"].1.starts_with("#!/bin/sh\n"));
        }
    }

    #[test]
    fn an_init_that_leads_to_no_program_is_refused() {
        for (target, what) in [
            ("init", "a link that leads to no program"),
            ("/bin/../init", "a link that leads to no program"),
            ("scx-vsock/init", "a link that leads to no program"),
            ("", "a link that leads to no program"),
            ("bin", "a link that leads to no program"),
            ("etc/init", "a link that leads to no program"),
            ("scx-vsock/own", "a link to what the agent replaces"),
            ("scx-vsock/agent", "a link to what the agent replaces"),
        ] {
            let base = with_shell(&[
                ("own", FOLDER, 2, b""),
                ("own/own", PROGRAM, 1, OWN),
                ("own/agent", PROGRAM, 1, OWN),
                ("etc", FOLDER, 2, b""),
                ("etc/init", 0o100_644, 1, OWN),
                ("scx-vsock", LINK, 1, b"own"),
                ("init", LINK, 1, target.as_bytes()),
            ]);
            assert_eq!(error(&base), format!("its /init is {what}: make it a file of its own, or a link to a file"));
        }
        let start = [b"#!/bin/sh\n/scx-vsock/agent &\n", &b"exec /scx-vsock/init \"$@\"\n"[..]].concat();
        let base = with_shell(&[("init", PROGRAM, 1, &start)]);
        assert!(error(&base).starts_with("its /init is only the start of an agent"));
    }

    #[test]
    fn an_init_put_back_as_a_link_is_in_its_place() {
        let once = added(&base(), b"agent", &[]);
        let base = [once, archive(&[("init", LINK, 1, b"scx-vsock/init")])].concat();
        let files = files_over(&base);
        assert!(!files.contains_key("scx-vsock/init") && files["init"].1.starts_with("#!/bin/sh\n"));
    }

    #[test]
    fn the_path_of_the_init_is_the_kernels() {
        for path in ["bin/../init", "/./init", "//init", "./bin/./../init"] {
            let base = with_shell(&[("init", PROGRAM, 1, b"old"), (path, PROGRAM, 1, OWN)]);
            assert_eq!(files_over(&base)["scx-vsock/init"].1.as_bytes(), OWN, "{path}");
        }
        for path in ["sbin/../init", "bin/sh/../init", "init/"] {
            let base = with_shell(&[("init", PROGRAM, 1, OWN), (path, PROGRAM, 1, b"dropped")]);
            assert_eq!(files_over(&base)["scx-vsock/init"].1.as_bytes(), OWN, "{path}");
        }
    }

    #[test]
    fn a_shell_is_a_program() {
        let init = ("init", PROGRAM, 1, OWN);
        let no_shell = "it has neither sh nor busybox as a program in /bin or /usr/bin";
        for shell in [
            ("bin/sh", FOLDER, 2, &b""[..]),
            ("bin/sh", DEVICE, 1, b""),
            ("bin/sh", LINK, 1, b"busybox"),
            ("bin/sh", LINK, 1, b"sh"),
            ("bin/sh", LINK, 1, b"../init"),
            ("bin/sh", 0o100_644, 1, b"s"),
            ("usr/bin/sh", PROGRAM, 1, b"of a folder that is not there"),
        ] {
            assert!(error(&archive(&[("bin", FOLDER, 2, b""), shell, init])).starts_with(no_shell), "{shell:?}");
        }
        let base = archive(&[SHELL[0], SHELL[1], ("bin/sh", FOLDER, 2, b""), init]);
        assert!(files_over(&base)["init"].1.starts_with("#!/bin/busybox sh\n"));
    }

    #[test]
    fn dev_null_is_the_device() {
        let null_over = |entry: Entry<'_>| {
            let base = with_shell(&[("init", PROGRAM, 1, OWN), ("dev", FOLDER, 2, b""), entry]);
            files_over(&base).get("dev/null").map(|null| null.0)
        };
        assert_eq!(null_over(("dev/null", 0o100_644, 1, b"")), Some(DEVICE));
        assert_eq!(null_over(("dev/null", DEVICE, 1, b"")), Some(DEVICE), "another device");
        assert_eq!(null_over(("dev/null", LINK, 1, b"console")), Some(DEVICE));
        assert_eq!(null_over(("dev/null", FOLDER, 2, b"")), Some(DEVICE));
        let base =
            with_shell(&[("dev/null", FOLDER, 2, b""), ("dev/null/x", FOLDER, 2, b""), ("init", PROGRAM, 1, OWN)]);
        assert_eq!(error(&base), "it has a folder at /dev/null, where the agent needs a file: remove the folder");
    }

    #[test]
    fn names_and_targets_are_bytes() {
        let mut base = with_shell(&[("caf?", PROGRAM, 1, OWN), ("init", LINK, 1, b"caf?")]);
        while let Some(at) = base.windows(4).position(|bytes| bytes == b"caf?") {
            base[at + 3] = 0xe9;
        }
        let whole = added(&base, b"agent", &[]);
        assert!(whole[base.len()..].windows(6).any(|bytes| bytes == b"/caf\xe9\0"), "the link's target is the same");
    }

    #[test]
    fn a_link_count_alone_is_no_hard_link() {
        let files = files_over(&with_shell(&[("init", PROGRAM, 2, OWN)]));
        assert_eq!(files["scx-vsock/init"].1.as_bytes(), OWN);
        let other = archive(&[("sbin-init", PROGRAM, 2, b"in another archive")]);
        let files = files_over(&[other, with_shell(&[("init", PROGRAM, 2, OWN)])].concat());
        assert_eq!(files["scx-vsock/init"].1.as_bytes(), OWN);
    }

    #[test]
    fn checksums_are_checked() {
        let with_checksum = |sum: u32| {
            let mut bytes = with_shell(&[]);
            let mut writer = Builder::new("init").mode(PROGRAM).write_crc(Vec::new(), 3, sum);
            io::Write::write_all(&mut writer, b"abc").unwrap();
            bytes.extend(trailer(writer.finish().unwrap()).unwrap());
            bytes
        };
        assert_eq!(files_over(&with_checksum(294))["scx-vsock/init"].1, "abc");
        let error = add_agent(&with_checksum(295), b"agent", &[]).unwrap_err();
        let InitramfsError::InvalidArchive { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "a file's checksum is wrong");
    }

    #[test]
    fn zeros_between_entries_are_skipped() {
        let (shell, mut init) = (with_shell(&[]), archive(&[("init", PROGRAM, 1, OWN)]));
        let trailer = archive(&[]).len();
        let base = [&shell[..shell.len() - trailer], &[0; 512], &init].concat();
        for base in [gzip(&base), base] {
            assert_eq!(files_over(&base)["scx-vsock/init"].1.as_bytes(), OWN);
        }
        init.splice(0..0, [0; 2]);
        let base = [&shell[..shell.len() - trailer], &init].concat();
        assert!(matches!(add_agent(&base, b"", &[]).unwrap_err(), InitramfsError::InvalidArchive { at: 0, .. }));
    }

    #[test]
    fn a_bootconfig_stays_the_last() {
        let bootconfig = b"kernel.quiet\n\0\0\0\x10\0\0\0\xe2\x04\0\0#BOOTCONFIG\n";
        let sum: u32 = bootconfig[..16].iter().map(|byte| u32::from(*byte)).sum();
        let mut bootconfig = bootconfig.to_vec();
        bootconfig[20..24].copy_from_slice(&sum.to_le_bytes());
        for base in [base(), gzip(&base())] {
            let whole = added(&[&base[..], &bootconfig].concat(), b"agent", &[]);
            let archives = whole.strip_suffix(&bootconfig[..]).unwrap();
            assert_eq!(
                (last_archive(archives, base.len())["scx-vsock/agent"].1.as_str(), whole.len() % 4),
                ("agent", 0)
            );
            assert_eq!(added(&whole, b"agent", &[]).len(), whole.len(), "the agent is replaced");
            bootconfig[20] ^= 1;
            assert!(
                error(&[&base[..], &bootconfig].concat()).starts_with("it ends in a boot configuration whose size")
            );
            bootconfig[20] ^= 1;
        }
    }

    #[test]
    fn missing_modules_are_those_of_the_transport() {
        let missing = |entries: &[Entry<'_>]| {
            let entries = [&[("init", PROGRAM, 1, OWN), ("lib", FOLDER, 2, &b""[..])], entries].concat();
            add_agent(&with_shell(&entries), b"agent", &[]).unwrap().missing_modules
        };
        let (common, transport) = ("vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport");
        assert_eq!(missing(&[]), ["vsock", common, transport]);
        assert_eq!(missing(&[("lib/vsock.ko.xz", 0o100_644, 1, b"m")]), [common, transport]);
        let files = [
            ("lib/vsock.ko", 0o100_644, 1, &b"m"[..]),
            ("lib/vmw-vsock-virtio-transport-common.ko.zst", 0o100_644, 1, b"m"),
            ("vmw_vsock_virtio_transport.ko", 0o100_644, 1, b"m"),
        ];
        assert!(missing(&files).is_empty());
        let index = b"kernel/net/vmw_vsock/vsock.ko\nkernel/net/vmw_vsock/vmw_vsock_virtio_transport_common.ko\n";
        assert_eq!(missing(&[("lib/modules.builtin", 0o100_644, 1, index)]), [transport]);
    }

    #[test]
    fn errors_name_cause_and_fix() {
        assert_eq!(
            error(b"\x7fELF"),
            "byte 0 begins neither a newc archive nor data of gzip, xz or zstd: name an initramfs"
        );
        assert_eq!(
            error(&[&base()[..], b"\x02\x21\x4c\x18"].concat()),
            format!("byte {} begins data of lz4: unpack it first", base().len())
        );
        assert_eq!(error(&[]), "it is empty: name an initramfs");
        assert_eq!(error(&[0; 512]), "it is 512 bytes of zeros: name an initramfs");
        assert!(error(&archive(&[("init", PROGRAM, 1, OWN)])).starts_with("it has neither sh nor busybox"));
        assert!(error(&with_shell(&[])).starts_with("it has no /init, before which"));
        assert!(error(&with_shell(&[("init", FOLDER, 2, b"")])).starts_with("its /init is a folder: make it"));
        assert!(
            error(&with_shell(&[("init", DEVICE, 1, b"")])).starts_with("its /init is a device, a pipe or a socket")
        );
    }

    #[test]
    fn truncated_and_corrupt_archives_are_refused() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let cut = base.len() / 2;
            let error = add_agent(&base[..cut], b"agent", &[]).unwrap_err();
            assert!(matches!(error, InitramfsError::InvalidArchive { at: 0, .. }), "{error}");
        }
        let mut long = base();
        long[PATH_SIZE].copy_from_slice(b"ffffffff");
        assert!(matches!(add_agent(&long, b"agent", &[]).unwrap_err(), InitramfsError::InvalidArchive { at: 0, .. }));
        let mut no_text = gzip(b"no archive");
        no_text.splice(0..0, [0; 4]);
        assert!(matches!(
            add_agent(&no_text, b"agent", &[]).unwrap_err(),
            InitramfsError::InvalidArchive { at: 4, .. }
        ));
    }

    #[test]
    fn misaligned_archives_are_refused() {
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
        assert!(matches!(error, InitramfsError::InvalidArchive { at: 0, .. }), "{error}");
        add_agent(&gzip(&[&base()[..], &[0; 512], &base()].concat()), b"agent", &[]).unwrap();
    }

    #[test]
    fn a_trailer_with_content_is_refused() {
        let mut whole = base();
        let name = whole.windows(10).position(|bytes| bytes == b"TRAILER!!!").unwrap();
        whole[name - HEADER_BYTES + 54..][..8].copy_from_slice(b"00002000");
        assert!(matches!(add_agent(&whole, b"agent", &[]).unwrap_err(), InitramfsError::InvalidArchive { at: 0, .. }));
    }

    #[test]
    fn a_hard_linked_init_is_refused() {
        for entries in [["sbin-init", "init"], ["init", "sbin-init"]] {
            let linked = with_shell(&entries.map(|path| (path, PROGRAM, 2, OWN)));
            assert!(error(&linked).starts_with("its /init is a hard link: make it"));
        }
    }

    #[test]
    fn a_null_of_the_base_stays() {
        let null = Builder::new("./dev/null").mode(DEVICE).rdev_major(1).rdev_minor(3).write(Vec::new(), 0);
        let base = [base(), trailer(null.finish().unwrap()).unwrap()].concat();
        assert!(files_over(&base).keys().eq(["init", "scx-vsock", "scx-vsock/agent", "scx-vsock/init"]));
    }

    #[test]
    fn a_nul_in_an_argument_is_refused() {
        let error = add_agent(&base(), b"agent", &["a\0b"]).unwrap_err();
        assert!(matches!(error, InitramfsError::NulInArgument { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(changes in prop::collection::vec((0usize..4096, any::<u8>()), 0..8), kind in 0..4, end in 0usize..4096) {
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
