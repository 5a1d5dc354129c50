//! Text that a peer wrote (a guest, a scheduler, a file), inside an error or on a terminal.

use std::fmt::{self, Write};

/// Characters of one line of a peer's that a message repeats. A scheduler's error can be a backtrace of many lines.
const MAX_LINE_CHARS: usize = 200;

/// Characters of a whole explanation, which may quote several lines.
const MAX_CHARS: usize = 2_000;

/// A peer's text as it may be shown: truncated, and with control characters and those that reorder or hide text written
/// as escapes. Nothing is copied, and no more is formatted than is shown.
///
/// ```
/// use scx_vsock::stats::PeerText;
///
/// assert_eq!(PeerText::line("red \u{1b}[31m").to_string(), r"red \u{1b}[31m");
/// ```
#[derive(Clone, Copy)]
pub struct PeerText<T> {
    text: T,
    max_chars: usize,
    lines: Lines,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    First,
    All,
}

impl<T: fmt::Display> PeerText<T> {
    /// The first line, at most 200 characters of it.
    pub fn line(text: T) -> Self {
        Self { text, max_chars: MAX_LINE_CHARS, lines: Lines::First }
    }

    /// All lines, at most 2,000 characters.
    pub fn whole(text: T) -> Self {
        Self { text, max_chars: MAX_CHARS, lines: Lines::All }
    }
}

/// A text of one's own that may quote a peer, as [`PeerText::whole`] shows it.
pub(crate) fn bounded(text: impl AsRef<str>) -> String {
    PeerText::whole(text.as_ref()).to_string()
}

impl<T: fmt::Display> PeerText<T> {
    fn write(&self, to: &mut fmt::Formatter<'_>, is_quoted: bool) -> fmt::Result {
        let (left, lines) = (self.max_chars, self.lines);
        let mut writer = Writer { to, left, lines, is_quoted, line_ends: 0, is_truncated: false };
        let written = write!(writer, "{}", self.text);
        if writer.is_truncated { to.write_str("...") } else { written }
    }
}

impl<T: fmt::Display> fmt::Display for PeerText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, false)
    }
}

/// The text in quotes, with those inside it escaped.
impl<T: fmt::Display> fmt::Debug for PeerText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        self.write(f, true)?;
        f.write_char('"')
    }
}

/// Takes a text in pieces, and fails as soon as it is truncated.
struct Writer<'w, 'f> {
    to: &'w mut fmt::Formatter<'f>,
    /// Characters that may still be written.
    left: usize,
    lines: Lines,
    is_quoted: bool,
    /// Line ends that are written only if more text follows.
    line_ends: usize,
    is_truncated: bool,
}

impl fmt::Write for Writer<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| self.take(char))
    }
}

impl Writer<'_, '_> {
    fn take(&mut self, char: char) -> fmt::Result {
        if matches!(char, '\n' | '\r') {
            self.line_ends += 1;
            return Ok(());
        }
        if self.line_ends > 0 && self.lines == Lines::First {
            return if char.is_whitespace() { Ok(()) } else { self.truncate() };
        }
        for _ in 0..std::mem::take(&mut self.line_ends) {
            self.put('\n')?;
        }
        self.put(char)
    }

    fn put(&mut self, char: char) -> fmt::Result {
        let Some(left) = self.left.checked_sub(1) else { return self.truncate() };
        self.left = left;
        if self.is_quoted && matches!(char, '"' | '\\') {
            self.to.write_char('\\')?;
        }
        if is_hidden(char) { write!(self.to, "{}", char.escape_default()) } else { self.to.write_char(char) }
    }

    fn truncate(&mut self) -> fmt::Result {
        self.is_truncated = true;
        Err(fmt::Error)
    }
}

/// Whether a character would act on a terminal, or hide or reorder what stands around it: those that Unicode calls control
/// characters, bidirectional controls, or ignorable by default (but variation selectors, which only style a character).
#[must_use]
pub fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_truncated_and_says_so() {
        let line = |text: &str| PeerText::line(text).to_string();
        assert_eq!(line("whole\n"), "whole");
        assert_eq!(line("first\nsecond"), "first...");
        assert_eq!(line(&"x".repeat(201)), format!("{}...", "x".repeat(200)));
        assert_eq!(line(&"\u{e9}".repeat(200)), "\u{e9}".repeat(200));
        assert_eq!(line(""), "");
    }

    #[test]
    fn a_whole_text_keeps_its_lines() {
        assert_eq!(PeerText::whole("first\nsecond\n").to_string(), r"first\nsecond");
        assert_eq!(bounded(bounded("a\u{1b}\nb")), r"a\u{1b}\nb");
        assert_eq!(PeerText::whole("x".repeat(200_000)).to_string().len(), MAX_CHARS + 3);
    }

    #[test]
    fn a_text_is_truncated_between_characters() {
        for char in ['\u{e9}', '\u{4e2d}', '\u{1f600}'] {
            for length in 199..=201 {
                let text = format!("{}{char}{char}", "x".repeat(length - 1));
                let shown = PeerText::line(&text).to_string();
                assert_eq!(shown.trim_end_matches("...").chars().count(), (length + 1).min(200), "{shown}");
                assert_eq!(shown.ends_with("..."), length + 1 > 200);
            }
        }
    }

    #[test]
    fn no_control_or_invisible_character_is_shown() {
        let invisible = ['\u{ad}', '\u{34f}', '\u{61c}', '\u{115f}', '\u{180e}', '\u{3164}', '\u{fff9}', '\u{e0041}'];
        for hidden in ('\0'..' ').chain('\u{7f}'..='\u{9f}').chain(invisible) {
            for shown in [PeerText::line(hidden).to_string(), format!("{:?}", PeerText::whole(hidden))] {
                assert!(shown.chars().all(|char| matches!(char, ' '..='~')), "{hidden:?}: {shown:?}");
            }
        }
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(PeerText::line("red \u{1b}[2J\u{9b}\u{7f}").to_string(), r"red \u{1b}[2J\u{9b}\u{7f}");
        for hidden in ['\u{200b}', '\u{2028}', '\u{feff}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}')
        {
            let shown = PeerText::whole(hidden).to_string();
            assert!(shown.is_ascii() && shown.starts_with("\\u{"), "{shown}");
        }
        assert_eq!(format!("{:?}", PeerText::line("a\u{202e}b")), r#""a\u{202e}b""#);
        assert_eq!(format!("{:?}", PeerText::line(r#"a "b" \c"#)), r#""a \"b\" \\c""#);
        assert_eq!(
            PeerText::line("na\u{ef}ve \u{4e2d}\u{6587} \u{1f600}").to_string(),
            "na\u{ef}ve \u{4e2d}\u{6587} \u{1f600}"
        );
    }
}
