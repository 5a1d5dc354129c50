//! Fixtures of the integration tests: simulated drivers, stand-in schedulers, oracles and guests.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a fixture that fails is a test that fails"
)]

pub mod abandonment;
pub mod agent;
pub mod back_end;
#[cfg(feature = "guests")]
pub mod bridge;
pub mod cgroup;
pub mod chromium;
pub mod counting_allocator;
#[cfg(feature = "guests")]
pub mod coverage_guest;
pub mod device_thread;
pub mod exporter;
pub mod fake_agent;
pub mod front_end;
#[cfg(feature = "guests")]
pub mod guest;
pub mod guest_driver;
pub mod held_resources;
pub mod meta_scheduler;
#[cfg(feature = "guests")]
pub mod microvm_guest;
pub mod mmio_driver;
#[cfg(feature = "guests")]
pub mod nested_guest;
pub mod notifying_port;
pub mod numa_nodes;
pub mod on_runtime;
pub mod oracles;
pub mod patched;
pub mod pattern;
pub mod peer;
pub mod program;
pub mod real_schedulers;
pub mod scheduler_shapes;
pub mod scripted_scheduler;
#[cfg(feature = "guests")]
pub mod small_guest;
pub mod terminal;
pub mod thousand_guests;
#[cfg(feature = "tls")]
pub mod tls_client;
pub mod traffic;
#[cfg(feature = "guests")]
pub mod uncompressed_kernel;
pub mod vsock_latency;
