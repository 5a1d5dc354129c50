//! What the agent says of itself.

use scx_vsock_wire::{Text, emit};

use crate::sys;

const BOOT_ID: &[u8] = b"/proc/sys/kernel/random/boot_id\0";

/// Bytes of the kernel's file that are read: more than it has.
const FILE_BYTES: usize = 256;

/// Writes the hello, with this program's version and the kernel's boot id, to the beginning of `out`; returns its length.
#[inline(never)]
pub fn hello(out: &mut [u8], max_line_bytes: u32) -> usize {
    let mut boot_id = [0; FILE_BYTES];
    let boot_id = Text::first_line(sys::read_file(sys::NOWHERE, BOOT_ID, &mut boot_id));
    emit::hello(out, Text::line(env!("CARGO_PKG_VERSION").as_bytes()), boot_id, max_line_bytes)
}
