//! The line buffer and the envelopes against what they must do.

use scx_vsock_wire::limits::{MAX_NOTICE_BYTES, MAX_TEXT_BYTES};
use scx_vsock_wire::{Envelope, Fill, LineBuffer, RelayError, Text};

use super::Script;

/// The cap of the buffer: soon reached.
const CAP: usize = 16;

/// Runs a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    match script.byte() % 3 {
        0 => any_fills_give_the_first_line(&mut script),
        1 => any_envelope_reads_back(&mut script),
        _ => any_line_is_one_envelope_or_none(script.bytes(usize::MAX)),
    }
}

/// What a buffer holds is what it was given: up to its cap by `fill`, up to a line's end by `take_line`.
fn any_fills_give_the_first_line(script: &mut Script<'_>) {
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
        Some(at) => Fill::Line { behind: given.len() - at - 1 },
        None if given.len() == CAP => Fill::Over,
        None => Fill::Partial,
    };
    assert_eq!(fill, expected);
    let (line, behind) = end.map_or((&[][..], &[][..]), |at| given.split_at(at + 1));
    assert_eq!((buffer.line(), buffer.behind()), (line, behind));
    assert_eq!(buffer.content(), line.strip_suffix(b"\n").unwrap_or(line));
    assert_eq!((buffer.len(), buffer.is_empty()), (given.len(), given.is_empty()));
}

/// What the agent emits, a host reads as the same, on one line that fits its buffer.
fn any_envelope_reads_back(script: &mut Script<'_>) {
    let error = match script.byte() % 7 {
        0 => RelayError::NoScheduler { errno: script.word().cast_signed(), sched_ext: text(script), ops: text(script) },
        1 => RelayError::SchedulerGone { errno: script.word().cast_signed() },
        2 => RelayError::SchedulerUnasked {},
        3 => RelayError::RequestTooLarge { size: script.word(), max: script.word() },
        4 => RelayError::ResponseTooLarge { size: script.word(), max: script.word() },
        5 => RelayError::UnknownVerb {},
        _ => RelayError::Busy { sessions: script.word() },
    };
    let envelope =
        if script.byte() == 0 { Envelope::hello(text(script).as_str()) } else { Envelope::RelayError(error) };
    let line = envelope.emit();
    assert!(line.len() < MAX_NOTICE_BYTES);
    let body = line.strip_suffix(b"\n").expect("a line");
    assert!(!body.contains(&b'\n'));
    let read: Envelope<String> = serde_json::from_slice(body).expect("an envelope");
    assert_eq!(serde_json::to_value(read).expect("JSON"), serde_json::to_value(envelope).expect("JSON"));
}

fn text(script: &mut Script<'_>) -> Text {
    let length = script.below(100);
    let bytes = script.bytes(length);
    let text = Text::first_line(bytes);
    let line = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    assert_eq!(text.as_str().len(), line.min(MAX_TEXT_BYTES));
    text
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
