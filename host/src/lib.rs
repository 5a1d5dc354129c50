//! Reads the statistics of a guest's sched_ext scheduler on the host, or returns one typed reason why there are none.
//!
//! A scheduler in the guest serves its statistics on a Unix socket (scx_stats: JSON lines). The guest's agent relays them
//! over virtio-vsock; this crate is the host's side. A sample takes this path:
//!
//! 1. An [`Endpoint`], or a device's handle, connects a stream to the agent.
//! 2. The [`client`] opens a session on it, writes a [`StatsRequest`] and reads the agent's envelope. Every wait ends by an
//!    answer, a deadline, or a stop of the run ([`control`]).
//! 3. The result is the scheduler's stats or a [`SchedStatsError`], which becomes a [`MissingStatsReason`] in a
//!    [`Sample`]. A [`SampleSeries`] holds many samples.
//!
//! No feature is on by default:
//!
//! | feature | what it adds |
//! | --- | --- |
//! | `device` | the virtio-vsock device (`vsock`) and its registers for a VMM's bus (`transport::mmio`) |
//! | `event-manager` | many such devices on one thread (`transport::event_manager`) |
//! | `kvm` | ioeventfd and irqfd (`transport::kvm`) |
//! | `vhost-user` | a back end for a VMM in another process (`transport::vhost_user`) |
//! | `microvm` | a VMM for one Linux guest on KVM, in this process (`guest::microvm`, on x86_64) |
//! | `test-util` | a simulated driver for a VMM's unit tests (`vsock::test_util`) |
//! | `qemu` | throw-away guests, and the agent that runs in them (`guest`); a nested cargo builds it |
//! | `expect` | what must be true of a series, as a line of text (`series::expectation`) |
//! | `report` | recordings as one page of HTML: plots, what changed between runs (`report`) |
//! | `tokio` | a client for tasks of a Tokio runtime (`client::AsyncSchedStatsClient`) |
//! | `export` | the stats of many guests for Prometheus (`export`) |
//!
//! The [`proxy`] serves a guest's scheduler as a plain scx_stats server on the host. [`guide`] has a page for each kind of
//! user.
//!
//! # Three programs
//!
//! An init that runs the agent in its event loop:
//!
//! ```no_run
//! use scx_vsock_agent::{Agent, Config, Storage, Turn};
//! use scx_vsock_wire::{MAX_RESPONSE_BYTES, SESSIONS};
//!
//! # fn wait_for(fd: i32) {}
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut storage = Box::new(Storage::<SESSIONS, MAX_RESPONSE_BYTES>::new());
//! let mut agent = Agent::new(&mut storage, &Config::default())?;
//! loop {
//!     if agent.turn()? == Turn::Idle {
//!         wait_for(agent.fd()); // and for the init's other descriptors
//!     }
//! }
//! # }
//! ```
//!
//! A VMM that samples around a pause:
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
//! let frozen = run.freeze(); // ends the calls in flight with `DuringFreeze`
//! pause_vcpus();
//! resume_vcpus();
//! drop(frozen);
//! println!("{}", serde_json::to_string(&sampler.sample("after the pause"))?);
//! # Ok(())
//! # }
//! ```
//!
//! A test of a scheduler, under QEMU and without root:
//!
#![cfg_attr(feature = "qemu", doc = "```no_run")]
#![cfg_attr(not(feature = "qemu"), doc = "```ignore")]
//! # fn main() -> anyhow::Result<()> {
//! let builder = scx_vsock::guest::Guest::builder().kernel("vmlinuz").modules("/lib/modules/7.2.0");
//! let guest = builder.scheduler("./scx_mine", &["--verbose"]).boot()?;
//! guest.client().wait_for_scheduler(std::time::Duration::from_secs(60))?;
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
#[cfg(feature = "report")]
pub mod report;
pub mod sample;
pub mod series;
#[cfg(all(test, shuttle))]
mod shuttle_tests;
pub mod stats;

#[cfg(feature = "device")]
pub mod vsock;

#[cfg(feature = "device")]
pub mod transport;

#[cfg(any(feature = "qemu", feature = "microvm"))]
pub mod guest;

/// The versions that this crate's interfaces have types of.
#[cfg(feature = "device")]
pub use {virtio_queue, vm_memory};

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
