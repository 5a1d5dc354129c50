//! Requests to a scheduler, its answers, and the reasons why one is missing: plain data.
//!
//! [`RequestLine`] is what goes to the agent, [`StatsResponse`] what comes back, [`SchedStatsError`] what a request fails
//! with, and [`MissingStatsReason`] what a sample keeps of that. [`StatPath`] finds a value in stats, and [`meta`] says
//! what the values mean.

mod depth;
mod error;
mod error_chain;
#[cfg(any(feature = "export", feature = "report"))]
pub(crate) mod event_sums;
pub mod meta;
pub(crate) mod path;
mod peer_text;
mod reason;
mod reason_list;
mod request;
mod response;
mod sched_ext;
#[cfg(test)]
pub(crate) mod tests;

pub use depth::MAX_JSON_DEPTH;
pub(crate) use depth::{nest_too_deep, nests_deeper_than};
pub use error::{SchedStatsError, SystemError};
pub use meta::Meta;
pub use path::{ParsePathError, PathError, StatPath};
pub use peer_text::{PeerText, is_hidden};
pub use reason::{MissingStatsReason, ReasonKind};
pub use request::{RequestLine, StatsRequest};
pub use response::StatsResponse;
pub use sched_ext::{KernelMessage, SchedExt};
