//! The way to one guest's scheduler, hop by hop.

use std::task::Poll;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::client::{Deadline, Interest, PollClient, decode};
use scx_vsock::{Endpoint, SchedStatsError, StatsRequest};
use serde_json::Value;

use super::{Finding, host_checks};
use crate::exit;

const AGENT: &str = "agent";
const SOCKET: &str = "scheduler socket";
const SCHEDULER: &str = "scheduler";

/// CIDs that lead to no guest of this host: this machine itself, and its own host.
const LOCAL_CIDS: [u32; 2] = [1, 2];

/// Every check on the way.
pub fn check(uri: &Endpoint, deadline: Duration) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Endpoint::Vsock { cid, .. } = uri {
        findings.push(host_checks::vsock_sockets());
        if !LOCAL_CIDS.contains(cid) {
            // Whoever started the guest needed it; whoever asks does not.
            findings.push(host_checks::vhost_vsock().at_most_a_note());
        }
    }
    if findings.iter().all(|finding| finding.code == 0) {
        findings.extend(ask(uri, deadline));
    }
    findings
}

/// Asks the scheduler what its stats mean, and says how far the question came.
fn ask(uri: &Endpoint, deadline: Duration) -> Vec<Finding> {
    let mut conversation = PollClient::new(uri.clone());
    let outcome = converse(&mut conversation, Deadline::after(Instant::now(), deadline));
    let mut findings = Vec::new();
    if let Some(version) = conversation.agent() {
        findings.push(Finding::good(AGENT, format!("version {version} at {uri}")));
    }
    let behind_hello = conversation.agent().is_some() || matches!(uri, Endpoint::Scx { .. });
    match outcome {
        Ok(meta) => {
            findings.push(Finding::good(SOCKET, "accepts connections"));
            findings.push(Finding::good(SCHEDULER, describes(&meta)));
        }
        Err(error) => {
            let (check, mend) = diagnosis(&error, behind_hello);
            if check == SCHEDULER {
                findings.push(Finding::good(SOCKET, "accepts connections"));
            }
            let code = exit::code_of(error.kind());
            findings.push(Finding { code, ..Finding::bad(check, error.to_string(), mend) });
        }
    }
    findings
}

fn describes(meta: &Value) -> String {
    format!("answers, and describes {} structs", meta.as_object().map_or(0, serde_json::Map::len))
}

/// The hop that an error is about, and what mends it.
fn diagnosis(error: &SchedStatsError, behind_hello: bool) -> (&'static str, &'static str) {
    match error {
        SchedStatsError::NoScheduler { .. } => (
            SOCKET,
            "start the guest's scheduler, one that serves stats (scx_bpfland does), or name its socket to the agent by \
             --socket",
        ),
        SchedStatsError::AgentBusy { .. } => (AGENT, "end a program that holds a session, or share one client"),
        SchedStatsError::AgentUnreachable { .. } => (
            AGENT,
            "do what it says, or start the guest and scx-vsock-agent in it (its log says more) on the URI's port",
        ),
        SchedStatsError::TimedOut { .. } if !behind_hello => {
            (AGENT, "see whether the guest is up and not paused; ask for longer by --deadline")
        }
        SchedStatsError::TimedOut { .. } => {
            (SCHEDULER, "see the scheduler's log in the guest; restart it; ask for longer by --deadline")
        }
        SchedStatsError::SchedulerGone { .. } => (SCHEDULER, "see the scheduler's log in the guest, and restart it"),
        SchedStatsError::SchedulerError { .. } => (SCHEDULER, "update the scheduler: it knows no stats_meta"),
        _ => (SCHEDULER, "see what serves this socket: it is no scx_stats server"),
    }
}

/// One request to its end.
fn converse(conversation: &mut PollClient, deadline: Deadline) -> Result<Value, SchedStatsError> {
    conversation.start(StatsRequest::stats_meta().line()?, deadline)?;
    loop {
        if let Poll::Ready(outcome) = conversation.on_ready(Instant::now(), decode::resp) {
            return outcome;
        }
        let wanted = match conversation.interest() {
            Interest::Read => PollFlags::IN,
            Interest::ReadWrite => PollFlags::IN | PollFlags::OUT,
        };
        let left = deadline.at().saturating_duration_since(Instant::now());
        if let Some(fd) = conversation.fd() {
            // Whatever it was, the next turn finds it out.
            let _woken = poll(&mut [PollFd::from_borrowed_fd(fd, wanted)], Timespec::try_from(left).ok().as_ref());
        }
    }
}
