//! What a device has done so far, and has at the moment, in numbers.

use serde::Serialize;

/// The numbers of a device at one moment. They count from when the device was made; a reset of the driver does not clear
/// them.
///
/// ```
/// let device = scx_vsock::vsock::Device::new(3)?;
/// let counters = device.handle().counters();
/// assert_eq!((counters.to_guest.packets, counters.connections.total()), (0, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counters {
    /// What the guest has sent.
    pub from_guest: Traffic,
    /// What the guest was sent.
    pub to_guest: Traffic,
    /// Interrupts of queues that the driver asked for. A transport with one interrupt for all queues may raise fewer.
    pub interrupts: u64,
    /// Notifications of queues by the driver. Only a vhost-user back end counts them: other transports are woken for the
    /// host's side by the same descriptor, and leave this 0.
    pub notifications: u64,
    /// RST packets that the guest has sent.
    pub resets_received: u64,
    /// RST packets that the guest was sent.
    pub resets_sent: u64,
    /// Packets of the guest that nothing follows from: too short for a header, or with another's CID.
    pub dropped_packets: u64,
    /// Connections that were reset to make room for another.
    pub evictions: u64,
    /// Bytes of the guest that had not entered the host's stream when their connection was reset.
    pub lost_bytes: u64,
    /// Times that payload waited since the guest had given no credit for it.
    pub credit_stalls: u64,
    /// Times that the transmit queue waited since [`MAX_RSTS`](super::MAX_RSTS) RST packets waited for receive buffers.
    pub reset_stalls: u64,
    /// Connections that were refused.
    pub refused: Refusals,
    /// Connections at the moment.
    pub connections: ConnectionCounts,
}

/// Packets in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Packets of any operation.
    pub packets: u64,
    /// Bytes of their payload, headers not counted.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn count(&mut self, bytes: u32) {
        self.packets += 1;
        self.bytes += u64::from(bytes);
    }
}

/// Connections that were refused, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refusals {
    /// Of the guest: nobody listens on the host's port, or the program there accepts no more.
    pub no_listener: u64,
    /// Of the guest: the [policy](super::GuestPolicy) does not allow the port.
    pub not_allowed: u64,
    /// Of the guest: more in a second than the policy allows.
    pub too_fast: u64,
    /// Of the guest: the port has as many connections as the policy allows.
    pub port_full: u64,
    /// Of the guest: it has all the connections that the host does not keep for itself.
    pub guest_full: u64,
    /// Of the host: the device has all the connections that it may have.
    pub table_full: u64,
    /// Of the host: the guest answered RST.
    pub by_guest: u64,
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoListener,
    NotAllowed,
    TooFast,
    PortFull,
    GuestFull,
    TableFull,
    ByGuest,
}

impl Refusals {
    pub(super) fn count(&mut self, refusal: Refusal) {
        let counter = match refusal {
            Refusal::NoListener => &mut self.no_listener,
            Refusal::NotAllowed => &mut self.not_allowed,
            Refusal::TooFast => &mut self.too_fast,
            Refusal::PortFull => &mut self.port_full,
            Refusal::GuestFull => &mut self.guest_full,
            Refusal::TableFull => &mut self.table_full,
            Refusal::ByGuest => &mut self.by_guest,
        };
        *counter += 1;
    }
}

/// The state of a connection, without what it has in that state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    ConnectPending,
    ConnectSent,
    Established,
    Closing,
    Draining,
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConnectionCounts {
    /// The host asks for it, and the guest was not sent REQUEST.
    pub connect_pending: usize,
    /// The guest was sent REQUEST, and has not answered.
    pub connect_sent: usize,
    /// Both sides are connected.
    pub established: usize,
    /// The host closed, and the guest has yet to confirm it.
    pub closing: usize,
    /// The guest closed, and bytes of it have yet to enter the host's stream.
    pub draining: usize,
    /// Over for the guest, and the host's program has yet to read what is in its stream. Not among
    /// [`Device::connections`](super::Device::connections), and bounded with them.
    pub unread: usize,
}

impl ConnectionCounts {
    /// Returns the number of all connections that hold memory of the host.
    #[must_use]
    pub fn total(&self) -> usize {
        self.connect_pending + self.connect_sent + self.established + self.closing + self.draining + self.unread
    }

    pub(super) fn of(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::ConnectPending => &mut self.connect_pending,
            Stage::ConnectSent => &mut self.connect_sent,
            Stage::Established => &mut self.established,
            Stage::Closing => &mut self.closing,
            Stage::Draining => &mut self.draining,
        }
    }
}
