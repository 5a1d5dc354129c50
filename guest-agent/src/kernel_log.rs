//! The kernel's log as syslog(2) has it: which of its lines the kernel wrote about sched_ext, and why it ended a scheduler.
//!
//! A line is `<PRIORITY>[TIME] TEXT`, the priority a facility times 8 and a level. Facility 0 is the kernel's own: what a
//! program writes to `/dev/kmsg` has another, and each line of a message has its own prefix.

use scx_vsock_wire::limits::MAX_KERNEL_MESSAGES;
use scx_vsock_wire::line::{after, take_until};
use scx_vsock_wire::{KernelMessage, Text};

/// How the kernel's messages about sched_ext begin.
const SUBJECT: &[u8] = b"sched_ext: ";
/// How those go on that say that a scheduler was enabled or disabled, with its name in quotes.
const SCHEDULER: &[u8] = b"BPF scheduler \"";
/// What follows the name of one that was disabled. The reason follows, and a parenthesis.
const DISABLED: &[u8] = b" disabled (";

/// A message about sched_ext.
struct Message<'l> {
    /// 0 where the kernel is not set to write times.
    time_us: u64,
    text: &'l [u8],
}

/// Passes the newest messages about sched_ext to `take`, oldest first.
pub fn newest(log: &[u8], mut take: impl FnMut(KernelMessage<Text<'_>>)) {
    let mut rest = log;
    let mut count = 0usize;
    while next_message(&mut rest).is_some() {
        count += 1;
    }
    rest = log;
    while let Some(message) = next_message(&mut rest) {
        if count <= MAX_KERNEL_MESSAGES {
            let time_us = Some(message.time_us).filter(|&time_us| time_us != 0);
            take(KernelMessage { time_us, text: Text::line(message.text) });
        }
        count = count.wrapping_sub(1);
    }
}

/// Returns why the kernel disabled the scheduler that it enabled last, and what it says next; nothing if it did not, or
/// before `since_us`.
pub fn cause(log: &[u8], since_us: u64) -> (Text<'_>, Text<'_>) {
    let mut rest = log;
    let (mut reason, mut detail): (&[u8], &[u8]) = (&[], &[]);
    while let Some(message) = next_message(&mut rest) {
        let content = after(message.text, SUBJECT.len());
        if let Some(mut scheduler) = content.strip_prefix(SCHEDULER) {
            (reason, detail) = (&[], &[]);
            take_until(&mut scheduler, b'"');
            if message.time_us >= since_us
                && let Some(mut disabled) = scheduler.strip_prefix(DISABLED)
            {
                reason = take_until(&mut disabled, b')');
            }
        } else if detail.is_empty() {
            detail = content;
        }
    }
    if reason.is_empty() {
        detail = reason;
    }
    (Text::line(reason), Text::line(detail))
}

/// Takes lines off `log` up to the next that the kernel itself wrote about sched_ext.
#[inline(never)]
fn next_message<'l>(log: &mut &'l [u8]) -> Option<Message<'l>> {
    while !log.is_empty() {
        if let [b'<', b'0'..=b'7', b'>', line @ ..] = take_until(log, b'\n') {
            let (time_us, text) = split_time(line);
            if text.starts_with(SUBJECT) {
                return Some(Message { time_us, text });
            }
        }
    }
    None
}

/// Splits `[ SECONDS.MICROSECONDS]` off, and the writer's `[T1]` after it, where the kernel is set to write them.
fn split_time(line: &[u8]) -> (u64, &[u8]) {
    let mut rest = line;
    let mut time_us = 0;
    while let [b'[', ..] = rest {
        let inside = take_until(&mut rest, b']');
        if time_us == 0 {
            // There are always six digits after the point.
            let digits = inside.iter().filter(|byte| byte.is_ascii_digit());
            time_us = digits.fold(0u64, |time, digit| time.wrapping_mul(10).wrapping_add(u64::from(digit & 0xf)));
        }
    }
    if rest.len() < line.len()
        && let [b' ', text @ ..] = rest
    {
        rest = text;
    }
    (time_us, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use scx_vsock_wire::emit::RelayErrorLine;
    use scx_vsock_wire::limits::MAX_CAUSE_BYTES;

    const EJECTED: &str = "<6>[    2.000001] sched_ext: BPF scheduler \"rustland\" enabled\n\
                           <3>[   32.000002][  T17] sched_ext: BPF scheduler \"rustland\" disabled (runnable task stall)\n\
                           <3>[   32.000003][  T17] sched_ext: rustland: cat[73] failed to run for 30.1s\n\
                           <3>[   32.000004]    scx_watchdog_workfn+0x1a/0x30\n\
                           <6>[   33.000000] sched_ext: something else\n";

    fn why(log: &str, since_us: u64) -> String {
        let mut out = [0; 1024];
        let (reason, detail) = cause(log.as_bytes(), since_us);
        let length = RelayErrorLine::scheduler_gone(&mut out, 0).end(reason, detail);
        let line = String::from_utf8_lossy(&out[..length]);
        let (_, cause) = line.split_once("\"cause\":\"").unwrap();
        cause.strip_suffix("\"}}}\n").unwrap().to_owned()
    }

    fn texts(log: &str) -> Vec<(Option<u64>, String)> {
        let mut texts = Vec::new();
        newest(log.as_bytes(), |message| texts.push((message.time_us, message.text.to_string())));
        texts
    }

    #[test]
    fn the_cause_of_an_ejection_has_what_follows_it() {
        assert_eq!(why(EJECTED, 0), "runnable task stall: rustland: cat[73] failed to run for 30.1s");
    }

    #[test]
    fn a_scheduler_that_was_enabled_afterwards_has_no_cause() {
        let enabled = "<6>[   40.000000] sched_ext: BPF scheduler \"bpfland\" enabled\n<4>sched_ext: a warning\n";
        let log = format!("{EJECTED}{enabled}");
        assert_eq!(why(&log, 0), "");
        let log =
            format!("{log}<6>[   41.0] sched_ext: BPF scheduler \"bpfland\" disabled (unregistered from user space)\n");
        assert_eq!(why(&log, 0), "unregistered from user space");
    }

    #[test]
    fn an_ejection_before_the_time_is_no_cause() {
        assert_eq!(why(EJECTED, 32_000_003), "");
        assert_ne!(why(EJECTED, 32_000_002), "");
    }

    #[test]
    fn what_root_writes_is_not_the_kernels() {
        let forged = "<12>[   50.000000] sched_ext: BPF scheduler \"x\" disabled (forged)\n\
                      <14>sched_ext: forged\n<8>[1.0] sched_ext: forged\nsched_ext: forged\n<6> sched_ext: forged\n";
        assert_eq!(texts(forged), []);
        assert_eq!(why(&format!("{EJECTED}{forged}"), 0), why(EJECTED, 0));
    }

    #[test]
    fn times_are_read_where_the_kernel_writes_them() {
        let log = "<6>sched_ext: a\n<6>[12345.678901] sched_ext: b\n<6>[    0.000001][C1] sched_ext: c\n\
                   <6>[    0.000000] sched_ext: d\n";
        let expected = [
            (None, "sched_ext: a"),
            (Some(12_345_678_901), "sched_ext: b"),
            (Some(1), "sched_ext: c"),
            (None, "sched_ext: d"),
        ];
        assert_eq!(texts(log), expected.map(|(time, text)| (time, text.to_owned())));
    }

    #[test]
    fn only_the_newest_messages_are_kept() {
        let log: String = (0..20).map(|number| format!("<6>[1.000000] sched_ext: {number}\n<6>other\n")).collect();
        let texts: Vec<_> = texts(&log).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts.len(), MAX_KERNEL_MESSAGES);
        assert_eq!(texts.first().map(String::as_str), Some("sched_ext: 12"));
        assert_eq!(texts.last().map(String::as_str), Some("sched_ext: 19"));
    }

    #[test]
    fn a_long_cause_is_truncated() {
        let long = "x".repeat(400);
        let log = format!("<3>sched_ext: BPF scheduler \"s\" disabled ({long})\n<3>sched_ext: s: {long}\n");
        assert_eq!(why(&log, 0).len(), MAX_CAUSE_BYTES);
    }

    proptest! {
        #[test]
        fn no_log_panics_or_yields_more_than_its_bounds(
            lines in proptest::collection::vec("(<[0-9]{1,2}>)?(\\[ ?[0-9]{0,30}\\.?[0-9]{0,3}\\]?)?( ?sched_ext: )?(BPF scheduler \")?[a-z\"() ]{0,20}(disabled \\()?", 0..20),
            since_us: u64,
        ) {
            let log = lines.join("\n");
            prop_assert!(texts(&log).len() <= MAX_KERNEL_MESSAGES);
            prop_assert!(why(&log, since_us).len() <= MAX_CAUSE_BYTES);
        }
    }
}
