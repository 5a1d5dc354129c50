//! The table: a heading for each guest, and a line with a sparkline for each field.

use std::collections::{BTreeMap, VecDeque};

use scx_vsock::Sample;
use scx_vsock::series::StatPath;

use crate::display::{BOLD, DIM, clean, rows, seconds};

/// The number of values in a sparkline.
const HISTORY: usize = 30;

/// The number of fields shown of a guest where none are named.
const DEFAULT_FIELDS: usize = 8;

/// The most columns of a name.
const MAX_NAME: usize = 32;

/// The table of all guests.
pub struct Table {
    guests: Vec<Guest>,
    fields: Vec<String>,
}

/// The part of one guest.
struct Guest {
    name: String,
    heading: String,
    /// The newest value of each field, in the order of the lines.
    newest: Vec<(String, String)>,
    /// The latest values of each field, `None` where it was not a number.
    history: BTreeMap<String, VecDeque<Option<f64>>>,
}

impl Table {
    /// A table of guests by their names. It shows these fields, or without any the first numbers of each guest.
    pub fn new(names: impl Iterator<Item = String>, fields: &[StatPath]) -> Self {
        let guest = |name| Guest {
            name,
            heading: "waiting for the first sample".into(),
            newest: Vec::new(),
            history: BTreeMap::new(),
        };
        Self { guests: names.map(guest).collect(), fields: fields.iter().map(ToString::to_string).collect() }
    }

    /// Records a sample of the guest with this index.
    pub fn record(&mut self, guest: usize, sample: &Sample) {
        if let Some(guest) = self.guests.get_mut(guest) {
            guest.record(sample, &self.fields);
        }
    }

    /// The lines of a terminal of this size.
    pub fn lines(&self, width: usize, height: usize) -> Vec<String> {
        let mut lines: Vec<String> = self.guests.iter().flat_map(|guest| guest.lines(width)).collect();
        if lines.len() > height {
            let shown = height.saturating_sub(1);
            let hidden = lines.len() - shown;
            lines.truncate(shown);
            lines.push(format!("{DIM}{}{DIM:#}", truncated(&format!("... {hidden} more lines"), width)));
        }
        lines
    }
}

impl Guest {
    fn record(&mut self, sample: &Sample, fields: &[String]) {
        match &sample.stats {
            Ok(stats) => {
                let all = rows(stats);
                self.heading = match sample.interval_ms {
                    Some(ms) => format!("session {}, deltas over {}", sample.session, seconds(ms)),
                    None => format!("session {}, new baseline", sample.session),
                };
                self.newest = if fields.is_empty() {
                    all.into_iter().filter(|(_, value)| value.parse::<f64>().is_ok()).take(DEFAULT_FIELDS).collect()
                } else {
                    let value = |field: &String| all.iter().find(|(path, _)| path == field);
                    let value = |field| value(field).map_or_else(|| "missing".into(), |(_, value)| value.clone());
                    fields.iter().map(|field| (field.clone(), value(field))).collect()
                };
            }
            Err(reason) => {
                self.heading = format!("no stats: {}", clean(&reason.to_string()));
                self.newest.iter_mut().for_each(|(_, value)| *value = "-".into());
            }
        }
        self.extend_history();
    }

    /// Adds the newest values, and drops fields that are no longer shown.
    fn extend_history(&mut self) {
        self.history.retain(|name, _| self.newest.iter().any(|(path, _)| path == name));
        for (path, value) in &self.newest {
            let values = self.history.entry(path.clone()).or_default();
            if values.len() == HISTORY {
                values.pop_front();
            }
            values.push_back(value.parse().ok());
        }
    }

    fn lines(&self, width: usize) -> Vec<String> {
        let heading = truncated(&format!("{}  {}", self.name, self.heading), width);
        let mut lines = vec![format!("{BOLD}{heading}{BOLD:#}")];
        let names = self.newest.iter().map(|(path, _)| path.chars().count()).max().unwrap_or(0).min(MAX_NAME);
        for (path, value) in &self.newest {
            let history = self.history.get(path).map(sparkline).unwrap_or_default();
            let name = truncated(path, MAX_NAME);
            lines.push(truncated(&format!("  {name:<names$}  {value:>16}  {history}"), width));
        }
        lines
    }
}

/// The first columns of a text.
fn truncated(text: &str, columns: usize) -> String {
    text.chars().take(columns).collect()
}

/// A bar for each value, scaled from the smallest to the largest; a gap where there is no number.
fn sparkline(numbers: &VecDeque<Option<f64>>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let there = || numbers.iter().flatten().copied();
    let (least, most) = (there().fold(f64::INFINITY, f64::min), there().fold(f64::NEG_INFINITY, f64::max));
    let bar = |number: f64| {
        // How many eighths of the range are below the number.
        let reached = |step: u8| number - least >= (most - least) * f64::from(step) / 8.0;
        let steps = if most > least { (1..8).filter(|step| reached(*step)).count() } else { 0 };
        BARS.get(steps).copied().unwrap_or('█')
    };
    numbers.iter().map(|number| number.map_or(' ', bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scx_vsock::MissingStatsReason;
    use serde_json::{Value, json};

    fn sample(stats: Result<Value, MissingStatsReason>) -> Sample {
        Sample { tag: "t".into(), elapsed_ms: 1, session: 1, interval_ms: Some(1_000), stats }
    }

    fn shown(table: &Table) -> Vec<String> {
        table.lines(80, 24).iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect()
    }

    fn table(fields: &[&str]) -> Table {
        let fields: Vec<StatPath> = fields.iter().map(|field| field.parse().unwrap()).collect();
        Table::new(["g1", "g2"].map(str::to_owned).into_iter(), &fields)
    }

    #[test]
    fn a_guest_has_a_heading_and_numbers() {
        let mut table = table(&[]);
        for nr in [0, 7, 3] {
            table.record(0, &sample(Ok(json!({ "name": "x", "nr": nr, "deep": { "n": 1 } }))));
        }
        assert_eq!(
            shown(&table),
            [
                "g1  session 1, deltas over 1.000 s",
                "  nr                     3  ▁█▄",
                "  deep.n                 1  ▁▁▁",
                "g2  waiting for the first sample"
            ]
        );
    }

    #[test]
    fn a_missing_sample_is_a_gap_with_its_reason() {
        let mut table = table(&["nr", "nowhere"]);
        table.record(1, &sample(Ok(json!({ "nr": 1 }))));
        table.record(1, &sample(Err(MissingStatsReason::TimedOut { after_ms: 5 })));
        table.record(1, &sample(Ok(json!({ "nr": 2 }))));
        let lines = shown(&table);
        assert_eq!(lines.get(2..).unwrap(), ["  nr                      2  ▁ █", "  nowhere           missing     "]);
        table.record(1, &sample(Err(MissingStatsReason::Cancelled)));
        assert!(shown(&table).get(1).unwrap().starts_with("g2  no stats: the run was cancelled"));
    }

    #[test]
    fn a_small_terminal_truncates_the_table() {
        let mut table = table(&[]);
        let many: Vec<u32> = (0..100).collect();
        table.record(0, &sample(Ok(json!(many))));
        let lines: Vec<String> =
            table.lines(10, 4).iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().take(3).all(|line| line.chars().count() <= 10));
        assert!(table.lines(80, 0).len() <= 1);
    }

    #[test]
    fn bars_are_scaled_to_the_range() {
        let bars = |numbers: &[f64]| sparkline(&numbers.iter().map(|number| Some(*number)).collect());
        assert_eq!(bars(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), "▁▂▃▄▅▆▇██");
        assert_eq!(bars(&[5.0, 5.0]), "▁▁");
        assert_eq!(bars(&[f64::MIN, f64::MAX]).chars().count(), 2);
        assert_eq!(sparkline(&VecDeque::from([None, Some(1.0)])), " ▁");
    }
}
