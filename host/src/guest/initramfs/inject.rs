//! Adds the agent, and a start script for it, to an existing initramfs.
//!
//! The kernel unpacks archives that follow each other, compressed or not, each over the ones before (Linux,
//! `driver-api/early-userspace/buffer-format.rst`). So the base stays as it is. After it comes an archive with the agent,
//! the base's own init under another name, and an init that starts both.

pub use super::contents::MAX_INIT_BYTES;
pub use super::error::InitramfsError;

use shlex::try_quote;

use super::build::InitramfsBuilder;
use super::contents::{Contents, Init};

/// The agent's path in the guest. The folder is the agent's own: a folder that is a link in the base would lose its files.
pub const AGENT: &str = "scx-vsock/agent";

/// The path of the base's own init in the guest.
pub const INIT: &str = "scx-vsock/init";

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
/// assert!(initramfs.starts_with(&base));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`InitramfsError`].
pub fn add_agent(base: &[u8], agent: &[u8], arguments: &[&str]) -> Result<Vec<u8>, InitramfsError> {
    let contents = Contents::read(base)?;
    let shell = contents.shell().ok_or(InitramfsError::NoShell)?;
    let mut added = InitramfsBuilder::default();
    if !contents.has_null {
        // A shell redirects the input of a background process to it.
        added.character_device("dev/null", 0o666, 1, 3)?;
    }
    added.program(AGENT, agent)?;
    match contents.init.ok_or(InitramfsError::NoInit)? {
        Init::Program(bytes) if is_start_script(&bytes) => {}
        Init::Program(bytes) => added.program(INIT, &bytes)?,
        Init::Link(target) => added.link(INIT, &target)?,
        Init::Unusable(what) => return Err(InitramfsError::UnusableInit { what }),
    }
    added.program("init", start_script(shell, arguments)?.as_bytes())?;
    let mut initramfs = base.to_vec();
    // Kernels look for an archive at multiples of 4.
    initramfs.resize(base.len().next_multiple_of(4), 0);
    initramfs.extend(added.finish()?);
    Ok(initramfs)
}

/// Returns the init that starts the agent and becomes the base's own.
fn start_script(shell: &str, arguments: &[&str]) -> Result<String, InitramfsError> {
    let mut command = format!("/{AGENT}");
    for argument in arguments {
        let quoted =
            try_quote(argument).map_err(|_| InitramfsError::NulInArgument { argument: (*argument).to_owned() })?;
        command.push(' ');
        command.push_str(&quoted);
    }
    Ok(format!("#!{shell}\n{command} &\n{}", exec_line()))
}

/// Returns the last line of a start script.
fn exec_line() -> String {
    format!("exec /{INIT} \"$@\"\n")
}

/// Whether this init is a start script, so that the base's own init has been moved already.
fn is_start_script(init: &[u8]) -> bool {
    init.ends_with(exec_line().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{self, Read};

    use cpio::newc::{Builder, Reader, trailer};
    use proptest::prelude::*;

    use super::*;
    use crate::guest::initramfs::contents::{HEADER_BYTES, PATH_SIZE, strip_padding};

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
    fn the_agent_follows_the_base() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let whole = add_agent(&base, b"agent", &["--map", "729=/run/it's"]).unwrap();
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
        let files = last_archive(&add_agent(&whole, b"agent", &[]).unwrap(), whole.len());
        assert_eq!(files["scx-vsock/init"].1.as_bytes(), OWN);
    }

    #[test]
    fn an_agent_added_before_is_replaced() {
        for base in [base(), gzip(&base()), xz(&base()), zstd(&base())] {
            let once = add_agent(&base, b"old agent", &["--old"]).unwrap();
            let files = last_archive(&add_agent(&once, b"new agent", &[]).unwrap(), once.len());
            assert_eq!(files["scx-vsock/agent"].1, "new agent");
            assert!(!files.contains_key("scx-vsock/init") && !files["init"].1.contains("old"));
        }
    }

    #[test]
    fn an_init_added_after_the_agent_is_kept() {
        let once = add_agent(&base(), b"agent", &[]).unwrap();
        let other = [once, archive(&[("init", 0o100_755, 1, b"of another tool")])].concat();
        let files = last_archive(&add_agent(&other, b"agent", &[]).unwrap(), other.len());
        assert_eq!(files["scx-vsock/init"].1, "of another tool");
    }

    #[test]
    fn a_moved_link_points_to_the_same_file() {
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
    fn errors_name_cause_and_fix() {
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
        assert!(error(&archive(&[shell, ("init", 0o040_755, 2, b"")])).starts_with("its /init is not a file: make it"));
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
        let linked = archive(&[("sbin/init", 0o100_755, 2, b""), ("init", 0o100_755, 2, OWN)]);
        assert!(error(&[linked, base()].concat()).starts_with("its /init is a hard link"));
    }

    #[test]
    fn devices_of_the_base_stay() {
        let base = [base(), archive(&[("./dev/null", 0o020_666, 1, b"")])].concat();
        let files = last_archive(&add_agent(&base, b"agent", &[]).unwrap(), base.len());
        assert!(files.keys().eq(["init", "scx-vsock", "scx-vsock/agent", "scx-vsock/init"]));
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
