//! Initial RAM file systems: built in memory, or an existing one with the agent added.

pub mod build;
pub mod inject;
pub mod libraries;
pub mod modules;
