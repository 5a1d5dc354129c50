//! The host library in a process that was forked while it was in use.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]
#![allow(unsafe_code, reason = "only a fork inherits a session")]

use std::iter::repeat_with;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use scx_vsock::sample::{BackgroundSampler, Schedule};
use scx_vsock::{Endpoint, RunControl, Sampler, SchedStatsClient};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use serde_json::Value;

/// Seconds after which a forked process is killed.
const CHILD_SECONDS: u32 = 60;

/// Forks this process. `child` runs in the new one, whose exit status is 0 unless it panics or takes too long.
fn fork(child: impl FnOnce()) -> Pid {
    // SAFETY: the new process only runs `child`, whose allocations glibc allows after a fork, and ends without a return.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: it sets a timer of the process and touches no memory.
            unsafe { libc::alarm(CHILD_SECONDS) };
            let outcome = catch_unwind(AssertUnwindSafe(child));
            // SAFETY: it ends the process and runs nothing of it any more.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => Pid::from_raw(pid).expect("fork failed"),
    }
}

fn exit_status(child: Pid) -> Option<i32> {
    let (_, status) = waitpid(Some(child), WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}

/// Asks for a number that the agent echoes, and checks that the answer has it.
fn request(client: &SchedStatsClient, number: u32) {
    let number = number.to_string();
    let echo: Value = client.stats(&[("number", &number)]).unwrap();
    assert_eq!(echo["args"]["number"], *number);
}

#[test]
fn a_forked_process_opens_its_own_session() {
    let echo = Script::new().line().send_echo(r#"{"stats":{"args":{"resp":"#, "}}}\n");
    let agent = FakeAgent::start(repeat_with(move || Script::agent().forever(echo.clone())));
    let client = SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).deadline(DEADLINE).build();
    request(&client, 0);
    for round in 1..=20 {
        let child = fork(|| {
            (0..5).for_each(|step| request(&client, 1_000 * round + step));
            assert_eq!(client.session(), 2, "the child's own session");
        });
        (0..5).for_each(|step| request(&client, 100 * round + step));
        assert_eq!(exit_status(child), Some(0), "the child of round {round} failed");
        assert_eq!(client.session(), 1, "the parent keeps its session");
    }
}

#[test]
fn a_forked_process_can_drop_a_background_sampler() {
    let never = Schedule::Every(Duration::from_secs(3_600));
    let stop = |mut sampler: BackgroundSampler| assert!(sampler.stop().is_none());
    for forked in [stop as fn(BackgroundSampler), drop] {
        let agent = FakeAgent::start(repeat_with(|| Script::agent().line().stall()));
        let client = SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).deadline(DEADLINE).build();
        let sampler = Sampler::new(Some(client)).spawn_buffered(never.clone(), 9).unwrap();
        // Its thread is in a call.
        agent.wait_for(&Event::Stalled(0));
        let mut sampler = Some(sampler);
        let child = fork(|| {
            let inherited = sampler.take().unwrap();
            assert!(inherited.is_finished() && inherited.take_samples().samples().is_empty());
            assert_eq!((inherited.stats().taken, format!("{inherited:?}").is_empty()), (0, false));
            forked(inherited);
        });
        assert_eq!(exit_status(child), Some(0));
        let sampler = sampler.as_mut().unwrap();
        assert!(!sampler.is_finished(), "the parent's sampler goes on");
        assert!(sampler.stop().is_some());
        agent.release();
    }
}

#[test]
fn a_forked_process_can_drop_a_watchdog() {
    let watchdog = RunControl::new().watchdog(DEADLINE).unwrap();
    let child = fork(move || drop(watchdog));
    assert_eq!(exit_status(child), Some(0));
}
