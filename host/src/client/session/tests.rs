//! Sessions as scripts of events, without a stream.

use proptest::prelude::*;
use scx_vsock_wire::{Envelope, RelayError, Text};

use super::*;

const STATS: &[u8] = br#"{"stats":{"errno":0,"args":{"resp":1}}}"#;
const ANSWER: Answer<'_> = Answer::Scheduler(br#"{"errno":0,"args":{"resp":1}}"#);
const GONE: &[u8] = br#"{"relay_error":{"scheduler_gone":{"errno":104}}}"#;

fn line() -> RequestLine {
    RequestLine::new(br#"{"req":"stats"}"#).unwrap()
}

fn request() -> Request {
    Request::Line(line())
}

fn hello() -> Vec<u8> {
    let text = |text: &'static str| Text::first_line(text.as_bytes());
    Envelope::hello(text("0.1.0"), text("an-id"), MAX_RESPONSE_BYTES).emit().to_vec()
}

/// A session whose first request is written.
fn pending() -> Session {
    let mut session = Session::open(Handshake::Hello, request());
    let all = session.unsent().len();
    assert_eq!(session.on_event(StreamEvent::Wrote(all)), None);
    session
}

fn receive(session: &mut Session, bytes: &[u8]) -> Option<Outcome> {
    session.room().extend_from_slice(bytes);
    session.on_event(StreamEvent::Received)
}

/// What a first request ends with when the agent sends these lines.
fn outcome(lines: &[&[u8]]) -> Option<Outcome> {
    receive(&mut pending(), &[lines.join(&b'\n'), b"\n".to_vec()].concat())
}

fn error(outcome: Option<Outcome>) -> SchedStatsError {
    outcome.unwrap().unwrap_err()
}

fn unreachable(outcome: Option<Outcome>) -> String {
    match error(outcome) {
        SchedStatsError::AgentUnreachable { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_may_be_written_before_hello() {
    let mut session = Session::open(Handshake::Hello, request());
    assert_eq!(session.unsent(), b"{\"req\":\"stats\"}\n");
    session.on_event(StreamEvent::Wrote(3));
    assert_eq!(session.unsent(), b"eq\":\"stats\"}\n");
    session.on_event(StreamEvent::Wrote(13));
    assert_eq!(session.unsent(), b"");
    assert_eq!(receive(&mut session, &hello()), None);
    assert_eq!(receive(&mut session, STATS), None);
    assert_eq!(receive(&mut session, b"\n"), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn an_idle_session_has_no_second_hello() {
    let mut session = pending();
    receive(&mut session, &[&hello(), STATS, b"\n"].concat());
    session.finish();
    assert!(session.is_idle());
    session.request(request());
    let all = session.unsent().len();
    session.on_event(StreamEvent::Wrote(all));
    assert_eq!(receive(&mut session, &[STATS, b"\n"].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn bytes_after_the_answer_close_the_session() {
    let mut session = pending();
    assert_eq!(receive(&mut session, &[&hello(), STATS, b"\n", GONE].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
    session.finish();
    assert!(!session.is_idle());
}

#[test]
fn a_session_can_be_opened_without_a_request() {
    let mut session = Session::open(Handshake::Hello, Request::Open);
    assert_eq!(session.unsent(), b"");
    assert_eq!(session.immediate_outcome(), None);
    assert_eq!(receive(&mut session, &hello()), Some(Ok(())));
    assert_eq!((session.answer(), session.agent_version()), (Answer::Opened, Some("0.1.0")));
    session.finish();
    assert!(session.is_idle());
    session.request(Request::Open);
    assert_eq!(session.immediate_outcome(), Some(Ok(())));
    session.finish();
    assert!(session.is_idle());
}

#[test]
fn versions_must_overlap() {
    let hello = |protocol: u32, min_protocol: u32| {
        format!(
            r#"{{"hello":{{"protocol":{protocol},"min_protocol":{min_protocol},"agent":"9.1","max_request_bytes":1,"max_response_bytes":1,"more":[]}}}}"#
        )
    };
    assert_eq!(outcome(&[hello(1, 1).as_bytes(), STATS]), Some(Ok(())));
    assert_eq!(outcome(&[hello(7, 1).as_bytes(), STATS]), Some(Ok(())));
    assert_eq!(outcome(&[hello(1, 0).as_bytes(), STATS]), Some(Ok(())));
    let newer = unreachable(outcome(&[hello(3, 2).as_bytes(), STATS]));
    assert!(newer.contains("agent 9.1 speaks protocol 2 to 3, this host 1 to 1"), "{newer}");
    unreachable(outcome(&[hello(0, 0).as_bytes(), STATS]));
}

#[test]
fn another_line_than_hello_is_quoted() {
    assert!(unreachable(outcome(&[b"SSH-2.0-OpenSSH_9.2"])).contains("\"SSH-2.0-OpenSSH_9.2\""));
    unreachable(outcome(&[STATS]));
    unreachable(outcome(&[br#"{"agent":{"scheduler_ready":{}}}"#]));
    unreachable(outcome(&[b""]));
    unreachable(receive(&mut pending(), &[b'x'; MAX_HELLO_BYTES]));
}

#[test]
fn a_busy_agent_sends_no_hello() {
    let busy = br#"{"relay_error":{"busy":{"sessions":8}}}"#;
    assert_eq!(error(outcome(&[busy])), SchedStatsError::AgentBusy { sessions: 8 });
}

#[test]
fn a_second_hello_is_no_answer() {
    let hello = hello();
    let hello = hello.trim_ascii_end();
    assert_eq!(error(outcome(&[hello, hello])), SchedStatsError::malformed("the agent sent hello twice"));
}

#[test]
fn the_agents_reason_explains_a_failed_write() {
    let mut session = Session::open(Handshake::Hello, request());
    session.on_event(StreamEvent::Wrote(1));
    assert_eq!(session.on_event(StreamEvent::WriteFailed(Errno::PIPE)), None);
    assert_eq!(session.unsent(), b"");
    let outcome = receive(&mut session, &[&hello(), GONE, b"\n"].concat());
    assert_eq!(error(outcome), SchedStatsError::SchedulerGone { errno: 104, cause: String::new() });
}

#[test]
fn a_failed_write_is_the_reason_otherwise() {
    let mut session = Session::open(Handshake::Hello, request());
    session.on_event(StreamEvent::WriteFailed(Errno::PIPE));
    let reason = unreachable(session.on_event(StreamEvent::Ended(None)));
    assert!(reason.contains("failed before the agent's hello: Broken pipe"), "{reason}");
}

#[test]
fn a_connection_that_failed_says_why() {
    let mut session = Session::open(Handshake::Hello, request());
    session.on_event(StreamEvent::WriteFailed(Errno::CONNRESET));
    let reason = unreachable(session.on_event(StreamEvent::Ended(Some(Errno::NOTCONN))));
    assert!(reason.contains("failed before the agent's hello: Connection reset by peer"), "{reason}");
}

#[test]
fn a_vmms_reply_instead_of_hello_names_the_scheme() {
    let mut session = Session::open(Handshake::Hello, request());
    let reason = unreachable(receive(&mut session, b"OK 1024\n"));
    assert_eq!(reason, "the first line is not an agent's hello: \"OK 1024\" (a VMM's socket is named hybrid:PATH)");
}

#[test]
fn an_answer_before_the_request_is_refused() {
    let mut session = Session::open(Handshake::Hello, request());
    session.on_event(StreamEvent::Wrote(1));
    let early = receive(&mut session, &[&hello(), STATS, b"\n"].concat());
    assert_eq!(error(early).kind(), "malformed_response");
}

#[test]
fn an_end_says_how_far_the_session_came() {
    let ended = |bytes: &[u8], errno| {
        let mut session = pending();
        assert_eq!(receive(&mut session, bytes), None);
        unreachable(session.on_event(StreamEvent::Ended(errno)))
    };
    assert!(ended(b"", None).starts_with("the stream ended before the agent's hello;"));
    assert!(
        ended(b"{", Some(Errno::CONNRESET)).starts_with("the stream failed before the agent's hello: Connection reset")
    );
    assert!(ended(&hello(), None).starts_with("the stream ended before the answer was complete;"));
    let torn = ended(&[&hello(), &STATS[..12]].concat(), None);
    assert!(torn.starts_with("the stream ended before the answer was complete, 12 bytes into a line;"), "{torn}");
}

#[test]
fn an_answer_may_have_the_cap_exactly() {
    let mut longest = vec![b' '; MAX_RESPONSE_BYTES - 1];
    let whole =
        |answer: &[u8]| receive(&mut pending(), &[&hello(), STATS_PREFIX, answer, STATS_SUFFIX, b"\n"].concat());
    assert_eq!(whole(&longest), Some(Ok(())));
    longest.push(b' ');
    let max = MAX_RESPONSE_BYTES;
    assert_eq!(error(whole(&longest)), SchedStatsError::ResponseTooLarge { size: max + 1, max });
}

#[test]
fn the_buffer_is_bounded_by_an_envelope() {
    let mut session = pending();
    receive(&mut session, &hello());
    for sent in (0..MAX_ENVELOPE_BYTES).step_by(1000) {
        assert!(session.room().capacity() <= (2 * sent.max(4096)).min(MAX_ENVELOPE_BYTES), "{sent}");
        let room = session.room().capacity() - session.room().len();
        assert!(room > 0);
        let piece = vec![b' '; 1000.min(MAX_ENVELOPE_BYTES - sent)];
        if receive(&mut session, &piece).is_some() {
            assert_eq!(sent + piece.len(), MAX_ENVELOPE_BYTES);
        }
    }
    session.finish();
    assert!(session.lines.capacity() <= KEPT_BYTES);
}

#[test]
fn some_relay_errors_keep_the_session() {
    let text = |text: &'static str| Text::first_line(text.as_bytes());
    let cases = [
        (
            RelayError::NoScheduler { errno: 2, sched_ext: text("disabled"), ops: text(""), cause: text("") },
            "no_scheduler",
            true,
        ),
        (RelayError::SchedulerGone { errno: 0, cause: text("") }, "scheduler_gone", false),
        (RelayError::UnsolicitedData {}, "malformed_response", false),
        (RelayError::RequestTooLarge { size: 2, max: 1 }, "request_too_large", true),
        (RelayError::ResponseTooLarge { size: 2, max: 1 }, "response_too_large", false),
        (RelayError::UnknownVerb {}, "agent_unreachable", false),
        (RelayError::Busy { sessions: 8 }, "agent_busy", false),
    ];
    for (relay_error, kind, keeps_session) in cases {
        let mut session = pending();
        let line = Envelope::RelayError(relay_error).emit();
        assert_eq!(error(receive(&mut session, &[hello(), line.to_vec()].concat())).kind(), kind);
        assert_eq!(session.is_idle(), keeps_session, "{kind}");
    }
}

/// Bytes that an agent could send, right or wrong.
fn agent_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just(hello()),
        4 => Just([STATS, b"\n"].concat()),
        2 => Just([GONE, b"\n"].concat()),
        1 => Just(br#"{"relay_error":{"busy":{"sessions":8}}}"#.to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

/// Feeds bytes in pieces, then the end; returns the outcome and the answer.
fn fed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Outcome, Vec<u8>) {
    let mut session = pending();
    let mut outcome = None;
    for piece in pieces {
        outcome = outcome.or(receive(&mut session, piece));
        if outcome.is_some() {
            break;
        }
    }
    let outcome = outcome.or_else(|| session.on_event(StreamEvent::Ended(None))).unwrap();
    let answer = match session.answer() {
        Answer::Scheduler(line) => line.to_vec(),
        Answer::Agent(AgentAnswer::SchedulerReady {}) => b"ready".to_vec(),
        Answer::Agent(AgentAnswer::SchedExt(said)) => serde_json::to_vec(said).unwrap(),
        Answer::Opened => b"opened".to_vec(),
    };
    (outcome, answer)
}

proptest! {
    #[test]
    fn any_split_has_the_same_outcome(
        bytes in agent_bytes(),
        size in 1usize..40,
    ) {
        let whole = fed(std::iter::once(&bytes[..]));
        prop_assert_eq!(fed(bytes.chunks(size)), whole.clone());
        prop_assert_eq!(fed(bytes.chunks(1)), whole);
    }

    #[test]
    fn any_bytes_end_in_one_outcome(bytes in proptest::collection::vec(any::<u8>(), 0..300), hello_first: bool) {
        let bytes = if hello_first { [hello(), bytes].concat() } else { bytes };
        let _any = fed(std::iter::once(&bytes[..]));
    }
}

// VMMs' hybrid sockets.

fn connecting() -> Session {
    Session::open(Handshake::Connect { port: 729 }, request())
}

/// A session whose CONNECT line is written.
fn connect_written() -> Session {
    let mut session = connecting();
    let all = session.unsent().len();
    assert_eq!(session.on_event(StreamEvent::Wrote(all)), None);
    session
}

#[test]
fn nothing_is_sent_between_connect_and_ok() {
    let mut session = connecting();
    assert_eq!(session.unsent(), b"CONNECT 729\n");
    session.on_event(StreamEvent::Wrote(8));
    assert_eq!(session.unsent(), b"729\n");
    session.on_event(StreamEvent::Wrote(4));
    assert_eq!(session.unsent(), b"");
    assert!(session.is_pending());
    assert_eq!(receive(&mut session, b"OK 10737"), None);
    assert_eq!(session.unsent(), b"");
    assert_eq!(receive(&mut session, b"41824\n"), None);
    assert_eq!(session.unsent(), line().as_bytes());
    session.on_event(StreamEvent::Wrote(line().as_bytes().len()));
    assert_eq!(receive(&mut session, &[&hello(), STATS, b"\n"].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn hello_may_come_with_ok() {
    let mut session = connect_written();
    assert_eq!(receive(&mut session, &[b"OK 1\n", &hello()[..]].concat()), None);
    let all = session.unsent().len();
    session.on_event(StreamEvent::Wrote(all));
    assert_eq!(receive(&mut session, &[STATS, b"\n"].concat()), Some(Ok(())));
    session.finish();
    assert!(session.is_idle());
}

#[test]
fn a_reply_other_than_ok_is_refused() {
    let longest = [b'O'; hybrid::MAX_REPLY_BYTES];
    for reply in [
        &b"OK\n"[..],
        b"OK \n",
        b"OK x\n",
        b"OK +1\n",
        b"OK 1\r\n",
        b"OK 1 \n",
        b"OK 4294967296\n",
        b"ok 1\n",
        b" OK 1\n",
        b"\n",
        b"ERR\n",
        &hello(),
        &longest,
    ] {
        let reason = unreachable(receive(&mut connect_written(), reply));
        assert!(reason.contains("the VMM replied \""), "{reason}");
    }
    let mut session = connect_written();
    assert_eq!(receive(&mut session, longest.get(1..).unwrap()), None);
}

#[test]
fn ok_before_connect_is_refused() {
    let mut session = connecting();
    session.on_event(StreamEvent::Wrote(3));
    let reason = unreachable(receive(&mut session, b"OK 1\n"));
    assert!(reason.contains("the VMM replied OK before CONNECT 729 was written"), "{reason}");
}

#[test]
fn a_vmm_that_closes_names_the_port() {
    let ended = |bytes: &[u8], errno| {
        let mut session = connect_written();
        assert_eq!(receive(&mut session, bytes), None);
        unreachable(session.on_event(StreamEvent::Ended(errno)))
    };
    assert_eq!(
        ended(b"", None),
        "the stream ended before the VMM replied OK; is the guest up, and its agent started on port 729?"
    );
    assert!(
        ended(b"OK", Some(Errno::CONNRESET))
            .starts_with("the stream failed before the VMM replied OK: Connection reset")
    );
    assert!(ended(b"OK", None).starts_with("the stream ended before the VMM replied OK, 2 bytes into a line;"));
    assert!(ended(b"OK 1\n", None).starts_with("the stream ended before the agent's hello;"));
    let mut session = connecting();
    session.on_event(StreamEvent::WriteFailed(Errno::PIPE));
    assert!(
        unreachable(session.on_event(StreamEvent::Ended(None)))
            .starts_with("the stream failed before the VMM replied OK: Broken pipe")
    );
}

// Schedulers without an agent.

fn plain() -> Session {
    let mut session = Session::open(Handshake::Plain, request());
    assert_eq!(session.immediate_outcome(), None);
    let all = session.unsent().len();
    session.on_event(StreamEvent::Wrote(all));
    session
}

#[test]
fn a_plain_answer_is_the_schedulers_whole_line() {
    let mut session = plain();
    let answer = br#"{"relay_error":{"busy":{"sessions":1}}}"#;
    assert_eq!(receive(&mut session, answer), None);
    assert_eq!(receive(&mut session, b"\n"), Some(Ok(())));
    assert_eq!(session.answer(), Answer::Scheduler(answer));
    session.finish();
    assert!(session.is_idle());
    session.request(request());
    let all = session.unsent().len();
    session.on_event(StreamEvent::Wrote(all));
    assert_eq!(receive(&mut session, b"{}\n{}"), Some(Ok(())));
    assert_eq!(session.answer(), Answer::Scheduler(b"{}"));
    session.finish();
    assert!(!session.is_idle(), "unsolicited bytes");
}

#[test]
fn a_plain_stream_that_ends_is_scheduler_gone() {
    let gone = |errno| {
        let mut session = plain();
        receive(&mut session, b"{");
        error(session.on_event(StreamEvent::Ended(errno)))
    };
    assert_eq!(gone(None), SchedStatsError::SchedulerGone { errno: 0, cause: String::new() });
    assert_eq!(gone(Some(Errno::CONNRESET)), SchedStatsError::SchedulerGone { errno: 104, cause: String::new() });
    let mut session = Session::open(Handshake::Plain, request());
    session.on_event(StreamEvent::WriteFailed(Errno::PIPE));
    assert_eq!(
        error(session.on_event(StreamEvent::Ended(None))),
        SchedStatsError::SchedulerGone { errno: 32, cause: String::new() }
    );
}

#[test]
fn a_plain_answer_has_the_schedulers_cap() {
    let mut longest = vec![b' '; MAX_RESPONSE_BYTES];
    let max = MAX_RESPONSE_BYTES;
    assert_eq!(error(receive(&mut plain(), &longest)), SchedStatsError::ResponseTooLarge { size: max + 1, max });
    *longest.last_mut().unwrap() = b'\n';
    assert_eq!(receive(&mut plain(), &longest), Some(Ok(())));
}

#[test]
fn a_plain_answer_before_the_request_is_refused() {
    let mut session = Session::open(Handshake::Plain, request());
    session.on_event(StreamEvent::Wrote(1));
    assert_eq!(error(receive(&mut session, b"{}\n")).kind(), "malformed_response");
}

#[test]
fn without_an_agent_no_line_for_one_is_answered() {
    let line = RequestLine::for_an_agent(br#"{"agent":{"sing":{}}}"#);
    let mut session = Session::open(Handshake::Plain, Request::Line(line));
    let Some(Err(error)) = session.immediate_outcome() else { panic!("no agent could answer it") };
    assert!(error.kind() == "invalid_request" && error.to_string().contains("there is no agent at"), "{error}");
    assert!(session.unsent().is_empty() && !session.is_idle());
}

#[test]
fn a_plain_scheduler_that_accepts_is_ready() {
    let mut session =
        Session::open(Handshake::Plain, Request::Line(RequestLine::wait_scheduler(std::time::Duration::from_secs(5))));
    assert_eq!(session.immediate_outcome(), Some(Ok(())));
    assert_eq!(session.unsent(), b"");
    assert_eq!(session.answer(), Answer::Agent(&AgentAnswer::SchedulerReady {}));
    session.finish();
    assert!(session.is_idle());
    let mut with_agent =
        Session::open(Handshake::Hello, Request::Line(RequestLine::wait_scheduler(std::time::Duration::from_secs(5))));
    assert_eq!(with_agent.immediate_outcome(), None);
}
