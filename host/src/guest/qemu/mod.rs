//! QEMU, in which a [`Guest`](super::Guest) runs where KVM runs no Linux, or where it is asked for.
//!
//! The vsock device runs in this process as a vhost-user back end. QEMU has no disk, no network and no path in the file
//! system. It is killed when its guest is dropped or this process ends, however that happens.

mod accelerator;
mod child_process;
mod command_line;
mod device;
pub(super) mod machine;
pub(super) mod platform;
mod process_group;
pub(super) mod programs;
mod qmp;
mod qmp_ends;

pub use accelerator::{Accelerator, kvm_runs};
pub use programs::{find_busybox, qemu_program};
