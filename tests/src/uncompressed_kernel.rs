//! The vmlinux inside a packaged kernel.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

/// Where a bzImage has the number of its setup sectors less 1, and offset and length of what it unpacks (Linux,
/// `arch/x86/boot.rst`).
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// The bytes after the compressed ones: the size of what they unpack to.
const TRAILER: usize = 4;

/// Returns the ELF that a bzImage unpacks, which must be compressed by zstd.
///
/// # Panics
///
/// If it is another kind of file.
#[must_use]
pub fn uncompressed(bzimage: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().expect("four bytes")) as usize;
    let protected_mode = (usize::from(bzimage[SETUP_SECTORS]) + 1) * SECTOR;
    let (offset, length) = (number(PAYLOAD_OFFSET), number(PAYLOAD_LENGTH));
    let payload = &bzimage[protected_mode + offset..][..length];
    let size = number(protected_mode + offset + length - TRAILER);
    let mut vmlinux = Vec::with_capacity(size);
    let mut decoder = StreamingDecoder::new(payload).expect("a kernel that is compressed by zstd");
    decoder.read_to_end(&mut vmlinux).expect("a whole kernel");
    assert!(vmlinux.len() == size && vmlinux.starts_with(b"\x7fELF"), "{} of {size} bytes", vmlinux.len());
    vmlinux
}
