//! The agent's envelopes: types, their serde forms, and how the agent emits them without a panic path.
//!
//! An envelope is a JSON object with exactly one key on a line of its own. A scheduler's answer stands inside
//! [`STATS_PREFIX`] and [`STATS_SUFFIX`] byte for byte and is never parsed by the agent; every other envelope is
//! an [`Envelope`]. The serde derives are the one description of its JSON; [`Envelope::emit`] writes the same
//! bytes from constant pieces, since a general serialiser cannot be linked without panics, and the tests hold the
//! two equal.

use heapless::{String, Vec};

use crate::limits::{MAX_NOTICE_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, MAX_TEXT_BYTES, MIN_PROTOCOL, PROTOCOL};

/// What stands before a scheduler's answer.
pub const STATS_PREFIX: &[u8] = br#"{"stats":"#;

/// How a hello begins.
pub const HELLO_PREFIX: &[u8] = br#"{"hello":"#;

/// What stands behind a scheduler's answer (whose LF is left out), before the envelope's LF.
pub const STATS_SUFFIX: &[u8] = b"}";

/// The serde form of a scheduler's answer, for programs that read or write it as a value.
///
/// ```
/// use scx_vsock_wire::{STATS_PREFIX, STATS_SUFFIX, Stats};
///
/// let line = [STATS_PREFIX, br#"{"errno":0,"args":{}}"#, STATS_SUFFIX].concat();
/// # #[cfg(feature = "serde")] {
/// let answer: Stats<serde_json::Value> = serde_json::from_slice(&line).unwrap();
/// assert_eq!(answer.stats["errno"], 0);
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Stats<T> {
    /// The scheduler's answer.
    pub stats: T,
}

/// An envelope in the agent's own name. `S` is the type of its texts: [`Text`] where the agent writes, any string
/// where a host reads.
///
/// ```
/// use scx_vsock_wire::Envelope;
///
/// let line = br#"{"relay_error":{"busy":{"sessions":8}}}"#;
/// assert_eq!(Envelope::busy(8).emit().trim_ascii_end(), line);
/// # #[cfg(feature = "serde")] {
/// let read: Envelope<String> = serde_json::from_slice(line).unwrap();
/// assert!(matches!(read, Envelope::RelayError(_)));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Envelope<S> {
    /// The first line of every session that is served.
    Hello(Hello<S>),
    /// The answer to a line that was for the agent.
    Agent(AgentEvent),
    /// Why there is no answer.
    RelayError(RelayError<S>),
}

/// Who is there and what it accepts.
///
/// ```
/// use scx_vsock_wire::{Envelope, Hello};
///
/// let Envelope::Hello(Hello { protocol, min_protocol, agent, .. }) = Envelope::hello("0.1.0") else { unreachable!() };
/// assert!((min_protocol..=protocol).contains(&1));
/// assert_eq!(agent.as_str(), "0.1.0");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Hello<S> {
    /// The newest protocol version that the agent speaks.
    pub protocol: u32,
    /// The oldest protocol version that the agent speaks.
    pub min_protocol: u32,
    /// The agent's own version.
    pub agent: S,
    /// Bytes of the longest request line that the agent forwards, LF counted.
    pub max_request_bytes: u32,
    /// Bytes of the longest answer line that the agent passes on, LF counted.
    pub max_response_bytes: u32,
}

/// The answer to a line that was for the agent.
///
/// ```
/// use scx_vsock_wire::{AgentEvent, Envelope};
///
/// let ready = Envelope::Agent(AgentEvent::SchedulerReady);
/// assert_eq!(ready.emit(), b"{\"agent\":\"scheduler_ready\"}\n");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum AgentEvent {
    /// The scheduler has accepted a connection (the answer to `wait_scheduler`).
    SchedulerReady,
}

/// Why a request has no answer from the scheduler, or why the session ends.
///
/// ```
/// use scx_vsock_wire::{Envelope, RelayError, Text};
///
/// let error = RelayError::NoScheduler { errno: 2, sched_ext: Text::first_line(b"disabled\n"), ops: Text::default() };
/// assert_eq!(
///     Envelope::RelayError(error).emit(),
///     b"{\"relay_error\":{\"no_scheduler\":{\"errno\":2,\"sched_ext\":\"disabled\",\"ops\":\"\"}}}\n",
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RelayError<S> {
    /// The scheduler's socket could not be connected. The session goes on.
    NoScheduler {
        /// What `connect` failed with.
        errno: i32,
        /// The guest's `/sys/kernel/sched_ext/state`; empty where it is not there.
        sched_ext: S,
        /// The guest's `/sys/kernel/sched_ext/root/ops`; empty where it is not there.
        ops: S,
    },
    /// The scheduler closed its connection (errno 0) or it failed. The session ends.
    SchedulerGone {
        /// What the connection failed with; 0 for an orderly end.
        errno: i32,
    },
    /// Bytes came from the scheduler while no request was open, or behind its line. The session ends.
    SchedulerUnasked {},
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
    /// Whether the agent closes the session behind this envelope.
    ///
    /// ```
    /// use scx_vsock_wire::{RelayError, Text};
    ///
    /// assert!(RelayError::<Text>::SchedulerGone { errno: 0 }.ends_session());
    /// assert!(!RelayError::<Text>::UnknownVerb {}.ends_session());
    /// ```
    #[must_use]
    pub fn ends_session(&self) -> bool {
        match self {
            Self::SchedulerGone { .. }
            | Self::SchedulerUnasked {}
            | Self::ResponseTooLarge { .. }
            | Self::Busy { .. } => true,
            Self::NoScheduler { .. } | Self::RequestTooLarge { .. } | Self::UnknownVerb {} => false,
        }
    }
}

/// A short text that is safe inside a JSON string as it is.
///
/// ```
/// use scx_vsock_wire::Text;
///
/// assert_eq!(Text::first_line(b"bpfland_1.1.4\n").as_str(), "bpfland_1.1.4");
/// assert_eq!(Text::default().as_str(), "");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Text(String<MAX_TEXT_BYTES>);

impl Text {
    /// The first line of `bytes`, cut at [`MAX_TEXT_BYTES`]; what JSON would have to escape, and what is not
    /// printable ASCII, becomes `?`.
    ///
    /// ```
    /// use scx_vsock_wire::Text;
    ///
    /// assert_eq!(Text::first_line(b"say \"hi\"\nand more").as_str(), "say ?hi?");
    /// ```
    #[must_use]
    pub fn first_line(bytes: &[u8]) -> Self {
        let mut text = String::new();
        for &byte in bytes.iter().take_while(|&&byte| byte != b'\n') {
            let safe = matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
            if text.push(if safe { char::from(byte) } else { '?' }).is_err() {
                break;
            }
        }
        Self(text)
    }

    /// The text.
    ///
    /// ```
    /// let state = scx_vsock_wire::Text::first_line(b"enabled\n");
    /// assert_eq!(state.as_str(), "enabled");
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One envelope but `stats`, as the bytes of its line.
///
/// ```
/// use scx_vsock_wire::Envelope;
/// use scx_vsock_wire::envelope::Notice;
///
/// let line: Notice = Envelope::busy(8).emit();
/// assert!(line.ends_with(b"\n"));
/// ```
pub type Notice = Vec<u8, MAX_NOTICE_BYTES>;

impl Envelope<Text> {
    /// The hello of an agent of this protocol, with its own version.
    ///
    /// ```
    /// use scx_vsock_wire::{Envelope, HELLO_PREFIX};
    ///
    /// assert!(Envelope::hello("0.1.0").emit().starts_with(HELLO_PREFIX));
    /// ```
    #[must_use]
    pub fn hello(agent: &str) -> Self {
        Self::Hello(Hello {
            protocol: PROTOCOL,
            min_protocol: MIN_PROTOCOL,
            agent: Text::first_line(agent.as_bytes()),
            max_request_bytes: saturate(MAX_REQUEST_BYTES),
            max_response_bytes: saturate(MAX_RESPONSE_BYTES),
        })
    }

    /// What a connection is told that finds every one of `sessions` taken.
    ///
    /// ```
    /// use scx_vsock_wire::{Envelope, RelayError};
    ///
    /// assert_eq!(Envelope::busy(8), Envelope::RelayError(RelayError::Busy { sessions: 8 }));
    /// ```
    #[must_use]
    pub fn busy(sessions: usize) -> Self {
        Self::RelayError(RelayError::Busy { sessions: saturate(sessions) })
    }

    /// The envelope's line with its LF.
    ///
    /// ```
    /// use scx_vsock_wire::{Envelope, RelayError};
    ///
    /// let line = Envelope::RelayError(RelayError::SchedulerGone { errno: 104 }).emit();
    /// assert_eq!(line, b"{\"relay_error\":{\"scheduler_gone\":{\"errno\":104}}}\n");
    /// ```
    #[must_use]
    pub fn emit(&self) -> Notice {
        let mut notice = Notice::new();
        self.emit_into(&mut notice);
        notice
    }

    /// Replaces what is in `notice` by the envelope's line with its LF.
    ///
    /// Every envelope fits, since every text is cut at [`MAX_TEXT_BYTES`]; a test holds this for the largest.
    ///
    /// ```
    /// use scx_vsock_wire::{AgentEvent, Envelope};
    ///
    /// let mut line = Envelope::hello("0.1.0").emit();
    /// Envelope::Agent(AgentEvent::SchedulerReady).emit_into(&mut line);
    /// assert_eq!(line, b"{\"agent\":\"scheduler_ready\"}\n");
    /// ```
    pub fn emit_into(&self, notice: &mut Notice) {
        notice.clear();
        let mut line = Line(notice);
        match self {
            Self::Hello(hello) => {
                line.put(br#"{"hello":{"protocol":"#).number(hello.protocol.into());
                line.put(br#","min_protocol":"#).number(hello.min_protocol.into());
                line.put(br#","agent":""#).put(hello.agent.as_str().as_bytes());
                line.put(br#"","max_request_bytes":"#).number(hello.max_request_bytes.into());
                line.put(br#","max_response_bytes":"#).number(hello.max_response_bytes.into());
                line.put(b"}}\n");
            }
            Self::Agent(AgentEvent::SchedulerReady) => {
                line.put(b"{\"agent\":\"scheduler_ready\"}\n");
            }
            Self::RelayError(error) => {
                line.put(br#"{"relay_error":{"#);
                line.relay_error(error);
                line.put(b"}}}\n");
            }
        }
    }
}

/// A line that is being put together. What does not fit is left out, which keeps the path free of panics.
struct Line<'a>(&'a mut Notice);

impl Line<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        for &byte in bytes {
            let _full = self.0.push(byte);
        }
        self
    }

    fn number(&mut self, number: i64) -> &mut Self {
        let mut digits = Vec::<u8, 20>::new();
        let mut rest = number.unsigned_abs();
        loop {
            let _full = digits.push(b'0' | u8::try_from(rest % 10).unwrap_or(0));
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.put(b"-");
        }
        for digit in digits.iter().rev() {
            self.put(core::slice::from_ref(digit));
        }
        self
    }

    fn size_and_max(&mut self, name: &[u8], size: u32, max: u32) {
        self.put(name).put(br#":{"size":"#).number(size.into()).put(br#","max":"#).number(max.into());
    }

    /// The variant's name and the inside of its body; the caller closes three braces.
    fn relay_error(&mut self, error: &RelayError<Text>) {
        match error {
            RelayError::NoScheduler { errno, sched_ext, ops } => {
                self.put(br#""no_scheduler":{"errno":"#).number((*errno).into());
                self.put(br#","sched_ext":""#).put(sched_ext.as_str().as_bytes());
                self.put(br#"","ops":""#).put(ops.as_str().as_bytes()).put(b"\"");
            }
            RelayError::SchedulerGone { errno } => {
                self.put(br#""scheduler_gone":{"errno":"#).number((*errno).into());
            }
            RelayError::SchedulerUnasked {} => {
                self.put(br#""scheduler_unasked":{"#);
            }
            RelayError::RequestTooLarge { size, max } => {
                self.size_and_max(br#""request_too_large""#, *size, *max);
            }
            RelayError::ResponseTooLarge { size, max } => {
                self.size_and_max(br#""response_too_large""#, *size, *max);
            }
            RelayError::UnknownVerb {} => {
                self.put(br#""unknown_verb":{"#);
            }
            RelayError::Busy { sessions } => {
                self.put(br#""busy":{"sessions":"#).number((*sessions).into());
            }
        }
    }
}

/// `size` as the wire's number, saturating.
///
/// ```
/// use scx_vsock_wire::envelope::saturate;
///
/// assert_eq!(saturate(262_145), 262_145);
/// assert_eq!(saturate(usize::MAX), u32::MAX);
/// ```
#[must_use]
pub fn saturate(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MAX_ENVELOPE_BYTES;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = Text> {
        proptest::collection::vec(any::<u8>(), 0..80).prop_map(|bytes| Text::first_line(&bytes))
    }

    fn relay_error() -> impl Strategy<Value = RelayError<Text>> {
        prop_oneof![
            (any::<i32>(), text(), text()).prop_map(|(errno, sched_ext, ops)| RelayError::NoScheduler {
                errno,
                sched_ext,
                ops
            }),
            any::<i32>().prop_map(|errno| RelayError::SchedulerGone { errno }),
            Just(RelayError::SchedulerUnasked {}),
            any::<(u32, u32)>().prop_map(|(size, max)| RelayError::RequestTooLarge { size, max }),
            any::<(u32, u32)>().prop_map(|(size, max)| RelayError::ResponseTooLarge { size, max }),
            Just(RelayError::UnknownVerb {}),
            any::<u32>().prop_map(|sessions| RelayError::Busy { sessions }),
        ]
    }

    fn envelope() -> impl Strategy<Value = Envelope<Text>> {
        prop_oneof![
            (any::<[u32; 4]>(), text()).prop_map(|(numbers, agent)| Envelope::Hello(Hello {
                protocol: numbers[0],
                min_protocol: numbers[1],
                agent,
                max_request_bytes: numbers[2],
                max_response_bytes: numbers[3],
            })),
            Just(Envelope::Agent(AgentEvent::SchedulerReady)),
            relay_error().prop_map(Envelope::RelayError),
        ]
    }

    proptest! {
        #[test]
        fn every_envelope_is_emitted_as_serde_json_core_writes_it(envelope in envelope()) {
            let mut expected = [0; 512];
            let length = serde_json_core::to_slice(&envelope, &mut expected).unwrap();
            expected[length] = b'\n';
            prop_assert_eq!(&*envelope.emit(), &expected[..=length]);
        }

        #[test]
        fn every_emitted_envelope_reads_back_as_itself(envelope in envelope()) {
            let line = envelope.emit();
            let read: Envelope<std::string::String> = serde_json::from_slice(&line).unwrap();
            prop_assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(envelope).unwrap());
        }

        #[test]
        fn a_text_is_short_and_needs_no_escape(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let text = Text::first_line(&bytes);
            prop_assert!(text.as_str().len() <= MAX_TEXT_BYTES);
            prop_assert_eq!(serde_json::to_string(text.as_str()).unwrap(), format!("\"{}\"", text.as_str()));
        }
    }

    #[test]
    fn a_hello_begins_as_is_said() {
        assert!(Envelope::hello("0.1.0").emit().starts_with(HELLO_PREFIX));
    }

    #[test]
    fn the_largest_envelope_fits_its_buffer() {
        let text = Text::first_line(&[b'x'; 100]);
        let largest =
            Envelope::RelayError(RelayError::NoScheduler { errno: i32::MIN, sched_ext: text.clone(), ops: text });
        let line = largest.emit();
        assert!(line.len() < MAX_NOTICE_BYTES);
        assert_eq!(line.last(), Some(&b'\n'));
    }

    #[test]
    fn the_longest_answer_gains_ten_bytes_in_its_frame() {
        assert_eq!(MAX_ENVELOPE_BYTES, MAX_RESPONSE_BYTES + 10);
    }

    #[test]
    fn a_text_ends_at_the_first_line_feed() {
        assert_eq!(Text::first_line(b"bpfland_1.0.0\nmore").as_str(), "bpfland_1.0.0");
        assert_eq!(Text::first_line(b"a\"b\\c\x7f\xff").as_str(), "a?b?c??");
    }
}
