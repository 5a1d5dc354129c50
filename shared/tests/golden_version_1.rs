//! The bytes of protocol version 1. Images outlive host tools: this file is never edited again. A later version
//! adds a file of its own beside it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use scx_vsock_wire::limits::{
    AGENT_LINE_PREFIX, AGENT_PORT, MAX_ENVELOPE_BYTES, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, MAX_SCHED_EXT_BYTES,
    READY_PORT,
};
use scx_vsock_wire::{
    AgentAnswer, Envelope, Hello, KernelMessage, RelayError, STATS_PREFIX, STATS_SUFFIX, SchedExt, SchedExtLine, Text,
    Verb, sched_ext,
};

fn text(text: &str) -> Text<'_> {
    Text::first_line(text.as_bytes())
}

#[test]
fn limits_and_ports() {
    assert_eq!(AGENT_PORT, 729);
    assert_eq!(READY_PORT, 7290);
    assert_eq!(MAX_REQUEST_BYTES, 262_144);
    assert_eq!(MAX_RESPONSE_BYTES, 262_144);
    assert_eq!(MAX_ENVELOPE_BYTES, 262_154);
}

#[test]
fn lines_for_the_agent() {
    assert_eq!(AGENT_LINE_PREFIX, br#"{"agent":"#);
    let line = br#"{"agent":{"wait_scheduler":{"timeout_ms":4500}}}"#;
    let verb = Verb::WaitScheduler { timeout_ms: 4500 };
    assert_eq!(line.strip_prefix(AGENT_LINE_PREFIX).and_then(Verb::parse), Some(verb));
    assert_eq!(verb.emit().strip_suffix(b"\n"), Some(&line[..]));
    let line = br#"{"agent":{"sched_ext":{}}}"#;
    assert_eq!(line.strip_prefix(AGENT_LINE_PREFIX).and_then(Verb::parse), Some(Verb::SchedExt {}));
    assert_eq!(Verb::SchedExt {}.emit().strip_suffix(b"\n"), Some(&line[..]));
}

#[test]
fn the_frame_of_an_answer() {
    assert_eq!(STATS_PREFIX, br#"{"stats":"#);
    assert_eq!(STATS_SUFFIX, b"}");
}

/// Returns each envelope and its line.
fn envelopes() -> [(&'static str, Envelope<Text<'static>>); 9] {
    [
        (
            r#"{"hello":{"protocol":1,"min_protocol":1,"agent":"0.1.0","boot_id":"0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d","max_request_bytes":262144,"max_response_bytes":262144}}"#,
            Envelope::Hello(Hello {
                protocol: 1,
                min_protocol: 1,
                agent: text("0.1.0"),
                boot_id: text("0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"),
                max_request_bytes: 262_144,
                max_response_bytes: 262_144,
            }),
        ),
        (r#"{"agent":{"scheduler_ready":{}}}"#, Envelope::Agent(AgentAnswer::SchedulerReady {})),
        (
            r#"{"relay_error":{"no_scheduler":{"errno":2,"sched_ext":"disabled","ops":"","cause":""}}}"#,
            Envelope::RelayError(RelayError::NoScheduler {
                errno: 2,
                sched_ext: text("disabled"),
                ops: text(""),
                cause: text(""),
            }),
        ),
        (
            r#"{"relay_error":{"scheduler_gone":{"errno":0,"cause":""}}}"#,
            Envelope::RelayError(RelayError::SchedulerGone { errno: 0, cause: text("") }),
        ),
        (r#"{"relay_error":{"unsolicited_data":{}}}"#, Envelope::RelayError(RelayError::UnsolicitedData {})),
        (
            r#"{"relay_error":{"request_too_large":{"size":262145,"max":262144}}}"#,
            Envelope::RelayError(RelayError::RequestTooLarge { size: 262_145, max: 262_144 }),
        ),
        (
            r#"{"relay_error":{"response_too_large":{"size":262145,"max":262144}}}"#,
            Envelope::RelayError(RelayError::ResponseTooLarge { size: 262_145, max: 262_144 }),
        ),
        (r#"{"relay_error":{"unknown_verb":{}}}"#, Envelope::RelayError(RelayError::UnknownVerb {})),
        (r#"{"relay_error":{"busy":{"sessions":8}}}"#, Envelope::RelayError(RelayError::Busy { sessions: 8 })),
    ]
}

type HostSchedExt = SchedExt<String, BTreeMap<String, String>, Vec<KernelMessage<String>>>;

#[test]
fn what_the_kernel_says() {
    let line = r#"{"agent":{"sched_ext":{"state":"enabled","ops":"bpfland_1.1.4","enable_seq":"1","hotplug_seq":"1","nr_rejected":"0","switch_all":"1","uptime_us":9120627,"events":{"SCX_EV_BYPASS_ACTIVATE":"1","SCX_EV_REFILL_SLICE_DFL":"20"},"log":[{"time_us":9120627,"text":"sched_ext: BPF scheduler 'bpfland_1.1.4' enabled"},{"text":"sched_ext: x"}]}}}"#;
    let mut out = [0; MAX_SCHED_EXT_BYTES];
    let mut written = SchedExtLine::begin(&mut out);
    written.field(&sched_ext::STATE, text("enabled"));
    written.field(&sched_ext::OPS, text("bpfland_1.1.4"));
    written.field(&sched_ext::ENABLE_SEQ, text("1"));
    written.field(&sched_ext::HOTPLUG_SEQ, text("1"));
    written.field(&sched_ext::NR_REJECTED, text("0"));
    written.field(&sched_ext::SWITCH_ALL, text("1"));
    written.uptime(9_120_627);
    written.begin_events();
    written.event(text("SCX_EV_BYPASS_ACTIVATE"), text("1"));
    written.event(text("SCX_EV_REFILL_SLICE_DFL"), text("20"));
    written.end_events();
    written.begin_log();
    let enabled = text("sched_ext: BPF scheduler \"bpfland_1.1.4\" enabled");
    written.message(KernelMessage { time_us: Some(9_120_627), text: enabled });
    written.message(KernelMessage { time_us: None, text: text("sched_ext: x") });
    written.end_log();
    let length = written.end(None);
    assert_eq!(String::from_utf8_lossy(&out[..length]), format!("{line}\n"));
    let read: Envelope<String, HostSchedExt> = serde_json::from_str(line).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), line);
}

#[test]
fn what_a_kernel_without_sched_ext_says() {
    let line = r#"{"agent":{"sched_ext":{"uptime_us":5,"log_errno":1,"truncated":true}}}"#;
    let read: Envelope<String, HostSchedExt> = serde_json::from_str(line).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), line);
}

#[test]
fn every_envelope() {
    for (line, envelope) in envelopes() {
        assert_eq!(envelope.emit(), format!("{line}\n").as_bytes());
        assert_eq!(serde_json::to_string(&envelope).unwrap(), line);
        let read: Envelope<String> = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), line);
    }
}
