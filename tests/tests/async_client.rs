//! The async client against agents that play scripts, with the blocking client's tests and those of dropped calls.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

#[path = "client/suite.rs"]
mod suite;

use std::time::{Duration, Instant};

use scx_vsock::client::AsyncSchedStatsClient;
use scx_vsock::{Endpoint, RunControl, SchedStatsError};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::on_runtime::OnRuntime as Client;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use serde_json::json;
use suite::{counting, echoing};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::timeout;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn client(agent: &FakeAgent) -> AsyncSchedStatsClient {
    AsyncSchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).deadline(DEADLINE).build()
}

#[test]
fn a_dropped_call_closes_its_session() {
    let agent = FakeAgent::start([Script::agent().line().stall().stats_number(), counting()]);
    let client = client(&agent);
    runtime().block_on(async {
        timeout(Duration::from_millis(200), client.stats(&[])).await.unwrap_err();
        assert_eq!(client.stats(&[]).await, Ok(json!(2)));
    });
    let statistics = client.statistics();
    assert_eq!((client.session(), statistics.requests, statistics.sessions), (2, 1, 2));
    drop(client);
    agent.wait_for(&Event::Ended(1, 0));
}

#[test]
fn a_call_that_is_dropped_before_its_turn_changes_nothing() {
    let agent =
        FakeAgent::start([Script::agent().line().stall().stats_number().forever(Script::new().line().stats_number())]);
    let client = client(&agent);
    runtime().block_on(async {
        let first = {
            let client = client.clone();
            tokio::spawn(async move { client.stats(&[]).await })
        };
        agent.wait_for(&Event::Stalled(0));
        timeout(Duration::from_millis(20), client.stats(&[])).await.unwrap_err();
        agent.release();
        assert_eq!(first.await.unwrap(), Ok(json!(1)));
        assert_eq!(client.stats(&[]).await, Ok(json!(2)));
    });
    assert_eq!(client.session(), 1);
}

#[test]
fn no_answer_is_a_dropped_calls() {
    let agent = FakeAgent::start(echoing());
    let client = client(&agent);
    runtime().block_on(async {
        for round in 0..500_u64 {
            let dropped = format!(r#"{{"dropped":{round}}}"#);
            // It ends at any point of the call, or not at all.
            let _outcome = timeout(Duration::from_micros(round), client.request_raw(&dropped)).await;
            let line = format!(r#"{{"round":{round}}}"#);
            let answer = format!(r#"{{"args":{{"resp":{line}}}}}"#);
            assert_eq!(client.request_raw(&line).await, Ok(answer.into_bytes()));
        }
    });
}

#[test]
fn one_thread_serves_a_hundred_guests() {
    let agents: Vec<FakeAgent> = (0..100).map(|_| FakeAgent::start([counting()])).collect();
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut calls = JoinSet::new();
        for agent in &agents {
            let client = client(agent);
            calls.spawn(async move {
                for number in 1..=10 {
                    assert_eq!(client.stats(&[]).await, Ok(json!(number)));
                }
            });
        }
        calls.join_all().await;
    });
}

#[test]
fn a_stop_ends_every_call_at_once() {
    for freeze in [true, false] {
        let run = RunControl::new();
        let clients: Vec<FakeAgent> = (0..32).map(|_| FakeAgent::start([Script::agent().line().stall()])).collect();
        let before = Instant::now();
        let runtime = runtime();
        let outcomes = runtime.block_on(async {
            let mut calls = JoinSet::new();
            for agent in &clients {
                let client = AsyncSchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).control(&run);
                let client = client.deadline(DEADLINE).build();
                calls.spawn(async move { client.stats(&[]).await });
            }
            for agent in &clients {
                agent.wait_for(&Event::Stalled(0));
            }
            if freeze {
                drop(run.freeze())
            } else {
                run.cancel()
            }
            calls.join_all().await
        });
        let expected = if freeze { SchedStatsError::DuringFreeze } else { SchedStatsError::Cancelled };
        assert!(outcomes.iter().all(|outcome| outcome.as_ref() == Err(&expected)), "{outcomes:?}");
        assert!(before.elapsed() < DEADLINE, "no call waited for its deadline");
    }
}
