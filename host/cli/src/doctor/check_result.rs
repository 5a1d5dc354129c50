//! The result of one check.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

use crate::display::DIM;
use crate::exit;

/// The result of one check, with a fix unless all is well.
pub struct CheckResult {
    check: &'static str,
    exit_code: u8,
    state: State,
    message: String,
    fix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warning,
    Error,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    fn sign(self) -> (Style, char) {
        match self {
            Self::Ok => (AnsiColor::Green.on_default(), '✓'),
            Self::Warning => (AnsiColor::Yellow.on_default(), '!'),
            Self::Error => (AnsiColor::Red.on_default(), '✗'),
        }
    }
}

impl CheckResult {
    /// A check that passed.
    pub fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, exit_code: 0, state: State::Ok, message: message.into(), fix: None }
    }

    /// A check of what works less well, or is needed by some verbs only.
    pub fn warning(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, exit_code: 0, state: State::Warning, message: message.into(), fix: Some(fix.into()) }
    }

    /// A check that failed.
    pub fn error(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        let (message, fix) = (message.into(), Some(fix.into()));
        Self { check, exit_code: exit::FAILURE, state: State::Error, message, fix }
    }

    /// The same result, as a warning if it was an error.
    pub fn at_most_warning(mut self) -> Self {
        if self.state == State::Error {
            self.state = State::Warning;
            self.exit_code = 0;
        }
        self
    }

    /// The same result, with the exit code of its error.
    pub fn with_exit_code(self, exit_code: u8) -> Self {
        Self { exit_code, ..self }
    }

    /// The exit code of the command if this is its first error; 0 if it is no error.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Whether the check failed.
    pub fn is_error(&self) -> bool {
        self.state == State::Error
    }

    /// The result for people.
    pub fn text(&self) -> String {
        let (style, sign) = self.state.sign();
        let mut text = format!("{style}{sign}{style:#} {:<16} {}\n", self.check, self.message);
        if let Some(fix) = &self.fix {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "  {:<16} {DIM}fix:{DIM:#} {fix}", "");
        }
        text
    }

    /// The result for programs.
    pub fn json(&self) -> Value {
        json!({ "check": self.check, "state": self.state.name(), "message": self.message, "fix": self.fix })
    }
}
