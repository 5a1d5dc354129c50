//! Why a sample has no stats, as plain data: to keep in a series, to compare, to count, to send on.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::peer_text::PeerText;
use super::reason_list::reason_list;

/// A reason's names outside this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReasonKind {
    /// The variant in snake case.
    pub kind: &'static str,
    /// The exit code of the command `scx-vsock`.
    pub exit_code: u8,
    /// What it means, in a few words.
    pub summary: &'static str,
}

macro_rules! declare_reason {
    (
        $( $list:ident: [ $(
            $(#[$doc:meta])*
            $variant:ident $({
                $( $(#[$field_doc:meta])* $field:ident : $type:ty $(= $default:ident)?, )+
                $(+ $source:ident)?
            })? => {
                text: ($($text:tt)+),
                kind: $kind:literal,
                exit_code: $exit_code:literal, $summary:literal,
                $(errno: $errno:expr, session: $session:ident,)?
            },
        )* ] )*
    ) => {
        /// The one reason why a sample has no stats.
        ///
        /// It is made from a [`SchedStatsError`](super::SchedStatsError), or from an [`anyhow::Error`] that has one, or a
        /// reason, anywhere in its chain. Its JSON is serde's externally tagged form with the variant's own name, and is
        /// part of this crate's contract:
        ///
        /// ```
        /// use scx_vsock::MissingStatsReason;
        ///
        /// let reason: MissingStatsReason = serde_json::from_str(r#"{"TimedOut":{"after_ms":5000}}"#)?;
        /// assert_eq!(reason, MissingStatsReason::TimedOut { after_ms: 5000 });
        /// assert_eq!(reason.kind(), "timed_out");
        /// assert_eq!(serde_json::to_string(&MissingStatsReason::Cancelled)?, r#""Cancelled""#);
        /// # Ok::<(), serde_json::Error>(())
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum MissingStatsReason {
            $( $(
                $(#[$doc])*
                $variant $({ $( $(#[$field_doc])* $(#[serde($default)])? $field: $type, )+ })?,
            )* )*
        }

        impl MissingStatsReason {
            /// Every reason's names, in the order of the variants.
            pub const KINDS: &'static [ReasonKind] = &[
                $( $( ReasonKind { kind: $kind, exit_code: $exit_code, summary: $summary }, )* )*
            ];

            /// Returns the variant in snake case, for labels.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self {
                    $( $( Self::$variant { .. } => $kind, )* )*
                }
            }

            /// Returns the exit code of the command `scx-vsock` for it.
            #[must_use]
            pub const fn exit_code(&self) -> u8 {
                match self {
                    $( $( Self::$variant { .. } => $exit_code, )* )*
                }
            }
        }

        impl fmt::Display for MissingStatsReason {
            #[allow(unused_variables, reason = "not every fact is part of the text")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( $( Self::$variant $({ $($field,)+ })? => write!(f, $($text)+), )* )*
                }
            }
        }
    };
}

reason_list!(declare_reason);

impl std::error::Error for MissingStatsReason {}

/// What a scheduler says about its error: the text in `resp` where there is one, else all of `args`.
pub(super) struct ErrorArgs<'a>(pub(super) &'a Value);

impl fmt::Display for ErrorArgs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get("resp").and_then(Value::as_str) {
            Some(text) => PeerText::line(text).fmt(f),
            None => PeerText::line(self.0).fmt(f),
        }
    }
}

/// How a scheduler's connection ended during its answer, and why if that is known.
pub(super) struct Ending<'a> {
    pub(super) errno: i32,
    pub(super) cause: &'a str,
}

impl fmt::Display for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errno {
            0 => f.write_str("the scheduler closed its connection during its answer")?,
            errno => {
                let error = io::Error::from_raw_os_error(errno);
                write!(f, "the connection to the scheduler failed during its answer: {error}")?;
            }
        }
        match self.cause {
            "" => f.write_str("; its log in the guest says why"),
            cause => write!(f, "; {}", PeerText::line(cause)),
        }
    }
}
