//! Ports, byte caps and the protocol's version.

use crate::envelope::{STATS_PREFIX, STATS_SUFFIX};

/// The newest version of the protocol that this crate describes.
pub const PROTOCOL: u32 = 1;

/// The oldest version that it still speaks. Two sides talk if their ranges overlap.
pub const MIN_PROTOCOL: u32 = 1;

/// The vsock port that the agent listens on: SCX on a keypad. Below 1024, so that an ordinary user of the guest
/// cannot bind it and pose as the agent.
pub const AGENT_PORT: u32 = 729;

/// The vsock port of the host that the agent dials once when it first listens.
pub const READY_PORT: u32 = 7290;

/// Sessions that one agent serves at a time; one more is told `busy`.
pub const SESSIONS: usize = 8;

/// Bytes of the longest request line, its LF counted.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Bytes of the longest answer line of a scheduler, its LF counted.
pub const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Bytes of the longest envelope line, its LF counted: the longest answer in its frame.
pub const MAX_ENVELOPE_BYTES: usize = MAX_RESPONSE_BYTES + STATS_PREFIX.len() + STATS_SUFFIX.len();

/// Bytes that suffice for every envelope but `stats`, its LF counted.
pub const MAX_NOTICE_BYTES: usize = 256;

/// Bytes of the longest [`Text`](crate::Text) inside an envelope.
pub const MAX_TEXT_BYTES: usize = 64;

/// How a line for the agent itself begins. Such a line is never forwarded to a scheduler.
pub const AGENT_LINE_PREFIX: &[u8] = br#"{"agent":"#;

/// The line, without its LF, that asks the agent to answer as soon as the scheduler accepts a connection.
pub const WAIT_SCHEDULER: &[u8] = br#"{"agent":"wait_scheduler"}"#;

/// The scheduler's socket where nothing else is asked for (scx_stats' own default).
pub const SCHEDULER_SOCKET: &str = "/var/run/scx/root/stats";
