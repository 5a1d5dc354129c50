//! Freezes and cancel against calls in every phase.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::iter::repeat_with;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

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

/// Sessions that answer every request with the request itself.
fn echoing() -> impl Iterator<Item = Script> + Send + 'static {
    let echo = Script::new().line().send_echo(r#"{"stats":{"args":{"resp":"#, "}}}\n");
    repeat_with(move || Script::agent().forever(echo.clone()))
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

#[test]
fn no_answer_is_ever_another_requests_though_half_are_frozen_or_late() {
    const ROUNDS: usize = 500;
    let agent = FakeAgent::start(echoing());
    let control = RunControl::new();
    let shared = client(&agent, &control);
    let (answered, frozen) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..8 {
            // Four clones of one client, and four clients.
            let client = if thread < 4 { shared.clone() } else { client(&agent, &control) };
            let (answered, frozen, control) = (&answered, &frozen, &control);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    if round % 20 == thread {
                        // Ends what the others have in flight.
                        drop(control.freeze());
                    }
                    let line = format!(r#"{{"thread":{thread},"round":{round}}}"#);
                    let hurried = Duration::from_micros(round as u64 * 3 % 400);
                    let client = client.with_deadline(if round % 2 == 0 { hurried } else { DEADLINE });
                    let outcome = loop {
                        match client.request_raw(&line) {
                            Err(SchedStatsError::DuringFreeze) => frozen.fetch_add(1, Ordering::Relaxed),
                            outcome => break outcome,
                        };
                    };
                    match outcome {
                        Ok(answer) => {
                            assert_eq!(answer, format!(r#"{{"args":{{"resp":{line}}}}}"#).into_bytes());
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(SchedStatsError::TimedOut { .. }) if round % 2 == 0 => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let (answered, frozen) = (answered.into_inner(), frozen.into_inner());
    assert!(answered >= 4 * ROUNDS && frozen > 0, "{answered} answered, {frozen} frozen");
}
