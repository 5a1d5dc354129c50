//! The output of a guest's console.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anstream::adapter::strip_str;

use crate::io::lock::lock;
use crate::stats::PeerText;

/// The most bytes that are kept: the latest ones.
const MAX_BYTES: usize = 1 << 20;

/// The most lines that an error quotes.
const LAST_LINES: usize = 4;

/// The most lines of a scheduler that an error quotes. The reason is seldom in the last one.
const LAST_LINES_OF_SCHEDULER: usize = 8;

/// What a message has where there are no lines.
const NOTHING: &str = "(it printed nothing)";

/// What the guest's first process prints where there is no vsock device, and the beginning of what it prints when the agent
/// has exited.
pub(super) const NO_VSOCK: &str = "init: there is no virtio-vsock device";
pub(super) const AGENT_EXITED: &str = "init: the agent exited";

/// What the guest's first process prints before it starts the scheduler, and the beginning of what it prints when that
/// has exited.
const SCHEDULER_STARTS: &str = "init: the scheduler starts";
const SCHEDULER_EXITED: &str = "init: the scheduler exited";

/// The output of a guest and of its QEMU: the latest MiB. Clones share one output.
///
/// ```no_run
/// use scx_vsock::guest::{Console, Guest};
///
/// let guest = Guest::builder().kernel("/boot/vmlinuz").boot()?;
/// let console: Console = guest.console().clone(); // outlives the guest
/// drop(guest);
/// println!("{}", console.text());
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Console {
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    kept: Mutex<VecDeque<u8>>,
    grew: Condvar,
    /// A file that gets all of it, until it cannot be written.
    copy: Mutex<Option<File>>,
}

impl Console {
    /// Returns a console whose output goes to a file, too. An error of the file is printed on the console itself, and ends
    /// the copy.
    pub(crate) fn with_copy(file: Option<File>) -> Self {
        Self { output: Arc::new(Output { copy: Mutex::new(file), ..Output::default() }) }
    }

    /// Returns another console that begins with the output of this one, without its file.
    #[cfg(all(feature = "microvm", target_arch = "x86_64"))]
    pub(super) fn duplicate(&self) -> Self {
        let kept = self.kept().clone();
        Self { output: Arc::new(Output { kept: Mutex::new(kept), ..Output::default() }) }
    }

    /// Keeps what `source` prints, until its end.
    pub(crate) fn capture(&self, mut source: impl Read) {
        // An error ends it, too.
        let _captured = io::copy(&mut source, &mut self.clone());
    }

    /// Returns all output that is kept, as the guest printed it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.kept().make_contiguous()).into_owned()
    }

    /// Returns the last lines for a message: on one line, each truncated, without the escape sequences of terminals, with
    /// other control characters escaped. After a kernel's panic they end with its reason, not with the registers that the
    /// kernel prints after it.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let text = self.text();
        let lines = lines_of(&text);
        let panic = lines.iter().rposition(|line| line.contains("Kernel panic"));
        let end = panic.map_or(lines.len(), |at| at + 1);
        quote(lines.get(..end).unwrap_or(&lines), LAST_LINES)
    }

    /// Returns the last lines once `line` was printed. A report and its lines come over different ports: waits up to this
    /// long for the line.
    pub(crate) fn last_lines_with(&self, line: &str, within: Duration) -> String {
        self.wait_for(line, within);
        self.last_lines()
    }

    /// Returns the last lines that were printed while the scheduler ran, as [`last_lines`](Self::last_lines) does.
    /// Waits up to this long for the scheduler's end on the console.
    pub(crate) fn last_lines_of_scheduler(&self, within: Duration) -> String {
        self.wait_for(SCHEDULER_EXITED, within);
        let text = self.text();
        let lines = lines_of(&text);
        let end = lines.iter().rposition(|line| line.starts_with(SCHEDULER_EXITED)).unwrap_or(lines.len());
        let lines = lines.get(..end).unwrap_or_default();
        let start = lines.iter().rposition(|line| line.ends_with(SCHEDULER_STARTS)).map_or(0, |at| at + 1);
        quote(lines.get(start..).unwrap_or_default(), LAST_LINES_OF_SCHEDULER)
    }

    /// Waits until the output contains `text`, for at most this long.
    pub(super) fn wait_for(&self, text: &str, within: Duration) {
        let lacks = |kept: &mut VecDeque<u8>| {
            !kept.make_contiguous().windows(text.len().max(1)).any(|window| window == text.as_bytes())
        };
        let _kept = self.output.grew.wait_timeout_while(self.kept(), within, lacks);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<u8>> {
        lock(&self.output.kept)
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.kept();
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(MAX_BYTES);
        kept.drain(..excess);
        self.output.grew.notify_all();
    }

    fn copy(&self, bytes: &[u8]) {
        let mut copy = lock(&self.output.copy);
        let Some(file) = &mut *copy else { return };
        if let Err(error) = file.write_all(bytes) {
            *copy = None;
            self.keep(format!("\nthe console's file gets no more: {error}\n").as_bytes());
        }
    }
}

/// Returns the lines that are not empty, without the escape sequences of terminals.
fn lines_of(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| strip_str(line).to_string().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Joins the last lines to one, each truncated and with control characters escaped.
fn quote(lines: &[String], max: usize) -> String {
    let last = lines.get(lines.len().saturating_sub(max)..).unwrap_or_default();
    let last: Vec<String> = last.iter().map(|line| PeerText::line(line).to_string()).collect();
    if last.is_empty() { NOTHING.into() } else { last.join(" | ") }
}

/// Appends to the output, as a VMM's serial port does.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(bytes);
        self.copy(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn the_last_lines_are_one_clean_line() {
        let console = Console::default();
        assert_eq!(console.last_lines(), "(it printed nothing)");
        console.capture("1\r\n2\n\n3\n\x1b[1;31mpanic\x1b[0m \u{202e}x\n5\n".as_bytes());
        assert_eq!(console.last_lines(), r"2 | 3 | panic \u{202e}x | 5");
    }

    #[test]
    fn the_lines_of_a_scheduler_are_quoted_alone() {
        let console = Console::default();
        console.capture(&b"kernel\r\ninit: the scheduler starts\r\n"[..]);
        let mut of_reader = console.clone();
        let quoted = thread::spawn(move || console.last_lines_of_scheduler(Duration::from_secs(60)));
        of_reader.write_all(b"\x1b[1;31mError:\x1b[0m no BTF\r\ninit: the scheduler exited with status 1\r\n").unwrap();
        of_reader.write_all(b"later\r\n").unwrap();
        assert_eq!(quoted.join().unwrap(), "Error: no BTF");
    }

    #[test]
    fn a_silent_scheduler_printed_nothing() {
        let console = Console::default();
        console.capture(&b"kernel\ninit: the scheduler starts\ninit: the scheduler exited with status 1\n"[..]);
        assert_eq!(console.last_lines_of_scheduler(Duration::from_secs(60)), NOTHING);
    }

    #[test]
    fn a_file_gets_all_output() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let console = Console::with_copy(Some(file.reopen().unwrap()));
        console.capture(&b"one\n"[..]);
        console.capture(&b"two\n"[..]);
        assert_eq!(std::fs::read(file.path()).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_file_that_is_full_is_named_on_the_console() {
        let console = Console::with_copy(Some(File::options().write(true).open("/dev/full").unwrap()));
        console.capture(&b"one\n"[..]);
        console.capture(&b"two\n"[..]);
        assert_eq!(
            console.last_lines(),
            "one | the console's file gets no more: No space left on device (os error 28) | two"
        );
    }

    #[test]
    fn the_reason_of_a_panic_is_quoted() {
        let console = Console::default();
        console.capture(&b"1\n2\n3\n4\nKernel panic - not syncing: no init\nRIP: 0\nR10: 0\n"[..]);
        assert_eq!(console.last_lines(), "2 | 3 | 4 | Kernel panic - not syncing: no init");
    }

    #[test]
    fn long_lines_are_truncated() {
        let console = Console::default();
        console.capture("x".repeat(10_000).as_bytes());
        assert!(console.last_lines().len() < 300);
    }

    #[test]
    fn only_the_latest_bytes_are_kept() {
        let console = Console::default();
        console.capture(io::repeat(b'x').take(MAX_BYTES as u64 + 5));
        console.capture(&b"end"[..]);
        let text = console.text();
        assert_eq!(text.len(), MAX_BYTES);
        assert!(text.ends_with("xend"));
    }
}
