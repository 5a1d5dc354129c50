//! What is asked of a scheduler, what it answers, and why an answer is missing: plain data.

mod error;
pub mod meta;
pub(crate) mod path;
mod reason;
mod request;

pub use error::SchedStatsError;
pub use meta::Meta;
pub use path::{ParsePathError, StatPath};
pub use reason::MissingStatsReason;
pub(crate) use reason::excerpt;
pub use request::{RequestLine, StatsRequest, StatsResponse};
