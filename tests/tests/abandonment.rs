//! No answer is ever another request's. `ci/bench` does the same with more requests.

use scx_vsock_tests::abandonment;

#[test]
fn no_answer_is_another_requests() {
    let outcomes = abandonment::of_clients(20_000);
    assert_eq!((outcomes.requests(), outcomes.wrong), (20_000, 0), "{outcomes:?}");
    assert!(outcomes.failed.keys().all(|error| error.contains("all 8 sessions")), "{outcomes:?}");
    assert!(outcomes.right > 5_000 && outcomes.abandoned > 5_000, "{outcomes:?}");
}

#[test]
fn a_client_that_keeps_sessions_mixes_answers() {
    let outcomes = abandonment::of_a_client_that_keeps_sessions(2_000);
    assert!(outcomes.wrong > 0, "{outcomes:?}");
}

#[test]
fn each_sample_names_its_own_session_and_interval() {
    let samples = abandonment::of_samplers(10_000);
    assert_eq!((samples.wrong_sessions, samples.wrong_intervals), (0, 0), "{samples:?}");
    assert!(samples.failed.is_empty() && samples.answers > 10_000 && samples.abandoned > 500, "{:?}", samples.failed);
}
