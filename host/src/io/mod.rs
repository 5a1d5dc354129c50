//! Descriptors and the waits for them.

pub(crate) mod accept;
pub(crate) mod eventfd;
pub(crate) mod poll;
pub(crate) mod sync;
mod unix_listener;

pub use unix_listener::{BindError, OwnedUnixListener};
