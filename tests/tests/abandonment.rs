//! No answer is ever another request's: the short form of a row of `ci/bench`.

use scx_vsock_tests::abandonment;

#[test]
fn no_answer_is_ever_another_requests_though_half_are_abandoned() {
    let tally = abandonment::of_clients(20_000);
    assert_eq!((tally.requests(), tally.wrong), (20_000, 0), "{tally:?}");
    assert!(tally.failed.keys().all(|error| error.contains("all 8 sessions")), "{tally:?}");
    assert!(tally.right > 5_000 && tally.abandoned > 5_000, "{tally:?}");
}

#[test]
fn a_client_that_keeps_a_session_with_an_abandoned_request_gets_answers_of_others() {
    let tally = abandonment::of_a_client_that_keeps_its_session(2_000);
    assert!(tally.wrong > 0, "{tally:?}");
}
