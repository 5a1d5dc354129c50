//! Freezes and cancel against calls in every phase.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter::repeat_with;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use scx_vsock::{Connect, Endpoint, RunControl, SchedStatsClient, SchedStatsError};
use scx_vsock_tests::agent::HELLO;
use scx_vsock_tests::fake_agent::{FakeAgent, framed};
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use serde_json::{Value, json};

fn client(agent: &FakeAgent, control: &RunControl) -> SchedStatsClient {
    SchedStatsClient::builder(Endpoint::Unix { path: agent.path() }).control(control).deadline(DEADLINE).build()
}

/// Sessions that never answer.
fn silent() -> impl Iterator<Item = Script> + Send + 'static {
    repeat_with(|| Script::agent().line().stall())
}

#[test]
fn a_thawed_freeze_still_ends_the_request() {
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
fn cancel_ends_all_waiting_calls() {
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
fn a_stopped_run_sends_nothing() {
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

/// Sessions whose other end goes to a receiver, with the run that the receiver then stops.
#[derive(Debug)]
struct Sessions {
    others: Sender<(UnixStream, RunControl)>,
    control: RunControl,
    then: fn(&RunControl),
}

impl Connect for Sessions {
    fn connect(&self) -> io::Result<OwnedFd> {
        let (session, other) = UnixStream::pair()?;
        self.others.send((other, self.control.clone())).unwrap();
        (self.then)(&self.control);
        Ok(session.into())
    }
}

impl fmt::Display for Sessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("sessions of a test")
    }
}

/// Asks once on a session of a new run.
fn ask(others: &Sender<(UnixStream, RunControl)>, then: fn(&RunControl)) -> Result<Value, SchedStatsError> {
    let control = RunControl::new();
    let sessions = Sessions { others: others.clone(), control: control.clone(), then };
    SchedStatsClient::builder(sessions).control(&control).deadline(DEADLINE).build().stats(&[])
}

#[test]
fn a_complete_answer_comes_before_the_stop() {
    let answer = [HELLO.as_bytes(), b"\n", &framed(r#"{"errno":0,"args":{"resp":1}}"#)].concat();
    for stop in [|control: &RunControl| drop(control.freeze()), RunControl::cancel] {
        let (others, sessions) = channel::<(UnixStream, RunControl)>();
        let answer = answer.clone();
        // Most often it runs as soon as the request is written, before the client goes on.
        let agent = thread::spawn(move || {
            for (session, control) in sessions {
                let mut session = BufReader::new(session);
                session.read_line(&mut String::new()).unwrap();
                session.get_mut().write_all(&answer).unwrap();
                stop(&control);
            }
        });
        for _ in 0..1_000 {
            assert_eq!(ask(&others, |_| {}), Ok(json!(1)));
        }
        drop(others);
        agent.join().unwrap();
    }
}

#[test]
fn a_stop_while_connecting_sends_nothing() {
    let (others, sessions) = channel();
    assert_eq!(ask(&others, |control| drop(control.freeze())), Err(SchedStatsError::DuringFreeze));
    let (mut session, mut sent) = (sessions.recv().unwrap().0, Vec::new());
    session.read_to_end(&mut sent).unwrap();
    assert_eq!(sent, b"");
}

#[test]
fn a_session_that_a_freeze_ends_is_a_freeze() {
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
