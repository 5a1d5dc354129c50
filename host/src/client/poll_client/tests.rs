//! Conversations over socket pairs, at virtual times.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use scx_vsock_wire::{Envelope, Text};

use super::super::decode;
use super::*;
use crate::stats::StatsRequest;

/// Leads to socket pairs that the test holds the other ends of.
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

/// A conversation with so many sessions to come, and the agents' ends.
fn conversation<const SESSIONS: usize>() -> (PollClient, [UnixStream; SESSIONS]) {
    let mut streams = VecDeque::new();
    let agents = std::array::from_fn(|_| {
        let (host, agent) = UnixStream::pair().unwrap();
        agent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        streams.push_back(host.into());
        agent
    });
    (over(streams), agents)
}

fn say(mut agent: &UnixStream, lines: &[&str]) {
    for line in lines {
        agent.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn hello() -> String {
    String::from_utf8(
        Envelope::hello(Text::first_line(b"0.1.0"), Text::EMPTY, scx_vsock_wire::MAX_RESPONSE_BYTES).emit().to_vec(),
    )
    .unwrap()
    .trim_end()
    .to_owned()
}

const ONE: &str = r#"{"stats":{"errno":0,"args":{"resp":1}}}"#;
const TWO: &str = r#"{"stats":{"errno":0,"args":{"resp":2}}}"#;

fn start(conversation: &mut PollClient, now: Instant) {
    let line = StatsRequest::stats(&[]).line().unwrap();
    conversation.start(line, Deadline::after(now, Duration::from_secs(5))).unwrap();
}

fn turn(conversation: &mut PollClient, now: Instant) -> Poll<Result<u32, SchedStatsError>> {
    conversation.on_ready(now, decode::resp)
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
fn nothing_asked_is_nothing_to_wait_for() {
    let (mut conversation, []) = conversation();
    assert!(conversation.fd().is_none() && conversation.deadline().is_none());
    assert_eq!(turn(&mut conversation, Instant::now()), Poll::Pending);
    assert_eq!(conversation.session(), 0);
}

#[test]
fn a_request_ends_at_its_deadline_and_its_session_with_it() {
    let (mut conversation, [agent]) = conversation();
    let now = Instant::now();
    start(&mut conversation, now);
    say(&agent, &[&hello()]);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(conversation.interest(), Interest::Read);
    assert_eq!(conversation.deadline().unwrap().at(), now + Duration::from_secs(5));
    assert_eq!(turn(&mut conversation, now + Duration::from_millis(4999)), Poll::Pending);
    let ended = turn(&mut conversation, now + Duration::from_secs(5));
    assert_eq!(ended, Poll::Ready(Err(SchedStatsError::TimedOut { after_ms: 5000 })));
    assert!(conversation.fd().is_none());
    assert!(is_at_its_end(&agent));
}

#[test]
fn a_complete_answer_comes_before_the_sessions_end_and_the_deadline() {
    let (mut conversation, [agent]) = conversation();
    let now = Instant::now();
    start(&mut conversation, now);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    say(&agent, &[&hello(), ONE]);
    drop(agent);
    assert_eq!(turn(&mut conversation, now + Duration::from_secs(9)), Poll::Ready(Ok(1)));
}

#[test]
fn the_sessions_end_comes_before_the_deadline() {
    let (mut conversation, [agent]) = conversation();
    let now = Instant::now();
    start(&mut conversation, now);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    say(&agent, &[&hello(), r#"{"relay_error":{"scheduler_gone":{"errno":0}}}"#]);
    drop(agent);
    assert_eq!(kind(turn(&mut conversation, now + Duration::from_secs(9))), "scheduler_gone");
}

#[test]
fn an_abandoned_requests_answer_is_never_read() {
    let (mut conversation, [first, second]) = conversation();
    let now = Instant::now();
    start(&mut conversation, now);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    say(&first, &[&hello(), ONE]);
    start(&mut conversation, now);
    assert!(is_at_its_end(&first));
    assert_eq!(conversation.session(), 2);
    say(&second, &[&hello(), TWO]);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(turn(&mut conversation, now), Poll::Ready(Ok(2)));
}

#[test]
fn abandoning_spares_an_idle_session() {
    let (mut conversation, [agent]) = conversation();
    let now = Instant::now();
    say(&agent, &[&hello(), ONE]);
    start(&mut conversation, now);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(turn(&mut conversation, now), Poll::Ready(Ok(1)));
    conversation.abandon();
    start(&mut conversation, now);
    assert_eq!(conversation.session(), 1);
    conversation.abandon();
    assert!(conversation.fd().is_none());
}

#[test]
fn a_session_that_ended_or_spoke_while_idle_is_renewed() {
    for unasked in [TWO, r#"{"relay_error":{"scheduler_gone":{"errno":0}}}"#, ""] {
        let (mut conversation, [first, second]) = conversation();
        let now = Instant::now();
        say(&first, &[&hello(), ONE]);
        start(&mut conversation, now);
        while turn(&mut conversation, now).is_pending() {}
        if !unasked.is_empty() {
            say(&first, &[unasked]);
        }
        drop(first);
        say(&second, &[&hello(), ONE]);
        start(&mut conversation, now);
        assert_eq!(conversation.session(), 2);
        assert_eq!(turn(&mut conversation, now), Poll::Pending);
        assert_eq!(turn(&mut conversation, now), Poll::Ready(Ok(1)));
    }
}

#[test]
fn a_long_request_is_written_as_the_agent_takes_it() {
    let (mut conversation, [agent]) = conversation();
    let now = Instant::now();
    let line = RequestLine::new(&vec![b'x'; scx_vsock_wire::MAX_REQUEST_BYTES - 1]).unwrap();
    conversation.start(line, Deadline::after(now, Duration::from_secs(5))).unwrap();
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(conversation.interest(), Interest::ReadWrite);
    let mut taken = 0;
    let mut piece = vec![0; 100_000];
    while conversation.interest() == Interest::ReadWrite {
        taken += (&agent).read(&mut piece).unwrap();
        assert_eq!(turn(&mut conversation, now), Poll::Pending);
    }
    (&agent).read_exact(&mut vec![0; scx_vsock_wire::MAX_REQUEST_BYTES - taken]).unwrap();
    say(&agent, &[&hello(), ONE]);
    assert_eq!(turn(&mut conversation, now), Poll::Ready(Ok(1)));
}

#[test]
fn no_way_to_the_agent_names_the_place() {
    let (mut conversation, []) = conversation();
    let line = StatsRequest::stats_meta().line().unwrap();
    let error = conversation.start(line, Deadline::after(Instant::now(), Duration::ZERO)).unwrap_err();
    let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    assert_eq!(error, SchedStatsError::unreachable_by("pair: cannot connect", refused));
    assert_eq!(conversation.session(), 0);
}

#[test]
fn a_stream_that_nobody_connects_is_an_error_at_once() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let mut conversation = over([socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()]);
    let now = Instant::now();
    start(&mut conversation, now);
    assert_eq!(kind(turn(&mut conversation, now)), "agent_unreachable");
}

#[test]
fn a_streams_end_yields_to_stops_and_an_agents_word_does_not() {
    let gone = SchedStatsError::SchedulerGone { errno: 0, cause: String::new() };
    let with_agent = over([]);
    assert!(with_agent.yields_to_stops(&SchedStatsError::TimedOut { after_ms: 1 }));
    assert!(with_agent.yields_to_stops(&SchedStatsError::unreachable("it ended")));
    assert!(!with_agent.yields_to_stops(&gone));
    assert!(PollClient::new(crate::Endpoint::Scx { path: "/stats".into() }).yields_to_stops(&gone));
}

#[test]
fn the_agents_version_is_known_from_its_hello_on() {
    let (mut conversation, [agent, second]) = conversation();
    let now = Instant::now();
    start(&mut conversation, now);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(conversation.agent(), None);
    say(&agent, &[&hello()]);
    assert_eq!(turn(&mut conversation, now), Poll::Pending);
    assert_eq!(conversation.agent(), Some("0.1.0"));
    drop(agent);
    assert_eq!(kind(turn(&mut conversation, now)), "agent_unreachable");
    assert_eq!(conversation.agent(), Some("0.1.0"), "of the session that just ended");
    start(&mut conversation, now);
    assert_eq!(conversation.agent(), None);
    drop(second);
}
