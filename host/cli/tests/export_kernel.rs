//! `scx-vsock export --kernel`: what guests' kernels say about sched_ext, beside their stats and without any.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::iter;
use std::process::Command;

use scx_vsock_tests::exporter::{Exporter, Metrics};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::scripted_scheduler::Script;
use scx_vsock_wire::RelayError;
use serde_json::{Value, json};

fn exporter_of(agent: &FakeAgent) -> Exporter {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scx-vsock"));
    command.args(["export", "--kernel", "--deadline", "30", "--interval", "100ms"]);
    command.arg(format!("g=unix:{}", agent.path().display()));
    Exporter::start(command)
}

fn answer(resp: &Value) -> String {
    json!({ "errno": 0, "args": { "resp": resp } }).to_string()
}

/// The answer to a request for the description.
fn described() -> Script {
    let meta = json!({ "T": { "name": "T", "top": "true", "fields": { "nr": { "datum": "u64" } } } });
    Script::agent().line().stats(answer(&meta))
}

fn stats() -> Script {
    Script::new().line().stats(answer(&json!({ "nr": 1 })))
}

/// What the kernel says after this many schedulers, of which the last has had this many events.
fn said(enable_seq: u64, events: u64) -> Value {
    json!({
        "state": "enabled", "ops": "a\"b", "enable_seq": enable_seq.to_string(), "uptime_us": 1,
        "events": { "SCX_EV_BYPASS_ACTIVATE": events.to_string() },
    })
}

const EVENTS: &str = r#"sched_ext_events_total{guest="g",event="SCX_EV_BYPASS_ACTIVATE"}"#;
const ENABLES: &str = r#"sched_ext_enables_total{guest="g"}"#;

#[test]
fn counters_go_on_across_schedulers() {
    let first = described().line().stats(answer(&json!({ "nr": 1 }))).sched_ext(&said(1, 5));
    let agent = FakeAgent::start(iter::once(first.forever(stats().sched_ext(&said(2, 3)))));
    let exporter = exporter_of(&agent);
    let page = exporter.scrape_until(|page: &Metrics| page.get(ENABLES) == Some("2"));
    assert_eq!(page.get(EVENTS), Some("8"), "{page:?}");
    assert_eq!(page.get(r#"sched_ext_state{guest="g",state="enabled"}"#), Some("1"));
    assert_eq!(page.get(r#"sched_ext_info{guest="g",ops="a\"b"}"#), Some("1"));
    assert_eq!(page.get(r#"scx_vsock_session{guest="g"}"#), Some("1"), "deltas keep their baseline");
}

#[test]
fn a_guest_without_a_scheduler_that_serves_stats_has_its_kernels() {
    let none = RelayError::NoScheduler { errno: 2, sched_ext: "enabled", ops: "simple", cause: "" };
    let reads = Script::new().line().relay_error(none).sched_ext(&said(1, 5));
    let agent = FakeAgent::start(iter::once(Script::agent().forever(reads)));
    let page = exporter_of(&agent).scrape_until(|page: &Metrics| page.get(EVENTS).is_some());
    assert_eq!((page.get(EVENTS), page.get(ENABLES)), (Some("5"), Some("1")), "{page:?}");
    assert_eq!(page.get(r#"scx_vsock_up{guest="g"}"#), Some("0"));
}

#[test]
fn an_agent_that_does_not_know_the_request_is_not_asked_again() {
    let first = described().line().stats(answer(&json!({ "nr": 1 }))).line().relay_error(RelayError::UnknownVerb {});
    let agent = FakeAgent::start(iter::once(first).chain(iter::repeat(described().forever(stats()))));
    let exporter = exporter_of(&agent);
    let (accumulated, session) = (r#"scx_nr_accumulated_total{guest="g"}"#, r#"scx_vsock_session{guest="g"}"#);
    let before = exporter.scrape_until(|page: &Metrics| page.number(accumulated) >= Some(1.0));
    let page = exporter.scrape_until(|page: &Metrics| page.number(accumulated) >= Some(4.0));
    // Each request in vain would have ended a session, of whose first answer nothing is added.
    assert_eq!(page.get(session), before.get(session), "{page:?}");
    assert_eq!((page.get(ENABLES), page.get(EVENTS)), (None, None));
}
