//! What the guest's kernel says about sched_ext, as envelopes: its files and its log.
//!
//! A report takes one system call for the log and three for each file, whatever a guest's programs write, and waits for
//! nobody.

use scx_vsock_wire::limits::{MAX_CAUSE_BYTES, MAX_NAME_BYTES, MAX_OPS_BYTES, MAX_SCHED_EXT_BYTES};
use scx_vsock_wire::line::{position, take_until, up_to};
use scx_vsock_wire::sched_ext::{Field, OPS, STATE};
use scx_vsock_wire::{SchedExtLine, Text, emit};

use crate::kernel_log;
use crate::session::KernelReport;
use crate::sys;

/// Bytes of the kernel's log that are read: its newest.
const LOG_BYTES: usize = 64 * 1024;

/// How far the clock of the kernel's log may be behind the monotonic clock.
const CLOCK_OFFSET_US: u64 = 1_000_000;

/// The kernel's files about sched_ext.
const FILES: &[u8] = b"/sys/kernel/sched_ext/$";

/// Writes the envelope of `report` to the beginning of `buffer`, whose rest is overwritten, and returns its length. A
/// scheduler that is gone was connected at `connected_us`; what ended another before is not its cause.
#[inline(never)]
pub fn report(report: KernelReport, buffer: &mut [u8], connected_us: u64) -> usize {
    let mut texts = [0; MAX_NAME_BYTES + MAX_OPS_BYTES + MAX_CAUSE_BYTES];
    let (state, texts) = texts.split_at_mut(MAX_NAME_BYTES);
    let (ops, cause) = texts.split_at_mut(MAX_OPS_BYTES);
    match report {
        KernelReport::SchedExt => sched_ext(buffer),
        KernelReport::NoScheduler { errno } => {
            let cause = read_cause(buffer, 0, cause);
            emit::no_scheduler(buffer, errno, read(STATE, state), read(OPS, ops), cause)
        }
        KernelReport::SchedulerGone { errno } => {
            let cause = read_cause(buffer, connected_us.saturating_sub(CLOCK_OFFSET_US), cause);
            emit::scheduler_gone(buffer, errno, cause)
        }
    }
}

/// Why the kernel disabled the latest scheduler; `scratch` is overwritten.
fn read_cause<'o>(scratch: &mut [u8], since_us: u64, cause: &'o mut [u8]) -> Text<'o> {
    let count = read_log(scratch);
    kernel_log::cause(log(scratch, count), since_us, cause)
}

fn sched_ext(buffer: &mut [u8]) -> usize {
    let room = buffer.len() / 2;
    let (out, scratch) = buffer.split_at_mut(room.min(MAX_SCHED_EXT_BYTES));
    let mut line = SchedExtLine::begin(out);
    for field in Field::all() {
        let text = read(field, scratch);
        if !text.is_empty() {
            line.field(&field, text);
        }
    }
    line.uptime(sys::now_us());
    add_events(&mut line, sys::read_file(FILES, Text::first_line(b"root/events"), scratch));
    let count = read_log(scratch);
    if count > 0 {
        add_messages(&mut line, log(scratch, count));
    }
    line.end((count < 0).then_some(count))
}

/// Adds the events of a file with a name and a number in each line.
fn add_events(line: &mut SchedExtLine<'_>, mut file: &[u8]) {
    if file.is_empty() {
        return;
    }
    line.begin_events();
    // A line without an end is truncated.
    while position(file, b'\n') < file.len() {
        let mut number = take_until(&mut file, b'\n');
        let name = take_until(&mut number, b' ');
        while let [b' ', digits @ ..] = number {
            number = digits;
        }
        line.event(Text::first_line(name), Text::first_line(number));
    }
    line.end_events();
}

/// Adds the newest messages of the kernel's log.
fn add_messages(line: &mut SchedExtLine<'_>, log: &[u8]) {
    line.begin_log();
    kernel_log::newest(log, |message| line.message(message));
    line.end_log();
}

/// Reads the newest of the kernel's log into `scratch`; returns its length or a negative error number. Nothing is read on a
/// kernel without sched_ext, which has nothing to say about it.
fn read_log(scratch: &mut [u8]) -> i32 {
    if !sys::exists(FILES, STATE.path()) {
        return 0;
    }
    let room = scratch.len().min(LOG_BYTES);
    sys::read_kernel_log(scratch.split_at_mut(room).0)
}

/// The log of this length; empty where that is an error.
fn log(scratch: &[u8], count: i32) -> &[u8] {
    up_to(scratch, usize::try_from(count).unwrap_or(0))
}

/// The first line of a small file of the kernel's; empty where it cannot be read.
fn read(file: Field, buffer: &mut [u8]) -> Text<'_> {
    Text::first_line(sys::read_file(FILES, file.path(), buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_names_and_numbers() {
        let mut out = [0; 1024];
        let mut line = SchedExtLine::begin(&mut out);
        line.uptime(0);
        add_events(&mut line, b"SCX_EV_SELECT_CPU_FALLBACK 5\nSCX_EV_BYPASS_DURATION   12345\nSCX_EV_CUT 1");
        let length = line.end(None);
        let expected = r#""events":{"SCX_EV_SELECT_CPU_FALLBACK":"5","SCX_EV_BYPASS_DURATION":"12345"}"#;
        assert!(String::from_utf8_lossy(&out[..length]).contains(expected));
    }

    #[test]
    fn messages_of_the_log_are_passed_on() {
        let mut out = [0; 1024];
        let mut line = SchedExtLine::begin(&mut out);
        line.uptime(0);
        add_messages(&mut line, b"<6>[    1.000002] sched_ext: a\n<12>[    1.000003] sched_ext: b\n<6>sched_ext: c");
        let length = line.end(None);
        let expected = r#""log":[{"time_us":1000002,"text":"sched_ext: a"},{"text":"sched_ext: c"}]"#;
        assert!(String::from_utf8_lossy(&out[..length]).contains(expected));
    }

    #[test]
    fn every_report_is_one_line_in_the_smallest_buffer() {
        for kind in
            [KernelReport::SchedExt, KernelReport::NoScheduler { errno: 2 }, KernelReport::SchedulerGone { errno: 104 }]
        {
            let mut buffer = [0; scx_vsock_wire::limits::MAX_AGENT_ENVELOPE_BYTES];
            let length = report(kind, &mut buffer, 0);
            let line = buffer.get(..length).unwrap();
            assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(length - 1), "{kind:?}");
        }
    }
}
