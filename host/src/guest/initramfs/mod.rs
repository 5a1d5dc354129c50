//! Initial RAM file systems: [`build`] one in memory, or [`inject`] the agent into an existing one.

mod bootconfig;
pub mod build;
mod contents;
mod entry;
mod error;
pub mod inject;
pub mod libraries;
pub mod modules;
mod root_fs;
mod start_script;
