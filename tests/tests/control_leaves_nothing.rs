//! Values that are dropped while they are in use leave no thread and no descriptor. In a process of its own.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::thread;
use std::time::{Duration, Instant};

use scx_vsock::client::{PollClient, decode};
use scx_vsock::io::Deadline;
use scx_vsock::sample::Schedule;
use scx_vsock::{Endpoint, RunControl, Sampler, SchedStatsClient, StatsRequest};
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::held_resources::descriptors_and_threads;
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn dropped_values_leave_nothing() {
    // The agent is a process of its own. Nobody accepts from this scheduler, so every request stays unanswered.
    let agent = Agent::start();
    let scheduler = agent.scheduler();
    let endpoint = Endpoint::Unix { path: agent.host_path(0) };
    let before = descriptors_and_threads();
    for round in 0..1_000u32 {
        let control = RunControl::new();
        let client = SchedStatsClient::builder(endpoint.clone()).control(&control).deadline(HOUR).build();
        let watchdog = control.watchdog(HOUR).unwrap();
        let spawned = Sampler::new(Some(client.clone())).spawn_buffered(Schedule::Every(HOUR), 1).unwrap();
        let mut poll_client = PollClient::new(endpoint.clone());
        if round % 3 == 0 {
            let line = StatsRequest::stats(&[]).line().unwrap();
            poll_client.start(line, Deadline::after(Instant::now(), HOUR)).unwrap();
            assert!(poll_client.on_ready(Instant::now(), decode::resp::<Value>).is_pending());
        }
        let frozen = (round % 4 == 0).then(|| control.freeze());
        let in_flight = (round % 5 == 0).then(|| {
            let (client, control) = (client.clone(), control.clone());
            let request = thread::spawn(move || client.stats(&[]).unwrap_err());
            control.cancel();
            request
        });
        match round % 3 {
            0 => drop((watchdog, spawned, frozen, poll_client, client)),
            1 => drop((client, poll_client, control, spawned, watchdog, frozen)),
            _ => drop((frozen, control, poll_client, client, watchdog, spawned)),
        }
        if let Some(request) = in_flight {
            request.join().unwrap();
        }
    }
    let after = descriptors_and_threads();
    assert_eq!(after.0, before.0, "descriptors");
    // A thread that was joined may still be on its way out of the kernel.
    assert!(after.1 < before.1 + 5, "{} threads, before {}", after.1, before.1);
    drop(scheduler);
}
