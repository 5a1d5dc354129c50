//! Throw-away guests and the images that they boot.

mod commands;
mod console;
mod deadline;
mod error;
pub mod initramfs;
pub mod qemu;

pub use commands::{Commands, Output};
pub use console::Console;
pub use error::Error;
