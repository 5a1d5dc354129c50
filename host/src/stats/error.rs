//! What a request to a scheduler can end with.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::Value;

use super::peer_text::{PeerText, bounded};
use super::reason::{Ending, ErrorArgs, MissingStatsReason};
use super::reason_list::reason_list;

/// The error of a system call, as the source of a [`SchedStatsError`]. Two are equal that have the same kind and number.
#[derive(Clone, Debug)]
pub struct SystemError(Arc<io::Error>);

impl SystemError {
    /// Returns the error itself.
    #[must_use]
    pub fn get(&self) -> &io::Error {
        &self.0
    }
}

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl PartialEq for SystemError {
    fn eq(&self, other: &Self) -> bool {
        (self.0.kind(), self.0.raw_os_error()) == (other.0.kind(), other.0.raw_os_error())
    }
}

impl Eq for SystemError {}

impl Hash for SystemError {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.0.kind(), self.0.raw_os_error()).hash(state);
    }
}

/// Whether the session that ended with an error may carry another request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    /// It may.
    Kept,
    /// An answer is outstanding or in doubt: the next request opens another.
    Renewed,
}

macro_rules! declare_error {
    (
        reasons_only: [ $($reason:tt)* ]
        errors: [ $(
            $(#[$doc:meta])*
            $variant:ident $({
                $( $(#[$field_doc:meta])* $field:ident : $type:ty $(= $default:ident)?, )+
                $(+ $source:ident)?
            })? => {
                text: ($($text:tt)+),
                kind: $kind:literal,
                exit_code: $exit_code:literal, $summary:literal,
                errno: $errno:expr, session: $session:ident,
            },
        )* ]
    ) => {
        /// Why a request has no answer.
        ///
        /// The variants carry the facts and `Display` the message for an operator; [`kind`](Self::kind) names the
        /// variant. What a system call failed with is the [`source`](std::error::Error::source) and no part of the
        /// message, so that an [`anyhow::Error`] prints it once, by `{:#}`. `?` boxes the error into one of those, where
        /// `downcast_ref` finds it again.
        ///
        /// ```
        /// use scx_vsock::SchedStatsError;
        ///
        /// let error = anyhow::Error::from(SchedStatsError::TimedOut { after_ms: 5000 }).context("phase 2");
        /// match error.downcast_ref::<SchedStatsError>() {
        ///     Some(SchedStatsError::TimedOut { after_ms }) => assert_eq!(*after_ms, 5000),
        ///     other => panic!("{other:?}"),
        /// }
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum SchedStatsError {
            $(
                $(#[$doc])*
                $variant $({
                    $( $(#[$field_doc])* $field: $type, )+
                    $(
                        /// What the system call failed with, where one did.
                        $source: Option<SystemError>,
                    )?
                })?,
            )*
        }

        impl SchedStatsError {
            /// Returns the variant in snake case, for labels: that of the [`MissingStatsReason`] it becomes.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $kind, )*
                }
            }

            /// Returns the exit code of the command `scx-vsock` for it.
            #[must_use]
            pub const fn exit_code(&self) -> u8 {
                match self {
                    $( Self::$variant { .. } => $exit_code, )*
                }
            }

            const fn listed_errno(&self) -> Errno {
                match self {
                    $( Self::$variant { .. } => $errno, )*
                }
            }

            const fn session(&self) -> Session {
                match self {
                    $( Self::$variant { .. } => Session::$session, )*
                }
            }

            fn system_error(&self) -> Option<&SystemError> {
                match self {
                    $( $( $( Self::$variant { $source, .. } => $source.as_ref(), )? )? )*
                    _ => None,
                }
            }

            /// The reason without what a system call failed with.
            fn listed_reason(self) -> MissingStatsReason {
                match self {
                    $( Self::$variant { $($($field,)+ ..)? } => MissingStatsReason::$variant $({ $($field,)+ })?, )*
                }
            }
        }

        impl fmt::Display for SchedStatsError {
            #[allow(unused_variables, reason = "not every fact is part of the text")]
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $( Self::$variant { $($($field,)+ ..)? } => write!(f, $($text)+), )*
                }
            }
        }
    };
}

reason_list!(declare_error);

impl SchedStatsError {
    /// Returns the errno that a plain scx_stats client is answered with. A scheduler's own error keeps its number.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::SchedulerError { errno, .. } if *errno != 0 => *errno,
            other => other.listed_errno().raw_os_error(),
        }
    }

    /// What a call returns whose deadline passed after it was `allowed` so long.
    pub(crate) fn timed_out(allowed: Duration) -> Self {
        Self::TimedOut { after_ms: u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX) }
    }

    /// What a call returns that has no descriptor to wait on.
    pub(crate) fn no_descriptor(error: io::Error) -> Self {
        Self::unreachable_by("cannot create an event descriptor to wait on", error)
    }

    /// This error of an agent that is not up, with why nobody could wait until it is.
    pub(crate) fn cannot_wait_for_agent(self, problem: &io::Error) -> Self {
        match self {
            Self::AgentUnreachable { reason, source } => {
                let cause = source.map(|source| format!(": {}", source.get())).unwrap_or_default();
                Self::unreachable(format!("{reason}{cause}; cannot wait for it: {problem}"))
            }
            other => other,
        }
    }

    /// Whether the session that ended with this may carry another request.
    pub(crate) fn keeps_session(&self) -> bool {
        self.session() == Session::Kept
    }

    /// The answer is not what it must be; what is wrong may quote the peer.
    pub(crate) fn malformed(reason: impl AsRef<str>) -> Self {
        Self::MalformedResponse { reason: bounded(reason) }
    }

    /// Nothing spoke the protocol; why may quote the peer.
    pub(crate) fn unreachable(reason: impl AsRef<str>) -> Self {
        Self::AgentUnreachable { reason: bounded(reason), source: None }
    }

    /// Nothing spoke the protocol since a system call failed.
    pub(crate) fn unreachable_by(reason: impl AsRef<str>, source: io::Error) -> Self {
        Self::AgentUnreachable { reason: bounded(reason), source: Some(source.into()) }
    }
}

impl std::error::Error for SchedStatsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.system_error().map(|error| error.get() as _)
    }
}

impl From<SchedStatsError> for MissingStatsReason {
    fn from(error: SchedStatsError) -> Self {
        let system_error = error.system_error().map(|error| error.get().to_string());
        let mut missing = error.listed_reason();
        if let (Some(system_error), Self::AgentUnreachable { reason }) = (system_error, &mut missing) {
            reason.push_str(": ");
            reason.push_str(&system_error);
        }
        missing
    }
}

impl From<&SchedStatsError> for MissingStatsReason {
    fn from(error: &SchedStatsError) -> Self {
        error.clone().into()
    }
}
