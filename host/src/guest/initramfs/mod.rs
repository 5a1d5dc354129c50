//! Initial RAM file systems: [`build`] one in memory, or [`inject`] the agent into an existing one.

pub mod build;
mod contents;
mod error;
pub mod inject;
pub mod libraries;
pub mod modules;
