//! Read a guest's sched_ext scheduler statistics on the host, or the one typed reason why there are none.
//!
//! A scheduler in the guest serves its statistics on a Unix socket (scx_stats: JSON lines). The guest's agent relays
//! them over virtio-vsock; this crate is the host's side. One sample's way through it:
//!
//! 1. [`endpoint`] or a device's handle leads to the agent: a stream that can be polled.
//! 2. [`client`] opens a session on it, writes a [`StatsRequest`] and reads the agent's envelope; every wait ends by answer,
//!    deadline, or what [`control`] says.
//! 3. What comes out is the scheduler's stats or a [`SchedStatsError`], which becomes a [`MissingStatsReason`] in a
//!    [`Sample`]; a [`SampleSeries`] holds many.
//!
//! Features, none of them default: `device` has the virtio-vsock device (`vsock`) on `virtio-queue` and `vm-memory`, with
//! registers for a monitor's own bus (`transport::mmio`); `event-manager` serves many such devices on one thread
//! (`transport::event_manager`), `kvm` has KVM take their kicks and interrupts (`transport::kvm`), `vhost-user` serves the device to
//! a monitor in another process (`transport::vhost_user`), `qemu` boots throw-away guests (`guest`), `export` serves many
//! guests' stats to Prometheus (`export`). [`proxy`] makes a plain scx_stats server of a guest's scheduler.
//!
//! [`guide`] has a page for each kind of user.
//!
//! # Three programs
//!
//! An init of one's own, which runs the agent in its event loop:
//!
//! ```no_run
//! use scx_vsock_agent::{Agent, Config, Storage, Turn};
//!
//! # fn wait_for(fd: i32) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut storage = Box::new(Storage::<8, { 256 * 1024 }>::new());
//! let mut agent = Agent::new(&mut storage, &Config::default()).map_err(|error| format!("{error:?}"))?;
//! loop {
//!     if agent.turn().map_err(|error| format!("{error:?}"))? == Turn::Idle {
//!         wait_for(agent.fd()); // ... and for whatever else an init waits for
//!     }
//! }
//! # }
//! ```
//!
//! A monitor that pauses its guest, and samples at the boundaries of its phases:
//!
//! ```no_run
//! use scx_vsock::{Endpoint, RunControl, Sampler, SchedStatsClient};
//!
//! # fn pause_vcpus() {}
//! # fn resume_vcpus() {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let run = RunControl::new();
//! let client = SchedStatsClient::builder("vsock://3".parse::<Endpoint>()?).control(&run).build();
//! let mut sampler = Sampler::new(Some(client));
//! let frozen = run.freeze(); // whoever waits for the guest is woken with `DuringFreeze`
//! pause_vcpus();
//! resume_vcpus();
//! drop(frozen);
//! let sample = sampler.sample("after the pause");
//! println!("{}", serde_json::to_string(&sample)?);
//! # Ok(())
//! # }
//! ```
//!
//! A test of a scheduler, under QEMU without root:
//!
#![cfg_attr(feature = "qemu", doc = "```no_run")]
#![cfg_attr(not(feature = "qemu"), doc = "```ignore")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let builder = scx_vsock::guest::qemu::Guest::builder().kernel("vmlinuz").modules("/lib/modules/7.2.0");
//! let guest = builder.scheduler("./scx_mine", &["--verbose"]).boot()?;
//! guest.client().wait_for_scheduler(std::time::Duration::from_secs(60))?;
//! guest.run(&["sh", "-c", "ls -R /sys >/dev/null"])?;
//! let stats = guest.client().stats(&[])?;
//! assert!(stats["nr_dispatched"].as_u64() > Some(0), "{stats:#}");
//! # Ok(())
//! # }
//! ```

pub mod client;
pub mod control;
pub mod endpoint;
#[cfg(feature = "export")]
pub mod export;
pub mod guide;
mod histogram;
pub mod io;
pub mod proxy;
pub mod sample;
pub mod series;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
pub mod stats;

#[cfg(feature = "device")]
pub mod vsock;

#[cfg(feature = "device")]
pub mod transport;

#[cfg(feature = "qemu")]
pub mod guest;

pub use client::SchedStatsClient;
pub use control::RunControl;
pub use endpoint::{Connect, Endpoint};
pub use histogram::Histogram;
pub use sample::{Sample, Sampler};
pub use scx_vsock_wire::{AGENT_PORT, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, READY_PORT};
pub use series::{SampleSeries, SnapshotError};
pub use stats::{Meta, MissingStatsReason, SchedStatsError, StatsRequest, StatsResponse};

/// The examples of the repository's first page.
#[cfg(all(doctest, feature = "qemu"))]
#[doc = include_str!("../../README.md")]
struct Readme;
