//! What a guest prints.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a console that are kept: the last ones.
const MAX_BYTES: usize = 1 << 20;

/// Lines that an error quotes.
const LAST_LINES: usize = 4;

/// What a guest printed, and QEMU itself. Cheap to clone: all clones are one.
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
    /// Keeps what comes from `source` until its end.
    pub(crate) fn capture(&self, mut source: impl Read) {
        // An error is an end, too.
        let _kept = io::copy(&mut source, &mut self.clone());
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(MAX_BYTES);
        kept.drain(..excess);
    }

    /// All that is kept, as text.
    ///
    /// ```no_run
    /// # let guest = scx_vsock::guest::qemu::Guest::builder().kernel("/boot/vmlinuz").boot()?;
    /// for line in guest.console().text().lines().filter(|line| line.contains("sched_ext")) {
    ///     println!("{line}");
    /// }
    /// # Ok::<(), scx_vsock::guest::Error>(())
    /// ```
    #[must_use]
    pub fn text(&self) -> String {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }

    /// The last words, on one line and without control characters: of a kernel's panic its reason, not the registers
    /// that it prints behind it.
    ///
    /// ```
    /// use scx_vsock::guest::Console;
    ///
    /// assert_eq!(Console::default().last_words(), "(it printed nothing)");
    /// ```
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let panic = lines.iter().rposition(|line| line.contains("Kernel panic"));
        let end = panic.map_or(lines.len(), |at| at + 1);
        let last = lines.get(end.saturating_sub(LAST_LINES)..end).unwrap_or(&[]).join(" | ");
        let clean: String = last.chars().filter(|character| !character.is_control()).collect();
        if clean.is_empty() { "(it printed nothing)".into() } else { clean }
    }
}

/// Keeps what a guest prints, for a monitor that is told of it.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.keep(bytes);
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
    fn the_last_words_are_one_clean_line() {
        let console = Console::default();
        assert_eq!(console.last_words(), "(it printed nothing)");
        console.capture(&b"1\r\n2\n\n3\n\x1b[1mpanic\n5\n"[..]);
        assert_eq!(console.last_words(), "2 | 3 | [1mpanic | 5");
    }

    #[test]
    fn of_a_panic_the_reason_is_quoted() {
        let console = Console::default();
        console.capture(&b"1\n2\n3\n4\nKernel panic - not syncing: no init\nRIP: 0\nR10: 0\n"[..]);
        assert_eq!(console.last_words(), "2 | 3 | 4 | Kernel panic - not syncing: no init");
    }

    #[test]
    fn only_the_last_bytes_are_kept() {
        let console = Console::default();
        console.capture(io::repeat(b'x').take(MAX_BYTES as u64 + 5));
        console.capture(&b"end"[..]);
        let text = console.text();
        assert_eq!(text.len(), MAX_BYTES);
        assert!(text.ends_with("xend"));
    }
}
