//! Clients of a guest's scheduler.
//!
//! [`SchedStatsClient`] blocks; `AsyncSchedStatsClient` (feature `tokio`) is the same for tasks. Underneath is a machine that never waits, for programs that serve many guests on one
//! thread: [`PollClient`] opens and renews sessions and keeps deadlines; one session is a state machine without I/O;
//! [`decode`] turns answers into values.
//!
//! A request takes this path: `SchedStatsClient` locks the session (first come, first served) and waits on its stream;
//! `PollClient` writes and reads it; `session` finds the answer in the bytes; `agent_message` reads what the agent itself
//! has to say; `decode` parses the rest. What a peer can make a client hold is bounded by one line of
//! [`MAX_RESPONSE_BYTES`](crate::MAX_RESPONSE_BYTES) a session.

mod agent_message;
#[cfg(feature = "tokio")]
#[allow(unsafe_code, reason = "Tokio cannot know that a descriptor outlives its registration")]
mod async_call;
#[cfg(feature = "tokio")]
mod async_client;
mod baselines;
mod blocking_call;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod client;
pub mod decode;
pub(crate) mod fair_mutex;
mod poll_client;
mod reading;
mod session;
mod shared_client;
mod statistics;

#[cfg(feature = "tokio")]
pub use async_client::{AsyncSchedStatsClient, AsyncSchedStatsClientBuilder};
pub use client::{DEFAULT_DEADLINE, SchedStatsClient, SchedStatsClientBuilder};
pub use poll_client::{Interest, PollClient, Traffic};
pub use reading::Reading;
pub use session::{AgentAnswer, Answer};
pub use statistics::Statistics;
