//! What kind of kernel a file is, and for which architecture.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::architecture::{Architecture, ElfMachine};
use super::error::Error;

/// How many bytes at the beginning are read: more than every header takes.
const HEADER_BYTES: u64 = 0x1000;

/// Where a bzImage has its magic (Linux, `arch/x86/boot.rst`) and an arm64 Image its own (`arch/arm64/booting.rst`).
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");
const ARM64_IMAGE: (usize, &[u8]) = (56, b"ARM\x64");

/// Where an EFI program, such as a compressed arm64 kernel, has the offset of its header, and what that begins with for
/// arm64 (Microsoft, "PE Format").
const PE_OFFSET_AT: usize = 0x3c;
const PE_ARM64: &[u8] = b"PE\0\0\x64\xaa";

/// Returns the architecture of a kernel: of a bzImage, a vmlinux or an arm64 Image, which may be compressed by gzip.
///
/// # Errors
///
/// [`Error::File`], [`Error::NotAKernel`].
pub(super) fn architecture(kernel: &Path) -> Result<Architecture, Error> {
    let file = File::open(kernel).map_err(Error::unreadable("the kernel", kernel))?;
    let header = read_header(file).map_err(Error::unreadable("the kernel", kernel))?;
    of_header(&header).ok_or_else(|| Error::NotAKernel { path: kernel.into() })
}

fn read_header(file: File) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    file.take(HEADER_BYTES).read_to_end(&mut header)?;
    if header.starts_with(b"\x1f\x8b") {
        let mut unpacked = vec![0; 0x100];
        let mut decoder = flate2::bufread::GzDecoder::new(&*header);
        // What is no gzip after all is no kernel either.
        let _outcome = decoder.read_exact(&mut unpacked);
        return Ok(unpacked);
    }
    Ok(header)
}

fn of_header(header: &[u8]) -> Option<Architecture> {
    let has = |at: usize, bytes: &[u8]| header.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    let pe_offset = header.get(PE_OFFSET_AT..PE_OFFSET_AT + 2).and_then(|bytes| bytes.try_into().ok());
    let pe_at = pe_offset.map_or(0, |bytes| usize::from(u16::from_le_bytes(bytes)));
    if has(BZIMAGE.0, BZIMAGE.1) {
        Some(Architecture::X86_64)
    } else if has(ARM64_IMAGE.0, ARM64_IMAGE.1) || has(0, b"MZ") && has(pe_at, PE_ARM64) {
        Some(Architecture::Aarch64)
    } else {
        ElfMachine::read(header)?.architecture()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A header with these bytes at these offsets.
    fn header(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut header = vec![0; 0x400];
        for (at, bytes) in parts {
            header[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        header
    }

    fn of(bytes: &[u8]) -> Result<Architecture, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        architecture(file.path())
    }

    #[test]
    fn every_kind_of_kernel_is_known() {
        let image = header(&[(0, b"MZ"), (56, b"ARM\x64")]);
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&image).unwrap();
        let zboot: &[(usize, &[u8])] = &[(0, b"MZ\0\0zimg"), (0x3c, b"\x40"), (0x40, b"PE\0\0\x64\xaa")];
        for arm in [&image[..], &packed.finish().unwrap(), &header(zboot), &header(&[(0, b"\x7fELF"), (18, b"\xb7")])] {
            assert_eq!(of(arm).unwrap(), Architecture::Aarch64);
        }
        for x86 in [header(&[(0x202, b"HdrS")]), header(&[(0, b"\x7fELF"), (18, b"\x3e")])] {
            assert_eq!(of(&x86).unwrap(), Architecture::X86_64);
        }
    }

    #[test]
    fn another_file_is_no_kernel() {
        for other in
            [&b""[..], b"#!/bin/sh\n", b"\x1f\x8b", &header(&[(0, b"MZ")]), &header(&[(0, b"\x7fELF"), (18, b"\x08")])]
        {
            let error = of(other).unwrap_err().to_string();
            assert!(error.contains("is no kernel that a guest boots: name a bzImage"), "{error}");
        }
    }
}
