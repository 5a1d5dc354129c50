//! What the guest's kernel says about sched_ext, as envelopes: its files and its log.
//!
//! A report takes one system call for the log and three for each file, whatever a guest's programs write, and waits for
//! nobody.

use core::ffi::CStr;

use scx_vsock_wire::limits::{MAX_CAUSE_BYTES, MAX_NAME_BYTES, MAX_OPS_BYTES, MAX_SCHED_EXT_BYTES};
use scx_vsock_wire::sched_ext::{ENABLE_SEQ, Field, HOTPLUG_SEQ, NR_REJECTED, OPS, STATE, SWITCH_ALL};
use scx_vsock_wire::{SchedExtLine, Text, emit};

use crate::kernel_log::{self, split};
use crate::session::KernelReport;
use crate::sys;

/// Bytes of the kernel's log that are read: its newest.
const LOG_BYTES: usize = 64 * 1024;

/// Bytes of a file that are read. The longest has the events: Linux 7.2 has 13 of about 45 bytes.
const FILE_BYTES: usize = 4096;

/// How far the clock of the kernel's log may be behind the monotonic clock.
const CLOCK_OFFSET_US: u64 = 1_000_000;

const STATE_FILE: &CStr = c"/sys/kernel/sched_ext/state";
const OPS_FILE: &CStr = c"/sys/kernel/sched_ext/root/ops";
const EVENTS_FILE: &CStr = c"/sys/kernel/sched_ext/root/events";

const FILES: [(&CStr, &Field); 6] = [
    (STATE_FILE, &STATE),
    (OPS_FILE, &OPS),
    (c"/sys/kernel/sched_ext/enable_seq", &ENABLE_SEQ),
    (c"/sys/kernel/sched_ext/hotplug_seq", &HOTPLUG_SEQ),
    (c"/sys/kernel/sched_ext/nr_rejected", &NR_REJECTED),
    (c"/sys/kernel/sched_ext/switch_all", &SWITCH_ALL),
];

/// Writes the envelope of `report` to the beginning of `buffer`, whose rest is overwritten, and returns its length. A
/// scheduler that is gone was connected at `connected_us`; what ended another before is not its cause.
pub fn report(report: KernelReport, buffer: &mut [u8], connected_us: u64) -> usize {
    match report {
        KernelReport::SchedExt => sched_ext(buffer),
        KernelReport::NoScheduler { errno } => no_scheduler(buffer, errno),
        KernelReport::SchedulerGone { errno } => {
            let mut cause = [0; MAX_CAUSE_BYTES];
            let cause = read_cause(buffer, connected_us.saturating_sub(CLOCK_OFFSET_US), &mut cause);
            emit::scheduler_gone(buffer, errno, cause)
        }
    }
}

fn no_scheduler(buffer: &mut [u8], errno: i32) -> usize {
    let (mut state, mut ops, mut cause) = ([0; MAX_NAME_BYTES], [0; MAX_OPS_BYTES], [0; MAX_CAUSE_BYTES]);
    let state = first_line(STATE_FILE, &mut state).unwrap_or_default();
    let ops = first_line(OPS_FILE, &mut ops).unwrap_or_default();
    let cause = read_cause(buffer, 0, &mut cause);
    emit::no_scheduler(buffer, errno, state, ops, cause)
}

/// Why the kernel disabled the latest scheduler; `scratch` is overwritten.
fn read_cause<'o>(scratch: &mut [u8], since_us: u64, cause: &'o mut [u8; MAX_CAUSE_BYTES]) -> Text<'o> {
    match read_log(scratch) {
        Some(Ok(log)) => kernel_log::cause(log, since_us, cause),
        Some(Err(_)) | None => Text::EMPTY,
    }
}

#[inline(never)]
fn sched_ext(buffer: &mut [u8]) -> usize {
    let room = buffer.len() / 2;
    let (out, scratch) = buffer.split_at_mut(room.min(MAX_SCHED_EXT_BYTES));
    let mut line = SchedExtLine::begin(out);
    let mut file = [0; FILE_BYTES];
    for (path, field) in FILES {
        if let Some(text) = first_line(path, &mut file) {
            line.field(field, text);
        }
    }
    line.uptime(sys::now_us());
    add_events(&mut line, sys::read_file(EVENTS_FILE, &mut file));
    let log = read_log(scratch);
    if let Some(Ok(log)) = log {
        add_messages(&mut line, log);
    }
    line.end(log.and_then(Result::err).map(sys::Errno::into_raw))
}

/// Adds the events of a file with a name and a number in each line.
fn add_events(line: &mut SchedExtLine<'_>, mut file: &[u8]) {
    if file.is_empty() {
        return;
    }
    line.begin_events();
    while let Some((name, rest)) = split(file, b' ')
        && let Some((number, rest)) = split(rest, b'\n')
    {
        line.event(Text::first_line(name), Text::first_line(number.trim_ascii_start()));
        file = rest;
    }
    line.end_events();
}

/// Adds the newest messages of the kernel's log.
fn add_messages(line: &mut SchedExtLine<'_>, log: &[u8]) {
    line.begin_log();
    kernel_log::newest(log, |message| line.message(message));
    line.end_log();
}

/// Reads the newest of the kernel's log into `scratch`; `None` on a kernel without sched_ext, which has nothing to say
/// about it.
fn read_log(scratch: &mut [u8]) -> Option<sys::Result<&[u8]>> {
    let room = scratch.len().min(LOG_BYTES);
    sys::exists(STATE_FILE).then(|| sys::read_kernel_log(scratch.split_at_mut(room).0))
}

/// The first line of a small file of the kernel's; `None` where it cannot be read.
fn first_line<'b>(path: &CStr, buffer: &'b mut [u8]) -> Option<Text<'b>> {
    let bytes = sys::read_file(path, buffer);
    (!bytes.is_empty()).then(|| Text::first_line(bytes))
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
