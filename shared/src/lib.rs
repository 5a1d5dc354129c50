//! The wire between a guest's scx-vsock agent and its host, version 1.
//!
//! The transport is a vsock stream. The host sends [scx_stats] request lines; the agent forwards each to the
//! scheduler byte for byte and answers it with one *envelope*: a JSON object with exactly one key, on one line. Every
//! fact of that wire is written in this crate and nowhere else:
//!
//! - [`limits`]: ports, byte caps, the protocol's version, and how lines begin;
//! - [`verb`]: what a host asks of the agent itself;
//! - [`envelope`]: what the agent sends, and the frame that it puts around a scheduler's answer;
//! - [`sched_ext`]: what the guest's kernel says about sched_ext, which the agent passes on;
//! - [`emit`], [`text`] and [`template`]: how it writes that without a formatter;
//! - [`line`](mod@line): the fixed buffer whose type is the byte cap.
//!
//! It needs neither std nor an allocator. Both sides use it: the agent emits, the host decodes with the `serde`
//! forms (feature `serde`, on by default), which any other `no_std` program can use with `serde-json-core` too.
//!
//! [scx_stats]: https://docs.rs/scx_stats
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod emit;
pub mod envelope;
pub mod limits;
pub mod line;
pub mod sched_ext;
pub mod template;
pub mod text;
pub mod verb;

pub use envelope::{AgentAnswer, Envelope, Hello, NoReport, RelayError, Stats};
pub use limits::{
    AGENT_PORT, HELLO_PREFIX, MAX_ENVELOPE_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, READY_PORT, SESSIONS,
    STATS_PREFIX, STATS_SUFFIX,
};
pub use line::{Fill, LineBuffer};
pub use sched_ext::{KernelMessage, SchedExt, SchedExtLine};
pub use template::Writer;
pub use text::Text;
pub use verb::Verb;
