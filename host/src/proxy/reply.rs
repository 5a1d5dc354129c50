//! Replies in the scheduler's place: errors in the format of scx_stats.

use rustix::io::Errno;
use serde_json::json;

use crate::stats::StatsResponse;
use crate::stats::{MissingStatsReason, SchedStatsError};

/// The errno for each reason, so that a client can tell them apart without reading.
///
/// A scheduler's own error keeps its number, where it is one.
///
/// ```
/// use scx_vsock::SchedStatsError;
/// use scx_vsock::proxy::reply;
///
/// assert_eq!(reply::errno(&SchedStatsError::TimedOut { after_ms: 5000 }), 110); // ETIMEDOUT
/// ```
#[must_use]
pub fn errno(error: &SchedStatsError) -> i32 {
    error.errno()
}

/// An error's line, with its LF.
pub(super) fn of(error: &SchedStatsError) -> Vec<u8> {
    numbered(error.errno(), &MissingStatsReason::from(error).to_string())
}

/// The line, with its LF, for a client whose session ended between two requests.
pub(super) fn session_ended() -> Vec<u8> {
    line(
        Errno::CONNRESET,
        "the session with the guest ended since the last answer (its scheduler, agent or device was restarted), and its \
         deltas with it; connect again",
    )
}

/// The line, with its LF, of an error that no request caused.
pub(super) fn line(errno: Errno, text: &str) -> Vec<u8> {
    numbered(errno.raw_os_error(), text)
}

fn numbered(errno: i32, text: &str) -> Vec<u8> {
    let response = StatsResponse { errno, args: json!({ "resp": format!("scx-vsock: {text}") }) };
    // It is plain data, which always has a form.
    let mut line = serde_json::to_vec(&response).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::stats::tests::every_error;

    /// Every reason, and one error of a scheduler whose number is none.
    fn table() -> Vec<(SchedStatsError, i32)> {
        let without_number = (SchedStatsError::SchedulerError { errno: 0, args: Value::Null }, 71);
        every_error().into_iter().map(|(error, errno, _)| (error, errno)).chain([without_number]).collect()
    }

    #[test]
    fn every_reason_has_its_errno() {
        for (error, expected) in table() {
            assert_eq!(errno(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn a_reply_is_one_line_of_scx_stats_that_says_why() {
        for (error, errno) in table() {
            let line = of(&error);
            let text = line.strip_suffix(b"\n").unwrap();
            assert!(!text.contains(&b'\n'), "{error:?}");
            let response: StatsResponse = serde_json::from_slice(text).unwrap();
            assert_eq!(response.errno, errno);
            assert_eq!(response.args["resp"], format!("scx-vsock: {error}"));
        }
        assert_eq!(
            line(Errno::BUSY, "a \"b\"\n"),
            b"{\"errno\":16,\"args\":{\"resp\":\"scx-vsock: a \\\"b\\\"\\n\"}}\n"
        );
    }
}
