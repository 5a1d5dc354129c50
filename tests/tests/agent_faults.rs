//! Thousands of sessions that end in every way: the agent serves the next one, and keeps nothing of those before.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::net::UnixListener;

use scx_vsock_tests::agent::{Agent, hello, too_large};
use scx_vsock_tests::peer::Peer;
use scx_vsock_wire::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES};

const ROUNDS: usize = 10_000;

/// Pages that the kernel may count differently from one moment to the next.
const SLACK_KIB: u64 = 16;

#[test]
fn ten_thousand_rounds_of_faults_leave_nothing_behind() {
    let agent = Agent::start();
    let listener = agent.scheduler();
    let mut random = fastrand::Rng::with_seed(729);
    // The longest line in every slot, and a read-ahead, so that all of its pages are there.
    let mut sessions: Vec<_> = (0..8).map(|_| served(&agent, &listener, 262_143)).collect();
    for (host, _) in &mut sessions {
        host.send([vec![b' '; 1_000], vec![b'\n'; 8_000]].concat());
    }
    drop(sessions);
    let before = kept_by(&agent, &listener);
    for round in 0..ROUNDS {
        FAULTS[random.usize(..FAULTS.len())](&agent, &listener, &mut random);
        if round % 16 == 0 {
            drop(served(&agent, &listener, 1 + random.usize(..2_000)));
        }
    }
    let after = kept_by(&agent, &listener);
    assert_eq!(after.descriptors, before.descriptors);
    assert!(
        after.resident_kib <= before.resident_kib + SLACK_KIB,
        "{} KiB, then {} KiB",
        before.resident_kib,
        after.resident_kib
    );
}

struct Kept {
    descriptors: usize,
    resident_kib: u64,
}

/// What the agent has while one session is open: what is to be closed before it is closed by then.
fn kept_by(agent: &Agent, listener: &UnixListener) -> Kept {
    // All slots have to be free for eight hosts to be served at once.
    let mut sessions: Vec<(Peer, Peer)> = (0..8).map(|_| served(agent, listener, 1)).collect();
    let process = format!("/proc/{}", agent.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kept = Kept {
        descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
        resident_kib: resident.trim_end_matches("kB").trim().parse().unwrap(),
    };
    for (host, scheduler) in &mut sessions {
        host.finish();
        scheduler.expect_end();
        host.expect_end();
    }
    kept
}

/// A session that had its request answered with a line of this size.
fn served(agent: &Agent, listener: &UnixListener, size: usize) -> (Peer, Peer) {
    let (mut host, mut scheduler) = asked(agent, listener);
    let answer = vec![b'7'; size];
    scheduler.send([&answer[..], b"\n"].concat());
    host.expect([&b"{\"stats\":"[..], &answer, b"}"].concat());
    (host, scheduler)
}

/// A session whose request has reached the scheduler.
fn asked(agent: &Agent, listener: &UnixListener) -> (Peer, Peer) {
    let mut host = connected(agent);
    host.send("{\"req\":\"stats\"}\n");
    let mut scheduler = Peer::accept(listener);
    scheduler.expect("{\"req\":\"stats\"}");
    (host, scheduler)
}

/// A session. A slot that an earlier round left may only be freed by events that are still on their way, so `busy` is
/// a rightful answer, after which the agent has seen them.
fn connected(agent: &Agent) -> Peer {
    for _ in 0..100 {
        let mut host = agent.silent_host();
        let line = host.line();
        if line == format!("{}\n", hello()).into_bytes() {
            return host;
        }
        assert_eq!(line, b"{\"relay_error\":{\"busy\":{\"sessions\":8}}}\n");
    }
    panic!("every session stays taken");
}

type Fault = fn(&Agent, &UnixListener, &mut fastrand::Rng);

const FAULTS: &[Fault] = &[
    host_goes_at_once,
    host_goes_within_its_request,
    host_goes_before_the_answer,
    host_goes_within_the_answer,
    host_half_closes,
    scheduler_goes_before_the_answer,
    scheduler_goes_within_the_answer,
    scheduler_goes_idle,
    scheduler_sends_unsolicited_data,
    scheduler_answers_twice,
    answer_is_too_large,
    request_is_too_large,
];

fn host_goes_at_once(agent: &Agent, _: &UnixListener, _: &mut fastrand::Rng) {
    drop(agent.silent_host());
}

fn host_goes_within_its_request(agent: &Agent, _: &UnixListener, random: &mut fastrand::Rng) {
    let mut host = connected(agent);
    host.send(vec![b'x'; random.usize(..9_000)]);
}

fn host_goes_before_the_answer(agent: &Agent, listener: &UnixListener, _: &mut fastrand::Rng) {
    let (host, mut scheduler) = asked(agent, listener);
    drop(host);
    scheduler.expect_end();
}

fn host_goes_within_the_answer(agent: &Agent, listener: &UnixListener, random: &mut fastrand::Rng) {
    let (host, mut scheduler) = asked(agent, listener);
    scheduler.send(vec![b'1'; random.usize(..100_000)]);
    drop(host);
    // The agent may close before it has read all.
    let _end_or_reset = scheduler.line();
}

fn host_half_closes(agent: &Agent, listener: &UnixListener, _: &mut fastrand::Rng) {
    let (mut host, mut scheduler) = asked(agent, listener);
    host.finish();
    scheduler.send("1\n");
    host.expect("{\"stats\":1}");
    scheduler.expect_end();
    host.expect_end();
}

fn scheduler_goes_before_the_answer(agent: &Agent, listener: &UnixListener, _: &mut fastrand::Rng) {
    let (mut host, scheduler) = asked(agent, listener);
    drop(scheduler);
    host.expect("{\"relay_error\":{\"scheduler_gone\":{\"errno\":0,\"cause\":\"\"}}}");
    host.expect_end();
}

fn scheduler_goes_within_the_answer(agent: &Agent, listener: &UnixListener, random: &mut fastrand::Rng) {
    let (mut host, mut scheduler) = asked(agent, listener);
    scheduler.send(vec![b'1'; random.usize(..100_000)]);
    drop(scheduler);
    host.expect("{\"relay_error\":{\"scheduler_gone\":{\"errno\":0,\"cause\":\"\"}}}");
    host.expect_end();
}

fn scheduler_goes_idle(agent: &Agent, listener: &UnixListener, _: &mut fastrand::Rng) {
    let (mut host, scheduler) = served(agent, listener, 10);
    drop(scheduler);
    host.expect("{\"relay_error\":{\"scheduler_gone\":{\"errno\":0,\"cause\":\"\"}}}");
    host.expect_end();
}

fn scheduler_sends_unsolicited_data(agent: &Agent, listener: &UnixListener, random: &mut fastrand::Rng) {
    let (mut host, mut scheduler) = served(agent, listener, 10);
    scheduler.send(vec![b'1'; 1 + random.usize(..100)]);
    host.expect("{\"relay_error\":{\"unsolicited_data\":{}}}");
    host.expect_end();
}

fn scheduler_answers_twice(agent: &Agent, listener: &UnixListener, _: &mut fastrand::Rng) {
    let (mut host, mut scheduler) = asked(agent, listener);
    scheduler.send("1\n2\n");
    host.expect("{\"stats\":1}");
    host.expect("{\"relay_error\":{\"unsolicited_data\":{}}}");
    host.expect_end();
}

fn answer_is_too_large(agent: &Agent, listener: &UnixListener, random: &mut fastrand::Rng) {
    let (mut host, mut scheduler) = asked(agent, listener);
    // The agent closes as soon as the cap is passed, which may fail the rest of the write.
    let _rest = scheduler.try_send(vec![b'1'; MAX_RESPONSE_BYTES + random.usize(..100_000)]);
    host.expect(too_large("response", MAX_RESPONSE_BYTES + 1, MAX_RESPONSE_BYTES));
    host.expect_end();
}

fn request_is_too_large(agent: &Agent, listener: &UnixListener, random: &mut fastrand::Rng) {
    let mut host = connected(agent);
    let size = 262_145 + random.usize(..100_000);
    let mut line = vec![b'x'; size];
    line[size - 1] = b'\n';
    host.send(line);
    host.expect(too_large("request", size, MAX_REQUEST_BYTES));
    host.send("{}\n");
    let mut scheduler = Peer::accept(listener);
    scheduler.expect("{}");
}
