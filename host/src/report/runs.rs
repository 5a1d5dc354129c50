//! Recordings of several runs.

use std::io::BufRead;

use super::comparison::{Comparison, FieldOfRun};
use super::field_names::{FieldNames, MAX_FIELDS};
use super::quantity::time;
use super::recording::{ReadError, Recording};
use super::summary::{Summary, median};
use crate::series::expectation::Expectation;
use crate::stats::PeerText;

/// The most runs of a page: as many as have colours of their own.
pub const MAX_RUNS: usize = 8;

/// The most recordings of a page.
pub const MAX_RECORDINGS: usize = 64;

/// The least ratio of two runs' intervals that is worth a note.
const OTHER_INTERVAL: f64 = 1.2;

/// Recordings of several runs. Each run has one recording or several, which repeat it.
#[derive(Debug, Default)]
pub struct Runs {
    /// What each recording is judged by.
    pub expectations: Vec<Expectation>,
    names: FieldNames,
    /// The runs, the first of which is what the others are compared with.
    pub runs: Vec<Run>,
}

/// The recordings with one name.
#[derive(Debug)]
pub struct Run {
    pub name: String,
    pub recordings: Vec<Recording>,
}

/// A field of all runs.
#[derive(Debug)]
pub struct FieldRow<'r> {
    /// Its index, and its path.
    pub index: usize,
    pub name: &'r str,
    /// That of each run.
    pub runs: Vec<FieldOfRun>,
    /// Each run after the first one, compared with it.
    pub comparisons: Vec<Option<Comparison>>,
}

impl Runs {
    /// Returns no runs, in which each recording is judged by these.
    pub fn new(expectations: Vec<Expectation>) -> Self {
        Self { expectations, ..Self::default() }
    }

    /// Reads a recording, which repeats the run of this name or begins it.
    pub fn read(&mut self, run: &str, source: &str, from: impl BufRead) -> Result<(), ReadError> {
        let known = self.runs.iter().position(|known| known.name == run);
        if known.is_none() && self.runs.len() >= MAX_RUNS {
            return Err(ReadError::TooMany { max: MAX_RUNS, what: "runs" });
        }
        if self.recordings().count() >= MAX_RECORDINGS {
            return Err(ReadError::TooMany { max: MAX_RECORDINGS, what: "recordings" });
        }
        let recording = Recording::read(source, from, &mut self.names, &self.expectations)?;
        match known.and_then(|at| self.runs.get_mut(at)) {
            Some(run) => run.recordings.push(recording),
            None => self.runs.push(Run { name: run.to_owned(), recordings: vec![recording] }),
        }
        Ok(())
    }

    /// What a reader should know before trusting numbers, a line each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.recordings().flat_map(notes_of).collect();
        notes.extend(self.other_fields());
        notes.extend(self.other_intervals());
        if self.names.is_full {
            notes.push(format!("there are more fields than the {MAX_FIELDS} that are shown, or longer paths"));
        }
        notes
    }

    /// All recordings, run by run.
    pub fn recordings(&self) -> impl Iterator<Item = &Recording> {
        self.runs.iter().flat_map(|run| &run.recordings)
    }

    /// The fields, compared.
    pub fn rows(&self) -> Vec<FieldRow<'_>> {
        (0..).zip(self.names.names()).map(|(index, name)| self.row(index, name)).collect()
    }

    fn row<'r>(&'r self, index: usize, name: &'r str) -> FieldRow<'r> {
        let runs: Vec<FieldOfRun> = self.runs.iter().map(|run| run.field(index)).collect();
        let compared = |other| runs.first().and_then(|first| Comparison::of(first, other));
        let comparisons = runs.iter().skip(1).map(compared).collect();
        FieldRow { index, name, runs, comparisons }
    }

    /// A note for each run that lacks fields which others have.
    fn other_fields(&self) -> impl Iterator<Item = String> {
        let note = |run: &Run| {
            let mut lacking = (0..).zip(self.names.names()).filter(|(index, _)| !run.has(*index));
            let (_, first) = lacking.next()?;
            let (run, first, more) = (PeerText::line(&run.name), PeerText::line(first), lacking.count());
            let rest = if more == 0 { String::new() } else { format!(" and {more} more fields") };
            Some(format!("run {run} has no {first}{rest}, which other runs have"))
        };
        self.runs.iter().filter_map(note)
    }

    /// A note for each run whose samples are further apart than those of the first, or closer together.
    fn other_intervals(&self) -> impl Iterator<Item = String> {
        let first = self.runs.first().and_then(|run| Some((run, run.interval()?)));
        self.runs.iter().skip(1).filter_map(move |run| {
            let ((first, of_first), of_run) = (first?, run.interval()?);
            let ratio = of_first.max(of_run) / of_first.min(of_run).max(1.0);
            let name = |run: &Run| PeerText::line(&run.name).to_string();
            (ratio > OTHER_INTERVAL).then(|| {
                let (first, run) = (name(first), name(run));
                format!(
                    "a sample of run {first} spans {of_first} ms, one of run {run} {of_run} ms: fields that count since the \
                     last read differ for that alone"
                )
            })
        })
    }
}

impl Run {
    /// The median of the milliseconds that a sample's changes span.
    fn interval(&self) -> Option<f64> {
        median(self.recordings.iter().flat_map(|recording| recording.intervals.iter().copied()))
    }

    fn has(&self, field: usize) -> bool {
        self.recordings.iter().any(|recording| recording.column(field).is_some())
    }

    fn field(&self, field: usize) -> FieldOfRun {
        let columns: Vec<_> = self.recordings.iter().filter_map(|recording| recording.column(field)).collect();
        match columns.as_slice() {
            [one] => {
                let samples = Summary::of(one.numbers());
                FieldOfRun { medians: samples.iter().map(|samples| samples.median).collect(), samples }
            }
            several => {
                let medians = several.iter().filter_map(|column| median(column.numbers()));
                FieldOfRun { medians: medians.collect(), samples: None }
            }
        }
    }
}

fn notes_of(recording: &Recording) -> Vec<String> {
    let source = PeerText::line(&recording.source);
    let mut notes = Vec::new();
    match &recording.bad_lines {
        Some((1, first)) => notes.push(format!("{source}: {first}")),
        Some((count, first)) => notes.push(format!("{source}: {first}; so are {} more lines", count - 1)),
        None => {}
    }
    if let Some(sample) = recording.back_in_time {
        let ms = recording.times.get(sample).copied().unwrap_or(0);
        let problem = "is before the one before it; is this a recording of several guests, or several in one file?";
        notes.push(format!("{source}: sample {} at {} {problem}", sample + 1, time(ms)));
    }
    notes
}
