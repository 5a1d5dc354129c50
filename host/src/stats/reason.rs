//! Why a sample has no stats, as plain data: to keep in a series, to compare, to count, to send on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stats::SchedStatsError;

/// The one reason why a sample has no stats.
///
/// It is made from a [`SchedStatsError`], or from an [`anyhow::Error`] that has one anywhere in its chain. Its JSON is
/// serde's externally tagged form with the variant's own name, and is part of this crate's contract:
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum MissingStatsReason {
    /// The run was configured without a scheduler, so no client was ever made.
    #[error("the run was configured without a scheduler, so there was none to ask")]
    NoSchedulerBinary,

    /// The agent could not reach the scheduler's socket. Also what an error of no known kind becomes, with its text.
    #[error("no scheduler to ask: {reason}")]
    NoScheduler {
        /// What was found in its place.
        reason: String,
    },

    /// The run was marked freezing while the request was in flight or about to start.
    #[error("the guest was being frozen, and a frozen guest cannot answer")]
    DuringFreeze,

    /// The run was cancelled, by its watchdog or at shutdown, while the request was in flight or about to start.
    #[error("the run was cancelled (by its watchdog or at shutdown)")]
    Cancelled,

    /// The scheduler answered with an errno other than 0.
    #[error("the scheduler answered with errno {errno}: {}", said(args))]
    SchedulerError {
        /// The scheduler's errno.
        errno: i32,
        /// Its `args`; by custom `args["resp"]` is a text that says more.
        args: Value,
    },

    /// The scheduler answered, but its `args` have no `resp`.
    #[error("the scheduler answered without args.resp, only {}; is it an scx_stats server?", excerpt(&args.to_string()))]
    MissingResp {
        /// The `args` that there were.
        args: Value,
    },

    /// The request line is over the cap. It was refused before anything was sent.
    #[error("the request line has {size} bytes, more than the {max} that an agent takes; nothing was sent")]
    RequestTooLarge {
        /// Bytes of the line, its LF counted.
        size: usize,
        /// The most that it may have.
        max: usize,
    },

    /// The answer grew past the cap without a newline.
    #[error("the answer passed {max} bytes without an end ({size} so far); ask for a narrower target")]
    ResponseTooLarge {
        /// Bytes that there were when it was given up.
        size: usize,
        /// The most that it may have, its LF counted.
        max: usize,
    },

    /// A thread panicked while it held the client's session.
    #[error("a thread panicked while it held this client's session; build a new client")]
    MutexPoisoned,

    /// The deadline passed.
    #[error("no answer within {after_ms} ms: the guest is stopped or overloaded, or its scheduler does not answer")]
    TimedOut {
        /// Milliseconds that the call was allowed.
        after_ms: u64,
    },

    /// The scheduler closed its connection, or the connection failed, during the answer.
    #[error("the scheduler went away during its answer ({}); its log in the guest says why", ended(*errno))]
    SchedulerGone {
        /// What the agent's connection failed with; 0 for an orderly end.
        errno: i32,
    },

    /// Nothing spoke the protocol where the agent should be.
    #[error("no agent to talk to: {reason}")]
    AgentUnreachable {
        /// Where, and what happened there.
        reason: String,
    },

    /// Every session of the agent is taken.
    #[error("all {sessions} sessions of the guest's agent are taken; share a client by cloning it, or drop one")]
    AgentBusy {
        /// How many sessions the agent has.
        sessions: usize,
    },

    /// The answer is not the envelope that it must be.
    #[error("the answer is not what the protocol allows: {reason}")]
    MalformedResponse {
        /// What is wrong with it.
        reason: String,
    },

    /// The line cannot be a request. It was refused before anything was sent.
    #[error("not a request line: {reason}; nothing was sent")]
    InvalidRequest {
        /// What is wrong with it.
        reason: String,
    },
}

impl MissingStatsReason {
    /// The variant as a word in snake case, for labels and exit codes.
    ///
    /// ```
    /// assert_eq!(scx_vsock::MissingStatsReason::DuringFreeze.kind(), "during_freeze");
    /// ```
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NoSchedulerBinary => "no_scheduler_binary",
            Self::NoScheduler { .. } => "no_scheduler",
            Self::DuringFreeze => "during_freeze",
            Self::Cancelled => "cancelled",
            Self::SchedulerError { .. } => "scheduler_error",
            Self::MissingResp { .. } => "missing_resp",
            Self::RequestTooLarge { .. } => "request_too_large",
            Self::ResponseTooLarge { .. } => "response_too_large",
            Self::MutexPoisoned => "mutex_poisoned",
            Self::TimedOut { .. } => "timed_out",
            Self::SchedulerGone { .. } => "scheduler_gone",
            Self::AgentUnreachable { .. } => "agent_unreachable",
            Self::AgentBusy { .. } => "agent_busy",
            Self::MalformedResponse { .. } => "malformed_response",
            Self::InvalidRequest { .. } => "invalid_request",
        }
    }
}

impl From<SchedStatsError> for MissingStatsReason {
    fn from(error: SchedStatsError) -> Self {
        match error {
            SchedStatsError::NoScheduler { reason } => Self::NoScheduler { reason },
            SchedStatsError::DuringFreeze => Self::DuringFreeze,
            SchedStatsError::Cancelled => Self::Cancelled,
            SchedStatsError::SchedulerError { errno, args } => Self::SchedulerError { errno, args },
            SchedStatsError::MissingResp { args } => Self::MissingResp { args },
            SchedStatsError::RequestTooLarge { size, max } => Self::RequestTooLarge { size, max },
            SchedStatsError::ResponseTooLarge { size, max } => Self::ResponseTooLarge { size, max },
            SchedStatsError::Poisoned => Self::MutexPoisoned,
            SchedStatsError::TimedOut { after_ms } => Self::TimedOut { after_ms },
            SchedStatsError::SchedulerGone { errno } => Self::SchedulerGone { errno },
            SchedStatsError::AgentUnreachable { reason } => Self::AgentUnreachable { reason },
            SchedStatsError::AgentBusy { sessions } => Self::AgentBusy { sessions },
            SchedStatsError::MalformedResponse { reason } => Self::MalformedResponse { reason },
            SchedStatsError::InvalidRequest { reason } => Self::InvalidRequest { reason },
        }
    }
}

impl From<&SchedStatsError> for MissingStatsReason {
    fn from(error: &SchedStatsError) -> Self {
        error.clone().into()
    }
}

/// The first [`SchedStatsError`] of the chain, as a context or as a cause; without one,
/// [`NoScheduler`](MissingStatsReason::NoScheduler) with the whole chain's text.
impl From<&anyhow::Error> for MissingStatsReason {
    fn from(error: &anyhow::Error) -> Self {
        error
            .downcast_ref()
            .or_else(|| error.chain().find_map(|cause| cause.downcast_ref::<SchedStatsError>()))
            .map_or_else(|| Self::NoScheduler { reason: format!("{error:#}") }, Self::from)
    }
}

/// Characters of a peer's text that a message repeats. A scheduler's error can be a backtrace of many lines.
const EXCERPT_CHARS: usize = 200;

/// What the scheduler said about its error: the text in `resp` where there is one, else all of `args`.
fn said(args: &Value) -> String {
    match args.get("resp").and_then(Value::as_str) {
        Some(text) => excerpt(text),
        None => excerpt(&args.to_string()),
    }
}

/// The first line of `text`, cut where it is long, with nothing in it that would act on a terminal.
pub(crate) fn excerpt(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut short: String =
        line.chars().take(EXCERPT_CHARS).map(|char| if char.is_control() { '?' } else { char }).collect();
    if short.len() < text.trim_end().len() {
        short.push_str("...");
    }
    short
}

fn ended(errno: i32) -> String {
    if errno == 0 {
        "it closed the connection".to_owned()
    } else {
        std::io::Error::from_raw_os_error(errno).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::panic::{RefUnwindSafe, UnwindSafe};

    use serde_json::json;

    use super::*;

    fn every_reason() -> Vec<(MissingStatsReason, &'static str, &'static str)> {
        use MissingStatsReason as R;
        let args = || json!({ "resp": "unknown target" });
        let reason = || "why".to_owned();
        vec![
            (R::NoSchedulerBinary, "no_scheduler_binary", r#""NoSchedulerBinary""#),
            (R::NoScheduler { reason: reason() }, "no_scheduler", r#"{"NoScheduler":{"reason":"why"}}"#),
            (R::DuringFreeze, "during_freeze", r#""DuringFreeze""#),
            (R::Cancelled, "cancelled", r#""Cancelled""#),
            (
                R::SchedulerError { errno: 22, args: args() },
                "scheduler_error",
                r#"{"SchedulerError":{"errno":22,"args":{"resp":"unknown target"}}}"#,
            ),
            (R::MissingResp { args: json!({}) }, "missing_resp", r#"{"MissingResp":{"args":{}}}"#),
            (R::RequestTooLarge { size: 2, max: 1 }, "request_too_large", r#"{"RequestTooLarge":{"size":2,"max":1}}"#),
            (
                R::ResponseTooLarge { size: 2, max: 1 },
                "response_too_large",
                r#"{"ResponseTooLarge":{"size":2,"max":1}}"#,
            ),
            (R::MutexPoisoned, "mutex_poisoned", r#""MutexPoisoned""#),
            (R::TimedOut { after_ms: 5000 }, "timed_out", r#"{"TimedOut":{"after_ms":5000}}"#),
            (R::SchedulerGone { errno: 104 }, "scheduler_gone", r#"{"SchedulerGone":{"errno":104}}"#),
            (R::AgentUnreachable { reason: reason() }, "agent_unreachable", r#"{"AgentUnreachable":{"reason":"why"}}"#),
            (R::AgentBusy { sessions: 8 }, "agent_busy", r#"{"AgentBusy":{"sessions":8}}"#),
            (
                R::MalformedResponse { reason: reason() },
                "malformed_response",
                r#"{"MalformedResponse":{"reason":"why"}}"#,
            ),
            (R::InvalidRequest { reason: reason() }, "invalid_request", r#"{"InvalidRequest":{"reason":"why"}}"#),
        ]
    }

    fn every_error() -> Vec<SchedStatsError> {
        use SchedStatsError as E;
        let args = || json!({ "resp": "unknown target" });
        let reason = || "why".to_owned();
        vec![
            E::NoScheduler { reason: reason() },
            E::DuringFreeze,
            E::Cancelled,
            E::SchedulerError { errno: 22, args: args() },
            E::MissingResp { args: json!({}) },
            E::RequestTooLarge { size: 2, max: 1 },
            E::ResponseTooLarge { size: 2, max: 1 },
            E::Poisoned,
            E::TimedOut { after_ms: 5000 },
            E::SchedulerGone { errno: 104 },
            E::AgentUnreachable { reason: reason() },
            E::AgentBusy { sessions: 8 },
            E::MalformedResponse { reason: reason() },
            E::InvalidRequest { reason: reason() },
        ]
    }

    #[test]
    fn a_reason_is_plain_data() {
        const fn made() -> MissingStatsReason {
            MissingStatsReason::NoSchedulerBinary
        }
        // Freeze: only a type without interior mutability may stand behind a reference in a constant.
        const FROZEN: &MissingStatsReason = &made();
        fn is_plain_data<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>(_: &T) {}
        is_plain_data(FROZEN);
    }

    #[test]
    fn the_json_and_the_kind_of_every_reason_are_as_they_always_were() {
        for (reason, kind, golden) in every_reason() {
            assert_eq!(serde_json::to_string(&reason).unwrap(), golden);
            assert_eq!(serde_json::from_str::<MissingStatsReason>(golden).unwrap(), reason);
            assert_eq!(reason.kind(), kind);
        }
    }

    #[test]
    fn every_error_becomes_the_reason_of_its_name_with_its_facts() {
        let reasons = every_reason();
        let after_the_first = reasons.iter().skip(1).map(|(reason, ..)| reason);
        for (error, reason) in every_error().into_iter().zip(after_the_first) {
            assert_eq!(MissingStatsReason::from(&error), *reason);
            assert_eq!(error.kind(), reason.kind());
            assert_eq!(error.to_string(), reason.to_string());
            assert_eq!(MissingStatsReason::from(error), *reason);
        }
        assert_eq!(every_error().len() + 1, reasons.len());
    }

    #[test]
    fn reasons_can_be_counted() {
        let counted: HashSet<_> = every_reason().into_iter().map(|(reason, ..)| reason).collect();
        assert_eq!(counted.len(), every_reason().len());
    }

    #[test]
    fn messages_carry_the_facts_on_one_line() {
        for (reason, fact) in every_reason().into_iter().map(|(reason, ..)| reason).zip([
            "without a scheduler",
            "why",
            "frozen",
            "cancelled",
            "errno 22: unknown target",
            "only {}",
            "2 bytes, more than the 1",
            "passed 1 bytes",
            "panicked",
            "5000 ms",
            "Connection reset by peer",
            "why",
            "all 8 sessions",
            "why",
            "why",
        ]) {
            let text = reason.to_string();
            assert!(text.contains(fact) && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn an_error_is_found_wherever_it_stands_in_the_chain() {
        let cancelled = || anyhow::Error::from(SchedStatsError::Cancelled);
        let deep = cancelled().context("sampling").context("phase 2").context("the run");
        assert_eq!(MissingStatsReason::from(&cancelled()), MissingStatsReason::Cancelled);
        assert_eq!(MissingStatsReason::from(&deep), MissingStatsReason::Cancelled);
        let as_context = anyhow::anyhow!("a pipe broke").context(SchedStatsError::DuringFreeze).context("the run");
        assert_eq!(MissingStatsReason::from(&as_context), MissingStatsReason::DuringFreeze);
    }

    #[test]
    fn an_error_of_no_known_kind_keeps_the_text_of_its_whole_chain() {
        let unknown = anyhow::anyhow!("no such file").context("reading the config");
        let reason = "reading the config: no such file".to_owned();
        assert_eq!(MissingStatsReason::from(&unknown), MissingStatsReason::NoScheduler { reason });
    }

    #[test]
    fn a_schedulers_backtrace_is_cut_to_its_first_line() {
        let resp = format!("{}\n   0: std::backtrace\u{1b}[31m", "x".repeat(500));
        let text = MissingStatsReason::SchedulerError { errno: 22, args: json!({ "resp": resp }) }.to_string();
        assert!(text.ends_with("xxx...") && text.len() < 300, "{text}");
        assert_eq!(excerpt("red \u{1b}[31m"), "red ?[31m");
        assert_eq!(excerpt("whole\n"), "whole");
    }
}
