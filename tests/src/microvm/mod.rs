//! A monitor for one Linux guest on KVM: one processor, two serial ports, and the vsock device behind virtio-mmio
//! registers, served as a monitor's authors are told to.
//!
//! [`kernel`] loads a packaged kernel without any firmware, [`acpi`] tells it what there is, [`processor`] runs it on a
//! thread of its own, whose exits reach the devices on the [`bus`]. A [`Guest`] is stopped by [`Guest::pause`], and a
//! [`Paused`] one goes on, with the device that it had or with one that was restored from what was saved of that.

pub mod acpi;
pub mod bus;
pub mod cpuid;
pub mod guest;
pub mod kernel;
pub mod machine;
pub mod memory_map;
pub mod power;
pub mod processor;
pub mod serial;

pub use guest::{Guest, Paused};
pub use kernel::Image;
