//! What a guest may connect to, and how often.

use std::collections::BTreeSet;

use super::limits::MAX_PORT_CONNECTIONS;

/// What a guest may connect to on the host, and how often. What it may not is answered by RST, and
/// [counted](super::Refusals).
///
/// By default a guest may connect to every port where there is a [listener](super::Handle::listen), which
/// [`READY_PORT`](scx_vsock_wire::READY_PORT) is while somebody waits for the agent, or a program's socket
/// ([`set_uds_path`](super::Handle::set_uds_path)); each of them may have [`MAX_PORT_CONNECTIONS`], and as many new ones
/// in a second as the guest can ask for, since each kind of work has its turns. Refusals go out
/// at 32,768 a second, so that a process which connects to a closed port in a loop leaves the device to the others.
///
/// ```
/// use scx_vsock::vsock::{Device, GuestPolicy};
///
/// let device = Device::new(3)?;
/// device.handle().set_guest_policy(GuestPolicy::default().ports([5000]).connects_per_second(100));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPolicy {
    /// `None` is all.
    ports: Option<BTreeSet<u32>>,
    connections_per_port: usize,
    connects_per_second: Option<u32>,
    refusals_per_second: u32,
}

/// Refusals of a second by default: one costs device and guest a microsecond or two, so that they take a small part of it.
const REFUSALS_PER_SECOND: u32 = 32 * 1024;

impl Default for GuestPolicy {
    fn default() -> Self {
        Self {
            ports: None,
            connections_per_port: MAX_PORT_CONNECTIONS,
            connects_per_second: None,
            refusals_per_second: REFUSALS_PER_SECOND,
        }
    }
}

impl GuestPolicy {
    /// Allows these ports of the host and no others.
    #[must_use]
    pub fn ports(mut self, ports: impl IntoIterator<Item = u32>) -> Self {
        self.ports = Some(ports.into_iter().collect());
        self
    }

    /// Allows this many connections to a port at a time, at most [`MAX_PORT_CONNECTIONS`].
    #[must_use]
    pub fn connections_per_port(mut self, connections: usize) -> Self {
        self.connections_per_port = connections.min(MAX_PORT_CONNECTIONS);
        self
    }

    /// Allows this many new connections in a second, of which as many may come at once.
    #[must_use]
    pub fn connects_per_second(mut self, connects: u32) -> Self {
        self.connects_per_second = Some(connects);
        self
    }

    /// Sends this many RSTs of no connection in a second, at least one; further ones wait, at most 512 of them.
    #[must_use]
    pub fn refusals_per_second(mut self, refusals: u32) -> Self {
        self.refusals_per_second = refusals.max(1);
        self
    }

    pub(super) fn allows(&self, port: u32) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    pub(super) fn most_of_a_port(&self) -> usize {
        self.connections_per_port
    }

    pub(super) fn rate(&self) -> Option<u32> {
        self.connects_per_second
    }

    pub(super) fn refusal_rate(&self) -> u32 {
        self.refusals_per_second
    }
}
