//! A request to a scheduler: the first line of scx_stats.

use std::collections::BTreeMap;

use std::time::Duration;

use scx_vsock_wire::limits::AGENT_LINE_PREFIX;
use scx_vsock_wire::{MAX_REQUEST_BYTES, Verb};
use serde::{Deserialize, Serialize};

use super::error::SchedStatsError;

/// A request to a scheduler.
///
/// ```
/// use scx_vsock::StatsRequest;
///
/// let request = StatsRequest::stats(&[("target", "top")]);
/// assert_eq!(serde_json::to_string(&request)?, r#"{"req":"stats","args":{"target":"top"}}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StatsRequest {
    /// The verb; servers know `stats` and `stats_meta`.
    pub req: String,
    /// The verb's arguments.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
}

impl StatsRequest {
    /// Returns a request for stats. Servers know the argument `target`, which is `top` by default.
    #[must_use]
    pub fn stats(args: &[(&str, &str)]) -> Self {
        let args = args.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self { req: "stats".to_owned(), args }
    }

    /// Returns a request for the description of the stats.
    #[must_use]
    pub fn stats_meta() -> Self {
        Self { req: "stats_meta".to_owned(), args: BTreeMap::new() }
    }

    /// Returns the request as the line that is sent.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`].
    pub fn line(&self) -> Result<RequestLine, SchedStatsError> {
        let line =
            serde_json::to_vec(self).map_err(|error| SchedStatsError::InvalidRequest { reason: error.to_string() })?;
        RequestLine::new(&line)
    }
}

/// How long before a call's deadline the agent gives up waiting for a scheduler.
const WAIT_MARGIN: Duration = Duration::from_millis(500);

/// One line that may be sent to an agent, its LF included.
///
/// ```
/// use scx_vsock::stats::RequestLine;
///
/// assert_eq!(RequestLine::new(b"{}")?, RequestLine::new(b"{}\n")?);
/// assert!(RequestLine::new(b"{}\n{}").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLine(Vec<u8>);

impl RequestLine {
    /// Validates a line, and adds its LF if it has none. The line is sent byte for byte; it need not be JSON.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] for more than [`MAX_REQUEST_BYTES`] bytes with the LF,
    /// [`SchedStatsError::InvalidRequest`] for an empty line, several lines, or a line for the agent.
    pub fn new(line: &[u8]) -> Result<Self, SchedStatsError> {
        let content = line.strip_suffix(b"\n").unwrap_or(line);
        let size = content.len() + 1;
        if size > MAX_REQUEST_BYTES {
            return Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES });
        }
        let problem = if content.is_empty() {
            "it is empty"
        } else if content.contains(&b'\n') {
            "it has a newline inside, so it is more than one line"
        } else if content.starts_with(AGENT_LINE_PREFIX) {
            "a line that begins with {\"agent\": is for the agent, not for the scheduler"
        } else {
            return Ok(Self::complete(content));
        };
        Err(SchedStatsError::InvalidRequest { reason: problem.to_owned() })
    }

    /// Returns the line that requests an answer from the agent as soon as the scheduler accepts a connection, in a call
    /// with this deadline. The agent gives up 500 ms before it, or at half of it where that is later, so that its reason
    /// arrives in time.
    #[must_use]
    pub fn wait_scheduler(deadline: Duration) -> Self {
        let timeout = deadline.saturating_sub(WAIT_MARGIN).max(deadline / 2);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        Self(Verb::WaitScheduler { timeout_ms }.emit().to_vec())
    }

    /// Returns whether it is for the agent, not for the scheduler.
    pub(crate) fn is_for_the_agent(&self) -> bool {
        self.0.starts_with(AGENT_LINE_PREFIX)
    }

    fn complete(content: &[u8]) -> Self {
        let mut line = Vec::with_capacity(content.len() + 1);
        line.extend_from_slice(content);
        line.push(b'\n');
        Self(line)
    }

    /// Returns the line's bytes, its LF included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(line: &[u8]) -> bool {
        matches!(RequestLine::new(line), Err(SchedStatsError::InvalidRequest { .. }))
    }

    #[test]
    fn a_line_is_the_same_with_and_without_its_end() {
        assert_eq!(RequestLine::new(b"{}").unwrap().as_bytes(), b"{}\n");
        assert_eq!(RequestLine::new(b"{}\n").unwrap().as_bytes(), b"{}\n");
    }

    #[test]
    fn what_is_no_request_line_is_refused() {
        assert!(invalid(b""));
        assert!(invalid(b"\n"));
        assert!(invalid(b"{}\n{}"));
        assert!(invalid(b"{}\n\n"));
        assert!(invalid(br#"{"agent":{"wait_scheduler":{"timeout_ms":1}}}"#));
        assert!(!invalid(br#" {"agent":1}"#));
    }

    #[test]
    fn the_agent_waits_less_than_the_call() {
        let line = |ms| RequestLine::wait_scheduler(Duration::from_millis(ms)).0;
        assert_eq!(line(100), b"{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":50}}}\n");
        assert_eq!(line(1_000), b"{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":500}}}\n");
        assert_eq!(line(u64::MAX), b"{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":4294967295}}}\n");
    }

    #[test]
    fn a_line_of_the_cap_passes_and_one_byte_more_does_not() {
        let mut line = vec![b'x'; MAX_REQUEST_BYTES - 1];
        assert_eq!(RequestLine::new(&line).unwrap().as_bytes().len(), MAX_REQUEST_BYTES);
        line.push(b'x');
        assert_eq!(
            RequestLine::new(&line),
            Err(SchedStatsError::RequestTooLarge { size: MAX_REQUEST_BYTES + 1, max: MAX_REQUEST_BYTES })
        );
    }
}
