//! A monitor for one Linux guest on KVM: one processor, two serial ports, and the vsock device behind virtio-mmio
//! registers, served as a monitor's authors are told to.
//!
//! [`kernel`] loads a packaged kernel without any firmware, [`acpi`] tells it what there is, [`processor`] runs it on a
//! thread of its own, whose exits reach the devices on the [`bus`]. A [`Guest`] is stopped by [`Guest::pause`], and a
//! [`Paused`] one goes on, with the device that it had or with one that was restored from what was saved of that.

mod acpi;
mod bus;
mod cpuid;
mod guest;
mod kernel;
mod machine;
mod memory_map;
mod power;
mod processor;
mod serial;

pub use guest::{Guest, Paused, Shell};
pub use kernel::{Image, flat_segment};
pub use machine::add_memory;
pub use processor::{End, STUCK};
