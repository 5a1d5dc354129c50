//! What an agent says in its own name, and the error that each of its reasons becomes.

use std::io;

use scx_vsock_wire::{Envelope, RelayError};
use serde_json::Value;

use crate::stats::PeerText;
use crate::stats::SchedStatsError;

/// Parses a line, without its LF, as exactly one envelope.
pub(super) fn parse(line: &[u8]) -> Result<Envelope<String>, SchedStatsError> {
    serde_json::from_slice(line).map_err(|error| {
        let name = unknown_relay_error(line);
        SchedStatsError::malformed(match name {
            Some(name) => {
                format!(
                    "the agent reports {:?}, which this host does not know; a newer host may",
                    PeerText::line(&name)
                )
            }
            None => format!("a line that is no envelope: {error}"),
        })
    })
}

/// The name of a relay error that a later version added.
fn unknown_relay_error(line: &[u8]) -> Option<String> {
    let envelope: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
    let body = envelope.get("relay_error").filter(|_| envelope.len() == 1)?.as_object()?;
    body.keys().next().filter(|_| body.len() == 1).cloned()
}

/// The error that an agent's reason is for the request that it answers.
pub(super) fn error(error: &RelayError<String>) -> SchedStatsError {
    match error {
        RelayError::NoScheduler { errno, sched_ext, ops, cause } => {
            SchedStatsError::NoScheduler { reason: no_scheduler(*errno, sched_ext, ops, cause) }
        }
        RelayError::SchedulerGone { errno, cause } => {
            SchedStatsError::SchedulerGone { errno: *errno, cause: PeerText::line(cause).to_string() }
        }
        RelayError::UnsolicitedData {} => SchedStatsError::malformed(
            "the scheduler sent bytes that nobody had asked for, so its answers are in doubt",
        ),
        RelayError::RequestTooLarge { size, max } => {
            SchedStatsError::RequestTooLarge { size: size_of(*size), max: size_of(*max) }
        }
        RelayError::ResponseTooLarge { size, max } => {
            SchedStatsError::ResponseTooLarge { size: size_of(*size), max: size_of(*max) }
        }
        RelayError::UnknownVerb {} => {
            SchedStatsError::unreachable("the agent does not know what this host asked of it; update the agent")
        }
        RelayError::Busy { sessions } => SchedStatsError::AgentBusy { sessions: size_of(*sessions) },
    }
}

fn size_of(wire: u32) -> usize {
    usize::try_from(wire).unwrap_or(usize::MAX)
}

/// What connecting to a scheduler's socket says.
pub(super) fn no_socket(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "its stats socket is not there".to_owned(),
        io::ErrorKind::ConnectionRefused => "its stats socket refuses: whoever made it is gone".to_owned(),
        _ => format!("its stats socket cannot be connected: {error}"),
    }
}

/// What the agent found where the scheduler should be: what connecting said, then what the guest's kernel says.
fn no_scheduler(errno: i32, sched_ext: &str, ops: &str, cause: &str) -> String {
    let socket = no_socket(&io::Error::from_raw_os_error(errno));
    let named = if ops.is_empty() { String::new() } else { format!(" {:?}", PeerText::line(ops)) };
    let kernel = match sched_ext {
        "" => "the guest has no sched_ext (no /sys/kernel/sched_ext; an old kernel, one without \
               CONFIG_SCHED_CLASS_EXT, or no sysfs)"
            .to_owned(),
        "disabled" => "no scheduler is loaded (sched_ext is disabled)".to_owned(),
        "enabled" => format!("the scheduler{named} is loaded but serves no stats there"),
        other => format!("sched_ext is {:?} the scheduler{named}", PeerText::line(other)),
    };
    let cause = if cause.is_empty() { String::new() } else { format!("; the kernel says {:?}", PeerText::line(cause)) };
    format!("{socket}; {kernel}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_says_which_scheduler_is_missing_and_why() {
        let cases = [
            (2, "", "", "its stats socket is not there; the guest has no sched_ext ("),
            (2, "disabled", "", "its stats socket is not there; no scheduler is loaded (sched_ext is disabled)"),
            (2, "enabled", "simple", "; the scheduler \"simple\" is loaded but serves no stats there"),
            (111, "disabled", "", "its stats socket refuses: whoever made it is gone; no scheduler is loaded"),
            (
                111,
                "enabled",
                "bpfland_1.0",
                "refuses: whoever made it is gone; the scheduler \"bpfland_1.0\" is loaded",
            ),
            (13, "enabled", "", "cannot be connected: Permission denied (os error 13); the scheduler is loaded"),
            (2, "enabling", "rusty", "; sched_ext is \"enabling\" the scheduler \"rusty\""),
        ];
        for (errno, sched_ext, ops, expected) in cases {
            let reason = no_scheduler(errno, sched_ext, ops, "");
            assert!(reason.contains(expected), "{reason}");
        }
        let reason = no_scheduler(2, "disabled", "", "runtime error");
        assert!(reason.ends_with("(sched_ext is disabled); the kernel says \"runtime error\""), "{reason}");
    }

    #[test]
    fn a_relay_error_of_a_later_version_is_named() {
        let error = parse(br#"{"relay_error":{"scheduler_paused":{"since":1}}}"#).unwrap_err();
        assert_eq!(error.kind(), "malformed_response");
        assert!(error.to_string().contains("\"scheduler_paused\""), "{error}");
    }

    #[test]
    fn an_envelope_has_exactly_one_key_and_nothing_behind_it() {
        for line in [
            r#"{"agent":{"scheduler_ready":{}},"x":1}"#,
            r#"{"agent":{"scheduler_ready":{}}}x"#,
            r#"{"relay_error":{"busy":{"sessions":1},"unknown_verb":{}}}"#,
            "{}",
            "",
        ] {
            assert_eq!(parse(line.as_bytes()).unwrap_err().kind(), "malformed_response", "{line}");
        }
    }

    #[test]
    fn keys_that_a_later_version_adds_to_a_body_are_ignored() {
        let envelope = parse(br#"{"relay_error":{"busy":{"sessions":8,"oldest_s":3}}}"#).unwrap();
        assert_eq!(envelope, Envelope::RelayError(RelayError::Busy { sessions: 8 }));
    }
}
