//! One measurement with its goal, and the table of all.

use std::fmt::Write;

use serde::Serialize;

/// One measurement.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What is measured, with its unit.
    pub name: &'static str,
    /// This project's value.
    pub ours: f64,
    /// The value of the peer or the floor, in the same run.
    pub reference: f64,
    /// `ours` divided by `reference`.
    pub ratio: f64,
    /// The interquartile range of this project's repetitions, divided by their median.
    pub spread: f64,
    /// The goal.
    pub goal: Goal,
    /// Whether the goal holds.
    pub holds: bool,
}

/// The goal of a row.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// This project's value is at most this.
    Ours(f64),
    /// The ratio is at most this.
    Ratio(f64),
}

impl Goal {
    /// Formats the goal.
    pub fn text(self) -> String {
        match self {
            Self::Ours(most) => format!("ours <= {most}"),
            Self::Ratio(most) => format!("ratio <= {most:.2}"),
        }
    }
}

impl Row {
    /// Whether there are numbers: a measurement that found nothing has none.
    pub fn is_measured(&self) -> bool {
        self.ours.is_finite() && self.reference.is_finite()
    }

    /// Returns a row of single values.
    pub fn exact(name: &'static str, ours: f64, reference: f64, goal: Goal) -> Self {
        let ratio = ours / reference;
        let holds = match goal {
            Goal::Ours(most) => ours <= most,
            Goal::Ratio(most) => ratio <= most,
        };
        Self { name, ours, reference, ratio, spread: 0.0, goal, holds }
    }

    /// Returns a row of the medians of repetitions.
    pub fn median(name: &'static str, ours: &mut [f64], reference: &mut [f64], goal: Goal) -> Self {
        ours.sort_by(f64::total_cmp);
        reference.sort_by(f64::total_cmp);
        let spread = (quantile(ours, 0.75) - quantile(ours, 0.25)) / quantile(ours, 0.5);
        Self { spread, ..Self::exact(name, quantile(ours, 0.5), quantile(reference, 0.5), goal) }
    }

    /// Formats the rows as a table.
    pub fn table(rows: &[&Self]) -> String {
        let mut text = format!(
            "{:<64} {:>12} {:>12} {:>8} {:>7}  {:<14} {}\n",
            "what", "ours", "reference", "ratio", "spread", "goal", "holds"
        );
        for row in rows {
            let goal = row.goal.text();
            let holds = if row.holds { "yes" } else { "NO" };
            // Writing to a string cannot fail.
            let _written = writeln!(
                text,
                "{:<64} {:>12.1} {:>12.1} {:>8.3} {:>6.0}%  {goal:<14} {holds}",
                row.name,
                row.ours,
                row.reference,
                row.ratio,
                row.spread * 100.0
            );
        }
        text
    }
}

/// Returns the quantile of sorted values: 0.5 is their median. It is no number if there are none.
pub fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let index = sorted.len().saturating_sub(1) as f64 * fraction;
    sorted.iter().copied().nth(index.round() as usize).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_measurements_is_not_measured() {
        assert!(!Row::median("nothing", &mut [], &mut [1.0], Goal::Ratio(1.0)).is_measured());
        assert!(!Row::median("no reference", &mut [1.0], &mut [], Goal::Ratio(1.0)).is_measured());
        assert!(Row::median("both", &mut [1.0, 3.0, 2.0], &mut [4.0], Goal::Ratio(1.0)).is_measured());
    }

    #[test]
    fn a_median_row_has_its_ratio_and_spread() {
        let row = Row::median("five", &mut [5.0, 1.0, 4.0, 2.0, 3.0], &mut [6.0], Goal::Ratio(0.5));
        assert_eq!((row.ours, row.ratio, row.holds), (3.0, 0.5, true));
        assert!((row.spread - 2.0 / 3.0).abs() < 1e-9);
    }
}
