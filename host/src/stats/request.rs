//! A request to a scheduler: the first line of scx_stats.

use std::collections::BTreeMap;

use std::time::Duration;

use scx_vsock_wire::limits::AGENT_LINE_PREFIX;
use scx_vsock_wire::{MAX_REQUEST_BYTES, Verb};
use serde::{Deserialize, Serialize};

use super::depth::{MAX_JSON_DEPTH, nests_deeper_than};
use super::error::SchedStatsError;

/// The verb that reads stats, its argument for what to read, and what is read without that.
const STATS: &str = "stats";
const TARGET: &str = "target";
const DEFAULT_TARGET: &str = "top";

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
        Self { req: STATS.to_owned(), args }
    }

    /// Returns a request for the description of the stats.
    #[must_use]
    pub fn stats_meta() -> Self {
        Self { req: "stats_meta".to_owned(), args: BTreeMap::new() }
    }

    /// Returns the target whose stats it reads; `None` if it reads none.
    fn target(&self) -> Option<String> {
        (self.req == STATS).then(|| self.args.get(TARGET).map_or(DEFAULT_TARGET, String::as_str).to_owned())
    }

    /// Returns the request as the line that is sent.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`].
    pub fn line(&self) -> Result<RequestLine, SchedStatsError> {
        let line =
            serde_json::to_vec(self).map_err(|error| SchedStatsError::InvalidRequest { reason: error.to_string() })?;
        Ok(RequestLine { bytes: validate(&line)?, target: self.target() })
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
pub struct RequestLine {
    bytes: Vec<u8>,
    /// The target whose stats it reads; `None` if it reads none.
    target: Option<String>,
}

impl RequestLine {
    /// Validates a line, and adds its LF if it has none. The line is sent byte for byte; it need not be JSON.
    ///
    /// # Errors
    ///
    /// [`SchedStatsError::RequestTooLarge`] for more than [`MAX_REQUEST_BYTES`] bytes with the LF,
    /// [`SchedStatsError::InvalidRequest`] for an empty line, several lines, a line for the agent, or one that nests more
    /// than [`MAX_JSON_DEPTH`](super::MAX_JSON_DEPTH) levels deep.
    pub fn new(line: &[u8]) -> Result<Self, SchedStatsError> {
        let bytes = validate(line)?;
        let request = serde_json::from_slice::<StatsRequest>(&bytes).ok();
        Ok(Self { bytes, target: request.and_then(|request| request.target()) })
    }

    /// Returns the line that requests an answer from the agent as soon as the scheduler accepts a connection, in a call
    /// with this deadline. The agent gives up 500 ms before it, or at half of it where that is later, so that its reason
    /// arrives in time.
    #[must_use]
    pub fn wait_scheduler(deadline: Duration) -> Self {
        let timeout = deadline.saturating_sub(WAIT_MARGIN).max(deadline / 2);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        Self { bytes: Verb::WaitScheduler { timeout_ms }.emit().to_vec(), target: None }
    }

    /// Returns the line that requests what the guest's kernel says about sched_ext.
    #[must_use]
    pub fn sched_ext() -> Self {
        Self { bytes: Verb::SchedExt {}.emit().to_vec(), target: None }
    }

    /// A line for an agent, of whatever version.
    #[cfg(test)]
    pub(crate) fn for_an_agent(line: &[u8]) -> Self {
        Self { bytes: [line, b"\n"].concat(), target: None }
    }

    /// Returns whether it is for the agent, not for the scheduler.
    pub(crate) fn is_for_the_agent(&self) -> bool {
        self.bytes.starts_with(AGENT_LINE_PREFIX)
    }

    /// Returns what it asks of the agent; `None` where it is for the scheduler, or the agent would not know it either.
    pub(crate) fn verb(&self) -> Option<Verb> {
        Verb::parse(self.bytes.strip_prefix(AGENT_LINE_PREFIX)?)
    }

    /// Returns the target whose stats it reads; `None` if it reads none.
    pub(crate) fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// Returns the line's bytes, its LF included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Validates a line for the scheduler, and adds its LF if it has none.
fn validate(line: &[u8]) -> Result<Vec<u8>, SchedStatsError> {
    let content = line.strip_suffix(b"\n").unwrap_or(line);
    let size = content.len() + 1;
    if size > MAX_REQUEST_BYTES {
        return Err(SchedStatsError::RequestTooLarge { size, max: MAX_REQUEST_BYTES });
    }
    let reason = if content.is_empty() {
        "it is empty".to_owned()
    } else if content.contains(&b'\n') {
        "it has a newline inside, so it is more than one line".to_owned()
    } else if content.starts_with(AGENT_LINE_PREFIX) {
        "a line that begins with {\"agent\": is for the agent, not for the scheduler".to_owned()
    } else if nests_deeper_than(content, MAX_JSON_DEPTH) {
        format!("it nests more than {MAX_JSON_DEPTH} levels deep")
    } else {
        return Ok([content, b"\n"].concat());
    };
    Err(SchedStatsError::InvalidRequest { reason })
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
    fn a_request_nests_at_most_96_levels_deep() {
        let nested = |depth: usize| format!("{{\"req\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(!invalid(nested(96).as_bytes()) && invalid(nested(97).as_bytes()));
        assert!(!invalid(&[b'['; 96]) && invalid(&[b'['; 97]), "also where it is no JSON");
        assert!(!invalid(format!("{{\"req\":\"{}\"}}", "[".repeat(200)).as_bytes()), "brackets in a text");
    }

    #[test]
    fn the_target_of_a_line_is_known() {
        let target = |line: &str| RequestLine::new(line.as_bytes()).unwrap().target().map(str::to_owned);
        for line in
            [r#"{"req":"stats"}"#, r#"{"req":"stats","args":{"target":"top"}}"#, r#"{"args":{},"req":"st\u0061ts"}"#]
        {
            assert_eq!(target(line).as_deref(), Some("top"), "{line}");
        }
        assert_eq!(target(r#"{"req":"stats","args":{"target":"","nr_samples":"5"}}"#).as_deref(), Some(""));
        for line in [r#"{"req":"stats_meta"}"#, "stats", "{}", r#"{"req":"stats","args":[]}"#] {
            assert_eq!(target(line), None, "{line}");
        }
        assert_eq!(StatsRequest::stats(&[("target", "cpus")]).line().unwrap().target(), Some("cpus"));
        assert_eq!(RequestLine::wait_scheduler(Duration::ZERO).target(), None);
    }

    #[test]
    fn the_agent_waits_less_than_the_call() {
        let line = |ms| RequestLine::wait_scheduler(Duration::from_millis(ms)).bytes;
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
