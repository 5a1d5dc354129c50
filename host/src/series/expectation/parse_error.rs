//! A text that is no expectation.

use std::fmt;

use crate::stats::{PeerText, is_hidden};

/// A text that is no expectation: where it stops being one, and what was expected there.
///
/// Its `Display` is one line; the alternate form (`{:#}`) shows the text with a caret below the place.
///
/// ```
/// use scx_vsock::series::expectation::Expectation;
///
/// let error = "nr_running <= lots".parse::<Expectation>().unwrap_err();
/// assert_eq!(error.column(), 15);
/// assert_eq!(error.to_string(), r#"column 15: expected a number, such as 64 or 0.5, but found "lots""#);
/// assert!(format!("{error:#}").ends_with("\n  nr_running <= lots\n                ^"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseExpectationError {
    /// The text's beginning.
    pub(super) text: String,
    /// The place in bytes.
    pub(super) at: usize,
    pub(super) problem: Problem,
}

/// What is wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Something else was expected.
    Expected(String),
    /// A message of its own.
    Other(String),
}

impl ParseExpectationError {
    /// Returns where the text stops being an expectation: the character's number, counted from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        self.text.get(..self.at).map_or(0, |before| before.chars().count()).saturating_add(1)
    }

    /// What is there: a word, a character or the end.
    fn found(&self) -> String {
        let rest = self.text.get(self.at..).unwrap_or_default();
        match rest.split_whitespace().next() {
            Some(word) => format!("{:?}", PeerText::line(word)),
            None => "the end".into(),
        }
    }
}

impl std::error::Error for ParseExpectationError {}

impl fmt::Display for ParseExpectationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "column {}: ", self.column())?;
        match &self.problem {
            Problem::Expected(expected) => write!(f, "expected {expected}, but found {}", self.found())?,
            Problem::Other(problem) => f.write_str(problem)?,
        }
        if f.alternate() {
            let shown: String = self.text.chars().map(|char| if is_hidden(char) { '\u{fffd}' } else { char }).collect();
            write!(f, "\n  {shown}\n  {:>width$}", '^', width = self.column())?;
        }
        Ok(())
    }
}
