//! The exit codes, and their table in `--help` and the man page.

use std::process::ExitCode;

use scx_vsock::MissingStatsReason;
use scx_vsock::guest;

use crate::boot::CommandFailed;
use crate::expectations::ExpectationsBroken;

/// The code of an error that has none of its own.
pub const FAILURE: u8 = 1;

/// The code of a scheduler that `boot` started and that exited.
const SCHEDULER_ENDED: u8 = 3;

/// The code of expectations that were not met.
const EXPECTATION_BROKEN: u8 = 4;

/// Codes that are not those of a reason. `boot` and `proxy` exit with the code of the command that they ran instead.
const OWN: [(u8, &str, &str); 6] = [
    (0, "success", "the command completed"),
    (FAILURE, "failure", "any error that is not listed here; see the message"),
    (2, "usage", "the arguments are invalid"),
    (SCHEDULER_ENDED, "scheduler_ended", "the scheduler that boot started in the guest exited"),
    (
        EXPECTATION_BROKEN,
        "expectation_broken",
        "an expectation of --expect was broken, or no sample had a value for it",
    ),
    (130, "interrupted", "the command was interrupted by Ctrl-C"),
];

/// Returns every code in order: its number, its name, and what it means.
fn codes() -> impl Iterator<Item = (u8, &'static str, &'static str)> {
    let reasons = MissingStatsReason::KINDS.iter().map(|reason| (reason.exit_code, reason.kind, reason.summary));
    let (before, after) = OWN.split_at(5);
    before.iter().copied().chain(reasons).chain(after.iter().copied())
}

/// Returns the exit code of an error.
pub fn code(error: &anyhow::Error) -> ExitCode {
    if error.is::<ExpectationsBroken>() {
        return ExitCode::from(EXPECTATION_BROKEN);
    }
    if let Some(CommandFailed { status }) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    let of_reason = || MissingStatsReason::find(error).map_or(FAILURE, |reason| reason.exit_code());
    ExitCode::from(if has_ended_scheduler(error) { SCHEDULER_ENDED } else { of_reason() })
}

fn has_ended_scheduler(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(guest::Error::SchedulerEnded { .. })))
}

/// Returns the table for the end of the help.
pub fn help() -> String {
    let rows = codes().map(|(code, name, text)| format!("\n  {code:>3}  {name:<19}  {text}"));
    format!("Exit codes:{}", rows.collect::<String>())
}

/// Returns the table for the man page, as pairs of a heading and a text.
pub fn rows() -> impl Iterator<Item = (String, &'static str)> {
    codes().map(|(code, name, text)| (format!("{code} ({name})"), text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use scx_vsock::SchedStatsError;

    #[test]
    fn every_reason_has_a_code_of_its_own() {
        let of_reasons: Vec<u8> = MissingStatsReason::KINDS.iter().map(|reason| reason.exit_code).collect();
        assert_eq!(of_reasons, (10..).take(of_reasons.len()).collect::<Vec<u8>>());
        let all: Vec<u8> = codes().map(|(code, _, _)| code).collect();
        assert!(all.is_sorted_by(|one, next| one < next), "{all:?}");
    }

    #[test]
    fn a_reason_is_found_below_its_context() {
        let error = Err::<(), _>(SchedStatsError::TimedOut { after_ms: 1 }).context("first").context("second");
        assert_eq!(code(&error.unwrap_err()), ExitCode::from(19));
        let reason = Err::<(), _>(MissingStatsReason::Cancelled).context("last sample");
        assert_eq!(code(&reason.unwrap_err()), ExitCode::from(13));
        assert_eq!(code(&anyhow::anyhow!("other")), ExitCode::from(FAILURE));
    }

    #[test]
    fn a_scheduler_that_ended_has_a_code_of_its_own() {
        let (scheduler, console) = ("scx_a".into(), String::new());
        let ended = guest::Error::SchedulerEnded { scheduler, status: 1, lacks_config: false, console };
        assert_eq!(code(&anyhow::Error::new(ended).context("while it ran")), ExitCode::from(3));
    }

    #[test]
    fn the_help_names_every_code() {
        let help = help();
        assert!(help.contains("\n   11  no_scheduler         the guest has no scheduler that serves stats"), "{help}");
        assert_eq!(help.lines().count(), 1 + codes().count());
    }
}
