//! The guest that a verb asks, and how long the answer may take.

use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::endpoint::{FORMS, hybrid::listener_path};
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::{Endpoint, READY_PORT, SchedStatsClient, SchedStatsError};

use crate::duration;

/// Returns the help of an argument that names one guest.
pub fn uri_help() -> String {
    format!("The agent's address: {FORMS}; see 'scx-vsock --help'")
}

/// Returns the help of an argument that names several guests.
pub fn uris_help() -> String {
    format!("The agents' addresses: {FORMS}; see 'scx-vsock --help'")
}

/// The arguments of verbs that ask one guest.
#[derive(Args)]
pub struct Target {
    #[arg(value_name = "URI", help = uri_help())]
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

    /// Waits until the scheduler serves stats. Where the guest has a hybrid socket, that includes an agent that is not
    /// up yet: it connects to a port of the host when it is.
    ///
    /// # Errors
    ///
    /// Why there is no scheduler, or no agent to wait for it.
    pub fn wait(&self, client: &SchedStatsClient, timeout: Duration) -> Result<(), SchedStatsError> {
        let until = Instant::now() + timeout;
        let left = || until.saturating_duration_since(Instant::now());
        let ready = self.ready_listener();
        loop {
            match (client.wait_for_scheduler(left()), &ready) {
                (Err(SchedStatsError::AgentUnreachable { .. }), Some(ready)) if wait_for_agent(ready, left()) => {}
                (outcome, _) => return outcome,
            }
        }
    }

    /// Listens for the agent's ready connection, unless another program does already.
    fn ready_listener(&self) -> Option<OwnedUnixListener> {
        let Endpoint::Hybrid { path, .. } = &self.uri else { return None };
        let ready = OwnedUnixListener::bind(listener_path(path, READY_PORT)).ok()?;
        ready.listener().set_nonblocking(true).ok()?;
        Some(ready)
    }
}

/// Waits for a ready connection; false if none came in time.
fn wait_for_agent(ready: &OwnedUnixListener, timeout: Duration) -> bool {
    let until = Instant::now() + timeout;
    loop {
        match ready.listener().accept() {
            Ok(_) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let waited = poll(&mut [PollFd::new(ready, PollFlags::IN)], timeout.as_ref());
        if left.is_zero() || waited.is_err_and(|errno| errno != rustix::io::Errno::INTR) {
            return false;
        }
    }
}
