//! What the guest's kernel says about sched_ext, as envelopes: its files and its log.
//!
//! A report takes two system calls for the files' directory, three for each file and one for the log, whatever a guest's
//! programs write, and waits for nobody.

use scx_vsock_wire::emit::RelayErrorLine;
use scx_vsock_wire::envelope::saturate;
use scx_vsock_wire::limits::MAX_RELAY_ERROR_BYTES;
use scx_vsock_wire::line::{position, take_until, up_to};
use scx_vsock_wire::sched_ext::{Field, OPS, STATE};
use scx_vsock_wire::{SchedExtLine, Text};

use crate::hello::hello;
use crate::kernel_log;
use crate::session::KernelReport;
use crate::sys;

/// Bytes of the kernel's log that are read: its newest.
const LOG_BYTES: usize = 64 * 1024;

/// How far the clock of the kernel's log may be behind the monotonic clock.
const CLOCK_OFFSET_US: u64 = 1_000_000;

/// The kernel's files about sched_ext.
const DIRECTORY: &[u8] = b"/sys/kernel/sched_ext\0";

/// Writes the envelope of `report` to the beginning of `buffer`, whose rest is overwritten, and returns its length. A
/// scheduler that is gone was connected at `connected_us`; what ended another before is not its cause.
#[inline(never)]
pub fn report(report: KernelReport, buffer: &mut [u8], connected_us: u64) -> usize {
    let max_line_bytes = saturate(buffer.len());
    // Half of the buffer, if the rest has room for a relay error.
    let room = buffer.len().saturating_sub(MAX_RELAY_ERROR_BYTES).min(buffer.len() / 2);
    let (out, scratch) = buffer.split_at_mut(buffer.len() - room);
    // A hello reads another file, for which there may be one descriptor.
    let directory = if report == KernelReport::Hello { sys::NOWHERE } else { sys::open_directory(DIRECTORY) };
    let mut kernel = Kernel { directory, log_outcome: 0, scratch };
    match report {
        KernelReport::Hello => hello(out, max_line_bytes),
        KernelReport::SchedExt => kernel.sched_ext(out),
        KernelReport::NoScheduler { errno } => kernel.no_scheduler(out, errno),
        KernelReport::SchedulerGone { errno } => {
            let line = RelayErrorLine::scheduler_gone(out, errno);
            kernel.end_with_cause(line, connected_us.saturating_sub(CLOCK_OFFSET_US))
        }
    }
}

/// The kernel's directory about sched_ext, and room to read into.
struct Kernel<'b> {
    /// Negative where it cannot be opened.
    directory: i32,
    /// The length of the log that was read, or a negative error number.
    log_outcome: i32,
    scratch: &'b mut [u8],
}

impl Kernel<'_> {
    fn sched_ext(&mut self, out: &mut [u8]) -> usize {
        let mut line = SchedExtLine::begin(out);
        for field in Field::all() {
            let text = self.text(field);
            if !text.is_empty() {
                line.field(&field, text);
            }
        }
        line.uptime(sys::now_us());
        add_events(&mut line, self.file(b"root/events\0"));
        let log = self.log();
        if !log.is_empty() {
            add_messages(&mut line, log);
        }
        line.end(Some(self.log_outcome).filter(|&outcome| outcome < 0))
    }

    fn no_scheduler(&mut self, out: &mut [u8], errno: i32) -> usize {
        let mut line = RelayErrorLine::no_scheduler(out, errno);
        line.sched_ext(self.text(STATE));
        line.ops(self.text(OPS));
        self.end_with_cause(line, 0)
    }

    /// Ends the line with why the kernel disabled the latest scheduler.
    #[inline(never)]
    fn end_with_cause(&mut self, line: RelayErrorLine<'_>, since_us: u64) -> usize {
        let (cause, detail) = kernel_log::cause(self.log(), since_us);
        line.end(cause, detail)
    }

    /// Reads the newest of the kernel's log. Nothing is read on a kernel without sched_ext, which has nothing to say about
    /// it.
    fn log(&mut self) -> &[u8] {
        if self.directory != sys::ENOENT {
            let room = self.scratch.len().min(LOG_BYTES);
            self.log_outcome = sys::read_kernel_log(self.scratch.split_at_mut(room).0);
        }
        up_to(self.scratch, usize::try_from(self.log_outcome).unwrap_or(0))
    }

    /// The first line of a small file of the kernel's; empty where it cannot be read.
    fn text(&mut self, file: Field) -> Text<'_> {
        Text::first_line(self.file(file.path()))
    }

    fn file(&mut self, path: &[u8]) -> &[u8] {
        sys::read_file(self.directory, path, self.scratch)
    }
}

impl Drop for Kernel<'_> {
    fn drop(&mut self) {
        sys::close(self.directory);
    }
}

/// Adds the events of a file with a name and a number in each line.
fn add_events(line: &mut SchedExtLine<'_>, mut file: &[u8]) {
    if file.is_empty() {
        return;
    }
    line.begin_events();
    // A line without an end is truncated.
    while position(file, b'\n') < file.len() {
        let mut words = take_until(&mut file, b'\n');
        let name = take_until(&mut words, b' ');
        let mut number = words;
        while !words.is_empty() {
            number = take_until(&mut words, b' ');
        }
        line.event(Text::line(name), Text::line(number));
    }
    line.end_events();
}

/// Adds the newest messages of the kernel's log.
fn add_messages(line: &mut SchedExtLine<'_>, log: &[u8]) {
    line.begin_log();
    kernel_log::newest(log, |message| line.message(message));
    line.end_log();
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
