//! The kernel's release and its configuration, which libbpf reads from the guest's `/boot/config-RELEASE`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a kernel needs on a microVM, built in.
const NEEDED_BY_MICROVM: [&str; 2] = ["CONFIG_ACPI", "CONFIG_SERIAL_8250_CONSOLE"];
/// What it needs, built in or as a module.
const TRANSPORT_OF_MICROVM: &str = "CONFIG_VIRTIO_MMIO";

/// Where a bzImage has its setup header's magic, and the offset of its version text from there less 2 (Linux,
/// `arch/x86/boot.rst`).
const MAGIC_AT: u64 = 0x202;
const VERSION_AT: u64 = 0x20e;
const VERSION_BASE: u64 = 0x200;

/// The most bytes of a version text that are read.
const MAX_VERSION: usize = 256;

/// Returns the release of a kernel: what its bzImage says, else the name of the folder with its modules.
pub(super) fn release(kernel: Option<&Path>, modules: Option<&Path>) -> Option<String> {
    let of_image = kernel.and_then(|kernel| File::open(kernel).and_then(|file| read_release(&file)).ok());
    of_image.or_else(|| Some(modules?.file_name()?.to_string_lossy().into_owned()))
}

fn read_release(image: &File) -> io::Result<String> {
    let mut magic = [0; 4];
    image.read_exact_at(&mut magic, MAGIC_AT)?;
    let mut offset = [0; 2];
    image.read_exact_at(&mut offset, VERSION_AT)?;
    let mut text = [0; MAX_VERSION];
    let count = image.read_at(&mut text, VERSION_BASE + u64::from(u16::from_le_bytes(offset)))?;
    let text = text.get(..count).unwrap_or_default();
    let release = text.split(|&byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
    let is_release = |&byte: &u8| byte.is_ascii_alphanumeric() || b".-+_~".contains(&byte);
    if &magic != b"HdrS" || release.is_empty() || !release.iter().all(is_release) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(String::from_utf8_lossy(release).into_owned())
}

/// What a kernel's configuration says of microVMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForMicrovm {
    /// It lacks an option.
    Lacks(&'static str),
    /// It has all, the transport of virtio as a module.
    NeedsModule,
    /// It has all, built in.
    HasAll,
    /// There is none.
    Unknown,
}

/// Reads what a configuration says of microVMs.
pub(super) fn for_microvm(config: Option<&Path>) -> ForMicrovm {
    let Some(text) = config.and_then(|config| fs::read_to_string(config).ok()) else { return ForMicrovm::Unknown };
    let value = |option: &str| text.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='));
    if let Some(lacking) = NEEDED_BY_MICROVM.into_iter().find(|option| value(option) != Some("y")) {
        return ForMicrovm::Lacks(lacking);
    }
    match value(TRANSPORT_OF_MICROVM) {
        Some("y") => ForMicrovm::HasAll,
        Some("m") => ForMicrovm::NeedsModule,
        _ => ForMicrovm::Lacks(TRANSPORT_OF_MICROVM),
    }
}

/// Finds a kernel's configuration: beside the kernel, as `config-RELEASE` or `config`, or as `/boot/config-RELEASE`.
pub(super) fn find_config(kernel: &Path, release: &str) -> Option<PathBuf> {
    let named = format!("config-{release}");
    // A kernel in /boot is that of its own name only.
    let beside = kernel.parent().filter(|folder| *folder != Path::new("/boot"));
    let candidates = [
        kernel.parent().map(|folder| folder.join(&named)),
        beside.map(|folder| folder.join("config")),
        Some(Path::new("/boot").join(&named)),
    ];
    candidates.into_iter().flatten().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x400_u16.to_le_bytes());
        image[0x600..0x600 + version.len()].copy_from_slice(version);
        image
    }

    #[test]
    fn the_release_is_that_of_the_image() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        let modules = Path::new("/lib/modules/6.1.0");
        fs::write(&kernel, image(b"7.2.13+deb14-cloud-amd64 (build@host) #1 SMP\0")).unwrap();
        assert_eq!(release(Some(&kernel), Some(modules)).unwrap(), "7.2.13+deb14-cloud-amd64");
        for other in [image(b""), image(b"../../etc\0"), image(b"a\xff\0"), b"short".to_vec()] {
            fs::write(&kernel, other).unwrap();
            assert_eq!(release(Some(&kernel), Some(modules)).unwrap(), "6.1.0");
            assert_eq!(release(Some(&kernel), None), None);
        }
    }

    #[test]
    fn the_configuration_beside_the_kernel_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("vmlinuz");
        let release = "0.0.0-none";
        assert_eq!(find_config(&kernel, release), None);
        let (plain, named) = (folder.path().join("config"), folder.path().join("config-0.0.0-none"));
        fs::write(&plain, "").unwrap();
        assert_eq!(find_config(&kernel, release), Some(plain));
        fs::write(&named, "").unwrap();
        assert_eq!(find_config(&kernel, release), Some(named));
    }

    #[test]
    fn what_a_microvm_needs_is_looked_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |config: &str| {
            fs::write(file.path(), config).unwrap();
            for_microvm(Some(file.path()))
        };
        let usual = "CONFIG_ACPI=y\nCONFIG_SERIAL_8250_CONSOLE=y\n";
        assert_eq!(of(&format!("{usual}CONFIG_VIRTIO_MMIO=m\n")), ForMicrovm::NeedsModule);
        assert_eq!(of(&format!("{usual}CONFIG_VIRTIO_MMIO=y\n")), ForMicrovm::HasAll);
        let other = format!("{usual}# CONFIG_VIRTIO_MMIO is not set\nCONFIG_VIRTIO_MMIO_CMDLINE_DEVICES=y\n");
        assert_eq!(of(&other), ForMicrovm::Lacks("CONFIG_VIRTIO_MMIO"));
        assert_eq!(of("CONFIG_VIRTIO_MMIO=y\nCONFIG_SERIAL_8250_CONSOLE=y\n"), ForMicrovm::Lacks("CONFIG_ACPI"));
        assert_eq!(for_microvm(Some(Path::new("/no/such/config"))), ForMicrovm::Unknown);
        assert_eq!(for_microvm(None), ForMicrovm::Unknown);
    }
}
