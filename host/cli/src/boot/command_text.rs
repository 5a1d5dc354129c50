//! What a command prints in the guest, for stderr.

use std::io::{self, IsTerminal, Write};

use anstream::adapter::StripBytes;
use scx_vsock::guest::OutputStream;
use scx_vsock::stats::is_hidden;

/// Prints the outputs of a command on stderr as they come: as they are to a file or a pipe, and to a terminal without what
/// would act on it.
pub struct CommandPrinter {
    is_terminal: bool,
    stdout: CleanText,
    stderr: CleanText,
}

impl CommandPrinter {
    /// A printer for one command.
    pub fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), stdout: CleanText::default(), stderr: CleanText::default() }
    }

    /// Prints a piece. That nobody reads stderr does not end the run.
    pub fn print(&mut self, stream: OutputStream, piece: &[u8]) {
        let text = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let mut stderr = io::stderr().lock();
        let _not_read =
            if self.is_terminal { stderr.write_all(text.take(piece).as_bytes()) } else { stderr.write_all(piece) };
    }
}

/// Turns an output that comes in pieces into text without escape sequences and without characters that act on a terminal
/// or reorder text.
#[derive(Default)]
struct CleanText {
    escapes: StripBytes,
    /// The beginning of a character.
    held: Vec<u8>,
}

impl CleanText {
    /// Returns the text of the next piece.
    fn take(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.held);
        self.escapes.strip_next(piece).for_each(|part| bytes.extend_from_slice(part));
        let mut text = String::new();
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            chunk.valid().chars().for_each(|char| push(&mut text, char));
            if chunks.peek().is_none() && is_begun_character(chunk.invalid()) {
                self.held = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

/// Whether more bytes can make this a character.
fn is_begun_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn push(text: &mut String, char: char) {
    match char {
        '\n' | '\t' => text.push(char),
        '\r' => {}
        hidden if is_hidden(hidden) => text.extend(hidden.escape_default()),
        shown => text.push(shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the text becomes when it comes in pieces of this size.
    fn clean(text: &[u8], size: usize) -> String {
        let mut cleaner = CleanText::default();
        text.chunks(size).map(|piece| cleaner.take(piece)).collect()
    }

    #[test]
    fn nothing_acts_on_the_terminal_however_it_is_cut() {
        let text = "plain\ttext\r\n\u{1b}[1;31mred\u{1b}[0m \u{1b}]0;title\u{7} \u{4e2d}\u{6587} \u{1f600} a\u{202e}b\u{2066}c \u{9b}2J\n";
        for size in 1..text.len() {
            let shown = clean(text.as_bytes(), size);
            assert!(
                shown.starts_with("plain\ttext\nred ") && shown.contains("\u{4e2d}\u{6587} \u{1f600}"),
                "{shown:?}"
            );
            assert!(shown.contains(r"a\u{202e}b\u{2066}c"), "{shown:?}");
            let acts = |char: char| is_hidden(char) && !matches!(char, '\n' | '\t');
            assert!(!shown.contains(acts), "{shown:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_dropped_or_replaced() {
        for bytes in [&b"a\xffb\n"[..], b"a\xff\xfeb\n", b"a\xe4\xb8b\n", b"\x80ab\n"] {
            for size in 1..bytes.len() {
                assert_eq!(clean(bytes, size).replace('\u{fffd}', ""), "ab\n", "{bytes:?} in pieces of {size}");
            }
        }
    }
}
