//! Throw-away guests under QEMU, for tests: without root, `/dev/kvm`, `/dev/vhost-vsock` or a CID to collide on.
//!
//! A [`GuestBuilder`] builds an initramfs in memory ([`initramfs`](super::initramfs)): busybox, the kernel's vsock
//! modules, the agent, a scheduler with its libraries. The vsock device runs in this process as a vhost-user back end;
//! the boot ends when the agent reports that it is ready. The guest has no disk, no network and no path in the file
//! system. It ends when its [`Guest`] is dropped or this process ends, however that happens.
//!
//! ```no_run
//! use scx_vsock::guest::qemu::Guest;
//!
//! # fn main() -> anyhow::Result<()> {
//! let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
//! let guest = builder.scheduler("scx_bpfland", &[]).boot()?;
//! guest.wait_for_scheduler(std::time::Duration::from_secs(60))?;
//! println!("{:#}", guest.client().stats(&[])?);
//! # Ok(())
//! # }
//! ```

mod accelerator;
mod builder;
mod child_process;
mod command_line;
mod device;
mod guest;
mod guest_image;
mod kernel_config;
mod kernel_image;
mod platform;
mod process_group;
mod programs;
mod qmp;
mod qmp_ends;

pub use accelerator::{Accelerator, kvm_runs};
pub use builder::GuestBuilder;
pub use guest::Guest;
pub use programs::{find_busybox, qemu_program};
