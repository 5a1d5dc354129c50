//! An agent that plays a script: a [`ScriptedScheduler`] whose lines are the wire's envelopes.

use scx_vsock_wire::{AgentAnswer, Envelope, RelayError, STATS_PREFIX, STATS_SUFFIX, Text};

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
        fn text(text: &str) -> Text<'_> {
            Text::first_line(text.as_bytes())
        }
        let error = match error {
            RelayError::NoScheduler { errno, sched_ext, ops, cause } => {
                RelayError::NoScheduler { errno, sched_ext: text(sched_ext), ops: text(ops), cause: text(cause) }
            }
            RelayError::SchedulerGone { errno, cause } => RelayError::SchedulerGone { errno, cause: text(cause) },
            RelayError::UnsolicitedData {} => RelayError::UnsolicitedData {},
            RelayError::RequestTooLarge { size, max } => RelayError::RequestTooLarge { size, max },
            RelayError::ResponseTooLarge { size, max } => RelayError::ResponseTooLarge { size, max },
            RelayError::UnknownVerb {} => RelayError::UnknownVerb {},
            RelayError::Busy { sessions } => RelayError::Busy { sessions },
        };
        self.send(Envelope::RelayError(error).emit())
    }

    /// Reads a line, which must ask the agent to wait for the scheduler.
    #[must_use]
    pub fn wait_scheduler(self) -> Self {
        self.expect_prefix(r#"{"agent":{"wait_scheduler":{"timeout_ms":"#)
    }

    /// Reports that the scheduler accepts connections.
    #[must_use]
    pub fn ready(self) -> Self {
        self.send(Envelope::<Text<'_>>::Agent(AgentAnswer::SchedulerReady {}).emit())
    }
}
