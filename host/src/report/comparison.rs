//! How a field of one run compares with that of the first.

use super::rank_test::{least_p_value, p_value};
use super::summary::{Summary, median};

/// A change whose chance is below this is called more than noise.
pub const LEVEL: f64 = 0.05;

/// A field of one run: a median for each recording that has the field.
#[derive(Clone, Debug)]
pub struct FieldOfRun {
    /// That of each recording's samples.
    pub medians: Vec<f64>,
    /// The samples of the one recording, where it is one.
    pub samples: Option<Summary>,
}

/// The change of a field between two runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The median of the differences of each pair of recordings (Hodges and Lehmann).
    pub change: f64,
    /// The change by the first run's median; `None` where that is 0.
    pub relative: Option<f64>,
    /// Whether it is more than noise.
    pub judgement: Judgement,
}

/// Whether a change is more than noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judgement {
    /// All medians are the same.
    Same,
    /// The chance of it without a change is below [`LEVEL`].
    Changed(f64),
    /// It is not.
    Noise(f64),
    /// No outcome with so few recordings has a chance below [`LEVEL`].
    TooFew,
    /// There is one recording on a side, whose samples depend on each other. Whether the middle halves of both runs' samples
    /// lie apart.
    OneRecording {
        /// `None` where a side has several recordings.
        is_apart: Option<bool>,
    },
}

impl FieldOfRun {
    /// Returns the median of the recordings' medians, and their spread: that of the samples where there is one recording, else
    /// the least and the greatest median.
    pub fn summary(&self) -> Option<Summary> {
        if let Some(samples) = self.samples {
            return Some(samples);
        }
        let median = median(self.medians.iter().copied())?;
        let lower = self.medians.iter().copied().fold(f64::INFINITY, f64::min);
        let upper = self.medians.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(Summary { lower, median, upper })
    }
}

impl Comparison {
    /// Compares a run with the first one. `None` if one of them does not have the field.
    pub fn of(first: &FieldOfRun, other: &FieldOfRun) -> Option<Self> {
        let differences = first.medians.iter().flat_map(|one| other.medians.iter().map(move |other| other - one));
        let change = median(differences)?;
        let base = median(first.medians.iter().copied())?;
        let relative = (base != 0.0).then_some(change / base.abs()).filter(|part| part.is_finite());
        Some(Self { change, relative, judgement: judge(first, other) })
    }
}

fn judge(first: &FieldOfRun, other: &FieldOfRun) -> Judgement {
    let (one, two) = (first.medians.as_slice(), other.medians.as_slice());
    let mut all = one.iter().chain(two);
    let same = all.next().is_some_and(|first| all.all(|other| other == first));
    if one.len() < 2 || two.len() < 2 {
        let apart = |one: Summary, two: Summary| one.upper < two.lower || two.upper < one.lower;
        let is_apart = first.samples.zip(other.samples).map(|(one, two)| apart(one, two));
        return if same && is_apart == Some(false) { Judgement::Same } else { Judgement::OneRecording { is_apart } };
    }
    if same {
        return Judgement::Same;
    }
    if least_p_value(one.len(), two.len()) >= LEVEL {
        return Judgement::TooFew;
    }
    let p = p_value(one, two);
    if p < LEVEL { Judgement::Changed(p) } else { Judgement::Noise(p) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(medians: &[f64]) -> FieldOfRun {
        let samples =
            (medians.len() == 1).then(|| Summary::of([medians[0] - 1.0, medians[0] + 1.0].into_iter()).unwrap());
        FieldOfRun { medians: medians.to_vec(), samples }
    }

    fn judgement(one: &[f64], other: &[f64]) -> Judgement {
        Comparison::of(&field(one), &field(other)).unwrap().judgement
    }

    #[test]
    fn repetitions_say_whether_a_change_is_noise() {
        let base = [10.0, 11.0, 12.0, 13.0];
        assert_eq!(judgement(&base, &[20.0, 21.0, 22.0, 23.0]), Judgement::Changed(2.0 / 70.0));
        assert!(matches!(judgement(&base, &[10.5, 11.5, 12.5, 13.5]), Judgement::Noise(p) if p > 0.5));
        assert_eq!(judgement(&base[..3], &[20.0, 21.0, 22.0]), Judgement::TooFew);
        assert_eq!(judgement(&[1.0; 4], &[1.0; 4]), Judgement::Same);
    }

    #[test]
    fn one_recording_is_not_tested() {
        assert_eq!(judgement(&[10.0], &[20.0]), Judgement::OneRecording { is_apart: Some(true) });
        assert_eq!(judgement(&[10.0], &[11.0]), Judgement::OneRecording { is_apart: Some(false) });
        assert_eq!(judgement(&[10.0], &[20.0, 21.0]), Judgement::OneRecording { is_apart: None });
        assert_eq!(judgement(&[10.0], &[10.0]), Judgement::Same);
        assert_eq!(Comparison::of(&field(&[]), &field(&[1.0])), None);
    }

    #[test]
    fn a_change_is_the_median_of_pairs() {
        let change = Comparison::of(&field(&[10.0, 12.0]), &field(&[15.0, 100.0])).unwrap();
        assert_eq!((change.change, change.relative), (46.5, Some(46.5 / 11.0)));
        assert_eq!(Comparison::of(&field(&[0.0, 0.0]), &field(&[1.0, 1.0])).unwrap().relative, None);
    }
}
