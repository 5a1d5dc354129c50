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
    Envelope::<Text>::hello("0.1.0").emit().to_vec()
}

/// A session whose first request is written.
fn asked() -> Session {
    let mut session = Session::open(line());
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
        SchedStatsError::AgentUnreachable { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_may_be_written_before_hello_is_read() {
    let mut session = Session::open(line());
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
    unreachable(outcome(&[br#"{"agent":"scheduler_ready"}"#]));
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
    let mut session = Session::open(line());
    session.process(Event::Wrote(1));
    assert_eq!(session.process(Event::WriteFailed(Errno::PIPE)), None);
    assert_eq!(session.unsent(), b"");
    let said = receive(&mut session, &[&hello(), GONE, b"\n"].concat());
    assert_eq!(error(said), SchedStatsError::SchedulerGone { errno: 104 });
}

#[test]
fn after_a_failed_write_and_nothing_said_the_write_is_why() {
    let mut session = Session::open(line());
    session.process(Event::WriteFailed(Errno::PIPE));
    let reason = unreachable(session.process(Event::Ended(None)));
    assert!(reason.contains("failed before its hello: Broken pipe"), "{reason}");
}

#[test]
fn an_answer_before_the_request_is_written_is_refused() {
    let mut session = Session::open(line());
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
    let text = |text: &str| Text::first_line(text.as_bytes());
    let cases = [
        (RelayError::NoScheduler { errno: 2, sched_ext: text("disabled"), ops: text("") }, "no_scheduler", true),
        (RelayError::SchedulerGone { errno: 0 }, "scheduler_gone", false),
        (RelayError::SchedulerUnasked {}, "malformed_response", false),
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
