//! Descriptors, and waits for them. Depends on no other module of this crate.

pub(crate) mod accept;
mod deadline;
pub(crate) mod descriptors;
pub(crate) mod eventfd;
pub(crate) mod folder;
pub(crate) mod line_reader;
pub(crate) mod lock;
mod path_lock;
pub(crate) mod poll;
pub(crate) mod sync;
mod unix_listener;
pub(crate) mod unix_stream;

pub use deadline::Deadline;
pub use unix_listener::{BindError, OwnedUnixListener};
