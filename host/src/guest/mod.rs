//! Throw-away guests and the images that they boot.
//!
//! [`qemu`] boots a guest with an initramfs that [`initramfs`] builds, and serves its vsock device in this process.
//! The agent that runs in it is an [`AgentFile`], by default one that this library carries for the guest's
//! [`Architecture`]. What a guest prints is kept by a [`Console`]; programs in it are run over a [`CommandChannel`].

#[cfg(feature = "qemu")]
mod agent_file;
#[cfg(feature = "qemu")]
mod architecture;
#[cfg(feature = "qemu")]
mod command_channel;
#[cfg(feature = "qemu")]
mod command_output;
#[cfg(feature = "qemu")]
mod console;
#[cfg(feature = "qemu")]
mod error;
#[cfg(feature = "qemu")]
mod guest_events;
#[cfg(feature = "qemu")]
mod guest_message;
#[cfg(feature = "qemu")]
pub mod initramfs;
#[cfg(all(feature = "microvm", target_arch = "x86_64"))]
pub mod microvm;
#[cfg(feature = "qemu")]
pub mod qemu;
#[cfg(feature = "qemu")]
mod timed_stream;

#[cfg(feature = "qemu")]
pub use agent_file::AgentFile;
#[cfg(feature = "qemu")]
pub use architecture::{Architecture, UnknownArchitecture};
#[cfg(feature = "qemu")]
pub use command_channel::{CommandChannel, CommandOutput};
#[cfg(feature = "qemu")]
pub use console::Console;
#[cfg(feature = "qemu")]
pub use error::Error;
#[cfg(feature = "qemu")]
pub use guest_events::FaultWatch;
#[cfg(feature = "qemu")]
pub use guest_message::OutputStream;
