//! The line buffer and the envelopes against what they must do.

use scx_vsock_wire::limits::{AGENT_LINE_PREFIX, MAX_AGENT_ENVELOPE_BYTES};
use scx_vsock_wire::{Envelope, Fill, LineBuffer, RelayError, Text, Verb};

use super::Script;

/// The cap of the buffer: soon reached.
const CAP: usize = 16;

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    match script.byte() % 4 {
        0 => any_fills_yield_the_first_line(&mut script),
        1 => any_envelope_reads_back(&mut script),
        3 => any_verb_is_that_of_a_json_parser(script.bytes(usize::MAX)),
        _ => any_line_is_one_envelope_or_none(script.bytes(usize::MAX)),
    }
}

/// What a buffer holds is what it was given: up to its cap by `fill`, up to a line's end by `take_line`.
fn any_fills_yield_the_first_line(script: &mut Script<'_>) {
    let mut buffer = LineBuffer::<CAP>::new();
    let mut given = Vec::new();
    while !script.is_over() {
        let step = script.byte();
        let bytes = script.bytes(usize::from(step >> 2));
        let fill = match step % 4 {
            0 => {
                let room = buffer.spare();
                assert_eq!(room.len(), CAP - given.len());
                let count = bytes.len().min(room.len());
                room[..count].copy_from_slice(&bytes[..count]);
                given.extend_from_slice(&bytes[..count]);
                buffer.fill(count)
            }
            1 | 2 => {
                let line = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
                let expected = line.min(CAP - given.len());
                let (taken, fill) = buffer.take_line(bytes);
                assert_eq!(taken, expected);
                given.extend_from_slice(&bytes[..taken]);
                fill
            }
            _ => {
                buffer.clear();
                given.clear();
                buffer.fill(0)
            }
        };
        holds(&buffer, fill, &given);
    }
}

fn holds(buffer: &LineBuffer<CAP>, fill: Fill, given: &[u8]) {
    let end = given.iter().position(|&byte| byte == b'\n');
    let expected = match end {
        Some(at) => Fill::Line { after: given.len() - at - 1 },
        None if given.len() == CAP => Fill::Over,
        None => Fill::Partial,
    };
    assert_eq!(fill, expected);
    let (line, rest) = end.map_or((&[][..], &[][..]), |at| given.split_at(at + 1));
    assert_eq!((buffer.line(), buffer.rest()), (line, rest));
    assert_eq!(buffer.content(), line.strip_suffix(b"\n").unwrap_or(line));
    assert_eq!((buffer.len(), buffer.is_empty()), (given.len(), given.is_empty()));
}

/// What the agent emits, a host reads as the same, on one line that fits its buffer.
fn any_envelope_reads_back(script: &mut Script<'_>) {
    let error = match script.byte() % 7 {
        0 => RelayError::NoScheduler {
            errno: (script.word() >> 1).cast_signed(),
            sched_ext: text(script),
            ops: text(script),
            cause: text(script),
        },
        1 => RelayError::SchedulerGone { errno: (script.word() >> 1).cast_signed(), cause: text(script) },
        2 => RelayError::UnsolicitedData {},
        3 => RelayError::RequestTooLarge { size: script.word(), max: script.word() },
        4 => RelayError::ResponseTooLarge { size: script.word(), max: script.word() },
        5 => RelayError::UnknownVerb {},
        _ => RelayError::Busy { sessions: script.word() },
    };
    let envelope = if script.byte() == 0 {
        Envelope::hello(text(script), text(script), 4096)
    } else {
        Envelope::RelayError(error)
    };
    let line = envelope.emit();
    assert!(line.len() < MAX_AGENT_ENVELOPE_BYTES);
    let body = line.strip_suffix(b"\n").expect("a line");
    assert!(!body.contains(&b'\n'));
    let read: Envelope<String> = serde_json::from_slice(body).expect("an envelope");
    assert_eq!(serde_json::to_value(read).expect("JSON"), serde_json::to_value(envelope).expect("JSON"));
}

/// A text as long as every bound allows.
fn text<'a>(script: &mut Script<'a>) -> Text<'a> {
    let length = script.below(65);
    let bytes = script.bytes(length);
    let text = Text::first_line(bytes);
    let line = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    assert_eq!(text.to_string().len(), line);
    text
}

/// What serde_json reads as a verb, the agent reads as the same; what the agent reads as a verb and is JSON, too.
fn any_verb_is_that_of_a_json_parser(rest: &[u8]) {
    for name in ["wait_scheduler", "sched_ext"] {
        that_verb_is_that_of_a_json_parser(name, &[format!("{{\"{name}\":{{").as_bytes(), rest].concat());
    }
}

fn that_verb_is_that_of_a_json_parser(name: &str, rest: &[u8]) {
    let verb = Verb::parse(rest);
    let line = [AGENT_LINE_PREFIX, rest].concat();
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&line) else { return };
    let body = &value["agent"][name];
    let is_one = [&value, &value["agent"]].iter().all(|object| object.as_object().is_some_and(|keys| keys.len() == 1));
    // The agent compares names as they are written, and reads numbers up to a fraction or an exponent.
    let is_plain = !rest.iter().any(|byte| b"\\.+-".contains(byte)) && !is_repeated(rest);
    if is_one && is_plain && body.is_object() {
        let timeout = match &body["timeout_ms"] {
            serde_json::Value::Null if body.get("timeout_ms").is_none() => Some(u32::MAX),
            timeout => timeout.as_u64().map(|timeout| u32::try_from(timeout).unwrap_or(u32::MAX)),
        };
        let expected = match name {
            "wait_scheduler" => timeout.map(|timeout_ms| Verb::WaitScheduler { timeout_ms }),
            _ => Some(Verb::SchedExt {}),
        };
        assert_eq!(verb, expected, "{value}");
    }
}

/// Whether a name of the verb occurs twice, of which the last counts, as JSON parsers do not agree.
fn is_repeated(rest: &[u8]) -> bool {
    let occurs = |name: &[u8]| rest.windows(name.len()).filter(|window| *window == name).count();
    occurs(b"\"timeout_ms\"") > 1
        || occurs(b"\"wait_scheduler\"") > 1
        || occurs(b"\"sched_ext\"") > 1
        || occurs(b"\"agent\"") > 0
}

/// A line that reads as an envelope has one key, which is the envelope's.
fn any_line_is_one_envelope_or_none(line: &[u8]) {
    let Ok(envelope) = serde_json::from_slice::<Envelope<String>>(line) else { return };
    let value: serde_json::Value = serde_json::from_slice(line).expect("JSON");
    let key = match envelope {
        Envelope::Hello(_) => "hello",
        Envelope::Agent(_) => "agent",
        Envelope::RelayError(_) => "relay_error",
    };
    let object = value.as_object().expect("an object");
    assert_eq!(object.keys().collect::<Vec<_>>(), [key]);
}
