//! What is kept of one recording.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use serde_json::{Value, json};

use super::column::Column;
use super::field_names::FieldNames;
use super::kernel_record::KernelRecord;
use crate::sample::Sample;
use crate::series::expectation::{Evaluation, Expectation};
use crate::series::{LineError, SampleLines};
use crate::stats::{PeerText, SchedExt};

/// One file's samples, as columns.
#[derive(Debug)]
pub struct Recording {
    /// Where it comes from, for people.
    pub source: String,
    /// The time of each sample, in milliseconds.
    pub times: Vec<u64>,
    /// How many milliseconds the changes of each sample span, where they have a beginning.
    pub intervals: Vec<f64>,
    /// The numbers of each field, by its index.
    pub columns: Vec<Column>,
    /// The samples without stats, in order, and the kinds of their reasons.
    pub holes: Vec<(usize, &'static str)>,
    /// Each kind of reason.
    pub reasons: BTreeMap<&'static str, Reason>,
    /// The samples that begin a new session after another one.
    pub baselines: Vec<usize>,
    /// What the kernel said.
    pub kernel: Option<KernelRecord>,
    /// The expectations.
    pub evaluations: Vec<Evaluation>,
    /// How many lines are no samples, and the first of them.
    pub bad_lines: Option<(usize, LineError)>,
    /// The first sample that is of an earlier time than the one before it.
    pub back_in_time: Option<usize>,
    session: u64,
}

/// The samples without stats for one kind of reason.
#[derive(Debug)]
pub struct Reason {
    /// How many.
    pub count: usize,
    /// When the first of them was.
    pub first_ms: u64,
    /// The reason of the first one.
    pub text: String,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A read failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// There is nothing in it.
    #[error("it is empty: there is no sample")]
    Empty,
    /// None of its lines is a sample.
    #[error("{first} (and none of its {lines} lines is)")]
    NoSample {
        /// How many lines there are.
        lines: usize,
        /// The first of them.
        first: LineError,
    },
    /// There are as many runs or recordings as a page has.
    #[error("a page has at most {max} {what}")]
    TooMany {
        /// The most.
        max: usize,
        /// Of what.
        what: &'static str,
    },
}

impl Recording {
    /// Returns a recording without samples.
    pub fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            times: Vec::new(),
            intervals: Vec::new(),
            columns: Vec::new(),
            holes: Vec::new(),
            reasons: BTreeMap::new(),
            baselines: Vec::new(),
            kernel: None,
            evaluations: Vec::new(),
            bad_lines: None,
            back_in_time: None,
            session: 0,
        }
    }

    /// Reads a recording. Lines that are no samples are counted.
    pub fn read(
        source: &str,
        from: impl BufRead,
        names: &mut FieldNames,
        expectations: &[Expectation],
    ) -> Result<Self, ReadError> {
        let mut recording = Self::new(source);
        recording.evaluations = expectations.iter().cloned().map(Evaluation::new).collect();
        let mut lines = SampleLines::new(from);
        while let Some(line) = lines.next()? {
            match line {
                Ok(sample) => recording.take(&sample, names),
                Err(error) => recording.bad_lines.get_or_insert((0, error)).0 += 1,
            }
        }
        match (recording.times.is_empty(), recording.bad_lines) {
            (true, None) => Err(ReadError::Empty),
            (true, Some((lines, first))) => Err(ReadError::NoSample { lines, first }),
            (false, bad_lines) => Ok(Self { bad_lines, ..recording }),
        }
    }

    fn take(&mut self, sample: &Sample, names: &mut FieldNames) {
        let at = self.times.len();
        if self.times.last().is_some_and(|last| *last > sample.elapsed_ms) {
            self.back_in_time.get_or_insert(at);
        }
        self.times.push(sample.elapsed_ms);
        let spanned = sample.interval_ms.filter(|_| sample.stats.is_ok());
        self.intervals.extend(spanned.and_then(|ms| u32::try_from(ms).ok()).map(f64::from));
        self.take_session(at, sample.session);
        self.evaluations.iter_mut().for_each(|evaluation| evaluation.record(sample));
        match &sample.stats {
            Ok(stats) => self.take_numbers(at, "", stats, names),
            Err(reason) => {
                self.holes.push((at, reason.kind()));
                let new = || Reason { count: 0, first_ms: sample.elapsed_ms, text: PeerText::line(reason).to_string() };
                self.reasons.entry(reason.kind()).or_insert_with(new).count += 1;
            }
        }
        if let Some(Ok(said)) = &sample.kernel {
            self.take_numbers(at, "kernel:", &kernel_numbers(said), names);
            self.kernel.get_or_insert_default().take(said);
        }
    }

    /// A sample of no session was not begun on one, and says nothing about baselines.
    fn take_session(&mut self, at: usize, session: u64) {
        if session != 0 {
            if self.session != 0 && self.session != session {
                self.baselines.push(at);
            }
            self.session = session;
        }
    }

    fn take_numbers(&mut self, at: usize, prefix: &str, value: &Value, names: &mut FieldNames) {
        names.numbers(prefix, value, &mut |index, number| {
            if self.columns.len() <= index {
                self.columns.resize_with(index + 1, Column::default);
            }
            if let Some(column) = self.columns.get_mut(index) {
                column.set(at, number);
            }
        });
    }

    /// The column of a field.
    pub fn column(&self, field: usize) -> Option<&Column> {
        self.columns.get(field).filter(|column| column.numbers().next().is_some())
    }

    /// The time of the latest sample.
    pub fn end_ms(&self) -> u64 {
        self.times.iter().copied().max().unwrap_or(0)
    }
}

/// The numbers among what the kernel says, which are texts.
fn kernel_numbers(said: &SchedExt) -> Value {
    let number = |text: &String| text.parse::<u64>().ok();
    let events = said.events.iter().flatten().map(|(name, text)| (name.clone(), json!(number(text))));
    json!({
        "enable_seq": said.enable_seq.as_ref().and_then(number),
        "nr_rejected": said.nr_rejected.as_ref().and_then(number),
        "events": events.collect::<serde_json::Map<String, Value>>(),
    })
}
