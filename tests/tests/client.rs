//! The blocking client, and the machine under it, against agents that play scripts.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a helper of a test that fails is a test that fails"
)]

#[path = "client/suite.rs"]
mod suite;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use scx_vsock::client::{PollClient, decode};
use scx_vsock::io::Deadline;
use scx_vsock::stats::RequestLine;
use scx_vsock::{Connect, Endpoint, Sampler, SchedStatsClient as Client, SchedStatsError};
use scx_vsock_tests::fake_agent::FakeAgent;
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::Script;
use suite::{OK, client, counting, echoing};

#[test]
fn no_answer_is_an_abandoned_requests() {
    let agent = FakeAgent::start(echoing());
    let mut poll_client = PollClient::new(Endpoint::Unix { path: agent.path() });
    let mut turn = |line: &str, abandon: bool| {
        let deadline = Deadline::after(Instant::now(), DEADLINE);
        poll_client.start(RequestLine::new(line.as_bytes()).unwrap(), deadline).unwrap();
        loop {
            if let Poll::Ready(outcome) = poll_client.on_ready(Instant::now(), decode::raw) {
                return Some(outcome.unwrap());
            }
            if abandon {
                return None;
            }
            let mut fds = [PollFd::from_borrowed_fd(poll_client.fd().unwrap(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).unwrap();
        }
    };
    for round in 0..500 {
        assert_eq!(turn(&format!(r#"{{"abandoned":{round}}}"#), true), None);
        let line = format!(r#"{{"round":{round}}}"#);
        assert_eq!(turn(&line, false), Some(format!(r#"{{"args":{{"resp":{line}}}}}"#).into_bytes()));
    }
    // Each abandoned request but the first took the session of the answered one before it along.
    assert_eq!(poll_client.session(), 501);
}

#[test]
fn a_samples_interval_counts_from_any_clones_last_read() {
    const PAUSE: Duration = Duration::from_millis(150);
    let agent = FakeAgent::start([counting()]);
    let client = client(&agent);
    let mut sampler = Sampler::new(Some(client.clone()));
    sampler.prime().unwrap();
    thread::sleep(PAUSE);
    let began = Instant::now();
    client.stats(&[]).unwrap();
    let interval = sampler.sample("after a clone's read").interval_ms.unwrap();
    assert!(u128::from(interval) <= began.elapsed().as_millis(), "{interval} ms");

    thread::sleep(PAUSE);
    client.stats(&[("target", "cpus")]).unwrap();
    let sample = sampler.sample("after a read of another target");
    assert!(u128::from(sample.interval_ms.unwrap()) >= PAUSE.as_millis(), "{sample:?}");
    assert_eq!(sample.session, 1);
    let reading = client.read::<u64>(&[("target", "cpus")]).unwrap();
    assert_eq!((reading.value, reading.session, reading.interval.is_some()), (6, 1, true));
}

#[test]
fn a_sample_names_the_session_that_it_was_asked_on() {
    let refused = r#"{"errno":22,"args":{"resp":"no"}}"#;
    let agent = FakeAgent::start([Script::agent().line().stats(refused), Script::agent().line().stats(OK)]);
    let client = client(&agent);
    let mut sampler = Sampler::new(Some(client.clone()));
    let first = sampler.sample("");
    assert_eq!((first.session, first.stats.unwrap_err().kind()), (1, "scheduler_error"));
    let second = sampler.sample("");
    assert_eq!((second.session, second.interval_ms, second.stats.is_ok()), (2, None, true));
    let hurried = Sampler::new(Some(client.with_deadline(Duration::ZERO))).sample("");
    assert_eq!((hurried.session, hurried.stats.is_err()), (0, true), "it was asked on none");
}

#[test]
fn a_panic_poisons_all_clones() {
    struct Panics;
    impl fmt::Display for Panics {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("nowhere")
        }
    }
    impl Connect for Panics {
        fn connect(&self) -> io::Result<OwnedFd> {
            panic!("on purpose");
        }
    }
    let client = Client::builder(Panics).build();
    let clone = client.clone();
    thread::spawn(move || clone.stats(&[])).join().unwrap_err();
    for _ in 0..2 {
        assert_eq!(client.stats(&[]), Err(SchedStatsError::MutexPoisoned));
    }
}
