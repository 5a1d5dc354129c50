//! The guest that a verb asks, and how long the answer may take.

use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use scx_vsock::endpoint::FORMS;
use scx_vsock::{Endpoint, SchedStatsClient, SchedStatsError};

use crate::duration;

/// Returns the help of an argument that names one guest.
pub fn uri_help() -> String {
    format!("The agent's address: {FORMS}; see 'scx-vsock --help'")
}

/// Returns the help of an argument that names several guests.
pub fn uris_help() -> String {
    format!("The agents' addresses: {FORMS}; see 'scx-vsock --help'")
}

/// Returns the parser of a URI, whose path need not be UTF-8.
pub fn uri_parser() -> impl TypedValueParser<Value = Endpoint> {
    OsStringValueParser::new().try_map(|uri| Endpoint::try_from(uri.as_os_str()))
}

/// The arguments of verbs that ask one guest.
#[derive(Args)]
pub struct Target {
    #[arg(value_name = "URI", help = uri_help(), value_parser = uri_parser())]
    uri: Endpoint,

    /// How long to wait for an answer, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,
}

impl Target {
    /// A client of the guest's scheduler.
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.uri.clone()).deadline(self.deadline).build()
    }

    /// Waits until the scheduler serves stats, and before that for an agent behind a hybrid socket, whose guest need not
    /// be up yet.
    ///
    /// # Errors
    ///
    /// Why there is no scheduler, or no agent to wait for it.
    pub fn wait(client: &SchedStatsClient, timeout: Duration) -> Result<(), SchedStatsError> {
        let started = Instant::now();
        client.wait_for_agent(timeout)?;
        client.wait_for_scheduler(timeout.saturating_sub(started.elapsed()))
    }
}
