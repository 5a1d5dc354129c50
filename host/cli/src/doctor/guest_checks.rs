//! Checks of the hops to one guest's scheduler.

use std::time::{Duration, Instant};

use scx_vsock::stats::{PeerText, SchedExt};
use scx_vsock::{Endpoint, MissingStatsReason, SchedStatsClient, SchedStatsError};
use serde_json::Value;

use super::check_result::CheckResult;
use super::host_checks;

const AGENT: &str = "agent";
const KERNEL: &str = "kernel";
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

/// Requests the agent's version and the description of the stats, and reports the first failure.
fn check_request(uri: &Endpoint, deadline: Duration) -> Vec<CheckResult> {
    let started = Instant::now();
    let client = SchedStatsClient::builder(uri.clone()).deadline(deadline).build();
    let version = match client.agent_version() {
        Ok(version) => version,
        Err(error) => return vec![failure(&error)],
    };
    let mut results: Vec<CheckResult> =
        version.map(|version| CheckResult::ok(AGENT, format!("version {version} at {uri}"))).into_iter().collect();
    // The deadline is that of all checks together.
    let left = || deadline.saturating_sub(started.elapsed());
    if !results.is_empty() {
        results.extend(client.with_deadline(left()).sched_ext().ok().and_then(|said| kernel(&said)));
    }
    let (socket_ok, last) = match client.with_deadline(left()).stats_meta().map_err(|error| over_all(error, deadline)) {
        Ok(meta) => (true, CheckResult::ok(SCHEDULER, summary(&meta))),
        Err(error) => (diagnosis(&error).0 == SCHEDULER, failure(&error)),
    };
    results.extend(socket_ok.then(|| CheckResult::ok(SOCKET, "accepts connections")));
    results.push(last);
    results
}

/// The error with the time that the guest had for all answers.
fn over_all(error: SchedStatsError, deadline: Duration) -> SchedStatsError {
    let after_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
    if matches!(error, SchedStatsError::TimedOut { .. }) { SchedStatsError::TimedOut { after_ms } } else { error }
}

fn failure(error: &SchedStatsError) -> CheckResult {
    let (check, fix) = diagnosis(error);
    let message = MissingStatsReason::from(error).to_string();
    CheckResult::error(check, message, fix).with_exit_code(error.exit_code())
}

/// What the kernel says, unless that is nothing: the socket's check says why.
fn kernel(said: &SchedExt) -> Option<CheckResult> {
    let state = PeerText::line(said.state.as_deref()?);
    let ops = said.ops.as_deref().map(|ops| format!(": {}", PeerText::line(ops))).unwrap_or_default();
    Some(CheckResult::ok(KERNEL, format!("sched_ext is {state}{ops}")))
}

fn summary(meta: &Value) -> String {
    match meta.as_object().map_or(0, serde_json::Map::len) {
        1 => "answers; its stats have 1 struct".into(),
        structs => format!("answers; its stats have {structs} structs"),
    }
}

/// The hop that an error is about, and the fix.
fn diagnosis(error: &SchedStatsError) -> (&'static str, &'static str) {
    match error {
        SchedStatsError::NoScheduler { reason } if reason.contains("CONFIG_SCHED_CLASS_EXT") => (
            SOCKET,
            "boot a kernel of version 6.12 or later with CONFIG_SCHED_CLASS_EXT=y, and mount sysfs in the guest; grep \
             SCHED_CLASS_EXT /boot/config-$(uname -r) shows what a kernel has",
        ),
        SchedStatsError::NoScheduler { .. } => (
            SOCKET,
            "start a scheduler that serves stats in the guest, such as scx_bpfland; if its socket is elsewhere, start \
             the agent with --socket PATH",
        ),
        SchedStatsError::AgentBusy { .. } => (AGENT, "close a client of this guest, or share one session"),
        SchedStatsError::AgentUnreachable { .. } => (
            AGENT,
            "start the guest, and scx-vsock-agent in it on the port of the URI; if the guest is up, check that it is not \
             paused, or use a longer --deadline",
        ),
        SchedStatsError::TimedOut { .. } => {
            (SCHEDULER, "check the scheduler's log in the guest and restart it; if it is slow, use a longer --deadline")
        }
        SchedStatsError::SchedulerGone { .. } => (SCHEDULER, "check the scheduler's log in the guest and restart it"),
        SchedStatsError::SchedulerError { .. } => (SCHEDULER, "update the scheduler to one that has stats_meta"),
        _ => (SCHEDULER, "check which program serves this socket: it does not speak scx_stats"),
    }
}
