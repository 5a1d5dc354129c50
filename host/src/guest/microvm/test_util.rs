//! Kernels of a few instructions, for tests of a VMM.

/// The address of a [`pvh_kernel`]'s first instruction.
pub const CODE: u32 = 0x10_0000;

/// Returns a vmlinux with these instructions: 32-bit code without paging.
///
/// ```no_run
/// use std::os::unix::net::UnixStream;
/// use std::time::Duration;
/// use scx_vsock::guest::microvm::test_util::pvh_kernel;
/// use scx_vsock::guest::microvm::{Microvm, Outcome};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // mov dx, 0x600; mov al, 0x34; out dx, al
/// std::fs::write("kernel", pvh_kernel(b"\x66\xba\x00\x06\xb0\x34\xee"))?;
/// let (_host, commands) = UnixStream::pair()?;
/// let microvm = Microvm::builder("kernel").memory_mib(16).build(Box::new(std::io::sink()), commands)?;
/// microvm.resume()?;
/// assert_eq!(microvm.wait(Duration::from_secs(1))?, Some(Outcome::PoweredOff));
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn pvh_kernel(code: &[u8]) -> Vec<u8> {
    elf(code, true)
}

/// A vmlinux without a PVH entry.
#[cfg(test)]
pub(super) fn elf_without_pvh() -> Vec<u8> {
    elf(&[0xf4], false)
}

fn elf(code: &[u8], has_note: bool) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let mut note = Vec::new();
    for word in [4, 4, 18] {
        note.extend(u32::to_le_bytes(word));
    }
    note.extend(b"Xen\0");
    note.extend(CODE.to_le_bytes());
    let code_at = note_at + note.len() as u64;
    let (kind, note_len) = if has_note { (4, note.len() as u64) } else { (0, 0) };
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend([u64::from(CODE), HEADER, 0].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend([64_u16, 56, 2, 0, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    let mut program_header = |kind: u32, offset: u64, address: u64, size: u64| {
        bytes.extend([kind, 7].into_iter().flat_map(u32::to_le_bytes));
        bytes.extend([offset, address, address, size, size, 4].into_iter().flat_map(u64::to_le_bytes));
    };
    program_header(1, code_at, CODE.into(), code.len() as u64);
    program_header(kind, note_at, 0, note_len);
    bytes.extend(note);
    bytes.extend(code);
    bytes
}
