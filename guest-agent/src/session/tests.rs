//! The session machine against scripts and against its model.

use proptest::prelude::*;
use std::vec::Vec;

use super::model::{Driver, MAX, check};
use super::*;

fn greeted(buffers: &mut Buffers<MAX>) -> Session<'_, MAX> {
    let mut session = Session::new(buffers);
    session.open("0.1.0");
    let mut driver = Driver::new(b"");
    driver.run(&mut session);
    assert_eq!(driver.to_host, *Envelope::hello("0.1.0").emit());
    session
}

#[test]
fn a_new_session_is_closed_until_it_is_opened() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = Session::new(&mut buffers);
    assert!(session.is_closed());
    assert_eq!(session.action(), Action::Close);
    session.open("0.1.0");
    assert!(!session.is_closed());
}

#[test]
fn a_session_awaits_the_scheduler_from_the_hosts_wish_to_its_answer() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = greeted(&mut buffers);
    assert!(!session.awaits_scheduler());
    let mut driver = Driver::new(&[WAIT_SCHEDULER, b"\n"].concat());
    driver.reachable = false;
    driver.run(&mut session);
    assert!(session.awaits_scheduler());
    driver.reachable = true;
    driver.run(&mut session);
    assert!(!session.awaits_scheduler());
    assert_eq!(driver.host_lines(), [r#"{"agent":"scheduler_ready"}"#]);
}

#[test]
fn the_hosts_end_closes_the_session_in_every_state() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = greeted(&mut buffers);
    session.host_read(0);
    assert!(session.is_closed());
    session.scheduler_ended(0);
    session.scheduler_unasked();
    assert!(session.is_closed(), "nothing reopens a session but open");
}

#[test]
fn an_opened_session_remembers_nothing_of_the_one_before() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = greeted(&mut buffers);
    Driver::new(b"one\ntwo\nthr").step(&mut session, usize::MAX);
    session.host_ended();
    session.open("0.1.0");
    let mut driver = Driver::new(b"ee\n");
    driver.run(&mut session);
    assert_eq!(driver.to_scheduler, b"ee\n");
}

#[test]
fn reports_that_do_not_fit_the_state_change_nothing() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = greeted(&mut buffers);
    session.host_wrote(5);
    session.scheduler_connected();
    session.scheduler_wrote(5);
    session.scheduler_read(5);
    session.scheduler_refused(2, Text::default(), Text::default());
    assert!(matches!(session.action(), Action::ReadHost(buffer) if buffer.len() == MAX));
}

#[test]
fn a_dropped_line_counts_its_line_feed_and_saturates() {
    let mut buffers = Buffers::<MAX>::new();
    let mut session = greeted(&mut buffers);
    session.state = State::Dropping { size: u32::MAX - 1 };
    let mut driver = Driver::new(b"xxx\n");
    driver.run(&mut session);
    let expected = format!(r#"{{"relay_error":{{"request_too_large":{{"size":{},"max":{MAX}}}}}}}"#, u32::MAX);
    assert_eq!(driver.host_lines(), [expected]);
}

#[test]
fn an_answer_frame_is_cut_anywhere_without_loss() {
    let whole = framed(b"{\"a\":1}", 0).concat();
    assert_eq!(whole, b"{\"stats\":{\"a\":1}}\n");
    assert_eq!(framed_length(b"{\"a\":1}"), whole.len());
    for sent in 0..=whole.len() {
        assert_eq!(framed(b"{\"a\":1}", sent).concat(), &whole[sent..]);
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
        reports in proptest::collection::vec((0u8..9, 0usize..40), 0..300),
    ) {
        let mut buffers = Buffers::<MAX>::new();
        let mut session = greeted(&mut buffers);
        let mut sent: Vec<u8> = Vec::new();
        for (report, count) in reports {
            // Reports are honest about counts: a driver cannot read or write more than it was offered.
            let offered = match session.action() {
                Action::ReadHost(buffer) | Action::ReadScheduler(buffer) => {
                    buffer.fill(if count % 7 == 0 { b'\n' } else { b'y' });
                    buffer.len()
                }
                Action::WriteHost(pieces) => {
                    let whole = pieces.concat();
                    if report == 1 {
                        sent.extend(&whole[..count.min(whole.len())]);
                    }
                    whole.len()
                }
                Action::WriteScheduler(line) => line.len(),
                _ => 0,
            };
            let reading_host = matches!(session.action(), Action::ReadHost(_));
            let reading_scheduler = matches!(session.action(), Action::ReadScheduler(_));
            let count = count.min(offered);
            match report {
                0 if reading_host && count > 0 => session.host_read(count),
                1 => session.host_wrote(count),
                2 => session.scheduler_connected(),
                3 => session.scheduler_refused(111, Text::default(), Text::default()),
                4 => session.scheduler_wrote(count),
                5 if reading_scheduler && count > 0 => session.scheduler_read(count),
                6 if session.awaits_no_answer() => session.scheduler_ended(0),
                7 if session.awaits_no_answer() => session.scheduler_unasked(),
                _ => {}
            }
        }
        let whole_lines = sent.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        for line in whole_lines {
            prop_assert!(line.starts_with(b"{\"") && line.ends_with(b"}\n"), "{:?}", line);
        }
    }
}
