//! What values leave behind that are dropped in the midst of it, in a process of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::iter::repeat_with;
use std::time::Duration;

use scx_vsock::{Endpoint, RunControl, SchedStatsClient};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::scripted_scheduler::Script;

#[test]
fn values_that_are_dropped_in_the_midst_of_it_leave_no_thread_and_no_descriptor() {
    let again = Script::new().line().stats_number();
    let agent = FakeAgent::start(repeat_with(move || Script::agent().forever(again.clone())));
    let before = left_behind();
    for round in 0..1_000u32 {
        let control = RunControl::new();
        let client = SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).control(&control).build();
        let watchdog = control.watchdog(Duration::from_secs(60)).unwrap();
        if round % 3 == 0 {
            client.stats(&[]).unwrap();
        }
        let frozen = (round % 4 == 0).then(|| control.freeze());
        if round % 5 == 0 {
            drop(client.clone());
        }
        match round % 2 {
            0 => drop((watchdog, frozen, client)),
            _ => drop((client, control, watchdog, frozen)),
        }
    }
    assert_eq!(left_behind(), before);
}

/// Descriptors of this test, and threads that it could have started. The agent's side is of this process, and its
/// connections close when it has read their ends: they are not counted.
fn left_behind() -> (usize, usize) {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let events = links.filter(|link| link.to_string_lossy().contains("eventfd")).count();
    let threads = fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        fs::read_to_string(task.ok()?.path().join("comm")).ok().filter(|name| name.trim() == "watchdog")
    });
    (events, threads.count())
}
