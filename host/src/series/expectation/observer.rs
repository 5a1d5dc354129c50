//! Finds the value of each sample, with what the samples before it have to do with it.

use std::borrow::Cow;

use serde_json::{Number as JsonNumber, Value};

use super::nearest::nearest;
use super::observation::{NoValue, Observation};
use super::term::{Source, Term, written_path};
use super::value::ValueType;
use crate::sample::Sample;
use crate::series::column::{Change, since};
use crate::series::number::Number;
use crate::stats::path::kind;
use crate::stats::{MissingStatsReason, PeerText, StatPath};

/// Characters of a text that are kept, more than an expectation has.
const MAX_TEXT_CHARS: usize = 2_000;

/// Finds the values of a term.
#[derive(Debug)]
pub(super) struct Observer {
    term: Term,
    value_type: ValueType,
    memory: Memory,
    /// Whether a path like the missing one was looked for, and what was found.
    nearest: Option<Option<String>>,
}

/// What the value of the next sample depends on.
#[derive(Debug)]
enum Memory {
    Nothing,
    /// The counter of the sample before, unless that is a hole.
    Counter(Option<Counter>),
    /// Holes so far, and whether a sample was none.
    Holes {
        count: u64,
        is_any_whole: bool,
    },
}

#[derive(Debug)]
struct Counter {
    baseline: u64,
    elapsed_ms: u64,
    number: Number,
}

impl Observer {
    pub fn new(term: Term, value_type: ValueType) -> Self {
        let memory = match term {
            Term::Rate(..) => Memory::Counter(None),
            Term::Holes(_) => Memory::Holes { count: 0, is_any_whole: false },
            Term::Value(..) | Term::PerSecond(_) => Memory::Nothing,
        };
        Self { term, value_type, memory, nearest: None }
    }

    /// Returns what the term is in the next sample, whose number this is.
    pub fn observe(&mut self, number: u64, sample: &Sample) -> Observation {
        let value = self.value(sample).and_then(|value| self.checked(&value, self.value_type));
        let value = value.map(|value| match value {
            Value::String(text) => Value::String(text.chars().take(MAX_TEXT_CHARS).collect()),
            other => other,
        });
        let tag = PeerText::line(&sample.tag).to_string();
        Observation { sample: number, tag, elapsed_ms: sample.elapsed_ms, value }
    }

    fn value(&mut self, sample: &Sample) -> Result<Value, NoValue> {
        match &self.term {
            Term::Value(source, path) => self.find(*source, &path.clone(), self.value_type, sample),
            Term::PerSecond(path) => {
                let delta = self.find(Source::Stats, &path.clone(), ValueType::Number, sample)?;
                per_second(&delta, sample.interval_ms)
            }
            Term::Rate(source, path) => {
                let (source, path) = (*source, path.clone());
                let found = self.find(source, &path, ValueType::Number, sample);
                self.rate(source, found, sample)
            }
            Term::Holes(source) => self.count_hole(*source, sample),
        }
    }

    /// Finds the value at a path, and remembers a path like it where there is none.
    fn find(
        &mut self,
        source: Source,
        path: &StatPath,
        value_type: ValueType,
        sample: &Sample,
    ) -> Result<Value, NoValue> {
        let said = said(source, sample)?;
        let Ok(value) = path.get(&said) else {
            let found = self.nearest.get_or_insert_with(|| nearest(path, source, &said));
            return Err(NoValue::NoField { path: written_path(source, path), nearest: found.clone() });
        };
        value_type.of(value, source == Source::Kernel).ok_or_else(|| self.wrong_type(value, value_type))
    }

    fn checked(&self, value: &Value, value_type: ValueType) -> Result<Value, NoValue> {
        value_type.of(value, false).ok_or_else(|| self.wrong_type(value, value_type))
    }

    fn wrong_type(&self, value: &Value, wanted: ValueType) -> NoValue {
        NoValue::WrongType { path: self.term.to_string(), found: kind(value), wanted: wanted.name() }
    }

    fn rate(&mut self, source: Source, found: Result<Value, NoValue>, sample: &Sample) -> Result<Value, NoValue> {
        let Memory::Counter(before) = &mut self.memory else { return found };
        let before = before.take();
        let found = found?;
        let Some(number) = Number::of(&found) else { return Err(NoValue::NewBaseline) };
        let (baseline, elapsed_ms) = (baseline(source, sample), sample.elapsed_ms);
        self.memory = Memory::Counter(Some(Counter { baseline, elapsed_ms, number }));
        let earlier = before.filter(|before| before.baseline == baseline).ok_or(NoValue::NewBaseline)?;
        match since(earlier.number, number, elapsed_ms.saturating_sub(earlier.elapsed_ms)) {
            Change::Since { rate: Some(rate), .. } => float(rate),
            _ => Err(NoValue::NewBaseline),
        }
    }

    fn count_hole(&mut self, source: Source, sample: &Sample) -> Result<Value, NoValue> {
        let Memory::Holes { count, is_any_whole } = &mut self.memory else { return Err(NoValue::NotSampled) };
        match said(source, sample) {
            Ok(_) => *is_any_whole = true,
            Err(NoValue::NotSampled) => return Err(NoValue::NotSampled),
            Err(hole) => {
                *count += 1;
                if !*is_any_whole {
                    return Err(hole);
                }
            }
        }
        Ok(Value::from(*count))
    }
}

/// Returns what a sample has of a source.
fn said(source: Source, sample: &Sample) -> Result<Cow<'_, Value>, NoValue> {
    let hole = |reason: &MissingStatsReason| NoValue::Hole { reason: PeerText::line(reason).to_string() };
    match source {
        Source::Stats => sample.stats.as_ref().map(Cow::Borrowed).map_err(hole),
        Source::Kernel => {
            let kernel = sample.kernel.as_ref().ok_or(NoValue::NotSampled)?.as_ref().map_err(hole)?;
            Ok(Cow::Owned(serde_json::to_value(kernel).unwrap_or_default()))
        }
    }
}

/// The number of what a source's counters are counted from.
pub(super) fn baseline(source: Source, sample: &Sample) -> u64 {
    match (source, &sample.kernel) {
        (Source::Stats, _) => sample.session,
        (Source::Kernel, Some(Ok(kernel))) => {
            kernel.enable_seq.as_deref().and_then(|seq| seq.parse().ok()).unwrap_or(0)
        }
        (Source::Kernel, _) => 0,
    }
}

/// A delta by the seconds that it spans.
fn per_second(delta: &Value, interval_ms: Option<u64>) -> Result<Value, NoValue> {
    let interval =
        interval_ms.filter(|ms| *ms > 0).map(std::time::Duration::from_millis).ok_or(NoValue::NewBaseline)?;
    Number::of(delta).map_or(Err(NoValue::NewBaseline), |delta| float(delta.as_f64() / interval.as_secs_f64()))
}

/// A quotient; one beyond the range of floats is none.
fn float(number: f64) -> Result<Value, NoValue> {
    JsonNumber::from_f64(number).map(Value::Number).ok_or(NoValue::NewBaseline)
}
