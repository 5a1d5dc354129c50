//! The kernel modules that a guest needs, in the order in which they load.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::guest::error::Error;

/// What the guest's side of vsock needs, where it is not built in.
pub const VSOCK: &[&str] = &["virtio_pci", "vmw_vsock_virtio_transport"];

/// A folder with one kernel's modules, such as `/lib/modules/6.1.0`.
///
/// ```no_run
/// use scx_vsock::guest::initramfs::build::Image;
/// use scx_vsock::guest::initramfs::modules::{Modules, VSOCK};
///
/// let mut image = Image::new()?;
/// let modules = Modules::read("/lib/modules/7.2.0".as_ref())?;
/// for path in modules.in_load_order(VSOCK)? {
///     image.file(path.trim_end_matches(".xz"), &modules.load(path)?)?;
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
    /// ```
    /// use scx_vsock::guest::initramfs::modules::Modules;
    ///
    /// let error = Modules::read("/no/such/folder".as_ref()).unwrap_err();
    /// assert!(error.to_string().starts_with("cannot read the index of kernel modules /no/such/folder/modules.dep"));
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it has no `modules.dep`.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let index = folder.join("modules.dep");
        let dependencies = fs::read_to_string(&index).map_err(|source| Error::File {
            what: "the index of kernel modules",
            path: index,
            mend: "name the modules' folder of this kernel, and run depmod for it",
            source,
        })?;
        let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        Ok(Self { folder: folder.into(), dependencies, builtin })
    }

    /// Paths, below the folder, of the modules `names` and all that they need, in the order in which they load.
    /// Those that are built in are left out.
    ///
    /// ```
    /// # use scx_vsock::guest::initramfs::modules::Modules;
    /// # let folder = tempfile::tempdir()?;
    /// std::fs::write(folder.path().join("modules.dep"), "net/vsock.ko:\nnet/transport.ko: net/vsock.ko\n")?;
    /// let modules = Modules::read(folder.path())?;
    /// assert_eq!(modules.in_load_order(&["transport"])?, ["net/vsock.ko", "net/transport.ko"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
            // modules.dep has every need, direct or not, what loads first last.
            for module in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&module) {
                    order.push(module);
                }
            }
        }
        Ok(order)
    }

    /// The bytes of a module, decompressed.
    ///
    /// ```no_run
    /// # use scx_vsock::guest::initramfs::modules::Modules;
    /// let modules = Modules::read("/lib/modules/7.2.0".as_ref())?;
    /// let module = modules.load("kernel/net/vmw_vsock/vsock.ko.xz")?;
    /// assert!(module.starts_with(b"\x7fELF"));
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn load(&self, path: &str) -> Result<Vec<u8>, Error> {
        let file = self.folder.join(path);
        fs::read(&file).and_then(|bytes| decompress(path, &bytes)).map_err(|source| Error::File {
            what: "the kernel module",
            path: file,
            mend: "install the kernel's package again",
            source,
        })
    }
}

/// A module's name as the kernel has it: the file's, without endings, dashes as underscores.
fn module_name(path: &str) -> String {
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
    fn what_a_module_needs_comes_before_it_and_what_is_built_in_not_at_all() {
        let expected = [
            "kernel/virtio/virtio-ring.ko",
            "kernel/vsock.ko.xz",
            "kernel/common.ko.xz",
            "kernel/vmw_vsock_virtio_transport.ko.xz",
        ];
        assert_eq!(modules().in_load_order(VSOCK).unwrap(), expected);
    }

    #[test]
    fn a_dash_in_a_file_is_an_underscore_in_the_name() {
        assert_eq!(modules().in_load_order(&["virtio_ring"]).unwrap(), ["kernel/virtio/virtio-ring.ko"]);
    }

    #[test]
    fn a_missing_module_is_named_with_its_folder() {
        let error = modules().in_load_order(&["absent"]).unwrap_err().to_string();
        assert!(error.starts_with("the kernel module absent is not in /lib/modules/1"), "{error}");
    }

    #[test]
    fn modules_are_decompressed_by_their_ending() {
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
}
