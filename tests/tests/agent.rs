//! The real agent program between a scripted host and a scripted scheduler, without a VM.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use scx_vsock_tests::agent::{self, Agent, hello, too_large};
use scx_vsock_tests::peer::Peer;
use scx_vsock_wire::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, SESSIONS};

const REQUEST: &str = r#"{"req":"stats","args":{}}"#;
const ANSWER: &str = r#"{"errno":0,"args":{"resp":{"util":12.5}}}"#;

/// Sends a session's first request, which opens its connection to the scheduler; returns that.
fn open(host: &mut Peer, listener: &UnixListener, request: &str) -> Peer {
    host.send(format!("{request}\n"));
    let mut scheduler = Peer::accept(listener);
    scheduler.expect(request);
    scheduler
}

/// Answers a request that the scheduler has read.
fn answer(scheduler: &mut Peer, host: &mut Peer, answer: &str) {
    scheduler.send(format!("{answer}\n"));
    host.expect(format!(r#"{{"stats":{answer}}}"#));
}

/// An agent, its scheduler's socket, and a host that has read hello.
fn started() -> (Agent, UnixListener, Peer) {
    let agent = Agent::start();
    let (listener, host) = (agent.scheduler(), agent.host());
    (agent, listener, host)
}

/// The same with the scheduler's connection, which the first request opened; that request is answered.
fn connected() -> (Agent, UnixListener, Peer, Peer) {
    let (agent, listener, mut host) = started();
    let mut scheduler = open(&mut host, &listener, REQUEST);
    answer(&mut scheduler, &mut host, ANSWER);
    (agent, listener, host, scheduler)
}

/// Sends another request on a session, which the scheduler reads.
fn request(host: &mut Peer, scheduler: &mut Peer) {
    host.send("again\n");
    scheduler.expect("again");
}

/// One more request and answer on a session.
fn round_trip(host: &mut Peer, scheduler: &mut Peer) {
    request(host, scheduler);
    answer(scheduler, host, "1");
}

/// A line of `size` bytes, its LF counted.
fn line_of(size: usize) -> Vec<u8> {
    let mut line = vec![b'x'; size];
    line[size - 1] = b'\n';
    line
}

#[test]
fn a_session_begins_with_hello_and_answers_one_envelope_a_request() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn a_request_is_forwarded_only_when_its_whole_line_is_there() {
    let (agent, listener, mut host) = started();
    for byte in REQUEST.as_bytes() {
        host.send([*byte]);
    }
    // The session that ends inside a line shows that nothing was forwarded: the scheduler was never connected, and
    // the next connection is the next session's.
    drop(host);
    let mut host = agent.host();
    open(&mut host, &listener, "second");
}

#[test]
fn answers_in_pieces_of_one_byte_become_one_envelope() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    for byte in format!("{ANSWER}\n").as_bytes() {
        scheduler.send([*byte]);
    }
    host.expect(format!(r#"{{"stats":{ANSWER}}}"#));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (_agent, listener, mut host) = started();
    let requests: Vec<String> = (0..2000).map(|number| format!("request {number}")).collect();
    host.send(format!("{}\n", requests.join("\n")));
    let mut scheduler = Peer::accept(&listener);
    for (number, request) in requests.iter().enumerate() {
        scheduler.expect(request);
        answer(&mut scheduler, &mut host, &number.to_string());
    }
}

#[test]
fn a_request_of_the_cap_passes_and_one_byte_more_does_not() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    let line = line_of(MAX_REQUEST_BYTES);
    host.send(&line);
    assert_eq!(scheduler.line(), line);
    answer(&mut scheduler, &mut host, "1");

    host.send(line_of(MAX_REQUEST_BYTES + 1));
    host.expect(too_large("request", MAX_REQUEST_BYTES + 1, MAX_REQUEST_BYTES));
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn an_answer_of_the_cap_passes_and_one_byte_more_does_not() {
    let (agent, listener, mut host, mut scheduler) = connected();
    let mut line = line_of(MAX_RESPONSE_BYTES);
    host.send("large\n");
    scheduler.expect("large");
    scheduler.send(&line);
    line.pop();
    host.expect([br#"{"stats":"#, line.as_slice(), b"}"].concat());

    host.send("larger\n");
    scheduler.expect("larger");
    // The agent closes as soon as the cap is passed; the last byte may find nobody.
    let _closed = scheduler.try_send(line_of(MAX_RESPONSE_BYTES + 1));
    host.expect(too_large("response", MAX_RESPONSE_BYTES + 1, MAX_RESPONSE_BYTES));
    host.expect_end();

    let mut host = agent.host();
    open(&mut host, &listener, "next");
}

#[test]
fn a_line_of_a_gibibyte_is_counted_and_dropped_without_memory() {
    let (agent, _listener, mut host, mut scheduler) = connected();
    let before = resident_kib(agent.id());
    let megabyte = vec![b'x'; 1 << 20];
    for _ in 0..1024 {
        host.send(&megabyte);
    }
    host.send("\n");
    host.expect(too_large("request", 1_073_741_825, MAX_REQUEST_BYTES));
    round_trip(&mut host, &mut scheduler);
    let grown = resident_kib(agent.id()).saturating_sub(before);
    assert!(grown <= 300, "grew by {grown} KiB, more than one session's buffer");
}

/// Resident memory of a process.
fn resident_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn no_scheduler_says_why_and_the_session_goes_on() {
    let agent = Agent::start();
    let mut host = agent.host();
    let kernel = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let (state, ops) = (kernel("/sys/kernel/sched_ext/state"), kernel("/sys/kernel/sched_ext/root/ops"));
    let no_scheduler = |errno| {
        format!(
            r#"{{"relay_error":{{"no_scheduler":{{"errno":{errno},"sched_ext":"{state}","ops":"{ops}","cause":""}}}}}}"#
        )
    };
    host.send("one\n");
    host.expect(no_scheduler(2));
    drop(agent.scheduler());
    host.send("two\n");
    host.expect(no_scheduler(111));
    fs::remove_file(agent.scheduler_path(0)).unwrap();
    fs::create_dir(agent.scheduler_path(0)).unwrap();
    host.send("three\n");
    host.expect(no_scheduler(111));
    fs::remove_dir(agent.scheduler_path(0)).unwrap();
    let listener = agent.scheduler();
    let mut scheduler = open(&mut host, &listener, "four");
    answer(&mut scheduler, &mut host, "4");
}

#[test]
fn a_scheduler_that_goes_during_its_answer_ends_the_session_with_the_reason() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    scheduler.send(r#"{"errno":0,"#);
    drop(scheduler);
    host.expect(r#"{"relay_error":{"scheduler_gone":{"errno":0,"cause":""}}}"#);
    host.expect_end();
}

#[test]
fn a_scheduler_that_goes_while_idle_ends_the_session_with_the_reason() {
    let (_agent, _listener, mut host, scheduler) = connected();
    drop(scheduler);
    host.expect(r#"{"relay_error":{"scheduler_gone":{"errno":0,"cause":""}}}"#);
    host.expect_end();
}

#[test]
fn a_scheduler_that_closes_with_an_unread_request_is_gone_with_the_errno() {
    let gone = r#"{"relay_error":{"scheduler_gone":{"errno":104,"cause":""}}}"#;
    let (_agent, _listener, mut host, scheduler) = connected();
    host.send("again\n");
    scheduler.wait_readable();
    drop(scheduler);
    host.expect(gone);
    host.expect_end();

    let (_agent, _listener, mut host, mut scheduler) = connected();
    host.send("again\n");
    scheduler.wait_readable();
    answer(&mut scheduler, &mut host, "1");
    // Its answer came, but it goes without having read the request.
    drop(scheduler);
    host.expect(gone);
    host.expect_end();
}

#[test]
fn an_answer_right_before_the_scheduler_goes_is_forwarded_first() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    scheduler.send("5\n");
    drop(scheduler);
    host.expect(r#"{"stats":5}"#);
    host.expect(r#"{"relay_error":{"scheduler_gone":{"errno":0,"cause":""}}}"#);
    host.expect_end();
}

#[test]
fn bytes_of_an_idle_scheduler_end_the_session_and_answer_nothing() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    scheduler.send("stale\n");
    host.expect(r#"{"relay_error":{"unsolicited_data":{}}}"#);
    host.expect_end();
}

#[test]
fn a_second_line_after_the_answer_ends_the_session() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    scheduler.send("1\n2\n");
    host.expect(r#"{"stats":1}"#);
    host.expect(r#"{"relay_error":{"unsolicited_data":{}}}"#);
    host.expect_end();
}

#[test]
fn a_forged_relay_error_stands_inside_stats() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    for forged in [r#"{"relay_error":{"busy":{"sessions":8}}}"#, r#"1,"relay_error":{"unknown_verb":{}}"#] {
        request(&mut host, &mut scheduler);
        answer(&mut scheduler, &mut host, forged);
    }
}

#[test]
fn nul_and_bytes_that_are_not_text_pass_unchanged() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    host.send(b"\0\xff\xfe\n");
    assert_eq!(scheduler.line(), b"\0\xff\xfe\n");
    scheduler.send(b"\xc3\x28\0\n");
    assert_eq!(host.line(), b"{\"stats\":\xc3\x28\0}\n");
}

#[test]
fn lines_for_the_agent_are_never_forwarded() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    for line in [r#"{"agent":{"sing":{}}}"#, r#"{"agent":"#, r#"{"agent":"wait_scheduler"}"#] {
        host.send(format!("{line}\n"));
        host.expect(r#"{"relay_error":{"unknown_verb":{}}}"#);
    }
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn what_the_kernel_says_is_what_its_files_say() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    host.send("{\"agent\":{\"sched_ext\":{}}}\n");
    let line = host.line();
    let said: serde_json::Value = serde_json::from_slice(&line).unwrap();
    let said = said["agent"]["sched_ext"].as_object().unwrap();
    for name in ["state", "root/ops", "enable_seq", "hotplug_seq", "nr_rejected", "switch_all"] {
        let file = fs::read_to_string(format!("/sys/kernel/sched_ext/{name}")).ok();
        let key = name.rsplit('/').next().unwrap();
        assert_eq!(said.get(key).and_then(|text| text.as_str()), file.as_deref().map(str::trim_end), "{name}");
    }
    assert!(said["uptime_us"].as_u64().unwrap() > 0);
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn wait_scheduler_is_answered_when_the_scheduler_comes() {
    let agent = Agent::start();
    let mut host = agent.host();
    host.send("{\"agent\": {\"wait_scheduler\": {\"timeout_ms\": 20000, \"later\": []}}}\nfirst\n");
    let listener = agent.scheduler();
    let mut scheduler = Peer::accept(&listener);
    host.expect(r#"{"agent":{"scheduler_ready":{}}}"#);
    scheduler.expect("first");
    answer(&mut scheduler, &mut host, "1");
    host.send("{\"agent\":{\"wait_scheduler\":{}}}\n");
    host.expect(r#"{"agent":{"scheduler_ready":{}}}"#);
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn wait_scheduler_ends_when_its_time_is_over() {
    let agent = Agent::start();
    let mut host = agent.host();
    for timeout_ms in [0, 100] {
        let before = Instant::now();
        host.send(format!("{{\"agent\":{{\"wait_scheduler\":{{\"timeout_ms\":{timeout_ms}}}}}}}\n"));
        let line = String::from_utf8(host.line()).unwrap();
        assert!(line.starts_with(r#"{"relay_error":{"no_scheduler":{"errno":2,"#), "{line}");
        assert!(before.elapsed() >= Duration::from_millis(timeout_ms), "{:?}", before.elapsed());
    }
    // What was seen last is the reason.
    drop(agent.scheduler());
    host.send("{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":1}}}\n");
    let line = String::from_utf8(host.line()).unwrap();
    assert!(line.starts_with(r#"{"relay_error":{"no_scheduler":{"errno":111,"#), "{line}");
    fs::remove_file(agent.scheduler_path(0)).unwrap();
    let listener = agent.scheduler();
    open(&mut host, &listener, "next");
}

#[test]
fn a_host_that_goes_takes_its_scheduler_connection_with_it() {
    let (_agent, _listener, host, mut scheduler) = connected();
    drop(host);
    scheduler.expect_end();
}

#[test]
fn a_hosts_half_close_ends_the_session_after_its_answers() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    host.send("one\ntwo\n{\"agent\":{\"sing\":{}}}\nincomplete");
    host.finish();
    for line in ["one", "two"] {
        scheduler.expect(line);
        answer(&mut scheduler, &mut host, "1");
    }
    host.expect(r#"{"relay_error":{"unknown_verb":{}}}"#);
    host.expect_end();
    scheduler.expect_end();
}

#[test]
fn a_host_that_closes_after_its_half_close_ends_the_session_at_once() {
    let (agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    host.finish();
    // The agent knows of the half-close when it serves the next host.
    let _next = agent.host();
    drop(host);
    scheduler.expect_end();
}

#[test]
fn a_host_that_half_closes_before_it_reads_still_gets_its_whole_answer() {
    let (_agent, _listener, mut host, mut scheduler) = connected();
    request(&mut host, &mut scheduler);
    let mut line = line_of(MAX_RESPONSE_BYTES);
    scheduler.send(&line);
    line.pop();
    // The answer is longer than the socket's buffer, so that the agent waits for room then.
    host.wait_readable();
    host.finish();
    host.expect([br#"{"stats":"#, line.as_slice(), b"}"].concat());
    host.expect_end();
}

#[test]
fn a_wait_for_a_scheduler_delays_no_other_session() {
    let agent = Agent::start();
    let mut waits = agent.host();
    waits.send("{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":60000}}}\n");
    let mut other = agent.host();
    for _ in 0..100 {
        other.send("{}\n");
        assert!(other.line().starts_with(br#"{"relay_error":{"no_scheduler":{"errno":2,"#));
    }
    let listener = agent.scheduler();
    let mut scheduler = Peer::accept(&listener);
    waits.expect(r#"{"agent":{"scheduler_ready":{}}}"#);
    round_trip(&mut waits, &mut scheduler);
}

#[test]
fn a_half_close_and_a_wait_for_a_scheduler_end_with_the_time() {
    let agent = Agent::start();
    let mut host = agent.host();
    host.send("{\"agent\":{\"wait_scheduler\":{\"timeout_ms\":50}}}\n");
    host.finish();
    assert!(host.line().starts_with(br#"{"relay_error":{"no_scheduler":{"errno":2,"#));
    host.expect_end();
}

#[test]
fn bytes_that_came_right_before_a_request_are_never_its_answer() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    for _ in 0..2_000 {
        let mut host = agent.host();
        let mut scheduler = open(&mut host, &listener, "one");
        answer(&mut scheduler, &mut host, "1");
        scheduler.send("stale\n");
        // The agent may be anywhere between its sleep and this request, or have closed already.
        let _closed = host.try_send("two\n");
        host.expect(r#"{"relay_error":{"unsolicited_data":{}}}"#);
    }
}

#[test]
fn one_session_more_than_there_are_is_refused() {
    let agent = Agent::start();
    let sessions: Vec<Peer> = (0..SESSIONS).map(|_| agent.host()).collect();
    let mut one_more = agent.silent_host();
    one_more.expect(r#"{"relay_error":{"busy":{"sessions":8}}}"#);
    one_more.expect_end();
    drop(sessions);
    let _served = agent.host();
}

#[test]
fn nobody_is_refused_while_a_session_ends_in_the_same_wake_up() {
    let agent = Agent::start();
    let mut sessions: Vec<Peer> = (0..SESSIONS).map(|_| agent.host()).collect();
    for _ in 0..200 {
        sessions.remove(0).close();
        sessions.push(agent.host());
    }
}

#[test]
fn sessions_do_not_delay_each_other() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    // Stuck in its scheduler.
    let mut stuck = agent.host();
    let _silent = open(&mut stuck, &listener, "stuck");
    // Never reads its answer.
    let mut deaf = agent.host();
    let mut talker = open(&mut deaf, &listener, "deaf");
    talker.send(line_of(MAX_RESPONSE_BYTES));
    // Sends a line that never ends.
    let mut endless = agent.host();
    endless.send(vec![b'x'; 1 << 20]);
    let mut host = agent.host();
    let mut scheduler = open(&mut host, &listener, "one");
    answer(&mut scheduler, &mut host, "1");
    for _ in 0..100 {
        round_trip(&mut host, &mut scheduler);
    }
}

#[test]
fn each_port_has_its_own_scheduler() {
    let agent = Agent::with_maps(4);
    for map in 0..4 {
        let listener = UnixListener::bind(agent.scheduler_path(map)).unwrap();
        let mut host = Peer::connect(&agent.host_path(map));
        host.expect(hello());
        let mut scheduler = open(&mut host, &listener, "who");
        answer(&mut scheduler, &mut host, &map.to_string());
    }
}

#[test]
fn an_idle_agent_sleeps() {
    let (agent, _listener, _host, _scheduler) = connected();
    let before = agent.wake_ups();
    agent.lives_on(Duration::from_secs(1));
    // It may still have been on its way to sleep after its answer. What is tried again is every 20 ms.
    let wake_ups = agent.wake_ups() - before;
    assert!(wake_ups <= 10, "it woke up {wake_ups} times in a second");
}

#[test]
fn wrong_arguments_are_one_line_and_status_2() {
    for (arguments, message) in [
        (&["--port", "x"][..], "scx-vsock-agent: x: a port is a number up to 4294967294\n"),
        (&["--sing"], "scx-vsock-agent: --sing: unknown argument; see --help\n"),
        (&["--map"], "scx-vsock-agent: --map: needs a value\n"),
        (&["--sing\n\u{1b}[2J"], "scx-vsock-agent: --sing: unknown argument; see --help\n"),
    ] {
        let (status, output, errors) = agent::run(|command| {
            command.args(arguments);
        });
        assert_eq!((status.code(), output.as_str(), errors.as_str()), (Some(2), "", message));
    }
}

#[test]
fn a_descriptor_that_does_not_listen_is_named() {
    let (status, _, errors) = agent::run(|command| {
        command.args(["--listen-fd", "0"]);
    });
    assert_eq!(status.code(), Some(1));
    assert_eq!(errors, "scx-vsock-agent: descriptor 0 is not a listening socket: errno 88\n");
    let (stream, _other) = UnixStream::pair().unwrap();
    let (_, _, errors) = agent::run(|command| {
        command.args(["--listen-fd", "0"]).stdin(OwnedFd::from(stream));
    });
    assert_eq!(errors, "scx-vsock-agent: descriptor 0 is not a listening socket: errno 22\n");
}

#[test]
fn only_sockets_that_were_passed_to_this_process_are_served() {
    // There are more than there are maps, which is wrong only of its own.
    let passed = |variable: &str| {
        let script = format!("unset LISTEN_PID; export LISTEN_FDS=5 {variable}; exec \"$0\"");
        let output = Command::new(env!("CARGO_BIN_EXE_limited"))
            .args(["socket:40=1", "sh", "-c", &script])
            .arg(agent::file())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, errors) = passed("LISTEN_PID=$$");
    assert_eq!(status, Some(2));
    assert!(errors.contains("one for each map is needed"), "{errors}");
    for variable in ["LISTEN_PID=1", "LISTEN_PID=", "OTHER=1"] {
        let (status, errors) = passed(variable);
        assert_eq!(status, Some(1), "{variable}");
        assert!(errors.contains("cannot listen on vsock port 729"), "{variable}: {errors}");
    }
}

#[test]
fn a_socket_path_over_107_bytes_is_refused_at_the_start() {
    let long = format!("/{}", "x".repeat(107));
    for arguments in [["--socket".to_owned(), long.clone()], ["--map".to_owned(), format!("1={long}")]] {
        let (status, _, errors) = agent::run(|command| {
            command.args(&arguments);
        });
        assert_eq!(status.code(), Some(2));
        assert!(errors.ends_with(": the path is over 107 bytes\n"), "{errors}");
        assert_eq!(errors.lines().count(), 1);
    }
}

#[test]
fn no_session_gets_the_number_of_a_standard_descriptor() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]);
    let agent = Agent::started_by(shell);
    let _host = agent.host();
    for number in 0..3 {
        let file = fs::read_link(format!("/proc/{}/fd/{number}", agent.id())).unwrap();
        assert_eq!(file, Path::new("/dev/null"));
    }
}

#[test]
fn an_agent_that_was_stopped_serves_as_soon_as_it_goes_on() {
    let (agent, _listener, mut host, mut scheduler) = connected();
    let process = Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();
    waitid(WaitId::Pid(process), WaitIdOptions::STOPPED).unwrap();
    kill_process(process, Signal::CONT).unwrap();
    round_trip(&mut host, &mut scheduler);
}

#[test]
fn help_and_version_are_printed() {
    let (status, output, _) = agent::run(|command| {
        command.arg("--version");
    });
    assert_eq!((status.code(), output.as_str()), (Some(0), "scx-vsock-agent 0.1.0\n"));
    let (status, output, _) = agent::run(|command| {
        command.arg("--help");
    });
    assert_eq!(status.code(), Some(0));
    assert!(output.contains("--map PORT=PATH"));
}
