//! The session machine against scripts and against its oracle.

use proptest::prelude::*;
use std::vec::Vec;

use super::oracle::{Driver, MAX, check, hello, open, wait_scheduler, write_report};
use super::*;

/// Writes the report that the session asks for, if it does.
fn report_what_the_kernel_says(session: &mut Session<MAX>) {
    if let Action::Report(report, buffer) = session.action(false) {
        let length = write_report(report, buffer);
        session.done(Outcome::done(saturate(length)));
    }
}

fn greeted() -> Session<MAX> {
    let mut session = Session::new();
    open(&mut session);
    let mut driver = Driver::new(b"");
    driver.run(&mut session);
    assert_eq!(driver.to_host, hello());
    session
}

#[test]
fn a_new_session_is_closed_until_it_is_opened() {
    let mut session = Session::<MAX>::new();
    assert!(session.is_closed());
    assert_eq!(session.action(false), Action::Close);
    open(&mut session);
    assert!(!session.is_closed());
}

#[test]
fn hello_announces_the_real_buffers() {
    let mut session = Session::<4096>::new();
    session.open(Text::first_line(b"0.1.0"), Text::EMPTY);
    let Action::Write(Peer::Host, pieces) = session.action(false) else { panic!("no hello") };
    let expected = r#"{"hello":{"protocol":1,"min_protocol":1,"agent":"0.1.0","boot_id":"","max_request_bytes":4096,"max_response_bytes":4096}}"#;
    assert_eq!(pieces.concat().trim_ascii_end(), expected.as_bytes());
}

#[test]
fn a_session_awaits_the_scheduler_from_the_verb_to_its_answer() {
    let mut session = greeted();
    assert!(!session.awaits_scheduler());
    let mut driver = Driver::new(&wait_scheduler());
    driver.reachable = false;
    driver.run(&mut session);
    assert!(session.awaits_scheduler());
    assert_eq!(session.action(false), Action::Connect { timeout_ms: 50 });
    driver.reachable = true;
    driver.run(&mut session);
    assert!(!session.awaits_scheduler());
    assert_eq!(driver.host_lines(), [r#"{"agent":{"scheduler_ready":{}}}"#]);
}

#[test]
fn a_wait_whose_time_is_over_ends_without_a_scheduler() {
    let mut session = greeted();
    let mut driver = Driver::new(&wait_scheduler());
    driver.reachable = false;
    driver.time_is_over = true;
    driver.run(&mut session);
    let expected = r#"{"relay_error":{"no_scheduler":{"errno":2,"sched_ext":"","ops":"","cause":""}}}"#;
    assert_eq!(driver.host_lines(), [expected]);
    assert!(matches!(session.action(false), Action::Read(Peer::Host, _)), "the session goes on");
}

#[test]
fn what_the_kernel_says_is_answered_at_once() {
    let mut session = greeted();
    let mut driver = Driver::new(b"{\"agent\":{\"sched_ext\":{}}}\nafter\n");
    driver.run(&mut session);
    assert_eq!(driver.host_lines(), [r#"{"agent":{"sched_ext":{"uptime_us":0}}}"#]);
    assert_eq!(driver.to_scheduler, b"after\n", "the session goes on");
}

#[test]
fn complete_lines_are_answered_before_the_hosts_end() {
    let mut session = greeted();
    let mut driver = Driver::new(b"{\"agent\":{\"a\":{}}}\n{\"agent\":{\"b\":{}}}\nincomplete");
    driver.host_ended = true;
    driver.run(&mut session);
    assert_eq!(driver.host_lines().len(), 2);
    assert!(session.is_closed());
}

#[test]
fn bytes_that_came_before_the_request_are_not_its_answer() {
    let mut session = greeted();
    let mut driver = Driver::new(b"one\n");
    driver.run(&mut session);
    driver.from_scheduler.extend(b"1\n");
    driver.run(&mut session);
    driver.late_events = true;
    driver.from_scheduler.extend(b"stale\n");
    driver.from_host.extend(b"two\n");
    driver.run(&mut session);
    assert_eq!(driver.host_lines(), [r#"{"stats":1}"#, r#"{"relay_error":{"unsolicited_data":{}}}"#]);
    assert_eq!(driver.to_scheduler, b"one\n");
    assert!(session.is_closed());
}

#[test]
fn the_hosts_close_ends_the_session_in_every_state() {
    let mut session = greeted();
    session.done(Outcome::done(0));
    assert!(session.is_closed());
    session.checked(Outcome::done(0));
    session.checked(Outcome::done(1));
    session.checked(Outcome::failed(104));
    assert!(session.is_closed(), "nothing reopens a session but open");
}

#[test]
fn a_host_whose_connection_fails_ends_the_session() {
    let mut sends_hello = Session::<MAX>::default();
    open(&mut sends_hello);
    for mut session in [sends_hello, greeted()] {
        session.done(Outcome::failed(104));
        assert!(session.is_closed());
    }
}

#[test]
fn a_scheduler_whose_connection_fails_is_gone_with_the_errno() {
    let mut forwards = greeted();
    Driver::new(b"one\n").step(&mut forwards, usize::MAX);
    forwards.done(Outcome::done(0));
    forwards.checked(Outcome::BLOCKED);
    assert!(matches!(forwards.action(false), Action::Write(Peer::Scheduler, [b"", b"one\n", b""])));
    let mut awaits_the_answer = greeted();
    Driver::new(b"one\n").run(&mut awaits_the_answer);
    assert!(matches!(awaits_the_answer.action(false), Action::Read(Peer::Scheduler, _)));
    for mut session in [forwards, awaits_the_answer] {
        session.done(Outcome::failed(104));
        let mut driver = Driver::new(b"");
        driver.run(&mut session);
        assert_eq!(driver.host_lines(), [r#"{"relay_error":{"scheduler_gone":{"errno":104,"cause":""}}}"#]);
        assert!(session.is_closed());
    }
}

#[test]
fn an_opened_session_remembers_nothing_of_the_one_before() {
    let mut session = greeted();
    Driver::new(b"one\ntwo\nthr").step(&mut session, usize::MAX);
    session.host_closed();
    open(&mut session);
    let mut driver = Driver::new(b"ee\n");
    driver.run(&mut session);
    assert_eq!(driver.to_scheduler, b"ee\n");
}

#[test]
fn reports_that_do_not_fit_the_state_change_nothing() {
    let mut session = greeted();
    session.done(Outcome::BLOCKED);
    session.checked(Outcome::BLOCKED);
    assert!(matches!(session.action(false), Action::Read(Peer::Host, buffer) if buffer.len() == MAX));
    // What is not expected of the scheduler while it is asked is not looked for.
    Driver::new(b"one\n").run(&mut session);
    session.checked(Outcome::BLOCKED);
    session.checked(Outcome::done(1));
    session.checked(Outcome::done(0));
    assert!(matches!(session.action(true), Action::Read(Peer::Scheduler, _)));
}

#[test]
fn a_dropped_line_counts_its_line_feed_and_saturates() {
    let mut session = greeted();
    session.state = State::Request { dropped: u32::MAX - 1 };
    let mut driver = Driver::new(b"xxx\n");
    driver.run(&mut session);
    let expected = format!(r#"{{"relay_error":{{"request_too_large":{{"size":{},"max":{MAX}}}}}}}"#, u32::MAX);
    assert_eq!(driver.host_lines(), [expected]);
}

#[test]
fn a_frame_can_be_written_in_any_two_parts() {
    let mut line = LineBuffer::<64>::new();
    line.take_line(b"{\"a\":1}\n");
    let whole = unsent(&line, Frame::Stats, 0).concat();
    assert_eq!(whole, b"{\"stats\":{\"a\":1}}\n");
    for sent in 0..=whole.len() {
        assert_eq!(unsent(&line, Frame::Stats, sent).concat(), &whole[sent..]);
    }
}

fn outcome_of_a_check(report: u8, count: usize) -> Outcome {
    match report {
        0..4 => Outcome::BLOCKED,
        4..6 => Outcome::done(saturate(count)),
        _ => Outcome::failed(104),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_line_gets_exactly_its_envelope_in_order_whatever_the_peers_do(
        input in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        check(&input);
    }

    #[test]
    fn no_report_in_any_order_tears_an_envelope_or_answers_twice(
        reports in proptest::collection::vec((0u8..11, 0usize..40), 0..300),
    ) {
        let mut session = greeted();
        let mut sent: Vec<u8> = Vec::new();
        for (report, count) in reports {
            // Reports are honest about counts: a driver cannot read or write more than it was offered.
            let scheduler_is_ready = report % 2 == 0;
            let is_check = session.action(scheduler_is_ready) == Action::Check;
            let count = match session.action(scheduler_is_ready) {
                Action::Read(_, buffer) => {
                    buffer.fill(if count % 7 == 0 { b'\n' } else { b'y' });
                    count.min(buffer.len())
                }
                Action::Write(peer, pieces) => {
                    let whole = pieces.concat();
                    let count = count.min(whole.len());
                    if report < 6 && peer == Peer::Host {
                        sent.extend(&whole[..count]);
                    }
                    count
                }
                _ => count,
            };
            match report {
                _ if is_check => session.checked(outcome_of_a_check(report, count)),
                0..6 if matches!(session.action(scheduler_is_ready), Action::Report(..)) => {
                    report_what_the_kernel_says(&mut session);
                }
                0..6 => session.done(Outcome::done(saturate(count))),
                6 => session.done(Outcome::failed(111)),
                7 => session.done(Outcome::BLOCKED),
                8 => session.checked(Outcome::done(1)),
                9 => session.checked(Outcome::BLOCKED),
                _ => {}
            }
        }
        let whole_lines = sent.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for line in whole_lines {
            prop_assert!(line.starts_with(b"{\"") && line.ends_with(b"}\n"), "{:?}", line);
        }
    }
}
