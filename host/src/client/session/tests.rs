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

fn hello() -> Vec<u8> {
    let text = |text: &'static str| Text::first_line(text.as_bytes());
    Envelope::hello(text("0.1.0"), text("an-id"), MAX_RESPONSE_BYTES).emit().to_vec()
}

/// A session whose first request is written.
fn asked() -> Session {
    let mut session = Session::open(Greeting::Hello, line());
    let all = session.unsent().len();
    assert_eq!(session.process(Event::Wrote(all)), None);
    session
}

fn receive(session: &mut Session, bytes: &[u8]) -> Option<Outcome> {
    session.spare().extend_from_slice(bytes);
    session.process(Event::Received)
}

/// What a first request ends with when the agent sends these lines.
fn outcome(lines: &[&[u8]]) -> Option<Outcome> {
    receive(&mut asked(), &[lines.join(&b'\n'), b"\n".to_vec()].concat())
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
fn a_request_may_be_written_before_hello_is_read() {
    let mut session = Session::open(Greeting::Hello, line());
    assert_eq!(session.unsent(), b"{\"req\":\"stats\"}\n");
    session.process(Event::Wrote(3));
    assert_eq!(session.unsent(), b"eq\":\"stats\"}\n");
    session.process(Event::Wrote(13));
    assert_eq!(session.unsent(), b"");
    assert_eq!(receive(&mut session, &hello()), None);
    assert_eq!(receive(&mut session, STATS), None);
    assert_eq!(receive(&mut session, b"\n"), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn an_idle_session_carries_the_next_request_without_another_hello() {
    let mut session = asked();
    receive(&mut session, &[&hello(), STATS, b"\n"].concat());
    session.rest();
    assert!(session.is_idle());
    session.ask(line());
    let all = session.unsent().len();
    session.process(Event::Wrote(all));
    assert_eq!(receive(&mut session, &[STATS, b"\n"].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn a_session_is_over_when_more_than_the_answer_came() {
    let mut session = asked();
    assert_eq!(receive(&mut session, &[&hello(), STATS, b"\n", GONE].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
    session.rest();
    assert!(!session.is_idle());
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
fn what_stands_where_hello_must_be_is_shown() {
    assert!(unreachable(outcome(&[b"SSH-2.0-OpenSSH_9.2"])).contains("\"SSH-2.0-OpenSSH_9.2\""));
    unreachable(outcome(&[STATS]));
    unreachable(outcome(&[br#"{"agent":{"scheduler_ready":{}}}"#]));
    unreachable(outcome(&[b""]));
    unreachable(receive(&mut asked(), &[b'x'; MAX_HELLO_BYTES]));
}

#[test]
fn a_taken_agent_says_busy_instead_of_hello() {
    let busy = br#"{"relay_error":{"busy":{"sessions":8}}}"#;
    assert_eq!(error(outcome(&[busy])), SchedStatsError::AgentBusy { sessions: 8 });
}

#[test]
fn a_second_hello_is_no_answer() {
    let hello = hello();
    let hello = hello.trim_ascii_end();
    assert_eq!(error(outcome(&[hello, hello])), SchedStatsError::malformed("a second hello"));
}

#[test]
fn after_a_failed_write_what_the_agent_said_is_why() {
    let mut session = Session::open(Greeting::Hello, line());
    session.process(Event::Wrote(1));
    assert_eq!(session.process(Event::WriteFailed(Errno::PIPE)), None);
    assert_eq!(session.unsent(), b"");
    let said = receive(&mut session, &[&hello(), GONE, b"\n"].concat());
    assert_eq!(error(said), SchedStatsError::SchedulerGone { errno: 104, cause: String::new() });
}

#[test]
fn after_a_failed_write_and_nothing_said_the_write_is_why() {
    let mut session = Session::open(Greeting::Hello, line());
    session.process(Event::WriteFailed(Errno::PIPE));
    let reason = unreachable(session.process(Event::Ended(None)));
    assert!(reason.contains("failed before its hello: Broken pipe"), "{reason}");
}

#[test]
fn a_connection_that_was_never_made_says_why() {
    let mut session = Session::open(Greeting::Hello, line());
    session.process(Event::WriteFailed(Errno::CONNRESET));
    let reason = unreachable(session.process(Event::Ended(Some(Errno::NOTCONN))));
    assert!(reason.contains("failed before its hello: Connection reset by peer"), "{reason}");
}

#[test]
fn an_answer_before_the_request_is_written_is_refused() {
    let mut session = Session::open(Greeting::Hello, line());
    session.process(Event::Wrote(1));
    let early = receive(&mut session, &[&hello(), STATS, b"\n"].concat());
    assert_eq!(error(early).kind(), "malformed_response");
}

#[test]
fn an_end_says_how_far_the_session_had_come() {
    let ended = |bytes: &[u8], errno| {
        let mut session = asked();
        assert_eq!(receive(&mut session, bytes), None);
        unreachable(session.process(Event::Ended(errno)))
    };
    assert!(ended(b"", None).starts_with("the stream ended before its hello;"));
    assert!(ended(b"{", Some(Errno::CONNRESET)).starts_with("the stream failed before its hello: Connection reset"));
    assert!(ended(&hello(), None).starts_with("the stream ended before the answer was complete;"));
    let torn = ended(&[&hello(), &STATS[..12]].concat(), None);
    assert!(torn.starts_with("the stream ended before the answer was complete, 12 bytes into a line;"), "{torn}");
}

#[test]
fn an_answer_of_the_cap_passes_and_one_byte_more_does_not() {
    let mut longest = vec![b' '; MAX_RESPONSE_BYTES - 1];
    let whole = |answer: &[u8]| receive(&mut asked(), &[&hello(), STATS_PREFIX, answer, STATS_SUFFIX, b"\n"].concat());
    assert_eq!(whole(&longest), Some(Ok(())));
    longest.push(b' ');
    let max = MAX_RESPONSE_BYTES;
    assert_eq!(error(whole(&longest)), SchedStatsError::ResponseTooLarge { size: max + 1, max });
}

#[test]
fn the_buffer_grows_by_need_and_never_past_the_longest_envelope() {
    let mut session = asked();
    receive(&mut session, &hello());
    for sent in (0..MAX_ENVELOPE_BYTES).step_by(1000) {
        assert!(session.spare().capacity() <= (2 * sent.max(MIN_READ)).min(MAX_ENVELOPE_BYTES), "{sent}");
        let room = session.spare().capacity() - session.spare().len();
        assert!(room > 0);
        let piece = vec![b' '; 1000.min(MAX_ENVELOPE_BYTES - sent)];
        if receive(&mut session, &piece).is_some() {
            assert_eq!(sent + piece.len(), MAX_ENVELOPE_BYTES);
        }
    }
    session.rest();
    assert!(session.received.capacity() <= KEPT_BYTES);
}

#[test]
fn each_relay_error_is_an_error_of_its_own_and_some_keep_the_session() {
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
        let mut session = asked();
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

/// Feeds bytes in pieces, then the end; gives the outcome and the answer.
fn fed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Outcome, Vec<u8>) {
    let mut session = asked();
    let mut outcome = None;
    for piece in pieces {
        outcome = outcome.or(receive(&mut session, piece));
        if outcome.is_some() {
            break;
        }
    }
    let outcome = outcome.or_else(|| session.process(Event::Ended(None))).unwrap();
    let answer = match session.answer() {
        Answer::Scheduler(line) => line.to_vec(),
        Answer::SchedulerReady => b"ready".to_vec(),
    };
    (outcome, answer)
}

proptest! {
    #[test]
    fn any_split_of_the_agents_bytes_gives_the_same_outcome(
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

// Monitors' hybrid sockets.

fn dialling() -> Session {
    Session::open(Greeting::Dial { port: 729 }, line())
}

/// A session whose line to the monitor is written.
fn dialled() -> Session {
    let mut session = dialling();
    let all = session.unsent().len();
    assert_eq!(session.process(Event::Wrote(all)), None);
    session
}

#[test]
fn nothing_is_sent_behind_connect_until_ok_came() {
    let mut session = dialling();
    assert_eq!(session.unsent(), b"CONNECT 729\n");
    session.process(Event::Wrote(8));
    assert_eq!(session.unsent(), b"729\n");
    session.process(Event::Wrote(4));
    assert_eq!(session.unsent(), b"");
    assert!(session.is_asked());
    assert_eq!(receive(&mut session, b"OK 10737"), None);
    assert_eq!(session.unsent(), b"");
    assert_eq!(receive(&mut session, b"41824\n"), None);
    assert_eq!(session.unsent(), line().as_bytes());
    session.process(Event::Wrote(line().as_bytes().len()));
    assert_eq!(receive(&mut session, &[&hello(), STATS, b"\n"].concat()), Some(Ok(())));
    assert_eq!(session.answer(), ANSWER);
}

#[test]
fn hello_may_come_right_behind_ok() {
    let mut session = dialled();
    assert_eq!(receive(&mut session, &[b"OK 1\n", &hello()[..]].concat()), None);
    let all = session.unsent().len();
    session.process(Event::Wrote(all));
    assert_eq!(receive(&mut session, &[STATS, b"\n"].concat()), Some(Ok(())));
    session.rest();
    assert!(session.is_idle());
}

#[test]
fn whatever_is_not_ok_and_a_port_is_refused() {
    let longest = [b'O'; hybrid::MAX_REPLY_BYTES];
    for said in [
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
        let reason = unreachable(receive(&mut dialled(), said));
        assert!(reason.contains("OK was expected of the monitor, not \""), "{reason}");
    }
    let mut session = dialled();
    assert_eq!(receive(&mut session, longest.get(1..).unwrap()), None);
}

#[test]
fn ok_before_connect_was_written_is_refused() {
    let mut session = dialling();
    session.process(Event::Wrote(3));
    let reason = unreachable(receive(&mut session, b"OK 1\n"));
    assert!(reason.contains("OK came before CONNECT 729 was written"), "{reason}");
}

#[test]
fn a_monitor_that_closes_names_the_port() {
    let ended = |bytes: &[u8], errno| {
        let mut session = dialled();
        assert_eq!(receive(&mut session, bytes), None);
        unreachable(session.process(Event::Ended(errno)))
    };
    assert_eq!(
        ended(b"", None),
        "the stream ended before OK; does the guest listen on port 729: is it up, and its agent started?"
    );
    assert!(ended(b"OK", Some(Errno::CONNRESET)).starts_with("the stream failed before OK: Connection reset"));
    assert!(ended(b"OK", None).starts_with("the stream ended before OK, 2 bytes into a line;"));
    assert!(ended(b"OK 1\n", None).starts_with("the stream ended before its hello;"));
    let mut session = dialling();
    session.process(Event::WriteFailed(Errno::PIPE));
    assert!(unreachable(session.process(Event::Ended(None))).starts_with("the stream failed before OK: Broken pipe"));
}

// Schedulers without an agent.

fn plain() -> Session {
    let mut session = Session::open(Greeting::Plain, line());
    assert_eq!(session.known_outcome(), None);
    let all = session.unsent().len();
    session.process(Event::Wrote(all));
    session
}

#[test]
fn a_plain_answer_is_the_schedulers_whole_line() {
    let mut session = plain();
    let answer = br#"{"relay_error":{"busy":{"sessions":1}}}"#;
    assert_eq!(receive(&mut session, answer), None);
    assert_eq!(receive(&mut session, b"\n"), Some(Ok(())));
    assert_eq!(session.answer(), Answer::Scheduler(answer));
    session.rest();
    assert!(session.is_idle());
    session.ask(line());
    let all = session.unsent().len();
    session.process(Event::Wrote(all));
    assert_eq!(receive(&mut session, b"{}\n{}"), Some(Ok(())));
    assert_eq!(session.answer(), Answer::Scheduler(b"{}"));
    session.rest();
    assert!(!session.is_idle(), "bytes that nobody asked for");
}

#[test]
fn a_plain_stream_that_ends_is_a_scheduler_that_is_gone() {
    let gone = |errno| {
        let mut session = plain();
        receive(&mut session, b"{");
        error(session.process(Event::Ended(errno)))
    };
    assert_eq!(gone(None), SchedStatsError::SchedulerGone { errno: 0, cause: String::new() });
    assert_eq!(gone(Some(Errno::CONNRESET)), SchedStatsError::SchedulerGone { errno: 104, cause: String::new() });
    let mut session = Session::open(Greeting::Plain, line());
    session.process(Event::WriteFailed(Errno::PIPE));
    assert_eq!(
        error(session.process(Event::Ended(None))),
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
fn a_plain_answer_before_the_request_is_written_is_refused() {
    let mut session = Session::open(Greeting::Plain, line());
    session.process(Event::Wrote(1));
    assert_eq!(error(receive(&mut session, b"{}\n")).kind(), "malformed_response");
}

#[test]
fn a_plain_scheduler_that_accepts_is_ready_without_a_word() {
    let mut session = Session::open(Greeting::Plain, RequestLine::wait_scheduler(std::time::Duration::from_secs(5)));
    assert_eq!(session.known_outcome(), Some(Ok(())));
    assert_eq!(session.unsent(), b"");
    assert_eq!(session.answer(), Answer::SchedulerReady);
    session.rest();
    assert!(session.is_idle());
    let mut with_agent = Session::open(Greeting::Hello, RequestLine::wait_scheduler(std::time::Duration::from_secs(5)));
    assert_eq!(with_agent.known_outcome(), None);
}
