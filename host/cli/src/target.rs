//! Which guest a verb is about, and how long it may take.

use std::io;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::endpoint::hybrid::listener_path;
use scx_vsock::io::OwnedUnixListener;
use scx_vsock::{Endpoint, READY_PORT, SchedStatsClient, SchedStatsError};

use crate::duration;

/// The arguments of verbs that ask one guest.
#[derive(Args)]
pub struct Target {
    /// The guest's agent: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(value_name = "URI")]
    uri: Endpoint,

    /// The time within which an answer must be there, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,
}

impl Target {
    /// A client of that guest's scheduler.
    pub fn client(&self) -> SchedStatsClient {
        SchedStatsClient::builder(self.uri.clone()).deadline(self.deadline).build()
    }

    /// Waits until the scheduler is ready. Behind a hybrid socket that is also for an agent that is not there yet, since
    /// an agent that comes up says so on a port of the host.
    ///
    /// # Errors
    ///
    /// Why there is no scheduler, or no agent to wait for it.
    pub fn wait(&self, client: &SchedStatsClient, within: Duration) -> Result<(), SchedStatsError> {
        let until = Instant::now() + within;
        let left = || until.saturating_duration_since(Instant::now());
        let ready = self.ready();
        loop {
            match (client.wait_for_scheduler(left()), &ready) {
                (Err(SchedStatsError::AgentUnreachable { .. }), Some(ready)) if has_news(ready, left()) => {}
                (outcome, _) => return outcome,
            }
        }
    }

    /// Where an agent says that it is ready, unless somebody else listens there.
    fn ready(&self) -> Option<OwnedUnixListener> {
        let Endpoint::Hybrid { path, .. } = &self.uri else { return None };
        let ready = OwnedUnixListener::bind(listener_path(path, READY_PORT)).ok()?;
        ready.listener().set_nonblocking(true).ok()?;
        Some(ready)
    }
}

/// Takes what was said, or waits for something to be.
fn has_news(ready: &OwnedUnixListener, within: Duration) -> bool {
    let until = Instant::now() + within;
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
