//! What the agent says of itself in its hello.

use scx_vsock_wire::Text;
use scx_vsock_wire::limits::MAX_NAME_BYTES;

use crate::sys;

/// This program's version.
pub fn version() -> Text<'static> {
    Text::first_line(env!("CARGO_PKG_VERSION").as_bytes())
}

/// The kernel's boot id.
pub fn boot_id(buffer: &mut [u8; MAX_NAME_BYTES]) -> Text<'_> {
    Text::first_line(sys::read_file(b"/proc/sys/kernel/random/boot_id", Text::EMPTY, buffer))
}
