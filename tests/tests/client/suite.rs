//! What a client does with agents that play scripts, whichever way it waits: `super::Client`.

use std::io::Write;
use std::iter::repeat_with;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use scx_vsock::endpoint::hybrid::listener_path;
use scx_vsock::stats::RequestLine;
use scx_vsock::{
    Connect, Endpoint, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, MissingStatsReason, READY_PORT, RunControl,
    SchedStatsError, StatsRequest, StatsResponse,
};
use scx_vsock_tests::agent::HELLO;
use scx_vsock_tests::fake_agent::{FakeAgent, framed};
use scx_vsock_tests::peer::DEADLINE;
use scx_vsock_tests::scripted_scheduler::{Event, Script};
use scx_vsock_wire::RelayError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Client;

/// What a call is allowed that is to end by it.
const SHORT: Duration = Duration::from_millis(60);

/// What a call is allowed that is to come further before it ends by its deadline.
const LONGER: Duration = Duration::from_millis(500);

pub const OK: &str = r#"{"errno":0,"args":{"resp":{"nr":7}}}"#;

pub fn client(agent: &FakeAgent) -> Client {
    Client::builder(Endpoint::Unix { path: agent.path() }).deadline(DEADLINE).build()
}

/// A session that answers every request with the number of requests read so far.
pub fn counting() -> Script {
    Script::agent().forever(Script::new().line().stats_number())
}

/// Sessions that answer every request with the request itself.
pub fn echoing() -> impl Iterator<Item = Script> + Send + 'static {
    let echo = Script::new().line().send_echo(r#"{"stats":{"args":{"resp":"#, "}}}\n");
    repeat_with(move || Script::agent().forever(echo.clone()))
}

/// Returns the error of `stats` at an agent that sends these bytes after its hello and then waits.
fn error_of(bytes: impl AsRef<[u8]>) -> SchedStatsError {
    let agent = FakeAgent::start([Script::agent().line().send(bytes)]);
    client(&agent).stats(&[]).unwrap_err()
}

fn relay_error(error: RelayError<&str>) -> SchedStatsError {
    let agent = FakeAgent::start([Script::agent().line().relay_error(error)]);
    client(&agent).stats(&[]).unwrap_err()
}

fn unreachable(error: SchedStatsError) -> String {
    match MissingStatsReason::from(error) {
        MissingStatsReason::AgentUnreachable { reason } => reason,
        other => panic!("{other:?}"),
    }
}

// Answers.

#[test]
fn stats_are_the_answers_resp() {
    let agent = FakeAgent::start([Script::agent().expect(r#"{"req":"stats","args":{"target":"top"}}"#).stats(OK)]);
    assert_eq!(client(&agent).stats(&[("target", "top")]), Ok(json!({ "nr": 7 })));
}

#[test]
fn stats_can_be_decoded_as_a_type() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Top {
        nr: u64,
    }
    let agent = FakeAgent::start([Script::agent().line().stats(OK).line().stats(OK)]);
    let client = client(&agent);
    assert_eq!(client.stats_as::<Top>(&[]), Ok(Top { nr: 7 }));
    assert_eq!(client.stats_as::<Vec<u8>>(&[]).unwrap_err().kind(), "malformed_response");
}

#[test]
fn stats_meta_has_its_own_request() {
    let agent = FakeAgent::start([Script::agent().expect(r#"{"req":"stats_meta","args":{}}"#).stats(OK)]);
    assert_eq!(client(&agent).stats_meta(), Ok(json!({ "nr": 7 })));
}

#[test]
fn raw_lines_pass_byte_for_byte() {
    let answer = r#" { "errno":22 , "args":{"resp":"what?"} }"#;
    let agent = FakeAgent::start([Script::agent().expect(b"what \0\xff is this").stats(answer)]);
    assert_eq!(client(&agent).request_raw(b"what \0\xff is this\n"), Ok(answer.as_bytes().to_vec()));
}

#[test]
fn a_request_returns_any_answer() {
    let refused = r#"{"errno":22,"args":{"resp":"no such verb"}}"#;
    let agent = FakeAgent::start([Script::agent().line().stats(refused), Script::agent().line().stats("{}")]);
    let client = client(&agent);
    let request = StatsRequest { req: "dance".to_owned(), ..StatsRequest::default() };
    let answer = StatsResponse { errno: 22, args: json!({ "resp": "no such verb" }) };
    assert_eq!(client.request(&request), Ok(answer));
    assert_eq!(client.request(&request), Ok(StatsResponse { errno: 0, args: Value::Null }));
    assert_eq!(client.session(), 2);
}

#[test]
fn a_schedulers_error_renews_the_session() {
    let refused = r#"{"errno":22,"args":{"resp":"preempted"}}"#;
    let agent = FakeAgent::start([Script::agent().line().stats(refused), counting()]);
    let client = client(&agent);
    let error = client.stats(&[]).unwrap_err();
    assert_eq!(error, SchedStatsError::SchedulerError { errno: 22, args: json!({ "resp": "preempted" }) });
    agent.wait_for(&Event::Ended(0, 0));
    assert_eq!(client.stats(&[]), Ok(json!(2)));
    assert_eq!(client.session(), 2);
}

#[test]
fn an_answer_without_resp_keeps_the_session() {
    let agent = FakeAgent::start([Script::agent().line().stats(r#"{"args":{"rsep":1}}"#).line().stats(OK)]);
    let client = client(&agent);
    assert_eq!(client.stats(&[]), Err(SchedStatsError::MissingResp { args: json!({ "rsep": 1 }) }));
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.session(), 1);
}

#[test]
fn the_request_is_sent_without_waiting_for_hello() {
    let agent = FakeAgent::start([Script::new().line().and(Script::agent()).stats(OK)]);
    assert_eq!(client(&agent).stats(&[]), Ok(json!({ "nr": 7 })));
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let hello = format!("{HELLO}\n");
    let torn = Script::new().line().send_pieces(framed(OK), 1);
    let agent = FakeAgent::start([Script::new().send_pieces(hello, 1).and(torn.clone()).and(torn)]);
    let client = client(&agent);
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
}

#[test]
fn an_answer_may_have_the_cap_exactly() {
    let answer = |bytes: usize| {
        let frame = r#"{"args":{"resp":""}}"#.len();
        format!(r#"{{"args":{{"resp":"{}"}}}}"#, "x".repeat(bytes - 1 - frame))
    };
    let longest = answer(MAX_RESPONSE_BYTES);
    let agent = FakeAgent::start([Script::agent().line().stats(&longest)]);
    assert_eq!(client(&agent).request_raw("{}").unwrap(), longest.into_bytes());
    let max = MAX_RESPONSE_BYTES;
    let over = framed(answer(MAX_RESPONSE_BYTES + 1));
    assert_eq!(error_of(over), SchedStatsError::ResponseTooLarge { size: max + 1, max });
    assert_eq!(error_of(vec![b'{'; max + 100]), SchedStatsError::ResponseTooLarge { size: max + 1, max });
}

#[test]
fn an_endless_line_ends_at_the_cap() {
    let max = MAX_RESPONSE_BYTES;
    for endless in [vec![b'{'; 16 * max], framed(vec![0; 16 * max])] {
        let agent = FakeAgent::start([Script::agent().line().send(endless), counting()]);
        let client = client(&agent);
        assert_eq!(client.stats(&[]), Err(SchedStatsError::ResponseTooLarge { size: max + 1, max }));
        assert_eq!(client.stats(&[]), Ok(json!(2)));
    }
}

// What the agent says.

#[test]
fn every_relay_error_has_its_error() {
    let SchedStatsError::NoScheduler { reason } =
        relay_error(RelayError::NoScheduler { errno: 2, sched_ext: "enabled", ops: "simple", cause: "" })
    else {
        panic!("not NoScheduler");
    };
    assert_eq!(
        reason,
        "the stats socket does not exist; the scheduler \"simple\" is loaded but serves no stats on that socket"
    );
    assert_eq!(
        relay_error(RelayError::SchedulerGone { errno: 104, cause: "" }),
        SchedStatsError::SchedulerGone { errno: 104, cause: String::new() }
    );
    assert_eq!(relay_error(RelayError::UnsolicitedData {}).kind(), "malformed_response");
    assert_eq!(
        relay_error(RelayError::RequestTooLarge { size: 70, max: 64 }),
        SchedStatsError::RequestTooLarge { size: 70, max: 64 }
    );
    assert_eq!(
        relay_error(RelayError::ResponseTooLarge { size: 65, max: 64 }),
        SchedStatsError::ResponseTooLarge { size: 65, max: 64 }
    );
    assert!(unreachable(relay_error(RelayError::UnknownVerb {})).contains("update the agent"));
    assert_eq!(relay_error(RelayError::Busy { sessions: 8 }), SchedStatsError::AgentBusy { sessions: 8 });
    let unknown = error_of("{\"relay_error\":{\"scheduler_paused\":{}}}\n");
    assert!(matches!(&unknown, SchedStatsError::MalformedResponse { reason } if reason.contains("scheduler_paused")));
}

#[test]
fn a_guest_without_a_scheduler_keeps_its_session() {
    let no_scheduler = RelayError::NoScheduler { errno: 2, sched_ext: "disabled", ops: "", cause: "" };
    let agent = FakeAgent::start([Script::agent().line().relay_error(no_scheduler).line().stats_number()]);
    let client = client(&agent);
    assert_eq!(client.stats(&[]).unwrap_err().kind(), "no_scheduler");
    assert_eq!(client.stats(&[]), Ok(json!(2)));
    assert_eq!(client.session(), 1);
}

#[test]
fn a_full_agent_is_busy() {
    let agent = FakeAgent::start([Script::new().relay_error(RelayError::Busy { sessions: 8 }).close()]);
    assert_eq!(client(&agent).stats(&[]), Err(SchedStatsError::AgentBusy { sessions: 8 }));
}

#[test]
fn protocol_versions_must_overlap() {
    let hello =
        r#"{"hello":{"protocol":9,"min_protocol":5,"agent":"7.0","max_request_bytes":1,"max_response_bytes":1}}"#;
    let agent = FakeAgent::start([Script::new().send(format!("{hello}\n"))]);
    let reason = unreachable(client(&agent).stats(&[]).unwrap_err());
    assert!(reason.contains("agent 7.0 speaks protocol 5 to 9, this host 1 to 1"), "{reason}");
    assert!(reason.starts_with(&format!("unix:{}: ", agent.path().display())), "{reason}");
}

#[test]
fn a_newer_agent_of_version_1_is_understood() {
    let hello = r#"{"hello":{"protocol":2,"min_protocol":1,"agent":"2.0","max_request_bytes":1,"max_response_bytes":1,"new":{"x":[]}}}"#;
    let agent = FakeAgent::start([Script::new().send(format!("{hello}\n")).line().stats(OK)]);
    assert_eq!(client(&agent).stats(&[]), Ok(json!({ "nr": 7 })));
}

#[test]
fn the_agents_smaller_cap_is_obeyed() {
    let hello = HELLO.replace("\"max_request_bytes\":262144", "\"max_request_bytes\":1024");
    let agent = FakeAgent::start([Script::new().send(format!("{hello}\n")).line().stats(OK).line().stats(OK)]);
    let client = client(&agent);
    client.stats(&[]).unwrap();
    let line = vec![b'x'; 1024];
    assert_eq!(client.request_raw(&line), Err(SchedStatsError::RequestTooLarge { size: 1025, max: 1024 }));
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.session(), 1);
}

#[test]
fn only_one_envelope_is_an_answer() {
    let deep = format!(r#"{{"args":{{"resp":{}{}}}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    for line in [
        framed(r#"{"args":{"resp":1}},"more":{}"#),
        framed(r#"{"args":{"resp":1}}}"#),
        framed(r#"{"args":{"resp":1}} {}"#),
        framed(b"{\"args\":{\"resp\":\"\xff\"}}"),
        framed(b"{\"args\":{\"resp\":1}\0}"),
        framed("not json at all"),
        framed(""),
        framed("[1]"),
        framed(r#"{"errno":"none"}"#),
        framed(&deep),
        framed("[".repeat(100_000)),
        b"{\"stats\":{\"args\":{\"resp\":1}}\n".to_vec(),
        b" {\"stats\":{\"args\":{\"resp\":1}}}\n".to_vec(),
        b"{\"stats\" :{\"args\":{\"resp\":1}}}\n".to_vec(),
        b"{\"stats\":{\"args\":{\"resp\":1}}}\r\n".to_vec(),
        b"{\"more\":1,\"stats\":{\"args\":{\"resp\":1}}}\n".to_vec(),
        b"{\"relay_error\":{\"busy\":{\"sessions\":8}},\"more\":1}\n".to_vec(),
        b"{\"relay_error\":{}}\n".to_vec(),
        b"{\"agent\":{\"scheduler_ready\":{}}}\n".to_vec(),
        b"{\"agent\":\"dance\"}\n".to_vec(),
        [&b"{\"x\":".repeat(50_000)[..], b"\n"].concat(),
        b"\0\n".to_vec(),
        b"\n".to_vec(),
    ] {
        let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        let agent = FakeAgent::start([Script::agent().line().send(&line), counting()]);
        let client = client(&agent);
        assert_eq!(client.stats(&[]).unwrap_err().kind(), "malformed_response", "{shown}");
        // What cannot be trusted is not asked again: the next request has a session of its own.
        assert_eq!(client.stats(&[]), Ok(json!(2)), "{shown}");
    }
}

#[test]
fn a_scheduler_cannot_forge_a_relay_error() {
    let forged = r#"{"errno":0,"args":{"resp":"\n{\"relay_error\":{\"busy\":{\"sessions\":1}}}"}}"#;
    let agent = FakeAgent::start([Script::agent().line().stats(forged).line().stats(r#"{"relay_error":{}}"#)]);
    let client = client(&agent);
    assert_eq!(client.stats(&[]), Ok(json!("\n{\"relay_error\":{\"busy\":{\"sessions\":1}}}")));
    assert_eq!(client.stats(&[]).unwrap_err().kind(), "missing_resp");
}

// No agent.

#[test]
fn other_sockets_are_no_agent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let client = Client::builder(Endpoint::Unix { path: path.clone() }).build();
    assert!(unreachable(client.stats(&[]).unwrap_err()).contains("there is no such socket; start the agent"));
    drop(UnixListener::bind(&path).unwrap());
    assert!(
        unreachable(client.stats(&[]).unwrap_err())
            .contains("connection refused: the agent that created the socket has exited")
    );
    assert_eq!(client.session(), 0);
    let ssh = FakeAgent::start([Script::new().send("SSH-2.0-x\r\n")]);
    let reason = unreachable(self::client(&ssh).stats(&[]).unwrap_err());
    assert!(reason.contains("the first line is not an agent's hello: \"SSH-2.0-x\""), "{reason}");
}

#[test]
fn a_session_that_ends_early_is_no_agent() {
    let cases = [
        (Script::new().close(), "before the agent's hello"),
        (Script::new().send("{\"hel").close_write(), "before the agent's hello, 5 bytes into a line"),
        (Script::agent().line().close(), "before the answer was complete"),
        (Script::agent().line().send("{\"stats\":{").close_write(), "the answer was complete, 10 bytes into a line"),
    ];
    for (script, expected) in cases {
        let agent = FakeAgent::start([script]);
        let reason = unreachable(client(&agent).stats(&[]).unwrap_err());
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn a_full_backlog_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let endpoint = Endpoint::Unix { path };
    let mut waiting = Vec::new();
    while let Ok(stream) = endpoint.connect() {
        waiting.push(stream);
    }
    let reason = unreachable(Client::builder(endpoint).build().stats(&[]).unwrap_err());
    assert!(
        reason.ends_with("the socket's queue of connections is full; its program does not accept them"),
        "{reason}"
    );
}

// Refused before anything is sent.

#[test]
fn an_invalid_line_opens_no_session() {
    let agent = FakeAgent::start([]);
    let client = client(&agent);
    for line in ["", "\n", "{}\n{}", r#"{"agent":{"wait_scheduler":{}}}"#, r#"{"agent":"#] {
        assert_eq!(client.request_raw(line).unwrap_err().kind(), "invalid_request", "{line:?}");
    }
    let (size, max) = (MAX_REQUEST_BYTES + 1, MAX_REQUEST_BYTES);
    assert_eq!(client.request_raw(vec![b'x'; max]), Err(SchedStatsError::RequestTooLarge { size, max }));
    let long = "x".repeat(max);
    assert_eq!(client.stats(&[("target", &long)]).unwrap_err().kind(), "request_too_large");
    assert_eq!(client.session(), 0);
}

#[test]
fn a_request_of_the_cap_is_sent_whole() {
    let line = vec![b'x'; MAX_REQUEST_BYTES - 1];
    let agent = FakeAgent::start([Script::agent().expect(&line).stats(OK)]);
    client(&agent).request_raw(&line).unwrap();
}

#[test]
fn the_agents_reason_explains_a_failed_write() {
    let gone = Script::agent().relay_error(RelayError::SchedulerGone { errno: 0, cause: "" }).close();
    let agent = FakeAgent::start(vec![gone; 20]);
    for _ in 0..20 {
        // Twenty times since the agent's end comes before, within or behind the write.
        let error = client(&agent).request_raw(vec![b'x'; MAX_REQUEST_BYTES - 1]).unwrap_err();
        assert_eq!(error, SchedStatsError::SchedulerGone { errno: 0, cause: String::new() });
    }
}

#[test]
fn an_answer_before_the_request_is_malformed() {
    // A stream holds less than this request while its other end does not read.
    let agent = FakeAgent::start([Script::agent().stats(OK).stall()]);
    let error = client(&agent).request_raw(vec![b'x'; MAX_REQUEST_BYTES - 1]).unwrap_err();
    assert_eq!(
        error,
        SchedStatsError::MalformedResponse { reason: "the answer came before the request was written".to_owned() }
    );
    agent.release();
}

// Deadlines and abandoned requests.

#[test]
fn every_wait_ends_at_the_deadline() {
    let agent = FakeAgent::start([
        Script::new(),
        Script::agent().line(),
        Script::agent().line().send("{\"stats\":"),
        Script::agent().stall(),
    ]);
    let client = client(&agent);
    for (session, kind) in (1..).zip(["agent_unreachable", "timed_out", "timed_out"]) {
        let before = Instant::now();
        assert_eq!(client.with_deadline(LONGER).stats(&[]).unwrap_err().kind(), kind);
        assert!(before.elapsed() >= LONGER);
        assert_eq!(client.session(), session);
    }
    client.agent_version().unwrap();
    // The fourth does not even read, so this is a write that waits.
    let unwritten = client.with_deadline(SHORT).request_raw(vec![b'x'; MAX_REQUEST_BYTES - 1]);
    assert_eq!(unwritten, Err(SchedStatsError::TimedOut { after_ms: 60 }));
    agent.release();
}

// How far a call came by its deadline.

/// Returns the error of a call that its deadline ends at an agent, or a VMM, that plays this script.
fn ended_by_deadline(
    scheme: &str,
    script: Script,
    call: impl FnOnce(Client) -> Result<(), SchedStatsError>,
) -> MissingStatsReason {
    let agent = FakeAgent::start([script.stall()]);
    let endpoint: Endpoint = format!("{scheme}:{}", agent.path().display()).parse().unwrap();
    let reason = call(Client::builder(endpoint).deadline(LONGER).build()).unwrap_err().into();
    agent.release();
    reason
}

#[test]
fn the_reason_says_how_far_the_call_came() {
    let stats = |client: Client| client.stats(&[]).map(drop);
    let no_reply = "the VMM has not replied to CONNECT 729 within 500 ms: the guest's vsock driver is not up yet";
    let no_hello = "connected, but no hello within 500 ms";
    let timed_out = "no answer within 500 ms over an open session: the scheduler does not answer";
    let none_seen = "the agent has seen none within 500 ms";
    for (scheme, script, kind, text) in [
        ("hybrid", Script::new().line(), "agent_unreachable", no_reply),
        ("hybrid", Script::new().line().send("OK 1\n"), "agent_unreachable", no_hello),
        ("unix", Script::new(), "agent_unreachable", no_hello),
        ("unix", Script::new().send("{\"hello\":{"), "agent_unreachable", no_hello),
        ("unix", Script::agent().line(), "timed_out", timed_out),
        ("hybrid", Script::new().line().send("OK 1\n").and(Script::agent()).line(), "timed_out", timed_out),
        ("scx", Script::new().line(), "timed_out", timed_out),
    ] {
        let reason = ended_by_deadline(scheme, script, stats);
        assert!(reason.kind() == kind && reason.to_string().contains(text), "{scheme}: {reason}");
    }
    let reason = ended_by_deadline("unix", Script::agent().line(), |client| client.wait_for_scheduler(LONGER));
    assert!(reason.kind() == "no_scheduler" && reason.to_string().contains(none_seen), "{reason}");
    for scheme in ["hybrid", "unix"] {
        for waits in [Client::wait_for_agent, Client::wait_for_scheduler] {
            let reason = ended_by_deadline(scheme, Script::new(), |client| waits(&client, SHORT));
            assert_eq!(reason.kind(), "agent_unreachable", "{reason}");
        }
    }
}

#[test]
fn a_call_that_waits_for_its_turn_says_how_far_the_others_came() {
    let silent = Script::new().line().stall().close();
    let agent = FakeAgent::start([silent, Script::agent().line().stats(OK).line().stall().close()]);
    let client = client(&agent);
    let second = |call: &dyn Fn() -> Result<(), SchedStatsError>| {
        thread::scope(|scope| {
            let first = scope.spawn(|| client.with_deadline(DEADLINE).stats(&[]));
            agent.wait_for(&Event::Stalled(usize::try_from(client.session()).unwrap().saturating_sub(1)));
            let outcome = call().unwrap_err();
            agent.release();
            first.join().unwrap().unwrap_err();
            outcome
        })
    };
    let no_hello = second(&|| client.with_deadline(SHORT).stats(&[]).map(drop));
    assert!(unreachable(no_hello).ends_with("no hello within 60 ms, before this call had its turn"));
    client.stats(&[]).unwrap();
    assert_eq!(client.wait_for_scheduler(Duration::ZERO).unwrap_err().kind(), "no_scheduler");
    let in_turn = second(&|| client.with_deadline(SHORT).stats(&[]).map(drop));
    assert_eq!(in_turn, SchedStatsError::TimedOut { after_ms: 60 });
}

#[test]
fn a_run_that_stops_comes_before_a_scheduler_that_was_not_seen() {
    let agent = FakeAgent::start([Script::agent().line().stall()]);
    let run = RunControl::new();
    let client = Client::builder(Endpoint::Unix { path: agent.path() }).control(&run).build();
    thread::scope(|scope| {
        let waits = scope.spawn(|| client.wait_for_scheduler(DEADLINE));
        agent.wait_for(&Event::Stalled(0));
        run.cancel();
        assert_eq!(waits.join().unwrap(), Err(SchedStatsError::Cancelled));
        agent.release();
    });
}

#[test]
fn a_call_without_time_ends_at_once() {
    let agent = FakeAgent::start([counting()]);
    let client = client(&agent);
    let hurried = || client.with_deadline(Duration::ZERO).stats(&[]);
    assert_eq!(hurried().unwrap_err().kind(), "agent_unreachable");
    let plain = Client::builder(Endpoint::Scx { path: agent.path() }).deadline(Duration::ZERO).build();
    assert_eq!(plain.stats(&[]), Err(SchedStatsError::TimedOut { after_ms: 0 }), "there is no agent to reach");
    assert_eq!(client.session(), 0);
    assert_eq!(client.with_deadline(Duration::MAX).stats(&[]), Ok(json!(1)));
    assert_eq!(hurried(), Err(SchedStatsError::TimedOut { after_ms: 0 }));
}

#[test]
fn an_abandoned_session_is_closed() {
    let late = Script::agent().line().stall().stats_number();
    let agent = FakeAgent::start([late, Script::agent().line().stats_number()]);
    let client = client(&agent);
    assert_eq!(client.with_deadline(LONGER).stats(&[]).unwrap_err().kind(), "timed_out");
    assert_eq!(client.stats(&[]), Ok(json!(2)));
    assert_eq!(client.session(), 2);
    drop(client);
    agent.wait_for(&Event::Ended(1, 0));
}

// Sessions.

#[test]
fn only_clones_share_a_session() {
    let agent = FakeAgent::start([counting(), counting()]);
    let client = client(&agent);
    let clone = client.clone();
    assert_eq!(client.stats(&[]), Ok(json!(1)));
    assert_eq!(clone.stats(&[]), Ok(json!(2)));
    assert_eq!((client.session(), clone.session()), (1, 1));
    assert_eq!(agent.event(), Event::Connected(0));
    let other = self::client(&agent);
    assert_eq!(other.stats(&[]), Ok(json!(3)));
    agent.wait_for(&Event::Connected(1));
    assert_eq!(other.session(), 1);
}

#[test]
fn each_clone_has_its_own_answers() {
    let agent = FakeAgent::start(echoing().take(1));
    let client = client(&agent);
    thread::scope(|scope| {
        for thread in 0..8 {
            let client = client.clone();
            scope.spawn(move || {
                for round in 0..100 {
                    let target = format!("{thread}.{round}");
                    let resp: StatsRequest = client.stats_as(&[("target", &target)]).unwrap();
                    assert_eq!(resp.args["target"], target);
                }
            });
        }
    });
    assert_eq!(client.session(), 1);
}

#[test]
fn the_last_clone_closes_the_session() {
    let agent = FakeAgent::start([counting()]);
    let client = client(&agent);
    assert_eq!(client.session(), 0);
    let clone = client.clone();
    clone.stats(&[]).unwrap();
    drop(client);
    clone.stats(&[]).unwrap();
    drop(clone);
    agent.wait_for(&Event::Ended(0, 0));
}

#[test]
fn an_idle_session_that_ended_is_renewed() {
    let idle_end = |script: Script| FakeAgent::start([Script::agent().line().stats_number().and(script), counting()]);
    for script in [
        Script::new().stall().relay_error(RelayError::SchedulerGone { errno: 0, cause: "" }).close(),
        Script::new().stall().relay_error(RelayError::UnsolicitedData {}).close(),
        Script::new().stall().close(),
        // More than the answer, and then open: what nobody asked for is never taken for the next answer.
        Script::new().stats_number().stall().close(),
    ] {
        let agent = idle_end(script);
        let client = client(&agent);
        assert_eq!(client.stats(&[]), Ok(json!(1)));
        agent.wait_for(&Event::Stalled(0));
        agent.release();
        agent.wait_for(&Event::Ended(0, 0));
        assert_eq!(client.stats(&[]), Ok(json!(2)));
        assert_eq!(client.session(), 2);
    }
}

#[test]
fn a_written_request_is_never_repeated() {
    let gone = Script::agent().line().relay_error(RelayError::SchedulerGone { errno: 0, cause: "" }).close();
    let agent = FakeAgent::start([gone, Script::agent().line().close(), counting()]);
    let client = client(&agent);
    assert_eq!(client.stats(&[]), Err(SchedStatsError::SchedulerGone { errno: 0, cause: String::new() }));
    assert_eq!(client.stats(&[]).unwrap_err().kind(), "agent_unreachable");
    // The third line that any session reads is the third call's: no call wrote twice.
    assert_eq!(client.stats(&[]), Ok(json!(3)));
    assert_eq!(client.session(), 3);
}

// Waiting for a scheduler.

#[test]
fn waiting_for_the_scheduler_is_one_request() {
    let waits = Script::agent().wait_scheduler().stall().ready().line().stats(OK);
    let agent = FakeAgent::start([waits]);
    let client = client(&agent);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.wait_for_scheduler(DEADLINE));
        agent.wait_for(&Event::Stalled(0));
        agent.release();
        assert_eq!(waiting.join().unwrap(), Ok(()));
    });
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.session(), 1);
}

#[test]
fn what_the_kernel_says_is_a_request_of_its_own() {
    let said = json!({ "state": "enabled", "ops": "rusty", "uptime_us": 5, "events": { "SCX_EV_A": "3" } });
    let session = Script::agent().line().stats(OK).sched_ext(&said).line().stats(OK).line();
    let agent = FakeAgent::start([session, Script::new()]);
    let client = client(&agent);
    client.stats(&[]).unwrap();
    let kernel = client.sched_ext().unwrap();
    assert_eq!(serde_json::to_value(&kernel).unwrap(), said);
    client.stats(&[]).unwrap();
    assert_eq!(client.session(), 1);
    let error = client.with_deadline(SHORT).sched_ext().unwrap_err();
    assert_eq!(error, SchedStatsError::TimedOut { after_ms: 60 });
    let plain = Client::builder(Endpoint::Scx { path: agent.path() }).build();
    assert_eq!(plain.sched_ext().unwrap_err().kind(), "invalid_request");
}

#[test]
fn waiting_for_the_scheduler_has_a_deadline() {
    let agent = FakeAgent::start([Script::agent().line(), Script::agent().line().stats(OK)]);
    let client = client(&agent);
    assert_eq!(client.wait_for_scheduler(LONGER).unwrap_err().kind(), "no_scheduler");
    assert_eq!(client.wait_for_scheduler(DEADLINE).unwrap_err().kind(), "malformed_response");
}

// A panic.

#[test]
fn the_agents_version_is_known_without_a_request() {
    let agent = FakeAgent::start([counting()]);
    let client = client(&agent);
    assert_eq!(client.agent_version().unwrap().as_deref(), Some("0.1.0"));
    assert_eq!(client.stats(&[]).unwrap(), 1);
    assert_eq!(client.agent_version().unwrap().as_deref(), Some("0.1.0"));
    assert_eq!(client.session(), 1);
    let scheduler = FakeAgent::start([Script::new()]);
    let plain = Client::builder(Endpoint::Scx { path: scheduler.path() }).build();
    assert_eq!(plain.agent_version(), Ok(None));
}

#[test]
fn an_agent_that_comes_up_is_heard_behind_a_hybrid_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let vmm = UnixListener::bind(&socket).unwrap();
    let client = Client::builder(Endpoint::Hybrid { path: socket.clone(), port: 729 }).build();
    thread::scope(|scope| {
        let waits = scope.spawn(|| client.wait_for_agent(DEADLINE));
        // No agent yet: the VMM closes the first connection.
        drop(vmm.accept().unwrap());
        let ready = UnixStream::connect(listener_path(&socket, READY_PORT)).unwrap();
        let (mut stream, _) = vmm.accept().unwrap();
        stream.write_all(&[&b"OK 1\n"[..], HELLO.as_bytes(), b"\n"].concat()).unwrap();
        assert_eq!(waits.join().unwrap(), Ok(()));
        drop((ready, stream));
    });
    assert_eq!(client.session(), 2);
}

#[test]
fn an_agent_that_never_comes_up_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let client = Client::builder(Endpoint::Hybrid { path: socket.clone(), port: 729 }).build();
    let reason = unreachable(client.wait_for_agent(SHORT).unwrap_err());
    assert!(reason.contains("there is no such socket; start the VMM"), "{reason}");
    let _other = UnixListener::bind(listener_path(&socket, READY_PORT)).unwrap();
    let reason = unreachable(client.wait_for_agent(DEADLINE).unwrap_err());
    assert!(reason.contains("cannot wait for it:") && reason.contains("is in use"), "{reason}");
    let run = RunControl::new();
    run.cancel();
    let cancelled = Client::builder(Endpoint::Unix { path: socket }).control(&run).build();
    assert_eq!(cancelled.wait_for_agent(DEADLINE), Err(SchedStatsError::Cancelled));
    assert_eq!(cancelled.agent_version(), Err(SchedStatsError::Cancelled));
}

#[test]
fn anyhow_keeps_the_typed_error() {
    fn sample(client: &Client) -> anyhow::Result<Value> {
        Ok(client.stats(&[])?)
    }
    let agent = FakeAgent::start([Script::new().relay_error(RelayError::Busy { sessions: 8 }).close()]);
    let error = sample(&client(&agent)).unwrap_err();
    assert_eq!(error.downcast_ref(), Some(&SchedStatsError::AgentBusy { sessions: 8 }));
}

// Statistics.

#[test]
fn a_client_counts_its_clones_calls() {
    let refused = r#"{"errno":22,"args":{"resp":"no"}}"#;
    let agent = FakeAgent::start([
        Script::agent().line().stats(OK).line().ready().line().stats(refused),
        Script::new().line().stall(),
    ]);
    let client = client(&agent);
    client.stats(&[]).unwrap();
    client.clone().wait_for_scheduler(DEADLINE).unwrap();
    client.stats(&[]).unwrap_err();
    client.with_deadline(SHORT).stats(&[]).unwrap_err();
    client.request_raw("two\nlines").unwrap_err();

    let statistics = client.statistics();
    assert_eq!((statistics.requests, statistics.answers), (5, 2));
    let reasons: Vec<_> = statistics.reasons.iter().map(|(kind, count)| (*kind, *count)).collect();
    assert_eq!(reasons, [("agent_unreachable", 1), ("invalid_request", 1), ("scheduler_error", 1)]);
    assert_eq!((statistics.sessions, statistics.renewals()), (2, 1));
    let stats = StatsRequest::stats(&[]).line().unwrap().as_bytes().len();
    assert_eq!(statistics.bytes_sent, (3 * stats + RequestLine::wait_scheduler(DEADLINE).as_bytes().len()) as u64);
    let ready = "{\"agent\":{\"scheduler_ready\":{}}}\n".len();
    let received = HELLO.len() + 1 + framed(OK).len() + ready + framed(refused).len();
    assert_eq!(statistics.bytes_received, received as u64);
    assert_eq!(statistics.latency.count(), 1, "of the one answer of the scheduler's");
}

// Hybrid sockets of VMMs.

fn hybrid(vmm: &FakeAgent) -> Client {
    let endpoint: Endpoint = format!("hybrid:{}", vmm.path().display()).parse().unwrap();
    Client::builder(endpoint).deadline(DEADLINE).build()
}

#[test]
fn a_hybrid_session_connects_once() {
    let session = Script::new().expect("CONNECT 729").send("OK 1073741824\n").and(counting());
    let vmm = FakeAgent::start([session.clone(), session]);
    let client = hybrid(&vmm);
    assert_eq!(client.stats(&[]), Ok(json!(2)));
    assert_eq!(client.stats(&[]), Ok(json!(3)));
    assert_eq!(client.session(), 1);
    assert_eq!(hybrid(&vmm).stats(&[]), Ok(json!(5)));
}

#[test]
fn a_vmm_may_reply_byte_by_byte() {
    let torn = Script::new().line().send_pieces(format!("OK 1\n{HELLO}\n"), 1).line().stats(OK);
    let vmm = FakeAgent::start([torn]);
    assert_eq!(hybrid(&vmm).stats(&[]), Ok(json!({ "nr": 7 })));
    let at_once = Script::new().line().send(format!("OK 1\n{HELLO}\n")).line().stats(OK);
    let vmm = FakeAgent::start([at_once]);
    assert_eq!(hybrid(&vmm).stats(&[]), Ok(json!({ "nr": 7 })));
}

#[test]
fn a_hybrid_uris_port_is_connected() {
    let vmm = FakeAgent::start([Script::new().expect("CONNECT 5000").send("OK 1\n").and(counting())]);
    let endpoint: Endpoint = format!("hybrid:{}?port=5000", vmm.path().display()).parse().unwrap();
    Client::builder(endpoint).deadline(DEADLINE).build().stats(&[]).unwrap();
}

#[test]
fn a_vmms_wrong_reply_is_quoted() {
    let cases = [
        (
            Script::new().line().close(),
            "before the VMM replied OK; is the guest up, and its agent started on port 729?",
        ),
        (Script::new().line().send("OK").close_write(), "before the VMM replied OK, 2 bytes into a line"),
        (Script::new().line().send("NO\n"), "the VMM replied \"NO\" instead of OK"),
        (Script::agent(), "the VMM replied \"{\\\"hello\\\""),
        (Script::new().line().send("O".repeat(64)), "the VMM replied \"OOO"),
        (Script::new().line().send("OK 1\n").close_write(), "before the agent's hello"),
        (Script::new().line().send("OK 1\nOK 1\n"), "the first line is not an agent's hello: \"OK 1\""),
    ];
    for (script, expected) in cases {
        let vmm = FakeAgent::start([script]);
        let reason = unreachable(hybrid(&vmm).stats(&[]).unwrap_err());
        assert!(reason.starts_with("hybrid:") && reason.contains(expected), "{reason}");
    }
}

#[test]
fn a_long_request_waits_for_ok_and_is_sent_whole() {
    let line = vec![b'x'; MAX_REQUEST_BYTES - 1];
    let script = Script::new().expect("CONNECT 729").send("OK 1\n").expect(&line).and(Script::agent()).stats(OK);
    let vmm = FakeAgent::start([script]);
    hybrid(&vmm).request_raw(&line).unwrap();
}

// Schedulers without an agent.

fn plain(scheduler: &FakeAgent) -> Client {
    Client::builder(Endpoint::Scx { path: scheduler.path() }).deadline(DEADLINE).build()
}

#[test]
fn a_plain_scheduler_is_asked_directly() {
    let answers = Script::new().expect(r#"{"req":"stats","args":{}}"#).send(format!("{OK}\n"));
    let scheduler = FakeAgent::start([answers.clone().and(answers)]);
    let client = plain(&scheduler);
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.session(), 1);
}

#[test]
fn a_plain_scheduler_is_ready_when_it_accepts() {
    let scheduler = FakeAgent::start([Script::new().line().send(format!("{OK}\n"))]);
    let client = plain(&scheduler);
    client.wait_for_scheduler(DEADLINE).unwrap();
    assert_eq!(client.stats(&[]), Ok(json!({ "nr": 7 })));
    assert_eq!(client.session(), 1, "nothing was sent to it");
}

#[test]
fn a_missing_plain_scheduler_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stats");
    let client = Client::builder(Endpoint::Scx { path: path.clone() }).build();
    let before = Instant::now();
    for (error, said) in [
        (client.stats(&[]).unwrap_err(), "the stats socket does not exist"),
        (client.wait_for_scheduler(DEADLINE).unwrap_err(), "the stats socket does not exist"),
        {
            drop(UnixListener::bind(&path).unwrap());
            (
                client.stats(&[]).unwrap_err(),
                "connection refused on the stats socket: the scheduler that created it has exited",
            )
        },
    ] {
        let reason = format!("scx:{}: {said}", path.display());
        assert_eq!(error, SchedStatsError::NoScheduler { reason });
    }
    assert!(before.elapsed() < DEADLINE / 2);
}

#[test]
fn a_plain_scheduler_that_ends_is_gone() {
    let scheduler = FakeAgent::start([Script::new().line().send("{\"err").close()]);
    assert_eq!(plain(&scheduler).stats(&[]), Err(SchedStatsError::SchedulerGone { errno: 0, cause: String::new() }));
}

#[test]
fn an_agent_at_a_scx_endpoint_is_malformed() {
    let agent = FakeAgent::start([Script::agent()]);
    let error = plain(&agent).stats(&[]).unwrap_err();
    assert!(matches!(error.kind(), "malformed_response" | "missing_resp"), "{error}");
}

#[test]
fn meta_is_parsed() {
    let answer = json!({ "errno": 0, "args": { "resp": {
        "Top": { "top": "true", "fields": { "nr": { "datum": "u64", "desc": "a number" } } }
    } } });
    let agent = FakeAgent::start([Script::agent().line().stats(answer.to_string()).line().stats(OK)]);
    let client = client(&agent);
    let meta = client.meta().unwrap();
    let top = meta.tops().next().unwrap();
    assert_eq!(meta.leaves(top).next().unwrap().to_string(), "nr");
    assert_eq!(client.meta().unwrap_err().kind(), "malformed_response");
}
