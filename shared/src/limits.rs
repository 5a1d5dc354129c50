//! Ports, byte caps, the protocol's version, and how lines begin.

/// The newest version of the protocol that this crate describes.
pub const PROTOCOL: u32 = 1;

/// The oldest version that it still speaks. Two sides understand each other if their ranges overlap.
pub const MIN_PROTOCOL: u32 = 1;

/// The vsock port that the agent listens on: SCX on a keypad. Below 1024, so that an ordinary user of the guest
/// cannot bind it and pose as the agent.
pub const AGENT_PORT: u32 = 729;

/// The vsock port of the host that the agent connects to once when it first listens.
pub const READY_PORT: u32 = 7290;

/// Sessions that one agent serves at a time; the next host receives `busy`.
pub const SESSIONS: usize = 8;

/// Bytes of the longest request line, its LF counted.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;

/// Bytes of the longest answer line of a scheduler, its LF counted.
pub const MAX_RESPONSE_BYTES: usize = 256 * 1024;

/// Bytes of the longest envelope line, its LF counted: the longest answer in its frame.
pub const MAX_ENVELOPE_BYTES: usize = MAX_RESPONSE_BYTES + STATS_PREFIX.len() + STATS_SUFFIX.len();

/// Bytes of the longest envelope that is neither `stats` nor the answer to `sched_ext`, its LF counted. An agent's buffer
/// cannot be smaller.
pub const MAX_AGENT_ENVELOPE_BYTES: usize = 1024;

/// Bytes of the longest relay error, its LF counted.
pub const MAX_RELAY_ERROR_BYTES: usize = 832;

/// Arrays and objects that may stand inside each other in a line, in both directions.
pub const MAX_JSON_DEPTH: usize = 96;

/// Bytes of the texts `agent` and `boot_id` of a hello, and `sched_ext` of `no_scheduler`.
pub const MAX_NAME_BYTES: usize = 64;

/// Bytes of the text `ops` of `no_scheduler`: a scheduler's name.
pub const MAX_OPS_BYTES: usize = 128;

/// Bytes of the text `cause` of `no_scheduler` and `scheduler_gone`.
pub const MAX_CAUSE_BYTES: usize = 512;

/// Bytes of the longest answer to `sched_ext`, its LF counted. In a smaller buffer the log is dropped, then the events.
pub const MAX_SCHED_EXT_BYTES: usize = 12 * 1024;

/// Events of sched_ext in an answer; the rest is dropped.
pub const MAX_EVENTS: usize = 64;

/// Bytes of a number that the kernel wrote as text: the digits of a `u64`.
pub const MAX_DECIMAL_BYTES: usize = 20;

/// Messages of the kernel in an answer: the newest.
pub const MAX_KERNEL_MESSAGES: usize = 8;

/// Bytes of the text of a message of the kernel.
pub const MAX_KERNEL_MESSAGE_BYTES: usize = 512;

/// What stands before a scheduler's answer.
pub const STATS_PREFIX: &[u8] = br#"{"stats":"#;

/// What stands after a scheduler's answer (whose LF is removed), before the envelope's LF.
pub const STATS_SUFFIX: &[u8] = b"}";

/// How a hello begins.
pub const HELLO_PREFIX: &[u8] = br#"{"hello":"#;

/// How a line for the agent itself begins. Such a line is never forwarded to a scheduler.
pub const AGENT_LINE_PREFIX: &[u8] = br#"{"agent":"#;

/// The scheduler's socket where nothing else is asked for (scx_stats' own default).
pub const SCHEDULER_SOCKET: &str = "/var/run/scx/root/stats";
