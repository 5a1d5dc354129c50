//! What every kind of client is built from.

use std::marker::PhantomData;
use std::time::Duration;

use super::poll_client::PollClient;
use crate::control::RunControl;
use crate::endpoint::Connect;

/// How long a call may take by default.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// Builds a client of the kind `C`.
#[derive(Debug)]
#[must_use = "a builder does nothing until it builds"]
pub struct ClientBuilder<C> {
    pub(super) poll_client: PollClient,
    pub(super) control: RunControl,
    pub(super) deadline: Duration,
    kind: PhantomData<fn() -> C>,
}

impl<C> ClientBuilder<C> {
    pub(super) fn new(endpoint: impl Connect + 'static) -> Self {
        let poll_client = PollClient::new(endpoint);
        Self { poll_client, control: RunControl::new(), deadline: DEFAULT_DEADLINE, kind: PhantomData }
    }

    /// Sets how long each call may take in all. The default is [`DEFAULT_DEADLINE`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the run whose freezes and cancel end the client's calls. By default nothing does.
    pub fn control(mut self, control: &RunControl) -> Self {
        self.control = control.clone();
        self
    }
}
