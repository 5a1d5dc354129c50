//! Every reason, from a real cause: those that the wire carries through the real agent, the others from the API alone.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use scx_vsock::{
    Endpoint, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, MissingStatsReason, RunControl, Sampler, SchedStatsClient,
};
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::peer::{DEADLINE, Peer};
use serde::{Deserialize, Deserializer};
use serde_json::json;

/// Long enough for an answer, and how long a call waits that gets none.
const SHORT: Duration = Duration::from_millis(200);

fn client(agent: &Agent) -> SchedStatsClient {
    SchedStatsClient::builder(Endpoint::Unix { path: agent.host_path(0) }).deadline(DEADLINE).build()
}

/// The reason of a call to a real agent whose scheduler answers with these bytes and closes.
fn scheduler_answers(answer: &[u8]) -> MissingStatsReason {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let client = client(&agent);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.stats(&[]).unwrap_err());
        let mut scheduler = Peer::accept(&listener);
        scheduler.line();
        // The agent may close before it has read all.
        let _sent = scheduler.try_send(answer);
        drop(scheduler);
        call.join().unwrap().into()
    })
}

/// The reason of a call that a real agent's scheduler never answers.
fn interrupted_by(stop: impl FnOnce(&RunControl), allowed: Duration) -> MissingStatsReason {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let control = RunControl::new();
    let endpoint = Endpoint::Unix { path: agent.host_path(0) };
    let client = SchedStatsClient::builder(endpoint).control(&control).deadline(allowed).build();
    thread::scope(|scope| {
        let call = scope.spawn(|| client.stats(&[]).unwrap_err());
        let mut scheduler = Peer::accept(&listener);
        scheduler.line();
        stop(&control);
        call.join().unwrap().into()
    })
}

fn without_a_scheduler() -> MissingStatsReason {
    client(&Agent::start()).stats(&[]).unwrap_err().into()
}

fn without_an_agent() -> MissingStatsReason {
    let agent = Agent::start();
    let client = client(&agent);
    drop(agent);
    client.stats(&[]).unwrap_err().into()
}

fn with_every_session_taken() -> MissingStatsReason {
    let agent = Agent::start();
    let _taken: Vec<Peer> = (0..8).map(|_| agent.host()).collect();
    client(&agent).stats(&[]).unwrap_err().into()
}

/// A type whose decoding panics, as anybody's may.
#[derive(Debug)]
struct Panics;

impl<'de> Deserialize<'de> for Panics {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        panic!("on purpose")
    }
}

fn after_a_panic() -> MissingStatsReason {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let client = client(&agent);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.stats_as::<Panics>(&[]));
        let mut scheduler = Peer::accept(&listener);
        scheduler.line();
        scheduler.send("{\"args\":{\"resp\":1}}\n");
        call.join().unwrap_err();
    });
    client.stats(&[]).unwrap_err().into()
}

/// The reason of a request that is refused before a session is opened.
fn refused(line: impl AsRef<[u8]>) -> MissingStatsReason {
    let agent = Agent::start();
    let client = client(&agent);
    let reason = client.request_raw(line).unwrap_err().into();
    assert_eq!(client.session(), 0, "something was sent");
    reason
}

#[test]
fn every_reason_happens_from_a_real_cause() {
    let too_large = [&[b'1'; MAX_RESPONSE_BYTES][..], b"\n"].concat();
    let cases = [
        ("no_scheduler_binary", Sampler::new(None).sample("none").stats.unwrap_err()),
        ("no_scheduler", without_a_scheduler()),
        ("during_freeze", interrupted_by(|control| drop(control.freeze()), DEADLINE)),
        ("cancelled", interrupted_by(RunControl::cancel, DEADLINE)),
        ("scheduler_error", scheduler_answers(b"{\"errno\":22,\"args\":{\"resp\":\"no such target\"}}\n")),
        ("missing_resp", scheduler_answers(b"{\"errno\":0,\"args\":{}}\n")),
        ("request_too_large", refused(&too_large)),
        ("response_too_large", scheduler_answers(&too_large)),
        ("mutex_poisoned", after_a_panic()),
        ("timed_out", interrupted_by(|_| (), SHORT)),
        ("scheduler_gone", scheduler_answers(b"{\"errno\":0,")),
        ("agent_unreachable", without_an_agent()),
        ("agent_busy", with_every_session_taken()),
        ("malformed_response", scheduler_answers(b"not JSON\n")),
        ("invalid_request", refused("two\nlines")),
    ];
    let named: BTreeMap<&str, &MissingStatsReason> = cases.iter().map(|(name, reason)| (*name, reason)).collect();
    assert_eq!(named.len(), MissingStatsReason::KINDS.len(), "a reason is missing");
    for (name, reason) in named {
        assert_eq!(reason.kind(), name, "{reason}");
        let line = serde_json::to_string(reason).unwrap();
        assert_eq!(&serde_json::from_str::<MissingStatsReason>(&line).unwrap(), reason);
    }
}

#[test]
fn reasons_carry_the_facts() {
    let reason = scheduler_answers(b"{\"errno\":22,\"args\":{\"resp\":\"no such target\"}}\n");
    assert_eq!(reason, MissingStatsReason::SchedulerError { errno: 22, args: json!({ "resp": "no such target" }) });
    assert_eq!(with_every_session_taken(), MissingStatsReason::AgentBusy { sessions: 8 });
    assert_eq!(interrupted_by(|_| (), SHORT), MissingStatsReason::TimedOut { after_ms: 200 });
    let expected = MissingStatsReason::RequestTooLarge { size: MAX_REQUEST_BYTES + 1, max: MAX_REQUEST_BYTES };
    assert_eq!(refused([b'x'; MAX_REQUEST_BYTES]), expected);
}

#[test]
fn an_unknown_reason_is_named() {
    let error = serde_json::from_str::<MissingStatsReason>(r#"{"SchedulerAsleep":{"since":1}}"#).unwrap_err();
    assert!(error.to_string().contains("unknown variant `SchedulerAsleep`"), "{error}");
}
