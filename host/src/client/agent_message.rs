//! The agent's own messages, and the error that each of its reasons becomes.

use std::io;

use scx_vsock_wire::{Envelope, RelayError};
use serde_json::Value;

use crate::stats::{PeerText, SchedExt, SchedStatsError};

/// Parses a line without its LF as exactly one envelope.
pub(super) fn parse(line: &[u8]) -> Result<Envelope<String, SchedExt>, SchedStatsError> {
    serde_json::from_slice(line).map_err(|error| {
        let name = unknown_relay_error(line);
        SchedStatsError::malformed(match name {
            Some(name) => {
                let name = PeerText::line(&name);
                format!("the agent reports {name:?}, which this version does not know; update scx-vsock")
            }
            None => format!("the agent's line is not an envelope: {error}"),
        })
    })
}

/// Returns the name of a relay error that a later version added.
fn unknown_relay_error(line: &[u8]) -> Option<String> {
    let envelope: serde_json::Map<String, Value> = serde_json::from_slice(line).ok()?;
    let body = envelope.get("relay_error").filter(|_| envelope.len() == 1)?.as_object()?;
    body.keys().next().filter(|_| body.len() == 1).cloned()
}

/// Returns the error that a request ends with which the agent answered by this reason.
pub(super) fn error(error: &RelayError<String>) -> SchedStatsError {
    match error {
        RelayError::NoScheduler { errno, sched_ext, ops, cause } => {
            SchedStatsError::NoScheduler { reason: no_scheduler(*errno, sched_ext, ops, cause) }
        }
        RelayError::SchedulerGone { errno, cause } => {
            SchedStatsError::SchedulerGone { errno: *errno, cause: PeerText::line(cause).to_string() }
        }
        RelayError::UnsolicitedData {} => SchedStatsError::malformed(
            "the scheduler sent unsolicited data, so that its next answer could be to another request",
        ),
        RelayError::RequestTooLarge { size, max } => {
            SchedStatsError::RequestTooLarge { size: size_of(*size), max: size_of(*max) }
        }
        RelayError::ResponseTooLarge { size, max } => {
            SchedStatsError::ResponseTooLarge { size: size_of(*size), max: size_of(*max) }
        }
        RelayError::UnknownVerb {} => {
            SchedStatsError::unreachable("the agent does not know this request; update the agent")
        }
        RelayError::Busy { sessions } => SchedStatsError::AgentBusy { sessions: size_of(*sessions) },
    }
}

fn size_of(wire: u32) -> usize {
    usize::try_from(wire).unwrap_or(usize::MAX)
}

/// Returns why a scheduler's stats socket cannot be connected.
pub(super) fn stats_socket_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "the stats socket does not exist".to_owned(),
        io::ErrorKind::ConnectionRefused => {
            "connection refused on the stats socket: the scheduler that created it has exited".to_owned()
        }
        _ => format!("cannot connect to the stats socket: {error}"),
    }
}

/// Returns what the agent found instead of a scheduler: why it could not connect, and the state of sched_ext.
fn no_scheduler(errno: i32, sched_ext: &str, ops: &str, cause: &str) -> String {
    let socket = stats_socket_error(&io::Error::from_raw_os_error(errno));
    let named = if ops.is_empty() { String::new() } else { format!(" {:?}", PeerText::line(ops)) };
    let kernel = match sched_ext {
        "" => "the guest has no sched_ext (no /sys/kernel/sched_ext: a kernel before 6.12, one without \
               CONFIG_SCHED_CLASS_EXT, or no sysfs)"
            .to_owned(),
        "disabled" => "no scheduler is loaded (sched_ext is disabled)".to_owned(),
        "enabled" => format!("the scheduler{named} is loaded but serves no stats on that socket"),
        other => format!("the scheduler{named} is not ready (sched_ext is {:?})", PeerText::line(other)),
    };
    let cause = if cause.is_empty() { String::new() } else { format!("; the kernel says {:?}", PeerText::line(cause)) };
    format!("{socket}; {kernel}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_scheduler_says_which_and_why() {
        let cases = [
            (2, "", "", "the stats socket does not exist; the guest has no sched_ext ("),
            (2, "disabled", "", "the stats socket does not exist; no scheduler is loaded (sched_ext is disabled)"),
            (2, "enabled", "simple", "; the scheduler \"simple\" is loaded but serves no stats on that socket"),
            (111, "disabled", "", "the scheduler that created it has exited; no scheduler is loaded"),
            (111, "enabled", "bpfland_1.0", "has exited; the scheduler \"bpfland_1.0\" is loaded"),
            (
                13,
                "enabled",
                "",
                "cannot connect to the stats socket: Permission denied (os error 13); the scheduler is loaded",
            ),
            (2, "enabling", "rusty", "; the scheduler \"rusty\" is not ready (sched_ext is \"enabling\")"),
        ];
        for (errno, sched_ext, ops, expected) in cases {
            let reason = no_scheduler(errno, sched_ext, ops, "");
            assert!(reason.contains(expected), "{reason}");
        }
        let reason = no_scheduler(2, "disabled", "", "runtime error");
        assert!(reason.ends_with("(sched_ext is disabled); the kernel says \"runtime error\""), "{reason}");
    }

    #[test]
    fn a_later_relay_error_is_named() {
        let error = parse(br#"{"relay_error":{"scheduler_paused":{"since":1}}}"#).unwrap_err();
        assert_eq!(error.kind(), "malformed_response");
        assert!(error.to_string().contains("\"scheduler_paused\""), "{error}");
    }

    #[test]
    fn an_envelope_is_one_object_of_one_key() {
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
    fn later_keys_of_a_body_are_ignored() {
        let envelope = parse(br#"{"relay_error":{"busy":{"sessions":8,"oldest_s":3}}}"#).unwrap();
        assert_eq!(envelope, Envelope::RelayError(RelayError::Busy { sessions: 8 }));
    }
}
