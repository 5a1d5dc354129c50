//! How each kind of user starts: those who build guest images, write monitors, or test schedulers.

/// The agent in a guest image.
#[doc = include_str!("../guide/images.md")]
pub mod images {}

/// Statistics in a virtual machine monitor.
#[doc = include_str!("../guide/monitors.md")]
pub mod monitors {}

/// Schedulers under test, in QEMU guests.
#[doc = include_str!("../guide/ci.md")]
pub mod ci {}
