//! Takes samples one by one and judges an expectation.

use serde_json::{Number as JsonNumber, Value};

use super::expectation::{Condition, Expectation, Test};
use super::observation::{NoValue, Observation};
use super::observer::{Observer, baseline};
use super::verdict::{Break, Verdict};
use crate::sample::Sample;
use crate::series::number::Number;
use crate::series::series::SampleSeries;

/// An expectation with what is needed of the samples so far to judge it: a bounded number of observations.
///
/// ```
/// use scx_vsock::series::expectation::{Evaluation, Expectation};
/// use scx_vsock::{MissingStatsReason, Sample};
///
/// let mut evaluation = Evaluation::new("nr_running <= 64".parse::<Expectation>()?);
/// assert_eq!(evaluation.verdict().to_string(), "no data: there is no sample");
/// evaluation.record(&Sample::new("first", Err(MissingStatsReason::DuringFreeze)));
/// evaluation.record(&Sample::new("second", Ok(serde_json::json!({ "nr_running": 3 }))));
/// assert_eq!(evaluation.verdict().to_string(), "held: 1 value; 1 without");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Evaluation {
    expectation: Expectation,
    observer: Observer,
    /// The samples so far, those outside of the window as well.
    count: u64,
    values: u64,
    without: u64,
    /// The reason that says the most.
    missing: NoValue,
    newest: Option<Moment>,
    progress: Progress,
}

/// A sample between those beside it in the window.
#[derive(Clone, Debug)]
struct Moment {
    before: Option<Observation>,
    at: Observation,
    after: Option<Observation>,
}

/// How far a condition has come.
#[derive(Debug)]
enum Progress {
    /// Holds until a value breaks it.
    Always(Option<Box<Moment>>),
    Eventually(Search),
    AtEnd,
    Nondecreasing(Steps),
    Steady(Spread),
}

/// The search for one value that holds.
#[derive(Debug)]
enum Search {
    /// There was none yet; the newest of those that do not.
    Open(Option<Box<Moment>>),
    Found,
}

/// The comparison of each number with the one before it.
#[derive(Debug, Default)]
struct Steps {
    /// The newest number and its baseline.
    newest: Option<(u64, Number, Value)>,
    /// Whether two were compared.
    is_any: bool,
    /// The first that is less than the one before it, which comes with it.
    broken: Option<(Box<Moment>, Value)>,
}

/// The mean of all numbers, and the two that are the farthest from each other.
#[derive(Debug, Default)]
struct Spread {
    count: f64,
    mean: f64,
    least: Option<(f64, Box<Moment>)>,
    most: Option<(f64, Box<Moment>)>,
}

impl Evaluation {
    /// Returns an evaluation that has seen no sample.
    #[must_use]
    pub fn new(expectation: Expectation) -> Self {
        let condition = expectation.condition();
        let observer = Observer::new(condition.term().clone(), condition.value_type());
        let progress = match condition {
            Condition::Always(..) => Progress::Always(None),
            Condition::Eventually(..) => Progress::Eventually(Search::Open(None)),
            Condition::AtEnd(..) => Progress::AtEnd,
            Condition::Nondecreasing(_) => Progress::Nondecreasing(Steps::default()),
            Condition::Steady(..) => Progress::Steady(Spread::default()),
        };
        let missing = NoValue::NoSample;
        Self { expectation, observer, count: 0, values: 0, without: 0, missing, newest: None, progress }
    }

    /// Returns the expectation.
    #[must_use]
    pub const fn expectation(&self) -> &Expectation {
        &self.expectation
    }

    /// Takes the next sample.
    pub fn record(&mut self, sample: &Sample) {
        self.count = self.count.saturating_add(1);
        if !self.expectation.window.contains(sample.elapsed_ms) {
            return;
        }
        let at = self.observer.observe(self.count, sample);
        for moment in self.progress.moments_mut().chain(&mut self.newest) {
            moment.after.get_or_insert_with(|| at.clone());
        }
        let moment = Moment { before: self.newest.take().map(|newest| newest.at), at, after: None };
        match &moment.at.value {
            Ok(value) => {
                self.values = self.values.saturating_add(1);
                let source = self.expectation.condition.term().source();
                self.progress.take(&self.expectation.condition, value, &moment, baseline(source, sample));
            }
            Err(missing) => {
                self.without = self.without.saturating_add(1);
                if missing.rank() >= self.missing.rank() {
                    self.missing = missing.clone();
                }
            }
        }
        self.newest = Some(moment);
    }

    /// Judges the samples so far.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let broken = if self.values == 0 { Err(self.missing.clone()) } else { self.broken() };
        match broken {
            Ok(None) => Verdict::Held { values: self.values, without: self.without },
            Ok(Some(broken)) => Verdict::Broken(Box::new(broken)),
            Err(reason) => Verdict::NoData { samples: self.values.saturating_add(self.without), reason },
        }
    }

    /// Where the condition broke, if it did; or why that cannot be said.
    fn broken(&self) -> Result<Option<Break>, NoValue> {
        let as_break = |moment: &Option<Box<Moment>>, wanted| moment.as_ref().map(|moment| moment.as_break(wanted));
        match (&self.expectation.condition, &self.progress) {
            (Condition::Always(_, test), Progress::Always(moment)) => Ok(as_break(moment, test.to_string())),
            (Condition::Eventually(_, test), Progress::Eventually(Search::Open(moment))) => {
                Ok(as_break(moment, format!("{test}, nor was any before it")))
            }
            (Condition::AtEnd(_, test), _) => self.newest.as_ref().map_or(Ok(None), |newest| newest.at_end(test)),
            (_, Progress::Nondecreasing(steps)) => steps.broken(),
            (Condition::Steady(_, tolerance), Progress::Steady(spread)) => spread.broken(tolerance),
            _ => Ok(None),
        }
    }
}

impl Moment {
    fn as_break(&self, wanted: String) -> Break {
        let Self { before, at, after } = self.clone();
        Break { at, before, after, wanted }
    }

    /// Judges the last sample.
    fn at_end(&self, test: &Test) -> Result<Option<Break>, NoValue> {
        let value = self.at.value.as_ref().map_err(Clone::clone)?;
        Ok((!test.holds(value)).then(|| self.as_break(test.to_string())))
    }
}

impl Progress {
    /// Takes the value of a sample.
    fn take(&mut self, condition: &Condition, value: &Value, moment: &Moment, baseline: u64) {
        match (self, condition) {
            (Self::Always(broken @ None), Condition::Always(_, test)) if !test.holds(value) => {
                *broken = Some(Box::new(moment.clone()));
            }
            (Self::Eventually(search @ Search::Open(_)), Condition::Eventually(_, test)) => {
                *search = if test.holds(value) { Search::Found } else { Search::Open(Some(Box::new(moment.clone()))) };
            }
            (Self::Nondecreasing(steps), _) => steps.take(value, moment, baseline),
            (Self::Steady(spread), _) => spread.take(value, moment),
            _ => {}
        }
    }

    /// The moments that are kept, which may lack the sample after them.
    fn moments_mut(&mut self) -> impl Iterator<Item = &mut Moment> {
        let (one, other) = match self {
            Self::Always(moment) | Self::Eventually(Search::Open(moment)) => (moment.as_mut(), None),
            Self::Nondecreasing(steps) => (steps.broken.as_mut().map(|(moment, _)| moment), None),
            Self::Steady(Spread { least, most, .. }) => {
                (least.as_mut().map(|(_, moment)| moment), most.as_mut().map(|(_, moment)| moment))
            }
            Self::Eventually(Search::Found) | Self::AtEnd => (None, None),
        };
        one.into_iter().chain(other).map(|moment| &mut **moment)
    }
}

impl Steps {
    fn take(&mut self, value: &Value, moment: &Moment, baseline: u64) {
        let Some(number) = Number::of(value) else { return };
        let before = self.newest.replace((baseline, number, value.clone())).filter(|(of, ..)| *of == baseline);
        let Some((_, before, shown)) = before else { return };
        self.is_any = true;
        if self.broken.is_none() && number < before {
            self.broken = Some((Box::new(moment.clone()), shown));
        }
    }

    fn broken(&self) -> Result<Option<Break>, NoValue> {
        let as_break =
            |(moment, before): &(Box<Moment>, Value)| moment.as_break(format!("at least {before}, as before"));
        if self.is_any { Ok(self.broken.as_ref().map(as_break)) } else { Err(NoValue::OneValue) }
    }
}

impl Spread {
    fn take(&mut self, value: &Value, moment: &Moment) {
        let Some(number) = Number::of(value).map(Number::as_f64) else { return };
        self.count += 1.0;
        self.mean += (number - self.mean) / self.count;
        if self.least.as_ref().is_none_or(|(least, _)| number < *least) {
            self.least = Some((number, Box::new(moment.clone())));
        }
        if self.most.as_ref().is_none_or(|(most, _)| number > *most) {
            self.most = Some((number, Box::new(moment.clone())));
        }
    }

    /// The number that is the farthest from the mean, if that is too far.
    fn broken(&self, tolerance: &JsonNumber) -> Result<Option<Break>, NoValue> {
        let Some(((least, low), (most, high))) =
            self.least.as_ref().zip(self.most.as_ref()).filter(|_| self.count > 1.5)
        else {
            return Err(NoValue::OneValue);
        };
        let (below, above) = (self.mean - least, most - self.mean);
        let (distance, farthest) = if above >= below { (above, high) } else { (below, low) };
        let allowed = tolerance.as_f64().unwrap_or(0.0) / 100.0 * self.mean.abs();
        // Not so where the mean is beyond the range of floats.
        let is_steady = allowed.is_finite() && distance <= allowed;
        let as_break = || farthest.as_break(format!("within {tolerance}% of the mean, {}", self.mean));
        Ok((!is_steady).then(as_break))
    }
}

impl SampleSeries {
    /// Judges an expectation of these samples.
    #[must_use]
    pub fn check(&self, expectation: &Expectation) -> Verdict {
        let mut evaluation = Evaluation::new(expectation.clone());
        self.samples.iter().for_each(|sample| evaluation.record(sample));
        evaluation.verdict()
    }
}
