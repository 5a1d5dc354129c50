//! The page about recordings of several runs.

use std::io::BufRead;

use super::page;
use super::recording::{ReadError, Recording};
use super::runs::Runs;
use crate::series::expectation::{Expectation, Verdict};

/// Recordings of several runs, and the page about them. Each run has one recording or several, which repeat it.
#[derive(Debug, Default)]
pub struct Report {
    runs: Runs,
}

/// What became of the expectations in one recording.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RecordingVerdicts {
    /// The recording's source.
    pub source: String,
    /// Each expectation and its verdict.
    pub verdicts: Vec<(Expectation, Verdict)>,
}

impl Report {
    /// Returns a report without recordings, in which each is judged by these.
    #[must_use]
    pub fn new(expectations: Vec<Expectation>) -> Self {
        Self { runs: Runs::new(expectations) }
    }

    /// Reads a recording, which repeats the run of this name or begins it. The first run is what the others are compared
    /// with. `source` says where the recording comes from, for people.
    ///
    /// # Errors
    ///
    /// [`ReadError`]; the report has the same recordings as before then.
    pub fn read(&mut self, run: &str, source: &str, from: impl BufRead) -> Result<(), ReadError> {
        self.runs.read(run, source, from)
    }

    /// Returns the verdicts of each recording, in the order of the page.
    #[must_use]
    pub fn verdicts(&self) -> Vec<RecordingVerdicts> {
        let of = |recording: &Recording| RecordingVerdicts {
            source: recording.source.clone(),
            verdicts: recording
                .evaluations
                .iter()
                .map(|evaluation| (evaluation.expectation().clone(), evaluation.verdict()))
                .collect(),
        };
        self.runs.recordings().map(of).collect()
    }

    /// Returns what a reader should know before trusting the page, a line each: lines that are no samples, runs with
    /// different fields, and the like.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.runs.notes()
    }

    /// Returns the page.
    #[must_use]
    pub fn to_html(&self) -> String {
        page::page(&self.runs).into_string()
    }
}
