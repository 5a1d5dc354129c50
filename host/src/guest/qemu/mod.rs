//! Throw-away guests under QEMU, for tests: without root, `/dev/kvm`, `/dev/vhost-vsock` or a CID to collide on.
//!
//! [`Guest::builder`] puts an initramfs together in memory ([`build`](super::initramfs::build)): busybox, the kernel's vsock modules
//! ([`modules`](super::initramfs::modules)), the agent, a scheduler with its libraries ([`libraries`](super::initramfs::libraries)). The vsock device runs in this process as a
//! vhost-user back end; the agent's Ready ends the wait for the boot. The guest has no disk, no network and no name in
//! the file system, and ends when its [`Guest`] is dropped or this process ends, however that happens. Images of other
//! guests get the agent by [`inject`](super::initramfs::inject).
//!
//! ```no_run
//! use scx_vsock::guest::qemu;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let modules = "/lib/modules/7.2.0";
//! let guest = qemu::Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules(modules).scheduler("scx_bpfland", &[]).boot()?;
//! guest.client().wait_for_scheduler(std::time::Duration::from_secs(60))?;
//! println!("{:#}", guest.client().stats(&[])?);
//! # Ok(())
//! # }
//! ```

mod accelerator;
mod builder;
mod guest;
mod process;
mod qmp;

pub use accelerator::{Accelerator, kvm_runs};
pub use builder::{GuestBuilder, find_agent, qemu_program};
pub use guest::Guest;
