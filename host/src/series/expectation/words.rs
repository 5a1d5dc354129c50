//! Words of an expectation's text: as they are, or in quotes.

use crate::stats::is_hidden;

/// Words that begin a condition.
const KEYWORDS: [&str; 4] = ["always", "at_end", "eventually", "nondecreasing"];

/// Whether a character can be part of a word without quotes.
pub(super) fn is_bare(char: char) -> bool {
    !char.is_whitespace() && !is_hidden(char) && !"()<>=!\"".contains(char)
}

/// Returns a text as the parser takes it for one word: in quotes, as a JSON string, where it has to be.
pub(super) fn written(text: &str) -> String {
    let is_word = !text.is_empty() && text.chars().all(is_bare) && !KEYWORDS.contains(&text);
    if is_word { text.to_owned() } else { quoted(text) }
}

/// Returns a text in quotes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
