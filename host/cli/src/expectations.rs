//! `--expect`, `--expect-file` and `--junit`: what must be true of the samples of a run.

mod evaluations;
mod junit;
mod named_verdicts;
mod verdicts;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use scx_vsock::series::expectation::Expectation;

use crate::text_file;
pub use evaluations::Evaluations;
pub use junit::{JunitFile, JunitSuite};
pub use named_verdicts::NamedVerdicts;
pub use verdicts::{ExpectationsBroken, Verdicts};

/// What must be true of the samples.
#[derive(Args)]
pub struct Expectations {
    /// What must be true of the samples, such as 'nr_running <= 64' or 'eventually kernel:state = enabled within 5s'; may be
    /// repeated. If it is not, or no sample has a value, the exit code is 4
    #[arg(long = "expect", value_name = "EXPR")]
    expressions: Vec<Expectation>,

    /// A file with one such expression a line; lines that begin with # are comments; may be repeated
    #[arg(long = "expect-file", value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Write how the run ended, and what became of each expectation, to this file as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl Expectations {
    /// Prepares to judge the samples of these guests, whose names are shown if there are several. `verb` names the report.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is none of expectations, or a report that cannot be written.
    pub fn prepare(&self, verb: &str, guests: &[String]) -> Result<Evaluations> {
        Ok(Evaluations::new(&self.read()?, guests, self.junit(verb)?))
    }

    /// Returns all of them.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is none of expectations.
    pub fn read(&self) -> Result<Vec<Expectation>> {
        let mut expectations = self.expressions.clone();
        for file in &self.files {
            expectations.extend(text_file::read(file, "a file with an expectation a line", parse)?);
        }
        Ok(expectations)
    }

    /// Makes the file of the report, if there is to be one.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn junit(&self, verb: &str) -> Result<Option<JunitFile>> {
        self.junit.as_deref().map(|path| JunitFile::create(path, verb)).transpose()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.expressions.is_empty() && self.files.is_empty()
    }
}

fn parse(text: &str) -> Result<Vec<Expectation>, String> {
    let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parsed =
        lines.map(|(number, line)| line.parse::<Expectation>().map_err(|error| format!("line {number}, {error}")));
    let expectations: Vec<Expectation> = parsed.collect::<Result<_, _>>()?;
    if expectations.is_empty() { Err("it has no expectation, only comments".into()) } else { Ok(expectations) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_an_expectation_a_line() {
        let read = parse("# what must be true\n\n  nr_running<=64\r\nholes(stats) <= 2\n").unwrap();
        let texts: Vec<_> = read.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["nr_running <= 64", "holes(stats) <= 2"]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let error = parse("# c\nnr <= 1\nnr <=\n").unwrap_err();
        assert_eq!(error, "line 3, column 6: expected a number, such as 64 or 0.5, but found the end");
        assert_eq!(parse("# c\n").unwrap_err(), "it has no expectation, only comments");
    }
}
