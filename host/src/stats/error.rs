//! What a request to a scheduler can end with.

use std::fmt;

use serde_json::Value;

use crate::stats::MissingStatsReason;

/// Why a request has no answer.
///
/// The variants carry the facts and `Display` the message for an operator; [`kind`](Self::kind) names the variant in
/// one word. `?` boxes it into an [`anyhow::Error`], where `downcast_ref` finds it again. No variant stands for another
/// error: what a system call or a parser said is part of the `reason`, so there is no `source`.
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
    /// The agent could not reach the scheduler's socket: the guest has no sched_ext, no scheduler is loaded, the one
    /// that is loaded serves no stats, or the socket refused.
    NoScheduler {
        /// Which of these, with the guest's own facts.
        reason: String,
    },
    /// The run was marked freezing while the request was in flight or about to start.
    DuringFreeze,
    /// The run was cancelled while the request was in flight or about to start.
    Cancelled,
    /// The scheduler answered with an errno other than 0.
    SchedulerError {
        /// The scheduler's errno.
        errno: i32,
        /// Its `args`; by custom `args["resp"]` is a text that says more.
        args: Value,
    },
    /// The scheduler answered, but its `args` have no `resp`.
    MissingResp {
        /// The `args` that there were.
        args: Value,
    },
    /// The request line is over the cap. Refused before anything was sent, unless an agent with a smaller cap said so.
    RequestTooLarge {
        /// Bytes of the line, its LF counted.
        size: usize,
        /// The most that it may have.
        max: usize,
    },
    /// The answer grew past the cap without a newline.
    ResponseTooLarge {
        /// Bytes that there were when it was given up.
        size: usize,
        /// The most that it may have, its LF counted.
        max: usize,
    },
    /// A thread panicked while it held the client's session.
    Poisoned,
    /// The deadline passed.
    TimedOut {
        /// Milliseconds that the call was allowed.
        after_ms: u64,
    },
    /// The scheduler closed its connection, or the connection failed, during the answer.
    SchedulerGone {
        /// What the agent's connection failed with; 0 for an orderly end.
        errno: i32,
    },
    /// Nothing spoke the protocol where the agent should be: the guest is booting, has no agent, was reset, or its
    /// agent speaks other versions.
    AgentUnreachable {
        /// Where, and what happened there.
        reason: String,
    },
    /// Every session of the agent is taken.
    AgentBusy {
        /// How many sessions the agent has.
        sessions: usize,
    },
    /// The answer is not the envelope that it must be.
    MalformedResponse {
        /// What is wrong with it.
        reason: String,
    },
    /// The line cannot be a request: it is empty, is several lines, or is for the agent. Nothing was sent.
    InvalidRequest {
        /// What is wrong with it.
        reason: String,
    },
}

impl SchedStatsError {
    /// The variant as a word in snake case, for labels and exit codes: that of the [`MissingStatsReason`] it becomes.
    ///
    /// ```
    /// assert_eq!(scx_vsock::SchedStatsError::Poisoned.kind(), "mutex_poisoned");
    /// ```
    #[must_use]
    pub fn kind(&self) -> &'static str {
        MissingStatsReason::from(self).kind()
    }

    /// Whether the session that ended with this may carry another request.
    ///
    /// A scheduler's own error may not be followed by another request since some schedulers invalidate a connection
    /// for good with it; whatever leaves an answer outstanding or untrustworthy may not either.
    pub(crate) fn keeps_session(&self) -> bool {
        match self {
            Self::NoScheduler { .. } | Self::MissingResp { .. } | Self::RequestTooLarge { .. } => true,
            Self::DuringFreeze
            | Self::Cancelled
            | Self::SchedulerError { .. }
            | Self::ResponseTooLarge { .. }
            | Self::Poisoned
            | Self::TimedOut { .. }
            | Self::SchedulerGone { .. }
            | Self::AgentUnreachable { .. }
            | Self::AgentBusy { .. }
            | Self::MalformedResponse { .. }
            | Self::InvalidRequest { .. } => false,
        }
    }

    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::MalformedResponse { reason: reason.into() }
    }

    pub(crate) fn unreachable(reason: impl Into<String>) -> Self {
        Self::AgentUnreachable { reason: reason.into() }
    }
}

/// The text of the [`MissingStatsReason`] that it becomes, so that each stands in one place.
impl fmt::Display for SchedStatsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        MissingStatsReason::from(self).fmt(f)
    }
}

impl std::error::Error for SchedStatsError {}
