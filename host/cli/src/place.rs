//! Which guest a verb is about, and how long it may take.

use std::time::Duration;

use clap::Args;
use scx_vsock::{Endpoint, SchedStatsClient};

use crate::duration;

/// The arguments of verbs that ask one guest.
#[derive(Args)]
pub struct Place {
    /// The guest's agent: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(value_name = "URI")]
    uri: Endpoint,

    /// The time within which an answer must be there, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,
}

impl Place {
    /// A client of that guest's scheduler.
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.uri.clone()).deadline(self.deadline).build()
    }
}
