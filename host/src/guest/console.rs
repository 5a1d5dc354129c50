//! The output of a guest's console.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::stats::PeerText;

/// The most bytes that are kept: the latest ones.
const MAX_BYTES: usize = 1 << 20;

/// The most lines that an error quotes.
const LAST_LINES: usize = 4;

/// The output of a guest and of its QEMU: the latest MiB. Clones share one output.
///
/// ```no_run
/// use scx_vsock::guest::{Console, qemu::Guest};
///
/// let guest = Guest::builder().kernel("/boot/vmlinuz").boot()?;
/// let console: Console = guest.console().clone(); // outlives the guest
/// drop(guest);
/// println!("{}", console.text());
/// # Ok::<(), scx_vsock::guest::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Console {
    bytes: Arc<Mutex<VecDeque<u8>>>,
}

impl Console {
    /// Keeps what `source` prints, until its end.
    pub(crate) fn capture(&self, mut source: impl Read) {
        // An error ends it, too.
        let _captured = io::copy(&mut source, &mut self.clone());
    }

    /// Returns all output that is kept, as the guest printed it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(bytes.make_contiguous()).into_owned()
    }

    /// Returns the last lines for a message: on one line, each truncated, with control characters escaped. After a
    /// kernel's panic they end with its reason, not with the registers that the kernel prints after it.
    #[must_use]
    pub fn last_lines(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let panic = lines.iter().rposition(|line| line.contains("Kernel panic"));
        let end = panic.map_or(lines.len(), |at| at + 1);
        let last = lines.get(end.saturating_sub(LAST_LINES)..end).unwrap_or(&[]);
        let last: Vec<String> = last.iter().map(|line| PeerText::line(line).to_string()).collect();
        if last.is_empty() { "(it printed nothing)".into() } else { last.join(" | ") }
    }
}

/// Appends to the output, as a VMM's serial port does.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(MAX_BYTES);
        kept.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_one_clean_line() {
        let console = Console::default();
        assert_eq!(console.last_lines(), "(it printed nothing)");
        console.capture(&b"1\r\n2\n\n3\n\x1b[1mpanic\n5\n"[..]);
        assert_eq!(console.last_lines(), r"2 | 3 | \u{1b}[1mpanic | 5");
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
