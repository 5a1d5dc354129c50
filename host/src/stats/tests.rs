//! Every reason against its names, numbers and JSON, written once more by hand.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};

use serde_json::json;

use super::*;

/// A reason, its kind, its exit code and its JSON.
type Row = (MissingStatsReason, &'static str, u8, &'static str);

fn every_reason() -> Vec<Row> {
    use MissingStatsReason as R;
    let args = || json!({ "resp": "unknown target" });
    let reason = || "why".to_owned();
    let gone = R::SchedulerGone { errno: 104, cause: String::new() };
    vec![
        (R::NoSchedulerBinary, "no_scheduler_binary", 10, r#""NoSchedulerBinary""#),
        (R::NoScheduler { reason: reason() }, "no_scheduler", 11, r#"{"NoScheduler":{"reason":"why"}}"#),
        (R::DuringFreeze, "during_freeze", 12, r#""DuringFreeze""#),
        (R::Cancelled, "cancelled", 13, r#""Cancelled""#),
        (
            R::SchedulerError { errno: 22, args: args() },
            "scheduler_error",
            14,
            r#"{"SchedulerError":{"errno":22,"args":{"resp":"unknown target"}}}"#,
        ),
        (R::MissingResp { args: json!({}) }, "missing_resp", 15, r#"{"MissingResp":{"args":{}}}"#),
        (R::RequestTooLarge { size: 2, max: 1 }, "request_too_large", 16, r#"{"RequestTooLarge":{"size":2,"max":1}}"#),
        (
            R::ResponseTooLarge { size: 2, max: 1 },
            "response_too_large",
            17,
            r#"{"ResponseTooLarge":{"size":2,"max":1}}"#,
        ),
        (R::MutexPoisoned, "mutex_poisoned", 18, r#""MutexPoisoned""#),
        (R::TimedOut { after_ms: 5000 }, "timed_out", 19, r#"{"TimedOut":{"after_ms":5000}}"#),
        (gone, "scheduler_gone", 20, r#"{"SchedulerGone":{"errno":104,"cause":""}}"#),
        (R::AgentUnreachable { reason: reason() }, "agent_unreachable", 21, r#"{"AgentUnreachable":{"reason":"why"}}"#),
        (R::AgentBusy { sessions: 8 }, "agent_busy", 22, r#"{"AgentBusy":{"sessions":8}}"#),
        (
            R::MalformedResponse { reason: reason() },
            "malformed_response",
            23,
            r#"{"MalformedResponse":{"reason":"why"}}"#,
        ),
        (R::InvalidRequest { reason: reason() }, "invalid_request", 24, r#"{"InvalidRequest":{"reason":"why"}}"#),
    ]
}

/// Every error, its errno, and whether its session lives on.
pub(crate) fn every_error() -> Vec<(SchedStatsError, i32, bool)> {
    use SchedStatsError as E;
    let args = || json!({ "resp": "unknown target" });
    let reason = || "why".to_owned();
    vec![
        (E::NoScheduler { reason: reason() }, 2, true),
        (E::DuringFreeze, 11, false),
        (E::Cancelled, 125, false),
        (E::SchedulerError { errno: 22, args: args() }, 22, false),
        (E::MissingResp { args: json!({}) }, 71, true),
        (E::RequestTooLarge { size: 2, max: 1 }, 90, true),
        (E::ResponseTooLarge { size: 2, max: 1 }, 75, false),
        (E::MutexPoisoned, 130, false),
        (E::TimedOut { after_ms: 5000 }, 110, false),
        (E::SchedulerGone { errno: 104, cause: String::new() }, 104, false),
        (E::unreachable("why"), 113, false),
        (E::AgentBusy { sessions: 8 }, 16, false),
        (E::MalformedResponse { reason: reason() }, 71, false),
        (E::InvalidRequest { reason: reason() }, 22, false),
    ]
}

#[test]
fn a_reason_is_plain_data() {
    const fn made() -> MissingStatsReason {
        MissingStatsReason::NoSchedulerBinary
    }
    // Freeze: only a type without interior mutability may stand behind a reference in a constant.
    const FROZEN: &MissingStatsReason = &made();
    fn is_plain_data<T: Send + Sync + Unpin + UnwindSafe + RefUnwindSafe + 'static>(_: &T) {}
    is_plain_data(FROZEN);
}

#[test]
fn names_and_json_of_reasons_never_change() {
    assert_eq!(MissingStatsReason::KINDS.len(), every_reason().len());
    for ((reason, kind, exit_code, golden), names) in every_reason().into_iter().zip(MissingStatsReason::KINDS) {
        assert_eq!((reason.kind(), reason.exit_code()), (kind, exit_code));
        assert_eq!((names.kind, names.exit_code), (kind, exit_code));
        assert_eq!(serde_json::to_string(&reason).unwrap(), golden);
        assert_eq!(serde_json::from_str::<MissingStatsReason>(golden).unwrap(), reason);
    }
}

#[test]
fn a_cause_may_be_missing_in_json() {
    let reason: MissingStatsReason = serde_json::from_str(r#"{"SchedulerGone":{"errno":0}}"#).unwrap();
    assert_eq!(reason, MissingStatsReason::SchedulerGone { errno: 0, cause: String::new() });
}

#[test]
fn every_error_becomes_the_reason_of_its_name_with_its_facts() {
    let reasons = every_reason();
    let after_the_first = reasons.iter().skip(1).map(|(reason, ..)| reason);
    for ((error, ..), reason) in every_error().into_iter().zip(after_the_first) {
        assert_eq!(MissingStatsReason::from(&error), *reason);
        assert_eq!((error.kind(), error.exit_code()), (reason.kind(), reason.exit_code()));
        assert_eq!(error.to_string(), reason.to_string());
        assert_eq!(MissingStatsReason::from(error), *reason);
    }
    assert_eq!(every_error().len() + 1, reasons.len());
}

#[test]
fn every_error_has_its_errno_and_keeps_or_ends_its_session() {
    for (error, errno, keeps_session) in every_error() {
        assert_eq!((error.errno(), error.keeps_session()), (errno, keeps_session), "{error}");
    }
    let unnumbered = SchedStatsError::SchedulerError { errno: 0, args: json!(null) };
    assert_eq!(unnumbered.errno(), 71);
}

#[test]
fn reasons_can_be_counted() {
    let counted: HashSet<_> = every_reason().into_iter().map(|(reason, ..)| reason).collect();
    assert_eq!(counted.len(), every_reason().len());
}

#[test]
fn messages_carry_the_facts_on_one_line() {
    for (reason, fact) in every_reason().into_iter().map(|(reason, ..)| reason).zip([
        "without a scheduler",
        "why",
        "frozen",
        "cancelled",
        "errno 22: unknown target",
        "only {}",
        "2 bytes, more than the 1",
        "passed 1 bytes",
        "panicked",
        "5000 ms",
        "Connection reset by peer",
        "why",
        "all 8 sessions",
        "why",
        "why",
    ]) {
        let text = reason.to_string();
        assert!(text.contains(fact) && !text.contains('\n'), "{text}");
    }
}

#[test]
fn a_system_error_stays_as_the_source() {
    let error = SchedStatsError::unreachable_by("vsock://3:729", io::Error::from_raw_os_error(111));
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap();
    assert_eq!(source.raw_os_error(), Some(111));
    let text = "no agent to talk to: vsock://3:729: Connection refused (os error 111)";
    assert_eq!(MissingStatsReason::from(&error).to_string(), text);
    assert_eq!(format!("{:#}", anyhow::Error::from(error.clone())), text);
    assert_eq!(error.clone(), error);
    assert_ne!(error, SchedStatsError::unreachable("vsock://3:729"));
}

#[test]
fn a_schedulers_backtrace_is_truncated_to_its_first_line() {
    let resp = format!("{}\n   0: std::backtrace\u{1b}[31m", "x".repeat(500));
    let text = MissingStatsReason::SchedulerError { errno: 22, args: json!({ "resp": resp }) }.to_string();
    assert!(text.ends_with("xxx...") && text.len() < 300, "{text}");
}

#[test]
fn no_text_of_a_peer_reaches_a_terminal_as_it_is() {
    let hostile = format!("\u{1b}[2J\u{202e}{}", "x".repeat(200_000));
    let args = || json!({ &*hostile: 1 });
    for reason in [
        MissingStatsReason::NoScheduler { reason: hostile.clone() },
        MissingStatsReason::SchedulerError { errno: 22, args: json!({ "resp": &*hostile }) },
        MissingStatsReason::SchedulerError { errno: 22, args: args() },
        MissingStatsReason::MissingResp { args: args() },
        MissingStatsReason::SchedulerGone { errno: 0, cause: hostile.clone() },
        MissingStatsReason::AgentUnreachable { reason: hostile.clone() },
        MissingStatsReason::MalformedResponse { reason: hostile.clone() },
        SchedStatsError::malformed(&hostile).into(),
        SchedStatsError::unreachable(&hostile).into(),
        MissingStatsReason::InvalidRequest { reason: hostile.clone() },
    ] {
        let text = reason.to_string();
        assert!(text.is_ascii() && !text.contains('\u{1b}') && text.len() < 2_500, "{text:.300}");
    }
    assert!(
        matches!(SchedStatsError::malformed(hostile), SchedStatsError::MalformedResponse { reason } if reason.len() < 2_500)
    );
}
