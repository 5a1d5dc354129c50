//! Poll clients over socket pairs, at virtual times.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use scx_vsock_wire::{Envelope, MAX_RESPONSE_BYTES, Text};

use super::super::decode;
use super::*;
use crate::stats::StatsRequest;

/// Connects to socket pairs that the test holds the other ends of.
struct Pairs(Mutex<VecDeque<OwnedFd>>);

impl fmt::Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pair")
    }
}

impl Connect for Pairs {
    fn connect(&self) -> io::Result<OwnedFd> {
        self.0.lock().unwrap().pop_front().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

fn over(streams: impl IntoIterator<Item = OwnedFd>) -> PollClient {
    PollClient::new(Pairs(Mutex::new(streams.into_iter().collect())))
}

/// A client with so many sessions to come, and the agents' ends.
fn client_of<const SESSIONS: usize>() -> (PollClient, [UnixStream; SESSIONS]) {
    let mut streams = VecDeque::new();
    let agents = std::array::from_fn(|_| {
        let (host, agent) = UnixStream::pair().unwrap();
        agent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        streams.push_back(host.into());
        agent
    });
    (over(streams), agents)
}

fn send_lines(mut agent: &UnixStream, lines: &[&str]) {
    for line in lines {
        agent.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn hello() -> String {
    String::from_utf8(Envelope::hello(Text::first_line(b"0.1.0"), Text::EMPTY, MAX_RESPONSE_BYTES).emit().to_vec())
        .unwrap()
        .trim_end()
        .to_owned()
}

const ONE: &str = r#"{"stats":{"errno":0,"args":{"resp":1}}}"#;
const TWO: &str = r#"{"stats":{"errno":0,"args":{"resp":2}}}"#;

fn start(client: &mut PollClient, now: Instant) {
    let line = StatsRequest::stats(&[]).line().unwrap();
    client.start(line, Deadline::after(now, Duration::from_secs(5))).unwrap();
}

fn on_ready(client: &mut PollClient, now: Instant) -> Poll<Result<u32, SchedStatsError>> {
    client.on_ready(now, decode::resp)
}

fn kind(poll: Poll<Result<u32, SchedStatsError>>) -> &'static str {
    match poll {
        Poll::Pending => "pending",
        Poll::Ready(Ok(_)) => "answer",
        Poll::Ready(Err(error)) => error.kind(),
    }
}

fn is_at_its_end(agent: &UnixStream) -> bool {
    let mut lines = BufReader::new(agent);
    lines.read_line(&mut String::new()).unwrap();
    matches!(lines.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn without_a_request_there_is_nothing_to_wait_for() {
    let (mut client, []) = client_of();
    assert!(client.fd().is_none() && client.deadline().is_none());
    assert_eq!(on_ready(&mut client, Instant::now()), Poll::Pending);
    assert_eq!(client.session(), 0);
}

#[test]
fn the_deadline_ends_the_session() {
    let (mut client, [agent]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    send_lines(&agent, &[&hello()]);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(client.interest(), Interest::Read);
    assert_eq!(client.deadline().unwrap().at(), now + Duration::from_secs(5));
    assert_eq!(on_ready(&mut client, now + Duration::from_millis(4999)), Poll::Pending);
    let ended = on_ready(&mut client, now + Duration::from_secs(5));
    assert_eq!(ended, Poll::Ready(Err(SchedStatsError::TimedOut { after_ms: 5000 })));
    assert!(client.fd().is_none());
    assert!(is_at_its_end(&agent));
}

#[test]
fn the_deadline_says_how_far_the_request_came() {
    let (mut client, [silent, waits, also_waits]) = client_of();
    let now = Instant::now();
    let deadline = Deadline::after(now, Duration::from_secs(5));
    let late = now + Duration::from_secs(5);
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(kind(on_ready(&mut client, late)), "agent_unreachable");
    drop(silent);

    let wait = || RequestLine::wait_scheduler(Duration::from_secs(5));
    client.start(wait(), deadline).unwrap();
    assert!(client.on_ready(now, decode::ready).is_pending());
    send_lines(&waits, &[&hello()]);
    let Poll::Ready(Err(error)) = client.on_ready(late, decode::ready) else { panic!("its time is over") };
    assert!(error.kind() == "no_scheduler" && client.yields_to_stops(&error), "{error}");

    // An answer of the agent's comes before stops, as any complete one.
    client.start(wait(), deadline).unwrap();
    send_lines(
        &also_waits,
        &[&hello(), r#"{"relay_error":{"no_scheduler":{"errno":2,"sched_ext":"disabled","ops":""}}}"#],
    );
    assert!(client.on_ready(now, decode::ready).is_pending());
    let Poll::Ready(Err(error)) = client.on_ready(late, decode::ready) else { panic!("its answer is there") };
    assert!(error.kind() == "no_scheduler" && !client.yields_to_stops(&error), "{error}");
    assert!(error.to_string().contains("no scheduler is loaded"), "{error}");
}

#[test]
fn a_complete_answer_comes_first() {
    let (mut client, [agent]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    send_lines(&agent, &[&hello(), ONE]);
    drop(agent);
    assert_eq!(on_ready(&mut client, now + Duration::from_secs(9)), Poll::Ready(Ok(1)));
}

#[test]
fn the_sessions_end_comes_before_the_deadline() {
    let (mut client, [agent]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    send_lines(&agent, &[&hello(), r#"{"relay_error":{"scheduler_gone":{"errno":0}}}"#]);
    drop(agent);
    assert_eq!(kind(on_ready(&mut client, now + Duration::from_secs(9))), "scheduler_gone");
}

#[test]
fn an_abandoned_answer_is_never_read() {
    let (mut client, [first, second]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    send_lines(&first, &[&hello(), ONE]);
    start(&mut client, now);
    assert!(is_at_its_end(&first));
    assert_eq!(client.session(), 2);
    send_lines(&second, &[&hello(), TWO]);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(on_ready(&mut client, now), Poll::Ready(Ok(2)));
}

#[test]
fn a_stopped_session_ends_at_once_and_is_closed_later() {
    let (mut client, [first, _second]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(client.give_up(SchedStatsError::Cancelled), SchedStatsError::Cancelled);
    assert!(client.fd().is_none() && client.shut_down.is_some());
    assert!(is_at_its_end(&first));
    assert_eq!((&first).write(b"late").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    start(&mut client, now);
    assert!(client.session() == 2 && client.shut_down.is_none());
    // Nothing of this request was written: the stream may still be connecting.
    client.give_up(SchedStatsError::Cancelled);
    assert!(client.shut_down.is_none());
}

#[test]
fn abandoning_keeps_an_idle_session() {
    let (mut client, [agent]) = client_of();
    let now = Instant::now();
    send_lines(&agent, &[&hello(), ONE]);
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(on_ready(&mut client, now), Poll::Ready(Ok(1)));
    client.abandon();
    start(&mut client, now);
    assert_eq!(client.session(), 1);
    client.abandon();
    assert!(client.fd().is_none());
}

#[test]
fn an_idle_session_that_ended_is_renewed() {
    for unsolicited in [TWO, r#"{"relay_error":{"scheduler_gone":{"errno":0}}}"#, ""] {
        let (mut client, [first, second]) = client_of();
        let now = Instant::now();
        send_lines(&first, &[&hello(), ONE]);
        start(&mut client, now);
        while on_ready(&mut client, now).is_pending() {}
        if !unsolicited.is_empty() {
            send_lines(&first, &[unsolicited]);
        }
        drop(first);
        send_lines(&second, &[&hello(), ONE]);
        start(&mut client, now);
        assert_eq!(client.session(), 2);
        assert_eq!(on_ready(&mut client, now), Poll::Pending);
        assert_eq!(on_ready(&mut client, now), Poll::Ready(Ok(1)));
    }
}

/// Reads a target at this time; returns the interval of the answer.
fn read(client: &mut PollClient, agent: &UnixStream, target: &str, now: Instant) -> Option<Duration> {
    let line = StatsRequest::stats(&[("target", target)]).line().unwrap();
    client.start(line, Deadline::after(now, Duration::from_secs(5))).unwrap();
    assert_eq!(on_ready(client, now), Poll::Pending);
    send_lines(agent, &[ONE]);
    assert_eq!(on_ready(client, now), Poll::Ready(Ok(1)));
    client.interval()
}

#[test]
fn an_answer_carries_the_time_since_its_targets_last_read() {
    const MS: Duration = Duration::from_millis(1);
    let (mut client, [agent, second]) = client_of();
    let now = Instant::now();
    send_lines(&agent, &[&hello()]);
    assert_eq!(read(&mut client, &agent, "top", now), None);
    assert_eq!(read(&mut client, &agent, "cpus", now + 100 * MS), None);
    assert_eq!(read(&mut client, &agent, "top", now + 506 * MS), Some(506 * MS));
    assert_eq!(read(&mut client, &agent, "cpus", now + 610 * MS), Some(510 * MS));

    // A raw line reads the same target, and a description reads none.
    let later = now + 700 * MS;
    client.start(RequestLine::new(br#"{"req":"stats"}"#).unwrap(), Deadline::after(later, 9 * MS)).unwrap();
    assert_eq!(on_ready(&mut client, later), Poll::Pending);
    send_lines(&agent, &[ONE]);
    assert_eq!(on_ready(&mut client, later), Poll::Ready(Ok(1)));
    client.start(StatsRequest::stats_meta().line().unwrap(), Deadline::after(later, 9 * MS)).unwrap();
    assert_eq!(on_ready(&mut client, later), Poll::Pending);
    assert_eq!(client.interval(), None);
    send_lines(&agent, &[ONE]);
    assert_eq!(on_ready(&mut client, later + 2 * MS), Poll::Ready(Ok(1)));
    assert_eq!(client.interval(), None);
    assert_eq!(read(&mut client, &agent, "top", now + 704 * MS), Some(4 * MS));

    // What is asked after a connection to another scheduler has a new baseline.
    start(&mut client, later);
    assert_eq!(on_ready(&mut client, later), Poll::Pending);
    send_lines(&agent, &[r#"{"relay_error":{"no_scheduler":{"errno":2,"sched_ext":"","ops":""}}}"#]);
    assert_eq!(kind(on_ready(&mut client, later)), "no_scheduler");
    assert_eq!((client.interval(), read(&mut client, &agent, "top", later)), (None, None));

    // So has another session.
    drop(agent);
    send_lines(&second, &[&hello()]);
    start(&mut client, later);
    assert_eq!(client.session(), 2);
    client.abandon();
}

#[test]
fn a_long_request_is_written_in_parts() {
    let (mut client, [agent]) = client_of();
    let now = Instant::now();
    let line = RequestLine::new(&vec![b'x'; scx_vsock_wire::MAX_REQUEST_BYTES - 1]).unwrap();
    client.start(line, Deadline::after(now, Duration::from_secs(5))).unwrap();
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(client.interest(), Interest::ReadWrite);
    let mut taken = 0;
    let mut piece = vec![0; 100_000];
    while client.interest() == Interest::ReadWrite {
        taken += (&agent).read(&mut piece).unwrap();
        assert_eq!(on_ready(&mut client, now), Poll::Pending);
    }
    (&agent).read_exact(&mut vec![0; scx_vsock_wire::MAX_REQUEST_BYTES - taken]).unwrap();
    send_lines(&agent, &[&hello(), ONE]);
    assert_eq!(on_ready(&mut client, now), Poll::Ready(Ok(1)));
}

#[test]
fn an_unreachable_agent_is_named() {
    let (mut client, []) = client_of();
    let line = StatsRequest::stats_meta().line().unwrap();
    let error = client.start(line, Deadline::after(Instant::now(), Duration::ZERO)).unwrap_err();
    assert_eq!(error, SchedStatsError::unreachable_by("pair", io::ErrorKind::ConnectionRefused.into()));
    assert_eq!(client.session(), 0);
}

#[test]
fn an_unconnected_stream_is_an_error() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let mut client = over([socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()]);
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(kind(on_ready(&mut client, now)), "agent_unreachable");
}

#[test]
fn a_session_is_opened_once() {
    let (mut client, [agent]) = client_of();
    let deadline = Deadline::after(Instant::now(), Duration::from_secs(5));
    client.open(deadline).unwrap();
    assert_eq!(client.interest(), Interest::Read);
    assert!(client.on_ready(Instant::now(), decode::opened).is_pending());
    send_lines(&agent, &[&hello()]);
    assert_eq!(client.on_ready(Instant::now(), decode::opened), Poll::Ready(Ok(())));
    assert_eq!(client.agent_version(), Some("0.1.0"));
    client.open(deadline).unwrap();
    assert_eq!(client.on_ready(Instant::now(), decode::opened), Poll::Ready(Ok(())));
    assert_eq!((client.session(), client.traffic().sent), (1, 0));
}

#[test]
fn only_a_streams_end_yields_to_stops() {
    let gone = SchedStatsError::SchedulerGone { errno: 0, cause: String::new() };
    let with_agent = over([]);
    assert!(with_agent.yields_to_stops(&SchedStatsError::TimedOut { after_ms: 1 }));
    assert!(with_agent.yields_to_stops(&SchedStatsError::unreachable("it ended")));
    assert!(!with_agent.yields_to_stops(&gone));
    assert!(PollClient::new(crate::Endpoint::Scx { path: "/stats".into() }).yields_to_stops(&gone));
}

#[test]
fn the_agents_version_is_known_after_hello() {
    let (mut client, [agent, second]) = client_of();
    let now = Instant::now();
    start(&mut client, now);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(client.agent_version(), None);
    send_lines(&agent, &[&hello()]);
    assert_eq!(on_ready(&mut client, now), Poll::Pending);
    assert_eq!(client.agent_version(), Some("0.1.0"));
    drop(agent);
    assert_eq!(kind(on_ready(&mut client, now)), "agent_unreachable");
    assert_eq!(client.agent_version(), Some("0.1.0"), "of the session that just ended");
    start(&mut client, now);
    assert_eq!(client.agent_version(), None);
    drop(second);
}

/// An address of a scheduler, which this host cannot reach.
struct Lacking(Pairs, Handshake);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Connect for Lacking {
    fn connect(&self) -> io::Result<OwnedFd> {
        self.0.connect()
    }

    fn handshake(&self) -> Handshake {
        self.1
    }

    fn missing_on_host(&self) -> Option<String> {
        Some("this host has no device".into())
    }
}

/// Returns the error of a request whose peer sends `text` and leaves.
fn error_after(handshake: Handshake, text: &[u8]) -> String {
    let (host, mut peer) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let now = Instant::now();
    let mut client = PollClient::new(Lacking(Pairs(Mutex::new(VecDeque::from([OwnedFd::from(host)]))), handshake));
    start(&mut client, now);
    assert_eq!(kind(on_ready(&mut client, now)), "pending", "the request is written");
    peer.write_all(text).unwrap();
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    match on_ready(&mut client, now) {
        Poll::Ready(Err(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_host_lacks_ends_the_message() {
    let error = error_after(Handshake::Hello, b"");
    assert!(error.starts_with("no agent to talk to: pair: the stream ended before"), "{error}");
    assert!(error.ends_with("; this host has no device"), "{error}");
}

#[test]
fn a_line_that_is_no_schedulers_names_the_address() {
    let error = error_after(Handshake::Plain, b"HTTP/1.1 400 Bad Request\n");
    assert!(error.starts_with("the answer is not what the protocol allows: pair: "), "{error}");
}
