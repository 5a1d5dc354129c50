//! The table: a heading for each guest, and a line for each field, in as many lines and columns as a terminal has.

use std::collections::{BTreeMap, VecDeque};

use scx_vsock::Sample;
use scx_vsock::stats::StatPath;

use crate::display::{BOLD, DIM, clean, kernel_summary, number_rows, seconds, value_text};

/// The most values in a sparkline.
const HISTORY: usize = 120;

/// The most fields of a guest that are kept: a guest can send more than any terminal has lines.
const MAX_FIELDS: usize = 512;

/// The most columns of a name beside a sparkline.
const MAX_NAME: usize = 40;

/// The least columns of a value beside a sparkline, so that columns stay where they are while numbers grow.
const VALUE: usize = 16;

/// The fewest columns of a sparkline.
const MIN_SPARKLINE: usize = 4;

/// The table of all guests.
pub struct Table {
    guests: Vec<Guest>,
    fields: Vec<StatPath>,
}

/// The part of one guest.
struct Guest {
    name: String,
    status: String,
    /// The newest value of each field, in the order of the lines.
    newest: Vec<Row>,
    /// The number of fields that are not in `newest`.
    beyond: usize,
    /// The latest values of each field, `None` where it was not a number.
    history: BTreeMap<String, VecDeque<Option<f64>>>,
}

/// A field's name and its value.
type Row = (String, String);

impl Table {
    /// A table of guests by their names. It shows these fields, or without any the numbers of each guest.
    pub fn new(names: impl Iterator<Item = String>, fields: &[StatPath]) -> Self {
        let guest = |name: String| Guest {
            name: clean(&name),
            status: "waiting for the first sample".into(),
            newest: Vec::new(),
            beyond: 0,
            history: BTreeMap::new(),
        };
        Self { guests: names.map(guest).collect(), fields: fields.to_vec() }
    }

    /// Records a sample of the guest with this index.
    pub fn record(&mut self, guest: usize, sample: &Sample) {
        if let Some(guest) = self.guests.get_mut(guest) {
            guest.record(sample, &self.fields);
        }
    }

    /// The lines for a terminal of this size, at most `height` of at most `width` columns. A guest whose fields do not all
    /// fit says how many are hidden.
    pub fn lines(&self, width: usize, height: usize) -> Vec<String> {
        let Some(for_fields) = height.checked_sub(self.guests.len()) else {
            return self.first_headings(width, height);
        };
        let wanted: Vec<usize> = self.guests.iter().map(Guest::field_count).collect();
        let shares = shares(&wanted, for_fields);
        self.guests.iter().zip(shares).flat_map(|(guest, share)| guest.lines(width, share)).collect()
    }

    /// The headings that fit where not all do.
    fn first_headings(&self, width: usize, height: usize) -> Vec<String> {
        let Some(shown) = height.checked_sub(1) else { return Vec::new() };
        let headings = self.guests.iter().take(shown).map(|guest| guest.heading(width, 0));
        let hidden = self.guests.len().saturating_sub(shown);
        headings.chain([dim(&format!("{hidden} more guests"), width)]).collect()
    }
}

impl Guest {
    fn record(&mut self, sample: &Sample, fields: &[StatPath]) {
        match &sample.stats {
            Ok(stats) => {
                let session = match sample.interval_ms {
                    Some(ms) => format!("session {}, deltas over {}", sample.session, seconds(ms)),
                    None => format!("session {}, new baseline", sample.session),
                };
                self.status = kernel_text(sample) + &session;
                let value = |field: &StatPath| field.get(stats).map_or_else(|_| "missing".into(), value_text);
                let mut rows = if fields.is_empty() {
                    number_rows(stats)
                } else {
                    fields.iter().map(|field| (clean(&field.to_string()), value(field))).collect()
                };
                self.beyond = rows.len().saturating_sub(MAX_FIELDS);
                rows.truncate(MAX_FIELDS);
                self.newest = rows;
            }
            Err(reason) => {
                self.status = format!("{}no stats: {}", kernel_text(sample), clean(&reason.to_string()));
                self.newest.iter_mut().for_each(|(_, value)| *value = "-".into());
            }
        }
        self.extend_history();
    }

    /// Adds the newest values, and drops fields that are no longer there.
    fn extend_history(&mut self) {
        let mut before = std::mem::take(&mut self.history);
        for (path, value) in &self.newest {
            let mut values = before.remove(path).unwrap_or_default();
            if values.len() == HISTORY {
                values.pop_front();
            }
            values.push_back(value.parse().ok());
            self.history.insert(path.clone(), values);
        }
    }

    fn field_count(&self) -> usize {
        self.newest.len() + self.beyond
    }

    /// The heading, and `lines` lines of fields.
    fn lines(&self, width: usize, lines: usize) -> Vec<String> {
        let hides = lines < self.field_count();
        let shown = if hides { lines.saturating_sub(1) } else { lines }.min(self.newest.len());
        let hidden = self.field_count().saturating_sub(shown);
        let heading = self.heading(width, if lines == 0 { hidden } else { 0 });
        let columns = Columns::of(self.newest.get(..shown).unwrap_or(&self.newest), width);
        let rows = self.newest.iter().take(shown).map(|row| columns.line(row, self.history.get(&row.0)));
        let last = (hides && lines > 0).then(|| dim(&format!("{hidden} more fields"), width));
        [heading].into_iter().chain(rows).chain(last).collect()
    }

    fn heading(&self, width: usize, hidden: usize) -> String {
        let hidden = if hidden > 0 { format!("{hidden} fields hidden  ") } else { String::new() };
        let text = truncated(&format!("{}  {hidden}{}", self.name, self.status), width);
        format!("{BOLD}{text}{BOLD:#}")
    }
}

/// What the kernel says, as the beginning of a status; nothing where it was not asked or did not answer.
fn kernel_text(sample: &Sample) -> String {
    kernel_summary(sample).map(|summary| summary + ", ").unwrap_or_default()
}

fn dim(text: &str, width: usize) -> String {
    format!("{DIM}{}{DIM:#}", truncated(text, width))
}

/// How a line of `width` columns is divided.
struct Columns {
    width: usize,
    kind: ColumnKind,
}

enum ColumnKind {
    /// Name, value and sparkline.
    Wide { name: usize, value: usize },
    /// The value and as much of the name as fits.
    Narrow { value: usize },
}

impl Columns {
    fn of(rows: &[Row], width: usize) -> Self {
        let widest = |of: fn(&Row) -> &String| rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let (name, value) = (widest(|row| &row.0).min(MAX_NAME), widest(|row| &row.1));
        let wide = ColumnKind::Wide { name, value: value.max(VALUE) };
        let needed = 2 + name + 2 + value.max(VALUE) + 2 + MIN_SPARKLINE;
        Self { width, kind: if needed <= width { wide } else { ColumnKind::Narrow { value } } }
    }

    fn line(&self, (name, value): &Row, history: Option<&VecDeque<Option<f64>>>) -> String {
        match self.kind {
            ColumnKind::Wide { name: names, value: values } => {
                let start = format!("  {:<names$}  {value:>values$}  ", truncated(name, names));
                let bars = self.width.saturating_sub(start.chars().count());
                start + &history.map(|history| sparkline(history, bars)).unwrap_or_default()
            }
            ColumnKind::Narrow { value: values } => {
                let values = values.min(self.width);
                truncated(&format!("{:>values$} {name}", truncated(value, values)), self.width)
            }
        }
    }
}

/// Divides lines among guests that want this many: each has an equal share of what the others do not need.
fn shares(wanted: &[usize], lines: usize) -> Vec<usize> {
    let mut shares = vec![0; wanted.len()];
    let mut left = lines;
    while left > 0 {
        let open = shares.iter().zip(wanted).filter(|(share, wanted)| share < wanted).count();
        if open == 0 {
            break;
        }
        let each = (left / open).max(1);
        for (share, wanted) in shares.iter_mut().zip(wanted) {
            let more = each.min(wanted - *share).min(left);
            *share += more;
            left -= more;
        }
    }
    shares
}

/// The first columns of a text, with a mark where it goes on.
fn truncated(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let mark = if columns > 0 { "…" } else { "" };
    text.chars().take(columns.saturating_sub(1)).collect::<String>() + mark
}

/// A bar for each of the latest values, at most `columns` of them, scaled from the smallest to the largest; a gap where
/// there is no number.
fn sparkline(numbers: &VecDeque<Option<f64>>, columns: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let latest = || numbers.iter().skip(numbers.len().saturating_sub(columns));
    let there = || latest().flatten().copied();
    let (least, most) = (there().fold(f64::INFINITY, f64::min), there().fold(f64::NEG_INFINITY, f64::max));
    let bar = |number: f64| {
        // How many eighths of the range are below the number.
        let reached = |step: u8| number - least >= (most - least) * f64::from(step) / 8.0;
        let steps = if most > least { (1..8).filter(|step| reached(*step)).count() } else { 0 };
        BARS.get(steps).copied().unwrap_or('█')
    };
    latest().map(|number| number.map_or(' ', bar)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scx_vsock::MissingStatsReason;
    use serde_json::{Value, json};

    fn sample(stats: Result<Value, MissingStatsReason>) -> Sample {
        let sample = json!({ "tag": "t", "elapsed_ms": 1, "session": 1, "interval_ms": 1_000, "stats": stats });
        serde_json::from_value(sample).unwrap()
    }

    fn plain(lines: &[String]) -> Vec<String> {
        lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect()
    }

    fn shown(table: &Table, width: usize, height: usize) -> Vec<String> {
        let lines = plain(&table.lines(width, height));
        assert!(lines.len() <= height && lines.iter().all(|line| line.chars().count() <= width), "{lines:#?}");
        lines
    }

    fn table(fields: &[&str]) -> Table {
        let fields: Vec<StatPath> = fields.iter().map(|field| field.parse().unwrap()).collect();
        Table::new(["g1", "g2"].map(str::to_owned).into_iter(), &fields)
    }

    /// Two guests, of which the first has sent `count` numbers.
    fn with_numbers(count: usize) -> Table {
        let mut table = table(&[]);
        let stats = (0..count).map(|n| (format!("nr_direct_dispatches_{n:03}"), json!(n * 1_000)));
        table.record(0, &sample(Ok(stats.collect())));
        table
    }

    #[test]
    fn a_guest_has_a_heading_and_numbers() {
        let mut table = table(&[]);
        for nr in [0, 7, 3] {
            table.record(0, &sample(Ok(json!({ "name": "x", "nr": nr, "deep": { "n": 1 } }))));
        }
        assert_eq!(
            shown(&table, 80, 24),
            [
                "g1  session 1, deltas over 1.000 s",
                "  nr                     3  ▁█▄",
                "  deep.n                 1  ▁▁▁",
                "g2  waiting for the first sample"
            ]
        );
    }

    #[test]
    fn the_heading_has_what_the_kernel_says() {
        let mut table = table(&[]);
        let heading = |table: &mut Table, kernel: Value| {
            let mut sample = sample(Err(MissingStatsReason::Cancelled));
            sample.kernel = Some(Ok(serde_json::from_value(kernel).unwrap()));
            table.record(0, &sample);
            shown(table, 60, 24).remove(0)
        };
        let enabled = json!({ "state": "enabled", "ops": "a\u{1b}", "uptime_us": 1 });
        assert!(heading(&mut table, enabled).starts_with("g1  sched_ext enabled: a\\u{1b}, no stats: the run"));
        let disabled = json!({ "state": "disabled", "uptime_us": 1 });
        assert!(heading(&mut table, disabled).starts_with("g1  sched_ext disabled, no stats: the run"));
        assert!(heading(&mut table, json!({ "uptime_us": 1 })).starts_with("g1  no sched_ext, no stats"));
    }

    #[test]
    fn named_fields_are_looked_up_by_their_path() {
        let mut table = table(&["a\\.b", "cpus.1.util", "text", "cpus", "nowhere"]);
        let stats = json!({ "a.b": 1, "cpus": [{ "util": 2 }, { "util": 3.5 }], "text": "a\u{202e}b" });
        table.record(0, &sample(Ok(stats)));
        let lines = shown(&table, 80, 24);
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = ["a\\.b 1 ▁", "cpus.1.util 3.5 ▁", "text a\\u{202e}b", "cpus an array of 2", "nowhere missing"];
        assert_eq!(lines.iter().skip(1).take(5).map(words).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_missing_sample_is_a_gap_with_its_reason() {
        let mut table = table(&["nr", "nowhere"]);
        table.record(1, &sample(Ok(json!({ "nr": 1 }))));
        table.record(1, &sample(Err(MissingStatsReason::TimedOut { after_ms: 5 })));
        table.record(1, &sample(Ok(json!({ "nr": 2 }))));
        let lines = shown(&table, 80, 24);
        assert_eq!(lines.get(2..).unwrap(), ["  nr                      2  ▁ █", "  nowhere           missing     "]);
        table.record(1, &sample(Err(MissingStatsReason::Cancelled)));
        assert!(shown(&table, 80, 24).get(1).unwrap().starts_with("g2  no stats: the run was cancelled"));
    }

    #[test]
    fn a_narrow_terminal_shows_numbers_before_names() {
        assert_eq!(
            shown(&with_numbers(12), 20, 5),
            [
                "g1  session 1, delt…",
                "   0 nr_direct_disp…",
                "1000 nr_direct_disp…",
                "10 more fields",
                "g2  waiting for the…"
            ]
        );
    }

    #[test]
    fn every_line_of_a_terminal_is_used() {
        let lines = shown(&with_numbers(100), 80, 24);
        assert_eq!(lines.len(), 24);
        assert_eq!(lines.get(1), Some(&format!("  nr_direct_dispatches_000  {:>16}  ▁", 0)));
        assert_eq!(lines.get(22).unwrap(), "79 more fields");
        let lines = shown(&with_numbers(100), 200, 60);
        assert_eq!((lines.len(), lines.get(58).unwrap().as_str()), (60, "43 more fields"));
        assert_eq!(shown(&with_numbers(20), 80, 24).len(), 22, "all fit");
    }

    #[test]
    fn a_wide_terminal_has_longer_sparklines() {
        let mut table = table(&["nr"]);
        for nr in 0..200 {
            table.record(0, &sample(Ok(json!({ "nr": nr }))));
        }
        let bars = |width| shown(&table, width, 60).get(1).unwrap().chars().filter(|char| *char > 'z').count();
        assert_eq!([bars(40), bars(80), bars(200)], [16, 56, HISTORY]);
    }

    #[test]
    fn a_terminal_without_room_says_what_is_hidden() {
        let table = with_numbers(12);
        assert_eq!(shown(&table, 1, 1), ["…"]);
        assert_eq!(shown(&table, 40, 1), ["2 more guests"]);
        assert_eq!(shown(&table, 40, 2).first().unwrap(), "g1  12 fields hidden  session 1, deltas…");
        assert_eq!(shown(&table, 40, 3).get(1).unwrap(), "12 more fields");
        assert!(shown(&table, 0, 0).is_empty());
    }

    #[test]
    fn guests_share_the_lines() {
        assert_eq!(shares(&[100, 2, 100], 22), [10, 2, 10]);
        assert_eq!(shares(&[100, 100], 5), [3, 2]);
        assert_eq!(shares(&[1, 0], 9), [1, 0]);
        assert_eq!(shares(&[], 9), [0; 0]);
    }

    #[test]
    fn a_guest_with_endless_fields_is_bounded() {
        let mut table = table(&[]);
        for round in 0..3 {
            let stats = (0..10_000).map(|n| (format!("{round} {n}"), json!(n)));
            table.record(0, &sample(Ok(stats.collect())));
        }
        let guest = table.guests.first().unwrap();
        assert_eq!(
            (guest.history.len(), guest.newest.len(), guest.beyond),
            (MAX_FIELDS, MAX_FIELDS, 10_000 - MAX_FIELDS)
        );
        let lines = shown(&table, 80, 1_000);
        assert_eq!(lines.get(MAX_FIELDS + 1), Some(&format!("{} more fields", 10_000 - MAX_FIELDS)));
    }

    #[test]
    fn bars_are_scaled_to_the_range() {
        let bars = |numbers: &[f64]| sparkline(&numbers.iter().map(|number| Some(*number)).collect(), 80);
        assert_eq!(bars(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), "▁▂▃▄▅▆▇██");
        assert_eq!(bars(&[5.0, 5.0]), "▁▁");
        assert_eq!(bars(&[f64::MIN, f64::MAX]).chars().count(), 2);
        let gap = VecDeque::from([None, Some(1.0)]);
        assert_eq!(
            (sparkline(&gap, 2), sparkline(&gap, 1), sparkline(&gap, 0)),
            (" ▁".into(), "▁".into(), String::new())
        );
    }
}
