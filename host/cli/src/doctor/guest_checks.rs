//! Checks of the hops to one guest's scheduler.

use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::client::{Interest, PollClient, decode};
use scx_vsock::endpoint::Handshake;
use scx_vsock::io::Deadline;
use scx_vsock::{Connect, Endpoint, MissingStatsReason, SchedStatsError, StatsRequest};
use serde_json::Value;

use super::check_result::CheckResult;
use super::host_checks;

const AGENT: &str = "agent";
const SOCKET: &str = "scheduler socket";
const SCHEDULER: &str = "scheduler";

/// The CIDs that need no vhost-vsock: this host itself (1), and the host of the VM that this program runs in (2).
const LOCAL_CIDS: [u32; 2] = [1, 2];

/// Runs every check.
pub fn check(uri: &Endpoint, deadline: Duration) -> Vec<CheckResult> {
    let mut results = Vec::new();
    if let Endpoint::Vsock { cid, .. } = uri {
        results.push(host_checks::vsock_sockets());
        if !LOCAL_CIDS.contains(cid) {
            // The VMM needs it; a client of the guest does not.
            results.push(host_checks::vhost_vsock().at_most_warning());
        }
    }
    if !results.iter().any(CheckResult::is_error) {
        results.extend(check_request(uri, deadline));
    }
    results
}

/// Requests the description of the stats, and reports how far the request came.
fn check_request(uri: &Endpoint, deadline: Duration) -> Vec<CheckResult> {
    let mut client = PollClient::new(uri.clone());
    let outcome = request(&mut client, Deadline::after(Instant::now(), deadline));
    let mut results = Vec::new();
    if let Some(version) = client.agent_version() {
        results.push(CheckResult::ok(AGENT, format!("version {version} at {uri}")));
    }
    let said_hello = client.agent_version().is_some() || uri.handshake() == Handshake::Plain;
    match outcome {
        Ok(meta) => {
            results.push(CheckResult::ok(SOCKET, "accepts connections"));
            results.push(CheckResult::ok(SCHEDULER, summary(&meta)));
        }
        Err(error) => {
            let (check, fix) = diagnosis(&error, said_hello);
            if check == SCHEDULER {
                results.push(CheckResult::ok(SOCKET, "accepts connections"));
            }
            let exit_code = error.exit_code();
            let reason = MissingStatsReason::from(&error).to_string();
            results.push(CheckResult::error(check, reason, fix).with_exit_code(exit_code));
        }
    }
    results
}

fn summary(meta: &Value) -> String {
    match meta.as_object().map_or(0, serde_json::Map::len) {
        1 => "answers; its stats have 1 struct".into(),
        structs => format!("answers; its stats have {structs} structs"),
    }
}

/// The hop that an error is about, and the fix.
fn diagnosis(error: &SchedStatsError, said_hello: bool) -> (&'static str, &'static str) {
    match error {
        SchedStatsError::NoScheduler { .. } => (
            SOCKET,
            "start a scheduler that serves stats in the guest, such as scx_bpfland; if its socket is elsewhere, start \
             the agent with --socket PATH",
        ),
        SchedStatsError::AgentBusy { .. } => (AGENT, "close a client of this guest, or share one session"),
        SchedStatsError::AgentUnreachable { .. } => {
            (AGENT, "start the guest, and scx-vsock-agent in it on the port of the URI; the agent's log says more")
        }
        SchedStatsError::TimedOut { .. } if !said_hello => {
            (AGENT, "check that the guest is up and not paused; if it is slow, use a longer --deadline")
        }
        SchedStatsError::TimedOut { .. } => {
            (SCHEDULER, "check the scheduler's log in the guest and restart it; if it is slow, use a longer --deadline")
        }
        SchedStatsError::SchedulerGone { .. } => (SCHEDULER, "check the scheduler's log in the guest and restart it"),
        SchedStatsError::SchedulerError { .. } => (SCHEDULER, "update the scheduler to one that has stats_meta"),
        _ => (SCHEDULER, "check which program serves this socket: it does not speak scx_stats"),
    }
}

/// Sends one request and waits for its answer.
fn request(client: &mut PollClient, deadline: Deadline) -> Result<Value, SchedStatsError> {
    client.start(StatsRequest::stats_meta().line()?, deadline)?;
    loop {
        if let Poll::Ready(outcome) = client.on_ready(Instant::now(), decode::resp) {
            return outcome;
        }
        let flags = match client.interest() {
            Interest::Read => PollFlags::IN,
            Interest::ReadWrite => PollFlags::IN | PollFlags::OUT,
        };
        let left = deadline.at().saturating_duration_since(Instant::now());
        if let Some(fd) = client.fd() {
            // Whether it was an event, the deadline or an error, the next `on_ready` finds out.
            let _woken = poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Timespec::try_from(left).ok().as_ref());
        }
    }
}
