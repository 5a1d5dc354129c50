//! The agent's envelopes: their types, their serde forms, and how the agent writes them.
//!
//! An envelope is a JSON object with exactly one key on a line of its own. A scheduler's answer stands between
//! [`STATS_PREFIX`](crate::STATS_PREFIX) and [`STATS_SUFFIX`](crate::STATS_SUFFIX) byte for byte and is never parsed by the agent; every other envelope is
//! an [`Envelope`]. The serde derives describe its JSON; [`emit`] writes the same bytes, and the tests hold the two
//! equal.

use heapless::Vec;

use crate::emit::{self, Notice};
use crate::limits::{MAX_AGENT_ENVELOPE_BYTES, MIN_PROTOCOL, PROTOCOL};
use crate::text::Text;

/// The serde form of a scheduler's answer, for programs that read or write it as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stats<T> {
    /// The scheduler's answer.
    pub stats: T,
}

/// An envelope that the agent writes itself. `S` is the type of its texts: [`Text`] where the agent writes, any string
/// where a host reads. `K` is the type of what the kernel says, [`SchedExt`](crate::SchedExt) with the reader's types;
/// without it that answer is none. Keys that a later version adds to a body are ignored.
///
/// ```
/// use scx_vsock_wire::{Envelope, RelayError};
///
/// let line = br#"{"relay_error":{"busy":{"sessions":8}}}"#;
/// let envelope = Envelope::RelayError(RelayError::Busy { sessions: 8 });
/// assert_eq!(envelope.emit().trim_ascii_end(), line);
/// # #[cfg(feature = "serde")] {
/// let read: Envelope<String> = serde_json::from_slice(line).unwrap();
/// assert!(matches!(read, Envelope::RelayError(_)));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[cfg_attr(
    feature = "serde",
    serde(bound(deserialize = "S: serde::Deserialize<'de> + Default, K: serde::Deserialize<'de>"))
)]
pub enum Envelope<S, K = NoReport> {
    /// The first line of every session that is served.
    Hello(Hello<S>),
    /// The answer to a line that was for the agent.
    Agent(AgentAnswer<K>),
    /// Why there is no answer.
    RelayError(RelayError<S>),
}

/// Which agent this is and what it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Hello<S> {
    /// The newest protocol version that the agent speaks.
    pub protocol: u32,
    /// The oldest protocol version that the agent speaks.
    pub min_protocol: u32,
    /// The agent's own version.
    pub agent: S,
    /// The kernel's `/proc/sys/kernel/random/boot_id`; empty where it cannot be read.
    #[cfg_attr(feature = "serde", serde(default))]
    pub boot_id: S,
    /// Bytes of the longest request line that the agent forwards, LF counted.
    pub max_request_bytes: u32,
    /// Bytes of the longest answer line that the agent forwards, LF counted.
    pub max_response_bytes: u32,
}

/// The answer to a line that was for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum AgentAnswer<K = NoReport> {
    /// The scheduler has accepted a connection (the answer to `wait_scheduler`).
    SchedulerReady {},
    /// What the guest's kernel says about sched_ext (the answer to `sched_ext`).
    SchedExt(K),
}

/// The type of a report that is never there: an [`Envelope`] of the agent's has no room for one, which
/// [`SchedExtLine`](crate::SchedExtLine) writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NoReport {}

/// Why a request has no answer from the scheduler, or why the session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RelayError<S> {
    /// The scheduler's socket could not be connected. The session goes on.
    NoScheduler {
        /// What `connect` failed with.
        errno: i32,
        /// The guest's `/sys/kernel/sched_ext/state`; empty where there is none.
        sched_ext: S,
        /// The guest's `/sys/kernel/sched_ext/root/ops`; empty where there is none.
        ops: S,
        /// Why the kernel disabled the latest scheduler; empty if it did not or does not say.
        #[cfg_attr(feature = "serde", serde(default))]
        cause: S,
    },
    /// The scheduler closed its connection (errno 0) or it failed. The session ends.
    SchedulerGone {
        /// What the connection failed with; 0 for an orderly end.
        errno: i32,
        /// Why the kernel disabled the scheduler; empty if it did not or does not say.
        #[cfg_attr(feature = "serde", serde(default))]
        cause: S,
    },
    /// Bytes came from the scheduler while no request was open, or after its line. The session ends.
    UnsolicitedData {},
    /// The request line was over the cap; all of it was dropped. The session goes on.
    RequestTooLarge {
        /// Bytes of the whole line, its LF counted, saturating.
        size: u32,
        /// The cap.
        max: u32,
    },
    /// The scheduler's line passed the cap without an LF. The session ends.
    ResponseTooLarge {
        /// The cap and one.
        size: u32,
        /// The cap.
        max: u32,
    },
    /// A line for the agent that this version does not know. The session goes on.
    UnknownVerb {},
    /// Every session is taken. Sent instead of hello; the session ends.
    Busy {
        /// How many sessions there are.
        sessions: u32,
    },
}

impl<S> RelayError<S> {
    /// Whether the agent closes the session after this envelope.
    #[must_use]
    pub fn ends_session(&self) -> bool {
        match self {
            Self::SchedulerGone { .. }
            | Self::UnsolicitedData {}
            | Self::ResponseTooLarge { .. }
            | Self::Busy { .. } => true,
            Self::NoScheduler { .. } | Self::RequestTooLarge { .. } | Self::UnknownVerb {} => false,
        }
    }
}

/// The line of an [`Envelope`].
pub type EnvelopeLine = Vec<u8, MAX_AGENT_ENVELOPE_BYTES>;

impl<'a> Envelope<Text<'a>> {
    /// The hello of an agent of this protocol, with its own version, the kernel's boot id and buffers for lines of
    /// `max_line_bytes`.
    #[must_use]
    pub fn hello(agent: Text<'a>, boot_id: Text<'a>, max_line_bytes: usize) -> Self {
        let max = saturate(max_line_bytes);
        let (protocol, min_protocol) = (PROTOCOL, MIN_PROTOCOL);
        Self::Hello(Hello { protocol, min_protocol, agent, boot_id, max_request_bytes: max, max_response_bytes: max })
    }

    /// Returns the envelope's line with its LF. [`emit`] has the same for programs without room for an [`Envelope`].
    #[must_use]
    pub fn emit(&self) -> EnvelopeLine {
        let mut line = [0; MAX_AGENT_ENVELOPE_BYTES];
        let length = match self {
            Self::Hello(Hello { protocol, min_protocol, agent, boot_id, max_request_bytes, max_response_bytes }) => {
                let numbers = [*protocol, *min_protocol, *max_request_bytes, *max_response_bytes];
                emit::any_hello(&mut line, *agent, *boot_id, numbers)
            }
            Self::Agent(AgentAnswer::SchedulerReady {}) => emit::notice(&mut line, Notice::SchedulerReady, 0, 0),
            Self::Agent(AgentAnswer::SchedExt(report)) => match *report {},
            Self::RelayError(error) => error.emit_into(&mut line),
        };
        line.iter().take(length).copied().collect()
    }
}

impl RelayError<Text<'_>> {
    fn emit_into(&self, out: &mut [u8]) -> usize {
        match *self {
            Self::NoScheduler { errno, sched_ext, ops, cause } => emit::no_scheduler(out, errno, sched_ext, ops, cause),
            Self::SchedulerGone { errno, cause } => emit::scheduler_gone(out, errno, cause),
            Self::UnsolicitedData {} => emit::notice(out, Notice::UnsolicitedData, 0, 0),
            Self::RequestTooLarge { size, max } => emit::notice(out, Notice::RequestTooLarge, size, max),
            Self::ResponseTooLarge { size, max } => emit::notice(out, Notice::ResponseTooLarge, size, max),
            Self::UnknownVerb {} => emit::notice(out, Notice::UnknownVerb, 0, 0),
            Self::Busy { sessions } => emit::notice(out, Notice::Busy, sessions, 0),
        }
    }
}

/// Returns `size` as the wire's number, saturating.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "checked in a way that constants can use")]
pub const fn saturate(size: usize) -> u32 {
    if size > u32::MAX as usize { u32::MAX } else { size as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{HELLO_PREFIX, MAX_ENVELOPE_BYTES, MAX_NAME_BYTES, MAX_RELAY_ERROR_BYTES, MAX_RESPONSE_BYTES};
    use proptest::prelude::*;

    /// Bytes of texts, each at most as long as the shortest bound.
    fn bytes() -> impl Strategy<Value = [std::vec::Vec<u8>; 3]> {
        std::array::from_fn(|_| proptest::collection::vec(any::<u8>(), 0..=MAX_NAME_BYTES))
    }

    fn envelope<'a>(kind: u8, [a, b, c, d]: [u32; 4], texts: [Text<'a>; 3]) -> Envelope<Text<'a>> {
        let errno = (a >> 1).cast_signed();
        let [first, second, third] = texts;
        Envelope::RelayError(match kind {
            0 => {
                return Envelope::Hello(Hello {
                    protocol: a,
                    min_protocol: b,
                    agent: first,
                    boot_id: second,
                    max_request_bytes: c,
                    max_response_bytes: d,
                });
            }
            1 => return Envelope::Agent(AgentAnswer::SchedulerReady {}),
            2 => RelayError::NoScheduler { errno, sched_ext: first, ops: second, cause: third },
            3 => RelayError::SchedulerGone { errno, cause: first },
            4 => RelayError::UnsolicitedData {},
            5 => RelayError::RequestTooLarge { size: a, max: b },
            6 => RelayError::ResponseTooLarge { size: a, max: b },
            7 => RelayError::UnknownVerb {},
            _ => RelayError::Busy { sessions: a },
        })
    }

    proptest! {
        #[test]
        fn serde_json_core_writes_the_emitted_bytes(kind in 0u8..9, numbers: [u32; 4], bytes in bytes()) {
            let envelope = envelope(kind, numbers, bytes.each_ref().map(|bytes| Text::first_line(bytes)));
            let mut expected = [0; MAX_AGENT_ENVELOPE_BYTES];
            let length = serde_json_core::to_slice(&envelope, &mut expected).unwrap();
            expected[length] = b'\n';
            prop_assert_eq!(&*envelope.emit(), &expected[..=length]);
        }

        #[test]
        fn every_emitted_envelope_reads_back(kind in 0u8..9, numbers: [u32; 4], bytes in bytes()) {
            let envelope = envelope(kind, numbers, bytes.each_ref().map(|bytes| Text::first_line(bytes)));
            let read: Envelope<std::string::String> = serde_json::from_slice(&envelope.emit()).unwrap();
            prop_assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(envelope).unwrap());
        }

        #[test]
        fn texts_of_any_length_leave_room(kind in 0u8..9) {
            let envelope = envelope(kind, [u32::MAX; 4], [Text::first_line(&[b'x'; 2000]); 3]);
            let line = envelope.emit();
            let most = if kind < 2 { MAX_AGENT_ENVELOPE_BYTES } else { MAX_RELAY_ERROR_BYTES };
            prop_assert!(line.len() <= most);
            prop_assert_eq!(line.last(), Some(&b'\n'));
            let _whole: Envelope<std::string::String> = serde_json::from_slice(&line).unwrap();
        }
    }

    #[test]
    fn each_text_has_its_own_bound() {
        let long = Text::first_line(&[b'x'; 2000]);
        let line = envelope(2, [2; 4], [long; 3]).emit();
        let read = serde_json::from_slice::<Envelope<std::string::String>>(&line).unwrap();
        let Envelope::RelayError(RelayError::NoScheduler { sched_ext, ops, cause, .. }) = read else { panic!() };
        assert_eq!((sched_ext.len(), ops.len(), cause.len()), (64, 128, 512));
    }

    #[test]
    fn a_hello_begins_with_its_prefix() {
        assert!(Envelope::hello(Text::EMPTY, Text::EMPTY, 4096).emit().starts_with(HELLO_PREFIX));
    }

    #[test]
    fn unknown_keys_of_a_body_are_ignored() {
        let read: Envelope<std::string::String> =
            serde_json::from_str(r#"{"agent":{"scheduler_ready":{"later":[1]}}}"#).unwrap();
        assert_eq!(read, Envelope::Agent(AgentAnswer::SchedulerReady {}));
    }

    #[test]
    fn the_longest_answer_gains_ten_bytes_in_its_frame() {
        assert_eq!(MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES + 10);
    }
}
