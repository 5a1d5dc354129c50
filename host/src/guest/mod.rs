//! Throw-away guests and the images that they boot.
//!
//! [`qemu`] boots a guest with an initramfs that [`initramfs`] builds, and serves its vsock device in this process.
//! The agent that runs in it is an [`AgentFile`], by default one that this library carries for the guest's
//! [`Architecture`]. What a guest prints is kept by a [`Console`]; programs in it are run over a [`CommandChannel`].

mod agent_file;
mod architecture;
mod command_channel;
mod command_output;
mod console;
mod error;
mod guest_events;
mod guest_message;
pub mod initramfs;
pub mod qemu;
mod timed_stream;

pub use agent_file::AgentFile;
pub use architecture::Architecture;
pub use command_channel::{CommandChannel, CommandOutput};
pub use console::Console;
pub use error::Error;
pub use guest_events::FaultWatch;
pub use guest_message::OutputStream;
