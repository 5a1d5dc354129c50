//! Throw-away guests and the images that they boot.
//!
//! `Guest` (feature `qemu`) is a guest for tests: without root, `/dev/vhost-vsock` or a CID to collide on. Its builder makes
//! an initramfs in memory (`initramfs`): busybox, the kernel's vsock modules, the agent, a scheduler with its libraries. The
//! boot ends when the agent reports that it is ready. The agent is an `AgentFile`, by default one that this library carries
//! for the guest's `Architecture`. What a guest prints is kept by a `Console`; programs in it are run over a
//! `CommandChannel`. The guest ends when it is dropped or this process ends, however that happens.
//!
//! What runs a guest is a `Vmm`: a microVM in this process (`microvm`, the feature of that name) where KVM runs Linux, else
//! QEMU (`qemu`) with KVM, else QEMU with TCG, its emulation. A guest on a microVM has a `GuestSnapshot`, from which others
//! begin.
//!
#![cfg_attr(feature = "qemu", doc = "```no_run")]
#![cfg_attr(not(feature = "qemu"), doc = "```ignore")]
//! use scx_vsock::guest::Guest;
//!
//! # fn main() -> anyhow::Result<()> {
//! let builder = Guest::builder().kernel("/boot/vmlinuz-7.2.0").modules("/lib/modules/7.2.0");
//! let guest = builder.scheduler("scx_bpfland", &[]).boot()?;
//! println!("on {}", guest.vmm());
//! guest.wait_for_scheduler(std::time::Duration::from_secs(60))?;
//! println!("{:#}", guest.client().stats(&[])?);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "qemu")]
mod agent_file;
#[cfg(feature = "qemu")]
mod architecture;
#[cfg(feature = "qemu")]
mod builder;
#[cfg(feature = "qemu")]
mod command_channel;
#[cfg(feature = "qemu")]
mod command_output;
#[cfg(feature = "qemu")]
mod console;
#[cfg(feature = "qemu")]
mod error;
#[cfg(feature = "qemu")]
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod guest;
#[cfg(feature = "qemu")]
mod guest_events;
#[cfg(feature = "qemu")]
mod guest_image;
#[cfg(feature = "qemu")]
mod guest_message;
#[cfg(all(feature = "qemu", feature = "microvm", target_arch = "x86_64"))]
mod guest_snapshot;
#[cfg(feature = "qemu")]
#[cfg_attr(not(all(feature = "microvm", target_arch = "x86_64")), allow(dead_code, reason = "for snapshots alone"))]
mod guest_stream;
#[cfg(feature = "qemu")]
pub mod initramfs;
#[cfg(feature = "qemu")]
mod kernel_config;
#[cfg(feature = "qemu")]
mod kernel_image;
#[cfg(feature = "qemu")]
mod machine;
#[cfg(feature = "qemu")]
mod machine_options;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
pub mod microvm;
#[cfg(feature = "qemu")]
pub mod qemu;
#[cfg(feature = "qemu")]
mod timed_stream;
mod topology;
#[cfg(feature = "qemu")]
mod vmm;

#[cfg(feature = "qemu")]
pub use agent_file::AgentFile;
#[cfg(feature = "qemu")]
pub use architecture::{Architecture, UnknownArchitecture};
#[cfg(feature = "qemu")]
pub use builder::GuestBuilder;
#[cfg(feature = "qemu")]
pub use command_channel::{CommandChannel, CommandOutput};
#[cfg(feature = "qemu")]
pub use console::Console;
#[cfg(feature = "qemu")]
pub use error::Error;
#[cfg(feature = "qemu")]
pub use guest::{FrozenGuest, Guest};
#[cfg(feature = "qemu")]
pub use guest_events::FaultWatch;
#[cfg(feature = "qemu")]
pub use guest_message::OutputStream;
#[cfg(all(feature = "qemu", feature = "microvm", target_arch = "x86_64"))]
pub use guest_snapshot::GuestSnapshot;
pub use topology::{Topology, TopologyError};
#[cfg(feature = "qemu")]
pub use vmm::{ChosenVmm, RunningVmm, Vmm};
