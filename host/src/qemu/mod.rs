//! Throw-away guests under QEMU.
