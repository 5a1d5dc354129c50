//! The kernel modules that a guest needs, in load order.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::guest::error::Error;

/// The modules that vsock in a guest needs, where they are not built in.
pub const VSOCK: &[&str] = &["virtio_pci", "vmw_vsock_virtio_transport"];

/// The modules of the virtio-vsock transport, in load order.
pub(super) const VSOCK_TRANSPORT: [&str; 3] =
    ["vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"];

/// The modules of one kernel, in a folder such as `/lib/modules/6.1.0`.
///
/// ```no_run
/// use scx_vsock::guest::initramfs::build::InitramfsBuilder;
/// use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
///
/// let mut initramfs = InitramfsBuilder::new()?;
/// let modules = Modules::read("/lib/modules/7.2.0".as_ref())?;
/// for path in modules.in_load_order(VSOCK)? {
///     initramfs.file(path.trim_end_matches(".xz"), &modules.load(path)?)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Modules {
    folder: PathBuf,
    dependencies: String,
    builtin: String,
}

impl Modules {
    /// Reads the folder's indices, `modules.dep` and `modules.builtin`.
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it has no `modules.dep`.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let index = folder.join("modules.dep");
        let dependencies = fs::read_to_string(&index).map_err(|source| Error::File {
            what: "the index of kernel modules",
            path: index,
            fix: "name the folder with this kernel's modules, and run depmod for it",
            source,
        })?;
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        Ok(Self { folder: folder.into(), dependencies, builtin })
    }

    /// Returns the paths in the folder of the modules `names` and of all that they need, in load order. Built-in modules
    /// are skipped.
    ///
    /// # Errors
    ///
    /// [`Error::NoModule`].
    pub fn in_load_order(&self, names: &[&str]) -> Result<Vec<&str>, Error> {
        let mut order = Vec::new();
        for name in names {
            if self.builtin.lines().any(|path| module_name(path) == *name) {
                continue;
            }
            let line = self.dependencies.lines().find_map(|line| {
                let (path, needs) = line.split_once(':')?;
                (module_name(path) == *name).then_some((path, needs))
            });
            let Some((path, needs)) = line else {
                return Err(Error::NoModule { name: (*name).to_owned(), folder: self.folder.clone() });
            };
            // modules.dep lists direct and indirect needs in reverse load order.
            for module in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&module) {
                    order.push(module);
                }
            }
        }
        Ok(order)
    }

    /// Reads a module, and decompresses one that ends in `.xz`, `.gz` or `.zst`.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn load(&self, path: &str) -> Result<Vec<u8>, Error> {
        let file = self.folder.join(path);
        fs::read(&file).and_then(|bytes| decompress(path, &bytes)).map_err(|source| Error::File {
            what: "the kernel module",
            path: file,
            fix: "reinstall the kernel's package",
            source,
        })
    }
}

/// Returns the kernel's name of a module: the file's without extensions, dashes as underscores.
pub(super) fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn decompress(path: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut module = Vec::new();
    match path.rsplit('.').next() {
        Some("xz") => liblzma::read::XzDecoder::new(bytes).read_to_end(&mut module)?,
        Some("gz") => flate2::read::GzDecoder::new(bytes).read_to_end(&mut module)?,
        Some("zst") => {
            ruzstd::decoding::StreamingDecoder::new(bytes).map_err(io::Error::other)?.read_to_end(&mut module)?
        }
        _ => return Ok(bytes.to_vec()),
    };
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        Modules {
            folder: "/lib/modules/1".into(),
            dependencies: "\
kernel/vsock.ko.xz:
kernel/common.ko.xz: kernel/vsock.ko.xz
kernel/virtio/virtio-ring.ko:
kernel/vmw_vsock_virtio_transport.ko.xz: kernel/common.ko.xz kernel/vsock.ko.xz kernel/virtio/virtio-ring.ko
"
            .into(),
            builtin: "kernel/drivers/virtio/virtio_pci.ko\n".into(),
        }
    }

    #[test]
    fn dependencies_come_first_and_built_ins_are_skipped() {
        let expected = [
            "kernel/virtio/virtio-ring.ko",
            "kernel/vsock.ko.xz",
            "kernel/common.ko.xz",
            "kernel/vmw_vsock_virtio_transport.ko.xz",
        ];
        assert_eq!(modules().in_load_order(VSOCK).unwrap(), expected);
    }

    #[test]
    fn a_dash_is_an_underscore_in_the_name() {
        assert_eq!(modules().in_load_order(&["virtio_ring"]).unwrap(), ["kernel/virtio/virtio-ring.ko"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = modules().in_load_order(&["absent"]).unwrap_err().to_string();
        assert!(error.starts_with("the kernel module absent is not in /lib/modules/1"), "{error}");
    }

    #[test]
    fn modules_are_decompressed_by_extension() {
        let mut gz = Vec::new();
        flate2::read::GzEncoder::new(&b"module"[..], flate2::Compression::fast()).read_to_end(&mut gz).unwrap();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&b"module"[..], 1).read_to_end(&mut xz).unwrap();
        let zst = ruzstd::encoding::compress_to_vec(&b"module"[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decompress("a.ko.gz", &gz).unwrap(), b"module");
        assert_eq!(decompress("a.ko.xz", &xz).unwrap(), b"module");
        assert_eq!(decompress("a.ko.zst", &zst).unwrap(), b"module");
        assert_eq!(decompress("a.ko", b"module").unwrap(), b"module");
        assert!(decompress("a.ko.xz", b"module").is_err());
    }

    #[test]
    fn a_missing_index_is_named() {
        let error = Modules::read("/no/such/folder".as_ref()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the index of kernel modules /no/such/folder/modules.dep"), "{error}");
    }
}
