//! Freezes and cancel against calls in every phase.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::iter::repeat_with;
use std::thread;

use scx_vsock::{Endpoint, RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use serde_json::json;

fn client(agent: &FakeAgent, control: &RunControl) -> SchedStatsClient {
    SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).control(control).deadline(DEADLINE).build()
}

/// Sessions that never answer.
fn silent() -> impl Iterator<Item = Script> + Send + 'static {
    repeat_with(|| Script::agent().line().stall())
}

#[test]
fn a_freeze_ends_the_request_in_flight_and_its_session_even_if_it_is_thawed_at_once() {
    let agent =
        FakeAgent::start([Script::agent().line().stall().stats_number(), Script::agent().line().stats_number()]);
    let control = RunControl::new();
    let client = client(&agent, &control);
    thread::scope(|scope| {
        let asks = scope.spawn(|| client.stats(&[]));
        agent.wait_for(&Event::Stalled(0));
        drop(control.freeze());
        assert_eq!(asks.join().unwrap(), Err(SchedStatsError::DuringFreeze));
    });
    assert_eq!(client.stats(&[]), Ok(json!(2)), "the late answer belongs to nobody");
    assert_eq!(client.session(), 2);
}

#[test]
fn cancel_ends_the_request_in_flight_and_all_who_wait_for_their_turn() {
    let agent = FakeAgent::start(silent());
    let control = RunControl::new();
    let client = client(&agent, &control);
    thread::scope(|scope| {
        let calls: Vec<_> = (0..16).map(|_| scope.spawn(|| client.stats(&[]))).collect();
        agent.wait_for(&Event::Stalled(0));
        control.cancel();
        agent.release();
        for call in calls {
            assert_eq!(call.join().unwrap(), Err(SchedStatsError::Cancelled));
        }
    });
    assert_eq!(client.stats(&[]), Err(SchedStatsError::Cancelled));
    assert_eq!(client.session(), 1, "nobody opened another session");
}

#[test]
fn while_frozen_or_cancelled_not_one_byte_is_sent() {
    let agent = FakeAgent::start([Script::agent().line().stats_number()]);
    let control = RunControl::new();
    let client = client(&agent, &control);
    let frozen = control.freeze();
    for _ in 0..3 {
        assert_eq!(client.stats(&[]), Err(SchedStatsError::DuringFreeze));
        assert_eq!(client.wait_for_scheduler(DEADLINE), Err(SchedStatsError::DuringFreeze));
    }
    assert_eq!(client.session(), 0);
    drop(frozen);
    assert_eq!(client.stats(&[]), Ok(json!(1)), "the first line that the agent ever read");
}

#[test]
fn a_session_that_ends_by_the_freeze_is_told_as_the_freeze() {
    let agent = FakeAgent::start([Script::agent().line().stall().close()]);
    let control = RunControl::new();
    let client = client(&agent, &control);
    thread::scope(|scope| {
        let asks = scope.spawn(|| client.stats(&[]));
        agent.wait_for(&Event::Stalled(0));
        let frozen = control.freeze();
        agent.release();
        assert_eq!(asks.join().unwrap(), Err(SchedStatsError::DuringFreeze));
        drop(frozen);
    });
}
