//! One measurement and what is expected of it.

use std::fmt::Write;

use serde::Serialize;

/// One measurement.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What is measured, with its unit.
    pub name: &'static str,
    /// This project's value.
    pub ours: f64,
    /// The peer's, or the floor's, in the same run.
    pub reference: f64,
    /// Ours by the reference.
    pub ratio: f64,
    /// How far the repetitions of ours lie apart: the middle half of them, by their median.
    pub spread: f64,
    /// What is to hold.
    pub goal: Goal,
    /// Whether it does.
    pub holds: bool,
}

/// What is to hold.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// This project's value is at most this.
    Ours(f64),
    /// The ratio is at most this.
    Ratio(f64),
}

impl Row {
    /// A row of single values.
    pub fn exact(name: &'static str, ours: f64, reference: f64, goal: Goal) -> Self {
        let ratio = ours / reference;
        let holds = match goal {
            Goal::Ours(most) => ours <= most,
            Goal::Ratio(most) => ratio <= most,
        };
        Self { name, ours, reference, ratio, spread: 0.0, goal, holds }
    }

    /// A row of the medians of repetitions.
    pub fn of(name: &'static str, ours: &mut [f64], reference: &mut [f64], goal: Goal) -> Self {
        ours.sort_by(f64::total_cmp);
        reference.sort_by(f64::total_cmp);
        let spread = (at(ours, 0.75) - at(ours, 0.25)) / at(ours, 0.5);
        Self { spread, ..Self::exact(name, at(ours, 0.5), at(reference, 0.5), goal) }
    }

    /// All rows for people.
    pub fn table(rows: &[Self]) -> String {
        let mut text = format!(
            "{:<64} {:>12} {:>12} {:>8} {:>7}  {:<14} {}\n",
            "what", "ours", "reference", "ratio", "spread", "goal", "holds"
        );
        for row in rows {
            let goal = match row.goal {
                Goal::Ours(most) => format!("ours <= {most}"),
                Goal::Ratio(most) => format!("ratio <= {most}"),
            };
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

/// The value below which this part of the sorted values lies.
pub fn at(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len() - 1) as f64 * part;
    sorted.iter().copied().nth(index.round() as usize).unwrap_or(f64::NAN)
}
