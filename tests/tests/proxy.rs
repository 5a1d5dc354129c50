//! A proxy of a guest's scheduler, with clients that behave and clients that do not.
#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::iter::repeat_n;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use scx_vsock::io::OwnedUnixListener;
use scx_vsock::proxy::{MAX_CLIENTS, Proxy};
use scx_vsock::{Endpoint, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, StatsResponse};
use scx_vsock_tests::agent::Agent;
use scx_vsock_tests::fake_agent::{FakeAgent, framed};
use scx_vsock_tests::peer::{DEADLINE, Peer};
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use tempfile::TempDir;

const SHORT: Duration = Duration::from_millis(200);
const REQUEST: &str = "{\"req\":\"stats\"}\n";

/// A proxy on a thread of its own, until it is dropped.
struct RunningProxy {
    folder: TempDir,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl RunningProxy {
    fn of(agent: PathBuf, deadline: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = OwnedUnixListener::bind_privately(folder.path().join("stats")).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let mut proxy = Proxy::new(Endpoint::Unix { path: agent }).unwrap().deadline(deadline);
        proxy.listen(socket.listener().try_clone().unwrap()).unwrap();
        let thread = thread::spawn(move || {
            let _socket = socket;
            assert_eq!(proxy.run(&[stopped.as_fd()]).unwrap(), 0);
        });
        Self { folder, stop: Some(stop), thread: Some(thread) }
    }

    fn client(&self) -> Peer {
        Peer::connect(&self.folder.path().join("stats"))
    }
}

impl Drop for RunningProxy {
    fn drop(&mut self) {
        self.stop.take();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the proxy panicked");
    }
}

/// Returns an agent that plays these sessions, and a proxy of it.
fn playing(sessions: impl IntoIterator<Item = Script, IntoIter: Send + 'static>) -> (FakeAgent, RunningProxy) {
    let agent = FakeAgent::start(sessions);
    let proxy = RunningProxy::of(agent.path(), DEADLINE);
    (agent, proxy)
}

/// Returns a session that answers each request with the number of requests that all sessions have read.
fn counting() -> Script {
    Script::agent().forever(Script::new().line().stats_number())
}

/// Reads the errno and text of an error.
fn error(client: &mut Peer) -> (i32, String) {
    let line = client.line();
    let response: StatsResponse = serde_json::from_slice(&line).unwrap();
    assert!(response.errno != 0 && line.ends_with(b"\n"), "{response:?}");
    (response.errno, response.args.get("resp").unwrap().as_str().unwrap().to_owned())
}

fn number(n: u32) -> String {
    format!("{{\"errno\":0,\"args\":{{\"resp\":{n}}}}}")
}

#[test]
fn each_client_keeps_its_own_session() {
    let (agent, proxy) = playing([counting(), counting()]);
    let (mut first, mut second) = (proxy.client(), proxy.client());
    for n in 1..=2 {
        first.send(REQUEST);
        first.expect(number(n));
    }
    second.send(REQUEST);
    second.expect(number(3));
    first.send(REQUEST);
    first.expect(number(4));
    drop(first);
    agent.wait_for(&Event::Ended(0, 0));
    second.send(REQUEST);
    second.expect(number(5));
}

#[test]
fn answers_and_requests_pass_byte_for_byte() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let proxy = RunningProxy::of(agent.host_path(0), DEADLINE);
    let mut client = proxy.client();
    client.send(" {\"req\" : \"stats\", \"args\":{\"x\":\"\u{e9}\"}} \n");
    let mut scheduler = Peer::accept(&listener);
    scheduler.expect(" {\"req\" : \"stats\", \"args\":{\"x\":\"\u{e9}\"}} ");
    let answer = " { \"args\":{\"resp\":1.0e2, \"b\":[]} , \"errno\" : 0, \"later\":\"\\u00e9\" } ";
    scheduler.send(format!("{answer}\n"));
    client.expect(answer);
    let longest = format!("{{\"args\":{{\"resp\":\"{}\"}}}}", "x".repeat(MAX_RESPONSE_BYTES - 21));
    assert_eq!(longest.len() + 1, MAX_RESPONSE_BYTES);
    client.send(REQUEST);
    scheduler.line();
    scheduler.send(format!("{longest}\n"));
    client.expect(longest);
}

#[test]
fn a_schedulers_error_keeps_the_session() {
    let refused = "{\"errno\":22,\"args\":{\"resp\":\"no such target\"}}";
    let script = Script::agent().line().stats(refused).line().stats_number();
    let (_agent, proxy) = playing([script]);
    let mut client = proxy.client();
    client.send(REQUEST);
    client.expect(refused);
    client.send(REQUEST);
    client.expect(number(2));
}

#[test]
fn pipelined_requests_are_answered_after_a_half_close() {
    let (_agent, proxy) = playing([counting()]);
    let mut client = proxy.client();
    // The last line has no end.
    client.send([REQUEST, REQUEST, REQUEST.trim_end()].concat());
    client.finish();
    for n in 1..=3 {
        client.expect(number(n));
    }
    client.expect_end();
}

#[test]
fn invalid_lines_are_answered_with_errors() {
    let (_agent, proxy) = playing([counting()]);
    let mut client = proxy.client();
    let long = [vec![b'x'; MAX_REQUEST_BYTES], vec![b'\n']].concat();
    client.send(&long);
    let (errno, text) = error(&mut client);
    let expected = format!("has {} bytes, more than the {MAX_REQUEST_BYTES}", MAX_REQUEST_BYTES + 1);
    assert!(errno == 90 && text.contains(&expected), "{errno} {text}");
    client.send("\n{\"agent\":\"wait_scheduler\"}\n");
    assert_eq!(error(&mut client).0, 22);
    let (errno, text) = error(&mut client);
    assert!(errno == 22 && text.contains("is for the agent"), "{errno} {text}");
    client.send(REQUEST);
    client.expect(number(1));
}

#[test]
fn every_failure_is_answered() {
    let nowhere = RunningProxy::of("/nowhere/agent".into(), DEADLINE);
    let mut client = nowhere.client();
    client.send(REQUEST);
    let (errno, text) = error(&mut client);
    assert!(errno == 113 && text.starts_with("scx-vsock: no agent to talk to: unix:/nowhere/agent"), "{text}");
    client.expect_end();

    let silent = FakeAgent::start([Script::new()]);
    let proxy = RunningProxy::of(silent.path(), SHORT);
    let mut client = proxy.client();
    client.send(REQUEST);
    let (errno, text) = error(&mut client);
    assert!(errno == 113 && text.contains("no hello within 200 ms"), "{errno} {text}");
    client.expect_end();

    let agent = Agent::start();
    let proxy = RunningProxy::of(agent.host_path(0), SHORT);
    let mut client = proxy.client();
    client.send(REQUEST);
    assert_eq!(error(&mut client).0, 2);
    // The same client is served as soon as there is a scheduler.
    let listener = agent.scheduler();
    client.send(REQUEST);
    let mut scheduler = Peer::accept(&listener);
    scheduler.line();
    scheduler.send(format!("{}\n", number(1)));
    client.expect(number(1));
    client.send(REQUEST);
    scheduler.line();
    let (errno, text) = error(&mut client);
    assert!(errno == 110 && text.contains("no answer within 200 ms"), "{errno} {text}");
    client.expect_end();

    let mut client = proxy.client();
    client.send(REQUEST);
    let mut scheduler = Peer::accept(&listener);
    scheduler.line();
    scheduler.send("{\"errno\":0,");
    drop(scheduler);
    assert_eq!(error(&mut client).0, 104);
    client.expect_end();
}

#[test]
fn an_idle_session_is_never_replaced_silently() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let proxy = RunningProxy::of(agent.host_path(0), DEADLINE);
    let mut client = proxy.client();
    client.send(REQUEST);
    let mut scheduler = Peer::accept(&listener);
    scheduler.line();
    scheduler.send(format!("{}\n", number(1)));
    client.expect(number(1));
    drop(scheduler);
    // Once the agent has served another host, it has also ended the proxy's session.
    let mut host = agent.host();
    host.send(REQUEST);
    let mut other = Peer::accept(&listener);
    other.line();
    other.send(format!("{}\n", number(1)));
    host.expect(String::from_utf8(framed(number(1))).unwrap().trim_end());
    client.send(REQUEST);
    let (errno, text) = error(&mut client);
    assert!(errno == 104 && text.ends_with("connect again"), "{errno} {text}");
    client.expect_end();
    let mut again = proxy.client();
    again.send(REQUEST);
    let mut scheduler = Peer::accept(&listener);
    scheduler.line();
    scheduler.send(format!("{}\n", number(2)));
    again.expect(number(2));
}

#[test]
fn a_client_that_closes_frees_its_session() {
    let stalls = Script::agent().line().stall();
    let (agent, proxy) = playing([stalls]);
    let mut client = proxy.client();
    client.send(REQUEST);
    agent.wait_for(&Event::Stalled(0));
    drop(client);
    agent.release();
    agent.wait_for(&Event::Ended(0, 0));
}

#[test]
fn a_client_that_never_reads_delays_nobody() {
    let long = format!("{{\"args\":{{\"resp\":\"{}\"}}}}", "x".repeat(200_000));
    let greedy = Script::agent().forever(Script::new().line().stats(long));
    let agent = FakeAgent::start([greedy, counting()]);
    let proxy = RunningProxy::of(agent.path(), Duration::from_millis(500));
    let mut deaf = proxy.client();
    deaf.send(REQUEST.repeat(100));
    agent.wait_for(&Event::Read(0, REQUEST.trim_end().into()));
    let started = Instant::now();
    let mut client = proxy.client();
    client.send(REQUEST);
    assert!(client.line().starts_with(b"{\"errno\":0"));
    agent.wait_for(&Event::Ended(0, 0));
    assert!(started.elapsed() < DEADLINE);
}

#[test]
fn one_client_too_many_is_rejected() {
    let (_agent, proxy) = playing(repeat_n(counting(), 1));
    let mut served: Vec<Peer> = (0..MAX_CLIENTS).map(|_| proxy.client()).collect();
    let mut one_more = proxy.client();
    let (errno, text) = error(&mut one_more);
    assert!(errno == 16 && text.contains("64 clients are served already"), "{errno} {text}");
    one_more.expect_end();
    let last = served.last_mut().unwrap();
    last.send(REQUEST);
    last.expect(number(1));
}

#[test]
fn an_unfinished_line_delays_nobody() {
    let (_agent, proxy) = playing([counting()]);
    let mut slow = proxy.client();
    slow.send("{\"req\":");
    let mut client = proxy.client();
    client.send(REQUEST);
    client.expect(number(1));
    // It is not a request, and is never sent to the guest.
    drop(slow);
    client.send(REQUEST);
    client.expect(number(2));
}
