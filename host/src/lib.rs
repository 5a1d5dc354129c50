//! Read a guest's sched_ext scheduler statistics on the host, or the one typed reason why there are none.

pub mod client;
pub mod control;
pub mod endpoint;
pub mod error;
pub mod reason;
pub mod request;
pub mod sample;
pub mod series;

#[cfg(feature = "device")]
pub mod vsock;

#[cfg(feature = "vhost-user")]
pub mod front;

#[cfg(feature = "qemu")]
pub mod qemu;

pub use client::SchedStatsClient;
pub use control::RunControl;
pub use endpoint::{Connect, Endpoint};
pub use error::SchedStatsError;
pub use reason::MissingStatsReason;
pub use request::{StatsRequest, StatsResponse};
pub use sample::{Sample, Sampler};
pub use scx_vsock_wire::{AGENT_PORT, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, READY_PORT};
pub use series::{SampleSeries, SnapshotError};

/// The examples of the repository's first page.
#[cfg(all(doctest, feature = "qemu"))]
#[doc = include_str!("../../README.md")]
struct Readme;
