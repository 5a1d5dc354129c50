//! Where an agent is, and how a stream to it is connected.

mod connect;
#[allow(clippy::module_inception, reason = "the file is named after the noun that it defines")]
mod endpoint;
pub mod hybrid;
mod hybrid_ready;
mod vsock;

pub use connect::{AgentListener, Connect, ConnectProgress, Handshake};
pub use endpoint::{Endpoint, FORMS, ParseEndpointError};
