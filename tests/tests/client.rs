//! The stats client against agents that play scripts.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

use scx_vsock::{Endpoint, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use serde_json::json;

fn client(agent: &FakeAgent) -> SchedStatsClient {
    SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).deadline(DEADLINE).build()
}

#[test]
fn stats_are_the_resp_of_the_schedulers_answer() {
    let agent = FakeAgent::start([Script::agent()
        .expect(r#"{"req":"stats","args":{"target":"top"}}"#)
        .stats(r#"{"errno":0,"args":{"resp":{"nr":7}}}"#)]);
    assert_eq!(client(&agent).stats(&[("target", "top")]), Ok(json!({ "nr": 7 })));
}

#[test]
fn a_guest_without_a_scheduler_says_so_and_the_session_goes_on() {
    let agent = FakeAgent::start([Script::agent()
        .line()
        .send("{\"relay_error\":{\"no_scheduler\":{\"errno\":2,\"sched_ext\":\"disabled\",\"ops\":\"\"}}}\n")
        .line()
        .stats_number()]);
    let client = client(&agent);
    let error = client.stats(&[]).unwrap_err();
    assert!(matches!(&error, SchedStatsError::NoScheduler { reason } if reason.contains("disabled")), "{error}");
    assert_eq!(client.stats(&[]), Ok(json!(2)));
    assert_eq!(client.session(), 1);
    drop(client);
    agent.wait_for(&Event::Ended(0, 0));
}
