//! `scx-vsock doctor`: what works on the way to a guest's scheduler, and what mends the rest.

mod guest_checks;
mod host_checks;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use clap::Args;
use scx_vsock::Endpoint;
use serde_json::{Value, json};

use crate::display::DIM;
use crate::{duration, exit};

/// Check what is needed, and say what mends it
///
/// Without a URI: what this machine needs to boot guests and to reach them. With one: each hop on the way to that
/// guest's scheduler.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  scx-vsock doctor
  scx-vsock doctor --kernel /boot/vmlinuz-7.2.0
  scx-vsock doctor vsock://3
  scx-vsock doctor hybrid:/run/guest1/v.sock --json | jq '.[] | select(.state == \"bad\")'

A tick is what works, ! what works less well or is needed by some verbs alone, a cross what does not work; each of those
has a line that says what mends it.")]
pub struct Doctor {
    /// The guest's agent: vsock://CID[:PORT], hybrid:PATH[?port=N] or unix:PATH; or scx:PATH, a scheduler without one
    #[arg(value_name = "URI")]
    uri: Option<Endpoint>,

    /// The time within which an answer must be there, in seconds or with a unit (250ms)
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = duration::parse)]
    deadline: Duration,

    /// A bzImage to try KVM with; without it /boot/vmlinuz-$(uname -r)
    #[arg(long, value_name = "FILE", conflicts_with = "uri")]
    kernel: Option<PathBuf>,

    /// The agent's file; without it SCX_VSOCK_AGENT, then scx-vsock-agent beside this program
    #[arg(long, value_name = "FILE", conflicts_with = "uri")]
    agent: Option<PathBuf>,

    /// The QEMU program; without it QEMU, then qemu-system-x86_64
    #[arg(long, value_name = "PROGRAM", conflicts_with = "uri")]
    qemu: Option<String>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What came of one check.
struct Finding {
    check: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What mends it, where something is to be mended.
    mend: Option<String>,
    /// The code that the command ends with because of it.
    code: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Note,
    Bad,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Bad => "bad",
        }
    }

    fn sign(self) -> (Style, char) {
        match self {
            Self::Good => (AnsiColor::Green.on_default(), '✓'),
            Self::Note => (AnsiColor::Yellow.on_default(), '!'),
            Self::Bad => (AnsiColor::Red.on_default(), '✗'),
        }
    }
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Good, found: found.into(), mend: None, code: 0 }
    }

    fn note(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state: State::Note, found: found.into(), mend: Some(mend.into()), code: 0 }
    }

    fn bad(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state: State::Bad, found: found.into(), mend: Some(mend.into()), code: exit::FAILURE }
    }

    /// The same, as one that only some need.
    fn at_most_a_note(mut self) -> Self {
        if self.state == State::Bad {
            self.state = State::Note;
            self.code = 0;
        }
        self
    }

    fn text(&self) -> String {
        let (style, sign) = self.state.sign();
        let mut text = format!("{style}{sign}{style:#} {:<16} {}\n", self.check, self.found);
        if let Some(mend) = &self.mend {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "  {:<16} {DIM}mend:{DIM:#} {mend}", "");
        }
        text
    }

    fn json(&self) -> Value {
        json!({ "check": self.check, "state": self.state.word(), "found": self.found, "mend": self.mend })
    }
}

impl Doctor {
    /// Checks and prints.
    pub fn run(&self) -> Result<ExitCode> {
        let findings = match &self.uri {
            Some(uri) => guest_checks::check(uri, self.deadline),
            None => host_checks::check(self),
        };
        let text = if self.json {
            format!("{}\n", Value::from(findings.iter().map(Finding::json).collect::<Vec<_>>()))
        } else {
            findings.iter().map(Finding::text).collect()
        };
        anstream::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::from(findings.iter().map(|finding| finding.code).find(|code| *code != 0).unwrap_or(0)))
    }
}
