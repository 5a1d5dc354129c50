//! What the exit code says. The table is what `--help` and the man page print.

use std::process::ExitCode;

use scx_vsock::{MissingStatsReason, SchedStatsError};

/// The code of a failure that has none of its own.
pub const FAILURE: u8 = 1;

/// A command that ran in a guest or beside one gives its own code instead.
const CODES: [(u8, &str, &str); 19] = [
    (0, "success", "what was asked for was printed or done"),
    (FAILURE, "failure", "for a reason without a code of its own, which the message names"),
    (2, "usage", "the arguments are wrong"),
    (10, "no_scheduler_binary", "the guest was configured without a scheduler"),
    (11, "no_scheduler", "the guest has no scheduler that serves stats"),
    (12, "during_freeze", "the guest was being frozen"),
    (13, "cancelled", "the run was cancelled"),
    (14, "scheduler_error", "the scheduler answered with an error"),
    (15, "missing_resp", "the scheduler's answer has no stats"),
    (16, "request_too_large", "the request is over the cap"),
    (17, "response_too_large", "the answer is over the cap"),
    (18, "mutex_poisoned", "a thread of this program panicked"),
    (19, "timed_out", "the deadline passed"),
    (20, "scheduler_gone", "the scheduler went away during its answer"),
    (21, "agent_unreachable", "there is no agent, or no way to it"),
    (22, "agent_busy", "every session of the agent is taken"),
    (23, "malformed_response", "the answer is not what the protocol allows"),
    (24, "invalid_request", "what was asked cannot be a request"),
    (130, "interrupted", "by Ctrl-C; also what a shell says of a command that a signal ended"),
];

/// What a failure's code is.
pub fn code(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(kind(error).map_or(FAILURE, code_of))
}

/// The reason why there are no stats, if that is what the error is about.
fn kind(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        let error = cause.downcast_ref().map(SchedStatsError::kind);
        error.or_else(|| cause.downcast_ref().map(MissingStatsReason::kind))
    })
}

/// A kind that a later library adds is a failure like others.
pub fn code_of(kind: &str) -> u8 {
    CODES.iter().find(|(_, name, _)| *name == kind).map_or(FAILURE, |(code, _, _)| *code)
}

/// The table for the end of the help.
pub fn help() -> String {
    let rows = CODES.iter().map(|(code, name, text)| format!("\n  {code:>3}  {name:<19}  {text}"));
    format!("Exit codes:{}", rows.collect::<String>())
}

/// The table for the man page, as pairs of a heading and a text.
pub fn rows() -> impl Iterator<Item = (String, &'static str)> {
    CODES.iter().map(|(code, name, text)| (format!("{code} ({name})"), *text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use serde_json::json;

    /// One of each reason, as their JSON has them.
    fn reasons() -> Vec<MissingStatsReason> {
        let reason = json!({ "reason": "r" });
        let size = json!({ "size": 2, "max": 1 });
        let args = json!({ "args": null });
        let values = json!([
            "NoSchedulerBinary",
            { "NoScheduler": reason },
            "DuringFreeze",
            "Cancelled",
            { "SchedulerError": { "errno": 22, "args": null } },
            { "MissingResp": args },
            { "RequestTooLarge": size },
            { "ResponseTooLarge": size },
            "MutexPoisoned",
            { "TimedOut": { "after_ms": 1 } },
            { "SchedulerGone": { "errno": 0 } },
            { "AgentUnreachable": reason },
            { "AgentBusy": { "sessions": 8 } },
            { "MalformedResponse": reason },
            { "InvalidRequest": reason },
        ]);
        serde_json::from_value(values).unwrap()
    }

    #[test]
    fn every_reason_has_a_code_of_its_own() {
        let codes: Vec<u8> = reasons().iter().map(|reason| code_of(reason.kind())).collect();
        assert_eq!(codes, (10..=24).collect::<Vec<u8>>());
        let mut all: Vec<u8> = CODES.iter().map(|(code, _, _)| *code).collect();
        all.dedup();
        assert_eq!(all.len(), CODES.len());
    }

    #[test]
    fn a_reason_is_found_below_what_was_said_about_it() {
        let error = Err::<(), _>(SchedStatsError::TimedOut { after_ms: 1 }).context("first").context("second");
        assert_eq!(kind(&error.unwrap_err()), Some("timed_out"));
        let reason = Err::<(), _>(MissingStatsReason::Cancelled).context("last sample");
        assert_eq!(kind(&reason.unwrap_err()), Some("cancelled"));
        assert_eq!(kind(&anyhow::anyhow!("other")), None);
        assert_eq!(code_of("of_a_later_version"), 1);
    }

    #[test]
    fn the_help_names_every_code() {
        let help = help();
        assert!(help.contains("\n   11  no_scheduler         the guest has no scheduler that serves stats"), "{help}");
        assert_eq!(help.lines().count(), 1 + CODES.len());
    }
}
