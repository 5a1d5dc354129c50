//! A page about installing, and one for each kind of user: builders of guest images, authors of VMMs, developers of
//! schedulers, and operators of many guests.
//!
//! What it costs, against peers, is in the repository: `host/guide/performance.md`, with plots.

/// The command, the library and the agent on a machine.
#[doc = include_str!("../guide/install.md")]
pub mod install {}

/// The agent in a guest image.
#[doc = include_str!("../guide/images.md")]
pub mod images {}

/// The client and the device in a VMM.
#[doc = include_str!("../guide/vmms.md")]
#[cfg_attr(feature = "device", doc = include_str!("../guide/transport.md"))]
#[cfg_attr(feature = "kvm", doc = include_str!("../guide/kvm.md"))]
#[cfg_attr(feature = "vhost-user", doc = include_str!("../guide/vhost-user.md"))]
#[cfg_attr(feature = "test-util", doc = include_str!("../guide/testing.md"))]
pub mod vmms {}

/// Schedulers under test, in QEMU guests.
#[doc = include_str!("../guide/ci.md")]
pub mod ci {}

/// What must be true of a run, and a verdict.
#[doc = include_str!("../guide/expectations.md")]
pub mod expectations {}

/// Kernels and schedulers in all combinations.
#[doc = include_str!("../guide/suite.md")]
pub mod suite {}

/// Recordings as one page, and runs compared.
#[doc = include_str!("../guide/report.md")]
pub mod report {}

/// A scheduler under test by pytest.
#[doc = include_str!("../guide/pytest.md")]
pub mod pytest {}

/// Many guests in Prometheus.
#[doc = include_str!("../guide/export.md")]
pub mod export {}
