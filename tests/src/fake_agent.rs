//! An agent that plays a script: a [`ScriptedScheduler`] whose lines are the wire's envelopes.

use scx_vsock_wire::{AgentAnswer, Envelope, RelayError, STATS_PREFIX, STATS_SUFFIX};

use crate::agent::HELLO;
use crate::scripted_scheduler::{Script, ScriptedScheduler};

/// An agent, on the host's side of its session.
pub type FakeAgent = ScriptedScheduler;

/// A scheduler's answer in its frame, with its LF.
#[must_use]
pub fn framed(answer: impl AsRef<[u8]>) -> Vec<u8> {
    [STATS_PREFIX, answer.as_ref(), STATS_SUFFIX, b"\n"].concat()
}

impl Script {
    /// A session of a version 1 agent, up to its hello.
    #[must_use]
    pub fn agent() -> Self {
        Self::new().send(format!("{HELLO}\n"))
    }

    /// Sends a scheduler's answer.
    #[must_use]
    pub fn stats(self, answer: impl AsRef<[u8]>) -> Self {
        self.send(framed(answer))
    }

    /// Sends an answer whose `resp` is the number of requests that the agent has read on all sessions.
    #[must_use]
    pub fn stats_number(self) -> Self {
        self.send_number(br#"{"stats":{"errno":0,"args":{"resp":"#, b"}}}\n")
    }

    /// Sends a relay error.
    #[must_use]
    pub fn relay_error(self, error: RelayError<&str>) -> Self {
        self.envelope(&Envelope::RelayError(error))
    }

    /// Reads a line, which must ask the agent to wait for the scheduler.
    #[must_use]
    pub fn wait_scheduler(self) -> Self {
        self.expect_prefix(r#"{"agent":{"wait_scheduler":{"timeout_ms":"#)
    }

    /// Reports that the scheduler accepts connections.
    #[must_use]
    pub fn ready(self) -> Self {
        self.envelope(&Envelope::Agent(AgentAnswer::SchedulerReady {}))
    }

    /// Reads a line, which must ask what the kernel says, and sends this.
    #[must_use]
    pub fn sched_ext(self, said: &serde_json::Value) -> Self {
        let answer = serde_json::json!({ "agent": { "sched_ext": said } });
        self.expect(r#"{"agent":{"sched_ext":{}}}"#).send(format!("{answer}\n"))
    }

    fn envelope(self, envelope: &Envelope<&str>) -> Self {
        // The envelope is plain data, which always has a form.
        self.send(format!("{}\n", serde_json::json!(envelope)))
    }
}
