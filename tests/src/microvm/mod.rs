//! A VMM for one Linux guest on KVM: one processor, two serial ports, and the vsock device with virtio-mmio registers,
//! used as the library's documentation tells VMM authors to.
//!
//! [`kernel`] loads a packaged kernel without any firmware, [`acpi`] describes the machine to it, [`processor`] runs it on
//! a thread of its own, whose exits reach the devices on the [`bus`]. [`Guest::pause`] stops a guest; a [`PausedGuest`]
//! resumes with the device that it had, or with one that was restored from its snapshot.

mod acpi;
mod bus;
mod cpuid;
mod exit_reason;
mod guest;
mod kernel;
mod machine;
mod memory_map;
mod power;
mod processor;
mod serial;

pub use exit_reason::ExitReason;
pub use guest::{Guest, PausedGuest, Shell};
pub use kernel::{GuestImage, flat_segment};
pub use machine::add_memory;
pub use processor::STUCK;
